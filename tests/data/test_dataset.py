"Whole data sets on disk, and the Hub."
import base64, json, os, re, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llm_distill.core.core import recordings
from llm_distill.core.prompt_files import load_prompt
from llm_distill.data.card import dataset_card
from llm_distill.data.dataset import push_dataset, to_messages, write_dataset
from llm_distill.data.labeling import row_types, to_dataset
from odd_texts import error_of
from pair_rows import rows

prompt = load_prompt(recordings/'apartments.toml')


# ---- on disk

def test_a_data_set_is_read_back_as_it_was(tmp_path):
    from datasets import Value, load_dataset
    splits = dict(train=to_dataset(rows(20)), test=to_dataset(rows(3, agreement=None)),
                  test_ood=to_dataset(rows(5)).select([3, 1]))
    card = dataset_card(prompt, splits, dict(model='m', endpoint='http://x/v1'), title='a: "b" # c\n- d')
    folder = write_dataset(tmp_path/'new'/'dataset', splits, card)
    back = load_dataset(str(folder), cache_dir=str(tmp_path/'cache'))
    assert list(back) == list(splits)
    plain = {k: v.remove_columns('messages') for k, v in back.items()}
    assert {k: v.to_list() for k, v in plain.items()} == {k: v.to_list() for k, v in splits.items()}
    assert all(v.features == {k: Value(t) for k, t in row_types.items()} for v in plain.values())
    assert list(back['train'].features)[:3] == ['question', 'answer', 'messages']
    assert back['test'][0]['messages'] == [dict(role='user', content='Zürich 0?'),
                                           dict(role='assistant', content='a, "b"')]
    names = ['README.md', 'test.parquet', 'test_ood.parquet', 'train.parquet']
    assert sorted(p.name for p in folder.iterdir()) == names


def test_an_empty_split_does_not_keep_the_others_from_being_read(tmp_path):
    from datasets import load_dataset
    splits = dict(train=to_dataset(rows(2)), test=to_dataset([]))
    card = dataset_card(prompt, splits, dict(model='m', endpoint='e'))
    write_dataset(tmp_path/'d', splits, card)
    back = load_dataset(str(tmp_path/'d'), cache_dir=str(tmp_path/'cache'))
    assert {k: len(v) for k, v in back.items()} == dict(train=2) and '| `test` | 0 |' in re.sub(' +', ' ', card)


def test_a_data_set_is_replaced_whole(tmp_path, monkeypatch):
    import pyarrow.parquet
    train, test = to_dataset(rows(2)), to_dataset(rows(1))
    write_dataset(tmp_path, dict(train=train, test=test), 'one')
    (tmp_path/'mine.txt').write_text('mine')
    write_dataset(tmp_path, dict(train=test), 'two')
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert sorted(files) == ['README.md', 'mine.txt', 'train.parquet'] and files['README.md'] == b'two'

    write, calls = pyarrow.parquet.write_table, []
    def fill_disk(table, file): # the second file does not fit
        calls.append(write(table, file))
        if len(calls) == 2: raise OSError(28, 'No space left on device')
    monkeypatch.setattr(pyarrow.parquet, 'write_table', fill_disk)
    assert 'No space left' in error_of(write_dataset, tmp_path, dict(train=train, test=test), 'three')
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files
    monkeypatch.undo()
    assert 'cannot write' in error_of(write_dataset, tmp_path/'mine.txt', dict(train=train), '')


def test_two_runs_in_one_cache_have_their_own_rows(tmp_path):
    from datasets import load_dataset
    def save(run, **more):
        splits = dict(train=to_dataset(rows(3, **more)), test=to_dataset(rows(1)))
        return write_dataset(tmp_path/run/'dataset', splits, dataset_card(prompt, splits, {}))
    def load(folder): return load_dataset(str(folder), cache_dir=str(tmp_path/'cache'))['train']['teacher'][:]
    first, second = save('first', teacher='a'), save('second', teacher='b')
    assert (load(first), load(second)) == (['a']*3, ['b']*3)
    assert load(save('first', teacher='c')) == ['c']*3 # also in the same folder


def test_messages_are_the_pair():
    row = dict(question='a\n  b', answer='c')
    assert to_messages(row) == [dict(role='user', content='a\n  b'), dict(role='assistant', content='c')]


# ---- the Hub

class Hub(BaseHTTPRequestHandler):
    "The part of the Hub that a push uses."
    def do_GET(self):
        headers = {'X-Error-Code': 'RepoNotFound'}
        if self.server.private is None: return self.reply(404, dict(error='missing'), **headers)
        self.reply(200, dict(id='me/pairs', private=self.server.private, siblings=[], tags=[]))

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get('content-length', 0)))
        token, url = self.headers.get('authorization'), f'{self.server.url}/datasets/me/pairs'
        self.server.log.append((self.path, token, body))
        if self.server.status != 200: return self.reply(self.server.status, dict(error=f'no, {token}'))
        if self.path == '/api/repos/create': return self.reply(200, dict(url=url, id='x', name='me/pairs'))
        if '/preupload/' in self.path:
            files = [dict(path=f['path'], uploadMode='regular', shouldIgnore=False) for f in json.loads(body)['files']]
            return self.reply(200, dict(files=files))
        if '/commit/' in self.path:
            return self.reply(200, dict(success=True, commitOid='a'*40, commitUrl=f'{url}/commit/{"a"*40}'))
        self.reply(200, {})

    def reply(self, status, value, **headers):
        content = json.dumps(value).encode()
        headers |= {'content-type': 'application/json', 'content-length': len(content), 'x-repo-commit': 'a'*40}
        self.send_response(status)
        for k, v in headers.items(): self.send_header(k, str(v))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_): pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.log, server.status, server.private = [], 200, None
    server.url = f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    splits = dict(train=to_dataset(rows(2)), test=to_dataset(rows(1)))
    folder = write_dataset(tmp_path/'dataset', splits, dataset_card(prompt, splits, dict(model='m', endpoint='e')))
    (folder/'private notes.txt').write_text('not part of it')
    return folder


push_script = '''
import json, sys
from llm_distill.core.core import DistillError
from llm_distill.data.dataset import push_dataset
try: print("at", push_dataset(**json.loads(sys.argv[1])))
except DistillError as e: print("error", e)
'''


def push(folder, url, repo_id='me/pairs', token='hf_secret', **kwargs):
    "Return what pushing prints in a process that may go online: an address, or an error."
    offline = 'HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE', 'HF_TOKEN', 'HF_DATASETS_OFFLINE'
    env = {k: v for k, v in os.environ.items() if k not in offline} | dict(HF_HOME=str(folder.parent/'home'))
    args = json.dumps(dict(folder=str(folder), repo_id=repo_id, token=token, endpoint=url) | kwargs)
    p = subprocess.run([sys.executable, '-c', push_script, args], env=env, capture_output=True, text=True, timeout=120)
    assert p.returncode == 0, p.stderr
    assert 'hf_secret' not in p.stdout + p.stderr
    line, = p.stdout.strip().splitlines()
    return line


def test_a_data_set_arrives_on_the_hub(hub, folder):
    assert push(folder, hub.url) == f'at {hub.url}/datasets/me/pairs'
    assert {token for _, token, _ in hub.log if token} == {'Bearer hf_secret'}
    created, = [json.loads(body) for path, _, body in hub.log if path == '/api/repos/create']
    assert (created['name'], created['organization'], created['type']) == ('pairs', 'me', 'dataset')
    assert created['visibility'] == 'private'
    commit, = [body for path, _, body in hub.log if path.startswith('/api/datasets/me/pairs/commit/')]
    operations = [json.loads(line) for line in commit.splitlines()]
    files = {o['value']['path']: base64.b64decode(o['value']['content']) for o in operations if o['key'] == 'file'}
    assert files == {k: (folder/k).read_bytes() for k in ('README.md', 'train.parquet', 'test.parquet')}


def test_private_data_do_not_go_to_a_public_place(hub, folder):
    hub.private = False
    message = push(folder, hub.url)
    assert message.startswith('error') and 'public' in message and not [p for p, _, _ in hub.log if 'commit' in p]
    assert push(folder, hub.url, private=False) == f'at {hub.url}/datasets/me/pairs'
    hub.private = True
    assert push(folder, hub.url) == f'at {hub.url}/datasets/me/pairs'
    assert not [p for p, _, _ in hub.log if 'create' in p]


@pytest.mark.parametrize('exists', [None, True])
@pytest.mark.parametrize('status, words', [(401, 'with a valid token'), (403, 'with write access'), (418, '418')])
def test_a_refusal_of_the_hub_is_one_line_without_the_token(hub, folder, status, words, exists):
    hub.status, hub.private = status, exists
    message = push(folder, hub.url)
    assert message.startswith('error') and words in message and str(status) in message
    assert 'me/pairs' in message and hub.url in message and not [p for p, _, _ in hub.log if 'commit' in p]


def test_pushing_without_a_network_a_token_or_a_name(folder, tmp_path):
    nobody = 'http://127.0.0.1:9'
    assert 'check the network' in push(folder, nobody)
    assert 'no token' in push(folder, nobody, token=None)
    for name in 'me/my pairs', 'a/b/c', 'pairs', '', '-x-/', str(tmp_path):
        assert 'invalid data set name' in error_of(push_dataset, folder, name, token='hf_secret')
    message = error_of(push_dataset, folder, 'me/pairs', token='hf_secret', endpoint=nobody) # offline here
    assert 'check the network' in message and 'hf_secret' not in message
    assert 'has no data set' in error_of(push_dataset, tmp_path, 'me/pairs', token='hf_secret')
