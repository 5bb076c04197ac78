"What callers may pass: prompts, recipes, rows and checks in all their forms."
import json, re
from pathlib import Path

import pandas, pytest
from datasets import Dataset

from llm_distill.core.core import DistillError, recordings
from llm_distill.core.prompt import Example, SeedPrompt
from llm_distill.core.functions import absolute_function
from llm_distill.run.inputs import (
    as_check, as_judge, as_metrics, as_pairs, as_prompt, as_questions, as_recipe, as_rows)
from llm_distill.student.recipe import Recipe

prompt = SeedPrompt('Sort.', (Example('b, a', 'a, b'),), 'd, c')


def test_a_prompt_in_every_form():
    as_dict = dict(instruction='Sort.', examples=[dict(question='b, a', answer='a, b')], question='d, c')
    assert as_prompt(prompt) == as_prompt(as_dict) == prompt and as_prompt(None) is None
    file = recordings/'apartments.toml'
    assert as_prompt(file) == as_prompt(str(file)) != prompt


def test_a_recipe_in_every_form():
    assert as_recipe(None) == as_recipe('default') == as_recipe({}) == as_recipe(Recipe()) == Recipe()
    assert as_recipe(dict(epochs=9)) == Recipe(epochs=9)


@pytest.mark.parametrize('convert,value,message', [
    (as_prompt, dict(question='d, c'), 'a prompt in text form has no instruction'),
    (as_prompt, dict(instruction='Sort.', question=3), 'the question of a prompt is a text, got 3'),
    (as_prompt, dict(instruction='Sort.', question='b', examples=[3]), 'an example has the texts'),
    (as_prompt, dict(instruction='Sort.', question='b', examples=[dict(question='a')]), 'an example has the texts'),
    (as_prompt, 3, 'a path or a list of chat messages, got 3'),
    (as_prompt, [], 'messages are a list'),
    (as_prompt, [dict(role='system', content='Sort.')], 'only a system message'),
    (as_prompt, 'absent.toml', 'no seed prompt at absent.toml'),
    (as_recipe, 'best', "no recipe 'best'"),
    (as_recipe, dict(speed=9), 'unknown setting `speed`'),
    (as_recipe, dict(epochs='many'), "`epochs` must be a whole number, got 'many'"),
    (as_rows, 3, 'rows are a file (.txt, .jsonl, .csv), a list or a table, got 3'),
    (as_rows, ' ', 'the path of the rows is empty'),
    (as_questions, [dict(text='Why?')], 'no column `question`, got `text`'),
    (as_pairs, [dict(question='Why?', answer=3)], 'the answer of a pair must be a text, got 3'),
    (as_pairs, [dict(question=3, answer='a')], 'the question of a pair must be a text, got 3'),
    (as_metrics, ['rouge_l', 3], 'metrics must be a list of names, FILE.py:FUNCTION or functions, got 3'),
    (as_judge, Path('absent.txt'), "cannot read the judge template 'absent.txt'"),
    (as_pairs, ['Why?'], "no answer to 'Why?'"),
    (as_pairs, {'Why?': ''}, "no answer to 'Why?'"),
    (as_pairs, [dict(question='Why?', answer=a) for a in 'ab'], "two answers to 'Why?': 'a' and 'b'"),
    (as_check, 3, 'FILE.py:FUNCTION or a function of question and answer, got 3'),
    (as_check, '{"a": NaN}', 'is not valid JSON'),
    (as_check, 'absent.json', 'cannot read the check'),
])
def test_a_mistake_is_one_line(convert, value, message):
    with pytest.raises(DistillError, match=re.escape(message)) as e: convert(value)
    assert len(str(e.value).splitlines()) == 1


def test_pairs_in_every_form(tmp_path):
    rows = [dict(question='Why?', answer='a'), dict(question='How?', answer='b'), dict(question='Why?', answer='a')]
    file = tmp_path/'pairs.jsonl'
    file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    assert as_pairs(rows) == as_pairs(file) == as_pairs(as_pairs(rows)) == {'Why?': 'a', 'How?': 'b'}
    assert as_questions(file) == ['Why?', 'How?', 'Why?'] and as_questions(('Why?',)) == ['Why?']


def test_tables_are_rows():
    rows = [dict(question='Why?', answer='a'), dict(question='How?', answer='b')]
    for table in pandas.DataFrame(rows), Dataset.from_list(rows):
        assert as_pairs(table) == {'Why?': 'a', 'How?': 'b'} and as_questions(table) == ['Why?', 'How?']
    missing = pandas.DataFrame([*rows, dict(question='Who?', answer=None)])
    with pytest.raises(DistillError, match="no answer to 'Who\\?'"): as_pairs(missing)
    assert as_questions(pandas.Series(['Why?', 'How?'])) == ['Why?', 'How?']


def test_rows_of_another_format_are_recognized_in_python_as_in_files():
    chat = [dict(role='user', content='Italy'), dict(role='assistant', content='Rome')]
    assert as_pairs([dict(messages=chat), dict(input='Peru', output='Lima')]) == dict(Italy='Rome', Peru='Lima')


def test_a_row_may_have_the_variables_of_a_template():
    chat = dict(messages=[dict(role='user', content='{{ who }}: {{ what }}')], variables=dict(who='Ada', what='Hi'))
    ticket = as_prompt(chat)
    assert as_questions([dict(who='Bob', what='No')], ticket) == ['Bob: No']
    assert as_pairs([dict(who='Bob', what='No', answer='no')], ticket) == {'Bob: No': 'no'}
    with pytest.raises(DistillError, match="'what' is undefined"): as_questions([dict(who='Bob')], ticket)


def test_chat_messages_are_a_prompt():
    messages = [dict(role='system', content='Sort.'), dict(role='user', content='b, a')]
    assert as_prompt(messages) == as_prompt(dict(messages=messages)) == SeedPrompt('Sort.', (), 'b, a', form='chat')


def test_a_check_in_every_form(tmp_path):
    schema = dict(type='object', required=['a'])
    file = tmp_path/'schema.json'
    file.write_text(json.dumps(schema))
    assert as_check(file) == as_check(str(file)) == as_check(json.dumps(schema)) == as_check(schema) == schema
    assert as_check(re.compile('[a-z]+')) == as_check('regex:[a-z]+') == 'regex:[a-z]+'
    assert as_check(len) is len
    assert as_check('regex:{3}.json') == 'regex:{3}.json' and as_check(None) is None


def test_functions_in_files_are_found_from_another_directory():
    here = str(Path.cwd())
    assert as_check('mine.py:short') == absolute_function('mine.py:short', '') == f'{here}/mine.py:short'
    assert as_metrics(len) == [len] and as_metrics(None) == []
    assert as_metrics(['rouge_l', 'mine.py:short']) == ['rouge_l', f'{here}/mine.py:short']
