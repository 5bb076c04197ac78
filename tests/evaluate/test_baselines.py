"What the student and the base model are asked, where their answers end, and what trivial baselines answer."
from dataclasses import replace

import numpy as np
import pytest

from llm_distill.core.core import DistillError, recordings
from llm_distill.core.prompt import SeedPrompt
from llm_distill.core.prompt_files import load_prompt
from llm_distill.data.embedding import embed
from llm_distill.evaluate.baselines import (
    baseline, baselines, constant, echo, nearest, one_shot, system_title, systems, zero_shot)

prompt = load_prompt(recordings/'apartments.toml')


class Spy:
    "A student that gives one reply to everything and remembers what it was asked."
    def __init__(self, reply): self.reply, self.calls = reply, []

    def generate(self, prompts, **kwargs):
        self.calls.append((prompts, kwargs))
        return [self.reply]*len(prompts)


def test_prompts_that_students_see():
    spy = Spy(' a, b.')
    assert zero_shot(prompt, spy, ['Why?'], max_new_tokens=7, batch_size=2) == ['a, b.']
    assert one_shot(prompt, spy, ['Why?']) == ['a, b.']
    (zero_shot_prompts, options), (one_shot_prompts, stops) = spy.calls
    assert zero_shot_prompts == [f'{prompt.instruction}\nQ: Why?\nA:']
    assert options == dict(max_new_tokens=7, batch_size=2, stop=prompt.stop_strings)
    assert one_shot_prompts == [prompt.render('Why?')] and one_shot_prompts[0].endswith('\nQ: Why?\nA:')
    assert prompt.end in stops['stop']


@pytest.mark.parametrize('reply', [
    ' a, b.<END>\nQ: c', ' a, b.\nQ: c\nA: d', '\n\na, b. \n more', 'a, b.', ' A: a, b.'])
def test_one_shot_is_cut_where_the_answer_ends(reply): assert one_shot(prompt, Spy(reply), ['x']) == ['a, b.']


@pytest.mark.parametrize('form', ['text', 'chat'])
@pytest.mark.parametrize('answer', [one_shot, zero_shot])
def test_the_base_model_answers_in_as_many_lines_as_the_prompt(form, answer):
    several = SeedPrompt('Write code.', [('Count.', 'for i in x:\n    print(i)')], 'Sort.', form=form)
    reply = '   if x:\n     pass  \n'
    assert answer(several, Spy(reply), ['x']) == ['  if x:\n     pass']
    one_line = replace(several, examples=[('Count.', 'len(x)')])
    for one in one_line, replace(several, examples=()): assert answer(one, Spy(reply), ['x']) == ['if x:']


def test_nearest_answers_a_training_question_with_its_own_answer():
    pairs = (('Cancel my gym membership.', 'gym'), ('Which flights to Oslo are cheap?', 'Oslo'))
    train_rows = [dict(question=q, answer=a) for q, a in pairs]
    assert nearest(['Stop my membership at the gym', 'Find a cheap flight to Oslo'], train_rows) == ['gym', 'Oslo']


def test_the_best_constant_is_the_most_frequent_label():
    answers = ['neutral']*3 + ['negative']*5 + ['positive']*12
    labels = [dict(question=f't{i}', answer=a) for i, a in enumerate(answers)]
    def is_seven_letters(p, e, encode): return np.array([len(a) == 7 for a in p])
    assert constant(['x', 'y'], labels, encode=embed) == ['positive']*2
    assert constant(['x'], labels, metric=is_seven_letters) == ['neutral']


@pytest.mark.parametrize('answer', [nearest, constant])
def test_an_empty_training_set_is_an_error(answer):
    with pytest.raises(DistillError, match='training set is empty; run'): answer(['a'], [])


def test_every_registered_baseline_takes_the_same_arguments():
    rows = [dict(question='Is it open?', answer='find it, look'), dict(question='Who is it?', answer='ask, answer')]
    answers = {name: answer(['Is it open?'], rows, None) for name, answer in baselines.items()}
    assert answers['echo'] == echo(['Is it open?']) == ['Is it open?'] and answers['nearest'] == ['find it, look']
    assert {len(a) for a in answers.values()} == {1}


def test_a_new_baseline_is_one_function():
    @baseline('first training answer')
    def first(questions, train_rows, metric=None): return [train_rows[0]['answer']]*len(questions)
    try:
        assert list(systems)[-2:] == ['first', 'teacher'] and system_title('first') == 'first training answer'
        assert baselines['first'] is first
    finally: del systems['first'], baselines['first']
    assert list(systems) == ['distilled', 'one_shot', 'zero_shot', 'nearest', 'constant', 'echo', 'teacher']


def test_an_unknown_system_is_titled_by_its_key():
    assert system_title('my_model') == 'my model' and '\n' not in system_title('a\nb')
