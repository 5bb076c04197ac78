"Steps are matched as well as any assignment allows, against cases worked out by hand and independent implementations."
import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from llm_distill.core.core import read_jsonl, recordings
from llm_distill.core.prompt_files import load_prompt
from llm_distill.data import matching
from llm_distill.data.matching import Match, match_steps, split_steps, step_f1

prompt = load_prompt(recordings/'apartments.toml')


def random_encoder(dim=6, random_seed=0):
    "An encoder that gives every text a random direction."
    rng, directions = np.random.default_rng(random_seed), {}
    def encode(texts):
        for t in texts:
            v = rng.normal(size=dim)
            directions.setdefault(t, v/np.linalg.norm(v))
        return np.array([directions[t] for t in texts]).reshape(-1, dim)
    return encode


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text())
def test_any_answer_has_clean_steps(text): assert all(s and s == s.strip() for s in split_steps(prompt.parse(text)))


def test_commas_in_numbers_end_no_step():
    assert split_steps('Pay 1,000 dollars, then 20, 30') == ['Pay 1,000 dollars', 'then 20', '30']


def test_step_f1_is_the_best_of_all_assignments():
    "Brute force over every one-to-one assignment finds nothing better."
    encode, rng = random_encoder(), np.random.default_rng(1)
    for _ in range(60):
        p, e = ([f'{w}{rng.integers(1000)}' for _ in range(rng.integers(1, 6))] for w in 'ab')
        cosines = np.clip(encode(p) @ encode(e).T, 0, 1)
        if len(p) > len(e): cosines = cosines.T
        n_short, n_long = cosines.shape
        best = max(sum(cosines[i, j] for i, j in enumerate(o)) for o in itertools.permutations(range(n_long), n_short))
        assert step_f1([', '.join(p)], [', '.join(e)], encode)[0] == pytest.approx(2*best/(len(p) + len(e)))


def test_scores_depend_on_neither_the_order_of_steps_nor_other_items():
    rows = read_jsonl(recordings/'pull_requests.jsonl')[:50]
    expected, second = ([prompt.parse(r['answers'][i]) for r in rows] for i in (0, 1))
    reversed_steps = [', '.join(reversed(split_steps(o))) for o in second]
    scores = step_f1(second, expected)
    assert np.allclose(scores, step_f1(reversed_steps, expected))
    assert np.allclose(scores[::-1], step_f1(second[::-1], expected[::-1]))
    assert np.allclose(scores, step_f1(expected, second))


def test_order_is_kendalls_tau():
    from scipy.stats import kendalltau
    rng = np.random.default_rng(0)
    for k in range(2, 9):
        ranks = rng.permutation(k)
        pairs = np.array([(i, int(j), .9) for i, j in enumerate(ranks)], dtype=object)
        steps = tuple('abcdefghi'[:k])
        match = Match(steps, steps, tuple(rng.permutation(pairs).tolist()))
        assert match.order() == pytest.approx(kendalltau(range(k), ranks).statistic)


def test_step_metrics_by_hand():
    "p = x, y, and z with .8 y; e = y, x: cosines 1, 1, and one extra step."
    vectors = dict(x=(1, 0), y=(0, 1), z=(.6, .8), w=(-1, 0))
    def encode(texts): return np.array([vectors[t] for t in texts], dtype=float).reshape(-1, 2)
    def values(p, e, *names): return [getattr(matching, name)([p], [e], encode)[0] for name in names]
    assert values('x, y, z', 'y, x', 'step_precision', 'step_recall', 'step_f1') == pytest.approx([2/3, 1, 4/5])
    assert values('x, y, z', 'y, x', 'strict_precision', 'strict_recall', 'strict_f1') == pytest.approx([2/3, 1, 4/5])
    assert values('x, y, z', 'y, x', 'step_order', 'step_count') == [-1, 3]
    assert values('z', 'x, y', 'step_precision', 'step_recall', 'strict_recall') == pytest.approx([.8, .4, .5])
    assert values('z', 'x', 'step_precision', 'strict_precision') == pytest.approx([.6, 0])
    assert values('', 'x', 'step_recall', 'strict_f1') == [0, 0] and np.isnan(values('', 'x', 'step_order')).all()


def test_answers_without_a_partner_are_an_error():
    with pytest.raises(ValueError): match_steps(['a'], ['a', 'b'])
