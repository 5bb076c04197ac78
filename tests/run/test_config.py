"The configuration of a run: validation, round trips through JSON and TOML, and the teacher's settings."
import json, os, re, subprocess, sys
from dataclasses import asdict, fields, replace

import pytest
from hypothesis import given, settings, strategies as st

from llm_distill.core.core import DistillError, home_dir, recordings
from llm_distill.core.prompt import Example, SeedPrompt
from llm_distill.core.prompt_files import load_prompt
from llm_distill.run.config import NoTeacher, RunConfig, TeacherConfig, read_toml
from llm_distill.student.recipe import Recipe

prompt, ood_prompt = load_prompt(recordings/'apartments.toml'), load_prompt(recordings/'pull_requests.toml')
odd_texts = st.one_of(st.text(), st.sampled_from(['\r\n', '"""', "'''", '\\', '[a]', '= #', '\x00\x7f', 'ä\u2028']))
contents = st.text(st.characters(codec='utf-8', exclude_characters='\0')).filter(str.strip) # of a message
prompts = st.builds(SeedPrompt, contents, st.lists(st.builds(Example, contents, contents), max_size=2).map(tuple),
                    contents, form=st.just('chat'))
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(st.none() | st.booleans() | numbers | odd_texts,
                           lambda o: st.lists(o, max_size=3) | st.dictionaries(odd_texts, o, max_size=3), max_leaves=8)
configs = st.builds(
    RunConfig, prompts, ood_prompt=st.none() | prompts, n=st.integers(1, 9),
    max_candidates=st.none() | st.integers(1, 9),
    seed_questions=st.lists(odd_texts, max_size=3), questions=st.lists(odd_texts, max_size=3),
    pairs=st.dictionaries(odd_texts, odd_texts.filter(bool), max_size=3), synthesis=st.booleans(),
    dedup_cosine=st.floats(0, 2),
    check=st.none() | odd_texts.map('regex:{}'.format) | st.dictionaries(odd_texts, json_values, max_size=3),
    judge=st.none() | st.booleans() | odd_texts, student=odd_texts, metrics=st.lists(odd_texts, max_size=2),
    filters=st.lists(odd_texts, max_size=2), max_tokens=st.integers(1, 9), temperature=st.none() | st.floats(0, 2),
    student_format=st.sampled_from(['auto', 'text', 'chat']), encoder=st.none() | odd_texts,
    recipe=st.builds(Recipe, epochs=st.integers(1, 9), lr=st.floats(0, 1), four_bit=st.just(False)))


# Validation

@pytest.mark.parametrize('message,kwargs', [
    ('min_agreement=0.5 requires several samples', dict(min_agreement=.5)),
    ('judge_threshold must be at most 5, got 9', dict(judge=True, judge_threshold=9)),
    ('has no {question}', dict(judge='no fields')),
    ('has a line with `Q:` or `A:`', dict(seed_questions=['a\nA: b'])),
    ("a seed question is a text, got ' '", dict(seed_questions=[' '])),
    ('max_tokens must be at least 1, got 0', dict(max_tokens=0)),
    ('temperature must be at most 2, got 3', dict(temperature=3)),
    ('student_format must be auto, text, chat', dict(student_format='json')),
    ("unknown filter 'no-lenght'", dict(filters='no-lenght')),
    ('encoder must be a text, got 3', dict(encoder=3)),
    ('pass it again from Python', dict(check='call:short@1')),
    ('pass it again from Python', dict(metrics=['call:short@1'])),
    ('would not be out of distribution', dict(ood_prompt=ood_prompt, seed_questions=[ood_prompt.question])),
    ('would not be out of distribution', dict(ood_prompt=prompt)),
    ('ood_prompt requires synthesis', dict(ood_prompt=ood_prompt, synthesis=False)),
    ('n must be at least 1, got 0', dict(n=0)),
    ('n_test must be at least 1, got 0', dict(n_test=0)),
    ('n must be a whole number, got 1.5', dict(n=1.5)),
    ('random_seed must be at most 4294967295', dict(random_seed=2**32)),
    ('dedup_rouge must be at least 0.01, got 0', dict(dedup_rouge=0)),
    ('samples must be at least 1', dict(samples=0)),
    ('max_reasks must be at least 0', dict(max_reasks=-1)),
    ("unknown metric 'beauty'", dict(metrics='beauty')),
    ("'step_count' cannot be the main metric", dict(metrics=['step_count'])),
    ('student must be a text, got 3', dict(student=3)),
    ('questions must be a list of texts', dict(questions=[3])),
    ("invalid regular expression '('", dict(check='regex:(')),
])
def test_settings_that_make_no_sense_are_refused_first(message, kwargs):
    with pytest.raises(DistillError, match=re.escape(message)) as e: RunConfig(prompt, **kwargs).validate()
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize('message,kwargs', [
    ('or a function of question and answer, got 3', dict(check=3)),
    ('metrics must be a list of names, FILE.py:FUNCTION or functions, got 3', dict(metrics=3)),
    ('two answers', dict(pairs=[dict(question='Why?', answer=a) for a in 'ab'])),
    ("no recipe 'best'", dict(recipe='best')),
])
def test_values_that_cannot_be_stored_are_refused_at_once(message, kwargs):
    with pytest.raises(DistillError, match=re.escape(message)): RunConfig(prompt, **kwargs)


def test_a_run_without_a_prompt_is_refused():
    with pytest.raises(DistillError, match='no seed prompt'): RunConfig().validate()


# JSON and TOML

@settings(max_examples=150, deadline=None, derandomize=True)
@given(configs)
def test_json_gives_the_same_configuration_back(config):
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@settings(max_examples=150, deadline=None, derandomize=True)
@given(configs, st.none() | odd_texts)
def test_toml_gives_the_same_configuration_back(tmp_path_factory, config, base_url):
    file = tmp_path_factory.getbasetemp()/'config.toml'
    teacher = TeacherConfig('recorded', base_url)
    file.write_bytes(config.to_toml(teacher.connection()).encode())
    values, connection = read_toml(file)
    assert RunConfig.from_dict(values) == config
    assert TeacherConfig(**connection).connection() == teacher.connection()


def test_missing_settings_have_their_defaults():
    config = RunConfig(prompt)
    assert RunConfig.from_dict(dict(prompt=asdict(prompt))) == config
    assert RunConfig.from_dict(config.to_dict() | dict(n=3)) == replace(config, n=3)


@pytest.mark.parametrize('text,message', [
    ('n_tests = 5', 'unknown setting `n_tests`; expected `n_test`'),
    ('n = 0', '`n` must be at least 1, got 0'),
    ('n = "many"', "`n` must be a whole number, got 'many'"),
    ('n = true', '`n` must be a whole number, got True'),
    ('metrics = 3', '`metrics` must be a list, got 3'),
    ('n = ', 'is not valid TOML'),
    ('n = 1\nn = 2', 'is not valid TOML'),
    ('connection = 3', '`connection` must be a table'),
    ('[connection]\napi_key = "sk-secret"', 'unknown setting `api_key`'),
    ('[connection]\nconcurrency = 0', '`concurrency` must be at least 1, got 0'),
    ('[teacher]\nmodel = "x"', 'unknown setting `teacher`'),
    (b'\xff\xfe', 'is not valid TOML'),
    (None, 'cannot read'),
])
def test_a_mistake_in_a_file_is_one_line_with_its_name(tmp_path, text, message):
    file = tmp_path/'mine.toml'
    if text is not None: file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DistillError, match=re.escape(message)) as e: read_toml(file)
    assert str(file) in str(e.value) and len(str(e.value).splitlines()) == 1
    assert 'sk-secret' not in str(e.value)


def test_people_may_write_short_forms(tmp_path):
    (tmp_path/'rows.txt').write_text('Why?\n')
    text = f'''prompt = "{recordings/'apartments.toml'}"
        questions = "{tmp_path/'rows.txt'}"
        metrics = "rouge_l"
        recipe = "lora"'''
    (tmp_path/'mine.toml').write_text(text)
    config = RunConfig(**read_toml(tmp_path/'mine.toml')[0])
    config.validate()
    assert config == RunConfig(prompt, questions=['Why?'], metrics=['rouge_l'], recipe='lora')


def test_paths_of_functions_are_relative_to_the_file(tmp_path, monkeypatch):
    (tmp_path/'run'/'functions').mkdir(parents=True)
    (tmp_path/'run'/'functions'/'short.py').write_text('def short(predicted, expected): return 1\n')
    config = RunConfig(prompt, metrics=[f'{tmp_path}/run/functions/short.py:short', 'rouge_l'], check='/a/b.py:c')
    text = config.to_toml(folder=tmp_path/'run')
    assert '"functions/short.py:short"' in text and '"/a/b.py:c"' in text
    (tmp_path/'run').rename(tmp_path/'moved')
    (tmp_path/'moved'/'run.toml').write_text(text)
    monkeypatch.chdir('/')
    values, _ = read_toml(tmp_path/'moved'/'run.toml')
    assert values['metrics'] == [f'{tmp_path}/moved/functions/short.py:short', 'rouge_l']


# What a step depends on

def test_a_new_setting_at_its_default_changes_no_hash():
    names = 'n', 'filters', 'max_tokens', 'temperature', 'encoder', 'student_format', 'groups'
    assert RunConfig(prompt).dependencies(*names) == dict(n=200)
    changed = RunConfig(prompt, filters='no-length', max_tokens=9, temperature=0, encoder='e', student_format='chat')
    assert changed.dependencies(*names) == dict(n=200, filters=['no-length'], max_tokens=9, temperature=0, encoder='e',
                                                student_format='chat')


def test_an_older_setting_always_counts():
    older = {about.name for about in fields(RunConfig) if not about.metadata['added_later']}
    assert set(RunConfig(prompt).dependencies(*older)) == older
    assert {'n', 'check', 'recipe', 'metrics', 'judge'} <= older


# Judge

def test_the_template_of_a_judge_is_read_from_its_file(tmp_path, monkeypatch):
    (tmp_path/'judge.txt').write_text('Is {answer} right for {question}?')
    monkeypatch.chdir(tmp_path)
    for value in 'judge.txt', tmp_path/'judge.txt', 'Is {answer} right for {question}?':
        assert RunConfig(prompt, judge=value).judge == 'Is {answer} right for {question}?'
    assert RunConfig(prompt, judge=True).judge is True


# The teacher's settings

def test_the_connection_holds_no_secret_and_only_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    remote = TeacherConfig('gpt', 'https://me:secret@llm.example.org/v1', 'replies.sqlite', budget=5)
    expected = dict(teacher='gpt', base_url='https://llm.example.org/v1', cache=f'{tmp_path}/replies.sqlite')
    assert remote.connection() == expected
    replay = TeacherConfig('recorded:mine.jsonl').connection()
    assert replay == dict(teacher=f'recorded:{tmp_path}/mine.jsonl', base_url=None, cache=None)
    assert TeacherConfig().connection() == dict(teacher=None, base_url=None, cache=None)


def test_the_teacher_gets_its_settings(tmp_path):
    teacher = TeacherConfig('big', 'http://127.0.0.1:9/v1', concurrency=3, rpm=60, tpm=1000).connect(progress=False)
    assert (teacher.model, teacher.concurrency, teacher.throttle.rpm, teacher.throttle.tpm) == ('big', 3, 60, 1000)
    assert str(teacher.cache.path) == str(home_dir()/'teacher.sqlite')
    replay = TeacherConfig('recorded', 'http://127.0.0.1:9/v1', tmp_path/'c.sqlite').connect()
    assert replay.base_url.startswith('recorded:') and replay.cache.path is None
    not_a_recording = TeacherConfig('recorded-model', 'http://127.0.0.1:9/v1').connect(progress=False)
    assert not_a_recording.base_url == 'http://127.0.0.1:9/v1'


def test_a_vendor_brings_address_and_key(monkeypatch):
    monkeypatch.setenv('GROQ_API_KEY', 'secret')
    teacher = TeacherConfig('groq:a-model').connect(progress=False)
    assert (teacher.model, teacher.base_url) == ('a-model', 'https://api.groq.com/openai/v1')
    assert TeacherConfig('groq:a-model').connection()['teacher'] == 'groq:a-model'
    elsewhere = TeacherConfig('groq:a-model', 'http://127.0.0.1:9/v1').connect(progress=False)
    assert (elsewhere.model, elsewhere.base_url) == ('groq:a-model', 'http://127.0.0.1:9/v1')


def test_keys_may_come_from_a_file_and_go_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.delenv('XAI_API_KEY', raising=False)
    monkeypatch.setenv('OPENAI_API_KEY', 'set')
    (tmp_path/'.env').write_text('XAI_API_KEY=xai-from-file\nOPENAI_API_KEY=from-file\n')
    config = TeacherConfig('xai:a-model', env_file=tmp_path/'.env')
    try:
        assert config.connect(progress=False).base_url == 'https://api.x.ai/v1'
        assert os.environ['OPENAI_API_KEY'] == 'set'
        assert 'from-file' not in str(config.connection())
    finally: os.environ.pop('XAI_API_KEY', None)


def test_a_run_without_a_teacher_asks_nobody():
    none = TeacherConfig('none').connect(progress=False)
    assert isinstance(none, NoTeacher) and none.ask([], 'labeling') == []
    with pytest.raises(DistillError, match='2 prompts need one'): none.ask(['a', 'b'], 'labeling')


def test_batches_need_an_endpoint():
    with pytest.raises(DistillError, match='batch=True needs an endpoint'):
        TeacherConfig('recorded', batch=True).connect()


# Imports

heavy = ('torch', 'transformers', 'datasets', 'matplotlib', 'openai', 'scipy', 'jinja2', 'rich', 'numpy', 'psutil',
         'tomli_w', 'huggingface_hub', 'sentence_transformers', 'jsonschema')

@pytest.mark.parametrize('module', ['llm_distill.cli', 'llm_distill.client', 'llm_distill.run.config'])
def test_heavy_modules_are_imported_when_they_are_used(module):
    code = f'import sys; import {module}; print(*sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & set(heavy) == set()
