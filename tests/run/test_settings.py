"Declared settings: types, ranges, names that do not exist."
from dataclasses import dataclass, fields
from math import inf

import pytest
from hypothesis import given, settings, strategies as st

from llm_distill.core.core import DistillError
from llm_distill.run.settings import check_settings, convert_fields, has_type, setting, type_words, value_error

anything = settings(max_examples=100, deadline=None, derandomize=True)
values = st.one_of(st.integers(), st.floats(), st.booleans(), st.text(), st.lists(st.text()), st.lists(st.integers()),
                   st.dictionaries(st.text(), st.integers()))


@dataclass
class Kettle:
    liters: float = setting(1., 'how much water', 'kitchen', low=.1, high=2)
    cups: int = setting(2, 'how many cups', 'kitchen', low=1)
    teas: list[str] = setting([], 'which tea', 'kitchen', convert=sorted)
    hot: bool = setting(True, 'not cold', 'kitchen')
    def __post_init__(self): convert_fields(self)


def test_defaults_are_not_shared():
    Kettle().teas.append('mint')
    assert Kettle().teas == [] and Kettle(teas=['b', 'a']).teas == ['a', 'b']


@anything
@given(values, st.sampled_from(list(type_words)))
def test_a_value_is_valid_or_quoted_in_one_line(value, kind):
    reason = value_error(value, kind, low=0, high=10)
    assert has_type(value, kind) or reason
    if reason: assert reason.startswith('must be ') and len(reason.splitlines()) == 1 and len(reason) < 140


@anything
@given(st.one_of(st.integers(), st.floats()), st.one_of(st.integers(), st.floats(allow_nan=False)))
def test_numbers_are_compared_with_their_limits(value, limit):
    assert (value_error(value, float, low=limit) is None) == (value >= limit)
    assert (value_error(value, float, high=limit) is None) == (value <= limit)


@pytest.mark.parametrize('values,message', [
    (dict(liters=0.), 'liters must be at least 0.1, got 0.0'),
    (dict(liters=inf), 'liters must be at most 2, got inf'),
    (dict(cups=1.5), 'cups must be a whole number, got 1.5'),
    (dict(cups=True), 'cups must be a whole number, got True'),
    (dict(hot=1), 'hot must be true or false, got 1'),
    (dict(teas='mint'), "teas must be a list of texts, got 'mint'"),
    (dict(cup=1), 'unknown setting `cup`; expected `cups`'),
    (dict(xyz=1), 'unknown setting `xyz`; expected `liters` or `cups` or `teas` or `hot`'),
])
def test_a_wrong_setting_is_one_sentence(values, message):
    with pytest.raises(DistillError) as e: check_settings(Kettle, values)
    assert str(e.value) == message


def test_none_means_not_set():
    check_settings(Kettle, dict.fromkeys(about.name for about in fields(Kettle)))
