"The step cache: what is skipped and repeated, what a kill leaves, the account, and the lock."
import os, subprocess, sys
from dataclasses import asdict

import pytest
from filelock import FileLock

from llm_distill.core.core import DistillError, read_json, write_json
from llm_distill.run.steps import RunSteps, StepResult, process_count, process_rank
from llm_distill.teacher.endpoint import Usage


class Copy:
    "A step that copies a file and counts its calls."
    def __init__(self, run): self.run, self.calls = run, 0
    def work(self):
        self.calls += 1
        (self.run.path/'out.txt').write_text((self.run.path/'in.txt').read_text())
        return f'call {self.calls}'
    def go(self, depends=None, **kwargs):
        arguments = dict(depends=depends, reads=['in.txt'], writes=['out.txt'], work=self.work) | kwargs
        return self.run.step('copy', **arguments)


@pytest.fixture
def copy(tmp_path):
    run = RunSteps(tmp_path/'run', quiet=True)
    run.save()
    (run.path/'in.txt').write_text('one')
    return Copy(run)


def test_a_step_is_repeated_only_if_something_changed(copy):
    assert copy.go() and not copy.go()
    assert copy.go(dict(n=1)) and not copy.go(dict(n=1))
    (copy.run.path/'in.txt').write_text('two')
    assert copy.go(dict(n=1)) and (copy.run.path/'out.txt').read_text() == 'two'
    (copy.run.path/'out.txt').unlink()
    assert copy.go(dict(n=1)) and copy.calls == 4


def test_another_process_sees_what_is_done(copy):
    copy.go()
    again = Copy(RunSteps(copy.run.path, quiet=True))
    assert again.run.done('copy') and not again.go()


def test_a_step_that_was_killed_is_not_done(copy):
    def killed(): raise KeyboardInterrupt
    copy.go()
    (copy.run.path/'in.txt').write_text('two')
    with pytest.raises(KeyboardInterrupt): copy.go(work=killed)
    again = Copy(RunSteps(copy.run.path, quiet=True))
    assert not again.run.done('copy') and again.go() and again.run.done('copy')


def test_an_incomplete_step_is_repeated(copy, capsys):
    copy.run.quiet = False
    assert copy.go(work=lambda: StepResult('2 got no reply', complete=False)) and not copy.run.done('copy')
    assert 'copy: done in 0 s; 2 got no reply' in capsys.readouterr().err
    assert copy.go() and copy.run.done('copy') and not copy.go()


def test_a_step_may_add_to_what_it_reads(copy):
    def append():
        with (copy.run.path/'in.txt').open('a') as f: f.write('more')
    assert copy.go(work=append, writes=[]) and not copy.go(work=append, writes=[])


def test_a_missing_file_names_the_command(copy):
    with pytest.raises(DistillError) as e: copy.go(reads=['train.jsonl'])
    path = copy.run.path
    assert str(e.value) == f"{path/'train.jsonl'} is missing; run 'llm-distill label {path}' first"


def test_a_stage_of_several_steps_is_done_after_the_last_one(copy):
    for name in ('evaluate echo', 'evaluate teacher'): copy.run.step(name, None, [], [], lambda: None)
    assert not copy.run.done('evaluate')
    copy.run.step('evaluate scores', None, [], [], lambda: None)
    assert copy.run.done('evaluate')
    copy.run.step('evaluate teacher', 1, [], [], lambda: StepResult(complete=False))
    assert not copy.run.done('evaluate')


def test_a_directory_with_other_files_is_left_alone(tmp_path):
    (tmp_path/'thesis.txt').write_text('mine')
    with pytest.raises(DistillError, match='is not empty and not a run directory'): RunSteps(tmp_path)
    (tmp_path/'thesis.txt').rename(tmp_path/'.thesis') # hidden files do not count
    assert RunSteps(tmp_path).record['stages'] == {}


def test_a_record_may_lack_sections(tmp_path):
    write_json(tmp_path/'run.json', dict(format=2, config={}))
    assert RunSteps(tmp_path).record['usage'] == {} and not RunSteps(tmp_path).done('label')


class Account:
    "Stands for a teacher."
    def __init__(self): self.usage = dict(labeling=Usage(requests=5, cost=1.))


def test_usage_adds_up_over_calls_and_counts_nothing_twice(tmp_path):
    teacher = Account()
    run = RunSteps(tmp_path, quiet=True)
    run.start_usage(teacher)
    teacher.usage = dict(labeling=Usage(requests=8, cost=1.5), synthesis=Usage(cached=2))
    for _ in range(2): run.record_usage()
    run.save()
    assert run.record['usage'] == dict(labeling=asdict(Usage(requests=3, cost=.5)), synthesis=asdict(Usage(cached=2)))
    again, other = RunSteps(tmp_path, quiet=True), Account()
    again.start_usage(other)
    other.usage = dict(labeling=Usage(requests=6, cost=1.))
    again.record_usage()
    assert again.record['usage']['labeling']['requests'] == 4
    again.start_usage(None)
    again.record_usage()
    assert again.record['usage']['labeling']['requests'] == 4


def test_the_lock_reloads_the_record_and_keeps_the_settings(copy):
    other = RunSteps(copy.run.path, quiet=True)
    other.record['config'] = dict(n=3)
    copy.go()
    with other.locked():
        assert other.done('copy') and other.record['config'] == dict(n=3)
        with pytest.raises(DistillError, match='another process is working in'):
            with copy.run.locked(): pass


def test_the_lock_is_released_after_an_error(copy):
    with pytest.raises(KeyError):
        with copy.run.locked(): raise KeyError
    with FileLock(copy.run.path/'.lock', timeout=0): pass


def test_of_several_processes_only_the_first_one_writes(tmp_path):
    code = ('import sys; from llm_distill.run.steps import RunSteps; run = RunSteps(sys.argv[1]); run.say("hello")\n'
            'with run.locked(): run.save()')
    for rank in '1', '0':
        env = os.environ | dict(RANK=rank, WORLD_SIZE='2')
        done = subprocess.run([sys.executable, '-c', code, tmp_path/'run'], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        is_first = rank == '0'
        assert ('hello' in done.stderr) == is_first and (tmp_path/'run'/'run.json').exists() == is_first
    assert read_json(tmp_path/'run'/'run.json')['format'] == 2


@pytest.mark.parametrize('variables,expected', [
    ({}, (1, 0)), (dict(WORLD_SIZE='2'), (1, 0)), (dict(RANK='1', WORLD_SIZE='2'), (2, 1)),
    (dict(RANK='0', WORLD_SIZE='1'), (1, 0))])
def test_the_launcher_says_how_many_processes_there_are(monkeypatch, variables, expected):
    for name in ('RANK', 'WORLD_SIZE'): monkeypatch.delenv(name, raising=False)
    for name, value in variables.items(): monkeypatch.setenv(name, value)
    assert (process_count(), process_rank()) == expected


def test_a_repeated_step_makes_the_later_stages_outdated_until_they_are_current_again(tmp_path):
    run = RunSteps(tmp_path/'run', quiet=True)
    run.save()
    names = 'label', 'finetune', 'evaluate scores', 'results'
    for name in names: (run.path/f'{name}.txt').write_text('')
    def go(name, depends): return run.step(name, depends, [], [f'{name}.txt'], lambda: None)
    for name in names: go(name, 1)
    assert go('label', 2) and run.done('label')
    assert [run.done(stage) for stage in ('finetune', 'evaluate', 'results')] == [False]*3
    with pytest.raises(DistillError, match="run 'llm-distill evaluate .*run' first"): run.check_current()
    assert not go('finetune', 1) and run.done('finetune') # the same as before
    assert go('evaluate scores', 2) and run.done('evaluate')
    run.check_current()
    assert not run.done('results') and not go('results', 1) and run.done('results')
