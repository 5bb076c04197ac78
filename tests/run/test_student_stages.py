"The format of a student: chosen, learned, saved, described and asked."

import shutil

import pytest

from families import make_chat
from llm_distill.core.core import DistillError, read_json, recordings
from llm_distill.core.prompt import STUDENT_FORMAT
from llm_distill.core.prompt_files import load_prompt
from llm_distill.run.distill import distill
from llm_distill.run.student_stages import choose_format, weight_files
from llm_distill.student.generation import Student
from llm_distill.student.models import tiny_student
from llm_distill.student.recipe import Recipe
from llm_distill.teacher.teacher import recorded_teacher

prompt = load_prompt(recordings/'apartments.toml')
settings = dict(n=12, n_test=4, recipe=Recipe(epochs=1), quiet=True)


@pytest.fixture(scope='module')
def chat_model(tmp_path_factory):
    "Folder of a base model with a chat template of its own."
    student = make_chat(tiny_student())
    folder = tmp_path_factory.mktemp('students')/'chat'
    student.save(folder)
    (folder/'distillation.json').unlink() # as a maker publishes it
    return str(folder)


def test_auto_is_text_and_the_others_are_taken():
    formats = [choose_format(tiny_student(), setting) for setting in ('auto', 'text', 'chat')]
    assert formats == ['text', 'text', 'chat']


def test_a_run_in_chat_format(chat_model, tmp_path):
    run = distill(prompt, recorded_teacher(), run_dir=tmp_path/'run', student=chat_model, student_format='chat',
                  **settings)
    student = Student.load(run.path/'student')
    base_model = Student.load(chat_model)
    assert student.format == 'chat' and student.tokenizer.chat_template == base_model.tokenizer.chat_template
    assert read_json(run.path/'student'/'distillation.json')['format'] == 'chat'
    card = (run.path/'student'/'README.md').read_text()
    assert 'in the chat template of the base model' in card and STUDENT_FORMAT not in card
    answer = run.complete('Which bakeries\nare open?')
    assert ''.join(run.stream('Which bakeries\nare open?')) == answer == student('Which bakeries\nare open?')
    text = distill(prompt, recorded_teacher(), run_dir=run.path, student=chat_model, **settings)
    assert Student.load(text.path/'student').format == 'text'
    assert STUDENT_FORMAT in (text.path/'student'/'README.md').read_text()


def test_a_base_model_without_a_chat_template_is_refused(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path/'base')
    (folder/'chat_template.jinja').unlink()
    teacher = recorded_teacher()
    with pytest.raises(DistillError, match='no chat template; use the student format text') as e:
        distill(prompt, teacher, run_dir=tmp_path/'run', student=str(folder), student_format='chat',
                **settings)
    assert len(str(e.value).splitlines()) == 1 and not teacher.usage # it is noticed before anything is paid for


def test_the_default_format_is_no_reason_to_train_again(tiny, tmp_path):
    "Runs from before there was a setting stay as they are."
    run = distill(prompt, recorded_teacher(), run_dir=tmp_path/'run', student=tiny, until='finetune', **settings)
    inputs = run.record['stages']['finetune']['inputs']
    recipe = run.record['config']['recipe']
    assert inputs == run.hash_inputs([tiny, weight_files(tiny), recipe], ['train.jsonl'])
