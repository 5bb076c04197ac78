"What a request costs: known answers of the break-even, prices, and what is measured of students."
import json, math, shutil
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from llm_distill import cost
from llm_distill.prompts import DistillError, read_jsonl, write_json, write_jsonl
from llm_distill.student import Generation, Student

quickstart = Path(__file__).parents[1]/'nbs'/'runs'/'quickstart'

# ---- the break-even

@pytest.mark.parametrize('once, teacher, student, requests', [
    (1, .003, .001, 500), (1, .003, 0, 334), (10, .01, 0, 1000), (.1, .3, .2, 1), (1.1, .1, 0, 11), (.7, .1, 0, 7), (.3, .3, .2, 3), (1e-9, 1, 0, 1), (2, 1e-6, 0, 2_000_000),
    (0, .01, .001, 0), (0, .01, .01, 0), (0, 0, 0, 0), # nothing was spent
    (1, .001, .003, None), (1, .001, .001, None), (1, 0, 0, None), (1, 0, .001, None), (0, .001, .002, None), (0, 0, 1e-9, None)]) # never
def test_known_answers(once, teacher, student, requests):
    found = cost.break_even(once, teacher, student)
    assert found.requests == requests and found.known
    assert ('never' in cost.tell_break_even(found)) == (requests is None)


money = st.decimals(0, 100, places=3).map(float)

@settings(max_examples=300, deadline=None, derandomize=True)
@given(money, money, money)
def test_the_first_request_is_the_first(once, teacher, student):
    n, (c, t, s) = cost.break_even(once, teacher, student).requests, (Fraction(str(o)) for o in (once, teacher, student))
    back = lambda k: c + k*s <= k*t
    if n is None: assert s > t or (s == t and c)
    else: assert back(n) and back(n + 1) and back(10*n + 7) and (n == 0 or not back(n - 1))


@pytest.mark.parametrize('values, lacking', [((None, .1, 0), ['the distillation cost']), ((1, None, 0), ['to the teacher']), ((1, .1, None), ['to the student']),
                                             ((None, None, None), ['the distillation cost', 'to the teacher', 'to the student'])])
def test_not_known_is_not_never(values, lacking):
    found = cost.break_even(*values)
    said = cost.tell_break_even(found)
    assert found.requests is None and not found.known and 'cannot be told' in said and 'never' not in said
    assert all(o in said for o in lacking) and said.count('what ') == len(lacking)
    with pytest.raises(DistillError, match='cannot be told'): cost.plot_break_even(found)


@pytest.mark.parametrize('bad', [-1, -1e-9, math.nan, math.inf])
@pytest.mark.parametrize('at', range(3))
def test_what_is_no_money_is_refused(bad, at):
    values = [1., 1., 1.]
    values[at] = bad
    with pytest.raises(DistillError, match=f'^{("once", "teacher", "student")[at]} is {bad}'): cost.break_even(*values)


def lines(found): return {o.get_label(): o.get_xydata() for o in cost.plot_break_even(found).axes[0].lines}

def test_the_plot_crosses_where_the_sentence_says():
    found = cost.break_even(2, .004, .002)
    drawn = lines(found)
    teacher, student = drawn['teacher'], next(v for k, v in drawn.items() if 'student' in k)
    assert teacher[:, 1] == pytest.approx(.004*teacher[:, 0]) and student[:, 1] == pytest.approx(2 + .002*student[:, 0])
    assert [list(o[0]) for o in drawn.values() if len(o) == 1] == [[1000, 4]] and student[0, 0] <= 10 and student[-1, 0] >= 100_000
    ax = cost.plot_break_even(found).axes[0]
    assert (ax.get_xscale(), ax.get_yscale()) == ('log', 'log') and '1,000 requests' in ax.texts[0].get_text()
    assert 'after 10 requests: teacher $0.04, student $2.02; after 100,000 requests: teacher $400.00, student $202.00' in cost._say_break_even(found)


@pytest.mark.parametrize('values', [(1, 0, 0), (0, .1, 0), (0, 0, 0), (0, 0, .1), (1, .1, .2), (0, .2, .1)])
def test_the_plot_can_be_drawn_for_all_prices(values):
    fig = cost.plot_break_even(cost.break_even(*values))
    fig.canvas.draw()
    assert (fig.axes[0].get_yscale() == 'log') == (values[1] > 0 and values[0] + values[2] > 0)
    assert len([o for o in fig.axes[0].lines if len(o.get_xydata()) == 1]) == 0 # no crossing to mark

# ---- prices

def usage(requests=0, cached=0, prompt=0, completion=0, cost=0.): return dict(requests=requests, cached=cached, failed=0, prompt_tokens=prompt, completion_tokens=completion, cost=cost)

def record(rates=(2., 10.), judge=None, **stages):
    stages = dict(synthesis=usage(10, 0, 1000, 500, .5), labeling=usage(100, 0, 20_000, 5000, .25), evaluation=usage(50, 0, 5000, 1000, 9.)) | stages
    return dict(settings=dict(teacher=dict(model='some', dollars_per_million_tokens=rates and list(rates)), labeling=dict(judge=judge)), usage=stages)

def measured(record, seconds=3600, **systems):
    speed = dict(latency=dict(p50=.5, p95=1.), tokens_per_second=100., seconds_per_request=.36, memory_bytes=10, disk_bytes=10, disk_form='GGUF')
    return dict(machine=None, tasks=20, systems=dict(distilled=speed, one_shot=speed | dict(seconds_per_request=.72)) | systems, not_measured={},
                teacher=cost._teacher_part(record), training_seconds=seconds)

def test_prices_by_hand():
    found = cost.priced(measured(record()), hourly_price=2.)
    assert found['dollars_per_thousand'] == pytest.approx(dict(distilled=.2, one_shot=.4, teacher=1000*(200*2e-6 + 50*1e-5)))
    assert found['once'] == dict(synthesis=.5, labeling=.25, training=2.) and found['break_even']['once'] == 2.75
    assert found['break_even']['requests'] == math.ceil(Fraction('2.75')/(Fraction('.0009') - Fraction('.0002')))

def test_prices_that_are_given_replace_those_that_were_paid():
    found = cost.priced(measured(record(rates=None)), price_in=1., price_out=4.)
    assert found['dollars_per_thousand']['teacher'] == pytest.approx(.4) and found['dollars_per_thousand']['distilled'] == 0
    assert found['once'] == pytest.approx(dict(synthesis=.003, labeling=.04, training=0)) and found['prices']['given']
    assert cost.priced(measured(record()), price_in=0, price_out=0)['dollars_per_thousand']['teacher'] == 0

def test_no_price_is_a_dash_and_no_break_even():
    found = cost.priced(measured(record(rates=None)))
    assert found['dollars_per_thousand']['teacher'] is None and found['break_even']['requests'] is None
    rows = [[c.strip() for c in o.strip('|').split('|')] for o in cost.cost_table(found).splitlines()]
    assert rows[-1] == ['teacher', '–', '–', '–', '–', '–', '–'] and rows[2][1:] == ['100', '500 ms', '1.0 s', '0.0 MB (GGUF)', '0.0 MB', '$0.00']
    assert any('price of the teacher is not known' in o for o in cost._cost_notes(found))

def test_a_teacher_that_was_always_cached_has_no_known_cost():
    found = cost.priced(measured(record(labeling=usage(0, 100))), price_in=1., price_out=1.)
    assert found['once']['labeling'] is None and 'what the distillation cost' in cost.tell_break_even(cost.BreakEven(**found['break_even']))
    assert found['dollars_per_thousand']['teacher'] == pytest.approx(.12) # tokens as in the evaluation
    assert any('came from the cache: 100' in o for o in cost._cost_notes(found))

def test_a_judged_labeling_does_not_say_what_a_request_takes():
    assert cost._teacher_part(record(judge=True))['tokens_per_request'] == [100, 20] and cost._teacher_part(record())['tokens_per_request'] == [200, 50]
    assert cost._teacher_part(dict())['tokens_per_request'] is None

def test_a_machine_with_a_price_needs_a_measured_student():
    assert cost.priced(measured(record(), distilled={}), 1.)['break_even']['student'] is None
    assert cost.priced(measured(record(), seconds=None), 1.)['break_even']['once'] is None
    assert cost.priced(measured(record(), seconds=None, distilled={}))['break_even']['requests'] == math.ceil(Fraction('.75')/Fraction('.0009'))

# ---- measuring

class Slow:
    "A student whose clock is made up: a batch takes a second, the i-th single request i seconds"
    def __init__(self, tiny): self.tiny, self.asked, self.device, self.model = tiny, [], tiny.device, tiny.model
    def _runner(self): return self.model
    def generate(self, prompts, **kwargs):
        self.asked.append(len(prompts))
        seconds = 1. if len(prompts) > 1 else float(len(self.asked) - 2)
        self.last_generation = Generation(len(prompts), 9, 30*len(prompts), seconds)
        return ['a']*len(prompts)

def test_measure_warms_up_then_asks_all_at_once_then_each_alone(tiny):
    slow = Slow(Student.load(tiny))
    found = cost.measure(slow, lambda ts: slow.generate(ts), [f't{i}' for i in range(20)])
    assert slow.asked == [1, 20] + [1]*20
    assert found['latency'] == dict(p50=10.5, p95=19.05) # of 1 to 20 seconds
    assert found['tokens_per_second'] == 600 and found['seconds_per_request'] == .05
    assert found['memory_bytes'] >= sum(p.nbytes for p in slow.model.parameters())

@pytest.fixture
def run_dir(tmp_path, tiny):
    "A run with the facts of the quickstart and tiny students"
    for f in 'run.json', 'test_same.jsonl': shutil.copy(quickstart/f, tmp_path)
    found = json.loads((tmp_path/'run.json').read_text())
    found['settings']['student'] = tiny
    write_json(tmp_path/'run.json', found)
    shutil.copytree(tiny, tmp_path/'student')
    return tmp_path

def test_cost_run_measures_both_students_and_names_no_place(run_dir, tiny):
    found = cost.cost_run(run_dir, n=2, price_in=1., price_out=2.)
    assert found == json.loads((run_dir/'cost.json').read_text()) == cost.read_cost(run_dir)
    weights = sum(f.stat().st_size for f in Path(tiny).glob('*.safetensors'))
    for s in 'distilled', 'one_shot':
        m = found['systems'][s]
        assert 0 < m['latency']['p50'] <= m['latency']['p95'] and m['tokens_per_second'] > 0 and m['disk_bytes'] == weights and m['disk_form'] == 'safetensors'
    assert found['tasks'] == 2 and found['machine']['cpus'] >= 1 and found['dollars_per_thousand']['teacher'] > 0
    assert str(run_dir) not in (run_dir/'cost.json').read_text() and sorted(f.name for f in run_dir.iterdir()) == ['cost.json', 'run.json', 'student', 'test_same.jsonl']

def test_a_busy_machine_is_told_of():
    notes = lambda others: ' '.join(cost._cost_notes(cost.priced(measured(record()) | dict(machine=dict(cpus=2, device='cpu', precision='float32', others=others)))))
    assert 'Other processes kept 1.4 of the CPUs busy' in notes(1.4) and 'Other processes' not in notes(.3)

@pytest.mark.parametrize('all_in_use, own, others', [(75., 100., 2.), (25., 100., 0.), (25., 130., 0.)])
def test_own_work_is_not_that_of_others(monkeypatch, all_in_use, own, others):
    monkeypatch.setattr('psutil.cpu_percent', lambda *a: all_in_use) # of all four
    monkeypatch.setattr('psutil.cpu_count', lambda *a: 4)
    monkeypatch.setattr('psutil.Process.cpu_percent', lambda *a: own) # of one
    assert cost._watch_others()() == others

def test_a_run_without_weights_says_so(run_dir):
    shutil.rmtree(run_dir/'student')
    (run_dir/'student').mkdir()
    (run_dir/'student'/'README.md').write_text('# the card alone')
    found = cost.cost_run(run_dir, n=1)
    assert list(found['systems']) == ['one_shot'] and 'no weights' in found['not_measured']['distilled']
    assert any(o.startswith('Not measured: distilled student') for o in cost._cost_notes(found)) and '| distilled student, zero-shot |               – |' in cost.cost_table(found)

def test_a_student_that_is_not_there_is_left_out(run_dir):
    found = json.loads((run_dir/'run.json').read_text())
    found['settings']['student'] = './nowhere'
    write_json(run_dir/'run.json', found)
    shutil.rmtree(run_dir/'student')
    found = cost.cost_run(run_dir, n=1)
    assert not found['systems'] and found['machine'] is None and 'nowhere' in found['not_measured']['one_shot'] and cost.read_cost(run_dir) == found

def test_the_latency_of_the_teacher_is_measured_where_it_is_given_and_then_kept(run_dir, tmp_path):
    from server import Server
    from llm_distill.prompts import TeacherError
    from llm_distill.teacher import Teacher
    found = json.loads((run_dir/'run.json').read_text())
    found['settings']['teacher']['model'] = 'big'
    write_json(run_dir/'run.json', found)
    with Server(echo=True, latency=.05) as server:
        teacher = Teacher('big', server.url, progress=False)
        timed = cost.cost_run(run_dir, n=3, teacher=teacher)['systems']['teacher']
        assert len(server.log) == timed['requests'] == 4 and server.peak == 1 and .05 <= timed['latency']['p50'] <= timed['latency']['p95']
        assert cost.cost_run(run_dir, n=1)['systems']['teacher'] == timed and len(server.log) == 4
        with pytest.raises(DistillError, match='cache=None'): cost.cost_run(run_dir, n=1, teacher=Teacher('big', server.url, cache=tmp_path/'c', progress=False))
    with pytest.raises(TeacherError): cost.cost_run(run_dir, n=1, teacher=Teacher('big', server.url, progress=False, max_retries=0))
    assert 'teacher (big)' in (notes := ' '.join(cost._cost_notes(cost.read_cost(run_dir)))) and 'number of requests: 4' in notes
    found['settings']['teacher']['model'] = 'another'
    write_json(run_dir/'run.json', found)
    assert 'teacher' not in cost.cost_run(run_dir, n=1)['systems']

@pytest.mark.parametrize('change, says', [(lambda d: (d/'run.json').unlink(), 'run.json is missing'), (lambda d: (d/'test_same.jsonl').unlink(), 'test_same.jsonl is missing'),
                                          (lambda d: write_jsonl(d/'test_same.jsonl', []), 'has no tasks'), (lambda d: write_jsonl(d/'test_same.jsonl', [{}]), 'malformed row')])
def test_what_cannot_be_measured_is_an_error(run_dir, change, says):
    change(run_dir)
    with pytest.raises(DistillError, match=says): cost.cost_run(run_dir)
    assert not (run_dir/'cost.json').exists()

@pytest.mark.parametrize('text', ['', '[]', '{}', '3', '{"break_even": {"once": 1}}'])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path/'cost.json').write_text(text)
    with pytest.raises(DistillError, match='cost.json is malformed .* measure the run') as e: cost.read_cost(tmp_path)
    assert '\n' not in str(e.value)
