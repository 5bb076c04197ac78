"Asking: order, threads, interrupts, samples, progress, and the names of parameters."
import asyncio, inspect, itertools, json, signal, subprocess, sys, threading

import pytest

from llm_distill.core.core import TeacherError
from llm_distill.teacher.stream import Progress
from llm_distill.teacher.teacher import Teacher, recorded_teacher
from server import SECRET, Server, cached_prompts, connect, echoes, prompts, wait_for


@pytest.fixture
def cache(tmp_path): return tmp_path/'teacher.sqlite'


# Interrupts

INTERRUPTED = '''
import os, sys
from llm_distill.teacher.teacher import Teacher
teacher = Teacher('test-model', {url!r}, api_key={key!r}, cache={cache!r}, progress=False, concurrency=8)
try: teacher.ask([f'prompt {{i:05}}' for i in range(200)], 'labeling')
except KeyboardInterrupt: sys.stdout.flush(), os._exit(130)
'''


@pytest.mark.parametrize('times', [1, 2])
def test_ctrl_c(cache, times):
    with Server(echo=True, latency=.05) as server:
        code = INTERRUPTED.format(url=server.url, key=SECRET, cache=str(cache))
        process = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.PIPE, text=True)
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
        assert cached_prompts(cache) == answered
        if times == 1:
            sent = {o['prompt'] for o in server.log}
            assert answered == sent and len(answered) < 200, 'requests in flight were dropped'


def test_a_run_that_the_caller_leaves_keeps_what_is_in_flight(cache):
    with Server(echo=True, latency=.02) as server:
        for i, reply in enumerate(connect(server, cache=cache, concurrency=8).ask_iter(prompts(500), 'labeling')):
            if i == 20: break
        del reply
        wait_for(lambda: len([o for o in server.log if 'answered' in o]) == len(server.log), 'replies')
        wait_for(lambda: cached_prompts(cache) == {o['prompt'] for o in server.log}, 'the cache')
        assert len(server.log) < 100


def test_an_unfinished_iterator_does_not_hold_the_process():
    with Server(echo=True, latency=.2) as server:
        code = ('from llm_distill.teacher.teacher import Teacher\n'
                f'it = Teacher("m", {server.url!r}, progress=False).ask_iter([str(i) for i in range(50)], "labeling")\n'
                'print(next(it).text)')
        process = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert process.returncode == 0 and process.stdout.startswith('echo of 0')


# What is asked

def test_the_same_prompt_twice_is_one_request():
    with Server(echo=True, latency=.01) as server:
        t = connect(server)
        assert [o.text for o in t.ask(['a', 'b', 'a', 'a'], 'labeling')] == [f'echo of {o}' for o in 'abaa']
        assert len(server.log) == 2 and t.usage['labeling'].cached == 2 and t.usage['labeling'].requests == 2


def test_copies_of_a_failed_prompt_fail_too_and_cost_nothing():
    with Server(echo=True, plan=['ok', '400']) as server:
        t = connect(server, concurrency=1)
        assert [o.kind for o in t.ask(['a', 'b', 'b'], 'labeling')] == ['ok', 'failed', 'failed']
        assert (t.usage['labeling'].failed, t.usage['labeling'].cached, len(server.log)) == (1, 0, 2)


def test_stages_samples_and_models_in_header_and_key(cache):
    with Server(echo=True) as server:
        t = connect(server, cache=cache)
        t.ask(['x'], 'labeling'), t.ask(['x'], 'evaluation'), t.ask(['x'], 'evaluation', sample=1)
        t.ask(['x'], 'labeling', temperature=.7)
        Teacher('other-model', server.url, progress=False, cache=cache).ask(['x'], 'labeling')
        log = [(o['stage'], o['sample'], o['body']['temperature'], o['body']['model']) for o in server.log]
        assert log == [('labeling', 0, 0, 'test-model'), ('evaluation', 1, 0, 'test-model'),
                       ('labeling', 0, .7, 'test-model'), ('labeling', 0, 0, 'other-model')]


def test_samples_are_independent_requests():
    with Server(echo=True) as server:
        rows = connect(server).samples(['x', 'y'], 'labeling', 3, max_tokens=7)
        assert [[o.text for o in row] for row in rows] == [['echo of x']*3, ['echo of y']*3]
        assert sorted((o['prompt'], o['sample']) for o in server.log) == sorted(itertools.product('xy', range(3)))
        assert all(o['body']['temperature'] == 1 and o['body']['max_tokens'] == 7 for o in server.log)


def test_inside_a_running_loop_and_from_threads():
    async def notebook(t): return t.ask(prompts(20), 'labeling')
    with Server(echo=True) as server:
        t = connect(server)
        assert [o.text for o in asyncio.run(notebook(t))] == echoes(20)
        replies = {}
        def ask(i): replies[i] = t.ask(prompts(30, 100*i), 'labeling')
        threads = [threading.Thread(target=ask, args=[i]) for i in range(4)]
        for th in threads: th.start()
        for th in threads: th.join()
        assert all([o.text for o in replies[i]] == echoes(30, 100*i) for i in range(4))


def test_prompts_are_read_as_needed():
    read = []
    def endless():
        for i in range(10**9):
            read.append(i)
            yield f'prompt {i:05}'
    with Server(echo=True) as server:
        replies = connect(server, concurrency=4).ask_iter(endless(), 'labeling')
        assert [next(replies).text for _ in range(300)] == echoes(300)
        assert len(read) < 1500
        replies.close()


def test_no_prompts_are_no_replies():
    teacher = recorded_teacher()
    assert teacher.ask([], 'labeling') == [] and teacher.ask(iter([]), 'labeling') == [] and teacher.usage == {}
    assert teacher.samples([], 'labeling', 3) == [] and teacher.plan([]).requests == 0


def test_an_error_in_the_callers_prompts_is_passed_on():
    def broken():
        yield from prompts(300)
        raise ZeroDivisionError
    with Server(echo=True) as server:
        with pytest.raises(ZeroDivisionError): connect(server).ask(broken(), 'labeling')


def test_a_plan_sends_nothing_and_knows_the_cache(cache):
    with Server(echo=True) as server:
        connect(server, cache=cache).ask(prompts(10), 'labeling', max_tokens=16)
        t = connect(server, cache=cache, price_in=1, price_out=2, rpm=60)
        plan = t.plan(prompts(30) + prompts(3), completion_tokens=50, max_tokens=16)
        assert (plan.requests, plan.cached, plan.completion_tokens) == (20, 13, 1000) and len(server.log) == 10
        assert plan.cost == pytest.approx((20*7 + 2*1000)/1e6) and plan.seconds == 20


# Parameters

def test_every_parameter_of_a_teacher_works_by_keyword(tmp_path):
    names = ['model', 'base_url', 'api_key', 'cache', 'concurrency', 'timeout', 'max_retries', 'rpm', 'tpm', 'budget',
             'price_in', 'price_out', 'progress', 'record', 'backoff', 'max_consecutive_failures', 'max_wait', 'batch',
             'poll_interval', 'app']
    assert set(inspect.signature(Teacher).parameters) == set(names)
    policy = dict(max_retries=1, backoff=2., max_consecutive_failures=3, max_wait=4.)
    t = Teacher(model='m', base_url='http://x/v1/', api_key='k', cache=tmp_path/'c', concurrency=5, timeout=6., rpm=7,
                tpm=8, budget=9., price_in=10, price_out=11, progress=False, record=tmp_path/'r', batch=True,
                poll_interval=12., app=None, **policy)
    assert {k: getattr(t.throttle.policy, k) for k in policy} == policy
    assert (t.throttle.max_concurrency, t.throttle.rpm, t.throttle.tpm, t.endpoint.timeout) == (5, 7, 8, 6.)
    assert (t.account.budget, t.rates, t.batches.poll_interval, t.base_url) == (9., (1e-5, 1.1e-5), 12., 'http://x/v1')
    with pytest.raises(TypeError): Teacher('m', 'http://x/v1', breaker=3)


def test_ask_shows_and_takes_the_parameters_of_a_request():
    sampling = {'temperature', 'max_tokens', 'stop', 'schema'}
    names = {'self', 'prompts', 'stage', 'sample', 'desc', 'refresh', *sampling}
    for method in Teacher.ask, Teacher.ask_iter: assert set(inspect.signature(method).parameters) == names
    assert sampling | {'n', 'refresh'} <= set(inspect.signature(Teacher.samples).parameters)
    assert 'sample' not in inspect.signature(Teacher.samples).parameters
    assert sampling <= set(inspect.signature(Teacher.plan).parameters)
    with pytest.raises(TypeError): recorded_teacher().ask(['x'], 'labeling', again=True)


def test_a_missing_key_is_an_error(monkeypatch):
    for name in 'OPENAI_API_KEY', 'OPENAI_BASE_URL': monkeypatch.delenv(name, raising=False)
    with pytest.raises(TeacherError, match='OPENAI_API_KEY'): Teacher('gpt-4o-mini')
    with Server(echo=True) as server:
        assert Teacher('m', server.url, progress=False).ask(['x'], 'labeling')[0].kind == 'ok'
    monkeypatch.setenv('OPENAI_API_KEY', SECRET)
    t = Teacher('gpt-4o-mini')
    assert SECRET not in repr(vars(t)) and t.name == 'gpt-4o-mini'
    monkeypatch.setenv('OPENAI_BASE_URL', 'http://localhost:8000/v1')
    assert Teacher('m').name == 'm at http://localhost:8000/v1'


def test_describe_has_what_a_run_records():
    t = Teacher('gpt-4o-mini', 'https://me:hunter2@example.com/v1', 'k', price_in=1, price_out=2)
    record = dict(model='gpt-4o-mini', endpoint='https://example.com/v1', dollars_per_million_tokens=[1., 2.])
    assert t.describe() == record
    assert Teacher('my-own', 'http://x/v1').describe()['dollars_per_million_tokens'] is None


def test_a_closed_teacher_may_be_closed_again(cache):
    with Server(echo=True) as server:
        t = connect(server, cache=cache)
        t.ask(['x'], 'labeling')
        for _ in range(2): t.close()


# Progress

def test_lines_without_a_terminal(capfd, monkeypatch):
    monkeypatch.setattr(Progress, 'every', 0.)
    with Server(echo=True, latency=.15) as server:
        t = connect(server, progress=True, concurrency=4, price_in=1, price_out=1)
        t.ask(prompts(12), 'labeling', desc='asking')
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith('asking: 12/12 done, 0 cached, 0 failed,')
    assert 'tokens, $' in last and last.endswith('s left')


def test_a_bar_in_a_terminal(capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    bar = Progress(10, 'asking', True)
    bar.bar.delay = 0
    bar.started_at = bar.shown_at = 0.
    from llm_distill.teacher.endpoint import Usage
    bar.update(Usage(requests=4, prompt_tokens=1500, cost=.25), n=4)
    bar.close()
    err = capfd.readouterr().err
    assert 'asking' in err and '4/10' in err and '0 cached, 0 failed, 1,500 tokens, $0.25' in err


def test_no_progress_is_shown_on_demand(capfd, monkeypatch):
    monkeypatch.setattr(Progress, 'every', 0.)
    recorded_teacher().plan(['x'])
    with Server(echo=True) as server: connect(server, progress=False).ask(prompts(12), 'labeling')
    assert capfd.readouterr().err == ''


def test_replies_are_json_free_of_surprises(cache):
    with Server(echo=True) as server:
        for _ in range(2):
            reply, = connect(server, cache=cache).ask(['tab\t "quotes" \u2028 \U0001f600 \x00'], 'labeling')
            assert reply.text == 'echo of tab\t "quotes" \u2028 \U0001f600 \x00'
        assert json.dumps(reply.text) and len(server.log) == 1
