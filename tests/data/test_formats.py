"Pairs in the formats of other trainers, and back."
import json

import pytest
from hypothesis import given, strategies as st

from llm_distill.core.core import write_jsonl
from llm_distill.core.prompt import SeedPrompt, trim
from llm_distill.data.formats import export_row, formats, write_rows
from llm_distill.data.rows import import_rows, read_rows
from odd_texts import anything, error_of, texts

kept = texts.map(lambda t: trim(trim(t.encode('utf-8', 'ignore').decode().replace('\0', '')))).filter(bool)
pairs = st.lists(st.tuples(kept, kept), min_size=1, max_size=4, unique_by=lambda pair: pair[0])


@anything
@given(pairs, kept, st.sampled_from(formats))
def test_what_is_exported_is_read_back_exactly(tmp_path_factory, pairs, instruction, format):
    rows = [dict(question=question, answer=answer) for question, answer in pairs]
    prompt = SeedPrompt(instruction, (), 'x', form='chat')
    path = tmp_path_factory.getbasetemp()/f'export.{"parquet" if format == "parquet" else "jsonl"}'
    assert read_rows(write_rows(rows, prompt, path, format)) == rows
    if format == 'openai': assert import_rows(path).system == prompt.instruction


def test_a_line_of_each_format():
    prompt, row = SeedPrompt('Do it.', (), 'x', form='chat'), dict(question='a', answer='b', teacher='m')
    user, assistant = dict(role='user', content='a'), dict(role='assistant', content='b')
    system = dict(role='system', content='Do it.')
    lines = [export_row(row, prompt, format) for format in formats[:3]]
    assert lines == [dict(messages=[user, assistant]), dict(prompt='a', completion='b'),
                     dict(messages=[system, user, assistant])]
    bare = SeedPrompt('', (), 'x', form='chat')
    assert export_row(row, bare, 'openai') == lines[0]


def test_parquet_has_all_columns(tmp_path):
    from datasets import Dataset
    row = dict(question='a', answer='b', seed_question='s', teacher='m', sample=1, request='k', agreement=.5)
    write_rows([row], SeedPrompt('Do it.', (), 'x'), tmp_path/'a.parquet', 'parquet')
    messages = [dict(role='user', content='a'), dict(role='assistant', content='b')]
    assert Dataset.from_parquet(str(tmp_path/'a.parquet'))[0] == row | dict(messages=messages)


def test_an_unknown_format(tmp_path):
    assert 'format must be one of messages' in error_of(write_rows, [], SeedPrompt('a', (), 'b'), tmp_path/'a', 'csv')
