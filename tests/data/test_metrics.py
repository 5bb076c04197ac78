"Metrics against cases worked out by hand and independent implementations; the registry and the choice of metrics."
import numpy as np
import pytest

from llm_distill.core.core import DistillError, read_jsonl, recordings
from llm_distill.core.prompt_files import load_prompt
from llm_distill.data import metrics
from llm_distill.data.embedding import embed
from llm_distill.data.metrics import (
    choose_metrics, compute_metric, custom_metric, detect_format, metric_title, metrics_for, takes_question)

prompt = load_prompt(recordings/'apartments.toml')


@pytest.fixture(scope='module')
def recorded():
    "Questions, expected answers and second answers of both test sets."
    files = dict(test='apartments.jsonl', test_ood='pull_requests.jsonl')
    rows = {k: read_jsonl(recordings/f)[:50] for k, f in files.items()}
    return {k: ([r['question'] for r in v], *([prompt.parse(r['answers'][i]) for r in v] for i in (0, 1)))
            for k, v in rows.items()}


# ---- scores

def test_similarity_is_the_cosine_of_sentence_transformers(recorded):
    from sentence_transformers.util import pairwise_cos_sim
    from sklearn.metrics.pairwise import paired_cosine_distances
    _, expected, second = recorded['test']
    a, b = embed(second[:10]), embed(expected[:10])
    values = metrics.similarity(second[:10], expected[:10])
    assert np.allclose(values, pairwise_cos_sim(a, b).numpy(), atol=1e-5)
    assert np.allclose(values, 1 - paired_cosine_distances(a, b), atol=1e-5)


@pytest.mark.parametrize('system, values', [('echo', ((.780, .357), (.764, .355))),
                                            ('teacher', ((.942, .767), (.939, .763)))])
def test_recorded_answers_have_the_published_scores(recorded, system, values):
    "What was measured on the recordings, independently of this code."
    for (questions, expected, second), (similarity, step_f1) in zip(recorded.values(), values, strict=True):
        predicted = questions if system == 'echo' else second
        assert metrics.similarity(predicted, expected).mean() == pytest.approx(similarity, abs=2e-3)
        assert metrics.step_f1(predicted, expected).mean() == pytest.approx(step_f1, abs=4e-3)


def test_rouge_l_and_token_f1_agree_with_rouge_score(recorded):
    rouge_scorer = pytest.importorskip('rouge_score.rouge_scorer', reason='rouge-score is not installed')
    scorer = rouge_scorer.RougeScorer(['rougeL', 'rouge1'])
    pairs = [(p, e) for _, expected, second in recorded.values() for p, e in zip(second, expected)]
    pairs = [(p, e) for p, e in pairs if (p + e).isascii() and '_' not in p + e]
    assert len(pairs) > 80
    scores = [scorer.score(e, p) for p, e in pairs]
    predicted, expected = zip(*pairs)
    assert metrics.rouge_l(predicted, expected) == pytest.approx([o['rougeL'].fmeasure for o in scores])
    assert metrics.token_f1(predicted, expected) == pytest.approx([o['rouge1'].fmeasure for o in scores])


def test_rouge_l_agrees_with_dynamic_programming():
    from difflib import SequenceMatcher # not the longest common subsequence, but a lower bound
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = ([f'w{i}' for i in rng.integers(0, 4, rng.integers(0, 90))] for _ in range(2))
        table = np.zeros((len(a) + 1, len(b) + 1), int)
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i+1, j+1] = table[i, j] + 1 if x == y else max(table[i, j+1], table[i+1, j])
        length = table[-1, -1]
        assert length >= sum(m.size for m in SequenceMatcher(None, a, b, False).get_matching_blocks())
        assert metrics.rouge_l([' '.join(a)], [' '.join(b)])[0] == metrics.ratio(2*length, len(a) + len(b))


@pytest.mark.parametrize('system, low, high', [
    ('empty', 0, 0), ('perfect', 1, 1), ('constant', .1, .45), ('endless', 0, .35)])
def test_degenerate_students_get_the_scores_they_deserve(recorded, system, low, high):
    _, expected, _ = recorded['test']
    endless = [', '.join(metrics.split_steps(e)[:1]*30) for e in expected]
    predicted = dict(empty=['']*50, perfect=expected, constant=expected[:1]*50, endless=endless)[system]
    assert low - 1e-4 <= metrics.step_f1(predicted, expected).mean() <= high + 1e-4


def test_every_metric_of_the_registry_gives_one_number_per_item(recorded):
    _, expected, second = recorded['test']
    for m in metrics.metrics:
        values = m.function(second, expected, embed)
        assert values.shape == (50,) and values.dtype == float, m.name
        assert not m.is_score or np.nanmax(np.abs(values)) <= 1.000001, m.name


# ---- formats and registry

def test_the_format_is_that_of_most_answers(recorded):
    assert {detect_format(expected) for _, expected, _ in recorded.values()} == {'steps'}
    assert detect_format(['{"a": 1}']*9 + ['x']) == 'json'
    assert detect_format(['It is.', 'Paris', 'a, b']) == 'text' and detect_format([]) == 'text'


def test_metrics_have_the_order_and_names_of_scores_json():
    shared = ['similarity', 'exact_match', 'token_f1', 'rouge_l', 'format', 'length_ratio']
    of_steps = ['step_f1', 'step_precision', 'step_recall', 'strict_f1', 'strict_precision', 'strict_recall',
                'step_order', 'step_count']
    assert list(metrics_for('steps')) == of_steps + shared
    assert list(metrics_for('json')) == ['field_match', 'step_f1'] + shared
    assert list(metrics_for('text')) == ['token_f1', 'step_f1', *(o for o in shared if o != 'token_f1')]


def test_titles_are_those_of_the_tables():
    assert [metric_title(o) for o in ('rouge_l', 'step_order', 'field_match')] == ['ROUGE-L', 'order', 'fields equal']
    assert metric_title('my_metric\n') == 'my metric' and len(metric_title('x'*100)) == 60


# ---- custom metrics

def similarity(p, e): return 1


@pytest.mark.parametrize('chosen, words', [
    ('f1', "unknown metric 'f1'"), (['step_f1', 3], 'unknown metric 3'), (similarity, "cannot be named 'similarity'"),
    ('gone.py:f', "the metric 'gone.py'"), (f'{__file__}:nothing', "has no function 'nothing'"),
    ('step_count', "'step_count' cannot be the main metric"), (['length_ratio', 'step_f1'], "'length_ratio' cannot")])
def test_an_unusable_metric_is_an_error_of_one_line(chosen, words):
    with pytest.raises(DistillError) as e: choose_metrics(chosen)
    assert words in str(e.value) and len(str(e.value).splitlines()) == 1


def test_the_names_of_columns_cannot_be_metrics():
    def pgr(p, e): return 1
    with pytest.raises(DistillError, match="cannot be named 'pgr'"): choose_metrics(pgr)


def test_metrics_are_chosen_by_name_function_and_file(tmp_path):
    (tmp_path/'mine.py').write_text('def half(predicted, expected): return 0.5\n')
    def n_commas(p, e): return p.count(',')
    chosen = choose_metrics([f'{tmp_path/"mine.py"}:half', 'rouge_l', n_commas, metrics.field_match], 'text')
    assert list(chosen)[:5] == ['half', 'rouge_l', 'n_commas', 'field_match', 'token_f1']
    assert chosen['half'](['a'], ['b']) == [0.5] and chosen['n_commas'](['a, b', 'c'], ['']*2).tolist() == [1, 0]
    assert chosen['field_match'] is metrics.field_match and chosen['format'] is metrics_for('text')['format']


def test_a_metric_of_another_format_may_be_chosen_and_the_own_format_comes_first():
    assert choose_metrics('field_match', 'steps')['field_match'] is metrics.field_match
    assert choose_metrics('format', 'json')['format'] is metrics_for('json')['format']


def test_none_leaves_an_item_out():
    values = custom_metric(lambda p, e: None if not e else e in p)(['ab']*4, ['a', 'b', 'c', ''])
    assert values[:3].tolist() == [1, 1, 0] and np.isnan(values[3])


@pytest.mark.parametrize('score', [lambda p, e: 'good', lambda p, e: 1/0, lambda p, e: float('-inf'), lambda p: 1])
def test_a_metric_that_fails_is_an_error_of_one_line(score):
    metric = custom_metric(score)
    with pytest.raises(DistillError, match='the metric .* failed on the answer') as e: metric(['a\nb'], ['c'])
    assert len(str(e.value).splitlines()) == 1


# Metrics that take the question

def by_question(question, predicted, expected): return float(predicted == question + expected)


def test_a_metric_of_three_arguments_gets_the_question():
    name, metric = next(iter(choose_metrics([by_question, 'rouge_l']).items()))
    assert name == 'by_question'
    assert list(compute_metric(metric, ['a', 'b'], ['ax', 'ax'], ['x', 'x'])) == [1, 0]
    with pytest.raises(DistillError, match='takes the question'): metric(['a'], ['b'])
    with pytest.raises(ValueError): compute_metric(metric, ['a'], ['ax', 'ax'], ['x', 'x'])


def test_the_number_of_required_arguments_decides():
    assert takes_question(by_question) and not takes_question(lambda p, e, weight=2: 1)
    assert not takes_question(lambda *texts: 1) and not takes_question(max)
    def fails(question, predicted, expected): return 1/0
    with pytest.raises(DistillError, match="the metric fails failed on the answer 'ax'"):
        compute_metric(custom_metric(fails), ['q'], ['ax'], ['x'])


def test_a_metric_without_a_name_has_one_in_tables():
    assert next(iter(choose_metrics(lambda predicted, expected: 1.))) == 'custom_metric'
