"Filters answer for any text and never reject what the prompt's own questions do."
import pytest
from hypothesis import given, settings, strategies as st

from llm_distill.core.core import read_jsonl, recordings
from llm_distill.core.prompt import Example, SeedPrompt
from llm_distill.core.prompt_files import load_prompt
from llm_distill.data.filters import choose_rules, length, rules

prompt = load_prompt(recordings/'apartments.toml')


def reasons_for(question, prompt):
    results = [rule(question, prompt) for rule in rules.values()]
    return list(filter(None, results))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(min_size=1))
def test_every_filter_answers_for_any_text(text):
    for rule in rules.values(): assert rule(text, prompt) is None or isinstance(rule(text, prompt), str)


@pytest.mark.parametrize('question, reason', [
    ('Here are ten more questions:', 'it talks about the list'), ('Hope this helps!', 'it talks about the list'),
    ('As an AI, I have no home.', 'it is a refusal'), ("I can't help with that.", 'it is a refusal'),
    ('Which bakeries in [city] are open?', 'it has a placeholder'), ('Who is ____ of Peru?', 'it has a placeholder'),
    ('Who won? Answer: France', 'it holds an answer'), ('12 + 7 * 3', 'there is no word in it'),
    ('Who won?<END>', 'it has the end marker'),
    ('Who won?\nAnd when?', 'it has 2 lines'), ('Why?', None), ('Tell me who won.', None)])
def test_each_pattern_has_its_reason(question, reason):
    found = reasons_for(question, SeedPrompt('Answer.', (), 'Why?', end='<END>'))
    assert not found if reason is None else any(text.startswith(reason) for text in found)


@pytest.mark.parametrize('question', [
    'Here is the list of examples.', 'I cannot help with that.', 'Dear [name]', 'Who won? A: France', '12 + 7', 'Hi!'])
def test_what_the_prompt_does_itself_is_accepted(question):
    own = SeedPrompt('Answer.', (Example(question, 'x'),), question, '')
    assert not reasons_for(question, own)


def test_lengths_follow_the_prompt():
    long = SeedPrompt('Answer.', (), 'word '*100)
    assert length('x'*1996, long) is None and 'too long: 1997' in length('x'*1997, long)
    assert 'too long: 441 characters, at most 440' in length('x'*441, prompt)
    assert length('x'*7, prompt) == 'too short: 7 characters, at least 8'


@pytest.mark.parametrize('name', [file.stem for file in sorted(recordings.glob('*.jsonl'))])
def test_no_recorded_question_is_rejected(name):
    file = next(file for file in recordings.glob(f'{name}.*') if file.suffix in ('.toml', '.json'))
    own = load_prompt(file)
    questions = [r['question'] for r in read_jsonl(recordings/f'{name}.jsonl')]
    assert {q: reasons_for(q, own) for q in questions if reasons_for(q, own)} == {}


def test_a_request_in_several_sentences_is_a_question():
    asking = SeedPrompt('Write SQL.', [('Who is from Oslo?', 'SELECT 1;')], 'How many members are there?')
    assert not reasons_for('Which members are on the plus plan? List their names.', asking)


def test_text_of_several_lines_may_hold_brackets_and_answers_in_chat_form():
    mail = SeedPrompt.from_messages([dict(role='user', content='Hello,\nwhere is my parcel?')])
    assert not reasons_for('Dear shop,\n<b>Refund</b> [order 7] {x}\nA: yes', mail)


def test_rules_are_chosen_by_name():
    assert list(choose_rules([], rules)) == list(rules)
    others = [name for name in rules if name not in ('length', 'chatter')]
    assert list(choose_rules(['no-length', 'no_chatter'], rules)) == others
    assert list(choose_rules(['refusal', 'length', 'no-length'], rules)) == ['refusal']
    assert list(choose_rules(['none'], rules)) == []
