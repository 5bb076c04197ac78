"Figures of the data show what the files say, and no text of a model steers them."
import json, random

import pytest

from llm_distill.core.core import DistillError, write_jsonl
from llm_distill.core.display import figure_png
from llm_distill.core.rundir import split_titles
from llm_distill.run import data_plots as plots
from run_files import labeled_run, rejected


@pytest.fixture
def run_dir(tmp_path): return labeled_run(tmp_path)


@pytest.fixture
def json_dir(tmp_path):
    rows = [dict(a=1, b=None), dict(a='x', b=''), dict(a=0, b=[]), dict(a=False, b='y'), 'no JSON']
    answers = [json.dumps(o) if isinstance(o, dict) else o for o in rows]
    return labeled_run(tmp_path, dict(train=answers, test=answers[:2]))


def widths(ax, named=None):
    return {t.get_text(): b.get_width() for t, b in zip((named or ax).get_yticklabels(), ax.patches, strict=True)}


def texts(ax): return [t.get_text() for t in ax.texts]


def heights(ax): return {round(b.get_x() + b.get_width()/2): b.get_height() for b in ax.patches if b.get_height()}


def test_lengths_are_the_words_of_questions_and_answers(run_dir):
    axes = plots.plot_lengths(run_dir).axes
    assert len(axes) == 6
    assert heights(axes[1]) == {2: 2/5, 3: 1/5, 4: 1/5, 12: 1/5} and heights(axes[0]) == {1: 1/5, 2: 4/5}
    assert list(axes[0].lines[0].get_xdata()) == [2, 2] and 'n = 5, median 2' in axes[0].get_title(loc='left')
    assert 'n = 1, median 2' in axes[4].get_title(loc='left')


def test_a_monster_does_not_squeeze_the_others(run_dir):
    rows = [dict(question='a b c', answer='a, b')]*200 + [dict(question='a b c d', answer='w '*5000)]
    write_jsonl(run_dir/'train.jsonl', rows)
    axes = plots.plot_lengths(run_dir).axes
    assert axes[1].get_xlim()[1] < 100 and sum(b.get_height() for b in axes[1].patches) == pytest.approx(1)
    assert 'or more' in axes[5].get_xlabel() and 'or more' not in axes[4].get_xlabel()


def test_steps_are_those_of_the_answers(run_dir):
    ax, = plots.plot_answer_steps(run_dir, longest=8).axes
    shown = {c.get_label(): [b.get_height() for b in c] for c in ax.containers}
    assert shown['training set (mean 4.6)'] == [0, 0, 2/5, 1/5, 1/5, 0, 0, 0, 1/5]
    assert shown['test set (mean 2.5)'] == [0, 0, 1/2, 1/2, 0, 0, 0, 0, 0]
    assert len({b.patches[0].get_hatch() for b in ax.containers}) == 3 # not by color alone
    assert [t.get_text() for t in ax.get_xticklabels()][-1] == '8+'


def test_fields_with_a_value_are_counted(json_dir):
    train, test = plots.plot_fields(json_dir).axes
    assert widths(train) == {'a': 4/5, 'b': 1/5} # 0 and false are values, null and empty ones are not
    assert widths(test, train) == {'a': 1, 'b': 0} and texts(train) == ['80%', '20%']
    assert 'training set: a 80%, b 20%' in plots.alt_text_fields(json_dir)


def test_openings_are_first_words_in_lower_case(run_dir):
    axes = plots.plot_openings(run_dir).axes
    shown = {s: widths(ax, axes[0]) for s, ax in zip(split_titles, axes)}
    assert shown['train'] == {'find': 3/5, 'what’s': 1/5, '(none)': 1/5, 'which': 0, 'cancel': 0}
    assert shown['test']['which'] == shown['test']['find'] == 1/2 and shown['test_ood']['cancel'] == 1
    axes = plots.plot_openings(run_dir, n_words=1).axes
    few = [widths(ax, axes[0]) for ax in axes]
    assert [list(o) for o in few] == [['find', 'all others']] * 3 and all(
        sum(o.values()) == pytest.approx(1) for o in few
    )


def test_map_shows_each_split_by_marker_and_color(run_dir):
    ax, = plots.plot_map(run_dir).axes
    assert [len(o.get_xdata()) for o in ax.lines] == [5, 2, 1]
    assert ax.lines[1].get_xdata()[0] == pytest.approx(.5) and ax.lines[1].get_ydata()[0] == pytest.approx(-.5)
    assert len({o.get_marker() for o in ax.lines}) == len({o.get_color() for o in ax.lines}) == 3
    thin, = plots.plot_map(run_dir, max_points=3).axes
    assert [len(o.get_xdata()) for o in thin.lines] == [3, 2, 1]
    assert '3 of them drawn' in thin.lines[0].get_label() and '(n = 5)' in thin.lines[0].get_label()


def test_a_large_map_is_a_small_picture(run_dir):
    draw = random.Random(0)
    write_jsonl(
        run_dir / 'data_map.jsonl',
        [dict(question='x', split=s, x=draw.gauss(), y=draw.gauss()) for s in split_titles for _ in range(20_000)],
    )
    assert len(figure_png(plots.plot_map(run_dir))) <= 100_000


def test_filters_show_what_became_of_all_candidates(run_dir):
    counts = plots.filter_counts(run_dir)
    assert counts == dict(synthesis={'accepted': 8, 'near duplicate words': 3, 'exact duplicate': 2, 'no questions': 1},
                          labeling=dict(accepted=8, format=2))
    first, second = plots.plot_filters(run_dir).axes
    assert (
        widths(first) == counts['synthesis']
        and widths(second) == counts['labeling']
        and texts(first) == ['8', '3', '2', '1']
    )
    assert first.patches[0].get_facecolor() != first.patches[1].get_facecolor() == second.patches[1].get_facecolor()
    assert (
        first.get_title(loc='left') == 'Synthesis: 8 of 13 questions accepted, 1 empty reply'
    )  # without questions it is no candidate
    assert second.get_title(loc='left') == 'Labeling: 8 of 10 answers accepted'
    few = [list(widths(ax)) for ax in plots.plot_filters(run_dir, n_filters=1).axes]
    assert few == [['accepted', 'near duplicate words', 'all others'], ['accepted', 'format']]


def test_second_answers_count_only_where_one_was_rejected(run_dir):
    write_jsonl(run_dir/'predictions'/'teacher_test.jsonl', [dict(question='x')]*2)
    assert plots.filter_counts(run_dir)['evaluation'] == dict(accepted=2) and len(plots.plot_filters(run_dir).axes) == 2
    write_jsonl(run_dir/'rejects.jsonl', [rejected('evaluation', 'truncated', 0)])
    assert (
        plots.plot_filters(run_dir).axes[-1].get_title(loc='left')
        == 'Second answers of the teacher: 2 of 3 answers accepted'
    )


def test_a_stage_of_a_newer_version_is_shown_by_its_name(run_dir):
    write_jsonl(run_dir/'rejects.jsonl', [rejected('translation', 'odd_script', 0)])
    assert plots.plot_filters(run_dir).axes[-1].get_title(loc='left') == 'translation: 0 of 1 candidates accepted'


def test_names_of_a_model_are_no_formulas(run_dir):
    write_jsonl(run_dir/'rejects.jsonl', [dict(stage='synthesis', filter='$\\frac{$', question='x', reason='y')])
    assert figure_png(plots.plot_filters(run_dir)).startswith(b'\x89PNG')


def test_characters_that_the_font_lacks_are_question_marks_without_a_warning(run_dir, recwarn):
    write_jsonl(run_dir/'train.jsonl', [dict(question=q, answer='a, b') for q in ('東京のホテル', 'Éва был', 'Café')])
    write_jsonl(run_dir/'rejects.jsonl', [dict(stage='合成', filter='重复', question='x', reason='y')])
    assert {'東京のホテル', 'éва', 'café'} == set(plots.count_openings(run_dir)['train'])
    assert '東京のホテル' in plots.alt_text_openings(run_dir)
    labels = [t.get_text() for t in plots.plot_openings(run_dir).axes[0].get_yticklabels()]
    assert {'??????', 'éва', 'café'} <= set(labels)
    for plot in plots.plot_openings, plots.plot_filters: figure_png(plot(run_dir))
    assert not [w for w in recwarn if 'Glyph' in str(w.message)]


def test_the_numbers_are_given_in_words(run_dir):
    lengths = plots.alt_text_lengths(run_dir)
    assert (
        'training set: 5 questions, median 2 words (1 to 2), answers 3 words (2 to 12)' in lengths
        and lengths.count(';') == 2
    )
    assert 'training set: mean 4.6 (2 to 12)' in plots.alt_text_answer_steps(run_dir)
    assert '3 different first words in 5 questions, most often find 3' in plots.alt_text_openings(run_dir)
    assert 'test set: 2 questions around (0.55, -0.55)' in plots.alt_text_map(run_dir)
    assert 'rejected: near duplicate words 3, exact duplicate 2' in plots.alt_text_filters(run_dir)


def test_figures_of_another_format_are_refused(json_dir):
    with pytest.raises(DistillError, match='are not lists of steps'): plots.plot_answer_steps(json_dir)
    with pytest.raises(DistillError, match='are not JSON'): plots.plot_fields(labeled_run(json_dir))
