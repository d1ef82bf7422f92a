# `make help` lists what can be made. PYTHON=... names the interpreter to make .venv with: 3.11 or 3.12.

PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := venv
.PHONY: help venv experiments lint test test-faults

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/make \1@\2/p' $(MAKEFILE_LIST) | awk -F@ '{ printf "%-18s %s\n", $$1, $$2 }'
	@echo "PYTHON=...         the interpreter to make .venv with: 3.11 or 3.12"

venv: $(STAMP)  ## the virtual environment .venv, with the package and what its tests need

$(STAMP): pyproject.toml setup.py
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 with venv found; install one, or give PYTHON=path" >&2; exit 1; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[test]'
	touch $@

experiments: $(STAMP)  ## the paper's kernels on the embedded digits, ending in a table of errors: a minute
	PYTHON=$(VENV)/bin/python bash run_all_experiments.bash

lint: $(STAMP)  ## style, types, and which package may import which
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# The first use of the fused engine compiles it: here while lint keeps the other core busy.
test: $(STAMP)  ## lint, then the tests: 6 minutes
	$(VENV)/bin/python scripts/job_size.py --dataset=digits --runs=convnet_gp > /dev/null & $(MAKE) lint && wait
	$(VENV)/bin/python -m pytest -n 3 --dist worksteal -m 'not long'

test-faults: $(STAMP)  ## the long tests: processes killed, files damaged, flags as a fuzzer gives them, the docs' commands
	$(VENV)/bin/python -m pytest -n 4 --dist load --maxschedchunk 1 -m long
