"Rows of any file: every format, what is not taken, and that nothing is changed."
import json

import pytest
from hypothesis import example, given, strategies as st

from llm_distill.core.core import DistillError, write_jsonl
from llm_distill.core.prompt import trim
from llm_distill.data.labeling import to_dataset
from llm_distill.data.rows import find_shared_prefix, import_rows, read_rows
from odd_texts import anything, error_of, texts

system, user = dict(role='system', content='Name the capital.'), dict(role='user', content='Italy')
reply = dict(role='assistant', content='Rome')
pair = dict(question='Italy', answer='Rome')


# ---- formats

same_pair = dict(
    own=pair, version_0_1=dict(task='Italy', completion='Rome'), openai=dict(messages=[system, user, reply], tools=[]),
    developer=dict(messages=[dict(role='developer', content='Name it.'), user, reply]),
    parts=dict(messages=[dict(role='user', content=[dict(type='text', text='Italy')]), reply]),
    trl=dict(prompt='Italy', completion=' Rome'), trl_messages=dict(prompt=[system, user], completion=[reply]),
    columns=dict(input='Italy', output='Rome'), exported=dict(messages=[user, reply]) | pair,
    stored=dict(object='chat.completion', input=dict(messages=[system, user]), output=reply),
    choices=dict(input=dict(messages=[system, user]), choices=[dict(index=0, message=reply, finish_reason='stop')]),
    logged=dict(messages=[system, user], output=dict(choices=[dict(message=reply)]), model='gpt-5.5'),
    langfuse=dict(id='x', input=[system, user], output=reply, metadata=None),
    langfuse_text=dict(input='Italy', output=reply),
    langfuse_dict=dict(input=dict(messages=[system, user], temperature=0), output='Rome'),
    langfuse_csv=dict(input=json.dumps([system, user]), output=json.dumps(reply)),
    responses=dict(input=[user], output=[dict(type='reasoning', summary=[]), dict(type='message', **reply)]),
    nulls=dict(question=None, prompt=None, messages=[system, user, dict(reply, tool_calls=None)]))


@pytest.mark.parametrize('record', same_pair.values(), ids=same_pair)
def test_every_format_gives_the_pair(tmp_path, record):
    assert read_rows(write_jsonl(tmp_path/'a.jsonl', [record])) == [pair]


def test_question_and_answer_have_precedence(tmp_path):
    (tmp_path/'a.csv').write_text('task,question,completion,answer\n1,Where?,x,Here.\n')
    assert read_rows(tmp_path/'a.csv') == [dict(question='Where?', answer='Here.')]


def test_formats_may_be_mixed_in_a_file(tmp_path):
    records = [pair, dict(prompt='Peru', completion='Lima'), dict(messages=[system, dict(user, content='Chad'), reply])]
    imported = import_rows(write_jsonl(tmp_path/'a.jsonl', records))
    assert [row['question'] for row in imported.rows] == ['Italy', 'Peru', 'Chad']
    assert '3 rows taken from `question`, `prompt`, `messages`' in imported.summary
    assert 'not taken' not in imported.summary


def test_an_answer_may_be_missing_in_a_plain_file(tmp_path):
    records = [dict(question='a'), dict(prompt='b', completion=''), dict(input='c', output=None),
               dict(task='d', completion=' ')]
    assert read_rows(write_jsonl(tmp_path/'a.jsonl', records)) == [dict(question=q) for q in 'abcd']


# ---- texts

kept = texts.map(lambda t: trim(t.encode('utf-8', 'ignore').decode().replace('\0', ''))).filter(bool)
kept = kept.map(trim).filter(bool)


@anything
@given(kept, kept, st.sampled_from(['question', 'messages', 'prompt', 'input']))
@example('a\r\n\tb', '  x\n   y', 'question')
@example('[{"role": "robot"}]', '"x"', 'input')
def test_texts_are_kept_as_they_are(tmp_path_factory, question, answer, key):
    messages = [dict(role='user', content=question), dict(role='assistant', content=answer)]
    record = dict(question=dict(question=question, answer=answer), messages=dict(messages=messages),
                  prompt=dict(prompt=question, completion=answer), input=dict(input=question, output=answer))[key]
    path = tmp_path_factory.getbasetemp()/'texts.jsonl'
    assert read_rows(write_jsonl(path, [record])) == [dict(question=question, answer=answer)]


@pytest.mark.parametrize('record', [
    dict(question='a\0b'), dict(question='a', answer='\ud800'),
    dict(messages=[dict(system, content='\0'), user, reply])])
def test_what_no_file_can_hold_is_named_with_its_line(tmp_path, record):
    (tmp_path/'a.jsonl').write_text('\n' + json.dumps(record))
    message = error_of(read_rows, tmp_path/'a.jsonl')
    assert f'{tmp_path}/a.jsonl, line 2: the text has' in message and ('NUL' in message or 'surrogate' in message)


# ---- rows that are not taken

def chat(*texts, **more):
    roles = ['user', 'assistant']*len(texts)
    return dict(messages=[system, *(dict(role=r, content=t) for r, t in zip(roles, texts))]) | more


good = [chat(f'q{i}', f'a{i}') for i in range(20)]
unusable = {
    'several turns': chat('a', 'b', 'c', 'd'), 'a tool call': chat('a', tool_calls=1) | dict(
        messages=[user, dict(role='assistant', content=None, tool_calls=[dict(id='x')])]),
    'an image or another part that is no text': dict(messages=[dict(role='user', content=[dict(type='image_url')]),
                                                               reply]),
    'no answer of the assistant': chat('a'), 'an empty answer': chat('a', ' '), 'an empty question': chat('', 'b'),
    'messages out of turn': dict(messages=[user, user, reply]),
    'an input that is no text': dict(input=dict(a=1), output='b'),
    'an answer that is no text': dict(input='a', output=dict(tags=[])),
    'another system message': dict(messages=[user, reply]),
    'a truncated answer': dict(input=[system, user], choices=[dict(message=reply, finish_reason='length')]),
    'another answer to a question that was taken': chat('q3', 'x')}


@pytest.mark.parametrize('reason', unusable)
def test_rows_that_cannot_be_used_are_counted(tmp_path, reason):
    imported = import_rows(write_jsonl(tmp_path/'a.jsonl', [*good, unusable[reason], unusable[reason]]))
    assert imported.skipped == {reason: 2} and len(imported.rows) == 20
    assert f'20 rows taken from `messages`; 2 not taken: 2 {reason}' in imported.summary.replace(', `input`', '')


def test_a_log_without_a_usable_row_is_an_error(tmp_path):
    message = error_of(read_rows, write_jsonl(tmp_path/'a.jsonl', [chat('a'), chat('b', ' '), chat('c')]))
    assert 'no rows that can be used: 2 no answer of the assistant, 1 an empty answer' in message


def test_the_newest_of_several_answers_is_taken(tmp_path):
    records = [chat('a', 'old', created=1.6e9), chat('a', 'new', created=1.7e9), chat('a', 'older', created=1.5e9)]
    rows = read_rows(write_jsonl(tmp_path/'a.jsonl', records))
    assert [row['answer'] for row in rows] == ['new']
    rows = read_rows(write_jsonl(tmp_path/'a.jsonl', [chat('a', 'first'), chat('a', 'second')]))
    assert [row['answer'] for row in rows] == ['first']


# ---- the shared prefix

def test_constant_turns_are_worked_examples(tmp_path):
    few_shot = [chat('France', 'Paris', f'q{i}', f'a{i}') for i in range(18)]
    dialog = chat('France', 'Paris', 'q', 'a', 'Thanks', 'Welcome')
    imported = import_rows(write_jsonl(tmp_path/'a.jsonl', [*few_shot, dialog, chat('Hi', 'Hello')]))
    assert (imported.system, imported.turns) == ('Name the capital.', (('France', 'Paris'),))
    assert imported.skipped == {'several turns': 1, 'without the worked examples of the others': 1}
    assert imported.rows[0] == dict(question='q0', answer='a0')


@pytest.mark.parametrize('n_others, system', [(2, 'Name the capital.'), (3, None)])
def test_ninety_percent_make_a_prompt(tmp_path, n_others, system):
    others = [dict(messages=[dict(role='system', content=f'Today is {i}.'), user, reply]) for i in range(n_others)]
    imported = import_rows(write_jsonl(tmp_path/'a.jsonl', [*good[:18 if n_others == 2 else 17], *others]))
    assert imported.system == system
    assert ('different system messages' in imported.summary) == (system is None)


def test_dialogs_do_not_hide_a_constant_system_message(tmp_path):
    imported = import_rows(write_jsonl(tmp_path/'a.jsonl', [*good[:6], *[chat('a', 'b', 'c', 'd')]*6]))
    assert imported.system == 'Name the capital.' and imported.skipped == {'several turns': 6}


@anything
@given(st.lists(st.tuples(st.sampled_from('ST'), st.lists(st.sampled_from('ab'), max_size=3)), min_size=1, max_size=25))
def test_the_prefix_is_shared_by_ninety_percent(shapes):
    from llm_distill.data.conversations import Conversation
    chats = [Conversation('q', 'a', s, tuple((t, t) for t in turns)) for s, turns in shapes]
    system, turns = find_shared_prefix(chats)
    with_system = [c for c in chats if c.system == system]
    if system is None: assert max(sum(c.system == s for c in chats) for s in 'ST') < .9*len(chats)
    else: assert sum(c.turns[:len(turns)] == turns for c in with_system) >= .9*len(chats) or turns == ()


# ---- groups and times in rows

def test_users_become_numbers_and_times_utc(tmp_path):
    records = [chat('a', 'b', user='ada@example.org', created=1793613600), chat('c', 'd', user='bob@example.org'),
               chat('e', 'f', user='ada@example.org', created='2026-11-02T12:00:00+01:00'), chat('g', 'h', user='eve')]
    imported = import_rows(write_jsonl(tmp_path/'a.jsonl', records))
    assert [row['group'] for row in imported.rows] == ['1', '2', '1', '3']
    assert [row.get('time') for row in imported.rows] == [
        '2026-11-02T10:00:00+00:00', None, '2026-11-02T11:00:00+00:00', None]
    assert '3 groups by `user`; times from `created`, which 2 rows lack' in imported.summary
    assert 'example.org' not in json.dumps(imported.rows)
    assert read_rows(write_jsonl(tmp_path/'b.jsonl', imported.rows)) == imported.rows


# ---- mistakes

@pytest.mark.parametrize('name, content, words', [
    ('a.jsonl', b'{"question": "a"}\n{"text": "b", "reply": 3}', 'line 2: no column `question`, got `text`, `reply`'),
    ('a.jsonl', b'{}', 'got none'), ('a.jsonl', b'{"question": ["a"]}', 'line 1: `question` must be a text'),
    ('a.jsonl', b'{"question": "a", "answer": 1}', '`answer` must be a text, got 1'),
    ('a.jsonl', b'{"task": "a", "completion": 1}', '`completion` must be a text, got 1'),
    ('a.jsonl', b'{"question": "\\n"}', 'line 1: `question` is empty'),
    ('a.jsonl', b'{"task": null}', '`task` is empty'),
    ('a.jsonl', b'{"messages": "Hi"}', 'messages are a list'),
    ('a.jsonl', b'{"messages": [3]}', 'no known role, got 3'),
    ('a.jsonl', b'{"messages": [{"role": "user", "content": 3}]}', 'line 1'),
    ('a.jsonl', b'{"prompt": {}}', 'must be a text'),
    ('a.csv', b'a,b\n1,2', 'line 2: no column `question`, got `a`, `b`'), ('a.json', b'[{"question": ""}]', 'row 1'),
    ('a.csv', b'question\na\n""', 'line 3: `question` is empty'), ('a.csv', b'question\n', 'no rows'),
    ('a.txt', b' \n', 'no rows'), ('a.json', b'[]', 'no rows'), ('a.jsonl', b'', 'no rows'), ('a.csv', b'', 'no rows')])
def test_rows_that_cannot_be_read_are_named_by_line(tmp_path, name, content, words):
    (tmp_path/name).write_bytes(content)
    message = error_of(read_rows, tmp_path/name)
    assert words in message and str(tmp_path/name) in message


utf8 = texts.map(lambda t: t.encode('utf-8', 'replace'))
names = st.sampled_from(['role', 'content', 'messages', 'choices', 'type', 'text'])
scalars = st.one_of(texts, st.none(), st.integers(), st.booleans())


def nest(inner): return st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3))


values = st.recursive(scalars, nest, max_leaves=8)
keys = st.sampled_from(['question', 'answer', 'task', 'completion', 'messages', 'prompt', 'input', 'output', 'user',
                        'created', 'x'])
turns = st.lists(st.fixed_dictionaries(dict(role=st.sampled_from(['system', 'user', 'assistant', 'tool']),
                                            content=values)), max_size=4)
objects = st.dictionaries(keys, st.one_of(values, turns), max_size=4).map(lambda d: json.dumps(d).encode())
tables = utf8.map(lambda b: b'question,answer\n' + b)
contents = st.one_of(st.binary(), utf8, tables, objects, st.lists(objects).map(b'\n'.join))


@anything
@given(st.sampled_from(['.jsonl', '.json', '.csv', '.txt', '.parquet']), contents)
@example('.jsonl', b'['*50_000)
@example('.jsonl', b'{"input": ' + b'['*50_000 + b']'*50_000 + b'}')
@example('.json', b'[' + b'{"question": '*9_000)
@example('.jsonl', b'{"question": "\\ud83d"}')
@example('.csv', b'question\na\rb\n')
@example('.csv', b'question\na\0b\n')
@example('.jsonl', b'{"question": "a", "created": 1' + b'0'*400 + b'}')
def test_any_file_gives_rows_or_an_error(tmp_path_factory, ending, content):
    path = tmp_path_factory.getbasetemp()/f'any{ending}'
    path.write_bytes(content)
    try: result = read_rows(path)
    except DistillError as e: assert len(str(e).splitlines()) == 1 and str(path) in str(e)
    else:
        assert result and all({'question'} <= set(r) <= {'question', 'answer', 'group', 'time'} for r in result)
        assert all(r['question'] == trim(r['question']) != '' for r in result)
        to_dataset(result)
