"A look at the data of a run: figures show what the files say, and no text of a model steers a terminal or a page."
import json, re
from collections import Counter

import pytest
from hypothesis import example, given, settings, strategies as st
from markdown_it import MarkdownIt

from llm_distill import data, prompts
from llm_distill.prompts import DistillError, read_jsonl, write_json, write_jsonl

anything = settings(max_examples=200, deadline=None, derandomize=True)
hostile = 'a\n\x1b[31mred\x07 | \\| [x](javascript:1) <img src=x> `b` *c* $d$ \u202e # | \r end'
plain = re.compile(r'[^\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]*') # with line feeds, which end our own lines

lists = dict(train=['a, b', 'a, b, c', 'a, b', 'a, b, c, d', ', '.join('abcdefghijkl')], test_same=['a, b', 'a, b, c'], test_different=['a, b, c'])
openings = dict(train=['Find x', 'find y', '"Find" z', 'What’s new?', '42?'], test_same=['Which w?', 'Find v'], test_different=['Cancel u'])
lost = dict(synthesis=dict(near_duplicate_words=3, exact_duplicate=2, no_questions=1), labeling=dict(form=2))


def rejected(stage, filter, i):
    task = None if filter == 'no_questions' else f'{filter} {i}'
    return dict(stage=stage, filter=filter, task=task, reason=f'because of {i}', reply='bad reply' if stage == 'labeling' else None)


def make(folder, answers=lists, seeds=('Seed A?',)):
    "A run after its label stage"
    pairs = {s: [dict(task=t, completion=a, seed=seeds[i % len(seeds)], teacher='t', sample=0, request='', agreement=None)
                 for i, (t, a) in enumerate(zip(openings[s], answers[s], strict=True))] for s in answers}
    for s, v in pairs.items(): write_jsonl(folder/f'{s}.jsonl', v)
    tasks = [dict(task=r['task'], split=s, seed=r['seed']) for s, v in pairs.items() for r in v]
    write_jsonl(folder/'tasks.jsonl', tasks)
    write_jsonl(folder/'data_map.jsonl', [dict(task=r['task'], split=r['split'], x=i/10, y=-i/10) for i, r in enumerate(tasks)])
    write_jsonl(folder/'rejects.jsonl', [rejected(k, f, i) for k, v in lost.items() for f, n in v.items() for i in range(n)])
    write_json(folder/'run.json', dict(settings=dict(student='small', teacher=dict(model='big')), stages={}))
    return folder


@pytest.fixture
def run_dir(tmp_path): return make(tmp_path)


@pytest.fixture
def json_dir(tmp_path):
    rows = [dict(a=1, b=None), dict(a='x', b=''), dict(a=0, b=[]), dict(a=False, b='y'), 'no JSON']
    said = [json.dumps(o) if isinstance(o, dict) else o for o in rows]
    return make(tmp_path, dict(train=said, test_same=said[:2]))


def widths(ax, named=None): return {t.get_text(): b.get_width() for t, b in zip((named or ax).get_yticklabels(), ax.patches, strict=True)}


def texts(ax): return [t.get_text() for t in ax.texts]

# ---- figures

def test_lengths_are_the_words_of_tasks_and_answers(run_dir):
    axes = data.plot_lengths(run_dir).axes
    assert len(axes) == 6
    bars = {round(b.get_x() + b.get_width()/2): b.get_height() for b in axes[1].patches if b.get_height()}
    assert bars == {2: 2/5, 3: 1/5, 4: 1/5, 12: 1/5}
    tasks = {round(b.get_x() + b.get_width()/2): b.get_height() for b in axes[0].patches if b.get_height()}
    assert tasks == {1: 1/5, 2: 4/5}
    assert list(axes[0].lines[0].get_xdata()) == [2, 2] and 'n 5, median 2' in axes[0].get_title(loc='left')
    assert 'train' in data.split_names and 'n 1, median 2' in axes[4].get_title(loc='left')


def test_a_monster_does_not_squeeze_the_others(run_dir):
    rows = [dict(task='a b c', completion='a, b')]*200 + [dict(task='a b c d', completion='w '*5000)]
    write_jsonl(run_dir/'train.jsonl', rows)
    fig = data.plot_lengths(run_dir)
    heights = [b.get_height() for b in fig.axes[1].patches]
    assert fig.axes[1].get_xlim()[1] < 100 and sum(heights) == pytest.approx(1) and 'and more' in fig.axes[5].get_xlabel() and 'and more' not in fig.axes[4].get_xlabel()


def test_steps_are_those_of_the_answers(run_dir):
    ax, = data.plot_data_steps(run_dir, longest=8).axes
    shown = {c.get_label(): [b.get_height() for b in c] for c in ax.containers}
    assert shown['training set (mean 4.6)'] == [0, 0, 2/5, 1/5, 1/5, 0, 0, 0, 1/5]
    assert shown['test set, same seed prompt (mean 2.5)'] == [0, 0, 1/2, 1/2, 0, 0, 0, 0, 0]
    assert len({b.patches[0].get_hatch() for b in ax.containers}) == 3 # not by colour alone
    assert [t.get_text() for t in ax.get_xticklabels()][-1] == '8+'


def test_fields_with_a_value_are_counted(json_dir):
    train, same = data.plot_fields(json_dir).axes
    assert widths(train) == {'a': 4/5, 'b': 1/5} and widths(same, train) == {'a': 1, 'b': 0} # 0 and false are values, null and empty ones are not
    assert texts(train) == ['80%', '20%']
    assert 'training set: a 80%, b 20%' in data.data_pictures(json_dir)['data_fields'][2]


def test_openings_are_first_words_in_lower_case(run_dir):
    axes = data.plot_openings(run_dir).axes
    shown = {s: widths(ax, axes[0]) for s, ax in zip(data.split_names, axes)}
    assert shown['train'] == {'find': 3/5, 'what’s': 1/5, '(none)': 1/5, 'which': 0, 'cancel': 0}
    assert shown['test_same']['which'] == shown['test_same']['find'] == 1/2 and shown['test_different']['cancel'] == 1
    axes = data.plot_openings(run_dir, most=1).axes
    few = [widths(ax, axes[0]) for ax in axes]
    assert [list(o) for o in few] == [['find', 'all others']]*3 and all(sum(o.values()) == pytest.approx(1) for o in few)


def test_map_shows_each_split_by_marker_and_colour(run_dir):
    ax, = data.plot_map(run_dir).axes
    assert [len(o.get_xdata()) for o in ax.lines] == [5, 2, 1] and ax.lines[1].get_xdata()[0] == pytest.approx(.5) and ax.lines[1].get_ydata()[0] == pytest.approx(-.5)
    assert len({o.get_marker() for o in ax.lines}) == len({o.get_color() for o in ax.lines}) == 3
    thin, = data.plot_map(run_dir, most=3).axes
    assert [len(o.get_xdata()) for o in thin.lines] == [3, 2, 1] and '3 of them drawn' in thin.lines[0].get_label() and '(n 5)' in thin.lines[0].get_label()


def test_filters_show_what_became_of_all_candidates(run_dir):
    counts = data.filter_counts(run_dir)
    assert counts == dict(synthesis={'accepted': 8, 'near duplicate words': 3, 'exact duplicate': 2, 'no questions': 1}, labeling=dict(accepted=8, form=2))
    first, second = data.plot_filters(run_dir).axes
    assert widths(first) == counts['synthesis'] and widths(second) == counts['labeling'] and texts(first) == ['8', '3', '2', '1']
    assert first.patches[0].get_facecolor() != first.patches[1].get_facecolor() == second.patches[1].get_facecolor()
    assert first.get_title(loc='left') == 'Synthesis: 8 of 13 tasks accepted, 1 reply without any' # a reply without questions is no candidate
    assert second.get_title(loc='left') == 'Labeling: 8 of 10 answers accepted'
    assert [list(widths(ax)) for ax in data.plot_filters(run_dir, most=1).axes] == [['accepted', 'near duplicate words', 'all others'], ['accepted', 'form']]


def test_rows_of_older_runs_are_counted_by_the_beginning_of_their_reason(run_dir):
    reasons = ['not needed: enough', 'not needed: too many', 'cut (after 512 tokens)', 'plain reason']
    write_jsonl(run_dir/'rejects.jsonl', [dict(stage='synthesis', task='x', reason=o) for o in reasons])
    assert data.filter_counts(run_dir)['synthesis'] == {'accepted': 8, 'not needed': 2, 'cut': 1, 'plain reason': 1}


def test_second_answers_count_only_where_one_was_rejected(run_dir):
    write_jsonl(run_dir/'predictions'/'teacher_same.jsonl', [dict(task='x')]*2)
    assert data.filter_counts(run_dir)['evaluation'] == dict(accepted=2) and len(data.plot_filters(run_dir).axes) == 2
    write_jsonl(run_dir/'rejects.jsonl', [rejected('evaluation', 'cut', 0)])
    assert data.plot_filters(run_dir).axes[-1].get_title(loc='left') == 'Second answers of the teacher: 2 of 3 answers accepted'


def test_names_of_a_model_are_no_formulas(run_dir):
    write_jsonl(run_dir/'rejects.jsonl', [dict(stage='synthesis', filter='$\\frac{$', task='x', reason='y')])
    assert data._png(data.plot_filters(run_dir)).startswith(b'\x89PNG')


def test_characters_that_the_font_lacks_are_question_marks_without_a_warning(run_dir, recwarn):
    write_jsonl(run_dir/'tasks.jsonl', [dict(task=t, split='train', seed='x') for t in ('東京のホテル', 'Éва был', 'Café')])
    write_jsonl(run_dir/'rejects.jsonl', [dict(stage='合成', filter='重复', task='x', reason='y')])
    made = data.data_pictures(run_dir)
    assert {'東京のホテル', 'éва', 'café'} == set(data._openings(run_dir)['train']) and '東京のホテル' in made['data_openings'][2]
    assert [t.get_text() for t in data.plot_openings(run_dir).axes[0].get_yticklabels()] == ['??????', 'éва', 'café']
    fig, (ax,) = data._figure()
    ax.set_title('東京')
    data._png(fig)
    assert not [w for w in recwarn if 'Glyph' in str(w.message)]


def test_matplotlib_keeps_no_global_figures(run_dir):
    import matplotlib.pyplot as plt
    before = plt.get_fignums()
    data.data_pictures(run_dir)
    assert plt.get_fignums() == before

# ---- files

every = ['data_filters.png', 'data_lengths.png', 'data_map.png', 'data_openings.png', 'data_steps.png']


def names(written): return sorted(f.name for f in written)


def test_figures_are_written_whole_small_and_the_same_again(run_dir):
    written = data.data_figures(run_dir)
    assert names(written) == every == names((run_dir/'figures').iterdir())
    before = {f: f.read_bytes() for f in written}
    assert all(v[:8] == b'\x89PNG\r\n\x1a\n' and len(v) <= 100_000 for v in before.values())
    assert data.data_figures(run_dir) == written and {f: f.read_bytes() for f in written} == before


def test_a_failed_write_leaves_the_old_figure_and_nothing_beside_it(run_dir, monkeypatch):
    old = data.data_figures(run_dir)[0].read_bytes()
    def full(fd): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('os.fsync', full)
    with pytest.raises(OSError): data.data_figures(run_dir)
    assert (run_dir/'figures'/'data_lengths.png').read_bytes() == old and names((run_dir/'figures').iterdir()) == every


@pytest.mark.parametrize('gone, left', [('data_map.jsonl', {'data_map.png'}), ('rejects.jsonl', set()), ('test_same.jsonl', set()), ('tasks.jsonl', {'data_openings.png', 'data_filters.png'}),
                                        ('train.jsonl', {'data_lengths.png', 'data_steps.png'})])
def test_figures_whose_file_is_missing_are_left_out(run_dir, gone, left):
    data.data_figures(run_dir)
    (run_dir/gone).unlink()
    assert set(names(data.data_figures(run_dir))) == set(names((run_dir/'figures').iterdir())) == set(every) - left


def test_figures_follow_the_form_of_the_answers(json_dir):
    data.data_figures(make(json_dir))
    assert 'data_steps.png' in names((json_dir/'figures').iterdir())
    make(json_dir, {s: ['{"a": 1}']*len(v) for s, v in openings.items()})
    assert 'data_fields.png' in names(data.data_figures(json_dir)) and not (json_dir/'figures'/'data_steps.png').exists()
    make(json_dir, {s: ['Just so.']*len(v) for s, v in openings.items()})
    assert names(data.data_figures(json_dir)) == sorted(set(every) - {'data_steps.png'}) == names((json_dir/'figures').iterdir())


def test_a_large_map_is_a_small_picture(run_dir):
    import random
    draw = random.Random(0)
    write_jsonl(run_dir/'data_map.jsonl', [dict(task='x', split=s, x=draw.gauss(), y=draw.gauss()) for s in data.split_names for _ in range(20_000)])
    assert len(data._png(data.plot_map(run_dir))) <= 100_000


def test_the_numbers_are_told_in_words(run_dir):
    said = {k: v for k, (_, _, v) in data.data_pictures(run_dir).items()}
    assert 'training set: 5 tasks, median 2 words (1 to 2), answers 3 words (2 to 12)' in said['data_lengths'] and said['data_lengths'].count(';') == 2
    assert 'training set: mean 4.6 (2 to 12)' in said['data_steps']
    assert '3 different first words in 5 tasks, most often find 3' in said['data_openings']
    assert 'test set, same seed prompt: 2 tasks around (0.55, -0.55)' in said['data_map']
    assert 'rejected: near duplicate words 3, exact duplicate 2' in said['data_filters']


@pytest.mark.parametrize('file, text, stage', [
    ('tasks.jsonl', '[', 'synthesize'), ('tasks.jsonl', '{"task": "a"}', 'synthesize'), ('rejects.jsonl', '{"task": "a"}', 'synthesize'),
    ('train.jsonl', '{"task": "a", "completion": null}', 'label'), ('train.jsonl', '', 'label'), ('test_same.jsonl', 'x', 'label'),
    ('data_map.jsonl', '{"split": "train", "x": "1", "y": 2}', 'label'), ('data_map.jsonl', '', 'label')])
def test_damaged_files_are_named_with_the_stage_that_writes_them(run_dir, file, text, stage):
    (run_dir/file).write_text(text)
    with pytest.raises(DistillError) as e: data.data_figures(run_dir)
    assert file in str(e.value) and f'stage `{stage}`' in str(e.value) and '\n' not in str(e.value)
    assert not (run_dir/'figures').exists()

# ---- text that others wrote

@anything
@given(st.text(), st.one_of(st.none(), st.integers(1, 60)))
@example(hostile, None)
@example('\ud800\u2028x', 3)
def test_one_line_is_one_line_without_control_characters(text, width):
    shown = prompts.one_line(text, width)
    assert plain.fullmatch(shown) and '\n' not in shown and shown.encode('utf-8') is not None
    assert width is None or prompts._columns(shown) <= width


def rendered(text): return MarkdownIt('commonmark').enable(['table', 'strikethrough']).render(text)


def content(html):
    "The text of a piece of HTML"
    from html.parser import HTMLParser
    class Text(HTMLParser):
        def __init__(self):
            super().__init__()
            self.said, self.tags = [], []
            self.feed(html)
        def handle_data(self, data): self.said.append(data)
        def handle_starttag(self, tag, attrs): self.tags.append(tag)
    page = Text()
    return ' '.join(''.join(page.said).split()), page.tags


@anything
@given(st.text(alphabet='ab1 \\`*_[]()<>~$&#;|!-+=.:/\n"\'', max_size=30))
@example('[x](javascript:1) <img src=x> `b` **c** ~~d~~ &lt; ![i](u)')
@example('1. a')
@example('***')
@example('=\n=')
def test_escaped_markdown_renders_as_the_text_itself(text):
    wanted = ' '.join(text.split())
    said, tags = content(rendered('x\n\n- ' + prompts.markdown_text(text) + ' end').replace('\n', ' '))
    assert tags == ['p', 'ul', 'li'] and said == f'x {wanted} end'.replace('  ', ' ')


@anything
@given(st.lists(st.tuples(st.text(alphabet='ab \\|*\n\t', max_size=12), st.text(max_size=12)), min_size=1, max_size=4), st.one_of(st.none(), st.integers(10, 40)))
@example([(hostile, '\\|\\'), ('\\\\|', '|')], None)
def test_a_table_has_the_cells_that_it_was_given(rows, width):
    text = prompts.markdown_table(['one', 'two'], rows, (0, 1), width)
    lines = text.split('\n')
    assert len(lines) == len(rows) + 2 and plain.fullmatch(text) and len({prompts._columns(o) for o in lines}) == 1
    assert all(len(re.findall(r'(?<!\\)(?:\\\\)*\|', o)) == 3 for o in lines) # a pipe after an odd number of backslashes is text
    assert width is None or prompts._columns(lines[0]) <= max(width, 2*8 + 7)

# ---- show

def test_show_after_each_stage(run_dir):
    whole = data.show(run_dir, n=3, width=100)
    assert whole.startswith('Teacher big, student small; pairs: train 5, test_same 2, test_different 1\n\n3 of 5 pairs of the training set')
    pairs = {(r['task'], r['completion']) for r in read_jsonl(run_dir/'train.jsonl')}
    body = [tuple(c.strip() for c in o.strip('|').split('|')) for o in whole.split('\n\n')[2].splitlines()[2:]]
    assert len(body) == 3 and set(body) <= pairs
    assert re.search(r'\| synthesis \| near duplicate words +\| +3 \| near_duplicate_words 0 ', whole) and re.search(r'\| labeling +\| form +\| +2 \| bad reply ', whole)
    assert re.search(r'no questions +\| +1 \| because of 0', whole) and '8 rejected' in whole
    assert 'seed question' not in whole and 'Closest' not in whole
    for f in 'train.jsonl', 'test_same.jsonl', 'test_different.jsonl', 'data_map.jsonl': (run_dir/f).unlink()
    early = data.show(run_dir, n=3, width=100)
    assert 'tasks: train 5, test_same 2' in early and '3 of 5 tasks of the training set' in early and 'completion' not in early
    write_jsonl(run_dir/'rejects.jsonl', [])
    assert 'None rejected' in data.show(run_dir)


def test_show_tells_what_is_short_after_the_facts(run_dir):
    record = json.loads((run_dir/'run.json').read_text())
    write_json(run_dir/'run.json', record | dict(notes=dict(synthesize=['seed prompt: 40 of 50 tasks: nothing\nnew', 'other prompt: 1 of 2 tasks'], label=[f'3 {hostile}'])))
    lines = data.show(run_dir, width=100).splitlines()
    assert lines[0].startswith('Teacher big') and lines[1:3] == ['seed prompt: 40 of 50 tasks: nothing new', 'other prompt: 1 of 2 tasks']
    assert lines[3].startswith('3 a \\x1b[31mred') and lines[4] == '' and lines[5].startswith('5 of 5 pairs')
    for notes in [], 3, dict(a=None):
        write_json(run_dir/'run.json', record | dict(notes=notes))
        with pytest.raises(DistillError, match='not the record of a run'): data.show(run_dir)


def test_show_names_a_damaged_reject(run_dir):
    (run_dir/'rejects.jsonl').write_text('{"filter": "form", "task": "a", "reason": "b"}\n')
    with pytest.raises(DistillError, match='malformed row') as e: data.show(run_dir)
    assert 'rejects.jsonl' in str(e.value) and 'stage `synthesize` again' in str(e.value) and '\n' not in str(e.value)


def test_show_draws_reproducibly(run_dir):
    write_jsonl(run_dir/'train.jsonl', [dict(task=f'Task {i}', completion='x') for i in range(50)])
    drawn = lambda **kw: re.findall(r'Task \d+', data.show(run_dir, **kw))
    assert drawn(seed=1) == drawn(seed=1) != drawn(seed=2) and len(drawn()) == 8 and sorted(drawn(n=99)) == sorted(f'Task {i}' for i in range(50))
    assert drawn(n=0) == []


def test_show_tells_several_seed_questions_and_the_closest_pair(run_dir):
    make(run_dir, seeds=('Seed A?', 'Seed B?'))
    write_jsonl(run_dir/'leakage.jsonl', [dict(test_set='same', task=t, closest=c, cosine=x, overlap=False) for t, c, x in (('far', 'away', .1), ('near', 'by', .8))])
    text = data.show(run_dir, width=100)
    assert re.search(r'\| Seed A\? +\| +3 \| +1 \| +1 \|', text) and re.search(r'\| Seed B\? +\| +2 \| +1 \| +0 \|', text)
    assert text.endswith('cosine 0.80\n  test:  near\n  train: by')


@pytest.mark.parametrize('width', [40, 80, 200])
def test_show_is_safe_and_fits_the_terminal(run_dir, width, monkeypatch):
    write_jsonl(run_dir/'train.jsonl', [dict(task=hostile*3, completion='東京'*60, seed=f'{i}{hostile}') for i in range(2)])
    write_jsonl(run_dir/'rejects.jsonl', [dict(stage=hostile, filter=hostile, task=hostile, reason=hostile), dict(stage='labeling', filter='form', reply=hostile, task='x', reason='')])
    write_jsonl(run_dir/'leakage.jsonl', [dict(task=hostile, closest=hostile, cosine=.5)])
    write_json(run_dir/'run.json', dict(settings=dict(student=hostile, teacher=dict(model=hostile))))
    text = data.show(run_dir, width=width)
    assert plain.fullmatch(text) and '\\x1b[31m' in text
    tables = [o for o in text.split('\n') if o.startswith('|')]
    assert len(tables) == 4 + 4 + 5 and all(prompts._columns(o) <= max(width, 4*8 + 13) for o in [*tables, *text.split('\n')[-2:]])
    monkeypatch.setenv('COLUMNS', str(width))
    assert data.show(run_dir) == text


@pytest.mark.parametrize('record, why', [(None, 'is not a run directory'), ('{', 'not the record of a run'), ('[]', 'not the record of a run'), ('{}', 'not the record of a run')])
def test_show_of_what_is_no_run(run_dir, record, why):
    (run_dir/'run.json').unlink() if record is None else (run_dir/'run.json').write_text(record)
    with pytest.raises(DistillError, match=why) as e: data.show(run_dir)
    assert '\n' not in str(e.value) and 'run.json' in str(e.value)


def test_show_before_there_are_tasks(run_dir):
    (run_dir/'tasks.jsonl').unlink()
    with pytest.raises(DistillError, match='no tasks yet; run the stage `synthesize` first'): data.show(run_dir)
