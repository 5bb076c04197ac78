"Verdict, tables, figures and report of a run: what stands in them comes from its files, and damaged files are named."
import json, re
from html.parser import HTMLParser
import numpy as np
import pytest
from llm_distill import evaluation as ev
from llm_distill import results
from llm_distill.cost import priced
from llm_distill.synthesis import embed, remember
from llm_distill.prompts import DistillError, load_prompt, read_jsonl, recordings, write_json, write_jsonl

def row(system, test_set, sim, f1, n=50):
    spread = lambda m: dict(mean=m, low=m - .05, high=m + .05)
    return dict(test_set=test_set, system=system, n=n, main='step_f1', similarity=spread(sim), step_f1=spread(f1), step_recall=spread(f1 + .01), step_order=dict(mean=None, low=None, high=None))

def difference(mean, half=.05): return dict(mean=mean, low=mean - half, high=mean + half, p=.0005 if abs(mean) > half else .3, n=50)

@pytest.fixture
def run_dir(tmp_path):
    "A run directory with numbers that stand nowhere else"
    systems = dict(teacher=(.941, .771), echo=(.802, .361), one_shot=(.633, .313), distilled=(.907, .703), nearest=(.474, .352))
    rows = [row(s, t, a - d, b - d) for t, d in (('different', .01), ('same', 0)) for s, (a, b) in systems.items()]
    for r in rows:
        if r['system'] == 'distilled': r['against'] = {s: difference(.703 - b) for s, (_, b) in systems.items() if s != 'distilled'}
    write_json(tmp_path/'scores.json', rows)
    write_jsonl(tmp_path/'losses.jsonl', [dict(step=i, epoch=i/10, loss=2/i, lr=1e-4) for i in range(1, 31)] + [dict(epoch=e, validation_loss=1/e) for e in (1, 2, 3)])
    answers = dict(distilled='a, b.', one_shot='a', echo='Do it?', nearest='x, y', teacher='a, b, c.')
    items = []
    for t in 'same', 'different':
        for s, o in answers.items():
            write_jsonl(tmp_path/'predictions'/f'{s}_{t}.jsonl', [dict(task='Do it?', expected='a, b, c', prediction=o)]*4)
            items += [dict(test_set=t, system=s, task=f'Do {t} {i} <now>?', expected='a, b, c', prediction=o, step_f1=i/40, pairs=[[0, 0, 1.], [1, 2, .3]]) for i in range(40)]
    write_jsonl(tmp_path/'item_scores.jsonl', items)
    write_jsonl(tmp_path/'leakage.jsonl', [dict(test_set=t, task=f'Do {t} {i} <now>?', closest='Do that', cosine=i/100, overlap=False) for t in ('same', 'different') for i in range(40)])
    return tmp_path

def parsed(text):
    "Title -> rows of cells of each Markdown table"
    parts = re.split(r'\*\*(Table \d)[^*]*\*\*', text)[1:]
    rows = lambda s: [[c.strip() for c in o.strip('|').split('|')] for o in s.splitlines() if o.startswith('|') and '--' not in o]
    return {t: rows(body) for t, body in zip(parts[::2], parts[1::2])}

def test_tables_show_what_the_file_says(run_dir):
    found = parsed(results.tables(run_dir))
    assert list(found) == ['Table 1', 'Table 2']
    names = [results.system_names[s] for s in ('distilled', 'one_shot', 'nearest', 'echo', 'teacher')]
    assert [r[0] for r in found['Table 1'][1:]] == [r[0] for r in found['Table 2'][1:]] == names
    assert found['Table 1'][1] == [names[0], '0.907 (0.857 to 0.957)', '0.703 (0.653 to 0.753)', '50']
    assert found['Table 2'][5][1:3] == ['0.931 (0.881 to 0.981)', '0.761 (0.711 to 0.811)']

def test_columns_are_aligned(run_dir):
    for block in results.tables(run_dir).split('\n\n'):
        if block.startswith('|'): assert len({len(o) for o in block.splitlines()}) == 1

def test_one_test_set_is_enough(run_dir):
    rows = [r for r in json.loads((run_dir/'scores.json').read_text()) if r['test_set'] == 'same']
    write_json(run_dir/'scores.json', rows)
    for f in (run_dir/'predictions').glob('*_different.jsonl'): f.unlink()
    assert list(parsed(results.tables(run_dir))) == ['Table 1']
    assert len(results.plot_steps(run_dir).axes) == 1 and len(results.plot_scores(run_dir).axes) == 2

def test_figures_show_what_the_files_say(run_dir):
    step_bars = results.plot_steps(run_dir).axes[0]
    shown = {c.get_label().split(' (')[0]: [b.get_height() for b in c] for c in step_bars.containers}
    assert [shown[k].index(1) for k in ('teacher', results.system_names['distilled'], results.system_names['one_shot'])] == [3, 2, 1]
    lines = {o.get_label(): o.get_xydata().tolist() for o in results.plot_losses(run_dir).axes[0].lines}
    assert len(next(v for k, v in lines.items() if 'training' in k)) == 30
    assert next(v for k, v in lines.items() if 'validation' in k) == [[1, 1], [2, .5], [3, 1/3]]
    scores = results.plot_scores(run_dir).axes[1]
    assert {t.get_text() for t in scores.texts} >= {'0.70', '0.69', '0.77', '0.76'}

def test_write_results_is_complete_small_and_repeatable(run_dir):
    path = results.write_results(run_dir)
    text = path.read_text()
    linked = re.findall(r'!\[([^\]]{10,})\]\(([^)]+)\)', text)
    assert results.tables(run_dir) in text and len(linked) >= 4
    for _, target in linked:
        png = (run_dir/target).read_bytes()
        assert png[:8] == b'\x89PNG\r\n\x1a\n' and len(png) <= 100_000
    first = {f.name: f.read_bytes() for f in (run_dir/'figures').iterdir()}
    results.write_results(run_dir)
    assert {f.name: f.read_bytes() for f in (run_dir/'figures').iterdir()} == first and path.read_text() == text

def test_matplotlib_keeps_no_global_figures(run_dir):
    import matplotlib.pyplot as plt
    before = plt.get_fignums()
    for plot in results.plot_scores, results.plot_losses, results.plot_steps, results.plot_leakage: plot(run_dir)
    assert plt.get_fignums() == before

@pytest.mark.parametrize('file, text, stage', [
    ('scores.json', None, 'evaluate'), ('scores.json', '{"a": 1}', 'evaluate'), ('scores.json', '[{"test_set": "same", "system": "x", "n": 3}]', 'evaluate'),
    ('scores.json', '[[', 'evaluate'), ('losses.jsonl', None, 'finetune'), ('losses.jsonl', 'loss 3', 'finetune'), ('losses.jsonl', '', 'finetune'),
    ('item_scores.jsonl', None, 'evaluate'), ('item_scores.jsonl', '{"system": "distilled"}', 'evaluate'), ('leakage.jsonl', None, 'evaluate'),
    ('predictions/one_shot_same.jsonl', None, 'evaluate'), ('predictions/distilled_same.jsonl', '{"task": "a"}', 'evaluate')])
def test_damaged_files_are_named_with_the_stage_that_writes_them(run_dir, file, text, stage):
    (run_dir/file).unlink() if text is None else (run_dir/file).write_text(text)
    with pytest.raises(DistillError) as e: results.write_results(run_dir)
    assert file in str(e.value) and f'stage `{stage}`' in str(e.value) and '\n' not in str(e.value)
    assert not (run_dir/'results.md').exists() and not (run_dir/'report.html').exists()

# ---- the verdict

@pytest.fixture(scope='module')
def recorded():
    "Test tasks, training rows, and what the teacher said first and second"
    seed, rows = load_prompt(recordings/'apartments.toml'), read_jsonl(recordings/'apartments.jsonl')
    answer = lambda r, i: seed.parse(r['completions'][i])
    return [r['task'] for r in rows[:40]], [answer(r, 0) for r in rows[:40]], [answer(r, 1) for r in rows[:40]], [dict(task=r['task'], completion=answer(r, 0)) for r in rows[50:110]]

@pytest.fixture(scope='module')
def encode(): return remember(embed)

def judge(folder, distilled, recorded, encode):
    "The verdict on a student that gave certain answers"
    tasks, expected, again, train = recorded
    before = [e.split(',')[0] for e in expected] # a 1-shot student that finds the first step
    answers = dict(distilled=distilled, one_shot=before, echo=ev.echo(tasks), nearest=ev.nearest(tasks, train), constant=ev.constant(tasks, train, encode), teacher=again)
    for s, o in answers.items():
        write_jsonl(folder/'predictions'/f'{s}_same.jsonl', [dict(task=t, expected=e, prediction=p) for t, e, p in zip(tasks, expected, o, strict=True)])
    ev.score_run(folder, encode)
    return results.verdict(folder)

@pytest.mark.parametrize('name', ['echo', 'empty', 'constant', 'copies training', 'always the same word', 'echo in a template', 'everything at once', 'as before'])
def test_a_degenerate_student_never_succeeds(tmp_path, recorded, encode, name):
    tasks, expected, _, train = recorded
    answers = {'echo': tasks, 'empty': ['']*40, 'constant': [expected[0]]*40, 'copies training': ev.nearest(tasks, train), 'always the same word': ['find']*40,
               'echo in a template': [f'Find all the options, {t}, list those' for t in tasks], 'everything at once': [', '.join(expected[:12])]*40,
               'as before': [e.split(',')[0] for e in expected]}
    said = judge(tmp_path, answers[name], recorded, encode)
    assert re.match(r'\*\*The distillation (did not work|is not shown to work) on test tasks', said) and 'worked on' not in said

def test_a_good_student_succeeds_and_is_still_below_the_ceiling(tmp_path, recorded, encode):
    good = [a.rsplit(',', 1)[0] + '.' for a in recorded[2]] # forgets the last step
    said = judge(tmp_path, good, recorded, encode)
    assert said.startswith('**The distillation worked on test tasks from the same seed prompt.**') and 'worse than "teacher, second sample"' in said
    assert 'better than "echo of the task"' in said and '%' in said
    same = judge(tmp_path, recorded[2], recorded, encode)
    assert 'not distinguishable from "teacher, second sample"' in same

@pytest.mark.parametrize('intervals, says', [
    (dict(), 'worked on'), (dict(teacher=(-.3, -.2)), 'worked on'), (dict(echo=(-.01, .2)), 'is not shown to work on'), (dict(echo=(0, .2)), 'is not shown to work on'),
    (dict(constant=(0, 0)), 'is not shown to work on'), (dict(echo=(.1, .2, .125)), 'is not shown to work on'), (dict(nearest=(-.2, -.01)), 'did not work on'), (dict(nearest=(-.2, -.01), echo=(-.1, .1)), 'did not work on')])
def test_the_verdict_follows_from_the_intervals(run_dir, intervals, says):
    rows = [r for r in json.loads((run_dir/'scores.json').read_text()) if r['test_set'] == 'same']
    ends = dict(one_shot=(.1, .2), nearest=(.1, .2), echo=(.001, .2), teacher=(-.1, .1)) | intervals
    for r in rows:
        if r['system'] == 'distilled': r['against'] = {s: dict(mean=(a + b)/2, low=a, high=b, p=p[0] if p else .01, n=9) for s, (a, b, *p) in ends.items()}
    write_json(run_dir/'scores.json', rows)
    said = results.verdict(run_dir).splitlines()[0]
    assert said.startswith(f'**The distillation {says} test tasks from the same seed prompt') and said.count('work') == 1
    for s, (low, high, *p) in ends.items():
        named = low <= 0 or p if says.startswith('is not') else high < 0
        assert (f'the {results.system_names[s]}' in said) == bool(named and s != 'teacher')

def test_verdict_without_what_it_needs(run_dir):
    rows = json.loads((run_dir/'scores.json').read_text())
    for r in rows: r.get('against', {}).pop('echo', None)
    write_json(run_dir/'scores.json', rows)
    assert 'No verdict' in results.verdict(run_dir) and 'echo of the task' in results.verdict(run_dir)
    write_json(run_dir/'scores.json', [r for r in rows if r['system'] != 'distilled'])
    assert 'No verdict' in results.verdict(run_dir)

def test_overlap_is_warned_of(run_dir):
    assert leakage_is_fine(results.leakage_note(run_dir))
    rows = read_jsonl(run_dir/'leakage.jsonl')
    write_jsonl(run_dir/'leakage.jsonl', [r | dict(overlap=i < 3) for i, r in enumerate(rows)])
    assert results.leakage_note(run_dir).startswith('Warning: 3 of 80') and 'Warning: 3 of 80' in results.report(run_dir)

def leakage_is_fine(text): return text.startswith('No test task') and '0.39' in text

def test_worst_answers_and_their_steps(run_dir):
    found = results.worst(run_dir, 3)
    assert [r['score'] for r in found] == [0, 0, .025] and found[0]['missing'] == ['b', 'c'] and found[0]['superfluous'] == ['b']

def test_parts_that_are_fields_are_told_as_fields(run_dir):
    rows = [r | dict(expected='{"what": "milk", "when": "at 9, or 10"}', prediction='{"what": "milk", "when": null}') for r in read_jsonl(run_dir/'item_scores.jsonl')]
    write_jsonl(run_dir/'item_scores.jsonl', rows)
    found = results.worst(run_dir, 1)[0]
    assert (found['missing'], found['superfluous']) == (['when: "at 9, or 10"'], ['when: null'])
    text = ' '.join(Page(results.report(run_dir)).text)
    assert 'field 1' in text and 'what: "milk"' in text and 'step 1' not in text
    write_jsonl(run_dir/'item_scores.jsonl', [r | dict(expected='Yes.', prediction='No.') for r in rows])
    assert {k: results.worst(run_dir, 1)[0][k] for k in ('missing', 'superfluous')} == dict(missing=['Yes.'], superfluous=['No.'])

def test_one_metric_is_shown_once(run_dir):
    write_json(run_dir/'scores.json', [r | dict(main='similarity') for r in json.loads((run_dir/'scores.json').read_text())])
    assert len(parsed(results.tables(run_dir))['Table 1'][0]) == 3 and len(results.plot_scores(run_dir).axes) == 1

def test_a_metric_that_does_not_apply_to_a_system_is_a_dash(run_dir):
    none = dict(mean=None, low=None, high=None)
    rows = json.loads((run_dir/'scores.json').read_text())
    write_json(run_dir/'scores.json', [r | dict(step_f1=none) if r['system'] == 'echo' else r for r in rows])
    assert parsed(results.tables(run_dir))['Table 1'][4][2] == '–' and 'echo of the task: –' in results._say_scores(run_dir)
    results.plot_scores(run_dir)

def test_a_task_without_steps_gets_no_figure_of_steps(run_dir):
    rows = [r | dict(main='token_f1', token_f1=r['step_f1']) for r in json.loads((run_dir/'scores.json').read_text())]
    write_json(run_dir/'scores.json', rows)
    write_jsonl(run_dir/'item_scores.jsonl', [r | dict(token_f1=r['step_f1'], expected='Yes.') for r in read_jsonl(run_dir/'item_scores.jsonl')])
    write_jsonl(run_dir/'leakage.jsonl', [])
    text = results.write_results(run_dir).read_text()
    assert {f.name for f in (run_dir/'figures').iterdir()} == {'scores.png', 'losses.png'} and 'token F1' in results.tables(run_dir)
    assert 'steps.png' not in text and 'no training set' in text

# ---- the report

class Page(HTMLParser):
    void = {'meta', 'img'}
    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void: self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_data(self, data): self.text.append(data)

def test_report_is_well_formed_accessible_and_self_contained(run_dir):
    text = results.report(run_dir)
    page = Page(text)
    tags = [t for t, _ in page.tags]
    assert not page.open and len(text) < 2_000_000 and tags.count('h1') == tags.count('main') == 1 and ('html', {'lang': 'en'}) in page.tags
    levels = [int(t[1]) for t in tags if t in ('h1', 'h2', 'h3', 'h4')]
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:]))
    assert all(a['alt'] and a['src'].startswith('data:image/png;base64,') for t, a in page.tags if t == 'img') and tags.count('img') == 4
    assert all(a.get('scope') for t, a in page.tags if t == 'th') and tags.count('caption') == tags.count('table') >= 4
    assert not [a for _, a in page.tags if 'href' in a] and not re.search(r'url\(|@import|<script|https?://', text)

def test_report_spreads_twenty_examples_from_worst_to_best(run_dir):
    text = results.report(run_dir)
    shown = [float(o) for o in re.findall(r'<p>step F1 ([\d.]+), from', text)]
    assert len(shown) == 20 and shown == sorted(shown) and shown[0] == 0 and shown[-1] == pytest.approx(.975, abs=.006)
    assert '<now>' not in text and '&lt;now&gt;' in text and '<b>missing</b> c' in text and text.count('<b>step 1</b> a') == 40
    for t in 'Table 1', 'Table 2': assert t in text
    assert '0.703 (0.653 to 0.753)' in text

# ---- what goes wrong, the judge, and the cost

def judged(**changes):
    return dict(n=50, wins=11, ties=22, losses=17, win_rate=dict(mean=.44, low=.37, high=.513), first_wins=.58, inconsistent=.24) | changes

def costs(**prices):
    "Made-up measurements at the prices of a teacher"
    used = dict(requests=100, cached=0, prompt_tokens=10_000, completion_tokens=1000, cost=.5)
    speed = dict(latency=dict(p50=.123, p95=4.56), tokens_per_second=789., seconds_per_request=.1, memory_bytes=321e6, disk_bytes=654e6, disk_form='safetensors')
    return priced(dict(machine=dict(cpus=2, device='cpu (some)', precision='bfloat16'), tasks=20, systems=dict(distilled=speed), not_measured=dict(one_shot='it is not there'),
                       training_seconds=10, teacher=dict(model='m', dollars_per_million_tokens=[10., 100.], tokens_per_request=[100, 10], usage=dict(synthesis=used, labeling=used))), **prices)

def cells_of(page_or_md, title):
    "The cells of the table behind a caption in Markdown"
    return [[c.strip() for c in o.strip('|').split('|')] for o in page_or_md.split(f'**{title}**')[1].split('\n\n')[1].splitlines() if '--' not in o]

def test_cost_and_judge_are_shown_where_they_are_there(run_dir):
    md, html = results.write_results(run_dir).read_text(), (run_dir/'report.html').read_text()
    for text in md, html: assert 'What goes wrong' in text and 'Judge' not in text and 'Cost and speed' not in text
    write_json(run_dir/'judge.json', dict(judge='big', systems=dict(one_shot=dict(same=judged(wins=3)), distilled=dict(same=judged(), different=judged(first_wins=None, win_rate=dict(mean=None, low=None, high=None), unusable=7)))))
    write_json(run_dir/'cost.json', costs())
    md, html = results.write_results(run_dir).read_text(), (run_dir/'report.html').read_text()
    page = Page(html)
    rows = cells_of(md, 'Judged against the teacher, test tasks from the same seed prompt')
    assert rows[1:] == [[results.system_names['distilled'], '44% (37% to 51%)', '11', '22', '17', '58%', '24%', '50'], [results.system_names['one_shot'], '44% (37% to 51%)', '3', '22', '17', '58%', '24%', '50']]
    assert cells_of(md, 'Judged against the teacher, test tasks from a different seed prompt')[1][1:6] == ['–', '11', '22', '17', '–'] and 'Judge: big.' in md and 'could not be understood: 7.' in md
    rows = cells_of(md, 'Speed, size and price of a request')
    assert rows[1][1:] == ['789', '123 ms', '4.6 s', '654 MB (safetensors)', '321 MB', '\\$0.00'] and rows[3] == ['teacher', *'–'*5, '\\$2.00'] and set(rows[2][1:-1]) == {'–'}
    assert 'paid for itself after 500 requests' in md and 'paid for itself after 500 requests' in alts(md)['break_even'] and 'Not measured: untuned student, 1-shot (it is not there)' in html
    for o in '44% (37% to 51%)', '123 ms', 'Judge: big.', 'Cost and speed', 'Judge', '789': assert any(o in t for t in page.text)
    assert not page.open and any('paid for itself after 500 requests' in a['alt'] for t, a in page.tags if t == 'img') and (run_dir/'figures'/'break_even.png').exists()

def test_a_break_even_that_is_not_known_has_no_figure(run_dir):
    write_json(run_dir/'cost.json', costs())
    results.write_results(run_dir)
    found = costs()
    write_json(run_dir/'cost.json', priced(found | dict(teacher=found['teacher'] | dict(dollars_per_million_tokens=None))))
    md = results.write_results(run_dir).read_text()
    assert 'cannot be told' in md and 'break_even' not in alts(md) and not (run_dir/'figures'/'break_even.png').exists()

@pytest.mark.parametrize('file, text', [('judge.json', '{'), ('judge.json', '{}'), ('judge.json', '[]'), ('judge.json', '{"judge": "a", "systems": {"x": {"same": {"n": 3}}}}'),
                                        ('judge.json', '{"judge": "a", "systems": 3}'), ('cost.json', '{'), ('cost.json', '{}')])
def test_a_damaged_judge_or_cost_is_named(run_dir, file, text):
    (run_dir/file).write_text(text)
    with pytest.raises(DistillError, match=file) as e: results.write_results(run_dir)
    assert '\n' not in str(e.value) and not (run_dir/'results.md').exists()

def test_failures_are_counted_by_kind_and_by_seed(run_dir):
    by_seed(run_dir, ['A?', 'B?'])
    md = results.write_results(run_dir).read_text()
    rows = cells_of(md, 'The worst answers of the distilled student by what is wrong')
    assert sum(int(r[1]) for r in rows[1:]) == 4 and rows[0][2] == 'mean step F1' # a third of the 12 answers on both sets
    rows = cells_of(md, 'The same by seed question')
    assert rows[1:] == [['A?', '1', '3'], ['B?', '1', '3']] # tasks 0 and 1 of each set are the worst

# ---- the data, seed questions, and text that models wrote

hostile = 'a\n\x1b[31m | [x](javascript:1) <img src=x> `b` *c* <script>\x00\u202e end'

def with_data(run_dir, text='Do it.'):
    "The files of the data, in which a model wrote `text`"
    for s in 'train', 'test_same', 'test_different':
        write_jsonl(run_dir/f'{s}.jsonl', [dict(task=f'{text} {s} {i}', completion='a, b', seed=text) for i in range(4)])
    write_jsonl(run_dir/'tasks.jsonl', [dict(task=f'{text} {s} {i}', split=s, seed=text) for s in ('train', 'test_same') for i in range(4)])
    write_jsonl(run_dir/'rejects.jsonl', [dict(stage='synthesis', filter=text, task=text, reason=text), dict(stage='labeling', filter='form', task=text, reason=text)])
    write_jsonl(run_dir/'data_map.jsonl', [dict(task=text, split='train', x=0., y=1.)])
    return run_dir

def alts(md): return {name: alt for alt, name in re.findall(r'^!\[(.*)\]\(figures/(\w+)\.png\)$', md, re.M)}

def test_figures_tell_their_numbers_in_words(run_dir):
    found = alts(results.write_results(with_data(run_dir)).read_text())
    assert list(found) == ['scores', 'losses', 'steps', 'leakage', 'data_lengths', 'data_steps', 'data_openings', 'data_map', 'data_filters']
    assert 'step F1 on the same seed prompt: distilled student, zero-shot: 0.70; untuned student, 1-shot: 0.31; ' in found['scores']
    assert 'training 2.00 in the first of 30 steps, 0.07 in the last; validation 1.00 after epoch 1, 0.33 after epoch 3, lowest 0.33 after epoch 3' in found['losses']
    assert 'on the same seed prompt: teacher: 3.0; distilled student, zero-shot: 2.0; untuned student, 1-shot: 1.0. On a' in found['steps']
    assert 'on the same seed prompt: 0.15 (cosine 0.00 to 0.12), ' in found['leakage'] # 0 to 12 of 40, in fortieths
    assert 'training set: 4 tasks, median 4 words (4 to 4)' in found['data_lengths'] and 'Synthesis: 8 of 9 tasks accepted (rejected: Do it. 1)' in found['data_filters']

def test_report_shows_the_data_where_it_is_there(run_dir):
    assert 'The data' not in results.report(run_dir)
    page = Page(results.report(with_data(run_dir)))
    pictures = [a for t, a in page.tags if t == 'img']
    assert not page.open and len(pictures) == 9 and 'The data' in page.text and page.text.count('The data') == 1
    assert any('4 tasks, median 4 words' in a['alt'] for a in pictures)

def test_a_damaged_file_of_the_data_is_named(run_dir):
    (with_data(run_dir)/'data_map.jsonl').write_text('{"x": 1}')
    with pytest.raises(DistillError, match='data_map.jsonl has a malformed row .* run the stage `label` again'): results.write_results(run_dir)
    assert not (run_dir/'results.md').exists() and not (run_dir/'report.html').exists()

def by_seed(run_dir, seeds):
    "A run whose first test set comes from several seed questions; the scores of the distilled student are .1, .2, ... and those of others half"
    tasks = [f'Task {i}' for i in range(6)]
    write_jsonl(run_dir/'test_same.jsonl', [dict(task=t, completion='a, b', seed=seeds[i % len(seeds)]) for i, t in enumerate(tasks)])
    items = [dict(test_set=k, system=s, task=t, expected='a', prediction='a', pairs=[], step_f1=(i + 1)/10 if s == 'distilled' else (i + 1)/20)
             for k in ('same', 'different') for s in ('distilled', 'one_shot', 'echo', 'teacher') for i, t in enumerate(tasks) if (s, i) != ('teacher', 0)]
    write_jsonl(run_dir/'item_scores.jsonl', items)
    write_jsonl(run_dir/'leakage.jsonl', [dict(test_set='same', task=t, closest='x', cosine=.3, overlap=False) for t in tasks])
    return results.tables(run_dir)

def test_seed_questions_have_a_table_of_their_own(run_dir):
    assert 'by seed question' not in by_seed(run_dir, ['A?'])
    text = by_seed(run_dir, ['A?', 'B?'])
    rows = [[c.strip() for c in o.strip('|').split('|')] for o in text.split('by seed question')[1].splitlines() if o.startswith('|') and '--' not in o]
    assert rows[0] == ['seed question', *(results.system_names[s] for s in ('distilled', 'one_shot', 'teacher')), 'n']
    assert rows[1:] == [['A?', '0.300', '0.150', '0.200', '3'], ['B?', '0.400', '0.200', '0.200', '3']] # the teacher lacks its first answer, .05
    page = Page(results.report(run_dir))
    assert 'Table 1 by seed question: step F1, means' in page.text and '0.300' in page.text
    (run_dir/'test_same.jsonl').unlink()
    assert 'by seed question' not in results.tables(run_dir)

def rendered(text):
    "Tags and text of Markdown as a browser of repositories shows it"
    from markdown_it import MarkdownIt
    return Page(re.sub('<(img|br|hr)([^>]*?)/>', r'<\1\2>', MarkdownIt('commonmark').enable(['table', 'strikethrough']).render(text)))

def test_what_a_model_wrote_is_text_in_results_and_report(run_dir):
    by_seed(with_data(run_dir, hostile), [hostile, 'B?'])
    write_jsonl(run_dir/'item_scores.jsonl', [r | dict(task=r['task'] + hostile, expected=f'{hostile}, b', prediction=f'{hostile}, d') for r in read_jsonl(run_dir/'item_scores.jsonl')])
    write_jsonl(run_dir/'leakage.jsonl', [r | dict(task=r['task'] + hostile, closest=hostile, overlap=True) for r in read_jsonl(run_dir/'leakage.jsonl')])
    write_jsonl(run_dir/'test_same.jsonl', [r | dict(task=r['task'] + hostile) for r in read_jsonl(run_dir/'test_same.jsonl')])
    rows = json.loads((run_dir/'scores.json').read_text())
    for r in rows: r['against'] = {hostile: difference(.1)} | r.get('against', {})
    write_json(run_dir/'scores.json', rows + [row(hostile, 'same', .5, .5)])
    write_json(run_dir/'judge.json', dict(judge=hostile, systems={hostile: dict(same=judged(), different=judged()), 'distilled': dict(same=judged())}))
    found = costs()
    write_json(run_dir/'cost.json', found | dict(machine=found['machine'] | dict(device=hostile), not_measured=dict(distilled=hostile)))
    md = results.write_results(run_dir).read_text()
    html = (run_dir/'report.html').read_text()
    for text in md, html, results.tables(run_dir), results.verdict(run_dir), results.more_tables(run_dir): assert not re.search('[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]', text)
    page = rendered(md)
    assert not {'a', 'script', 'em', 'code'} & {t for t, _ in page.tags} and all(a['src'].startswith('figures/') for t, a in page.tags if t == 'img')
    assert [t for t, _ in page.tags].count('table') == 10 and [t for t, _ in page.tags].count('img') == 10
    assert 'a \\x1b[31m | [x](javascript:1) <img src=x> `b` *c* <script>\\x00\\u202e end' in ''.join(page.text)
    page = Page(html)
    assert not page.open and not {'script', 'a'} & {t for t, _ in page.tags} and all(a['src'].startswith('data:') for t, a in page.tags if t == 'img')

@pytest.mark.parametrize('gap', [{}, dict(seed=None), dict(seed=3)])
def test_rows_of_older_runs_know_no_seed_question(run_dir, gap):
    by_seed(run_dir, ['A?', 'B?'])
    write_jsonl(run_dir/'test_same.jsonl', [{k: v for k, v in r.items() if k != 'seed'} | gap for r in read_jsonl(run_dir/'test_same.jsonl')])
    assert 'by seed question' not in results.tables(run_dir)
