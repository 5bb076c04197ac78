"Intervals and p-values: in simulation, against scipy, and by hand."
import numpy as np
import pytest

from llm_distill.evaluate.statistics import (
    bootstrap, compare_paired, difference_over_seeds, mean_over_seeds, min_p_value, pgr, pgr_over_seeds)


# ---- bootstrap

def test_bootstrap_agrees_with_scipy():
    from scipy.stats import bootstrap as reference
    values = np.random.default_rng(0).beta(4, 2, 50)
    rng = np.random.default_rng(1)
    expected = reference((values,), np.mean, method='percentile', n_resamples=20_000, rng=rng).confidence_interval
    assert bootstrap(values, 20_000, random_seed=1) == pytest.approx((values.mean(), expected.low, expected.high))


def draw_normal(rng, n): return rng.normal(3, 2, n)


def draw_beta(rng, n): return rng.beta(3.5, 1.5, n)


def draw_binary(rng, n): return rng.random(n) < 0.3


@pytest.mark.parametrize('draw, truth', [(draw_normal, 3), (draw_beta, 0.7), (draw_binary, 0.3)])
def test_a_95_percent_interval_covers_about_95_percent(draw, truth):
    rng = np.random.default_rng(5)
    intervals = [bootstrap(draw(rng, 50), 1000, i) for i in range(600)]
    assert 0.915 <= np.mean([low <= truth <= high for _, low, high in intervals]) <= 0.975


def test_interval_narrows_with_the_square_root_of_n():
    rng = np.random.default_rng(0)
    width = {}
    for n in (100, 10_000):
        _, low, high = bootstrap(rng.normal(size=n))
        width[n] = high - low
    assert width[100]/width[10_000] == pytest.approx(10, rel=0.25)


# ---- paired comparison

def test_paired_bootstrap_finds_nothing_where_there_is_nothing():
    "Under no difference, p < 0.05 in about 5% of comparisons."
    rng = np.random.default_rng(3)
    p_values = []
    for i in range(500):
        item = rng.normal(size=50)
        p_values.append(compare_paired(item + rng.normal(size=50), item + rng.normal(size=50), 1000, i).p)
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.09


def test_pairing_helps_and_agrees_with_the_t_test():
    from scipy.stats import ttest_rel
    rng = np.random.default_rng(0)
    item = rng.normal(0, 5, 50)
    a, b = item + rng.normal(.5, 1, 50), item + rng.normal(0, 1, 50)
    difference = compare_paired(a, b)
    expected = ttest_rel(a, b).confidence_interval()
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high), abs=.06)
    assert difference.mean == pytest.approx((a - b).mean())
    _, low, high = bootstrap(a)
    assert difference.high - difference.low < 1 < high - low


def test_few_items_are_sure_of_nothing():
    "All of n differences have one sign by chance in 2 of 2^n cases."
    assert [compare_paired(np.full(n, .9), np.zeros(n)).p for n in (1, 2, 5)] == [1, .5, .0625]
    assert compare_paired(np.full(12, .9), np.zeros(12)).p < .001
    assert min_p_value(0) == min_p_value(1) == 1


def test_p_and_interval_agree():
    rng = np.random.default_rng(0)
    for i in range(60):
        d = compare_paired(rng.normal(.2, 1, 40), np.zeros(40), 2000, i)
        if not .045 < d.p < .055: assert (d.p < .05) == (not d.low <= 0 <= d.high)


# ---- performance gap recovered

def test_pgr_is_a_share_of_the_gap():
    base, ceiling = np.full(20, .2), np.full(20, .7)
    assert pgr(base + .25, base, ceiling) == pytest.approx((.5, .5, .5))
    assert pgr(base - .1, base, ceiling)[0] == pytest.approx(-.2)
    assert pgr(base, base, base) is None and pgr(base, ceiling, base) is None


def test_pgr_survives_resamples_without_a_gap():
    base, ceiling = np.array([0, 0, 0, 0, 0, 1, 1, 1.]), np.ones(8)
    share, low, high = pgr(np.array([1, 1, 0, 0, 1, 1, 1, 1.]), base, ceiling)
    assert low <= share <= high and not np.isnan([low, high]).any()


# ---- several seeds

def draw(rng, n, mean, seeds, between, items=None, own=.02):
    "Draw a student's scores, a row per seed: effects of the items (shared by all students), of the seeds, of both."
    items = rng.normal(0, .1, n) if items is None else items
    return mean + items + rng.normal(0, between, (seeds, 1)) + rng.normal(0, own, (seeds, n))


@pytest.mark.parametrize('seeds, between', [(2, 0), (3, .02), (5, .05)])
def test_intervals_cover_the_truth(seeds, between):
    "Of a mean and of a difference with known variance components; the standard error of 400 tries is 1.1%."
    rng = np.random.default_rng(1)
    covered, without_seeds = [], []
    for _ in range(400):
        items = rng.normal(0, .1, 40)
        a, b = (draw(rng, 40, .5, seeds, between, items) for _ in range(2))
        _, low, high = mean_over_seeds(a, 400)
        d = difference_over_seeds(a, b, 400)
        covered.append([low <= .5 <= high, d.low <= 0 <= d.high])
        one = difference_over_seeds(a.mean(0), b.mean(0), 400)
        without_seeds.append(one.low <= 0 <= one.high)
    assert all(.915 <= share <= .985 for share in np.mean(covered, 0)), np.mean(covered, 0)
    if between: assert np.mean(without_seeds) < .75, 'a test that forgets the seeds would be wrong here'


def test_p_values_are_even_where_nothing_differs():
    rng = np.random.default_rng(2)
    p_values = []
    for items in rng.normal(0, .1, (400, 40)):
        a, b = (draw(rng, 40, .5, 3, .03, items) for _ in range(2))
        p_values.append(difference_over_seeds(a, b, 400).p)
    assert .025 <= np.mean(np.array(p_values) < .05) <= .085 and .4 <= np.mean(p_values) <= .6


def test_with_equal_items_the_interval_is_that_of_the_seeds():
    "Three seeds whose items are all alike: the t interval of three numbers, by hand 0.6 +- 4.303 * 0.1/sqrt(3)."
    mean, low, high = mean_over_seeds(np.array([.5, .6, .7])[:, None] + np.zeros((3, 200)))
    assert mean == pytest.approx(.6)
    assert [mean - low, high - mean] == pytest.approx([4.303*.1/3**.5]*2, rel=.03)


def test_a_gap_with_a_small_denominator_keeps_its_interval():
    rng = np.random.default_rng(0)
    base, ceiling = rng.normal(.50, .1, 40), rng.normal(.55, .1, 40)
    values = .53 + rng.normal(0, .02, (2, 40))
    share, low, high = pgr_over_seeds(values, base, ceiling)
    assert share == pytest.approx((values.mean() - base.mean())/(ceiling.mean() - base.mean()))
    assert high - low < 5, 'resampled ratios would make it endless'


# ---- numbers

def test_numbers_do_not_change():
    "Same draws for the same seed, so that the scores of a run can be computed again; exact up to the order of sums."
    values = np.random.default_rng(7).random((2, 30))
    base, ceiling = values[0]*.5, values[1]*.2 + .8
    def same(*numbers): return pytest.approx(numbers, rel=1e-9)
    d = compare_paired(values[0], base)
    assert (d.mean, d.low, d.high, d.p) == same(0.26060767081506014, 0.20939119985757862, 0.3123036728930329, 2/4001)
    d = difference_over_seeds(values, base)
    assert (d.mean, d.low, d.high, d.p) == same(0.22902009836080822, 0.17741223103637455, 0.2806279656852419, 2**-29)
    assert bootstrap(values[0]) == same(0.5212153416301203, 0.41878239971515724, 0.6246073457860658)
    assert mean_over_seeds(values) == same(0.48962776917586837, 0.41864158450108196, 0.5606139538506547)
    assert pgr(values[0], base, ceiling) == same(0.41300716102985013, 0.30550646418825744, 0.5430490586145049)
    assert pgr_over_seeds(values, base, ceiling) == same(0.36294764596510254, 0.2892062249172146, 0.4366890670129905)
