"Judges of one answer and of two: right, partial, mute or inconsistent, and the files of a run that they write."
import json, re
from functools import partial

import pytest
from hypothesis import example, given, settings, strategies as st

from llm_distill.core.core import TeacherError, read_json, read_jsonl, recordings, write_json, write_jsonl
from llm_distill.core.prompt_files import load_prompt
from llm_distill.data.labeling import label
from llm_distill.evaluate.judge import AnswerJudge, judge_run, pair_outcome, summarize_judgements
from llm_distill.evaluate.judge_prompts import (
    judge_prompt, judge_schema, pair_prompt, pair_schema, parse_judgement, parse_verdict)
from llm_distill.teacher.recording import RecordingApp
from llm_distill.teacher.teacher import Teacher, recorded_teacher
from odd_texts import anything, error_of, texts
from server import Server

prompt, ood_prompt = (load_prompt(recordings/f'{name}.toml') for name in ('apartments', 'pull_requests'))
questions = [r['question'] for r in read_jsonl(recordings/'apartments.jsonl')[:12]]


# ---- one answer

class ScriptedApp(RecordingApp):
    "An endpoint that answers with a function of the messages: a reply, or a reply and its finish_reason."
    name = 'scripted'
    def __init__(self, reply): self.reply, self.log = reply, []
    def answer(self, body, headers):
        self.log.append((body['messages'], headers, body))
        result = self.reply(body['messages'])
        text, finish_reason = result if isinstance(result, tuple) else (result, 'stop')
        choice = dict(index=0, message=dict(role='assistant', content=text), finish_reason=finish_reason)
        return 200, dict(id='x', object='chat.completion', created=0, model='m', choices=[choice])


def scripted(reply):
    app = ScriptedApp(reply)
    teacher = Teacher('m', app=app, progress=False)
    teacher.log = app.log
    return teacher


def judge_by_question(replies):
    def reply(messages):
        matches = [v for q, v in replies.items() if f'Question: {q}' in messages[0]['content']]
        return matches[0] if matches else '{"reason": "Fine.", "score": 5}'
    return scripted(reply)


def test_labels_are_filtered_by_a_judge_of_another_kind():
    teacher = scripted(lambda m: 'Find it, list it.')
    replies = ['{"reason": "Half of\nit.", "score": 3}'.replace('\n', '\\n'), 'I cannot tell.', '', ('Sco', 'length')]
    judge = judge_by_question(dict(zip(questions, replies)))
    label_all = partial(label, prompt, questions, teacher, existing={questions[4]: 'Find this, list that.'})
    pairs, rejects = label_all(judge=AnswerJudge(judge))
    assert pairs['question'][:] == questions[4:] and {r['filter'] for r in rejects} == {'judge'}
    assert len(judge.log) == len(questions) and len(teacher.log) == len(questions) - 1
    assert rejects[0]['reason'] == 'the judge gave 3 of 5, less than 4: Half of it.'
    assert "'I cannot tell.'" in rejects[1]['reason'] and all(r['reply'] == 'Find it, list it.' for r in rejects)
    _, headers, body = judge.log[0]
    assert body['response_format']['json_schema']['schema'] == judge_schema and body['temperature'] == 0
    assert headers['x-llm-distill-stage'] == 'labeling'
    assert len(label_all(judge=AnswerJudge(judge, threshold=3))[0]) == len(questions) - 3


@pytest.mark.parametrize('template', [
    'Is {answer} good for {question}? {"score": 1}', 'Is {answer} good for {task}? {"score": 1}'])
def test_a_custom_template_and_invalid_answers_are_not_judged(template):
    def reply(messages):
        if 'good' in messages[-1]['content']: return '2'
        return 'Hm\nHm' if questions[0] in messages[0]['content'] else 'Find it, list it.'
    teacher = scripted(reply)
    _, rejects = label(prompt, questions[:3], teacher, judge=AnswerJudge(teacher, template), max_reasks=0)
    assert [r['filter'] for r in rejects] == ['extra_lines', 'judge', 'judge'] and len(teacher.log) == 5
    judged = {messages[0]['content'] for messages, _, _ in teacher.log[3:]}
    assert judged == {f'Is Find it, list it. good for {q}? {{"score": 1}}' for q in questions[1:3]}


@pytest.mark.parametrize('template, words', [('good?', '{question}'), ('{task}', '{answer}'), ('', '{question}')])
def test_a_template_without_its_placeholders_is_an_error(template, words):
    for call in partial(AnswerJudge, None), partial(judge_prompt, prompt, 'q', 'a'):
        assert words in error_of(call, template=template)


@pytest.mark.parametrize('threshold', [0, 5.5, float('nan')])
def test_a_threshold_out_of_range_is_an_error(threshold):
    assert 'threshold' in error_of(AnswerJudge, None, threshold=threshold)


def test_a_judge_that_fails_differs_from_a_judge_that_rejects():
    with Server(faults={'500': 1}) as server:
        judge = Teacher('m', server.url, progress=False, max_retries=0, backoff=0.01)
        pairs, rejects = label(prompt, questions[:2], recorded_teacher(), judge=AnswerJudge(judge))
    assert not len(pairs) and [r['filter'] for r in rejects] == ['failed']*2
    assert rejects[0]['reason'].startswith('failed reply')


def test_nothing_to_judge_asks_nothing():
    judge = AnswerJudge(scripted(lambda m: '5'))
    assert judge(prompt, [], []) == [] and judge.teacher.log == []


@anything
@given(texts)
@example('{"score":' * 5_000)
@example('{"score": ' + '9'*5_000 + '}')
@example('score ' + '1'*50_000)
@example('{"score": [4]} score: 4')
def test_any_judgement_is_a_score_and_a_reason_or_none(text):
    judgement = parse_judgement(text)
    if judgement is None: return
    score, reason = judgement
    assert 1 <= score <= 5 and isinstance(reason, str) and len(reason.splitlines()) < 2


score_forms = ['{{"reason": "r", "score": {}}}', 'Sure:\n```json\n{{"score": "{}"}}\n```', 'score: {}',
               'Score: **{}**', '{}', '{}/5', '{} out of 5.', 'I give it a rating of {}.',
               'On a scale of 1 to 5 the score is {}', '{{"score": {}.0, "reason": null}}']


@anything
@given(st.integers(1, 5), st.sampled_from(score_forms))
def test_scores_are_read_in_every_form(score, form): assert parse_judgement(form.format(score))[0] == score


# ---- two answers

class PairJudge(Server):
    "A local endpoint that judges with `verdict(a, b, messages)`: a reply, or a reply and its finish_reason."
    def __init__(self, verdict, **kwargs):
        super().__init__(echo=True, **kwargs)
        self.verdict, self.chats = verdict, []

    def answer(self, body, headers):
        self.chats.append(body['messages'])
        a, b = re.findall(r'<answer_.>\n(.*)\n</answer_.>', body['messages'][0]['content'])
        result = self.verdict(a, b, body['messages'])
        text, finish_reason = result if isinstance(result, tuple) else (result, 'stop')
        choice = dict(index=0, message=dict(role='assistant', content=text), finish_reason=finish_reason)
        return 200, dict(id='x', object='chat.completion', created=0, model=body['model'], choices=[choice],
                         usage=dict(prompt_tokens=9, completion_tokens=1))


def as_json(verdict): return json.dumps(dict(reason='So it is.', verdict=verdict))


def prefer_good(a, b, messages):
    "Prefer the answer that contains `good`."
    if ('good' in a) == ('good' in b): return as_json('tie')
    return as_json('A' if 'good' in a else 'B')


def run_judge(run_dir, verdict, systems=('distilled',), cache=None, server={}, **kwargs):
    "Judge a run; return the result and the endpoint."
    with PairJudge(verdict, **server) as s:
        teacher = Teacher('a-judge', s.url, cache=cache, progress=False, max_retries=0, backoff=.01)
        return judge_run(run_dir, teacher, systems, **kwargs), s


@pytest.fixture
def run_dir(tmp_path):
    "A run with six answers: three good ones against bad ones, two ties, one bad one against a good one."
    config = dict(prompt=vars(prompt) | dict(examples=[]),
                  ood_prompt=vars(ood_prompt) | dict(examples=[], instruction='Do the other thing.'))
    write_json(tmp_path/'run.json', dict(format=2, llm_distill='0.2', config=config))
    expected = ['bad']*3 + ['bad', 'good', 'good']
    answers = dict(distilled=['good']*3 + ['bad', 'good', 'bad'], one_shot=['bad']*6)
    for test_set in 'test', 'test_ood':
        for system, predicted in answers.items():
            rows = [dict(question=f'Question {i}? ({test_set})', expected=f'{e} {i}', prediction=f'{p}, {i}')
                    for i, (e, p) in enumerate(zip(expected, predicted))]
            write_jsonl(tmp_path/'predictions'/f'{system}_{test_set}.jsonl', rows)
    return tmp_path


def counts(summary):
    return [summary[k] for k in ('n', 'wins', 'ties', 'losses', 'first_wins', 'inconsistent', 'unusable')]


def test_a_perfect_judge(run_dir):
    result, server = run_judge(run_dir, prefer_good, ('distilled', 'one_shot'))
    assert result['judge'] == 'a-judge' and read_json(run_dir/'judge.json') == result
    for test_set in 'test', 'test_ood':
        distilled, one_shot = (result['systems'][system][test_set] for system in ('distilled', 'one_shot'))
        assert counts(distilled) == [6, 3, 2, 1, .5, 0, 0]
        rate = distilled['win_rate']
        assert rate['mean'] == pytest.approx(4/6, abs=1e-4) and rate['low'] < .6 < rate['high']
        assert counts(one_shot)[1:4] == [0, 4, 2] and one_shot['win_rate']['mean'] == pytest.approx(2/6, abs=1e-4)
    n_systems, n_sets, n_items, n_orders, n_equal = 2, 2, 6, 2, 2 # equal answers of both systems are asked about once
    assert len(server.chats) == n_systems*n_sets*n_items*n_orders - n_sets*n_equal*n_orders


def test_rows_have_both_verdicts_as_they_were(run_dir):
    run_judge(run_dir, prefer_good)
    rows = read_jsonl(run_dir/'judge.jsonl')
    assert [r['outcome'] for r in rows[:6]] == ['win']*3 + ['tie']*2 + ['loss'] and len(rows) == 12
    assert rows[0] == dict(
        test_set='test', system='distilled', question='Question 0? (test)', expected='bad 0', prediction='good, 0',
        verdicts=['A', 'B'], replies=[as_json('A'), as_json('B')], outcome='win')


def test_each_item_is_asked_in_both_orders_with_its_own_instruction(run_dir):
    _, server = run_judge(run_dir, prefer_good)
    texts = [c[0]['content'] for c in server.chats]
    for test_set, instruction in dict(test=prompt.instruction, test_ood='Do the other thing.').items():
        both = [text for text in texts if f'Question 2? ({test_set})' in text]
        assert len(both) == 2 and all(f'Instruction: {instruction}\n' in text for text in both)
        assert sorted(text.index('good, 2') < text.index('bad 2') for text in both) == [False, True]


def test_a_run_without_an_ood_prompt_uses_its_only_prompt(run_dir):
    record = read_json(run_dir/'run.json')
    write_json(run_dir/'run.json', record | dict(config=dict(record['config'], ood_prompt=None)))
    _, server = run_judge(run_dir, prefer_good)
    assert all(f'Instruction: {prompt.instruction}\n' in chat[0]['content'] for chat in server.chats)


always_tied = dict(n=6, wins=0, ties=6, losses=0, win_rate=dict(mean=.5, low=.5, high=.5), unusable=0)


def test_a_judge_that_prefers_the_first_answer(run_dir):
    result, _ = run_judge(run_dir, lambda *_: as_json('A'))
    for summary in result['systems']['distilled'].values():
        assert summary == always_tied | dict(first_wins=1, inconsistent=1)


def test_a_judge_that_prefers_the_second_answer_half_the_time(run_dir):
    result, _ = run_judge(run_dir, lambda a, b, m: as_json('tie' if 'good' in a else 'B'))
    summary = result['systems']['distilled']['test']
    n_inconsistent = 5 # all but the pair of good answers
    assert summary['first_wins'] == 0 and summary['inconsistent'] == pytest.approx(n_inconsistent/6, abs=1e-4)


def test_only_ties(run_dir):
    result, _ = run_judge(run_dir, lambda *_: as_json('tie'))
    assert result['systems']['distilled']['test'] == always_tied | dict(first_wins=None, inconsistent=0)


def test_unreadable_replies_are_asked_for_once_more(run_dir):
    result, server = run_judge(run_dir, lambda a, b, m: 'Difficult.' if len(m) == 1 else prefer_good(a, b, m))
    assert result['systems']['distilled']['test']['wins'] == 3 and len(server.chats) == 2*24
    last = server.chats[-1]
    assert [m['role'] for m in last] == ['user', 'assistant', 'user'] and last[1]['content'] == 'Difficult.'


@pytest.mark.parametrize('garbage', [
    'I refuse.', '', 'A good one is B', '{"verdict": 7}', ('{"reason": "I am cut', 'length'), ('', 'content_filter')])
def test_garbage_is_counted_and_kept(run_dir, garbage):
    result, server = run_judge(run_dir, lambda a, b, m: garbage if '2' in a + b else prefer_good(a, b, m), n=3)
    summary = result['systems']['distilled']['test']
    assert (summary['n'], summary['wins'], summary['unusable'], summary['win_rate']['mean']) == (2, 2, 1, 1)
    row = read_jsonl(run_dir/'judge.jsonl')[2]
    assert row['outcome'] == 'unusable' and row['verdicts'] == [None, None]
    assert all(isinstance(reply, str) for reply in row['replies'])
    n_asked = sum('2' in c[0]['content'].split('<answer_a>')[1] for c in server.chats)
    assert n_asked == 2*2*2 # test sets, orders, and once more


def test_one_unusable_order_spoils_the_item(run_dir):
    result, _ = run_judge(run_dir, lambda a, b, m: 'no' if 'good, 0' in a else prefer_good(a, b, m))
    summary = result['systems']['distilled']['test']
    assert (summary['unusable'], summary['n']) == (1, 5)
    assert read_jsonl(run_dir/'judge.jsonl')[0]['verdicts'] == [None, 'B']


def test_nothing_but_garbage_has_no_win_rate(run_dir):
    result, _ = run_judge(run_dir, lambda *_: 'no')
    assert result['systems']['distilled']['test'] == dict(
        n=0, wins=0, ties=0, losses=0, win_rate=dict(mean=None, low=None, high=None), first_wins=None,
        inconsistent=None, unusable=6)


def test_requests_that_fail_are_repeated_as_they_were(run_dir):
    result, server = run_judge(run_dir, prefer_good, server=dict(plan=['500', '500']), n=2)
    assert counts(result['systems']['distilled']['test']) == [2, 2, 0, 0, .5, 0, 0]
    assert len(server.log) == 8 + 2 and all(len(c) == 1 for c in server.chats)


def test_paid_judgements_are_not_asked_for_again(run_dir, tmp_path):
    cache = tmp_path/'teacher.sqlite'
    _, server = run_judge(run_dir, prefer_good, cache=cache, n=2)
    assert len(server.chats) == 8
    same = dict(port=server.port)
    _, server = run_judge(run_dir, prefer_good, cache=cache, server=same)
    assert len(server.chats) == 24 - 8
    with pytest.raises(TeacherError):
        run_judge(run_dir, prefer_good, ('one_shot',), cache=cache, server=same | dict(plan=['ok']*3 + ['401']))
    assert set(read_json(run_dir/'judge.json')['systems']) == {'distilled'} # as it was
    _, server = run_judge(run_dir, prefer_good, ('one_shot',), cache=cache, server=same)
    assert 0 < len(server.chats) <= 24 - 8 - 3 # without equal answers of both systems, and the replies before the 401


def test_errors_say_what_to_do(run_dir, tmp_path):
    cases = [(dict(systems=('gpt',)), "no answers of 'gpt'; choose from distilled, one_shot"),
             (dict(n=0), 'n must be at least 1, got 0'), (dict(template='{a} {b}'), 'has no {question}')]
    for kwargs, words in cases: assert words in error_of(judge_run, run_dir, None, **kwargs)
    assert 'no predictions' in error_of(judge_run, tmp_path/'none', None)
    for content in dict(format=2, config={}), dict(format=2, config=dict(prompt='a prompt')):
        write_json(run_dir/'run.json', content)
        assert 'run.json has no seed prompt' in error_of(judge_run, run_dir, None)
    (run_dir/'run.json').unlink()
    assert 'is not a run directory' in error_of(judge_run, run_dir, None)
    assert not (run_dir/'judge.json').exists()


def test_answers_cannot_fill_placeholders_of_the_template():
    text = pair_prompt(prompt, '{a}', '{b} {instruction}', '{task}')
    assert '<answer_a>\n{b} {instruction}\n</answer_a>' in text and '<answer_b>\n{task}\n</answer_b>' in text
    assert 'Question: {a}\n' in text and text.endswith('{"reason": "...", "verdict": "tie"}')
    assert pair_prompt(prompt, 'q', '1', '2', '{task} {a} {b}') == 'q 1 2' # as in version 0.1


def test_texts_of_paid_requests_stay_as_they_are():
    "Every byte counts: it is in the keys of caches and recordings."
    from hashlib import sha256
    sent = [judge_prompt(prompt, 'Which?', 'Find it.'), pair_prompt(prompt, 'Which?', 'Find it.', 'List it.'),
            json.dumps(judge_schema), json.dumps(pair_schema)]
    digests = [sha256(text.encode()).hexdigest()[:12] for text in sent]
    assert digests == ['cd8cd1051c5d', 'a4d7d230815a', '76c56746d1b7', '6cb2a59d33e9']


verdict_forms = ['{}', '{}.', 'Answer {}', '[[{}]]', 'Verdict: {}', '**Verdict: {}**', '{{"verdict": "{}"}}',
                 '```json\n{{"reason": "A or B?", "verdict": "{}"}}\n```', 'I looked at both.\n\nThe winner is: {}',
                 'Some say {{"verdict": "tie"}}, I say {{"verdict": "{}"}}']


@pytest.mark.parametrize('form', verdict_forms)
@pytest.mark.parametrize('verdict', ['A', 'B', 'tie'])
def test_verdicts_are_read_in_every_form(form, verdict): assert parse_verdict(form.format(verdict)) == verdict


@anything
@given(st.one_of(st.text(), st.text('{}[]":, ABtieverdict\n')))
def test_any_text_is_a_verdict_or_none(text): assert parse_verdict(text) in ('A', 'B', 'tie', None)


verdicts = st.sampled_from(['A', 'B', 'tie', None])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(verdicts, verdicts), max_size=12))
def test_counts_add_up(pairs):
    summary = summarize_judgements([dict(verdicts=list(v), outcome=pair_outcome(*v)) for v in pairs])
    assert summary['wins'] + summary['ties'] + summary['losses'] == summary['n'] == len(pairs) - summary['unusable']
    assert summary['unusable'] == sum(None in v for v in pairs)

    turned = [v[::-1] for v in pairs] # the teacher's side
    turned = summarize_judgements([dict(verdicts=list(v), outcome=pair_outcome(*v)) for v in turned])
    assert (turned['wins'], turned['ties']) == (summary['losses'], summary['ties'])
    if not summary['n']: return
    rate = summary['win_rate']['mean']
    assert rate == pytest.approx((summary['wins'] + summary['ties']/2)/summary['n'], abs=1e-4)
    assert turned['win_rate']['mean'] == pytest.approx(1 - rate, abs=2e-4)
