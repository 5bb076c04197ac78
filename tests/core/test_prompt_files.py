"Prompt files in three formats: read, written, and every mistake reported with its place."
import json, os
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st

from llm_distill.core.core import DistillError, PromptError, recordings
from llm_distill.core.prompt import Example, SeedPrompt
from llm_distill.core.prompt_files import load_prompt, parse_messages, parse_prompt, parse_toml, save_prompt

anything = settings(max_examples=200, deadline=None, derandomize=True)
prompt, ood_prompt = load_prompt(recordings/'apartments.toml'), load_prompt(recordings/'pull_requests.toml')
characters = st.characters(codec='utf-8', exclude_characters='\0')
any_text = st.text(st.one_of(st.sampled_from('\n\n \tQA:<>ENDx{}"\''), characters))


good = 'instruction = "Name the capital."\nquestion = "Italy"\n\n[[examples]]\nquestion = "France"\nanswer = "Paris"\n'


@pytest.mark.parametrize('text, words', [
    ('# x\ninstruction = "a"\nquestion = ""', '`question` (line 3)'), ('question = "a"', '`instruction` is missing'),
    ('instruction = "a"', '`question` is missing'),
    ('instruction=3\nquestion="a"', '`instruction` (line 1) is 3'),
    (good.replace('question', 'qestion', 1),
     'unknown key `qestion` (line 2); expected only `instruction`, `question`, `end`'),
    (good.replace('[[examples]]', '[examples]'), '`examples` (line 4)'),
    (good.replace('answer = "Paris"', ''), "example 1 (line 4) has the keys ['question']"),
    (good + '[[examples]]\nquestion=""\nanswer="x"\n', 'example 2: `question` (line 8)'),
    (good + 'end = "#"\n', 'example 1 (line 4)'),
    ('instruction = "a"\nquestion = "b"\nexamples = "none"', '`examples` (line 3)'),
    ('instruction = "a', 'is not valid TOML')])
def test_a_mistake_is_reported_with_its_line(text, words):
    with pytest.raises(PromptError) as e: parse_toml(text, 'my.toml')
    assert str(e.value).startswith('my.toml') and words in str(e.value)


def test_a_prompt_file_is_read():
    assert parse_toml(good) == SeedPrompt('Name the capital.', (Example('France', 'Paris'),), 'Italy')
    assert parse_toml('instruction="a"\nquestion="b"\nend="##"') == SeedPrompt('a', (), 'b', '##')
    assert parse_toml('instruction=" a\\nb "\nquestion=" b "') == SeedPrompt('a\nb', (), 'b')
    assert len(load_prompt(recordings/'reminders.toml').examples) == 2


def test_a_file_that_is_no_prompt_is_named(tmp_path):
    (tmp_path/'latin.toml').write_bytes('é'.encode('latin-1'))
    messages = {'nowhere.toml': 'no seed prompt at', '.': 'not a file', 'latin.toml': 'line 1: not UTF-8 text'}
    for name, message in messages.items():
        with pytest.raises(PromptError, match=message) as e: load_prompt(tmp_path/name)
        assert '\n' not in str(e.value)


def test_a_rendered_prompt_is_read_back():
    assert parse_prompt(prompt.render()) == prompt and parse_prompt(ood_prompt.render()) == ood_prompt
    context = prompt.render().rpartition('\nQ:')[0]
    for question in 'Why?', 'Q: Why?', ' Q:  Why?\nA:', 'Why?\nA: ':
        assert parse_prompt(context, question) == replace(prompt, question='Why?')


def test_text_without_examples_or_with_other_markers():
    assert parse_prompt('Do it.', 'x') == SeedPrompt('Do it.', (), 'x')
    marked = parse_prompt('Do it.\nQ: a\nA: b ## c\nQ: d', end='##')
    assert marked == SeedPrompt('Do it.', (Example('a', 'b'),), 'd', '##')
    several_lines = parse_prompt('Do it.\nQ: a\n b\n\nA: c\n d<END>\nQ: e')
    assert several_lines == SeedPrompt('Do it.', (Example('a\n b', 'c\n d'),), 'e')
    assert parse_prompt('Do it.\nQ: first?\nQ: a\nA: b<END>', '').question == 'first?'


@pytest.mark.parametrize('text, words', [
    ('Q: x', 'no instruction'), ('', 'no instruction'), ('Do it.\nQ: a\nA: b<END>', 'has no question'),
    ('Do it.', 'has no question')])
def test_text_that_is_no_prompt(text, words):
    with pytest.raises(PromptError, match=words): parse_prompt(text)


@anything
@given(st.text())
def test_any_text_is_a_prompt_or_a_clear_error(text):
    for parse in parse_prompt, parse_toml, parse_messages:
        try: seed = parse(text)
        except DistillError as e: assert '\n' not in str(e).split(' is not valid TOML')[0]
        else: assert seed.instruction and seed.question


# Round trips

@anything
@given(any_text, st.lists(st.tuples(any_text, any_text), max_size=3), any_text, st.sampled_from(['text', 'chat']))
def test_a_prompt_is_the_same_after_saving_and_loading(tmp_path_factory, instruction, examples, question, form):
    try: seed = SeedPrompt(instruction, examples, question, form=form)
    except PromptError: return
    folder = tmp_path_factory.mktemp('prompt')
    assert load_prompt(save_prompt(seed, folder/'a.toml')) == seed
    if form == 'chat': assert load_prompt(save_prompt(seed, folder/'a.json')) == seed


@anything
@given(any_text, st.lists(st.tuples(any_text, any_text), max_size=3), any_text)
def test_a_rendered_text_is_read_back(instruction, examples, question):
    try: seed = SeedPrompt(instruction, examples, question)
    except PromptError: return
    assert parse_prompt(seed.render()) == seed


# Bad files

@pytest.mark.parametrize('content, words', [
    (b'', 'not valid JSON'), (b'{"messages": [', 'not valid JSON'), (b'[' * 100_000, 'nested too deeply'),
    (b'{"messages": [], "messages": []}', 'twice'), (b'{"messages": NaN}', 'NaN'), (b'3', 'no `messages`'),
    (b'\xff', 'not UTF-8'), (b'{"messages": [{"role": "user", "content": "a\\u0000"}]}', 'NUL'),
    (b'{"messages": [{"role": "user", "content": "a\\ud800"}]}', 'surrogate'),
    (b'{"messages": [{"role": "user", "content": "a"}], "tools": []}', "unknown key 'tools'")])
def test_a_bad_chat_file_is_one_clear_error(tmp_path, content, words):
    (tmp_path/'a.json').write_bytes(content)
    with pytest.raises(PromptError, match=words) as e: load_prompt(tmp_path/'a.json')
    assert '\n' not in str(e.value) and 'a.json' in str(e.value)


def test_byte_order_mark_and_line_ends_of_windows(tmp_path):
    (tmp_path/'a.toml').write_bytes(b'\xef\xbb\xbf' + good.replace('\n', '\r\n').encode())
    assert load_prompt(tmp_path/'a.toml') == parse_toml(good)
    request = dict(messages=[dict(role='user', content='a\r\n b')])
    (tmp_path/'a.json').write_bytes(b'\xef\xbb\xbf' + json.dumps(request).encode())
    assert load_prompt(tmp_path/'a.json').question == 'a\r\n b'


def test_a_line_of_ten_megabytes_is_read(tmp_path):
    text = 'word '*2_000_000
    (tmp_path/'a.json').write_text(json.dumps(dict(messages=[dict(role='user', content=text)])))
    assert load_prompt(tmp_path/'a.json').question == text.strip()


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no named pipes on this system')
def test_a_named_pipe_is_refused_instead_of_waiting(tmp_path):
    os.mkfifo(tmp_path/'a.toml')
    with pytest.raises(PromptError, match='not a file'): load_prompt(tmp_path/'a.toml')


def test_a_template_takes_its_seed_question_from_variables():
    text = 'form = "chat"\ntemplate = "Tag: {{ t }}"\n[variables]\nt = "x"'
    seed = parse_toml(text)
    assert (seed.question, seed.template) == ('Tag: x', 'Tag: {{ t }}')
    with pytest.raises(PromptError, match='variable'): parse_toml(text.replace('t = "x"', 'u = "x"'))
