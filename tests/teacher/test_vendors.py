"Prefixes of vendors, their keys, and files with keys."
import os
from urllib.parse import urlsplit

import pytest

from llm_distill.core.core import DistillError, TeacherError
from llm_distill.teacher.teacher import Teacher
from llm_distill.teacher.vendors import find_vendor, load_env_file, read_env_file, vendors


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for _, variable in vendors.values():
        if variable: monkeypatch.delenv(variable, raising=False)


def test_the_common_vendors_are_there_with_an_address_and_a_key_of_their_own():
    expected = ('openai anthropic gemini mistral groq together fireworks deepseek openrouter xai cerebras ollama '
                'lmstudio vllm').split()
    assert list(vendors) == expected
    for prefix, (base_url, variable) in vendors.items():
        is_local = urlsplit(base_url).hostname == 'localhost'
        assert base_url.startswith('http://' if is_local else 'https://') and not base_url.endswith('/')
        assert (variable is None) == is_local
    variables = [variable for _, variable in vendors.values() if variable]
    assert len(set(variables)) == len(variables)


def test_a_missing_key_names_its_variable():
    for prefix, (_, variable) in vendors.items():
        if not variable: continue
        with pytest.raises(TeacherError, match=f'set {variable}'): Teacher(f'{prefix}:a-model', progress=False)


def test_the_key_of_a_vendor_is_used_and_no_other(monkeypatch):
    monkeypatch.setenv('GROQ_API_KEY', 'groq-key')
    monkeypatch.setenv('OPENAI_API_KEY', 'openai-key')
    assert find_vendor('groq:a') == ('a', 'https://api.groq.com/openai/v1', 'groq-key')
    with pytest.raises(TeacherError, match='MISTRAL_API_KEY'): find_vendor('mistral:a')
    assert find_vendor('ollama:a:8b') == ('a:8b', 'http://localhost:11434/v1', 'none')
    assert find_vendor('groq:a', 'mine')[2] == 'mine'


def test_the_address_of_the_environment_is_not_that_of_a_vendor(monkeypatch):
    monkeypatch.setenv('OPENAI_BASE_URL', 'http://127.0.0.1:9/v1')
    assert Teacher('vllm:me/model', progress=False).base_url == 'http://localhost:8000/v1'
    assert Teacher('me/model', progress=False).base_url == 'http://127.0.0.1:9/v1'


@pytest.mark.parametrize('model', ['gpt', 'ft:gpt:org::id', 'groq', 'groq:', ':a', 'http://a', ''])
def test_other_names_stay_as_they_are(model): assert find_vendor(model) == (model, None, None)


def test_the_address_that_the_user_passes_wins():
    teacher = Teacher('groq:a', 'http://127.0.0.1:9/v1', progress=False)
    assert (teacher.model, teacher.base_url) == ('groq:a', 'http://127.0.0.1:9/v1')


@pytest.mark.parametrize('text, variables', [
    ('A=1\n\n# b\nB=2', dict(A='1', B='2')), ('export A=1', dict(A='1')), ('A = 1 ', dict(A='1')), ('A=', dict(A='')),
    ('A="b c"', dict(A='b c')), ("A='b # c' # d", dict(A='b # c')), ('A=b#c # d', dict(A='b#c')), ('A=# b', dict(A='')),
    ('A=b=c', dict(A='b=c')), ('\ufeffA=1\r\nB=2\r\n', dict(A='1', B='2')), ('A=1\nA=2', dict(A='2')), ('', {})])
def test_a_file_has_lines_of_names_and_values(tmp_path, text, variables):
    (tmp_path/'.env').write_bytes(text.encode())
    assert read_env_file(tmp_path/'.env') == variables


@pytest.mark.parametrize('text', ['sk-secret', '=sk-secret', 'A="sk-secret', '1A=sk-secret', '{"A": "sk-secret"}'])
def test_a_wrong_line_is_named_without_its_content(tmp_path, text):
    (tmp_path/'.env').write_text(f'B=1\n{text}\n')
    with pytest.raises(DistillError, match='.env, line 2: expected NAME=VALUE') as e: read_env_file(tmp_path/'.env')
    assert 'secret' not in str(e.value)


def test_variables_that_are_set_stay(tmp_path, monkeypatch):
    monkeypatch.setenv('A_SET_NAME', 'mine')
    monkeypatch.delenv('A_NEW_NAME', raising=False)
    (tmp_path/'.env').write_text('A_SET_NAME=other\nA_NEW_NAME=new\n')
    try:
        assert load_env_file(tmp_path/'.env') == ['A_NEW_NAME']
        assert (os.environ['A_SET_NAME'], os.environ['A_NEW_NAME']) == ('mine', 'new')
    finally: os.environ.pop('A_NEW_NAME', None)
