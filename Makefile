# Everything on a machine that has python3 (3.11 or newer, with its venv module) and make:
#   make demo       the whole tiny cascade on two processes        make smoke     the same with two steps a stage
#   make test       the test suite without what takes minutes alone     make test-all  all of it
# The environment is made once in .venv; it is renewed when requirements/cpu.txt or pyproject.toml change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROCESSES ?= 2
WORKERS ?= 2
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TORCHRUN := OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node=$(PROCESSES)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: demo smoke test test-all install

demo: install
	$(TORCHRUN) examples/cascade.py --config-name=tiny

smoke: install
	$(TORCHRUN) examples/cascade.py --config-name=smoke

test: install
	$(PYTEST) -m "not slow"

test-all: install
	$(PYTEST)

install: $(VENV)/.installed

# torch goes in first and alone: whatever comes after finds it there and chooses no other build.
$(VENV)/.torch: requirements/cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "needs Python 3.11: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install $$(grep '^torch==' requirements/cpu.txt)
	touch $@

$(VENV)/.installed: $(VENV)/.torch requirements/cpu.txt pyproject.toml
	$(PIP) install -r requirements/cpu.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@
