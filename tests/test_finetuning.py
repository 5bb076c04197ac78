"Fine-tuning: what counts in the loss, for every family; EOS; adapters; memory; several processes; resume after a kill; what is said when it cannot work."
import errno, gc, json, math, os, re, shutil, signal, subprocess, sys
from dataclasses import fields, replace
from pathlib import Path
import pytest
from llm_distill.prompts import DistillError, read_jsonl, student_prompt
from llm_distill import finetuning
from llm_distill.finetuning import Batches, Memory, Recipe, available_memory, best_epoch, completion_loss, diverging, encode_pair, estimate_memory, finetune
from llm_distill.finetuning import make_recipe, mean_loss, memory_plan, out_of_patience, parse_override, recipes, split_validation
from llm_distill.finetuning import _Lower, _collate, _freeze, _from_checkpoint, _group_limits, _layers, _loss_sums, _parts, _summed_entropy
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
    assert len(parts) == 2 and sum(len(o['input_ids']) for o in parts) == 4
    assert all((o['labels'][:, -1] != -100).any() for o in parts)
    with torch.no_grad(): assert sum(completion_loss(student.model.eval(), **o) for o in parts).item() == \
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

def test_recipes_by_name():
    assert list(recipes) == ['default', 'article', 'lora', 'qlora'] and recipes['default'] == Recipe()
    assert recipes['article'] == Recipe(epochs=100, batch_size=5, lr=2e-5, warmup_steps=0, patience=0, lora_rank=0)
    assert recipes['lora'].lora_rank and not recipes['lora'].four_bit and recipes['qlora'].four_bit
    assert make_recipe('article', epochs=3) == replace(recipes['article'], epochs=3)

@pytest.mark.parametrize('field', fields(Recipe), ids=lambda f: f.name)
def test_every_field_is_set_from_text_with_its_type(field):
    text = dict(lr='1e-3', weight_decay='0.5', validation_share='0.25', four_bit='true').get(field.name, '3')
    name, value = parse_override(f'{field.name}={text}')
    assert name == field.name and type(value) is field.type
    made = make_recipe('default' if name == 'frozen_layers' else 'lora', **{name: value})
    assert getattr(made, name) == value and str(made).count('\n') == len(fields(Recipe)) - 1
    line = next(o for o in str(made).splitlines() if o.split()[0] == name)
    assert line.split()[1] == str(value) and len(line.split()) > 2 # with its meaning

@pytest.mark.parametrize('text, said', [
    ('lr=20', r'lr is 20\.0; expected a number from 0 to 1$'), ('lr=fast', "lr is 'fast'; expected a number$"), ('lr=nan', 'lr is nan'),
    ('epochs=2.5', "epochs is '2.5'; expected a whole number$"), ('epochs=0', 'epochs is 0; expected a whole number from 1'),
    ('four_bit=yes', "four_bit is 'yes'; expected true or false$"), ('lr', "'lr' sets nothing; write FIELD=VALUE"),
    ('rate=1', "'rate' is no field of a recipe; choose one of epochs, batch_size, lr, .*frozen_layers$")])
def test_a_bad_override_is_one_line_that_quotes_it(text, said):
    with pytest.raises(DistillError, match=said) as e: parse_override(text)
    assert '\n' not in str(e.value)

def test_recipes_and_fields_that_are_none():
    for bad, said in (dict(name='big'), "'big' is no recipe; choose one of default, article, lora, qlora"), (dict(rank=3), "'rank' is no field of a recipe"), \
                     (dict(four_bit=True), 'set lora_rank'), (dict(epochs=True), 'epochs is True'), (dict(lora_rank=1.5), 'lora_rank is 1.5'):
        with pytest.raises(DistillError, match=said): make_recipe(**bad)

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

# --- the best epoch

def losses_of(*validation): return [dict(epoch=float(e), validation_loss=v) for e,v in enumerate(validation, 1)]

def test_patience_counts_epochs_since_the_best():
    assert best_epoch([]) is None and best_epoch([dict(step=1, epoch=1., loss=2.)]) is None
    assert best_epoch(losses_of(3, 2, 2, 4)) == 2
    assert not out_of_patience([], 2) and not out_of_patience(losses_of(3, 2, 2), 2) and out_of_patience(losses_of(3, 2, 2, 4), 2)
    assert not out_of_patience(losses_of(1, 2, 3, 4), 0) and not out_of_patience([dict(step=1, epoch=.5, loss=2.)], 1)

HARD = [dict(task=f'Do {i} things.', completion=', '.join(['do it'] * (i % 5 + 1)) if i % 10 < 9 else 'do it, look at it again') for i in range(20)]
EARLY = Recipe(epochs=9, batch_size=4, lr=2e-3, warmup_steps=3, patience=2)

def test_the_best_epoch_is_kept_and_training_stops(tmp_path):
    "The student has the lowest validation loss of the curve; without patience it is that of the last epoch"
    tiny = tiny_student()
    hard = [dict(o, completion='look at it again') if i % 10 == 9 else o for i,o in enumerate(HARD)] # what training makes unlikely
    recipe = replace(EARLY, lr=1e-2)
    kept, last = (finetune(tiny, hard, replace(recipe, patience=p), tmp_path/str(p), progress=False) for p in (2, 0))
    validation = [encode_pair(tiny, o['task'], o['completion']) for o in hard[9::10]]
    rows = read_jsonl(tmp_path/'2'/'losses.jsonl')
    curve = [o['validation_loss'] for o in rows if 'validation_loss' in o]
    assert rows[-1] == dict(kept_epoch=curve.index(min(curve)) + 1) and len(curve) == rows[-1]['kept_epoch'] + 2 < 9
    assert mean_loss(kept, validation) == pytest.approx(min(curve), rel=1e-3)
    everything = [o['validation_loss'] for o in read_jsonl(tmp_path/'0'/'losses.jsonl') if 'validation_loss' in o]
    assert everything[:len(curve)] == curve and len(everything) == 9
    assert mean_loss(last, validation) == pytest.approx(everything[-1], rel=1e-3) and everything[-1] > min(curve)

# --- adapters

def test_adapters_learn_and_leave_a_plain_student(student, tmp_path, monkeypatch):
    "The loss falls, the folder loads without peft, and says the same"
    before = [p.detach().clone() for p in student.model.parameters()]
    recipe = make_recipe('lora', epochs=20, batch_size=4, lr=2e-2, warmup_steps=0, validation_share=0)
    tuned = finetune(student, PAIRS, recipe, tmp_path/'work', progress=False)
    loss = [o['loss'] for o in read_jsonl(tmp_path/'work'/'losses.jsonl')]
    assert loss[-1] < 0.9 * loss[0]
    assert all((a == b).all() for a,b in zip(before, student.model.parameters())) and all(p.requires_grad for p in student.model.parameters())
    rows = [encode_pair(student, o['task'], o['completion']) for o in PAIRS]
    assert mean_loss(tuned, rows) < 0.9 * mean_loss(student, rows) # what was merged is what was learned
    assert [n for n,_ in tuned.model.named_parameters()] == [n for n,_ in student.model.named_parameters()]
    monkeypatch.setitem(sys.modules, 'peft', None)
    again = Student.load(tuned.save(tmp_path/'student'))
    assert not list((tmp_path/'student').glob('adapter*'))
    tasks = [o['task'] for o in PAIRS]
    assert again.answer(tasks, max_new_tokens=20) == tuned.answer(tasks, max_new_tokens=20)

def test_adapters_go_on_where_they_stopped(tmp_path, monkeypatch):
    tiny, recipe = tiny_student(), make_recipe('lora', epochs=3, batch_size=4, lr=1e-2, patience=2)
    whole = finetune(tiny, HARD, recipe, tmp_path/'a', progress=False)
    calls, loss = [], finetuning.completion_loss
    def stopping(model, *args, **kwargs):
        calls.append(model.training)
        if sum(calls) == 13: raise KeyboardInterrupt
        return loss(model, *args, **kwargs)
    monkeypatch.setattr(finetuning, 'completion_loss', stopping)
    with pytest.raises(KeyboardInterrupt): finetune(tiny, HARD, recipe, tmp_path/'b', progress=False)
    there = finetune(tiny, HARD, recipe, tmp_path/'b', progress=False)
    assert sum(calls) == 13 + 5 # two epochs of five steps were done
    assert all((p == q).all() for p,q in zip(whole.model.parameters(), there.model.parameters()))
    assert (tmp_path/'a'/'losses.jsonl').read_text() == (tmp_path/'b'/'losses.jsonl').read_text()

def test_what_adapters_need_is_said(tmp_path, monkeypatch):
    import torch
    tiny = tiny_student()
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(DistillError, match="four_bit is True and there is no CUDA device; take the recipe 'lora'"): finetune(tiny, PAIRS, recipes['qlora'], tmp_path)
    with monkeypatch.context() as m, pytest.raises(DistillError, match='lora_rank is 16 under FSDP; start with torchrun'):
        m.setenv('ACCELERATE_USE_FSDP', 'true')
        finetune(tiny, PAIRS, recipes['lora'], tmp_path)
    monkeypatch.setitem(sys.modules, 'peft', None)
    with pytest.raises(DistillError, match=r"needs the package peft: `pip install 'llm_distill\[lora\]'`"): finetune(tiny, PAIRS, recipes['lora'], tmp_path)

# --- memory

def peak_of(work):
    "The largest sum of what torch allocates and frees while `work` runs, in bytes; counted, not sampled"
    import torch
    gc.collect() # or what others left would be counted as freed
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as p: work()
    now = top = 0
    for e in sorted((e for e in p.profiler.kineto_results.events() if e.name() == '[memory]'), key=lambda e: e.start_ns()):
        now += e.nbytes()
        top = max(top, now)
    return top

@pytest.mark.parametrize('changes', [{}, dict(tokens_at_once=100), dict(lora_rank=8), dict(batch_size=2)], ids=str)
def test_the_memory_estimate_is_the_peak_within_a_fifth(tmp_path, changes):
    import torch
    from transformers import LlamaConfig
    if torch.accelerator.is_available(): pytest.skip('the profiler counts the memory of the CPU')
    student = tiny_student(LlamaConfig(hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, vocab_size=4000))
    pairs = [dict(task=f'Do {i} things for me.', completion=', '.join(['do it now'] * (i % 5 + 1))) for i in range(24)]
    recipe = replace(Recipe(epochs=1, batch_size=12, validation_share=0), **changes)
    peak = peak_of(lambda: finetune(student, pairs, recipe, tmp_path, progress=False, check_memory=False))
    estimate = estimate_memory(student, pairs, recipe)
    assert peak / 1.05 <= estimate.total <= 1.2 * peak, (peak, str(estimate))

def test_too_little_memory_is_said_at_once_with_what_would_fit(tmp_path, monkeypatch):
    tiny, pairs = tiny_student(), PAIRS * 8
    need = estimate_memory(tiny, pairs, replace(QUICK, batch_size=32))
    assert need.weights == need.gradients == need.optimizer / 2 == 4 * tiny.n_parameters and need.total <= sum([need.weights * 4, need.activations, need.logits])
    def refused(free):
        monkeypatch.setattr(finetuning, 'available_memory', lambda device: free)
        with pytest.raises(DistillError) as e: finetune(tiny, pairs, replace(QUICK, batch_size=32), tmp_path/'work', progress=False)
        assert '\n' not in str(e.value) and not (tmp_path/'work').exists()
        return str(e.value)
    said = refused(need.total - 1)
    assert re.search(r"tiny needs [\d.]+ MB to be trained and [\d.]+ MB are free .*tokens_at_once=\d+ .* or the recipe 'lora' .* or a student of less than \d+M", said)
    suggested = int(re.search(r'tokens_at_once=(\d+)', said)[1])
    assert 'tokens_at_once' not in refused(100) and 'less than 0M' in refused(100)
    monkeypatch.setattr(finetuning, 'available_memory', lambda device: need.total - 1)
    finetune(tiny, pairs, replace(QUICK, batch_size=32, tokens_at_once=suggested), tmp_path/'work', progress=False)

def test_free_memory_heeds_the_limits_of_control_groups(tmp_path):
    group = tmp_path/'a'/'b'
    group.mkdir(parents=True)
    (tmp_path/'own').write_text('0::/a/b\n')
    def limits(folder, most, used, stat):
        for f,v in ('memory.max', most), ('memory.current', used), ('memory.stat', stat): (folder/f).write_text(str(v))
    limits(group, 'max', 5, 'anon 1\n')
    limits(group.parent, 1000, 300, 'anon 5\ninactive_file 100\n')
    assert list(_group_limits(str(tmp_path), str(tmp_path/'own'))) == [800]
    assert list(_group_limits(str(tmp_path), str(tmp_path/'none'))) == []
    import torch
    assert 0 < available_memory(torch.device('cpu')) < 1e14

def test_the_plan_for_several_devices_follows_from_the_config():
    from transformers import LlamaConfig
    config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, vocab_size=1000)
    one, four = (memory_plan(config, Recipe(), n, bf16=False) for n in (1, 4))
    assert four.weights == one.weights // 4 and four.optimizer == one.optimizer // 4 and not one.exchange
    layer, outside = 4 * 64 * 64 + 3 * 64 * 128 + 2 * 64, 2 * 1000 * 64 + 64
    assert one.weights == 4 * (4 * layer + outside) and four.exchange == 8 * (outside + 2 * layer)
    assert four.activations < one.activations / 3 and four.logits == 16 * 2 * 64 * 1000

@pytest.mark.parametrize('lora', [0, 4])
def test_every_family_can_be_planned(student, lora):
    assert estimate_memory(student, PAIRS, Recipe(lora_rank=lora)).activations > 2 * 2 * 64 * 4

# --- the quick way is the plain one

def plain_training(student, pairs, recipe):
    "The losses of a loop as in the books: float32, all logits, fused attention, no batch in parts"
    import copy, torch
    model, rows = copy.deepcopy(student.model), [encode_pair(student, **o) for o in pairs]
    if recipe.frozen_layers: _freeze(model, recipe.frozen_layers)
    batches = Batches([len(r.ids) for r in rows], recipe.batch_size, recipe.seed)
    steps, losses = recipe.epochs * len(batches), []
    learned = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(learned, lr=recipe.lr, weight_decay=0.)
    for batches.epoch in range(recipe.epochs):
        for batch in batches:
            for g in adamw.param_groups: g['lr'] = recipe.lr * (1 - len(losses) / steps)
            b = _collate([rows[i] for i in batch], student.tokenizer.pad_token_id)
            logits = model.train()(input_ids=b['input_ids']).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), b['labels'][:, 1:].flatten(), ignore_index=-100)
            adamw.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, recipe.max_grad_norm)
            adamw.step()
            losses.append(loss.item())
    return losses

MANY = [dict(task=f'Do {i} things.', completion=', '.join(['do it'] * (i % 5 + 1))) for i in range(24)]
CURVE = Recipe(epochs=3, batch_size=4, lr=3e-3, warmup_steps=0, validation_share=0)

@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('frozen', [0, 1])
@pytest.mark.parametrize('bf16', [False, None], ids=['float32', 'as the machine has it'])
def test_the_loss_curve_is_that_of_plain_float32_training(tmp_path, monkeypatch, tied, frozen, bf16):
    from transformers import LlamaConfig
    if bf16 is not None: monkeypatch.setattr(finetuning, 'has_bf16', lambda device: bf16)
    student = tiny_student(LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, vocab_size=1024, tie_word_embeddings=tied))
    recipe = replace(CURVE, frozen_layers=frozen)
    tuned = finetune(student, MANY, recipe, tmp_path, progress=False)
    ours, plain = [o['loss'] for o in read_jsonl(tmp_path/'losses.jsonl')], plain_training(student, MANY, recipe)
    assert len(ours) == len(plain) == 18 and plain[-1] < 0.9 * plain[0]
    assert ours == pytest.approx(plain, rel=1e-3 if bf16 is False else 0.05)
    assert tuned.model.config._attn_implementation == student.model.config._attn_implementation == 'sdpa'
    same = [bool((a == b).all()) for a,b in zip(_layers(student.model), _layers(tuned.model)) for a,b in [(a.mlp.up_proj.weight, b.mlp.up_proj.weight)]]
    assert same == [i < frozen for i in range(3)]

def test_the_cross_entropy_and_its_gradient_are_torchs():
    import torch
    torch.manual_seed(0)
    z, y = torch.randn(7, 300_000, requires_grad=True), torch.randint(300_000, (7,)) # a position at a time
    (3 * _summed_entropy()(z, y)).backward()
    ours, z.grad = z.grad, None
    theirs = torch.nn.functional.cross_entropy(z, y, reduction='sum')
    (3 * theirs).backward()
    assert _summed_entropy()(z, y).item() == pytest.approx(theirs.item(), rel=1e-6) and torch.allclose(ours, z.grad, atol=1e-6)

def test_frozen_layers_hand_on_what_they_gave(student):
    rows = [encode_pair(student, **o) for o in PAIRS]
    lower, plain = _Lower(student, rows, len(_layers(student.model)) - 1), [_loss_sums(student, [r])[0] for r in rows]
    ran = []
    for layer in lower.layers: next(layer.children()).register_forward_hook(lambda *args: ran.append(1))
    for r,loss in zip(rows, plain):
        with lower.replay(lower.hidden[r][None]): assert _loss_sums(student, [r])[0] == pytest.approx(loss, rel=1e-3)
    assert not ran and _loss_sums(student, rows) and ran

def test_nothing_below_the_frozen_layers_waits_for_a_gradient(student):
    "Or several processes would wait for one that never comes"
    import copy
    model, rows = copy.deepcopy(student), [encode_pair(student, **o) for o in PAIRS[:1]]
    model.model = _freeze(copy.deepcopy(student.model), n := len(_layers(student.model)) - 1)
    lower, batch = _Lower(model, rows, n), {k: v.to(student.device) for k,v in _collate(rows, student.tokenizer.pad_token_id).items()}
    with lower.replay(lower.hidden[rows[0]][None]): completion_loss(model.model, **batch).backward()
    named = dict(model.model.named_parameters())
    assert {k for k,p in named.items() if p.requires_grad} == {k for k,p in named.items() if p.grad is not None} != set()

def test_frozen_layers_leave_one_to_learn(tmp_path):
    tiny = tiny_student()
    with pytest.raises(DistillError, match='frozen_layers is 2 and the student has 2 layers; leave at least one'):
        finetune(tiny, PAIRS, replace(QUICK, frozen_layers=2), tmp_path, progress=False)
    with pytest.raises(DistillError, match='frozen_layers is 1 with lora_rank 4'): Recipe(frozen_layers=1, lora_rank=4)

@pytest.mark.parametrize('change', [dict(frozen_layers=1), dict(lora_rank=4)])
def test_what_one_recipe_left_as_it_was_the_next_one_learns(tmp_path, change):
    first = finetune(tiny_student(), PAIRS, replace(QUICK, **change), tmp_path/'first', progress=False)
    second = finetune(first, PAIRS, QUICK, tmp_path/'second', progress=False)
    assert all((a != b).any() for a,b in zip(first.model.parameters(), second.model.parameters()))

@pytest.mark.parametrize('lora', [0, 4])
def test_training_in_place_gives_the_same_student(tmp_path, lora):
    recipe = replace(QUICK, epochs=2, lora_rank=lora)
    copied, tiny = finetune(tiny_student(), PAIRS, recipe, tmp_path/'copied', progress=False), tiny_student()
    placed = finetune(tiny, PAIRS, recipe, tmp_path/'placed', progress=False, in_place=True)
    assert placed.model is tiny.model and all((a == b).all() for a,b in zip(copied.model.parameters(), placed.model.parameters()))

def test_a_look_after_each_epoch(tmp_path):
    import torch
    seen, tiny = [], tiny_student()
    def look(student, epoch):
        answering = [p.float().clone() for p in student._runner().parameters()]
        assert all(torch.allclose(a, p, rtol=1e-2) for a, p in zip(answering, student.model.parameters())) # answers are this epoch's
        seen.append((epoch, mean_loss(student, [encode_pair(student, **PAIRS[0])])))
    tuned = finetune(tiny, PAIRS, replace(QUICK, epochs=3), tmp_path, progress=False, after_epoch=look)
    assert [e for e,_ in seen] == [1, 2, 3] and seen[0][1] > seen[2][1] == pytest.approx(mean_loss(tuned, [encode_pair(tuned, **PAIRS[0])]), rel=1e-3)

# --- several processes

SEVERAL = '''
import os, sys
from llm_distill import finetuning
from llm_distill.finetuning import *
from llm_distill.student import tiny_student
finetuning.has_bf16 = lambda device: False # rounding to bfloat16 would differ with the shapes
tiny, work = tiny_student(), sys.argv[1]
pairs = [dict(task=f'Do {i} things.', completion=', '.join(['do it'] * (i % 5 + 1))) for i in range(37)] # 33 to learn: batches of 6 and 7 and parts of them
for lora in 0, 4: # each row is wider than half of tokens_at_once, so that three rows are three parts
    new = finetune(tiny, pairs, Recipe(epochs=2, batch_size=7, lr=5e-3, warmup_steps=3, tokens_at_once=60, patience=1, lora_rank=lora), f'{work}/{lora}')
    if int(os.environ.get('RANK', 0)) == 0: new.save(f'{work}/student{lora}')
new = finetune(tiny, pairs[:5], Recipe(epochs=2, batch_size=1, lr=5e-3, warmup_steps=0, validation_share=0.2), f'{work}/few') # less rows than processes
if int(os.environ.get('RANK', 0)) == 0: new.save(f'{work}/student_few')
'''

def test_two_processes_train_as_one(tmp_path):
    "The same losses, validation included, and the same weights up to rounding; files and lines come from the first process alone"
    from safetensors.torch import load_file
    (tmp_path/'several.py').write_text(SEVERAL)
    env = os.environ | dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    def go(*launcher, work):
        done = subprocess.run([sys.executable, *launcher, str(tmp_path/'several.py'), str(tmp_path/work)], capture_output=True, text=True, env=env, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout
    said = go(work='one'), go('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', work='two')
    assert said[0].splitlines() == said[1].splitlines() and said[0].count('epoch 2 of 2') == 3
    for name in '0', '4', 'few':
        one, two = (read_jsonl(tmp_path/o/name/'losses.jsonl') for o in ('one', 'two'))
        assert len(one) == len(two) > 8 and one[0]['loss'] > one[-3]['loss']
        for a,b in zip(one, two): assert a == pytest.approx(b, rel=1e-4)
        assert {o.name for o in (tmp_path/'one'/name).iterdir()} == {o.name for o in (tmp_path/'two'/name).iterdir()}
    for name in 'student0', 'student4', 'student_few':
        one, two = (load_file(tmp_path/o/name/'model.safetensors') for o in ('one', 'two'))
        for k in one: assert (one[k] - two[k]).abs().max() < 2e-3 * one[k].abs().max(), (name, k)

def test_shares_of_the_validation_add_up():
    tiny = tiny_student()
    rows = [encode_pair(tiny, o['task'], o['completion']) for o in PAIRS] * 2
    shares = [_loss_sums(tiny, rows, 3, rank, 2) for rank in range(2)] # three batches for two processes
    total, n = _loss_sums(tiny, rows, 3)
    assert sum(k for _,k in shares) == n and sum(t for t,_ in shares) == pytest.approx(total, rel=1e-6)

# --- tracking

def test_losses_are_reported_to_a_tracker(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    finetune(tiny_student(), HARD, replace(QUICK, epochs=2, validation_share=0.1), tmp_path, progress=False, report_to='tensorboard')
    seen = EventAccumulator(str(next((tmp_path/'runs').iterdir()))).Reload()
    rows = read_jsonl(tmp_path/'losses.jsonl')
    for tag, key in ('train/loss', 'loss'), ('train/learning_rate', 'lr'), ('eval/loss', 'validation_loss'):
        assert [o.value for o in seen.Scalars(tag)] == pytest.approx([o[key] for o in rows if key in o])

def test_a_tracker_that_is_not_there(tmp_path, monkeypatch):
    from transformers.integrations import integration_utils
    tiny = tiny_student()
    with pytest.raises(DistillError, match="cannot report to 'tensorbord'; choose none or some of .*tensorboard"): finetune(tiny, PAIRS, QUICK, tmp_path, report_to='tensorbord')
    monkeypatch.setattr(integration_utils, 'is_wandb_available', lambda: False)
    with pytest.raises(DistillError, match="cannot report to 'wandb', which is not installed: `pip install wandb`"): finetune(tiny, PAIRS, QUICK, tmp_path, report_to='none,wandb'[5:])
    assert not list(tmp_path.iterdir())

# --- errors

def test_a_loss_that_rises_for_good_is_told_from_a_spike():
    start = [2.4] * 10
    assert diverging([]) is None and diverging(start + [2.] * 50) is None and diverging(start + [9.] * 19) is None
    assert diverging(start + [9.] * 10 + [2.] + [9.] * 10) is None
    assert diverging(start + [4.9] * 20) == pytest.approx(4.8) and diverging(start + [4.7] * 20) is None
    assert diverging([.05] * 10 + [.5] * 30) is None # a student that was good already may get worse by little

@pytest.mark.parametrize('lora, patience', [(0, 19), (4, 19), (0, 0)])
@pytest.mark.parametrize('bad, said', [(float('nan'), 'the loss became nan at step 8 with lr 0.001: run again with a lower lr, e.g. 0.00025'),
                                       (9., r'the loss has been above .* for 20 steps, after .* at first, at step 27 with lr 0.001: run again')])
def test_a_loss_that_goes_wrong_leaves_the_best_student(tmp_path, monkeypatch, bad, said, lora, patience):
    "Two epochs of three steps go well; the second is the best"
    tiny, loss, calls, after, sums = tiny_student(), finetuning.completion_loss, [], [], iter([3., 2., 5.] + [6.] * 40)
    def going_wrong(model, *args):
        calls.append(model.training)
        if len(calls) in (4, 7): after.append([p.detach().clone() for p in model.parameters()]) # of the first and the second epoch
        return loss(model, *args) * (1 if sum(calls) < 8 else bad)
    monkeypatch.setattr(finetuning, 'completion_loss', going_wrong)
    monkeypatch.setattr(finetuning, '_loss_sums', lambda *args, **kwargs: (next(sums), 1))
    recipe = Recipe(epochs=20, batch_size=4, lr=1e-3, patience=patience, validation_share=0.1, lora_rank=lora)
    with pytest.raises(DistillError, match=said) as e: finetune(tiny, HARD[:10], recipe, tmp_path/'work', progress=False)
    assert '\n' not in str(e.value) and f"the student of step 6 is saved in {tmp_path/'work'/'best'}" in str(e.value)
    monkeypatch.undo()
    best = Student.load(tmp_path/'work'/'best')
    assert best.answer(['Why?'], max_new_tokens=5) and not any('lora' in n for n,_ in best.model.named_parameters())
    if not lora: assert [all((p == q).all() for p,q in zip(o, best.model.parameters())) for o in after] == [False, True]

def disk_is_full(monkeypatch, when):
    "Saving a model fails for the calls counted in `when`, as safetensors says it"
    from transformers import PreTrainedModel
    save, calls = PreTrainedModel.save_pretrained, []
    def full(self, path, *args, **kwargs):
        calls.append(1)
        save(self, path, *args, **kwargs)
        if len(calls) in when: raise when[len(calls)]
    monkeypatch.setattr(PreTrainedModel, 'save_pretrained', full)

@pytest.mark.parametrize('error', [OSError(errno.ENOSPC, 'No space left on device'), OSError(errno.EDQUOT, 'Quota'),
                                   RuntimeError('Error while serializing: I/O error: No space left on device (os error 28)')], ids=str)
def test_a_full_disk_costs_a_checkpoint_and_a_line(tmp_path, monkeypatch, capsys, error):
    tiny, recipe = tiny_student(), replace(QUICK, epochs=3)
    whole = finetune(tiny, PAIRS, recipe, tmp_path/'a', progress=False)
    disk_is_full(monkeypatch, {2: error})
    capsys.readouterr()
    new = finetune(tiny, PAIRS, recipe, tmp_path/'b', progress=False)
    said = [o for o in capsys.readouterr().out.splitlines() if 'space' in o]
    assert said == [f"no space left in {tmp_path/'b'}: the checkpoint of step 4 is not written, training goes on without it"]
    assert all((p == q).all() for p,q in zip(whole.model.parameters(), new.model.parameters()))
    assert {o.name for o in (tmp_path/'b').iterdir()} == {'checkpoint-6', 'finetuning.json', 'losses.jsonl'}

def test_the_best_epoch_is_one_that_the_disk_had_room_for(tmp_path, monkeypatch):
    "The second epoch is better than the first, but was not written"
    sums = iter([3., 2., 5., 5.])
    monkeypatch.setattr(finetuning, '_loss_sums', lambda *args, **kwargs: (next(sums), 1))
    disk_is_full(monkeypatch, {2: OSError(errno.ENOSPC, 'full')})
    finetune(tiny_student(), HARD[:10], Recipe(epochs=9, patience=2), tmp_path, progress=False)
    assert read_jsonl(tmp_path/'losses.jsonl')[-1] == dict(kept_epoch=1) and len(read_jsonl(tmp_path/'losses.jsonl')) == 4 * 2 + 4 + 1

def test_other_errors_of_saving_are_not_swallowed(tmp_path, monkeypatch):
    disk_is_full(monkeypatch, {1: OSError(errno.EACCES, 'Permission denied')})
    with pytest.raises(OSError, match='Permission'): finetune(tiny_student(), PAIRS, QUICK, tmp_path, progress=False)
    assert not list(tmp_path.glob('checkpoint-*')) and not (tmp_path/'unfinished').exists()

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
from test_finetuning import EARLY, HARD # stops after the sixth epoch, the fourth is the best; five steps an epoch
loss = finetuning.completion_loss
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
new = finetune(student, HARD, EARLY, work, progress=False)
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

@pytest.mark.parametrize('step, where, left', [(13, 'step', 20), (20, 'checkpoint', 15), (28, 'step', 5)])
def test_a_killed_run_ends_in_the_same_weights(uninterrupted, tmp_path, step, where, left):
    "Killed in the middle of the third epoch, while the checkpoint of the best epoch was written, and in the epoch that is the last for want of patience"
    whole, said = uninterrupted
    assert 'trained 30' in said and 'epoch 4 is kept' in said
    assert run(tmp_path, step, where).returncode == -signal.SIGKILL
    assert not (tmp_path/'student').exists() and len(list(tmp_path.glob('checkpoint-*'))) == 1 + (step > 25)
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

def test_checkpoints_of_another_trainer_are_left_alone(tmp_path, capsys):
    other = tmp_path/'checkpoint-500'
    other.mkdir()
    (other/'trainer_state.json').write_text('{}')
    with pytest.raises(DistillError, match='holds checkpoints of another trainer'): finetune(tiny_student(), PAIRS, QUICK, tmp_path, progress=False)
    assert other.exists()
    for lr in 1e-3, 2e-3: finetune(tiny_student(), PAIRS, replace(QUICK, lr=lr), tmp_path/'own', progress=False)
    assert 'checkpoint-2 was made from other weights, pairs or settings and is removed' in capsys.readouterr().out

def test_a_checkpoint_is_a_whole_model(tmp_path):
    "As is needed where no process has one"
    new = finetune(tiny_student(), PAIRS, QUICK, tmp_path, progress=False)
    loaded = _from_checkpoint(tmp_path/'checkpoint-2', new.device)
    assert all((p == q).all() for p,q in zip(new.model.parameters(), loaded.parameters(), strict=True))

def test_answers_may_be_as_long_as_those_that_were_learned(tmp_path):
    long = [dict(task='Count.', completion=' '.join(map(str, range(150))))]
    new = finetune(tiny_student(), PAIRS + long, QUICK, tmp_path/'work', progress=False)
    learned = len(encode_pair(new, **long[0]).ids) - encode_pair(new, **long[0]).n_prompt
    assert new.max_new_tokens == learned + learned//4 > 150 and Student.load(str(new.save(tmp_path/'student'))).max_new_tokens == new.max_new_tokens
    assert finetune(tiny_student(), PAIRS, QUICK, tmp_path/'short', progress=False).max_new_tokens == 128
    assert finetune(new, PAIRS, QUICK, tmp_path/'again', progress=False).max_new_tokens == 128

def test_patience_needs_something_to_go_by(tmp_path, capsys):
    with pytest.raises(DistillError, match='patience is 3 with validation_share 0'): Recipe(patience=3, validation_share=0)
    finetune(tiny_student(), PAIRS, replace(QUICK, patience=1, validation_share=.1), tmp_path, progress=False)
    assert '4 pairs are too few to keep some for validation, so patience has nothing to go by' in capsys.readouterr().out

def test_split_weights_need_less_of_each_device(monkeypatch):
    rows = [encode_pair(tiny := tiny_student(), **o) for o in PAIRS]
    whole = finetuning._estimate(tiny, rows, QUICK, 4)
    monkeypatch.setenv('ACCELERATE_USE_FSDP', 'true')
    split = finetuning._estimate(tiny, rows, QUICK, 4)
    assert split.weights == whole.weights // 4 and split.optimizer == whole.optimizer // 4

def test_half_written_checkpoints_are_ignored_and_the_last_is_kept(tmp_path):
    tiny = tiny_student()
    (tmp_path/'checkpoint-1').mkdir()
    finetune(tiny, PAIRS, replace(QUICK, epochs=3), tmp_path, progress=False)
    (tmp_path/'checkpoint-99').mkdir()
    assert {o.name for o in tmp_path.iterdir()} == {'checkpoint-6', 'checkpoint-99', 'finetuning.json', 'losses.jsonl'}

def test_the_learning_rate_warms_up_and_falls_to_nothing(tmp_path):
    finetune(tiny_student(), PAIRS * 4, replace(QUICK, epochs=2, warmup_steps=4), tmp_path, progress=False)
    lr = [o['lr'] for o in read_jsonl(tmp_path/'losses.jsonl')]
    top = max(lr)
    assert lr.index(top) in (3, 4) and top <= 1e-3 and lr[0] < lr[1] < lr[2] and all(a >= b for a,b in zip(lr[4:], lr[5:])) and lr[-1] < 2e-4

def test_training_says_little(tmp_path, capfd):
    finetune(tiny_student(), PAIRS, replace(QUICK, epochs=2), tmp_path)
    said = capfd.readouterr()
    assert len(said.out.splitlines()) == 2 and said.out.startswith('epoch 1 of 2: loss ') and said.err == ''
