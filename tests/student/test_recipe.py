"Recipes: fields with types and ranges, presets, and values from the command line."
from dataclasses import fields, replace

import pytest

from llm_distill.core.core import DistillError
from llm_distill.student.recipe import Recipe, make_recipe, parse_override, recipe_fields, recipes


@pytest.mark.parametrize('field, value', [
    ('epochs', 0), ('lr', -1), ('lr', float('nan')), ('batch_size', 0), ('validation_share', 0.9)])
def test_a_bad_recipe_names_the_value(field, value):
    with pytest.raises(DistillError, match=f'{field} must be .*, got {value}'): replace(Recipe(), **{field: value})


def test_recipes_by_name():
    assert list(recipes) == ['default', 'article', 'lora', 'qlora'] and recipes['default'] == Recipe()
    assert recipes['article'] == Recipe(epochs=100, batch_size=5, lr=2e-5, warmup_steps=0, patience=0, lora_rank=0)
    assert recipes['lora'].lora_rank and not recipes['lora'].four_bit and recipes['qlora'].four_bit
    assert make_recipe('article', epochs=3) == replace(recipes['article'], epochs=3)


def test_presets_keep_their_numbers():
    default, lora, qlora = (recipes[name] for name in ('default', 'lora', 'qlora'))
    assert (default.epochs, default.batch_size, default.lr, default.warmup_steps) == (3, 8, 2e-4, 10)
    assert (default.validation_share, default.micro_batch_tokens, default.patience) == (.1, 8192, 0)
    assert [(o.lr, o.lora_rank, o.lora_alpha) for o in (lora, qlora)] == [(1e-3, 16, 32.), (2e-4, 16, 32.)]


@pytest.mark.parametrize('field', fields(Recipe), ids=lambda f: f.name)
def test_every_field_is_set_from_text_with_its_type(field):
    text = dict(lr='1e-3', weight_decay='0.5', validation_share='0.25', four_bit='true').get(field.name, '3')
    name, value = parse_override(f'{field.name}={text}')
    assert name == field.name and type(value) is field.type
    recipe = make_recipe('lora', **{name: value})
    assert getattr(recipe, name) == value and str(recipe).count('\n') == len(fields(Recipe)) - 1
    line = next(o for o in str(recipe).splitlines() if o.split()[0] == name)
    assert line.split()[1] == str(value) and len(line.split()) > 2 # with its meaning


def test_every_field_has_help_and_range():
    assert list(recipe_fields) == [field.name for field in fields(Recipe)]
    for name, field in recipe_fields.items():
        about = field.metadata
        assert about['help'] and about['low'] <= getattr(Recipe(), name) <= about['high'], name


@pytest.mark.parametrize('text, message', [
    ('lr=20', r'lr must be a number from 0 to 1, got 20\.0$'), ('lr=fast', "lr must be a number, got 'fast'$"),
    ('lr=nan', 'got nan'), ('epochs=2.5', "epochs must be a whole number, got '2.5'$"),
    ('epochs=0', 'epochs must be a whole number from 1 .*, got 0'),
    ('four_bit=yes', "four_bit must be true or false, got 'yes'$"), ('lr', "expected FIELD=VALUE, .*, got 'lr'"),
    ('rate=1', "no field 'rate'; choose one of epochs, batch_size, lr, .*four_bit$"),
    ('frozen_layers=1', "no field 'frozen_layers'")])
def test_a_bad_override_is_one_line_that_quotes_it(text, message):
    with pytest.raises(DistillError, match=message) as e: parse_override(text)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('arguments, message', [
    (dict(name='big'), "no recipe 'big'; choose one of default, article, lora, qlora"),
    (dict(rank=3), "no field 'rank'"), (dict(four_bit=True), 'set lora_rank'), (dict(epochs=True), 'got True'),
    (dict(lora_rank=1.5), 'lora_rank must be .*, got 1.5'),
    (dict(patience=3, validation_share=0), 'patience=3 needs validation pairs; set validation_share')])
def test_recipes_and_fields_that_do_not_exist_or_fit(arguments, message):
    with pytest.raises(DistillError, match=message): make_recipe(**arguments)
