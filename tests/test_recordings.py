"The database of the SQL recording: the same each time, read only, and bounded."
import sqlite3
from importlib.util import module_from_spec, spec_from_file_location

import pytest

from llm_distill.core.core import read_jsonl, recordings

spec = spec_from_file_location('bikes', recordings/'bikes.py')
bikes = module_from_spec(spec)
spec.loader.exec_module(bikes)
rows = read_jsonl(recordings/'sql.jsonl')


def test_the_database_is_always_the_same():
    assert bikes.query('SELECT COUNT(*), SUM(minutes), ROUND(SUM(price), 2) FROM rides') == [(700, 29619, 5148.2)]
    assert bikes.query('SELECT name, city FROM members WHERE id = 1;')[0][1] in ('Bergen', 'Oslo', 'Voss')


def test_all_recorded_queries_run():
    assert [row['question'] for row in rows if bikes.runs(row['question'], row['answers'][0])] == []
    second = [bikes.same_rows(row['answers'][1], row['answers'][0]) for row in rows if len(row['answers']) > 1]
    assert (sum(second), len(second)) == (19, 20)


@pytest.mark.parametrize('sql', [
    'DROP TABLE members', "ATTACH 'x' AS y", 'SELECT 1; SELECT 2', "SELECT load_extension('x')", '',
    'PRAGMA user_version = 3',
    'WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT COUNT(*) FROM c', 'a\0b', 'SELECT nothing'])
def test_what_does_not_read_is_refused(sql):
    assert bikes.runs('', sql).startswith('SQLite says: ')
    with pytest.raises((sqlite3.Error, sqlite3.Warning)): bikes.query(sql)
    assert not bikes.same_rows(sql, 'SELECT 1')


@pytest.mark.parametrize('prediction, reference, same', [
    ("SELECT name FROM stations WHERE capacity > 20", "select name from stations where capacity >= 21;", True),
    ("SELECT name FROM stations ORDER BY capacity DESC", "SELECT name FROM stations ORDER BY capacity", False),
    ("SELECT name FROM stations ORDER BY capacity DESC", "SELECT name FROM stations", True),
    ("SELECT 0.1 + 0.2", "SELECT 0.3", True), ("SELECT name FROM members WHERE city <> 'Oslo'",
                                                "SELECT name FROM members WHERE city = 'Oslo'", False)])
def test_queries_are_compared_by_their_rows(prediction, reference, same):
    assert bikes.same_rows(prediction, reference) is same
