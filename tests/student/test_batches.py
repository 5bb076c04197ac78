"Tokens of a pair, labels and batches, for every family of tokenizers."
import re

import pytest
from hypothesis import given

from llm_distill.core.core import DistillError, read_jsonl, recordings
from llm_distill.core.prompt import student_prompt
from llm_distill.student.batches import (
    LengthGroupedBatchSampler, changed_answers, encode_pair, micro_batches, shard_batch)
from llm_distill.student.cpu import answer_loss
from llm_distill.student.models import Student, tiny_student, tiny_tokenizer
from families import FAMILIES, build, build_chat
from odd_pairs import texts
from odd_texts import anything
from training_data import PAIRS, batch_of


@pytest.fixture(scope='module', params=FAMILIES)
def student(request): return build(request.param)


@pytest.fixture(scope='module', params=FAMILIES)
def chat(request): return build_chat(request.param)


@pytest.fixture(scope='module')
def smollm2():
    "The tokenizer of the real SmolLM2 in a student without weights; skipped if it is not on this machine."
    from llm_distill.student.sources import find_student
    from transformers import AutoConfig, AutoTokenizer
    try: files = find_student('smollm2')
    except DistillError as e: pytest.skip(str(e))
    tokenizer = AutoTokenizer.from_pretrained(files.path, gguf_file=files.gguf)
    config = AutoConfig.for_model('llama', hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                  num_attention_heads=1, vocab_size=len(tokenizer), max_position_embeddings=8192)
    return tiny_student(config, tokenizer)


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


# Text is text

def read_back(student, question, answer):
    "What a student learns from a pair, as text: its question and its answer."
    row = encode_pair(student, question, answer)
    prompt_ids, learned = list(row.ids[:row.n_prompt]), list(row.ids[row.n_prompt:])
    assert prompt_ids == student.question_ids(question) and learned[-1] == student.end_token_id
    assert not set(learned[:-1]) & {*student.eos_token_ids, student.tokenizer.pad_token_id}
    reply, is_complete = student.decode_answer(prompt_ids, learned)
    assert is_complete
    return student.decode_prompt(prompt_ids), student.parse_answer(reply)


def check_text(student, texts=texts):
    @anything
    @given(texts, texts)
    def check(question, answer):
        assert read_back(student, question, answer) == (student_prompt(question), answer)
    check()


def test_every_text_survives_the_tokenizer(student): check_text(student)


def test_every_text_survives_the_tokenizer_of_smollm2(smollm2):
    check_text(smollm2, texts.filter(is_known_to_smollm2))


def is_known_to_smollm2(text):
    "Some control characters and bytes of planes without assigned characters are not in its vocabulary."
    return not re.search('[\x04\x06\x13\x14\x16\x1d\U00040000-\U000bffff]', text)


def check_chat(student, texts=texts):
    @anything
    @given(texts, texts)
    def check(question, answer):
        around = student.decode_prompt(student.question_ids('Xyzzy'))
        assert read_back(student, question, answer) == (around.replace('Xyzzy', question), answer)
        ids = student.question_ids(question)
        template = [dict(role='user', content='x')]
        constant = student.tokenizer.apply_chat_template(template, add_generation_prompt=True).input_ids
        special = set(student.tokenizer.all_special_ids)
        assert [i for i in ids if i in special] == [i for i in constant if i in special]
    check()


def test_every_text_survives_the_chat_format(chat): check_chat(chat)


def test_every_text_survives_the_chat_format_of_smollm2(smollm2):
    student = Student(smollm2.model, smollm2.tokenizer, 'smollm2', format='chat')
    check_chat(student, texts.filter(is_known_to_smollm2))


def recorded_texts():
    rows = [row for file in sorted(recordings.glob('*.jsonl')) for row in read_jsonl(file)[::7]]
    pairs = [(row['question'], answer.removesuffix('<END>')) for row in rows for answer in row['answers']]
    short = [pair for pair in pairs if len(''.join(pair)) < 240] # the tiny models accept 256 tokens
    assert len(short) > 60
    return short


def check_ordinary(student):
    "Token ids of text without control tokens are those of the plain tokenizer."
    encode = student.tokenizer
    for question, answer in recorded_texts():
        prompt = student_prompt(question)
        assert student.encode(prompt) == encode(prompt).input_ids
        row = encode_pair(student, question, answer)
        assert list(row.ids) == [*encode(f'{prompt} {answer}').input_ids, encode.eos_token_id]


def test_ordinary_text_is_encoded_as_the_tokenizer_does(student): check_ordinary(student)


def test_ordinary_text_is_encoded_as_the_tokenizer_of_smollm2_does(smollm2): check_ordinary(smollm2)


def test_a_server_sends_what_a_student_in_chat_format_was_trained_on(chat):
    for question, answer in recorded_texts()[:40]:
        user = dict(role='user', content=question)
        turns = [user, dict(role='assistant', content=answer)]
        prompt = chat.tokenizer.apply_chat_template([user], add_generation_prompt=True).input_ids
        whole = chat.tokenizer.apply_chat_template(turns).input_ids
        row = encode_pair(chat, question, answer)
        assert list(row.ids[:row.n_prompt]) == prompt and list(row.ids) == whole[:len(row.ids)]


def test_an_end_of_turn_that_the_maker_left_an_ordinary_token_is_special():
    "Or its name in an answer would be encoded as the token, and end the answer."
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(['<end_of_turn>'])
    base = tiny_student(tokenizer=tokenizer)
    end = tokenizer.convert_tokens_to_ids('<end_of_turn>')
    base.model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    student = Student(base.model, tokenizer, 'gemma')
    assert student.eos_token_ids == (tokenizer.eos_token_id, end)
    assert read_back(student, 'a <end_of_turn> b', 'c <end_of_turn> d')[1] == 'c <end_of_turn> d'


def test_answers_that_a_tokenizer_changes_are_listed():
    student = build('llama')
    answers = 'one', 'the ▁ of SentencePiece'
    rows = [encode_pair(student, 'Why?', answer) for answer in answers]
    assert changed_answers(student, rows, answers) == [(answers[1], 'the   of SentencePiece')]
    assert changed_answers(build('qwen2'), [encode_pair(build('qwen2'), 'Why?', answers[1])], answers[1:]) == []


@pytest.mark.parametrize('pair', [dict(question=None, answer='a'), dict(question='a', answer=['a'])])
def test_pairs_that_are_not_text_are_refused(pair):
    with pytest.raises(DistillError, match='is a text, got'): encode_pair(tiny_student(), **pair)


# Batches

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
