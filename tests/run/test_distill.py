"The one call: its arguments, its mistakes, and the forecast of its cost."
import inspect

import pytest

from llm_distill.core.core import DistillError, read_jsonl, recordings
from llm_distill.core.prompt_files import load_prompt
from llm_distill.run.config import RunConfig
from llm_distill.run.distill import distill, forecast
from llm_distill.run.run import Run
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
    with pytest.raises(TypeError, match='speed'): distill(prompt, recorded_teacher(), run_dir=tmp_path/'a', speed=9)


def test_its_parameters_are_the_settings():
    names = list(inspect.signature(distill).parameters)
    assert set(inspect.signature(RunConfig).parameters) <= set(names)
    assert names[:4] == ['prompt', 'teacher', 'ood_prompt', 'run_dir'] and 'kwargs' not in names


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
