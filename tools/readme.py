"""Write README.md from nbs/index.ipynb: its prose, its code and its saved outputs. `--check` only compares.

`nbdev-readme` does it with the Quarto program, which is not a Python package.
"""
import re, sys
from pathlib import Path

from nbdev.process import NBProcessor
from nbdev.processors import hide_, hide_line, rm_export, strip_ansi

repo = Path(__file__).resolve().parents[1]
note = '<!-- Written by `make readme` from nbs/index.ipynb; edit that. -->\n\n'


def from_root(text, folder='nbs'):
    "Return a text with relative links and pictures as seen from the top of the repository."
    return re.sub(r'(\]\()(?![a-z]+:|[#/])', rf'\g<1>{folder}/', text)


def output(o):
    "Return a saved output as Markdown: Markdown as it is, other text in a fence."
    data = o.get('data', {})
    if 'text/markdown' in data: return ''.join(data['text/markdown'])
    if any(k.startswith('image/') for k in data):
        raise ValueError('index.ipynb shows a picture, which README.md cannot hold; link a file in a Markdown output')
    return f'```\n{"".join(data.get("text/plain", o.get("text", ""))).rstrip()}\n```'


def parts(cell):
    if cell.cell_type == 'markdown': yield cell.source; return
    if cell.cell_type != 'code' or cell.directives_.get('include') == 'false': return
    if cell.directives_.get('echo') != 'false': yield f'```python\n{cell.source}\n```'
    if cell.directives_.get('output') != 'false': yield from map(output, cell.get('outputs', []))


def readme(path=repo/'nbs'/'index.ipynb'):
    "Return the text of README.md."
    proc = NBProcessor(path, procs=[rm_export, hide_, hide_line, strip_ansi])
    proc.process()
    return note + from_root('\n\n'.join(p.strip() for c in proc.nb.cells for p in parts(c) if p.strip())) + '\n'


if __name__ == '__main__':
    current = (repo/'README.md').read_text() == readme()
    if '--check' in sys.argv: sys.exit(0 if current else 'README.md differs from nbs/index.ipynb: run `make readme`')
    (repo/'README.md').write_text(readme())
