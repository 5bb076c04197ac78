"Bad answers from real endpoints, checkers of all kinds, and a data set that others can read."
import json, os, re, subprocess, sys, threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import example, given, settings, strategies as st

from llm_distill import labeling
from llm_distill.labeling import (Attempt, ask_again, check_content, dataset_card, flaw, form_check, label, load_check, medoids, parse_judgement,
                                  push_dataset, read_rows, row_types, to_dataset, write_dataset)
from llm_distill.prompts import DistillError, load_prompt, parse_prompt, read_jsonl, recordings
from llm_distill.teacher import Reply, Teacher, recorded_teacher, recording_app
from server import Server

seed = load_prompt(recordings/'apartments.toml')
tasks = [r['task'] for r in read_jsonl(recordings/'apartments.jsonl')[:12]]
free = parse_prompt('Say it.\nQ: Why?\nA: It rained. So we stayed, all of us.<END>\nQ: How?')
ok = partial(Reply, kind='ok', reason='', key='')
anything = settings(max_examples=150, deadline=None, derandomize=True)
texts = st.one_of(st.text(), st.text('{}[]":,.-/0123456789scoreNaNQ: \n'), st.binary().map(lambda b: b.decode('utf-8', 'surrogateescape')))


def said(call, *args, **kwargs):
    "What a call complains of, which must be one line"
    with pytest.raises(DistillError) as e: call(*args, **kwargs)
    assert len(str(e.value).splitlines()) == 1 and len(str(e.value)) < 600
    return str(e.value)


class Scripted(recording_app):
    "An endpoint that answers with a function of the messages and the sample"
    name = 'scripted'
    def __init__(self, reply): self.reply, self.log = reply, []
    def answer(self, body, headers):
        self.log.append((body['messages'], int(headers.get('x-llm-distill-sample', 0)), body))
        found = self.reply(*self.log[-1][:2])
        text, why = found if isinstance(found, tuple) else (found, 'stop')
        return 200, dict(id='x', object='chat.completion', created=0, model='m', usage=dict(prompt_tokens=1, completion_tokens=1),
                         choices=[dict(index=0, message=dict(role='assistant', content=text), finish_reason=why)])


def scripted(reply, **kwargs):
    teacher = Teacher('m', app=(app := Scripted(reply)), progress=False, **kwargs)
    teacher.log = app.log
    return teacher


def asked(messages): return re.findall(r'Q: (.*)\nA:$', messages[0]['content'])[0]


# ---- asking again

class Flaky(Server):
    "A recorded endpoint that answers badly as long as `bad(messages)` says how"
    def __init__(self, bad, **kwargs): super().__init__(**kwargs); self.bad, self.chats = bad, []
    def answer(self, body, headers):
        self.chats.append(body['messages'])
        status, answer = super().answer(body, headers)
        if status == 200 and (text := self.bad(body['messages'])) is not None: answer['choices'][0]['message']['content'] = text
        return status, answer


def test_a_flaky_endpoint_is_repaired_by_asking_again():
    with Flaky(lambda m: 'Sure! Let me think.' if len(m) == 1 else None) as server:
        pairs, rejects = label(seed, tasks, Teacher('m', server.url, progress=False))
    assert not rejects and pairs['task'][:] == tasks and len(server.chats) == 2*len(tasks)
    assert pairs['completion'][:] == label(seed, tasks, recorded_teacher())[0]['completion'][:]
    chat = max(server.chats, key=len)
    assert [o['role'] for o in chat] == ['user', 'assistant', 'user'] and chat[0]['content'] == seed.render(asked(chat))
    assert chat[1]['content'] == 'Sure! Let me think.' and f'Q: {asked(chat)}\n' in chat[2]['content']
    assert form_check(seed)('', 'Sure! Let me think.') in chat[2]['content']


@pytest.mark.parametrize('reask', [0, 1, 3])
def test_asking_again_is_bounded(reask):
    with Flaky(lambda m: '' if asked(m) == tasks[0] else 'No idea' if asked(m) == tasks[1] else None) as server:
        teacher = Teacher('m', server.url, progress=False)
        pairs, rejects = label(seed, tasks, teacher, reask=reask)
    assert len(pairs) == len(tasks) - 2 and len(server.chats) == len(pairs) + 2*(reask + 1)
    assert [(r['filter'], r['attempts'], r['reply']) for r in rejects] == [('empty', reask + 1, None), ('form', reask + 1, 'No idea')]
    assert sorted(len(c) for c in server.chats if asked(c) == tasks[0]) == [1 + 2*i for i in range(reask + 1)]


@pytest.mark.parametrize('plan, filter, attempts', [(['cut', 'empty', 'ok'], None, 3), (['cut', 'cut', 'cut', 'ok'], 'cut', 3), (['empty']*3, 'empty', 3),
                                                    (['filter', 'ok'], 'filtered', 1), (['cut', 'filter', 'ok'], 'filtered', 2)])
def test_which_kinds_are_asked_again(plan, filter, attempts):
    with Server(plan=plan) as server: pairs, rejects = label(seed, tasks[:1], Teacher('m', server.url, progress=False))
    assert len(server.log) == attempts and len(pairs) == (filter is None)
    assert [(r['filter'], r['attempts']) for r in rejects] == ([(filter, attempts)] if filter else [])


def test_what_gets_no_reply_is_rejected_as_failed_and_not_asked_again():
    with Server(plan=['500']*3) as server:
        pairs, rejects = label(seed, tasks[:1], Teacher('m', server.url, progress=False, max_retries=2, backoff=0.01))
    assert len(server.log) == 3 and not len(pairs) and rejects[0]['filter'] == 'failed' and rejects[0]['reason'].startswith('failed reply')


def test_what_was_asked_again_comes_from_the_cache(tmp_path):
    with Flaky(lambda m: 'Hm' if len(m) < 5 or asked(m) == tasks[3] else None) as server:
        first = label(seed, tasks, Teacher('m', server.url, progress=False, cache=tmp_path/'c'))
        n = len(server.chats)
        again = label(seed, tasks, Teacher('m', server.url, progress=False, cache=tmp_path/'c'))
        assert n == len(server.chats) == 3*len(tasks)
    assert first[0].to_list() == again[0].to_list() and first[1] == again[1] and len(first[1]) == 1
    one, = [r for r in again[0] if r['task'] == tasks[5]]
    assert len({*again[0]['request']}) == len(again[0]) and one['request']


def test_the_request_of_a_row_is_that_of_the_accepted_reply():
    teacher = scripted(lambda m, s: 'Find it, list it.' if len(m) == 3 else 'Hm')
    row = label(seed, tasks[:1], teacher)[0][0]
    chat = ask_again(seed, tasks[0], seed.render(tasks[0]), ok('Hm'), form_check(seed)('', 'Hm'))
    assert row['request'] == teacher.ask([chat], 'labeling', stop=[seed.end])[0].key


def test_the_recorded_teacher_knows_what_is_asked_again():
    teacher = recorded_teacher()
    last = dict(role='user', content='That is too long. Only the answer, please.')
    chats = [[dict(role='user', content=seed.render(t)), dict(role='assistant', content='Q: x\nA:'), last] for t in tasks[:2]]
    assert [r.text for r in teacher.ask(chats, 'labeling')] == [r.text for r in teacher.ask([seed.render(t) for t in tasks[:2]], 'labeling')]
    assert all(r.text for r in teacher.ask([ask_again(seed, tasks[0], seed.render(tasks[0]), ok('x'), 'y')], 'labeling'))
    with pytest.raises(DistillError, match='Only the answer'): teacher.ask([[last]], 'labeling')


@anything
@given(st.lists(st.one_of(texts, st.sampled_from(['Find it, list it.', '<END>', 'Q: x'])), max_size=4), st.integers(0, 3), st.integers(1, 2))
def test_whatever_is_said_tasks_are_pairs_and_rejects_within_the_bound(replies, reask, samples):
    class Says:
        model, asked = 'says', 0
        def ask(self, prompts, sample=0, **_):
            self.asked += len(prompts)
            kinds = 'ok', 'cut', 'failed'
            turns = [0 if isinstance(p, str) else len(p)//2 for p in prompts]
            found = [replies[(t + sample) % len(replies)].encode('utf-8', 'replace').decode() if replies else '' for t in turns]
            return [Reply(f, 'ok', '', 'k') if f.strip() else Reply(None, kinds[1 + t % 2], 'why', 'k') for f, t in zip(found, turns)]
    pairs, rejects = label(free, tasks[:2], says := Says(), reask=reask, samples=samples, check=lambda t, a: len(a) < 20)
    assert sorted([*pairs['task'], *(r['task'] for r in rejects)]) == sorted(tasks[:2])
    assert says.asked <= 2*samples*(reask + 1) and all(r['attempts'] <= samples*(reask + 1) for r in rejects)
    assert all(p['completion'] and len(p['completion'].splitlines()) == 1 for p in pairs)


# ---- checkers

@pytest.mark.parametrize('check', ['regex:.*e.*', re.compile('.*e.*'), lambda task, answer: 'e' in answer, lambda task, answer: None if 'e' in answer else 'no e'])
def test_checkers_of_every_kind(check):
    assert flaw(seed, tasks[0], ok('Be it.<END>'), check) is None # one step is fine with a checker
    assert flaw(seed, tasks[0], ok('To do'), check)[0] == 'check'
    assert flaw(seed, tasks[0], ok('Be it,\nbe it'), check)[0] == 'form' and flaw(seed, tasks[0], ok('e Q: e'), check)[0] == 'form'
    assert flaw(seed, tasks[0], ok(tasks[0].upper() + ' e'), None)[0] == 'form' and flaw(seed, tasks[0], ok('<END>'), check)[0] == 'empty'


def examples(*pairs): return parse_prompt('Do it.\n' + ''.join(f'Q: {q}\nA: {a}<END>\n' for q, a in pairs) + 'Q: The question?')


def test_what_the_examples_do_is_no_flaw():
    plain, as_is = ('close the door!', 'Would you close the door, please?'), ('Sit down, please.', 'sit down please')
    assert flaw(examples(plain), 'Sit down, please.', ok('sit down, please'))[1] == 'it repeats the question'
    assert flaw(examples(plain, as_is), 'Come in, please.', ok('come in, please')) is None
    assert flaw(examples(plain), 'Sit down, please.', ok('sit down, please'), 'regex:.*') is None
    card = ('Paris', 'Q: Which city is the capital of France?')
    assert flaw(examples(card), 'Oslo', ok('Q: Which city is the capital of Norway?')) is None
    for check in None, 'regex:.*': assert flaw(examples(plain), 'Oslo', ok('Norway. Q: Which?'), check)[1] == 'it goes on with a next question (`Q:`)'


@pytest.mark.parametrize('answers, list_wanted', [
    (['Would you close the door, please?'], False), (['Find it, list it.'], False), (['Find it, sort it, list it.'], True),
    (['Find it, list it.', 'Ask her, wait.'], True), (['Find it, list it.', 'Wait.'], False), (['Find it, sort it, list it.', 'Ask her, wait.', 'Wait.'], False)])
def test_commas_are_wanted_only_where_the_examples_are_lists(answers, list_wanted):
    prompt = examples(*((f'Question {i}?', a) for i, a in enumerate(answers)))
    assert flaw(prompt, 'And this?', ok('Just wait here.')) == (('form', form_check(prompt)('', 'Just wait here.')) if list_wanted else None)
    assert flaw(prompt, 'And this?', ok('Find them, list them.')) is None


def test_a_checker_is_wrapped_once_for_all_replies(monkeypatch):
    wrap, wrapped = labeling._guarded, []
    monkeypatch.setattr(labeling, '_guarded', lambda function, name: wrapped.append(name) or wrap(function, name))
    def long_enough(task, answer): return len(answer) > 3
    assert len(label(seed, tasks, recorded_teacher(), check=long_enough, known={tasks[0]: 'Find it, list it.'})[0]) == len(tasks)
    assert len(wrapped) == 1 and wrapped[0].endswith('long_enough')


def test_a_schema_from_a_file_checks_the_recorded_objects(tmp_path):
    names = 'action', 'what', 'who', 'when', 'where'
    schema = dict(type='object', required=list(names), additionalProperties=False, properties={k: dict(type=['string', 'null']) for k in names})
    (tmp_path/'s.json').write_text(json.dumps(schema), encoding='utf-8-sig')
    prompt = load_prompt(recordings/'reminders.toml')
    rows = read_jsonl(recordings/'reminders.jsonl')[:20]
    for check in None, schema, str(tmp_path/'s.json'), tmp_path/'s.json', str(recordings/'reminders.schema.json'):
        pairs, rejects = label(prompt, [r['task'] for r in rows], recorded_teacher(), check=check)
        assert len(pairs) == 20 and not rejects
    good = pairs[0]['completion']
    for bad in '{}', good.replace('"who"', '"whom"'), good + '!', '[]':
        assert flaw(prompt, 'x', ok(bad))[0] == 'form' and flaw(prompt, 'x', ok(bad), str(recordings/'reminders.schema.json'))[0] == 'check'
    assert flaw(prompt, 'x', ok(good.replace('null', '3', 1))) is None and flaw(prompt, 'x', ok(good.replace('null', '3', 1)), schema)[0] == 'check'


@pytest.mark.parametrize('content, spec, words', [
    ('', 'nowhere.json', 'cannot be read'), ('', 'nowhere.py:f', 'cannot be read'), ('{', 'a.json', 'not valid JSON'), ('[' * 99_999, 'a.json', 'nested too deeply'),
    ('3', 'a.json', 'is an object'), ('{"type": "list"}', 'a.json', 'not a valid JSON schema'), ('{"$schema": 3}', 'a.json', 'not a valid JSON schema'),
    ('def g(t, a): pass', 'a.py:f', "no function 'f'; it has g"), ('f = 3', 'a.py:f', 'it has none'), ('def f(:', 'a.py:f', 'SyntaxError'),
    ('import nowhere_to_be_found', 'a.py:f', 'ModuleNotFoundError'), ('import sys; sys.exit(3)', 'a.py:f', 'SystemExit'),
    ('', 'regex:(', 'not a regular expression'), ('', 'regex:a{99999999999}', 'not a regular expression'), ('', 'a.py', 'FILE.py:FUNCTION'), ('', 'f', 'no checker'),
    ('', '', 'no checker'), ('', 3, 'no checker')])
def test_mistakes_in_a_checker_are_one_line(tmp_path, monkeypatch, content, spec, words):
    monkeypatch.chdir(tmp_path)
    if content: Path(spec.split(':')[0]).write_text(content)
    for call in load_check, partial(label, seed, tasks, None): assert words in (m := said(call, **{'spec' if call is load_check else 'check': spec}))
    assert str(spec).removeprefix('regex:').split(':')[0][:20] in m
    if not isinstance(spec, int): said(check_content, spec) if not spec.startswith('regex:') else None


@pytest.mark.parametrize('body, words', [("raise KeyError('x\\ny')", 'KeyError'), ('return 3', 'returned 3'), ('return f(t, a)', 'RecursionError'), ('return []', r'returned []')])
def test_a_function_that_goes_wrong_is_named_with_the_task(tmp_path, body, words):
    (tmp_path/'c.py').write_text(f'def f(t, a): {body}')
    message = said(label, seed, tasks[:2], recorded_teacher(), check=f'{tmp_path}/c.py:f')
    assert words in message and 'c.py:f' in message and tasks[0][:40] in message


def test_a_file_with_a_dataclass_and_a_wide_reason(tmp_path):
    (tmp_path/'c.py').write_text('from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass R:\n    a: str\n'
                                 'def f(task, answer): return R("no\\n" * 500).a\n')
    reason = load_check(f'{tmp_path}/c.py:f')('', 'x')
    assert reason.startswith('no no no') and len(reason) < 250 and len(reason.splitlines()) == 1


def test_check_content_follows_the_file(tmp_path):
    (file := tmp_path/'s.json').write_text('{}')
    before = check_content(str(file))
    assert check_content(file) == before
    file.write_text('{"type": "object"}')
    assert check_content(str(file)) != before
    values = [check_content(o) for o in (None, {'type': 'object'}, 'regex:a', re.compile('a'), re.compile('a', re.I), said, before and str(file))]
    assert json.loads(json.dumps(values)) == values and len({json.dumps(v) for v in values}) == len(values)


@anything
@given(texts, st.sampled_from([seed, free, load_prompt(recordings/'reminders.toml')]), st.sampled_from([None, 'regex:a*', dict(type='object'), lambda t, a: a]))
@example('['*50_000, free, None)
@example('{"a":'*50_000, load_prompt(recordings/'reminders.toml'), None)
@example('{"a":'*50_000, seed, dict(type='object'))
@example('9'*5_000, seed, dict(type='object'))
def test_any_answer_is_good_or_has_a_flaw(answer, prompt, check):
    found = flaw(prompt, 'What is it?', ok(answer), check)
    assert found is None or found[0] in ('empty', 'form', 'check') and len(found[1].splitlines()) == 1
    if found is None: assert len(prompt.parse(answer).splitlines()) == 1


# ---- several samples

def test_the_medoid_wins_and_says_where_it_came_from():
    answers = ['Go home, sleep.', 'Find the gym, cancel the membership.', 'Look up the gym, cancel the membership.']
    teacher = scripted(lambda m, s: answers[s])
    (row, *_), rejects = (o := label(seed, tasks[:3], teacher, samples=3))[0].to_list(), o[1]
    assert not rejects and row['sample'] in (1, 2) and row['completion'] == answers[row['sample']] and 0 < row['agreement'] < 1
    assert row['request'] == teacher.ask([seed.render(tasks[0])], 'labeling', temperature=0.7, stop=[seed.end], sample=row['sample'])[0].key
    assert {b['temperature'] for _, _, b in teacher.log} == {0.7}
    assert label(seed, tasks[:3], teacher, samples=3)[0].to_list() == o[0].to_list()
    low = label(seed, tasks[:3], teacher, samples=3, min_agreement=row['agreement'] + 0.01)
    assert len(low[0]) == 0 and [(r['filter'], r['agreement']) for r in low[1]] == [('agreement', row['agreement'])]*3
    assert f"{row['agreement']:.2f}" in low[1][0]['reason'] and len(label(seed, tasks[:3], teacher, samples=3, min_agreement=row['agreement'])[0]) == 3


def test_one_sample_has_no_agreement_and_temperature_0():
    teacher = scripted(lambda m, s: 'Find it, list it.')
    pairs, _ = label(seed, tasks[:2], teacher)
    assert pairs['agreement'][:] == [None]*2 and [b['temperature'] for _, _, b in teacher.log] == [0., 0.]
    pairs, _ = label(seed, tasks[:2], teacher, 'evaluation', 1, 0.7)
    assert pairs['sample'][:] == [1, 1] and teacher.log[-1][1] == 1


def test_flawed_samples_are_asked_again_and_then_left_out():
    teacher = scripted(lambda m, s: 'Hm' if s == 1 or s == 2 and len(m) == 1 else 'Find it, list it.')
    pairs, rejects = label(seed, tasks[:1], teacher, samples=3, reask=1)
    assert not rejects and pairs[0]['sample'] == 0 and pairs[0]['agreement'] > 0.99 and len(teacher.log) == 5
    only = scripted(lambda m, s: 'Find it, list it.' if s == 2 else 'Hm')
    assert label(seed, tasks[:1], only, samples=3)[0][0] | dict(request='') == pairs[0] | dict(sample=2, agreement=None, request='')
    rejects = label(seed, tasks[:1], only, samples=3, min_agreement=0.1)[1]
    assert rejects[0]['filter'] == 'agreement' and 'only 1 of 3' in rejects[0]['reason']
    none = label(seed, tasks[:1], scripted(lambda m, s: 'Hm'), samples=3, reask=1)[1]
    assert [(r['filter'], r['attempts']) for r in none] == [('form', 6)]


def test_medoids_by_the_metric_of_the_form():
    assert medoids([['{"a": 1, "b": 2}', '{"a": 1, "b": 3}', '{"a": 1, "b": 2}'], ['{}']]) == [(0, round(2/3, 4)), (0, None)]
    assert medoids([['It is red. Yes.', 'It is blue. Yes.', 'It is blue. Yes.']])[0][0] == 1
    assert medoids([[], ['x'], ['b', 'a', 'b', 'a']]) == [(0, None), (0, None), (0, round(2/6, 4))]
    assert medoids([]) == []


# ---- the judge

def judge_of(scores):
    "A judge that scores by the task"
    return scripted(lambda m, s: next((v for k, v in scores.items() if f'Question: {k}' in m[0]['content']), '{"reason": "Fine.", "score": 5}'))


def test_a_judge_of_another_kind():
    answering = scripted(lambda m, s: 'Find it, list it.')
    judge = judge_of({tasks[0]: '{"reason": "Half of\\nit.", "score": 3}', tasks[1]: 'I cannot tell.', tasks[2]: '', tasks[3]: ('Sco', 'length')})
    pairs, rejects = label(seed, tasks, answering, judge=True, judge_teacher=judge, known={tasks[4]: 'Find this, list that.'})
    assert pairs['task'][:] == tasks[4:] and {r['filter'] for r in rejects} == {'judge'} and len(judge.log) == len(tasks) and len(answering.log) == len(tasks) - 1
    assert rejects[0]['reason'] == 'the judge gave 3 of 5, at least 4 is wanted: Half of it.' and "'I cannot tell.'" in rejects[1]['reason']
    assert all(r['reply'] == 'Find it, list it.' for r in rejects)
    assert judge.log[0][2]['response_format']['json_schema']['schema'] == labeling.judge_schema and judge.log[0][2]['temperature'] == 0
    assert len(label(seed, tasks, answering, judge=True, judge_teacher=judge, judge_threshold=3)[0]) == len(tasks) - 3


def test_a_template_of_your_own_and_flawed_answers_are_not_judged():
    teacher = scripted(lambda m, s: '2' if 'good' in m[-1]['content'] else 'Hm' if tasks[0] in m[0]['content'] else 'Find it, list it.')
    _, rejects = label(seed, tasks[:3], teacher, judge='Is {answer} good for {task}? {"score": 1}', reask=0)
    assert [r['filter'] for r in rejects] == ['form', 'judge', 'judge'] and len(teacher.log) == 5
    assert {f'Is Find it, list it. good for {t}? {{"score": 1}}' for t in tasks[1:3]} == {m[0]['content'] for m, _, _ in teacher.log[3:]}


@pytest.mark.parametrize('judge, words', [('good?', '{task}'), ('{task}', '{answer}'), ('', '{task}')])
def test_a_template_without_its_places_is_an_error(judge, words): assert words in said(label, seed, tasks, None, judge=judge)


@pytest.mark.parametrize('wrong', [dict(samples=0), dict(reask=-1), dict(min_agreement=0.5), dict(min_agreement=2, samples=2), dict(judge_threshold=0)])
def test_settings_that_make_no_sense_are_refused_before_anything_is_asked(wrong): assert next(iter(wrong)) in said(label, seed, tasks, None, **wrong)


def test_a_judge_that_fails_is_told_apart():
    with Server(faults={'500': 1}) as server:
        judge = Teacher('m', server.url, progress=False, max_retries=0, backoff=0.01, breaker=99)
        pairs, rejects = label(seed, tasks[:2], recorded_teacher(), judge=True, judge_teacher=judge)
    assert not len(pairs) and [r['filter'] for r in rejects] == ['failed']*2 and rejects[0]['reason'].startswith('failed reply')


@anything
@given(texts)
@example('{"score":' * 5_000)
@example('{"score": ' + '9'*5_000 + '}')
@example('score ' + '1'*50_000)
@example('{"score": [4]} score: 4')
def test_any_judgement_is_a_score_and_a_reason_or_none(text):
    found = parse_judgement(text)
    assert found is None or 1 <= found[0] <= 5 and isinstance(found[1], str) and len(found[1].splitlines()) < 2


@anything
@given(st.integers(1, 5), st.sampled_from(['{{"reason": "r", "score": {}}}', 'Sure:\n```json\n{{"score": "{}"}}\n```', 'score: {}', 'Score: **{}**', '{}', '{}/5', '{} out of 5.',
                                           'I give it a rating of {}.', 'On a scale of 1 to 5 the score is {}', '{{"score": {}.0, "reason": null}}']))
def test_scores_are_read_in_every_form(score, form): assert parse_judgement(form.format(score))[0] == score


# ---- pairs that are there already

def test_given_pairs_are_checked_and_not_asked():
    teacher = scripted(lambda m, s: 'Find it, list it.')
    known = {tasks[0]: 'Open it, read it.<END>', tasks[1]: 'Hm', tasks[2]: 'Open \ud800, read it.', 'not asked for': 'x'}
    pairs, rejects = label(seed, tasks[:4], teacher, known=known, seeds={tasks[0]: 'Another seed?'}, samples=2)
    assert pairs['completion'][:] == ['Open it, read it.', 'Open ?, read it.', 'Find it, list it.'] and len(teacher.log) == 2
    assert pairs['teacher'][:] == ['given', 'given', teacher.model] and pairs['seed'][:] == ['Another seed?', seed.question, seed.question]
    assert pairs[0]['request'] == '' and pairs[0]['agreement'] is None and pairs[2]['request']
    assert [(r['filter'], r['reply'], r['attempts']) for r in rejects] == [('form', 'Hm', 0)]


# ---- rows of one's own

@pytest.mark.parametrize('name, content, rows', [
    ('a.jsonl', '{"task": "a\\nb", "completion": "c, d", "id": 3}\r\n\r\n{"task": " e ", "completion": " "}', [dict(task='a b', completion='c, d'), dict(task='e')]),
    ('a.csv', '\ufeffid,completion, task\r\n1,"c, d","a\r\nb"\r\n2,,"e ""f"""\r\n', [dict(task='a b', completion='c, d'), dict(task='e "f"')]),
    ('a.csv', 'task,completion\nonly a task\n', [dict(task='only a task')]),
    ('a.txt', '\ufeffa\u2028b\r\n\r\n  Zürich?\n', [dict(task='a b'), dict(task='Zürich?')])])
def test_rows_are_read(tmp_path, name, content, rows):
    (tmp_path/name).write_bytes(content.encode())
    assert read_rows(tmp_path/name) == rows == read_rows(str(tmp_path/name))


@pytest.mark.parametrize('name, content, words', [
    ('a.jsonl', b'{"task": "a"}\n{"question": "b", "answer": 3}', 'line 2: no column `task`, found `question`, `answer`'), ('a.jsonl', b'{}', 'found none'),
    ('a.jsonl', b'{"task": "a"}\n\n{"task": "a"', 'line 3'), ('a.jsonl', b'{"task": ["a"]}', 'line 1: `task` is'), ('a.jsonl', b'{"task": "a", "completion": 1}', '`completion` is 1'),
    ('a.jsonl', b'{"task": "\\n"}', 'line 1: `task` is empty'), ('a.jsonl', b'{"task": null}', 'is empty'), ('a.jsonl', b'{"task": "a"}\n\xe9', 'line 2: not UTF-8'),
    ('a.csv', b'a,b\n1,2', 'line 2: no column `task`, found `a`, `b`'), ('a.csv', b'task\na,b', 'line 2: 2 values'), ('a.csv', b'task\n"a\nb', 'line 3: not valid CSV'),
    ('a.csv', b'task\na\n""', 'line 3: `task` is empty'), ('a.csv', b'task\n', 'no rows'), ('a.txt', b' \n', 'no rows'), ('a.json', b'[]', "'.json'"), ('a', b'x', 'ends in')])
def test_rows_that_cannot_be_read_are_named_by_line(tmp_path, name, content, words):
    (tmp_path/name).write_bytes(content)
    assert words in (m := said(read_rows, tmp_path/name)) and str(tmp_path/name) in m


def test_a_file_that_is_not_there(tmp_path):
    assert 'cannot be read' in said(read_rows, tmp_path/'a.csv') and 'cannot be read' in said(read_rows, tmp_path/'x'/'a.txt')


@anything
@given(st.sampled_from(['.jsonl', '.csv', '.txt']), st.one_of(st.binary(), texts.map(lambda t: t.encode('utf-8', 'replace')), texts.map(lambda t: b'task,completion\n' + t.encode('utf-8', 'replace')),
                                                             st.dictionaries(st.sampled_from(['task', 'completion', 'x']), st.one_of(texts, st.none(), st.integers())).map(lambda d: json.dumps(d).encode())))
@example('.jsonl', b'['*50_000)
@example('.jsonl', b'{"task": "\\ud83d"}')
@example('.csv', b'task\na\rb\n')
def test_any_file_gives_rows_or_a_word(tmp_path_factory, ending, content):
    path = tmp_path_factory.getbasetemp()/f'any{ending}'
    path.write_bytes(content)
    try: rows = read_rows(path)
    except DistillError as e: assert len(str(e).splitlines()) == 1 and str(path) in str(e)
    else:
        assert rows and all({'task'} <= set(r) <= {'task', 'completion'} and r['task'] and len(r['task'].splitlines()) == 1 for r in rows)
        to_dataset(rows)


# ---- the data set

def rows(n, **more): return [dict(task=f'Zürich {i}?', completion='a, "b"', seed='s', teacher='m', sample=i, request='k', agreement=None if i % 2 else i/10) | more for i in range(n)]


def test_the_data_set_comes_back_as_it_was(tmp_path):
    from datasets import Value, load_dataset
    splits = dict(train=to_dataset(rows(20)), test_same=to_dataset(rows(3, agreement=None)), test_different=to_dataset(rows(5)).select([3, 1]))
    folder = write_dataset(tmp_path/'new'/'dataset', splits, dataset_card(seed, splits, dict(model='m', endpoint='http://x/v1'), name='a: "b" # c\n- d'))
    back = load_dataset(str(folder), cache_dir=str(tmp_path/'cache'))
    assert list(back) == list(splits) and {k: v.to_list() for k, v in back.items()} == {k: v.to_list() for k, v in splits.items()}
    assert all(v.features == {k: Value(t) for k, t in row_types.items()} for v in back.values()) and list(back['train'].features) == list(row_types)
    assert sorted(p.name for p in folder.iterdir()) == ['README.md', 'test_different.parquet', 'test_same.parquet', 'train.parquet']


def test_an_empty_split_does_not_keep_the_others_from_being_read(tmp_path):
    from datasets import load_dataset
    splits = dict(train=to_dataset(rows(2)), test_same=to_dataset([]))
    write_dataset(tmp_path/'d', splits, card := dataset_card(seed, splits, dict(model='m', endpoint='e')))
    back = load_dataset(str(tmp_path/'d'), cache_dir=str(tmp_path/'cache'))
    assert {k: len(v) for k, v in back.items()} == dict(train=2) and '| `test_same` | 0 |' in re.sub(' +', ' ', card)


def test_a_data_set_is_replaced_whole(tmp_path, monkeypatch):
    train, test = to_dataset(rows(2)), to_dataset(rows(1))
    write_dataset(tmp_path, dict(train=train, test_same=test), 'one')
    (tmp_path/'mine.txt').write_text('mine')
    write_dataset(tmp_path, dict(train=test), 'two')
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert sorted(files) == ['README.md', 'mine.txt', 'train.parquet'] and files['README.md'] == b'two'
    write, calls = labeling._write_parquet, []
    def full(file, rows): # the second file does not fit on the disk
        calls.append(write(file, rows))
        if len(calls) == 2: raise OSError(28, 'No space left on device')
    monkeypatch.setattr(labeling, '_write_parquet', full)
    assert 'No space left' in said(write_dataset, tmp_path, dict(train=train, test_same=test), 'three')
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files
    monkeypatch.undo()
    assert 'cannot be written' in said(write_dataset, tmp_path/'mine.txt', dict(train=train), '')


def test_what_the_card_says():
    import yaml
    splits = dict(train=rows(1500, seed='One | two?'), test_same=rows(2, teacher='given', seed='given'), test_different=rows(1))
    rejects = [dict(stage='synthesis', filter='exact_duplicate'), dict(stage='labeling', filter='judge'), dict(stage='labeling', filter='judge'), dict(stage='synthesis', filter='my_own'), dict(task='damaged')]
    other = load_prompt(recordings/'pull_requests.toml')
    card = dataset_card(seed, splits, dict(model='gpt-x', endpoint='https://llm.example.org/v1', api_key='sk-secret'), rejects, dict(task='T <b>', closest='C', cosine=0.5), other,
                        dict(samples=3, judge=True, check=None), notes=['seed prompt: 1500 of 2000 tasks: <nothing> new'])
    head = yaml.safe_load(card.split('---')[1])
    assert head['configs'][0]['data_files'] == [dict(split=k, path=f'{k}.parquet') for k in splits]
    assert head['size_categories'] == ['1K<n<10K'] and {'synthetic', 'llm_distill'} <= set(head['tags']) and 'license' not in head
    for text in ('| synthesis | `exact_duplicate` |', '| labeling | `judge` | not accepted by the judge | 2 |', '| other | `other` |', "a filter of the user's own | 1 |", seed.question, seed.instruction, other.question,
                 '| `train` | 1500 |', '| `train` | One \\| two? | 1500 |', '`gpt-x` at llm.example.org.', '- seed prompt: 1500 of 2000 tasks: \\<nothing> new', 'cosine of 0.50', 'T \\<b> (test)', 'every tenth row', 'terms of use',
                 'samples 3', '2 given by the user, 1501 written by a language model', *(f'`{k}`' for k in row_types)): assert text in re.sub(' +', ' ', card), text
    assert 'sk-secret' not in card and 'CC0' not in card


def test_only_the_recordings_of_the_package_are_free(tmp_path):
    package = dataset_card(seed, dict(train=rows(1, teacher='recorded')), recorded_teacher().describe())
    assert 'license: cc0-1.0' in package and 'CC0' in package and 'Nothing.' in package
    teacher = scripted(lambda m, s: 'Find it, list it.', record=tmp_path/'r.jsonl')
    label(seed, tasks, teacher)
    mine = dataset_card(seed, dict(train=rows(1)), Teacher(f'recorded:{tmp_path}/r.jsonl', progress=False).describe())
    assert 'CC0' not in mine and 'license:' not in mine and 'recorded' in mine and 'terms of use' in mine
    another = dataset_card(seed, dict(train=rows(1, teacher='gpt-x')), recorded_teacher().describe())
    assert 'CC0' not in another and 'license:' not in another


given = dict(teacher='given', seed='given')

@pytest.mark.parametrize('own', [given, dict(teacher='given'), dict(seed='given')])
def test_a_row_of_the_user_is_not_put_into_the_public_domain(own):
    card = dataset_card(seed, dict(train=rows(9, teacher='recorded'), test_same=rows(1, **dict(teacher='recorded') | own)), recorded_teacher().describe())
    assert 'license:' not in card and "the user's to state" in card and 'What the recorded teacher wrote' in card and 'Questions: 1 given by the user, 9 written' in card
    assert ('Answers: 1 given by the user, 9 written' in card) == ('teacher' in own)


@pytest.mark.parametrize('teacher', [recorded_teacher().describe(), dict(model='gpt-x', endpoint='https://api.openai.com/v1'), {}])
def test_a_data_set_of_the_user_alone_names_no_teacher(teacher):
    card = dataset_card(seed, dict(train=rows(3, **given), test_same=rows(1, **given)), teacher, settings=dict(samples=1, judge=True, judge_threshold=4))
    assert 'Questions: given by the user. Answers: given by the user.' in card and "the user's to state" in card
    for word in '## Teacher', 'CC0', 'Claude', 'license:', 'language model', 'gpt-x', 'terms of use', 'synthetic': assert word not in card, word


def test_given_tasks_with_answers_of_a_model():
    card = dataset_card(seed, dict(train=rows(3, seed='given')), dict(model='gpt-x', endpoint='https://api.openai.com/v1'))
    assert 'Questions: given by the user. Answers: written by a language model.' in card and '`gpt-x` at api.openai.com.' in card
    assert 'terms of use' in card and "the user's to state" in card and 'kind of the seed questions' not in card and '- synthetic' in card


@pytest.mark.parametrize('endpoint', ['http://gpu7:8000/v1', 'http://gpu7/v1', 'http://localhost:1234/v1', 'http://10.1.2.3/v1', 'http://[fe80::1]/v1', 'http://gpu7.lab.local/v1',
                                      'https://gpu7.team.internal/v1', 'https://gpu7.example.org:8443/v1', 'http://GPU7.LAN/v1', 'gpu7.example.org/v1', 'http://[gpu7', 'recorded:gpu7', None])
def test_an_endpoint_that_is_not_public_stays_unnamed(endpoint):
    card = dataset_card(seed, dict(train=rows(1)), dict(model='llama', endpoint=endpoint))
    assert '`llama`.' in card and not re.search('gpu7|localhost|10.1.2|fe80|8443', card, re.I)


def test_a_public_endpoint_is_named_by_its_host_alone():
    card = dataset_card(seed, dict(train=rows(1)), dict(model='llama', endpoint='https://me:secret@API.Example.org/tenant7/v1?k=key8'))
    assert '`llama` at api.example.org.' in card and not re.search('secret|tenant7|key8', card)


def test_rows_name_the_model_and_not_its_address():
    with Server() as server: pairs, _ = label(seed, tasks[:1], Teacher('big', server.url, progress=False))
    assert pairs['teacher'][:] == ['big']


@pytest.mark.parametrize('settings, told', [
    (dict(check=None, samples=1, min_agreement=0., reask=2, judge=None, judge_threshold=4), 'samples 1, reask 2.'),
    (dict(samples=3, min_agreement=.5, reask=0, judge=True, judge_threshold=3), 'samples 3, min_agreement 0.5, judge default prompt, judge_threshold 3.'),
    (dict(check='regex:a+', samples=3, min_agreement=0., judge='Is {answer} good for {task}?', judge_threshold=4), 'check regex:a+, samples 3, judge own prompt, judge_threshold 4.')])
def test_the_card_tells_the_settings_that_were_in_use(settings, told):
    assert f'How the answers were taken: {told}\n' in dataset_card(seed, dict(train=rows(1)), dict(model='m'), settings=settings)


def test_a_card_without_a_teacher_makes_none_up():
    card = dataset_card(seed, dict(train=rows(1)), {})
    assert 'None' not in card and 'not recorded' in card and 'terms of use' in card


# ---- the Hub

class Hub(BaseHTTPRequestHandler):
    "What pushing a data set needs of the Hub"
    def do_GET(self):
        if self.server.private is None: return self.reply(404, dict(error='not there'), **{'X-Error-Code': 'RepoNotFound'})
        self.reply(200, dict(id='me/pairs', private=self.server.private, siblings=[], tags=[]))

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get('content-length', 0)))
        self.server.log.append((self.path, self.headers.get('authorization'), body))
        if self.server.status != 200: return self.reply(self.server.status, dict(error=f'no, {self.headers.get("authorization")}'))
        if self.path == '/api/repos/create': return self.reply(200, dict(url=f'{self.server.url}/datasets/me/pairs', id='x', name='me/pairs'))
        if '/preupload/' in self.path:
            return self.reply(200, dict(files=[dict(path=f['path'], uploadMode='regular', shouldIgnore=False) for f in json.loads(body)['files']]))
        if '/commit/' in self.path: return self.reply(200, dict(success=True, commitOid='a'*40, commitUrl=f'{self.server.url}/datasets/me/pairs/commit/{"a"*40}'))
        self.reply(200, {})

    def reply(self, status, value, **headers):
        content = json.dumps(value).encode()
        self.send_response(status)
        for k, v in (headers | {'content-type': 'application/json', 'content-length': len(content), 'x-repo-commit': 'a'*40}).items(): self.send_header(k, str(v))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_): pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.log, server.status, server.private, server.url = [], 200, None, f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    splits = dict(train=to_dataset(rows(2)), test_same=to_dataset(rows(1)))
    folder = write_dataset(tmp_path/'dataset', splits, dataset_card(seed, splits, dict(model='m', endpoint='e')))
    (folder/'private notes.txt').write_text('not part of it')
    return folder


def push(folder, url, repo='me/pairs', token='hf_secret', home=None, **kwargs):
    "What pushing prints in a process that is not told to stay offline: an address, or an error"
    code = ('import sys, json\nfrom llm_distill.labeling import push_dataset\nfrom llm_distill.prompts import DistillError\n'
            'try: print("at", push_dataset(**json.loads(sys.argv[1])))\nexcept DistillError as e: print("error", e)')
    env = {k: v for k, v in os.environ.items() if k not in ('HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE', 'HF_TOKEN', 'HF_DATASETS_OFFLINE')} | dict(HF_HOME=str(folder.parent/'home'))
    args = json.dumps(dict(folder=str(folder), repo_id=repo, token=token, endpoint=url) | kwargs)
    p = subprocess.run([sys.executable, '-c', code, args], env=env, capture_output=True, text=True, timeout=120)
    assert p.returncode == 0, p.stderr
    assert 'hf_secret' not in p.stdout + p.stderr
    return p.stdout.strip().splitlines()


def test_a_data_set_arrives_on_the_hub(hub, folder):
    assert push(folder, hub.url) == [f'at {hub.url}/datasets/me/pairs']
    assert {token for _, token, _ in hub.log if token} == {'Bearer hf_secret'}
    created, = [json.loads(b) for p, _, b in hub.log if p == '/api/repos/create']
    assert (created['name'], created['organization'], created['type'], created['visibility']) == ('pairs', 'me', 'dataset', 'private')
    commit, = [b for p, _, b in hub.log if p.startswith('/api/datasets/me/pairs/commit/')]
    import base64
    files = {o['value']['path']: base64.b64decode(o['value']['content']) for o in map(json.loads, commit.splitlines()) if o['key'] == 'file'}
    assert files == {k: (folder/k).read_bytes() for k in ('README.md', 'train.parquet', 'test_same.parquet')}


def test_private_data_do_not_go_to_a_public_place(hub, folder):
    hub.private = False
    said, = push(folder, hub.url)
    assert said.startswith('error') and 'public' in said and not [p for p, _, _ in hub.log if 'commit' in p]
    assert push(folder, hub.url, private=False) == [f'at {hub.url}/datasets/me/pairs']
    hub.private = True
    assert push(folder, hub.url) == [f'at {hub.url}/datasets/me/pairs'] and not [p for p, _, _ in hub.log if 'create' in p]


@pytest.mark.parametrize('there', [None, True])
@pytest.mark.parametrize('status, words', [(401, 'did not accept the token'), (403, 'may not write'), (418, '418')])
def test_what_the_hub_refuses_is_one_line_without_the_token(hub, folder, status, words, there):
    hub.status, hub.private = status, there
    said, = push(folder, hub.url)
    assert said.startswith('error') and words in said and 'me/pairs' in said and hub.url in said and not [p for p, _, _ in hub.log if 'commit' in p]


def test_pushing_without_a_network_a_token_or_a_name(folder, tmp_path):
    assert 'could not be reached' in push(folder, 'http://127.0.0.1:9')[0]
    assert 'no token' in push(folder, 'http://127.0.0.1:9', token=None)[0]
    for name in 'me/my pairs', 'a/b/c', 'pairs', '', '-x-/', str(tmp_path): assert 'no name for a data set' in said(push_dataset, folder, name, token='hf_secret')
    assert 'could not be reached' in (m := said(push_dataset, folder, 'me/pairs', token='hf_secret', endpoint='http://127.0.0.1:9')) and 'hf_secret' not in m # offline here
    assert 'holds no data set' in said(push_dataset, tmp_path, 'me/pairs', token='hf_secret')
