PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: help train tune compare results original bench ui test test-all check

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/:/' | column -t -s:

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

train: .venv/installed  ## set up, then train the meta arm, 50 epochs of mnist1d
	$(BIN)/python train.py --optimizer meta

tune: .venv/installed  ## set up, then tune Adam's rate, 20 Optuna trials
	$(BIN)/python tune.py --optimizer adam --trials 20

compare: .venv/installed  ## set up, then train the headline arms on 5 seeds and set them side by side
	$(BIN)/python compare.py --seeds 5

original: .venv/installed  ## set up, then repeat the published experiment (docs/original.md), 5 minutes
	$(BIN)/python results.py --stages original readings

results: .venv/installed  ## set up, then remake every table and figure of the documents (hours; goes on where it was)
	$(BIN)/python results.py

.venv/peers: .venv/installed benchmarks/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r benchmarks/requirements.txt
	@touch $@

bench: .venv/peers  ## set up, then measure speed and memory beside the limit and the peers (10 minutes)
	$(BIN)/python -m benchmarks

ui: .venv/installed  ## show all runs in MLflow's UI
	$(BIN)/mlflow ui --host 127.0.0.1

test: .venv/installed  ## set up, then run the test suite
	$(BIN)/python -m pytest

test-all: .venv/installed  ## the slow tests too
	$(BIN)/python -m pytest -m "slow or not slow"

check: .venv/installed test  ## the tests, the linters, the types, and the arrows between the packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports
