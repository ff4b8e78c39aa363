# `make help` lists the targets. Needs python3 (>= 3.10, with venv) and GNU make; Linux and macOS.

PYTHON ?= python3
VENV ?= .venv
# Another build of PyTorch, for instance a CPU or CUDA wheel of your own: make demo TORCH=path/to.whl
TORCH ?= -r requirements/torch.txt

# Tests that run at a time.
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
MEASURED := tests/method/test_method.py

PY := $(VENV)/bin/python
PIP := $(PY) -m pip install -qq --disable-pip-version-check --no-input
MIN := import sys; sys.exit(sys.version_info < (3, 10))

# A stamp is newer than the files that say what belongs into the environment: a second call installs nothing.
STAMP_TORCH := $(VENV)/.stamp-torch
STAMP_RUN := $(VENV)/.stamp-standalone
STAMP_TEST := $(VENV)/.stamp-test
# Two small environments with a gradio each, for the tab; everything else they take from the main one.
STAMPS_UI := .venv-ui-gradio3/.stamp .venv-ui-gradio4/.stamp

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo demo-full test lint pytest test-host test-method test-ui screenshots bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(STAMP_RUN) ## make the environment in .venv, with the `copier` command

demo: $(STAMP_RUN) ## the whole method on the pocket checkpoint, CPU only: pictures and figures in demo/
	@$(PY) -m copier demo --out demo

demo-full: $(STAMP_RUN) ## the same with a second edit and the difference recipe
	@$(PY) -m copier demo --full --out demo

test: lint test-host pytest ## ruff, mypy, the hosts' oldest packages, pytest; the two below take longer

lint: $(STAMP_TEST) ## ruff on everything, mypy (strict) on layers 0 to 4
	@echo "== ruff"
	@$(PY) -m ruff check .
	@echo "== mypy"
	@$(PY) -m mypy

pytest: $(STAMP_TEST) ## the tests, and the method with real training, measured
	@echo "== pytest: trainings that are measured, with all cores"
	@$(PY) -m pytest -q $(MEASURED)
	@echo "== pytest: everything else, side by side"
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(JOBS) --dist loadfile --ignore tests/method

test-method: $(STAMP_TEST) ## every other recipe with real training on the pocket checkpoint, and kills in it
	@echo "== pytest: every recipe with real training"
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(JOBS) --dist loadfile --durations=10 tests/method --ignore $(MEASURED)

test-host: $(STAMP_TEST) ## the code that runs in a host, with the hosts' oldest packages and Python
	@JOBS=$(JOBS) sh tests/host310/run.sh "$(PY)"

test-ui: $(STAMPS_UI) ## the tab in Chromium, on gradio 3.41 and 4.40, with real training on the pocket checkpoint
	@set -e; for gradio in 3 4; do \
	  echo "== the tab on gradio $$gradio"; \
	  COPIER_TEST_UI_REQUIRED=1 OMP_NUM_THREADS=1 \
	    .venv-ui-gradio$$gradio/bin/python -m pytest -q -n $(JOBS) --dist loadfile --durations=6 tests/ui; \
	done

screenshots: $(STAMPS_UI) ## the pictures of docs/tab.md, from the running program
	@OMP_NUM_THREADS=2 .venv-ui-gradio4/bin/python docs/screenshots.py

bench: $(STAMP_RUN) ## full-size files: seconds and memory beside cp, dense SVDs and sd-scripts, in docs/benchmarks.md
	@$(PY) -m benchmarks

clean: ## remove the environments, the demo's output and the tools' caches (not finished stages)
	rm -rf .venv .venv-host310 .venv-floor .venv-ui-gradio3 .venv-ui-gradio4 demo build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(STAMP_TORCH): requirements/torch.txt
	@$(PYTHON) -c '$(MIN)' || { echo "$(PYTHON) is older than Python 3.10: name a newer one, make PYTHON=python3.11" >&2; exit 1; }
	@echo "making $(VENV) and installing PyTorch (once)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) $(TORCH)
	@touch $@

$(STAMP_RUN): $(STAMP_TORCH) requirements/standalone.txt requirements/vocabulary.txt pyproject.toml
	@echo "installing the trainer's packages and copier into $(VENV)"
	@$(PIP) -r requirements/standalone.txt
	@$(PIP) --no-deps -r requirements/vocabulary.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(STAMP_TEST): $(STAMP_RUN) requirements/test.txt
	@echo "installing the test tools into $(VENV)"
	@$(PIP) -r requirements/test.txt
	@touch $@

.venv-ui-%/.stamp: requirements/ui-%.txt $(STAMP_TEST)
	@echo "installing $* into .venv-ui-$*"
	@$(PY) -m venv --clear .venv-ui-$*
	@$(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  "$$(.venv-ui-$*/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz-main.pth"
	@.venv-ui-$*/bin/python -m pip install -qq --disable-pip-version-check --no-input --no-deps -r $<
	@touch $@
