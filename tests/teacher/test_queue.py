"Faults, retries, and what ends a run. All is read from the server's log and the cache, not from the clock."
import json, logging
from collections import Counter

import pytest

from llm_distill.core.core import TeacherError
from server import Server, cached_prompts, connect, echoes, prompts, received


@pytest.fixture
def cache(tmp_path): return tmp_path/'teacher.sqlite'


# Faults

def test_every_kind_of_fault_over_500_prompts(cache, caplog):
    caplog.set_level(logging.DEBUG, 'llm_distill.teacher')
    faults = {'429': .2, '500': .1, 'drop': .05, 'hang': .05, 'truncated': .03, 'empty': .03, 'garbage': .03}
    with Server(echo=True, faults=faults) as server:
        t = connect(server, cache=cache, timeout=.5, max_retries=12)
        replies = t.ask(prompts(500), 'labeling')
        n = len(server.log)
        failed = {p for p, o in zip(prompts(500), replies) if o.kind == 'failed'}
        assert {k for k, v in server.outcomes().items() if v} == {'ok', *faults}
        for reply, echo in zip(replies, echoes(500)): assert reply.text == (echo if reply.kind == 'ok' else None)
        unusable = [o for o in replies if o.kind != 'ok']
        assert all(o.reason and o.kind in ('truncated', 'empty', 'failed') for o in unusable)
        answered = Counter(p for kind in ('ok', 'truncated', 'empty') for p in received(server, kind))
        # on a busy machine some replies come after the timeout
        late = caplog.text.count('no reply within') - server.outcomes()['hang']
        assert set(answered) == set(prompts(500)) - failed
        assert sum(answered.values()) - len(answered) <= late, 'a reply that had arrived was asked for again'
        assert cached_prompts(cache) == set(prompts(500)) - failed
        t.ask(prompts(500), 'labeling')
        assert len(server.log) == n + len(failed), 'what is in the cache was asked again'
        server.faults = {}
        assert [o.text for o in t.ask(prompts(500), 'labeling', refresh=True)] == echoes(500)
        assert t.usage['labeling'].failed <= 5


@pytest.mark.parametrize('plan', [
    ['429'], ['503'], ['500'], ['drop'], ['hang'], ['garbage'], ['500', 'drop', '429', 'garbage']])
def test_a_passing_fault_is_tried_again(plan):
    with Server(echo=True, plan=plan) as server:
        reply, = connect(server, timeout=.5).ask(['x'], 'labeling')
        assert reply.text == 'echo of x' and [o['outcome'] for o in server.log] == [*plan, 'ok']


def test_a_prompt_that_always_fails_leaves_the_others_alone():
    with Server(echo=True) as server:
        unlucky = dict(error=dict(message='bad luck'))
        server.answer = lambda body, headers: (
            (500, unlucky) if 'prompt 00007' in str(body) else Server.answer(server, body, headers))
        replies = connect(server, max_retries=2).ask(prompts(30), 'labeling')
        assert [o.kind for o in replies] == ['ok']*7 + ['failed'] + ['ok']*22
        assert 'bad luck' in replies[7].reason and received(server).count('prompt 00007') == 3


def test_a_429_does_not_count_as_a_retry():
    with Server(echo=True, plan=['ok'] + ['429']*3, retry_after='0.01') as server:
        replies = connect(server, max_retries=0, concurrency=1).ask(prompts(2), 'labeling')
        assert [o.text for o in replies] == echoes(2) and server.outcomes() == {'ok': 2, '429': 3}


# What ends a run

@pytest.mark.parametrize('status', ['400', '401', '403', '404'])
def test_a_mistake_costs_one_request(status):
    with Server(echo=True, faults={status: 1}) as server:
        with pytest.raises(TeacherError, match=f'{status}: a planned {status}') as e:
            connect(server).ask(prompts(100), 'labeling')
        assert len(server.log) == 1 and '\n' not in str(e.value)


def test_one_rejected_prompt_does_not_end_the_run_of_the_others():
    with Server(echo=True, plan=['ok', 'ok', '400']) as server:
        kinds = Counter(o.kind for o in connect(server).ask(prompts(50), 'labeling'))
        assert kinds == dict(ok=49, failed=1) and len(server.log) == 50


def test_the_run_stops_when_nothing_succeeds(cache):
    with Server(echo=True, plan=['ok']*30, faults={'500': 1}) as server:
        with pytest.raises(TeacherError, match='giving up after 8 consecutive failures.*planned 500.*rerun to resume'):
            connect(server, cache=cache, max_consecutive_failures=8, max_retries=100).ask(prompts(100), 'labeling')
        assert server.outcomes()['500'] < 200
    with pytest.raises(TeacherError, match='giving up after 5 consecutive failures.*connection failed'):
        connect('http://127.0.0.1:9/v1').ask(prompts(10), 'labeling')


def test_failures_stop_the_run_even_without_retries():
    with Server(echo=True, plan=['ok'], faults={'500': 1}) as server:
        with pytest.raises(TeacherError, match='giving up after 6 consecutive failures'):
            connect(server, max_consecutive_failures=6, max_retries=0, concurrency=1).ask(prompts(50), 'labeling')
        assert server.outcomes() == {'ok': 1, '500': 6}


def test_spent_quota_is_not_waited_for():
    with Server(echo=True) as server:
        detail = dict(message='You exceeded your current quota', code='insufficient_quota', type='insufficient_quota')
        server.answer = lambda body, headers: (429, dict(error=detail | dict(param=None)))
        with pytest.raises(TeacherError, match='exceeded your current quota'):
            connect(server).ask(prompts(10), 'labeling')
        assert len(server.log) == 1


def test_a_cache_that_cannot_be_written_stops_the_run(cache):
    import sqlite3
    with Server(echo=True) as server:
        t = connect(server, cache=cache)
        def fail(*args): raise sqlite3.OperationalError('database or disk is full')
        t.cache.put = fail
        with pytest.raises(TeacherError, match='cannot write to the cache .*disk is full'):
            t.ask(prompts(20), 'labeling')
        assert len(server.log) == 1


def test_an_unexpected_error_stops_the_run_with_one_line():
    with Server(echo=True) as server:
        t = connect(server)
        async def fail(*args): raise ZeroDivisionError('first line\nsecond')
        t.endpoint.post = fail
        with pytest.raises(TeacherError, match='asking failed: ZeroDivisionError: first line second'):
            t.ask(prompts(20), 'labeling')


def test_a_stopped_call_does_not_stop_the_next_one():
    with Server(echo=True, plan=['401']) as server:
        t = connect(server)
        with pytest.raises(TeacherError): t.ask(prompts(5), 'labeling')
        assert [o.text for o in t.ask(prompts(5), 'labeling')] == echoes(5)


# What is asked

def test_which_requests_are_made_does_not_depend_on_the_order_of_replies():
    bodies = []
    for seed in 1, 2:
        with Server(echo=True, faults={'500': .2, 'drop': .1}, seed=seed, latency=.002*seed) as server:
            connect(server, max_retries=50).ask(prompts(120), 'labeling')
            bodies.append({json.dumps([o['prompt'], o['body'], o['stage'], o['sample']]) for o in server.log})
    assert bodies[0] == bodies[1]
