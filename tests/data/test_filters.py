"Filters answer for any text and never reject what the prompt's own questions do."
import pytest
from hypothesis import given, settings, strategies as st

from llm_distill.core.core import read_jsonl, recordings
from llm_distill.core.prompt import Example, SeedPrompt, load_prompt
from llm_distill.data.filters import filters, not_a_request, wrong_length

prompt = load_prompt(recordings/'apartments.toml')


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(min_size=1))
def test_every_filter_answers_for_any_text(text):
    for f in filters: assert f(text, prompt) is None or isinstance(f(text, prompt), str)


@pytest.mark.parametrize('question, reason', [
    ('Here are ten more questions:', 'it talks about the list'), ('Hope this helps!', 'it talks about the list'),
    ('As an AI, I have no home.', 'it is a refusal'), ("I can't help with that.", 'it is a refusal'),
    ('Which bakeries in [city] are open?', 'it has a placeholder'), ('Who is ____ of Peru?', 'it has a placeholder'),
    ('Who won? Answer: France', 'it holds an answer'), ('12 + 7 * 3', 'there is no word in it'),
    ('Who won?<END>', 'it holds the end marker'), ('Why?', None), ('Tell me who won.', None)])
def test_each_pattern_has_its_reason(question, reason):
    result = not_a_request(question, SeedPrompt('Answer.', (), 'Who won the cup?'))
    assert result is None if reason is None else result.startswith(reason)


@pytest.mark.parametrize('question', [
    'Here is the list of examples.', 'I cannot help with that.', 'Dear [name]', 'Who won? A: France', '12 + 7', 'Hi!'])
def test_what_the_prompt_does_itself_is_accepted(question):
    own = SeedPrompt('Answer.', (Example(question, 'x'),), question, '')
    assert not_a_request(question, own) is None and wrong_length(question, own) is None


def test_lengths_follow_the_prompt():
    long = SeedPrompt('Answer.', (), 'word '*100)
    assert wrong_length('x'*1000, long) is None and 'too long: 1001' in wrong_length('x'*1001, long)
    assert 'too long: 401 characters, at most 400' in wrong_length('x'*401, prompt)
    assert wrong_length('x'*7, prompt) == 'too short: 7 characters, at least 8'


@pytest.mark.parametrize('name', ['apartments', 'pull_requests', 'reminders'])
def test_no_recorded_question_is_rejected(name):
    own = load_prompt(recordings/f'{name}.toml')
    questions = [r['question'] for r in read_jsonl(recordings/f'{name}.jsonl')]
    assert [q for q in questions for f in filters if f(q, own)] == []
