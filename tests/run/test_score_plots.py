"Figures of scores, losses, steps and contamination show what the files say."
import pytest

from llm_distill.core.core import DistillError, write_json, write_jsonl
from llm_distill.evaluate.baselines import system_title
from llm_distill.run import score_plots as plots
from run_files import evaluated_run, read


@pytest.fixture
def run_dir(tmp_path): return evaluated_run(tmp_path)


def test_figures_show_what_the_files_say(run_dir):
    bars = plots.plot_step_counts(run_dir).axes[0]
    shown = {c.get_label().split(' (')[0]: [b.get_height() for b in c] for c in bars.containers}
    assert [shown[k].index(1) for k in ('teacher', system_title('distilled'), system_title('one_shot'))] == [3, 2, 1]
    lines = {o.get_label(): o.get_xydata().tolist() for o in plots.plot_losses(run_dir).axes[0].lines}
    assert len(next(v for k, v in lines.items() if 'training' in k)) == 30
    assert next(v for k, v in lines.items() if 'validation' in k) == [[1, 1], [2, .5], [3, 1/3]]
    scores = plots.plot_scores(run_dir).axes[1]
    assert {text.get_text() for text in scores.texts} >= {'0.70', '0.69', '0.77', '0.76'}


def test_contamination_plots_scores_against_similarity(run_dir):
    ax, = plots.plot_contamination(run_dir).axes
    assert ax.lines[0].get_xydata().tolist()[:2] == [[0, 0], [.01, .025]] and len(ax.lines) == 2*(1 + 3)
    assert {o.get_marker() for o in ax.lines} == {'o', 's', 'None'}


def test_the_numbers_are_given_in_words(run_dir):
    scores = plots.alt_text_scores(run_dir)
    assert 'step F1 on the test set: distilled student: 0.70; base model, 1-shot: 0.31; ' in scores
    assert plots.alt_text_losses(run_dir) == (
        'training 2.00 in the first of 30 steps, 0.07 in the last; validation 1.00 after epoch 1, '
        '0.33 after epoch 3, lowest 0.33 after epoch 3'
    )
    steps = plots.alt_text_step_counts(run_dir)
    assert 'on the test set: teacher: 3.0; distilled student: 2.0; base model, 1-shot: 1.0. mean' in steps
    assert 'on the test set: 0.15 (cosine 0.00 to 0.12), ' in plots.alt_text_contamination(
        run_dir
    )  # 0 to 12 of 40, in fortieths


def test_one_test_set_is_enough(run_dir):
    write_json(run_dir/'scores.json', [r for r in read(run_dir/'scores.json') if r['test_set'] == 'test'])
    for f in (run_dir/'predictions').glob('*_test_ood.jsonl'): f.unlink()
    assert len(plots.plot_step_counts(run_dir).axes) == 1 and len(plots.plot_scores(run_dir).axes) == 2


def test_one_metric_is_shown_once(run_dir):
    write_json(run_dir/'scores.json', [r | dict(main='similarity') for r in read(run_dir/'scores.json')])
    assert len(plots.plot_scores(run_dir).axes) == 1


def test_a_metric_that_does_not_apply_to_a_system_is_a_dash(run_dir):
    none = dict(mean=None, low=None, high=None)
    write_json(
        run_dir / 'scores.json',
        [r | dict(step_f1=none) if r['system'] == 'echo' else r for r in read(run_dir / 'scores.json')],
    )
    assert 'echo of the question: –' in plots.alt_text_scores(run_dir)
    plots.plot_scores(run_dir)


@pytest.mark.parametrize('plot, file, text, stage', [
    (plots.plot_losses, 'losses.jsonl', '', 'finetune'), (plots.plot_losses, 'losses.jsonl', 'loss 3', 'finetune'),
    (plots.plot_losses, 'losses.jsonl', None, 'finetune'),
    (plots.plot_step_counts, 'predictions/one_shot_test.jsonl', None, 'evaluate'),
    (plots.plot_step_counts, 'predictions/distilled_test.jsonl', '{"question": "a"}', 'evaluate'),
    (plots.plot_step_counts, 'predictions/distilled_test.jsonl', '', 'evaluate'),
    (plots.plot_contamination, 'item_scores.jsonl', '', 'evaluate')])
def test_damaged_files_are_named_with_the_stage_that_writes_them(run_dir, plot, file, text, stage):
    (run_dir/file).unlink() if text is None else (run_dir/file).write_text(text)
    with pytest.raises(DistillError) as e: plot(run_dir)
    assert file in str(e.value) and f'llm-distill {stage} ' in str(e.value) and '\n' not in str(e.value)


def test_a_run_without_training_losses_shows_the_validation(run_dir):
    write_jsonl(run_dir/'losses.jsonl', [dict(epoch=1, validation_loss=1.)])
    assert len(plots.plot_losses(run_dir).axes[0].lines) == 1 and plots.alt_text_losses(run_dir).startswith(
        'validation 1.00 after epoch 1'
    )
