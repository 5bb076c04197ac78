"Validation of answers: checks of every kind, mistakes in them, and any text a teacher may write."
import json, re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given, strategies as st

from llm_distill.core.core import DistillError, parse_json, read_jsonl, recordings
from llm_distill.core.prompt import SeedPrompt
from llm_distill.core.prompt_files import load_prompt, parse_prompt
from llm_distill.data.checks import (
    Check, check_content, check_rule_names, correction_chat, list_rules, load_check, rules, validate_answer,
    validate_reply)
from llm_distill.data.labeling import label
from llm_distill.teacher.endpoint import Reply
from llm_distill.teacher.teacher import recorded_teacher
from odd_texts import anything, error_of, texts

prompt = load_prompt(recordings/'apartments.toml')
reminders = load_prompt(recordings/'reminders.toml')
questions = [r['question'] for r in read_jsonl(recordings/'apartments.jsonl')[:12]]
free_text = parse_prompt('Say it.\nQ: Why?\nA: It rained. So we stayed, all of us.<END>\nQ: How?')
ok = partial(Reply, kind='ok', reason='', key='')


def prompt_with(*pairs):
    shots = ''.join(f'Q: {q}\nA: {a}<END>\n' for q, a in pairs)
    return parse_prompt(f'Do it.\n{shots}Q: The question?')


# ---- format

def test_json_is_strict():
    assert parse_json('[1, null]') == [1, None]
    for text in 'NaN', '[Infinity]', '{', '', '['*100_000:
        with pytest.raises(ValueError): parse_json(text)


def test_a_rule_never_rejects_what_the_examples_do():
    plain = 'close the door!', 'Would you close the door, please?'
    as_is = 'Sit down, please.', 'sit down please'
    repeated = ok('sit down, please')
    assert validate_reply(prompt_with(plain), 'Sit down, please.', repeated)[1] == 'it repeats the question'
    assert validate_reply(prompt_with(plain, as_is), 'Come in, please.', ok('come in, please')) is None
    assert validate_reply(prompt_with(plain), 'Sit down, please.', repeated, 'regex:.*') is None
    card = 'Paris', 'Q: Which city is the capital of France?'
    assert validate_reply(prompt_with(card), 'Oslo', ok('Q: Which city is the capital of Norway?')) is None
    filter_and_reason = validate_reply(prompt_with(plain), 'Oslo', ok('Norway. Q: Which?'))
    assert filter_and_reason == ('next_question', 'it goes on with a next question (`Q:`)')


def test_a_custom_check_decides_alone():
    one_line = prompt_with(('Close the door!', 'Would you close the door, please?'))
    for text in 'Norway. Q: Which?', 'a\n  b', 'Oslo':
        assert validate_reply(one_line, 'Oslo', ok(text), 'regex:(?s).*') is None
    assert validate_reply(one_line, 'Oslo', ok('a\n  b'), 'regex:.')[0] == 'check'


def test_rules_can_be_turned_off_by_name():
    one_line = prompt_with(('Close the door!', 'Would you close the door, please?'))
    assert validate_reply(one_line, 'Oslo', ok('a\nb'))[0] == 'extra_lines'
    assert validate_reply(one_line, 'Oslo', ok('a\nb'), filters=['no-extra-lines']) is None
    assert 'extra_lines' in dict(list_rules()) and 'extra_lines' not in dict(list_rules(['no-extra-lines']))
    assert 'extra_lines' not in dict(list_rules(has_check=True)) and 'length' in dict(list_rules(has_check=True))
    with pytest.raises(DistillError, match="unknown filter 'no-extra-line'"): check_rule_names(['no-extra-line'])


def test_chat_form_allows_markers_in_answers():
    chat = SeedPrompt('Explain.', [('a', 'b')], 'Why?', form='chat')
    assert validate_answer(chat, 'Which marker?', 'It is <END>, then Q: and A:') is None


@pytest.mark.parametrize('answers, list_required', [
    (['Would you close the door, please?'], False), (['Find it, sort it, list it.'], False),
    (['Find it, sort it, list it.', 'Ask her, wait, go.'], True), (['Find it, list it.', 'Ask her, wait.'], False),
    (['Find it, list it, go.', 'Wait.'], False),
    (['Find it, sort it, list it.', 'Ask her, wait, go.', 'Wait.'], False)])
def test_commas_are_required_only_if_several_examples_are_lists(answers, list_required):
    prompt = prompt_with(*((f'Question {i}?', a) for i, a in enumerate(answers)))
    rejection = validate_reply(prompt, 'And this?', ok('Just wait here.'))
    assert rejection and rejection[0] == 'list_of_steps' if list_required else rejection is None
    assert validate_reply(prompt, 'And this?', ok('Find them, list them.')) is None


def test_keys_are_required_only_if_several_examples_agree_on_them():
    one, two = [('a', '{"item": "tea", "note": 1}')], [('a', '{"item": "tea"}'), ('b', '{"item": "milk"}')]
    assert validate_reply(prompt_with(*one), 'c', ok('{"item": "beer"}')) is None
    assert validate_reply(prompt_with(*one), 'c', ok('beer'))[0] == 'json_object'
    assert validate_reply(prompt_with(*two), 'c', ok('{"beer": 1}'))[0] == 'json_keys'
    assert validate_reply(prompt_with(*one, *two), 'c', ok('{"beer": 1}')) is None


@anything
@given(texts, st.sampled_from([prompt, free_text, reminders]),
       st.sampled_from([None, 'regex:a*', dict(type='object'), lambda q, a: a]))
@example('['*50_000, free_text, None)
@example('{"a":'*50_000, reminders, None)
@example('{"a":'*50_000, prompt, dict(type='object'))
@example('9'*5_000, prompt, dict(type='object'))
def test_any_answer_is_valid_or_has_a_reason(answer, prompt, check):
    rejection = validate_reply(prompt, 'What is it?', ok(answer), check)
    if rejection is None: assert check or prompt.parse(answer).count('\n') == 0
    else: assert rejection[0] in ('empty', 'check', *rules) and len(rejection[1].splitlines()) == 1


# ---- custom checks

def has_e(question, answer): return 'e' in answer


def reason_without_e(question, answer): return None if 'e' in answer else 'no e'


@pytest.mark.parametrize('check', ['regex:.*e.*', re.compile('.*e.*'), has_e, reason_without_e])
def test_checks_of_every_kind(check):
    def validate(text): return validate_reply(prompt, questions[0], ok(text), check)
    assert validate('Be it.<END>') is None # one step is enough with a custom check
    assert validate('To do')[0] == 'check' and validate('<END>')[0] == 'empty'
    assert validate('To do,\nto do')[0] == 'check' and validate('e Q: e') is None # it decides alone
    assert validate_reply(prompt, questions[0], ok(questions[0].upper()), None)[0] == 'repeated_question'


def test_a_loaded_check_is_not_loaded_again(tmp_path):
    log = tmp_path/'log'
    (tmp_path/'c.py').write_text(f'open({str(log)!r}, "a").write("loaded ")\ndef long_enough(q, a): return len(a) > 3')
    existing = {questions[0]: 'Find it, list it.'}
    pairs, _ = label(prompt, questions, recorded_teacher(), check=f'{tmp_path}/c.py:long_enough', existing=existing)
    assert len(pairs) == len(questions) and log.read_text() == 'loaded '
    check = load_check(has_e)
    assert load_check(check) is check and isinstance(check, Check) and check.name == 'has_e'


def test_a_schema_from_a_file_validates_the_recorded_objects(tmp_path):
    names = 'action', 'what', 'who', 'when', 'where'
    properties = {k: dict(type=['string', 'null']) for k in names}
    schema = dict(type='object', required=list(names), additionalProperties=False, properties=properties)
    file, package_file = tmp_path/'s.json', str(recordings/'reminders.schema.json')
    file.write_text(json.dumps(schema), encoding='utf-8-sig')
    rows = read_jsonl(recordings/'reminders.jsonl')[:20]
    for check in None, schema, str(file), file, package_file:
        pairs, rejects = label(reminders, [r['question'] for r in rows], recorded_teacher(), check=check)
        assert len(pairs) == 20 and not rejects
    valid = pairs[0]['answer']
    for bad in '{}', valid.replace('"who"', '"whom"'), valid + '!', '[]':
        assert validate_reply(reminders, 'x', ok(bad))[0] in ('json_object', 'json_keys')
        assert validate_reply(reminders, 'x', ok(bad), package_file)[0] == 'check'
    other_type = ok(valid.replace('null', '3', 1))
    assert validate_reply(reminders, 'x', other_type) is None
    assert validate_reply(reminders, 'x', other_type, schema)[0] == 'check'


@pytest.mark.parametrize('content, spec, words', [
    ('', 'nowhere.json', 'cannot read'), ('', 'nowhere.py:f', 'cannot read'), ('{', 'a.json', 'not valid JSON'),
    ('['*99_999, 'a.json', 'nested too deeply'), ('3', 'a.json', 'expected an object'),
    ('{"type": "list"}', 'a.json', 'not a valid JSON schema'), ('{"$schema": 3}', 'a.json', 'not a valid JSON schema'),
    ('def g(q, a): pass', 'a.py:f', "no function 'f'"), ('f = 3', 'a.py:f', 'none'),
    ('def f(:', 'a.py:f', 'SyntaxError'), ('import nowhere_to_be_found', 'a.py:f', 'ModuleNotFoundError'),
    ('import sys; sys.exit(3)', 'a.py:f', 'SystemExit'),
    ('', 'regex:(', 'invalid regular expression'), ('', 'regex:a{99999999999}', 'invalid regular expression'),
    ('', 'a.py', 'FILE.py:FUNCTION'), ('', 'f', 'invalid check'), ('', '', 'invalid check'), ('', 3, 'invalid check')])
def test_mistakes_in_a_check_are_one_line(tmp_path, monkeypatch, content, spec, words):
    monkeypatch.chdir(tmp_path)
    if content: Path(spec.split(':')[0]).write_text(content)
    value = str(spec).removeprefix('regex:').split(':')[0][:20]
    for message in error_of(load_check, spec), error_of(label, prompt, questions, None, check=spec):
        assert words in message and value in message
    if isinstance(spec, str) and not spec.startswith('regex:'): error_of(check_content, spec)


@pytest.mark.parametrize('body, words', [
    ("raise KeyError('x\\ny')", 'KeyError'), ('return 3', 'returned 3'), ('return f(q, a)', 'RecursionError'),
    ('return []', 'returned []')])
def test_a_function_that_fails_is_named_with_the_question(tmp_path, body, words):
    (tmp_path/'c.py').write_text(f'def f(q, a): {body}')
    message = error_of(label, prompt, questions[:2], recorded_teacher(), check=f'{tmp_path}/c.py:f')
    assert words in message and 'c.py:f' in message and questions[0][:40] in message


def test_a_file_with_a_dataclass_and_a_wide_reason(tmp_path):
    (tmp_path/'c.py').write_text(
        'from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass R:\n    a: str\n'
        'def f(question, answer): return R("no\\n" * 500).a\n')
    reason = load_check(f'{tmp_path}/c.py:f')('', 'x')
    assert reason.startswith('no no no') and len(reason) < 250 and len(reason.splitlines()) == 1


def test_check_content_follows_the_file(tmp_path):
    file = tmp_path/'s.json'
    file.write_text('{}')
    before = check_content(str(file))
    assert check_content(file) == before
    file.write_text('{"type": "object"}')
    assert check_content(str(file)) != before
    specs = None, {'type': 'object'}, 'regex:a', re.compile('a'), re.compile('a', re.I), has_e, str(file)
    values = [check_content(spec) for spec in specs]
    assert json.loads(json.dumps(values)) == values and len({json.dumps(v) for v in values}) == len(values)


# ---- corrections

@pytest.mark.parametrize('reply, reason, sent', [
    (ok('Find it.'), 'it is a list of 1 step.', 'it is a list of 1 step'),
    (Reply(None, 'truncated', 'truncated at the token limit', ''), 'truncated reply: truncated at the token limit',
     'cut reply: cut at the token limit'),
    (Reply(None, 'truncated', "incomplete; finish_reason is 'error'", ''),
     "truncated reply: incomplete; finish_reason is 'error'", "cut reply: broken off; finish_reason is 'error'")])
def test_corrections_are_those_of_paid_requests(reply, reason, sent):
    "Every byte counts: it is in the keys of caches and recordings."
    chat = correction_chat(prompt, 'Which?', [dict(role='user', content='the prompt')], reply, reason)
    assert chat == [
        dict(role='user', content='the prompt'), dict(role='assistant', content=reply.text or '(no usable answer)'),
        dict(role='user', content=f'That answer cannot be used: {sent}. Reply only with the answer, on one line and in '
                                  'the form of the examples, and with nothing before or after it.\nQ: Which?\nA:')]
    without_examples = parse_prompt('Do it.\nQ: Which?')
    content = correction_chat(without_examples, 'Which?', [], reply, reason)[-1]['content']
    assert 'Reply only with the answer, in the form that the instruction asks for, and' in content


def test_reasons_that_are_sent_stay_as_they_are():
    lists = replace(prompt, examples=prompt.examples*2)
    reasons = [
        validate_reply(lists, 'What?', ok(text))[1] for text in ('', 'a, b\nc', 'a, b. Q: c', 'what', 'a')]
    assert reasons == [
        'empty answer', 'it has more than one line before the end marker', 'it goes on with a next question (`Q:`)',
        'it repeats the question', 'it is a list of 1 step; the examples have 2 or more, with commas between them']
    pair = 'Two teas, please.', '{"item": "tea", "number": 2}'
    orders = prompt_with(pair, pair)
    assert [validate_answer(orders, '', text)[1] for text in ('[]', '{"item": 1}', '{}')] == [
        'it is not a JSON object, as the examples are', 'it has the keys item; the examples have item, number',
        'it has the keys of an empty object; the examples have item, number']
    assert load_check('regex:a  b' + 'c'*300)('', '') == f"it does not match the regular expression 'a  b{'c'*300}'"
    assert load_check(dict(type='array'))('', '{}') == "it breaks the JSON schema at $: {} is not of type 'array'"
    assert load_check(dict(type='array'))('', 'x') == 'it is not JSON: Expecting value: line 1 column 1 (char 0)'
    assert load_check(has_e)('', 'a') == 'has_e does not accept it'


@pytest.mark.parametrize('name', [file.stem for file in sorted(recordings.glob('*.jsonl'))])
def test_no_recorded_answer_is_rejected(name):
    files = [recordings/f'{name}{ending}' for ending in ('.toml', '.json')]
    file = next(filter(Path.exists, files))
    prompt = load_prompt(file)
    rows = [(row['question'], answer) for row in read_jsonl(recordings/f'{name}.jsonl') for answer in row['answers']]
    rejections = {a: validate_reply(prompt, q, ok(a)) for q, a in rows}
    assert {a: reason for a, reason in rejections.items() if reason} == {}
