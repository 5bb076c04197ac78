"Judges that are right, partial, mute or out of order, and what of it reaches the files of a run."
import json, re
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from llm_distill import judge
from llm_distill.judge import judge_pairs, judge_run, pair_prompt, parse_verdict, summarize_judgements
from llm_distill.prompts import DistillError, TeacherError, load_prompt, read_jsonl, recordings, write_json, write_jsonl
from llm_distill.teacher import Teacher
from server import Server

seed, other = (load_prompt(recordings/f'{f}.toml') for f in ('apartments', 'pull_requests'))
tasks = [f'Question {i}?' for i in range(6)]


class Judge(Server):
    "A local endpoint that judges with `verdict(a, b, messages)`: a reply, or a reply and its finish_reason"
    def __init__(self, verdict, **kwargs): super().__init__(echo=True, **kwargs); self.verdict, self.chats = verdict, []
    def answer(self, body, headers):
        self.chats.append(body['messages'])
        a, b = re.findall(r'<answer_.>\n(.*)\n</answer_.>', body['messages'][0]['content'])
        found = self.verdict(a, b, body['messages'])
        text, why = found if isinstance(found, tuple) else (found, 'stop')
        return 200, dict(id='x', object='chat.completion', created=0, model=body['model'], usage=dict(prompt_tokens=9, completion_tokens=1),
                         choices=[dict(index=0, message=dict(role='assistant', content=text), finish_reason=why)])


def say(verdict): return json.dumps(dict(reason='So it is.', verdict=verdict))

def truth(a, b, messages):
    "Prefers what says `good`"
    return say('tie' if ('good' in a) == ('good' in b) else 'A' if 'good' in a else 'B')

def ask(run_dir, verdict, systems=('distilled',), cache=None, server={}, **kwargs):
    "What a judge makes of a run, and the server that it was"
    with Judge(verdict, **server) as s:
        return judge_run(run_dir, Teacher('a-judge', s.url, cache=cache, progress=False, max_retries=0, backoff=.01, breaker=99), systems, **kwargs), s


@pytest.fixture
def run_dir(tmp_path):
    "Six answers: three good ones against bad ones, two ties, one bad one against a good one"
    write_json(tmp_path/'run.json', dict(settings=dict(seed=vars(seed) | dict(examples=[]), other=vars(other) | dict(examples=[], instruction='Do the other thing.'))))
    predicted, expected = ['good']*3 + ['bad', 'good', 'bad'], ['bad']*3 + ['bad', 'good', 'good']
    for t in 'same', 'different':
        for system, answers in dict(distilled=predicted, one_shot=['bad']*6).items():
            write_jsonl(tmp_path/'predictions'/f'{system}_{t}.jsonl', (dict(task=f'{q} ({t})', expected=f'{e} {i}', prediction=f'{p}, {i}')
                                                                      for i, (q, e, p) in enumerate(zip(tasks, expected, answers))))
    return tmp_path


def test_a_perfect_judge(run_dir):
    made, server = ask(run_dir, truth, ('distilled', 'one_shot'))
    assert made['judge'] == 'a-judge' and json.loads((run_dir/'judge.json').read_text()) == made
    for t in 'same', 'different':
        d, o = (made['systems'][s][t] for s in ('distilled', 'one_shot'))
        assert (d['n'], d['wins'], d['ties'], d['losses'], d['first_wins'], d['inconsistent'], d['unusable']) == (6, 3, 2, 1, .5, 0, 0)
        assert d['win_rate']['mean'] == pytest.approx(4/6, abs=1e-4) and d['win_rate']['low'] < .6 < d['win_rate']['high']
        assert (o['wins'], o['ties'], o['losses']) == (0, 4, 2) and o['win_rate']['mean'] == pytest.approx(2/6, abs=1e-4)
    assert len(server.chats) == 2*2*6*2 - 2*2*2 # systems, sets, items, orders; where both systems say the same, it is asked about once


def test_rows_hold_both_verdicts_as_they_were(run_dir):
    ask(run_dir, truth)
    rows = read_jsonl(run_dir/'judge.jsonl')
    assert [r['outcome'] for r in rows[:6]] == ['win']*3 + ['tie']*2 + ['loss'] and len(rows) == 12
    first = rows[0]
    assert first['verdicts'] == ['A', 'B'] and first['replies'] == [say('A'), say('B')]
    assert (first['task'], first['system'], first['test_set'], first['prediction'], first['expected']) == ('Question 0? (same)', 'distilled', 'same', 'good, 0', 'bad 0')


def test_each_item_is_asked_in_both_orders_with_its_own_instruction(run_dir):
    _, server = ask(run_dir, truth)
    shown = [c[0]['content'] for c in server.chats]
    for t, instruction in dict(same=seed.instruction, different='Do the other thing.').items():
        mine = [o for o in shown if f'Question 2? ({t})' in o]
        assert len(mine) == 2 and all(f'Instruction: {instruction}\n' in o for o in mine)
        assert sorted(o.index('good, 2') < o.index('bad 2') for o in mine) == [False, True]


def test_a_judge_that_takes_what_stands_first(run_dir):
    made, _ = ask(run_dir, lambda *_: say('A'))
    for o in made['systems']['distilled'].values():
        assert o == dict(n=6, wins=0, ties=6, losses=0, win_rate=dict(mean=.5, low=.5, high=.5), first_wins=1, inconsistent=1, unusable=0)


def test_a_judge_that_takes_what_stands_second_half_the_time(run_dir):
    made, _ = ask(run_dir, lambda a, b, m: say('tie' if 'good' in a else 'B'))
    found = made['systems']['distilled']['same']
    assert found['first_wins'] == 0 and found['inconsistent'] == pytest.approx(5/6, abs=1e-4) # all but the pair of two good answers


def test_only_ties(run_dir):
    made, _ = ask(run_dir, lambda *_: say('tie'))
    assert made['systems']['distilled']['same'] == dict(n=6, wins=0, ties=6, losses=0, win_rate=dict(mean=.5, low=.5, high=.5), first_wins=None, inconsistent=0, unusable=0)


def test_what_cannot_be_read_is_asked_once_more(run_dir):
    made, server = ask(run_dir, lambda a, b, m: 'Difficult.' if len(m) == 1 else truth(a, b, m))
    assert made['systems']['distilled']['same']['wins'] == 3 and len(server.chats) == 2*24
    assert [o['role'] for o in server.chats[-1]] == ['user', 'assistant', 'user'] and server.chats[-1][1]['content'] == 'Difficult.'


@pytest.mark.parametrize('garbage', ['I refuse.', '', 'A good one is B', '{"verdict": 7}', ('{"reason": "I am cut', 'length'), ('', 'content_filter')])
def test_garbage_is_counted_and_kept(run_dir, garbage):
    made, server = ask(run_dir, lambda a, b, m: garbage if '2' in a + b else truth(a, b, m), n=3)
    found = made['systems']['distilled']['same']
    assert (found['n'], found['wins'], found['unusable'], found['win_rate']['mean']) == (2, 2, 1, 1)
    bad = read_jsonl(run_dir/'judge.jsonl')[2]
    assert bad['outcome'] == 'unusable' and bad['verdicts'] == [None, None] and all(isinstance(o, str) for o in bad['replies'])
    assert sum('2' in c[0]['content'].split('<answer_a>')[1] for c in server.chats) == 2*2*2 # sets, orders, and once more


def test_one_unusable_order_spoils_the_item(run_dir):
    made, _ = ask(run_dir, lambda a, b, m: 'no' if 'good, 0' in a else truth(a, b, m))
    assert made['systems']['distilled']['same']['unusable'] == 1 and made['systems']['distilled']['same']['n'] == 5
    assert read_jsonl(run_dir/'judge.jsonl')[0]['verdicts'] == [None, 'B']


def test_nothing_but_garbage_is_no_win_rate(run_dir):
    made, _ = ask(run_dir, lambda *_: 'no')
    assert made['systems']['distilled']['same'] == dict(n=0, wins=0, ties=0, losses=0, win_rate=dict(mean=None, low=None, high=None), first_wins=None, inconsistent=None, unusable=6)


def test_requests_that_fail_are_repeated_as_they_were(run_dir):
    made, server = ask(run_dir, truth, server=dict(plan=['500', '500']), n=2)
    assert made['systems']['distilled']['same'] | dict(win_rate=0) == dict(n=2, wins=2, ties=0, losses=0, win_rate=0, first_wins=.5, inconsistent=0, unusable=0)
    assert len(server.log) == 8 + 2 and all(len(c) == 1 for c in server.chats)


def test_what_was_paid_for_is_not_asked_again(run_dir, tmp_path):
    cache = tmp_path/'teacher.sqlite'
    first, server = ask(run_dir, truth, cache=cache, n=2)
    assert len(server.chats) == 8
    same = dict(port=server.port)
    _, server = ask(run_dir, truth, cache=cache, server=same)
    assert len(server.chats) == 24 - 8
    with pytest.raises(TeacherError): ask(run_dir, truth, ('one_shot',), cache=cache, server=same | dict(plan=['ok']*3 + ['401']))
    kept = (run_dir/'judge.json').read_text()
    assert set(json.loads(kept)['systems']) == {'distilled'} # as it was
    _, server = ask(run_dir, truth, ('one_shot',), cache=cache, server=same)
    assert 0 < len(server.chats) <= 24 - 8 - 3 # without what both systems say, and what was answered before the 401


def test_errors_name_what_to_do(run_dir, tmp_path):
    for kwargs, words in ((dict(systems=('gpt',)), "no answers of 'gpt'; choose from distilled, one_shot"), (dict(n=0), '0 items'),
                          (dict(template='{a} {b}'), 'has no {task}')):
        with pytest.raises(DistillError, match=re.escape(words)): judge_run(run_dir, None, **kwargs)
    with pytest.raises(DistillError, match='no predictions'): judge_run(tmp_path/'none', None)
    (run_dir/'run.json').unlink()
    with pytest.raises(DistillError, match='give the directory of a run'): judge_run(run_dir, None)
    assert not (run_dir/'judge.json').exists()


def test_answers_cannot_fill_places_of_the_template():
    text = pair_prompt(seed, '{a}', '{b} {instruction}', '{task}')
    assert '<answer_a>\n{b} {instruction}\n</answer_a>' in text and '<answer_b>\n{task}\n</answer_b>' in text and 'Question: {a}\n' in text
    assert text.endswith('{"reason": "...", "verdict": "tie"}')


@pytest.mark.parametrize('form', ['{}', '{}.', 'Answer {}', '[[{}]]', 'Verdict: {}', '**Verdict: {}**', '{{"verdict": "{}"}}', '```json\n{{"reason": "A or B?", "verdict": "{}"}}\n```',
                                  'I looked at both.\n\nThe winner is: {}', 'Some say {{"verdict": "tie"}}, I say {{"verdict": "{}"}}'])
@pytest.mark.parametrize('verdict', ['A', 'B', 'tie'])
def test_verdicts_are_read_in_every_form(form, verdict): assert parse_verdict(form.format(verdict)) == verdict


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.one_of(st.text(), st.text('{}[]":, ABtieverdict\n')))
def test_any_text_is_a_verdict_or_none(text): assert parse_verdict(text) in ('A', 'B', 'tie', None)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(*[st.sampled_from(['A', 'B', 'tie', None])]*2), max_size=12))
def test_counts_add_up(verdicts):
    s = summarize_judgements([dict(verdicts=list(v), outcome=judge._outcome(*v)) for v in verdicts])
    assert s['wins'] + s['ties'] + s['losses'] == s['n'] == len(verdicts) - s['unusable'] and s['unusable'] == sum(None in v for v in verdicts)
    turned = summarize_judgements([dict(verdicts=list(v[::-1]), outcome=judge._outcome(*v[::-1])) for v in verdicts]) # the teacher's side
    assert (turned['wins'], turned['ties']) == (s['losses'], s['ties'])
    if s['n']: assert s['win_rate']['mean'] == pytest.approx((s['wins'] + s['ties']/2)/s['n'], abs=1e-4) and turned['win_rate']['mean'] == pytest.approx(1 - s['win_rate']['mean'], abs=2e-4)
