"Bad answers from real endpoints, several samples, injected judges and existing answers."
import json, re
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, strategies as st

from llm_distill.core.core import DistillError, read_jsonl, recordings
from llm_distill.core.prompt import trim
from llm_distill.core.prompt_files import load_prompt, parse_prompt
from llm_distill.data.checks import correction_chat, validate_reply
from llm_distill.data.labeling import check_label_settings, label, medoids, row_types, to_dataset
from llm_distill.teacher.endpoint import Reply
from llm_distill.teacher.recording import RecordingApp
from llm_distill.teacher.teacher import Teacher, recorded_teacher
from odd_texts import anything, error_of, texts
from server import Server

apartments = load_prompt(recordings/'apartments.toml')
prompt = replace(apartments, examples=apartments.examples*2) # two lists, so that every answer must be a list
questions = [r['question'] for r in read_jsonl(recordings/'apartments.jsonl')[:12]]
free_text = parse_prompt('Say it.\nQ: Why?\nA: It rained. So we stayed, all of us.<END>\nQ: How?')
ok = partial(Reply, kind='ok', reason='', key='')


class ScriptedApp(RecordingApp):
    "An endpoint that answers with a function of the messages and the sample."
    name = 'scripted'
    def __init__(self, reply): self.reply, self.log = reply, []
    def answer(self, body, headers):
        sample = int(headers.get('x-llm-distill-sample', 0))
        self.log.append((body['messages'], sample, body))
        message = dict(role='assistant', content=self.reply(body['messages'], sample))
        return 200, dict(id='x', object='chat.completion', created=0, model='m',
                         usage=dict(prompt_tokens=1, completion_tokens=1),
                         choices=[dict(index=0, message=message, finish_reason='stop')])


def scripted(reply):
    app = ScriptedApp(reply)
    teacher = Teacher('m', app=app, progress=False)
    teacher.log = app.log
    return teacher


def question_in(messages): return re.findall(r'Q: (.*)\nA:$', messages[0]['content'])[0]


# ---- re-asking

class Flaky(Server):
    "A recorded endpoint that answers badly as long as `bad(messages)` returns a text."
    def __init__(self, bad, **kwargs):
        super().__init__(**kwargs)
        self.bad, self.chats = bad, []

    def answer(self, body, headers):
        self.chats.append(body['messages'])
        status, answer = super().answer(body, headers)
        text = self.bad(body['messages'])
        if status == 200 and text is not None: answer['choices'][0]['message']['content'] = text
        return status, answer


def connect(server, **kwargs): return Teacher('m', server.url, progress=False, **kwargs)


def test_a_flaky_endpoint_is_repaired_by_asking_again():
    with Flaky(lambda m: 'Sure! Let me think.' if len(m) == 1 else None) as server:
        pairs, rejects = label(prompt, questions, connect(server))
    assert not rejects and pairs['question'][:] == questions and len(server.chats) == 2*len(questions)
    assert pairs['answer'][:] == label(prompt, questions, recorded_teacher())[0]['answer'][:]
    chat = max(server.chats, key=len)
    assert [m['role'] for m in chat] == ['user', 'assistant', 'user']
    assert chat[0]['content'] == prompt.render(question_in(chat)) and chat[1]['content'] == 'Sure! Let me think.'
    assert f'Q: {question_in(chat)}\n' in chat[2]['content']
    assert validate_reply(prompt, '', ok('Sure! Let me think.'))[1] in chat[2]['content']


@pytest.mark.parametrize('max_reasks', [0, 1, 3])
def test_asking_again_is_bounded(max_reasks):
    bad_answers = {questions[0]: '', questions[1]: 'No idea'}
    with Flaky(lambda m: bad_answers.get(question_in(m))) as server:
        pairs, rejects = label(prompt, questions, connect(server), max_reasks=max_reasks)
    n = max_reasks + 1
    assert len(pairs) == len(questions) - 2 and len(server.chats) == len(pairs) + 2*n
    assert [(r['filter'], r['attempts'], r['reply']) for r in rejects] == [
        ('empty', n, None), ('list_of_steps', n, 'No idea')]
    assert sorted(len(c) for c in server.chats if question_in(c) == questions[0]) == [1 + 2*i for i in range(n)]


@pytest.mark.parametrize('plan, filter, attempts', [
    (['truncated', 'empty', 'ok'], None, 3), (['truncated', 'truncated', 'truncated', 'ok'], 'truncated', 3),
    (['empty']*3, 'empty', 3), (['filter', 'ok'], 'filtered', 1), (['truncated', 'filter', 'ok'], 'filtered', 2)])
def test_which_kinds_are_asked_again(plan, filter, attempts):
    with Server(plan=plan) as server: pairs, rejects = label(prompt, questions[:1], connect(server))
    assert len(server.log) == attempts and len(pairs) == (filter is None)
    assert [(r['filter'], r['attempts']) for r in rejects] == ([(filter, attempts)] if filter else [])


def test_a_question_without_a_reply_is_rejected_as_failed_and_not_asked_again():
    with Server(plan=['500']*3) as server:
        pairs, rejects = label(prompt, questions[:1], connect(server, max_retries=2, backoff=0.01))
    assert len(server.log) == 3 and not len(pairs)
    assert rejects[0]['filter'] == 'failed' and rejects[0]['reason'].startswith('failed reply')


def test_corrected_answers_come_from_the_cache(tmp_path):
    with Flaky(lambda m: 'Hm' if len(m) < 5 or question_in(m) == questions[3] else None) as server:
        first = label(prompt, questions, connect(server, cache=tmp_path/'c'))
        n = len(server.chats)
        again = label(prompt, questions, connect(server, cache=tmp_path/'c'))
        assert n == len(server.chats) == 3*len(questions)
    assert first[0].to_list() == again[0].to_list() and first[1] == again[1] and len(first[1]) == 1
    row, = [r for r in again[0] if r['question'] == questions[5]]
    assert len({*again[0]['request']}) == len(again[0]) and row['request']


def test_the_request_of_a_row_is_that_of_the_accepted_reply():
    teacher = scripted(lambda m, s: 'Find it, list it.' if len(m) == 3 else 'Hm')
    row = label(prompt, questions[:1], teacher)[0][0]
    reason = validate_reply(prompt, '', ok('Hm'))[1]
    chat = correction_chat(prompt, questions[0], prompt.messages(questions[0]), ok('Hm'), reason)
    assert row['request'] == teacher.ask([chat], 'labeling', stop=[prompt.end])[0].key


def test_the_recorded_teacher_answers_corrections():
    teacher = recorded_teacher()
    texts = [prompt.render(q) for q in questions[:2]]
    answer, last = dict(role='assistant', content='Q: x\nA:'), dict(role='user', content='Only the answer, please.')
    chats = [[dict(role='user', content=text), answer, last] for text in texts]
    assert [r.text for r in teacher.ask(chats, 'labeling')] == [r.text for r in teacher.ask(texts, 'labeling')]
    chat = correction_chat(prompt, questions[0], prompt.messages(questions[0]), ok('x'), 'y')
    assert teacher.ask([chat], 'labeling')[0].text
    with pytest.raises(DistillError, match='Only the answer'): teacher.ask([[last]], 'labeling')


@anything
@given(st.lists(st.one_of(texts, st.sampled_from(['Find it, list it.', '<END>', 'Q: x'])), max_size=4),
       st.integers(0, 3), st.integers(1, 2))
def test_each_question_is_a_pair_or_a_reject_within_the_bound(replies, max_reasks, samples):
    class Answers:
        model, n_requests = 'any', 0
        def ask(self, prompts, sample=0, **_):
            self.n_requests += len(prompts)
            turns = [0 if isinstance(p, str) else len(p)//2 for p in prompts]
            return [self.reply(turn, sample) for turn in turns]

        def reply(self, turn, sample):
            text = replies[(turn + sample) % len(replies)].encode('utf-8', 'replace').decode() if replies else ''
            if text.strip(): return Reply(text, 'ok', '', 'k')
            return Reply(None, ('truncated', 'failed')[turn % 2], 'why', 'k')

    teacher = Answers()
    pairs, rejects = label(free_text, questions[:2], teacher, max_reasks=max_reasks, samples=samples,
                           check=lambda q, a: len(a) < 20)
    assert sorted([*pairs['question'], *(r['question'] for r in rejects)]) == sorted(questions[:2])
    n = samples*(max_reasks + 1)
    assert teacher.n_requests <= 2*n and all(r['attempts'] <= n for r in rejects)
    assert all(p['answer'] and p['answer'] == trim(p['answer']) for p in pairs)


# ---- several samples

def test_the_medoid_wins_and_names_its_sample():
    answers = ['Go home, sleep.', 'Find the gym, cancel the membership.', 'Look up the gym, cancel the membership.']
    teacher = scripted(lambda m, s: answers[s])
    pairs, rejects = label(prompt, questions[:3], teacher, samples=3)
    row = pairs[0]
    assert not rejects and row['sample'] in (1, 2) and row['answer'] == answers[row['sample']]
    ask = partial(teacher.ask, stage='labeling', temperature=0.7, stop=[prompt.end])
    reply = ask([prompt.render(questions[0])], sample=row['sample'])[0]
    assert 0 < row['agreement'] < 1 and row['request'] == reply.key
    assert {body['temperature'] for _, _, body in teacher.log} == {0.7}
    assert label(prompt, questions[:3], teacher, samples=3)[0].to_list() == pairs.to_list()

    agreement = row['agreement']
    pairs, rejects = label(prompt, questions[:3], teacher, samples=3, min_agreement=agreement + 0.01)
    assert len(pairs) == 0 and [(r['filter'], r['agreement']) for r in rejects] == [('agreement', agreement)]*3
    assert f'{agreement:.2f}' in rejects[0]['reason']
    assert len(label(prompt, questions[:3], teacher, samples=3, min_agreement=agreement)[0]) == 3


def test_one_sample_has_no_agreement_and_temperature_0():
    teacher = scripted(lambda m, s: 'Find it, list it.')
    pairs, _ = label(prompt, questions[:2], teacher)
    assert pairs['agreement'][:] == [None]*2 and [body['temperature'] for _, _, body in teacher.log] == [0., 0.]
    pairs, _ = label(prompt, questions[:2], teacher, 'evaluation', 1, 0.7)
    assert pairs['sample'][:] == [1, 1] and teacher.log[-1][1] == 1


def test_invalid_samples_are_asked_again_and_then_left_out():
    def reply(messages, sample):
        is_bad = sample == 1 or (sample == 2 and len(messages) == 1)
        return 'Hm' if is_bad else 'Find it, list it.'
    teacher = scripted(reply)
    pairs, rejects = label(prompt, questions[:1], teacher, samples=3, max_reasks=1)
    assert not rejects and pairs[0]['sample'] == 0 and pairs[0]['agreement'] > 0.99 and len(teacher.log) == 5

    only_last = scripted(lambda m, s: 'Find it, list it.' if s == 2 else 'Hm')
    row = label(prompt, questions[:1], only_last, samples=3)[0][0]
    assert row | dict(request='') == pairs[0] | dict(sample=2, agreement=None, request='')
    rejects = label(prompt, questions[:1], only_last, samples=3, min_agreement=0.1)[1]
    assert rejects[0]['filter'] == 'agreement' and 'only 1 of 3' in rejects[0]['reason']
    rejects = label(prompt, questions[:1], scripted(lambda m, s: 'Hm'), samples=3, max_reasks=1)[1]
    assert [(r['filter'], r['attempts']) for r in rejects] == [('list_of_steps', 6)]


def test_medoids_by_the_metric_of_the_format():
    objects = ['{"a": 1, "b": 2}', '{"a": 1, "b": 3}', '{"a": 1, "b": 2}']
    assert medoids([objects, ['{}']]) == [(0, round(2/3, 4)), (0, None)]
    assert medoids([['It is red. Yes.', 'It is blue. Yes.', 'It is blue. Yes.']])[0][0] == 1
    assert medoids([[], ['x'], ['b', 'a', 'b', 'a']]) == [(0, None), (0, None), (0, round(2/6, 4))]
    assert medoids([]) == []


# ---- settings and judges

@pytest.mark.parametrize('wrong', [
    dict(samples=0), dict(max_reasks=-1), dict(min_agreement=0.5), dict(min_agreement=2, samples=2), dict(judge=True)])
def test_contradicting_settings_are_an_error_before_anything_is_asked(wrong):
    for call in partial(label, prompt, questions, None), check_label_settings:
        assert next(iter(wrong)) in error_of(call, **wrong)


def test_a_judge_sees_valid_answers_only():
    calls = []
    def judge(*args):
        calls.append(args)
        return [None, ('judge', 'wrong')]
    teacher = scripted(lambda m, s: 'Hm' if questions[0] in m[0]['content'] else 'Find it, list it.')
    existing = {questions[2]: 'Find this, list that.'}
    pairs, rejects = label(prompt, questions[:3], teacher, 'evaluation', max_reasks=0, judge=judge, existing=existing)
    assert calls == [(prompt, questions[1:3], ['Find it, list it.', 'Find this, list that.'], 'evaluation')]
    assert pairs['question'][:] == questions[1:2]
    assert [(r['filter'], r['reason'], r['question'], r['reply']) for r in rejects[1:]] == [
        ('judge', 'wrong', questions[2], 'Find this, list that.')]
    assert rejects[0]['filter'] == 'list_of_steps' and {r['stage'] for r in rejects} == {'evaluation'}


# ---- rows

def test_existing_answers_are_validated_and_not_asked_for():
    teacher = scripted(lambda m, s: 'Find it, list it.')
    answers = ['Open it, read it.<END>', 'Hm', 'Open \ud800, read it.']
    existing = dict(zip(questions, answers)) | {'another question': 'x'}
    seed_questions = {questions[0]: 'Another seed question?'}
    pairs, rejects = label(prompt, questions[:4], teacher, existing=existing, seed_questions=seed_questions, samples=2)
    assert pairs['answer'][:] == ['Open it, read it.', 'Open ?, read it.', 'Find it, list it.']
    assert len(teacher.log) == 2
    assert pairs['teacher'][:] == ['given', 'given', teacher.model]
    assert pairs['seed_question'][:] == ['Another seed question?', prompt.question, prompt.question]
    assert pairs[0]['request'] == '' and pairs[0]['agreement'] is None and pairs[2]['request']
    assert [(r['filter'], r['reply'], r['attempts']) for r in rejects] == [('list_of_steps', 'Hm', 0)]


def test_rows_name_the_model_and_not_its_address():
    with Server() as server: pairs, _ = label(prompt, questions[:1], Teacher('big', server.url, progress=False))
    assert pairs['teacher'][:] == ['big'] and '127.0.0.1' not in json.dumps(pairs.to_list())


def test_a_dataset_is_typed_even_without_rows():
    from datasets import Value
    dataset = to_dataset([])
    assert len(dataset) == 0 and dataset.features == {k: Value(t) for k, t in row_types.items()}
