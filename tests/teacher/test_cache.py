"The cache: kills, several processes, files of the older version, and embeddings."
import json, os, random, signal, sqlite3, subprocess, sys, threading, time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from llm_distill.core.core import DistillError, TeacherError, read_jsonl
from llm_distill.teacher.cache import ReplyCache, VectorStore, cache_clear, cache_export, cache_stats, request_key
from llm_distill.teacher.endpoint import Reply, Usage
from llm_distill.teacher.teacher import Teacher
from server import SECRET, Server, cached_prompts, connect, echoes, prompts, received, wait_for


@pytest.fixture
def cache(tmp_path): return tmp_path/'teacher.sqlite'


@pytest.mark.parametrize('plan, kind', [(['truncated'], 'truncated'), (['empty'], 'empty'), (['filter'], 'filtered')])
def test_an_unusable_reply_is_typed_kept_and_asked_again_on_demand(cache, plan, kind):
    with Server(echo=True, plan=plan) as server:
        first, = connect(server, cache=cache).ask(['x'], 'labeling')
        second, = connect(server, cache=cache).ask(['x'], 'labeling')
        assert first.kind == second.kind == kind and first.text is second.text is None and len(server.log) == 1
        third, = connect(server, cache=cache).ask(['x'], 'labeling', refresh=True)
        assert third.text == 'echo of x' and len(server.log) == 2
        assert [o['kind'] for o in cache_stats(cache)] == ['ok']


# Files of version 0.1

old_schema = '''create table replies (
    key text primary key, model text, stage text, sample integer, kind text, reason text, reply text,
    prompt_tokens integer, completion_tokens integer, cost real, created real, request text) without rowid;
create table batches (digest text primary key, endpoint text, batch text, created real, keys text)'''


@pytest.fixture
def old_cache(cache):
    "Write a cache as version 0.1 did, with replies of the kinds `ok` and `cut`."
    db = sqlite3.connect(cache)
    db.executescript(old_schema)
    for prompt, kind, text in ('full', 'ok', 'Paris'), ('half', 'cut', 'Par'):
        request = dict(model='m', messages=[dict(role='user', content=prompt)], temperature=0., max_tokens=512)
        key, reply = request_key('http://old/v1', request), json.dumps(dict(text=text))
        row = key, 'm', 'labeling', 0, kind, '', reply, 7, 3, .5, 1., json.dumps(request)
        db.execute(f'insert into replies values ({",".join("?"*12)})', row)
    db.commit()
    db.close()
    return cache


def test_a_cache_of_the_older_version_still_answers(old_cache, tmp_path):
    teacher = Teacher('m', 'http://old/v1', cache=old_cache, progress=False)
    full, half = teacher.ask(['full', 'half'], 'labeling')
    assert (full.text, full.kind) == ('Paris', 'ok')
    assert (half.text, half.kind, half.partial_text) == (None, 'truncated', 'Par')
    assert teacher.usage['labeling'] == Usage(cached=2)
    assert [(o['kind'], o['replies']) for o in cache_stats(old_cache)] == [('ok', 1), ('truncated', 1)]
    cache_export(old_cache, tmp_path/'r.jsonl')
    replayed = Teacher(f'recorded:{tmp_path}/r.jsonl', progress=False).ask(['full', 'half'], 'labeling')
    assert [reply.kind for reply in replayed] == ['ok', 'truncated'] and replayed[1].partial_text == 'Par'
    assert cache_clear(old_cache, kind='truncated') == 1 and cache_clear(old_cache) == 1


def test_keys_are_those_of_the_older_version():
    "Paid replies in caches depend on these digests."
    messages = [dict(role='user', content='Wie geht\u2019s? \U0001f600')]
    request = dict(model='gpt-4o', messages=messages, temperature=0., max_tokens=512, stop=['<END>'])
    assert request_key('https://api.openai.com/v1', request) == 'def28ce5c5a3e9e6aab4b89b33fbb251'
    assert request_key('https://api.openai.com/v1', request, 1) == '2f30d09c03499b06dbf61ee6c9b46d00'
    assert request_key('x', dict(model='\ud83d')) == '86352b6b2595a6c2b044c884c1916803'
    teacher = Teacher('gpt-4o', 'https://api.openai.com/v1/', 'k', progress=False)
    made = teacher.request(messages, stop='<END>')
    assert made == request and list(made) == list(request)
    assert list(teacher.request('x', schema=dict(a=1))) == ['model', 'messages', 'temperature', 'max_tokens', 'schema']


def test_cache_clear_combines_its_filters(cache):
    store = ReplyCache(cache)
    for i, (model, stage) in enumerate([('a', 'labeling'), ('a', 'evaluation'), ('b', 'labeling')]):
        store.put(Reply('x', 'ok', '', f'k{i}', Usage(1)), 'x', stage, 0, dict(model=model))
    assert cache_clear(cache, model='a', stage='labeling') == 1 and cache_clear(cache, kind='empty') == 0
    assert cache_clear(cache, stage='labeling') == 1 and list(store.get(['k0', 'k1', 'k2'])) == ['k1']


def test_many_keys_are_looked_up_at_once(cache):
    store = ReplyCache(cache)
    for i in range(1201): store.put(Reply(str(i), 'ok', '', f'k{i}', Usage(1)), str(i), 'labeling', 0, dict(model='m'))
    replies = store.get([f'k{i}' for i in range(3000)])
    assert [replies[f'k{i}'].text for i in range(1201)] == [str(i) for i in range(1201)] and len(replies) == 1201


def test_a_file_that_is_no_cache(tmp_path):
    (tmp_path/'text').write_text('not a database'*100)
    with pytest.raises(DistillError, match='cannot use .*text as a cache'): ReplyCache(tmp_path/'text')
    for action in cache_stats, cache_clear:
        with pytest.raises(DistillError, match='no cache at'): action(tmp_path/'nothing')


# Kills, several processes

CHILD = '''
import json, os, sys
import openai, aiohttp # before the fork, which makes it quick
from openai import DefaultAioHttpClient, AsyncOpenAI
AsyncOpenAI(api_key='x').chat
from llm_distill.teacher.teacher import Teacher
import genai_prices
def ask(first, n, concurrency):
    t = Teacher('test-model', {url!r}, api_key={key!r}, cache={cache!r}, progress=False, concurrency=concurrency)
    return [o.text for o in t.ask([f'prompt {{i:05}}' for i in range(first, first + n)], 'labeling')]
'''


def script(server, cache, body):
    return [sys.executable, '-c', CHILD.format(url=server.url, key=SECRET, cache=str(cache)) + body]


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
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        with subprocess.Popen(script(server, cache, forks), **pipes) as zygote:
            for _ in range(20):
                before = len(server.log)
                zygote.stdin.write('go\n'), zygote.stdin.flush()
                pid, goal = int(zygote.stdout.readline()), before + rng.randint(1, 25)
                wait_for(lambda: len(server.log) >= goal, 'requests')
                time.sleep(rng.random()*.01)
                os.kill(pid, signal.SIGKILL)
                assert zygote.stdout.readline() == 'over\n'
                time.sleep(.02) # what the server had still to write
                kept = cached_prompts(cache) if cache.exists() else set()
                restarts.append((len(server.log), kept))
                lost.append(len(set(received(server, 'ok')) - kept) - sum(lost))
            zygote.stdin.write('go\n'), zygote.stdin.flush()
            zygote.stdout.readline()
            assert json.loads(zygote.stdout.readline()) == echoes(600)
            zygote.stdin.close()
        for n, kept in restarts:
            assert kept.isdisjoint(received(server)[n:]), 'a reply that had arrived was asked for again'
        assert max(lost) <= 4, 'more replies were lost than requests were in flight'
        assert len(server.log) <= 600 + 20*4 and cached_prompts(cache) == set(prompts(600))


def test_two_processes_on_one_cache(cache):
    with Server(echo=True, latency=.005) as server:
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        both = [subprocess.Popen(script(server, cache, f'print(json.dumps(ask({first}, 600, 16)))'), **pipes)
                for first in (0, 300)]
        for process, first in zip(both, (0, 300)):
            out, err = process.communicate(timeout=100)
            assert process.returncode == 0, err
            assert 'locked' not in err and json.loads(out) == echoes(600, first)
        assert cached_prompts(cache) == set(prompts(900))


def test_401_in_the_middle_keeps_what_arrived(cache):
    with Server(echo=True, plan=['ok']*40 + ['401']) as server:
        with pytest.raises(TeacherError, match='401') as e:
            connect(server, cache=cache, concurrency=4).ask(prompts(200), 'labeling')
        assert cached_prompts(cache) == set(received(server, 'ok'))
        assert len(server.log) < 50 and str(cache) in str(e.value)
        assert [o.text for o in connect(server, cache=cache).ask(prompts(200), 'labeling')] == echoes(200)
        assert max(Counter(received(server, 'ok')).values()) == 1


def test_a_resume_with_only_a_bad_prompt_left_ends_as_the_first_run_did(cache):
    for _ in range(2):
        with Server(echo=True, plan=['ok', '400'] if not cache.exists() else ['400']) as server:
            teacher = Teacher('m', 'http://127.0.0.1:9/v1', cache=cache, progress=False)
            teacher.endpoint.base_url = server.url # the same endpoint, as the cache sees it, in every round
            assert [r.kind for r in teacher.ask(['good', 'bad'], 'labeling')] == ['ok', 'failed']


# Embeddings

def vectors(*texts): return {text: np.full(3, i, dtype='float32') for i, text in enumerate(texts)}


def test_vectors_are_kept_for_other_processes_and_apart_by_encoder(tmp_path):
    store = VectorStore(tmp_path/'sub'/'v.sqlite', 'one')
    store.put(vectors(*'abc'))
    assert sorted(VectorStore(store.path, 'one').get(list('abcd'))) == list('abc')
    assert VectorStore(store.path, 'two').get(list('abc')) == {}
    store.put({'b': np.zeros(3, dtype='float32')}) # the first is kept
    assert store.get(['b', 'b'])['b'].tolist() == [1, 1, 1]


def test_the_oldest_vectors_are_dropped(tmp_path):
    store = VectorStore(tmp_path/'v.sqlite', max_rows=100)
    for i in range(0, 300, 50): store.put(vectors(*map(str, range(i, i + 50))))
    assert sorted(map(int, store.get([str(i) for i in range(300)]))) == list(range(200, 300))


@pytest.mark.parametrize('broken', ['folder', 'text', 'unwritable'])
def test_a_vector_file_that_cannot_be_used_never_fails(tmp_path, broken, caplog):
    path = tmp_path/'v.sqlite'
    if broken == 'folder': path.mkdir()
    if broken == 'text': path.write_text('not a database'*100)
    if broken == 'unwritable': path = Path('/proc/nothing/v.sqlite')
    store = VectorStore(path)
    store.put(vectors('a'))
    assert store.get(['a']) == {} and 'cannot keep embeddings in' in caplog.text


def test_threads_share_a_vector_file(tmp_path):
    store, errors = VectorStore(tmp_path/'v.sqlite'), []

    def work(i):
        try:
            for j in range(10):
                store.put(vectors(f'{i} {j}'))
                assert f'{i} {j}' in store.get([f'{i} {j}'])
        except BaseException as e: errors.append(e)
    threads = [threading.Thread(target=work, args=[i]) for i in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert not errors and len(store.get([f'{i} {j}' for i in range(4) for j in range(10)])) == 40


def test_a_vector_file_of_the_older_version_is_read(tmp_path):
    import hashlib
    key = hashlib.blake2b('enc\0a'.encode(), digest_size=16).digest()
    with sqlite3.connect(tmp_path/'v.sqlite') as db:
        db.execute('create table vectors (key blob unique, vector blob)')
        db.execute('insert into vectors values (?, ?)', [key, np.ones(2, dtype='float32').tobytes()])
    assert VectorStore(tmp_path/'v.sqlite', 'enc').get(['a'])['a'].tolist() == [1, 1]


def test_a_part_of_a_cache_can_be_exported(tmp_path):
    cache = ReplyCache(tmp_path/'c.sqlite')
    replies = [('a', 'labeling', 'ok'), ('b', 'labeling', 'ok'), ('a', 'synthesis', 'ok'),
               ('a', 'labeling', 'truncated')]
    for i, (model, stage, kind) in enumerate(replies):
        reply = Reply('x' if kind == 'ok' else None, kind, '', f'k{i}', Usage(requests=1))
        cache.put(reply, 'x', stage, 0, dict(model=model, messages=[]))
    def export(**chosen): return cache_export(tmp_path/'c.sqlite', tmp_path/'out.jsonl', **chosen)
    assert (export(), export(model='a'), export(kind='empty')) == (4, 3, 0)
    assert export(model='a', stage='labeling', kind='ok') == 1
    export(stage='synthesis')
    assert [row['stage'] for row in read_jsonl(tmp_path/'out.jsonl')] == ['synthesis']
