"Students side by side: what two sources of chance make of an interval, which runs can be compared, and what the verdict may say."
import json, re, shutil
from pathlib import Path

import numpy as np
import pytest

from llm_distill.comparison import compare_runs, comparison, difference, group, mean_over_seeds, read_run
from llm_distill.prompts import DistillError, read_jsonl, write_json, write_jsonl

real = Path(__file__).resolve().parents[1]/'nbs'/'runs'/'quickstart'


def made_up(path, values, student='small', seed=0, ceiling=.9, before=.2, parameters=None, recipe={}):
    "A finished run of which only the scores exist: of the student (one value a task), of a level baseline, ceiling and trivial answers"
    tasks = [f'Do {i} things.' for i in range(len(values))]
    levels = dict(distilled=values, one_shot=[before]*len(values), nearest=[.1]*len(values), echo=[.15]*len(values), teacher=[ceiling]*len(values))
    rows = [dict(test_set='same', system=s, task=t, expected=f'do it, {t}', prediction=f'{s} {path.name if s == "distilled" else student} {t}', pairs=[], step_f1=v, similarity=v)
            for s, vs in levels.items() for t, v in zip(tasks, vs)]
    level = dict(mean=.5, low=.4, high=.6)
    write_json(path/'run.json', dict(settings=dict(student=student, recipe=dict(seed=seed) | recipe), stages={}, size=dict(parameters=parameters) if parameters else {}))
    write_json(path/'scores.json', [dict(test_set='same', system=s, n=len(values), main='step_f1', step_f1=level, similarity=level) for s in levels])
    write_jsonl(path/'item_scores.jsonl', rows)
    return path


def draw(rng, n, mean, seeds, between, items=None, own=.02):
    "Scores of one student, a row for each seed: effects of the tasks, which all students share, of the seeds, and of both together"
    items = rng.normal(0, .1, n) if items is None else items
    return mean + items + rng.normal(0, between, (seeds, 1)) + rng.normal(0, own, (seeds, n))


@pytest.mark.parametrize('seeds,between', [(2, 0), (3, .02), (5, .05)])
def test_intervals_cover_the_truth(seeds, between):
    "Of a mean and of a difference, where the variance components are known; the standard error of 400 tries is 1.1%"
    rng, held, forgot = np.random.default_rng(1), [], []
    for _ in range(400):
        items = rng.normal(0, .1, 40)
        a, b = (draw(rng, 40, .5, seeds, between, items) for _ in range(2))
        mean, d = mean_over_seeds(a, 400), difference(a, b, 400)
        held.append([mean[1] <= .5 <= mean[2], d.low <= 0 <= d.high])
        forgot.append((m := difference(a.mean(0), b.mean(0), 400)).low <= 0 <= m.high)
    assert all(.915 <= o <= .985 for o in np.mean(held, 0)), np.mean(held, 0)
    if between: assert np.mean(forgot) < .75, 'a test that forgets the seeds would be wrong here'


def test_p_values_are_even_where_nothing_differs():
    rng = np.random.default_rng(2)
    p = [difference(draw(rng, 40, .5, 3, .03, items), draw(rng, 40, .5, 3, .03, items), 400).p for items in rng.normal(0, .1, (400, 40))]
    assert .025 <= np.mean(np.array(p) < .05) <= .085 and .4 <= np.mean(p) <= .6


def test_what_seeds_say_is_said_of_seeds():
    "Three seeds whose tasks are all alike: the t interval of three numbers, by hand 0.6 +- 4.303 * 0.1/sqrt(3)"
    mean, low, high = mean_over_seeds(np.array([.5, .6, .7])[:, None] + np.zeros((3, 200)))
    assert mean == pytest.approx(.6) and [mean - low, high - mean] == pytest.approx([4.303*.1/3**.5]*2, rel=.03)


def test_repeats_are_found_and_students_are_paired(tmp_path):
    rng = np.random.default_rng(0)
    items = rng.normal(0, .1, 60)
    small, big = (draw(rng, 60, m, 3, .01, items).clip(0, 1).round(4) for m in (.5, .6))
    runs = [made_up(tmp_path/f'{name}-{i}', v.tolist(), name, i, parameters=n) for name, rows, n in (('small', small, 10**8), ('big', big, 10**9)) for i, v in enumerate(rows)]
    found = comparison(runs[::-1])
    assert [(o['students'], o['seeds']) for o in found['systems'] if o['system'] == 'distilled'] == [(['big'], [0, 1, 2]), (['small'], [0, 1, 2])]
    d, = found['differences']
    assert (d['a'], d['b'], d['n']) == ('big', 'small', 60) and d['mean'] == pytest.approx(big.mean() - small.mean()) and d['low'] > 0 and d['p'] < .01
    assert found['verdict']['headline'] == 'By step F1, on test tasks from the same seed prompt big is the best.'
    line = {o['name']: o for o in found['systems']}
    assert line['big, distilled']['scores']['same']['gap_closed']['mean'] == pytest.approx((big.mean() - .2)/.7, abs=1e-4)
    assert line['big, distilled']['scores']['same']['step_f1']['mean'] == pytest.approx(big.mean(), abs=1e-5)
    text = compare_runs(runs, tmp_path/'out').read_text()
    assert 'big, distilled' in text and (tmp_path/'out'/'figures'/'sizes.png').exists()


@pytest.mark.parametrize('values,says', [
    ([.2]*30, 'is not shown to work'), # as the untuned student
    ([.15]*30, 'did not work'), # as an echo
    ([0.]*30, 'did not work'), # silent
])
def test_a_degenerate_student_does_not_succeed(values, says, tmp_path):
    runs = [made_up(tmp_path/str(i), values, seed=i) for i in range(2)]
    found = comparison(runs)
    assert says in found['verdict']['headline'] and 'worked' not in found['verdict']['headline']
    assert not [o for o in comparison([*runs, made_up(tmp_path/'other', values, 'other')])['verdict']['lines'] if 'worked' in o]


def test_students_that_are_level_have_no_best(tmp_path):
    rng = np.random.default_rng(5)
    runs = [made_up(tmp_path/f'{s}{i}', draw(rng, 30, .5, 1, .05)[0].tolist(), s, i) for s in 'ab' for i in range(2)]
    assert 'no student is the best' in comparison(runs)['verdict']['headline']


def test_a_recipe_makes_another_student(tmp_path):
    runs = [made_up(tmp_path/'a', [.5]*9), made_up(tmp_path/'b', [.6]*9, recipe=dict(lr=1e-3)), made_up(tmp_path/'c', [.6]*9, seed=1, recipe=dict(lr=2e-4))]
    assert [(o.name, o.seeds) for o in group([read_run(o) for o in runs])] == [('small (lr 0.0002)', [0, 1]), ('small (lr 0.001)', [0])]


def test_a_folder_stands_for_the_runs_in_it(tmp_path):
    "As `run` leaves it with several students: runs beside tables and figures"
    made = [made_up(tmp_path/'both'/f'{s}-0', [v]*6, s) for s, v in (('big', .8), ('small', .5))]
    compare_runs(made, tmp_path/'both')
    alone = made_up(tmp_path/'other', [.3]*6, 'other')
    assert comparison([tmp_path/'both']) == comparison(made) and comparison([tmp_path/'both', alone]) == comparison([*made, alone])
    (tmp_path/'empty').mkdir()
    with pytest.raises(DistillError, match='empty is not a run directory'): comparison([made[0], tmp_path/'empty'])

def test_what_cannot_be_compared(tmp_path):
    a = made_up(tmp_path/'a', [.5]*9)
    def fails(says, *runs):
        with pytest.raises(DistillError, match=re.escape(says)) as e: compare_runs(runs, tmp_path/'out')
        assert '\n' not in str(e.value) and not (tmp_path/'out').exists()
    fails("only the second has 'Do 9 things.'", a, made_up(tmp_path/'b', [.5]*10, seed=1))
    fails("only the first has 'Do 7 things.' and 1 more", a, made_up(tmp_path/'c', [.5]*7, seed=1))
    fails('same seed 0', a, made_up(tmp_path/'d', [.6]*9))
    fails('nowhere is not a run directory', a, tmp_path/'nowhere')
    fails('nothing to compare')
    changed = made_up(tmp_path/'e', [.5]*9, seed=1)
    write_jsonl(changed/'item_scores.jsonl', [r | dict(expected='no') for r in read_jsonl(changed/'item_scores.jsonl')])
    fails("should be 'do it, Do 0 things.' or 'no'", a, changed)
    (changed/'scores.json').unlink()
    fails('scores.json is missing; run the stage `evaluate` first', a, changed)
    write_jsonl(changed/'item_scores.jsonl', [])
    with pytest.raises(DistillError, match='is a run directory'): compare_runs([a], a)


def test_the_size_is_read_from_the_weights(tiny, tmp_path):
    from llm_distill.student import Student
    run = made_up(tmp_path/'run', [.5]*5)
    shutil.copytree(tiny, run/'student')
    student = Student.load(tiny)
    assert read_run(run).size['parameters'] == student.n_parameters
    assert json.loads((tmp_path/'run'/'run.json').read_text())['size'] == {}


def test_a_real_run_alone_scores_as_in_its_own_tables():
    found = comparison([real])
    own = {(r['test_set'], r['system']): r for r in json.loads((real/'scores.json').read_text())}
    for o in found['systems']:
        for t, v in o['scores'].items():
            for metric in 'step_f1', 'similarity': assert v[metric] == pytest.approx(own[t, o['system']][metric], abs=2e-4), (o['name'], t, metric)
    for t, others in found['systems'][0]['against'].items():
        for s, d in others.items(): assert d['mean'] == pytest.approx(own[t, 'distilled']['against'][s]['mean'], abs=2e-4)


def test_a_student_that_did_not_work_is_not_recommended(tmp_path):
    echo, silent = made_up(tmp_path/'echo', [.15]*20, 'big'), made_up(tmp_path/'silent', [0.]*20, 'small')
    said = comparison([echo, silent])['verdict']['headline']
    assert 'no student is to be recommended: the distillation of big, which scores highest, did not work' in said and 'is the best' not in said


def test_a_gap_with_a_small_denominator_keeps_its_interval():
    rng = np.random.default_rng(0)
    before, ceiling = rng.normal(.50, .1, 40), rng.normal(.55, .1, 40)
    values = .53 + rng.normal(0, .02, (2, 40))
    from llm_distill.comparison import gap_over_seeds
    mean, low, high = gap_over_seeds(values, before, ceiling)
    assert mean == pytest.approx((values.mean() - before.mean())/(ceiling.mean() - before.mean())) and high - low < 5, 'resampled ratios would make it endless'
