"What the terminal shows of a run: a sample, the rejects, and no control characters of a model."
import json, re

import pytest
from rich.cells import cell_len

from llm_distill.core.core import DistillError, read_jsonl, write_json, write_jsonl
from llm_distill.run.show import describe_data, format_rows, show
from run_files import labeled_run, read, write_record

attack = 'a\n\x1b[31mred\x07 | \\| [x](javascript:1) <img src=x> `b` *c* $d$ \u202e # | \r end'
plain = re.compile(
    r'[^\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]*'
)  # with line feeds, which end our own lines


@pytest.fixture
def run_dir(tmp_path): return labeled_run(tmp_path)


def test_show_after_each_stage(run_dir):
    whole = show(run_dir, n=3, width=100)
    facts, sample = whole.split('\n\n')[:2]
    assert facts == 'Teacher big, student small; pairs: training set 5, test set 2, out-of-distribution test set 1'
    assert sample == '3 of 5 pairs of the training set, drawn at random'
    pairs = {(r['question'], r['answer']) for r in read_jsonl(run_dir/'train.jsonl')}
    blocks = [block.splitlines() for block in whole.split('\n\n')[2:5]]
    assert [block[0] for block in blocks] == ['1. question', '2. question', '3. question']
    assert all(block[2].endswith('. answer') and (block[1].strip(), block[3].strip()) in pairs for block in blocks)
    assert re.search(r'\| synthesis \| near duplicate words +\| +3 \| near_duplicate_words 0 ', whole)
    assert re.search(r'\| labeling +\| format +\| +2 \| bad reply ', whole)
    assert re.search(r'no questions +\| +1 \| because of 0', whole) and '8 rejected' in whole
    assert 'seed question' not in whole and 'Closest' not in whole
    for f in 'train.jsonl', 'test.jsonl', 'test_ood.jsonl', 'data_map.jsonl': (run_dir/f).unlink()
    early = show(run_dir, n=3, width=100)
    assert (
        'questions: seed prompt 7, out-of-distribution prompt 1' in early
        and '3 of 7 questions of the seed prompt' in early
    )
    assert 'answer' not in early
    write_jsonl(run_dir/'rejects.jsonl', [])
    assert 'Nothing was rejected' in show(run_dir)


def test_notes_come_after_the_facts(run_dir):
    record = read(run_dir/'run.json')
    notes = dict(
        synthesize=['seed prompt: 40 of 50 questions: nothing\nnew', 'other prompt: 1 of 2 questions'],
        label=[f'3 {attack}'],
    )
    write_json(run_dir/'run.json', record | dict(notes=notes))
    lines = show(run_dir, width=100).splitlines()
    assert lines[0].startswith('Teacher big') and lines[1:3] == [
        'seed prompt: 40 of 50 questions: nothing new',
        'other prompt: 1 of 2 questions',
    ]
    assert lines[3].startswith('3 a \\x1b[31mred') and lines[4] == '' and lines[5].startswith('5 of 5 pairs')
    for damaged in [], 3, dict(a=None):
        write_json(run_dir/'run.json', record | dict(notes=damaged))
        with pytest.raises(DistillError, match='not the record of a run'): show(run_dir)


def test_a_damaged_reject_is_named(run_dir):
    (run_dir/'rejects.jsonl').write_text('{"filter": "format", "question": "a", "reason": "b"}\n')
    with pytest.raises(DistillError, match='malformed row') as e: show(run_dir)
    assert 'rejects.jsonl' in str(e.value) and 'llm-distill synthesize ' in str(e.value) and '\n' not in str(e.value)


def test_the_sample_is_reproducible(run_dir):
    write_jsonl(run_dir/'train.jsonl', [dict(question=f'Question {i}', answer='x') for i in range(50)])
    def drawn(**kw): return re.findall(r'Question \d+', show(run_dir, **kw))
    assert drawn(random_seed=1) == drawn(random_seed=1) != drawn(random_seed=2) and len(drawn()) == 8
    assert sorted(drawn(n=99)) == sorted(f'Question {i}' for i in range(50)) and drawn(n=0) == []


def test_several_seed_questions_and_the_closest_pair_are_shown(run_dir):
    labeled_run(run_dir, seeds=('Seed A?', 'Seed B?'))
    rows = [('far', 'away', .1), ('near', 'by', .8)]
    write_jsonl(
        run_dir / 'contamination.jsonl',
        [dict(test_set='test', question=q, closest=c, cosine=x, overlap=False) for q, c, x in rows],
    )
    text = show(run_dir, width=100)
    assert re.search(r'\| Seed A\? +\| +3 \| +1 \| +1 \|', text) and re.search(
        r'\| Seed B\? +\| +2 \| +1 \| +0 \|', text
    )
    assert text.endswith('cosine similarity 0.80\n  test:  near\n  train: by')


@pytest.mark.parametrize('width', [40, 80, 200])
def test_show_is_safe_and_fits_the_terminal(run_dir, width, monkeypatch):
    write_jsonl(
        run_dir / 'train.jsonl',
        [dict(question=attack * 3, answer='東京' * 60, seed_question=f'{i}{attack}') for i in range(2)],
    )
    write_jsonl(
        run_dir / 'rejects.jsonl',
        [
            dict(stage=attack, filter=attack, question=attack, reason=attack),
            dict(stage='labeling', filter='format', reply=attack, question='x', reason=''),
        ],
    )
    write_jsonl(run_dir/'contamination.jsonl', [dict(question=attack, closest=attack, cosine=.5)])
    write_record(run_dir, config=dict(student=attack), teacher=dict(model=attack))
    text = show(run_dir, width=width)
    assert plain.fullmatch(text) and '\\x1b[31m' in text
    tables = [line for line in text.split('\n') if line.startswith('|')]
    sample = [line for line in text.split('\n') if line.startswith('    ')]
    assert len(tables) == 4 + 5 and len(sample) > 4 and all(
        cell_len(line) <= max(width, 4 * 8 + 13) for line in [*tables, *sample, *text.split('\n')[-2:]]
    )
    monkeypatch.setenv('COLUMNS', str(width))
    assert show(run_dir) == text


def test_whole_texts_are_shown_with_their_line_breaks():
    answer = 'SELECT name\n  FROM members\n\n WHERE joined > 2020' + ' AND plan = "plus"'*20
    text = format_rows([dict(question='Who joined?', answer=answer)], 60)
    assert text.startswith('1. question\n    Who joined?\n1. answer\n    SELECT name\n      FROM members\n\n     WHERE')
    assert all(cell_len(line) <= 60 for line in text.splitlines())
    assert ' '.join(text.split('answer\n')[1].split()) == ' '.join(answer.split())


def test_the_data_can_be_read_by_a_program(run_dir):
    data = describe_data(run_dir, n=2)
    assert data['counts'] == {'training set': 5, 'test set': 2, 'out-of-distribution test set': 1}
    assert [len(rows) for rows in data['sample'].values()] == [2, 2, 1]
    assert data['rejects']['synthesis']['near duplicate words'] == 3
    assert json.loads(json.dumps(data)) == data


@pytest.mark.parametrize('record, why', [
    (None, 'is not a run directory'), ('{', 'not valid JSON'), ('[]', 'not the record of a run'),
    ('{}', 'not the record of a run'),
    ('{"settings": {}, "llm_distill": "0.1"}', 'older format'),
    ('{"format": 2}', 'not the record of a run'),
    ('{"format": 2, "config": 3, "teacher": {}, "notes": {}}', 'not the record of a run')])
def test_what_is_no_run_is_refused(run_dir, record, why):
    (run_dir/'run.json').unlink() if record is None else (run_dir/'run.json').write_text(record)
    with pytest.raises(DistillError, match=why) as e: show(run_dir)
    assert '\n' not in str(e.value) and str(run_dir) in str(e.value)


def test_a_run_without_questions_names_the_stage(run_dir):
    (run_dir/'questions.jsonl').unlink()
    (run_dir/'train.jsonl').unlink()
    with pytest.raises(DistillError, match="no questions yet; run 'llm-distill synthesize "): show(run_dir)
