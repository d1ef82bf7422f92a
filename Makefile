# make venv         the virtual environment .venv, with the package and what the tests need
# make experiments  the main job: the paper's kernels on the embedded digits, ending in a table of errors
# make test         lint, types and tests
# make test-faults  the long tests: processes killed at twenty random moments
# PYTHON=...        the interpreter to make .venv with: 3.11 or 3.12

PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: venv experiments test test-faults lint

venv: $(STAMP)

$(STAMP): setup.py
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 with venv found; install one, or give PYTHON=path" >&2; exit 1; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[test]'
	touch $@

experiments: $(STAMP)
	PYTHON=$(VENV)/bin/python bash run_all_experiments.bash

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

test: lint
	$(VENV)/bin/python -m pytest -n 2 -m 'not kills'

test-faults: $(STAMP)
	$(VENV)/bin/python -m pytest -n 2 -m kills
