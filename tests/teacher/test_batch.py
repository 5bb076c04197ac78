"The Batch API: nothing is submitted twice, and nothing is lost."
from collections import Counter

import pytest

from llm_distill.core.core import TeacherError
from server import Server, cached_prompts, connect, echoes, prompts, received


@pytest.fixture
def kwargs(tmp_path): return dict(cache=tmp_path/'teacher.sqlite', batch=True, poll_interval=.01)


def test_batch_submits_once_and_survives_a_restart(kwargs):
    kwargs |= dict(price_in=10, price_out=10)
    with Server(echo=True, batch_after=10**9) as server:
        first = connect(server, **kwargs)
        def stop(_): raise KeyboardInterrupt
        first.batches.wait = stop
        with pytest.raises(KeyboardInterrupt): first.ask(prompts(50), 'labeling')
        assert len(server.batches) == 1 and len(server.log) == 1
        server.batch_after = 3
        second = connect(server, **kwargs)
        assert [o.text for o in second.ask(prompts(60), 'labeling')] == echoes(60) # ten more than before
        assert len(server.batches) == 2 and max(Counter(received(server)).values()) == 1
        assert second.usage['labeling'].requests == 59 and second.usage['labeling'].cached == 1
        direct = (4 + 3 + 8)*1e-5
        # one was asked directly, batches cost half
        assert abs(second.usage['labeling'].cost - direct*(1 + 58/2)) < 1e-9
        assert [o.text for o in connect(server, **kwargs).ask(prompts(60), 'labeling')] == echoes(60)
        assert len(server.log) == 60


def test_a_batch_that_was_submitted_just_before_a_kill_is_found(kwargs):
    with Server(echo=True) as server:
        t = connect(server, **kwargs)
        execute = t.cache.execute
        def killed(sql, values=()):
            if sql.startswith('update batches'): raise KeyboardInterrupt
            return execute(sql, values)
        t.cache.execute = killed
        with pytest.raises(KeyboardInterrupt): t.ask(prompts(20), 'labeling')
        assert len(server.batches) == 1
        assert [o.text for o in connect(server, **kwargs).ask(prompts(20), 'labeling')] == echoes(20)
        assert len(server.batches) == 1


def test_what_a_batch_leaves_out_is_asked_directly(kwargs):
    with Server(echo=True, plan=['ok', '500', 'truncated', '500']) as server:
        replies = connect(server, **kwargs).ask(prompts(20), 'labeling')
        assert Counter(o.kind for o in replies) == dict(ok=19, truncated=1)
        assert len(server.batches) == 1 and len(server.log) == 22


def test_a_batch_is_paid_by_its_stage_and_shown_as_paid(kwargs):
    with Server(echo=True) as server:
        t = connect(server, **kwargs)
        replies = t.ask(prompts(20) + prompts(5), 'evaluation', sample=1)
        assert sum(o.usage.requests for o in replies) == 20 == t.usage['evaluation'].requests
        assert sum(o.usage.cached for o in replies) == 5 == t.usage['evaluation'].cached
        batch, = server.batches.values()
        assert batch['metadata']['stage'] == 'evaluation'


def test_refresh_sends_unusable_replies_again(kwargs):
    with Server(echo=True, plan=['ok', 'truncated', 'empty', 'truncated']) as server:
        assert Counter(o.kind for o in connect(server, **kwargs).ask(prompts(20), 'labeling')) == dict(
            ok=17, truncated=2, empty=1)
        replies = connect(server, **kwargs).ask(prompts(20), 'labeling', refresh=True)
        assert [o.text for o in replies] == echoes(20) and len(server.log) == 23 and len(server.batches) == 2


def test_a_mistake_costs_one_request_and_no_batch(kwargs):
    with Server(echo=True, key='right') as server:
        with pytest.raises(TeacherError, match='401'): connect(server, **kwargs).ask(prompts(20), 'labeling')
        assert len(server.log) == 1 and not server.batches


def test_a_batch_that_could_exceed_the_budget_is_not_submitted(kwargs):
    with Server(echo=True) as server:
        t = connect(server, budget=.01, price_in=100, price_out=100, **kwargs)
        message = r'a batch of 19 requests could cost .* budget of \$0.01.*nothing was submitted'
        with pytest.raises(TeacherError, match=message): t.ask(prompts(20), 'labeling', max_tokens=16)
        assert not server.batches and t.usage['labeling'].cost <= .01
        rich = connect(server, budget=10, price_in=100, price_out=100, **kwargs)
        assert [o.text for o in rich.ask(prompts(20), 'labeling', max_tokens=16)] == echoes(20)


def test_a_batch_without_a_single_reply_is_an_error_and_may_be_submitted_again(kwargs):
    with Server(echo=True, plan=['ok'] + ['500']*19) as server:
        with pytest.raises(TeacherError, match='batch batch-0 ended as completed without a reply: planned'):
            connect(server, **kwargs).ask(prompts(20), 'labeling')
        assert [o.text for o in connect(server, **kwargs).ask(prompts(20), 'labeling')] == echoes(20)
        assert len(server.batches) == 2


def test_large_batches_are_split(kwargs, tmp_path):
    with Server(echo=True) as server:
        t = connect(server, **kwargs)
        t.batches.max_requests = 8
        assert [o.text for o in t.ask(prompts(20), 'labeling')] == echoes(20) and len(server.batches) == 3
        assert cached_prompts(kwargs['cache']) == set(prompts(20))


def test_an_open_batch_is_reported_while_it_is_waited_for(kwargs, capfd):
    with Server(echo=True, batch_after=2) as server:
        connect(server, progress=True, **kwargs).ask(prompts(4), 'labeling')
    assert 'batch batch-0 is in_progress; it continues without this process' in capfd.readouterr().err


def test_batches_need_a_cache():
    with pytest.raises(TeacherError, match='batch=True needs a cache'): connect('http://x/v1', batch=True)


def test_an_endpoint_without_a_batch_api_is_an_error(kwargs):
    with Server(echo=True) as server:
        server._batch_api = lambda *args: (404, {}, b'{"error": {"message": "no such path"}}')
        with pytest.raises(TeacherError, match='Batch API: .*no such path'):
            connect(server, **kwargs).ask(prompts(5), 'labeling')
