"Any server renders with the saved template what the student was trained on, or raises."
import jinja2
import pytest
from hypothesis import given, settings, strategies as st

from llm_distill.core.chat_template import chat_template
from llm_distill.core.prompt import SeedPrompt, student_prompt, trim

anything = settings(max_examples=100, deadline=None, derandomize=True)
texts = st.text(st.characters(codec='utf-8', exclude_characters='\0')).filter(str.strip)


def user(text): return dict(role='user', content=text)


class Tokenizer:
    bos_token_id = 1

    def __init__(self, *before): self.before = before

    def __call__(self, text):
        class Encoded: input_ids = [*self.before, *(100 + ord(c) for c in text)]
        return Encoded


def render(tokenizer, messages, prompt=None):
    def raise_exception(message): raise jinja2.TemplateError(message)
    environment = jinja2.Environment()
    environment.globals['raise_exception'] = raise_exception
    template = environment.from_string(chat_template(tokenizer, prompt))
    return template.render(messages=messages, bos_token='<s>')


def test_a_server_renders_what_was_trained_on():
    for messages in [user(' Why? ')], [user([dict(type='text', text='Why?')])]:
        assert render(Tokenizer(), messages) == student_prompt('Why?')
        assert render(Tokenizer(1), messages) == '<s>' + student_prompt('Why?')
    assert chat_template(Tokenizer(2)) == chat_template(Tokenizer()) != chat_template(Tokenizer(1)) # 2 is another token


@anything
@given(texts)
def test_any_question_is_rendered_as_it_is(text):
    assert render(Tokenizer(), [user(trim(text))]) == student_prompt(trim(text))


@anything
@given(texts, texts, texts)
def test_the_messages_of_the_distilled_prompt_are_accepted(instruction, question, answer):
    prompt = SeedPrompt(instruction, [(question, answer)], 'Why?', form='chat')
    assert render(Tokenizer(), prompt.messages(), prompt) == student_prompt('Why?')
    assert render(Tokenizer(), [*prompt.messages()[:1], user('Why?')], prompt) == student_prompt('Why?')


def test_other_turns_raise_instead_of_being_dropped():
    prompt = SeedPrompt('Name it.', [('France', 'Paris')], 'Italy', form='chat')
    turns = [user('An earlier one.'), dict(role='assistant', content='Done.'), user('Why?')]
    others = [[dict(role='system', content='Be brief.'), user('Why?')], turns, turns[:2], prompt.messages()[1:],
              [*prompt.messages(), *turns[1:]]]
    for messages in others:
        with pytest.raises(jinja2.TemplateError): render(Tokenizer(), messages, prompt)
    with pytest.raises(jinja2.TemplateError, match='only text'): render(Tokenizer(), [user([dict(type='image_url')])])


def test_a_tokenizer_without_bos_gets_none():
    tokenizer = Tokenizer()
    tokenizer.bos_token_id = None
    assert 'bos_token' not in chat_template(tokenizer)
