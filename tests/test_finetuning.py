"Fine-tuning: what counts in the loss, for every family; EOS; resume after a kill; what is said when it cannot work."
import json, os, shutil, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import pytest
from llm_distill.prompts import DistillError, read_jsonl, student_prompt
from llm_distill.finetuning import Batches, Recipe, completion_loss, encode_pair, finetune, mean_loss, recipes, split_validation
from llm_distill.finetuning import _collate, _fingerprint, _make_trainer, _parts
from llm_distill.student import Student, tiny_student
from families import FAMILIES, build

PAIRS = [dict(task=t, completion=c) for t,c in (
    ('Cancel my gym membership.', 'Find the gym, cancel the membership.'), ('Why?', 'Ask.'),
    ('Show me sushi in Seattle.', 'Find Seattle, find sushi, show it.'), ('Mail the invoices of May.', 'Find the invoices, keep those of May, mail them.'))]
QUICK = Recipe(epochs=1, batch_size=2, lr=1e-3, warmup_steps=0, validation_share=0)

@pytest.fixture(scope='module', params=FAMILIES)
def student(request): return build(request.param)

def batch_of(student, pairs=PAIRS):
    rows = [encode_pair(student, o['task'], o['completion']) for o in pairs]
    return rows, {k: v.to(student.device) for k,v in _collate(rows, student.tokenizer.pad_token_id).items()}

def test_prompt_is_what_generation_sees_and_completion_ends_in_eos(student):
    tok = student.tokenizer
    for o in PAIRS:
        row = encode_pair(student, o['task'], o['completion'])
        assert list(row.ids[:row.n_prompt]) == student.encode(student_prompt(o['task']))
        learned = row.ids[row.n_prompt:]
        assert learned[-1] == tok.eos_token_id and tok.eos_token_id not in learned[:-1] and tok.pad_token_id not in learned
        whole = tok.decode(row.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert whole == f"{student_prompt(o['task'])} {o['completion']}"

def test_labels_are_the_completion_with_its_eos_and_never_padding(student):
    rows, batch = batch_of(student)
    for row, ids, labels in zip(rows, batch['input_ids'].tolist(), batch['labels'].tolist()):
        assert [o for o in labels if o != -100] == list(row.ids[row.n_prompt:])
        assert labels[:row.n_prompt] == [-100] * row.n_prompt and set(labels[len(row.ids):]) <= {-100}
        assert set(ids[len(row.ids):]) <= {student.tokenizer.pad_token_id}
    assert student.tokenizer.pad_token_id not in batch['labels'].flatten().tolist()

def test_loss_and_gradients_are_the_models_own(student):
    "With the padding mask that we leave out, and all the logits that we do not compute"
    import torch
    _, batch = batch_of(student)
    model = student.model.eval()
    n = (batch['labels'] != -100).sum()
    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return {k: p.grad.clone() for k,p in model.named_parameters() if p.grad is not None}
    ours = completion_loss(model, **batch) / n
    got = gradients(ours)
    own = model(**batch, attention_mask=(batch['input_ids'] != student.tokenizer.pad_token_id).long()).loss
    assert ours.item() == pytest.approx(own.item(), rel=1e-4)
    for k,g in gradients(own).items(): assert torch.allclose(g, got[k], rtol=1e-3, atol=1e-3 * g.abs().max().item() + 1e-8), k
    assert not model.get_output_embeddings()._forward_pre_hooks

def test_parts_of_a_batch_give_its_gradient(student):
    import torch
    _, batch = batch_of(student)
    parts = list(_parts(batch, 2 * batch['input_ids'].shape[1]))
    assert len(parts) == 2 and sum(len(ids) for ids,_ in parts) == 4
    assert all((labels[:, -1] != -100).any() for _,labels in parts)
    with torch.no_grad(): assert sum(completion_loss(student.model.eval(), *o) for o in parts).item() == \
        pytest.approx(completion_loss(student.model, **batch).item(), rel=1e-4)

def test_learns_by_heart_and_stops_by_itself(student, tmp_path):
    "The pairs come back word for word, end by EOS well before the limit, and the student given is as it was"
    before = [p.detach().clone() for p in student.model.parameters()]
    tuned = finetune(student, PAIRS, Recipe(epochs=60, batch_size=4, lr=5e-3, warmup_steps=5, validation_share=0), tmp_path, progress=False)
    assert tuned.answer([o['task'] for o in PAIRS], max_new_tokens=60) == [o['completion'] for o in PAIRS]
    assert all((a == b).all() for a,b in zip(before, student.model.parameters()))
    again = Student.load(tuned.save(tmp_path/'student'))
    assert again.answer([PAIRS[0]['task']], max_new_tokens=60) == [PAIRS[0]['completion']]

def test_a_pair_that_is_too_long_is_named(student):
    if student.context is None: pytest.skip('this family has no longest sequence')
    with pytest.raises(DistillError, match=rf"'Why\?'.*{student.context}"): encode_pair(student, 'Why?', 'word ' * student.context)

# --- batches, validation, recipes

def test_batches_hold_every_row_once_of_like_length_in_an_order_of_seed_and_epoch():
    lengths = [10 + 7 * i % 40 for i in range(83)]
    make = lambda seed, epoch: (b := Batches(lengths, 8, seed), setattr(b, 'epoch', epoch), list(b))[-1]
    for b in make(0, 0), make(0, 1), make(3, 0):
        assert sorted(sum(b, [])) == list(range(83)) and len(b) == len(Batches(lengths, 8)) == 11 and {len(o) for o in b} <= {7, 8}
        padded = sum(len(o) * max(lengths[i] for i in o) for o in b)
        assert padded < 1.2 * sum(lengths)
    assert make(0, 0) == make(0, 0) and make(0, 0) != make(0, 1) and make(0, 0) != make(3, 0)

def test_every_tenth_row_validates():
    assert split_validation(list(range(200)), 0.1)[1] == list(range(9, 200, 10))
    assert split_validation([1, 2, 3], 0.1) == ([1, 2, 3], [])

@pytest.mark.parametrize('field, value', [('epochs', 0), ('lr', -1), ('lr', float('nan')), ('batch_size', 0), ('validation_share', 0.9)])
def test_a_bad_recipe_says_which_value(field, value):
    with pytest.raises(DistillError, match=f'{field} is {value}'): replace(Recipe(), **{field: value})

def test_recipes_by_name(): assert recipes['article'].epochs == 100 and recipes['article'].batch_size == 5 and recipes['default'] == Recipe()

def test_validation_loss_is_the_mean_over_tokens_and_rows_do_not_train(tmp_path):
    tiny = tiny_student()
    pairs = PAIRS * 5
    finetune(tiny, pairs, replace(QUICK, epochs=2, validation_share=0.1), tmp_path, progress=False)
    losses = read_jsonl(tmp_path/'losses.jsonl')
    assert [set(o) for o in losses if 'loss' in o] == [{'step', 'epoch', 'loss', 'lr'}] * 18
    assert [o['epoch'] for o in losses if 'validation_loss' in o] == [1., 2.]
    assert [o['step'] for o in losses if 'loss' in o] == list(range(1, 19))
    import torch
    rows = [encode_pair(tiny, o['task'], o['completion']) for o in pairs[9::10]]
    with torch.no_grad(): own = [completion_loss(tiny.model, **_collate([r], 0)).item() for r in rows]
    assert mean_loss(tiny, rows) == pytest.approx(sum(own) / sum(len(r.ids) - r.n_prompt for r in rows), rel=0.02)

# --- errors

def test_a_loss_that_is_no_number_stops(tmp_path):
    with pytest.raises(DistillError, match='the loss became (nan|inf) at step .*lower lr'):
        tiny = tiny_student()
        tiny.model.get_output_embeddings().weight.data[3] = float('nan')
        finetune(tiny, PAIRS, QUICK, tmp_path, progress=False)

def test_no_pairs(tmp_path):
    with pytest.raises(DistillError, match='0 pairs'): finetune(tiny_student(), [], QUICK, tmp_path)

# --- a run that was killed

RUN = '''
import os, signal, sys, warnings
import torch
from families import build
from llm_distill.finetuning import *
from llm_distill import finetuning
work, step, where = sys.argv[1], int(sys.argv[2]), sys.argv[3]
student = build('opt') # has dropout: its random numbers must come out the same, too
pairs = [dict(task=f'Do {i} things.', completion=', '.join(['do it'] * (i % 5 + 1))) for i in range(20)]
loss, parameters = finetuning.completion_loss, finetuning._whole_checkpoint
calls = 0
def killing_loss(model, *args, **kwargs):
    global calls
    calls += model.training
    if where == 'step' and calls == step and model.training: os.kill(os.getpid(), signal.SIGKILL)
    return loss(model, *args, **kwargs)
finetuning.completion_loss = killing_loss
save = torch.save
def killing_save(o, path, *args, **kwargs):
    if where == 'checkpoint' and calls >= step and 'optimizer' in str(path): os.kill(os.getpid(), signal.SIGKILL)
    return save(o, path, *args, **kwargs)
torch.save = killing_save
new = finetune(student, pairs, Recipe(epochs=4, batch_size=4, lr=5e-3, warmup_steps=3), work, progress=False)
print('trained', calls)
new.save(work + '/student')
'''

def run(work, step=0, where='never'):
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=str(Path(__file__).parent))
    return subprocess.run([sys.executable, '-c', RUN, str(work), str(step), where], capture_output=True, text=True, env=env, timeout=300)

@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    work = tmp_path_factory.mktemp('whole')
    done = run(work)
    assert done.returncode == 0, done.stderr
    return work, done.stdout

@pytest.mark.parametrize('step, where, left', [(13, 'step', 10), (10, 'checkpoint', 15)])
def test_a_killed_run_ends_in_the_same_weights(uninterrupted, tmp_path, step, where, left):
    "Killed in the middle of the third epoch, and while the second epoch's checkpoint was written; five steps an epoch"
    whole, said = uninterrupted
    assert 'trained 20' in said
    assert run(tmp_path, step, where).returncode == -signal.SIGKILL
    assert not (tmp_path/'student').exists() and len(list(tmp_path.glob('checkpoint-*'))) == 1
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert f'trained {left}' in done.stdout # it did go on, not start again
    for name in 'student/model.safetensors', 'losses.jsonl':
        assert (tmp_path/name).read_bytes() == (whole/name).read_bytes(), name
    assert 'trained 0' in run(tmp_path).stdout # all is done
    assert (tmp_path/'student/model.safetensors').read_bytes() == (whole/'student/model.safetensors').read_bytes()

def test_a_checkpoint_of_another_run_is_not_used(tmp_path):
    tiny = tiny_student()
    finetune(tiny, PAIRS, QUICK, tmp_path/'a', progress=False)
    for what in dict(recipe=replace(QUICK, lr=2e-3)), dict(pairs=PAIRS[:3]), dict(student=tiny_student(seed=1)):
        args = dict(student=tiny, pairs=PAIRS, recipe=QUICK) | what
        shutil.copytree(tmp_path/'a', tmp_path/'b')
        here, fresh = (finetune(**args, work_dir=tmp_path/o, progress=False) for o in 'bc')
        assert all((p == q).all() for p,q in zip(here.model.parameters(), fresh.model.parameters()))
        assert (tmp_path/'b'/'losses.jsonl').read_text() == (tmp_path/'c'/'losses.jsonl').read_text() != (tmp_path/'a'/'losses.jsonl').read_text()
        for o in 'bc': shutil.rmtree(tmp_path/o)

def test_half_written_checkpoints_are_ignored_and_the_last_is_kept_or_not(tmp_path):
    tiny = tiny_student()
    (tmp_path/'checkpoint-1').mkdir()
    finetune(tiny, PAIRS, replace(QUICK, epochs=3), tmp_path, progress=False)
    (tmp_path/'checkpoint-99').mkdir()
    assert {o.name for o in tmp_path.iterdir()} == {'checkpoint-6', 'checkpoint-99', 'finetuning.json', 'losses.jsonl'}
    finetune(tiny, PAIRS, replace(QUICK, epochs=3), tmp_path, keep_checkpoint=False, progress=False)
    assert 'checkpoint-6' not in {o.name for o in tmp_path.iterdir()}

def test_the_learning_rate_warms_up_and_falls_to_nothing(tmp_path):
    finetune(tiny_student(), PAIRS * 4, replace(QUICK, epochs=2, warmup_steps=4), tmp_path, progress=False)
    lr = [o['lr'] for o in read_jsonl(tmp_path/'losses.jsonl')]
    top = max(lr)
    assert lr.index(top) in (3, 4) and top <= 1e-3 and lr[0] < lr[1] < lr[2] and all(a >= b for a,b in zip(lr[4:], lr[5:])) and lr[-1] < 2e-4

def test_training_says_little(tmp_path, capfd):
    finetune(tiny_student(), PAIRS, replace(QUICK, epochs=2), tmp_path)
    said = capfd.readouterr()
    assert len(said.out.splitlines()) == 2 and said.out.startswith('epoch 1 of 2: loss ') and said.err == ''
