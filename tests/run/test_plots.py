"The registry of figures: which are drawn and written, and what happens to damaged files."
import pytest

from llm_distill.core.core import DistillError, write_json, write_jsonl
from llm_distill.run import plots
from run_files import costs, evaluated_run, first_words, labeled_run, read

every = ['data_filters.png', 'data_lengths.png', 'data_map.png', 'data_openings.png', 'data_steps.png']


@pytest.fixture
def run_dir(tmp_path): return labeled_run(tmp_path)


def names(written): return sorted(f.name for f in written)


def test_figures_are_written_whole_small_and_the_same_again(run_dir):
    written = plots.write_data_figures(run_dir)
    assert names(written) == every == names((run_dir/'figures').iterdir())
    before = {f: f.read_bytes() for f in written}
    assert all(v[:8] == b'\x89PNG\r\n\x1a\n' and len(v) <= 100_000 for v in before.values())
    assert plots.write_data_figures(run_dir) == written and {f: f.read_bytes() for f in written} == before


def test_a_failed_write_leaves_the_old_figures_and_nothing_else(run_dir, monkeypatch):
    old = {f: f.read_bytes() for f in plots.write_data_figures(run_dir)}
    def full(fd): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('os.fsync', full)
    with pytest.raises(OSError): plots.write_data_figures(run_dir)
    assert names((run_dir/'figures').iterdir()) == every and {f: f.read_bytes() for f in old} == old


@pytest.mark.parametrize('gone, left_out', [
    ('data_map.jsonl', {'data_map.png'}), ('rejects.jsonl', set()), ('test.jsonl', set()),
    ('questions.jsonl', {'data_filters.png'}),
    ('train.jsonl', {'data_lengths.png', 'data_steps.png', 'data_openings.png'})])
def test_figures_whose_file_is_missing_are_left_out(run_dir, gone, left_out):
    plots.write_data_figures(run_dir)
    (run_dir/gone).unlink()
    assert (
        set(names(plots.write_data_figures(run_dir)))
        == set(names((run_dir / 'figures').iterdir()))
        == set(every) - left_out
    )


def test_figures_follow_the_format_of_the_answers(run_dir):
    plots.write_data_figures(run_dir)
    assert 'data_steps.png' in names((run_dir/'figures').iterdir())
    labeled_run(run_dir, {s: ['{"a": 1}']*len(v) for s, v in first_words.items()})
    assert (
        'data_fields.png' in names(plots.write_data_figures(run_dir))
        and not (run_dir / 'figures' / 'data_steps.png').exists()
    )
    labeled_run(run_dir, {s: ['Just so.']*len(v) for s, v in first_words.items()})
    assert (
        names(plots.write_data_figures(run_dir))
        == sorted(set(every) - {'data_steps.png'})
        == names((run_dir / 'figures').iterdir())
    )


@pytest.mark.parametrize('file, text, stage', [
    ('questions.jsonl', '[', 'synthesize'), ('rejects.jsonl', '{"question": "a"}', 'synthesize'),
    ('train.jsonl', '{"question": "a", "answer": null}', 'label'), ('train.jsonl', '', 'label'),
    ('test.jsonl', 'x', 'label'),
    ('data_map.jsonl', '{"split": "train", "x": "1", "y": 2}', 'label'), ('data_map.jsonl', '', 'label')])
def test_damaged_files_are_named_with_the_stage_that_writes_them(run_dir, file, text, stage):
    (run_dir/file).write_text(text)
    with pytest.raises(DistillError) as e: plots.write_data_figures(run_dir)
    assert file in str(e.value) and f'llm-distill {stage} ' in str(e.value) and '\n' not in str(e.value)
    assert not (run_dir/'figures').exists()


def test_matplotlib_keeps_no_global_figures(run_dir):
    import matplotlib.pyplot as plt
    before = plt.get_fignums()
    plots.draw_figures(evaluated_run(run_dir))
    assert plt.get_fignums() == before


def test_the_registry_is_complete_and_in_the_order_of_the_report(run_dir):
    "Each figure has a file of its own and text for its caption; the sections come one after the other"
    assert len({f.name for f in plots.figures}) == len(plots.figures) and all(
        f.title and f.files for f in plots.figures
    )
    sections = [f.section for f in plots.figures]
    assert sections == sorted(sections, key=list(dict.fromkeys(sections)).index)
    write_json(evaluated_run(run_dir)/'cost.json', costs())
    images = plots.draw_figures(run_dir)
    assert {f.name for f in plots.figures} - {i.name for i in images} == {'data_fields'} and all(
        i.alt_text for i in images
    )


def test_a_figure_is_left_out_where_there_is_nothing_to_show(run_dir):
    evaluated_run(run_dir)
    write_jsonl(run_dir/'contamination.jsonl', [])
    write_json(run_dir/'cost.json', costs())
    assert 'contamination' not in {i.name for i in plots.draw_figures(run_dir)}
    cost = read(run_dir/'cost.json')
    write_json(run_dir/'cost.json', cost | dict(break_even=cost['break_even'] | dict(teacher=None)))
    assert 'break_even' not in {i.name for i in plots.draw_figures(run_dir)}
