"Files of runs for tests: with numbers that are nowhere else, and with text that attacks what shows it."
import json, re
from html.parser import HTMLParser

from llm_distill.core.core import write_json, write_jsonl
from llm_distill.evaluate.cost import add_prices

hostile = 'a\n\x1b[31m | [x](javascript:1) <img src=x> `b` *c* <script>\x00\u202e end'

lists = dict(
    train=['a, b', 'a, b, c', 'a, b', 'a, b, c, d', ', '.join('abcdefghijkl')],
    test=['a, b', 'a, b, c'],
    test_ood=['a, b, c'],
)
first_words = dict(
    train=['Find x', 'find y', '"Find" z', 'What’s new?', '42?'], test=['Which w?', 'Find v'], test_ood=['Cancel u']
)
lost = dict(synthesis=dict(near_duplicate_words=3, exact_duplicate=2, no_questions=1), labeling=dict(format=2))


def rejected(stage, name, i):
    question = None if name == 'no_questions' else f'{name} {i}'
    reply = 'bad reply' if stage == 'labeling' else None
    return dict(stage=stage, filter=name, question=question, reason=f'because of {i}', reply=reply)


def write_record(folder, **changes):
    "A run.json with a student and a teacher"
    config = dict(student='small', recipe=dict(random_seed=0), prompt=dict(instruction='Do it.', question='What?'))
    record = dict(format=2, llm_distill='1', config=config, teacher=dict(model='big'), stages={}, notes={})
    write_json(folder/'run.json', record | changes)


def labeled_run(folder, answers=lists, seeds=('Seed A?',)):
    "A run after its label stage"
    pairs = {}
    for split, texts in answers.items():
        rows = zip(first_words[split], texts, strict=True)
        pairs[split] = [
            dict(
                question=q,
                answer=a,
                seed_question=seeds[i % len(seeds)],
                teacher='t',
                sample=0,
                request='',
                agreement=None,
            )
            for i, (q, a) in enumerate(rows)
        ]
        write_jsonl(folder/f'{split}.jsonl', pairs[split])
    questions = [
        dict(question=r['question'], seed_question=r['seed_question'], prompt='ood' if s == 'test_ood' else 'main')
        for s, rows in pairs.items()
        for r in rows
    ]
    splits = [s for s, rows in pairs.items() for _ in rows]
    write_jsonl(folder/'questions.jsonl', questions)
    write_jsonl(
        folder / 'data_map.jsonl',
        [dict(question=r['question'], split=s, x=i / 10, y=-i / 10) for i, (r, s) in enumerate(zip(questions, splits))],
    )
    write_jsonl(
        folder / 'rejects.jsonl', [rejected(k, f, i) for k, v in lost.items() for f, n in v.items() for i in range(n)]
    )
    write_record(folder)
    return folder


def score_row(system, test_set, sim, f1, n=50):
    def spread(m): return dict(mean=m, low=m - .05, high=m + .05)
    return dict(test_set=test_set, system=system, n=n, main='step_f1', similarity=spread(sim), step_f1=spread(f1),
                step_recall=spread(f1 + .01), step_order=dict(mean=None, low=None, high=None))


def difference(mean, half=.05):
    return dict(mean=mean, low=mean - half, high=mean + half, p=.0005 if abs(mean) > half else .3, n=50)


def evaluated_run(folder):
    "A run after its evaluate stage"
    systems = dict(
        teacher=(0.941, 0.771),
        echo=(0.802, 0.361),
        one_shot=(0.633, 0.313),
        distilled=(0.907, 0.703),
        nearest=(0.474, 0.352),
    )
    rows = [score_row(s, t, a - d, b - d) for t, d in (('test_ood', .01), ('test', 0)) for s, (a, b) in systems.items()]
    for r in rows:
        if r['system'] == 'distilled':
            r['against'] = {s: difference(0.703 - b) for s, (_, b) in systems.items() if s != 'distilled'}
    write_json(folder/'scores.json', rows)
    losses = [dict(step=i, epoch=i/10, loss=2/i, lr=1e-4) for i in range(1, 31)]
    write_jsonl(folder/'losses.jsonl', losses + [dict(epoch=e, validation_loss=1/e) for e in (1, 2, 3)])
    answers = dict(distilled='a, b.', one_shot='a', echo='Do it?', nearest='x, y', teacher='a, b, c.')
    items = []
    for t in 'test', 'test_ood':
        for s, o in answers.items():
            write_jsonl(
                folder / 'predictions' / f'{s}_{t}.jsonl',
                [dict(question='Do it?', expected='a, b, c', prediction=o)] * 4,
            )
            items += [
                dict(
                    test_set=t,
                    system=s,
                    question=f'Do {t} {i} <now>?',
                    expected='a, b, c',
                    prediction=o,
                    step_f1=i / 40,
                    pairs=[[0, 0, 1.0], [1, 2, 0.3]],
                )
                for i in range(40)
            ]
    write_jsonl(folder/'item_scores.jsonl', items)
    write_jsonl(
        folder / 'contamination.jsonl',
        [
            dict(test_set=t, question=f'Do {t} {i} <now>?', closest='Do that', cosine=i / 100, overlap=False)
            for t in ('test', 'test_ood')
            for i in range(40)
        ],
    )
    return folder


def add_data(folder, text='Do it.'):
    "The files of the data, in which a model wrote `text`"
    for s in 'train', 'test', 'test_ood':
        write_jsonl(
            folder / f'{s}.jsonl',
            [dict(question=f'{text} {s} {i}', answer='a, b', seed_question=text) for i in range(4)],
        )
    write_jsonl(
        folder / 'questions.jsonl',
        [
            dict(question=f'{text} {s} {i}', prompt='main', seed_question=text)
            for s in ('train', 'test')
            for i in range(4)
        ],
    )
    write_jsonl(folder/'rejects.jsonl', [dict(stage='synthesis', filter=text, question=text, reason=text),
                                         dict(stage='labeling', filter='format', question=text, reason=text)])
    write_jsonl(folder/'data_map.jsonl', [dict(question=text, split='train', x=0., y=1.)])
    return folder


def add_seed_questions(folder, seeds):
    "A first test set from several seed questions; the student scores .1, .2, ... and other systems half of it"
    questions = [f'Question {i}' for i in range(6)]
    write_jsonl(
        folder / 'test.jsonl',
        [dict(question=q, answer='a, b', seed_question=seeds[i % len(seeds)]) for i, q in enumerate(questions)],
    )
    write_jsonl(
        folder / 'item_scores.jsonl',
        [
            dict(
                test_set=t,
                system=s,
                question=q,
                expected='a',
                prediction='a',
                pairs=[],
                step_f1=(i + 1) / 10 if s == 'distilled' else (i + 1) / 20,
            )
            for t in ('test', 'test_ood')
            for s in ('distilled', 'one_shot', 'echo', 'teacher')
            for i, q in enumerate(questions)
            if (s, i) != ('teacher', 0)
        ],
    )
    write_jsonl(
        folder / 'contamination.jsonl',
        [dict(test_set='test', question=q, closest='x', cosine=0.3, overlap=False) for q in questions],
    )


def judged(**changes):
    win_rate = dict(mean=.44, low=.37, high=.513)
    return dict(n=50, wins=11, ties=22, losses=17, win_rate=win_rate, first_wins=.58, inconsistent=.24) | changes


def costs(**prices):
    "Invented measurements at the prices of a teacher"
    used = dict(requests=100, cached=0, prompt_tokens=10_000, completion_tokens=1000, cost=.5)
    speed = dict(
        latency=dict(p50=0.123, p95=4.56),
        tokens_per_second=789.0,
        seconds_per_request=0.1,
        memory_bytes=321e6,
        disk_bytes=654e6,
        disk_form='safetensors',
    )
    teacher = dict(
        model='m',
        dollars_per_million_tokens=[10.0, 100.0],
        tokens_per_request=[100, 10],
        usage=dict(synthesis=used, labeling=used),
    )
    return add_prices(
        dict(
            machine=dict(cpus=2, device='cpu (some)', precision='bfloat16'),
            questions=20,
            systems=dict(distilled=speed),
            not_measured=dict(one_shot='it is not there'),
            training_seconds=10,
            teacher=teacher,
        ),
        **prices,
    )


def alt_texts(md): return {name: alt for alt, name in re.findall(r'^!\[(.*)\]\(figures/(\w+)\.png\)$', md, re.M)}


def cells_of(md, title):
    "The cells of the table behind a title in Markdown"
    table = md.split(f'**{title}**')[1].split('\n\n')[1]
    return [[c.strip() for c in line.strip('|').split('|')] for line in table.splitlines() if '--' not in line]


class Page(HTMLParser):
    "Tags and text of HTML; an error where tags are not closed in order"
    void = {'meta', 'img'}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void: self.open.append(tag)

    def handle_endtag(self, tag): assert self.open.pop() == tag

    def handle_data(self, data): self.text.append(data)


def rendered(text):
    "Markdown as a repository shows it"
    from markdown_it import MarkdownIt
    html = MarkdownIt('commonmark').enable(['table', 'strikethrough']).render(text)
    return Page(re.sub('<(img|br|hr)([^>]*?)/>', r'<\1\2>', html))


def read(path): return json.loads(path.read_text(encoding='utf-8'))
