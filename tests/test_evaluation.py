"Metrics against cases worked out by hand and against independent implementations; intervals in simulation; degenerate students."
import itertools, json
import numpy as np
import pytest
from llm_distill import evaluation as ev
from llm_distill.prompts import DistillError, SeedPrompt, load_prompt, read_jsonl, recordings, steps, write_jsonl
from llm_distill.synthesis import embed

seed = load_prompt(recordings/'apartments.toml')

@pytest.fixture(scope='module')
def encode(): return ev.remember()

@pytest.fixture(scope='module')
def recorded():
    "Tasks, expected answers, second answers of both test sets"
    files = dict(same='apartments.jsonl', different='pull_requests.jsonl')
    found = {k: read_jsonl(recordings/f)[:50] for k, f in files.items()}
    return {k: ([r['task'] for r in v], *([seed.parse(r['completions'][i]) for r in v] for i in (0, 1))) for k, v in found.items()}

def random_encoder(dim=6, rng_seed=0):
    "An encoder that knows every text by a random direction of its own"
    rng, known = np.random.default_rng(rng_seed), {}
    def encode(texts):
        for t in texts: known.setdefault(t, (v := rng.normal(size=dim))/np.linalg.norm(v))
        return np.array([known[t] for t in texts]).reshape(-1, dim)
    return encode

# ---- similarity and step F1

def test_similarity_is_the_cosine_of_sentence_transformers(recorded, encode):
    from sentence_transformers.util import pairwise_cos_sim
    from sklearn.metrics.pairwise import paired_cosine_distances
    _, expected, again = recorded['same']
    a, b = embed(again[:10]), embed(expected[:10])
    got = ev.similarity(again[:10], expected[:10], encode)
    assert np.allclose(got, pairwise_cos_sim(a, b).numpy(), atol=1e-5)
    assert np.allclose(got, 1 - paired_cosine_distances(a, b), atol=1e-5)

def test_step_f1_is_the_best_of_all_assignments():
    "Brute force over every one-to-one assignment finds nothing better"
    encode, rng = random_encoder(), np.random.default_rng(1)
    for _ in range(60):
        p, e = ([f'{w}{rng.integers(1000)}' for _ in range(rng.integers(1, 6))] for w in 'ab')
        c = np.clip(encode(p) @ encode(e).T, 0, 1)
        if len(p) > len(e): c = c.T
        best = max(sum(c[i, j] for i, j in enumerate(o)) for o in itertools.permutations(range(c.shape[1]), c.shape[0]))
        assert ev.step_f1([', '.join(p)], [', '.join(e)], encode)[0] == pytest.approx(2*best/(len(p) + len(e)))

@pytest.mark.parametrize('name, sets', [('echo', ((.780, .357), (.764, .355))), ('teacher', ((.942, .767), (.939, .763)))])
def test_recorded_numbers(recorded, encode, name, sets):
    "What was measured on the recordings, independently of this code"
    for (tasks, expected, again), (sim, f1) in zip((recorded['same'], recorded['different']), sets):
        predicted = tasks if name == 'echo' else again
        assert ev.similarity(predicted, expected, encode).mean() == pytest.approx(sim, abs=2e-3)
        assert ev.step_f1(predicted, expected, encode).mean() == pytest.approx(f1, abs=4e-3)

def test_order_of_steps_and_of_items(recorded, encode):
    "Step F1 ignores the order of steps; scores of items do not depend on their neighbours"
    _, expected, again = recorded['different']
    turned = [', '.join(reversed(steps(o))) for o in again]
    scores = ev.step_f1(again, expected, encode)
    assert np.allclose(scores, ev.step_f1(turned, expected, encode))
    assert np.allclose(scores[::-1], ev.step_f1(again[::-1], expected[::-1], encode))
    assert np.allclose(scores, ev.step_f1(expected, again, encode))

# ---- answers

class Spy:
    def __init__(self, reply): self.reply, self.calls = reply, []
    def generate(self, prompts, **kwargs):
        self.calls.append((prompts, kwargs))
        return [self.reply]*len(prompts)

def test_prompts_that_students_see():
    spy = Spy(' a, b.')
    assert ev.predict(spy, ['Why?'], max_new_tokens=7, batch_size=2) == ['a, b.']
    assert ev.one_shot(seed, spy, ['Why?']) == ['a, b.']
    (zero, options), (shot, stops) = spy.calls
    assert zero == ['Q: Why?\nA:'] and options == dict(max_new_tokens=7, batch_size=2)
    assert shot == [seed.render('Why?')] and shot[0].endswith('\nQ: Why?\nA:') and seed.end in stops['stop']

@pytest.mark.parametrize('reply', [' a, b.<END>\nQ: c', ' a, b.\nQ: c\nA: d', '\n\na, b. \n more', 'a, b.', ' A: a, b.'])
def test_one_shot_is_cut_where_the_answer_ends(reply): assert ev.one_shot(seed, Spy(reply), ['x']) == ['a, b.']

def test_nearest_answers_a_training_task_with_its_own_answer():
    train = [dict(task=t, completion=c) for t, c in (('Cancel my gym membership.', 'gym'), ('Which flights to Oslo are cheap?', 'Oslo'))]
    assert ev.nearest(['Stop my membership at the gym', 'Find a cheap flight to Oslo'], train) == ['gym', 'Oslo']

# ---- intervals

def test_bootstrap_agrees_with_scipy():
    from scipy.stats import bootstrap
    values = np.random.default_rng(0).beta(4, 2, 50)
    theirs = bootstrap((values,), np.mean, method='percentile', n_resamples=20_000, rng=np.random.default_rng(1)).confidence_interval
    assert ev.bootstrap(values, 20_000, seed=1) == pytest.approx((values.mean(), theirs.low, theirs.high))

@pytest.mark.parametrize('draw, truth', [(lambda r, n: r.normal(3, 2, n), 3), (lambda r, n: r.beta(3.5, 1.5, n), 0.7), (lambda r, n: r.random(n) < 0.3, 0.3)])
def test_a_95_percent_interval_covers_about_95_percent(draw, truth):
    rng = np.random.default_rng(5)
    hits = [low <= truth <= high for i in range(600) for _, low, high in [ev.bootstrap(draw(rng, 50), 1000, i)]]
    assert 0.915 <= np.mean(hits) <= 0.975

def test_interval_narrows_with_the_square_root_of_n():
    rng = np.random.default_rng(0)
    width = {n: (lambda o: o[2] - o[1])(ev.bootstrap(rng.normal(size=n))) for n in (100, 10_000)}
    assert width[100]/width[10_000] == pytest.approx(10, rel=0.25)

# ---- a run

def saved_run(folder, answers, tasks, expected):
    for system, predicted in answers.items():
        rows = [dict(task=t, expected=e, prediction=p) for t, e, p in zip(tasks, expected, predicted, strict=True)]
        write_jsonl(folder/'predictions'/f'{system}_same.jsonl', rows)
    return folder

def test_rows_have_the_shape_of_scores_json(tmp_path, recorded, encode):
    tasks, expected, again = recorded['same']
    rows = ev.score_run(saved_run(tmp_path, dict(teacher=again, echo=tasks, distilled=again), tasks, expected), encode)
    assert json.loads((tmp_path/'scores.json').read_text()) == rows
    assert [r['system'] for r in rows] == ['distilled', 'echo', 'teacher']
    for r in rows:
        assert (r['test_set'], r['n']) == ('same', 50)
        for m in 'similarity', 'step_f1': assert 0 < r[m]['low'] <= r[m]['mean'] <= r[m]['high'] <= 1 and set(r[m]) == {'mean', 'low', 'high'}

def test_each_text_is_embedded_once(tmp_path, recorded):
    tasks, expected, again = (o[:8] for o in recorded['same'])
    seen = []
    def counting(texts): seen.extend(texts); return embed(texts)
    ev.score_run(saved_run(tmp_path, dict(teacher=again, echo=tasks, distilled=again), tasks, expected), ev.remember(counting))
    assert len(seen) == len(set(seen)) > 0

@pytest.mark.parametrize('system, low, high', [('empty', 0, 0), ('perfect', 1, 1), ('constant', .1, .45), ('endless', 0, .35)])
def test_degenerate_students(recorded, encode, system, low, high):
    tasks, expected, _ = recorded['same']
    predicted = dict(empty=['']*50, perfect=expected, constant=expected[:1]*50, endless=[', '.join(steps(e)[:1]*30) for e in expected])[system]
    assert low - 1e-4 <= ev.step_f1(predicted, expected, encode).mean() <= high + 1e-4

def test_errors_name_what_to_do(tmp_path):
    with pytest.raises(DistillError, match='stage `evaluate`'): ev.score_run(tmp_path)
    with pytest.raises(DistillError, match='prediction 2'): ev.score([dict(task='a', expected='b', prediction='c'), dict(task='a', expected=3)], 'same', 'x')
    with pytest.raises(DistillError, match='training set is empty'): ev.nearest(['a'], [])
