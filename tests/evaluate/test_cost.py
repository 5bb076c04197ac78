"What a request costs: prices by hand, unknown ones, and the measurements of a run."
import json, math, shutil
from fractions import Fraction
from pathlib import Path

import pytest
from server import Server

from llm_distill.core.core import DistillError, TeacherError, read_json, write_json, write_jsonl
from llm_distill.evaluate.break_even import BreakEven, describe_break_even
from llm_distill.evaluate.cost import add_prices, cost_notes, cost_run, cost_table, read_cost, teacher_usage
from llm_distill.teacher.teacher import Teacher

quickstart = Path(__file__).parents[2]/'nbs'/'runs'/'quickstart'


# ---- prices

def usage(requests=0, cached=0, prompt=0, completion=0, cost=0.):
    return dict(requests=requests, cached=cached, failed=0, cost=cost, prompt_tokens=prompt,
                completion_tokens=completion)


def record(rates=(2., 10.), judge=None, **stages):
    "Return what run.json holds, as far as prices need it."
    all_stages = dict(synthesis=usage(10, 0, 1000, 500, .5), labeling=usage(100, 0, 20_000, 5000, .25),
                      evaluation=usage(50, 0, 5000, 1000, 9.))
    teacher = dict(model='some', dollars_per_million_tokens=rates and list(rates))
    return dict(teacher=teacher, config=dict(judge=judge), usage=all_stages | stages)


def measured(record, seconds=3600, **systems):
    "Return a cost.json without prices."
    speed = dict(latency=dict(p50=.5, p95=1.), tokens_per_second=100., seconds_per_request=.36, memory_bytes=10,
                 disk_bytes=10, disk_form='GGUF')
    both = dict(distilled=speed, one_shot=speed | dict(seconds_per_request=.72))
    return dict(machine=None, questions=20, systems=both | systems, not_measured={}, teacher=teacher_usage(record),
                training_seconds=seconds)


def test_prices_by_hand():
    cost = add_prices(measured(record()), hourly_price=2.)
    teacher = 1000*(200*2e-6 + 50*1e-5)
    assert cost['dollars_per_thousand'] == pytest.approx(dict(distilled=.2, one_shot=.4, teacher=teacher))
    assert cost['once'] == dict(synthesis=.5, labeling=.25, training=2.) and cost['break_even']['once'] == 2.75
    saved = Fraction('.0009') - Fraction('.0002')
    assert cost['break_even']['requests'] == math.ceil(Fraction('2.75')/saved)


def test_prices_that_are_passed_replace_those_that_were_paid():
    cost = add_prices(measured(record(rates=None)), price_in=1., price_out=4.)
    assert cost['dollars_per_thousand'] == pytest.approx(dict(distilled=0, one_shot=0, teacher=.4))
    assert cost['once'] == pytest.approx(dict(synthesis=.003, labeling=.04, training=0)) and cost['prices']['given']
    assert add_prices(measured(record()), price_in=0, price_out=0)['dollars_per_thousand']['teacher'] == 0


@pytest.mark.parametrize('name', ['hourly_price', 'price_in', 'price_out'])
def test_a_negative_price_is_an_error(name):
    with pytest.raises(DistillError, match=f'^{name} must be at least 0 dollars, got -1'):
        add_prices(measured(record()), **{name: -1})


def test_no_price_is_a_dash_and_no_break_even():
    cost = add_prices(measured(record(rates=None)))
    assert cost['dollars_per_thousand']['teacher'] is None and cost['break_even']['requests'] is None
    rows = [[c.strip() for c in line.strip('|').split('|')] for line in cost_table(cost).splitlines()]
    assert rows[-1] == ['teacher', '–', '–', '–', '–', '–', '–']
    assert rows[2][1:] == ['100', '500 ms', '1.0 s', '0.0 MB (GGUF)', '0.0 MB', '$0.00']
    assert any('price of the teacher is unknown' in note for note in cost_notes(cost))


def test_a_teacher_that_was_always_cached_has_no_known_cost():
    cost = add_prices(measured(record(labeling=usage(0, 100))), price_in=1., price_out=1.)
    assert cost['once']['labeling'] is None
    assert 'the cost of the distillation' in describe_break_even(BreakEven(**cost['break_even']))
    assert cost['dollars_per_thousand']['teacher'] == pytest.approx(.12) # tokens as in the evaluation
    assert any('from the cache: 100' in note for note in cost_notes(cost))


def test_a_judged_labeling_does_not_say_what_a_request_takes():
    assert teacher_usage(record(judge=True))['tokens_per_request'] == [100, 20]
    assert teacher_usage(record())['tokens_per_request'] == [200, 50]
    assert teacher_usage({})['tokens_per_request'] is None


def test_a_machine_with_a_price_needs_a_measured_student():
    assert add_prices(measured(record(), distilled={}), 1.)['break_even']['student'] is None
    assert add_prices(measured(record(), seconds=None), 1.)['break_even']['once'] is None
    cost = add_prices(measured(record(), seconds=None, distilled={}))
    assert cost['break_even']['requests'] == math.ceil(Fraction('.75')/Fraction('.0009'))


def test_a_busy_machine_is_mentioned():
    def notes(others):
        machine = dict(cpus=2, device='cpu', precision='float32', others=others)
        return ' '.join(cost_notes(add_prices(measured(record()) | dict(machine=machine))))
    assert 'Other processes used 1.4 CPUs' in notes(1.4) and 'Other processes' not in notes(.3)


# ---- a run

def edit_record(run_dir, **changes):
    "Change values of run.json; `changes` by section."
    content = read_json(run_dir/'run.json')
    for section, values in changes.items(): content[section] |= values
    write_json(run_dir/'run.json', content)


@pytest.fixture
def run_dir(tmp_path, tiny):
    "A run with the record of the quickstart and tiny students."
    for file in ('run.json', 'test.jsonl'): shutil.copy(quickstart/file, tmp_path)
    edit_record(tmp_path, config=dict(student=tiny))
    shutil.copytree(tiny, tmp_path/'student')
    return tmp_path


def test_cost_run_measures_both_students_and_names_no_place(run_dir, tiny):
    cost = cost_run(run_dir, n=2, price_in=1., price_out=2.)
    assert cost == json.loads((run_dir/'cost.json').read_text()) == read_cost(run_dir)
    weights = sum(f.stat().st_size for f in Path(tiny).glob('*.safetensors'))
    for system in ('distilled', 'one_shot'):
        m = cost['systems'][system]
        assert 0 < m['latency']['p50'] <= m['latency']['p95'] and m['tokens_per_second'] > 0
        assert m['disk_bytes'] == weights and m['disk_form'] == 'safetensors'
    assert cost['questions'] == 2 and cost['machine']['cpus'] >= 1 and cost['dollars_per_thousand']['teacher'] > 0
    assert str(run_dir) not in (run_dir/'cost.json').read_text()
    assert sorted(f.name for f in run_dir.iterdir()) == ['cost.json', 'run.json', 'student', 'test.jsonl']


def test_a_bad_price_is_refused_before_anything_is_measured(run_dir):
    with pytest.raises(DistillError, match='price_in must be at least 0 dollars'):
        cost_run(run_dir, price_in=-1, teacher='is not asked')
    assert not (run_dir/'cost.json').exists()


def test_a_run_without_weights_says_so(run_dir):
    shutil.rmtree(run_dir/'student')
    (run_dir/'student').mkdir()
    (run_dir/'student'/'README.md').write_text('# the card alone')
    cost = cost_run(run_dir, n=1)
    assert list(cost['systems']) == ['one_shot'] and 'no weights' in cost['not_measured']['distilled']
    assert any(note.startswith('Not measured: distilled student') for note in cost_notes(cost))
    row = next(line for line in cost_table(cost).splitlines() if 'distilled student' in line)
    assert [c.strip() for c in row.strip('|').split('|')][1:6] == ['–']*5


def test_a_student_that_is_missing_is_left_out(run_dir):
    edit_record(run_dir, config=dict(student='./nowhere'))
    shutil.rmtree(run_dir/'student')
    cost = cost_run(run_dir, n=1)
    assert not cost['systems'] and cost['machine'] is None and 'nowhere' in cost['not_measured']['one_shot']
    assert read_cost(run_dir) == cost


def test_the_latency_of_the_teacher_is_measured_if_one_is_passed_and_then_kept(run_dir, tmp_path):
    edit_record(run_dir, teacher=dict(model='big'))
    with Server(echo=True, latency=.05) as server:
        teacher = Teacher('big', server.url, progress=False)
        timed = cost_run(run_dir, n=3, teacher=teacher)['systems']['teacher']
        assert len(server.log) == timed['requests'] == 4 and server.peak == 1
        assert .05 <= timed['latency']['p50'] <= timed['latency']['p95']
        assert cost_run(run_dir, n=1)['systems']['teacher'] == timed and len(server.log) == 4
        with pytest.raises(DistillError, match='cache=None'):
            cost_run(run_dir, n=1, teacher=Teacher('big', server.url, cache=tmp_path/'c', progress=False))
    with pytest.raises(TeacherError):
        cost_run(run_dir, n=1, teacher=Teacher('big', server.url, progress=False, max_retries=0))
    notes = ' '.join(cost_notes(read_cost(run_dir)))
    assert 'teacher (big)' in notes and 'number of requests: 4' in notes
    edit_record(run_dir, teacher=dict(model='another'))
    assert 'teacher' not in cost_run(run_dir, n=1)['systems']


def remove_record(run_dir): (run_dir/'run.json').unlink()


def remove_questions(run_dir): (run_dir/'test.jsonl').unlink()


def empty_questions(run_dir): write_jsonl(run_dir/'test.jsonl', [])


def spoil_questions(run_dir): write_jsonl(run_dir/'test.jsonl', [{}])


@pytest.mark.parametrize('change, message', [
    (remove_record, 'run.json is missing'), (remove_questions, 'test.jsonl is missing'),
    (empty_questions, 'has no questions; run'), (spoil_questions, 'malformed row')])
def test_a_run_that_cannot_be_measured_is_an_error(run_dir, change, message):
    change(run_dir)
    with pytest.raises(DistillError, match=message): cost_run(run_dir)
    assert not (run_dir/'cost.json').exists()


@pytest.mark.parametrize('text', ['', '[]', '{}', '3', '{"break_even": {"once": 1}}'])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path/'cost.json').write_text(text)
    message = "cost.json is (malformed|not valid JSON).* run 'llm-distill cost .*' again"
    with pytest.raises(DistillError, match=message) as e: read_cost(tmp_path)
    assert '\n' not in str(e.value)


def test_the_committed_cost_of_the_quickstart_can_be_read():
    cost = read_cost(quickstart)
    assert 'has paid for itself after 431 requests' in describe_break_even(BreakEven(**cost['break_even']))
    assert add_prices(cost, price_in=2., price_out=8.)['break_even'] == cost['break_even']
