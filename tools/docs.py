"""Build the site into `_docs/`: nbdev processes the notebooks, smalldocs renders them.

`nbdev-docs` does the same with the Quarto program, which is no Python package and is fetched on the spot; `nbs/_quarto.yml` is valid for both.
"""
import inspect, json, os, re, shutil, sys, tempfile
from functools import reduce
from importlib import import_module
from pathlib import Path

import nbdev.showdoc
from fastcore.docments import docments, qual_name
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import NbdevLookup, nbdev_export
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
from smalldocs.site import build

repo = Path(__file__).resolve().parents[1]


def exported(sym):
    "The symbol as users import it: a notebook defines it in `__main__`, where types have odd names and dataclasses no source."
    found = NbdevLookup().syms.get(qual_name(sym))
    if not isinstance(found, tuple) or not found[1].startswith('llm_distill/'): return sym
    try: return reduce(getattr, qual_name(sym).split('.'), import_module(found[1].removesuffix('.py').replace('/', '.')))
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


class TableRenderer:
    "What `show_doc` shows of a symbol: its call on one line, its summary, and a table of parameters with their notes."
    def __init__(self, sym, name=None, title_level=3):
        self.sym, self.level = exported(sym), title_level
        self.name = name or qual_name(sym)

    def params(self):
        "Name, type, default and note of each parameter; `return` last; empty for a class that adds no constructor."
        sym = getattr(self.sym, 'fget', None) or self.sym
        if isinstance(sym, type) and sym.__init__ in (object.__init__, Exception.__init__): return {}
        return {k: v for k, v in docments(sym, full=True).items() if k != 'self'}

    def call(self, params):
        args = [k if v.default is inspect.Parameter.empty else f'{k}={default_text(v.default)}' for k, v in params.items() if k != 'return']
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

    def _repr_markdown_(self):
        src = NbdevLookup().code(self.name)
        link = f'[source]({src}){{.source-link}}\n\n' if src else ''
        params = self.params()
        call = f'```python\n{self.call(params)}\n```\n\n' if params and not isinstance(self.sym, property) else ''
        doc = f'*{" ".join(inspect.getdoc(self.sym).split())}*\n\n' if inspect.getdoc(self.sym) else ''
        table = self.table(params)
        return (f'---\n\n{link}{"#"*self.level} {self.name}\n\n{call}{doc}' + (f'::: {{.params}}\n{table}\n:::\n' if table else '')).rstrip() + '\n'


nbdev.showdoc.BasicMarkdownRenderer = TableRenderer # here, so that the processes that proc_nbs starts have it too

_nb_link = re.compile(r'(?<=[(\s/"])([\w-]+)\.ipynb\b')


def page_links(text): return _nb_link.sub(lambda m: nbpath2html(f'{m[1]}.ipynb').with_suffix('.ipynb').name, text)


def shown_symbol(c):
    "The line in its module of the symbol that a cell documents; None for any other cell."
    m = c['cell_type'] == 'code' and re.search(r'^show_doc\(', ''.join(c['source']), re.M) and re.search(r'\.py#L(\d+)\)', json.dumps(c['outputs']))
    return int(m[1]) if m else None


def in_order(cells):
    "The cells, with neighbouring symbols in the order in which they are defined: nbdev shows those of one cell backwards."
    out, run = [], []
    for c in [*cells, None]:
        if c and shown_symbol(c): run.append(c); continue
        out += sorted(run, key=shown_symbol) + ([c] if c else [])
        run = []
    return out


def intro(path):
    "What a notebook's first cell says after title and summary; nbdev makes front matter of these two and drops the rest."
    first = next((''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'markdown'), '')
    text = re.sub(r'\A\s*# .*\n*(?:> .*\n*)?', '', first) if first.lstrip().startswith('# ') else ''
    return [dict(cell_type='markdown', metadata={}, source=page_links(NbdevLookup().linkify(text)))] if text.strip() else []


def stage(proc, dst):
    "Copy what nbdev has processed to `dst`, every notebook under the name of its page: 00_prompts becomes prompts, as in nbdev's links."
    shutil.copytree(proc, dst, ignore=shutil.ignore_patterns('.*', '_docs'), dirs_exist_ok=True)
    for f in dst.rglob('*.ipynb'):
        nb = json.loads(page_links(f.read_text()))
        front, rest = nb['cells'][:1], in_order(c for c in nb['cells'][1:] if not re.search(r'^show_doc\(_', ''.join(c['source']), re.M))
        f.write_text(json.dumps(nb | {'cells': front + intro(repo/'nbs'/f.relative_to(dst)) + rest}))
        f.rename(f.with_name(page_links(f'/{f.name}')[1:]))
    bar = dst/'sidebar.yml'
    bar.write_text(page_links(bar.read_text()))


def relative_links(site, url):
    "Point links that go to the published site's own pages to the pages beside: the site works wherever it lies, on a disk too."
    private = re.compile(rf'<a href="{re.escape(url)}/[^"]*#(?:_|[^"]*\._)[^"]*"[^>]*>(.*?)</a>') # nbdev links names that no page shows
    for f in site.rglob('*.html'):
        up = '../'*len(f.relative_to(site).parent.parts) or './'
        text = private.sub(r'\1', f.read_text())
        f.write_text(re.sub(rf'(<a\b[^>]*?\bhref="){re.escape(url)}/?(?=[^"]*")', rf'\g<1>{up}', text))


def main():
    os.chdir(repo)
    nbdev_export() # the links to sources and symbols come from llm_distill/_modidx.py
    refresh_quarto_yml()
    proc = proc_nbs(n_workers=os.cpu_count(), force=True)
    expected = 'unknown key format-links', 'output-file is not read by smalldocs' # for Quarto, in what nbdev writes
    with tempfile.TemporaryDirectory(dir=repo, prefix='_proc') as tmp:
        stage(proc, Path(tmp))
        warnings = [w for w in build(tmp, quiet=True).warnings if not w.endswith(expected)]
        relative_links(Path(tmp)/'_docs', get_config().doc_url.rstrip('/'))
        for f in Path(tmp, '_docs').rglob('*.llms.md'): shutil.copy(f, str(f).replace('.llms.md', '.html.md')) # where the modules' docstrings look
        shutil.rmtree('_docs', ignore_errors=True)
        shutil.move(f'{tmp}/_docs', '_docs')
    for w in warnings: print(f'warning: {w}', file=sys.stderr)
    print(f'{len(list(Path("_docs").rglob("*.html")))} pages in _docs/; open _docs/index.html (its search box needs a server: python3 -m http.server -d _docs)')
    sys.exit(any('broken link' in w for w in warnings))


if __name__ == '__main__': main()
