"Asking the teacher twice before a run: what it says, and that the run does not pay for it again."
from collections import Counter
from dataclasses import replace

import pytest

from llm_distill.core.core import DistillError, recordings
from llm_distill.run.config import RunConfig
from llm_distill.run.feasibility import Feasibility, describe_feasibility, try_teacher
from llm_distill.run.run import Run
from llm_distill.teacher.recording import RecordingApp
from llm_distill.teacher.teacher import Teacher, recorded_teacher

config = RunConfig(recordings/'apartments.toml', n=10, n_test=20)


class CountingApp(RecordingApp):
    "The recorded teacher, with the stage of every request that reaches it."
    def __init__(self):
        super().__init__()
        self.stages = []

    def answer(self, body, headers):
        self.stages.append(headers.get('x-llm-distill-stage'))
        return super().answer(body, headers)


def test_the_run_finds_all_answers_of_the_pilot_in_the_cache(tmp_path):
    app = CountingApp()
    with_pilot = Teacher('m', app=app, cache=tmp_path/'cache', progress=False)
    try_teacher(config, with_pilot, n=20)
    n_pilot = Counter(app.stages)
    assert n_pilot['labeling'] == n_pilot['evaluation'] == 20 and 0 < n_pilot['synthesis'] <= 4
    Run(tmp_path/'run', config, quiet=True).run(with_pilot, ['synthesize', 'label'])
    alone = CountingApp()
    Run(tmp_path/'alone', config, quiet=True).run(Teacher('m', app=alone, progress=False), ['synthesize', 'label'])
    in_both = Counter(app.stages)
    assert in_both['labeling'] == Counter(alone.stages)['labeling'] == 30
    assert in_both['synthesis'] == Counter(alone.stages)['synthesis']


def test_agreement_and_examples_are_described():
    result = try_teacher(config, recorded_teacher(), n=10)
    text = describe_feasibility(result, n_shown=3)
    assert text.count('question  ') == 3 and f'{result.agreement[0]:.2f}' in text and 'Verdict: go on' in text
    assert result.rows[0]['first'] in text and result.rows[0]['second'] in text


def test_own_answers_are_the_first_ones():
    question = 'Which bakeries in Lyon are open on Mondays?'
    class Oven:
        model = 'oven'
        def ask(self, prompts, **kwargs):
            from llm_distill.teacher.endpoint import Reply
            return [Reply('Find the bakeries, list them, sort them.', 'ok', '', '') for _ in prompts]
    own = replace(config, pairs={question: 'Find the bakeries, list them.'}, synthesis=False)
    row, = try_teacher(own, Oven(), n=1).rows
    assert row['question'] == question and row['first'] == 'Find the bakeries, list them.' and row['agreement'] < 1


@pytest.mark.parametrize('agreement, rejects, start', [
    (.9, {}, 'go on'), (.5, {}, 'strengthen the instruction'), (.2, {}, 'too open'),
    (.9, dict(extra_lines=5), 'strengthen')])
def test_the_verdict_follows_from_agreement_and_invalid_answers(agreement, rejects, start):
    result = Feasibility([], 'step_f1', (agreement, agreement, agreement), 20, Counter(rejects))
    assert result.verdict().startswith(start)


def test_a_teacher_without_usable_answers_is_an_error():
    class Silent:
        model = 'silent'
        def ask(self, prompts, **kwargs):
            from llm_distill.teacher.endpoint import Reply
            return [Reply('', 'ok', '', '') for _ in prompts]
    own = replace(config, questions=['Which bakeries in Lyon are open on Mondays?'], synthesis=False)
    with pytest.raises(DistillError, match='no question has two usable answers'): try_teacher(own, Silent(), n=1)
