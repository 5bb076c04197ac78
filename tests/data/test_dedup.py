"Near duplicates against a slow and plain ROUGE-L; blocks that change nothing; contamination."
import random
from itertools import combinations

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from llm_distill.core.core import read_jsonl, recordings
from llm_distill.core.prompt import Example, SeedPrompt
from llm_distill.core.prompt_files import load_prompt
from llm_distill.data.dedup import QuestionPool, RougeIndex, find_contamination, normalize, own_similarity
from llm_distill.data.embedding import embed

prompt = load_prompt(recordings/'apartments.toml')


def plain_rouge(a, b):
    "ROUGE-L over normalized words, by the textbook table."
    a, b = normalize(a).split(), normalize(b).split()
    row = [0]*(len(b) + 1)
    for x in a:
        before, row = row, [0]
        for j, y in enumerate(b): row.append(before[j] + 1 if x == y else max(before[j + 1], row[j]))
    return 2*row[-1]/(len(a) + len(b)) if a and b else 0.


def test_plain_rouge_is_rouge():
    questions, scorer = [r['question'] for r in read_jsonl(recordings/'apartments.jsonl')[:12]], RougeScorer(['rougeL'])
    for a, b in combinations(questions, 2):
        assert plain_rouge(a, b) == pytest.approx(scorer.score(a, b)['rougeL'].fmeasure, abs=1e-9)


def random_questions(n, n_words, longest):
    "Questions of random words; a third are variants of an earlier one."
    rng, questions = random.Random(n_words), []
    for _ in range(n):
        question = [f'w{rng.randrange(n_words)}' for _ in range(rng.randrange(2, longest))]
        if questions and rng.random() < .3:
            question = rng.choice(questions).split()
            question = question[:max(2, len(question) - rng.choice([0, 0, len(question)//3]))]
            for _ in range(rng.randrange(4)): question[rng.randrange(len(question))] = f'w{rng.randrange(n_words)}'
        questions.append(' '.join(question))
    return questions


@pytest.mark.parametrize('threshold', [0.5, 0.7, 0.9])
@pytest.mark.parametrize('n_words, longest', [(6, 14), (30, 14), (30, 60)])
def test_the_index_finds_the_first_of_the_most_similar_entries(threshold, n_words, longest):
    index, earlier, n_hits = RougeIndex(threshold), [], 0
    for question in random_questions(400 if longest < 20 else 120, n_words, longest):
        rouges = [plain_rouge(question, o) for o in earlier]
        match, = index.search([question])
        if max(rouges, default=0) < threshold - 1e-9: assert match is None
        else:
            i, rouge = match
            assert rouge == pytest.approx(max(rouges)) and i == np.argmax(np.round(rouges, 9))
        n_hits += match is not None
        index.add(question)
        earlier.append(question)
    assert 10 < n_hits < 400


def test_an_index_is_searched_from_any_entry_on_and_for_many_questions_at_once():
    questions, index = random_questions(60, 8, 12), RougeIndex(.6)
    for q in questions: index.add(q)
    for start in (0, 20, 59, 60):
        single = [index.search([q], start)[0] for q in questions]
        assert index.search(questions, start) == single and all(m is None or m[0] >= start for m in single)


@pytest.mark.parametrize('threshold', [1., 2.])
def test_a_threshold_of_one_or_more_finds_the_same_words_only(threshold):
    index = RougeIndex(threshold)
    index.add('Is the pool open?')
    assert index.search(['is the POOL open', 'Is the pool open now?']) == [(0, 1.), None]


def test_blocks_change_nothing():
    "A candidate is compared with those of its block, too."
    questions = [r['question'] for r in read_jsonl(recordings/'apartments.jsonl')[:40]]
    candidates = questions + [q.upper() for q in questions] + [f'{q} Please.' for q in questions] + questions
    at_once, one_by_one = QuestionPool(prompt), QuestionPool(prompt)
    at_once.add(candidates)
    for q in candidates: one_by_one.add([q])
    assert at_once.questions == one_by_one.questions == questions and len(at_once.rejects) == 120
    assert at_once.rejects == one_by_one.rejects


def test_a_pool_grows_beyond_its_first_block_of_vectors():
    pool = QuestionPool(prompt, dedup_cosine=2)
    questions = [f'Which {a} {b} {c} is it?' for a in range(10, 23) for b in range(30, 40) for c in range(50, 60)]
    vectors = embed([questions[0]])
    for q in questions: pool.append(q, 'an accepted question', vectors[0])
    assert len(pool.known) > 1024 and (pool.vectors[:len(pool.known)] @ vectors[0]).min() < 1.0001
    assert pool.score([questions[-1]])[0].reject['of'] == questions[-1]


def test_a_reject_names_the_kind_of_question_that_it_repeats():
    exclude = {'Which bakeries in Lyon are open on Mondays?': 'an out-of-distribution question'}
    pool = QuestionPool(prompt, exclude)
    pool.add(['which bakeries in lyon are open on mondays', prompt.question, prompt.examples[0].question])
    assert [r['filter'] for r in pool.rejects] == ['exact_duplicate', 'copy_of_example', 'copy_of_example']
    assert [r['reason'].split(' of ', 1)[1] for r in pool.rejects] == [
        'an out-of-distribution question', 'the seed question', 'an example']
    assert [list(r) for r in pool.rejects] == [['stage', 'question', 'filter', 'reason', 'of', 'cosine']]*3


def test_thresholds_rise_above_what_the_prompt_has_itself():
    capitals = SeedPrompt('Name it.', tuple(Example(f'What is the capital of {c}?', 'x') for c in ('Peru', 'Mali')),
                          'What is the capital of Chad?')
    rouge, cosine = own_similarity(capitals)
    pool = QuestionPool(capitals, dedup_rouge=.7, dedup_cosine=.5)
    assert pool.index.threshold == pytest.approx(rouge + 1e-4) and pool.dedup_cosine == pytest.approx(cosine + 1e-4)
    assert own_similarity(SeedPrompt('Name it.', (Example('Who won?', 'x'),), 'who won')) == (0, 0)


def test_contamination_finds_the_copied_question():
    questions = [r['question'] for r in read_jsonl(recordings/'apartments.jsonl')[:6]]
    rows = find_contamination(questions, [dict(question='Is the pool open?'), dict(question=questions[2].lower())])
    assert [r['overlap'] for r in rows] == [False, False, True, False, False, False]
    assert rows[2]['closest'] == questions[2].lower() and [r['question'] for r in rows] == questions


def test_contamination_of_many_questions_is_that_of_each():
    "More questions than fit in one block."
    def encode(texts): return np.array([[np.cos(int(t)), np.sin(int(t))] for t in texts])
    questions, train = [str(i) for i in range(1500)], [dict(question=str(i)) for i in (3, 700, 1400)]
    rows = find_contamination(questions, train, encode)
    assert rows == [find_contamination([q], train, encode)[0] for q in questions]
    assert all(rows[i]['closest'] == str(i) and rows[i]['overlap'] for i in (3, 700, 1400))


@pytest.mark.parametrize('questions, copy', [
    (['Ποιες πόλεις έχουν λιμάνι;', 'Πόσοι κάτοικοι ζουν στην Αθήνα;', 'Πού βρίσκεται το παλιό θέατρο;'],
     'ποιες πόλεις έχουν το λιμάνι'),
    (['የት ነው ቤተ መጻሕፍት', 'ዛሬ የአየር ሁኔታ እንዴት ነው', 'ስንት ሰዎች ይኖራሉ'], 'የት ነው ቤተ መጻሕፍቱ'),
    (['東京の駅はどこですか', '明日の天気を教えてください', '安いホテルを三つ探して'], '東京の駅はどこですか。'),
    (['👍', '👎', '🎉🎂'], '👍 ')])
def test_questions_in_any_script_are_distinguished_by_their_characters(questions, copy):
    pool = QuestionPool(SeedPrompt('Answer.', (), 'Who won the cup?'), filters={})
    assert pool.add([*questions, copy]) == len(questions) and pool.questions == questions
    assert len(pool.by_characters) == len(questions) and len(pool.rejects) == 1


def test_only_what_is_filled_into_a_template_is_compared():
    template = 'Please read the following ticket of our web shop and tag it.\n\n{{ ticket }}\n\nReply with tags only.'
    prompt = SeedPrompt.from_messages([dict(role='user', content=template)], dict(ticket='My parcel has not arrived.'))
    tickets = ['I want my money back.', 'The lamp is broken.', 'My parcel has not arrived!']
    pool = QuestionPool(prompt)
    assert pool.add([prompt.fill(dict(ticket=t)) for t in tickets]) == 2
    assert pool.rejects[0]['filter'] == 'copy_of_example'
