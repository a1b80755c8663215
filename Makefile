# `make demo` and `make test` do all of their own set-up; they need make and Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check lint types docs wheel bench-quick soak oldest audit clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

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
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lab,dev,docs]' huggingface_hub
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --upgrade --target $(VENV)/vision torchvision timm
	touch $@

demo: $(READY)  ## train the same small CNN with and without the penalty, and show the difference
	$(BIN)/convsim demo

test: $(VENV)/.ready-dev  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto

lint: $(VENV)/.ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports > /dev/null || $(BIN)/lint-imports

types: $(VENV)/.ready-dev
	$(BIN)/mypy

docs: $(VENV)/.ready-dev  ## build the site into build/site; open build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Installed apart and tested from elsewhere, so that what the wheel lacks is missed.
WHEEL_TESTS := $(addprefix $(CURDIR)/tests/,test_surface.py kernels/test_kernels.py test_initialization.py redundancy/test_measure.py penalties report/test_report.py)

wheel: $(VENV)/.ready-dev  ## build sdist and wheel into dist/, and test the installed wheel
	rm -rf dist build/wheel
	$(BIN)/python -m build --no-isolation --outdir dist > /dev/null
	$(BIN)/python -m pip install --quiet --no-deps --target build/wheel dist/*.whl
	cd build/wheel && export PYTHONPATH=$(CURDIR)/build/wheel OMP_NUM_THREADS=1 && \
	  $(abspath $(BIN))/python -c 'import convsim; assert convsim.__file__.startswith("$(CURDIR)/build/wheel"), convsim.__file__' && \
	  $(abspath $(BIN))/python -m pytest -q -c /dev/null --rootdir $(CURDIR)/build/wheel -p no:cacheprovider $(WHEEL_TESTS)

bench-quick: $(READY)  ## what a penalty adds to a training step here, in two minutes
	$(BIN)/python benchmarks/step_cost.py --quick

soak: $(VENV)/.ready-dev  ## what is too long for `make test`: kills, memory, fuzzing, mutants; started again, it goes on
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[soak]'
	for part in kills memory fuzz mutants; do OMP_NUM_THREADS=1 $(BIN)/python soak/$$part.py || exit 1; done

# Tests of the core that need torch and little else.
CORE_TESTS := $(addprefix tests/,similarity/test_convolutional.py test_numbers.py test_precision.py test_caching.py \
  kernels/test_kernels.py regularizer/test_regularizer.py regularizer/test_forward_hooks.py test_initialization.py redundancy/test_input_autocorrelation.py \
  similarity/test_certificate.py test_determinism.py test_surface.py penalties/test_rivals.py \
  penalties/test_expected_similarity.py)

oldest:  ## the tests of the core under the oldest torch that pyproject.toml allows
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet torch==2.6.0 numpy scipy pytest pytest-timeout hypothesis --editable '.[report]'
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest $(CORE_TESTS) -k 'not timm'

audit: $(VENV)/.ready-dev  ## look the installed packages up in the list of known vulnerabilities
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet pip-audit
	$(VENV)-audit/bin/pip-audit --strict --skip-editable --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

check: lint types wheel test  ## what CI runs: format, lint, types, the wheel, tests and doctests

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-audit dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
