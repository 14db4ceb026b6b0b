# The commands of this project; `make help` lists them.
# Every path is relative to the checkout, so a checkout's path may hold spaces.

PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
LOG    := $(VENV)/install.log
# For two cores: many tests wait for processes of their own. A file's tests stay in one process.
WORKERS ?= 3

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install demo test lint pytest test-slow test-teachers format clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s  %s\n", $$1, $$2}' Makefile

install: $(STAMP)  ## make .venv with the library and all its tools

demo: $(STAMP)  ## handwritten digits, from a teacher to a verified int8 model
	@$(RUN) -m pipelines.digits

test: lint pytest  ## everything that must pass: linter, types, quick tests

lint: $(STAMP)  ## linter, formatter in checking mode, type checker
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

pytest: $(STAMP)  ## the quick tests (set TFDISTILL_TEST_DATA for those on real data)
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)  ## the slow tests: among them the wheel in a truly fresh environment
	$(RUN) -m pytest -m slow

test-teachers: $(STAMP)  ## teachers in PyTorch and ONNX Runtime, which it installs into .venv
	$(RUN) -m pip install --progress-bar off --disable-pip-version-check -e '.[test,teachers]'
	$(RUN) -m pytest tests/test_teachers_runtimes.py

format: $(STAMP)  ## let ruff repair and format the code
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:  ## remove .venv, builds and caches; saved_models stays
	rm -rf $(VENV) build dist tfdistill.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' || { \
	  echo "tfdistill needs Python 3.10 to 3.13. Found: $$($(PYTHON) --version 2>&1)." \
	       "Name another one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@# A .venv without pip is one whose making was interrupted, or whose Python is gone.
	@$(RUN) -m pip --version > /dev/null 2>&1 || { \
	  echo "[1/2] making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "[2/2] installing tfdistill with TensorFlow and the tools into $(VENV):" \
	      "some 2 GB, a minute or more (log: $(LOG))"
	@$(RUN) -m pip install --no-compile --progress-bar off --disable-pip-version-check -e '.[test]' \
	  > $(LOG) 2>&1 || { tail -n 20 $(LOG) >&2; exit 1; }
	@# pip compiles on one core. Without this, where PYTHONDONTWRITEBYTECODE is set, each process
	@# would compile TensorFlow for itself; files for other Pythons may fail.
	@$(RUN) -m compileall -q -j 0 $(VENV)/lib > /dev/null 2>&1 || true
	@touch $@
