"Tables and figures of a run: what stands in them comes from its files, and damaged files are named."
import json, re
import pytest
from llm_distill import results
from llm_distill.prompts import DistillError, write_json, write_jsonl

def row(system, test_set, sim, f1, n=50):
    spread = lambda m: dict(mean=m, low=m - .05, high=m + .05)
    return dict(test_set=test_set, system=system, n=n, similarity=spread(sim), step_f1=spread(f1))

@pytest.fixture
def run_dir(tmp_path):
    "A run directory with numbers that stand nowhere else"
    systems = dict(teacher=(.941, .771), echo=(.802, .361), one_shot=(.633, .313), distilled=(.907, .703), nearest=(.474, .352))
    write_json(tmp_path/'scores.json', [row(s, t, a - d, b - d) for t, d in (('different', .01), ('same', 0)) for s, (a, b) in systems.items()])
    write_jsonl(tmp_path/'losses.jsonl', [dict(step=i, epoch=i/10, loss=2/i, lr=1e-4) for i in range(1, 31)] + [dict(epoch=e, validation_loss=1/e) for e in (1, 2, 3)])
    answers = dict(distilled='a, b.', one_shot='a', echo='Do it?', nearest='x, y', teacher='a, b, c.')
    for t in 'same', 'different':
        for s, o in answers.items(): write_jsonl(tmp_path/'predictions'/f'{s}_{t}.jsonl', [dict(task='Do it?', expected='a, b, c', prediction=o)]*4)
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
    assert results.tables(run_dir) in text and len(linked) >= 3
    for _, target in linked:
        png = (run_dir/target).read_bytes()
        assert png[:8] == b'\x89PNG\r\n\x1a\n' and len(png) <= 100_000
    first = {f.name: f.read_bytes() for f in (run_dir/'figures').iterdir()}
    results.write_results(run_dir)
    assert {f.name: f.read_bytes() for f in (run_dir/'figures').iterdir()} == first and path.read_text() == text

def test_matplotlib_keeps_no_global_figures(run_dir):
    import matplotlib.pyplot as plt
    before = plt.get_fignums()
    for plot in results.plot_scores, results.plot_losses, results.plot_steps: plot(run_dir)
    assert plt.get_fignums() == before

@pytest.mark.parametrize('file, text, stage', [
    ('scores.json', None, 'evaluate'), ('scores.json', '{"a": 1}', 'evaluate'), ('scores.json', '[{"test_set": "same", "system": "x", "n": 3}]', 'evaluate'),
    ('scores.json', '[[', 'evaluate'), ('losses.jsonl', None, 'finetune'), ('losses.jsonl', 'loss 3', 'finetune'), ('losses.jsonl', '', 'finetune'),
    ('predictions/one_shot_same.jsonl', None, 'evaluate'), ('predictions/distilled_same.jsonl', '{"task": "a"}', 'evaluate')])
def test_damaged_files_are_named_with_the_stage_that_writes_them(run_dir, file, text, stage):
    (run_dir/file).unlink() if text is None else (run_dir/file).write_text(text)
    with pytest.raises(DistillError) as e: results.write_results(run_dir)
    assert file in str(e.value) and f'stage `{stage}`' in str(e.value) and '\n' not in str(e.value)
    assert not (run_dir/'results.md').exists()
