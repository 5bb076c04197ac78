"Pairs and recipes that several tests train with."
from llm_distill.student.batches import collate, encode_pair
from llm_distill.student.recipe import Recipe

PAIRS = [dict(question=question, answer=answer) for question, answer in (
    ('Cancel my gym membership.', 'Find the gym, cancel the membership.'), ('Why?', 'Ask.'),
    ('Show me sushi in Seattle.', 'Find Seattle, find sushi, show it.'),
    ('Mail the invoices of May.', 'Find the invoices, keep those of May, mail them.'))]
QUICK = Recipe(epochs=1, batch_size=2, lr=1e-3, warmup_steps=0, validation_share=0)


def repeated(i): return ', '.join(['do it']*(i % 5 + 1))


MANY = [dict(question=f'Do {i} things.', answer=repeated(i)) for i in range(24)]
HARD = MANY[:20]
for i in 9, 19: HARD[i] = dict(HARD[i], answer='do it, look at it again') # those that validate
EARLY = Recipe(epochs=9, batch_size=4, lr=2e-3, warmup_steps=3, patience=2)


def encode_all(student, pairs): return [encode_pair(student, pair['question'], pair['answer']) for pair in pairs]


def batch_of(student, pairs=PAIRS):
    rows = encode_all(student, pairs)
    return rows, {k: v.to(student.device) for k, v in collate(rows, student.tokenizer.pad_token_id).items()}


def same_weights(a, b):
    pairs = zip(a.model.parameters(), b.model.parameters(), strict=True)
    return all((p == q).all() for p, q in pairs)
