"From a log to a run without a teacher, and from a run to files for other trainers."
import json, shlex

import pytest

from llm_distill.cli import main
from llm_distill.core.core import read_json, read_jsonl, write_jsonl
from llm_distill.data.logs import import_file
from llm_distill.data.rows import read_rows
from llm_distill.run.config import NoTeacher, RunConfig, TeacherConfig
from llm_distill.run.distill import distill
from llm_distill.run.exchange import describe_import, export_run, next_commands, split_sizes
from llm_distill.run.run import Run
from llm_distill.run.tables import no_ceiling_note, tables
from odd_texts import error_of

animals = ['otter', 'falcon', 'badger', 'salmon', 'viper', 'gecko', 'bison', 'heron', 'lynx', 'moth', 'newt', 'crab']
verbs = 'swim in the river', 'hide from the winter', 'hunt after dark', 'raise its young'


def request(i):
    question = f'Where does a {animals[i % 12]} {verbs[i//12]}?'
    messages = [dict(role='system', content='Name the animal.'), dict(role='user', content=question),
                dict(role='assistant', content=animals[i % 12])]
    return dict(messages=messages, user_id=f'user {i % 12}', created=1.7e9 + i)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('log')
    return import_file(write_jsonl(folder/'log.jsonl', map(request, range(48))), folder/'out')


@pytest.fixture(scope='module')
def run(files, tiny):
    "A run of the imported pairs, by the command that the import prints."
    path = files.prompt_file.parent/'run'
    command = next_commands(files)[0].replace('--n 38 --n-test 9', '--n 30 --n-test 9')
    options = '--near', '2', '--rouge', '2', '--filters', 'none', '--epochs', '1'
    assert main([*shlex.split(command)[1:], '--student', tiny, '--run-dir', str(path), *options]) == 0
    return Run(path, quiet=True)


def test_a_run_of_your_own_pairs_needs_no_teacher(run):
    rows = [row for split in ('train', 'test') for row in read_jsonl(run.path/f'{split}.jsonl')]
    assert {row['teacher'] for row in rows} == {'given'} and len(rows) > 30 and run.record['usage'] == {}
    assert all(run.done(stage) for stage in ('synthesize', 'label', 'finetune', 'evaluate', 'results'))
    systems = {row['system'] for row in read_json(run.path/'scores.json')}
    assert 'distilled' in systems and 'teacher' not in systems
    assert no_ceiling_note in tables(run.path) and no_ceiling_note in (run.path/'results.md').read_text()
    assert '## Teacher' not in (run.path/'dataset'/'README.md').read_text()


def test_the_newest_users_are_the_test_set_and_in_no_other(run, files):
    pairs = {row['question']: row for row in read_jsonl(files.pairs_file)}
    test, train = ([pairs[row['question']] for row in read_jsonl(run.path/f'{s}.jsonl')] for s in ('test', 'train'))
    in_test, in_train = ({row['group'] for row in rows} for rows in (test, train))
    assert len(test) == 9 and not in_test & in_train
    newest = {}
    for row in pairs.values(): newest[row['group']] = max(row['time'], newest.get(row['group'], ''))
    assert min(newest[group] for group in in_test) > max(newest[group] for group in in_train)
    lost = [row for row in read_jsonl(run.path/'rejects.jsonl') if row['filter'] == 'same_group']
    assert {pairs[row['question']]['group'] for row in lost} <= in_test and len(lost) == 3
    assert RunConfig.from_dict(read_json(run.path/'run.json')['config']).groups == run.config.groups != {}


def test_the_same_command_repeats_nothing(run, capsys):
    again = Run(run.path)
    again.run(TeacherConfig('none').connect())
    assert capsys.readouterr().err.count('nothing to do') >= 5


@pytest.mark.parametrize('format', ['messages', 'prompt-completion', 'openai', 'parquet'])
def test_pairs_are_exported(run, tmp_path, format, capsys):
    out = tmp_path/('a.parquet' if format == 'parquet' else 'a.jsonl')
    assert main(['export', str(run.path), str(out), '--format', format, '--split', 'test']) == 0
    pairs = [{k: row[k] for k in ('question', 'answer')} for row in read_jsonl(run.path/'test.jsonl')]
    assert read_rows(out) == pairs and '9 pairs written' in capsys.readouterr().out
    if format == 'openai': assert read_jsonl(out)[0]['messages'][0]['content'] == 'Name the animal.'


def test_what_cannot_be_exported(run, tmp_path):
    assert 'has no second prompt' in error_of(export_run, run.path, tmp_path/'a', split='test_ood')
    assert 'split must be one of' in error_of(export_run, run.path, tmp_path/'a', split='dev')
    assert 'format must be one of' in error_of(export_run, run.path, tmp_path/'a', format='csv')
    assert 'is not a run directory' in error_of(export_run, tmp_path/'none', tmp_path/'a')
    new = Run(tmp_path/'new', RunConfig(run.config.prompt), quiet=True)
    new.save()
    assert "train.jsonl is missing; run 'llm-distill label" in error_of(export_run, tmp_path/'new', tmp_path/'a')


def test_what_an_import_prints(files, tmp_path, monkeypatch, capsys):
    text = describe_import(files)
    parts = '48 rows taken from `messages`', '12 groups by `user_id`', 'times from `created`', '--teacher none'
    assert all(part in text for part in parts)
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path/'mine.jsonl', [dict(input='Italy', output='Rome'), dict(input='Peru', output='Lima')])
    assert main(['import', 'mine.jsonl']) == 0 and (tmp_path/'mine'/'prompt.json').exists()
    assert 'share no system message' in capsys.readouterr().out
    assert main(['import', 'absent.jsonl']) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'cannot read' in error


def test_proposed_sizes_leave_out_the_seed_question():
    assert [split_sizes(n) for n in (1, 2, 10, 100, 1000)] == [(1, 1), (1, 1), (7, 2), (79, 20), (949, 50)]


own = dict(pairs={'Where can I sail?': 'sailing'}, synthesis=False)


@pytest.mark.parametrize('wrong, words', [
    (dict(synthesis=True), 'generates no questions; pass synthesis=False'), (dict(judge=True), 'judge needs a teacher'),
    (dict(pairs={}), 'has only your own answers'), (dict(questions=['Why?']), "no answer, for example 'Why?'")])
def test_what_a_run_without_a_teacher_cannot_do(files, tmp_path, wrong, words):
    run = Run(tmp_path/'run', RunConfig(files.prompt_file, **own | wrong), quiet=True)
    assert words in error_of(run.run, NoTeacher()) and not (tmp_path/'run'/'run.json').exists()


def test_distill_without_a_teacher_asks_for_no_key(files, tmp_path):
    wrong = dict(run_dir=tmp_path/'run', pairs=dict(a='b'))
    assert 'pass synthesis=False' in error_of(distill, files.prompt_file, 'none', **wrong)
    options = dict(pairs=files.pairs_file, synthesis=False, filters=['none'], n=30, n_test=9, dedup_cosine=2,
                   dedup_rouge=2)
    run = distill(files.prompt_file, 'none', run_dir=tmp_path/'run', until='label', quiet=True, **options)
    assert run.done('label') and run.record['connection']['teacher'] == 'none'


# ---- groups in a configuration

def test_groups_come_from_the_rows(files, tmp_path):
    rows = [dict(question='a', answer='b', group='ada'), dict(question='c', answer='d')]
    config = RunConfig(files.prompt_file, pairs=rows, questions=[dict(question='e', group=7), 'f'], groups={'c': 'bob'})
    assert config.groups == dict(a='ada', c='bob', e='7') and list(config.pairs) == ['a', 'c']
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))).groups == config.groups
    assert 'groups' not in RunConfig(files.prompt_file, pairs=dict(a='b')).dependencies('groups')


def test_what_is_not_taken_from_a_file_is_printed(files, tmp_path, capsys):
    log = write_jsonl(tmp_path/'log.jsonl', [request(0), request(1), dict(messages=[])])
    assert len(RunConfig(files.prompt_file, pairs=log).pairs) == 2
    assert '1 not taken: 1 no answer of the assistant' in capsys.readouterr().err
