"Files of a run: which stage writes them, and what is reported if they are missing, damaged or of another format."
from pathlib import Path

import pytest

from llm_distill.core.core import DistillError, write_json, write_jsonl, write_text
from llm_distill.core.rundir import (
    format_version, predictions_file, read_record, read_run_file, read_run_rows, split_titles, stage_command, stage_of,
    stages, test_sets)

quickstart = Path(__file__).resolve().parents[2]/'nbs'/'runs'/'quickstart'


writers = dict(
    synthesize=['questions.jsonl', 'rejects.jsonl'],
    label=['train.jsonl', 'test.jsonl', 'test_ood.jsonl', 'data_map.jsonl', 'dataset/train.parquet'],
    finetune=['losses.jsonl', 'student/config.json'],
    evaluate=['scores.json', 'item_scores.jsonl', 'contamination.jsonl', predictions_file('echo', 'test_ood')],
    results=['results.md', 'report.html', 'figures/scores.png'],
    judge=['judge.json', 'judge.jsonl'],
    cost=['cost.json'])


@pytest.mark.parametrize('file, stage', [(file, stage) for stage, files in writers.items() for file in files])
def test_every_file_has_a_stage_or_command_that_writes_it(file, stage):
    assert stage_of(file) == stage and stage_command('runs/a', file) == f'llm-distill {stage} runs/a'


def test_names_agree():
    assert stages == ('synthesize', 'label', 'finetune', 'evaluate', 'results') and set(test_sets) < set(split_titles)
    assert predictions_file('distilled', 'test') == 'predictions/distilled_test.jsonl'


@pytest.mark.parametrize('file, command', [
    ('scores.json', 'evaluate'), ('train.jsonl', 'label'), ('cost.json', 'cost'),
    ('predictions/echo_test.jsonl', 'evaluate')])
def test_a_missing_file_is_named_with_the_command_that_writes_it(tmp_path, file, command):
    with pytest.raises(DistillError) as e: read_run_file(tmp_path, file)
    assert str(e.value) == f"{tmp_path/file} is missing; run 'llm-distill {command} {tmp_path}' first"


@pytest.mark.parametrize('file, content, command', [
    ('questions.jsonl', b'[', 'synthesize'), ('questions.jsonl', b'{"question": "a"}', 'synthesize'),
    ('rejects.jsonl', b'{"question": "a"}', 'synthesize'), ('train.jsonl', b'{"seed_question": null}', 'label'),
    ('test.jsonl', b'x', 'label'), ('data_map.jsonl', b'\xff', 'label'),
    ('item_scores.jsonl', b'{"seed_question": 3}', 'evaluate')])
def test_damaged_files_are_named_with_the_command_that_writes_them(tmp_path, file, content, command):
    (tmp_path/file).write_bytes(content)
    with pytest.raises(DistillError) as e: read_run_rows(tmp_path, file, seed_question=str)
    assert file in str(e.value) and '\n' not in str(e.value)
    assert f"run 'llm-distill {command} {tmp_path}' again" in str(e.value)


@pytest.mark.parametrize('content', [b'{', b'"\xe9"'])
def test_a_damaged_json_file_is_named(tmp_path, content):
    (tmp_path/'scores.json').write_bytes(content)
    with pytest.raises(DistillError, match='scores.json is not valid JSON') as e: read_run_file(tmp_path, 'scores.json')
    assert f"run 'llm-distill evaluate {tmp_path}' again" in str(e.value) and '\n' not in str(e.value)


def test_rows_are_checked_by_type(tmp_path):
    rows = [dict(question='a', x=1), dict(question='b', x=1.5, more=None)]
    write_jsonl(tmp_path/'data_map.jsonl', rows)
    assert read_run_rows(tmp_path, 'data_map.jsonl') == rows
    assert read_run_rows(tmp_path, 'data_map.jsonl', question=str, x=(int, float)) == rows
    with pytest.raises(DistillError, match=r"malformed row .*'b'"): read_run_rows(tmp_path, 'data_map.jsonl', x=int)


# run.json

def test_the_record_of_the_quickstart_is_read():
    record = read_record(quickstart)
    assert record['format'] == format_version == 2 and record['config']['n'] == 200


older = ('was written by llm_distill 0.1.0 in an older format; '
         'start a new run directory, or use llm_distill 0.1.0 for this one')


@pytest.mark.parametrize('record, words', [
    (None, 'is not a run directory'), ('{', 'not valid JSON'), ('[]', 'not the record of a run'),
    ('{}', 'not the record of a run'), ('{"format": 2}', 'not the record of a run'),
    ('{"format": 2, "config": {}, "notes": 3}', 'not the record of a run'),
    ('{"settings": {"n": 3}, "llm_distill": "0.1.0"}', older), ('{"settings": {}}', 'in an older format'),
    ('{"format": 3, "config": {}, "llm_distill": "9.0"}', 'in format 3, expected 2; upgrade llm_distill')])
def test_what_is_no_record_of_this_format_is_one_line(tmp_path, record, words):
    if record is not None: write_text(tmp_path/'run.json', record)
    with pytest.raises(DistillError) as e: read_record(tmp_path)
    assert words in str(e.value) and '\n' not in str(e.value) and str(tmp_path) in str(e.value)


def test_a_record_may_lack_sections(tmp_path):
    write_json(tmp_path/'run.json', dict(format=2, config=dict(n=3)))
    assert read_record(tmp_path)['config'] == dict(n=3)
