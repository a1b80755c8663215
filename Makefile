# `make demo` and `make test` do all of their own set-up; they need make and Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check lint types soak oldest audit clean help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "convsim needs Python >= 3.11; set it with make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

$(READY): $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lab]'
	touch $@

# torchvision's compiled operators do not load beside every CPU build of torch, and torchmetrics imports
# it wherever it is installed: it stays in a folder of its own that tests/conftest.py makes usable.
$(VENV)/.ready-dev: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lab,dev]' huggingface_hub
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --upgrade --target $(VENV)/vision torchvision timm
	touch $@

demo: $(READY)  ## train the same small CNN with and without the penalty, and show the difference
	$(BIN)/convsim demo

test: $(VENV)/.ready-dev  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto

lint: $(VENV)/.ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.ready-dev
	$(BIN)/mypy

soak: $(VENV)/.ready-dev  ## long runs: memory, fuzzing, mutants; stops and resumes at any time
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[soak]'
	for part in memory fuzz mutants; do $(BIN)/python soak/$$part.py || exit 1; done

# Tests of the core that need torch and little else.
CORE := $(addprefix tests/,test_similarity.py test_numbers.py test_precision.py test_tables.py \
  test_kernels.py test_regularizer.py test_watch.py test_initialization.py test_autocorrelation.py \
  test_certificate.py test_determinism.py test_surface.py penalties/test_rivals.py \
  penalties/test_expected_similarity.py)

oldest:  ## the tests of the core under the oldest torch that pyproject.toml allows
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet torch==2.6.0 numpy scipy pytest pytest-timeout hypothesis --editable '.[report]'
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest $(CORE) -k 'not timm'

audit: $(VENV)/.ready-dev  ## look the installed packages up in the list of known vulnerabilities
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet pip-audit
	$(VENV)-audit/bin/pip-audit --strict --skip-editable --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

check: lint types test  ## what CI runs: format, lint, types, tests and doctests

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-audit dist build .pytest_cache .mypy_cache .ruff_cache
