"Scores of saved answers, their comparison, and what went wrong."
import json, subprocess, sys, textwrap
from pathlib import Path

import numpy as np
import pytest

from llm_distill.core.core import DistillError, read_jsonl, recordings, write_json, write_jsonl
from llm_distill.core.prompt_files import load_prompt
from llm_distill.data import embedding
from llm_distill.data.embedding import cached_encoder, embed
from llm_distill.data.matching import split_steps, step_f1
from llm_distill.data.metrics import choose_metrics, custom_metric, rouge_l
from llm_distill.evaluate.baselines import constant
from llm_distill.evaluate.evaluation import (
    count_failures, item_scores, matched_parts, read_predictions, score_run, score_system, split_answer,
    unmatched_parts)

quickstart = Path(__file__).parents[2]/'nbs'/'runs'/'quickstart'
prompt = load_prompt(recordings/'apartments.toml')


@pytest.fixture(scope='module')
def recorded():
    "Questions, expected answers and second answers of both test sets."
    sets = {}
    for test_set, file in dict(test='apartments.jsonl', test_ood='pull_requests.jsonl').items():
        rows = read_jsonl(recordings/file)[:50]
        answers = [[prompt.parse(r['answers'][i]) for r in rows] for i in (0, 1)]
        sets[test_set] = [r['question'] for r in rows], *answers
    return sets


def random_encoder(dim=6, random_seed=0):
    "Return an encoder that gives every text a random direction."
    rng, vectors = np.random.default_rng(random_seed), {}
    def encode(texts):
        for t in texts:
            v = rng.normal(size=dim)
            vectors.setdefault(t, v/np.linalg.norm(v))
        return np.array([vectors[t] for t in texts]).reshape(-1, dim)
    return encode


def save_predictions(folder, answers, questions, expected):
    "Write the files of a run with a test set; `answers` by system."
    for system, predicted in answers.items():
        items = zip(questions, expected, predicted, strict=True)
        rows = [dict(question=q, expected=e, prediction=p) for q, e, p in items]
        write_jsonl(folder/'predictions'/f'{system}_test.jsonl', rows)
    return folder


# ---- files of a run

def test_rows_have_the_shape_of_scores_json(tmp_path, recorded):
    questions, expected, again = recorded['test']
    save_predictions(tmp_path, dict(teacher=again, echo=questions, distilled=again), questions, expected)
    rows = score_run(tmp_path, embed)
    assert json.loads((tmp_path/'scores.json').read_text()) == rows
    assert [r['system'] for r in rows] == ['distilled', 'echo', 'teacher']
    for r in rows:
        assert (r['test_set'], r['n']) == ('test', 50)
        for m in ('similarity', 'step_f1'):
            assert 0 < r[m]['low'] <= r[m]['mean'] <= r[m]['high'] <= 1 and set(r[m]) == {'mean', 'low', 'high'}


def test_the_quickstart_scores_as_it_did(tmp_path):
    "Same items, same draws: the committed scores come back, up to rounding and the last digits of embeddings."
    for (test_set, system), saved in read_predictions(quickstart).items():
        if test_set == 'test': write_jsonl(tmp_path/f'predictions/{system}_test.jsonl', saved)
    write_jsonl(tmp_path/'train.jsonl', read_jsonl(quickstart/'train.jsonl'))
    rows = score_run(tmp_path)
    expected = [r for r in json.loads((quickstart/'scores.json').read_text()) if r['test_set'] == 'test']
    assert [(r['test_set'], r['system'], r['n'], r['main']) for r in rows] == [
        (r['test_set'], r['system'], r['n'], r['main']) for r in expected]
    for row, committed in zip(rows, expected):
        assert row.keys() == committed.keys()
        for name, value in row.items():
            if not isinstance(value, dict): continue
            pairs = [(value, committed[name])] if name != 'against' else [(value[s], committed[name][s]) for s in value]
            for new, old in pairs: assert new == pytest.approx(old, abs=5e-4), (row['system'], name)


def test_each_text_is_embedded_once(tmp_path, recorded):
    questions, expected, again = (o[:8] for o in recorded['test'])
    seen = []
    def counting(texts):
        seen.extend(texts)
        return embed(texts)
    save_predictions(tmp_path, dict(teacher=again, echo=questions, distilled=again), questions, expected)
    score_run(tmp_path, cached_encoder(counting))
    assert len(seen) == len(set(seen)) > 0


def test_errors_name_what_to_do(tmp_path):
    with pytest.raises(DistillError, match="no predictions; run 'llm-distill evaluate"): score_run(tmp_path)
    rows = [dict(question='a', expected='b', prediction='c'), dict(question='a', expected=3)]
    with pytest.raises(DistillError, match='prediction 2 has None as `prediction`.* run'): item_scores(rows)


def test_systems_are_paired_by_question(tmp_path, recorded):
    questions, expected, again = (o[:10] for o in recorded['test'])
    save_predictions(tmp_path, dict(distilled=expected, one_shot=questions), questions, expected)
    save_predictions(tmp_path, dict(teacher=again[:2:-1]), questions[:2:-1], expected[:2:-1])
    against = score_run(tmp_path, embed)[0]['against']
    assert against['teacher']['n'] == 7 and against['one_shot']['n'] == 10
    assert against['teacher']['mean'] == pytest.approx(np.mean(1 - step_f1(again[3:], expected[3:], embed)), abs=1e-3)


def test_item_scores_add_up_to_the_scores(tmp_path, recorded):
    questions, expected, again = recorded['test_ood']
    save_predictions(tmp_path, dict(teacher=again, echo=questions), questions, expected)
    rows = score_run(tmp_path, embed)
    items = read_jsonl(tmp_path/'item_scores.jsonl')
    for r in rows:
        mine = [o for o in items if o['system'] == r['system']]
        assert len(mine) == 50
        assert np.mean([o['step_f1'] for o in mine]) == pytest.approx(r['step_f1']['mean'], abs=1e-4)
        for o in mine[:5]:
            n_predicted, n_expected = len(split_steps(o['prediction'])), len(split_steps(o['expected']))
            assert len(o['pairs']) == min(n_predicted, n_expected)
            total = sum(cosine for *_, cosine in o['pairs'])
            assert 2*total/(n_predicted + n_expected) == pytest.approx(o['step_f1'], abs=1e-3)


def test_contamination_finds_the_copied_question(tmp_path, recorded):
    questions, expected, again = (o[:6] for o in recorded['test'])
    train = [dict(question=q, answer='x') for q in ('Is the pool open?', questions[2].lower())]
    write_jsonl(tmp_path/'train.jsonl', train)
    score_run(save_predictions(tmp_path, dict(distilled=again), questions, expected), embed)
    rows = read_jsonl(tmp_path/'contamination.jsonl')
    assert [r['overlap'] for r in rows] == [False, False, True, False, False, False]
    assert rows[2]['closest'] == questions[2].lower() and {r['test_set'] for r in rows} == {'test'}


def test_one_main_metric_for_both_sets(tmp_path):
    "Sets whose answers have different formats are still compared by the same measure."
    for test_set, answer in dict(test='{"a": 1}', test_ood='Oslo').items():
        rows = [dict(question=f'Question {i} of {test_set}?', expected=answer, prediction=answer) for i in range(4)]
        for system in ('distilled', 'one_shot', 'teacher'):
            write_jsonl(tmp_path/'predictions'/f'{system}_{test_set}.jsonl', rows)
    assert len({r['main'] for r in score_run(tmp_path)}) == 1


def test_ten_thousand_predictions_need_no_more_than_arrays():
    "Work and memory that grow with n only: thousands of items with an encoder that costs nothing."
    encode = cached_encoder(random_encoder(16))
    rng = np.random.default_rng(0)
    def answer(): return ', '.join(f'do {i}' for i in rng.integers(0, 500, 4))
    predictions = [dict(question=str(i), expected=answer(), prediction=answer()) for i in range(10_000)]
    row = score_system(item_scores(predictions, encode), 'test', 'x')
    assert row['n'] == 10_000 and 0 < row['step_f1']['high'] - row['step_f1']['low'] < .01


# ---- embeddings on disk

scoring = """
    import json, sys
    import numpy as np
    from llm_distill.data.embedding import cached_encoder
    from llm_distill.evaluate.evaluation import score_run
    seen = []
    def counting(texts):
        seen.extend(texts)
        vectors = np.array([[len(t) % 7 + 1, sum(map(ord, t)) % 31, t.count('a')] for t in texts], dtype='float32')
        return vectors/np.linalg.norm(vectors, axis=1, keepdims=True)
    score_run(sys.argv[1], cached_encoder(counting, sys.argv[2], 'letters'))
    print(json.dumps(seen))
"""


def test_a_text_is_embedded_once_and_never_again_in_another_process(tmp_path, recorded):
    questions, expected, again = (a + b for a, b in zip(*recorded.values()))
    answers = dict(teacher=again, echo=questions, one_shot=expected[::-1], distilled=again)
    save_predictions(tmp_path, answers, questions, expected)
    write_jsonl(tmp_path/'train.jsonl', [dict(question=q, answer='x') for q in questions[::-1]])
    command = [sys.executable, '-c', textwrap.dedent(scoring), tmp_path, tmp_path/'kept'/'vectors.sqlite']
    def run():
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        return json.loads(done.stdout)
    seen, scores = run(), (tmp_path/'scores.json').read_text()
    assert len(seen) == len(set(seen)) > 1000 and {*questions, *expected, *again} < {*seen}
    assert run() == [] and (tmp_path/'scores.json').read_text() == scores


def test_scoring_again_needs_no_encoder(tmp_path, recorded, monkeypatch):
    monkeypatch.setenv('LLM_DISTILL_HOME', str(tmp_path/'home'))
    questions, expected, again = (o[:4] for o in recorded['test'])
    save_predictions(tmp_path, dict(distilled=again, echo=questions), questions, expected)
    first = score_run(tmp_path)
    assert count_failures(tmp_path)
    monkeypatch.setattr(embedding, 'embed', None) # what would be called for a text that is not in the file
    assert score_run(tmp_path) == first and count_failures(tmp_path)


# ---- the main metric

def test_a_format_decides_the_metrics():
    rows = [dict(question=str(i), expected='{"a": 1, "b": 2}', prediction='{"a": 1}') for i in range(4)]
    row = score_system(item_scores(rows), 'test', 'x')
    assert row['main'] == 'field_match' and row['field_match']['mean'] == .5 and row['format']['mean'] == 0
    assert {'similarity', 'step_f1'} <= set(row)


def test_a_custom_metric_leaves_items_out():
    rows = [dict(question=str(i), expected=e, prediction='ab') for i, e in enumerate(['a', 'b', 'c', ''])]
    within = custom_metric(lambda p, e: e in p if e else None)
    row = score_system(item_scores(rows, embed, dict(within=within)), 'test', 'x')
    assert row['main'] == 'within' and row['n'] == 4 and row['within']['mean'] == pytest.approx(2/3, abs=1e-4)
    never = score_system(item_scores(rows, embed, dict(never=custom_metric(lambda p, e: None))), 'test', 'x')
    assert never['never'] == dict(mean=None, low=None, high=None) and 'NaN' not in json.dumps(never)


def test_a_metric_that_says_nothing_of_a_baseline_compares_the_others(tmp_path, recorded):
    questions, expected, again = (o[:6] for o in recorded['test'])
    save_predictions(tmp_path, dict(distilled=again, one_shot=['x']*6, teacher=expected), questions, expected)
    assert set(score_run(tmp_path, embed, 'step_order')[0]['against']) == {'teacher'} # a single step has no order
    assert set(score_run(tmp_path, embed, 'step_f1')[0]['against']) == {'one_shot', 'teacher'}


def returns_four(predicted, expected): return 4


@pytest.mark.parametrize('metric, message', [
    ('step_count', "'step_count' cannot be the main metric"),
    (returns_four, r"the main metric must be in \[-1, 1\]; 'returns_four' returned 4")])
def test_a_metric_that_is_no_score_does_not_compare_systems(tmp_path, recorded, metric, message):
    questions, expected, again = (o[:6] for o in recorded['test'])
    save_predictions(tmp_path, dict(distilled=again, teacher=expected), questions, expected)
    with pytest.raises(DistillError, match=message): score_run(tmp_path, embed, metric)


def test_metrics_are_chosen_by_name_function_and_file(tmp_path, recorded):
    questions, expected, again = (o[:6] for o in recorded['test'])
    save_predictions(tmp_path, dict(distilled=again, one_shot=questions, teacher=expected), questions, expected)
    file = tmp_path/'mine.py'
    file.write_text('def half(predicted, expected): return 0.5\nfails = lambda p, e: undefined\n')
    def commas(p, e): return p.count(',')
    rows = score_run(tmp_path, embed, [f'{file}:half', 'rouge_l', commas])
    assert json.loads((tmp_path/'scores.json').read_text()) == rows
    for r in rows:
        assert r['main'] == 'half' and r['half']['mean'] == .5
        assert {'rouge_l', 'commas', 'similarity', 'step_f1'} <= set(r)
    assert rows[0]['against']['one_shot']['mean'] == 0
    chosen = [{r['main'] for r in score_run(tmp_path, embed, m)} for m in ('exact_match', rouge_l, None)]
    assert chosen == [{'exact_match'}, {'rouge_l'}, {'step_f1'}]
    with pytest.raises(DistillError, match='NameError.*undefined'): score_run(tmp_path, embed, f'{file}:fails')
    assert {r['main'] for r in json.loads((tmp_path/'scores.json').read_text())} == {'step_f1'} # unchanged


# ---- error analysis

def failure_kinds(folder, expected, predicted, encode):
    "Return the kind of failure of each prediction, by its number."
    questions = [f'Question {i}?' for i in range(len(expected))]
    score_run(save_predictions(folder, dict(distilled=predicted), questions, expected), encode)
    counts = count_failures(folder, share=1, encode=encode)
    main = json.loads((folder/'scores.json').read_text())[0]['main']
    assert [c['n'] for c in counts] == sorted((len(c['items']) for c in counts), reverse=True)
    assert len({c['kind'] for c in counts}) == len(counts)
    for c in counts:
        values = [r[main] for r in c['items']]
        assert values == sorted(values) and c['score'] == pytest.approx(np.mean(values))
        assert c['question'] in [r['question'] for r in c['items']]
    return {int(r['question'][9:-1]): c['kind'] for c in counts for r in c['items']}


def encode_letters(texts):
    "Give each letter a direction; a list of steps is the sum of its letters."
    one_hot = np.eye(40)
    rows = []
    for text in texts:
        letters = [one_hot[ord(c) % 40] for c in text if c.isalnum() and c != 'Q']
        rows.append(sum(letters) if letters else one_hot[0])
    vectors = np.array(rows)
    return vectors/np.linalg.norm(vectors, axis=1, keepdims=True)


def test_kinds_of_failure_of_steps(tmp_path):
    expected = ['a, b, c, d', 'e, f, g', 'h, i', 'j, k, l', 'm, n, o', 'p, q, r', 's, t, u', 'v, w', 'x, y']
    predicted = ['a, b', 'e, f, g, 1, 2', 'h, 4', 'j 5, l, k', '', 'p', 's, s, s, s', 'x, y', 'x, y']
    assert failure_kinds(tmp_path, expected, predicted, encode_letters) == {
        0: 'missing steps', 1: 'extra steps', 2: 'different steps', 3: 'wrong order', 4: 'no answer', 5: 'wrong format',
        6: 'repeated steps', 7: 'answer to another question'}


def test_a_perfect_student_has_no_failures(tmp_path, recorded):
    questions, expected, _ = (o[:5] for o in recorded['test'])
    save_predictions(tmp_path, dict(distilled=expected), questions, expected)
    score_run(tmp_path, embed)
    assert count_failures(tmp_path, encode=embed) == []
    with pytest.raises(DistillError, match="no scored answers of 'other'"): count_failures(tmp_path, 'other')


@pytest.mark.parametrize('scores', [[], None, {}, [3]])
def test_failures_without_scores_are_an_error(tmp_path, recorded, scores):
    questions, expected, _ = (o[:5] for o in recorded['test'])
    save_predictions(tmp_path, dict(distilled=expected), questions, expected)
    score_run(tmp_path, embed)
    write_json(tmp_path/'scores.json', scores)
    with pytest.raises(DistillError, match="run 'llm-distill evaluate .*' again"): count_failures(tmp_path)
    (tmp_path/'scores.json').unlink()
    with pytest.raises(DistillError, match='scores.json is missing'): count_failures(tmp_path)


def test_kinds_of_failure_of_objects_and_texts(tmp_path):
    predicted = ['{"a": 1, "b": 3}', '{"b": 2, "a": null}', '{"a": 1}', '{"b": 2, "a": 1}', '{"a": 2, "b": 1}']
    assert failure_kinds(tmp_path/'1', ['{"a": 1, "b": 2}']*5, predicted, encode_letters) == {
        0: 'different value of b', 1: 'different value of a', 2: 'wrong format',
        4: 'different values of several fields'}
    predicted = ['It did.', 'We went out. It was dry all of the day.', 'x '*60]
    assert failure_kinds(tmp_path/'2', ['It rained all of the day. So we stayed.']*3, predicted, encode_letters) == {
        0: 'too short', 1: 'different words', 2: 'too long'}


def test_only_the_worst_share_counts(tmp_path, recorded):
    questions, expected, again = (o[:12] for o in recorded['test'])
    score_run(save_predictions(tmp_path, dict(distilled=again), questions, expected), embed)
    worst = [r for c in count_failures(tmp_path, share=1/4, encode=embed) for r in c['items']]
    ranked = sorted(r['step_f1'] for r in read_jsonl(tmp_path/'item_scores.jsonl'))
    assert sorted(r['step_f1'] for r in worst) == ranked[:3]


# ---- parts

def test_parts_of_an_answer():
    assert split_answer('a, b.', 'steps') == ['a', 'b'] and split_answer('  ', 'text') == []
    assert split_answer('{"a": "é", "b": [1]}', 'json') == ['a: "é"', 'b: [1]'] and split_answer('no', 'json') == ['no']


def test_matched_and_unmatched_parts():
    row = dict(expected='x, y, z', prediction='y, w', pairs=[[0, 1, .9], [1, 0, .2]])
    assert matched_parts(row) == [(0, 1)] and unmatched_parts(row) == dict(missing=['x', 'z'], extra=['w'])
    row = dict(expected='{"a": 1, "b": 2}', prediction='{"b": 2, "c": 3}', pairs=[])
    assert matched_parts(row, 'json') == [(0, 1)]
    assert unmatched_parts(row, 'json') == dict(missing=['a: 1'], extra=['c: 3'])
    row = dict(expected='Oslo', prediction='Oslo', pairs=[])
    assert unmatched_parts(row, 'text') == dict(missing=[], extra=[])


def test_a_metric_may_depend_on_the_question(tmp_path):
    def by_question(question, predicted, expected): return float(predicted == f'{question} {expected}')
    rows = [dict(question=f'q{i}', expected='x', prediction='q1 x') for i in range(4)]
    write_jsonl(tmp_path/'predictions'/'distilled_test.jsonl', rows)
    scores = score_run(tmp_path, metrics=by_question)
    assert scores[0]['main'] == 'by_question' and scores[0]['by_question']['mean'] == .25
    assert [row['by_question'] for row in read_jsonl(tmp_path/'item_scores.jsonl')] == [0, 1, 0, 0]


def test_the_best_constant_is_found_by_a_metric_of_the_question():
    def by_question(question, predicted, expected): return float(predicted == expected and question != 'q0')
    metric = next(iter(choose_metrics(by_question).values()))
    train = [dict(question=f'q{i}', answer=answer) for i, answer in enumerate('aaabb')]
    assert constant(['q'], train[:1] + train[3:], metric) == ['b']
