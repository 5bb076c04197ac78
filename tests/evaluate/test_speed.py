"What is measured of students, and how busy the machine is with something else."
import psutil
import pytest

from llm_distill.evaluate.speed import busy_cpus, measure
from llm_distill.student.generation import Generation
from llm_distill.student.models import Student


class ClockedStudent:
    "A student with a simulated clock: a batch takes a second, the i-th single request i seconds."
    def __init__(self, student):
        self.student, self.device, self.model = student, student.device, student.model
        self.batch_sizes = []

    def inference_model(self): return self.model

    def generate(self, prompts, **kwargs):
        self.batch_sizes.append(len(prompts))
        seconds = 1. if len(prompts) > 1 else float(len(self.batch_sizes) - 2)
        self.last_generation = Generation(len(prompts), 9, 30*len(prompts), seconds)
        return ['a']*len(prompts)


def test_measure_warms_up_then_asks_all_at_once_then_each_alone(tiny):
    student = ClockedStudent(Student.load(tiny))
    measured = measure(student, student.generate, [f't{i}' for i in range(20)])
    assert student.batch_sizes == [1, 20] + [1]*20
    assert measured['latency'] == dict(p50=10.5, p95=19.05) # of 1 to 20 seconds
    assert measured['tokens_per_second'] == 600 and measured['seconds_per_request'] == .05
    assert measured['memory_bytes'] >= sum(p.nbytes for p in student.model.parameters())


@pytest.mark.parametrize('total, own, others', [(75., 100., 2.), (25., 100., 0.), (25., 130., 0.)])
def test_own_work_is_not_that_of_others(monkeypatch, total, own, others):
    monkeypatch.setattr('psutil.cpu_percent', lambda *a: total) # of all four
    monkeypatch.setattr('psutil.cpu_count', lambda *a: 4)
    monkeypatch.setattr('psutil.Process.cpu_percent', lambda *a: own) # of one
    assert busy_cpus(psutil.Process()) == others
