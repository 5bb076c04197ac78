"After how many requests a distillation has paid for itself: known answers, the sentence and the figure."
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings, strategies as st

from llm_distill.core.core import DistillError
from llm_distill.evaluate.break_even import alt_text_break_even, break_even, describe_break_even, plot_break_even


@pytest.mark.parametrize('once, teacher, student, requests', [
    (1, .003, .001, 500), (1, .003, 0, 334), (10, .01, 0, 1000), (.1, .3, .2, 1), (1.1, .1, 0, 11), (.7, .1, 0, 7),
    (.3, .3, .2, 3), (1e-9, 1, 0, 1), (2, 1e-6, 0, 2_000_000),
    (0, .01, .001, 0), (0, .01, .01, 0), (0, 0, 0, 0), # nothing was spent
    (1, .001, .003, None), (1, .001, .001, None), (1, 0, 0, None), (1, 0, .001, None), (0, .001, .002, None),
    (0, 0, 1e-9, None)]) # never
def test_known_answers(once, teacher, student, requests):
    result = break_even(once, teacher, student)
    assert result.requests == requests and result.known
    assert ('never' in describe_break_even(result)) == (requests is None)


money = st.decimals(0, 100, places=3).map(float)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(money, money, money)
def test_the_first_request_is_the_first(once, teacher, student):
    n = break_even(once, teacher, student).requests
    c, t, s = (Fraction(str(amount)) for amount in (once, teacher, student))
    def is_paid(k): return c + k*s <= k*t
    if n is None: assert s > t or (s == t and c)
    else: assert is_paid(n) and is_paid(n + 1) and is_paid(10*n + 7) and (n == 0 or not is_paid(n - 1))


@pytest.mark.parametrize('amounts, missing', [
    ((None, .1, 0), ['cost of the distillation']), ((1, None, 0), ['to the teacher']),
    ((1, .1, None), ['to the student']),
    ((None, None, None), ['cost of the distillation', 'to the teacher', 'to the student'])])
def test_unknown_is_not_never(amounts, missing):
    result = break_even(*amounts)
    sentence = describe_break_even(result)
    assert result.requests is None and not result.known and 'is unknown' in sentence and 'never' not in sentence
    assert all(o in sentence for o in missing)
    assert sentence.count('the cost of') + sentence.count('the price of') == len(missing)
    with pytest.raises(DistillError, match='break-even point is unknown'): plot_break_even(result)


@pytest.mark.parametrize('bad', [-1, -1e-9, math.nan, math.inf])
@pytest.mark.parametrize('position', range(3))
def test_an_amount_that_is_no_money_is_refused(bad, position):
    amounts = [1., 1., 1.]
    amounts[position] = bad
    name = ('once', 'teacher', 'student')[position]
    with pytest.raises(DistillError, match=f'^{name} must be at least 0 dollars, got {bad}'): break_even(*amounts)


def test_the_figure_crosses_where_the_sentence_says():
    result = break_even(2, .004, .002)
    ax = plot_break_even(result).axes[0]
    lines = {line.get_label(): line.get_xydata() for line in ax.lines}
    teacher, student = lines['teacher'], next(v for k, v in lines.items() if 'student' in k)
    assert teacher[:, 1] == pytest.approx(.004*teacher[:, 0]) and student[:, 1] == pytest.approx(2 + .002*student[:, 0])
    points = [list(line[0]) for line in lines.values() if len(line) == 1]
    assert points == [[1000, 4]] and student[0, 0] <= 10 and student[-1, 0] >= 100_000
    assert (ax.get_xscale(), ax.get_yscale()) == ('log', 'log') and '1,000 requests' in ax.texts[0].get_text()
    text = alt_text_break_even(result)
    assert 'after 10 requests: teacher $0.04, student $2.02; ' in text
    assert 'after 100,000 requests: teacher $400.00, student $202.00' in text
    assert text.endswith(describe_break_even(result)) and 'after 1,000 requests' in describe_break_even(result)


@pytest.mark.parametrize('amounts', [(1, 0, 0), (0, .1, 0), (0, 0, 0), (0, 0, .1), (1, .1, .2), (0, .2, .1)])
def test_the_figure_can_be_drawn_for_all_prices(amounts):
    fig = plot_break_even(break_even(*amounts))
    fig.canvas.draw()
    once, teacher, student = amounts
    assert (fig.axes[0].get_yscale() == 'log') == (teacher > 0 and once + student > 0)
    assert [line for line in fig.axes[0].lines if len(line.get_xydata()) == 1] == [] # no crossing to mark
