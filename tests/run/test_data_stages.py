"Questions and labeled pairs of a run: gaps that are filled, answers that are rejected, rows of the user."
import json, re, shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from llm_distill.core.core import DistillError, read_json, read_jsonl, recordings
from llm_distill.core.prompt_files import load_prompt
from llm_distill.data.metrics import metric_title
from llm_distill.run.config import RunConfig
from llm_distill.run.data_stages import project_questions
from llm_distill.run.distill import distill
from llm_distill.run.run import Run
from llm_distill.student.recipe import Recipe
from llm_distill.teacher.endpoint import Reply
from llm_distill.teacher.teacher import recorded_teacher

prompt, ood_prompt = load_prompt(recordings/'apartments.toml'), load_prompt(recordings/'pull_requests.toml')
reminders = load_prompt(recordings/'reminders.toml')
recorded = read_jsonl(recordings/'apartments.jsonl')


def labeled(path, tiny, prompt=prompt, teacher=None, **kwargs):
    "A run after its second stage."
    return distill(prompt, teacher or recorded_teacher(), run_dir=path, until='label', student=tiny, **kwargs)


def rejects_of(run, stage='labeling'):
    return [r for r in read_jsonl(run.path/'rejects.jsonl') if r['stage'] == stage]


def changed_teacher(change):
    "The recorded teacher with other replies: a function of stage, prompts and replies."
    teacher = recorded_teacher()
    ask = teacher.ask
    def changed(prompts, stage, **kwargs): return change(stage, prompts, ask(prompts, stage=stage, **kwargs))
    teacher.ask = changed
    return teacher


def test_prompts_that_got_no_reply_are_asked_again(tiny, tmp_path):
    refused = []
    def refuse_one(stage, prompts, replies):
        if stage != 'labeling' or refused: return replies
        refused.append(prompts[3])
        return [*replies[:3], replace(replies[3], text=None, kind='failed', reason='timed out'), *replies[4:]]
    teacher = changed_teacher(refuse_one)
    run = labeled(tmp_path/'run', tiny, teacher=teacher, n=20, n_test=4)
    assert len(read_jsonl(run.path/'train.jsonl')) == 19 and not run.done('label')
    assert [r['reason'] for r in rejects_of(run)] == ['failed reply: timed out']
    run = labeled(tmp_path/'run', tiny, teacher=teacher, n=20, n_test=4)
    assert len(read_jsonl(run.path/'train.jsonl')) == 20 and run.done('label')
    assert not rejects_of(run)


def test_usage_counts_each_request_once(tiny, tmp_path):
    teacher = recorded_teacher()
    for until in 'synthesize', 'label', 'label':
        run = distill(prompt, teacher, run_dir=tmp_path/'run', until=until, student=tiny, n=20, n_test=4)
    usage = read_json(run.path/'run.json')['usage']
    assert usage['labeling']['requests'] == 24
    assert usage['synthesis']['requests'] == teacher.usage['synthesis'].requests


def test_what_cannot_be_used_is_listed_before_the_run_stops(tiny, tmp_path):
    with pytest.raises(DistillError, match='leaves none for training with n_test=300'):
        labeled(tmp_path/'short', tiny, n=5, n_test=300)
    assert read_jsonl(tmp_path/'short'/'rejects.jsonl') and not (tmp_path/'short'/'questions.jsonl').exists()

    def break_lines(stage, prompts, replies):
        if stage == 'synthesis': return replies
        return [replace(r, text=r.text.replace(', ', '\n')) for r in replies]
    with pytest.raises(DistillError, match='more than one line'):
        labeled(tmp_path/'lines', tiny, teacher=changed_teacher(break_lines), n=5, n_test=3)
    rejects = [r for r in read_jsonl(tmp_path/'lines'/'rejects.jsonl') if r['stage'] == 'labeling']
    assert len(rejects) == 8 and all('\n' in r['reply'] for r in rejects)


def test_answers_of_another_kind(tiny, tmp_path):
    "Requests become JSON objects, checked by a schema and scored by fields."
    student = shutil.copytree(tiny, tmp_path/'student')
    config = read_json(student/'config.json')
    long_context = config | dict(max_position_embeddings=1024) # room for two worked examples
    (student/'config.json').write_text(json.dumps(long_context))
    run = distill(reminders, recorded_teacher(), run_dir=tmp_path/'run', student=student, recipe=Recipe(epochs=1),
                  n=45, n_test=15, check=recordings/'reminders.schema.json')
    rows = read_jsonl(run.path/'train.jsonl')
    fields = {'action', 'what', 'who', 'when', 'where'}
    assert len(rows) == 45 and all(set(json.loads(r['answer'])) == fields for r in rows)
    scores = {r['system']: r for r in read_json(run.path/'scores.json')}
    assert {r['main'] for r in scores.values()} == {'field_match'}
    means = {system: r['field_match']['mean'] for system, r in scores.items()}
    assert means['teacher'] > .95 > .6 > means['nearest'] > means['echo'] == 0
    assert metric_title('field_match') in (run.path/'results.md').read_text()
    figures = [f.stem for f in (run.path/'figures').iterdir()]
    assert 'data_fields' in figures and 'steps' not in figures and 'data_steps' not in figures


def test_answers_that_fail_the_check_are_rejected_and_replaced(tiny, tmp_path):
    checks = tmp_path/'checks.py'
    checks.write_text('def no_calls(question, answer):\n    if \'"call"\' in answer: return "it is a call"\n')
    run = labeled(tmp_path/'run', tiny, reminders, n=30, n_test=9, check=f'{checks}:no_calls', max_reasks=1)
    rejects = rejects_of(run)
    kept = {split: read_jsonl(run.path/f'{split}.jsonl') for split in ('test', 'train')}
    assert {k: len(v) for k, v in kept.items()} == dict(test=9, train=30), 'other questions fill the gaps'
    assert rejects and not any('"call"' in r['answer'] for v in kept.values() for r in v)
    rows = read_jsonl(recordings/'reminders.jsonl')
    questions = [r['question'] for r in rows if '"call"' not in r['answers'][0]]
    assert [r['question'] for v in kept.values() for r in v] == questions[:39], 'in the order of the sequence'
    assert {(r['filter'], r['reason']) for r in rejects} == {('check', 'it is a call')}
    assert all('"call"' in r['reply'] for r in rejects)
    assert run.record['usage']['labeling']['requests'] == 39 + 2*len(rejects)

    before = (run.path/'train.jsonl').stat().st_mtime_ns
    Run(run.path).run(recorded_teacher(), ['label'])
    assert (run.path/'train.jsonl').stat().st_mtime_ns == before, 'nothing to do'
    checks.write_text('def no_calls(question, answer): pass\n')
    assert not rejects_of(Run(run.path).run(recorded_teacher(), ['label']))


def test_own_pairs_are_not_asked_again(tiny, tmp_path):
    own = [dict(question=r['question'], answer=r['answers'][0].removesuffix('<END>')) for r in recorded[:24]]
    run = labeled(tmp_path/'run', tiny, n=20, n_test=4, pairs=own, synthesis=False)
    assert 'labeling' not in run.record['usage'] and 'synthesis' not in run.record['usage']
    train = read_jsonl(run.path/'train.jsonl')
    assert [r['answer'] for r in train] == [o['answer'] for o in own[4:]]
    assert {(r['teacher'], r['seed_question']) for r in train} == {('given', 'given')}
    mixed = labeled(tmp_path/'mixed', tiny, n=30, n_test=4, pairs=own)
    assert mixed.record['usage']['labeling']['requests'] == 10 and len(read_jsonl(mixed.path/'train.jsonl')) == 30


def test_own_questions_come_first(tiny, tmp_path):
    own = [r['question'] for r in recorded[100:105]]
    run = labeled(tmp_path/'run', tiny, n=8, n_test=3, questions=own)
    rows = [r for split in ('test', 'train') for r in read_jsonl(run.path/f'{split}.jsonl')]
    assert [r['question'] for r in rows[:5]] == own and [r['seed_question'] for r in rows[:5]] == ['given']*5
    assert len(rows) == 11 and {r['teacher'] for r in rows} == {'recorded'}


def test_two_seed_questions_share_the_data(tiny, tmp_path):
    run = distill(prompt, recorded_teacher(), run_dir=tmp_path/'run', student=tiny, recipe=Recipe(epochs=1),
                  n=20, n_test=6, seed_questions=[ood_prompt.question])
    counts = {k: Counter(r['seed_question'] for r in read_jsonl(run.path/f'{k}.jsonl')) for k in ('train', 'test')}
    both = prompt.question, ood_prompt.question
    assert counts == dict(train=dict.fromkeys(both, 10), test=dict.fromkeys(both, 3))
    assert ood_prompt.question[:40] in (run.path/'results.md').read_text()


def test_too_few_answers_are_a_note_in_run_json_and_card(tiny, tmp_path):
    own = [r['question'] for r in recorded[:10]]
    run = labeled(tmp_path/'run', tiny, n=20, n_test=4, questions=own, synthesis=False)
    notes = read_json(run.path/'run.json')['notes']
    assert notes['label'] == ['train: 6 of 20 pairs'] and '10 of 24 questions' in notes['synthesize'][0]
    assert 'train: 6 of 20 pairs' in (run.path/'dataset'/'README.md').read_text()


def test_a_judge_rejects_answers_and_others_replace_them(tiny, tmp_path):
    teacher = recorded_teacher()
    ask = teacher.ask
    def judge_is_strict(prompts, stage, **kwargs):
        if 'judge' not in kwargs['desc']: return ask(prompts, stage=stage, **kwargs)
        scores = [2 if 'bus' in p else 5 for p in prompts]
        return [Reply(f'{{"reason": "so", "score": {score}}}', 'ok', '', 'key') for score in scores]
    teacher.ask = judge_is_strict
    run = labeled(tmp_path/'run', tiny, teacher=teacher, n=30, n_test=5, judge='Score it: {question} {answer}')
    rejects, train = rejects_of(run), read_jsonl(run.path/'train.jsonl')
    assert {r['filter'] for r in rejects} == {'judge'} and all('bus' in r['question'] + r['reply'] for r in rejects)
    assert len(train) == 30 and not any('bus' in r['question'] for r in train)


def test_the_map_shows_every_question_once():
    rows = [dict(question=r['question']) for r in recorded[:12]]
    points = project_questions(dict(train=rows[:9], test=rows[9:]))
    assert [p['question'] for p in points] == [r['question'] for r in rows]
    assert Counter(p['split'] for p in points) == dict(train=9, test=3)
    assert abs(sum(p['x'] for p in points)) < .01 and abs(sum(p['y'] for p in points)) < .01


# Hashes

def hashes_of(run):
    "Hashes of the first two stages as they would be recorded now."
    hashes = {}
    run.step = lambda name, depends, reads, writes, work: hashes.update({name: run.hash_inputs(depends, reads)})
    run.synthesize()
    run.label()
    return hashes


def test_a_run_of_before_the_new_settings_has_nothing_to_do(tmp_path):
    "The hashes are those that the code computed for this run before the settings were added."
    shutil.copytree(Path(__file__).parents[2]/'nbs'/'runs'/'quickstart', tmp_path/'elsewhere')
    run = Run(tmp_path/'elsewhere', quiet=True)
    assert 'max_tokens' not in run.record['config']
    hashes = hashes_of(run)
    assert hashes == dict(synthesize='5c2298249e613e3c', label='29326abdb0f590fb')
    run = Run(tmp_path/'elsewhere', quiet=True)
    for name, digest in hashes.items(): run.record['stages'][name]['inputs'] = digest
    run.save()
    before = {f.name: f.stat().st_mtime_ns for f in run.path.glob('*.jsonl')}
    run.run(None, ['synthesize', 'label'])
    assert {f.name: f.stat().st_mtime_ns for f in run.path.glob('*.jsonl')} == before


@pytest.mark.parametrize('settings, stages', [
    (dict(max_tokens=99), ['label']), (dict(temperature=.5), ['label']),
    (dict(filters=['no-length']), ['synthesize', 'label']),
    (dict(encoder='other'), ['synthesize', 'label']), (dict(student_format='chat'), [])])
def test_a_new_setting_repeats_the_stages_it_changes(tmp_path, settings, stages):
    shutil.copytree(Path(__file__).parents[2]/'nbs'/'runs'/'quickstart', tmp_path/'elsewhere')
    run = Run(tmp_path/'elsewhere', quiet=True)
    before, changed = hashes_of(run), Run(run.path, replace(run.config, **settings), quiet=True)
    after = hashes_of(changed)
    assert [name for name in before if before[name] != after[name]] == stages


def test_settings_of_the_labels_reach_the_teacher(tmp_path):
    class Spy:
        usage, model = {}, 'recorded'
        def __init__(self): self.calls, self.teacher = [], recorded_teacher()
        def ask(self, prompts, **kwargs):
            self.calls.append(kwargs)
            return self.teacher.ask(prompts, **kwargs)
        def describe(self): return self.teacher.describe()
    config = RunConfig(recordings/'apartments.toml', n=8, n_test=3, max_tokens=77, temperature=.3)
    run = Run(tmp_path/'run', config, quiet=True)
    run.run(recorded_teacher(), ['synthesize'])
    run.teacher = spy = Spy()
    run.label()
    assert {(call['max_tokens'], call['temperature']) for call in spy.calls} == {(77, .3)}


def test_the_log_says_when_label_generates_more_questions(tmp_path, capsys):
    config = RunConfig(recordings/'apartments.toml', n=24, n_test=6, check='regex:(?!.*check).*', max_reasks=0)
    Run(tmp_path/'run', config).run(recorded_teacher(), ['synthesize', 'label'])
    log = capsys.readouterr().err
    assert re.search(r'label: \d+ pairs are missing; generating more questions', log)
    assert re.search(r'label: \d+ more questions, \d+ rejected so far', log)
