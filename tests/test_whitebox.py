"White-box distillation: the divergence that TRL's trainer computes, what counts in it, which teachers are refused, what is learned; models cut from others."
import copy, json, sys
import numpy as np
import pytest
from llm_distill import finetuning, whitebox
from llm_distill.finetuning import Recipe, best_epoch, encode_pair, finetune, mean_loss
from llm_distill.prompts import DistillError, read_jsonl
from llm_distill.student import Student, tiny_student, tiny_tokenizer
from llm_distill.whitebox import cut_layers, distill_logits
from families import FAMILIES, build

PAIRS = [dict(task=t, completion=c) for t,c in (
    ('Cancel my gym membership.', 'Find the gym, cancel the membership.'), ('Why?', 'Ask.'),
    ('Show me sushi in Seattle.', 'Find Seattle, find sushi, show it.'), ('Mail the invoices of May.', 'Find the invoices, keep those of May, mail them.'))]
STEP = Recipe(epochs=1, batch_size=4, lr=1e-3, warmup_steps=0, validation_share=0)
BY_HEART = Recipe(epochs=60, batch_size=4, lr=5e-3, warmup_steps=5, validation_share=0)

@pytest.fixture
def exact(monkeypatch): monkeypatch.setattr(whitebox, 'has_bf16', lambda device: False)

def pair_of(family='llama'):
    "A teacher and a student that are surer than random models are, so that the divergences differ"
    import torch
    out = build(family, 1), build(family)
    with torch.no_grad():
        for o, sure in zip(out, (20, 10)): o.model.get_output_embeddings().weight.mul_(sure)
    return out

def probabilities(student):
    "For each pair, the distributions (learned tokens, vocabulary) that predict the completion and EOS, and those tokens"
    import torch
    for o in PAIRS:
        row = encode_pair(student, o['task'], o['completion'])
        with torch.no_grad(): logits = student.model.eval()(torch.tensor([row.ids])).logits[0].double()
        yield logits.softmax(-1)[row.n_prompt-1:-1].numpy(), np.array(row.ids[row.n_prompt:])

def kl(p, q): return (p * np.log(p / q)).sum(-1)

def by_hand(teacher, student, beta, hard):
    "The loss over all pairs, a mean over the learned tokens, from the definitions"
    out = []
    for (t, ids), (s, _) in zip(probabilities(teacher), probabilities(student)):
        m = beta*t + (1 - beta)*s
        divergence = kl(t, s) if beta == 0 else kl(s, t) if beta == 1 else beta*kl(t, m) + (1 - beta)*kl(s, m)
        out.append((1 - hard)*divergence - hard*np.log(s[np.arange(len(ids)), ids]))
    return np.concatenate(out).mean()

def first_loss(folder): return read_jsonl(folder/'losses.jsonl')[0]['loss']

def test_by_hand_knows_an_answer():
    p, q = np.array([[.5, .5]]), np.array([[.25, .75]])
    assert kl(p, q)[0] == pytest.approx(.5*np.log(2) + .5*np.log(2/3)) and kl(q, p)[0] == pytest.approx(.25*np.log(.5) + .75*np.log(1.5))

@pytest.mark.parametrize('beta, hard', [(0, 0), (1, 0), (0.3, 0), (0, 0.5), (1, 0.25), (0, 1)])
def test_loss_is_the_divergence_of_its_definition(beta, hard, tmp_path, exact):
    teacher, student = pair_of()
    distill_logits(teacher, student, PAIRS, STEP, tmp_path, beta=beta, hard=hard, progress=False)
    want = by_hand(teacher, student, beta, hard)
    assert first_loss(tmp_path) == pytest.approx(want, rel=1e-4)
    others = [by_hand(teacher, student, b, h) for b,h in [(0, 0), (1, 0), (0.3, 0), (0, 0.5), (1, 0.25), (0, 1)] if (b, h) != (beta, hard)]
    assert min(abs(o - want) for o in others) > 0.002*want, 'the cases are too alike to tell one from another'

@pytest.mark.parametrize('family', FAMILIES)
def test_only_the_completion_counts_for_every_family(family, tmp_path, exact):
    teacher, student = pair_of(family)
    for m in student.model.modules():
        if hasattr(m, 'p') and isinstance(m.p, float): m.p = 0. # OPT's dropout would make the loss random
        if hasattr(m, 'dropout') and isinstance(m.dropout, float): m.dropout = 0.
    new = distill_logits(teacher, student, PAIRS, STEP, tmp_path, beta=0., hard=0.5, progress=False)
    assert first_loss(tmp_path) == pytest.approx(by_hand(teacher, student, 0, 0.5), rel=1e-3)
    for o in (teacher, student, new):
        assert 'forward' not in vars(o.model) and not o.model.get_output_embeddings()._forward_pre_hooks

def test_a_batch_in_parts_gives_the_same(tmp_path, exact):
    teacher, student = pair_of()
    whole = distill_logits(teacher, student, PAIRS, STEP, tmp_path/'a', progress=False)
    parts = distill_logits(teacher, student, PAIRS, Recipe(**{**vars(STEP), 'tokens_at_once': 1}), tmp_path/'b', progress=False)
    assert first_loss(tmp_path/'a') == pytest.approx(first_loss(tmp_path/'b'), rel=1e-5)
    for a,b in zip(whole.model.parameters(), parts.model.parameters()): assert (a - b).abs().max() < 1e-4

def mean_kl(teacher, student):
    return np.concatenate([kl(t, s) for (t,_), (s,_) in zip(probabilities(teacher), probabilities(student))]).mean()

def test_student_comes_to_answer_like_its_teacher_and_stops_by_itself(tmp_path):
    "Through the probabilities alone; the labels tell the way, not the answer. Teacher and student given stay as they are"
    blank = tiny_student()
    teacher = finetune(tiny_student(seed=1), PAIRS, BY_HEART, tmp_path/'teacher', progress=False)
    before = [[p.detach().clone() for p in o.model.parameters()] for o in (teacher, blank)]
    student = distill_logits(teacher, blank, PAIRS, BY_HEART, tmp_path/'student', beta=0., hard=0., progress=False)
    assert mean_kl(teacher, student) < 0.05*mean_kl(teacher, blank)
    assert student.answer([o['task'] for o in PAIRS], max_new_tokens=60) == [o['completion'] for o in PAIRS]
    assert all((a == b).all() for old, o in zip(before, (teacher, blank)) for a,b in zip(old, o.model.parameters()))
    again = Student.load(student.save(tmp_path/'saved'))
    assert again.answer([PAIRS[0]['task']], max_new_tokens=60) == [PAIRS[0]['completion']]

def test_the_probabilities_are_learned_and_not_the_labels(tmp_path):
    "A teacher that thinks little of the labels keeps a student of divergence alone from learning them"
    teacher, blank = pair_of()
    losses = {}
    for hard in (0., 1.):
        new = distill_logits(teacher, blank, PAIRS, Recipe(**{**vars(STEP), 'epochs': 20}), tmp_path/str(hard), hard=hard, progress=False)
        losses[hard] = mean_kl(teacher, new), mean_loss(new, [encode_pair(new, o['task'], o['completion']) for o in PAIRS])
    assert losses[0.][0] < losses[1.][0] and losses[0.][1] > losses[1.][1]

def test_hard_labels_alone_are_fine_tuning(tmp_path, exact):
    a = distill_logits(tiny_student(seed=1), tiny_student(), PAIRS, STEP, tmp_path/'a', hard=1., progress=False)
    finetune(tiny_student(), PAIRS, STEP, tmp_path/'b', progress=False)
    assert first_loss(tmp_path/'a') == pytest.approx(first_loss(tmp_path/'b'), rel=1e-2)
    assert read_jsonl(tmp_path/'a'/'losses.jsonl')[0].keys() == read_jsonl(tmp_path/'b'/'losses.jsonl')[0].keys()

# Which teachers, which settings

def shuffled(tokenizer):
    "A tokenizer with the same tokens that joins them in another order"
    d = json.loads(tokenizer._tokenizer.to_str())
    d['model']['merges'] = d['model']['merges'][::-1]
    t = copy.deepcopy(tokenizer)
    t._tokenizer = type(tokenizer._tokenizer).from_str(json.dumps(d))
    return t

def test_another_tokenizer_is_refused(tmp_path):
    student = tiny_student()
    for other in (tiny_tokenizer(512), shuffled(student.tokenizer)):
        teacher = tiny_student(tokenizer=other)
        teacher.name = 'large'
        with pytest.raises(DistillError, match="'large' and 'tiny' have different tokenizers"): distill_logits(teacher, student, PAIRS, STEP, tmp_path)
    wide = tiny_student()
    wide.model.resize_token_embeddings(1040, mean_resizing=False)
    with pytest.raises(DistillError, match='1040 and 1024'): distill_logits(wide, student, PAIRS, STEP, tmp_path)
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('settings, said', [(dict(beta=1.5), 'beta is 1.5'), (dict(hard=-1), 'hard is -1'), (dict(hard='all'), "hard is 'all'"),
                                            (dict(recipe=Recipe(lora_rank=8)), 'lora_rank is 8'), (dict(pairs=[]), '0 pairs')])
def test_what_cannot_be_followed_is_said(settings, said, tmp_path):
    with pytest.raises(DistillError, match=said): distill_logits(**dict(teacher=tiny_student(), student=tiny_student(), pairs=PAIRS, recipe=STEP, work_dir=tmp_path) | settings)

def test_one_process_only(monkeypatch, tmp_path):
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(DistillError, match='WORLD_SIZE is 2'): distill_logits(tiny_student(), tiny_student(), PAIRS, STEP, tmp_path)

def test_frozen_layers_stay(tmp_path):
    student = tiny_student()
    new = distill_logits(tiny_student(seed=1), student, PAIRS, Recipe(**{**vars(STEP), 'frozen_layers': 1}), tmp_path, progress=False)
    moved = [(a.mlp.up_proj.weight != b.mlp.up_proj.weight).any().item() for a,b in zip(student.model.model.layers, new.model.model.layers)]
    assert moved == [False, True] and all(p.requires_grad for p in new.model.parameters())

def test_trl_is_an_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'trl.experimental.gkd', None)
    with pytest.raises(DistillError, match=r'llm_distill\[whitebox\]'): distill_logits(tiny_student(), tiny_student(), PAIRS, STEP, tmp_path)

# Checkpoints

def test_goes_on_where_it_stopped(tmp_path, monkeypatch):
    teacher, student, recipe = tiny_student(seed=1), tiny_student(), Recipe(epochs=3, batch_size=2, lr=1e-3, validation_share=0.25)
    want = distill_logits(teacher, student, PAIRS, recipe, tmp_path/'a', progress=False)
    with monkeypatch.context() as m:
        def stop(text): raise KeyboardInterrupt
        m.setattr(finetuning, '_say', stop)
        with pytest.raises(KeyboardInterrupt): distill_logits(teacher, student, PAIRS, recipe, tmp_path/'b', progress=False)
    said = []
    monkeypatch.setattr(finetuning, '_say', said.append)
    for lines in (2, 2): # the second time nothing is left to do
        got = distill_logits(teacher, student, PAIRS, recipe, tmp_path/'b', progress=False)
        assert len(said) == lines
        assert all((a == b).all() for a,b in zip(want.model.parameters(), got.model.parameters()))
    assert read_jsonl(tmp_path/'a'/'losses.jsonl') == read_jsonl(tmp_path/'b'/'losses.jsonl')
    distill_logits(teacher, student, PAIRS, recipe, tmp_path/'b', beta=1., progress=False)
    assert len(said) == 6 and 'is removed' in said[2], 'another divergence starts anew'

def test_best_epoch_is_kept_with_patience(tmp_path):
    teacher, student = tiny_student(seed=1), tiny_student()
    new = distill_logits(teacher, student, PAIRS, Recipe(epochs=30, batch_size=1, lr=2e-2, validation_share=0.25, patience=2), tmp_path, hard=1., progress=False)
    rows = read_jsonl(tmp_path/'losses.jsonl')
    losses = [r['validation_loss'] for r in rows if 'validation_loss' in r]
    assert len(losses) < 30 and rows[-1] == dict(kept_epoch=best_epoch(rows[:-1])) and losses[-1] > min(losses)
    validation = [encode_pair(new, PAIRS[-1]['task'], PAIRS[-1]['completion'])]
    assert mean_loss(new, validation) == pytest.approx(min(losses), rel=1e-5)

# Cut models

@pytest.fixture(scope='module', params=FAMILIES)
def deep(request):
    "A student of six layers"
    kind, make, config = FAMILIES[request.param]
    six = dict(n_layer=6) if kind == 'bloom' else dict(num_layers=6, attention_types=[[['global', 'local'], 3]]) if kind == 'gpt_neo' else dict(num_hidden_layers=6)
    with pytest.MonkeyPatch.context() as m:
        m.setitem(FAMILIES, request.param, (kind, make, config | six))
        return build(request.param)

def skipping(model, keep):
    "A copy of a model whose other layers give what they are given"
    import torch
    model = copy.deepcopy(model)
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 6)
    def skip(layer, args, kwargs, out):
        same = args[0] if args else kwargs['hidden_states']
        return (same, *out[1:]) if isinstance(out, tuple) else same
    for i,o in enumerate(layers):
        if i not in keep: o.register_forward_hook(skip, with_kwargs=True)
    return model

@pytest.mark.parametrize('every, keep', [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4]), (4, [0, 4]), (6, [0])])
def test_the_layers_that_stay_are_the_right_ones(deep, every, keep):
    import torch
    cut, ids = cut_layers(deep, every), torch.tensor([deep.encode('Q: Cancel my gym membership.\nA: Find')])
    assert cut.model.config.num_hidden_layers == len(keep) and f'{len(keep)} of 6 layers' in cut.name
    with torch.no_grad():
        got, want = (m(ids, use_cache=False).logits for m in (cut.model, skipping(deep.model, keep)))
        assert torch.allclose(got, want, atol=1e-5)
        if len(keep) < 6: assert not torch.allclose(got, deep.model(ids).logits, atol=1e-3)

def test_cut_model_generates_with_its_cache_and_as_saved(deep, tmp_path):
    import torch
    cut, prompt = cut_layers(deep), 'Q: Cancel my gym membership.\nA:'
    ids = torch.tensor([cut.encode(prompt)])
    settings = dict(max_new_tokens=12, do_sample=False, eos_token_id=None)
    with torch.no_grad(): cached, plain = (cut.model.generate(ids, use_cache=c, **settings) for c in (True, False))
    assert cached.tolist() == plain.tolist() and cached.shape[1] == ids.shape[1] + 12
    again = Student.load(cut.save(tmp_path/'cut'))
    assert again.model.config.num_hidden_layers == 3
    assert again.generate([prompt], max_new_tokens=12) == cut.generate([prompt], max_new_tokens=12)

def test_cut_leaves_the_other_as_it_was():
    import torch
    old = tiny_student()
    weights, state = [p.detach().clone() for p in old.model.parameters()], torch.random.get_rng_state()
    new = cut_layers(old)
    with torch.no_grad():
        for p in new.model.parameters(): p.zero_()
    assert all((a == b).all() for a,b in zip(weights, old.model.parameters())) and old.model.config.num_hidden_layers == 2
    assert (torch.random.get_rng_state() == state).all()

@pytest.mark.parametrize('every', [0, -1, 3, 1.5, 'two'])
def test_a_cut_that_makes_no_model_is_refused(every):
    with pytest.raises(DistillError, match='every is'): cut_layers(tiny_student(), every)
