"What callers may pass: prompts, recipes, rows and checks in all their forms."
import json, re
from pathlib import Path

import pytest

from llm_distill.core.core import DistillError, recordings
from llm_distill.core.prompt import Example, SeedPrompt
from llm_distill.run.inputs import (
    as_absolute, as_check, as_metrics, as_pairs, as_prompt, as_questions, as_recipe, as_rows)
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
    (as_prompt, dict(question='d, c'), 'a seed prompt has the texts instruction, question and end'),
    (as_prompt, dict(instruction='Sort.', question=3), 'a seed prompt has the texts'),
    (as_prompt, dict(instruction='Sort.', question='b', examples=[3]), 'a seed prompt has the texts'),
    (as_prompt, dict(instruction='Sort.', question='b', examples=[dict(question='a')]), 'a seed prompt has the texts'),
    (as_prompt, 3, 'the path of a TOML file, got 3'),
    (as_prompt, 'absent.toml', 'no seed prompt at absent.toml'),
    (as_recipe, 'best', "no recipe 'best'"),
    (as_recipe, dict(speed=9), 'unknown setting `speed`'),
    (as_recipe, dict(epochs='many'), "`epochs` must be a whole number, got 'many'"),
    (as_rows, 3, 'rows are a file (.txt, .jsonl, .csv) or a list, got 3'),
    (as_questions, [dict(task='Why?')], 'a row has no `question`'),
    (as_pairs, ['Why?'], "no answer to 'Why?'"),
    (as_pairs, {'Why?': ''}, "no answer to 'Why?'"),
    (as_pairs, [dict(question='Why?', answer=a) for a in 'ab'], "two answers to 'Why?': 'a' and 'b'"),
    (as_check, len, 'put the function into a file and pass FILE.py:FUNCTION'),
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


def test_a_check_in_every_form(tmp_path):
    schema = dict(type='object', required=['a'])
    file = tmp_path/'schema.json'
    file.write_text(json.dumps(schema))
    assert as_check(file) == as_check(str(file)) == as_check(json.dumps(schema)) == as_check(schema) == schema
    assert as_check(re.compile('[a-z]+')) == as_check('regex:[a-z]+') == 'regex:[a-z]+'
    assert as_check('regex:{3}.json') == 'regex:{3}.json' and as_check(None) is None


def test_functions_in_files_are_found_from_another_directory():
    here = str(Path.cwd())
    assert as_check('mine.py:short') == as_absolute('mine.py:short') == f'{here}/mine.py:short'
    assert as_metrics(['rouge_l', 'mine.py:short']) == ['rouge_l', f'{here}/mine.py:short']
