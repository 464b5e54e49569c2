# Start with `make demo` or `make test`; both create the environment first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Parallel test processes. Each needs up to 2 GB; one thread per process is fastest on few cores.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow gpu check format bench docs clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(VENV)/.ready  ## create .venv with all dependencies (once)

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

gpu: setup  ## on a machine with a GPU: its tests, and one JSON line of figures (10 minutes)
	$(BIN)/python -m pytest -q -m gpu
	$(BIN)/python benchmarks/gpu.py

check: setup  ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## let ruff fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## run two short benchmarks
	$(BIN)/python benchmarks/gradients.py
	$(BIN)/python benchmarks/robust.py

docs: setup  ## build the guides as a site: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean:  ## remove the files of the demo
	rm -rf runs/demo data/emoji_scenes
