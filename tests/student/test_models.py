"Students of every family: pad, EOS, saving, loading, and what is refused."
import json, os, shutil, subprocess, sys

import pytest
from families import FAMILIES, build, build_chat
from llm_distill.core.core import DistillError
from llm_distill.core.prompt import SeedPrompt, student_prompt
from llm_distill.student.generation import Student
from llm_distill.student.models import best_device, tiny_student, tiny_tokenizer

QUESTIONS = ['Cancel my gym membership.',
             'Which houses for rent in Raleigh have a fenced yard and are close to the hospital?', 'Why?']


@pytest.fixture(scope='module', params=FAMILIES)
def student(request): return build(request.param)


def assert_one_line(error): assert '\n' not in str(error.value)


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


# special tokens


def test_pad_is_not_eos_and_has_an_embedding(student):
    tokenizer, model = student.tokenizer, student.model
    assert tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id
    assert len(tokenizer) <= model.get_input_embeddings().num_embeddings
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize('unk', ['<|endoftext|>', None])
def test_a_vocabulary_without_pad_gets_one(unk, tmp_path):
    "As GPT-2's, whose unknown token is its EOS, and Llama 3's, which has none."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=['<|endoftext|>'], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(QUESTIONS, trainer)
    unknown = dict(unk_token=unk) if unk else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token='<|endoftext|>', **unknown)
    n = len(tokenizer)
    student = tiny_student(tokenizer=tokenizer)
    assert student.tokenizer.pad_token_id == n != student.tokenizer.eos_token_id
    assert student.model.get_input_embeddings().num_embeddings == n + 1
    reloaded = Student.load(str(student.save(tmp_path/'student')))
    assert len(reloaded.tokenizer) == n + 1 and reloaded.tokenizer.pad_token_id == n
    assert reloaded.answer(QUESTIONS) == student.answer(QUESTIONS)


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = tiny_tokenizer(300)
    tokenizer.eos_token = None
    message = 'has no EOS token; set tokenizer.eos_token first'
    with pytest.raises(DistillError, match=message): tiny_student(tokenizer=tokenizer)


def test_generation_settings_of_the_maker_do_not_reach_the_answers():
    plain, model = tiny_student(), tiny_student().model
    model.generation_config.update(repetition_penalty=5., do_sample=True, top_p=0.1)
    student = Student(model, plain.tokenizer, 'again')
    assert student.answer(QUESTIONS, max_new_tokens=12) == plain.answer(QUESTIONS, max_new_tokens=12)
    assert model.generation_config.repetition_penalty in (None, 1.0)


def test_tiny_student_is_the_same_in_another_process():
    code = ("from llm_distill.student.models import tiny_student; t = tiny_student(); "
            "print(t.encode('Q: Find flights.'), sum(p.double().sum().item() for p in t.model.parameters()))")
    env = os.environ | dict(OMP_NUM_THREADS='1')
    outputs = set()
    for _ in range(2):
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=env)
        outputs.add(done.stdout)
    assert len(outputs) == 1


# saving


def test_saved_and_reloaded_is_the_same(student, tmp_path):
    student.save(tmp_path/'s', card='# Card')
    reloaded = Student.load(tmp_path/'s')
    prompts = [student_prompt(question) for question in QUESTIONS]
    assert reloaded.generate(prompts, max_new_tokens=12) == student.generate(prompts, max_new_tokens=12)
    assert (tmp_path/'s'/'README.md').read_text() == '# Card'
    assert not [o for o in (tmp_path/'s').iterdir() if o.suffix in ('.bin', '.pt', '.pth', '.pkl')]
    settings, tokenizer = reloaded.model.generation_config, reloaded.tokenizer
    assert settings.eos_token_id == tokenizer.eos_token_id and settings.pad_token_id == tokenizer.pad_token_id
    assert not settings.do_sample
    assert tokenizer.pad_token_id == student.tokenizer.pad_token_id


def test_a_server_tokenizes_what_was_trained_on(student, tmp_path):
    tokenizer = Student.load(student.save(tmp_path/'s')).tokenizer
    for question in QUESTIONS:
        user = dict(role='user', content=question)
        parts = dict(role='user', content=[dict(type='text', text=question)])
        for messages in [user], [parts]:
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True).input_ids
            assert ids == student.encode(student_prompt(question)) == student.question_ids(question)


EARLIER = [dict(role='user', content='An earlier one.'), dict(role='assistant', content='Done.')]
SYSTEM = dict(role='system', content='Be brief.')


@pytest.mark.parametrize('before', [EARLIER, [SYSTEM], [SYSTEM, *EARLIER]])
def test_the_saved_template_drops_no_turn_in_silence(before, tmp_path):
    from jinja2 import TemplateError
    tokenizer = Student.load(tiny_student().save(tmp_path/'s')).tokenizer
    with pytest.raises(TemplateError, match='answers one question'):
        tokenizer.apply_chat_template([*before, dict(role='user', content='Why?')], tokenize=False)


def test_the_saved_template_accepts_the_messages_of_the_distilled_prompt(tmp_path):
    prompt = SeedPrompt('Be brief.', [('Where?', 'Here.\nThere.')], 'Why?', form='chat')
    folder = tiny_student().save(tmp_path/'s', metadata=dict(prompt=prompt.to_dict()))
    again = Student.load(folder).save(tmp_path/'t') # knows it from its metadata
    for path in folder, again:
        text = Student.load(path).tokenizer.apply_chat_template(prompt.messages('Who?\n  I?'), tokenize=False)
        assert text == student_prompt('Who?\n  I?')


# format


def test_a_student_in_chat_format_is_saved_with_its_own_template(tmp_path):
    student = build_chat('qwen2')
    template = student.tokenizer.chat_template
    loaded = Student.load(student.save(tmp_path/'s', metadata=dict(teacher='big')))
    assert loaded.format == student.format == 'chat' and loaded.metadata == dict(teacher='big')
    assert loaded.tokenizer.chat_template == student.tokenizer.chat_template == template
    assert loaded.eos_token_ids == student.eos_token_ids and loaded.end_token_id == student.eos_token_ids[1]
    for question in QUESTIONS: assert loaded.question_ids(question) == student.question_ids(question)
    assert loaded.answer(QUESTIONS) == student.answer(QUESTIONS)


def test_saving_in_text_format_leaves_the_template_in_memory_as_it_was(tmp_path):
    student = build_chat('qwen2')
    template = student.tokenizer.chat_template
    student.set_format('text')
    assert Student.load(student.save(tmp_path/'s')).tokenizer.chat_template != template
    assert student.tokenizer.chat_template == template


def test_a_saved_student_without_a_format_is_asked_as_text(tmp_path):
    folder = tiny_student().save(tmp_path/'s', metadata=dict(teacher='big'))
    assert json.loads((folder/'distillation.json').read_text()) == dict(teacher='big', format='text')
    (folder/'distillation.json').write_text('{"teacher": "big"}')
    assert Student.load(folder).format == 'text'
    (folder/'distillation.json').write_text('{"format": "html"}')
    with pytest.raises(DistillError, match='is text or chat, got .html.'): Student.load(folder)


def test_a_base_model_without_a_chat_template_has_no_chat_format():
    tiny = tiny_student()
    message = "'tiny' .* chat: there is no chat template; use"
    with pytest.raises(DistillError, match=message) as e: tiny.set_format('chat')
    assert_one_line(e)
    assert tiny.format == 'text' and tiny.question_ids('Why?') == tiny.encode(student_prompt('Why?'))


def test_an_answer_in_chat_format_ends_in_eos_if_the_model_does_not_end_turns(tmp_path):
    student = build_chat('llama')
    student.model.generation_config.eos_token_id = student.tokenizer.eos_token_id
    student = Student(student.model, student.tokenizer, 'base', format='chat')
    assert student.eos_token_ids == (student.tokenizer.eos_token_id,)
    assert student.end_token_id == student.tokenizer.eos_token_id


def test_saving_replaces_a_folder_whole(tmp_path):
    tiny = tiny_student()
    folder = tiny.save(tmp_path/'s')
    (folder/'left over').write_text('x')
    tiny.save(folder)
    assert not (folder/'left over').exists() and [o.name for o in tmp_path.iterdir()] == ['s']


@pytest.mark.parametrize('files', [['a.txt'], ['config.json', 'app.py'], ['README.md'],
                                   ['config.json', 'pytorch_model.bin']])
def test_saving_replaces_nothing_but_a_student(files, tmp_path):
    folder = tmp_path/'papers'
    folder.mkdir()
    for name in files: (folder/name).write_text('mine')
    with pytest.raises(DistillError, match='papers.*not a saved student') as e: tiny_student().save(folder)
    assert_one_line(e)
    assert sorted(o.name for o in folder.iterdir()) == sorted(files)
    with pytest.raises(DistillError, match='not a saved student'): tiny_student().save(folder/files[0])


def test_saving_replaces_an_empty_folder_behind_a_link_and_a_card_without_weights(tmp_path):
    tiny = tiny_student()
    (tmp_path/'empty').mkdir()
    (tmp_path/'link').symlink_to(tmp_path/'empty')
    tiny.save(tmp_path/'link')
    assert (tmp_path/'link').is_symlink() and (tmp_path/'empty'/'config.json').exists()
    for file in (tmp_path/'empty').iterdir(): # a run whose weights were not kept
        if file.name != 'README.md': file.unlink()
    tiny.save(tmp_path/'empty')
    assert (tmp_path/'empty'/'config.json').exists()
    assert sorted(o.name for o in tmp_path.iterdir()) == ['empty', 'link']


def test_metadata_stays_with_the_student(tmp_path):
    prompt = dict(instruction='Ä', examples=[], end='<END>')
    metadata = dict(recipe=dict(epochs=3), prompt=prompt, data='ab12', versions=dict(torch='2'))
    tiny = tiny_student()
    assert tiny.metadata == Student.load(tiny.save(tmp_path/'none')).metadata == {}
    assert not (tmp_path/'none'/'distillation.json').exists()
    loaded = Student.load(tiny.save(tmp_path/'s', metadata=metadata))
    assert loaded.metadata == Student.load(loaded.save(tmp_path/'t')).metadata == metadata
    assert Student.load(loaded.save(tmp_path/'t', metadata={})).metadata == {}
    (tmp_path/'s'/'distillation.json').write_text('{')
    with pytest.raises(DistillError, match='cannot load'): Student.load(tmp_path/'s')


def test_a_save_that_fails_leaves_the_old_student(tmp_path, monkeypatch):
    tiny = tiny_student()
    folder = tiny.save(tmp_path/'s', card='old')
    monkeypatch.setattr(tiny.tokenizer, 'save_pretrained', lambda *a: 1/0)
    with pytest.raises(ZeroDivisionError): tiny.save(folder, card='new')
    assert (folder/'README.md').read_text() == 'old' and [o.name for o in tmp_path.iterdir()] == ['s']


# loading


def test_an_encoder_decoder_is_refused(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration
    config = T5Config(vocab_size=64, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path/'t5')
    with pytest.raises(DistillError, match='encoder-decoder model .t5.'): Student.load(tmp_path/'t5')


def test_an_encoder_with_a_language_model_head_is_refused(tmp_path):
    from transformers import RobertaConfig, RobertaForCausalLM
    config = RobertaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=32)
    RobertaForCausalLM(config).save_pretrained(tmp_path/'roberta')
    tiny_tokenizer(300).save_pretrained(tmp_path/'roberta')
    with pytest.raises(DistillError, match='not a causal language model .roberta.'): Student.load(tmp_path/'roberta')


def test_pickled_and_broken_weights_are_refused(tmp_path):
    import torch
    folder = tiny_student().save(tmp_path/'bin')
    shutil.copytree(folder, tmp_path/'broken')
    torch.save({}, folder/'pytorch_model.bin')
    (folder/'model.safetensors').unlink()
    message = 'pickled weights .pytorch_model.bin.*safetensors'
    for name in folder, folder/'pytorch_model.bin':
        with pytest.raises(DistillError, match=message) as e: Student.load(name)
        assert_one_line(e)
    (tmp_path/'broken'/'model.safetensors').write_bytes(b'not weights')
    with pytest.raises(DistillError, match='cannot load') as e: Student.load(tmp_path/'broken')
    assert_one_line(e)


def edit_weights(folder, change):
    from safetensors.torch import load_file, save_file
    weights = load_file(folder/'model.safetensors')
    change(weights)
    save_file(weights, folder/'model.safetensors', dict(format='pt'))


def test_a_model_without_its_head_is_refused_instead_of_given_a_random_one(tmp_path):
    folder = tiny_student().save(tmp_path/'s')
    edit_weights(folder, lambda weights: weights.pop('lm_head.weight'))
    with pytest.raises(DistillError, match=r'missing weights \(1, such as lm_head.weight\)') as e: Student.load(folder)
    assert_one_line(e)


def test_weights_that_the_model_does_not_have_are_refused(tmp_path):
    folder = tiny_student().save(tmp_path/'s')
    edit_weights(folder, lambda weights: weights.update({'score.weight': weights['lm_head.weight'].clone()}))
    with pytest.raises(DistillError, match=r'unexpected weights \(1, such as score.weight\)'): Student.load(folder)


def test_a_tied_head_is_not_missing(tmp_path):
    from transformers import LlamaConfig
    tokenizer = tiny_tokenizer(512)
    config = LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                         vocab_size=len(tokenizer), tie_word_embeddings=True)
    student = tiny_student(config, tokenizer)
    loaded = Student.load(student.save(tmp_path/'s'))
    assert loaded.answer(QUESTIONS, max_new_tokens=8) == student.answer(QUESTIONS, max_new_tokens=8)


def test_no_code_of_a_model_is_run(tmp_path):
    folder = tiny_student().save(tmp_path/'s')
    config = json.loads((folder/'config.json').read_text())
    config |= dict(model_type='own', auto_map={'AutoConfig': 'own.Own', 'AutoModelForCausalLM': 'own.Own'})
    (folder/'config.json').write_text(json.dumps(config))
    (folder/'own.py').write_text(f'open({str(tmp_path/"ran")!r}, "w")')
    with pytest.raises(DistillError, match='cannot load') as e: Student.load(folder)
    assert_one_line(e)
    assert not (tmp_path/'ran').exists()
