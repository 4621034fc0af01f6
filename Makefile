# make quickstart: a table in minutes, from a fresh clone. make test: all that CI checks.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: quickstart test golden mutants format clean

quickstart: .venv/installed
	$(BIN)/assay run quickstart -o runs/quickstart
	$(BIN)/assay table runs/quickstart

# Cheap first. Two processes of one thread each suit a small machine.
test: .venv/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --dist loadgroup

# Plants small faults and counts those that the fast tests catch; takes minutes per module. MUTANTS='--module splits'
MUTANTS ?= --sample 20
mutants: .venv/installed-test
	$(BIN)/python benchmarks/mutants.py $(MUTANTS)

# Measures the golden figures anew, shows what moved and keeps it.
golden: .venv/installed-test
	$(BIN)/python tests/golden/golden.py

format: .venv/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	$(PYTHON) -m venv .venv

# The stamps hold the last successful installation; only a change of the dependencies repeats it.
.venv/installed: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e .
	touch $@

.venv/installed-test: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@ .venv/installed
