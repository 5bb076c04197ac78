"Tables that line up and fit, and text of a model that steers neither a terminal nor a page nor a figure."
import re
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, strategies as st
from markdown_it import MarkdownIt
from rich.cells import cell_len

from llm_distill.core.core import one_line
from llm_distill.core.display import (
    colors, figure_png, horizontal_bars, markdown_table, markdown_text, new_figure, plot_label, terminal_table)
from test_core import anything, hostile, plain


# Markdown

def rendered(text): return MarkdownIt('commonmark').enable(['table', 'strikethrough']).render(text)


class Content(HTMLParser):
    "The text of a piece of HTML, and its tags"
    def __init__(self, html):
        super().__init__()
        self.data, self.tags = [], []
        self.feed(html)

    def handle_data(self, data): self.data.append(data)

    def handle_starttag(self, tag, attrs): self.tags.append(tag)

    @property
    def text(self): return ' '.join(''.join(self.data).split())


@anything
@given(st.text(alphabet='ab1 \\`*_[]()<>~$&#;|!-+=.:/\n"\'', max_size=30))
@example('[x](javascript:1) <img src=x> `b` **c** ~~d~~ &lt; ![i](u)')
@example('1. a')
@example('***')
@example('=\n=')
def test_escaped_markdown_renders_as_the_text_itself(text):
    content = Content(rendered('x\n\n- ' + markdown_text(text) + ' end').replace('\n', ' '))
    expected = ' '.join(text.split())
    assert content.tags == ['p', 'ul', 'li'] and content.text == f'x {expected} end'.replace('  ', ' ')


cells = st.lists(st.tuples(st.text(alphabet='ab \\|*\n\t', max_size=12), st.text(max_size=12)), min_size=1, max_size=4)


@anything
@given(cells)
@example([(hostile, '\\|\\'), ('\\\\|', '|')])
def test_a_markdown_table_has_its_cells_and_lines_up(rows):
    text = markdown_table(['one', 'two'], rows, (0, 1))
    lines = text.split('\n')
    assert len(lines) == len(rows) + 2 and plain.fullmatch(text) and len({cell_len(o) for o in lines}) == 1
    # a pipe after an odd number of backslashes is text
    assert all(len(re.findall(r'(?<!\\)(?:\\\\)*\|', o)) == 3 for o in lines)


def test_a_markdown_table_renders_as_a_table():
    page = Content(rendered(markdown_table(['question', 'n'], [['a | b', 1], ['東京', 22]])))
    assert page.tags.count('tr') == 3 and page.tags.count('td') == 4 and page.text == 'question n a | b 1 東京 22'


def test_columns_are_aligned():
    assert markdown_table(['x', 'n'], [['echo', '5']]) == '| x    |   n |\n|:-----|----:|\n| echo |   5 |'
    assert markdown_table(['x', 'n'], [], left=(1,)) == '|   x | n   |\n|----:|:----|'


# Terminal

def body(table): return [[c.strip() for c in line.strip('|').split('|')] for line in table.split('\n')]


@anything
@given(cells, st.integers(14, 60))
@example([(hostile, '\\|\\'), ('東京'*30, '👨‍👩‍👧'*20)], 20)
@example([('[red]x[/red]', '[/]')], 40)
def test_a_terminal_table_is_safe_and_fits(rows, width):
    text = terminal_table(['one', 'two'], rows, (0, 1), width)
    lines = text.split('\n')
    assert len(lines) == len(rows) + 2 and plain.fullmatch(text)
    assert len({cell_len(o) for o in lines}) == 1 and cell_len(lines[0]) <= width


def test_a_terminal_table_shows_everything_where_there_is_room():
    rows = [['Which trains go to 東京?', '[bold]', 7], ['Why :smile:?', hostile.replace('|', '/'), 12]]
    table = body(terminal_table(['question', 'answer', 'n'], rows, left=(0, 1), width=200))
    assert table[0] == ['question', 'answer', 'n'] and table[2:] == [[one_line(c) for c in row] for row in rows]
    assert '\\x1b[31m' in table[3][1]


def test_the_widest_columns_give_way():
    rows = [['synthesis', 1234, 'x'*500], ['labeling', 7, 'short']]
    table = terminal_table(['stage', 'n', 'example'], rows, (0, 2), 40)
    stage, n, text = body(table)[2]
    assert (stage, n) == ('synthesis', '1234') and text.endswith('x…') and all(len(o) == 40 for o in table.split('\n'))
    assert body(table)[3] == ['labeling', '7', 'short']


def test_many_columns_in_a_narrow_terminal():
    table = terminal_table(list('abcdef'), [['long text']*6]*2, width=40)
    assert max(map(cell_len, table.split('\n'))) <= 40 and len(table.split('\n')) == 4


def test_the_width_is_that_of_the_terminal(monkeypatch):
    monkeypatch.setenv('COLUMNS', '30')
    table = terminal_table(['question'], [['word '*50]])
    assert {len(o) for o in table.split('\n')} == {30}
    assert table == terminal_table(['question'], [['word '*50]], width=30)


# Figures

def test_names_of_a_model_are_no_formulas():
    fig, (ax,) = new_figure()
    horizontal_bars(ax, ['$\\frac{$', 'b'], [1, 2], ['1', '2'], 'gray')
    ax.set_title(plot_label('costs $\\frac{$'))
    assert figure_png(fig).startswith(b'\x89PNG')


def test_bars_have_their_names_lengths_and_texts():
    fig, (ax,) = new_figure()
    horizontal_bars(ax, ['a', 'b'], dict(a=1, b=2).values(), ['one', 2], 'red')
    assert [t.get_text() for t in ax.get_yticklabels()] == ['a', 'b']
    assert [t.get_text() for t in ax.texts] == ['one', '2']
    assert [b.get_width() for b in ax.patches] == [1, 2]
    assert ax.patches[0].get_facecolor()[:3] == pytest.approx((0xD5/255, 0x5E/255, 0))


def test_characters_that_the_font_lacks_are_question_marks_without_a_warning(recwarn):
    assert [plot_label(o) for o in ('東京のホテル', 'éва', 'café')] == ['??????', 'éва', 'café']
    assert plot_label('word '*20, 12) == 'word word w…' and '\n' not in plot_label(hostile)
    fig, (ax,) = new_figure()
    ax.set_title('東京')
    figure_png(fig)
    assert not [w for w in recwarn if 'Glyph' in str(w.message)]


def test_a_large_figure_is_drawn_in_lower_resolution():
    import numpy as np
    fig, (ax,) = new_figure(width=7, height=5)
    points = np.random.default_rng(0).normal(size=(2, 60_000))
    ax.plot(*points, '.', markersize=2)
    assert len(figure_png(fig)) <= 100_000 < len(figure_png(fig, max_bytes=10**9))
    assert figure_png(fig, max_bytes=1).startswith(b'\x89PNG') # the smallest there is


def test_a_figure_has_its_axes_and_shares_them():
    fig, axes = new_figure(columns=2, lines=3, sharex='col', grid='both')
    assert axes.shape == (6,) and axes[0].get_shared_x_axes().joined(axes[0], axes[2])
    assert all(re.fullmatch('#[0-9A-F]{6}', c) for c in colors.values()) and len(set(colors.values())) == len(colors)
    assert figure_png(fig) == figure_png(fig) # no time or version in the file
