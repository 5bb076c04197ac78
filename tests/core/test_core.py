"Errors, files that appear whole or not at all, locks between processes, and text that is safe to print."
import json, os, re, subprocess, sys, time
from pathlib import Path

import pytest
from hypothesis import example, given, settings, strategies as st
from rich.cells import cell_len

from llm_distill.core import core
from llm_distill.core.core import (
    DistillError, clean_text, exclusive, file_digest, home_dir, installed_file, load_function, one_line, read_file,
    read_json, read_jsonl, recordings, write_bytes, write_json, write_jsonl, write_text)

anything = settings(max_examples=200, deadline=None, derandomize=True)
hostile = 'a\n\x1b[31mred\x07 | \\| [x](javascript:1) <img src=x> `b` *c* $d$ \u202e # | \r end'
# line feeds end our own lines
plain = re.compile(r'[^\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]*')


def python(code, *args, **kwargs):
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], text=True, **kwargs)


# Text

@anything
@given(st.text(), st.one_of(st.none(), st.integers(1, 60)))
@example(hostile, None)
@example('\ud800\u2028x', 3)
@example('\U0001f468\u200d\U0001f469\u200d\U0001f467 family', 4)
@example('東京'*40, 1)
def test_one_line_is_one_line_without_control_characters(text, width):
    shown = one_line(text, width)
    assert plain.fullmatch(shown) and '\n' not in shown and shown.encode('utf-8') is not None
    assert width is None or cell_len(shown) <= width


def test_long_text_is_truncated():
    assert cell_len(one_line('word 東 ' * 100_000, 80)) in (79, 80)


@anything
@given(st.text() | st.binary().map(lambda b: b.decode('utf-8', 'surrogateescape')))
def test_clean_text_can_be_written_and_changes_nothing_else(text):
    cleaned = clean_text(text)
    cleaned.encode('utf-8')
    assert len(cleaned) == len(text)
    assert all(a == b or ('\ud800' <= a <= '\udfff' and b == '?') for a, b in zip(text, cleaned))


# Files

text = st.text(st.characters(codec='utf-8'))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))


@anything
@given(st.lists(st.dictionaries(text, json_values, max_size=3), max_size=3))
@example([dict(a='1\u2028\x85\r2')])
def test_rows_are_read_as_they_were_written(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp('rows')
    assert read_jsonl(write_jsonl(folder/'rows.jsonl', rows)) == rows
    assert read_json(write_json(folder/'rows.json', rows)) == rows


def test_a_lone_surrogate_is_written_as_a_question_mark(tmp_path):
    assert read_jsonl(write_jsonl(tmp_path/'x', [dict(a='so \ud83d')])) == [dict(a='so ?')]
    assert write_text(tmp_path/'x', 'so \ud83d').read_text() == 'so ?'


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_json(tmp_path/'new'/'run.json', dict(n=1))
    with pytest.raises(TypeError): write_json(path, dict(n=object()))
    monkeypatch.setattr(os, 'fsync', lambda fd: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError, match='No space left'): write_json(path, dict(n=2))
    assert read_json(path) == dict(n=1) and [p.name for p in path.parent.iterdir()] == ['run.json']


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    code = '''import sys
from llm_distill.core.core import write_json
print('ready', flush=True)
n = 0
while True:
    n += 1
    write_json(sys.argv[1], dict(n=n, text=str(n)*20_000))'''
    for _ in range(3):
        path = tmp_path/'run.json'
        with python(code, path, stdout=subprocess.PIPE) as writer:
            writer.stdout.readline()
            while not path.exists(): time.sleep(0.005)
            for _ in range(20): read_json(path) # a reader never sees a part
            writer.kill()
        value = read_json(path)
        assert value['text'] == str(value['n'])*20_000


@pytest.mark.parametrize('text, line', [('{"a": 1}\n\n[2]\n', 3), ('{', 1), ('{"a": 1}\n"a"', 2), ('null', 1)])
def test_a_line_that_is_no_object_is_named(tmp_path, text, line):
    path = write_text(tmp_path/'x.jsonl', text)
    with pytest.raises(DistillError, match=f'x.jsonl, line {line}: expected a JSON object, got') as e: read_jsonl(path)
    assert '\n' not in str(e.value)


def test_files_that_cannot_be_read_are_named_in_one_line(tmp_path):
    write_text(tmp_path/'broken.json', '{')
    write_bytes(tmp_path/'latin.json', '"é"'.encode('latin-1'))
    for read, name, message in [
        (read_json, 'absent.json', 'is missing'), (read_json, 'broken.json', 'is not valid JSON'),
        (read_json, 'latin.json', 'is not valid JSON'), (read_file, 'absent.json', 'cannot read the file')]:
        with pytest.raises(DistillError, match=message) as e: read(tmp_path/name)
        assert name in str(e.value) and '\n' not in str(e.value)
    with pytest.raises(DistillError, match='cannot read the check'): read_file(tmp_path, 'check')


def test_a_digest_follows_contents_and_values_but_not_names_and_order_of_keys(tmp_path):
    a, b = write_text(tmp_path/'a', 'x'), write_text(tmp_path/'b', 'x')
    assert file_digest(a) == file_digest(b) != file_digest(write_text(tmp_path/'c', 'y'))
    assert file_digest(dict(m=1, n=2), a) == file_digest(dict(n=2, m=1), a) != file_digest(dict(n=2, m=2), a)
    assert re.fullmatch('[0-9a-f]{16}', file_digest())
    assert file_digest([1, 'a', None]) == 'b9d7fba5cc7137e7' # does not change between versions


# Locks

holder = '''import sys
from llm_distill.core.core import exclusive
with exclusive(sys.argv[1], 'busy'):
    print('held', flush=True)
    sys.stdin.readline()'''


def test_two_processes_do_not_hold_a_lock_and_a_killed_one_releases_it(tmp_path):
    path = tmp_path/'runs'/'a'/'.lock'
    with python(holder, path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == 'held\n'
        with pytest.raises(DistillError, match='^another process works here$'):
            with exclusive(path, 'another process works here'): pass
        other.kill()
        other.wait()
        with exclusive(path, 'busy', wait=30): pass


def test_a_waiting_process_takes_the_lock_when_it_is_released(tmp_path):
    path = tmp_path/'.lock'
    with exclusive(path, 'busy'):
        code = holder.replace("'busy'", "'busy', wait=60").replace('    sys.stdin.readline()', '')
        other = python('print("started", flush=True)\n' + code, path, stdout=subprocess.PIPE)
        assert other.stdout.readline() == 'started\n'
    with other: assert other.stdout.read() == 'held\n'
    assert other.returncode == 0


def test_a_lock_is_released_after_an_error(tmp_path):
    with pytest.raises(KeyError):
        with exclusive(tmp_path/'.lock', 'busy'): raise KeyError('x')
    with exclusive(tmp_path/'.lock', 'busy'):
        with pytest.raises(DistillError, match='busy'):
            with exclusive(tmp_path/'.lock', 'busy'): pass


# Package data, folders and functions of users

def test_recordings_are_questions_with_two_answers():
    sizes = {p.name: len(read_jsonl(p)) for p in recordings.glob('*.jsonl')}
    assert sizes == {'apartments.jsonl': 280, 'pull_requests.jsonl': 60, 'reminders.jsonl': 160, 'sql.jsonl': 110,
                     'commits.jsonl': 40}
    for path in recordings.glob('*.jsonl'):
        rows = read_jsonl(path)
        assert all(list(row) == ['question', 'answers'] and row['answers'] for row in rows)
        if path.stem in ('sql', 'commits'): # the first 20 have a second answer, and none an end marker
            assert [len(row['answers']) for row in rows] == [2]*20 + [1]*(len(rows) - 20)
            continue
        assert all(len(row['answers']) == 2 for row in rows)
        assert all(answer.endswith('<END>') for row in rows for answer in row['answers'])


def test_the_home_folder_can_be_moved(monkeypatch):
    monkeypatch.setenv('LLM_DISTILL_HOME', '~/models')
    assert home_dir() == Path.home()/'models'
    monkeypatch.setenv('LLM_DISTILL_HOME', '')
    assert home_dir() == Path.home()/'.cache'/'llm_distill'


def test_files_of_a_package_are_located_without_importing_it(tmp_path, monkeypatch):
    info = tmp_path/'weights-1.0.dist-info'
    write_text(info/'METADATA', 'Metadata-Version: 2.1\nName: weights\nVersion: 1.0\n')
    write_text(info/'RECORD', 'weights/__init__.py,,\nweights/old.gguf,,\nweights/model.gguf,,\n')
    write_text(tmp_path/'weights'/'__init__.py', 'raise SystemExit("imported")')
    write_text(tmp_path/'weights'/'model.gguf', 'GGUF')
    monkeypatch.syspath_prepend(tmp_path)
    # the other one is listed but not installed
    assert installed_file('weights', '.gguf') == tmp_path/'weights'/'model.gguf'
    assert installed_file('weights', '.bin') is None and installed_file('no-such-package', '.gguf') is None


@pytest.mark.parametrize('content, spec, words', [
    ('', 'nowhere.py:f', 'cannot read'), ('def g(t, a): pass', 'a.py:f', "no function 'f'; it has g"),
    ('f = 3', 'a.py:f', 'it has none'), ('def f(:', 'a.py:f', 'SyntaxError'),
    ('import nowhere_to_be_found', 'a.py:f', 'ModuleNotFoundError'),
    ('import sys; sys.exit(3)', 'a.py:f', 'SystemExit'), ('from json import dumps', 'a.py:f', 'it has none')])
def test_mistakes_in_a_function_file_are_one_line(tmp_path, monkeypatch, content, spec, words):
    monkeypatch.chdir(tmp_path)
    path = Path(spec.split(':')[0])
    if content: path.write_text(content)
    with pytest.raises(DistillError) as e: load_function(spec, 'metric')
    assert words in str(e.value) and str(path) in str(e.value) and '\n' not in str(e.value)


def test_a_file_with_a_dataclass_is_loaded_and_a_changed_one_again(tmp_path):
    path = tmp_path/'c.py'
    head = 'from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass R:\n    a: str\n'
    path.write_text(head + 'def f(question, answer): return R("no").a\n')
    assert load_function(f'{path}:f')('', 'x') == 'no'
    path.write_text(head + 'def f(question, answer): return R("yes").a\n')
    assert load_function(f'{path}:f')('', 'x') == 'yes'


@pytest.mark.parametrize('spec', ['', 'f', 'a.py', 'regex:.+', 'schema.json', 'a.txt:f', 'a.py:f:g', 'a.py:'])
def test_other_specifications_are_no_functions(spec): assert load_function(spec) is None


def test_errors_share_one_type():
    assert issubclass(core.PromptError, DistillError) and issubclass(core.TeacherError, DistillError)


def test_importing_core_loads_nothing_heavy():
    heavy = {'torch', 'transformers', 'datasets', 'numpy', 'matplotlib', 'openai', 'scipy', 'jinja2', 'rich',
             'filelock'}
    code = f'''import sys
from llm_distill.core import core, display, prompt, rundir
print(sorted({heavy!r} & set(sys.modules)))'''
    assert subprocess.check_output([sys.executable, '-c', code], text=True).strip() == '[]'


def test_a_json_file_may_hold_any_value(tmp_path):
    for value in ([], 3, None, 'x', dict(a=[1.5])):
        path = write_json(tmp_path/'x.json', value)
        assert read_json(path) == value == json.loads(path.read_text())
