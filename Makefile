# The two commands that a newcomer needs are `make demo` and `make test`; both make the environment first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Test processes at a time, each with up to 2 GB; one thread each is the fastest on few cores.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check format bench clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(VENV)/.ready  ## make .venv with everything (once)

$(VENV)/.ready: pyproject.toml setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mmalign needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup  ## data, training, fine-tuning, evaluation, export and report on embedded data
	$(BIN)/mmalign demo

test: setup  ## the test suite (no network, no GPU)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal

test-slow: setup  ## tests that take minutes
	$(BIN)/python -m pytest -q -m slow

check: setup  ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## measure mmalign beside its peers
	$(BIN)/python benchmarks/gradients.py
	$(BIN)/python benchmarks/robust.py

clean:  ## remove what the demo made
	rm -rf runs/demo data/emoji_scenes
