# What people and CI run. Every target makes the environment (.venv) it needs; `make` alone lists them.
# Paths here are relative, so that a folder with spaces in its name works too.

PYTHON ?=
VIEW ?= 1
PORT ?= 5006
ARGS ?=
# The tests run in as many processes as there are cores, up to eight (each loads torch); ARGS="-n0" for one.
JOBS := -n logical --maxprocesses 8 --dist worksteal

PY := .venv/bin/python
PARTS := pipeline store viewer configs
export PYTHON
unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-long quick lint types bench bench-capture bench-search bench-viewer check-definitions docs models compat dist screenshots constraints clean again

help:  ## this list
	@echo "headatlas: make TARGET"
	@sed -n 's/^\([a-z-]*\):.*## /  \1|/p' Makefile | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

demo: .venv/.run  ## trace a model over 2,000 sentences, rank its heads, open the viewer (VIEW=0: stop after the table)
	.venv/bin/headatlas demo --port $(PORT) $(if $(filter 0,$(VIEW)),--no-view)

quick: lint  ## lint, and the tests of what was changed since main, in about a minute; browser tests are left to `make test`
	$(PY) -m tools.quick_tests $(ARGS)

test: lint types  ## every check: lint, types, import contracts, unit, property and browser tests (ARGS: for pytest)
	@echo "Lint and types passed. The tests take about 15 minutes on two idle cores; ARGS=tests/store/codecs runs some of them."
	$(PY) -m pytest $(JOBS) -m "not slow" $(ARGS)

test-long: lint types  ## the same with the slow tests and many more examples a property
	HYPOTHESIS_PROFILE=long $(PY) -m pytest $(JOBS) $(ARGS)

lint: .venv/.dev  ## format, lint, spelling, the words of the language rules, and the import contracts
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	.venv/bin/codespell
	$(PY) tools/check_language.py
	.venv/bin/lint-imports

types: .venv/.dev  ## pyright; links in build/typing show it the parts under their import names
	@mkdir -p build/typing/headatlas
	@for part in $(PARTS); do ln -sfn "../../../$$part" "build/typing/headatlas/$$part"; done
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(PY) -m pyright --pythonpath $(PY)

bench: .venv/.dev  ## every benchmark, or those named: make bench ARGS=capture; tables, and build/bench/NAME.json
	$(PY) -m benchmarks $(ARGS)

bench-capture: .venv/.dev  ## what capturing costs: all of it, or a part: ARGS="--models MiniLM --lengths 512 --threads 1"
	$(PY) -m benchmarks.capture $(ARGS)

bench-search: .venv/.dev  ## how long questions to 12,544 sentences take, beside a loop of numpy; ARGS=--no-growth: that alone; ARGS=--growth: how it grows
	$(PY) -m benchmarks.search $(ARGS)

bench-viewer: .venv/.dev  ## the viewer in a browser, by itself and beside BertViz (docs/benchmarks.md says what that needs)
	$(PY) -m benchmarks.viewer $(ARGS)

check-definitions: .venv/.dev  ## every statistic and score beside slow loops (ARGS="--all": every sentence of EWT dev)
	$(PY) -m tools.check_definitions $(ARGS)

docs: .venv/.dev  ## the generated pages: docs/cli.md, docs/patterns.md with its pictures
	$(PY) tools/cli_reference.py docs/cli.md
	$(PY) -m tools.patterns_page docs/patterns.md

models: .venv/.dev  ## docs/models.md: every architecture, built small, captured, compared with its eager attention
	$(PY) -m tools.models_page docs/models.md

compat: .venv/.dev  ## the tests with the newest and with the lowest versions of what is required: make compat PYTHON=python3.13
	tools/compat.sh newest
	tools/compat.sh lowest

dist: .venv/.dev  ## wheel and source archive in dist/
	rm -rf build/lib build/bdist.* ./*.egg-info dist
	$(PY) -m build --no-isolation

screenshots: .venv/.dev  ## the pictures of the documentation, from the demo's store
	$(MAKE) demo VIEW=0
	$(PY) tools/screenshots.py

constraints: .venv/.dev  ## constraints.txt from what .venv holds now
	$(PY) tools/constraints.py >build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:  ## remove the environment, builds and caches; stores in traces/ stay
	rm -rf .venv build dist ./*.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps: older than what decides the environment, or from another folder, or with a Python that is gone.
.venv/.run: pyproject.toml constraints.txt tools/environment.sh
	@tools/environment.sh run

.venv/.dev: pyproject.toml constraints.txt tools/environment.sh
	@tools/environment.sh dev

ifneq ($(shell $(PY) -c 'print(open(".venv/.where").read())' 2>/dev/null),$(CURDIR))
.venv/.run .venv/.dev: again
again:
endif
