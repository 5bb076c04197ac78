"Answers in batches and streams: the same ones, ended where they should, sampled without regard to the batch."
import random

import pytest
from families import FAMILIES, build, build_chat
from llm_distill.core.core import DistillError
from llm_distill.core.prompt import student_prompt
from llm_distill.student.batches import encode_pair
from llm_distill.student.generation import Generation, SamplingParams, Student
from llm_distill.student.models import tiny_student, tiny_tokenizer

PROMPT = student_prompt('Why?')
QUESTIONS = ['Cancel my gym membership.',
             'Which houses for rent in Raleigh have a fenced yard and are close to the hospital?', 'Why?']
PROMPTS = [student_prompt(question) for question in QUESTIONS]


@pytest.fixture(scope='module', params=FAMILIES)
def student(request): return build(request.param)


@pytest.fixture
def float32(monkeypatch):
    "The rounding of bfloat16 depends on the batch's shape."
    monkeypatch.setattr('llm_distill.student.generation.has_bf16', lambda device: False)


def one_by_one(student, prompts, **kwargs): return [student.generate([prompt], **kwargs)[0] for prompt in prompts]


def generate_with_transformers(student, prompt, n):
    "The tokens that `model.generate` finds for one prompt."
    import torch
    ids = torch.tensor([student.encode(prompt)])
    mask = torch.ones_like(ids)
    output = student.model.generate(ids, attention_mask=mask, max_new_tokens=n, do_sample=False)
    return output[0, ids.shape[1]:].tolist()


def scripted(student, ids):
    "The student, made to answer `ids` and then the last of them over and over; `start_over` makes it begin again."
    import torch
    steps = []

    def force(head, args, logits):
        token = ids[min(len(steps), len(ids) - 1)]
        steps.append(token)
        return torch.nn.functional.one_hot(torch.tensor(token), logits.shape[-1]).float().expand_as(logits)

    student.model.get_output_embeddings().register_forward_hook(force)
    student.start_over = steps.clear
    return student


# batches


def test_batches_answer_as_single_prompts_do_and_in_order(student, float32):
    together = student.generate(PROMPTS, max_new_tokens=12)
    assert together == one_by_one(student, PROMPTS, max_new_tokens=12)
    assert together[::-1] == student.generate(PROMPTS[::-1], max_new_tokens=12, batch_size=2)
    assert len(set(together)) > 1


def test_the_loop_finds_what_that_of_transformers_finds(student, float32):
    params = SamplingParams(max_new_tokens=20)
    for prompt in PROMPTS:
        *_, (ids,) = student.generate_tokens([student.encode(prompt)], params)
        assert ids == generate_with_transformers(student, prompt, 20)


def test_finished_rows_leave_the_batch(student, float32):
    "And the answers of the others do not change."
    sizes = []
    whole = student.generate(PROMPTS, max_new_tokens=24)
    stop = whole[0][1:4], whole[2][1:4]
    head = student.model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda head, args: sizes.append(len(args[0])))
    stopped = student.generate(PROMPTS, max_new_tokens=24, stop=stop)
    hook.remove()
    assert sizes[0] == 3 and sizes == sorted(sizes, reverse=True)
    for text, full in zip(stopped, whole): assert full.startswith(text) and not any(s in text for s in stop)
    if len(sizes) > 4: assert sizes[-1] < 3
    assert stopped == one_by_one(student, PROMPTS, max_new_tokens=24, stop=stop)


@pytest.mark.parametrize('kind, config', [
    ('mamba', {}),
    ('lfm2', dict(num_attention_heads=4, num_key_value_heads=2, layer_types=['conv', 'full_attention']))])
def test_a_cache_that_cannot_drop_rows_keeps_them(kind, config, float32):
    "States are not keys and values, whether in all layers or in some."
    from transformers import AutoConfig
    tokenizer = tiny_tokenizer()
    config = AutoConfig.for_model(kind, hidden_size=32, num_hidden_layers=2, vocab_size=len(tokenizer), **config)
    student = tiny_student(config, tokenizer)
    for name, p in student.model.named_parameters(): # or the embedding of the last token would have it repeated
        if p.ndim > 1 and 'embed' not in name and 'lm_head' not in name: p.data.mul_(4)
    texts = student.generate(PROMPTS, max_new_tokens=12)
    assert texts == one_by_one(student, PROMPTS, max_new_tokens=12)
    stop = [] # two of three rows end early
    for text in texts[0], texts[2]:
        pairs = [text[i:i+2] for i in range(len(text))]
        stop.append(next(o for o in pairs if o not in texts[1]))
    stopped = student.generate(PROMPTS, max_new_tokens=12, stop=stop)
    assert stopped == one_by_one(student, PROMPTS, max_new_tokens=12, stop=stop)


def test_no_prompts_no_answers(): assert tiny_student().generate([]) == []


def test_the_text_is_what_the_tokens_add_to_the_prompt(student):
    "Decoded after the last token of the prompt only, as the whole prompt would have it."
    rng, tokenizer = random.Random(0), student.tokenizer
    special = set(tokenizer.all_special_ids)
    for prompt in PROMPT, 'ends with a space ', 'ends in €', 'x':
        row = student.encode(prompt)
        for _ in range(20):
            ids = [i for i in rng.choices(range(len(tokenizer)), k=6) if i not in special]
            is_byte = tokenizer.convert_ids_to_tokens(row[-1]).startswith('<0x')
            if is_byte: continue # a run of bytes is decoded as one
            before = tokenizer.decode(row, skip_special_tokens=True)
            text = tokenizer.decode(row + ids, skip_special_tokens=True)[len(before):]
            assert student.decode_answer(row, ids) == (text, False)


# questions


@pytest.fixture(scope='module', params=['text', 'chat'])
def asked(request): return build_chat('qwen2') if request.param == 'chat' else tiny_student()


LONG = ['  two\n    lines', 'a <|endoftext|> b', *QUESTIONS]


def test_an_answer_is_the_reply_to_the_prompt_of_the_format(asked, float32):
    rows = [asked.question_ids(question) for question in LONG]
    replies = asked.generate(rows, max_new_tokens=12)
    assert asked.answer(LONG, max_new_tokens=12) == [asked.parse_answer(reply) for reply in replies]
    assert replies == one_by_one(asked, rows, max_new_tokens=12)


@pytest.mark.parametrize('temperature', [0, 1.])
def test_calling_answering_and_streaming_are_the_same(asked, temperature, float32):
    options = dict(max_new_tokens=12, temperature=temperature)
    answers = asked.answer(LONG, **options)
    assert asked(LONG, **options) == asked(tuple(LONG), **options) == answers
    for question, answer in zip(LONG, answers):
        assert asked(question, **options) == answer and asked.answer(question, **options) == [answer]
        pieces = list(asked.stream_answer(question, **options))
        assert ''.join(pieces) == answer and all(pieces)


def test_texts_and_token_ids_are_continued_in_the_same_way(student, float32):
    "With the same random numbers, too."
    rows = [student.encode(prompt) for prompt in PROMPTS]
    for options in dict(max_new_tokens=10), dict(max_new_tokens=10, temperature=1.):
        texts = student.generate(PROMPTS, **options)
        assert student.generate(rows, **options) == student.generate([PROMPTS[0], *rows[1:]], **options) == texts
        assert [''.join(student.stream(row, **options)) for row in rows] == texts


def test_random_numbers_are_those_of_the_text(student):
    for prompt in PROMPTS: assert student.decode_prompt(student.encode(prompt)) == prompt


ANSWERS = ('one line', '    an indent\n  less of it\n\nand none', '  for i in x:\n\tprint(i) # <|endoftext|>',
           'CRLF\r\n  b')


@pytest.mark.parametrize('answer', ANSWERS)
@pytest.mark.parametrize('form', ['text', 'chat'])
def test_an_answer_of_several_lines_comes_back_as_it_was_learned(form, answer, float32):
    student = build_chat('qwen2')
    student.set_format(form)
    row = encode_pair(student, 'Write it.\n  Now.', answer)
    student = scripted(student, row.ids[row.n_prompt:])
    assert student('Write it.\n  Now.') == answer
    student.start_over()
    assert ''.join(student.stream_answer('Write it.\n  Now.')) == answer


@pytest.mark.parametrize('bad', [None, 5, b'Why?', dict(question='Why?')])
def test_what_is_no_question_is_refused(bad):
    tiny = tiny_student()
    for call in tiny, tiny.answer:
        with pytest.raises(DistillError, match='pass a question or a list of them, got') as e: call(bad)
        assert '\n' not in str(e.value)
        with pytest.raises(DistillError, match='a question is a text, got'): call(['Why?', bad])
    with pytest.raises(DistillError, match='a question is a text, got'): tiny.stream_answer(bad)


# ends


def test_one_stop_string_may_be_passed_alone():
    assert SamplingParams(stop='<END>') == SamplingParams(stop=('<END>',))


def test_stop_strings_cut_and_stop_early():
    tiny = tiny_student()
    text = tiny.generate([PROMPT], max_new_tokens=30)[0]
    stop = text[10:13]
    assert stop in text
    calls = []
    tiny.inference_model().register_forward_hook(lambda *args: calls.append(1))
    assert tiny.generate([PROMPT], max_new_tokens=30, stop=('no such text', stop)) == [text[:text.find(stop)]]
    assert len(calls) < 30


@pytest.fixture
def chat_student():
    "A student with two EOS tokens, as Gemma's chat models; the third id is an ordinary word, the fourth unknown."
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(dict(additional_special_tokens=['<end_of_turn>']))
    base = tiny_student(tokenizer=tokenizer)
    assert base.eos_token_ids == (tokenizer.eos_token_id,)
    end_of_turn = tokenizer.convert_tokens_to_ids('<end_of_turn>')
    base.model.generation_config.eos_token_id = [tokenizer.eos_token_id, end_of_turn, 5, 10**6]
    return Student(base.model, tokenizer, 'chat')


def test_every_added_eos_is_kept_and_saved(chat_student, tmp_path):
    tokenizer = chat_student.tokenizer
    ids = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids('<end_of_turn>')
    loaded = Student.load(chat_student.save(tmp_path/'s'))
    assert chat_student.eos_token_ids == loaded.eos_token_ids == ids
    assert loaded.model.generation_config.eos_token_id == [*ids]
    assert loaded.model.config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize('which', [0, 1])
def test_every_eos_ends_an_answer_and_none_is_text(which, chat_student, float32):
    words = chat_student.tokenizer(' Find it').input_ids
    student = scripted(chat_student, [*words, chat_student.eos_token_ids[which], *words])
    assert student.generate([PROMPT], max_new_tokens=20) == [' Find it']
    assert student.last_generation.completion_tokens == len(words) + 1
    student.start_over()
    assert ''.join(student.stream(PROMPT, max_new_tokens=20)) == ' Find it'


def test_an_answer_may_be_empty(float32):
    student = scripted(tiny_student(), [0])
    assert student.generate([PROMPT]) == [''] and list(student.stream(PROMPT)) == []


def test_too_long_a_prompt_is_named(student):
    if student.max_length is None: pytest.skip('this family has no longest sequence')
    with pytest.raises(DistillError, match=rf"'Q: word word.*{student.max_length}") as e:
        student.generate(['Q: ' + 'word ' * student.max_length])
    assert '\n' not in str(e.value)


def test_the_length_of_an_answer_is_that_of_the_call_or_of_the_student(float32):
    tiny = tiny_student()

    def max_new_tokens(**kwargs): return tiny.encode_prompts([PROMPT], SamplingParams(**kwargs))[1].max_new_tokens

    assert tiny.max_new_tokens == max_new_tokens() == 128 and max_new_tokens(max_new_tokens=7) == 7
    tiny.set_max_new_tokens(500)
    assert tiny.max_new_tokens == 625
    assert max_new_tokens() == 512 - len(tiny.encode(PROMPT)), 'no more than the model has room for'
    tiny.set_max_new_tokens(20)
    assert tiny.max_new_tokens == 128


@pytest.mark.parametrize('bad', [dict(max_new_tokens=0), dict(temperature=-1.), dict(temperature=float('nan')),
                                 dict(top_p=0.), dict(top_p=1.5)])
def test_numbers_out_of_range_are_refused(bad):
    tiny = tiny_student()
    (name, value), = bad.items()
    with pytest.raises(DistillError, match=f'{name} must be .*, got {value}'): tiny.generate([PROMPT], **bad)
    with pytest.raises(DistillError, match=f'{name} must be .*, got {value}'): tiny.stream(PROMPT, **bad)


# streams


def test_a_stream_is_the_answer_in_pieces(student, float32):
    for prompt, text in zip(PROMPTS, student.generate(PROMPTS, max_new_tokens=16)):
        for stop in (), (text[3:5],), (text[4:7], text[2:8]), (text[-2:] + 'x',):
            pieces = list(student.stream(prompt, max_new_tokens=16, stop=stop))
            assert [''.join(pieces)] == student.generate([prompt], max_new_tokens=16, stop=stop) and all(pieces)
    assert len(pieces) > 4


@pytest.mark.parametrize('family', ['llama', 'qwen2'])
def test_a_stream_shows_whole_characters_only(family, float32):
    "Bytes as tokens, and as pieces of a byte-level vocabulary."
    text = 'Prix: 5€ 🙂🙂 äöü'
    ids = build(family).tokenizer(text, add_special_tokens=False).input_ids
    student = scripted(build(family), ids)
    pieces = list(student.stream(PROMPT, max_new_tokens=len(ids)))
    assert ''.join(pieces).strip() == text and len(pieces) > 5
    for n in range(1, len(ids)): # wherever it ends, half a character included
        student.start_over()
        whole = student.generate([PROMPT], max_new_tokens=n)[0]
        student.start_over()
        assert ''.join(student.stream(PROMPT, max_new_tokens=n)) == whole


def test_a_stream_never_shows_a_piece_of_a_stop_string(float32):
    ids = tiny_tokenizer()('one <EN two <END> three').input_ids
    student = scripted(tiny_student(), ids)
    pieces = list(student.stream(PROMPT, max_new_tokens=40, stop=('<END>', '###')))
    assert ''.join(pieces) == 'one <EN two '
    assert not any(piece.endswith(('<', '<E')) for piece in pieces)


def test_an_abandoned_stream_leaves_nothing_behind(float32):
    tiny = tiny_student()
    whole = tiny.generate([PROMPT], max_new_tokens=20)[0]
    first = tiny.stream(PROMPT, max_new_tokens=20)
    beginning = next(first)
    assert tiny.generate([PROMPT], max_new_tokens=20) == [whole] # others may ask meanwhile
    assert beginning + ''.join(first) == whole
    abandoned = tiny.stream(PROMPT, max_new_tokens=20)
    next(abandoned)
    abandoned.close()
    assert not tiny.model.get_output_embeddings()._forward_pre_hooks


# sampling


def test_sampling_depends_on_the_seed_and_the_prompt_only(float32):
    tiny = tiny_student()
    greedy = tiny.generate(PROMPTS, max_new_tokens=20)

    def sample(prompts, **kwargs): return tiny.generate(prompts, max_new_tokens=20, temperature=1., **kwargs)

    together = sample(PROMPTS)
    assert together == sample(PROMPTS)
    assert not set(together) & {*sample(PROMPTS, random_seed=1), *greedy}
    assert together[::-1] == sample(PROMPTS[::-1], batch_size=2)
    assert together == [sample([prompt])[0] for prompt in PROMPTS]
    assert together == [''.join(tiny.stream(prompt, max_new_tokens=20, temperature=1.)) for prompt in PROMPTS]
    stop = together[0][1:4], together[1][1:4] # the two longest leave the batch
    assert sample(PROMPTS, stop=stop) == [sample([prompt], stop=stop)[0] for prompt in PROMPTS]
    assert not any(s in together[2][:9] for s in stop)
    twice = sample([PROMPTS[0], *PROMPTS])
    assert twice[0] == together[0] != twice[1] and twice[2:] == together[1:]
    assert sample(PROMPTS, top_p=1e-6) == greedy != sample(PROMPTS, top_p=0.9)


# cost


def test_the_cost_of_generating_is_counted(float32):
    tiny = tiny_student()
    assert tiny.last_generation is None
    tiny.generate(PROMPTS, max_new_tokens=5, batch_size=2)
    last = tiny.last_generation
    assert last.requests == 3 and last.prompt_tokens == sum(len(tiny.encode(prompt)) for prompt in PROMPTS)
    assert 3 <= last.completion_tokens <= 15
    assert last.seconds > 0 and last.tokens_per_second == last.completion_tokens / last.seconds
    tiny.generate([])
    assert tiny.last_generation == Generation(seconds=tiny.last_generation.seconds)


def test_a_finished_row_that_stays_in_the_batch_is_not_counted(float32):
    tiny = tiny_student()
    stop = [tiny.generate(PROMPTS, max_new_tokens=20)[1][2:5]]
    tiny.generate(PROMPTS, max_new_tokens=20, stop=stop)
    batch, single = tiny.last_generation, Generation()
    for prompt in PROMPTS:
        tiny.generate([prompt], max_new_tokens=20, stop=stop)
        single += tiny.last_generation
    assert batch.completion_tokens == single.completion_tokens < 60 and batch.prompt_tokens == single.prompt_tokens


# bfloat16 copy


def copy_is_current(student):
    "Whether the weights that answers are made with are those of the model."
    pairs = zip(student.inference_model().parameters(), student.model.parameters())
    return all((a == b.to(a.dtype)).all() for a, b in pairs)


def test_the_bf16_copy_follows_the_weights():
    import torch
    tiny = tiny_student()
    before = tiny.generate([PROMPT], max_new_tokens=20)
    with torch.no_grad(): tiny.model.get_output_embeddings().weight.neg_()
    assert tiny.generate([PROMPT], max_new_tokens=20) != before
    assert all(p.dtype == torch.float32 for p in tiny.model.parameters())


@pytest.mark.parametrize('fused', [True, False])
def test_the_bf16_copy_follows_the_weights_also_if_a_fused_optimizer_writes_them(fused):
    import torch
    tiny = tiny_student()
    assert copy_is_current(tiny) and tiny.inference_model() is tiny.inference_model()
    before = [p.clone() for p in tiny.inference_model().parameters()]
    optimizer = torch.optim.AdamW(tiny.model.parameters(), lr=.1, fused=fused)
    tiny.model(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    assert copy_is_current(tiny)
    assert not all((a == b).all() for a, b in zip(before, tiny.inference_model().parameters()))
    with torch.no_grad(): next(tiny.model.parameters())[0, 1] += 1 # one place, between those that are sampled
    assert copy_is_current(tiny) and all(p.dtype == torch.float32 for p in tiny.model.parameters())
