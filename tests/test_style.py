"House rules that a machine can see, for modules, notebooks, documents and tests; CONTRIBUTING explains them."
import ast, json, re, subprocess, sys
from pathlib import Path

import pytest

repo = Path(__file__).resolve().parents[1]
generated = '_modidx.py', '__init__.py', '__main__.py'
files = (repo/'llm_distill').rglob('*.py')
modules = sorted(p for p in files if p.name not in generated and p.parent.name != 'recordings')
notebooks = sorted(p for p in (repo/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
exporting = [p for p in notebooks if re.match(r'\d\d[a-z]?_', p.name) or p.stem in ('client', 'cli')]
documents = [repo/o for o in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')]
definitions = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef


def tree(path): return ast.parse(path.read_text(encoding='utf-8'))


def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']


def source(cell): return ''.join(cell['source'])


def each(paths): return pytest.mark.parametrize('path', paths, ids=lambda p: p.relative_to(repo).as_posix())


def test_lines_and_complexity():
    "Lines of at most 120 characters, functions of a complexity of at most 10; pyproject.toml names the exceptions."
    command = [sys.executable, '-m', 'ruff', 'check', '--no-cache', '--output-format', 'concise']
    done = subprocess.run([*command, 'llm_distill', 'nbs', 'tests', 'tools'], cwd=repo, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


@each(modules)
def test_no_private_name_crosses_modules(path):
    imports = [o for o in ast.walk(tree(path)) if isinstance(o, ast.ImportFrom)]
    names = [a.name for o in imports if (o.module or '').startswith('llm_distill') for a in o.names]
    assert [n for n in names if n.startswith('_') and not n.startswith('__')] == []


def is_patched(node):
    return isinstance(node, ast.FunctionDef) and any('patch' in ast.unparse(o) for o in node.decorator_list)


@each(modules)
def test_no_method_is_named_like_an_imported_function(path):
    "`@patch` gives the name back to the import, so a call in the method reads like recursion and is none."
    top = tree(path).body
    imports = [o for o in top if isinstance(o, (ast.Import, ast.ImportFrom))]
    imported = {a.asname or a.name for o in imports for a in o.names}
    assert [o.name for o in top if is_patched(o) and o.name in imported] == []


@each(modules)
def test_public_functions_and_classes_have_a_docstring(path):
    public = [o for o in tree(path).body if isinstance(o, definitions) and not o.name.startswith('_')]
    assert [o.name for o in public if not ast.get_docstring(o)] == []


no_verbs = {'the', 'what', 'whether', 'how', 'one', 'why', 'where', 'which', 'who', 'let', 'this', 'like', 'same', 'of'}
third_person = re.compile(r'(?!pass|process|express|discuss|access|compress)\w+s')


@each(modules)
def test_docstrings_begin_with_a_verb(path):
    "An imperative verb for a function; a class may also be named in a noun phrase."
    wrong = []
    for node in ast.walk(tree(path)):
        doc = ast.get_docstring(node) if isinstance(node, definitions) else None
        if not doc: continue
        word = doc.split()[0].strip('`.,:').lower()
        is_class = isinstance(node, ast.ClassDef)
        if word in no_verbs or (not is_class and (word in ('a', 'an') or third_person.fullmatch(word))):
            wrong.append(f'{node.name}: {doc}')
    assert wrong == []


odd_names = {'found', 'said', 'told', 'made', 'what', 'how', 'there', 'wanted', 'given', 'known', 'asked', 'taken'}


@each(modules)
def test_variables_have_names_of_things(path):
    stored = {o.id for o in ast.walk(tree(path)) if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Store)}
    assert stored & odd_names == set()


comprehensions = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp


def cleverness(node):
    "Return what is too clever about a node, or None."
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda): return 'a lambda with a name'
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        sides = node.left, node.right
        if any(isinstance(o, (ast.Compare, ast.BoolOp)) for o in sides): return 'a product with a condition'
    if isinstance(node, (*comprehensions, ast.IfExp)):
        nested = ast.walk(node)
        if any(isinstance(o, ast.NamedExpr) for o in nested): return 'an assignment inside an expression'


@each(modules)
def test_no_clever_lines(path):
    reasons = [(getattr(o, 'lineno', 0), cleverness(o)) for o in ast.walk(tree(path))]
    assert [f'line {n}: {reason}' for n, reason in reasons if reason] == []


def test_cleverness_is_seen():
    lines = 'f = lambda: 1', '"s"*(n > 1)', '[y for x in z if (y := x)]', '(y if (y := x) else 0)'
    assert all(any(map(cleverness, ast.walk(ast.parse(o)))) for o in lines)
    assert not any(map(cleverness, ast.walk(ast.parse('if n > 1: x = [y for y in z]'))))


odd_words = re.compile(
    r"\b(told|tells?|beside|superfluous|mend(s|ed)?|anew|shall|likewise|heed(s|ed)?|of one's own|there already|"
    r"go(es)? on where|colour\w*|grey|licence|labell\w+|behaviour\w*|favour\w*|neighbour\w*|optimis\w+|normalis\w+|"
    r"initialis\w+|summaris\w+)\b", re.I)
code_span = re.compile(r'```.*?```|`[^`\n]*`', re.S)


def own_words(code):
    "Comments and docstrings of a cell."
    comments = re.findall(r'(?<!\S)#(?!\|)[^\n]*', code)
    try: nodes = list(ast.walk(ast.parse(code)))
    except SyntaxError: return '\n'.join(comments)
    return '\n'.join([*comments, *(ast.get_docstring(o) or '' for o in nodes if isinstance(o, definitions))])


def prose(path):
    "Text of a document, or Markdown, comments and docstrings of a notebook, without code."
    if path.suffix != '.ipynb': return code_span.sub('', path.read_text(encoding='utf-8'))
    texts = [source(c) if c['cell_type'] == 'markdown' else own_words(source(c)) for c in cells(path)]
    return code_span.sub('', '\n'.join(texts))


@each([*notebooks, *documents])
def test_prose_is_plain_american_english(path):
    assert [m[0] for m in odd_words.finditer(prose(path))] == []


without_demo = {} # public name -> why no visible cell uses it


def shown_words():
    "Words of all visible cells that do not export."
    code = [source(c) for path in exporting for c in cells(path) if c['cell_type'] == 'code']
    shown = [o for o in code if not re.search(r'^#\|\s*(exports?|hide|default_exp)\b', o, re.M)]
    return set(re.findall(r'\w+', '\n'.join(shown)))


@pytest.fixture(scope='module')
def words(): return shown_words()


@each(modules)
def test_public_names_are_shown_in_use(path, words):
    nodes = [o for o in tree(path).body if isinstance(o, definitions) and not is_patched(o)]
    public = {o.name for o in nodes if not o.name.startswith('_')}
    assert public - words - without_demo.keys() == set()


def test_names_without_a_demo_are_up_to_date(words): assert without_demo.keys() & words == set()


@each(exporting)
def test_exported_cells_are_small(path):
    "At most 30 lines without a class in them."
    exports = [source(c) for c in cells(path) if c['cell_type'] == 'code' and re.match(r'#\|\s*export', source(c))]
    lines = {o.split('\n')[1]: len([s for s in o.splitlines()[1:] if s.strip()]) for o in exports if 'class ' not in o}
    assert {k: n for k, n in lines.items() if n > 30} == {}
