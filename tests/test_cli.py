"The command as a user meets it: help, exit codes, one clear line for a mistake, and no traceback."
import csv, json, os, re, shutil, signal, subprocess, sys, time
from pathlib import Path

import pytest

from llm_distill.core.core import read_json, read_jsonl, recordings, write_json
from llm_distill.cli import main as main_module
from llm_distill.teacher.recording import RecordingApp
from llm_distill.teacher.teacher import Teacher
from server import Server

command = str(Path(sys.executable).with_name('llm-distill'))
prompt = str(recordings/'apartments.toml')
ood_prompt = str(recordings/'pull_requests.toml')
nobody = '--base-url', 'http://127.0.0.1:9/v1', '--teacher', 'big' # nothing listens there
quickstart = Path(__file__).parents[1]/'nbs'/'runs'/'quickstart'


def run(*args, **env):
    return subprocess.run([command, *map(str, args)], capture_output=True, text=True, env=os.environ | env, timeout=300)


def request(row): return row['prompt'], row['stage'], row['sample']


# Mistakes

@pytest.mark.parametrize('args,message', [
    ([], 'required'),
    (['dance'], 'dance'),
    (['run'], 'PROMPT.toml'),
    (['run', 'nowhere.toml'], 'no seed prompt at nowhere.toml'),
    (['run', prompt, '--n', '0'], 'argument --n: must be at least 1, got 0'),
    (['run', prompt, '--epochs', 'many'], "argument --epochs: must be a whole number, got 'many'"),
    (['run', prompt, '--until', 'later'], 'later'),
    (['run', prompt, '--ood-prompt', 'gone.toml'], 'gone.toml'),
    (['run', prompt, '--other', 'gone.toml'], 'gone.toml'),
    (['run', prompt], 'OPENAI_API_KEY'),
    (['run', prompt, '--teacher', 'recorded:gone.jsonl'], 'gone.jsonl'),
    (['run', prompt, *nobody, '--budget', '1'], 'pass --price-in and --price-out'),
    (['run', prompt, *nobody, '--price-in', '1'], '--price-out is missing'),
    (['label', 'nowhere'], 'nowhere is not a run directory'),
    (['complete', 'nowhere', 'Why?'], 'nowhere is not a run directory'),
    (['cache', 'stats', '--cache', 'gone.sqlite'], 'gone.sqlite'),
    (['cache', 'export'], 'needs a file to write'),
    (['cache', 'stats', 'x'], "takes no file, got 'x'"),
    (['run', prompt, '--teacher', 'recorded', '--batch'], '--batch needs an endpoint with a Batch API'),
    (['run', prompt, '--seed', '4294967296'], 'argument --seed: must be at most 4294967295, got 4294967296'),
    (['run', prompt, '--questions', 'gone.csv'], 'gone.csv'),
    (['run', prompt, '--tasks', 'gone.csv'], 'gone.csv'),
    (['run', prompt, '--pairs', str(recordings/'README.md')], 'README.md'),
    (['run', prompt, '--pairs', prompt.replace('.toml', '.jsonl')], 'pass questions without answers as --questions'),
    (['run', prompt, '--check', 'gone.json'], 'gone.json'),
    (['run', prompt, '--check', 'regex:('], "invalid regular expression '('"),
    (['run', prompt, '--judge', 'gone.txt'], 'gone.txt'),
    (['run', prompt, '--judge-threshold', '6'], 'argument --judge-threshold: must be at most 5, got 6'),
    (['run', prompt, '--no-synthesis', '--ood-prompt', ood_prompt], 'drop --no-synthesis or --ood-prompt'),
    (['run', prompt, '--no-synthesis', '--other', ood_prompt], '--other requires synthesis'),
    (['run', prompt, '--min-agreement', '.5'], '--min-agreement 0.5 requires several samples; pass --samples 2'),
    (['run', prompt, '--seed-question', ' '], 'a seed question is a text'),
    (['run', prompt, '--teacher', 'groq:a-model'], 'set GROQ_API_KEY'),
    (['run', prompt, '--env-file', 'gone.env'], "cannot read the env file 'gone.env'"),
    (['run', prompt, '--filters', 'no-lenght'], "unknown filter 'no-lenght'"),
    (['run', prompt, '--student-format', 'json'], '--student-format'),
    (['cache', 'stats', '--model', 'x'], 'drop --model'),
    (['run', prompt, '--ood-prompt', prompt], 'would not be out of distribution'),
    (['run', '--config', 'gone.toml'], 'cannot read gone.toml'),
    (['show', 'nowhere'], 'nowhere is not a run directory'),
    (['push', 'nowhere', 'me/data'], 'nowhere is not a run directory'),
])
def test_a_mistake_ends_in_one_line(args, message, tmp_path):
    done = subprocess.run([command, *args], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count('\n') == 1 and 'Traceback' not in done.stderr
    assert not done.stdout
    assert not [f for f in tmp_path.rglob('*') if f.is_file() and f.name not in ('run.json', '.lock')]


def test_a_malformed_prompt_is_located(tmp_path):
    bad = tmp_path/'bad.toml'
    bad.write_text('instruction = "Do it."\nquestion = "What?"\nexamples = "none"\n')
    done = run('run', bad)
    assert done.returncode == 2
    assert all(words in done.stderr for words in ('bad.toml', '(line 3)', '[[examples]]'))


def test_an_unknown_student_is_named_before_anything_is_paid(tmp_path):
    with Server() as server:
        done = run('run', prompt, '--base-url', server.url, '--teacher', 'big', '--student', 'no/such', '--n', 5,
                   '--n-test', 2, '--run-dir', tmp_path/'run')
        assert done.returncode == 2 and 'no/such' in done.stderr and 'Traceback' not in done.stderr
        assert not server.log


def test_a_wrong_key_is_one_line_without_the_key(tmp_path):
    with Server(key='right') as server:
        done = run('run', prompt, '--base-url', server.url, '--teacher', 'big', '--run-dir', tmp_path/'run',
                   OPENAI_API_KEY='sk-very-secret')
        assert done.returncode == 2 and '401' in done.stderr and 'sk-very-secret' not in done.stderr + done.stdout
        assert len([r for r in server.log if r['outcome'] == '401']) == 1
    assert not any(b'sk-very-secret' in f.read_bytes() for f in tmp_path.rglob('*') if f.is_file())


def test_an_older_run_is_refused_in_one_sentence(tmp_path):
    write_json(tmp_path/'run'/'run.json', dict(llm_distill='0.1.0', settings={}, stages={}))
    commands = (['label', 'RUN'], ['show', 'RUN'], ['complete', 'RUN', 'Why?'], ['results', 'RUN'],
                ['run', prompt, '--teacher', 'recorded', '--run-dir', 'RUN'])
    for words in commands:
        done = run(*(str(tmp_path/'run') if word == 'RUN' else word for word in words))
        assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr
        assert 'was written by llm_distill 0.1.0 in an older format; start a new run directory' in done.stderr


def test_ctrl_c_says_how_to_resume(tmp_path):
    with Server(latency=0.2) as server:
        args = ('run', prompt, '--base-url', server.url, '--teacher', 'big', '--n', '100',
                '--cache', str(tmp_path/'c.sqlite'), '--run-dir', str(tmp_path/'run'))
        process = subprocess.Popen([command, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and len(server.log) < 5: time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130 and 'Traceback' not in err
        assert err.endswith('llm-distill: interrupted; rerun the same command to resume\n')
        kept = {request(r) for r in server.log if 'answered' in r}
        assert kept and run(*args, '--until', 'label').returncode == 0
        assert not [one for one in kept if sum(request(r) == one for r in server.log) > 1]


def test_a_closed_pipe_is_no_error():
    script = f'{command} run --help | head -n 1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(script, shell=True, executable='/bin/bash', capture_output=True, text=True)
    assert done.returncode in (0, 141) and done.stderr == ''


# Help

names = ('quickstart', 'run', 'plan', 'cache', 'show', 'review', 'push', 'complete', 'compare', 'judge', 'cost',
         'synthesize', 'label', 'finetune', 'evaluate', 'results')


@pytest.mark.parametrize('name', ['', *names])
def test_help_fits_80_columns_and_hides_aliases(name):
    done = run(*([name] if name else []), '--help', COLUMNS='200')
    assert done.returncode == 0 and 'usage: llm-distill' in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not re.search(r'--(other|tasks|near|rouge|reask|seed)(?![\w-])', done.stdout)
    if not name: assert all(re.search(rf'^    {n}\b', done.stdout, re.M) for n in names)


def test_options_of_run_are_in_groups():
    text = run('run', '--help').stdout
    titles = re.findall(r'^(\w+):$', text, re.M)
    assert titles == ['options', 'data', 'answers', 'training', 'evaluation', 'teacher', 'output']


# Runs

def test_stages_one_by_one_then_a_question(tiny, tmp_path):
    path, cache = tmp_path/'run', ('--cache', tmp_path/'cache.sqlite')
    with Server() as server:
        first = run('run', prompt, '--base-url', server.url, '--teacher', 'big', '--student', tiny, '--n', 20,
                    '--n-test', 4, '--epochs', 1, '--run-dir', path, '--until', 'synthesize', *cache)
        assert first.returncode == 0 and 'Stopped after synthesize' in first.stdout
        assert not (path/'train.jsonl').exists()
        files = dict(label='train.jsonl', finetune='student/config.json', evaluate='scores.json', results='results.md')
        for stage, file in files.items():
            done = run(stage, path, *(cache if stage in ('label', 'evaluate') else ()))
            assert done.returncode == 0, done.stderr
            assert (path/file).exists()
        assert 'Table 1' in done.stdout
        n_requests = len(server.log)
        assert run('evaluate', path, *cache).returncode == 0 and len(server.log) == n_requests
    answer = run('complete', path, 'Q: Which bakeries are open?')
    assert answer.returncode == 0 and not answer.stderr
    empty = run('complete', path, ' ')
    assert empty.returncode == 2 and 'empty' in empty.stderr
    (path/'train.jsonl').unlink()
    gone = run('finetune', path)
    assert gone.returncode == 2 and f"train.jsonl is missing; run 'llm-distill label {path}' first" in gone.stderr


def test_a_recording_of_a_run_replays_it(tiny, tmp_path):
    common = ('--student', tiny, '--n', 10, '--n-test', 3, '--epochs', 1, '--until', 'label')
    cache = '--cache', tmp_path/'c.sqlite'
    with Server() as server:
        live = run('run', prompt, '--base-url', server.url, '--teacher', 'big', *cache,
                   '--record', tmp_path/'rec.jsonl', *common, '--run-dir', tmp_path/'live')
        assert live.returncode == 0, live.stderr
        stats = run('cache', 'stats', *cache)
        assert stats.returncode == 0 and 'labeling' in stats.stdout and '13' in stats.stdout
        assert run('cache', 'export', tmp_path/'out.jsonl', *cache).returncode == 0
    for name in 'rec', 'out':
        recording = f'recorded:{tmp_path}/{name}.jsonl'
        again = run('run', prompt, '--teacher', recording, *common, '--run-dir', tmp_path/name)
        assert again.returncode == 0, again.stderr
        pairs = [[(r['question'], r['answer']) for r in read_jsonl(tmp_path/d/'train.jsonl')] for d in ('live', name)]
        assert pairs[0] == pairs[1]
    cleared = run('cache', 'clear', '--stage', 'labeling', *cache)
    assert cleared.returncode == 0 and cleared.stdout.startswith('13 replies removed')


def test_plan_sends_nothing():
    with Server() as server:
        done = run('plan', prompt, '--base-url', server.url, '--price-in', 1, '--price-out', 4, '--n', 100)
        assert done.returncode == 0 and not server.log
        rows = [[cell.strip() for cell in line.split('|')] for line in done.stdout.splitlines()]
        assert [row[2] for row in rows if row[1:2] == ['labeling']] == ['150']
        unpriced = run('plan', prompt, '--base-url', server.url, '--teacher', 'homemade').stdout
        assert unpriced.count('unknown') == 4


def test_a_budget_stops_the_run_and_more_money_resumes_it(tiny, tmp_path):
    with Server() as server:
        args = ('run', prompt, '--base-url', server.url, '--teacher', 'big', '--student', tiny, '--n', 20,
                '--n-test', 4, '--price-in', 1000, '--price-out', 1000, '--concurrency', 2,
                '--cache', tmp_path/'c.sqlite', '--run-dir', tmp_path/'run', '--until', 'label')
        poor = run(*args, '--budget', 2)
        assert poor.returncode == 2 and 'budget' in poor.stderr and 'Traceback' not in poor.stderr
        paid = {request(r) for r in server.log if 'answered' in r}
        assert 0 < read_json(tmp_path/'run'/'run.json')['usage']['synthesis']['cost'] <= 2
        assert run(*args, '--budget', 200).returncode == 0
        assert paid and not [one for one in paid if sum(request(r) == one for r in server.log) > 1]


def test_single_stages_remember_the_recording(tiny, tmp_path):
    recorded = read_jsonl(recordings/'apartments.jsonl')
    rows = [dict(question=r['question'], answers=['Mine, all mine.<END>']) for r in recorded]
    (tmp_path/'mine.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows[:40]))
    shutil.copy(prompt, tmp_path/'mine.toml')
    first = run('run', prompt, '--teacher', f'recorded:{tmp_path}/mine.jsonl', '--student', tiny, '--n', 20,
                '--n-test', 4, '--run-dir', tmp_path/'run', '--until', 'synthesize')
    assert first.returncode == 0, first.stderr
    assert run('label', tmp_path/'run').returncode == 0
    assert {r['answer'] for r in read_jsonl(tmp_path/'run'/'train.jsonl')} == {'Mine, all mine.'}


def test_a_run_by_batches_makes_the_same_pairs(tiny, tmp_path):
    common = ('--teacher', 'big', '--student', tiny, '--n', 12, '--n-test', 3, '--until', 'label')
    with Server() as server:
        for name, more in (('plain', ()), ('batch', ('--batch',))):
            done = run('run', prompt, '--base-url', server.url, '--cache', tmp_path/f'{name}.sqlite',
                       '--run-dir', tmp_path/name, *common, *more)
            assert done.returncode == 0, done.stderr
        assert any(r['stage'] == 'batch' for r in server.log)
    for file in 'questions', 'train', 'test':
        assert len({(tmp_path/name/f'{file}.jsonl').read_bytes() for name in ('plain', 'batch')}) == 1, file


def test_own_rows_a_check_and_a_look_at_the_data(tiny, tmp_path):
    "A whole data set without generated questions: pairs from a CSV file, further questions from a text file."
    rows = read_jsonl(recordings/'apartments.jsonl')[:30]
    with (tmp_path/'pairs.csv').open('w', newline='') as f:
        pairs = [(r['question'], r['answers'][0].removesuffix('<END>')) for r in rows[:20]]
        csv.writer(f).writerows([('question', 'answer'), *pairs])
    (tmp_path/'questions.txt').write_text('\n'.join(r['question'] for r in rows[20:]) + '\n')
    path = tmp_path/'run'
    done = run('run', prompt, '--teacher', 'recorded', '--student', tiny, '--pairs', tmp_path/'pairs.csv',
               '--tasks', tmp_path/'questions.txt', '--no-synthesis', '--n', 20, '--n-test', 10,
               '--check', 'regex:.+, .+', '--run-dir', path, '--until', 'label')
    assert done.returncode == 0, done.stderr
    teachers = [r['teacher'] for split in ('test', 'train') for r in read_jsonl(path/f'{split}.jsonl')]
    assert teachers == ['given']*20 + ['recorded']*10
    shown = run('show', path, '--n', 3, COLUMNS='100')
    assert shown.returncode == 0 and '3 of 20 pairs' in shown.stdout
    assert max(map(len, shown.stdout.splitlines()[1:])) <= 100
    pushed = run('push', path, 'me/data', HF_HUB_OFFLINE='0', HF_TOKEN='', HF_HOME=str(tmp_path))
    assert pushed.returncode == 2 and 'HF_TOKEN' in pushed.stderr


def test_the_recipe_is_chosen_and_changed(tiny, tmp_path):
    common = ('run', prompt, '--teacher', 'recorded', '--student', tiny, '--n', 10, '--n-test', 3,
              '--until', 'synthesize', '--run-dir')
    done = run(*common, tmp_path/'a', '--recipe', 'article', '--set', 'lr=1e-3', '--set', 'patience=2', '--epochs', 7,
               '--seed', 5)
    assert done.returncode == 0, done.stderr
    config = read_json(tmp_path/'a'/'run.json')['config']
    expected = dict(batch_size=5, lr=1e-3, patience=2, epochs=7, random_seed=5)
    assert {k: config['recipe'][k] for k in expected} == expected and config['random_seed'] == 5
    mistakes = {'1000000': ['--set', 'lr=1000000'], "no field 'speed'": ['--set', 'speed=9'],
                'FIELD=VALUE': ['--set', 'lr'], "'best'": ['--recipe', 'best']}
    for message, args in mistakes.items():
        done = run(*common, tmp_path/'b', *args)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count('\n') == 1, done.stderr


# run.toml

def data_of(path):
    names = 'questions.jsonl', 'train.jsonl', 'test.jsonl', 'test_ood.jsonl', 'rejects.jsonl', 'dataset/README.md'
    return {name: (path/name).read_bytes() for name in names}


def test_the_configuration_of_a_run_can_be_given_back(tiny, tmp_path):
    first = run('run', prompt, '--ood-prompt', ood_prompt, '--teacher', 'recorded', '--student', tiny, '--n', 12,
                '--n-test', 3, '--seed', 7, '--check', 'regex:.+', '--set', 'lr=1e-3', '--metric', 'rouge_l',
                '--until', 'label', '--run-dir', tmp_path/'first')
    assert first.returncode == 0, first.stderr
    shutil.copy(tmp_path/'first'/'run.toml', tmp_path/'mine.toml')
    again = run('run', '--config', tmp_path/'mine.toml', '--until', 'label', '--run-dir', tmp_path/'again')
    assert again.returncode == 0, again.stderr
    assert data_of(tmp_path/'again') == data_of(tmp_path/'first')
    records = [read_json(tmp_path/name/'run.json') for name in ('first', 'again')]
    assert records[0]['config'] == records[1]['config'] and records[0]['connection'] == records[1]['connection']
    assert (tmp_path/'again'/'run.toml').read_text() == (tmp_path/'mine.toml').read_text()

    larger = run('run', '--config', tmp_path/'mine.toml', '--n', 14, '--metric', 'token_f1', '--until', 'synthesize',
                 '--run-dir', tmp_path/'larger')
    assert larger.returncode == 0, larger.stderr
    config = read_json(tmp_path/'larger'/'run.json')['config']
    assert config == records[0]['config'] | dict(n=14, metrics=['token_f1'])


def test_a_configuration_without_a_directory_resumes_its_run(tiny, tmp_path):
    first = run('run', prompt, '--teacher', 'recorded', '--student', tiny, '--n', 10, '--n-test', 3, '--epochs', 1,
                '--until', 'label', '--run-dir', tmp_path/'run')
    assert first.returncode == 0, first.stderr
    before = (tmp_path/'run'/'train.jsonl').stat().st_mtime_ns
    resumed = run('run', '--config', tmp_path/'run'/'run.toml')
    assert resumed.returncode == 0 and 'Table 1' in resumed.stdout, resumed.stderr
    assert 'label: nothing to do' in resumed.stderr and (tmp_path/'run'/'train.jsonl').stat().st_mtime_ns == before


def test_a_mistake_in_a_configuration_is_one_line(tmp_path):
    for text, message in (('n = ', 'not valid TOML'), ('n_tests = 5', 'unknown setting `n_tests`; expected `n_test`'),
                          ('n_test = 0', '`n_test` must be at least 1, got 0'), ('n = 5', 'no seed prompt'),
                          ('prompt = {instruction = "Sort."}', 'a prompt has no question')):
        (tmp_path/'run.toml').write_text(text)
        done = run('run', '--config', tmp_path/'run.toml', '--teacher', 'recorded')
        assert done.returncode == 2 and message in done.stderr and done.stderr.count('\n') == 1, done.stderr


# Several students

def test_students_and_repeats_share_the_data(tiny, tmp_path):
    second, path = shutil.copytree(tiny, tmp_path/'second'), tmp_path/'run'
    with Server() as server:
        def go(*more):
            return run('run', prompt, '--base-url', server.url, '--teacher', 'big', '--cache', tmp_path/'c.sqlite',
                       '--student', tiny, '--student', second, '--repeats', 2, '--n', 16, '--n-test', 6, '--epochs', 1,
                       '--run-dir', path, *more)
        first = go('--until', 'label')
        assert first.returncode == 0 and 'Stopped after label' in first.stdout, first.stderr
        done = go()
        assert done.returncode == 0, done.stderr
        requests = [(r['prompt'], r['stage'], r['sample']) for r in server.log]
    assert len(requests) == len(set(requests))
    by_stage = [sum(stage == name for _, stage, _ in requests) for name in ('labeling', 'evaluation')]
    assert by_stage == [22, 6]
    assert all(words in done.stdout for words in ('tiny, distilled', 'second, distilled', 'Table 1: step F1'))
    runs = sorted(p.parent.name for p in path.glob('*/run.json'))
    assert runs == ['second-0', 'second-1', 'tiny-0', 'tiny-1']
    shared = ('questions.jsonl', 'train.jsonl', 'test.jsonl', 'rejects.jsonl', 'dataset/train.parquet',
              *(f'predictions/{s}_test.jsonl' for s in ('teacher', 'one_shot', 'echo')))
    for file in shared: assert len({(path/r/file).read_bytes() for r in runs}) == 1, file
    losses = {(path/r/'losses.jsonl').read_bytes() for r in runs}
    assert len(losses) == 2, 'two seeds; both students have the same weights'
    lines = done.stderr.splitlines()
    steps = 'label', 'evaluate teacher', 'evaluate one_shot', 'evaluate distilled'
    assert [sum(f'{step} ...' in line for line in lines) for step in steps] == [0, 1, 2, 4]
    systems = [o for o in read_json(path/'comparison.json')['systems'] if o['system'] == 'distilled']
    assert [(o['students'], o['seeds']) for o in systems] == [(['tiny'], [0, 1]), (['second'], [0, 1])]
    again = run('compare', *(path/r for r in runs), '--out', tmp_path/'out')
    assert again.returncode == 0 and (tmp_path/'out'/'comparison.html').exists()
    assert 'second, distilled' in again.stdout
    single = run('run', prompt, '--teacher', 'recorded', '--student', tiny, '--run-dir', path/'tiny-0', '--repeats', 2)
    assert single.returncode == 2 and 'holds the run of a single student' in single.stderr


@pytest.mark.parametrize('args,message', [
    (['compare', 'nowhere'], 'nowhere is not a run directory'),
    (['compare'], 'RUN_DIR'),
    (['run', prompt, '--teacher', 'recorded', '--student', 'a/x', '--student', 'b/x'], "share the folder 'x'"),
    (['run', prompt, '--teacher', 'recorded', '--student', 'smollm2', '--student', './gone'], './gone'),
    (['run', prompt, '--repeats', '0'], 'argument --repeats: must be at least 1, got 0'),
])
def test_a_mistake_with_several_students_ends_in_one_line(args, message, tmp_path):
    done = subprocess.run([command, *args], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count('\n') == 1
    assert not list(tmp_path.iterdir())


def test_plan_knows_several_students():
    def plan(*more):
        prices = '--price-in', 1, '--price-out', 4
        return run('plan', prompt, '--base-url', 'http://127.0.0.1:9/v1', *prices, *more).stdout.splitlines()
    one, four = plan(), plan('--student', 'smollm2', '--student', 'gemma', '--repeats', 2)
    assert [line for line in four if line not in one] == ['The data set is shared by all 4 runs.']


# Further looks at a finished run

def main(capsys, *args):
    "Call the command in this process; return its exit code and what it printed."
    from llm_distill.cli import main
    code = main(list(map(str, args)))
    return code, ''.join(capsys.readouterr())


class FirstIsBetter(RecordingApp):
    "A judge that always prefers the first answer."
    def answer(self, body, headers):
        message = dict(role='assistant', content='{"reason": "It is the first.", "verdict": "A"}')
        choice = dict(index=0, message=message, finish_reason='stop')
        return 200, dict(id='x', object='chat.completion', created=0, model='judge', choices=[choice])


def test_metric_judge_and_cost_renew_the_results(tiny, tmp_path, capsys, monkeypatch):
    path, mine = tmp_path/'run', tmp_path/'mine.py'
    mine.write_text('def short(predicted, expected): return 1/(1 + len(predicted))\n')
    monkeypatch.chdir(tmp_path)
    def report(): return (path/'results.md').read_text() + (path/'report.html').read_text()
    def do(*args):
        code, text = main(capsys, *args)
        assert code == 0, text
        return text
    def go(*more):
        return do('run', prompt, '--teacher', 'recorded', '--student', tiny, '--n', 20, '--n-test', 3, '--epochs', 1,
                  '--run-dir', path, *more)
    go()
    go('--metric', 'rouge_l')
    assert {r['main'] for r in read_json(path/'scores.json')} == {'rouge_l'} and 'ROUGE-L' in report()
    text = do('evaluate', path, '--metric', 'mine.py:short', '--metric', 'token_f1')
    assert 'distilled: nothing to do' in text and 'scores: done' in text
    do('results', path)
    assert 'short</th>' in report()
    mine.write_text('def short(predicted, expected): return 0\n')
    assert 'scores: done' in do('evaluate', path) and 'scores: nothing to do' in do('evaluate', path)
    (path/'student').rename(tmp_path/'elsewhere') # scores need neither weights nor a teacher
    with monkeypatch.context() as m:
        m.setattr('llm_distill.run.config.Teacher', None)
        for metric in 'exact_match', 'mine.py:short': assert 'scores: done' in do('evaluate', path, '--metric', metric)
    (tmp_path/'elsewhere').rename(path/'student')

    before = read_json(path/'run.json')
    with Server(echo=True) as server:
        server.app = FirstIsBetter()
        do('judge', path, '--base-url', server.url, '--teacher', 'a-judge', '--n', 2, '--cache', tmp_path/'c.sqlite')
        assert len(server.log) == 8
    after = read_json(path/'run.json')
    assert 'Judge: a-judge' in report() and 'a-judge' not in json.dumps(after) and after['usage'] == before['usage']
    do('cost', path, '--price-in', 2, '--price-out', 8, '--n', 2)
    assert 'Cost and speed' in report() and 'Judge: a-judge' in report()
    file = path/'predictions'/'distilled_test.jsonl'
    rows = [row | dict(prediction='Other.') for row in read_jsonl(file)]
    file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    text = do('results', path)
    assert 'answers changed since they were judged' in text
    assert 'a-judge' not in report() and 'Cost and speed' in report()


@pytest.mark.parametrize('args,message', [
    (['judge', 'nowhere', '--teacher', 'recorded'], 'nowhere is not a run directory'),
    (['cost', 'nowhere'], 'nowhere is not a run directory'),
    (['run', prompt, '--teacher', 'recorded', '--metric', 'beauty'], "unknown metric 'beauty'"),
    (['run', prompt, '--teacher', 'recorded', '--metric', 'gone.py:f'], 'gone.py'),
    (['cost', 'nowhere', '--hourly-price', '-1'], 'argument --hourly-price: must be at least 0, got -1'),
    (['cost', quickstart, '--teacher', 'recorded'], 'cannot measure the latency of a recorded teacher'),
])
def test_a_mistake_with_a_further_look_ends_in_one_line(args, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = main(capsys, *args)
    assert code == 2 and message in text and text.count('\n') == 1, text
    assert not list(tmp_path.iterdir())


def test_another_teacher_is_not_asked_at_the_old_address(tiny, tmp_path):
    import argparse
    from llm_distill.cli import recorded_connection
    from llm_distill.run.config import RunConfig, TeacherConfig
    from llm_distill.run.run import Run
    run = Run(tmp_path/'run', RunConfig(prompt, student=tiny))
    run.record['connection'] = dict(teacher='big', base_url='http://a/v1', cache='c.sqlite')
    def connection(**options): return recorded_connection(argparse.Namespace(**options), run)
    assert connection() == TeacherConfig('big', 'http://a/v1', 'c.sqlite')
    assert connection(teacher='other') == TeacherConfig('other', None, 'c.sqlite')
    assert connection(base_url='http://b/v1', rpm=3) == TeacherConfig('big', 'http://b/v1', 'c.sqlite', rpm=3)
    run.record |= dict(connection={}, teacher=dict(model='gpt-x'))
    assert connection() == TeacherConfig('gpt-x')


def test_a_full_disk_is_one_line_and_a_bug_keeps_its_traceback(capsys, monkeypatch):
    import llm_distill.cli
    def fails(error):
        def raise_error(*_): raise error
        return raise_error
    monkeypatch.setattr(llm_distill.cli, 'show', fails(OSError(28, 'No space left on device', 'x.jsonl')))
    code, text = main(capsys, 'show', 'run')
    assert code == 2 and text == ('llm-distill: x.jsonl: No space left on device; free some space, then rerun the '
                                  'command to resume\n')
    monkeypatch.setattr(llm_distill.cli, 'show', fails(OSError(21, 'Is a directory', 'x.jsonl')))
    assert main(capsys, 'show', 'run') == (2, 'llm-distill: x.jsonl: Is a directory; choose another path\n')
    for bug in OSError(5, 'Input/output error'), KeyError('task'):
        monkeypatch.setattr(llm_distill.cli, 'show', fails(bug))
        with pytest.raises(type(bug)): main(capsys, 'show', 'run')


# Several processes, as torchrun starts them

def torchrun(*args):
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    env = os.environ | dict(CUDA_VISIBLE_DEVICES='')
    return subprocess.run([*launcher, '-m', 'llm_distill', *map(str, args)], capture_output=True, text=True, env=env,
                          timeout=300)


def test_two_processes_train_a_run_as_one(tiny, tmp_path):
    whole = ('run', prompt, '--teacher', 'recorded', '--student', tiny, '--n', 20, '--n-test', 3, '--epochs', 2,
             '--run-dir')
    one, two = tmp_path/'one', tmp_path/'two'
    assert run(*whole, one, '--until', 'finetune').returncode == 0
    assert run(*whole, two, '--until', 'label').returncode == 0
    done = torchrun('finetune', two, '--report-to', 'tensorboard')
    assert done.returncode == 0, done.stderr
    assert done.stderr.count('finetune: done') == 1 and done.stdout.count('epoch 2 of 2') == 1
    inputs = {read_json(path/'run.json')['stages']['finetune']['inputs'] for path in (one, two)}
    assert len(inputs) == 1
    losses = [read_jsonl(path/'losses.jsonl') for path in (one, two)]
    assert len(losses[0]) == len(losses[1]) == 8 # 18 pairs in batches of 8, twice, and two validations
    for a, b in zip(*losses): assert a == pytest.approx(b, rel=5e-3) # rounding to bfloat16 differs with the shapes
    assert len(list((two/'tensorboard').iterdir())) == 1
    assert not [f for f in two.iterdir() if f.name in ('training', '.training')]
    again = torchrun('finetune', two)
    assert again.returncode == 0 and again.stderr.count('finetune: nothing to do') == 1
    last = run(*whole, two)
    assert last.returncode == 0 and 'finetune: nothing to do' in last.stderr and 'Table 1' in last.stdout


@pytest.mark.parametrize('args,message', [
    (['run', prompt, '--teacher', 'recorded'], '2 processes can only share the stage finetune'),
    (['finetune', 'nowhere'], 'nowhere is not a run directory'),
    (['dance'], 'dance'),
])
def test_several_processes_report_a_mistake_once(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = torchrun(*args)
    assert done.returncode and message in done.stderr and done.stderr.count('llm-distill: ') == 1
    assert not [f for f in tmp_path.rglob('*') if f.is_file()]


# Scripts

def documents(capsys, *args):
    "Run a command with --json, and return the document on its standard output."
    assert main_module([*map(str, args), '--json']) == 0
    return json.loads(capsys.readouterr().out)


def test_plan_show_and_compare_print_one_json_document(tmp_path, capsys):
    plan = documents(capsys, 'plan', prompt, '--teacher', 'recorded', '--n', 100, '--repeats', 2)
    assert plan['stages']['labeling']['requests'] == 150 and plan['total']['cost'] is None and plan['runs'] == 2
    shown = documents(capsys, 'show', quickstart, '--n', 2)
    assert shown['counts']['training set'] == 200 and len(shown['sample']['test set']) == 2
    compared = documents(capsys, 'compare', quickstart.parent/'students', '--out', tmp_path/'out')
    assert compared == read_json(tmp_path/'out'/'comparison.json')


def test_evaluate_and_cost_print_one_json_document(tiny, tmp_path, capsys):
    path = tmp_path/'run'
    done = run('run', prompt, '--teacher', 'recorded', '--student', tiny, '--n', 12, '--n-test', 3, '--epochs', 1,
               '--run-dir', path)
    assert done.returncode == 0, done.stderr
    evaluated = documents(capsys, 'evaluate', path, '--metric', 'rouge_l')
    assert evaluated['run'] == str(path) and evaluated['scores'][0]['main'] == 'rouge_l'
    assert documents(capsys, 'cost', path, '--n', 2)['systems'].keys() >= {'distilled'}


def test_a_key_comes_from_a_file_if_it_is_asked_for(tmp_path):
    with Server(key='from-file') as server:
        (tmp_path/'.env').write_text('OPENAI_API_KEY="from-file"\n')
        args = ('run', prompt, '--base-url', server.url, '--teacher', 'big', '--until', 'synthesize', '--n', 5,
                '--n-test', 2, '--cache', tmp_path/'c.sqlite', '--run-dir', tmp_path/'run')
        env = {k: v for k, v in os.environ.items() if k != 'OPENAI_API_KEY'}
        def go(*more):
            return subprocess.run([command, *map(str, [*args, *more])], capture_output=True, text=True, env=env)
        assert '401' in go().stderr
        assert '401' not in go('--env-file', tmp_path/'.env').stderr
    assert not any(b'from-file' in f.read_bytes() for f in (tmp_path/'run').rglob('*') if f.is_file())


def test_a_part_of_a_cache_is_exported(tmp_path):
    teacher = Teacher('recorded', cache=tmp_path/'c.sqlite', progress=False)
    question = read_jsonl(recordings/'apartments.jsonl')[0]['question']
    teacher.ask([f'Q: {question}\nA:'], stage='labeling')
    done = run('cache', 'export', tmp_path/'out.jsonl', '--cache', tmp_path/'c.sqlite', '--stage', 'synthesis')
    assert done.stdout.startswith('0 replies written')


def test_scores_of_an_earlier_student_are_not_shown_as_those_of_a_new_one(tiny, tmp_path):
    args = ('run', prompt, '--teacher', 'recorded', '--student', tiny, '--n-test', 4, '--epochs', 1,
            '--run-dir', tmp_path/'run')
    assert run(*args, '--n', 10).returncode == 0
    again = run(*args, '--n', 8, '--until', 'finetune')
    assert again.returncode == 0 and 'changed settings: n 10 → 8;' in again.stderr
    for name in 'results', 'cost', 'judge':
        done = run(name, tmp_path/'run', '--teacher', 'recorded') if name == 'judge' else run(name, tmp_path/'run')
        assert done.returncode == 2 and 'those of earlier data or an earlier student' in done.stderr
    assert run(*args, '--n', 8).returncode == 0 and run('results', tmp_path/'run').returncode == 0


def test_plan_without_a_teacher_costs_nothing(tmp_path):
    pair = dict(question='Who won the cup?', answer='Find the cup, find the winner.')
    (tmp_path/'pairs.jsonl').write_text(json.dumps(pair))
    done = run('plan', prompt, '--teacher', 'none', '--pairs', tmp_path/'pairs.jsonl', '--no-synthesis')
    assert done.returncode == 0 and '0.0000' in done.stdout and 'extra_lines' in done.stdout


def test_a_probe_without_usable_answers_says_why(tmp_path):
    done = run('run', prompt, '--teacher', 'recorded', '--check', 'regex:[0-9]+', '--n', 4, '--n-test', 2,
               '--max-reasks', 0, '--run-dir', tmp_path/'run')
    assert done.returncode == 2 and 'check: it does not match the regular expression' in done.stderr
