"""Write README.md from nbs/index.ipynb: its prose, its code and its saved outputs. `--check` only says whether README.md is that.

`nbdev-readme` does it with the Quarto program, which is no Python package.
"""
import re, sys
from pathlib import Path

from nbdev.process import NBProcessor
from nbdev.processors import hide_, hide_line, rm_export, strip_ansi

repo = Path(__file__).resolve().parents[1]
note = '<!-- Written by `make readme` from nbs/index.ipynb; edit that. -->\n\n'


def from_root(text, folder='nbs'):
    "Relative links and pictures as they are reached from the top of the repository."
    return re.sub(r'(\]\()(?![a-z]+:|[#/])', rf'\g<1>{folder}/', text)


def output(o):
    "One saved output as Markdown: Markdown as it is, other text in a fence."
    data = o.get('data', {})
    if 'text/markdown' in data: return ''.join(data['text/markdown'])
    if any(k.startswith('image/') for k in data): raise ValueError('index.ipynb shows a picture of its own; link one in a Markdown output, README.md cannot hold it')
    return f'```\n{"".join(data.get("text/plain", o.get("text", ""))).rstrip()}\n```'


def parts(cell):
    if cell.cell_type == 'markdown': yield cell.source; return
    if cell.cell_type != 'code' or cell.directives_.get('include') == 'false': return
    if cell.directives_.get('echo') != 'false': yield f'```python\n{cell.source}\n```'
    if cell.directives_.get('output') != 'false': yield from map(output, cell.get('outputs', []))


def readme(path=repo/'nbs'/'index.ipynb'):
    "README.md as a string."
    proc = NBProcessor(path, procs=[rm_export, hide_, hide_line, strip_ansi])
    proc.process()
    return note + from_root('\n\n'.join(p.strip() for c in proc.nb.cells for p in parts(c) if p.strip())) + '\n'


if __name__ == '__main__':
    if '--check' in sys.argv: sys.exit((repo/'README.md').read_text() != readme() and 'README.md is not what nbs/index.ipynb gives: run `make readme`')
    (repo/'README.md').write_text(readme())
