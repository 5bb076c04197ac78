"Records of files and data sets, and what is wrong with those that cannot be read."
import json, os, threading

import pytest

from llm_distill.core.core import DistillError
from llm_distill.data.records import read_records
from odd_texts import error_of


def read(path): return [record for _, record in read_records(path)]


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize('name, content, expected', [
    ('a.jsonl', b'{"a": "b\\nc"}\r\n\r\n{"a": 1}', [dict(a='b\nc'), dict(a=1)]),
    ('a.jsonl', '\ufeff{"a": "b\u2028\x85c"}\n'.encode(), [dict(a='b\u2028\x85c')]),
    ('a.json', '\ufeff[{"a": 1}, {"b": []}]'.encode(), [dict(a=1), dict(b=[])]), ('a.json', b'', []),
    ('a.json', b'[]', []),
    ('a.csv', '\ufeffid,answer, question\r\n1,"c, d","a\r\nb"\r\n2,,"e ""f"""\r\n'.encode(),
     [dict(id='1', answer='c, d', question='a\r\nb'), dict(id='2', answer='', question='e "f"')]),
    ('a.csv', b'question,answer\nonly a question\n', [dict(question='only a question')]),
    ('A.TXT', '\ufeffa\u2028b\r\n\r\n  Zürich?\n'.encode(),
     [dict(question='a\u2028b\r'), dict(question='  Zürich?')])])
def test_files_are_read_without_a_change(tmp_path, name, content, expected):
    path = write(tmp_path/name, content)
    assert read(path) == read(str(path)) == expected


def test_places_are_lines_or_rows(tmp_path):
    jsonl, table = write(tmp_path/'a.jsonl', b'{}\n\n{}'), write(tmp_path/'a.csv', b'a\n"x\ny"\nz')
    assert [where for where, _ in read_records(jsonl)] == [f'{jsonl}, line 1', f'{jsonl}, line 3']
    assert [where for where, _ in read_records(table)] == [f'{table}, line 3', f'{table}, line 4']
    assert [where for where, _ in read_records(write(tmp_path/'a.json', b'[{}]'))] == [f'{tmp_path}/a.json, row 1']


@pytest.mark.parametrize('name', ['a.jsonl', 'a.csv', 'a.json', 'a.txt'])
def test_lines_of_ten_megabytes(tmp_path, name):
    text = 'x'*10_000_000
    content = dict(jsonl=json.dumps(dict(question=text)), json=json.dumps([dict(question=text)]),
                   csv=f'question\n{text}\n', txt=text)[name[2:]]
    assert read(write(tmp_path/name, content.encode())) == [dict(question=text)]


@pytest.mark.parametrize('name, content, words', [
    ('a.jsonl', b'{"a": 1}\n\n{"a": 1', 'line 3: expected a JSON object'), ('a.jsonl', b'{"a": 1}\n["a"]', 'line 2'),
    ('a.jsonl', b'{"a": 1}\n"a"', 'line 2: expected a JSON object'), ('a.jsonl', b'{"a": NaN}', 'NaN is not in JSON'),
    ('a.jsonl', b'{"a": 1, "a": 2}',
     "line 1: expected a JSON object, got '{\"a\": 1, \"a\": 2}' (the key 'a' occurs twice)"),
    ('a.jsonl', b'{"m": [{"a": 1, "a": 2}]}', "'a' occurs twice"),
    ('a.jsonl', b'{"a": ' + b'['*99_999, 'nested too deeply'),
    ('a.json', b'['*99_999, 'nested too deeply'), ('a.json', b'{"a": 1}', 'expected a list'),
    ('a.json', b'[1]', 'row 1'),
    ('a.json', b'{"a": 1}\n{"a": 2}', 'one object per line is .jsonl'),
    ('a.json', b'[{"a": 1, "a": 2}]', 'occurs twice'),
    ('a.csv', b'a\nb,c', 'line 2: 2 values'), ('a.csv', b'a\n"b\nc', 'line 3: invalid CSV'),
    ('a.csv', b'a,b,a\n1,2,3', "'a' twice"),
    ('a.csv', b'a\n\xe9', 'line 2: not UTF-8'), ('a.txt', b'\xff', 'line 1: not UTF-8'),
    ('a.parquet', b'', 'as Parquet'),
    ('a.parquet', b'PAR1xxxxPAR1', 'as Parquet'), ('a.xlsx', b'x', "'.xlsx'"), ('a', b'x', "type ''")])
def test_a_malformed_file_is_one_line_with_its_place(tmp_path, name, content, words):
    message = error_of(read, write(tmp_path/name, content))
    assert words in message and str(tmp_path/name) in message


@pytest.mark.parametrize('ending', ['.jsonl', '.json', '.csv', '.txt', '.parquet'])
def test_missing_files_folders_and_pipes(tmp_path, ending):
    (tmp_path/f'folder{ending}').mkdir()
    os.mkfifo(tmp_path/f'pipe{ending}')
    for name in 'missing', 'folder', 'pipe', 'missing/deeper': # a read of the pipe would never end
        assert 'cannot read' in error_of(read, tmp_path/f'{name}{ending}')


def test_a_pipe_without_an_ending(tmp_path):
    os.mkfifo(tmp_path/'pipe')
    assert 'unknown file type' in error_of(read, tmp_path/'pipe')


def test_long_csv_fields_leave_the_limit_of_the_process(tmp_path):
    import csv
    before = csv.field_size_limit(1000)
    try:
        read(write(tmp_path/'a.csv', b'a\n' + b'x'*300_000))
        assert csv.field_size_limit() == 1000
    finally:
        csv.field_size_limit(before)


def test_nested_parquet(tmp_path):
    import pyarrow, pyarrow.parquet
    rows = [dict(messages=[dict(role='user', content='a')], n=1), dict(messages=[], n=None)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path/'a.parquet')
    assert read(tmp_path/'a.parquet') == rows


# ---- data sets

@pytest.fixture
def data():
    from datasets import Dataset, DatasetDict
    return DatasetDict(test=Dataset.from_list([dict(question='b')]), train=Dataset.from_list([dict(question='a')]))


def test_folders_of_datasets(tmp_path, data):
    data.save_to_disk(tmp_path/'saved')
    data['test'].save_to_disk(tmp_path/'one')
    data['train'].to_parquet(tmp_path/'files'/'train.parquet')
    folders = tmp_path/'saved', tmp_path/'one', tmp_path/'files'
    assert [read(folder) for folder in folders] == [[dict(question='a')], [dict(question='b')], [dict(question='a')]]


def test_two_folders_of_one_name(tmp_path, data):
    card = '---\nconfigs:\n- config_name: default\n  data_files: train.parquet\n---\n'
    for run, split in dict(first='train', second='test').items():
        data[split].to_parquet(tmp_path/run/'dataset'/'train.parquet')
        (tmp_path/run/'dataset'/'README.md').write_text(card)
    assert [read(tmp_path/run/'dataset') for run in ('first', 'second')] == [[dict(question='a')], [dict(question='b')]]


def test_code_of_a_data_set_is_not_executed(tmp_path):
    folder = tmp_path/'evil'
    folder.mkdir()
    (folder/'evil.py').write_text(f'open({str(tmp_path/"executed")!r}, "w")')
    assert 'cannot read the data set' in error_of(read, folder)
    assert not (tmp_path/'executed').exists()


def test_a_folder_without_data(tmp_path): assert 'cannot read the data set' in error_of(read, tmp_path)


def test_only_a_name_with_one_slash_is_looked_for_on_the_hub(tmp_path, monkeypatch):
    names = []
    def load_dataset(name, **kwargs):
        names.append(name)
        raise ConnectionError('offline')
    monkeypatch.setattr('datasets.load_dataset', load_dataset)
    monkeypatch.chdir(tmp_path)
    (tmp_path/'data').mkdir()
    for name in 'pairs', 'data/pairs', 'a/b/c', './pairs', 'someone/pairs.csv', '/pairs', '../pairs':
        assert 'cannot read the file' in error_of(read, name)
    assert 'ConnectionError: offline' in error_of(read, 'someone/pairs-1.0') and names == ['someone/pairs-1.0']
