"Functions that are stored as files: what goes with them, and what cannot be stored."
import math, re, subprocess, sys
from functools import partial
from pathlib import Path

import pytest

from llm_distill.core.core import DistillError, load_function
from llm_distill.core.functions import (
    MissingFunction, absolute_function, function_source, function_text, is_call_text, relative_function)

limit = 5
words = ['a', 'the']
unit = dict(cm=1)
lock = object()


def count(text): return len([w for w in re.findall(r'\w+', text) if w not in words])
def is_short(question, answer): return count(answer) <= limit
def is_even(n): return n == 0 or is_odd(n - 1)
def is_odd(n): return n > 0 and is_even(n - 1)
def has_root(question, answer, root=math.sqrt): return root(len(answer)) > 1
def uses_object(question, answer): return lock
def nested(question, answer):
    def inner(text): return [len(w) for w in text.split()]
    return inner(answer)
def by_path(question, answer): return Path(answer).suffix == '.py' and unit


def in_another_process(tmp_path, function, *args):
    "Store a function, and return what it returns in a process that knows only the file."
    (tmp_path/'stored.py').write_text(function_source(function))
    code = (f"from llm_distill.core.core import load_function as load; "
            f"print(load({str(tmp_path/'stored.py') + ':' + function.__name__!r})(*{args!r}))")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=tmp_path)
    return done.stdout.strip()


@pytest.mark.parametrize('function, args', [
    (is_short, ('q', 'the cat sat on a mat')), (is_short, ('q', 'one two three four five six')), (is_even, (4,)),
    (has_root, ('q', 'abc')), (nested, ('q', 'ab c')), (by_path, ('q', 'a.py'))])
def test_a_stored_function_does_the_same_in_another_process(tmp_path, function, args):
    assert in_another_process(tmp_path, function, *args) == str(function(*args))


def make_fence(n):
    def fence(question, answer): return len(answer) < n
    return fence


class Judge:
    def __call__(self, question, answer): return True
    def method(self, question, answer): return True


@pytest.mark.parametrize('function', [
    lambda q, a: True, make_fence(3), uses_object, len, print, Judge(), Judge().method, Judge, partial(is_short, 'q')])
def test_what_does_not_stand_alone_is_not_stored(function):
    assert function_source(function) is None
    assert is_call_text(function_text(function)) and function_text(function) == function_text(function)


def test_a_source_that_has_changed_since_is_not_stored(tmp_path):
    file = tmp_path/'mine.py'
    file.write_text('def f(a, b): return a + b\n')
    function = load_function(f'{file}:f')
    file.write_text('def f(a, b): return a * b - 1\n')
    assert function_source(function) is None


def test_texts_change_with_the_code():
    one, two = (lambda q, a: len(a) < 3), (lambda q, a: len(a) < 4)
    assert function_text(one) != function_text(two) == function_text(lambda q, a: len(a) < 4)
    assert function_text(is_short) == 'functions/is_short.py:is_short'


def test_a_missing_function_says_what_to_pass():
    missing = MissingFunction('call:f@1', 'check')
    assert function_text(missing) == 'call:f@1' and missing.__name__ == 'f'
    with pytest.raises(DistillError, match='pass it again as check=') as e: missing('q', 'a')
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('text', ['regex:a.py:f', 'call:f@1', 'rouge_l', None, dict(type='object'), '/b/c.py:f'])
def test_only_paths_of_functions_are_resolved(text):
    assert absolute_function(text, '/runs/a') == text and relative_function(text, '/runs/a') == text


def test_a_path_inside_of_a_folder_is_relative_to_it():
    assert absolute_function('functions/f.py:f', '/runs/a') == '/runs/a/functions/f.py:f'
    assert relative_function('/runs/a/functions/f.py:f', '/runs/a') == 'functions/f.py:f'
    assert relative_function('/runs/ab/f.py:f', '/runs/a') == '/runs/ab/f.py:f'
