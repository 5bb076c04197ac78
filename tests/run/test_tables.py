"Tables and verdict: what they show comes from the files of a run, and the verdict follows from the intervals."
import re

import pytest

from llm_distill.core.core import DistillError, read_jsonl, recordings, write_json, write_jsonl
from llm_distill.core.prompt_files import load_prompt
from llm_distill.data.embedding import cached_encoder, embed
from llm_distill.evaluate.baselines import constant, echo, nearest, system_title
from llm_distill.evaluate.evaluation import score_run
from llm_distill.run import tables as t
from run_files import Page, add_seed_questions, evaluated_run, read


@pytest.fixture
def run_dir(tmp_path): return evaluated_run(tmp_path)


def parsed(text):
    "Title -> rows of cells of each Markdown table"
    parts = re.split(r'\*\*(Table \d)[^*]*\*\*', text)[1:]
    def rows(s):
        return [
            [c.strip() for c in line.strip('|').split('|')]
            for line in s.splitlines()
            if line.startswith('|') and '--' not in line
        ]
    return {title: rows(body) for title, body in zip(parts[::2], parts[1::2])}


def test_tables_show_what_the_file_says(run_dir):
    shown = parsed(t.tables(run_dir))
    assert list(shown) == ['Table 1', 'Table 2']
    names = [system_title(s) for s in ('distilled', 'one_shot', 'nearest', 'echo', 'teacher')]
    assert [r[0] for r in shown['Table 1'][1:]] == [r[0] for r in shown['Table 2'][1:]] == names
    assert shown['Table 1'][1] == [names[0], '0.907 (0.857 to 0.957)', '0.703 (0.653 to 0.753)', '50']
    assert shown['Table 2'][5][1:3] == ['0.931 (0.881 to 0.981)', '0.761 (0.711 to 0.811)']


def test_columns_are_aligned(run_dir):
    for block in t.tables(run_dir).split('\n\n'):
        if block.startswith('|'): assert len({len(line) for line in block.splitlines()}) == 1


def test_the_gap_recovered_has_a_column_where_it_is_known(run_dir):
    rows = read(run_dir/'scores.json')
    for r in rows: r['pgr'] = dict(mean=.8, low=.7, high=.9) if r['system'] == 'distilled' else None
    write_json(run_dir/'scores.json', rows)
    shown = parsed(t.tables(run_dir))['Table 1']
    assert shown[0][3] == 'PGR' and [r[3] for r in shown[1:3]] == ['80% (70% to 90%)', '']
    assert 'performance gap recovered (PGR): 80% (70% to 90%) on the test set and 80%' in t.verdict(run_dir)


def test_one_test_set_is_enough(run_dir):
    write_json(run_dir/'scores.json', [r for r in read(run_dir/'scores.json') if r['test_set'] == 'test'])
    assert list(parsed(t.tables(run_dir))) == ['Table 1']


def test_one_metric_is_shown_once(run_dir):
    write_json(run_dir/'scores.json', [r | dict(main='similarity') for r in read(run_dir/'scores.json')])
    assert len(parsed(t.tables(run_dir))['Table 1'][0]) == 3


def test_a_metric_that_does_not_apply_to_a_system_is_a_dash(run_dir):
    none = dict(mean=None, low=None, high=None)
    write_json(
        run_dir / 'scores.json',
        [r | dict(step_f1=none) if r['system'] == 'echo' else r for r in read(run_dir / 'scores.json')],
    )
    assert parsed(t.tables(run_dir))['Table 1'][4][2] == '–'


def test_a_system_of_the_user_comes_last_under_its_own_name(run_dir):
    rows = read(run_dir/'scores.json')
    write_json(run_dir/'scores.json', [dict(rows[-1], system='my_model', test_set='test'), *rows])
    assert [r[0] for r in parsed(t.tables(run_dir))['Table 1']][-2:] == [system_title('teacher'), 'my model']


@pytest.mark.parametrize('text', ['{"a": 1}', '[]', '[3]', '[{"test_set": "test", "system": "x", "n": 3}]', '[['])
def test_damaged_scores_are_named_with_the_command(run_dir, text):
    (run_dir/'scores.json').write_text(text)
    for show in t.tables, t.more_tables, t.verdict:
        with pytest.raises(DistillError, match=r"scores.json .*run 'llm-distill evaluate .*' again") as e: show(run_dir)
        assert '\n' not in str(e.value)


@pytest.mark.parametrize('change', [
    dict(main='gone'), dict(step_f1=3), dict(step_f1=dict(mean=.5)), dict(step_f1=dict(mean='a', low=0, high=1))])
def test_a_row_without_its_main_metric_is_damaged(run_dir, change):
    write_json(run_dir/'scores.json', [r | change for r in read(run_dir/'scores.json')])
    with pytest.raises(DistillError, match='malformed row'): t.tables(run_dir)

# ---- seed questions

def test_seed_questions_have_their_own_table(run_dir):
    add_seed_questions(run_dir, ['A?'])
    assert 'by seed question' not in t.tables(run_dir)
    add_seed_questions(run_dir, ['A?', 'B?'])
    text = t.tables(run_dir).split('by seed question')[1]
    rows = [
        [c.strip() for c in line.strip('|').split('|')]
        for line in text.splitlines()
        if line.startswith('|') and '--' not in line
    ]
    assert rows[0] == ['seed question', *(system_title(s) for s in ('distilled', 'one_shot', 'teacher')), 'n']
    assert rows[1:] == [
        ['A?', '0.300', '0.150', '0.200', '3'],
        ['B?', '0.400', '0.200', '0.200', '3'],
    ]  # the teacher lacks its first answer, .05
    (run_dir/'test.jsonl').unlink()
    assert 'by seed question' not in t.tables(run_dir)


@pytest.mark.parametrize('gap', [{}, dict(seed_question=None), dict(seed_question=3)])
def test_rows_without_a_seed_question_make_no_table(run_dir, gap):
    add_seed_questions(run_dir, ['A?', 'B?'])
    rows = read_jsonl(run_dir/'test.jsonl')
    write_jsonl(run_dir/'test.jsonl', [{k: v for k, v in r.items() if k != 'seed_question'} | gap for r in rows])
    assert 'by seed question' not in t.tables(run_dir)

# ---- the verdict

@pytest.fixture(scope='module')
def recorded():
    "Test questions, and what the teacher answered first and second; training rows"
    prompt, rows = load_prompt(recordings/'apartments.toml'), read_jsonl(recordings/'apartments.jsonl')
    def answer(r, i): return prompt.parse(r['answers'][i])
    train = [dict(question=r['question'], answer=answer(r, 0)) for r in rows[50:110]]
    return (
        [r['question'] for r in rows[:40]],
        [answer(r, 0) for r in rows[:40]],
        [answer(r, 1) for r in rows[:40]],
        train,
    )


@pytest.fixture(scope='module')
def encode(): return cached_encoder(embed)


def judge(folder, distilled, recorded, encode):
    "The verdict on a student that gave certain answers"
    questions, expected, second, train = recorded
    base = [e.split(',')[0] for e in expected] # a 1-shot base model that finds the first step
    answers = dict(distilled=distilled, one_shot=base, echo=echo(questions, train), nearest=nearest(questions, train),
                   constant=constant(questions, train, encode=encode), teacher=second)
    for s, o in answers.items():
        rows = [dict(question=q, expected=e, prediction=p) for q, e, p in zip(questions, expected, o, strict=True)]
        write_jsonl(folder/'predictions'/f'{s}_test.jsonl', rows)
    score_run(folder, encode)
    return t.verdict(folder)


@pytest.mark.parametrize('name', [
    'echo', 'empty', 'constant', 'copies training', 'always the same word', 'echo in a template', 'everything at once',
    'as the base model'])
def test_a_degenerate_student_never_succeeds(tmp_path, recorded, encode, name):
    questions, expected, _, train = recorded
    answers = {
        'echo': questions,
        'empty': [''] * 40,
        'constant': [expected[0]] * 40,
        'copies training': nearest(questions, train),
        'always the same word': ['find'] * 40,
        'echo in a template': [f'Find all the options, {q}, list those' for q in questions],
        'everything at once': [', '.join(expected[:12])] * 40,
        'as the base model': [e.split(',')[0] for e in expected],
    }
    text = judge(tmp_path, answers[name], recorded, encode)
    assert (
        re.match(r'\*\*The distillation (did not work|is not shown to work) on the test set', text)
        and 'worked on' not in text
    )


def test_a_good_student_succeeds_and_is_still_below_the_ceiling(tmp_path, recorded, encode):
    good = [a.rsplit(',', 1)[0] + '.' for a in recorded[2]] # forgets the last step
    text = judge(tmp_path, good, recorded, encode)
    assert (
        text.startswith('**The distillation worked on the test set.**')
        and f'worse than "{system_title("teacher")}"' in text
    )
    assert f'better than "{system_title("echo")}"' in text and '%' in text
    assert f'not distinguishable from "{system_title("teacher")}"' in judge(tmp_path, recorded[2], recorded, encode)


@pytest.mark.parametrize('intervals, outcome', [
    (dict(), 'worked on'), (dict(teacher=(-.3, -.2)), 'worked on'), (dict(echo=(-.01, .2)), 'is not shown to work on'),
    (dict(echo=(0, .2)), 'is not shown to work on'), (dict(constant=(0, 0)), 'is not shown to work on'),
    (dict(echo=(.1, .2, .125)), 'is not shown to work on'), (dict(nearest=(-.2, -.01)), 'did not work on'),
    (dict(nearest=(-.2, -.01), echo=(-.1, .1)), 'did not work on')])
def test_the_verdict_follows_from_the_intervals(run_dir, intervals, outcome):
    rows = [r for r in read(run_dir/'scores.json') if r['test_set'] == 'test']
    ends = dict(one_shot=(.1, .2), nearest=(.1, .2), echo=(.001, .2), teacher=(-.1, .1)) | intervals
    for r in rows:
        if r['system'] == 'distilled':
            r['against'] = {
                s: dict(mean=(a + b) / 2, low=a, high=b, p=p[0] if p else 0.01, n=9) for s, (a, b, *p) in ends.items()
            }
    write_json(run_dir/'scores.json', rows)
    line = t.verdict(run_dir).splitlines()[0]
    assert line.startswith(f'**The distillation {outcome} the test set') and line.count('work') == 1
    for s, (low, high, *p) in ends.items():
        named = low <= 0 or p if outcome.startswith('is not') else high < 0
        assert (f'the {system_title(s)}' in line) == bool(named and s != 'teacher')


def test_there_is_no_verdict_without_the_comparisons(run_dir):
    rows = read(run_dir/'scores.json')
    for r in rows: r.get('against', {}).pop('echo', None)
    write_json(run_dir/'scores.json', rows)
    assert 'No verdict' in t.verdict(run_dir) and system_title('echo') in t.verdict(run_dir)
    write_json(run_dir/'scores.json', [r for r in rows if r['system'] != 'distilled'])
    assert 'No verdict' in t.verdict(run_dir)

# ---- contamination and worst answers

def test_overlap_is_a_warning(run_dir):
    assert t.contamination_note(run_dir).startswith('No test question') and '0.39' in t.contamination_note(run_dir)
    rows = read_jsonl(run_dir/'contamination.jsonl')
    write_jsonl(run_dir/'contamination.jsonl', [r | dict(overlap=i < 3) for i, r in enumerate(rows)])
    assert t.contamination_note(run_dir).startswith('Warning: 3 of 80')
    write_jsonl(run_dir/'contamination.jsonl', [])
    assert 'has no training set' in t.contamination_note(run_dir)


def test_worst_answers_and_their_steps(run_dir):
    worst = t.worst_answers(run_dir, 3)
    assert (
        [r['score'] for r in worst] == [0, 0, 0.025]
        and worst[0]['missing'] == ['b', 'c']
        and worst[0]['extra'] == ['b']
    )


def test_answers_without_a_score_are_not_the_worst(run_dir):
    rows = read_jsonl(run_dir/'item_scores.jsonl')
    write_jsonl(run_dir/'item_scores.jsonl', [r | dict(step_f1=None) if r['step_f1'] == 0 else r for r in rows])
    assert t.worst_answers(run_dir, 1)[0]['score'] == .025


@pytest.mark.parametrize('expected, prediction, parts', [
    ('{"what": "milk", "when": "at 9, or 10"}', '{"what": "milk", "when": null}',
     dict(missing=['when: "at 9, or 10"'], extra=['when: null'])),
    ('Yes.', 'No.', dict(missing=['Yes.'], extra=['No.']))])
def test_parts_are_fields_or_the_whole_text(run_dir, expected, prediction, parts):
    rows = read_jsonl(run_dir/'item_scores.jsonl')
    write_jsonl(run_dir/'item_scores.jsonl', [r | dict(expected=expected, prediction=prediction) for r in rows])
    worst, = t.worst_answers(run_dir, 1)
    assert {k: worst[k] for k in parts} == parts


def test_text_of_a_model_is_escaped_in_a_cell(run_dir):
    rows = read(run_dir/'scores.json')
    write_json(run_dir/'scores.json', [r | dict(system='a|<b>') if r['system'] == 'echo' else r for r in rows])
    page = Page('<p></p>')
    page.feed(t.tables(run_dir).replace('\\<', '&lt;'))
    assert 'a\\|' in t.tables(run_dir) and [tag for tag, _ in page.tags] == ['p']
