"Turn a prompt that works on a big LLM into a small model you own."
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_distill.client import Client
    from llm_distill.core.core import DistillError
    from llm_distill.core.prompt import Example, SeedPrompt
    from llm_distill.core.prompt_files import load_prompt, parse_prompt, save_prompt
    from llm_distill.run.config import RunConfig
    from llm_distill.run.distill import distill
    from llm_distill.run.notebook import Run
    from llm_distill.student.generation import Student
    from llm_distill.student.recipe import Recipe
    from llm_distill.teacher.teacher import Teacher, recorded_teacher

__version__ = version('llm_distill')

_modules = { # public name -> module that defines it, imported when the name is first used
    'distill': 'run.distill', 'Run': 'run.notebook', 'RunConfig': 'run.config',
    'SeedPrompt': 'core.prompt', 'Example': 'core.prompt', 
    'load_prompt': 'core.prompt_files', 'parse_prompt': 'core.prompt_files', 'save_prompt': 'core.prompt_files',
    'Teacher': 'teacher.teacher', 'recorded_teacher': 'teacher.teacher',
    'Student': 'student.generation', 'Recipe': 'student.recipe', 'Client': 'client', 'DistillError': 'core.core'}

__all__ = ['__version__', *_modules]


def __getattr__(name):
    "Import a public name on first use, so that `import llm_distill` stays quick."
    if name not in _modules: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(import_module(f'{__name__}.{_modules[name]}'), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_modules})
