"The command as a user meets it: exit codes, one clear line for a mistake, and no traceback."
import json, os, signal, subprocess, sys, time
from pathlib import Path

import pytest

from llm_distill.prompts import read_jsonl, recordings
from server import Server

command = str(Path(sys.executable).with_name('llm-distill'))
prompt = str(recordings/'apartments.toml')


def run(*args, **env):
    return subprocess.run([command, *map(str, args)], capture_output=True, text=True, env={**os.environ, **env}, timeout=300)


@pytest.mark.parametrize('args,says', [
    ([], 'required'),
    (['dance'], 'dance'),
    (['run'], 'PROMPT.toml'),
    (['run', 'nowhere.toml'], 'no seed prompt at nowhere.toml'),
    (['run', prompt, '--n', '0'], "'0' is not a whole number of 1 or more"),
    (['run', prompt, '--epochs', 'many'], "'many'"),
    (['run', prompt, '--until', 'later'], 'later'),
    (['run', prompt, '--other', 'gone.toml'], 'gone.toml'),
    (['run', prompt], 'OPENAI_API_KEY'),
    (['run', prompt, '--teacher', 'recorded:gone.jsonl'], 'gone.jsonl'),
    (['run', prompt, '--base-url', 'http://127.0.0.1:9/v1', '--budget', '1'], 'price'),
    (['label', 'nowhere'], 'nowhere is not a run directory'),
    (['complete', 'nowhere', 'Why?'], 'nowhere is not a run directory'),
    (['cache', 'stats', '--cache', 'gone.sqlite'], 'gone.sqlite'),
    (['cache', 'export'], 'the file to write'),
    (['cache', 'stats', 'x'], "takes no file 'x'"),
    (['run', prompt, '--teacher', 'recorded', '--batch'], '--batch is for an endpoint'),
    (['run', prompt, '--seed', '4294967296'], '4294967296'),
    (['run', prompt, '--tasks', 'gone.csv'], 'gone.csv'),
    (['run', prompt, '--pairs', str(recordings/'README.md')], 'README.md'),
    (['run', prompt, '--pairs', prompt.replace('.toml', '.jsonl')], 'apartments.jsonl has no `completion`'),
    (['run', prompt, '--check', 'gone.json'], 'gone.json'),
    (['run', prompt, '--check', 'regex:('], "'(' is not a regular expression"),
    (['run', prompt, '--judge', 'gone.txt'], 'gone.txt'),
    (['run', prompt, '--judge-threshold', '6'], "'6'"),
    (['run', prompt, '--no-synthesis', '--other', prompt], '--no-synthesis'),
    (['run', prompt, '--min-agreement', '.5'], 'min_agreement'),
    (['run', prompt, '--seed-question', ' '], 'seed question'),
    (['run', prompt, '--other', prompt], 'would not be a different one'),
    (['show', 'nowhere'], 'nowhere is not a run directory'),
    (['push', 'nowhere', 'me/data'], 'nowhere is not a run directory'),
])
def test_a_mistake_ends_in_one_line(args, says, tmp_path):
    done = subprocess.run([command, *args], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr and done.stderr.count('\n') == 1 and 'Traceback' not in done.stderr
    assert not done.stdout
    assert not [f for f in tmp_path.rglob('*') if f.is_file() and f.name not in ('run.json', '.lock')]


def test_a_malformed_prompt_is_located(tmp_path):
    bad = tmp_path/'bad.toml'
    bad.write_text('instruction = "Do it."\nquestion = "What?"\nexamples = "none"\n')
    done = run('run', bad)
    assert done.returncode == 2 and 'bad.toml' in done.stderr and '(line 3)' in done.stderr and '[[examples]]' in done.stderr


def test_an_unknown_student_is_named_before_anything_is_paid(tmp_path):
    with Server() as server:
        done = run('run', prompt, '--base-url', server.url, '--teacher', 'big', '--student', 'no/such', '--n', 5, '--n-test', 2, '--run-dir', tmp_path/'run')
        assert done.returncode == 2 and "no/such" in done.stderr and 'Traceback' not in done.stderr
        assert not server.log


@pytest.mark.parametrize('name', ['', 'quickstart', 'run', 'plan', 'cache', 'show', 'push', 'complete', 'compare', 'judge', 'cost', 'synthesize', 'label', 'finetune', 'evaluate', 'results'])
def test_help(name):
    done = run(*([name] if name else []), '--help')
    assert done.returncode == 0 and 'usage: llm-distill' in done.stdout


def test_a_wrong_key_is_one_line_without_the_key(tmp_path):
    with Server(key='right') as server:
        done = run('run', prompt, '--base-url', server.url, '--teacher', 'big', '--run-dir', tmp_path/'run', OPENAI_API_KEY='sk-very-secret')
        assert done.returncode == 2 and '401' in done.stderr and 'sk-very-secret' not in done.stderr + done.stdout
        assert len([r for r in server.log if r['outcome'] == '401']) == 1
    assert not any(b'sk-very-secret' in f.read_bytes() for f in tmp_path.rglob('*') if f.is_file())


def test_stages_one_by_one_then_a_question(tiny, tmp_path):
    with Server() as server:
        path, teacher = tmp_path/'run', ('--cache', tmp_path/'cache.sqlite')
        first = run('run', prompt, '--base-url', server.url, '--teacher', 'big', '--student', tiny, '--n', 20, '--n-test', 4, '--epochs', 1, '--run-dir', path,
                    '--until', 'synthesize', *teacher)
        assert first.returncode == 0 and 'Stopped as asked' in first.stdout and not (path/'train.jsonl').exists()
        for stage, made in (('label', 'train.jsonl'), ('finetune', 'student/config.json'), ('evaluate', 'scores.json'), ('results', 'results.md')):
            done = run(stage, path, *(teacher if stage in ('label', 'evaluate') else ()))
            assert done.returncode == 0, done.stderr
            assert (path/made).exists()
        assert 'Table 1' in done.stdout
        asked = len(server.log)
        assert run('evaluate', path, *teacher).returncode == 0 and len(server.log) == asked
    answer = run('complete', path, 'Q: Which bakeries are open?')
    assert answer.returncode == 0 and not answer.stderr
    empty = run('complete', path, ' ')
    assert empty.returncode == 2 and 'empty' in empty.stderr
    (path/'train.jsonl').unlink()
    gone = run('finetune', path)
    assert gone.returncode == 2 and 'train.jsonl is missing' in gone.stderr


def test_a_recording_of_a_run_replays_it(tiny, tmp_path):
    common = ('--student', tiny, '--n', 10, '--n-test', 3, '--epochs', 1, '--until', 'label')
    with Server() as server:
        assert run('run', prompt, '--base-url', server.url, '--teacher', 'big', '--cache', tmp_path/'c.sqlite', '--record', tmp_path/'rec.jsonl', *common,
                   '--run-dir', tmp_path/'live').returncode == 0
        stats = run('cache', 'stats', '--cache', tmp_path/'c.sqlite')
        assert stats.returncode == 0 and 'labeling' in stats.stdout and '13' in stats.stdout
        assert run('cache', 'export', tmp_path/'out.jsonl', '--cache', tmp_path/'c.sqlite').returncode == 0
    for name in 'rec.jsonl', 'out.jsonl':
        again = run('run', prompt, '--teacher', f'recorded:{tmp_path/name}', *common, '--run-dir', tmp_path/name[:3])
        assert again.returncode == 0, again.stderr
        pairs = [[(r['task'], r['completion']) for r in read_jsonl(tmp_path/d/'train.jsonl')] for d in ('live', name[:3])]
        assert pairs[0] == pairs[1]
    cleared = run('cache', 'clear', '--stage', 'labeling', '--cache', tmp_path/'c.sqlite')
    assert cleared.returncode == 0 and cleared.stdout.startswith('13 replies')


def test_ctrl_c_says_how_to_go_on(tmp_path):
    with Server(latency=0.2) as server:
        args = ('run', prompt, '--base-url', server.url, '--teacher', 'big', '--n', '100', '--cache', str(tmp_path/'c.sqlite'), '--run-dir', str(tmp_path/'run'))
        process = subprocess.Popen([command, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and len(server.log) < 5: time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130 and 'the same command goes on' in err and 'Traceback' not in err
        kept = {r['prompt'] for r in server.log if 'answered' in r}
        assert kept and run(*args, '--until', 'label').returncode == 0
        assert not [p for p in kept if sum(r['prompt'] == p for r in server.log) > 1]


def test_plan_sends_nothing(tmp_path):
    with Server() as server:
        done = run('plan', prompt, '--base-url', server.url, '--price-in', 1, '--price-out', 4, '--n', 100)
        assert done.returncode == 0 and not server.log
        assert [line.split('|')[2].strip() for line in done.stdout.splitlines() if line.startswith('| labeling')] == ['150']
        assert 'no price known' in run('plan', prompt, '--base-url', server.url, '--teacher', 'homemade').stdout


def test_a_budget_stops_the_run_and_more_money_goes_on(tiny, tmp_path):
    with Server() as server:
        args = ('run', prompt, '--base-url', server.url, '--teacher', 'big', '--student', tiny, '--n', 20, '--n-test', 4, '--price-in', 1000, '--price-out', 1000,
                '--concurrency', 2, '--cache', tmp_path/'c.sqlite', '--run-dir', tmp_path/'run', '--until', 'label')
        poor = run(*args, '--budget', 2)
        assert poor.returncode == 2 and 'budget' in poor.stderr and poor.stderr.count('Traceback') == 0
        paid = {r['prompt'] for r in server.log if 'answered' in r}
        assert 0 < json.loads((tmp_path/'run'/'run.json').read_text())['usage']['synthesis']['cost'] <= 2
        assert run(*args, '--budget', 200).returncode == 0
        assert paid and not [p for p in paid if sum(r['prompt'] == p for r in server.log) > 1]


def test_a_closed_pipe_is_no_error(tmp_path):
    done = subprocess.run(f'{command} run --help | head -n 1; exit ${{PIPESTATUS[0]}}', shell=True, executable='/bin/bash', capture_output=True, text=True)
    assert done.returncode in (0, 141) and done.stderr == ''


def test_single_stages_remember_the_recording(tiny, tmp_path):
    mine = tmp_path/'mine.jsonl'
    rows = read_jsonl(recordings/'apartments.jsonl')[:40]
    mine.write_text(''.join(json.dumps(dict(task=r['task'], completions=['Mine, all mine.<END>'])) + '\n' for r in rows))
    (tmp_path/'mine.toml').write_text(Path(prompt).read_text())
    path = tmp_path/'run'
    assert run('run', prompt, '--teacher', f'recorded:{mine}', '--student', tiny, '--n', 20, '--n-test', 4, '--run-dir', path, '--until', 'synthesize').returncode == 0
    assert run('label', path).returncode == 0
    assert {r['completion'] for r in read_jsonl(path/'train.jsonl')} == {'Mine, all mine.'}


def test_a_run_by_batches_makes_the_same_pairs(tiny, tmp_path):
    common = ('--teacher', 'big', '--student', tiny, '--n', 12, '--n-test', 3, '--until', 'label')
    with Server() as server:
        for name, more in (('plain', ()), ('batch', ('--batch',))):
            done = run('run', prompt, '--base-url', server.url, '--cache', tmp_path/f'{name}.sqlite', '--run-dir', tmp_path/name, *common, *more)
            assert done.returncode == 0, done.stderr
        assert any(r['stage'] == 'batch' for r in server.log)
    for file in 'tasks', 'train', 'test_same': assert (tmp_path/'plain'/f'{file}.jsonl').read_bytes() == (tmp_path/'batch'/f'{file}.jsonl').read_bytes()


def test_own_rows_a_check_and_a_look_at_the_data(tiny, tmp_path):
    "A whole data set without asking for a task: pairs from a CSV file, further tasks from a text file"
    import csv
    rows = read_jsonl(recordings/'apartments.jsonl')[:30]
    with (tmp_path/'pairs.csv').open('w', newline='') as f:
        out = csv.writer(f)
        out.writerows([('task', 'completion'), *((r['task'], r['completions'][0].removesuffix('<END>')) for r in rows[:20])])
    (tmp_path/'tasks.txt').write_text('\n'.join(r['task'] for r in rows[20:]) + '\n')
    path = tmp_path/'run'
    done = run('run', prompt, '--teacher', 'recorded', '--student', tiny, '--pairs', tmp_path/'pairs.csv', '--tasks', tmp_path/'tasks.txt', '--no-synthesis', '--n', 20,
               '--n-test', 10, '--check', 'regex:.+, .+', '--run-dir', path, '--until', 'label')
    assert done.returncode == 0, done.stderr
    given = [r['teacher'] for f in ('test_same', 'train') for r in read_jsonl(path/f'{f}.jsonl')]
    assert given == ['given']*20 + ['recorded']*10
    shown = run('show', path, '--n', 3, COLUMNS='100')
    assert shown.returncode == 0 and '3 of 20 pairs' in shown.stdout and max(map(len, shown.stdout.splitlines()[1:])) <= 100
    assert 'HF_TOKEN' in (pushed := run('push', path, 'me/data', HF_HUB_OFFLINE='0', HF_TOKEN='', HF_HOME=str(tmp_path))).stderr and pushed.returncode == 2


def test_the_recipe_is_chosen_and_changed(tiny, tmp_path):
    common = ('run', prompt, '--teacher', 'recorded', '--student', tiny, '--n', 10, '--n-test', 3, '--until', 'synthesize', '--run-dir')
    assert run(*common, tmp_path/'a', '--recipe', 'article', '--set', 'lr=1e-3', '--set', 'patience=2', '--epochs', 7, '--seed', 5).returncode == 0
    recipe = json.loads((tmp_path/'a'/'run.json').read_text())['settings']['recipe']
    assert {k: recipe[k] for k in ('batch_size', 'lr', 'patience', 'epochs', 'seed')} == dict(batch_size=5, lr=1e-3, patience=2, epochs=7, seed=5)
    for says, args in {'1000000': ['--set', 'lr=1000000'], "'speed' is no field": ['--set', 'speed=9'], "'lr' sets nothing": ['--set', 'lr'],
                       "'best'": ['--recipe', 'best']}.items():
        done = run(*common, tmp_path/'b', *args)
        assert done.returncode == 2 and says in done.stderr and done.stderr.count('\n') == 1, done.stderr


# Several students

def test_students_and_repeats_share_the_data(tiny, tmp_path):
    import shutil
    second, path = shutil.copytree(tiny, tmp_path/'second'), tmp_path/'run'
    with Server() as server:
        def go(*more, n=16):
            return run('run', prompt, '--base-url', server.url, '--teacher', 'big', '--cache', tmp_path/'c.sqlite', '--student', tiny, '--student', second, '--repeats', 2,
                       '--n', n, '--n-test', 6, '--epochs', 1, '--run-dir', path, *more)
        first = go('--until', 'label')
        assert first.returncode == 0 and 'Stopped as asked' in first.stdout, first.stderr
        done = go()
        assert done.returncode == 0, done.stderr
        times = [(r['prompt'], r['stage'], r['sample']) for r in server.log]
        assert len(times) == len(set(times)) and sum(s == 'labeling' for _, s, _ in times) == 22 and sum(s == 'evaluation' for _, s, _ in times) == 6
    assert 'tiny, distilled' in done.stdout and 'second, distilled' in done.stdout and 'Table 1: step F1' in done.stdout
    runs = sorted(p.parent.name for p in path.glob('*/run.json'))
    assert runs == ['second-0', 'second-1', 'tiny-0', 'tiny-1']
    for f in ('tasks.jsonl', 'train.jsonl', 'test_same.jsonl', 'rejects.jsonl', 'dataset/train.parquet', *(f'predictions/{s}_same.jsonl' for s in ('teacher', 'one_shot', 'echo'))):
        assert len({(path/r/f).read_bytes() for r in runs}) == 1, f
    assert len({(path/r/'losses.jsonl').read_bytes() for r in runs}) == 2, 'two seeds; both students have the same weights'
    told = done.stderr.splitlines()
    assert [sum(f'{step} ...' in o for o in told) for step in ('label', 'evaluate teacher', 'evaluate one_shot', 'evaluate distilled')] == [0, 1, 2, 4]
    found = json.loads((path/'comparison.json').read_text())
    assert [(o['students'], o['seeds']) for o in found['systems'] if o['system'] == 'distilled'] == [(['tiny'], [0, 1]), (['second'], [0, 1])]
    again = run('compare', *(path/r for r in runs), '--out', tmp_path/'out')
    assert again.returncode == 0 and (tmp_path/'out'/'comparison.html').exists() and 'second, distilled' in again.stdout
    single = run('run', prompt, '--teacher', 'recorded', '--student', tiny, '--run-dir', path/'tiny-0', '--repeats', 2)
    assert single.returncode == 2 and 'holds the run of a single student' in single.stderr


@pytest.mark.parametrize('args,says', [
    (['compare', 'nowhere'], 'nowhere is not a run directory'),
    (['compare'], 'RUN_DIR'),
    (['run', prompt, '--teacher', 'recorded', '--student', 'a/x', '--student', 'b/x'], "share the folder 'x'"),
    (['run', prompt, '--teacher', 'recorded', '--student', 'smollm2', '--student', './gone'], './gone'),
    (['run', prompt, '--repeats', '0'], "'0'"),
])
def test_a_mistake_with_several_students_ends_in_one_line(args, says, tmp_path):
    done = subprocess.run([command, *args], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count('\n') == 1 and not list(tmp_path.iterdir())


def test_plan_knows_several_students(tmp_path):
    def asked(*more): return run('plan', prompt, '--base-url', 'http://127.0.0.1:9/v1', '--price-in', 1, '--price-out', 4, *more).stdout.splitlines()
    one, four = asked(), asked('--student', 'smollm2', '--student', 'gemma', '--repeats', 2)
    assert one[:-1] == four[:-1] and 'once for all 4 runs' in four[-1] and 'runs' not in one[-1]


# Further looks at a finished run

def main(capsys, *args):
    "The command in this process: its exit code and what it printed"
    from llm_distill.cli import main
    code = main([*map(str, args)])
    return code, ''.join(capsys.readouterr())


def test_metric_judge_and_cost_renew_the_results(tiny, tmp_path, capsys, monkeypatch):
    from test_judge import Judge, say
    path, here = tmp_path/'run', tmp_path/'mine.py'
    here.write_text('def short(predicted, expected): return 1/(1 + len(predicted))\n')
    monkeypatch.chdir(tmp_path)
    def report(): return (path/'results.md').read_text() + (path/'report.html').read_text()
    def go(*more): return main(capsys, 'run', prompt, '--teacher', 'recorded', '--student', tiny, '--n', 20, '--n-test', 3, '--epochs', 1, '--run-dir', path, *more)
    assert go()[0] == 0
    assert go('--metric', 'rouge_l')[0] == 0 and {r['main'] for r in json.loads((path/'scores.json').read_text())} == {'rouge_l'} and 'ROUGE-L' in report()
    code, text = main(capsys, 'evaluate', path, '--metric', 'mine.py:short', '--metric', 'token_f1')
    assert code == 0 and 'distilled: nothing to do' in text and 'scores: done' in text
    assert main(capsys, 'results', path)[0] == 0 and 'short</th>' in report()
    here.write_text('def short(predicted, expected): return 0\n')
    assert 'scores: done' in main(capsys, 'evaluate', path)[1] and 'scores: nothing to do' in main(capsys, 'evaluate', path)[1]
    (path/'student').rename(tmp_path/'elsewhere') # scores need neither weights nor a teacher
    with monkeypatch.context() as m:
        m.setattr('llm_distill.cli.Teacher', None)
        assert 'scores: done' in main(capsys, 'evaluate', path, '--metric', 'exact_match')[1] and 'scores: done' in main(capsys, 'evaluate', path, '--metric', 'mine.py:short')[1]
    (tmp_path/'elsewhere').rename(path/'student')
    before = json.loads((path/'run.json').read_text())
    with Judge(lambda *_: say('A')) as server:
        code, text = main(capsys, 'judge', path, '--base-url', server.url, '--teacher', 'a-judge', '--n', 2, '--cache', tmp_path/'c.sqlite')
    assert code == 0 and 'Judge: a-judge' in report() and 'a-judge' not in json.dumps(after := json.loads((path/'run.json').read_text()))
    assert len(server.chats) == 8 and after['usage'] == before['usage'], text
    assert main(capsys, 'cost', path, '--price-in', 2, '--price-out', 8, '--n', 2)[0] == 0 and 'Cost and speed' in report() and 'Judge: a-judge' in report()
    rows = read_jsonl(path/'predictions'/'distilled_same.jsonl')
    (path/'predictions'/'distilled_same.jsonl').write_text(''.join(json.dumps(r | dict(prediction='Other.')) + '\n' for r in rows))
    code, text = main(capsys, 'results', path)
    assert code == 0 and 'the answers are others' in text and 'a-judge' not in report() and 'Cost and speed' in report()


@pytest.mark.parametrize('args,says', [
    (['judge', 'nowhere', '--teacher', 'recorded'], 'nowhere is not a run directory'),
    (['cost', 'nowhere'], 'nowhere is not a run directory'),
    (['run', prompt, '--teacher', 'recorded', '--metric', 'beauty'], "'beauty' is no metric"),
    (['run', prompt, '--teacher', 'recorded', '--metric', 'gone.py:f'], 'gone.py'),
    (['cost', 'nowhere', '--hourly-price', '-1'], "'-1'"),
    (['cost', Path(__file__).parents[1]/'nbs'/'runs'/'quickstart', '--teacher', 'recorded'], 'a recording has no latency'),
])
def test_a_mistake_with_a_further_look_ends_in_one_line(args, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = main(capsys, *args)
    assert code == 2 and says in text and text.count('\n') == 1 and not list(tmp_path.iterdir())


# Several processes, as torchrun starts them

def torchrun(*args):
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '-m', 'llm_distill']
    return subprocess.run([*launcher, *map(str, args)], capture_output=True, text=True, env=os.environ | dict(CUDA_VISIBLE_DEVICES=''), timeout=300)


def test_two_processes_train_a_run_as_one(tiny, tmp_path):
    whole = ('run', prompt, '--teacher', 'recorded', '--student', tiny, '--n', 20, '--n-test', 3, '--epochs', 2, '--run-dir')
    assert run(*whole, tmp_path/'one', '--until', 'finetune').returncode == 0
    assert run(*whole, tmp_path/'two', '--until', 'label').returncode == 0
    done = torchrun('finetune', tmp_path/'two', '--report-to', 'tensorboard')
    assert done.returncode == 0, done.stderr
    assert done.stderr.count('finetune: done') == 1 and done.stdout.count('epoch 2 of 2') == 1
    record = json.loads((tmp_path/'two'/'run.json').read_text())
    assert record['stages']['finetune']['inputs'] == json.loads((tmp_path/'one'/'run.json').read_text())['stages']['finetune']['inputs']
    one, two = (read_jsonl(tmp_path/o/'losses.jsonl') for o in ('one', 'two'))
    assert len(one) == len(two) == 8 # 18 pairs in batches of 8, twice, and two validations
    for a, b in zip(one, two): assert a == pytest.approx(b, rel=5e-3) # rounding to bfloat16 differs with the shapes
    assert len(list((tmp_path/'two'/'tensorboard').iterdir())) == 1 and not [f for f in (tmp_path/'two').iterdir() if f.name in ('training', '.training')]
    again = torchrun('finetune', tmp_path/'two')
    assert again.returncode == 0 and again.stderr.count('finetune: nothing to do') == 1
    last = run(*whole, tmp_path/'two')
    assert last.returncode == 0 and 'finetune: nothing to do' in last.stderr and 'Table 1' in last.stdout


@pytest.mark.parametrize('args,says', [
    (['run', prompt, '--teacher', 'recorded'], '2 processes were started'),
    (['finetune', 'nowhere'], 'nowhere is not a run directory'),
    (['dance'], 'dance'),
])
def test_several_processes_tell_a_mistake_once(args, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = torchrun(*args)
    assert done.returncode and says in done.stderr and done.stderr.count('llm-distill: ') == 1
    assert not [f for f in tmp_path.rglob('*') if f.is_file()]
