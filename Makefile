# the first that starts: pyenv has shims for versions that are not active
PYTHON ?= $(or $(shell for name in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$name -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done), \
	$(error Python 3.11 or later with venv was not found on PATH. Install it, or run: make PYTHON=/path/to/python))
BIN := .venv/bin
# for `make ui`
PORT = 5000

.PHONY: docs wheel figures help train tune compare results original bench bench-gpu ui test test-all lint check lock audit

help:  ## list all targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/:/' | column -t -s:

.venv/installed: requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $$(grep '^torch==' requirements.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@touch $@

.tools/%:
	$(PYTHON) -m venv .tools/$*
	.tools/$*/bin/python -m pip install --quiet --disable-pip-version-check $*

lock: .tools/uv  ## install requirements.txt and pin all installed packages with hashes (except torch)
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip freeze --all | grep -vE '^(pip|torch)==' > .tools/installed.txt
	.tools/uv/bin/uv pip compile .tools/installed.txt --quiet --no-deps --generate-hashes --no-annotate --no-header \
		--python $(BIN)/python --output-file requirements.lock

audit: .venv/installed .tools/pip-licenses .tools/pip-audit  ## list licences, versions and known vulnerabilities of all packages
	.tools/pip-licenses/bin/pip-licenses --python $(BIN)/python --order=license
	.tools/pip-audit/bin/pip-audit --strict --disable-pip --require-hashes -r requirements.lock

train: .venv/installed  ## train the arm meta, 50 epochs of mnist1d
	$(BIN)/python train.py --optimizer meta

tune: .venv/installed  ## tune Adam's rate in 20 Optuna trials
	$(BIN)/python tune.py --optimizer adam --trials 20

compare: .venv/installed  ## compare the meta arms with adam and cosine on 5 seeds
	$(BIN)/python compare.py --seeds 5

original: .venv/installed  ## reproduce the published experiment (docs/original.md) in build/results (5 minutes)
	$(BIN)/python results.py --stages original readings --output build/results

results: .venv/installed  ## regenerate docs/results.md and docs/original.md (hours; rerun to resume)
	$(BIN)/python results.py

figures: .venv/installed  ## redraw the figures in results/ without training
	$(BIN)/python results.py --redraw

bench: .venv/installed  ## measure speed and memory (15 minutes)
	$(BIN)/python -m benchmarks

bench-gpu: .venv/installed  ## measure the cost of a step on a CUDA device, with a network of GPT-2's size (minutes)
	$(BIN)/python -m benchmarks accelerator

.tools/docs: docs/requirements.txt
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	@touch $@

docs: .tools/docs  ## build the documentation into site/ and check its links
	docs/build.sh

# mlflow exits with status 0 if the port is in use
ui: .venv/installed  ## start MLflow's UI, at PORT=5000
	@$(BIN)/python -c "import socket; socket.create_server(('127.0.0.1', $(PORT)))" 2>/dev/null || \
		{ echo "make ui: port $(PORT) is in use, perhaps by another UI. Choose another: make ui PORT=5001" >&2; exit 1; }
	$(BIN)/mlflow ui --host 127.0.0.1 --port $(PORT)

test: .venv/installed  ## run the fast tests
	$(BIN)/python -m pytest

.venv/tests: .venv/installed tests/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@

test-all: .venv/tests  ## run all tests, in two processes
	$(BIN)/python -m pytest -m "slow or not slow" -n 2 --dist loadfile --durations=40

# only the files in git: others in the clone are the user's own
lint: .venv/tests  ## run the linters, type checks and import rules
	$(BIN)/ruff check $$(git ls-files '*.py' '*.ipynb')
	$(BIN)/ruff format --check $$(git ls-files '*.py' '*.ipynb')
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports

wheel: .venv/installed .tools/build  ## build the package into dist/ and import its wheel
	rm -rf dist
	.tools/build/bin/python -m build
	$(BIN)/python .ci/wheel.py

check: test lint  ## run the fast tests and `make lint`
