"The site builds, its links resolve, and its pages work in a browser."
import json, re, shutil, subprocess, sys, threading
from functools import partial
from html import unescape
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
sys.path.append(str(Path(__file__).parents[1]/'tools'))
from docs import documented
from test_repository import cells, copy_tree, modules, numbered, others, repo, run, source

chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
notebooks = [*others, *numbered, *sorted((repo/'nbs'/'benchmarks').glob('*.ipynb'))]


def page(path):
    "Where a notebook's page lies in the site."
    return (path.relative_to(repo/'nbs').parent/re.sub(r'^\d+[a-z]?_', '', f'{path.stem.lower()}.html')).as_posix()


def title(path):
    first = next(c for c in cells(path) if c['cell_type'] == 'markdown')
    return re.match(r'# (.+)', source(first))[1].strip()


@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "The site of a copy of the working tree, which stays as it is."
    tree = copy_tree(tmp_path_factory.mktemp('docs')/'copy')
    run(sys.executable, 'tools/docs.py', cwd=tree)
    return tree/'_docs'


class Page(HTMLParser):
    "What a page links to, what in it can be linked to, and its text."
    def __init__(self, path):
        super().__init__()
        self.links, self.ids, self.text = [], set(), ''
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        d = dict(attrs)
        self.ids |= {d[k] for k in ('id', 'name') if d.get(k)}
        if tag in ('a', 'link', 'img', 'script', 'source'): self.links += [d[k] for k in ('href', 'src') if d.get(k)]

    def handle_data(self, data): self.text += data


def broken(site):
    "Every link of the site to a file or an anchor that is not there, as `page: link`."
    pages = {p: Page(p) for p in site.rglob('*.html')}
    for p, parsed in pages.items():
        for link in parsed.links:
            url = urlsplit(link)
            if url.scheme or url.netloc: continue
            target = (p.parent/unquote(url.path)).resolve() if url.path else p
            if target.is_dir(): target /= 'index.html'
            known = pages.get(target)
            missing_anchor = url.fragment and known and unquote(url.fragment) not in known.ids
            if not target.is_relative_to(site.resolve()) or not target.exists() or missing_anchor:
                yield f'{p.relative_to(site)}: {link}'


def test_broken_finds_what_is_broken(tmp_path):
    (tmp_path/'a.html').write_text('<p id="x"><a href="b.html"></a><a href="#x"></a><a href="#y"></a><img src="c.png">'
                                   '<a href="https://example.org/d"></a><a href="../e"></a>')
    assert list(broken(tmp_path.resolve())) == ['a.html: b.html', 'a.html: #y', 'a.html: c.png', 'a.html: ../e']


def test_no_broken_links(site): assert list(broken(site.resolve())) == []


def test_links_to_own_pages_are_relative(site):
    absolute = re.compile(r'<a\b[^>]*href="(/|https://llm-distill\.github\.io)')
    assert [p.name for p in site.rglob('*.html') if absolute.search(p.read_text())] == []


@pytest.mark.parametrize('path', notebooks, ids=lambda p: p.stem)
def test_every_notebook_has_a_page_that_the_sidebar_shows(site, path):
    assert title(path) in Page(site/page(path)).text
    assert page(path) in {o.removeprefix('./') for o in Page(site/'index.html').links}


@pytest.mark.parametrize('path', numbered, ids=lambda p: p.stem)
def test_first_paragraph_is_shown(site, path):
    intro = source(cells(path)[0]).split('\n\n')[2].split('`')[0].split('*')[0].split()[:6]
    assert ' '.join(intro) in ' '.join(Page(site/page(path)).text.replace('’', "'").split())


@pytest.mark.parametrize('name', modules)
def test_every_public_symbol_is_documented_with_its_parameters(site, name):
    parsed = Page(site/f'{name.replace(".", "/")}.html')
    module = import_module(f'llm_distill.{name}')
    symbols = [(n, getattr(module, n)) for n in module.__all__]
    own = [o for n, o in symbols # functions and classes
           if getattr(o, '__module__', '') == module.__name__ and getattr(o, '__qualname__', '') == n]
    assert [o.__name__ for o in own if o.__name__.lower() not in parsed.ids] == []
    notes = {v.docment for o in own if not isinstance(o, type) for v in documented(o).values() if v.docment}
    assert [n for n in notes if squeeze(n) not in squeeze(parsed.text)] == []


def squeeze(text):
    "Letters and digits alone: a page has typographic quotes and marked-up code."
    return re.sub(r'[^a-z0-9]', '', text.lower())


def test_search_index_covers_every_page(site):
    found = {o['href'].split('#')[0] for o in json.loads((site/'search.json').read_text())}
    assert {page(p) for p in notebooks} <= found


def test_the_way_of_a_record_is_a_picture(site): assert 'images/way.svg' in Page(site/'index.html').links


# In a browser

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *a): pass


@pytest.fixture(scope='session')
def address(site):
    "The site on a loopback port."
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


def browse(url, folder, width=1300):
    "The page's HTML after its scripts ran, and what it wrote to the console."
    flags = ('--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
             '--disable-component-update --disable-sync --disable-dev-shm-usage --enable-logging=stderr --log-level=0 '
             f'--virtual-time-budget=10000 --window-size={width},900').split()
    command = [chromium, *flags, f'--user-data-dir={folder}', '--dump-dom', url]
    p = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert p.returncode == 0 and '<html' in p.stdout, p.stderr[-3000:]
    return p.stdout, [o for o in p.stderr.splitlines() if 'CONSOLE' in o]


needs_chromium = pytest.mark.skipif(not chromium, reason='Chromium is not installed')


def is_rendered(path): return path.stem in ('index', '01_prompt', 'cli') or path.parent.name == 'tutorials'


@needs_chromium
@pytest.mark.parametrize('path', list(filter(is_rendered, notebooks)), ids=lambda p: p.stem)
def test_page_renders(site, address, path, tmp_path):
    html, console = browse(f'{address}/{page(path)}', tmp_path)
    heading = re.search(r'<h1[^>]*>(.*?)</h1>', html, re.S)
    assert heading and title(path) in unescape(re.sub('<[^>]+>', '', heading[1]))
    assert 'type="search"' in html
    assert console == []


# A page that opens another as wide as a phone, types into its search box, and writes down what it saw.
probe = '''<!doctype html><iframe id="f" width="390" height="800" src="{page}"></iframe><pre id="seen"></pre><script>
f.onload = () => {{
  const d = f.contentDocument;
  const seen = {{width: d.documentElement.scrollWidth, pictures: [...d.images].map(i => i.naturalWidth)}};
  const box = d.querySelector('.smalldocs-search input');
  box.value = '{query}'; box.dispatchEvent(new Event('focus')); box.dispatchEvent(new Event('input'));
  setTimeout(() => {{
    seen.hits = [...d.querySelectorAll('a.search-result')].map(a => a.getAttribute('href'));
    document.getElementById('seen').textContent = JSON.stringify(seen);
  }}, 1500);
}}</script>'''


def look(site, address, name, query, folder):
    (site/'probe.html').write_text(probe.format(page=name, query=query))
    try: html, console = browse(f'{address}/probe.html', folder)
    finally: (site/'probe.html').unlink()
    return json.loads(unescape(re.search(r'<pre id="seen">(.*?)</pre>', html, re.S)[1]))


@needs_chromium
@pytest.mark.parametrize('path', notebooks, ids=lambda p: p.stem)
def test_page_fits_a_phone_and_can_be_searched(site, address, path, tmp_path):
    seen = look(site, address, page(path), 'load_prompt', tmp_path)
    assert seen['width'] <= 390, 'the page scrolls sideways'
    assert all(seen['pictures']), 'a picture is missing'
    assert any('core/prompt_files.html#load_prompt' in o for o in seen['hits'])
