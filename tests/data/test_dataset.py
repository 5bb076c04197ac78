"Rows from any file, the train/test split, cards for strangers, whole data sets on disk, and the Hub."
import base64, json, os, re, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import example, given, strategies as st

from llm_distill.core.core import DistillError, recordings
from llm_distill.core.prompt_files import load_prompt
from llm_distill.data.dataset import assign_splits, dataset_card, filter_titles, push_dataset, read_rows, write_dataset
from llm_distill.data.dedup import filters
from llm_distill.data.labeling import label, row_types, to_dataset
from llm_distill.teacher.recording import RecordingApp
from llm_distill.teacher.teacher import Teacher, recorded_teacher
from odd_texts import anything, error_of, texts

prompt = load_prompt(recordings/'apartments.toml')
ood_prompt = load_prompt(recordings/'pull_requests.toml')


def rows(n, **more):
    origin = dict(seed_question='s', teacher='m', request='k')
    def row(i): return dict(question=f'Zürich {i}?', answer='a, "b"', sample=i, agreement=None if i % 2 else i/10)
    return [row(i) | origin | more for i in range(n)]


# ---- your own rows

@pytest.mark.parametrize('name, content, expected', [
    ('a.jsonl', '{"question": "a\\nb", "answer": "c, d", "id": 3}\r\n\r\n{"question": " e ", "answer": " "}',
     [dict(question='a b', answer='c, d'), dict(question='e')]),
    ('a.csv', '\ufeffid,answer, question\r\n1,"c, d","a\r\nb"\r\n2,,"e ""f"""\r\n',
     [dict(question='a b', answer='c, d'), dict(question='e "f"')]),
    ('a.csv', 'question,answer\nonly a question\n', [dict(question='only a question')]),
    ('a.txt', '\ufeffa\u2028b\r\n\r\n  Zürich?\n', [dict(question='a b'), dict(question='Zürich?')])])
def test_rows_are_read(tmp_path, name, content, expected):
    (tmp_path/name).write_bytes(content.encode())
    assert read_rows(tmp_path/name) == expected == read_rows(str(tmp_path/name))
    old_names = content.replace('question"', 'task"').replace('answer"', 'completion"') # as version 0.1 called them
    old_names = old_names.replace('question,answer', 'task,completion').replace('answer, question', 'completion, task')
    (tmp_path/name).write_bytes(old_names.encode())
    assert read_rows(tmp_path/name) == expected


def test_new_column_names_have_precedence(tmp_path):
    (tmp_path/'a.csv').write_text('task,question,completion,answer\n1,Where?,x,Here.\n')
    assert read_rows(tmp_path/'a.csv') == [dict(question='Where?', answer='Here.')]


@pytest.mark.parametrize('name, content, words', [
    ('a.jsonl', b'{"question": "a"}\n{"text": "b", "reply": 3}', 'line 2: no column `question`, got `text`, `reply`'),
    ('a.jsonl', b'{}', 'got none'), ('a.jsonl', b'{"question": "a"}\n\n{"question": "a"', 'line 3'),
    ('a.jsonl', b'{"question": ["a"]}', 'line 1: `question` must be a text'),
    ('a.jsonl', b'{"question": "a", "answer": 1}', '`answer` must be a text, got 1'),
    ('a.jsonl', b'{"task": "a", "completion": 1}', '`completion` must be a text, got 1'),
    ('a.jsonl', b'{"question": "\\n"}', 'line 1: `question` is empty'),
    ('a.jsonl', b'{"task": null}', '`task` is empty'), ('a.jsonl', b'{"question": "a"}\n\xe9', 'line 2: not UTF-8'),
    ('a.jsonl', b'{"question": NaN}', 'expected a JSON object'),
    ('a.csv', b'a,b\n1,2', 'line 2: no column `question`, got `a`, `b`'),
    ('a.csv', b'question\na,b', 'line 2: 2 values'),
    ('a.csv', b'question\n"a\nb', 'line 3: invalid CSV'), ('a.csv', b'question\na\n""', 'line 3: `question` is empty'),
    ('a.csv', b'question\n', 'no rows'), ('a.txt', b' \n', 'no rows'), ('a.json', b'[]', "'.json'"),
    ('a', b'x', "type ''")])
def test_rows_that_cannot_be_read_are_named_by_line(tmp_path, name, content, words):
    (tmp_path/name).write_bytes(content)
    message = error_of(read_rows, tmp_path/name)
    assert words in message and str(tmp_path/name) in message


def test_a_missing_file(tmp_path):
    for file in tmp_path/'a.csv', tmp_path/'x'/'a.txt': assert 'cannot read' in error_of(read_rows, file)


utf8 = texts.map(lambda t: t.encode('utf-8', 'replace'))
columns = st.sampled_from(['question', 'answer', 'task', 'completion', 'x'])
objects = st.dictionaries(columns, st.one_of(texts, st.none(), st.integers())).map(lambda d: json.dumps(d).encode())
contents = st.one_of(st.binary(), utf8, utf8.map(lambda b: b'question,answer\n' + b), objects)


@anything
@given(st.sampled_from(['.jsonl', '.csv', '.txt']), contents)
@example('.jsonl', b'['*50_000)
@example('.jsonl', b'{"question": "\\ud83d"}')
@example('.csv', b'question\na\rb\n')
def test_any_file_gives_rows_or_an_error(tmp_path_factory, ending, content):
    path = tmp_path_factory.getbasetemp()/f'any{ending}'
    path.write_bytes(content)
    try: result = read_rows(path)
    except DistillError as e: assert len(str(e).splitlines()) == 1 and str(path) in str(e)
    else:
        assert result and all({'question'} <= set(r) <= {'question', 'answer'} for r in result)
        assert all(r['question'] and len(r['question'].splitlines()) == 1 for r in result)
        to_dataset(result)


# ---- the split

def split_one_by_one(rows_by_prompt, n, n_test):
    "Go through the questions in order and put each usable pair where one is missing."
    splits = dict(train=[], test=[])
    for name, labeled in rows_by_prompt.items():
        test = splits.setdefault('test' if name == 'main' else 'test_ood', [])
        for _, pair in labeled:
            if len(test) < n_test: target = test
            elif name == 'main' and len(splits['train']) < n: target = splits['train']
            else: break
            if pair: target.append(pair)
    return splits


labeled_rows = st.lists(st.one_of(st.none(), st.integers(1, 9).map(lambda i: dict(answer=i))), max_size=12)


@anything
@given(labeled_rows, st.one_of(st.none(), labeled_rows), st.integers(1, 5), st.integers(1, 5))
def test_the_first_usable_pairs_are_for_testing(main, ood, n, n_test):
    pairs = dict(main=main) if ood is None else dict(main=main, ood=ood)
    rows_by_prompt = {name: [(dict(question=i), pair) for i, pair in enumerate(o)] for name, o in pairs.items()}
    splits = assign_splits(rows_by_prompt, n, n_test)
    assert splits == split_one_by_one(rows_by_prompt, n, n_test)
    assert list(splits) == ['train', 'test'] + ([] if ood is None else ['test_ood'])
    assert assign_splits(rows_by_prompt, n + 3, n_test)['test'] == splits['test']


# ---- on disk

def test_a_data_set_is_read_back_as_it_was(tmp_path):
    from datasets import Value, load_dataset
    splits = dict(train=to_dataset(rows(20)), test=to_dataset(rows(3, agreement=None)),
                  test_ood=to_dataset(rows(5)).select([3, 1]))
    card = dataset_card(prompt, splits, dict(model='m', endpoint='http://x/v1'), title='a: "b" # c\n- d')
    folder = write_dataset(tmp_path/'new'/'dataset', splits, card)
    back = load_dataset(str(folder), cache_dir=str(tmp_path/'cache'))
    assert list(back) == list(splits)
    assert {k: v.to_list() for k, v in back.items()} == {k: v.to_list() for k, v in splits.items()}
    assert all(v.features == {k: Value(t) for k, t in row_types.items()} for v in back.values())
    assert list(back['train'].features) == list(row_types)
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


# ---- the card

def test_every_filter_has_a_title():
    labeling = {'truncated', 'empty', 'filtered', 'failed', 'form', 'check', 'agreement', 'judge'}
    synthesis = {'exact_duplicate', 'near_duplicate_words', 'near_duplicate_meaning', 'copy_of_example', 'no_questions',
                 'not_needed'}
    names = {getattr(f, '__name__', f) for f in filters}
    assert labeling | synthesis | names <= set(filter_titles)


def test_what_the_card_says():
    import yaml
    splits = dict(train=rows(1500, seed_question='One | two?'), test=rows(2, teacher='given', seed_question='given'),
                  test_ood=rows(1))
    rejects = [dict(stage='synthesis', filter='exact_duplicate'), *[dict(stage='labeling', filter='judge')]*2,
               dict(stage='synthesis', filter='my_own'), dict(question='damaged')]
    teacher = dict(model='gpt-x', endpoint='https://llm.example.org/v1', api_key='sk-secret')
    card = dataset_card(prompt, splits, teacher, rejects, dict(question='T <b>', closest='C', cosine=0.5), ood_prompt,
                        dict(samples=3, judge=True, check=None), notes=['main: 1500 of 2000 questions: <nothing> new'])
    header = yaml.safe_load(card.split('---')[1])
    assert header['configs'][0]['data_files'] == [dict(split=k, path=f'{k}.parquet') for k in splits]
    assert header['size_categories'] == ['1K<n<10K'] and {'synthetic', 'llm_distill'} <= set(header['tags'])
    assert 'license' not in header and 'sk-secret' not in card and 'CC0' not in card
    for text in (
            '| synthesis | `exact_duplicate` |', '| labeling | `judge` | rejected by the judge | 2 |',
            '| other | `other` |', 'a custom filter | 1 |', prompt.question, prompt.instruction, ood_prompt.question,
            '| `train` | 1500 |',
            '| `train` | One \\| two? | 1500 |', '`gpt-x` at llm.example.org.',
            '- main: 1500 of 2000 questions: \\<nothing> new', 'cosine of 0.50', 'T \\<b> (test)', 'every tenth row',
            'terms of use', 'samples 3', '2 given by the user, 1501 written by a language model',
            *(f'`{name}`' for name in row_types)):
        assert text in re.sub(' +', ' ', card), text


def test_texts_of_others_stay_texts_in_the_card():
    note, title = '{{ 7*7 }} <img src=x> [a](b)', '# {% x %}\n---\nlicense: mit'
    card = dataset_card(prompt, dict(train=rows(1)), {}, notes=[note], title=title, settings=dict(check='regex:`*<b>'))
    assert '{{ 7\\*7 }} \\<img src=x> \\[a\\](b)' in card and '\n\n# \\# {% x %} --- license: mit\n' in card
    assert 'license: mit' not in card.splitlines() and 'regex:\\`\\*\\<b>' in card


def test_only_the_recordings_of_the_package_are_free(tmp_path):
    package = dataset_card(prompt, dict(train=rows(1, teacher='recorded')), recorded_teacher().describe())
    assert 'license: cc0-1.0' in package and 'CC0' in package and 'Nothing.' in package

    class Constant(RecordingApp):
        name = 'constant'
        def __init__(self): pass
        def answer(self, body, headers):
            choice = dict(index=0, message=dict(role='assistant', content='Find it, list it.'), finish_reason='stop')
            return 200, dict(id='x', object='chat.completion', created=0, model='m', choices=[choice])
    label(prompt, ['Where?'], Teacher('m', app=Constant(), progress=False, record=tmp_path/'r.jsonl'))
    teacher = Teacher(f'recorded:{tmp_path}/r.jsonl', progress=False)
    mine = dataset_card(prompt, dict(train=rows(1)), teacher.describe())
    assert 'CC0' not in mine and 'license:' not in mine and 'recorded' in mine and 'terms of use' in mine
    another = dataset_card(prompt, dict(train=rows(1, teacher='gpt-x')), recorded_teacher().describe())
    assert 'CC0' not in another and 'license:' not in another


from_user = dict(teacher='given', seed_question='given')


@pytest.mark.parametrize('own', [from_user, dict(teacher='given'), dict(seed_question='given')])
def test_a_row_of_the_user_is_not_put_into_the_public_domain(own):
    splits = dict(train=rows(9, teacher='recorded'), test=rows(1, **dict(teacher='recorded') | own))
    card = dataset_card(prompt, splits, recorded_teacher().describe())
    assert 'license:' not in card and "the user's to state" in card and 'What the recorded teacher wrote' in card
    assert 'Questions: 1 given by the user, 9 written' in card
    assert ('Answers: 1 given by the user, 9 written' in card) == ('teacher' in own)


@pytest.mark.parametrize('teacher', [
    recorded_teacher().describe(), dict(model='gpt-x', endpoint='https://api.openai.com/v1'), {}])
def test_a_data_set_of_the_user_alone_names_no_teacher(teacher):
    splits = dict(train=rows(3, **from_user), test=rows(1, **from_user))
    card = dataset_card(prompt, splits, teacher, settings=dict(samples=1, judge=True, judge_threshold=4))
    assert 'Questions: given by the user. Answers: given by the user.' in card and "the user's to state" in card
    for word in ('## Teacher', 'CC0', 'Claude', 'license:', 'language model', 'gpt-x', 'terms of use', 'synthetic'):
        assert word not in card, word


def test_questions_of_the_user_with_answers_of_a_model():
    teacher = dict(model='gpt-x', endpoint='https://api.openai.com/v1')
    card = dataset_card(prompt, dict(train=rows(3, seed_question='given')), teacher)
    assert 'Questions: given by the user. Answers: written by a language model.' in card
    assert '`gpt-x` at api.openai.com.' in card and 'terms of use' in card and "the user's to state" in card
    assert 'resemble the seed questions' not in card and '- synthetic' in card


@pytest.mark.parametrize('endpoint', [
    'http://gpu7:8000/v1', 'http://gpu7/v1', 'http://localhost:1234/v1', 'http://10.1.2.3/v1', 'http://[fe80::1]/v1',
    'http://gpu7.lab.local/v1', 'https://gpu7.team.internal/v1', 'https://gpu7.example.org:8443/v1',
    'http://GPU7.LAN/v1', 'gpu7.example.org/v1', 'http://[gpu7', 'recorded:gpu7', None])
def test_a_private_endpoint_stays_unnamed(endpoint):
    card = dataset_card(prompt, dict(train=rows(1)), dict(model='llama', endpoint=endpoint))
    assert '`llama`.' in card and not re.search('gpu7|localhost|10.1.2|fe80|8443', card, re.I)


def test_a_public_endpoint_is_named_by_its_host_alone():
    endpoint = 'https://me:secret@API.Example.org/tenant7/v1?k=key8'
    card = dataset_card(prompt, dict(train=rows(1)), dict(model='llama', endpoint=endpoint))
    assert '`llama` at api.example.org.' in card and not re.search('secret|tenant7|key8', card)


@pytest.mark.parametrize('settings, listed', [
    (dict(check=None, samples=1, min_agreement=0., max_reasks=2, judge=None, judge_threshold=4),
     'samples 1, max_reasks 2.'),
    (dict(samples=3, min_agreement=.5, max_reasks=0, judge=True, judge_threshold=3),
     'samples 3, min_agreement 0.5, judge default prompt, judge_threshold 3.'),
    (dict(check='regex:a+', samples=3, min_agreement=0., judge='Is {answer} good for {question}?', judge_threshold=4),
     'check regex:a+, samples 3, judge own prompt, judge_threshold 4.')])
def test_the_card_lists_the_settings_that_had_an_effect(settings, listed):
    card = dataset_card(prompt, dict(train=rows(1)), dict(model='m'), settings=settings)
    assert f'Settings of labeling: {listed}\n' in card


def test_a_card_without_a_teacher_invents_none():
    card = dataset_card(prompt, dict(train=rows(1)), {})
    assert 'None' not in card and 'not recorded' in card and 'terms of use' in card


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
