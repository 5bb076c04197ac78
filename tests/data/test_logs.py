"From a log to a prompt and to the pairs of a run."
import pytest

from llm_distill.core.core import read_jsonl, write_jsonl
from llm_distill.core.prompt import SeedPrompt
from llm_distill.core.prompt_files import load_prompt
from llm_distill.data.logs import import_file, propose_prompt
from llm_distill.data.rows import import_rows, read_rows
from odd_texts import error_of


def request(i, **more):
    messages = [dict(role='system', content='Tag it.'), dict(role='user', content='Hi'),
                dict(role='assistant', content='other'),
                dict(role='user', content=f'ticket {i}\n  late'), dict(role='assistant', content=f'delivery {i}')]
    return dict(messages=messages) | more


def test_the_prefix_becomes_the_prompt(tmp_path):
    files = import_file(write_jsonl(tmp_path/'log.jsonl', map(request, range(9))), tmp_path/'out')
    prompt = SeedPrompt('Tag it.', [('Hi', 'other')], 'ticket 0\n  late', form='chat')
    assert load_prompt(files.prompt_file) == files.prompt == prompt == propose_prompt(import_rows(tmp_path/'log.jsonl'))
    assert [row['answer'] for row in read_jsonl(files.pairs_file)] == [f'delivery {i}' for i in range(9)]


def test_the_pairs_are_written_in_the_order_of_the_split(tmp_path):
    log = [request(i, user_id=i % 3, timestamp=f'2026-11-0{i + 1}T00:00:00Z') for i in range(6)]
    files = import_file(write_jsonl(tmp_path/'log.jsonl', log), tmp_path/'out')
    rows = read_jsonl(files.pairs_file)
    assert [row['answer'][-1] for row in rows] == ['5', '2', '4', '1', '3', '0']
    assert read_rows(files.pairs_file)[0] == dict(rows[0], group='1') # numbered again, and the same groups
    assert set(rows[0]) == {'question', 'answer', 'group', 'time'}


def test_an_edited_prompt_is_not_overwritten(tmp_path):
    log = write_jsonl(tmp_path/'log.jsonl', map(request, range(9)))
    first = import_file(log, tmp_path/'out')
    assert import_file(log, tmp_path/'out') == first
    edited = first.prompt_file.read_text().replace('Tag it.', 'Tag it well.')
    first.prompt_file.write_text(edited)
    assert 'holds another prompt' in error_of(import_file, log, tmp_path/'out')
    assert first.prompt_file.read_text() == edited


def test_repeated_questions_are_counted(tmp_path):
    files = import_file(write_jsonl(tmp_path/'log.jsonl', [request(0), request(1), request(0)]), tmp_path/'out')
    assert files.n_pairs == 2 and '1 not taken: 1 a repeated question' in files.summary


@pytest.mark.parametrize('records, n_pairs, n_questions', [
    ([dict(question='a'), dict(question='b')], 0, 2), ([dict(question='a'), dict(question='b', answer='c')], 1, 1),
    ([dict(question='a'), dict(question='a', answer='c')], 1, 0)])
def test_questions_without_answers_have_their_own_file(tmp_path, records, n_pairs, n_questions):
    files = import_file(write_jsonl(tmp_path/'a.jsonl', records), tmp_path/'out')
    assert (files.n_pairs, files.n_questions) == (n_pairs, n_questions) and files.prompt.instruction == ''
    assert (files.pairs_file is None, files.questions_file is None) == (n_pairs == 0, n_questions == 0)
