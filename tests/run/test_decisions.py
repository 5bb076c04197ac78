"Decisions of a person: reading, merging, and what they change in the training pairs."
import json

import pytest
from hypothesis import given, strategies as st

from llm_distill.core.core import clean_text, read_jsonl, write_jsonl
from llm_distill.run.decisions import (
    add_decisions, apply_decisions, count_outdated, decision, decision_key, describe_changes, keep_unreviewed,
    merge_decisions, read_review, read_run_review, review_items, training_changes)
from odd_texts import anything, error_of, texts


def pair(i, answer='Yes.'): return dict(question=f'Question {i}?', answer=answer)


def decide(i, verdict, time=0, split='train', **kwargs):
    return decision(pair(i) | dict(split=split), verdict, **kwargs) | dict(time=f'2026-01-01T00:00:{time:02}.000Z')


@pytest.fixture
def run_dir(tmp_path):
    "Four training pairs and two test rows."
    origin = dict(seed_question='Seed?', teacher='big', sample=0, request='key', agreement=.5)
    write_jsonl(tmp_path/'train.jsonl', [pair(i) | origin for i in range(4)])
    write_jsonl(tmp_path/'test.jsonl', [pair(i) for i in (8, 9)])
    return tmp_path


def test_the_latest_decision_on_an_answer_counts_whatever_the_order():
    early, late = decide(1, 'accept', 1), decide(1, 'edit', 2, correct='No.')
    for reviews in ([early], [late]), ([late], [early]), ([late, early],): assert merge_decisions(*reviews) == [late]


def test_a_decision_that_was_undone_is_gone():
    assert merge_decisions([decide(1, 'accept', 1)], [decide(1, None, 2)]) == []
    assert merge_decisions([decide(1, 'accept', 3)], [decide(1, None, 2)]) == [decide(1, 'accept', 3)]


def test_adding_decisions_keeps_those_of_others(run_dir):
    add_decisions(run_dir, [decide(1, 'accept', 5)])
    add_decisions(run_dir, [decide(2, 'reject', 1), decide(1, 'reject', 4)])
    assert {decision_key(row)[0]: row['verdict'] for row in read_run_review(run_dir)} == {
        'Question 1?': 'accept', 'Question 2?': 'reject'}


def test_a_decision_is_about_one_answer_and_not_about_another_one_to_the_question(run_dir):
    add_decisions(run_dir, [decision(pair(1, 'An older answer.') | dict(split='train'), 'reject')])
    assert training_changes(run_dir) == [] and count_outdated(run_dir) == 1


def test_training_pairs_are_left_out_or_replaced_and_their_origin_says_so(run_dir):
    pairs = read_jsonl(run_dir/'train.jsonl')
    correct = 'SELECT name\n\tFROM members;\n-- مرحبا'
    add_decisions(run_dir, [decide(0, 'reject'), decide(1, 'edit', correct=correct), decide(2, 'accept')])
    reviewed = apply_decisions(pairs, training_changes(run_dir))
    assert reviewed[1:] == pairs[2:]
    assert reviewed[0] == pairs[1] | dict(answer=correct, teacher='person', request='', agreement=None)


def test_a_decision_on_a_test_row_changes_no_training_pair(run_dir):
    add_decisions(run_dir, [decide(8, 'reject', split='test'), decide(9, 'edit', split='test', correct='No.')])
    assert training_changes(run_dir) == []


def test_the_pairs_of_the_teacher_are_kept_once(run_dir):
    before = (run_dir/'train.jsonl').read_bytes()
    keep_unreviewed(run_dir)
    write_jsonl(run_dir/'train.jsonl', read_jsonl(run_dir/'train.jsonl')[1:])
    keep_unreviewed(run_dir)
    assert (run_dir/'unreviewed.jsonl').read_bytes() == before
    assert describe_changes(run_dir) == 'checked by a person: 1 training pair left out'
    assert [item['question'] for item in review_items(run_dir) if item['split'] == 'train'][0] == 'Question 0?'


def test_test_rows_come_first(run_dir):
    write_jsonl(run_dir/'test_ood.jsonl', [pair(12)])
    assert [item['split'] for item in review_items(run_dir)] == ['test']*2 + ['test_ood'] + ['train']*4


broken = dict(
    verdict='maybe', student_verdict='edit', question=3, answer=None, time=5, split=[], correct=' \n ', prediction=None)


@pytest.mark.parametrize('key', broken)
def test_a_malformed_decision_is_an_error_with_its_line(tmp_path, key):
    row = decide(1, 'edit', correct='No.', student_verdict='accept', prediction='Perhaps.') | {key: broken[key]}
    write_jsonl(tmp_path/'review.jsonl', [decide(1, 'accept'), row])
    message = error_of(read_review, tmp_path/'review.jsonl')
    assert 'line 2' in message and key.replace('correct', 'right answer') in message


@anything
@given(texts)
def test_any_file_is_read_or_refused_in_one_line(tmp_path_factory, text):
    file = tmp_path_factory.mktemp('review')/'review.jsonl'
    file.write_bytes(text.encode('utf-8', 'surrogatepass'))
    try: assert isinstance(read_review(file), list)
    except Exception: assert error_of(read_review, file)


@anything
@given(st.text(), st.text(min_size=1))
def test_any_question_and_answer_survives_the_file(tmp_path_factory, question, answer):
    folder = tmp_path_factory.mktemp('review')
    item = dict(split='train', question=clean_text(question), answer=clean_text(answer))
    add_decisions(folder, [decision(item, 'reject')])
    assert [decision_key(row) for row in read_run_review(folder)] == [decision_key(item)]
    assert all(json.loads(line) for line in (folder/'review.jsonl').read_text(encoding='utf-8').split('\n') if line)
