"Adapters learn, leave a plain student, resume, and name what is missing."
import sys

import pytest

from llm_distill.core.core import DistillError, read_jsonl
from llm_distill.student import training
from llm_distill.student.models import Student, tiny_student
from llm_distill.student.recipe import make_recipe, recipes
from llm_distill.student.training import finetune, mean_loss
from families import FAMILIES, build
from training_data import HARD, PAIRS, encode_all, same_weights


@pytest.fixture(scope='module', params=FAMILIES)
def student(request): return build(request.param)


def test_adapters_learn_and_leave_a_plain_student(student, tmp_path, monkeypatch):
    "The loss falls, and the folder loads without peft and gives the same answers."
    before = [p.detach().clone() for p in student.model.parameters()]
    recipe = make_recipe('lora', epochs=20, batch_size=4, lr=2e-2, warmup_steps=0, validation_share=0)
    tuned = finetune(student, PAIRS, recipe, tmp_path/'work', progress=False)
    losses = [row['loss'] for row in read_jsonl(tmp_path/'work'/'losses.jsonl')]
    assert losses[-1] < 0.9*losses[0]
    assert all((a == b).all() for a, b in zip(before, student.model.parameters()))
    assert all(p.requires_grad for p in student.model.parameters())
    rows = encode_all(student, PAIRS)
    assert mean_loss(tuned, rows) < 0.9*mean_loss(student, rows) # what was merged is what was learned
    assert [k for k, _ in tuned.model.named_parameters()] == [k for k, _ in student.model.named_parameters()]
    monkeypatch.setitem(sys.modules, 'peft', None)
    again = Student.load(tuned.save(tmp_path/'student'))
    assert not list((tmp_path/'student').glob('adapter*'))
    questions = [pair['question'] for pair in PAIRS]
    assert again.answer(questions, max_new_tokens=20) == tuned.answer(questions, max_new_tokens=20)


def test_adapters_resume(tmp_path, monkeypatch):
    tiny, recipe = tiny_student(), make_recipe('lora', epochs=3, batch_size=4, lr=1e-2, patience=2)
    whole = finetune(tiny, HARD, recipe, tmp_path/'a', progress=False)
    calls, loss = [], training.answer_loss

    def stopping(model, *args, **kwargs):
        calls.append(model.training)
        if sum(calls) == 13: raise KeyboardInterrupt
        return loss(model, *args, **kwargs)

    monkeypatch.setattr(training, 'answer_loss', stopping)
    with pytest.raises(KeyboardInterrupt): finetune(tiny, HARD, recipe, tmp_path/'b', progress=False)
    resumed = finetune(tiny, HARD, recipe, tmp_path/'b', progress=False)
    assert sum(calls) == 13 + 5 # two epochs of five steps were done
    assert same_weights(whole, resumed)
    assert (tmp_path/'a'/'losses.jsonl').read_text() == (tmp_path/'b'/'losses.jsonl').read_text()


def test_errors_name_what_adapters_need(tmp_path, monkeypatch):
    import torch
    tiny = tiny_student()
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(DistillError, match="four_bit needs a CUDA device; use the recipe 'lora'"):
        finetune(tiny, PAIRS, recipes['qlora'], tmp_path)
    message = 'lora_rank must be 0 under FSDP, got 16; .*torchrun'
    with monkeypatch.context() as m, pytest.raises(DistillError, match=message):
        m.setenv('ACCELERATE_USE_FSDP', 'true')
        finetune(tiny, PAIRS, recipes['lora'], tmp_path)
    monkeypatch.setitem(sys.modules, 'peft', None)
    with pytest.raises(DistillError, match=r"needs the package peft; `pip install 'llm_distill\[lora\]'`"):
        finetune(tiny, PAIRS, recipes['lora'], tmp_path)
