"Options made from settings: help, aliases, what overrides what, and the names in errors."
import argparse, re
from dataclasses import fields, replace

import pytest

from llm_distill.core.core import DistillError, recordings
from llm_distill.run.config import RunConfig, TeacherConfig
from llm_distill.run.options import CommandOptions, add_options, option_flag, read_options, spell_options
from llm_distill.student.recipe import Recipe

kinds = RunConfig, TeacherConfig, CommandOptions
prompt_file = str(recordings/'apartments.toml')
aliases = {'--other': 'ood_prompt', '--tasks': 'questions', '--near': 'dedup_cosine', '--rouge': 'dedup_rouge',
           '--reask': 'max_reasks', '--seed': 'random_seed'}


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser('demo', formatter_class=lambda prog: argparse.HelpFormatter(prog, width=80))
    parser.add_argument('prompt', nargs='?', default=argparse.SUPPRESS)
    add_options(parser, *kinds)
    return parser


def read(parser, *words):
    configs, teacher, command = read_options(parser.parse_args([prompt_file, *map(str, words)]))
    return configs[0]


def test_every_setting_has_an_option_with_help_in_a_group(parser):
    text = parser.format_help()
    groups = dict.fromkeys(about.metadata['group'] for kind in kinds for about in fields(kind))
    assert list(groups) == ['data', 'answers', 'training', 'evaluation', 'teacher', 'output']
    assert all(f'\n{title}:\n' in text for title in groups)
    for about in (about for kind in kinds for about in fields(kind) if about.name != 'prompt'):
        assert re.search(rf'^  {option_flag(about)}\b', text, re.M), about.name
        assert len(about.metadata['help']) <= 80 and not about.metadata['help'].endswith('.')
    assert max(map(len, text.splitlines())) <= 80


def test_no_two_settings_share_an_option():
    flags = [option_flag(about) for kind in kinds for about in fields(kind)]
    assert len(set(flags)) == len(flags) and not set(flags) & set(aliases)


@pytest.mark.parametrize('alias,name', aliases.items())
def test_aliases_work_and_are_hidden(parser, alias, name):
    assert not re.search(rf'{alias}(?![\w-])', parser.format_help())
    assert name in parser.parse_args([alias, '1'])


def test_nothing_is_set_that_the_user_did_not_pass(parser):
    assert vars(parser.parse_args([])) == {}
    assert read(parser) == RunConfig(prompt_file)


def test_options_become_settings(parser, tmp_path):
    (tmp_path/'seeds.txt').write_text('b?\nc?\n')
    (tmp_path/'judge.txt').write_text('{question} {answer}')
    config = read(parser, '--n', 7, '--near', .9, '--no-synthesis', '--seed-question', 'a?', '--seed-questions',
                  tmp_path/'seeds.txt', '--judge', tmp_path/'judge.txt', '--metric', 'rouge_l', '--metric', 'token_f1',
                  '--recipe', 'article', '--set', 'lr=1e-3', '--set', 'patience=2', '--epochs', 7, '--seed', 5)
    assert config == RunConfig(
        prompt_file, n=7, dedup_cosine=.9, synthesis=False, seed_questions=['a?', 'b?', 'c?'], random_seed=5,
        judge='{question} {answer}', metrics=['rouge_l', 'token_f1'],
        recipe=Recipe(epochs=7, batch_size=5, lr=1e-3, warmup_steps=0, patience=2, random_seed=5))
    assert read(parser, '--judge').judge is True


def test_students_are_compared_once_each(parser):
    args = parser.parse_args([prompt_file, '--student', 'a', '--student', 'b', '--student', 'a'])
    assert [config.student for config in read_options(args)[0]] == ['a', 'b']


def test_options_override_a_file(parser, tmp_path):
    first = RunConfig(prompt_file, n=20, seed_questions=['a?'], student='tiny', recipe=dict(lr=1e-3, random_seed=4),
                      metrics=['rouge_l'], judge='{question} {answer}', pairs={'b?': 'c'})
    (tmp_path/'run.toml').write_text(first.to_toml(dict(teacher='gpt', base_url='http://a/v1', concurrency=3)))
    def again(*words): return read_options(parser.parse_args(['--config', str(tmp_path/'run.toml'), *words]))
    (config,), teacher, command = again()
    assert config == first and teacher == TeacherConfig('gpt', 'http://a/v1', concurrency=3)
    (config,), teacher, command = again('--n', '5', '--epochs', '9', '--metric', 'token_f1', '--teacher', 'recorded')
    assert config == replace(first, n=5, metrics=['token_f1'], recipe=replace(first.recipe, epochs=9))
    assert teacher == TeacherConfig('recorded', 'http://a/v1', concurrency=3)
    (config,), _, _ = again('--recipe', 'lora', '--set', 'lr=1e-5')
    assert config.recipe.lora_rank == 16 and config.recipe.lr == 1e-5


@pytest.mark.parametrize('words,message', [
    (['--judge', 'absent.txt'], "cannot read the judge template 'absent.txt'"),
    (['--set', 'lr'], 'FIELD=VALUE'),
    (['--set', 'speed=9'], "no field 'speed'"),
    (['--set', 'lr=1000000'], '1000000'),
    (['--questions', 'absent.csv'], 'absent.csv'),
    (['--seed-questions', 'absent.csv'], 'absent.csv'),
])
def test_a_wrong_option_is_one_line(parser, words, message):
    with pytest.raises(DistillError, match=re.escape(message)) as e: read(parser, *words)
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize('words,message', [
    (['--n', '0'], 'argument --n: must be at least 1, got 0'),
    (['--n', 'many'], "argument --n: must be a whole number, got 'many'"),
    (['--near', '-1'], 'argument --near: must be at least 0, got -1.0'),
    (['--judge-threshold', '6'], 'argument --judge-threshold: must be at most 5, got 6'),
    (['--seed', '4294967296'], 'argument --seed: must be at most 4294967295'),
    (['--rpm', 'nan'], 'argument --rpm: must be at least 0.1, got nan'),
    (['--recipe', 'best'], "argument --recipe: invalid choice: 'best'"),
])
def test_a_wrong_number_is_named_as_the_caller_spelled_the_option(parser, capsys, words, message):
    with pytest.raises(SystemExit): parser.parse_args(words)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize('message,expected', [
    ('min_agreement=0.5 requires several samples; pass samples=2 or more',
     '--min-agreement 0.5 requires several samples; pass --samples 2 or more'),
    ('drop synthesis=False or ood_prompt', 'drop --no-synthesis or --ood-prompt'),
    ('pass price_in and price_out (USD)', 'pass --price-in and --price-out (USD)'),
    ('batch=True needs a cache; pass cache=FILE', '--batch needs a cache; pass --cache FILE'),
    ("the teacher's n_test; 'n_test=3' `n_test`", "the teacher's --n-test; 'n_test=3' `n_test`"),
    ('runs/n_test/run.json, checks.py:n_test, my_n_test', 'runs/n_test/run.json, checks.py:n_test, my_n_test'),
    ('only 3 questions, which leaves none for training with n_test=300; 2 were rejected',
     'only 3 questions, which leaves none for training with --n-test 300; 2 were rejected'),
])
def test_messages_name_options(message, expected): assert spell_options(message) == expected


def test_messages_name_the_alias_that_the_caller_used():
    assert spell_options('ood_prompt, n_test', ['run', '--other=x.toml']) == '--other, --n-test'


def test_judge_does_not_take_the_prompt_that_follows_it(parser, tmp_path):
    template = tmp_path/'judge.txt'
    template.write_text('{question} {answer}')
    def config(*words): return read_options(parser.parse_args([str(word) for word in words]))[0][0]
    assert config('--judge', prompt_file) == RunConfig(prompt_file, judge=True)
    assert config('--judge', template, prompt_file) == config(prompt_file, '--judge', template)
    assert config(prompt_file, '--judge', template).judge == '{question} {answer}'


@pytest.mark.parametrize('text', [
    'http://a/v1 answered 400: n=3 and samples=2 are not known', 'the check f failed: ValueError: n_test=3', 'n=3',
    "the model says 'samples=2'", 'judge.txt, line 3: max_tokens.py:f'])
def test_the_words_of_others_stay_as_they_are(text): assert spell_options(text) == text


def test_our_own_words_become_options():
    assert spell_options('pass samples=2 or more') == 'pass --samples 2 or more'
    assert spell_options('max_tokens must be at least 1') == '--max-tokens must be at least 1'
