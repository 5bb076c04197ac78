"Fine-tuning: what is learned, validation and the best epoch, divergence, several processes, trackers."
import math, os, subprocess, sys
from dataclasses import replace

import pytest

from llm_distill.core.core import DistillError, read_jsonl
from llm_distill.student import training
from llm_distill.student.batches import collate, encode_pair
from llm_distill.student.cpu import answer_loss
from llm_distill.student.models import Student, tiny_student
from llm_distill.student.recipe import Recipe
from llm_distill.student.training import (
    best_epoch, finetune, is_diverging, mean_loss, out_of_patience, split_validation, sum_losses)
from families import FAMILIES, build
from training_data import HARD, PAIRS, QUICK, encode_all, same_weights


@pytest.fixture(scope='module', params=FAMILIES)
def student(request): return build(request.param)


def test_memorizes_and_stops_by_itself(student, tmp_path):
    "Answers are the learned ones, end by EOS well before the limit, and the base model stays as it was."
    before = [p.detach().clone() for p in student.model.parameters()]
    recipe = Recipe(epochs=60, batch_size=4, lr=5e-3, warmup_steps=5, validation_share=0)
    tuned = finetune(student, PAIRS, recipe, tmp_path, progress=False)
    answers = tuned.answer([pair['question'] for pair in PAIRS], max_new_tokens=60)
    assert answers == [pair['answer'] for pair in PAIRS]
    assert all((a == b).all() for a, b in zip(before, student.model.parameters()))
    again = Student.load(tuned.save(tmp_path/'student'))
    assert again.answer([PAIRS[0]['question']], max_new_tokens=60) == [PAIRS[0]['answer']]


# Validation

def test_every_tenth_row_validates():
    assert split_validation(list(range(200)), 0.1)[1] == list(range(9, 200, 10))
    assert split_validation([1, 2, 3], 0.1) == ([1, 2, 3], [])
    assert split_validation([1, 2], 0) == ([1, 2], [])


def test_validation_loss_is_the_mean_over_tokens_and_rows_do_not_train(tmp_path):
    tiny = tiny_student()
    pairs = PAIRS*5
    finetune(tiny, pairs, replace(QUICK, epochs=2, validation_share=0.1), tmp_path, progress=False)
    losses = read_jsonl(tmp_path/'losses.jsonl')
    assert [set(row) for row in losses if 'loss' in row] == [{'step', 'epoch', 'loss', 'lr'}]*18
    assert [row['epoch'] for row in losses if 'validation_loss' in row] == [1., 2.]
    assert [row['step'] for row in losses if 'loss' in row] == list(range(1, 19))
    import torch
    rows = encode_all(tiny, pairs[9::10])
    with torch.no_grad(): own = [answer_loss(tiny.model, **collate([row], 0)).item() for row in rows]
    assert mean_loss(tiny, rows) == pytest.approx(sum(own)/sum(row.n_learned for row in rows), rel=0.02)


def test_shares_of_the_validation_add_up():
    tiny = tiny_student()
    rows = encode_all(tiny, PAIRS)*2
    shares = [sum_losses(tiny, rows, 3, rank, 2) for rank in range(2)] # three batches for two processes
    total, n = sum_losses(tiny, rows, 3)
    assert sum(k for _, k in shares) == n and sum(t for t, _ in shares) == pytest.approx(total, rel=1e-6)


# The best epoch

def losses_of(*validation):
    return [dict(epoch=float(epoch), validation_loss=v) for epoch, v in enumerate(validation, 1)]


def test_patience_counts_epochs_since_the_best():
    assert best_epoch([]) is None and best_epoch([dict(step=1, epoch=1., loss=2.)]) is None
    assert best_epoch(losses_of(3, 2, 2, 4)) == 2
    assert not out_of_patience([], 2) and not out_of_patience(losses_of(3, 2, 2), 2)
    assert out_of_patience(losses_of(3, 2, 2, 4), 2) and not out_of_patience(losses_of(1, 2, 3, 4), 0)
    assert not out_of_patience([dict(step=1, epoch=.5, loss=2.)], 1)


def test_the_best_epoch_is_kept_and_training_stops(tmp_path):
    "The student has the lowest validation loss of the curve; without patience it is that of the last epoch."
    tiny = tiny_student()
    unlikely = 'look at it again' # the more so, the longer training lasts
    hard = [dict(pair, answer=unlikely) if i % 10 == 9 else pair for i, pair in enumerate(HARD)]
    recipe = Recipe(epochs=9, batch_size=4, lr=1e-2, warmup_steps=3)
    kept, last = (finetune(tiny, hard, replace(recipe, patience=p), tmp_path/str(p), progress=False) for p in (2, 0))
    validation = encode_all(tiny, hard[9::10])
    rows = read_jsonl(tmp_path/'2'/'losses.jsonl')
    curve = [row['validation_loss'] for row in rows if 'validation_loss' in row]
    assert rows[-1] == dict(kept_epoch=curve.index(min(curve)) + 1) and len(curve) == rows[-1]['kept_epoch'] + 2 < 9
    assert mean_loss(kept, validation) == pytest.approx(min(curve), rel=1e-3)
    rows = read_jsonl(tmp_path/'0'/'losses.jsonl')
    everything = [row['validation_loss'] for row in rows if 'validation_loss' in row]
    assert everything[:len(curve)] == curve and len(everything) == 9
    assert mean_loss(last, validation) == pytest.approx(everything[-1], rel=1e-3) and everything[-1] > min(curve)


def test_patience_without_validation_pairs_is_reported(tmp_path, capsys):
    finetune(tiny_student(), PAIRS, replace(QUICK, patience=1, validation_share=.1), tmp_path, progress=False)
    assert 'patience has no effect: 4 pairs leave none for validation' in capsys.readouterr().out


# The student

def test_weights_frozen_by_one_recipe_are_trained_by_the_next(tmp_path):
    first = finetune(tiny_student(), PAIRS, replace(QUICK, lora_rank=4), tmp_path/'first', progress=False)
    second = finetune(first, PAIRS, QUICK, tmp_path/'second', progress=False)
    assert all((a != b).any() for a, b in zip(first.model.parameters(), second.model.parameters()))


@pytest.mark.parametrize('lora', [0, 4])
def test_training_in_place_gives_the_same_student(tmp_path, lora):
    recipe = replace(QUICK, epochs=2, lora_rank=lora)
    copied, tiny = finetune(tiny_student(), PAIRS, recipe, tmp_path/'copied', progress=False), tiny_student()
    placed = finetune(tiny, PAIRS, recipe, tmp_path/'placed', progress=False, in_place=True)
    assert placed.model is tiny.model and same_weights(copied, placed)


def test_the_student_can_be_used_after_each_epoch(tmp_path):
    import torch
    tiny, seen = tiny_student(), []
    pair = encode_pair(tiny, **PAIRS[0])

    def measure(student, epoch):
        answering = [p.float().clone() for p in student.inference_model().parameters()]
        pairs = zip(answering, student.model.parameters())
        assert all(torch.allclose(a, p, rtol=1e-2) for a, p in pairs) # answers are those of this epoch
        seen.append((epoch, mean_loss(student, [pair])))

    tuned = finetune(tiny, PAIRS, replace(QUICK, epochs=3), tmp_path, progress=False, after_epoch=measure)
    assert [epoch for epoch, _ in seen] == [1, 2, 3]
    assert seen[0][1] > seen[2][1] == pytest.approx(mean_loss(tuned, [pair]), rel=1e-3)


def test_answers_may_be_as_long_as_those_that_were_learned(tmp_path):
    long = dict(question='Count.', answer=' '.join(map(str, range(150))))
    new = finetune(tiny_student(), [*PAIRS, long], QUICK, tmp_path/'work', progress=False)
    learned = encode_pair(new, **long).n_learned
    assert new.max_new_tokens == learned + learned//4 > 150
    assert Student.load(str(new.save(tmp_path/'student'))).max_new_tokens == new.max_new_tokens
    assert finetune(tiny_student(), PAIRS, QUICK, tmp_path/'short', progress=False).max_new_tokens == 128
    assert finetune(new, PAIRS, QUICK, tmp_path/'again', progress=False).max_new_tokens == 128


# Several processes

SEVERAL = '''
import os, sys
from llm_distill.student import cpu
from llm_distill.student.models import tiny_student
from llm_distill.student.recipe import Recipe
from llm_distill.student.training import finetune
cpu.has_bf16 = lambda device: False # rounding to bfloat16 would differ with the shapes
tiny, work, first = tiny_student(), sys.argv[1], int(os.environ.get('RANK', 0)) == 0
answers = [', '.join(['do it']*(i % 5 + 1)) for i in range(37)] # 33 to learn: batches of 6 and 7 and parts of them
pairs = [dict(question=f'Do {i} things.', answer=answer) for i, answer in enumerate(answers)]
for lora in 0, 4: # each row is wider than half of micro_batch_tokens, so that three rows are three parts
    recipe = Recipe(epochs=2, batch_size=7, lr=5e-3, warmup_steps=3, micro_batch_tokens=60, patience=1, lora_rank=lora)
    new = finetune(tiny, pairs, recipe, f'{work}/{lora}')
    if first: new.save(f'{work}/student{lora}')
few = Recipe(epochs=2, batch_size=1, lr=5e-3, warmup_steps=0, validation_share=0.2) # less rows than processes
new = finetune(tiny, pairs[:5], few, f'{work}/few')
if first: new.save(f'{work}/student_few')
'''


def test_two_processes_train_as_one(tmp_path):
    "The same losses, validation included, and weights up to rounding; files and lines are those of the first process."
    from safetensors.torch import load_file
    (tmp_path/'several.py').write_text(SEVERAL)
    env = os.environ | dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')

    def run(*launcher, work):
        command = [sys.executable, *launcher, str(tmp_path/'several.py'), str(tmp_path/work)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    launcher = '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2'
    alone, together = run(work='one'), run(*launcher, work='two')
    assert alone == together and sum('epoch 2 of 2' in line for line in alone) == 3
    for name in '0', '4', 'few':
        one, two = (read_jsonl(tmp_path/work/name/'losses.jsonl') for work in ('one', 'two'))
        assert len(one) == len(two) > 8 and one[0]['loss'] > one[-3]['loss']
        for a, b in zip(one, two): assert a == pytest.approx(b, rel=1e-4)
        assert {o.name for o in (tmp_path/'one'/name).iterdir()} == {o.name for o in (tmp_path/'two'/name).iterdir()}
    for name in 'student0', 'student4', 'student_few':
        one, two = (load_file(tmp_path/work/name/'model.safetensors') for work in ('one', 'two'))
        for k in one: assert (one[k] - two[k]).abs().max() < 2e-3*one[k].abs().max(), (name, k)


# Trackers and output

def test_losses_are_reported_to_a_tracker(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    recipe = replace(QUICK, epochs=2, validation_share=0.1)
    finetune(tiny_student(), HARD, recipe, tmp_path, progress=False, report_to='tensorboard')
    events = EventAccumulator(str(next((tmp_path/'runs').iterdir()))).Reload()
    rows = read_jsonl(tmp_path/'losses.jsonl')
    for tag, key in ('train/loss', 'loss'), ('train/learning_rate', 'lr'), ('eval/loss', 'validation_loss'):
        assert [o.value for o in events.Scalars(tag)] == pytest.approx([row[key] for row in rows if key in row])


def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch):
    from transformers.integrations import integration_utils
    tiny = tiny_student()
    with pytest.raises(DistillError, match="no tracker 'tensorbord'; choose some of .*tensorboard"):
        finetune(tiny, PAIRS, QUICK, tmp_path, report_to='tensorbord')
    monkeypatch.setattr(integration_utils, 'is_wandb_available', lambda: False)
    with pytest.raises(DistillError, match="the tracker 'wandb' is not installed; `pip install wandb`"):
        finetune(tiny, PAIRS, QUICK, tmp_path, report_to='tensorboard, wandb')
    assert not list(tmp_path.iterdir())


def test_training_prints_little(tmp_path, capfd):
    finetune(tiny_student(), PAIRS, replace(QUICK, epochs=2), tmp_path)
    printed = capfd.readouterr()
    assert len(printed.out.splitlines()) == 2 and printed.out.startswith('epoch 1 of 2: loss ') and printed.err == ''


def test_the_learning_rate_warms_up_and_falls_to_zero(tmp_path):
    finetune(tiny_student(), PAIRS*4, replace(QUICK, epochs=2, warmup_steps=4), tmp_path, progress=False)
    lr = [row['lr'] for row in read_jsonl(tmp_path/'losses.jsonl')]
    top = max(lr)
    assert lr.index(top) in (3, 4) and top <= 1e-3 and lr[0] < lr[1] < lr[2]
    assert all(a >= b for a, b in zip(lr[4:], lr[5:])) and lr[-1] < 2e-4


# Errors

def test_divergence_differs_from_a_spike():
    start = [2.4]*10
    assert is_diverging([]) is None and is_diverging(start + [2.]*50) is None and is_diverging(start + [9.]*19) is None
    assert is_diverging(start + [9.]*10 + [2.] + [9.]*10) is None
    assert is_diverging(start + [4.9]*20) == pytest.approx(4.8) and is_diverging(start + [4.7]*20) is None
    assert is_diverging([.05]*10 + [.5]*30) is None # a student that was good before may get slightly worse


@pytest.mark.parametrize('lora, patience', [(0, 19), (4, 19), (0, 0)])
@pytest.mark.parametrize('factor, message', [
    (math.nan, 'the loss became nan at step 8 with lr=0.001; use a lower lr, e.g. 0.00025'),
    (9., r'the loss was above .* for 20 steps, after .* at first, at step 27 with lr=0.001; use a lower lr')])
def test_a_diverging_run_leaves_the_best_student(tmp_path, monkeypatch, factor, message, lora, patience):
    "Two epochs of three steps go well; the second is the best."
    tiny, loss, calls, after, sums = tiny_student(), training.answer_loss, [], [], iter([3., 2., 5.] + [6.]*40)

    def going_wrong(model, *args, **kwargs):
        calls.append(model.training)
        if len(calls) in (4, 7): after.append([p.detach().clone() for p in model.parameters()]) # the first two epochs
        return loss(model, *args, **kwargs)*(1 if sum(calls) < 8 else factor)

    monkeypatch.setattr(training, 'answer_loss', going_wrong)
    monkeypatch.setattr(training, 'sum_losses', lambda *args, **kwargs: (next(sums), 1))
    recipe = Recipe(epochs=20, batch_size=4, lr=1e-3, patience=patience, validation_share=0.1, lora_rank=lora)
    with pytest.raises(DistillError, match=message) as e:
        finetune(tiny, HARD[:10], recipe, tmp_path/'work', progress=False)
    assert '\n' not in str(e.value) and f'the student of step 6 is saved in {tmp_path/"work"/"best"}' in str(e.value)
    monkeypatch.undo()
    best = Student.load(tmp_path/'work'/'best')
    assert best.answer(['Why?'], max_new_tokens=5) and not any('lora' in k for k, _ in best.model.named_parameters())
    if lora: return
    assert [all((p == q).all() for p, q in zip(weights, best.model.parameters())) for weights in after] == [False, True]


def test_a_loss_that_is_not_a_number_stops(tmp_path):
    tiny = tiny_student()
    tiny.model.get_output_embeddings().weight.data[3] = math.nan
    with pytest.raises(DistillError, match='the loss became (nan|inf) at step .*lower lr'):
        finetune(tiny, PAIRS, QUICK, tmp_path, progress=False)


def test_no_pairs(tmp_path):
    with pytest.raises(DistillError, match='0 pairs'): finetune(tiny_student(), [], QUICK, tmp_path)
