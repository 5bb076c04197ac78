"The one call: its arguments, its mistakes, and the forecast of its cost."
import inspect, pydoc, re, shutil
from dataclasses import fields

import pytest

from llm_distill.core.core import DistillError, load_function, read_json, read_jsonl, recordings
from llm_distill.core.prompt_files import load_prompt
from llm_distill.run.config import RunConfig, TeacherConfig
from llm_distill.run.distill import distill, forecast
from llm_distill.run.notebook import Run
from llm_distill.student.recipe import Recipe
from llm_distill.teacher.teacher import Teacher, recorded_teacher

prompt, ood_prompt = load_prompt(recordings/'apartments.toml'), load_prompt(recordings/'pull_requests.toml')


def test_mistakes_are_quoted(tmp_path):
    with pytest.raises(DistillError, match="until must be one of .*, got 'later'"):
        distill(prompt, until='later', run_dir=tmp_path/'a')
    with pytest.raises(DistillError, match='n must be at least 1, got 0'): distill(prompt, n=0, run_dir=tmp_path/'a')
    assert not (tmp_path/'a').exists()
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'thesis.txt').write_text('x')
    with pytest.raises(DistillError, match='is not empty and not a run directory'):
        distill(prompt, recorded_teacher(), run_dir=tmp_path/'mine')
    with pytest.raises(DistillError, match='not a run directory'): Run(tmp_path/'nothing')


def test_its_parameters_are_the_settings():
    names = list(inspect.signature(distill).parameters)
    for kind in RunConfig, TeacherConfig, Recipe: assert {about.name for about in fields(kind)} <= set(names)
    assert names[:4] == ['prompt', 'teacher', 'ood_prompt', 'run_dir'] and 'kwargs' not in names


def test_help_describes_every_parameter():
    text = pydoc.render_doc(distill, renderer=pydoc.plaintext)
    for name in inspect.signature(distill).parameters:
        line = re.search(rf'^    {name}: (.+)$', text, re.M)
        assert line and len(line[1]) > 10, name
    assert 'epochs: passes over the pairs, at most (default: 3)' in text


@pytest.mark.parametrize('settings, message', [
    (dict(speed=9), "distill has no setting 'speed'"),
    (dict(epoch=9), "distill has no setting 'epoch'; expected epochs"),
    (dict(n_tests=9), "expected n_test"),
    (dict(epochs='x'), "epochs must be a whole number from 1 to 1e+06, got 'x'"),
    (dict(n='x'), "n must be a whole number, got 'x'"),
    (dict(recipe='best'), "no recipe 'best'"),
    (dict(recipe=dict(epoch=3)), 'unknown setting `epoch`; expected `epochs`'),
    (dict(recipe=3), "no recipe '3'"),
    (dict(student=3), 'student must be a text, got 3'),
    (dict(check=3), 'got 3'),
    (dict(metrics=3), 'metrics must be a list'),
    (dict(pairs=3), 'rows are a file'),
    (dict(pairs='gone.jsonl'), 'gone.jsonl'),
    (dict(judge='gone.txt'), "cannot read the judge template 'gone.txt'"),
    (dict(teacher=3), 'a teacher is a Teacher or the name of a model, got 3'),
    (dict(teacher='recorded', budget='x'), "budget must be a number, got 'x'"),
    (dict(budget=2.), 'budget cannot be changed for a Teacher object'),
    (dict(teacher='recorded:gone.jsonl'), 'gone.jsonl'),
    (dict(prompt=3), 'a seed prompt is a SeedPrompt, a path or a list of chat messages, got 3'),
    (dict(prompt='gone.toml'), 'gone.toml'),
])
def test_a_mistake_is_one_line_that_names_it(settings, message, tmp_path):
    call = dict(prompt=prompt, teacher=recorded_teacher(), run_dir=tmp_path/'run') | settings
    with pytest.raises(DistillError, match=re.escape(message)) as e: distill(**call)
    assert len(str(e.value).splitlines()) == 1
    assert not (tmp_path/'run'/'questions.jsonl').exists()


@pytest.fixture
def until_config(monkeypatch):
    "Make `distill` return the configuration, teacher and directory of its run without running it."
    def run(self, teacher, names, connection=None): return self.config, teacher, self.path, connection
    monkeypatch.setattr(Run, 'run', run)


def test_the_calls_one_would_write(until_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('OPENAI_API_KEY', 'not sent anywhere')
    shutil.copy(recordings/'reminders.toml', 'triage.toml')
    config, teacher, path, connection = distill('triage.toml', teacher='gpt-5.5', student='smollm2', epochs=5)
    assert (config.student, config.recipe.epochs, teacher.model, str(path)) == ('smollm2', 5, 'gpt-5.5', 'runs/triage')
    assert connection == dict(teacher='gpt-5.5', base_url=None, cache=None)
    config, teacher, path, connection = distill(prompt, recorded_teacher())
    assert teacher.model == 'recorded' and connection is None and str(path) == 'runs/distill'
    (config, teacher, *_) = distill(prompt, 'ollama:a-model', cache='c.sqlite', concurrency=3)
    assert (teacher.model, teacher.concurrency, str(teacher.cache.path)) == ('a-model', 3, 'c.sqlite')
    pairs = [dict(question='Why?', answer='Because.')]
    calls = (dict(recipe='lora'), dict(recipe=dict(epochs=2), lr=1e-3), dict(seed_question='And when?'),
             dict(pairs=pairs), dict(questions='How?'.split('|')), dict(metric='rouge_l'), dict(judge=True))
    configs = [distill(prompt, 'recorded', run_dir=f'runs/{i}', **call)[0] for i, call in enumerate(calls)]
    assert configs[0].recipe.lora_rank == 16
    assert (configs[1].recipe.epochs, configs[1].recipe.lr) == (2, 1e-3)
    assert configs[2].seed_questions == ['And when?'] and configs[3].pairs == {'Why?': 'Because.'}
    assert configs[4].questions == ['How?'] and configs[5].metrics == ['rouge_l']


def test_one_random_seed_is_that_of_data_and_training(until_config, tmp_path):
    def seeds(**settings):
        config = distill(prompt, 'recorded', run_dir=tmp_path/'run', **settings)[0]
        return config.random_seed, config.recipe.random_seed
    assert seeds() == (0, 0) and seeds(random_seed=3) == (3, 3)
    assert seeds(random_seed=3, recipe=dict(random_seed=1)) == (3, 1)
    assert seeds(random_seed=3, recipe='article') == (3, 3)


def has_no_digits(question, answer): return not any(map(str.isdigit, answer))
def asks_again(question, predicted, expected): return float(predicted != question)


def test_functions_of_a_script_are_stored_and_found_again(tiny, tmp_path):
    run = distill(prompt, 'recorded', run_dir=tmp_path/'run', quiet=True, student=tiny, n=8, n_test=3, epochs=1,
                  check=has_no_digits, metrics=[asks_again, 'rouge_l'])
    assert run.record['config']['check'] == 'functions/has_no_digits.py:has_no_digits'
    assert run.record['config']['metrics'] == ['functions/asks_again.py:asks_again', 'rouge_l']
    assert {row['main'] for row in read_json(run.path/'scores.json')} == {'asks_again'}
    before = read_json(run.path/'run.json')['stages']
    run.path.rename(tmp_path/'moved')
    again = Run(tmp_path/'moved', quiet=True)
    again.run(recorded_teacher())
    assert read_json(again.path/'run.json')['stages'] == before


def test_a_function_that_cannot_be_stored_is_used_and_asked_for_again(tiny, tmp_path):
    call = dict(run_dir=tmp_path/'run', quiet=True, student=tiny, n=8, n_test=3, epochs=1)
    words = 0
    def check(question, answer): return len(answer) > words
    run = distill(prompt, 'recorded', until='label', check=check, **call)
    assert run.record['config']['check'].startswith('call:check@') and not (run.path/'functions').exists()
    before = (run.path/'train.jsonl').stat().st_mtime_ns
    Run(run.path, quiet=True).run(recorded_teacher(), ['synthesize', 'label']) # there is nothing to check
    assert (run.path/'train.jsonl').stat().st_mtime_ns == before
    (run.path/'test.jsonl').unlink()
    with pytest.raises(DistillError, match='pass it again as check='):
        Run(run.path, quiet=True).run(recorded_teacher(), ['label'])
    distill(prompt, 'recorded', until='label', check=check, **call)
    assert (run.path/'test.jsonl').exists()


def test_two_functions_of_one_name_are_refused(tmp_path):
    (tmp_path/'mine.py').write_text('def has_no_digits(predicted, expected): return 1.\n')
    metric = load_function(f'{tmp_path}/mine.py:has_no_digits')
    with pytest.raises(DistillError, match='two functions have the name has_no_digits'):
        distill(prompt, 'recorded', run_dir=tmp_path/'run', check=has_no_digits, metrics=metric)


def test_paths_and_objects_are_the_same_run(tiny, tmp_path):
    runs = [distill(p, recorded_teacher(), o, tmp_path/name, 'label', quiet=True, student=tiny, n=8, n_test=3)
            for name, p, o in (('objects', prompt, ood_prompt),
                               ('paths', recordings/'apartments.toml', str(recordings/'pull_requests.toml')))]
    assert runs[0].config == runs[1].config
    assert len({(run.path/'train.jsonl').read_bytes() for run in runs}) == 1


def test_the_default_teacher_needs_a_key(tmp_path):
    with pytest.raises(DistillError, match='OPENAI_API_KEY'): distill(prompt, run_dir=tmp_path/'run')


def plan(**kwargs):
    teacher = Teacher('homemade', 'http://127.0.0.1:9/v1', price_in=1, price_out=4, progress=False)
    return forecast(RunConfig(prompt, **kwargs), teacher)


def test_the_forecast_counts_requests():
    base = plan(n=100, n_test=20)
    assert {k: p.requests for k, p in base.items()} == dict(synthesis=12, labeling=120, evaluation=20)
    both = plan(n=100, n_test=20, ood_prompt=ood_prompt)
    assert {k: p.requests for k, p in both.items()} == dict(synthesis=14, labeling=140, evaluation=40)
    assert plan(n=100, n_test=20, samples=3, judge=True)['labeling'].requests == 480
    own = plan(n=100, n_test=20, questions=['a'], pairs={'b': 'c'})
    assert (own['synthesis'].requests, own['labeling'].requests) == (12, 119)
    assert plan(n=100, n_test=20, questions=['a'], synthesis=False)['synthesis'].requests == 0


def test_the_forecast_of_a_recorded_run_is_about_right(tiny, tmp_path):
    teacher = recorded_teacher()
    config = RunConfig(prompt, n=30, n_test=10, student=tiny)
    plans = forecast(config, teacher)
    Run(tmp_path/'run', config, quiet=True).run(teacher, ['synthesize', 'label'])
    assert len(read_jsonl(tmp_path/'run'/'train.jsonl')) == 30
    assert plans['labeling'].requests == teacher.usage['labeling'].requests
    estimated, counted = plans['labeling'].prompt_tokens, teacher.usage['labeling'].prompt_tokens
    assert .7 < estimated/counted < 1.4
