"Tables and sections as Markdown and HTML: whatever their text is, it stays text."
import re

from hypothesis import example, given, settings, strategies as st

from llm_distill.run.document import AnswerPair, Image, Section, Table, to_html, to_markdown
from run_files import Page, hostile, rendered

anything = settings(max_examples=60, deadline=None, derandomize=True)
png = b'\x89PNG\r\n\x1a\n'


def page_of(*sections): return Page(to_html('Title', list(sections)))


def everything(text):
    "A section with the text in every place"
    return Section(
        text,
        text,
        text,
        [text],
        [Table(text, [text, text], [[text, text]])],
        [text],
        [Image('name', text, text, png)],
        [AnswerPair(text, text, text, [(text, 1), (text, None)], [(text, 1)])],
        {text: text},
    )


@anything
@given(st.text(min_size=1, max_size=20))
@example(hostile)
@example('</style></main>{{ 7*7 }}{% if %}')
@example('" onload="x')
def test_any_text_in_any_place_is_text_of_the_page(text):
    plain = page_of(everything('plain'))
    page = page_of(everything(text))
    assert not page.open and [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert [a.keys() - {'class'} for _, a in page.tags] == [
        a.keys() - {'class'} for _, a in plain.tags
    ]  # long cells have one
    assert not re.search('[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]', to_html('Title', [everything(text)]))


@anything
@given(st.text(max_size=20))
@example(hostile)
@example('- a')
def test_any_text_in_a_table_is_its_text_in_markdown(text):
    page = rendered(Table('Title', ['a', 'b'], [[text, 'x'], ['y', text]]).markdown())
    assert [tag for tag, _ in page.tags].count('td') == 4 and not {'a', 'em', 'code', 'script', 'ul'} & {
        tag for tag, _ in page.tags
    }


def test_numbers_with_a_sign_are_as_they_are_written():
    text = Table('Title', ['a', 'b', 'c'], [['x', '-5%', '+0.1']]).markdown()
    assert '-5%' in text and '+0.1' in text and '\\' not in text


def test_empty_sections_are_left_out():
    sections = [Section('Kept', notes=['x']), Section('Dropped'), Section('Too', intro='x')]
    assert [o for o in to_markdown('T', sections).splitlines() if o.startswith('##')] == ['## Kept']
    assert 'Dropped' not in page_of(*sections).text


def test_wide_columns_of_text_are_aligned_to_the_left():
    table = Table('Title', ['a', 'b', 'c'], [['x', 3, 'word '*20], ['y', 'word '*3, '']])
    assert table.text_columns == (0, 2)
    classes = [a.get('class') for tag, a in page_of(Section('S', tables=[table])).tags if tag in ('td', 'th')]
    assert classes == ['words', None, 'words']*3


def test_a_table_without_rows_has_its_header():
    assert Table('Title', ['a', 'b'], []).markdown().count('\n') == 3


def test_matched_parts_have_the_same_number_and_others_a_name():
    pair = AnswerPair('Why?', 'F1', 'step', [('a', None), ('b', 1), ('c', 5)], [('c', 5), ('b', 1), ('z', None)])
    text = to_html('T', [Section('S', examples=[pair, AnswerPair('Who?', 'F1', 'step', [], [])])])
    assert text.count('<b>step 1</b> b') == text.count('<b>step 5</b> c') == 2
    assert '<b>missing</b> a' in text and '<b>extra</b> z' in text and text.count('(nothing)') == 2
