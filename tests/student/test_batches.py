"Tokens of a pair, labels and batches, for every family of tokenizers."
import pytest

from llm_distill.core.core import DistillError
from llm_distill.core.prompt import student_prompt
from llm_distill.student.batches import LengthGroupedBatchSampler, encode_pair, micro_batches, shard_batch
from llm_distill.student.cpu import answer_loss
from families import FAMILIES, build
from training_data import PAIRS, batch_of


@pytest.fixture(scope='module', params=FAMILIES)
def student(request): return build(request.param)


def test_prompt_is_that_of_generation_and_the_answer_ends_in_eos(student):
    tokenizer = student.tokenizer
    for pair in PAIRS:
        row = encode_pair(student, **pair)
        assert list(row.ids[:row.n_prompt]) == student.encode(student_prompt(pair['question']))
        learned = row.ids[row.n_prompt:]
        assert len(learned) == row.n_learned and learned[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in learned[:-1] and tokenizer.pad_token_id not in learned
        whole = tokenizer.decode(row.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert whole == f'{student_prompt(pair["question"])} {pair["answer"]}'


def test_labels_are_the_answer_with_its_eos_and_never_padding(student):
    rows, batch = batch_of(student)
    pad = student.tokenizer.pad_token_id
    for row, ids, labels in zip(rows, batch['input_ids'].tolist(), batch['labels'].tolist()):
        assert [o for o in labels if o != -100] == list(row.ids[row.n_prompt:])
        assert labels[:row.n_prompt] == [-100]*row.n_prompt and set(labels[len(row.ids):]) <= {-100}
        assert set(ids[len(row.ids):]) <= {pad}
    assert pad not in batch['labels'].flatten().tolist()


def test_micro_batches_give_the_loss_of_the_batch(student):
    import torch
    _, batch = batch_of(student)
    parts = list(micro_batches(batch, 2*batch['input_ids'].shape[1]))
    assert len(parts) == 2 and sum(len(part['input_ids']) for part in parts) == 4
    assert all((part['labels'][:, -1] != -100).any() for part in parts)
    with torch.no_grad():
        total = sum(answer_loss(student.model.eval(), **part) for part in parts)
        assert total.item() == pytest.approx(answer_loss(student.model, **batch).item(), rel=1e-4)


def test_a_pair_that_is_too_long_is_named(student):
    if student.max_length is None: pytest.skip('this family has no longest sequence')
    with pytest.raises(DistillError, match=rf"'Why\?'.*{student.max_length}"):
        encode_pair(student, 'Why?', 'word '*student.max_length)


def test_batches_hold_every_row_once_of_similar_length_in_an_order_of_seed_and_epoch():
    lengths = [10 + 7*i % 40 for i in range(83)]

    def batches(random_seed, epoch):
        sampler = LengthGroupedBatchSampler(lengths, 8, random_seed)
        sampler.epoch = epoch
        return list(sampler)

    for b in batches(0, 0), batches(0, 1), batches(3, 0):
        assert sorted(sum(b, [])) == list(range(83)) and {len(o) for o in b} <= {7, 8}
        assert len(b) == len(LengthGroupedBatchSampler(lengths, 8)) == 11
        padded = sum(len(o)*max(lengths[i] for i in o) for o in b)
        assert padded < 1.2*sum(lengths)
    assert batches(0, 0) == batches(0, 0) and batches(0, 0) != batches(0, 1) and batches(0, 0) != batches(3, 0)


def test_each_process_takes_its_rows_or_a_dummy():
    three = dict(input_ids=[[1], [2], [3]], labels=[[1], [2], [3]])
    shards = [shard_batch(three, rank, 4) for rank in range(4)]
    assert [(rows['labels'], weight) for rows, weight in shards] == [([[1]], 1), ([[2]], 1), ([[3]], 1), ([[1]], 0)]
