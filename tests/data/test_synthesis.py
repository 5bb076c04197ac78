"Exactly n questions, whatever the teacher does, and the same ones after a kill or an outage."
import json, random, re
from collections import Counter
from itertools import combinations

import pytest

from llm_distill.core.core import DistillError, recordings
from llm_distill.core.prompt import SeedPrompt
from llm_distill.core.prompt_files import load_prompt
from llm_distill.data.dedup import QuestionPool, cosine_threshold, normalize, rouge_threshold
from llm_distill.data.embedding import embed
from llm_distill.data.metrics import rouge_l
from llm_distill.data.synthesis import synthesis_prompt, synthesize, synthesize_prompts
from llm_distill.teacher.recording import RecordingApp
from llm_distill.teacher.teacher import Teacher, recorded_teacher

prompt, ood_prompt = load_prompt(recordings/'apartments.toml'), load_prompt(recordings/'pull_requests.toml')

forms = [
    lambda qs: json.dumps(dict(questions=qs)),
    lambda qs: json.dumps(qs, ensure_ascii=False, indent=2),
    lambda qs: json.dumps([dict(id=i, question=q) for i, q in enumerate(qs)]),
    lambda qs: f'Sure! Here they are:\n```json\n{json.dumps(qs)}\n```\nLet me know if you need more.',
    lambda qs: '\n'.join(['Here you are:\n', *(f'{i}. {q}' for i, q in enumerate(qs, 1)), '\nHope this helps!']),
    lambda qs: '\n'.join(f'- **{q}**' for q in qs),
    lambda qs: '\n'.join(f'Q: {q}' for q in qs),
    lambda qs: '\n\n'.join(qs)]


class SynthesisApp(RecordingApp):
    "The recorded teacher, with its replies to requests for questions replaced."
    def answer(self, body, headers):
        status, completion = super().answer(body, headers)
        if headers.get('x-llm-distill-stage') != 'synthesis' or status != 200: return status, completion
        choice = completion['choices'][0]
        questions = json.loads(choice['message']['content'])['questions']
        text, choice['finish_reason'] = self.write(body['messages'][-1]['content'], questions)
        choice['message']['content'] = text
        return status, completion


class CarelessApp(SynthesisApp):
    "Repeats itself, rewords its questions, replies in all forms, and sometimes not at all."
    def __init__(self, *paths, share=.1):
        super().__init__(*paths)
        self.share, self.requests, self.injected, self.n_candidates = share, Counter(), Counter(), 0

    def write(self, request, questions):
        self.requests[request] += 1
        first = re.search(r'questions (\d+)', request)[1] if prompt.question in request else ''
        if first in ('71', '151'): # the recording has no more to lose
            self.injected['malformed'] += 1
            self.n_candidates += 1
            return {'71': '{"questions": [', '151': 'I cannot help with that.'}[first], 'stop'
        if first in ('21', '191'):
            self.n_candidates += len(questions) - 1
            return json.dumps(questions)[:-9], 'length'
        rng = random.Random(request)
        questions = self.repeat(questions, rng)
        self.n_candidates += max(1, len(questions))
        return rng.choice(forms)(questions), 'stop'

    def repeat(self, questions, rng):
        questions = list(questions)
        for q in list(questions):
            if rng.random() < self.share:
                questions.insert(rng.randrange(len(questions)), q.lower())
                self.injected['exact'] += 1
            if rng.random() < self.share:
                questions.append(re.sub(r'^(\w+) (\w+)', r'\2 \1', q))
                self.injected['near'] += 1
        if rng.random() < self.share:
            questions.append('Which [thing] is in [place]?')
            self.injected['template'] += 1
        return questions


def careless_teacher(app=None, **options):
    return Teacher('careless', app=app or CarelessApp(), progress=False, **options)


@pytest.fixture(scope='module')
def careless():
    app = CarelessApp()
    return app, synthesize_prompts(prompt, careless_teacher(app), 250, 50, ood_prompt)


def test_exactly_as_many_questions_as_required(careless):
    app, (rows, rejects, shortfall) = careless
    assert Counter(r['prompt'] for r in rows) == dict(main=250, ood=50) and not shortfall
    assert app.n_candidates == 300 + len(rejects)
    assert app.injected['malformed'] == 2 and min(app.injected['exact'], app.injected['near']) >= 20
    assert app.injected['template']


def test_rows_name_question_seed_question_and_prompt(careless):
    rows = careless[1][0]
    assert all(list(r) == ['question', 'seed_question', 'prompt'] for r in rows)
    assert [r['prompt'] for r in rows] == ['ood']*50 + ['main']*250
    seed_questions = {(r['seed_question'], r['prompt']) for r in rows}
    assert seed_questions == {(ood_prompt.question, 'ood'), (prompt.question, 'main')}


def test_no_two_questions_are_near(careless):
    "So whatever split they go to, train and test do not overlap."
    questions = [r['question'] for r in careless[1][0]]
    cosines = embed(questions) @ embed(questions).T
    cosines[range(300), range(300)] = 0
    assert cosines.max() < cosine_threshold
    a, b = zip(*combinations(map(normalize, questions), 2))
    assert rouge_l(a, b).max() < rouge_threshold


def test_every_reject_has_its_reason(careless):
    rows, rejects, _ = careless[1]
    assert all(r['stage'] == 'synthesis' and r['filter'] and r['reason'] for r in rejects)
    counts = Counter(r['filter'] for r in rejects)
    assert {'exact_duplicate', 'near_duplicate_words', 'refusal', 'no_questions'} <= set(counts)
    prompts = [prompt, ood_prompt]
    own = [p.question for p in prompts] + [e.question for p in prompts for e in p.examples]
    originals = {normalize(q) for q in [*own, *(r['question'] for r in rows)]}
    for r in rejects:
        if 'duplicate' in r['filter']: assert normalize(r['of']) in originals


@pytest.mark.parametrize('n, seed_questions', [(60, []), (40, [ood_prompt.question])])
def test_counts_add_up(n, seed_questions):
    own = ['Which bakeries in Lyon are open on Mondays?', 'which bakeries in lyon are open on mondays', 'Hm?']
    app = CarelessApp(share=.3)
    result = synthesize(prompt, careless_teacher(app), n, existing=own, seed_questions=seed_questions)
    assert len(result.questions) == len(result.seed_questions) == n
    assert result.n_candidates == n + len(result.rejects) == app.n_candidates + 3
    shares = Counter(result.seed_questions[1:]).values()
    assert result.seed_questions[0] == 'given' and max(shares) - min(shares) <= 1


def test_more_existing_questions_than_needed_ask_for_nothing():
    app = CarelessApp()
    own = ['Which bakeries in Lyon are open?', 'Where is the sea warm in May?']
    result = synthesize(prompt, careless_teacher(app), 1, existing=own)
    assert result.questions == own[:1] and result.rejects[0]['filter'] == 'not_needed'
    assert not app.requests and not result.shortfall


class Killed(BaseException): pass


@pytest.mark.parametrize('seed_questions', [[], [ood_prompt.question]])
def test_a_kill_at_any_moment_changes_nothing(tmp_path, monkeypatch, seed_questions):
    app = CarelessApp()
    whole = synthesize(prompt, careless_teacher(), 90, seed_questions=seed_questions)
    accept, moments = QuestionPool.accept, random.Random(0).sample(range(90), 8)
    for moment in sorted(moments):
        n_left = [moment]
        def killed(self, candidate):
            n_left[0] -= 1
            if n_left[0] < 0: raise Killed
            return accept(self, candidate)
        monkeypatch.setattr(QuestionPool, 'accept', killed)
        with pytest.raises(Killed):
            synthesize(prompt, careless_teacher(app, cache=tmp_path/'c.sqlite'), 90, seed_questions=seed_questions)
    monkeypatch.setattr(QuestionPool, 'accept', accept)
    resumed = synthesize(prompt, careless_teacher(app, cache=tmp_path/'c.sqlite'), 90, seed_questions=seed_questions)
    assert resumed == whole and set(app.requests.values()) == {1}


def test_an_outage_is_no_end(tmp_path):
    "Requests that fail stop the run and are sent again by the next call; the questions are those without an outage."
    class FailingApp(RecordingApp):
        n_answered, is_down = 0, True
        def answer(self, body, headers):
            self.n_answered += 1
            if self.is_down and self.n_answered > 3: return 500, dict(error=dict(message='out of order'))
            return super().answer(body, headers)
    app = FailingApp()
    def run():
        teacher = Teacher('m', app=app, cache=tmp_path/'c.sqlite', max_retries=0, progress=False)
        return synthesize(prompt, teacher, 60)
    with pytest.raises(DistillError, match='did not answer'): run()
    app.is_down = False
    assert run() == synthesize(prompt, recorded_teacher(), 60)


def test_the_schema_is_sent():
    bodies = []
    class WatchedApp(RecordingApp):
        def answer(self, body, headers):
            bodies.append(body)
            return super().answer(body, headers)
    synthesize(prompt, Teacher('recorded', app=WatchedApp(), progress=False), 5)
    assert bodies[0]['response_format']['json_schema']['schema']['required'] == ['questions']


def test_a_prompt_without_examples_is_enough():
    words = ('amber basil cedar delta ember fjord grove haven inlet juniper kelp lotus maple nectar onyx pearl quartz '
             'river').split()
    class ListApp(RecordingApp):
        def answer(self, body, headers):
            first = int(re.search(r'questions (\d+)', body['messages'][-1]['content'])[1])
            lines = [f'{i}. {" ".join(random.Random(first + i).sample(words, 7))}' for i in range(10)]
            choice = dict(index=0, message=dict(role='assistant', content='\n'.join(lines)), finish_reason='stop')
            usage = dict(prompt_tokens=9, completion_tokens=9, total_tokens=18)
            return 200, dict(id='1', object='chat.completion', created=0, model='m', choices=[choice], usage=usage)
    sort_words = SeedPrompt('Sort the words.', (), 'violet apple zebra mango', '')
    result = synthesize(sort_words, Teacher('m', app=ListApp(), progress=False), 25, dedup_cosine=2)
    assert len(result.questions) == 25 and not result.shortfall


def test_the_text_of_a_request_is_the_one_in_the_caches_of_users():
    "Paid replies are found by the text of their request, so it must not change."
    text = synthesis_prompt(SeedPrompt('Sort the words.', (), 'violet apple', ''), 11, 10, ['red blue'])
    assert text == (
        'An assistant is given questions Q together with this instruction:\n\nSort the words.\n\n'
        'The kind of question that is wanted:\nQ: violet apple\n\nQuestions that are there already:\nQ: red blue\n\n'
        'Write the questions 11 to 20 of a long and varied list. Each stands on its own, fits on one line, and asks '
        'for the same kind of thing as the wanted question, but about another subject, place or person and in other '
        'words. Do not answer them.\n'
        'Reply with a JSON object: {"questions": ["...", "..."]}')


def test_a_larger_n_and_a_second_prompt_change_no_question():
    teacher = recorded_teacher()
    rows = synthesize_prompts(prompt, teacher, 100, 20, ood_prompt, seed_questions=[ood_prompt.question])[0]
    more = synthesize_prompts(prompt, teacher, 120, 20, ood_prompt, seed_questions=[ood_prompt.question])[0]
    assert more[:120] == rows


def test_the_signature_names_the_options_of_synthesize():
    from inspect import signature
    names = list(signature(synthesize_prompts).parameters)
    assert {'dedup_cosine', 'max_candidates', 'patience', 'random_seed'} <= set(names) and 'exclude' not in names
