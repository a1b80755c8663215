# `make demo` and `make test` do all of their own set-up; they need make and Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.ready
INSTALL = $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt
# By all cores, where pip takes one; some packages hold files that do not compile.
COMPILE = $(BIN)/python -m compileall -q -j 0 $(VENV) src > /dev/null || true

.PHONY: demo test check lint types docs wheel release processors bench-quick soak oldest audit clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "convsim needs Python >= 3.11; set it with make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) torch
	$(INSTALL) --editable '.[lab,shrink]'
	touch $@

$(READY): $(INSTALLED)
	$(COMPILE)
	touch $@

# torchvision's compiled operators do not load beside every CPU build of torch, and torchmetrics imports
# it wherever it is installed: it stays in a folder of its own that tests/conftest.py makes usable.
$(VENV)/.ready-dev: $(INSTALLED)
	$(INSTALL) --no-deps --upgrade --target $(VENV)/vision torchvision timm & vision=$$!; \
	($(COMPILE)) & $(INSTALL) --editable '.[lab,shrink,report,dev,docs]' huggingface_hub && wait $$vision && wait
	$(COMPILE)
	touch $(READY) $@

demo: $(READY)  ## see, shrink and train on photographs, in two minutes: figure, table and pages in demo/
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

# Tests of the mathematics, by their marker; they need torch and little else.
CORE = $(addprefix $(CURDIR)/,$(shell grep -rl 'pytestmark = pytest.mark.core' tests)) -m 'core and not (training or vision or interpreted)'
# Other kernels and other numbers than those of `make test`: a share of `make processors`.
OTHERWISE := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 CONVSIM_TEST_SEED=1

# Installed apart and tested from elsewhere, so that what the wheel lacks is missed.
wheel: $(VENV)/.ready-dev  ## build sdist and wheel into dist/, and test the installed wheel, on other kernels and numbers
	rm -rf dist build/wheel
	$(BIN)/python -m build --no-isolation --outdir dist > /dev/null
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m pip install --quiet --no-deps --target build/wheel dist/*.whl
	cd build/wheel && export PYTHONPATH=$(CURDIR)/build/wheel OMP_NUM_THREADS=1 $(OTHERWISE) && \
	  $(abspath $(BIN))/python -c 'import convsim; assert convsim.__file__.startswith("$(CURDIR)/build/wheel"), convsim.__file__' && \
	  $(abspath $(BIN))/python -m pytest -c $(CURDIR)/pyproject.toml -p no:cacheprovider --numprocesses auto $(CORE)

processors: $(VENV)/.ready-dev  ## the numeric tests on every instruction set, with 1 and 2 threads and other seeds; started again, it goes on
	$(BIN)/python soak/processors.py

bench-quick: $(READY)  ## what a penalty adds to a training step here, in two minutes
	$(BIN)/python benchmarks/step_cost.py --quick

release: wheel  ## check what `make wheel` built from a tagged, clean commit, and upload it
	@git diff --quiet HEAD && git describe --exact-match --tags --match "v$$($(BIN)/convsim --version)" > /dev/null \
	  || { echo "Commit everything and tag it v$$($(BIN)/convsim --version) first."; exit 1; }
	$(BIN)/python -m twine upload dist/*

soak: $(VENV)/.ready-dev  ## what is too long for `make test`: kills, memory, fuzzing, mutants; started again, it goes on
	$(INSTALL) --editable '.[soak]'
	for part in kills memory fuzz mutants; do OMP_NUM_THREADS=1 $(BIN)/python soak/$$part.py || exit 1; done

oldest:  ## the tests of the core under the oldest torch that pyproject.toml allows
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet torch==2.6.0 numpy scipy torchmetrics pytest pytest-timeout hypothesis --editable '.[report]'
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest -W default $(CORE)

audit: $(VENV)/.ready-dev  ## look the installed packages up in the list of known vulnerabilities
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet pip-audit
	$(VENV)-audit/bin/pip-audit --strict --skip-editable --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

check: lint types wheel test  ## what CI runs: format, lint, types, the wheel, tests and doctests

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-audit dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
