"Candidates in all forms, filters against slow and plain versions of themselves, and exactly N tasks whatever the teacher does."
import json, random, re
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import example, given, settings, strategies as st
from rouge_score.rouge_scorer import RougeScorer

from llm_distill.prompts import DistillError, Example, SeedPrompt, load_prompt, parse_prompt, parse_toml, read_jsonl, recordings, steps
from llm_distill.synthesis import (Accepted, _WordIndex, embed, filters, near_threshold, normal_form, parse_questions, rouge_threshold, synthesize,
                                   synthesize_splits)
from llm_distill.teacher import Teacher, _completion, recording_app
from llm_distill.teacher import recorded_teacher
from server import Server

seed, other = load_prompt(recordings/'apartments.toml'), load_prompt(recordings/'pull_requests.toml')
anything = settings(max_examples=150, deadline=None, derandomize=True)
questions = st.lists(st.from_regex(r'[A-Z][a-z]{2,8}( [a-z0-9éß]{1,9}){2,9}\?', fullmatch=True), min_size=1, max_size=8, unique=True)

# ---- replies

forms = dict(
    object=lambda qs: json.dumps(dict(questions=qs)),
    array=lambda qs: json.dumps(qs, ensure_ascii=False, indent=2),
    rows=lambda qs: json.dumps([dict(id=i, question=q) for i, q in enumerate(qs)]),
    fenced=lambda qs: f'Sure! Here they are:\n```json\n{json.dumps(qs)}\n```\nLet me know if you need more.',
    numbered=lambda qs: 'Here are the questions:\n\n' + '\n'.join(f'{i}. {q}' for i, q in enumerate(qs, 1)) + '\n\nHope this helps!',
    bulleted=lambda qs: '\n'.join(f'- **{q}**' for q in qs),
    turns=lambda qs: '\n'.join(f'Q: {q}' for q in qs),
    lines=lambda qs: '\n\n'.join(qs))


@anything
@given(questions, st.sampled_from(sorted(forms)))
def test_questions_are_found_in_every_form(asked, form): assert parse_questions(forms[form](asked)) == asked


@anything
@given(questions, st.sampled_from(sorted(forms)), st.data())
def test_of_a_reply_that_was_cut_only_whole_questions_are_kept(asked, form, data):
    whole = forms[form](asked)
    part = whole[:data.draw(st.integers(0, len(whole)))]
    found = [q for q in parse_questions(part, cut=True) if q in asked]
    assert found == asked[:len(found)] # in order, without gaps
    if form in ('numbered', 'bulleted', 'turns', 'lines'): complete = sum(q in part for q in asked)
    else: complete = sum(json.dumps(q, ensure_ascii=form != 'array') in part for q in asked)
    assert len(found) >= complete - 1 # the last one may not be known to be at its end


@anything
@given(st.one_of(st.text(), st.text('[]{}"\\,: \n-1.Qq*`u'), st.binary().map(lambda b: b.decode('utf-8', 'surrogateescape'))), st.booleans())
@example('[' * 3_000, False)
@example('{"a":' * 1_000 + '1', True)
@example('["\\ud800", "fine one"]', False)
@example('[' + '9' * 10_000 + ']', False)
def test_any_reply_gives_a_list_of_clean_lines(text, cut):
    found = parse_questions(text, cut)
    assert isinstance(found, list) and all(q and len(q.splitlines()) == 1 and q == q.strip() for q in found)
    json.dumps(found).encode()
    '\n'.join(found).encode('utf-8')


@anything
@given(st.text())
def test_any_text_is_a_prompt_or_a_clear_error(text):
    for parse in parse_prompt, parse_toml:
        try: prompt = parse(text)
        except DistillError as e: assert '\n' not in str(e).split(' is not valid TOML')[0]
        else: assert prompt.instruction and prompt.question and '\n' not in prompt.question


@anything
@given(st.text())
def test_any_answer_has_steps(text): assert all(s and s == s.strip() for s in steps(seed.parse(text)))


@anything
@given(st.text(min_size=1))
def test_every_filter_answers_for_any_text(text):
    for f in filters: assert f(text, seed) is None or isinstance(f(text, seed), str)

# ---- filters

def plain_rouge(a, b):
    "ROUGE-L over the words of `normal_form`, by the textbook table"
    a, b = normal_form(a).split(), normal_form(b).split()
    row = [0]*(len(b) + 1)
    for x in a:
        before, row = row, [0]
        for j, y in enumerate(b): row.append(before[j] + 1 if x == y else max(before[j + 1], row[j]))
    return 2*row[-1]/(len(a) + len(b)) if a and b else 0.


def test_plain_rouge_is_rouge():
    tasks, scorer = [r['task'] for r in read_jsonl(recordings/'apartments.jsonl')[:12]], RougeScorer(['rougeL'])
    for a, b in combinations(tasks, 2): assert plain_rouge(a, b) == pytest.approx(scorer.score(a, b)['rougeL'].fmeasure, abs=1e-9)


@pytest.mark.parametrize('threshold', [0.5, 0.7, 0.9])
@pytest.mark.parametrize('words, longest', [(6, 14), (30, 14), (30, 60)])
def test_the_word_index_finds_what_comparing_with_all_finds(threshold, words, longest):
    draw, index, before, hits = random.Random(words), _WordIndex(threshold), [], 0
    for _ in range(400 if longest < 20 else 120):
        task = ' '.join(f'w{draw.randrange(words)}' for _ in range(draw.randrange(2, longest)))
        if before and draw.random() < .3: # a variant of an earlier one
            kept = draw.choice(before).split()
            kept = kept[:max(2, len(kept) - draw.choice([0, 0, len(kept)//3]))]
            for _ in range(draw.randrange(4)): kept[draw.randrange(len(kept))] = f'w{draw.randrange(words)}'
            task = ' '.join(kept)
        best = max((plain_rouge(task, o) for o in before), default=0)
        found = index.closest(task)
        if best >= threshold - 1e-9: assert found and found[1] == pytest.approx(best) and plain_rouge(task, found[0]) == pytest.approx(best)
        else: assert found is None
        hits += found is not None
        index.add(task)
        before.append(task)
    assert 10 < hits < 400


def test_blocks_change_nothing():
    "A candidate is compared with those of its own block too"
    tasks = [r['task'] for r in read_jsonl(recordings/'apartments.jsonl')[:40]]
    offered = tasks + [t.upper() for t in tasks] + [f'{t} Please.' for t in tasks] + tasks
    at_once, one_by_one = Accepted(seed), Accepted(seed)
    at_once.offer(offered)
    for t in offered: one_by_one.offer([t])
    assert at_once.tasks == one_by_one.tasks == tasks and len(at_once.rejects) == 120
    assert [r['reason'] for r in at_once.rejects] == [r['reason'] for r in one_by_one.rejects]

# ---- exactly N, from a teacher that misbehaves

class Careless(recording_app):
    "The recorded teacher, that repeats itself, rewords what it said, replies in all forms, and sometimes not at all"
    def __init__(self, *paths, share=.1):
        super().__init__(*paths)
        self.share, self.asked, self.injected, self.sent = share, Counter(), Counter(), 0
    def answer(self, body, headers):
        status, answer = super().answer(body, headers)
        if headers.get('x-llm-distill-stage') != 'synthesis' or status != 200: return status, answer
        prompt = body['messages'][-1]['content']
        self.asked[prompt] += 1
        draw, tasks = random.Random(prompt), json.loads(answer['choices'][0]['message']['content'])['questions']
        spoiled = self._spoiled(body, tasks, draw, re.search(r'questions (\d+)', prompt)[1] if seed.question in prompt else '')
        self.sent += max(1, self.questions)
        return status, spoiled
    def _spoiled(self, body, tasks, draw, first):
        self.questions = len(tasks)
        if first in ('71', '151'): # the recording has no more to lose
            self.injected['malformed'] += 1
            self.questions = 1
            return _completion(body, {'71': '{"questions": [', '151': 'I cannot help with that.'}[first])
        if first in ('21', '191'):
            self.questions -= 1
            return _completion(body, json.dumps(tasks)[:-9], 'cut')
        for t in list(tasks):
            if draw.random() < self.share: tasks.insert(draw.randrange(len(tasks)), t.lower()); self.injected['exact'] += 1
            if draw.random() < self.share: tasks.append(re.sub(r'^(\w+) (\w+)', r'\2 \1', t)); self.injected['near'] += 1
        if draw.random() < self.share: tasks.append('Which [thing] is in [place]?'); self.injected['template'] += 1
        self.questions = len(tasks)
        return _completion(body, draw.choice(list(forms.values()))(tasks))


@pytest.fixture(scope='module')
def careless():
    app = Careless()
    with_app = Teacher('careless', app=app, progress=False)
    return app, synthesize_splits(seed, with_app, 200, 50, other)


def test_exactly_as_many_as_asked_for(careless):
    app, (rows, rejects, short) = careless
    assert Counter(r['split'] for r in rows) == dict(train=200, test_same=50, test_different=50) and not short
    assert app.sent == 300 + len(rejects)
    assert app.injected['malformed'] == 2 and min(app.injected['exact'], app.injected['near']) >= 20 and app.injected['template'], app.injected


def test_no_pair_across_splits_is_near(careless):
    rows = careless[1][0]
    tasks = {k: [r['task'] for r in rows if r['split'] == k] for k in ('train', 'test_same', 'test_different')}
    for a, b in combinations(tasks.values(), 2):
        assert (embed(a) @ embed(b).T).max() < near_threshold
        assert max(plain_rouge(x, y) for x in a for y in b) < rouge_threshold


def test_every_reject_has_its_reason(careless):
    app, (rows, rejects, _) = careless
    assert all(r['stage'] == 'synthesis' and r['filter'] and r['reason'] for r in rejects)
    counts = Counter(r['filter'] for r in rejects)
    assert {'exact_duplicate', 'near_duplicate_words', 'not_a_request', 'no_questions'} <= set(counts)
    accepted = [r['task'] for r in rows]
    known = {normal_form(t) for t in [*accepted, seed.question, other.question, *(e.question for p in (seed, other) for e in p.examples)]}
    for r in rejects:
        if 'duplicate' in r['filter']: assert normal_form(r['of']) in known


@pytest.mark.parametrize('n, questions', [(60, []), (40, [other.question])])
def test_counts_add_up(n, questions):
    given_too = ['Which bakeries in Lyon are open on Mondays?', 'which bakeries in lyon are open on mondays', 'Hm?']
    app = Careless(share=.3)
    made = synthesize(seed, Teacher('careless', app=app, progress=False), n, given=given_too, questions=questions)
    assert len(made.tasks) == len(made.seeds) == n and made.candidates == n + len(made.rejects) == app.sent + 3
    assert made.seeds[0] == 'given' and max(Counter(made.seeds[1:]).values()) - min(Counter(made.seeds[1:]).values()) <= 1


class Killed(BaseException): pass


@pytest.mark.parametrize('questions', [[], [other.question]])
def test_a_kill_at_any_moment_changes_nothing(tmp_path, monkeypatch, questions):
    app, whole = Careless(), synthesize(seed, Teacher('careless', app=Careless(), progress=False), 90, questions=questions)
    take, moments = Accepted.take, random.Random(0).sample(range(90), 8)
    for moment in sorted(moments):
        left = [moment]
        def killed(self, candidate):
            left[0] -= 1
            if left[0] < 0: raise Killed
            return take(self, candidate)
        monkeypatch.setattr(Accepted, 'take', killed)
        with pytest.raises(Killed): synthesize(seed, Teacher('careless', app=app, cache=tmp_path/'c.sqlite', progress=False), 90, questions=questions)
    monkeypatch.setattr(Accepted, 'take', take)
    again = synthesize(seed, Teacher('careless', app=app, cache=tmp_path/'c.sqlite', progress=False), 90, questions=questions)
    assert again == whole and set(app.asked.values()) == {1}


def test_the_schema_goes_on_the_wire():
    bodies = []
    class Watched(recording_app):
        def answer(self, body, headers):
            bodies.append(body)
            return super().answer(body, headers)
    synthesize(seed, Teacher('recorded', app=Watched(), progress=False), 5)
    assert bodies[0]['response_format']['json_schema']['schema']['required'] == ['questions']


def test_a_seed_without_examples_is_enough():
    class Lists(recording_app):
        def answer(self, body, headers):
            first = int(re.search(r'questions (\d+)', body['messages'][-1]['content'])[1])
            words = 'amber basil cedar delta ember fjord grove haven inlet juniper kelp lotus maple nectar onyx pearl quartz river'.split()
            lines = [f'{i}. {" ".join(random.Random(first + i).sample(words, 7))}' for i in range(10)]
            return 200, _completion(body, '\n'.join(lines))
    made = synthesize(SeedPrompt('Sort the words.', (), 'violet apple zebra mango', ''), Teacher('m', app=Lists(), progress=False), 25, near=2)
    assert len(made.tasks) == 25 and not made.short


def test_an_outage_is_no_end(tmp_path):
    "Requests that fail stop the run, and are asked again by the next call; the tasks are those of a run without an outage"
    with Server(plan=['ok']*3 + ['500']*60) as server:
        def made(): return synthesize(seed, Teacher('m', server.url, cache=tmp_path/'c.sqlite', max_retries=0, progress=False), 60)
        with pytest.raises(DistillError, match='did not answer'): made()
        server.plan.clear()
        assert made() == synthesize(seed, recorded_teacher(), 60)
