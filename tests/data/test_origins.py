"Users, conversations and times of a log."
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, strategies as st

from llm_distill.data.origins import find_group_column, find_time_column, parse_time, plain_value, read_time
from odd_texts import anything

moment = 1793613600


@pytest.mark.parametrize('value', [
    moment, float(moment), str(moment), moment*1000, moment*10**6, moment*10**9, '2026-11-02T10:00:00Z',
    '2026-11-02 10:00:00',
    '2026-11-02T11:00:00.000+01:00', datetime(2026, 11, 2, 10),
    datetime(2026, 11, 2, 12, tzinfo=timezone(timedelta(hours=2)))])
def test_one_moment_in_every_form(value): assert parse_time(value) == moment


@pytest.mark.parametrize('value', [None, True, '', 'yesterday', '10:30', 12.5, 0, float('nan'), float('inf'), 10**400,
                                   [], {}])
def test_what_is_no_time(value):
    assert parse_time(value) is None and read_time(dict(time=value), 'time') is None


@anything
@given(st.datetimes(min_value=datetime(1980, 1, 1), max_value=datetime(2100, 1, 1)))
def test_a_time_is_the_same_when_it_is_read_again(time):
    text = read_time(dict(time=time), 'time')
    assert read_time(dict(time=text),
                     'time') == text and parse_time(text) == time.replace(tzinfo=timezone.utc).timestamp()


def test_the_first_column_with_a_time():
    assert find_time_column([dict(time='short',
                                  created_at='2026-11-02')]) == 'created_at' and find_time_column([{}]) is None


@pytest.mark.parametrize('records, column', [
    ([dict(user_id=i % 3, session_id=i) for i in range(6)], 'user_id'), # of the two the coarser one
    ([dict(user='app', session_id=i//2) for i in range(6)], 'session_id'), ([dict(user='app')]*6, None),
    ([dict(traceId=i) for i in range(6)], 'traceId'), ([dict(metadata=dict(userId=i)) for i in range(6)], 'userId'),
    ([dict(group='a')]*6, 'group'), ([dict(user=None)], None), ([dict(user=dict(name='ada'))], None), ([], None)])
def test_the_column_that_groups_rows(records, column): assert find_group_column(records) == column


def test_values_that_name_no_group():
    assert [plain_value(dict(user=v), 'user') for v in (True, '', [], 0, 'ada')] == [None, None, None, 0, 'ada']
