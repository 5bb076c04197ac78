"The report and results.md of a run: complete, self-contained, and safe from text that models wrote."
import re

import pytest

from llm_distill.core.core import DistillError, read_jsonl, write_json, write_jsonl
from llm_distill.evaluate.baselines import system_title
from llm_distill.evaluate.cost import add_prices
from llm_distill.run import report as r
from llm_distill.run.tables import more_tables, tables, verdict
from run_files import (
    Page,
    add_data,
    add_seed_questions,
    alt_texts,
    cells_of,
    costs,
    difference,
    evaluated_run,
    hostile,
    judged,
    read,
    rendered,
    score_row,
)


@pytest.fixture
def run_dir(tmp_path): return evaluated_run(tmp_path)


def test_write_results_is_complete_small_and_repeatable(run_dir):
    path = r.write_results(run_dir)
    text = path.read_text()
    linked = re.findall(r'!\[([^\]]{10,})\]\(([^)]+)\)', text)
    assert tables(run_dir) in text and verdict(run_dir) in text and more_tables(run_dir) in text and len(linked) >= 4
    for _, target in linked:
        png = (run_dir/target).read_bytes()
        assert png[:8] == b'\x89PNG\r\n\x1a\n' and len(png) <= 100_000
    first = {f.name: f.read_bytes() for f in (run_dir/'figures').iterdir()}
    page = (run_dir/'report.html').read_bytes()
    r.write_results(run_dir)
    assert {f.name: f.read_bytes() for f in (run_dir/'figures').iterdir()} == first and path.read_text() == text
    assert (run_dir/'report.html').read_bytes() == page


@pytest.mark.parametrize('file, text, stage', [
    ('scores.json', None, 'evaluate'), ('scores.json', '{"a": 1}', 'evaluate'),
    ('scores.json', '[{"test_set": "test", "system": "x", "n": 3}]', 'evaluate'),
    ('scores.json', '[[', 'evaluate'), ('losses.jsonl', None, 'finetune'), ('losses.jsonl', 'loss 3', 'finetune'),
    ('losses.jsonl', '', 'finetune'),
    ('item_scores.jsonl', None, 'evaluate'), ('item_scores.jsonl', '{"system": "distilled"}', 'evaluate'),
    ('contamination.jsonl', None, 'evaluate'),
    ('predictions/one_shot_test.jsonl', None, 'evaluate'),
    ('predictions/distilled_test.jsonl', '{"question": "a"}', 'evaluate')])
def test_damaged_files_are_named_with_the_stage_that_writes_them(run_dir, file, text, stage):
    (run_dir/file).unlink() if text is None else (run_dir/file).write_text(text)
    with pytest.raises(DistillError) as e: r.write_results(run_dir)
    assert file in str(e.value) and f'llm-distill {stage} ' in str(e.value) and '\n' not in str(e.value)
    assert (
        not (run_dir / 'results.md').exists()
        and not (run_dir / 'report.html').exists()
        and not (run_dir / 'figures').exists()
    )


def test_a_warning_of_overlap_is_in_the_report(run_dir):
    rows = read_jsonl(run_dir/'contamination.jsonl')
    write_jsonl(run_dir/'contamination.jsonl', [row | dict(overlap=i < 3) for i, row in enumerate(rows)])
    assert 'Warning: 3 of 80' in r.report(run_dir) and 'Warning: 3 of 80' in r.write_results(run_dir).read_text()


def test_answers_without_steps_get_no_figure_of_steps(run_dir):
    rows = [row | dict(main='token_f1', token_f1=row['step_f1']) for row in read(run_dir/'scores.json')]
    write_json(run_dir/'scores.json', rows)
    write_jsonl(
        run_dir / 'item_scores.jsonl',
        [row | dict(token_f1=row['step_f1'], expected='Yes.') for row in read_jsonl(run_dir / 'item_scores.jsonl')],
    )
    write_jsonl(run_dir/'contamination.jsonl', [])
    text = r.write_results(run_dir).read_text()
    assert {f.name for f in (run_dir / 'figures').iterdir()} == {'scores.png', 'losses.png'} and 'token F1' in tables(
        run_dir
    )
    assert 'steps.png' not in text and 'no training set' in text


def test_parts_that_are_fields_are_called_fields(run_dir):
    rows = read_jsonl(run_dir/'item_scores.jsonl')
    answers = dict(expected='{"what": "milk", "when": "at 9, or 10"}', prediction='{"what": "milk", "when": null}')
    write_jsonl(run_dir/'item_scores.jsonl', [row | answers for row in rows])
    text = ' '.join(Page(r.report(run_dir)).text)
    assert 'field 1' in text and 'what: "milk"' in text and 'step 1' not in text

# ---- the HTML page

def test_report_is_well_formed_accessible_and_self_contained(run_dir):
    text = r.report(run_dir)
    page = Page(text)
    tags = [tag for tag, _ in page.tags]
    assert (
        not page.open
        and len(text) < 2_000_000
        and tags.count('h1') == tags.count('main') == 1
        and ('html', {'lang': 'en'}) in page.tags
    )
    levels = [int(tag[1]) for tag in tags if tag in ('h1', 'h2', 'h3', 'h4')]
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:]))
    assert (
        all(a['alt'] and a['src'].startswith('data:image/png;base64,') for tag, a in page.tags if tag == 'img')
        and tags.count('img') == 4
    )
    assert (
        all(a.get('scope') for tag, a in page.tags if tag == 'th') and tags.count('caption') == tags.count('table') >= 4
    )
    scrolled = [a for tag, a in page.tags if a.get('class') == 'scroll']
    assert len(scrolled) == tags.count('table') and all(
        a['tabindex'] == '0' and a['role'] == 'region' and a['aria-label'] for a in scrolled
    )
    assert not [a for _, a in page.tags if 'href' in a] and not re.search(r'url\(|@import|<script|https?://', text)


def test_report_spreads_twenty_examples_from_worst_to_best(run_dir):
    text = r.report(run_dir)
    shown = [float(x) for x in re.findall(r'<p>step F1 ([\d.]+), ', text)]
    assert len(shown) == 20 and shown == sorted(shown) and shown[0] == 0 and shown[-1] == pytest.approx(.975, abs=.006)
    assert (
        '<now>' not in text
        and '&lt;now&gt;' in text
        and '<b>missing</b> c' in text
        and text.count('<b>step 1</b> a') == 40
    )
    for title in 'Table 1', 'Table 2': assert title in text
    assert '0.703 (0.653 to 0.753)' in text

# ---- error analysis, judge, and cost

def test_cost_and_judge_are_shown_where_they_exist(run_dir):
    md, html = r.write_results(run_dir).read_text(), (run_dir/'report.html').read_text()
    for text in md, html: assert 'Error analysis' in text and 'Judge' not in text and 'Cost and speed' not in text
    unknown = judged(first_wins=None, win_rate=dict(mean=None, low=None, high=None), unusable=7)
    write_json(
        run_dir / 'judge.json',
        dict(
            judge='big',
            systems=dict(one_shot=dict(test=judged(wins=3)), distilled=dict(test=judged(), test_ood=unknown)),
        ),
    )
    write_json(run_dir/'cost.json', costs())
    md, html = r.write_results(run_dir).read_text(), (run_dir/'report.html').read_text()
    page = Page(html)
    rows = cells_of(md, 'Judged against the teacher, test set')
    assert rows[1:] == [[system_title('distilled'), '44% (37% to 51%)', '11', '22', '17', '58%', '24%', '50'],
                        [system_title('one_shot'), '44% (37% to 51%)', '3', '22', '17', '58%', '24%', '50']]
    assert cells_of(md, 'Judged against the teacher, out-of-distribution test set')[1][1:6] == [
        '',
        '11',
        '22',
        '17',
        '',
    ]
    assert 'Judge: big.' in md and 'without a usable judgment: 7.' in md
    rows = cells_of(md, 'Speed, size and cost')
    assert rows[1][1:] == ['789', '123 ms', '4.6 s', '654 MB (safetensors)', '321 MB', '\\$0.00']
    assert rows[3] == ['teacher', *'–'*5, '\\$2.00'] and set(rows[2][1:-1]) == {'–'}
    assert (
        'paid for itself after 500 requests' in md
        and 'paid for itself after 500 requests' in alt_texts(md)['break_even']
    )
    assert 'base model, 1-shot (it is not there)' in html
    for shown in '44% (37% to 51%)', '123 ms', 'Judge: big.', 'Cost and speed', 'Judge', '789':
        assert any(shown in o for o in page.text)
    assert not page.open and any(
        'paid for itself after 500 requests' in a['alt'] for tag, a in page.tags if tag == 'img'
    )
    assert (run_dir/'figures'/'break_even.png').exists()


def test_a_break_even_that_is_not_known_has_no_figure(run_dir):
    write_json(run_dir/'cost.json', costs())
    r.write_results(run_dir)
    cost = costs()
    write_json(
        run_dir / 'cost.json', add_prices(cost | dict(teacher=cost['teacher'] | dict(dollars_per_million_tokens=None)))
    )
    md = r.write_results(run_dir).read_text()
    assert 'unknown' in md and 'break_even' not in alt_texts(md) and not (run_dir/'figures'/'break_even.png').exists()


@pytest.mark.parametrize('file, text', [
    ('judge.json', '{'), ('judge.json', '{}'), ('judge.json', '[]'),
    ('judge.json', '{"judge": "a", "systems": {"x": {"test": {"n": 3}}}}'),
    ('judge.json', '{"judge": "a", "systems": 3}'), ('cost.json', '{'), ('cost.json', '{}')])
def test_a_damaged_judge_or_cost_is_named(run_dir, file, text):
    (run_dir/file).write_text(text)
    with pytest.raises(DistillError, match=file) as e: r.write_results(run_dir)
    assert '\n' not in str(e.value) and not (run_dir/'results.md').exists()


def test_failures_are_counted_by_kind_and_by_seed_question(run_dir):
    add_seed_questions(run_dir, ['A?', 'B?'])
    md = r.write_results(run_dir).read_text()
    rows = cells_of(md, 'Failures of the distilled student')
    assert (
        sum(int(row[1]) for row in rows[1:]) == 4 and rows[0][2] == 'mean step F1'
    )  # a third of the 12 answers on both sets
    rows = cells_of(md, 'Failures by seed question')
    assert rows[1:] == [['A?', '1', '3'], ['B?', '1', '3']] # questions 0 and 1 of each set are the worst
    page = Page((run_dir/'report.html').read_text())
    assert 'Table 1 by seed question: step F1, means' in page.text and '0.300' in page.text

# ---- the data, and text that models wrote

def test_figures_have_their_numbers_in_words(run_dir):
    alt = alt_texts(r.write_results(add_data(run_dir)).read_text())
    assert list(alt) == [
        'scores',
        'losses',
        'steps',
        'contamination',
        'data_lengths',
        'data_steps',
        'data_openings',
        'data_map',
        'data_filters',
    ]
    assert 'step F1 on the test set: distilled student: 0.70; base model, 1-shot: 0.31; ' in alt['scores']
    assert 'training 2.00 in the first of 30 steps, 0.07 in the last; validation 1.00 after epoch 1' in alt['losses']
    assert 'training set: 4 questions, median 4 words (4 to 4)' in alt['data_lengths']
    assert 'Synthesis: 8 of 9 questions accepted (rejected: Do it. 1)' in alt['data_filters']


def test_report_shows_the_data_where_it_exists(run_dir):
    assert 'Data' not in Page(r.report(run_dir)).text
    page = Page(r.report(add_data(run_dir)))
    pictures = [a for tag, a in page.tags if tag == 'img']
    assert not page.open and len(pictures) == 9 and page.text.count('Data') == 1
    assert any('4 questions, median 4 words' in a['alt'] for a in pictures)


def test_a_damaged_file_of_the_data_is_named(run_dir):
    (add_data(run_dir)/'data_map.jsonl').write_text('{"x": 1}')
    with pytest.raises(DistillError, match="data_map.jsonl has a malformed row .* run 'llm-distill label .*' again"):
        r.write_results(run_dir)
    assert not (run_dir/'results.md').exists() and not (run_dir/'report.html').exists()


def test_provenance_is_what_the_record_says(run_dir):
    from run_files import write_record
    assert 'Provenance' not in ' '.join(Page(r.report(run_dir)).text)
    write_record(add_data(run_dir))
    facts = r.run_facts(run_dir)
    assert facts == {
        'student': 'small',
        'teacher': 'big',
        'instruction': 'Do it.',
        'seed question': 'What?',
        'training set': 4,
        'test set': 4,
        'out-of-distribution test set': 4,
        'rejected': '1 x Do it.; 1 x format',
        'recipe': 'random_seed 0',
        'llm_distill': '1',
    }


def test_what_a_model_wrote_is_text_in_results_and_report(run_dir):
    add_seed_questions(add_data(run_dir, hostile), [hostile, 'B?'])
    items = read_jsonl(run_dir/'item_scores.jsonl')
    attacked = [
        row | dict(question=row['question'] + hostile, expected=f'{hostile}, b', prediction=f'{hostile}, d')
        for row in items
    ]
    write_jsonl(run_dir/'item_scores.jsonl', attacked)
    rows = read_jsonl(run_dir/'contamination.jsonl')
    write_jsonl(
        run_dir / 'contamination.jsonl',
        [row | dict(question=row['question'] + hostile, closest=hostile, overlap=True) for row in rows],
    )
    write_jsonl(
        run_dir / 'test.jsonl',
        [row | dict(question=row['question'] + hostile) for row in read_jsonl(run_dir / 'test.jsonl')],
    )
    scores = read(run_dir/'scores.json')
    for row in scores: row['against'] = {hostile: difference(.1)} | row.get('against', {})
    write_json(run_dir/'scores.json', scores + [score_row(hostile, 'test', .5, .5)])
    write_json(
        run_dir / 'judge.json',
        dict(
            judge=hostile, systems={hostile: dict(test=judged(), test_ood=judged()), 'distilled': dict(test=judged())}
        ),
    )
    cost = costs()
    write_json(
        run_dir / 'cost.json',
        cost | dict(machine=cost['machine'] | dict(device=hostile), not_measured=dict(distilled=hostile)),
    )
    from run_files import write_record
    write_record(
        run_dir,
        config=dict(student=hostile, prompt=dict(instruction=hostile, question=hostile)),
        teacher=dict(model=hostile),
    )
    md = r.write_results(run_dir).read_text()
    html = (run_dir/'report.html').read_text()
    for text in md, html, tables(run_dir), verdict(run_dir), more_tables(run_dir):
        assert not re.search('[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]', text)
    page = rendered(md)
    assert not {'a', 'script', 'em', 'code'} & {tag for tag, _ in page.tags}
    assert all(a['src'].startswith('figures/') for tag, a in page.tags if tag == 'img')
    assert [tag for tag, _ in page.tags].count('table') == 10 and [tag for tag, _ in page.tags].count('img') == 10
    assert 'a \\x1b[31m | [x](javascript:1) <img src=x> `b` *c* <script>\\x00\\u202e end' in ''.join(page.text)
    page = Page(html)
    assert not page.open and not {'script', 'a'} & {tag for tag, _ in page.tags}
    assert all(a['src'].startswith('data:') for tag, a in page.tags if tag == 'img')
