# Everything on a machine that has python3 (3.11 or newer, with its venv module) and make:
#   make demo       the whole tiny cascade on two processes        make smoke     the same with two steps a stage
#   make test       the test suite without what takes minutes alone     make test-all  all of it
#   make browser    a headless Chromium, in which the tests look at the report and at the chat (part of test-all; without one they are skipped)
#   make test-vllm  what needs vLLM, in an environment of its own that holds all of ours too (part of test-all)
#   make test-doors  what needs nemo-run, nemo-toolkit or Megatron Bridge, in an environment of its own as well (part of test-all)
#   make site       the documentation as a site in build/site   make test-site  what depends on it, in an environment of its own too (part of test-all)
#   make test-compat  what depends on megatron-core, with its newest version, where there is a Python 3.12 (part of test-all)
# Code rewards need bubblewrap, which is installed too where apt is at hand and the user may; else it is said what to do.
# The environment is made once in .venv; it is renewed when requirements/cpu.txt or pyproject.toml change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROCESSES ?= 2
WORKERS ?= 2
TORCHRUN := OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node=$(PROCESSES)
# Without bytecode every process would compile the package anew.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# megatron-core 0.19 needs Python 3.12, which may start by its name or only by pyenv's.
PYTHON312 = $(shell for version in "$$PYENV_VERSION" $$(pyenv whence python3.12 2>/dev/null); do \
  PYENV_VERSION=$$version python3.12 -c 'import sys; print(sys.executable)' 2>/dev/null && break; done)
COMPAT := .venv-compat
COMPAT_TESTS := tests/models $(patsubst %,--ignore=tests/models/test_%.py,te kernels scan norm presets) \
  $(patsubst %,tests/rollout/test_%.py,agent continuous engine_faults megatron_engine noise_and_sampling) tests/engine/test_batch.py tests/engine/test_convert.py tests/engine/test_head.py \
  tests/engine/test_gradient_fusion.py tests/engine/test_layouts.py tests/engine/test_policy.py \
  tests/engine/test_sampled.py

VLLM := .venv-vllm
VLLM_PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest
VLLM_TESTS := tests/rollout/test_vllm.py tests/rollout/test_vllm_server.py

DOORS := .venv-doors
DOORS_TESTS := $(patsubst %,tests/interop/test_%.py,nemo_run hydra_runner exp_manager bridge)
DOCS := .venv-docs

.PHONY: demo smoke test test-all test-compat test-doors test-site test-vllm browser install site

demo: install
	$(TORCHRUN) examples/cascade.py --config-name=tiny

smoke: install
	$(TORCHRUN) examples/cascade.py --config-name=smoke

test: install
	$(PYTEST) -m "not slow"

test-all: install browser test-compat test-doors test-site $(VLLM)/.installed
	$(VLLM_PYTEST) $(VLLM_TESTS)
	$(PYTEST) --durations=40

test-compat:
	@if [ -z "$(PYTHON312)" ]; then echo "no Python 3.12 starts here: nothing is tested with megatron-core 0.19"; \
	else $(MAKE) --no-print-directory $(COMPAT)/.installed && \
	PYTHONPATH=. OMP_NUM_THREADS=1 $(COMPAT)/bin/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow" $(COMPAT_TESTS); fi

test-vllm: install $(VLLM)/.installed
	$(PYTEST) tests/environments/test_judge_on_vllm.py tests/chat/test_serve.py
	$(VLLM_PYTEST) $(VLLM_TESTS)

test-doors: $(DOORS)/.installed
	PYTHONPATH=. OMP_NUM_THREADS=1 $(DOORS)/bin/python -m pytest -n $(WORKERS) --dist loadfile $(DOORS_TESTS)

site: $(DOCS)/.installed
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

test-site: $(DOCS)/.installed
	PYTHONPATH=. OMP_NUM_THREADS=1 $(DOCS)/bin/python -m pytest tests/docs/test_site.py

# Playwright's own download is tried last: it needs more of the network than pip and apt do.
BROWSERS := chromium-headless-shell chromium chromium-browser google-chrome
browser: install
	@command -v $(BROWSERS) >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	apt-get install --yes --quiet --no-install-recommends chromium-headless-shell; } || \
	$(BIN)/playwright install --only-shell chromium || echo "no Chromium here: no page is looked at in one"

install: $(VENV)/.installed

# uv installs the same wheels in a tenth of pip's time; what pip finds beside its index (PIP_FIND_LINKS: say, torch for CPUs) uv finds too.
UV = UV_FIND_LINKS="$$PIP_FIND_LINKS" $(BIN)/uv
UV_VERSION := $(shell grep '^uv==' requirements/cpu.txt)
INSTALL = $(UV) pip install --quiet --compile-bytecode --python

$(VENV)/bin/uv: requirements/cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "needs Python 3.11: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --disable-pip-version-check --quiet install $(UV_VERSION)
	touch $@

$(COMPAT)/.installed: requirements/compat.txt $(VENV)/bin/uv
	test -x $(COMPAT)/bin/python || $(UV) venv --quiet --python $(PYTHON312) $(COMPAT)
	$(INSTALL) $(COMPAT)/bin/python -r requirements/compat.txt
	touch $@

# Both lists are whole and are taken as they stand: left to choose, pip would add CUDA builds of torchvision, torchaudio and torchcodec,
# beside which neither vLLM nor transformers can be imported, and an older numpy. Not compiled: most of vLLM is never imported.
$(VLLM)/.installed: requirements/vllm.txt requirements/cpu.txt pyproject.toml $(VENV)/bin/uv
	test -x $(VLLM)/bin/python || $(UV) venv --quiet --python $(BIN)/python $(VLLM)
	$(UV) pip install --quiet --python $(VLLM)/bin/python --no-deps -r requirements/cpu.txt -r requirements/vllm.txt
	$(UV) pip install --quiet --python $(VLLM)/bin/python --no-deps --no-build-isolation --editable .
	touch $@

$(DOORS)/.installed: requirements/doors.txt requirements/cpu.txt pyproject.toml $(VENV)/bin/uv
	test -x $(DOORS)/bin/python || $(UV) venv --quiet --python $(BIN)/python $(DOORS)
	$(UV) pip install --quiet --python $(DOORS)/bin/python --no-deps -r requirements/cpu.txt -r requirements/doors.txt
	$(UV) pip install --quiet --python $(DOORS)/bin/python --no-deps --no-build-isolation --editable .
	touch $@

$(DOCS)/.installed: requirements/docs.txt requirements/cpu.txt pyproject.toml $(VENV)/bin/uv
	test -x $(DOCS)/bin/python || $(UV) venv --quiet --python $(BIN)/python $(DOCS)
	$(UV) pip install --quiet --python $(DOCS)/bin/python --no-deps -r requirements/cpu.txt -r requirements/docs.txt
	$(UV) pip install --quiet --python $(DOCS)/bin/python --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.installed: $(VENV)/bin/uv pyproject.toml requirements/alone.txt
	$(INSTALL) $(BIN)/python -r requirements/cpu.txt
	$(INSTALL) $(BIN)/python --no-deps -r requirements/alone.txt
	$(INSTALL) $(BIN)/python --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m nemo_cascade.sandbox.install
	touch $@
