# make help lists the targets.
#
# Everything runs in the virtual environment VENV, made from the pins of requirements*.txt on first use.
# Your own environment instead, used as it is:  make test PYTHON=python

VENV ?= .venv
BASE_PYTHON ?= python3
WORKERS ?= 2
PYTEST_ARGS ?=

# One thread per process: test workers share the cores, and recorded trajectories do not depend on the thread count.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo test check lint format-check types imports docs docs-site tree format bench bench-guard clean

ifdef PYTHON
setup setup-dev:
	@$(PYTHON) -c "import kava" || { echo "make: $(PYTHON) cannot import kava; run: $(PYTHON) -m pip install -r requirements-dev.txt" >&2; exit 2; }
else
PYTHON := $(VENV)/bin/python
setup:
	@bash scripts/setup_venv.sh "$(VENV)" requirements.txt "$(BASE_PYTHON)"
setup-dev:
	@bash scripts/setup_venv.sh "$(VENV)" requirements-dev.txt "$(BASE_PYTHON)"
endif

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: setup ## install what is needed and run the demonstration on a CPU
	env -u OMP_NUM_THREADS $(PYTHON) -m kava demo

test: setup-dev ## run the whole test suite (WORKERS=2 processes; PYTEST_ARGS="-k eviction" picks)
	$(PYTHON) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: lint format-check types imports docs docs-site tree ## all of the checks below (make -k check: go on after a failure)

lint: setup-dev ## ruff's rules
	$(PYTHON) -m ruff check .

format-check: setup-dev ## ruff's formatting
	$(PYTHON) -m ruff format --check .

types: setup-dev ## mypy
	$(PYTHON) -m mypy
	$(PYTHON) -m mypy scripts

imports: setup-dev ## the import order, and no cycles
	$(PYTHON) -c "from importlinter.cli import lint_imports_command as check; check()"

docs: setup-dev ## links, paper map, commands and file tree of the documents
	$(PYTHON) scripts/check_docs.py

docs-site: setup-dev ## the documentation site, in site/: a dead link or a page outside its menu is an error
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

tree: setup-dev ## sizes of files and functions, configurations
	$(PYTHON) scripts/check_tree.py

format: setup-dev ## format the code, and mend what ruff can mend
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

bench: setup ## measure speed and memory
	$(PYTHON) -m kava bench

bench-guard: setup ## measure again and fail beyond 15 % of the recorded numbers (some minutes; by hand or at night)
	@failed=0; for name in bench scaling data; do $(PYTHON) -m kava bench --guard docs/results/$$name.json || failed=1; done; exit $$failed

clean: ## remove caches and build leftovers (not the environment, not outputs)
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache src/*.egg-info
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
