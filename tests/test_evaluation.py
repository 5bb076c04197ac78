"Metrics against cases worked out by hand and against independent implementations; intervals in simulation; degenerate students."
import itertools, json, sqlite3, subprocess, sys, textwrap
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import pytest
from llm_distill import evaluation as ev, metrics, synthesis
from llm_distill.prompts import DistillError, SeedPrompt, load_prompt, read_jsonl, recordings, steps, write_json, write_jsonl
from llm_distill.synthesis import embed, remember

seed = load_prompt(recordings/'apartments.toml')

@pytest.fixture(scope='module')
def encode(): return embed

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
    got = metrics.similarity(again[:10], expected[:10], encode)
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
        assert metrics.step_f1([', '.join(p)], [', '.join(e)], encode)[0] == pytest.approx(2*best/(len(p) + len(e)))

@pytest.mark.parametrize('name, sets', [('echo', ((.780, .357), (.764, .355))), ('teacher', ((.942, .767), (.939, .763)))])
def test_recorded_numbers(recorded, encode, name, sets):
    "What was measured on the recordings, independently of this code"
    for (tasks, expected, again), (sim, f1) in zip((recorded['same'], recorded['different']), sets):
        predicted = tasks if name == 'echo' else again
        assert metrics.similarity(predicted, expected, encode).mean() == pytest.approx(sim, abs=2e-3)
        assert metrics.step_f1(predicted, expected, encode).mean() == pytest.approx(f1, abs=4e-3)

def test_order_of_steps_and_of_items(recorded, encode):
    "Step F1 ignores the order of steps; scores of items do not depend on their neighbours"
    _, expected, again = recorded['different']
    turned = [', '.join(reversed(steps(o))) for o in again]
    scores = metrics.step_f1(again, expected, encode)
    assert np.allclose(scores, metrics.step_f1(turned, expected, encode))
    assert np.allclose(scores[::-1], metrics.step_f1(again[::-1], expected[::-1], encode))
    assert np.allclose(scores, metrics.step_f1(expected, again, encode))

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
    ev.score_run(saved_run(tmp_path, dict(teacher=again, echo=tasks, distilled=again), tasks, expected), remember(counting))
    assert len(seen) == len(set(seen)) > 0

@pytest.mark.parametrize('system, low, high', [('empty', 0, 0), ('perfect', 1, 1), ('constant', .1, .45), ('endless', 0, .35)])
def test_degenerate_students(recorded, encode, system, low, high):
    tasks, expected, _ = recorded['same']
    predicted = dict(empty=['']*50, perfect=expected, constant=expected[:1]*50, endless=[', '.join(steps(e)[:1]*30) for e in expected])[system]
    assert low - 1e-4 <= metrics.step_f1(predicted, expected, encode).mean() <= high + 1e-4

def test_errors_name_what_to_do(tmp_path):
    with pytest.raises(DistillError, match='stage `evaluate`'): ev.score_run(tmp_path)
    with pytest.raises(DistillError, match='prediction 2'): ev.score([dict(task='a', expected='b', prediction='c'), dict(task='a', expected=3)], 'same', 'x')
    with pytest.raises(DistillError, match='training set is empty'): ev.nearest(['a'], [])

# ---- further metrics

def test_rouge_l_and_token_f1_against_rouge_score(recorded):
    scorer = pytest.importorskip('rouge_score.rouge_scorer', reason='rouge-score is not installed').RougeScorer(['rougeL', 'rouge1'])
    pairs = [(p, e) for k in recorded for p, e in zip(recorded[k][2], recorded[k][1]) if (p + e).isascii() and '_' not in p + e]
    assert len(pairs) > 80
    theirs = [scorer.score(e, p) for p, e in pairs]
    predicted, expected = zip(*pairs)
    assert metrics.rouge_l(predicted, expected) == pytest.approx([o['rougeL'].fmeasure for o in theirs])
    assert metrics.token_f1(predicted, expected) == pytest.approx([o['rouge1'].fmeasure for o in theirs])

def test_common_subsequence_against_dynamic_programming():
    from difflib import SequenceMatcher # no LCS, but a lower bound
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = (list(rng.integers(0, 4, rng.integers(0, 90))) for _ in range(2))
        table = np.zeros((len(a) + 1, len(b) + 1), int)
        for i, x in enumerate(a):
            for j, y in enumerate(b): table[i+1, j+1] = table[i, j] + 1 if x == y else max(table[i, j+1], table[i+1, j])
        assert metrics._common_subsequence(a, b) == table[-1, -1] >= sum(m.size for m in SequenceMatcher(None, a, b, False).get_matching_blocks())

def test_order_is_kendalls_tau():
    from scipy.stats import kendalltau
    rng = np.random.default_rng(0)
    for k in range(2, 9):
        ranks = rng.permutation(k)
        pairs = tuple((i, int(j), .9) for i, j in enumerate(ranks))
        m = metrics.Match(tuple('abcdefghi'[:k]), tuple('abcdefghi'[:k]), tuple(rng.permutation(np.array(pairs, dtype=object)).tolist()))
        assert m.order() == pytest.approx(kendalltau(range(k), ranks).statistic)

def test_step_metrics_by_hand():
    "p = x, y, and z that is 0.8 y; e = y, x: cosines 1, 1; one superfluous step"
    vectors = dict(x=(1, 0), y=(0, 1), z=(.6, .8), w=(-1, 0))
    encode = lambda texts: np.array([vectors[t] for t in texts], dtype=float).reshape(-1, 2)
    value = lambda name, p, e: metrics.metrics_for('steps')[name]([p], [e], encode)[0]
    assert [value(m, 'x, y, z', 'y, x') for m in ('step_precision', 'step_recall', 'step_f1')] == pytest.approx([2/3, 1, 4/5])
    assert [value(m, 'x, y, z', 'y, x') for m in ('strict_precision', 'strict_recall', 'strict_f1', 'step_order', 'step_count')] == pytest.approx([2/3, 1, 4/5, -1, 3])
    assert [value(m, 'z', 'x, y') for m in ('step_precision', 'step_recall', 'strict_recall')] == pytest.approx([.8, .4, .5])
    assert [value(m, 'z', 'x') for m in ('step_precision', 'strict_precision')] == pytest.approx([.6, 0])
    assert [value(m, '', 'x') for m in ('step_recall', 'strict_f1', 'format')] == [0, 0, 0] and np.isnan(value('step_order', '', 'x'))

def test_form_and_its_metrics(recorded):
    assert metrics.form(recorded['same'][1]) == metrics.form(recorded['different'][1]) == 'steps'
    assert metrics.form(['{"a": 1}']*9 + ['x']) == 'json' and metrics.form(['It is.', 'Paris', 'a, b']) == 'text' and metrics.form([]) == 'text'
    row = ev.score([dict(task=str(i), expected='{"a": 1, "b": 2}', prediction='{"a": 1}') for i in range(4)], 'same', 'x')
    assert row['main'] == 'field_match' and row['field_match']['mean'] == .5 and row['format']['mean'] == 0 and {'similarity', 'step_f1'} <= set(row)

def test_own_metric_leaves_items_out(encode):
    data = [dict(task=str(i), expected=e, prediction='ab') for i, e in enumerate(['a', 'b', 'c', ''])]
    row = ev.score(data, 'same', 'x', encode, dict(within=metrics.own(lambda p, e: None if not e else e in p)))
    assert row['main'] == 'within' and row['n'] == 4 and row['within']['mean'] == pytest.approx(2/3, abs=1e-4)
    none = ev.score(data, 'same', 'x', encode, dict(never=metrics.own(lambda p, e: None)))
    assert none['never'] == dict(mean=None, low=None, high=None) and 'NaN' not in json.dumps(none)

# ---- comparisons

def test_paired_bootstrap_finds_nothing_where_there_is_nothing():
    "Under no difference, p < 0.05 in about 5% of comparisons"
    rng = np.random.default_rng(3)
    ps = []
    for i in range(500):
        item = rng.normal(size=50)
        ps.append(ev.compare(item + rng.normal(size=50), item + rng.normal(size=50), 1000, i).p)
    assert 0.02 <= np.mean(np.array(ps) < 0.05) <= 0.09

def test_pairing_helps_and_agrees_with_the_t_test():
    from scipy.stats import ttest_rel
    rng = np.random.default_rng(0)
    item = rng.normal(0, 5, 50)
    a, b = item + rng.normal(.5, 1, 50), item + rng.normal(0, 1, 50)
    d = ev.compare(a, b)
    interval = ttest_rel(a, b).confidence_interval()
    assert (d.low, d.high) == pytest.approx((interval.low, interval.high), abs=.06) and d.mean == pytest.approx((a - b).mean())
    assert d.high - d.low < 1 < ev.bootstrap(a)[2] - ev.bootstrap(a)[1]

def test_few_items_are_sure_of_nothing():
    "All of n differences have one sign by chance in 2 of 2^n cases"
    assert [ev.compare(np.full(n, .9), np.zeros(n)).p for n in (1, 2, 5)] == [1, .5, .0625] and ev.compare(np.full(12, .9), np.zeros(12)).p < .001

def test_p_and_interval_agree():
    rng = np.random.default_rng(0)
    for i in range(60):
        d = ev.compare(rng.normal(.2, 1, 40), np.zeros(40), 2000, i)
        if not .045 < d.p < .055: assert (d.p < .05) == (not d.low <= 0 <= d.high)

def test_gap_closed_is_a_share_of_the_way():
    before, ceiling = np.full(20, .2), np.full(20, .7)
    assert ev.gap_closed(before + .25, before, ceiling) == pytest.approx((.5, .5, .5))
    assert ev.gap_closed(before - .1, before, ceiling)[0] == pytest.approx(-.2)
    assert ev.gap_closed(before, before, before) is None and ev.gap_closed(before, ceiling, before) is None

def test_systems_are_paired_by_task(tmp_path, recorded, encode):
    tasks, expected, again = (o[:10] for o in recorded['same'])
    saved_run(tmp_path, dict(distilled=expected, one_shot=tasks), tasks, expected)
    saved_run(tmp_path, dict(teacher=again[:2:-1]), tasks[:2:-1], expected[:2:-1])
    row = ev.score_run(tmp_path, encode)[0]
    assert row['against']['teacher']['n'] == 7 and row['against']['one_shot']['n'] == 10
    assert row['against']['teacher']['mean'] == pytest.approx(np.mean(1 - metrics.step_f1(again[3:], expected[3:], encode)), abs=1e-3)

# ---- embeddings on disk

scoring = """
    import json, sys
    import numpy as np
    from llm_distill.evaluation import score_run
    from llm_distill.synthesis import remember
    seen = []
    def counting(texts):
        seen.extend(texts)
        vectors = np.array([[len(t) % 7 + 1, sum(map(ord, t)) % 31, t.count('a')] for t in texts], dtype='float32')
        return vectors/np.linalg.norm(vectors, axis=1, keepdims=True)
    score_run(sys.argv[1], remember(counting, sys.argv[2], 'letters'))
    print(json.dumps(seen))
"""

def test_a_text_is_embedded_once_and_never_again_in_another_process(tmp_path, recorded):
    tasks, expected, again = (a + b for a, b in zip(*recorded.values()))
    saved_run(tmp_path, dict(teacher=again, echo=tasks, one_shot=expected[::-1], distilled=again), tasks, expected)
    write_jsonl(tmp_path/'train.jsonl', [dict(task=t, completion='x') for t in tasks[::-1]])
    run = lambda: json.loads(subprocess.run([sys.executable, '-c', textwrap.dedent(scoring), tmp_path, tmp_path/'kept'/'vectors.sqlite'],
                                            capture_output=True, text=True, check=True, timeout=300).stdout)
    seen, scores = run(), (tmp_path/'scores.json').read_text()
    assert len(seen) == len(set(seen)) > 1000 and {*tasks, *expected, *again} < {*seen}
    assert run() == [] and (tmp_path/'scores.json').read_text() == scores

def test_scoring_again_needs_no_encoder(tmp_path, recorded, monkeypatch):
    monkeypatch.setenv('LLM_DISTILL_HOME', str(tmp_path/'home'))
    tasks, expected, again = (o[:4] for o in recorded['same'])
    saved_run(tmp_path, dict(distilled=again, echo=tasks), tasks, expected)
    first = ev.score_run(tmp_path)
    assert ev.failure_clusters(tmp_path)
    monkeypatch.setattr(ev, 'embed', None) # what would be called for a text that is not in the file
    assert ev.score_run(tmp_path) == first and ev.failure_clusters(tmp_path)

def in_file(path): return sqlite3.connect(path).execute('select count(*) from vectors').fetchone()[0]

def test_vectors_of_several_encoders_share_a_file(tmp_path):
    a, b = (remember(random_encoder(rng_seed=i), tmp_path/'v', str(i)) for i in range(2))
    assert not np.allclose(a(['x', '\ud800']), b(['x', '\ud800'])) and in_file(tmp_path/'v') == 4
    assert (remember(None, tmp_path/'v', '1')(['\ud800', 'x']) == b(['\ud800', 'x'])).all() and b(['x']).dtype == 'float32'

def test_many_writers_share_a_file(tmp_path):
    words = [f'w{i}' for i in range(400)]
    write = lambda i: [remember(random_encoder(), tmp_path/'v')(words[k:k+200]) for k in range(0, 400, 10 + i)]
    with ThreadPoolExecutor(8) as pool: list(pool.map(write, range(8)))
    assert in_file(tmp_path/'v') == 400

@pytest.mark.parametrize('spoil', ['no database', 'a folder', 'a file for its folder'])
def test_a_file_that_cannot_be_used_is_done_without(tmp_path, spoil, caplog):
    file = tmp_path/'home'/'v'
    if spoil == 'a file for its folder': file.parent.write_text('x')
    else: file.parent.mkdir()
    if spoil == 'a folder': file.mkdir()
    if spoil == 'no database': file.write_text('no database at all, but long enough to be taken for one'*20)
    assert remember(random_encoder(), file)(['a', 'b']).shape == (2, 6) and 'is not used for embeddings' in caplog.text

def test_neither_memory_nor_file_grow_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(synthesis, '_in_file', 50)
    monkeypatch.setattr(synthesis, '_in_memory', 30)
    encode, plain = remember(random_encoder(), tmp_path/'v'), {}
    for i in range(0, 200, 20):
        texts = [f't{j}' for j in range(i, i + 40)]
        for t, v in zip(texts, encode(texts)): assert (plain.setdefault(t, v) == v).all() # half of them were there the last time
    assert in_file(tmp_path/'v') == 50

# ---- a metric of the user's choice

def test_a_metric_that_says_nothing_of_a_baseline_compares_the_others(tmp_path, recorded, encode):
    tasks, expected, again = (o[:6] for o in recorded['same'])
    saved_run(tmp_path, dict(distilled=again, one_shot=['x']*6, teacher=expected), tasks, expected)
    row = ev.score_run(tmp_path, encode, 'step_order')[0] # a single step has no order
    assert set(row['against']) == {'teacher'} and ev.score_run(tmp_path, encode, 'step_f1')[0]['against'].keys() == {'one_shot', 'teacher'}

@pytest.mark.parametrize('metric,says', [('step_count', "more of 'step_count' is not better"), (lambda p, e: 4, "gave 4; what systems are compared by goes from 0 to 1")])
def test_what_is_no_score_does_not_compare_systems(tmp_path, recorded, encode, metric, says):
    tasks, expected, again = (o[:6] for o in recorded['same'])
    saved_run(tmp_path, dict(distilled=again, teacher=expected), tasks, expected)
    with pytest.raises(DistillError, match=says): ev.score_run(tmp_path, encode, metric)

def test_the_best_constant_is_the_most_frequent_label(encode):
    labels = [dict(task=f't{i}', completion='neutral' if i < 3 else 'negative' if i < 8 else 'positive') for i in range(20)]
    assert ev.constant(['x', 'y'], labels, encode) == ['positive']*2
    assert ev.constant(['x'], labels, encode, lambda p, e, encode: np.array([len(a) == 7 for a in p])) == ['neutral']

def test_metrics_are_chosen_by_name_function_and_file(tmp_path, recorded, encode):
    tasks, expected, again = (o[:6] for o in recorded['same'])
    saved_run(tmp_path, dict(distilled=again, one_shot=tasks, teacher=expected), tasks, expected)
    (tmp_path/'mine.py').write_text('def half(predicted, expected): return 0.5\nfails = lambda p, e: undefined\n')
    def commas(p, e): return p.count(',')
    rows = ev.score_run(tmp_path, encode, [f'{tmp_path/"mine.py"}:half', 'rouge_l', commas])
    assert json.loads((tmp_path/'scores.json').read_text()) == rows
    for r in rows: assert r['main'] == 'half' and r['half']['mean'] == .5 and {'rouge_l', 'commas', 'similarity', 'step_f1'} <= set(r)
    assert rows[0]['against']['one_shot']['mean'] == 0
    assert [{r['main'] for r in ev.score_run(tmp_path, encode, m)} for m in ('exact_match', metrics.rouge_l, None)] == [{'exact_match'}, {'rouge_l'}, {'step_f1'}]
    with pytest.raises(DistillError, match='NameError.*undefined'): ev.score_run(tmp_path, encode, f'{tmp_path/"mine.py"}:fails')
    assert {r['main'] for r in json.loads((tmp_path/'scores.json').read_text())} == {'step_f1'} # as they were

def similarity(p, e): return 1

@pytest.mark.parametrize('chosen, words', [('f1', "'f1' is no metric"), (['step_f1', 3], '3 is no metric'), (similarity, "cannot be called 'similarity'"),
                                           ('gone.py:f', "the metric 'gone.py' cannot be read"), (f'{__file__}:nothing', "has no function 'nothing'")])
def test_what_is_no_metric_is_told_in_one_line(chosen, words):
    with pytest.raises(DistillError) as e: ev.choose_metrics(chosen)
    assert words in str(e.value) and len(str(e.value).splitlines()) == 1

@pytest.mark.parametrize('value', [lambda p, e: 'good', lambda p, e: 1/0, lambda p, e: float('-inf'), lambda p: 1])
def test_a_metric_that_fails_is_told_in_one_line(value):
    with pytest.raises(DistillError, match='the metric .* failed on the answer') as e: metrics.own(value)(['a\nb'], ['c'])
    assert len(str(e.value).splitlines()) == 1

# ---- what went wrong

def failed(folder, expected, predicted, encode):
    "Kind of failure of each prediction, by its task"
    ev.score_run(saved_run(folder, dict(distilled=predicted), [f'Task {i}?' for i in range(len(expected))], expected), encode)
    found = ev.failure_clusters(folder, share=1, encode=encode)
    main = json.loads((folder/'scores.json').read_text())[0]['main']
    assert [c['n'] for c in found] == sorted((len(c['items']) for c in found), reverse=True)
    for c in found:
        values = [r[main] for r in c['items']]
        assert values == sorted(values) and c['score'] == pytest.approx(np.mean(values)) and c['task'] in [r['task'] for r in c['items']]
    return {int(r['task'][5:-1]): c['kind'] for c in found for r in c['items']}

def spelled(texts):
    "A direction of its own for each step; a list of steps is their mean"
    one_hot = np.eye(40)
    vectors = np.array([sum(one_hot[ord(c) % 40] for c in t if c.isalnum() and c != 'T') if any(map(str.isalnum, t)) else one_hot[0] for t in texts])
    return vectors/np.linalg.norm(vectors, axis=1, keepdims=True)

def test_kinds_of_failure_of_steps(tmp_path):
    expected = ['a, b, c, d', 'e, f, g', 'h, i', 'j, k, l', 'm, n, o', 'p, q, r', 's, t, u', 'v, w', 'x, y']
    predicted = ['a, b', 'e, f, g, 1, 2', 'h, 4', 'j 5, l, k', '', 'p', 's, s, s, s', 'x, y', 'x, y']
    kinds = failed(tmp_path, expected, predicted, spelled)
    assert kinds == {0: 'missing steps', 1: 'superfluous steps', 2: 'other steps', 3: 'wrong order', 4: 'no answer', 5: 'wrong form', 6: 'the same steps again and again', 7: 'answer to another task'}

def test_a_perfect_student_has_no_failures(tmp_path, recorded, encode):
    tasks, expected, _ = (o[:5] for o in recorded['same'])
    write_json(tmp_path/'scores.json', [])
    with pytest.raises(DistillError, match='no scores that can be read'): ev.failure_clusters(tmp_path)
    ev.score_run(saved_run(tmp_path, dict(distilled=expected), tasks, expected), encode)
    assert ev.failure_clusters(tmp_path, encode=encode) == []
    with pytest.raises(DistillError, match="no answers of 'other'"): ev.failure_clusters(tmp_path, 'other')

def test_kinds_of_failure_of_objects_and_texts(tmp_path):
    kinds = failed(tmp_path/'1', ['{"a": 1, "b": 2}']*5, ['{"a": 1, "b": 3}', '{"b": 2, "a": null}', '{"a": 1}', '{"b": 2, "a": 1}', '{"a": 2, "b": 1}'], spelled)
    assert kinds == {0: 'another value of b', 1: 'another value of a', 2: 'wrong form', 4: 'other values of several fields'}
    kinds = failed(tmp_path/'2', ['It rained all of the day. So we stayed.']*3, ['It did.', 'We went out. It was dry all of the day.', 'x '*60], spelled)
    assert kinds == {0: 'too short', 1: 'other words', 2: 'too long'}

def test_failures_are_grouped_by_similar_tasks(tmp_path, encode):
    about = dict(Book='Book a table at a pizza restaurant for', Merge='Merge the pull request about the parser bug of')
    tasks = [f'{a} {who}.' for a in about.values() for who in ('Ann', 'Bob', 'Cy', 'Dora', 'Eve')]
    ev.score_run(saved_run(tmp_path, dict(distilled=['Sing a song, dance.']*10), tasks, ['Find it, call them, tell me.']*10), encode)
    found = ev.failure_clusters(tmp_path, share=1, encode=encode)
    assert sorted(c['n'] for c in found) == [5, 5] and all(len({r['task'].split()[0] for r in c['items']}) == 1 for c in found)

# ---- leakage, items, scale

def test_leakage_finds_the_copied_task(tmp_path, recorded, encode):
    tasks, expected, again = (o[:6] for o in recorded['same'])
    write_jsonl(tmp_path/'train.jsonl', [dict(task=t, completion='x') for t in ('Is the pool open?', tasks[2].lower())])
    ev.score_run(saved_run(tmp_path, dict(distilled=again), tasks, expected), encode)
    found = read_jsonl(tmp_path/'leakage.jsonl')
    assert [r['overlap'] for r in found] == [False, False, True, False, False, False] and found[2]['closest'] == tasks[2].lower()

def test_item_scores_add_up_to_the_scores(tmp_path, recorded, encode):
    tasks, expected, again = recorded['different']
    rows = ev.score_run(saved_run(tmp_path, dict(teacher=again, echo=tasks), tasks, expected), encode)
    items = read_jsonl(tmp_path/'item_scores.jsonl')
    for r in rows:
        mine = [o for o in items if o['system'] == r['system']]
        assert len(mine) == 50 and np.mean([o['step_f1'] for o in mine]) == pytest.approx(r['step_f1']['mean'], abs=1e-4)
        for o in mine[:5]:
            p, e = steps(o['prediction']), steps(o['expected'])
            assert len(o['pairs']) == min(len(p), len(e)) and 2*sum(c for *_, c in o['pairs'])/(len(p) + len(e)) == pytest.approx(o['step_f1'], abs=1e-3)

def test_ten_thousand_predictions_need_no_more_than_arrays():
    "Work and memory that grow with n only: thousands of items with an encoder that costs nothing"
    encode = remember(random_encoder(16))
    rng = np.random.default_rng(0)
    say = lambda: ', '.join(f'do {i}' for i in rng.integers(0, 500, 4))
    row = ev.score([dict(task=str(i), expected=say(), prediction=say()) for i in range(10_000)], 'same', 'x', encode)
    assert row['n'] == 10_000 and 0 < row['step_f1']['high'] - row['step_f1']['low'] < .01


def test_one_main_metric_for_both_sets(tmp_path):
    "Sets whose answers have different forms are still compared by the same measure"
    (tmp_path/'predictions').mkdir()
    sets = dict(same='{"a": 1}', different='Oslo')
    for t, answer in sets.items():
        rows = [dict(task=f'Question {i} of {t}?', expected=answer, prediction=answer) for i in range(4)]
        for s in 'distilled', 'one_shot', 'teacher': write_jsonl(tmp_path/'predictions'/f'{s}_{t}.jsonl', rows)
    assert len({r['main'] for r in ev.score_run(tmp_path)}) == 1


def test_gap_closed_survives_resamples_without_a_gap():
    import numpy as np
    before, ceiling = np.array([0, 0, 0, 0, 0, 1, 1, 1.]), np.ones(8)
    share, low, high = ev.gap_closed(np.array([1, 1, 0, 0, 1, 1, 1, 1.]), before, ceiling)
    assert low <= share <= high and not np.isnan([low, high]).any()
