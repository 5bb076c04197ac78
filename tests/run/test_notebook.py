"A run as one uses it in a notebook: data frames, figures, the report, and calls."
import html, re, shutil
from pathlib import Path

import pandas, pytest

from llm_distill.core.core import DistillError, recordings, write_jsonl
from llm_distill.core.prompt import SeedPrompt
from llm_distill.run.config import RunConfig
from llm_distill.run.document import Image
from llm_distill.run.notebook import Run
from llm_distill.teacher.teacher import recorded_teacher

committed = Path(__file__).parents[2]/'nbs'/'runs'/'quickstart'


@pytest.fixture(scope='module')
def run(tiny, tmp_path_factory):
    config = RunConfig(recordings/'apartments.toml', n=12, n_test=4, student=tiny, recipe=dict(epochs=1))
    return Run(tmp_path_factory.mktemp('runs')/'run', config, quiet=True).run(recorded_teacher())


def test_data_are_frames_with_a_row_per_pair():
    quickstart = Run(committed)
    assert {name: len(getattr(quickstart, name)) for name in ('train', 'test', 'test_ood')} == dict(
        train=200, test=50, test_ood=50)
    assert isinstance(quickstart.train, pandas.DataFrame) and {'question', 'answer'} <= set(quickstart.train.columns)


def test_scores_are_those_of_the_tables():
    scores = Run(committed).scores
    row = scores.loc[('test', 'distilled')]
    assert list(scores.columns[:6]) == ['title', 'n', 'step_f1', 'low', 'high', 'pgr']
    assert row.low < row.step_f1 < row.high and row.n == 50 and 0 < row.pgr < 1
    assert 'similarity' in scores and len(scores) == 14


def test_a_figure_is_shown_without_a_magic_command(run):
    image = run.plot('losses')
    assert isinstance(image, Image) and image._repr_png_().startswith(b'\x89PNG')
    assert '<img src="data:image/png;base64,' in image._repr_html_()
    every = run.plot()
    assert 'losses' in repr(every) and every._repr_html_().count('<figure>') == len(every) > 3
    attack = Image('a', '<script>x</script>', '"><script>y</script>', b'')
    assert '<script>' not in attack._repr_html_()


def test_a_wrong_figure_names_the_others(run):
    with pytest.raises(DistillError, match="no figure 'score'; choose one of scores, "): run.plot('score')
    with pytest.raises(DistillError, match='nothing to draw in the figure .data_fields.'): run.plot('data_fields')


def test_a_run_answers_like_its_student(run):
    question = 'Which apartments in Oslo\nhave a balcony?'
    assert run(question) == run.student(question) == run.complete(question) == run([question])[0]
    assert run([]) == [] and len(run(['Where can I sail?', 'Who sells tents?'])) == 2
    with pytest.raises(DistillError, match='a question is a text'): run([3])


def test_a_student_of_other_pairs_is_named(run, capsys):
    loud = Run(run.path)
    loud.complete('Where can I sail?')
    assert 'other pairs' not in capsys.readouterr().err
    before = (run.path/'train.jsonl').read_bytes()
    try:
        write_jsonl(run.path/'train.jsonl', run.train.iloc[:5].to_dict('records'))
        loud.complete('Where can I sail?')
    finally: (run.path/'train.jsonl').write_bytes(before)
    assert re.search(r"trained on other pairs .* run 'llm-distill finetune ", capsys.readouterr().err)


def test_what_is_missing_is_named_with_its_command(tmp_path):
    new = Run(tmp_path/'new', RunConfig(recordings/'apartments.toml'), quiet=True)
    new.save()
    for name, command in dict(train='label', test='label', scores='evaluate', student='finetune').items():
        with pytest.raises(DistillError, match=f"run 'llm-distill {command} "): getattr(new, name)
    with pytest.raises(DistillError, match="run 'llm-distill results "): new.report()
    shutil.copy(committed/'test.jsonl', new.path)
    with pytest.raises(DistillError, match='pass ood_prompt'): new.test_ood


def test_the_report_is_a_path(run): assert run.report() == run.path/'report.html' and run.report().exists()


def test_a_run_shows_its_verdict_and_its_tables(run):
    text = Run(committed)._repr_markdown_()
    assert text.startswith('**The distillation ') and '| distilled student' in text
    assert Run(run.path, run.config)._repr_markdown_().count('| system') == 1


def test_a_prompt_is_shown_as_an_escaped_chat():
    prompt = SeedPrompt('Sort <b>.', [('b\n  a', '<script>x</script>')], 'd, c', form='chat')
    text = prompt._repr_html_()
    assert '<script>' not in text and '<b>.' not in text and 'b\n  a' in html.unescape(text)
    assert [m[1] for m in re.finditer(r'<b>(\w+)</b>', text)] == ['system', 'user', 'assistant', 'user']
