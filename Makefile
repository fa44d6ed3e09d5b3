# `make demo` and `make test` work from a fresh clone: each sets everything up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed.stamp
WORKDIR ?= ./demo-out
PYTEST_WORKERS ?= 2

# One thread a process: two test workers must not fight over two cores. What is compiled is kept, whatever the shell
# says: each target's workers would compile all tests anew.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-server test-corpus test-faults test-benchmark test-e2e test-ray test-studio test-wheel up down status lint format typecheck constraints clean

help:  ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Create .venv and install segpipe with its development tools

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "segpipe needs Python 3.11 or newer, and $(PYTHON) is not; run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## Draw scenes, train, certify, label a bucket under Prefect: under 3 minutes
	$(BIN)/python -m demo.demo --workdir $(WORKDIR)

test: $(STAMP)  ## Run the fast test suite: some 7 minutes on two cores
	$(TEST_ENV) $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile

test-server: $(STAMP)  ## Run the tests that start a real Prefect server
	$(TEST_ENV) $(BIN)/python -m pytest -m server

test-corpus: $(STAMP)  ## Run the slow tests on odd images: every storage, memory, time, more fuzzing
	$(TEST_ENV) $(BIN)/python -m pytest -m corpus

test-faults: $(STAMP)  ## Kill and starve labelling processes on an S3 server: some 7 minutes on two cores
	$(TEST_ENV) $(BIN)/python -m pytest -m faults -n $(PYTEST_WORKERS)

test-benchmark: $(STAMP)  ## Run the GPU's benchmark at its smallest, on the CPU: some 2 minutes
	$(TEST_ENV) $(BIN)/python -m pytest -m benchmark

test-e2e: $(STAMP)  ## Operate the whole stack: new buckets, killed worker, server and S3 server: some 8 minutes
	$(TEST_ENV) $(BIN)/python -m pytest -m e2e

# Its many pins would fight with ours.
.venv-studio/installed.stamp: tests/studio/requirements.txt
	$(PYTHON) -m venv .venv-studio
	.venv-studio/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

test-ray: $(STAMP)  ## Label in the workers of a real Ray, and kill them: under 12 minutes on two cores
	$(TEST_ENV) $(BIN)/python -m pytest -m ray

test-studio: $(STAMP) .venv-studio/installed.stamp  ## Send masks to a real Label Studio and bring decisions back
	$(TEST_ENV) $(BIN)/python -m pytest -m studio

# Settings, on the command line or in the environment: PORT, S3=moto, S3_PORT, STACK (folder), DATABASE,
# SEGPIPE_SOURCES, SEGPIPE_TIMEZONE, SEGPIPE_LABEL_STUDIO, SEGPIPE_WEBHOOK_URL, SILENT_SECONDS. make hands both on.
up: $(STAMP)  ## Start the local stack: Prefect server, worker, deployments, alarms (S3=moto: an S3 server too)
	@$(BIN)/python -m deployments.stack up

down: $(STAMP)  ## Stop the local stack
	@$(BIN)/python -m deployments.stack down

status: $(STAMP)  ## Say what of the local stack runs
	@$(BIN)/python -m deployments.stack status

test-wheel: $(STAMP)  ## Build the wheel, install it alone into an empty environment, and try it
	PYTHON=$(PYTHON) tests/wheel/try_wheel.sh

lint: $(STAMP)  ## Check style, formatting and which way imports point
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(STAMP)  ## Fix style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(STAMP)  ## Check types
	$(BIN)/mypy

constraints:  ## Write the installed set to constraints.txt
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/pip freeze --exclude-editable | sed 's/^\(torch==[^+]*\)+.*/\1/'; } > constraints.new
	@mv constraints.new constraints.txt

clean:  ## Remove the environment, caches and the demo's output
	rm -rf $(VENV) .venv-studio demo-out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
