# Two commands: `make demo` and `make test`. Both make their own environment in .venv first.

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# the first of these that is Python 3.11 or newer
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	  command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; \
	done)

.DEFAULT_GOAL := help
.PHONY: help demo demo-private demo-dpsgd check test test-all lint format docs clean

help:  ## Show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /	/' | expand -t 12

demo: $(STAMP)  ## Three sites train on digits of their own and become one verified ensemble (demo-run/)
	$(BIN)/python examples/digits/demo.py

demo-private: $(STAMP)  ## The same with experts that are private releases, epsilon 8 and 2 (demo-private-run/)
	$(BIN)/python examples/digits/demo_private.py

demo-dpsgd: $(STAMP)  ## The same with experts trained with DP-SGD from a public checkpoint (demo-dpsgd-run/)
	$(BIN)/python examples/digits/demo_dpsgd.py

# three at a time for two cores, since many tests wait for a process or a clock; tests/whole first and then in the order
# of the files, so that what a file makes once is made once; who is done first takes from the end of another.
# TESTS="tests/sites -k y" runs some
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal $(TESTS)

check: lint  ## Check style and types, and run the quick tests: under a minute
	$(PYTEST) -m "not slow and not federation and not processes"

test: $(STAMP)  ## Run the tests, in minutes
	$(PYTEST) -m "not processes"

test-all: $(STAMP)  ## Run the tests, also those that start whole federations as real processes
	$(PYTEST)

lint: $(STAMP)  ## Check style (ruff) and types (mypy, strict)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## Build the documentation as a site (build/site/index.html); a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:  ## Remove the environment and what the demo made
	rm -rf $(VENV) demo-run demo-private-run demo-dpsgd-run .pytest_cache .mypy_cache .ruff_cache build

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer was found; install one, or run: make PYTHON=/path/to/python3"; exit 1; }
	@echo "making the environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python .ci/install.py $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@
