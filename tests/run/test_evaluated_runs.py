"Which runs can be compared, and which are repeats of one student."
import re, shutil

import pytest

from llm_distill.core.core import DistillError, read_jsonl, write_json, write_jsonl
from llm_distill.run.evaluated_runs import check_same_tests, find_runs, group_by_student, list_systems, read_run
from compared_runs import finished_run
from run_files import read


def test_a_recipe_makes_another_student(tmp_path):
    runs = [finished_run(tmp_path/'a', [.5]*9), finished_run(tmp_path/'b', [.6]*9, recipe=dict(lr=1e-3)),
            finished_run(tmp_path/'c', [.6]*9, random_seed=1, recipe=dict(lr=2e-4))]
    groups = group_by_student([read_run(path) for path in runs])
    assert [(g.name, g.seeds) for g in groups] == [('small (lr 0.0002)', [0, 1]), ('small (lr 0.001)', [0])]


def test_other_training_pairs_make_another_student(tmp_path):
    runs = [finished_run(tmp_path/name, [.5]*9) for name in 'abc']
    for path, n in zip(runs, (3, 3, 4)):
        write_jsonl(path / 'train.jsonl', [dict(question=f'{path.name}{i}') for i in range(n)])
    assert [g.name for g in group_by_student([read_run(path) for path in runs])] == [
        'small (pairs 3)',
        'small (pairs 3)',
        'small (pairs 4)',
    ]
    assert [g.name for g in group_by_student([read_run(path) for path in runs[:2]])] == [
        'small (from a)',
        'small (from b)',
    ]


def test_the_path_of_a_local_student_is_not_shown(tmp_path):
    folder = tmp_path/'secret'/'my-student'
    folder.mkdir(parents=True)
    run = read_run(finished_run(tmp_path/'a', [.5]*9, str(folder)))
    systems = list_systems(group_by_student([run]))
    assert run.student == 'my-student' and not any('secret' in s.name for s in systems)


def test_a_base_model_is_listed_once_for_all_its_students(tmp_path):
    runs = [finished_run(tmp_path/f'{lr}', [.5]*9, recipe=dict(lr=lr)) for lr in (1e-3, 1e-4)]
    systems = list_systems(group_by_student([read_run(path) for path in runs]))
    assert [s.name for s in systems] == [
        'small (lr 0.001), distilled',
        'small (lr 0.0001), distilled',
        'small, base model, 1-shot',
        'nearest training answer',
        'echo of the question',
        'teacher self-agreement (ceiling)',
    ]


def test_a_baseline_that_answers_otherwise_has_the_name_of_its_student(tmp_path):
    runs = [finished_run(tmp_path/s, [.5]*9, s) for s in ('big', 'small')] # the answers of all systems name the student
    systems = list_systems(group_by_student([read_run(path) for path in runs]))
    assert [s.name for s in systems if s.system == 'echo'] == [
        'echo of the question, big',
        'echo of the question, small',
    ]


def test_a_folder_stands_for_the_runs_in_it(tmp_path):
    runs = [finished_run(tmp_path/'both'/name, [.5]*6) for name in ('a', 'b')]
    (tmp_path/'both'/'figures').mkdir()
    assert find_runs([tmp_path/'both']) == runs == find_runs(runs) and find_runs([tmp_path/'no']) == [tmp_path/'no']


def test_the_size_is_read_from_the_weights(tiny, tmp_path):
    from llm_distill.student.models import Student
    run = finished_run(tmp_path/'run', [.5]*5)
    shutil.copytree(tiny, run/'student')
    assert read_run(run).size['parameters'] == Student.load(tiny).n_parameters
    assert read(run/'run.json')['size'] == {}


@pytest.mark.parametrize('changes, reason', [
    (dict(values=[.5]*10), "only the second has 'Do 9 things.'"),
    (dict(values=[.5]*7), "only the first has 'Do 7 things.' and 1 more"),
    (dict(metric='similarity'), "the main metrics are 'step_f1' and 'similarity'"),
    (dict(test_set='test_ood'), 'the test sets are ')])
def test_other_tests_cannot_be_compared(tmp_path, changes, reason):
    runs = [
        finished_run(tmp_path / 'a', [0.5] * 9),
        finished_run(tmp_path / 'b', **(dict(values=[0.5] * 9, random_seed=1) | changes)),
    ]
    with pytest.raises(DistillError, match=re.escape(f'cannot be compared: ') + '.*' + re.escape(reason)) as e:
        check_same_tests([read_run(path) for path in runs])
    assert '\n' not in str(e.value)


def test_other_expected_answers_cannot_be_compared(tmp_path):
    runs = [finished_run(tmp_path/'a', [.5]*9), finished_run(tmp_path/'b', [.5]*9, random_seed=1)]
    write_jsonl(
        runs[1] / 'item_scores.jsonl', [row | dict(expected='no') for row in read_jsonl(runs[1] / 'item_scores.jsonl')]
    )
    with pytest.raises(DistillError, match="is 'do it, Do 0 things.' or 'no'"):
        check_same_tests([read_run(path) for path in runs])


def test_what_is_no_evaluated_run_is_refused(tmp_path):
    run = finished_run(tmp_path/'run', [.5]*9)
    with pytest.raises(DistillError, match='nowhere is not a run directory'): read_run(tmp_path/'nowhere')
    rows = read_jsonl(run/'item_scores.jsonl')
    write_jsonl(run/'item_scores.jsonl', [row for row in rows if row['system'] != 'distilled'])
    with pytest.raises(DistillError, match='has no answers of a distilled student'): read_run(run)
    (run/'scores.json').unlink()
    with pytest.raises(DistillError, match="scores.json is missing; run 'llm-distill evaluate "): read_run(run)


def test_an_older_run_is_refused(tmp_path):
    run = finished_run(tmp_path/'run', [.5]*9)
    write_json(run/'run.json', dict(settings={}, llm_distill='0.1'))
    with pytest.raises(DistillError, match='older format'): read_run(run)
