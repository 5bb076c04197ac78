"The whole chain on a tiny student: its files, what is skipped, what a kill leaves behind, and the article's client."
import json, os, re, shutil, signal, subprocess, sys, time
from collections import Counter
from pathlib import Path

import pytest

from llm_distill.client import Client
from llm_distill.finetuning import Recipe
from llm_distill.pipeline import Run, distill, stages
from llm_distill.prompts import DistillError, load_prompt, read_jsonl, recordings, write_jsonl
from llm_distill.synthesis import embed, near_threshold, normal_form
from llm_distill.teacher import Teacher, recorded_teacher
from server import Server

seed, other = load_prompt(recordings/'apartments.toml'), load_prompt(recordings/'pull_requests.toml')
sizes = dict(n=30, n_test=6)
recipe = Recipe(epochs=2, lr=1e-3)


@pytest.fixture(scope='session')
def finished(tiny, tmp_path_factory):
    "A whole run with the recorded teacher"
    return distill(seed, other, recorded_teacher(progress=False), tmp_path_factory.mktemp('runs')/'whole', student=tiny, recipe=recipe, **sizes)


def content(path):
    "The files of a run that must be the same however it came about"
    files = [f for f in sorted(Path(path).rglob('*')) if f.is_file() and not f.name.startswith('.')]
    return {str(f.relative_to(path)): f.read_bytes() for f in files if f.name != 'run.json' and f.suffix != '.png'}


def test_run_has_every_file(finished):
    path = finished.path
    for name in ('run.json', 'tasks.jsonl', 'rejects.jsonl', 'train.jsonl', 'test_same.jsonl', 'test_different.jsonl', 'losses.jsonl',
                 'student/config.json', 'student/model.safetensors', 'student/README.md', 'scores.json', 'results.md'):
        assert (path/name).stat().st_size > 0, name
    assert not (path/'training').exists()
    assert all(finished.done(s) for s in stages)
    assert len(list((path/'figures').glob('*.png'))) >= 3
    assert not list(path.glob('student/*.bin'))


def test_splits_are_disjoint(finished):
    tasks = {k: [r['task'] for r in read_jsonl(finished.path/f'{k}.jsonl')] for k in ('train', 'test_same', 'test_different')}
    assert {k: len(v) for k, v in tasks.items()} == dict(train=30, test_same=6, test_different=6)
    every = [normal_form(t) for v in tasks.values() for t in v]
    assert len(set(every)) == len(every)
    assert (embed(tasks['test_same'] + tasks['test_different']) @ embed(tasks['train']).T).max() < near_threshold
    assert tasks['test_same'] == [r['task'] for r in read_jsonl(recordings/'apartments.jsonl')[:6]]


def test_pairs_say_where_they_come_from(finished):
    known = {r['task']: r['completions'][0] for f in recordings.glob('*.jsonl') for r in read_jsonl(f)}
    for name in ('train', 'test_same', 'test_different'):
        for row in read_jsonl(finished.path/f'{name}.jsonl'):
            assert row['completion'] + '<END>' == known[row['task']]
            assert row['seed'] == (other if name == 'test_different' else seed).question and row['request'] and row['teacher'] == finished.teacher.model


def test_scores_have_the_agreed_form(finished):
    scores = json.loads((finished.path/'scores.json').read_text())
    assert {(r['test_set'], r['system']) for r in scores} == {(t, s) for t in ('same', 'different') for s in ('distilled', 'one_shot', 'zero_shot', 'echo', 'nearest', 'constant', 'teacher')}
    for r in scores:
        assert r['n'] == 6
        for metric in ('similarity', 'step_f1'): assert -1 <= r[metric]['low'] <= r[metric]['mean'] <= r[metric]['high'] <= 1
    of = {(r['test_set'], r['system']): r['step_f1']['mean'] for r in scores}
    assert of['same', 'teacher'] > of['same', 'echo'] and of['different', 'teacher'] > of['different', 'echo']


def test_predictions_stand_beside_what_was_expected(finished):
    expected = {r['task']: r['completion'] for r in read_jsonl(finished.path/'test_same.jsonl')}
    second = {r['task']: r['completions'][1] for r in read_jsonl(recordings/'apartments.jsonl')}
    for row in read_jsonl(finished.path/'predictions'/'teacher_same.jsonl'):
        assert row['expected'] == expected[row['task']] and row['prediction'] + '<END>' == second[row['task']]


def test_second_call_does_nothing(finished, tiny):
    before = {f: f.stat().st_mtime_ns for f in finished.path.rglob('*') if f.is_file() and f.name not in ('run.json', '.lock')}
    distill(seed, other, recorded_teacher(progress=False), finished.path, student=tiny, recipe=recipe, quiet=True, **sizes)
    assert before == {f: f.stat().st_mtime_ns for f in before}


def test_an_edited_file_redoes_what_follows(finished, tiny, tmp_path, capsys):
    path = shutil.copytree(finished.path, tmp_path/'copy')
    write_jsonl(path/'test_same.jsonl', read_jsonl(path/'test_same.jsonl')[:5])
    run = Run(path).go(recorded_teacher(progress=False), stages)
    said = capsys.readouterr().err
    assert 'finetune: nothing to do' in said and 'evaluate distilled: done' in said
    assert {r['test_set']: r['n'] for r in json.loads((run.path/'scores.json').read_text())} == dict(same=5, different=6)


def test_until_stops_and_the_next_call_goes_on(finished, tiny, tmp_path):
    run = distill(seed, other, recorded_teacher(progress=False), tmp_path/'my first run', until='label', student=tiny, recipe=recipe, **sizes)
    assert [s for s in stages if run.done(s)] == ['synthesize', 'label'] and not (run.path/'student').exists()
    again = distill(seed, other, recorded_teacher(progress=False), tmp_path/'my first run', student=tiny, recipe=recipe, **sizes)
    assert content(again.path) == content(finished.path)


def test_one_test_set_without_another_prompt(tiny, tmp_path):
    run = distill(seed, None, recorded_teacher(progress=False), tmp_path/'run', student=tiny, recipe=Recipe(epochs=1), n=20, n_test=4)
    text = (run.path/'results.md').read_text()
    assert 'Table 1' in text and 'Table 2' not in text and not (run.path/'test_different.jsonl').exists()


def test_mistakes_are_quoted(tmp_path):
    with pytest.raises(DistillError, match="until='later'"): distill(seed, until='later', run_dir=tmp_path/'a')
    with pytest.raises(DistillError, match='n=0'): distill(seed, n=0, run_dir=tmp_path/'a')
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'thesis.txt').write_text('x')
    with pytest.raises(DistillError, match='holds files but no run.json'): distill(seed, teacher=recorded_teacher(), run_dir=tmp_path/'mine')
    with pytest.raises(DistillError, match='not a run directory'): Run(tmp_path/'nothing')


def test_two_processes_do_not_share_a_run(finished):
    from filelock import FileLock
    with FileLock(finished.path/'.lock'):
        with pytest.raises(DistillError, match='another process'): Run(finished.path).go(None, ('results',))


def test_changed_settings_a_kill_and_back_again(finished, tiny, tmp_path, monkeypatch):
    path = shutil.copytree(finished.path, tmp_path/'run')
    def go(recipe): return distill(seed, other, recorded_teacher(progress=False), path, student=tiny, recipe=recipe, quiet=True, **sizes)
    written = Run._predict
    def killed(self, system):
        written(self, system)
        if system == 'distilled': raise KeyboardInterrupt
    monkeypatch.setattr(Run, '_predict', killed)
    with pytest.raises(KeyboardInterrupt): go(Recipe(epochs=1, lr=1e-2))
    monkeypatch.undo()
    assert (path/'predictions'/'distilled_same.jsonl').read_bytes() != (finished.path/'predictions'/'distilled_same.jsonl').read_bytes()
    assert content(go(recipe).path) == content(finished.path)


def test_dropping_the_other_prompt_drops_its_results(finished, tiny, tmp_path):
    path = shutil.copytree(finished.path, tmp_path/'run')
    distill(seed, None, recorded_teacher(progress=False), path, student=tiny, recipe=recipe, quiet=True, **sizes)
    assert {r['test_set'] for r in json.loads((path/'scores.json').read_text())} == {'same'}
    assert not list(path.rglob('*different*')) and 'Table 2' not in (path/'results.md').read_text()


def test_another_prompt_does_not_overwrite_a_run(finished):
    with pytest.raises(DistillError, match='holds a run of another prompt'): distill(other, None, recorded_teacher(), finished.path)


def test_prompts_that_got_no_reply_are_asked_again(tiny, tmp_path):
    from dataclasses import replace
    teacher, refused = recorded_teacher(progress=False), []
    asked = teacher.ask
    def ask(prompts, stage, **kwargs):
        replies = asked(prompts, stage=stage, **kwargs)
        if stage != 'labeling' or refused: return replies
        refused.append(prompts[3])
        return [*replies[:3], replace(replies[3], text=None, kind='failed', reason='timed out'), *replies[4:]]
    teacher.ask = ask
    def go(): return distill(seed, None, teacher, tmp_path/'run', until='label', student=tiny, n=20, n_test=4)
    run = go()
    assert len(read_jsonl(run.path/'train.jsonl')) == 19 and not run.done('label')
    assert [r['reason'] for r in read_jsonl(run.path/'rejects.jsonl') if r['stage'] == 'labeling'] == ['failed reply: timed out']
    run = go()
    assert len(read_jsonl(run.path/'train.jsonl')) == 20 and run.done('label')
    assert not [r for r in read_jsonl(run.path/'rejects.jsonl') if r['stage'] == 'labeling']


def test_usage_counts_each_request_once(tiny, tmp_path):
    teacher = recorded_teacher(progress=False)
    for until in 'synthesize', 'label', 'label':
        run = distill(seed, None, teacher, tmp_path/'run', until=until, student=tiny, n=20, n_test=4)
    usage = json.loads((run.path/'run.json').read_text())['usage']
    assert usage['labeling']['requests'] == 24 and usage['synthesis']['requests'] == teacher.usage['synthesis'].requests


# Killed in each stage

def command(path, tiny, server, tmp_path):
    return [str(Path(sys.executable).with_name('llm-distill')), 'run', str(recordings/'apartments.toml'), '--other', str(recordings/'pull_requests.toml'), '--teacher', 'big',
            '--base-url', server.url, '--student', tiny, '--n', '30', '--n-test', '6', '--epochs', '2', '--concurrency', '4',
            '--cache', str(tmp_path/'cache.sqlite'), '--run-dir', str(path)]


def kill_when(process, happened):
    "SIGKILL as soon as `happened()`; whether it was still running then"
    while process.poll() is None and not happened(): time.sleep(0.005)
    if process.poll() is None: process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def test_killed_in_every_stage_and_started_again(tiny, tmp_path):
    path, reference = tmp_path/'run', tmp_path/'reference'
    with Server(latency=0.05) as server:
        def asked(stage): return sum(r['stage'] == stage for r in list(server.log))
        moments = dict(synthesize=lambda: asked('synthesis') >= 3, label=lambda: asked('labeling') >= 8,
                       finetune=lambda: any(path.glob('training/checkpoint-*/trainer_state.json')),
                       evaluate=lambda: (path/'predictions'/'one_shot_same.jsonl').exists(), results=lambda: (path/'scores.json').exists())
        killed = {}
        for stage, happened in moments.items():
            with open(tmp_path/'log', 'ab') as log: process = subprocess.Popen(command(path, tiny, server, tmp_path), stdout=log, stderr=log)
            killed[stage] = kill_when(process, happened)
        done = subprocess.run(command(path, tiny, server, tmp_path), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr + (tmp_path/'log').read_text()
        assert 'Table 1' in done.stdout and 'Table 2' in done.stdout
        assert all(killed[k] for k in ('synthesize', 'label', 'finetune', 'evaluate')), killed
        # a request whose reply had left the server is not made again, except for the few that were on their way when the process died
        times = Counter((r['prompt'], r['stage'], r['sample']) for r in server.log if 'answered' in r)
        assert sum(n - 1 for n in times.values()) <= 2*4 # two of the kills hit a stage that asks, with four requests in flight
        before = len(server.log)
        subprocess.run(command(reference, tiny, server, tmp_path), check=True, capture_output=True)
        assert len(server.log) == before # all in the cache
    assert content(path) == content(reference)


# The article's client

context = seed.render().rsplit('\nQ: ', 1)[0]


def test_client_begins_with_the_teacher_and_ends_with_the_student(tiny, tmp_path):
    with Server() as server:
        client = Client('chat_gpt', tiny, base_url=server.url, home=tmp_path/'home', n=20, n_test=5, epochs=1)
        task = read_jsonl(recordings/'apartments.jsonl')[100]
        server.app.tasks[seed.question] = ['Find apartments, list them.<END>']
        first = client.complete(f'Q: {seed.question}', context, openai_key='sk-secret-key', finetune=True, data_synthesis=True)
        assert first['completion'] == 'Find apartments, list them.' and first['model'] == 'gpt-5.5' and first['status'].startswith('distilling')
        assert client.wait(timeout=300) == 'ready'
        asked = len(server.log)
        later = client.complete(f'Q: {task["task"]}', context)
        assert later['model'] == tiny and later['status'] == 'ready' and isinstance(later['completion'], str)
        code = ('import sys, json; from llm_distill.client import Client; c = Client("chat_gpt", sys.argv[1], base_url=sys.argv[2], home=sys.argv[3]); '
                'print(json.dumps(c.complete(sys.argv[4], sys.argv[5])))')
        out = subprocess.run([sys.executable, '-c', code, tiny, server.url, str(tmp_path/'home'), f'Q: {task["task"]}', context],
                             capture_output=True, text=True, check=True).stdout
        assert json.loads(out) == later
        assert len(server.log) == asked
    for f in (tmp_path/'home').rglob('*'): assert not f.is_file() or b'sk-secret-key' not in f.read_bytes(), f


def test_client_learns_from_the_questions_that_were_asked(tiny, tmp_path):
    with Server() as server:
        client = Client('big', tiny, base_url=server.url, home=tmp_path, n_test=3, epochs=1)
        rows = read_jsonl(recordings/'apartments.jsonl')[:12]
        for r in rows: client.complete(f'Q: {r["task"]}', context)
        client.complete(f'Q: {rows[0]["task"]}', context, finetune=True)
        assert client.wait(timeout=300) == 'ready'
        assert not any(r['stage'] == 'synthesis' for r in server.log)
    assert len(read_jsonl(client.folder(seed)/'run'/'train.jsonl')) == 12 - 1 - 3 # less the seed question of the last call, and the test set


def test_client_raises(tiny, tmp_path):
    with Server(key='right') as server:
        client = Client('big', tiny, base_url=server.url, home=tmp_path)
        with pytest.raises(DistillError, match='401') as e: client.complete('Q: Why?', context, openai_key='sk-wrong-key')
        assert 'sk-wrong-key' not in str(e.value)
    with Server() as server:
        client = Client('big', tiny, base_url=server.url, home=tmp_path/'2')
        with pytest.raises(DistillError, match='too few'):
            client.complete(f'Q: {read_jsonl(recordings/"apartments.jsonl")[0]["task"]}', context, finetune=True)
        assert client.status(context) == 'none'


def test_client_reports_a_failed_distillation(tiny, tmp_path):
    with Server() as server:
        client = Client('big', 'no/such-student', base_url=server.url, home=tmp_path, n=8, n_test=3)
        server.app.tasks[seed.question] = ['Find apartments, list them.<END>']
        client.complete(f'Q: {seed.question}', context, finetune=True, data_synthesis=True)
        with pytest.raises(DistillError, match='no/such-student'): client.wait(timeout=300)
        assert client.status().startswith('failed')


def test_client_goes_on_with_a_job_that_was_killed(tiny, tmp_path):
    with Server(latency=0.1) as server:
        server.app.tasks[seed.question] = server.app.tasks['Any others?'] = ['Find apartments, list them.<END>']
        client = Client('big', tiny, base_url=server.url, home=tmp_path, n=60, n_test=6, epochs=1)
        client.complete(f'Q: {seed.question}', context, finetune=True, data_synthesis=True)
        twin = Client('big', tiny, base_url=server.url, home=tmp_path, n=60, n_test=6, epochs=1)
        assert twin.complete('Q: Any others?', context, finetune=True, data_synthesis=True)['status'].startswith('distilling')
        assert twin._process is None # there is one job, not two
        while not sum(r['stage'] == 'labeling' for r in list(server.log)) > 10: time.sleep(0.01)
        os.kill(client._process.pid, signal.SIGKILL)
        client._process.wait()
        assert twin.status(context) == client.status() == 'failed: it was stopped; call again with finetune=True, and it goes on'
        assert twin.complete('Q: Any others?', context, finetune=True, data_synthesis=True)['status'].startswith('distilling')
        assert twin.wait(timeout=300) == 'ready'
        times = Counter((r['prompt'], r['stage']) for r in server.log if 'answered' in r)
        assert sum(n - 1 for n in times.values()) <= 32 # what was in flight
        assert not any(n > 1 for (_, stage), n in times.items() if stage == 'synthesis')


def test_client_tells_end_markers_apart(tmp_path):
    client = Client('big', 'no-student', base_url='http://127.0.0.1:9', home=tmp_path)
    folder = client._folder_of(context.replace('<END>', '##'), '##')
    assert folder == client._folder_of(context.replace('<END>', '##'), ['##']) != client._folder_of(context, None)


def test_what_cannot_be_used_is_listed_before_the_run_stops(tiny, tmp_path):
    teacher = recorded_teacher(progress=False)
    with pytest.raises(DistillError, match='leaves none for training'):
        distill(seed, None, teacher, tmp_path/'short', student=tiny, n=5, n_test=300)
    assert read_jsonl(tmp_path/'short'/'rejects.jsonl') and not (tmp_path/'short'/'tasks.jsonl').exists()
    lines = recorded_teacher(progress=False)
    asked = lines.ask
    from dataclasses import replace
    def ask(prompts, stage, **kwargs):
        return [r if stage == 'synthesis' else replace(r, text=r.text.replace(', ', '\n')) for r in asked(prompts, stage=stage, **kwargs)]
    lines.ask = ask
    with pytest.raises(DistillError, match='more than one line'): distill(seed, None, lines, tmp_path/'lines', student=tiny, n=5, n_test=3)
    rejects = [r for r in read_jsonl(tmp_path/'lines'/'rejects.jsonl') if r['stage'] == 'labeling']
    assert len(rejects) == 8 and all('\n' in r['reply'] for r in rejects)


def test_a_task_of_another_kind(tiny, tmp_path):
    "Requests become JSON objects, checked by a schema and scored by fields"
    prompt, student = load_prompt(recordings/'reminders.toml'), shutil.copytree(tiny, tmp_path/'student')
    config = json.loads((student/'config.json').read_text())
    (student/'config.json').write_text(json.dumps(config | dict(max_position_embeddings=1024))) # room for two worked examples
    run = distill(prompt, None, recorded_teacher(progress=False), tmp_path/'run', student=str(student), recipe=Recipe(epochs=1), n=45, n_test=15,
                  check=str(recordings/'reminders.schema.json'))
    rows = read_jsonl(run.path/'train.jsonl')
    assert len(rows) == 45 and all(set(json.loads(r['completion'])) == {'action', 'what', 'who', 'when', 'where'} for r in rows)
    scores = {r['system']: r for r in json.loads((run.path/'scores.json').read_text())}
    assert {r['main'] for r in scores.values()} == {'field_match'}
    assert scores['teacher']['field_match']['mean'] > .95 > .6 > scores['nearest']['field_match']['mean'] > scores['echo']['field_match']['mean'] == 0
    assert 'fields equal' in (run.path/'results.md').read_text() and not (run.path/'figures'/'steps.png').exists()


def test_answers_that_fail_the_check_are_rejected(tiny, tmp_path):
    (tmp_path/'checks.py').write_text('def no_calls(task, answer):\n    if \'"call"\' in answer: return "it is a call"\n')
    prompt = load_prompt(recordings/'reminders.toml')
    run = distill(prompt, None, recorded_teacher(progress=False), tmp_path/'run', 'label', student=tiny, n=30, n_test=9, check=f'{tmp_path}/checks.py:no_calls', reask=1)
    rejects = [r for r in read_jsonl(run.path/'rejects.jsonl') if r['stage'] == 'labeling']
    kept = {f: read_jsonl(run.path/f'{f}.jsonl') for f in ('train', 'test_same')}
    assert {k: len(v) for k, v in kept.items()} == dict(train=30, test_same=9), 'other tasks fill the gaps'
    assert rejects and not any('"call"' in r['completion'] for v in kept.values() for r in v)
    tasks = [r['task'] for r in read_jsonl(recordings/'reminders.jsonl') if '"call"' not in r['completions'][0]]
    assert [r['task'] for f in ('test_same', 'train') for r in kept[f]] == tasks[:39], 'in the order of the sequence'
    assert all(r['filter'] == 'check' and r['reason'] == 'it is a call' and '"call"' in r['reply'] for r in rejects)
    assert run.record['usage']['labeling']['requests'] == 39 + 2*len(rejects)
    before = (run.path/'train.jsonl').stat().st_mtime_ns
    Run(run.path).go(recorded_teacher(progress=False), ('label',))
    assert (run.path/'train.jsonl').stat().st_mtime_ns == before, 'nothing to do'
    (tmp_path/'checks.py').write_text('def no_calls(task, answer): pass\n')
    assert not any(r['stage'] == 'labeling' for r in read_jsonl(Run(run.path).go(recorded_teacher(progress=False), ('label',)).path/'rejects.jsonl'))


def test_own_pairs_are_not_asked_again(tiny, tmp_path):
    own = [dict(task=r['task'], completion=r['completions'][0].removesuffix('<END>')) for r in read_jsonl(recordings/'apartments.jsonl')[:24]]
    run = distill(seed, None, recorded_teacher(progress=False), tmp_path/'run', 'label', student=tiny, n=20, n_test=4, pairs=own, ask_for_tasks=False)
    assert 'labeling' not in run.record['usage'] and 'synthesis' not in run.record['usage']
    train = read_jsonl(run.path/'train.jsonl')
    assert [r['completion'] for r in train] == [o['completion'] for o in own[4:]] and {(r['teacher'], r['seed']) for r in train} == {('given', 'given')}
    mixed = distill(seed, None, recorded_teacher(progress=False), tmp_path/'mixed', 'label', student=tiny, n=30, n_test=4, pairs=own)
    assert mixed.record['usage']['labeling']['requests'] == 10 and len(read_jsonl(mixed.path/'train.jsonl')) == 30


def test_two_seed_questions_share_the_tasks(tiny, tmp_path):
    run = distill(seed, None, recorded_teacher(progress=False), tmp_path/'run', student=tiny, recipe=Recipe(epochs=1), n=20, n_test=6, questions=[other.question])
    counts = {k: Counter(r['seed'] for r in read_jsonl(run.path/f'{k}.jsonl')) for k in ('train', 'test_same')}
    assert counts == dict(train={seed.question: 10, other.question: 10}, test_same={seed.question: 3, other.question: 3})
    assert other.question[:40] in (run.path/'results.md').read_text()


def test_the_data_set_is_there_for_others(finished, tmp_path):
    from datasets import load_dataset
    found = load_dataset(str(finished.path/'dataset'), cache_dir=tmp_path) # a cache knows a folder by its name
    assert {k: v.to_list() for k, v in found.items()} == {k: read_jsonl(finished.path/f'{k}.jsonl') for k in ('train', 'test_same', 'test_different')}
    card = (finished.path/'dataset'/'README.md').read_text()
    assert seed.instruction in card.replace('\\', '') and 'every tenth row' in card and 'CC0' in card
    assert {f.name for f in (finished.path/'figures').glob('data_*.png')} >= {'data_lengths.png', 'data_steps.png', 'data_openings.png', 'data_map.png', 'data_filters.png'}
    points = read_jsonl(finished.path/'data_map.jsonl')
    assert len(points) == 42 and all(abs(p['x']) <= 1 and abs(p['y']) <= 1 for p in points)


def test_a_run_of_an_earlier_version_goes_on(tiny, tmp_path):
    run = distill(seed, None, recorded_teacher(progress=False), tmp_path/'run', 'synthesize', student=tiny, n=8, n_test=3)
    record = json.loads((run.path/'run.json').read_text())
    for k in 'questions', 'pairs', 'cap', 'near', 'rouge', 'labeling': record['settings'].pop(k)
    (run.path/'run.json').write_text(json.dumps(record))
    assert Run(run.path).go(recorded_teacher(progress=False), ('label',)).done('label')


def test_settings_that_make_no_sense_are_told_first():
    from llm_distill.pipeline import settings
    for says, kwargs in {'min_agreement': dict(min_agreement=.5), 'judge_threshold': dict(judge=True, judge_threshold=9), '{task}': dict(judge='no fields'),
                         'FILE.py:FUNCTION': dict(check=len), 'one line': dict(questions=['a\nb']), 'two answers': dict(pairs=[dict(task='Why?', completion=c) for c in 'ab'])}.items():
        with pytest.raises(DistillError, match=re.escape(says)): settings(seed, **kwargs)
    with pytest.raises(DistillError, match='would not be a different one'): settings(seed, other, questions=[other.question])
