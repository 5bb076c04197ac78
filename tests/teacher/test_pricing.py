"Prices, plans, and a budget that is never exceeded."
import random, sys

import pytest

from llm_distill.core.core import DistillError, TeacherError
from llm_distill.teacher.pricing import Account, Plan, default_model, estimate_plan, token_rates
from llm_distill.teacher.teacher import Teacher
from server import Server, cached_prompts, connect, echoes, prompts, wait_for


def test_the_default_teacher_has_a_price_so_that_a_budget_works():
    assert all(rate > 0 for rate in token_rates(default_model))
    assert Teacher(default_model, api_key='k', budget=1.).rates == token_rates(default_model)


@pytest.mark.parametrize('name', [
    'gpt-4o-mini', 'gpt-4o-mini-2024-07-18', 'openai/gpt-4o-mini', 'gpt-4o-mini-2031-01-01'])
def test_names_of_one_model(name):
    assert token_rates(name) == token_rates('gpt-4o-mini') == (.15/1e6, .6/1e6)


@pytest.mark.parametrize('name', ['my-own', 'm', '', '/', 'recorded', 'llama-3.1-8b-instruct', 'x/y/z', '2024-07-18'])
def test_unknown_models_have_no_price(name):
    assert token_rates(name) is None


def test_prices_that_are_passed_come_before_the_list():
    assert token_rates('gpt-4o', 1, 2) == token_rates('my-own', 1, 2) == (1e-6, 2e-6)
    assert token_rates('gpt-4o', price_in=1) == (1e-6, token_rates('gpt-4o')[1])
    assert token_rates('my-own', 0, 0) == (0, 0)


@pytest.mark.parametrize('price, missing', [(dict(price_in=1), 'price_out'), (dict(price_out=1), 'price_in')])
def test_one_price_of_an_unknown_model_is_an_error_and_not_free(price, missing):
    with pytest.raises(DistillError, match=f"{missing} is missing.*'my-own'.*pass price_in and price_out"):
        Teacher('my-own', 'http://localhost/v1', **price)


def test_the_base_tier_counts():
    "Claude Sonnet 4.5 costs twice as much for prompts of more than 200,000 tokens."
    assert token_rates('claude-sonnet-4-5') == (3/1e6, 15/1e6)


def test_an_endpoint_may_have_its_own_price():
    urls = None, 'http://localhost:8000/v1', 'https://api.groq.com/openai/v1', 'https://openrouter.ai/api/v1'
    by_name, local, groq, router = (token_rates('openai/gpt-oss-120b', base_url=url) for url in urls)
    assert local == by_name and groq and router and groq != router


def test_prices_are_looked_up_without_the_network(monkeypatch):
    import socket
    def refuse(*args, **kwargs): raise AssertionError('the network was used')
    monkeypatch.setattr(socket.socket, 'connect', refuse)
    assert token_rates('gpt-4o') and token_rates('unheard-of', base_url='https://api.groq.com/openai/v1') is None


def test_plans_add_up():
    a, b = estimate_plan(10, 1000, 500, (1e-6, 2e-6), cached=3), estimate_plan(0, 0, 0, (1e-6, 2e-6))
    total = a + b
    assert (total.requests, total.cached, total.prompt_tokens, total.completion_tokens) == (10, 3, 1000, 500)
    assert abs(total.cost - .002) < 1e-12 and total.seconds == a.seconds and (a + Plan(cost=None)).cost is None


@pytest.mark.parametrize('budget', [.001, .01])
def test_a_budget_is_not_exceeded(tmp_path, budget):
    kwargs = dict(cache=tmp_path/'teacher.sqlite', price_in=10, price_out=10)
    with Server(echo=True) as server:
        t = connect(server, budget=budget, **kwargs)
        with pytest.raises(TeacherError, match=rf'budget of \${budget:g}.*\$0.*kept in.*higher budget'):
            t.ask(prompts(500), 'labeling', max_tokens=16)
        spent = t.usage['labeling']
        assert .6*budget < spent.cost <= budget
        assert len(cached_prompts(kwargs['cache'])) == spent.requests == len(server.log)
        replies = connect(server, budget=1, **kwargs).ask(prompts(500), 'labeling', max_tokens=16)
        assert [o.text for o in replies] == echoes(500)
        assert len(server.log) == 500


def test_a_budget_is_not_exceeded_by_prompts_that_are_longer_than_estimated():
    with Server(echo=True) as server:
        answer = server.answer

        def dense(body, headers):
            status, reply = answer(body, headers)
            reply['usage']['prompt_tokens'] *= 3
            return status, reply
        server.answer = dense
        t = connect(server, budget=.05, price_in=100, price_out=100, concurrency=1)
        with pytest.raises(TeacherError, match='budget'): t.ask(prompts(100), 'labeling', max_tokens=8)
        assert .025 < t.usage['labeling'].cost <= .05 and t.account.tokens_per_estimate > 1.5


def test_an_endpoint_that_does_not_count_still_uses_up_the_budget():
    with Server(echo=True) as server:
        answer = server.answer
        server.answer = lambda body, headers: (
            200, {k: v for k, v in answer(body, headers)[1].items() if k != 'usage'})
        teacher = Teacher('m', server.url, budget=.02, price_in=100, price_out=100, concurrency=1, progress=False)
        with pytest.raises(TeacherError, match='budget'):
            teacher.ask([f'prompt {i}' for i in range(100)], 'labeling', max_tokens=16)
        assert 0 < teacher.usage['labeling'].cost <= .02


def test_nothing_is_reserved_once_all_replies_are_there():
    with Server(echo=True, faults={'500': .2, '429': .1}) as server:
        t = connect(server, budget=100, price_in=1, price_out=1, max_retries=50)
        t.ask(prompts(60), 'labeling')
        wait_for(lambda: abs(t.account.reserved) < 1e-9, 'the last request to be released')


def test_an_account_never_affords_more_than_its_budget():
    rng = random.Random(0)
    account, in_flight = Account((1e-3, 1e-3), budget=1.), []
    for _ in range(500):
        cost = account.bound(rng.randint(1, 50), rng.randint(1, 50))
        if account.affords(cost):
            in_flight.append(cost)
            account.reserved += cost
        if in_flight and rng.random() < .5:
            bound = in_flight.pop()
            account.reserved -= bound
            account.record('labeling', account.bill(int(rng.random()*bound*1000), 0))
        assert account.total.cost + account.reserved <= 1 + 1e-9


def test_importing_the_teacher_loads_neither_client_nor_prices():
    import subprocess
    code = ('import sys, llm_distill.teacher.teacher; '
            'print([m for m in ("openai", "genai_prices", "torch", "numpy", "aiohttp") if m in sys.modules])')
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout == '[]\n'
