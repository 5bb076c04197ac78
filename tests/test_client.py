"The article's client: the teacher at first, then the student, with one background process for each prompt."
import json, os, signal, subprocess, sys, time
from collections import Counter

import psutil
import pytest

from llm_distill.client import Client, is_alive, read_context
from llm_distill.core.core import DistillError, read_json, read_jsonl, recordings, write_json
from llm_distill.core.prompt import SeedPrompt
from llm_distill.core.prompt_files import load_prompt, parse_prompt
from server import Server

prompt = load_prompt(recordings/'apartments.toml')
context = prompt.render().rsplit('\nQ: ', 1)[0]
questions = [r['question'] for r in read_jsonl(recordings/'apartments.jsonl')]
seed_answer = 'Find apartments, list them.'
ended_early = 'failed: the process ended early; call again with finetune=True to resume'


def answer_more(server, *more):
    "Make the server answer questions that are not recorded, such as the seed question."
    for question in (prompt.question, *more): server.app.answers[question] = [f'{seed_answer}<END>']


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, 'it did not happen'
        time.sleep(0.01)


def test_client_begins_with_the_teacher_and_ends_with_the_student(tiny, tmp_path):
    with Server() as server:
        answer_more(server)
        client = Client('chat_gpt', tiny, base_url=server.url, home=tmp_path/'home', n=20, n_test=5, epochs=1)
        first = client.complete(f'Q: {prompt.question}', context, openai_key='sk-secret-key', finetune=True,
                                data_synthesis=True)
        assert first['completion'] == seed_answer and first['model'] == 'gpt-5.5'
        assert first['status'].startswith('distilling')
        assert client.wait(timeout=300) == 'ready'
        n_requests = len(server.log)
        later = client.complete(f'Q: {questions[100]}', context)
        assert later['model'] == tiny and later['status'] == 'ready' and isinstance(later['completion'], str)

        code = ('import sys, json; from llm_distill.client import Client\n'
                'client = Client("chat_gpt", sys.argv[1], base_url=sys.argv[2], home=sys.argv[3])\n'
                'print(json.dumps(client.complete(sys.argv[4], sys.argv[5])))')
        arguments = [tiny, server.url, str(tmp_path/'home'), f'Q: {questions[100]}', context]
        done = subprocess.run([sys.executable, '-c', code, *arguments], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == later
        assert len(server.log) == n_requests
    for file in (f for f in (tmp_path/'home').rglob('*') if f.is_file()):
        assert b'sk-secret-key' not in file.read_bytes(), file


def test_client_learns_from_the_questions_that_were_asked(tiny, tmp_path):
    with Server() as server:
        client = Client('big', tiny, base_url=server.url, home=tmp_path, n_test=3, epochs=1)
        for question in questions[:12]: client.complete(f'Q: {question}', context)
        client.complete(f'Q: {questions[0]}', context, finetune=True)
        assert client.wait(timeout=300) == 'ready'
        assert not any(r['stage'] == 'synthesis' for r in server.log)
    train = read_jsonl(client.folder(prompt)/'run'/'train.jsonl')
    assert len(train) == 12 - 1 - 3 # without the seed question, that of the last call, and the test set


def test_client_raises(tiny, tmp_path):
    with Server(key='right') as server:
        client = Client('big', tiny, base_url=server.url, home=tmp_path)
        with pytest.raises(DistillError, match='401') as e:
            client.complete('Q: Why?', context, openai_key='sk-wrong-key')
        assert 'sk-wrong-key' not in str(e.value)
    with Server() as server:
        client = Client('big', tiny, base_url=server.url, home=tmp_path/'2')
        with pytest.raises(DistillError, match='too few to train'):
            client.complete(f'Q: {questions[0]}', context, finetune=True)
        assert client.status(context) == 'none'


def test_client_reports_a_failed_distillation(tiny, tmp_path):
    with Server() as server:
        answer_more(server)
        client = Client('big', 'no/such-student', base_url=server.url, home=tmp_path, n=8, n_test=3)
        client.complete(f'Q: {prompt.question}', context, finetune=True, data_synthesis=True)
        with pytest.raises(DistillError, match='no/such-student'): client.wait(timeout=300)
        assert client.status().startswith('failed')
        assert not any(r['stage'] == 'synthesis' for r in server.log), 'nothing is paid for'


def test_client_resumes_a_job_that_was_killed(tiny, tmp_path):
    with Server(latency=0.1) as server:
        answer_more(server, 'Any others?')
        client, twin = (Client('big', tiny, base_url=server.url, home=tmp_path, n=60, n_test=6, epochs=1) for _ in 'ab')
        client.complete(f'Q: {prompt.question}', context, finetune=True, data_synthesis=True)
        second = twin.complete('Q: Any others?', context, finetune=True, data_synthesis=True)
        assert second['status'].startswith('distilling')
        assert twin.process is None # there is one job, not two
        wait_for(lambda: sum(r['stage'] == 'labeling' for r in list(server.log)) > 10)
        os.kill(client.process.pid, signal.SIGKILL)
        wait_for(lambda: not is_alive(client.last_folder)) # a zombie until its parent asks for it
        assert twin.status(context) == client.status() == ended_early
        client.process.wait()
        assert twin.status(context) == client.status() == ended_early

        again = twin.complete('Q: Any others?', context, finetune=True, data_synthesis=True)
        assert again['status'].startswith('distilling')
        assert twin.wait(timeout=300) == 'ready'
        times = Counter((r['prompt'], r['stage']) for r in server.log if 'answered' in r)
        assert sum(n - 1 for n in times.values()) <= 32 # those in flight
        assert not any(n > 1 for (_, stage), n in times.items() if stage == 'synthesis')
    assert read_json(client.last_folder/'job.json')['prompt']['question'] == prompt.question


starter = '''
import sys, time
from pathlib import Path
from llm_distill.client import Client
client = Client('big', sys.argv[1], base_url=sys.argv[2], home=sys.argv[3], n=8, n_test=3, epochs=1)
print('ready', flush=True)
sys.stdin.readline()
client.complete(sys.argv[4], sys.argv[5], finetune=True, data_synthesis=True)
print(client.process.pid if client.process else 0, flush=True)
if client.process: client.process.wait()
'''


def test_two_processes_that_start_at_once_start_one_job(tiny, tmp_path):
    with Server(latency=0.05) as server:
        answer_more(server)
        arguments = [tiny, server.url, str(tmp_path), f'Q: {prompt.question}', context]
        processes = [subprocess.Popen([sys.executable, '-c', starter, *arguments], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
        for process in processes: assert process.stdout.readline() == 'ready\n'
        for process in processes:
            process.stdin.write('\n')
            process.stdin.flush()
        results = [process.communicate(timeout=300) for process in processes]
        assert [process.returncode for process in processes] == [0]*3, results
        client = Client('big', tiny, base_url=server.url, home=tmp_path)
        assert client.wait(context, timeout=300) == 'ready'
    started = [int(out) for out, _ in results if int(out)]
    assert started == [read_json(client.folder(prompt)/'process.json')['pid']]


def test_another_process_with_the_same_id_is_not_the_job(tmp_path):
    client = Client('big', 'no-student', base_url='http://127.0.0.1:9/v1', home=tmp_path)
    folder = client.folder(prompt)
    write_json(folder/'job.json', {})
    for pid in os.getpid(), 2**22 + 1:
        write_json(folder/'process.json', dict(pid=pid))
        assert not is_alive(folder) and client.status(context) == ended_early


def test_the_key_is_neither_in_the_arguments_nor_in_files(tiny, tmp_path):
    with Server(latency=0.2, key='sk-the-key') as server:
        answer_more(server)
        client = Client('big', tiny, base_url=server.url, home=tmp_path, n=20, n_test=3)
        client.complete(f'Q: {prompt.question}', context, openai_key='sk-the-key', finetune=True, data_synthesis=True)
        process = psutil.Process(client.process.pid)
        assert is_alive(client.last_folder) and 'sk-the-key' not in ' '.join(process.cmdline())
        wait_for(lambda: (client.last_folder/'run'/'run.json').exists())
        process.kill()
        client.process.wait()
    files = [f for f in tmp_path.rglob('*') if f.is_file()]
    assert len(files) > 4 and not any(b'sk-the-key' in f.read_bytes() for f in files)


def test_an_older_run_is_refused(tiny, tmp_path):
    client = Client('big', tiny, base_url='http://127.0.0.1:9/v1', home=tmp_path)
    folder = client.folder(prompt)
    write_json(folder/'job.json', dict(seed={}, tasks=[]))
    write_json(folder/'run'/'run.json', dict(llm_distill='0.1.0', settings={}))
    with pytest.raises(DistillError, match='in an older format'): client.complete('Q: Why?', context)


def test_end_markers_distinguish_prompts(tmp_path):
    client = Client('big', 'no-student', base_url='http://127.0.0.1:9/v1', home=tmp_path)
    other = context.replace('<END>', '##')
    write_json(client.folder(parse_prompt(other, '-', '##'))/'job.json', {})
    assert client.status(other, '##') == client.status(other, ['##', '\n']) == ended_early
    assert client.status(context) == client.status(context, []) == client.status(other) == 'none'


def test_contexts_of_several_lines_and_of_messages_are_kept_as_they_are():
    seed = read_context('Do it.\nQ: a\n  b\nA: c\n  d<END>', 'Q: e\n f', None)
    assert seed == SeedPrompt('Do it.', [('a\n  b', 'c\n  d')], 'e\n f')
    messages = [dict(role='system', content='Do it.'), dict(role='user', content='a'),
                dict(role='assistant', content='b\n c')]
    chat = read_context(messages, 'Q: d\n  {{ e }}', None)
    assert chat.messages() == [*messages, dict(role='user', content='Q: d\n  {{ e }}')]
