"The loss of an answer is the model's own for every family, and the fast way of training is the plain one."
import copy, math

import pytest

from llm_distill.core.core import read_jsonl
from llm_distill.student import cpu
from llm_distill.student.batches import LengthGroupedBatchSampler, collate
from llm_distill.student.cpu import answer_loss, fast_cpu_training, sum_cross_entropy
from llm_distill.student.models import tiny_student
from llm_distill.student.recipe import Recipe
from llm_distill.student.training import finetune
from families import FAMILIES, build
from training_data import MANY, batch_of, encode_all


@pytest.fixture(scope='module', params=FAMILIES)
def student(request): return build(request.param)


def tied_student(tied=True):
    from transformers import LlamaConfig
    config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
                         vocab_size=1024, tie_word_embeddings=tied)
    return tiny_student(config)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def test_loss_and_gradients_are_those_of_the_model(student):
    "With the padding mask that we leave out, and all the logits that we do not compute."
    import torch
    _, batch = batch_of(student)
    model = student.model.eval()
    ours = answer_loss(model, **batch)/(batch['labels'] != -100).sum()
    ours_gradients = gradients(model, ours)
    mask = (batch['input_ids'] != student.tokenizer.pad_token_id).long()
    own = model(**batch, attention_mask=mask).loss
    assert ours.item() == pytest.approx(own.item(), rel=1e-4)
    for k, g in gradients(model, own).items():
        assert torch.allclose(g, ours_gradients[k], rtol=1e-3, atol=1e-3*g.abs().max().item() + 1e-8), k
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_the_cross_entropy_and_its_gradient_are_those_of_torch():
    import torch
    torch.manual_seed(0)
    z, y = torch.randn(7, 300_000, requires_grad=True), torch.randint(300_000, (7,)) # one position at a time
    (3*sum_cross_entropy(z, y)).backward()
    ours, z.grad = z.grad, None
    theirs = torch.nn.functional.cross_entropy(z, y, reduction='sum')
    (3*theirs).backward()
    assert sum_cross_entropy(z, y).item() == pytest.approx(theirs.item(), rel=1e-6)
    assert torch.allclose(ours, z.grad, atol=1e-6)


def test_fast_training_leaves_loss_and_gradients_and_cleans_up(student):
    import torch
    _, batch = batch_of(student)
    model = student.model.eval()
    plain_loss = answer_loss(model, **batch)
    plain = gradients(model, plain_loss)
    before = model.config._attn_implementation
    for distributed in False, True:
        with fast_cpu_training(model, 100, distributed):
            loss = answer_loss(model, **batch)
            fast = gradients(model, loss)
            with torch.no_grad(): answer_loss(model, **batch)
        assert loss.item() == pytest.approx(plain_loss.item(), rel=1e-4)
        for k, g in plain.items():
            assert torch.allclose(g, fast[k], rtol=1e-3, atol=1e-3*g.abs().max().item() + 1e-6), k
        assert model.config._attn_implementation == before and not model.get_input_embeddings()._forward_hooks


def test_gradients_of_tied_embeddings_accumulate_over_micro_batches():
    import torch
    model = tied_student().model
    _, batch = batch_of(tied_student())
    halves = [{k: v[rows] for k, v in batch.items()} for rows in (slice(0, 2), slice(2, 4))]
    plain = gradients(model, sum(answer_loss(model, **half) for half in halves))
    model.zero_grad()
    with fast_cpu_training(model, 100):
        for half in halves: answer_loss(model, **half).backward()
    for k, p in model.named_parameters(): assert torch.allclose(p.grad, plain[k], rtol=1e-3, atol=1e-5), k


def plain_training(student, pairs, recipe):
    "The losses of a loop as in textbooks: float32, all logits, fused attention, no micro-batches."
    import torch
    model, rows = copy.deepcopy(student.model), encode_all(student, pairs)
    batches = LengthGroupedBatchSampler([len(row.ids) for row in rows], recipe.batch_size, recipe.random_seed)
    n_steps, losses = recipe.epochs*len(batches), []
    adamw = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0.)
    for batches.epoch in range(recipe.epochs):
        for batch in batches:
            for group in adamw.param_groups: group['lr'] = recipe.lr*(1 - len(losses)/n_steps)
            tensors = collate([rows[i] for i in batch], student.tokenizer.pad_token_id)
            logits = model.train()(input_ids=tensors['input_ids']).logits[:, :-1].flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits, tensors['labels'][:, 1:].flatten(), ignore_index=-100)
            adamw.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
            adamw.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('bf16', [False, None], ids=['float32', 'as the machine has it'])
def test_the_loss_curve_is_that_of_plain_float32_training(tmp_path, monkeypatch, tied, bf16):
    if bf16 is not None: monkeypatch.setattr(cpu, 'has_bf16', lambda device: bf16)
    student = tied_student(tied)
    recipe = Recipe(epochs=3, batch_size=4, lr=3e-3, warmup_steps=0, validation_share=0)
    tuned = finetune(student, MANY, recipe, tmp_path, progress=False)
    ours = [row['loss'] for row in read_jsonl(tmp_path/'losses.jsonl')]
    plain = plain_training(student, MANY, recipe)
    assert len(ours) == len(plain) == 18 and plain[-1] < 0.9*plain[0] and all(map(math.isfinite, ours))
    assert ours == pytest.approx(plain, rel=1e-3 if bf16 is False else 0.05)
    assert tuned.model.config._attn_implementation == student.model.config._attn_implementation == 'sdpa'
