"""What the notebook of the teacher cannot show: faults, kills, two processes, limits, and that no key gets out.

Nothing here measures time except the test of the rate limiter; all else is read from the server's log and the cache."""
import asyncio, json, logging, os, random, signal, sqlite3, subprocess, sys, threading, time, traceback
from collections import Counter
from pathlib import Path

import pytest

from llm_distill.prompts import TeacherError, read_jsonl
from llm_distill.teacher import Teacher, cache_export, cache_stats, recorded_teacher

sys.path.insert(0, str(Path(__file__).parent))
from server import Server

SECRET = 'hunter2-sesame-0123456789'


def teacher(server, **kwargs):
    return Teacher('test-model', getattr(server, 'url', server), **dict(api_key=SECRET, progress=False, backoff=.01, timeout=20) | kwargs)


def prompts(n, start=0): return [f'prompt {i:05}' for i in range(start, start + n)]


def texts(n, start=0): return [f'echo of {p}' for p in prompts(n, start)]


def asked(server, outcome=None): return [o['prompt'] for o in server.log if outcome in (None, o['outcome'])]


def kept(path): return {json.loads(r)['messages'][-1]['content'] for r, in sqlite3.connect(path).execute('select request from replies')}


@pytest.fixture
def cache(tmp_path): return tmp_path/'teacher.sqlite'


# Faults

def test_every_kind_of_fault_over_500_prompts(cache, caplog):
    caplog.set_level(logging.DEBUG, 'llm_distill.teacher')
    faults = {'429': .2, '500': .1, 'drop': .05, 'hang': .05, 'cut': .03, 'empty': .03, 'garbage': .03}
    with Server(echo=True, faults=faults) as server:
        t = teacher(server, cache=cache, timeout=1.5, max_retries=12)
        replies = t.ask(prompts(500), 'labeling')
        n = len(server.log)
        good, bad = [o for o in replies if o.kind == 'ok'], [o for o in replies if o.kind != 'ok']
        assert {k for k, v in server.outcomes().items() if v} == {'ok', *faults}
        assert [o.text for o in replies if o.kind == 'ok'] == [e for e, o in zip(texts(500), replies) if o.kind == 'ok']
        assert all(o.text is None and o.reason and o.kind in ('cut', 'empty', 'failed') for o in bad)
        answered = Counter(p for kind in ('ok', 'cut', 'empty') for p in asked(server, kind))
        late = caplog.text.count('no reply within') - server.outcomes()['hang'] # on a busy machine some replies come after the timeout
        assert set(answered) == set(prompts(500)) - {p for p, o in zip(prompts(500), replies) if o.kind == 'failed'}
        assert sum(answered.values()) - len(answered) <= late, 'a reply that had arrived was asked for again'
        assert kept(cache) == {p for p, o in zip(prompts(500), replies) if o.kind != 'failed'}
        t.ask(prompts(500), 'labeling')
        assert len(server.log) == n + sum(o.kind == 'failed' for o in replies), 'what is in the cache was asked again'
        server.faults = {}
        assert [o.text for o in t.ask(prompts(500), 'labeling', again=True)] == texts(500)
        assert len(good) + len(bad) == 500 and t.usage['labeling'].failed <= 5


@pytest.mark.parametrize('plan, kind', [(['cut'], 'cut'), (['empty'], 'empty'), (['filter'], 'filtered')])
def test_an_unusable_reply_is_typed_kept_and_asked_again_on_demand(cache, plan, kind):
    with Server(echo=True, plan=plan) as server:
        first, = teacher(server, cache=cache).ask(['x'], 'labeling')
        second, = teacher(server, cache=cache).ask(['x'], 'labeling')
        assert first.kind == second.kind == kind and first.text is second.text is None and len(server.log) == 1
        third, = teacher(server, cache=cache).ask(['x'], 'labeling', again=True)
        assert third.text == 'echo of x' and len(server.log) == 2
        assert [o['kind'] for o in cache_stats(cache)] == ['ok']


@pytest.mark.parametrize('plan', [['429'], ['503'], ['500'], ['drop'], ['hang'], ['garbage'], ['500', 'drop', '429', 'garbage']])
def test_a_passing_fault_is_tried_again(plan):
    with Server(echo=True, plan=plan) as server:
        reply, = teacher(server, timeout=.5).ask(['x'], 'labeling')
        assert reply.text == 'echo of x' and [o['outcome'] for o in server.log] == [*plan, 'ok']


def test_a_prompt_that_always_fails_leaves_the_others_alone():
    with Server(echo=True) as server:
        server.answer = lambda body, headers: (500, dict(error=dict(message='bad luck'))) if 'prompt 00007' in str(body) else Server.answer(server, body, headers)
        replies = teacher(server, max_retries=2).ask(prompts(30), 'labeling')
        assert [o.kind for o in replies] == ['ok']*7 + ['failed'] + ['ok']*22
        assert 'bad luck' in replies[7].reason and asked(server).count('prompt 00007') == 3


@pytest.mark.parametrize('header', ['0.05', 'date', '1'])
def test_retry_after_is_heeded(header):
    with Server(echo=True, plan=['429'], retry_after=header) as server:
        assert teacher(server, backoff=1000, max_wait=100).ask(['x'], 'labeling')[0].kind == 'ok' # without the header it would wait for long
        if header == '1': assert server.log[1]['at'] - server.log[0]['at'] >= .99


def test_a_wait_that_is_too_long_is_said():
    with Server(echo=True, plan=['429'], retry_after=3600) as server:
        with pytest.raises(TeacherError, match='3600 s'): teacher(server).ask(prompts(5), 'labeling')
        assert len(server.log) == 1


# What ends a run

@pytest.mark.parametrize('status', ['400', '401', '403', '404'])
def test_a_mistake_costs_one_request(status):
    with Server(echo=True, faults={status: 1}) as server:
        with pytest.raises(TeacherError, match=f'{status}: a planned {status}') as e: teacher(server).ask(prompts(100), 'labeling')
        assert len(server.log) == 1 and '\n' not in str(e.value)


def test_one_rejected_prompt_does_not_end_the_run_of_the_others():
    with Server(echo=True, plan=['ok', 'ok', '400']) as server:
        kinds = Counter(o.kind for o in teacher(server).ask(prompts(50), 'labeling'))
        assert kinds == dict(ok=49, failed=1) and len(server.log) == 50


def test_401_in_the_middle_keeps_what_arrived(cache):
    with Server(echo=True, plan=['ok']*40 + ['401']) as server:
        with pytest.raises(TeacherError, match='401') as e: teacher(server, cache=cache, concurrency=4).ask(prompts(200), 'labeling')
        assert kept(cache) == set(asked(server, 'ok')) and len(server.log) < 50 and str(cache) in str(e.value)
        assert [o.text for o in teacher(server, cache=cache).ask(prompts(200), 'labeling')] == texts(200)
        assert max(Counter(asked(server, 'ok')).values()) == 1


def test_the_breaker_opens_when_nothing_succeeds(cache):
    with Server(echo=True, plan=['ok']*30, faults={'500': 1}) as server:
        with pytest.raises(TeacherError, match='nothing came back.*planned 500.*go on'):
            teacher(server, cache=cache, breaker=8, max_retries=100).ask(prompts(100), 'labeling')
        assert server.outcomes()['500'] < 200
    with pytest.raises(TeacherError, match='nothing came back.*connection failed'): teacher('http://127.0.0.1:9/v1').ask(prompts(10), 'labeling')


def test_spent_quota_is_not_waited_for():
    with Server(echo=True) as server:
        error = dict(error=dict(message='You exceeded your current quota', code='insufficient_quota', type='insufficient_quota', param=None))
        server.answer = lambda body, headers: (429, error)
        with pytest.raises(TeacherError, match='exceeded your current quota'): teacher(server).ask(prompts(10), 'labeling')
        assert len(server.log) == 1


@pytest.mark.parametrize('budget', [.001, .01])
def test_a_budget_is_not_passed(cache, budget):
    kwargs = dict(cache=cache, price_in=10, price_out=10)
    with Server(echo=True) as server:
        t = teacher(server, budget=budget, **kwargs)
        with pytest.raises(TeacherError, match=rf'budget of \${budget:g}.*\$0.*kept in.*higher budget'): t.ask(prompts(500), 'labeling', max_tokens=16)
        spent = t.usage['labeling']
        assert .6*budget < spent.cost <= budget and len(kept(cache)) == spent.requests == len(server.log)
        assert [o.text for o in teacher(server, budget=1, **kwargs).ask(prompts(500), 'labeling', max_tokens=16)] == texts(500)
        assert len(server.log) == 500


# Kills, interrupts, several processes

CHILD = '''
import json, os, sys
sys.path.insert(0, {tests!r})
import openai, aiohttp # before the fork, which makes it quick
from openai import DefaultAioHttpClient, AsyncOpenAI
AsyncOpenAI(api_key='x').chat
from llm_distill.teacher import Teacher
def ask(first, n, concurrency):
    t = Teacher('test-model', {url!r}, api_key={key!r}, cache={cache!r}, progress=False, concurrency=concurrency)
    return [o.text for o in t.ask([f'prompt {{i:05}}' for i in range(first, first + n)], 'labeling')]
'''


def script(server, cache, body): return [sys.executable, '-c', CHILD.format(tests=str(Path(__file__).parent), url=server.url, key=SECRET, cache=str(cache)) + body]


def wait_for(condition, what):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f'waited in vain for {what}'
        time.sleep(.001)


def test_sigkill_at_20_random_moments(cache):
    forks = '''
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        print(json.dumps(ask(0, 600, 4)), flush=True)
        os._exit(0)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print('over', flush=True)
'''
    rng, restarts, lost = random.Random(0), [], []
    with Server(echo=True, latency=.004) as server:
        with subprocess.Popen(script(server, cache, forks), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as zygote:
            for _ in range(20):
                before = len(server.log)
                zygote.stdin.write('go\n'), zygote.stdin.flush()
                pid, goal = int(zygote.stdout.readline()), before + rng.randint(1, 25)
                wait_for(lambda: len(server.log) >= goal, 'requests')
                time.sleep(rng.random()*.01)
                os.kill(pid, signal.SIGKILL)
                assert zygote.stdout.readline() == 'over\n'
                time.sleep(.02) # what the server had still to write
                there = kept(cache) if cache.exists() else set()
                restarts.append((len(server.log), there))
                lost.append(len(set(asked(server, 'ok')) - there) - sum(lost))
            zygote.stdin.write('go\n'), zygote.stdin.flush()
            zygote.stdout.readline()
            assert json.loads(zygote.stdout.readline()) == texts(600)
            zygote.stdin.close()
        for n, there in restarts: assert there.isdisjoint(asked(server)[n:]), 'a reply that had arrived was asked for again'
        assert max(lost) <= 4, 'more replies were lost than requests were in flight'
        assert len(server.log) <= 600 + 20*4 and kept(cache) == set(prompts(600))


def test_two_processes_on_one_cache(cache):
    with Server(echo=True, latency=.005) as server:
        both = [subprocess.Popen(script(server, cache, f'print(json.dumps(ask({first}, 600, 16)))'), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                for first in (0, 300)]
        for process, first in zip(both, (0, 300)):
            out, err = process.communicate(timeout=100)
            assert process.returncode == 0, err
            assert 'locked' not in err and json.loads(out) == texts(600, first)
        assert kept(cache) == set(prompts(900))


@pytest.mark.parametrize('times', [1, 2])
def test_ctrl_c(cache, times):
    body = '''
try: ask(0, 200, 8)
except KeyboardInterrupt: sys.stdout.flush(), os._exit(130)
'''
    with Server(echo=True, latency=.05) as server:
        process = subprocess.Popen(script(server, cache, body), stderr=subprocess.PIPE, text=True)
        wait_for(lambda: len(server.log) >= 30, 'requests')
        if times == 2: # from now on nothing is answered
            server.faults = {'hang': 1}
            wait_for(lambda: server.outcomes().get('hang') == 8, 'all to be in flight')
        process.send_signal(signal.SIGINT)
        if times == 2:
            assert '\n' == process.stderr.readline() and 'Ctrl-C again' in process.stderr.readline()
            process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        answered = {o['prompt'] for o in server.log if 'answered' in o}
        if times == 1: assert kept(cache) == answered == set(asked(server)) and len(answered) < 200, 'requests in flight were dropped'
        if times == 2: assert kept(cache) == answered


def test_a_run_that_the_caller_leaves_keeps_what_is_in_flight(cache):
    with Server(echo=True, latency=.02) as server:
        for i, reply in enumerate(teacher(server, cache=cache, concurrency=8).ask_iter(prompts(500), 'labeling')):
            if i == 20: break
        del reply
        wait_for(lambda: len([o for o in server.log if 'answered' in o]) == len(server.log), 'replies')
        wait_for(lambda: kept(cache) == set(asked(server)), 'the cache')
        assert len(server.log) < 100


# Pacing

@pytest.mark.parametrize('tell', [True, False])
def test_a_limiter_loses_nothing(tell):
    with Server(echo=True, rpm=1200, bucket=5, tell=tell) as server:
        t = teacher(server, backoff=.1, concurrency=16)
        assert [(o.text, o.kind) for o in t.ask(prompts(40), 'labeling')] == [(o, 'ok') for o in texts(40)]
        assert server.outcomes()['ok'] == 40 and set(server.outcomes()) <= {'ok', '429'}


@pytest.mark.parametrize('limits', [dict(rpm=1200), dict(tpm=20*60*100)]) # with 8 + 92 tokens each, both are 20 requests a second
def test_own_limits_are_kept(limits):
    at = []
    with Server(echo=True) as server:
        t = teacher(server, **limits)
        sent = t.pacer.sent
        def note(now, tokens): at.append(now), sent(now, tokens)
        t.pacer.sent = note
        t.ask([f'{i:016}' for i in range(40)], 'labeling', max_tokens=92)
    assert len(at) == 40
    for first in range(40): # nowhere more than the limit and a tenth of a second in advance
        for last in range(first, 40): assert last - first <= 20*(at[last] - at[first] + .1) + 1e-6


def test_the_ceiling_is_kept_and_falls_under_refusals():
    with Server(echo=True, latency=.02) as server:
        t = teacher(server, concurrency=7)
        t.ask(prompts(60), 'labeling')
        assert server.peak == 7 and t.pacer.ceiling == 7
        server.faults = {'429': 1}
        with pytest.raises(TeacherError): teacher(server, breaker=3).ask(prompts(60), 'labeling')
        assert len(server.log) == 63, 'refused requests went out in more than one at a time'


# What is asked

def test_which_requests_are_made_does_not_depend_on_the_order_of_replies():
    bodies = []
    for seed in 1, 2:
        with Server(echo=True, faults={'500': .2, 'drop': .1}, seed=seed, latency=.002*seed) as server:
            teacher(server, max_retries=50).ask(prompts(120), 'labeling')
            bodies.append({json.dumps([o['prompt'], o['body'], o['stage'], o['sample']]) for o in server.log})
    assert bodies[0] == bodies[1]


def test_the_same_prompt_twice_is_one_request():
    with Server(echo=True, latency=.01) as server:
        t = teacher(server)
        assert [o.text for o in t.ask(['a', 'b', 'a', 'a'], 'labeling')] == ['echo of a', 'echo of b', 'echo of a', 'echo of a']
        assert len(server.log) == 2 and t.usage['labeling'].cached == 2 and t.usage['labeling'].requests == 2


def test_stages_samples_and_models_in_header_and_key(cache):
    with Server(echo=True) as server:
        t = teacher(server, cache=cache)
        t.ask(['x'], 'labeling'), t.ask(['x'], 'evaluation'), t.ask(['x'], 'evaluation', sample=1), t.ask(['x'], 'labeling', temperature=.7)
        Teacher('other-model', server.url, progress=False, cache=cache).ask(['x'], 'labeling')
        assert [(o['stage'], o['sample'], o['body']['temperature'], o['body']['model']) for o in server.log] == [
            ('labeling', 0, 0, 'test-model'), ('evaluation', 1, 0, 'test-model'), ('labeling', 0, .7, 'test-model'), ('labeling', 0, 0, 'other-model')]


def test_inside_a_running_loop_and_from_threads():
    async def notebook(t): return t.ask(prompts(20), 'labeling')
    with Server(echo=True) as server:
        t = teacher(server)
        assert [o.text for o in asyncio.run(notebook(t))] == texts(20)
        found = {}
        threads = [threading.Thread(target=lambda i=i: found.update({i: t.ask(prompts(30, 100*i), 'labeling')})) for i in range(4)]
        for th in threads: th.start()
        for th in threads: th.join()
        assert all([o.text for o in found[i]] == texts(30, 100*i) for i in range(4))


def test_prompts_are_read_as_needed():
    read = []
    def endless():
        for i in range(10**9): read.append(i); yield f'prompt {i:05}'
    with Server(echo=True) as server:
        replies = teacher(server, concurrency=4).ask_iter(endless(), 'labeling')
        assert [next(replies).text for _ in range(300)] == texts(300)
        assert len(read) < 1500
        replies.close()


@pytest.mark.parametrize('refuse, sent', [
    (dict(max_tokens="Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."), 'max_completion_tokens'),
    (dict(temperature="Unsupported value: 'temperature' does not support 0 with this model."), None),
    (dict(stop="Unsupported parameter: 'stop' is not supported with this model."), None)])
def test_parameters_that_an_endpoint_does_not_take(refuse, sent):
    with Server(echo=True) as server:
        server.refuse = {f'"{k}"': v for k, v in refuse.items()}
        t = teacher(server)
        replies = t.ask(prompts(30), 'labeling', stop=['00003'])
        assert len(server.log) == 31 and server.outcomes() == {'400': 1, 'ok': 30}
        name, = refuse
        assert all(name not in o['body'] and (not sent or o['body'][sent] == 512) for o in server.log[1:])
        if name == 'stop': assert replies[3].text == 'echo of prompt '


def test_json_schema_and_its_fall_back():
    schema = dict(type='object', properties=dict(a=dict(type='string')))
    for refused, form in ((), 'json_schema'), (['json_schema'], 'json_object'), (['json_schema', 'json_object'], None):
        with Server(echo=True) as server:
            server.refuse = {f'"{k}"': f'response_format {k} is not supported' for k in refused}
            reply, = teacher(server).ask(['x'], 'synthesis', schema=schema)
            last = server.log[-1]
            assert reply.kind == 'ok' and last['body'].get('response_format', {}).get('type') == form
            assert ('matches this schema' in last['prompt']) == (form != 'json_schema')


# The Batch API

def test_batch_submits_once_and_survives_a_restart(cache):
    kwargs = dict(cache=cache, batch=True, poll=.01, price_in=10, price_out=10)
    with Server(echo=True, batch_after=10**9) as server:
        first = teacher(server, **kwargs)
        def stop(_): raise KeyboardInterrupt
        first._await_batch = stop
        with pytest.raises(KeyboardInterrupt): first.ask(prompts(50), 'labeling')
        assert len(server.batches) == 1 and len(server.log) == 1
        server.batch_after = 3
        second = teacher(server, **kwargs)
        assert [o.text for o in second.ask(prompts(60), 'labeling')] == texts(60) # ten more than before
        assert len(server.batches) == 2 and max(Counter(asked(server)).values()) == 1
        assert second.usage['labeling'].requests == 59 and second.usage['labeling'].cached == 1
        direct = (4 + 3 + 8)*1e-5
        assert abs(second.usage['labeling'].cost - direct*(1 + 58/2)) < 1e-9 # one was asked directly, batches cost half
        assert [o.text for o in teacher(server, **kwargs).ask(prompts(60), 'labeling')] == texts(60) and len(server.log) == 60


def test_a_batch_that_was_submitted_just_before_a_kill_is_found(cache):
    kwargs = dict(cache=cache, batch=True, poll=.01)
    with Server(echo=True) as server:
        t, execute = teacher(server, **kwargs), None
        execute = t.cache.execute
        def killed(sql, values=()):
            if sql.startswith('update batches'): raise KeyboardInterrupt
            return execute(sql, values)
        t.cache.execute = killed
        with pytest.raises(KeyboardInterrupt): t.ask(prompts(20), 'labeling')
        assert len(server.batches) == 1
        assert [o.text for o in teacher(server, **kwargs).ask(prompts(20), 'labeling')] == texts(20) and len(server.batches) == 1


def test_what_a_batch_leaves_out_is_asked_directly(cache):
    with Server(echo=True, plan=['ok', '500', 'cut', '500']) as server:
        replies = teacher(server, cache=cache, batch=True, poll=.01).ask(prompts(20), 'labeling')
        assert Counter(o.kind for o in replies) == dict(ok=19, cut=1) and len(server.batches) == 1 and len(server.log) == 22


# Keys

def test_no_key_anywhere(cache, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    record, errors = tmp_path/'record.jsonl', []
    with Server(echo=True, key='another', faults={'500': .1}) as server:
        for key in SECRET, 'sk-proj-abcdefghijklmnop': # the server's message repeats the key
            with pytest.raises(TeacherError, match='401') as e: teacher(server, api_key=key, cache=cache).ask(prompts(3), 'labeling')
            errors.append(''.join(traceback.format_exception(e.value)))
        server.key = SECRET
        t = teacher(server, cache=cache, record=record, progress=True)
        t.ask(prompts(30), 'labeling')
        said = [repr(t), repr(t.endpoint), t.name, json.dumps(t.describe()), str(t.usage), *errors, *capfd.readouterr(), caplog.text]
        cache_export(cache, tmp_path/'export.jsonl')
        t.close()
        assert len(read_jsonl(record)) == 30
        for secret in SECRET, 'sk-proj-abcdefghijklmnop':
            assert not any(secret in o for o in said)
            for path in tmp_path.iterdir(): assert secret.encode() not in path.read_bytes(), path


def test_a_missing_key_is_said(monkeypatch):
    for name in 'OPENAI_API_KEY', 'OPENAI_BASE_URL': monkeypatch.delenv(name, raising=False)
    with pytest.raises(TeacherError, match='OPENAI_API_KEY'): Teacher('gpt-4o-mini')
    with Server(echo=True) as server: assert Teacher('m', server.url, progress=False).ask(['x'], 'labeling')[0].kind == 'ok'
    monkeypatch.setenv('OPENAI_API_KEY', SECRET)
    assert SECRET not in repr(vars(Teacher('gpt-4o-mini'))) and Teacher('gpt-4o-mini').name == 'gpt-4o-mini'


# Recordings over HTTP

def test_the_server_answers_from_the_recordings():
    from llm_distill.prompts import load_prompt, recordings
    seed = load_prompt(recordings/'apartments.toml')
    task = read_jsonl(recordings/'apartments.jsonl')[5]
    with Server() as server:
        over_http, inside = teacher(server), recorded_teacher()
        for stage, sample, i in ('labeling', 0, 0), ('evaluation', 1, 1):
            a, b = (t.ask([seed.render(task['task'])], stage, sample=sample)[0].text for t in (over_http, inside))
            assert a == b == task['completions'][i]
        assert teacher(server).ask([f'{seed.question}\nWrite questions 3 to 5.'], 'synthesis')[0].text == json.dumps(
            dict(questions=[o['task'] for o in read_jsonl(recordings/'apartments.jsonl')][2:5]), ensure_ascii=False)
        with pytest.raises(TeacherError, match='404.*Who are you'): teacher(server).ask(['Q: Who are you?\nA:'], 'labeling')


def test_lines_without_a_terminal(capfd, monkeypatch):
    from llm_distill import teacher as module
    every = module._Progress.__init__.__defaults__
    monkeypatch.setattr(module._Progress.__init__, '__defaults__', (0.,))
    with Server(echo=True, latency=.15) as server:
        teacher(server, progress=True, concurrency=4, price_in=1, price_out=1).ask(prompts(12), 'labeling', desc='asking')
    assert every == (5.,)
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith('asking: 12/12 done, 0 cached, 0 failed,') and 'tokens, $' in last and last.endswith('s left')


def test_a_resume_with_only_a_bad_prompt_left_ends_as_the_first_run_did(tmp_path):
    cache = tmp_path/'c.sqlite'
    for _ in range(2):
        with Server(echo=True, plan=['ok', '400'] if not cache.exists() else ['400']) as server:
            replies = Teacher('m', 'http://127.0.0.1:9/v1', cache=cache, progress=False)
            replies.endpoint.base_url = server.url # the same endpoint, as the cache sees it, in every round
            kinds = [r.kind for r in replies.ask(['good', 'bad'], 'labeling')]
        assert kinds == ['ok', 'failed']


def test_half_a_surrogate_pair_is_kept_as_a_question_mark(tmp_path):
    with Server(echo=True) as server:
        answer = server.answer
        server.answer = lambda body, headers: (200, {**answer(body, headers)[1], 'choices': [dict(index=0, finish_reason='stop', message=dict(role='assistant', content='so \ud83d'))]})
        for _ in range(2): assert Teacher('m', server.url, cache=tmp_path/'c', progress=False).ask(['x'], 'labeling')[0].text == 'so ?'
        assert len(server.log) == 1


def test_headers_do_not_lift_the_users_own_limit():
    from llm_distill.teacher import Pacer
    pacer, now = Pacer(32, rpm=60), 0.
    sent = []
    while now < 20:
        now += pacer.wait(now) + .01
        pacer.sent(now)
        sent.append(now)
        pacer.told(now, {'x-ratelimit-remaining-requests': '9999', 'x-ratelimit-reset-requests': '6ms'}, 1)
    assert 18 <= len(sent) <= 21


def test_a_password_in_the_address_is_not_repeated():
    with Server(plan=['401']) as server:
        teacher = Teacher('m', server.url.replace('//', '//me:hunter2@'), progress=False)
        with pytest.raises(TeacherError) as e: teacher.ask(['x'], 'labeling')
    assert 'hunter2' not in str(e.value) + repr(teacher) + repr(teacher.endpoint)


def test_an_unfinished_iterator_does_not_hold_the_process(tmp_path):
    with Server(echo=True, latency=.2) as server:
        code = f'from llm_distill.teacher import Teacher; it = Teacher("m", {server.url!r}, progress=False).ask_iter([str(i) for i in range(50)], "labeling"); print(next(it).text)'
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith('echo of 0')


def test_an_endpoint_that_does_not_count_still_uses_up_the_budget():
    with Server(echo=True) as server:
        answer = server.answer
        server.answer = lambda body, headers: (200, {k: v for k, v in answer(body, headers)[1].items() if k != 'usage'})
        teacher = Teacher('m', server.url, budget=.02, price_in=100, price_out=100, concurrency=1, progress=False)
        with pytest.raises(TeacherError, match='budget'): teacher.ask([f'prompt {i}' for i in range(100)], 'labeling', max_tokens=16)
        assert 0 < teacher.usage['labeling'].cost <= .02


def test_a_text_that_was_broken_off_is_no_answer():
    from llm_distill.teacher import read_reply
    body = dict(choices=[dict(index=0, message=dict(content='Find the'), finish_reason='error')])
    assert read_reply(body)[1:] == ('cut', "broken off; finish_reason is 'error'")


def test_a_prompt_that_the_endpoint_refuses_to_read_is_kept_as_filtered(tmp_path):
    from server import error
    with Server(echo=True) as server:
        server.answer = lambda body, headers: (400, json.loads(error('The prompt was filtered.', code='content_filter')))
        for _ in range(2):
            reply, = Teacher('m', server.url, cache=tmp_path/'c', progress=False).ask(['something bad'], 'labeling')
            assert (reply.kind, reply.text) == ('filtered', None) and 'was filtered' in reply.reason
        assert len(server.log) == 1
