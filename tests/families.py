"Tiny random students of the families that users have, each with a tokenizer that has its family's peculiarity."
import json
from llm_distill.student import tiny_student, tiny_tokenizer

def tokenizer(**special):
    "The tiny tokenizer without its pad token, with special tokens set as the family has them"
    from transformers import PreTrainedTokenizerFast
    return PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer(512)._tokenizer, **special)

def with_bos(bos, eos, **special):
    "A tokenizer that puts BOS before each text, as those of OPT and Llama do"
    from tokenizers.processors import TemplateProcessing
    t = tokenizer(bos_token=bos, eos_token=eos, **special)
    t._tokenizer.post_processor = TemplateProcessing(single=f'{bos} $A', special_tokens=[(bos, t.bos_token_id)])
    return t

def sentencepiece():
    "Llama's kind: a space becomes ▁, one is put before each text, bytes are the fallback"
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast
    from llm_distill.prompts import read_jsonl, recordings
    t = Tokenizer(models.BPE(unk_token='<unk>', byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
    t.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=' ', left=1)])
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=['<unk>', '<s>', '</s>', *(f'<0x{i:02X}>' for i in range(256))], show_progress=False)
    rows = read_jsonl(recordings/'pull_requests.jsonl')
    t.train_from_iterator([w for r in rows for o in (f"Q: {r['task']} A:", *r['completions']) for w in o.split()], trainer)
    d = json.loads(t.to_str()) # bytes are ordinary tokens, not special ones that decoding drops
    d['added_tokens'] = d['added_tokens'][:3]
    t = Tokenizer.from_str(json.dumps(d))
    t.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 1)])
    return PreTrainedTokenizerFast(tokenizer_object=t, unk_token='<unk>', bos_token='<s>', eos_token='</s>')

wide = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
narrow = dict(**wide, intermediate_size=96, max_position_embeddings=256)
FAMILIES = {
    'llama':     ('llama', sentencepiece, dict(**narrow, num_key_value_heads=2)),
    'gpt_neox':  ('gpt_neox', lambda: tokenizer(eos_token='<|endoftext|>', bos_token='<|endoftext|>', unk_token='<|endoftext|>'), dict(**narrow, rotary_pct=0.25)),
    'opt':       ('opt', lambda: with_bos('<|endoftext|>', '<|endoftext|>', pad_token='<|pad|>'),
                  dict(**wide, ffn_dim=96, word_embed_proj_dim=32, max_position_embeddings=256, dropout=0.1)),
    'gpt_neo':   ('gpt_neo', lambda: tokenizer(eos_token='<|endoftext|>', pad_token='<|endoftext|>'),
                  dict(hidden_size=64, num_layers=2, num_heads=4, intermediate_size=96, max_position_embeddings=256, window_size=16,
                       attention_types=[[['global', 'local'], 1]])),
    'bloom':     ('bloom', lambda: tokenizer(eos_token='<|endoftext|>', pad_token='<|pad|>'), dict(hidden_size=64, n_layer=2, n_head=4, tie_word_embeddings=False)),
    'qwen2':     ('qwen2', lambda: tokenizer(eos_token='<|endoftext|>', pad_token='<|endoftext|>'), dict(**narrow, num_key_value_heads=2)),
    'gemma3':    ('gemma3_text', lambda: with_bos('<bos>', '<|endoftext|>', pad_token='<|pad|>'), dict(**narrow, num_key_value_heads=1, head_dim=16, sliding_window=16)),
    'gemma2':    ('gemma2', lambda: with_bos('<bos>', '<|endoftext|>'), dict(**narrow, num_key_value_heads=1, head_dim=16, final_logit_softcapping=2.)),
    'granite':   ('granite', tiny_tokenizer, dict(**narrow, num_key_value_heads=2, logits_scaling=0.5)),
    'phi':       ('phi', tiny_tokenizer, narrow),
} # name -> model type, tokenizer, config: llama's sentencepiece, pythia's missing pad, OPT's BOS, neo's pad == EOS, soft-capping, scaled logits, a biased head

def build(family, seed=0):
    "A tiny random student of a family"
    import torch
    from transformers import AutoConfig
    kind, make, config = FAMILIES[family]
    tok = make()
    room = 0 if family in ('gpt_neo', 'qwen2') else 8
    special = dict(bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    student = tiny_student(AutoConfig.for_model(kind, vocab_size=len(tok) + room, **special, **config), tok, seed)
    with torch.no_grad(): # layers that weigh more than the embedding of the last token, or it would be repeated
        for n,p in student.model.named_parameters():
            if p.ndim > 1 and not any(o in n for o in ('embed', 'wte', 'lm_head')): p.mul_(8)
    return student
