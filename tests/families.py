"Tiny random students of the families that users have, each with a tokenizer that has its family's peculiarity."
import json

from llm_distill.core.core import read_jsonl, recordings
from llm_distill.core.prompt import student_prompt
from llm_distill.student.models import Student, tiny_student, tiny_tokenizer


def plain_tokenizer(**special):
    "The tiny tokenizer without its pad token, with special tokens set as the family has them."
    from transformers import PreTrainedTokenizerFast
    return PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer(512)._tokenizer, **special)


def bos_tokenizer(bos, eos, **special):
    "A tokenizer that puts BOS before each text, as those of OPT and Llama do."
    from tokenizers.processors import TemplateProcessing
    tokenizer = plain_tokenizer(bos_token=bos, eos_token=eos, **special)
    special_tokens = [(bos, tokenizer.bos_token_id)]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=f'{bos} $A', special_tokens=special_tokens)
    return tokenizer


def gpt_neox_tokenizer():
    "One token is BOS, EOS and unknown, and nothing is pad."
    return plain_tokenizer(eos_token='<|endoftext|>', bos_token='<|endoftext|>', unk_token='<|endoftext|>')


def same_pad_tokenizer():
    "Pad is EOS."
    return plain_tokenizer(eos_token='<|endoftext|>', pad_token='<|endoftext|>')


def sentencepiece():
    "Llama's kind: a space becomes ▁, one is put before each text, bytes are the fallback."
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast
    bpe = Tokenizer(models.BPE(unk_token='<unk>', byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
    bpe.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(),
                                     decoders.Strip(content=' ', left=1)])
    special = ['<unk>', '<s>', '</s>', *(f'<0x{i:02X}>' for i in range(256))]
    rows = read_jsonl(recordings/'pull_requests.jsonl')
    texts = [text for row in rows for text in (student_prompt(row['question']), *row['answers'])]
    words = [word for text in texts for word in text.split()]
    bpe.train_from_iterator(words, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False))
    saved = json.loads(bpe.to_str()) # bytes are ordinary tokens, not special ones that decoding drops
    saved['added_tokens'] = saved['added_tokens'][:3]
    bpe = Tokenizer.from_str(json.dumps(saved))
    bpe.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token='<unk>', bos_token='<s>', eos_token='</s>')


eos, pad = dict(eos_token='<|endoftext|>'), dict(pad_token='<|pad|>')
wide = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
narrow = dict(**wide, intermediate_size=96, max_position_embeddings=256)
one_kv_head = dict(**narrow, num_key_value_heads=1, head_dim=16)
two_kv_heads = dict(**narrow, num_key_value_heads=2)

FAMILIES = { # name -> model type, tokenizer, config
    'llama': ('llama', sentencepiece, two_kv_heads),
    'gpt_neox': ('gpt_neox', gpt_neox_tokenizer, dict(**narrow, rotary_pct=0.25)), # no pad token, as pythia
    'opt': ('opt', lambda: bos_tokenizer('<|endoftext|>', '<|endoftext|>', **pad), # BOS
            dict(**wide, ffn_dim=96, word_embed_proj_dim=32, max_position_embeddings=256, dropout=0.1)),
    'gpt_neo': ('gpt_neo', same_pad_tokenizer, # pad is EOS
                dict(hidden_size=64, num_layers=2, num_heads=4, intermediate_size=96, max_position_embeddings=256,
                     window_size=16, attention_types=[[['global', 'local'], 1]])),
    'bloom': ('bloom', lambda: plain_tokenizer(**eos, **pad),
              dict(hidden_size=64, n_layer=2, n_head=4, tie_word_embeddings=False)),
    'qwen2': ('qwen2', same_pad_tokenizer, two_kv_heads),
    'gemma3': ('gemma3_text', lambda: bos_tokenizer('<bos>', '<|endoftext|>', **pad),
               dict(**one_kv_head, sliding_window=16)),
    'gemma2': ('gemma2', lambda: bos_tokenizer('<bos>', '<|endoftext|>'),
               dict(**one_kv_head, final_logit_softcapping=2.)), # soft-capping
    'granite': ('granite', tiny_tokenizer, dict(**two_kv_heads, logits_scaling=0.5)), # scaled logits
    'phi': ('phi', tiny_tokenizer, narrow), # a biased head
}


def build(family, random_seed=0):
    "A tiny random student of a family."
    import torch
    from transformers import AutoConfig
    kind, make_tokenizer, config = FAMILIES[family]
    tokenizer = make_tokenizer()
    spare_rows = 0 if family in ('gpt_neo', 'qwen2') else 8
    special = {k: getattr(tokenizer, k) for k in ('bos_token_id', 'eos_token_id', 'pad_token_id')}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer) + spare_rows, **special, **config)
    student = tiny_student(config, tokenizer, random_seed)
    with torch.no_grad(): # layers that weigh more than the embedding of the last token, or it would be repeated
        for name, p in student.model.named_parameters():
            is_embedding = any(o in name for o in ('embed', 'wte', 'lm_head'))
            if p.ndim > 1 and not is_embedding: p.mul_(8)
    return student


CHAT_TEMPLATE = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
                 "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def build_chat(family): return make_chat(build(family))


def make_chat(student):
    "The student with control tokens and a chat template, asked in it."
    tokenizer, model = student.tokenizer, student.model
    names = ['<|im_start|>', '<|im_end|>']
    tokenizer.add_special_tokens(dict(additional_special_tokens=names), replace_extra_special_tokens=False)
    tokenizer.chat_template = CHAT_TEMPLATE
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids('<|im_end|>')]
    return Student(model, tokenizer, 'chat', format='chat')
