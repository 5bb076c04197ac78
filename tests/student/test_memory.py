"The memory estimate against the measured peak, and the error when memory is too small."
import gc, re
from dataclasses import replace

import pytest

from llm_distill.core.core import DistillError
from llm_distill.student import memory
from llm_distill.student.memory import available_memory, estimate_memory
from llm_distill.student.models import tiny_student
from llm_distill.student.recipe import Recipe
from llm_distill.student.training import finetune
from families import FAMILIES, build
from training_data import PAIRS, QUICK, encode_all


def peak_of(work):
    "The largest sum of what torch allocates and frees while `work` runs, in bytes; counted, not sampled."
    import torch
    gc.collect() # or what others left would be counted as freed
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as p: work()
    events = [e for e in p.profiler.kineto_results.events() if e.name() == '[memory]']
    now = top = 0
    for e in sorted(events, key=lambda e: e.start_ns()):
        now += e.nbytes()
        top = max(top, now)
    return top


def estimate(student, pairs, recipe, **kwargs):
    rows = encode_all(student, pairs)
    width, n_learned = max(len(row.ids) for row in rows), max(row.n_learned for row in rows)
    return estimate_memory(student.model, recipe, width, n_learned, **kwargs)


@pytest.mark.parametrize('changes', [{}, dict(micro_batch_tokens=100), dict(lora_rank=8), dict(batch_size=2)], ids=str)
def test_the_estimate_is_the_measured_peak_or_somewhat_more(tmp_path, changes):
    import torch
    from transformers import LlamaConfig
    if torch.accelerator.is_available(): pytest.skip('the profiler counts the memory of the CPU')
    config = LlamaConfig(hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
                         vocab_size=4000)
    student = tiny_student(config)
    pairs = [dict(question=f'Do {i} things for me.', answer=', '.join(['do it now']*(i % 5 + 1))) for i in range(24)]
    recipe = replace(Recipe(epochs=1, batch_size=12, validation_share=0), **changes)
    peak = peak_of(lambda: finetune(student, pairs, recipe, tmp_path, progress=False, check_memory=False))
    ratio = estimate(student, pairs, recipe).total/peak
    assert 1/1.05 <= ratio <= 1.3


def test_too_little_memory_is_an_error_that_names_what_would_fit(tmp_path, monkeypatch):
    tiny, pairs, recipe = tiny_student(), PAIRS*8, replace(QUICK, batch_size=32)
    need = estimate(tiny, pairs, recipe)
    assert need.weights == need.gradients == need.optimizer/2 == 4*tiny.n_parameters
    assert need.total == 4*need.weights + need.activations + need.logits

    def refusal(free):
        monkeypatch.setattr(memory, 'available_memory', lambda device: free)
        with pytest.raises(DistillError) as e: finetune(tiny, pairs, recipe, tmp_path/'work', progress=False)
        assert '\n' not in str(e.value) and not (tmp_path/'work').exists()
        return str(e.value)

    message = refusal(need.total - 1)
    assert re.search(r"training tiny needs [\d.]+ MB and [\d.]+ MB are free \(cpu\); use micro_batch_tokens=\d+ .* or "
                     r"the recipe 'lora' .* or a student of less than \d+M", message)
    suggested = int(re.search(r'micro_batch_tokens=(\d+)', message)[1])
    assert 'micro_batch_tokens' not in refusal(100) and 'less than 0M' in refusal(100)
    monkeypatch.setattr(memory, 'available_memory', lambda device: need.total - 1)
    finetune(tiny, pairs, replace(recipe, micro_batch_tokens=suggested), tmp_path/'work', progress=False)


def test_training_in_place_needs_no_second_copy_of_the_weights(tmp_path, monkeypatch):
    tiny = tiny_student()
    need = estimate(tiny, PAIRS, QUICK)
    monkeypatch.setattr(memory, 'available_memory', lambda device: need.total - need.weights)
    with pytest.raises(DistillError, match='training tiny needs'):
        finetune(tiny, PAIRS, QUICK, tmp_path, progress=False)
    finetune(tiny, PAIRS, QUICK, tmp_path, progress=False, in_place=True)


def test_memory_is_free():
    import torch
    assert 0 < available_memory(torch.device('cpu')) < 1e14


def test_the_plan_for_several_devices_follows_from_the_config():
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig
    config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
                         vocab_size=1000)
    with torch.device('meta'): model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    one, four = (estimate_memory(model, Recipe(), devices=n, sharded=n > 1) for n in (1, 4))
    assert four.weights == one.weights//4 and four.optimizer == one.optimizer//4 and not one.communication
    layer, outside = 4*64*64 + 3*64*128 + 2*64, 2*1000*64
    assert one.weights == 4*(4*layer + outside + 64)
    assert four.communication == pytest.approx(8*(outside + 2*layer), rel=.01)
    assert four.activations == one.activations/4 and four.logits == 8*2*64*1000


def test_split_weights_need_less_of_each_device():
    tiny = tiny_student()
    whole, split = (estimate(tiny, PAIRS, QUICK, devices=4, sharded=sharded) for sharded in (False, True))
    assert split.weights == whole.weights//4 and split.optimizer == whole.optimizer//4


@pytest.mark.parametrize('lora', [0, 4])
@pytest.mark.parametrize('family', FAMILIES)
def test_every_family_can_be_estimated(family, lora):
    assert estimate(build(family), PAIRS, Recipe(lora_rank=lora)).activations > 2*2*64*4
