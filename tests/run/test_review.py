"The review of a run: the page in a browser, the terminal, and what the next run does with the decisions."
import json, re, shutil, subprocess, sys
from html import unescape

import pytest

from browser import Browser, needs_chromium
from llm_distill.cli import main
from llm_distill.core.core import read_json, read_jsonl, recordings, write_json, write_jsonl
from llm_distill.run.config import RunConfig
from llm_distill.run.decisions import add_decisions, decision, read_run_review, review_items
from llm_distill.run.review import (
    edit_text, merge_review, page_data, printable, review_in_terminal, review_page, write_review_page)
from llm_distill.run.run import Run
from llm_distill.run.tables import tables
from llm_distill.teacher.teacher import recorded_teacher
from odd_texts import error_of
from run_files import hostile

rows = [
    dict(question='SELECT what?', answer='SELECT name\n  FROM members\n\tWHERE plan = 1;'),
    dict(question='ما هي العاصمة؟', answer='الرياض'),
    dict(question=hostile, answer=f'</script><script>document.title = "hit"</script>{hostile}'),
    dict(question='Windows?', answer='a\r\n  b'),
]


@pytest.fixture
def run_dir(tmp_path):
    "A run with four test rows, the first two answered by a student, and two training pairs."
    folder = tmp_path/'a run'
    write_jsonl(folder/'test.jsonl', rows)
    write_jsonl(folder/'train.jsonl', [dict(question=f'Train {i}?', answer='Yes.') for i in range(2)])
    answers = [dict(question=row['question'], expected=row['answer'], prediction='<b>No</b>') for row in rows[:2]]
    write_jsonl(folder/'predictions'/'distilled_test.jsonl', answers)
    return folder


def verdicts(run_dir): return {row['question']: row['verdict'] for row in read_run_review(run_dir)}


# The page

def test_the_page_refers_to_nothing_outside_and_allows_only_its_own_code(run_dir):
    page = review_page(run_dir)
    own_code = re.sub(r'<script type="application/json".*?</script>', '', page, flags=re.S)
    assert len(own_code) < len(page) and not re.search(r'\b(src|href)="|url\(|@import|https?:', own_code)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert policy.startswith("default-src 'none'") and 'unsafe' not in policy
    assert page.count('<script') == page.count('</script>') == 2


def test_rows_reach_the_page_unchanged_and_never_as_markup(run_dir):
    page = review_page(run_dir)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    assert '<' not in data and '>' not in data
    items = json.loads(data)['items']
    assert [(item['question'], item['answer']) for item in items[:4]] == [tuple(row.values()) for row in rows]


def test_a_hostile_folder_name_is_text(run_dir):
    folder = shutil.copytree(run_dir, run_dir.with_name('<img src=x>'))
    page = review_page(folder)
    assert '<img' not in page and '<img src=x>' in unescape(page)


def test_the_hash_is_that_of_the_run_and_not_of_the_number_of_rows_or_the_student(run_dir):
    before = page_data(run_dir)['hash']
    assert page_data(run_dir, n=1)['hash'] == page_data(run_dir, 'teacher')['hash'] == before
    write_jsonl(run_dir/'train.jsonl', [dict(question='New?', answer='Yes.')])
    assert page_data(run_dir)['hash'] != before


@pytest.fixture
def browser(tmp_path):
    with Browser(tmp_path/'profile') as browser: yield browser


def status(browser): return browser.run('document.getElementById("status").textContent')


def place(browser): return browser.run('document.getElementById("place").textContent')


def count(browser): return browser.run('document.getElementById("count").textContent')


def shown(browser, id): return browser.run(f'document.getElementById("{id}").innerText')


@needs_chromium
def test_keys_decide_and_the_saved_file_is_merged_into_the_run(run_dir, browser, tmp_path):
    browser.download_to(tmp_path/'downloads')
    browser.open(write_review_page(run_dir))
    assert place(browser) == 'Row 1 of 4, test set' and '<b>No</b>' == shown(browser, 'prediction')
    browser.press('A', 'r') # both answers are judged, so the next row comes
    assert place(browser) == 'Row 2 of 4, test set'
    browser.press('a')
    assert place(browser) == 'Row 2 of 4, test set' and 'Judge the student' in status(browser)
    browser.press('j', 'a', 'e')
    browser.type('\n  c')
    browser.press('Control+Enter')
    assert place(browser) == 'Row 1 of 2, training set'
    browser.press('r', 'a', 'u') # the last decision is taken back
    assert place(browser) == 'Row 2 of 2, training set'
    assert count(browser) == '5 of 6 checked: 2 accepted, 2 rejected, 1 edited'
    browser.press('s')
    assert status(browser) == 'Saved 5 decisions as review.jsonl.'
    merge_review(run_dir, browser.wait_for_file(tmp_path/'downloads'/'review.jsonl'))
    assert verdicts(run_dir) == {rows[0]['question']: 'reject', rows[1]['question']: 'accept', hostile: 'accept',
                                 'Windows?': 'edit', 'Train 0?': 'reject'}
    decided = {row['question']: row for row in read_run_review(run_dir)}
    assert decided['Windows?']['correct'] == 'a\r\n  b\r\n  c', 'line breaks and indents are as they were'
    student = {key: decided['SELECT what?'][key] for key in ('student_verdict', 'prediction')}
    assert student == dict(student_verdict='accept', prediction='<b>No</b>')
    assert browser.problems() == []


@needs_chromium
def test_closing_the_page_loses_nothing_and_a_new_page_has_the_decisions_of_the_run(run_dir, browser):
    add_decisions(run_dir, [decision(review_items(run_dir)[3], 'accept')])
    browser.open(write_review_page(run_dir))
    browser.press('R', 'a', 'r', 'u')
    browser.open(write_review_page(run_dir, n=3))
    assert count(browser) == '1 of 5 checked: 1 accepted, 0 rejected, 0 edited'
    assert place(browser) == 'Row 2 of 3, test set', 'the first open row'
    browser.open(write_review_page(run_dir))
    assert count(browser) == '2 of 6 checked: 2 accepted, 0 rejected, 0 edited'


@needs_chromium
def test_the_later_of_two_decisions_counts_whether_of_the_run_or_of_the_browser(run_dir, browser):
    item = review_items(run_dir)[2]
    add_decisions(run_dir, [decision(item, 'accept')])
    browser.open(write_review_page(run_dir))
    browser.press('j', 'j', 'r')
    browser.open(write_review_page(run_dir))
    assert count(browser) == '1 of 6 checked: 0 accepted, 1 rejected, 0 edited'
    add_decisions(run_dir, [decision(item, 'edit', 'Neither.') | dict(time='2999-01-01T00:00:00.000Z')])
    browser.open(write_review_page(run_dir))
    assert count(browser) == '1 of 6 checked: 0 accepted, 0 rejected, 1 edited'


@needs_chromium
def test_filters_show_open_or_rejected_rows(run_dir, browser):
    browser.open(write_review_page(run_dir))
    browser.press('j', 'j', 'r', 'a')
    choose = 'get("filter").value = "{}"; get("filter").dispatchEvent(new Event("change"))'
    browser.run(choose.format('rejected'))
    assert place(browser) == 'Row 3 of 4, test set'
    browser.press('j')
    assert status(browser) == 'This is the last row.'
    browser.run(choose.format('open'))
    assert place(browser) == 'Row 1 of 2, training set'
    browser.press('k')
    assert place(browser) == 'Row 2 of 4, test set'
    browser.press('ArrowLeft')
    assert place(browser) == 'Row 1 of 4, test set'


@needs_chromium
def test_the_editor_takes_every_key_and_refuses_an_empty_answer(run_dir, browser):
    browser.open(write_review_page(run_dir))
    browser.press('e', 'a', 's', '?')
    assert browser.run('document.getElementById("text").value').endswith('as?') and count(browser).startswith('0 of 6')
    browser.press('Escape')
    assert status(browser) == 'The text was dropped.' and count(browser).startswith('0 of 6')
    browser.press('e')
    browser.run('document.getElementById("text").value = " "')
    browser.press('Control+Enter')
    assert status(browser).startswith('Write the right answer')
    browser.press('Escape', 'e', 'Control+Enter') # the same text again
    assert count(browser) == '1 of 6 checked: 1 accepted, 0 rejected, 0 edited'


@needs_chromium
def test_text_is_shown_as_it_is(run_dir, browser):
    browser.open(write_review_page(run_dir))
    assert shown(browser, 'answer') == rows[0]['answer']
    browser.press('j')
    assert browser.run('getComputedStyle(document.getElementById("answer")).direction') == 'rtl'
    browser.press('j')
    assert all(o in shown(browser, 'question') for o in ('<img src=x>', '⟨U+202E⟩', '⟨U+001B⟩[31m', '⟨U+0000⟩'))
    assert browser.run('document.title') == 'Review of a run'
    assert browser.run('document.querySelectorAll("article img, article b, article script").length') == 0
    assert browser.problems() == []


@needs_chromium
@pytest.mark.parametrize('width', (390, 1280))
@pytest.mark.parametrize('dark', (False, True))
def test_the_page_fits_and_has_contrast(run_dir, browser, width, dark):
    long = dict(question='x'*500, answer='y'*900)
    write_jsonl(run_dir/'test.jsonl', [long])
    browser.resize(width)
    browser.dark(dark)
    browser.open(write_review_page(run_dir))
    assert browser.run('document.documentElement.scrollWidth') <= width
    browser.press('a')
    assert browser.run(contrast) >= 4.5
    heights = browser.run('[...document.querySelectorAll("button")].map(b => b.offsetHeight).filter(Boolean)')
    assert min(heights) >= 44


contrast = '''(() => {
  const light = c => c.match(/\\d+/g).slice(0, 3).map(v => v/255)
    .map(v => v <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4)
    .reduce((sum, v, i) => sum + v*[.2126, .7152, .0722][i], 0)
  const paper = e => { const c = getComputedStyle(e).backgroundColor
    return c !== 'rgba(0, 0, 0, 0)' || !e.parentElement ? c : paper(e.parentElement) }
  const ratio = e => { const pair = [getComputedStyle(e).color, paper(e)].map(light).sort((a, b) => b - a)
    return (pair[0] + .05)/(pair[1] + .05) }
  return Math.min(...[...document.querySelectorAll('h1, h2, h3, p, button, select, kbd, .text, .verdict')].map(ratio))
})()'''


@needs_chromium
def test_controls_have_names_and_messages_are_announced(run_dir, browser):
    browser.open(write_review_page(run_dir))
    tree = browser.send('Accessibility.getFullAXTree')['nodes']
    named = {(n['role']['value'], n['name']['value']) for n in tree if not n['ignored'] and n.get('name')}
    assert {('heading', 'Row 1 of 4, test set'), ('button', 'Accept a'), ('navigation', 'Rows')} <= named
    assert any(role == 'button' and name.startswith('Accept the student’s answer') for role, name in named)
    assert all(name for role, name in named if role in ('button', 'combobox', 'progressbar', 'textbox'))
    assert ('combobox', 'Show') in named
    browser.press('j')
    assert browser.run('document.activeElement.id') == 'place'
    assert browser.run('document.getElementById("status").getAttribute("role")') == 'status'
    browser.press('?')
    assert browser.run('document.getElementById("keys").open')
    browser.press('a', 'Escape')
    assert count(browser).startswith('0 of 6') and not browser.run('document.getElementById("keys").open')


@needs_chromium
def test_without_storage_the_page_says_so_and_still_saves(run_dir, browser, tmp_path):
    full = 'Storage.prototype.setItem = () => { throw new Error() }'
    browser.send('Page.addScriptToEvaluateOnNewDocument', source=full)
    browser.download_to(tmp_path)
    browser.open(write_review_page(run_dir))
    browser.press('r')
    assert 'cannot keep your decisions' in status(browser)
    browser.press('s')
    merge_review(run_dir, browser.wait_for_file(tmp_path/'review.jsonl'))
    assert verdicts(run_dir) == {rows[0]['question']: 'reject'}


# The terminal

def answer_with(*commands):
    "Return a function that answers prompts with these commands, and then with an end of file."
    left = list(commands)
    def ask(prompt):
        if not left: raise EOFError
        return left.pop(0)
    return ask


def test_each_decision_in_the_terminal_is_saved_at_once_and_the_next_call_resumes(run_dir, capsys):
    review_in_terminal(run_dir, ask=answer_with('A', 'r', 'n', 'a'))
    assert verdicts(run_dir) == {rows[0]['question']: 'reject', hostile: 'accept'}
    capsys.readouterr()
    review_in_terminal(run_dir, ask=answer_with('a'))
    assert 'العاصمة' in capsys.readouterr().out
    assert verdicts(run_dir)[rows[1]['question']] == 'accept'


def test_an_interrupted_review_keeps_what_was_decided(run_dir):
    def ask(prompt, commands=['A', 'a']):
        if commands: return commands.pop(0)
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): review_in_terminal(run_dir, ask=ask)
    (row,) = read_run_review(run_dir)
    assert (row['verdict'], row['student_verdict'], row['prediction']) == ('accept', 'accept', '<b>No</b>')


def test_a_verdict_on_an_earlier_answer_of_the_student_does_not_count(run_dir):
    item = review_items(run_dir)[0]
    add_decisions(run_dir, [decision(item, None, student_verdict='accept', prediction='An earlier answer.')])
    review_in_terminal(run_dir, ask=answer_with('a', 'R', 'q'))
    (row,) = read_run_review(run_dir)
    assert (row['verdict'], row['student_verdict'], row['prediction']) == ('accept', 'reject', '<b>No</b>')


def test_rows_cannot_control_the_terminal(run_dir, capsys):
    review_in_terminal(run_dir, 'teacher', ask=answer_with('n', 'n', 'n'))
    out = capsys.readouterr().out
    assert '\x1b' not in out and '\u202e' not in out and '\\x1b[31m' in out
    assert rows[0]['answer'] in out and '<b>No</b>' not in out


def test_an_unknown_command_asks_again_and_an_empty_edit_changes_nothing(run_dir, monkeypatch):
    for name in 'VISUAL', 'EDITOR': monkeypatch.delenv(name, raising=False)
    review_in_terminal(run_dir, 'teacher', ask=answer_with('x', '', 'A', 'e', '.', 'q', 'a'))
    assert verdicts(run_dir) == {}
    review_in_terminal(run_dir, 'teacher', ask=answer_with('e', 'SELECT 1', '  FROM x', '.', 'q'))
    assert read_run_review(run_dir)[0]['correct'] == 'SELECT 1\n  FROM x'


def test_an_editor_of_the_user_is_opened_with_the_answer(tmp_path, monkeypatch):
    script = tmp_path/'my editor.py'
    script.write_text('import sys; f = sys.argv[1]; s = open(f).read().replace("old", "new"); open(f, "w").write(s)')
    monkeypatch.setenv('EDITOR', f"{sys.executable} '{script}'")
    monkeypatch.delenv('VISUAL', raising=False)
    assert edit_text('  old\n    é') == '  new\n    é'
    assert printable('a\tb\n\x07') == 'a\tb\n\\x07'


# The command

def test_the_command_writes_the_page_merges_and_says_what_to_do(run_dir, tmp_path, capsys):
    assert main(['review', str(run_dir), '--n', '2', '--out', str(tmp_path/'my page.html')]) == 0
    assert (tmp_path/'my page.html').exists() and 'no decisions yet' in capsys.readouterr().out
    add_decisions(tmp_path, [decision(review_items(run_dir)[0], 'accept')])
    assert main(['review', str(run_dir), '--merge', str(tmp_path/'review.jsonl')]) == 0
    assert 'Checked answers: 1 (1 accepted' in capsys.readouterr().out and verdicts(run_dir)
    assert main(['review', str(tmp_path/'absent')]) == 2
    assert "run 'llm-distill label" in capsys.readouterr().err


def test_a_review_of_another_run_is_refused(run_dir, tmp_path):
    add_decisions(tmp_path, [decision(dict(split='test', question='Other?', answer='No.'), 'reject')])
    assert 'has no decision on an answer of' in error_of(merge_review, run_dir, tmp_path/'review.jsonl')
    assert not (run_dir/'review.jsonl').exists()


def test_the_command_reads_decisions_from_standard_input(run_dir):
    command = [sys.executable, '-m', 'llm_distill', 'review', str(run_dir), '--terminal', '--system', 'teacher']
    done = subprocess.run(command, input='a\nr\nq\n', capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert list(verdicts(run_dir).values()) == ['accept', 'reject']


# The next run

def start(run):
    "Run all stages; return which steps did something."
    lines = []
    run.say = lines.append
    run.run(recorded_teacher())
    assert all('inputs' in outcome for outcome in run.record['stages'].values())
    return [line.removesuffix(' ...') for line in lines if line.endswith(' ...')]


@pytest.fixture(scope='module')
def finished(tmp_path_factory, tiny):
    config = RunConfig(recordings/'apartments.toml', recordings/'pull_requests.toml', n=12, n_test=4,
                       recipe=dict(epochs=1), student=tiny)
    return Run(tmp_path_factory.mktemp('review')/'run', config, quiet=True).run(recorded_teacher())


@pytest.fixture
def run(finished, tmp_path): return Run(shutil.copytree(finished.path, tmp_path/'run'), finished.config)


def test_a_review_of_test_rows_repeats_no_answer_and_changes_no_other_score(run):
    before = {file: (run.path/file).read_bytes() for file in ('scores.json', 'test.jsonl', 'train.jsonl')}
    items = review_items(run.path)
    add_decisions(run.path, [decision(items[0], 'accept'), decision(items[1], 'edit', 'Find the parks, list them.'),
                             decision(items[2], 'reject', student_verdict='accept', prediction=items[2]['prediction'])])
    assert start(run) == ['evaluate review', 'results']
    assert before == {file: (run.path/file).read_bytes() for file in before}
    rows = {row['system']: row for row in read_json(run.path/'review_scores.json')}
    teacher, student = rows['teacher_answers'], rows['distilled']
    assert (teacher['correct']['mean'], teacher['correct']['n'], teacher['n']) == (.3333, 3, 2)
    assert student['correct'] == student['correct'] | dict(mean=1, n=1) and student['n'] == 2
    assert student['as_teacher'] and student['score']['mean'] != student['as_teacher']['mean']
    assert start(run) == []


def test_accepted_answers_score_like_the_teacher(run):
    add_decisions(run.path, [decision(item, 'accept') for item in review_items(run.path)[:4]])
    start(run)
    rows = {row['system']: row for row in read_json(run.path/'review_scores.json')}
    scores = {row['system']: row for row in read_json(run.path/'scores.json') if row['test_set'] == 'test'}
    assert rows['teacher_answers']['score']['mean'] == 1 and rows['teacher_answers']['correct']['low'] < .7
    for system, row in scores.items():
        assert rows[system]['score'] == rows[system]['as_teacher'] == row[row['main']]


def test_a_review_of_training_pairs_trains_again_but_asks_the_teacher_nothing(run):
    pairs = read_jsonl(run.path/'train.jsonl')
    items = [item for item in review_items(run.path) if item['split'] == 'train']
    add_decisions(run.path, [decision(items[0], 'reject'), decision(items[1], 'edit', 'Find the parks, list them.')])
    usage = json.dumps(run.record['usage'])
    steps = start(run)
    assert {'label review', 'finetune', 'evaluate distilled', 'evaluate nearest', 'results'} <= set(steps)
    assert not {'synthesize', 'label', 'evaluate teacher'} & set(steps) and json.dumps(run.record['usage']) == usage
    reviewed = read_jsonl(run.path/'train.jsonl')
    assert reviewed[1:] == pairs[2:] and reviewed[0]['answer'] == 'Find the parks, list them.'
    note = 'checked by a person: 1 training pair left out, 1 training answer replaced'
    assert run.record['notes']['review'] == [note] and note in (run.path/'dataset'/'README.md').read_text()
    assert note.capitalize() in tables(run.path) and note.capitalize() in (run.path/'results.md').read_text()
    assert start(run) == []


def test_decisions_that_are_taken_back_restore_the_pairs(run):
    before = (run.path/'train.jsonl').read_bytes()
    add_decisions(run.path, [decision(review_items(run.path)[-1], 'reject')])
    run.label()
    assert (run.path/'train.jsonl').read_bytes() != before
    (run.path/'review.jsonl').unlink()
    run.label()
    assert (run.path/'train.jsonl').read_bytes() == before and run.record['notes']['review'] == []


def test_a_review_is_applied_again_to_new_labels(run):
    item = review_items(run.path)[-1]
    add_decisions(run.path, [decision(item, 'reject')])
    run.run(recorded_teacher(), ['label'])
    record = read_json(run.path/'run.json')
    record['stages']['label'].pop('inputs') # as after a kill
    write_json(run.path/'run.json', record)
    run.run(recorded_teacher(), ['label'])
    assert run.done('label')
    assert item['question'] not in {row['question'] for row in read_jsonl(run.path/'train.jsonl')}
    assert item['question'] in {row['question'] for row in read_jsonl(run.path/'unreviewed.jsonl')}


def test_a_kill_while_the_review_is_applied_is_made_good(run, monkeypatch):
    add_decisions(run.path, [decision(review_items(run.path)[-1], 'reject')])
    def be_killed(splits): raise KeyboardInterrupt
    monkeypatch.setattr(run, 'publish', be_killed)
    with pytest.raises(KeyboardInterrupt): run.label()
    again = Run(run.path, quiet=True)
    again.label()
    assert again.done('label') and len(read_jsonl(run.path/'train.jsonl')) == 11
    assert len(read_jsonl(run.path/'unreviewed.jsonl')) == 12 and '11' in (run.path/'dataset'/'README.md').read_text()


def test_rejecting_every_training_pair_is_an_error(run):
    add_decisions(run.path, [decision(item, 'reject') for item in review_items(run.path) if item['split'] == 'train'])
    assert 'rejects all training pairs' in error_of(run.label)
    assert len(read_jsonl(run.path/'train.jsonl')) == 12


def test_the_next_student_on_the_same_data_takes_the_review_over(run, tmp_path):
    item = review_items(run.path)[-1]
    add_decisions(run.path, [decision(item, 'reject')])
    run.run(recorded_teacher(), ['label'])
    second = Run(tmp_path/'second', run.config, quiet=True)
    second.run(recorded_teacher(), ['synthesize', 'label'], reuse_from=[run])
    assert (second.path/'train.jsonl').read_bytes() == (run.path/'train.jsonl').read_bytes()
    (second.path/'review.jsonl').unlink()
    second.label()
    assert item['question'] in {row['question'] for row in read_jsonl(second.path/'train.jsonl')}
