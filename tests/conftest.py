"Every test is offline, without a key, and with a home of its own."
import os, signal, tempfile

import pytest

home = tempfile.TemporaryDirectory(prefix='llm_distill_tests_')
os.environ.update(LLM_DISTILL_HOME=home.name, HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false',
                  OMP_NUM_THREADS='1') # tiny models lose more by sharing work between threads than they gain
signal.signal(signal.SIGINT, signal.default_int_handler) # workers of pytest-xdist ignore it, and so would children
for name in 'OPENAI_API_KEY', 'OPENAI_BASE_URL': os.environ.pop(name, None)


@pytest.fixture(scope='session')
def tiny(tmp_path_factory):
    "Folder of a student with random weights."
    from llm_distill.student.models import tiny_student
    return str(tiny_student().save(tmp_path_factory.mktemp('students')/'tiny'))
