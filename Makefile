# Two commands that need only Python 3.11, pip and make: `make quickstart` and `make test`.
# Each makes its own .venv, once; a change of pyproject.toml installs again.

SHELL := /bin/bash
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BASE_PYTHON := $(shell command -v python3.11 || command -v python3)

# Flower's programs are found through PATH; nothing reports home and nothing asks the network.
QUIET := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1 \
	FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 \
	RAY_USAGE_STATS_ENABLED=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0 DO_NOT_TRACK=1
RUN := PATH="$(BIN):$$PATH" VIRTUAL_ENV="$(VENV)" $(QUIET)

.PHONY: help quickstart test lint install clean

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: $(STAMP)  ## Run the loop: federation, distillation, split pictures, report
	$(RUN) fedkd simulate quickstart

test: $(STAMP)  ## Run all tests, the linters among them
	$(RUN) OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} python -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(STAMP)  ## Run ruff and mypy
	$(RUN) ruff check .
	$(RUN) mypy

install: $(STAMP)  ## Make .venv and install fedkd with its development tools

$(STAMP): pyproject.toml
	@test -n "$(BASE_PYTHON)" || { echo "error: no python3.11 or python3 on PATH; install Python 3.11" >&2; exit 1; }
	test -x "$(BIN)/python" || "$(BASE_PYTHON)" -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --disable-pip-version-check -e '.[dev]'
	@touch "$(STAMP)"

clean:  ## Remove caches; .venv, runs and checkpoints stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
