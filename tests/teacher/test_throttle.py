"Rate limits: simulated and real ones, limits of the user, and what the retry policy does."
import math, random
from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st

from llm_distill.core.core import TeacherError
from llm_distill.teacher.throttle import RetryPolicy, Throttle, parse_duration, retry_rules
from server import Server, connect, echoes, prompts


class Clock:
    now = 0.
    def __call__(self): return self.now


@pytest.mark.parametrize('headers', [True, False])
def test_a_limiter_loses_nothing(headers):
    with Server(echo=True, rpm=1200, bucket=5, headers=headers) as server:
        t = connect(server, backoff=.1, concurrency=16)
        replies = t.ask(prompts(40), 'labeling')
        assert [(o.text, o.kind) for o in replies] == [(o, 'ok') for o in echoes(40)]
        assert server.outcomes()['ok'] == 40 and set(server.outcomes()) <= {'ok', '429'}


# with 8 + 92 tokens each, both are 20 requests per second
@pytest.mark.parametrize('limits', [dict(rpm=1200), dict(tpm=20*60*100)])
def test_limits_of_the_user_are_kept(limits):
    times, sent_at = [], []
    with Server(echo=True) as server:
        teacher = connect(server, **limits)
        throttle, clock, on_sent = teacher.throttle, teacher.throttle.clock, teacher.throttle.on_sent

        def noting_clock():
            times.append(clock())
            return times[-1]

        def noting_on_sent(tokens):
            on_sent(tokens)
            sent_at.append(times[-1]) # the only time that `on_sent` reads
        throttle.clock, throttle.on_sent = noting_clock, noting_on_sent
        teacher.ask([f'{i:016}' for i in range(40)], 'labeling', max_tokens=92)
    assert len(sent_at) == 40
    for first in range(40): # nowhere more than the limit and a tenth of a second in advance
        for last in range(first, 40): assert last - first <= 20*(sent_at[last] - sent_at[first] + .1) + 1e-6


def test_headers_do_not_lift_the_users_own_limit():
    clock, n_sent = Clock(), 0
    throttle = Throttle(32, rpm=60, clock=clock)
    while clock.now < 20:
        clock.now += max(throttle.delay(), 0) + .01
        throttle.on_sent()
        n_sent += 1
        throttle.update_from_headers({'x-ratelimit-remaining-requests': '9999', 'x-ratelimit-reset-requests': '6ms'}, 1)
    assert 18 <= n_sent <= 21


def test_headers_do_not_lift_a_rate_that_a_429_has_shown():
    clock = Clock()
    throttle = Throttle(32, clock=clock)
    for clock.now in range(10): throttle.on_sent(), throttle.on_reply()
    throttle.on_rate_limited(9, 1.)
    clock.now = 20.
    throttle.on_sent()
    throttle.update_from_headers({'x-ratelimit-remaining-requests': '9999', 'x-ratelimit-reset-requests': '6ms'}, 1)
    assert throttle.delay() > .9


def test_the_ceiling_is_kept_and_falls_after_429():
    with Server(echo=True, latency=.02) as server:
        t = connect(server, concurrency=7)
        t.ask(prompts(60), 'labeling')
        assert server.peak == 7 and t.throttle.concurrency == 7
        server.faults = {'429': 1}
        with pytest.raises(TeacherError): connect(server, max_consecutive_failures=3).ask(prompts(60), 'labeling')
        assert len(server.log) == 63, 'refused requests went out in more than one at a time'


def test_a_503_without_retry_after_does_not_slow_down():
    with Server(echo=True, faults={'503': .2}) as server:
        t = connect(server, max_retries=20)
        assert [o.text for o in t.ask(prompts(100), 'labeling')] == echoes(100)
        assert t.throttle.rate is None and t.throttle.slowed_at == -math.inf and server.outcomes()['503'] > 5


def test_a_503_with_retry_after_is_a_rate_limit():
    with Server(echo=True, plan=['ok']*3 + ['503'], retry_after='0.05') as server:
        t = connect(server)
        assert [o.text for o in t.ask(prompts(20), 'labeling')] == echoes(20)
        assert t.throttle.rate and t.throttle.slowed_at > 0


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(['ok', '429', '500', 'wait', 'header']), max_size=200), st.integers(0, 2**16))
def test_no_sequence_of_events_breaks_the_throttle(events, seed):
    clock, rng = Clock(), random.Random(seed)
    throttle = Throttle(8, rpm=rng.choice([None, 600]), tpm=rng.choice([None, 6000]), clock=clock)
    for event in events:
        sent_at = clock.now - rng.random()
        match event:
            case 'ok': throttle.on_reply()
            case '429': throttle.on_rate_limited(sent_at, rng.choice([0, .01, 5]), rng.random() < .5)
            case '500': throttle.on_failure(sent_at)
            case 'wait': clock.now += max(throttle.delay(), rng.random())
            case 'header': throttle.update_from_headers({'x-ratelimit-remaining-requests': str(rng.randint(0, 20)),
                                                         'x-ratelimit-reset-requests': f'{rng.randint(0, 60)}s'}, 3)
        if throttle.delay() <= 0: throttle.on_sent(10)
        assert 1 <= throttle.concurrency <= 8 and throttle.gap >= 0 and throttle.delay() < math.inf
        assert throttle.rate is None or throttle.rate > 0


# Waiting

@pytest.mark.parametrize('header', ['0.05', 'date', '1'])
def test_retry_after_is_obeyed(header):
    with Server(echo=True, plan=['429'], retry_after=header) as server:
        teacher = connect(server, backoff=1000, max_wait=100) # without the header it would wait for long
        assert teacher.ask(['x'], 'labeling')[0].kind == 'ok'
        if header == '1': assert server.log[1]['at'] - server.log[0]['at'] >= .99


def test_a_wait_that_is_too_long_is_an_error():
    with Server(echo=True, plan=['429'], retry_after=3600) as server:
        with pytest.raises(TeacherError, match='Retry-After is 3600 s, more than max_wait=600'):
            connect(server).ask(prompts(5), 'labeling')
        assert len(server.log) == 1


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(alphabet='0123456789.msh d-:TZ,Sun', max_size=12) | st.text(max_size=8))
def test_any_header_is_a_duration_or_none(text):
    seconds = parse_duration(text)
    assert seconds is None or seconds >= 0


# The policy

def test_every_kind_of_error_has_a_rule_and_every_limit_a_number():
    kinds = {'transient', 'rate_limited', 'unsupported_parameter', 'bad_request', 'filtered', 'fatal'}
    actions = {'', 'retry', 'resend', 'keep', 'give up', 'stop'}
    assert set(retry_rules) == kinds
    for rule in retry_rules.values():
        assert {rule.action, rule.beyond, rule.before_any_reply} <= actions
        assert not rule.limit or isinstance(getattr(RetryPolicy(), rule.limit), int)


def test_the_delay_doubles_with_each_error_and_has_a_ceiling():
    policy = RetryPolicy(backoff=1.)
    for n in range(1, 12):
        delay = policy.delay(Counter(transient=n))
        assert min(2**n, 60)/2 <= delay <= min(2**n, 60)
    assert policy.delay(Counter(rate_limited=100)) <= 32
