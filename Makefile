# Commands for developers and CI. Each target first makes the environment (.venv) that it needs. `make` lists the targets.
# All paths are relative, so that the name of the folder may contain spaces.

PYTHON ?=
VIEW ?= 1
PORT ?= 5006
ARGS ?=
# tests/conftest.py says how many processes `auto` is. ARGS="-n0" runs the tests in one process.
JOBS := -n auto --dist worksteal

PY := .venv/bin/python
PARTS := pipeline store viewer configs
export PYTHON
unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help gpu-check demo test test-long quick lint types bench bench-capture bench-search bench-viewer check-definitions docs models tutorials compat dist screenshots figures constraints clean again

help:  ## print this list
	@echo "headatlas: make TARGET"
	@sed -n 's/^\([a-z-]*\):.*## /  \1|/p' Makefile | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

demo: .venv/.run  ## capture a model over 2,000 sentences, rank its heads, start the viewer (VIEW=0: without the viewer)
	.venv/bin/headatlas demo --port $(PORT) $(if $(filter 0,$(VIEW)),--no-view)

quick: lint  ## lint, and the tests of the changes since main without browser tests, in about a minute
	$(PY) -m tools.quick_tests $(ARGS)

test: lint types  ## all checks: lint, types, import contracts, unit, property and browser tests (ARGS: arguments of pytest)
	@echo "Lint and types passed. The tests take about 16 minutes on two idle cores; ARGS=tests/store/codecs runs only these."
	$(PY) -m pytest $(JOBS) -m "not slow" $(ARGS)

test-long: lint types  ## all checks with the slow tests and many more examples per property
	HYPOTHESIS_PROFILE=long $(PY) -m pytest $(JOBS) $(ARGS)

lint: .venv/.dev  ## format, lint, spelling, language rules and import contracts
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	.venv/bin/codespell
	$(PY) tools/check_language.py
	.venv/bin/lint-imports

types: .venv/.dev  ## check types with pyright (links in build/typing give the parts their import names)
	@mkdir -p build/typing/headatlas
	@for part in $(PARTS); do ln -sfn "../../../$$part" "build/typing/headatlas/$$part"; done
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(PY) -m pyright --pythonpath $(PY)

bench: .venv/.dev  ## run all benchmarks, or some (make bench ARGS=capture); prints tables, writes build/bench/NAME.json
	$(PY) -m benchmarks $(ARGS)

bench-capture: .venv/.dev  ## cost of capturing (a part of it: ARGS="--models MiniLM --lengths 512 --threads 1")
	$(PY) -m benchmarks.capture $(ARGS)

bench-search: .venv/.dev  ## time of searches over 12,544 sentences, compared with NumPy loops (ARGS=--no-growth or --growth: one of its parts)
	$(PY) -m benchmarks.search $(ARGS)

bench-viewer: .venv/.dev  ## time of the viewer in a browser, alone and compared with BertViz (requirements: docs/benchmarks.md)
	$(PY) -m benchmarks.viewer $(ARGS)

gpu-check: .venv/.dev  ## check the GPU path within nine minutes, without a network; lines also go to build/gpu-check.txt (ARGS="--steps launch,kernel")
	$(PY) -m tools.gpu_check $(ARGS)

check-definitions: .venv/.dev  ## compare every statistic and score with slow loops (ARGS="--all": every sentence of EWT dev)
	$(PY) -m tools.check_definitions $(ARGS)

docs: .venv/.dev  ## generate docs/cli.md, docs/patterns.md with its pictures, and the tables of docs/gpu.md and docs/scale.md
	$(PY) tools/cli_reference.py docs/cli.md
	$(PY) -m tools.patterns_page docs/patterns.md
	$(PY) -m tools.gpu_roofline docs/gpu.md
	$(PY) -m tools.scale_page docs/scale.md

models: .venv/.dev  ## generate docs/models.md: capture a small model of every architecture, compare it with eager attention
	$(PY) -m tools.models_page docs/models.md

tutorials: .venv/.dev  ## run the commands of docs/tutorials, and write their numbers and pictures into the pages (ARGS=bias: one page)
	$(PY) -m tools.tutorials $(ARGS)

compat: .venv/.dev  ## run the tests with the newest and with the lowest versions of the dependencies: make compat PYTHON=python3.13
	tools/compat.sh newest
	tools/compat.sh lowest

dist: .venv/.dev  ## build the wheel and the source archive in dist/
	rm -rf build/lib build/bdist.* ./*.egg-info dist
	$(PY) -m build --no-isolation

screenshots: .venv/.dev  ## make the pictures of the documentation from the store of the demo
	$(MAKE) demo VIEW=0
	$(PY) tools/screenshots.py

figures: .venv/.dev  ## draw the figures of docs/figures.md from the store of the demo, as SVG, PDF and PNG
	$(MAKE) demo VIEW=0
	$(PY) -m tools.paper_figures

constraints: .venv/.dev  ## write constraints.txt from the packages in .venv
	$(PY) tools/constraints.py >build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:  ## remove the environment, builds and caches, but not the stores in traces/
	rm -rf .venv build dist ./*.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamp files of the environment. It is updated if a stamp is older than the files below, and made again if the
# environment belongs to another folder or its Python no longer exists.
INSTALLED = pyproject.toml constraints.txt setup.py tools/environment.sh $(wildcard */*/kernel/*.cpp */*/kernel/*.h)
.venv/.run: $(INSTALLED)
	@tools/environment.sh run

.venv/.dev: $(INSTALLED)
	@tools/environment.sh dev

ifneq ($(shell $(PY) -c 'print(open(".venv/.where").read())' 2>/dev/null),$(CURDIR))
.venv/.run .venv/.dev: again
again:
endif
