"Checkpoints: resume after a kill, a full disk, checkpoints of other runs and other trainers."
import errno, os, shutil, signal, subprocess, sys
from dataclasses import replace
from pathlib import Path

import pytest

from llm_distill.core.core import DistillError, read_jsonl
from llm_distill.student import training
from llm_distill.student.checkpoints import load_whole_model
from llm_distill.student.models import tiny_student
from llm_distill.student.recipe import Recipe
from llm_distill.student.training import finetune
from training_data import HARD, PAIRS, QUICK, same_weights


def fill_disk(monkeypatch, errors):
    "Saving a model raises `errors[n]` in its n-th call."
    from transformers import PreTrainedModel
    save, calls = PreTrainedModel.save_pretrained, []

    def full(self, path, *args, **kwargs):
        calls.append(1)
        save(self, path, *args, **kwargs)
        if len(calls) in errors: raise errors[len(calls)]

    monkeypatch.setattr(PreTrainedModel, 'save_pretrained', full)


@pytest.mark.parametrize('error', [
    OSError(errno.ENOSPC, 'No space left on device'), OSError(errno.EDQUOT, 'Quota'),
    RuntimeError('Error while serializing: I/O error: No space left on device (os error 28)')], ids=str)
def test_a_full_disk_costs_a_checkpoint_and_a_line(tmp_path, monkeypatch, capsys, error):
    tiny, recipe = tiny_student(), replace(QUICK, epochs=3)
    whole = finetune(tiny, PAIRS, recipe, tmp_path/'a', progress=False)
    fill_disk(monkeypatch, {2: error})
    capsys.readouterr()
    new = finetune(tiny, PAIRS, recipe, tmp_path/'b', progress=False)
    lines = [o for o in capsys.readouterr().out.splitlines() if 'space' in o]
    message = 'the checkpoint of step 4 is not written, training continues without it'
    assert lines == [f'no space left in {tmp_path/"b"}: {message}']
    assert same_weights(whole, new)
    assert {o.name for o in (tmp_path/'b').iterdir()} == {'checkpoint-6', 'finetuning.json', 'losses.jsonl'}


def test_the_best_epoch_is_one_that_the_disk_had_room_for(tmp_path, monkeypatch):
    "The second epoch is better than the first, but was not written."
    sums = iter([3., 2., 5., 5.])
    monkeypatch.setattr(training, 'sum_losses', lambda *args, **kwargs: (next(sums), 1))
    fill_disk(monkeypatch, {2: OSError(errno.ENOSPC, 'full')})
    finetune(tiny_student(), HARD[:10], Recipe(epochs=9, patience=2), tmp_path, progress=False)
    rows = read_jsonl(tmp_path/'losses.jsonl')
    assert rows[-1] == dict(kept_epoch=1) and len(rows) == 4*2 + 4 + 1


def test_other_errors_of_saving_are_not_swallowed(tmp_path, monkeypatch):
    fill_disk(monkeypatch, {1: OSError(errno.EACCES, 'Permission denied')})
    with pytest.raises(OSError, match='Permission'): finetune(tiny_student(), PAIRS, QUICK, tmp_path, progress=False)
    assert not list(tmp_path.glob('checkpoint-*')) and not (tmp_path/'unfinished').exists()


# A run that was killed

RUN = '''
import os, signal, sys
import torch
from families import build
from llm_distill.student import training
from training_data import EARLY, HARD # stops after the sixth epoch, the fourth is the best; five steps per epoch
work, step, where = sys.argv[1], int(sys.argv[2]), sys.argv[3]
student = build('opt') # has dropout: its random numbers must be the same, too
loss, save, calls = training.answer_loss, torch.save, 0

def killing_loss(model, *args, **kwargs):
    global calls
    calls += model.training
    if where == 'step' and calls == step and model.training: os.kill(os.getpid(), signal.SIGKILL)
    return loss(model, *args, **kwargs)

def killing_save(value, path, *args, **kwargs):
    if where == 'checkpoint' and calls >= step and 'optimizer' in str(path): os.kill(os.getpid(), signal.SIGKILL)
    return save(value, path, *args, **kwargs)

training.answer_loss, torch.save = killing_loss, killing_save
new = training.finetune(student, HARD, EARLY, work, progress=False)
print('trained', calls)
new.save(work + '/student')
'''
folders = Path(__file__).parent, Path(__file__).parents[1], Path(__file__).parents[2]


def run(work, step=0, where='never'):
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join(map(str, folders)))
    command = [sys.executable, '-c', RUN, str(work), str(step), where]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    work = tmp_path_factory.mktemp('whole')
    done = run(work)
    assert done.returncode == 0, done.stderr
    return work, done.stdout


@pytest.mark.parametrize('step, where, left', [(13, 'step', 20), (20, 'checkpoint', 15), (28, 'step', 5)])
def test_a_killed_run_ends_in_the_same_weights(uninterrupted, tmp_path, step, where, left):
    "Killed in the third epoch, while the checkpoint of the best epoch was written, and in the last epoch."
    whole, output = uninterrupted
    assert 'trained 30' in output and 'epoch 4 is kept' in output
    assert run(tmp_path, step, where).returncode == -signal.SIGKILL
    assert not (tmp_path/'student').exists() and len(list(tmp_path.glob('checkpoint-*'))) == 1 + (step > 25)
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert f'trained {left}' in done.stdout # it resumed
    for name in 'student/model.safetensors', 'losses.jsonl':
        assert (tmp_path/name).read_bytes() == (whole/name).read_bytes(), name
    assert 'trained 0' in run(tmp_path).stdout # nothing is left to do
    assert (tmp_path/'student/model.safetensors').read_bytes() == (whole/'student/model.safetensors').read_bytes()


def test_a_checkpoint_of_another_run_is_not_used(tmp_path):
    tiny = tiny_student()
    finetune(tiny, PAIRS, QUICK, tmp_path/'a', progress=False)
    other_student = tiny_student(random_seed=1)
    for change in dict(recipe=replace(QUICK, lr=2e-3)), dict(pairs=PAIRS[:3]), dict(student=other_student):
        args = dict(student=tiny, pairs=PAIRS, recipe=QUICK) | change
        shutil.copytree(tmp_path/'a', tmp_path/'b')
        here, fresh = (finetune(**args, work_dir=tmp_path/o, progress=False) for o in 'bc')
        assert same_weights(here, fresh)
        losses = [(tmp_path/o/'losses.jsonl').read_text() for o in 'abc']
        assert losses[1] == losses[2] != losses[0]
        for o in 'bc': shutil.rmtree(tmp_path/o)


def test_checkpoints_of_another_trainer_are_left_alone(tmp_path, capsys):
    other = tmp_path/'checkpoint-500'
    other.mkdir()
    (other/'trainer_state.json').write_text('{}')
    with pytest.raises(DistillError, match='has checkpoints of another trainer; choose another folder'):
        finetune(tiny_student(), PAIRS, QUICK, tmp_path, progress=False)
    assert other.exists()
    for lr in 1e-3, 2e-3: finetune(tiny_student(), PAIRS, replace(QUICK, lr=lr), tmp_path/'own', progress=False)
    assert 'checkpoint-2 is from other weights, pairs or settings; it is removed' in capsys.readouterr().out


def test_a_checkpoint_is_a_whole_model(tmp_path):
    "Which is needed when no process has one."
    new = finetune(tiny_student(), PAIRS, QUICK, tmp_path, progress=False)
    loaded = load_whole_model(tmp_path/'checkpoint-2', new.device)
    assert all((p == q).all() for p, q in zip(new.model.parameters(), loaded.parameters(), strict=True))


def test_half_written_checkpoints_are_ignored_and_the_last_is_kept(tmp_path):
    tiny = tiny_student()
    (tmp_path/'checkpoint-1').mkdir()
    finetune(tiny, PAIRS, replace(QUICK, epochs=3), tmp_path, progress=False)
    (tmp_path/'checkpoint-99').mkdir()
    assert {o.name for o in tmp_path.iterdir()} == {'checkpoint-6', 'checkpoint-99', 'finetuning.json', 'losses.jsonl'}
