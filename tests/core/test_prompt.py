"Prompts in text and chat form, as the teacher and the student read them, to the letter."
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st

from llm_distill.core.core import DistillError, PromptError, read_jsonl, recordings
from llm_distill.core.prompt import (
    STUDENT_FORMAT, Example, SeedPrompt, find_questions, render_template, student_prompt, trim)
from llm_distill.core.prompt_files import load_prompt

anything = settings(max_examples=200, deadline=None, derandomize=True)
prompt, ood_prompt = load_prompt(recordings/'apartments.toml'), load_prompt(recordings/'pull_requests.toml')
characters = st.characters(codec='utf-8', exclude_characters='\0')
any_text = st.text(st.one_of(st.sampled_from('\n\n \tQA:<>ENDx{}'), characters))
contents = any_text.filter(str.strip)


# White space

@anything
@given(any_text)
def test_trimming_twice_changes_nothing_more(text): assert trim(trim(text)) == trim(text)


@anything
@given(any_text)
def test_inner_line_breaks_and_indents_are_kept(text):
    trimmed = trim(text)
    assert trimmed in text and text.replace(trimmed, '', 1).strip() == ''
    assert trimmed.splitlines()[1:] == text.rstrip().splitlines()[-len(trimmed.splitlines()):][1:]


@pytest.mark.parametrize('text, trimmed', [
    (' a ', 'a'), ('\n\n  a\n   b\n', '  a\n   b'), (' \n\t\n', ''), ('a\r\nb', 'a\r\nb'), ('  a\n', 'a')])
def test_white_space_around_a_text_goes(text, trimmed): assert trim(text) == trimmed


# Rendering and parsing

def test_the_teacher_reads_the_text_of_the_article():
    assert prompt.render('Why?') == (
        'Split Q into the subtasks that are needed to execute it. Separate each subtask with a comma.\n'
        'Q: Delete all the emails sent more than 5 years ago to my old company.\n'
        'A: Find all emails sent 5 years ago, find what was the email of the old company, '
        'find which emails from 5 years ago were sent to that email, Delete those emails.<END>\nQ: Why?\nA:')
    assert prompt.render() == prompt.render(prompt.question)
    assert replace(prompt, examples=()).render('Why?') == prompt.instruction + '\nQ: Why?\nA:'
    assert prompt.messages('Why?') == [dict(role='user', content=prompt.render('Why?'))]


def test_the_student_reads_the_question_only():
    assert student_prompt('Why?') == 'Q: Why?\nA:'
    assert STUDENT_FORMAT == '`Q: {question}`, a line break, `A:`'


@pytest.mark.parametrize('reply, answer', [
    (' Find it.<END>\nQ: And', 'Find it.'), ('<END>', ''), ('A: x', 'x'), (' x ', 'x'), ('x<END>y<END>', 'x'),
    ('x\ny', 'x\ny'), ('   x\n  y', '  x\n  y')])
def test_an_answer_ends_at_the_marker(reply, answer): assert prompt.parse(reply) == answer


@anything
@given(contents)
def test_a_reply_in_chat_form_is_the_answer(text):
    chat = SeedPrompt('Do it.', (), 'Why?', form='chat')
    assert chat.parse(text) == trim(text)


def test_a_prompt_without_a_marker():
    without = replace(prompt, end='')
    assert without.parse(' x ') == 'x' and '<END>' not in without.render()
    assert without.stop_strings == ('\nQ:',) and prompt.stop_strings == ('<END>', '\nQ:')


def test_recorded_answers_are_parsed_to_their_text():
    for name, seed in ('apartments', prompt), ('pull_requests', ood_prompt):
        for row in read_jsonl(recordings/f'{name}.jsonl'):
            assert [seed.parse(a) for a in row['answers']] == [a.removesuffix('<END>') for a in row['answers']]


# Forms

def prompt_or_error(*args, **kwargs):
    "Return a prompt, or None if it is refused in one line."
    try: return SeedPrompt(*args, **kwargs)
    except PromptError as e: assert '\n' not in str(e)


pairs = st.lists(st.tuples(any_text, any_text), max_size=3)


@anything
@given(contents, pairs, contents, st.sampled_from(['text', 'chat']))
def test_a_prompt_survives_plain_values_and_keeps_its_texts(instruction, examples, question, form):
    seed = prompt_or_error(instruction, examples, question, form=form)
    if not seed: return
    assert SeedPrompt.from_dict(seed.to_dict()) == seed
    assert [(e.question, e.answer) for e in seed.examples] == [(trim(q), trim(a)) for q, a in examples]
    assert seed.question == trim(question)


@anything
@given(any_text, pairs, contents)
def test_messages_are_read_back(instruction, examples, question):
    seed = prompt_or_error(instruction, examples, question, form='chat')
    if not seed: return
    variables = {} if '{{' in question else None
    assert SeedPrompt.from_messages(seed.messages(), variables) == seed


@pytest.mark.parametrize('options, words', [
    (dict(form='json'), 'text or chat'), (dict(examples='x'), 'examples of a prompt are a list'),
    (dict(examples=[dict(q='a', a='b')]), 'an example has the texts'), (dict(examples=[('a', ' ')]), 'empty answer'),
    (dict(question=' '), 'has no question'), (dict(instruction=''), 'no instruction'),
    (dict(question='a\nA: b'), 'use the chat form'), (dict(examples=[('a', 'b<END>c')]), 'the end marker <END>'),
    (dict(examples=[('a', 'A: b')]), 'begins with'),
    (dict(examples=[('a', 'b\nQ: c\nA: d')]), 'a question and its answer'),
    (dict(question='a\0'), 'a NUL character'), (dict(question='a\ud800'), 'half of a surrogate pair'),
    (dict(form='chat', end='##'), 'no end marker'), (dict(end=None, question=3), 'got 3')])
def test_what_a_form_cannot_represent_is_refused(options, words):
    with pytest.raises(PromptError, match=words): SeedPrompt(**dict(instruction='Do it.', question='Why?') | options)


@pytest.mark.parametrize('messages, words', [
    ([], 'messages are a list'), ('x', 'messages are a list'), ([dict(role='user')], 'no role and content'),
    ([dict(role='tool', content='x')], "the role 'tool'"),
    ([dict(role='system', content='x')], 'only a system message'),
    ([dict(role='user', content='a'), dict(role='user', content='b')], 'one of the assistant is expected'),
    ([dict(role='user', content='a'), dict(role='assistant', content='b')], 'ends with a message of the assistant'),
    ([dict(role='user', content=[dict(type='image_url', image_url='x')])], 'only text can be distilled'),
    ([dict(role='user', content=None, tool_calls=[1])], 'calls a tool'),
    ([dict(role='user', content='{{ a }}')], 'variables')])
def test_messages_that_are_no_prompt(messages, words):
    with pytest.raises(PromptError, match=words): SeedPrompt.from_messages(messages)


def test_parts_of_text_are_joined_and_developer_is_system():
    parts = [dict(type='text', text='a'), dict(type='text', text='b')]
    messages = [dict(role='developer', content='Do it.'), dict(role='user', content=parts)]
    assert SeedPrompt.from_messages(messages) == SeedPrompt('Do it.', (), 'ab', form='chat')


# Templates

@pytest.mark.parametrize('template', [
    "{{ x.__class__ }}", "{{ ''.__class__.__mro__ }}", "{{ 'a'*10**9 }}", "{% for i in range(10**9) %}a{% endfor %}",
    "{% include '/etc/passwd' %}", "{{ cycler.__init__.__globals__ }}", '{{ x', "{{ x ** 99 }}",
    "{{ '%999999999d' % 1 }}"])
def test_a_hostile_template_does_nothing(template):
    variables = {'x': 3} if 'x' in template and "''" not in template and 'include' not in template else {}
    with pytest.raises(PromptError): render_template(template, variables)


def test_variables_are_filled_as_text():
    message = dict(role='user', content='To {{ name }}:\n{{ text }}\n')
    form = SeedPrompt.from_messages([message], dict(name='Bo', text='{{ 7*7 }}'))
    assert form.question == 'To Bo:\n{{ 7*7 }}' and form.variables == ['name', 'text']
    assert form.fill(dict(name='<b>', text='a & b')) == 'To <b>:\na & b'
    for values in dict(name='x'), dict(name='x', text='y', more='z'):
        with pytest.raises(PromptError): form.fill(values)


# The question in a request

def user(text): return dict(role='user', content=text)


def test_the_question_is_recognized_in_every_rendered_prompt():
    for row in read_jsonl(recordings/'apartments.jsonl')[:20]:
        assert find_questions([user(prompt.render(row['question']))])[0] == row['question']
        assert find_questions([user(student_prompt(row['question']))])[0] == row['question']


def test_the_last_question_counts_and_a_correction_refers_to_the_first():
    first = [user(prompt.render('First?')), dict(role='assistant', content='Q: Mine?\nA:')]
    assert find_questions([*first, user('That answer cannot be used.\nQ: First?\nA:')])[0] == 'First?'
    assert find_questions([*first, user('Try again.')])[0] == 'First?'
    assert find_questions([*first, user('Try again.\nQ: Second?\nA: ')])[0] == 'Second?'
    assert find_questions([dict(role='system', content='Q: Rules?\nA:'), user('Hello')]) == ['Hello']
    assert find_questions([user(prompt.render('a\n  b'))])[0] == 'a\n  b'


@anything
@given(contents, contents)
def test_the_question_of_any_text_prompt_is_found(instruction, question):
    seed = prompt_or_error(instruction, (), question)
    if seed: assert find_questions(seed.messages())[0].strip() == seed.question.strip()
