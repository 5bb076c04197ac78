"Prompts as the teacher and the student read them, to the letter, and every mistake in a prompt file with its line."
from dataclasses import asdict, replace

import jinja2
import pytest
from hypothesis import given, settings, strategies as st

from llm_distill.core.core import DistillError, PromptError, read_jsonl, recordings
from llm_distill.core.prompt import (
    STUDENT_FORMAT, Example, SeedPrompt, chat_template, find_question, load_prompt, parse_prompt, parse_toml,
    student_prompt)

anything = settings(max_examples=200, deadline=None, derandomize=True)
prompt, ood_prompt = load_prompt(recordings/'apartments.toml'), load_prompt(recordings/'pull_requests.toml')
words = st.text(st.characters(codec='utf-8', exclude_categories=['Cc', 'Zl', 'Zp']))
lines = words.map(lambda s: ' '.join(s.split())).filter(bool)


# Rendering and parsing

def test_the_teacher_reads_the_text_of_the_article():
    assert prompt.render('Why?') == (
        'Split Q into the subtasks that are needed to execute it. Separate each subtask with a comma.\n'
        'Q: Delete all the emails sent more than 5 years ago to my old company.\n'
        'A: Find all emails sent 5 years ago, find what was the email of the old company, '
        'find which emails from 5 years ago were sent to that email, Delete those emails.<END>\nQ: Why?\nA:')
    assert prompt.render() == prompt.render(prompt.question)
    assert replace(prompt, examples=()).render('Why?') == prompt.instruction + '\nQ: Why?\nA:'


def test_the_student_reads_the_question_only():
    assert student_prompt('Why?') == 'Q: Why?\nA:'
    assert STUDENT_FORMAT == '`Q: {question}`, a line break, `A:`'


@pytest.mark.parametrize('reply, answer', [
    (' Find it.<END>\nQ: And', 'Find it.'), ('<END>', ''), ('A: x', 'x'), (' x ', 'x'), ('x<END>y<END>', 'x'),
    ('x\ny', 'x\ny')])
def test_an_answer_ends_at_the_marker(reply, answer): assert prompt.parse(reply) == answer


def test_a_prompt_without_a_marker():
    without = replace(prompt, end='')
    assert without.parse(' x ') == 'x' and '<END>' not in without.render()
    assert without.stop_strings == ('\nQ:',) and prompt.stop_strings == ('<END>', '\nQ:')


def test_recorded_answers_are_parsed_to_their_text():
    for name, seed in ('apartments', prompt), ('pull_requests', ood_prompt):
        for row in read_jsonl(recordings/f'{name}.jsonl'):
            assert [seed.parse(a) for a in row['answers']] == [a.removesuffix('<END>') for a in row['answers']]


@anything
@given(lines, st.lists(st.tuples(lines, lines), max_size=3), lines)
def test_a_prompt_survives_plain_values(instruction, examples, question):
    seed = SeedPrompt(instruction, tuple(Example(*e) for e in examples), question)
    assert SeedPrompt.from_dict(asdict(seed)) == seed


# The question in a request

def user(text): return dict(role='user', content=text)


def test_the_question_is_recognized_in_every_rendered_prompt():
    for row in read_jsonl(recordings/'apartments.jsonl')[:20]:
        assert find_question([user(prompt.render(row['question']))]) == row['question']
        assert find_question([user(student_prompt(row['question']))]) == row['question']


def test_the_last_question_counts_and_a_correction_refers_to_the_first():
    first = [user(prompt.render('First?')), dict(role='assistant', content='Q: Mine?\nA:')]
    assert find_question([*first, user('That answer cannot be used.\nQ: First?\nA:')]) == 'First?'
    assert find_question([*first, user('Try again.')]) == 'First?'
    assert find_question([*first, user('Try again.\nQ: Second?\nA: ')]) == 'Second?'
    assert find_question([dict(role='system', content='Q: Rules?\nA:'), user('Hello')]) is None
    assert find_question([user(student_prompt('Why?') + ' Because.')]) is None


# The chat template

class Tokenizer:
    bos_token_id = 1

    def __init__(self, *before): self.before = before

    def __call__(self, text):
        class Encoded: input_ids = [*self.before, *(100 + ord(c) for c in text)]
        return Encoded


def render(tokenizer, messages):
    return jinja2.Template(chat_template(tokenizer)).render(messages=messages, bos_token='<s>')


def test_a_server_renders_what_was_trained_on():
    first = [dict(role='system', content='Be brief.'), user('An earlier one.')]
    chat = [*first, dict(role='assistant', content='Done.'), user(' Why? ')]
    for messages in chat[-1:], chat, [user([dict(type='text', text='Why?')])]:
        assert render(Tokenizer(), messages) == student_prompt('Why?')
        assert render(Tokenizer(1), messages) == '<s>' + student_prompt('Why?')


def test_the_template_is_that_of_saved_students():
    assert chat_template(Tokenizer()) == (
        "{%- set last = messages | selectattr('role', 'equalto', 'user') | list | last -%}"
        "{%- set text = last.content if last.content is string else last.content | map(attribute='text') | join('') -%}"
        "{{- 'Q: ' + text | trim + '\\nA:' -}}")
    assert chat_template(Tokenizer(2)) == chat_template(Tokenizer()) != chat_template(Tokenizer(1)) # 2 is another token


def test_a_tokenizer_without_bos_gets_none():
    tokenizer = Tokenizer()
    tokenizer.bos_token_id = None
    assert 'bos_token' not in chat_template(tokenizer)


# TOML

good = 'instruction = "Name the capital."\nquestion = "Italy"\n\n[[examples]]\nquestion = "France"\nanswer = "Paris"\n'


@pytest.mark.parametrize('text, words', [
    ('# x\ninstruction = "a"\nquestion = ""', '`question` (line 3)'), ('question = "a"', '`instruction` is missing'),
    ('instruction = "a"', '`question` is missing'),
    ('instruction="a"\nquestion = """a\nb"""', "line break in 'a\\nb'"),
    ('instruction=3\nquestion="a"', '`instruction` (line 1) is 3'),
    ('instruction="a"\nquestion="b"\nend=""', '`end` (line 3)'),
    (good.replace('question', 'qestion', 1),
     'unknown key `qestion` (line 2); expected only `instruction`, `question`, `end`, `examples`'),
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
    messages = {'nowhere.toml': 'no seed prompt at', '.': 'is not a text file', 'latin.toml': 'is not a text file'}
    for name, message in messages.items():
        with pytest.raises(PromptError, match=message) as e: load_prompt(tmp_path/name)
        assert '\n' not in str(e.value)


# Text

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
    assert several_lines == SeedPrompt('Do it.', (Example('a b', 'c d'),), 'e')
    assert parse_prompt('Do it.\nQ: first?\nQ: a\nA: b<END>', '').question == 'first?'


@pytest.mark.parametrize('text, words', [
    ('Q: x', 'no instruction'), ('', 'no instruction'), ('Do it.\nQ: a\nA: b<END>', 'has no question'),
    ('Do it.', 'has no question')])
def test_text_that_is_no_prompt(text, words):
    with pytest.raises(PromptError, match=words): parse_prompt(text)


@anything
@given(st.text())
def test_any_text_is_a_prompt_or_a_clear_error(text):
    for parse in parse_prompt, parse_toml:
        try: seed = parse(text)
        except DistillError as e: assert '\n' not in str(e).split(' is not valid TOML')[0]
        else: assert seed.instruction and seed.question and '\n' not in seed.question
