"Students of several runs: how random seeds and questions make an interval, and what the verdict may say."
import re
from pathlib import Path

import numpy as np
import pytest

from llm_distill.core.core import DistillError, read_jsonl, write_jsonl
from llm_distill.run.comparison import compare_runs, comparison
from compared_runs import finished_run
from run_files import Page, hostile, read, rendered

real = Path(__file__).resolve().parents[2]/'nbs'/'runs'/'quickstart'


def draw(rng, n, mean, seeds, between, items=None, own=.02):
    "Scores of one student, a row per seed: effects of the questions, of the seeds, and of both together"
    items = rng.normal(0, .1, n) if items is None else items
    return mean + items + rng.normal(0, between, (seeds, 1)) + rng.normal(0, own, (seeds, n))


def test_repeats_are_found_and_students_are_paired(tmp_path):
    rng = np.random.default_rng(0)
    items = rng.normal(0, .1, 60)
    small, big = (draw(rng, 60, m, 3, .01, items).clip(0, 1).round(4) for m in (.5, .6))
    runs = [finished_run(tmp_path/f'{name}-{i}', v.tolist(), name, i, parameters=n)
            for name, rows, n in (('small', small, 10**8), ('big', big, 10**9)) for i, v in enumerate(rows)]
    result = comparison(runs[::-1])
    students = [(s['students'], s['seeds']) for s in result['systems'] if s['system'] == 'distilled']
    assert students == [(['big'], [0, 1, 2]), (['small'], [0, 1, 2])]
    d, = result['differences']
    assert (
        (d['a'], d['b'], d['n']) == ('big', 'small', 60)
        and d['mean'] == pytest.approx(big.mean() - small.mean())
        and d['low'] > 0
        and d['p'] < 0.01
    )
    assert result['verdict']['headline'] == 'By step F1, on the test set big is the best.'
    line = {s['name']: s for s in result['systems']}
    assert line['big, distilled']['scores']['test']['pgr']['mean'] == pytest.approx((big.mean() - .2)/.7, abs=1e-4)
    assert line['big, distilled']['scores']['test']['step_f1']['mean'] == pytest.approx(big.mean(), abs=1e-5)
    text = compare_runs(runs, tmp_path/'out').read_text()
    assert 'big, distilled' in text and (tmp_path/'out'/'figures'/'sizes.png').exists()


@pytest.mark.parametrize('values, outcome', [
    ([.2]*30, 'is not shown to work'), # as the base model
    ([.15]*30, 'did not work'), # as an echo
    ([0.]*30, 'did not work'), # silent
])
def test_a_degenerate_student_does_not_succeed(values, outcome, tmp_path):
    runs = [finished_run(tmp_path/str(i), values, random_seed=i) for i in range(2)]
    result = comparison(runs)
    assert outcome in result['verdict']['headline'] and 'worked' not in result['verdict']['headline']
    assert not [
        o
        for o in comparison([*runs, finished_run(tmp_path / 'other', values, 'other')])['verdict']['lines']
        if 'worked' in o
    ]


def test_students_that_are_level_have_no_best(tmp_path):
    rng = np.random.default_rng(5)
    runs = [
        finished_run(tmp_path / f'{s}{i}', draw(rng, 30, 0.5, 1, 0.05)[0].tolist(), s, i)
        for s in 'ab'
        for i in range(2)
    ]
    assert 'no student is the best' in comparison(runs)['verdict']['headline']


def test_a_folder_stands_for_the_runs_in_it(tmp_path):
    "As `run` leaves it with several students, with tables and figures in it"
    runs = [finished_run(tmp_path/'both'/f'{s}-0', [v]*6, s) for s, v in (('big', .8), ('small', .5))]
    compare_runs(runs, tmp_path/'both')
    alone = finished_run(tmp_path/'other', [.3]*6, 'other')
    assert comparison([tmp_path / 'both']) == comparison(runs) and comparison([tmp_path / 'both', alone]) == comparison(
        [*runs, alone]
    )
    (tmp_path/'empty').mkdir()
    with pytest.raises(DistillError, match='empty is not a run directory'): comparison([runs[0], tmp_path/'empty'])


def test_what_cannot_be_compared_writes_nothing(tmp_path):
    a = finished_run(tmp_path/'a', [.5]*9)
    def fails(reason, *runs):
        with pytest.raises(DistillError, match=re.escape(reason)) as e: compare_runs(runs, tmp_path/'out')
        assert '\n' not in str(e.value) and not (tmp_path/'out').exists()
    fails("only the second has 'Do 9 things.'", a, finished_run(tmp_path/'b', [.5]*10, random_seed=1))
    fails("only the first has 'Do 7 things.' and 1 more", a, finished_run(tmp_path/'c', [.5]*7, random_seed=1))
    fails('same seed 0', a, finished_run(tmp_path/'d', [.6]*9))
    fails('nowhere is not a run directory', a, tmp_path/'nowhere')
    fails('nothing to compare')
    changed = finished_run(tmp_path/'e', [.5]*9, random_seed=1)
    write_jsonl(changed/'item_scores.jsonl', [r | dict(expected='no') for r in read_jsonl(changed/'item_scores.jsonl')])
    fails("is 'do it, Do 0 things.' or 'no'", a, changed)
    (changed/'scores.json').unlink()
    fails("scores.json is missing; run 'llm-distill evaluate", a, changed)
    with pytest.raises(DistillError, match='is a run directory'): compare_runs([a], a)


def test_a_real_run_alone_scores_as_in_its_own_tables():
    result = comparison([real])
    own = {(r['test_set'], r['system']): r for r in read(real/'scores.json')}
    for s in result['systems']:
        for t, v in s['scores'].items():
            for metric in 'step_f1', 'similarity':
                assert v[metric] == pytest.approx(own[t, s['system']][metric], abs=2e-4), (s['name'], t, metric)
    for t, others in result['systems'][0]['against'].items():
        for s, d in others.items():
            assert d['mean'] == pytest.approx(own[t, 'distilled']['against'][s]['mean'], abs=2e-4)


def test_a_student_that_did_not_work_is_not_recommended(tmp_path):
    runs = [finished_run(tmp_path/'echo', [.15]*20, 'big'), finished_run(tmp_path/'silent', [0.]*20, 'small')]
    text = comparison(runs)['verdict']['headline']
    assert (
        'no student can be recommended: the distillation of big, which scores highest, did not work' in text
        and 'is the best' not in text
    )


def test_a_system_without_a_score_has_a_dash_and_no_comparison(tmp_path):
    "A main metric may not apply to any answer of a baseline"
    runs = [finished_run(tmp_path/s, [.5]*9, s) for s in ('a', 'b')]
    for path in runs:
        rows = read_jsonl(path/'item_scores.jsonl')
        write_jsonl(path/'item_scores.jsonl', [r | dict(step_f1=None) if r['system'] == 'teacher' else r for r in rows])
    result = comparison(runs)
    assert all(
        'teacher' not in s['against']['test'] and 'pgr' not in s['scores']['test']
        for s in result['systems']
        if s['system'] == 'distilled'
    )
    text = compare_runs(runs, tmp_path/'out').read_text()
    assert re.search(r'teacher self-agreement \(ceiling\), a +\| +\| +– \|', text)


def test_sizes_are_drawn_only_if_one_is_known(tmp_path):
    compare_runs([finished_run(tmp_path/'a', [.5]*9)], tmp_path/'out')
    assert [f.name for f in (tmp_path/'out'/'figures').iterdir()] == ['students.png']


def test_one_seed_is_said_to_show_no_variation(tmp_path):
    runs = [
        finished_run(tmp_path / 'a0', [0.5] * 9, 'a'),
        finished_run(tmp_path / 'b0', [0.6] * 9, 'b'),
        finished_run(tmp_path / 'b1', [0.6] * 9, 'b', 1),
    ]
    assert 'The intervals of a cover other test questions only' in compare_runs(runs, tmp_path/'out').read_text()


def test_names_of_students_are_text(tmp_path):
    runs = [
        finished_run(tmp_path / 'a', [0.5] * 9, hostile, parameters=10**8),
        finished_run(tmp_path / 'b', [0.6] * 9, parameters=10**9),
    ]
    page = rendered(compare_runs(runs, tmp_path/'out').read_text())
    assert not {'a', 'script', 'em', 'code'} & {tag for tag, _ in page.tags}
    html = (tmp_path/'out'/'comparison.html').read_text()
    page = Page(html)
    assert (
        not page.open
        and not {'script', 'a'} & {tag for tag, _ in page.tags}
        and not re.search(r'url\(|https?://', html)
    )
    assert all(a.get('scope') for tag, a in page.tags if tag == 'th') and all(
        a['alt'] for tag, a in page.tags if tag == 'img'
    )
