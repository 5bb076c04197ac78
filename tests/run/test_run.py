"The whole chain on a tiny student: its files, what is skipped, what a kill leaves behind, and what is shared."
import shutil, signal, subprocess, sys, time
from collections import Counter
from pathlib import Path

import pytest
from filelock import FileLock

from llm_distill.core.core import DistillError, read_json, read_jsonl, recordings, write_json, write_jsonl
from llm_distill.core.prompt_files import load_prompt
from llm_distill.core.rundir import stages
from llm_distill.data.dedup import cosine_threshold, normalize
from llm_distill.data.embedding import embed
from llm_distill.run.distill import distill
from llm_distill.run.run import Run, shared_files
from llm_distill.student.generation import Student
from llm_distill.student.recipe import Recipe
from llm_distill.teacher.teacher import recorded_teacher
from server import Server

prompt, ood_prompt = load_prompt(recordings/'apartments.toml'), load_prompt(recordings/'pull_requests.toml')
sizes = dict(n=30, n_test=6)
recipe = Recipe(epochs=2, lr=1e-3)
splits = 'train', 'test', 'test_ood'
systems = 'distilled', 'one_shot', 'zero_shot', 'echo', 'nearest', 'constant', 'teacher'


@pytest.fixture(scope='session')
def finished(tiny, tmp_path_factory):
    "A whole run with the recorded teacher."
    path = tmp_path_factory.mktemp('runs')/'whole'
    return distill(prompt, recorded_teacher(), ood_prompt, path, student=tiny, recipe=recipe, **sizes)


def content(path):
    "The files of a run that must be the same in whatever way it was made."
    files = [f for f in sorted(Path(path).rglob('*')) if f.is_file() and not f.name.startswith('.')]
    return {str(f.relative_to(path)): f.read_bytes() for f in files if f.name != 'run.json' and f.suffix != '.png'}


def modified(path, *but):
    "When each file of a run was written."
    files = [f for f in Path(path).rglob('*') if f.is_file() and f.name not in but]
    return {f: f.stat().st_mtime_ns for f in files}


# Files

def test_run_has_every_file(finished):
    path = finished.path
    for name in ('run.json', 'run.toml', 'questions.jsonl', 'rejects.jsonl', 'train.jsonl', 'test.jsonl',
                 'test_ood.jsonl', 'losses.jsonl', 'student/config.json', 'student/model.safetensors',
                 'student/README.md', 'scores.json', 'results.md'):
        assert (path/name).stat().st_size > 0, name
    assert not (path/'training').exists()
    assert all(finished.done(s) for s in stages)
    assert len(list((path/'figures').glob('*.png'))) >= 3
    assert not list(path.glob('student/*.bin'))


def test_splits_are_disjoint(finished):
    questions = {k: [r['question'] for r in read_jsonl(finished.path/f'{k}.jsonl')] for k in splits}
    assert {k: len(v) for k, v in questions.items()} == dict(train=30, test=6, test_ood=6)
    every = [normalize(q) for v in questions.values() for q in v]
    assert len(set(every)) == len(every)
    cosines = embed(questions['test'] + questions['test_ood']) @ embed(questions['train']).T
    assert cosines.max() < cosine_threshold
    assert questions['test'] == [r['question'] for r in read_jsonl(recordings/'apartments.jsonl')[:6]]


def test_pairs_say_where_they_come_from(finished):
    recorded = {r['question']: r['answers'][0] for f in recordings.glob('*.jsonl') for r in read_jsonl(f)}
    seed_questions = dict(train=prompt.question, test=prompt.question, test_ood=ood_prompt.question)
    for name in splits:
        for row in read_jsonl(finished.path/f'{name}.jsonl'):
            assert row['answer'] + '<END>' == recorded[row['question']]
            assert row['seed_question'] == seed_questions[name]
            assert row['request'] and row['teacher'] == finished.teacher.model


def test_scores_have_the_agreed_form(finished):
    scores = read_json(finished.path/'scores.json')
    expected = {(t, s) for t in ('test', 'test_ood') for s in systems}
    assert {(r['test_set'], r['system']) for r in scores} == expected
    for r in scores:
        assert r['n'] == 6
        for metric in ('similarity', 'step_f1'):
            assert -1 <= r[metric]['low'] <= r[metric]['mean'] <= r[metric]['high'] <= 1
    means = {(r['test_set'], r['system']): r['step_f1']['mean'] for r in scores}
    for test_set in ('test', 'test_ood'): assert means[test_set, 'teacher'] > means[test_set, 'echo']


def test_predictions_stand_next_to_the_expected_answers(finished):
    expected = {r['question']: r['answer'] for r in read_jsonl(finished.path/'test.jsonl')}
    second = {r['question']: r['answers'][1] for r in read_jsonl(recordings/'apartments.jsonl')}
    for row in read_jsonl(finished.path/'predictions'/'teacher_test.jsonl'):
        assert row['expected'] == expected[row['question']]
        assert row['prediction'] + '<END>' == second[row['question']]


def test_the_data_set_can_be_loaded_by_others(finished, tmp_path):
    from datasets import load_dataset
    loaded = load_dataset(str(finished.path/'dataset'), cache_dir=tmp_path) # a cache knows a folder by its name
    for split in splits:
        rows = loaded[split].to_list()
        chats = [row.pop('messages') for row in rows] # as training libraries read them
        assert rows == read_jsonl(finished.path/f'{split}.jsonl')
        assert [[m['content'] for m in chat] for chat in chats] == [[row['question'], row['answer']] for row in rows]
    card = (finished.path/'dataset'/'README.md').read_text()
    assert prompt.instruction in card.replace('\\', '') and 'every tenth row' in card and 'CC0' in card
    figures = {f.stem.removeprefix('data_') for f in (finished.path/'figures').glob('data_*.png')}
    assert figures >= {'lengths', 'steps', 'openings', 'map', 'filters'}
    points = read_jsonl(finished.path/'data_map.jsonl')
    assert len(points) == 42 and all(abs(p['x']) <= 1 and abs(p['y']) <= 1 for p in points)


# Resuming

def test_second_call_does_nothing(finished, tiny):
    before = modified(finished.path, 'run.json', 'run.toml', '.lock')
    distill(prompt, recorded_teacher(), ood_prompt, finished.path, student=tiny, recipe=recipe, quiet=True, **sizes)
    assert modified(finished.path, 'run.json', 'run.toml', '.lock') == before


def test_an_edited_file_repeats_what_follows(finished, tmp_path, capsys):
    path = shutil.copytree(finished.path, tmp_path/'copy')
    write_jsonl(path/'test.jsonl', read_jsonl(path/'test.jsonl')[:5])
    run = Run(path).run(recorded_teacher())
    progress = capsys.readouterr().err
    assert 'finetune: nothing to do' in progress and 'evaluate distilled: done' in progress
    assert {r['test_set']: r['n'] for r in read_json(run.path/'scores.json')} == dict(test=5, test_ood=6)


def test_until_stops_and_the_next_call_resumes(finished, tiny, tmp_path):
    def go(**kwargs):
        path = tmp_path/'my first run'
        return distill(prompt, recorded_teacher(), ood_prompt, path, student=tiny, recipe=recipe, **sizes, **kwargs)
    run = go(until='label')
    assert [s for s in stages if run.done(s)] == ['synthesize', 'label'] and not (run.path/'student').exists()
    assert content(go().path) == content(finished.path)


def test_one_test_set_without_a_second_prompt(tiny, tmp_path):
    run = distill(prompt, recorded_teacher(), run_dir=tmp_path/'run', student=tiny, recipe=Recipe(epochs=1), n=20,
                  n_test=4)
    text = (run.path/'results.md').read_text()
    assert 'Table 1' in text and 'Table 2' not in text and not (run.path/'test_ood.jsonl').exists()


def test_two_processes_do_not_share_a_run(finished):
    with FileLock(finished.path/'.lock'):
        with pytest.raises(DistillError, match='another process'): Run(finished.path).run(None, ['results'])


def test_changed_settings_a_kill_and_back_again(finished, tiny, tmp_path, monkeypatch):
    path = shutil.copytree(finished.path, tmp_path/'run')
    def go(recipe):
        return distill(prompt, recorded_teacher(), ood_prompt, path, student=tiny, recipe=recipe, quiet=True, **sizes)
    original = Run.predict_system
    def killed(self, system):
        original(self, system)
        if system == 'distilled': raise KeyboardInterrupt
    monkeypatch.setattr(Run, 'predict_system', killed)
    with pytest.raises(KeyboardInterrupt): go(Recipe(epochs=1, lr=1e-2))
    monkeypatch.undo()
    file = Path('predictions')/'distilled_test.jsonl'
    assert (path/file).read_bytes() != (finished.path/file).read_bytes()
    assert content(go(recipe).path) == content(finished.path)


def test_dropping_the_second_prompt_drops_its_results(finished, tiny, tmp_path):
    path = shutil.copytree(finished.path, tmp_path/'run')
    distill(prompt, recorded_teacher(), None, path, student=tiny, recipe=recipe, quiet=True, **sizes)
    assert {r['test_set'] for r in read_json(path/'scores.json')} == {'test'}
    assert not list(path.rglob('*_ood*')) and 'Table 2' not in (path/'results.md').read_text()


def test_another_prompt_does_not_overwrite_a_run(finished):
    with pytest.raises(DistillError, match='holds a run of another prompt'):
        distill(ood_prompt, recorded_teacher(), run_dir=finished.path)


def test_a_run_of_an_older_version_is_refused(tiny, tmp_path):
    run = distill(prompt, recorded_teacher(), run_dir=tmp_path/'run', until='synthesize', student=tiny, n=8, n_test=3)
    record = read_json(run.path/'run.json')
    settings = record.pop('config')
    del record['format']
    write_json(run.path/'run.json', record | dict(settings=settings, llm_distill='0.1.0'))
    before = modified(run.path)
    for open_run in lambda: Run(run.path), lambda: distill(prompt, recorded_teacher(), run_dir=run.path):
        with pytest.raises(DistillError, match='was written by llm_distill 0.1.0 in an older format') as e: open_run()
        assert len(str(e.value).splitlines()) == 1
    assert modified(run.path) == before


# Killed in each stage

def command(path, tiny, server, tmp_path):
    options = {'--ood-prompt': recordings/'pull_requests.toml', '--teacher': 'big', '--base-url': server.url,
               '--student': tiny, '--n': 30, '--n-test': 6, '--epochs': 2, '--concurrency': 4,
               '--cache': tmp_path/'cache.sqlite', '--run-dir': path}
    program = Path(sys.executable).with_name('llm-distill')
    words = [program, 'run', recordings/'apartments.toml', *(word for option in options.items() for word in option)]
    return list(map(str, words))


def kill_when(process, happened):
    "Send SIGKILL as soon as `happened()`; return whether the process was still running then."
    while process.poll() is None and not happened(): time.sleep(0.005)
    if process.poll() is None: process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def test_killed_in_every_stage_and_started_again(tiny, tmp_path):
    path, reference = tmp_path/'run', tmp_path/'reference'
    with Server(latency=0.05) as server:
        def n_requests(stage): return sum(r['stage'] == stage for r in list(server.log))
        moments = dict(synthesize=lambda: n_requests('synthesis') >= 3, label=lambda: n_requests('labeling') >= 8,
                       finetune=lambda: any(path.glob('training/checkpoint-*/trainer_state.json')),
                       evaluate=lambda: (path/'predictions'/'one_shot_test.jsonl').exists(),
                       results=lambda: (path/'scores.json').exists())
        killed = {}
        for stage, happened in moments.items():
            with open(tmp_path/'log', 'ab') as log:
                process = subprocess.Popen(command(path, tiny, server, tmp_path), stdout=log, stderr=log)
            killed[stage] = kill_when(process, happened)
        done = subprocess.run(command(path, tiny, server, tmp_path), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr + (tmp_path/'log').read_text()
        assert 'Table 1' in done.stdout and 'Table 2' in done.stdout
        assert all(killed[k] for k in ('synthesize', 'label', 'finetune', 'evaluate')), killed
        # a request that was answered is not sent again, except for the few in flight when the process was killed
        times = Counter((r['prompt'], r['stage'], r['sample']) for r in server.log if 'answered' in r)
        assert sum(n - 1 for n in times.values()) <= 2*4 # two kills while asking, with four requests in flight
        before = len(server.log)
        subprocess.run(command(reference, tiny, server, tmp_path), check=True, capture_output=True)
        assert len(server.log) == before # all in the cache
    assert content(path) == content(reference)


# Steps of another run

def test_a_run_reuses_what_does_not_depend_on_the_training(finished, tiny, tmp_path, capsys):
    again = distill(prompt, recorded_teacher(), ood_prompt, tmp_path/'again', 'synthesize', True, student=tiny,
                    recipe=Recipe(epochs=1, random_seed=1), **sizes)
    (tmp_path/'again'/'questions.jsonl').unlink()
    again.quiet = False
    again.run(None, ['synthesize', 'label', 'finetune', 'evaluate'], reuse_from=[finished])
    progress = capsys.readouterr().err
    for step in ('synthesize', 'label', 'evaluate teacher', 'evaluate one_shot', 'evaluate nearest'):
        assert f'{step}: nothing to do' in progress, step
    for step in ('finetune', 'evaluate distilled', 'evaluate scores'): assert f'{step}: done' in progress, step
    for file in ('train.jsonl', 'dataset/train.parquet', 'predictions/teacher_test.jsonl'):
        assert (again.path/file).read_bytes() == (finished.path/file).read_bytes()


def test_nothing_is_reused_from_an_unfinished_step(finished, tiny, tmp_path):
    first = distill(prompt, recorded_teacher(), run_dir=tmp_path/'a', until='label', student=tiny, n=8, n_test=3)
    first.record['stages']['label'].pop('inputs')
    second = distill(prompt, recorded_teacher(), run_dir=tmp_path/'b', until='synthesize', student=tiny, n=8, n_test=3)
    second.reuse_steps(first)
    assert 'label' not in second.record['stages'] and not (second.path/'train.jsonl').exists()
    assert shared_files('results') == []


def test_several_processes_share_only_the_training(finished, monkeypatch):
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('WORLD_SIZE', '2')
    teacher = recorded_teacher()
    for call in lambda run: run.run(teacher), lambda run: run.judge(teacher), lambda run: run.cost():
        with pytest.raises(DistillError, match='2 processes can only share the stage finetune'): call(finished)


# The student of a run

def test_a_question_is_asked_in_the_form_of_the_training(finished):
    answer = finished.complete('Which bakeries are open?')
    assert answer == finished.complete(' Q: Which bakeries are open?\n')
    with pytest.raises(DistillError, match='the question is empty'): finished.complete(' \n')


@pytest.mark.parametrize('question', [
    'Which bakeries are open?', 'SELECT *\n  FROM bakeries\n\nWHERE open', '    indented\nor not', 'a <|endoftext|> b',
    'Q: Which bakeries are open?', 'Ποια;\r\nΑυτά'])
def test_every_way_to_ask_gives_the_same_answer(finished, question):
    student = Student.load(finished.path/'student')
    answer = finished.complete(question)
    assert ''.join(finished.stream(question)) == answer == student(question.removeprefix('Q: '))
    assert student.answer([question.removeprefix('Q: ')]) == [answer]


def test_lines_of_a_question_are_not_joined(finished):
    assert finished.normalize_question('\n  a\n    b  \n\n') == '  a\n    b'
    assert finished.normalize_question(' Q: a\nb') == 'a\nb'
    with pytest.raises(DistillError, match='a question is a text, got 5'): finished.complete(5)


def test_a_student_that_cannot_be_loaded_costs_nothing(tmp_path):
    teacher = recorded_teacher()
    with pytest.raises(DistillError, match='no/such'):
        distill(prompt, teacher, run_dir=tmp_path/'run', student='no/such', n=8, n_test=3)
    assert not teacher.usage and not (tmp_path/'run'/'questions.jsonl').exists()
