"The card of a data set, for strangers."
import re

import pytest

from llm_distill.core.core import recordings
from llm_distill.core.prompt_files import load_prompt
from llm_distill.data.card import dataset_card, filter_titles
from llm_distill.data.checks import rules as answer_rules
from llm_distill.data.filters import rules as question_rules
from llm_distill.data.labeling import label, row_types
from llm_distill.teacher.recording import RecordingApp
from llm_distill.teacher.teacher import Teacher, recorded_teacher
from pair_rows import rows

prompt = load_prompt(recordings/'apartments.toml')
ood_prompt = load_prompt(recordings/'pull_requests.toml')


def test_every_filter_has_a_title():
    labeling = {'truncated', 'empty', 'filtered', 'failed', 'form', 'check', 'agreement', 'judge', 'same_group'}
    synthesis = {'exact_duplicate', 'near_duplicate_words', 'near_duplicate_meaning', 'near_duplicate_characters',
                 'copy_of_example', 'no_questions', 'not_needed'}
    assert labeling | synthesis | set(question_rules) | set(answer_rules) <= set(filter_titles)


def test_what_the_card_says():
    import yaml
    splits = dict(train=rows(1500, seed_question='One | two?'), test=rows(2, teacher='given', seed_question='given'),
                  test_ood=rows(1))
    rejects = [dict(stage='synthesis', filter='exact_duplicate'), *[dict(stage='labeling', filter='judge')]*2,
               dict(stage='synthesis', filter='my_own'), dict(question='damaged')]
    teacher = dict(model='gpt-x', endpoint='https://llm.example.org/v1', api_key='sk-secret')
    card = dataset_card(prompt, splits, teacher, rejects, dict(question='T <b>', closest='C', cosine=0.5), ood_prompt,
                        dict(samples=3, judge=True, check=None), notes=['main: 1500 of 2000 questions: <nothing> new'])
    header = yaml.safe_load(card.split('---')[1])
    assert header['configs'][0]['data_files'] == [dict(split=k, path=f'{k}.parquet') for k in splits]
    assert header['size_categories'] == ['1K<n<10K'] and {'synthetic', 'llm_distill'} <= set(header['tags'])
    assert 'license' not in header and 'sk-secret' not in card and 'CC0' not in card
    for text in (
            '| synthesis | `exact_duplicate` |', '| labeling | `judge` | rejected by the judge | 2 |',
            '| other | `other` |', 'a custom filter | 1 |', prompt.question, prompt.instruction, ood_prompt.question,
            '| `train` | 1500 |',
            '| `train` | One \\| two? | 1500 |', '`gpt-x` at llm.example.org.',
            '- main: 1500 of 2000 questions: \\<nothing> new', 'cosine of 0.50', 'T \\<b> (test)', 'every tenth row',
            'terms of use', 'samples 3', '2 given by the user, 1501 written by a language model',
            *(f'`{name}`' for name in row_types)):
        assert text in re.sub(' +', ' ', card), text


def test_texts_of_others_stay_texts_in_the_card():
    note, title = '{{ 7*7 }} <img src=x> [a](b)', '# {% x %}\n---\nlicense: mit'
    card = dataset_card(prompt, dict(train=rows(1)), {}, notes=[note], title=title, settings=dict(check='regex:`*<b>'))
    assert '{{ 7\\*7 }} \\<img src=x> \\[a\\](b)' in card and '\n\n# \\# {% x %} --- license: mit\n' in card
    assert 'license: mit' not in card.splitlines() and 'regex:\\`\\*\\<b>' in card


def test_only_the_recordings_of_the_package_are_free(tmp_path):
    package = dataset_card(prompt, dict(train=rows(1, teacher='recorded')), recorded_teacher().describe())
    assert 'license: cc0-1.0' in package and 'CC0' in package and 'Nothing.' in package

    class Constant(RecordingApp):
        name = 'constant'
        def __init__(self): pass
        def answer(self, body, headers):
            choice = dict(index=0, message=dict(role='assistant', content='Find it, list it.'), finish_reason='stop')
            return 200, dict(id='x', object='chat.completion', created=0, model='m', choices=[choice])
    label(prompt, ['Where?'], Teacher('m', app=Constant(), progress=False, record=tmp_path/'r.jsonl'))
    teacher = Teacher(f'recorded:{tmp_path}/r.jsonl', progress=False)
    mine = dataset_card(prompt, dict(train=rows(1)), teacher.describe())
    assert 'CC0' not in mine and 'license:' not in mine and 'recorded' in mine and 'terms of use' in mine
    another = dataset_card(prompt, dict(train=rows(1, teacher='gpt-x')), recorded_teacher().describe())
    assert 'CC0' not in another and 'license:' not in another


from_user = dict(teacher='given', seed_question='given')


@pytest.mark.parametrize('own', [from_user, dict(teacher='given'), dict(seed_question='given')])
def test_a_row_of_the_user_is_not_put_into_the_public_domain(own):
    splits = dict(train=rows(9, teacher='recorded'), test=rows(1, **dict(teacher='recorded') | own))
    card = dataset_card(prompt, splits, recorded_teacher().describe())
    assert 'license:' not in card and "the user's to state" in card and 'What the recorded teacher wrote' in card
    assert 'Questions: 1 given by the user, 9 written' in card
    assert ('Answers: 1 given by the user, 9 written' in card) == ('teacher' in own)


@pytest.mark.parametrize('teacher', [
    recorded_teacher().describe(), dict(model='gpt-x', endpoint='https://api.openai.com/v1'), {}])
def test_a_data_set_of_the_user_alone_names_no_teacher(teacher):
    splits = dict(train=rows(3, **from_user), test=rows(1, **from_user))
    card = dataset_card(prompt, splits, teacher, settings=dict(samples=1, judge=True, judge_threshold=4))
    assert 'Questions: given by the user. Answers: given by the user.' in card and "the user's to state" in card
    for word in ('## Teacher', 'CC0', 'Claude', 'license:', 'language model', 'gpt-x', 'terms of use', 'synthetic'):
        assert word not in card, word


def test_questions_of_the_user_with_answers_of_a_model():
    teacher = dict(model='gpt-x', endpoint='https://api.openai.com/v1')
    card = dataset_card(prompt, dict(train=rows(3, seed_question='given')), teacher)
    assert 'Questions: given by the user. Answers: written by a language model.' in card
    assert '`gpt-x` at api.openai.com.' in card and 'terms of use' in card and "the user's to state" in card
    assert 'resemble the seed questions' not in card and '- synthetic' in card


@pytest.mark.parametrize('endpoint', [
    'http://gpu7:8000/v1', 'http://gpu7/v1', 'http://localhost:1234/v1', 'http://10.1.2.3/v1', 'http://[fe80::1]/v1',
    'http://gpu7.lab.local/v1', 'https://gpu7.team.internal/v1', 'https://gpu7.example.org:8443/v1',
    'http://GPU7.LAN/v1', 'gpu7.example.org/v1', 'http://[gpu7', 'recorded:gpu7', None])
def test_a_private_endpoint_stays_unnamed(endpoint):
    card = dataset_card(prompt, dict(train=rows(1)), dict(model='llama', endpoint=endpoint))
    assert '`llama`.' in card and not re.search('gpu7|localhost|10.1.2|fe80|8443', card, re.I)


def test_a_public_endpoint_is_named_by_its_host_alone():
    endpoint = 'https://me:secret@API.Example.org/tenant7/v1?k=key8'
    card = dataset_card(prompt, dict(train=rows(1)), dict(model='llama', endpoint=endpoint))
    assert '`llama` at api.example.org.' in card and not re.search('secret|tenant7|key8', card)


@pytest.mark.parametrize('settings, listed', [
    (dict(check=None, samples=1, min_agreement=0., max_reasks=2, judge=None, judge_threshold=4),
     'samples 1, max_reasks 2.'),
    (dict(samples=3, min_agreement=.5, max_reasks=0, judge=True, judge_threshold=3),
     'samples 3, min_agreement 0.5, judge default prompt, judge_threshold 3.'),
    (dict(check='regex:a+', samples=3, min_agreement=0., judge='Is {answer} good for {question}?', judge_threshold=4),
     'check regex:a+, samples 3, judge own prompt, judge_threshold 4.')])
def test_the_card_lists_the_settings_that_had_an_effect(settings, listed):
    card = dataset_card(prompt, dict(train=rows(1)), dict(model='m'), settings=settings)
    assert f'Settings of labeling: {listed}\n' in card


def test_a_card_without_a_teacher_invents_none():
    card = dataset_card(prompt, dict(train=rows(1)), {})
    assert 'None' not in card and 'not recorded' in card and 'terms of use' in card


def test_other_rows_have_another_digest():
    def digest(splits, **kwargs):
        card = dataset_card(prompt, splits, {}, **kwargs)
        return re.search('description: rows ([0-9a-f]{16})', card)[1]
    first = digest(dict(train=rows(3), test=rows(1)))
    assert first == digest(dict(train=rows(3), test=rows(1)), title='Another title')
    others = dict(train=rows(4), test=rows(1)), dict(train=rows(3), test=rows(1, teacher='x')), dict(train=rows(3))
    assert len({first, *map(digest, others)}) == 4
