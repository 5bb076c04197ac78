"""Build the site into `_docs/`: nbdev processes the notebooks, smalldocs renders them.

`nbdev-docs` does the same with the Quarto program, which is not a Python package; `nbs/_quarto.yml` is valid for both.
"""
import inspect, json, os, re, shutil, sys, tempfile
from functools import reduce
from importlib import import_module
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FunctionType

import nbdev.showdoc
from fastcore.docments import docments, qual_name
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import NbdevLookup, nbdev_export
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
from smalldocs.site import build

repo = Path(__file__).resolve().parents[1]


def exported(sym):
    "Return the symbol as users import it: in `__main__`, where a notebook defines it, dataclasses have no source."
    entry = NbdevLookup().syms.get(qual_name(sym))
    if not isinstance(entry, tuple) or not entry[1].startswith('llm_distill/'): return sym
    module = import_module(entry[1].removesuffix('.py').replace('/', '.'))
    try: return reduce(getattr, qual_name(sym).split('.'), module)
    except AttributeError: return sym


def type_name(o):
    if o is inspect.Parameter.empty or o is None: return ''
    s = o if isinstance(o, str) else inspect.formatannotation(o)
    return re.sub(r'\b(?:\w+\.)+(?=\w)', '', s)


def default_text(o):
    text = getattr(o, '__name__', None) or repr(o)
    return text if len(text) < 40 or isinstance(o, str) else f'{type(o).__name__}(...)'


def cell(text): return str(text or '').replace('\n', ' ').replace('|', r'\|')


def code(text): return f'`{cell(text)}`' if text else ''


def own_function(f):
    "Return a function without the parameters that `@delegates` added."
    own = FunctionType(f.__code__, f.__globals__, f.__name__, f.__defaults__, f.__closure__)
    own.__kwdefaults__, own.__annotations__ = f.__kwdefaults__, f.__annotations__
    own.__qualname__, own.__module__ = f.__qualname__, f.__module__
    return own


def documented(sym):
    "Return name -> type, default and comment of each parameter; those of `@delegates` come from its target."
    if getattr(sym, '__name__', '') == '__init__' and '.' in sym.__qualname__: # the source of a dataclass is its class
        sym = getattr(sys.modules[sym.__module__], sym.__qualname__.split('.')[0], sym)
    function = sym.__init__ if isinstance(sym, type) and not is_dataclass(sym) else sym
    target = getattr(function, '__delwrap__', None)
    if target is None: params = docments(sym, full=True)
    else:
        own = docments(own_function(function), full=True)
        own.pop('kwargs', None)
        names = inspect.signature(function).parameters
        result = {'return': own.pop('return')} if 'return' in own else {}
        params = own | {k: v for k, v in documented(target).items() if k in names and k not in own} | result
    if is_dataclass(sym): # a field made with `setting` has its text in the metadata
        for o in fields(sym):
            if o.name in params and 'help' in o.metadata: params[o.name].docment = o.metadata['help']
    for name, text in getattr(function, 'comments', {}).items(): # of `document_settings`
        if name in params and not params[name].docment: params[name].docment = text
    return {k: v for k, v in params.items() if k != 'self'}


class TableRenderer:
    "Shows a symbol in `show_doc`: its call, its summary, and a table of parameters with their comments."
    def __init__(self, sym, name=None, title_level=3):
        self.sym, self.level = exported(sym), title_level
        self.name = name or qual_name(sym)

    def params(self):
        "Return name -> type, default and comment of each parameter; `return` last; empty without a constructor."
        sym = getattr(self.sym, 'fget', None) or self.sym
        if isinstance(sym, type) and sym.__init__ in (object.__init__, Exception.__init__): return {}
        return documented(sym)

    def call(self, params):
        args = [k if v.default is inspect.Parameter.empty else f'{k}={default_text(v.default)}'
                for k, v in params.items() if k != 'return']
        one = f'{self.name}({", ".join(args)})'
        return one if len(one) < 80 else f'{self.name}(\n    ' + ',\n    '.join(args) + ')'

    def table(self, params):
        rows = []
        for k, v in params.items():
            has = v.default is not inspect.Parameter.empty and k != 'return'
            if k == 'return' and not v.docment and type_name(v.anno) in ('', 'None'): continue
            kind = ' = '.join(filter(None, [code(type_name(v.anno)), code(default_text(v.default)) if has else '']))
            rows.append(f'| {"**returns**" if k == "return" else code(k)} | {kind} | {cell(v.docment)} |')
        return '\n'.join(['| | Type | |', '|---|---|---|', *rows]) if rows else ''

    def methods(self):
        "Return a table of the public methods in a class's body; patched ones are shown on their own."
        body = vars(self.sym).items() if isinstance(self.sym, type) else ()
        own = {k: getattr(v, 'fget', None) or getattr(v, '__func__', v) for k, v in body if not k.startswith('_')}
        own = {k: v for k, v in own.items()
               if getattr(v, '__qualname__', '') == f'{self.sym.__name__}.{k}' and v.__doc__}
        if not own: return ''
        def is_inline(f): return f.__code__.co_filename == sys.modules[self.sym.__module__].__file__
        rows = [f'| {code(k)} | {cell(" ".join(v.__doc__.split()))} |' for k, v in own.items() if is_inline(v)]
        return '\n'.join(['| Method | |', '|---|---|', *rows]) + '\n'

    def _repr_markdown_(self):
        src = NbdevLookup().code(self.name)
        link = f'[source]({src}){{.source-link}}\n\n' if src else ''
        params = self.params()
        call = f'```python\n{self.call(params)}\n```\n\n' if params and not isinstance(self.sym, property) else ''
        text = (inspect.getdoc(self.sym) or '').split('\n\n')[0] # parameters may follow, which are in the table
        doc = f'*{" ".join(text.split())}*\n\n' if text else ''
        table = self.table(params)
        params_block = f'::: {{.params}}\n{table}\n:::\n' if table else ''
        parts = f'{call}{doc}{params_block}\n{self.methods()}'
        return f'---\n\n{link}{"#"*self.level} {self.name}\n\n{parts}'.rstrip() + '\n'


nbdev.showdoc.BasicMarkdownRenderer = TableRenderer # at import, so that the processes of proc_nbs have it too

_nb_link = re.compile(r'(?<=[(\s/"])([\w-]+)\.ipynb\b')


def page_links(text):
    "Link to notebooks under the names of their pages: 00_core.ipynb becomes core.ipynb."
    return _nb_link.sub(lambda m: nbpath2html(f'{m[1]}.ipynb').with_suffix('.ipynb').name, text)


def shown_symbol(c):
    "Return the line in its module of the symbol that a cell documents; None for any other cell."
    if c['cell_type'] != 'code' or not re.search(r'^show_doc\(', ''.join(c['source']), re.M): return None
    match = re.search(r'\.py#L(\d+)\)', json.dumps(c['outputs']))
    return int(match[1]) if match else None


def in_order(cells):
    "Return the cells with adjacent symbols in the order of their definition: nbdev reverses those of one cell."
    out, run = [], []
    for c in [*cells, None]:
        if c and shown_symbol(c): run.append(c); continue
        out += sorted(run, key=shown_symbol) + ([c] if c else [])
        run = []
    return out


def intro(path):
    "Return the first cell of a notebook without title and summary: nbdev keeps only these two, as front matter."
    cells = json.loads(path.read_text())['cells']
    first = next((''.join(c['source']) for c in cells if c['cell_type'] == 'markdown'), '')
    text = re.sub(r'\A\s*# .*\n*(?:> .*\n*)?', '', first) if first.lstrip().startswith('# ') else ''
    if not text.strip(): return []
    return [dict(cell_type='markdown', metadata={}, source=page_links(NbdevLookup().linkify(text)))]


def stage(proc, dst):
    "Copy the processed notebooks to `dst` under the names of their pages, as in nbdev's links."
    shutil.copytree(proc, dst, ignore=shutil.ignore_patterns('.*', '_docs'), dirs_exist_ok=True)
    for f in dst.rglob('*.ipynb'):
        nb = json.loads(page_links(f.read_text()))
        public = [c for c in nb['cells'][1:] if not re.search(r'^show_doc\(_', ''.join(c['source']), re.M)]
        front, rest = nb['cells'][:1], in_order(public)
        f.write_text(json.dumps(nb | {'cells': front + intro(repo/'nbs'/f.relative_to(dst)) + rest}))
        f.rename(f.with_name(page_links(f'/{f.name}')[1:]))
    bar = dst/'sidebar.yml'
    bar.write_text(page_links(bar.read_text()))


def relative_links(site, url):
    "Make links to the published site's own pages relative, so that the site works at any address and from disk."
    pages = {f.relative_to(site).as_posix(): f.read_text() for f in site.rglob('*.html')}
    ids = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in pages.items()}
    own = re.compile(rf'<a href="{re.escape(url)}/([^"#]*)#([^"]*)"[^>]*>(.*?)</a>')
    def link(match): # nbdev also links names that no page shows
        page, anchor, text = match.groups()
        return match[0] if anchor in ids.get(page, ()) else text
    for f in site.rglob('*.html'):
        up = '../'*len(f.relative_to(site).parent.parts) or './'
        text = own.sub(link, f.read_text())
        f.write_text(re.sub(rf'(<a\b[^>]*?\bhref="){re.escape(url)}/?(?=[^"]*")', rf'\g<1>{up}', text))


def main():
    os.chdir(repo)
    nbdev_export() # the links to sources and symbols come from llm_distill/_modidx.py
    refresh_quarto_yml()
    proc = proc_nbs(n_workers=os.cpu_count(), force=True)
    expected = 'unknown key format-links', 'output-file is not read by smalldocs' # nbdev writes them for Quarto
    with tempfile.TemporaryDirectory(dir=repo, prefix='_proc') as tmp:
        stage(proc, Path(tmp))
        warnings = [w for w in build(tmp, quiet=True).warnings if not w.endswith(expected)]
        relative_links(Path(tmp)/'_docs', get_config().doc_url.rstrip('/'))
        for f in Path(tmp, '_docs').rglob('*.llms.md'):
            shutil.copy(f, str(f).replace('.llms.md', '.html.md')) # the address in the modules' docstrings
        shutil.rmtree('_docs', ignore_errors=True)
        shutil.move(f'{tmp}/_docs', '_docs')
    for w in warnings: print(f'warning: {w}', file=sys.stderr)
    n_pages = len(list(Path('_docs').rglob('*.html')))
    print(f'{n_pages} pages in _docs/; open _docs/index.html (search needs a server: python3 -m http.server -d _docs)')
    sys.exit(any('broken link' in w for w in warnings))


if __name__ == '__main__': main()
