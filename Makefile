# Everything runs from the virtual environment in .venv, which these targets create when it is missing
# and bring up to date when a pyproject.toml or constraints.txt has changed.
# Needed: Python 3.11 or newer, make, a compiler, and whatever package index pip is configured for.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -c constraints.txt
PACKAGES := $(sort $(wildcard packages/mtron-*))
RUNTIME := $(VENV)/installed-runtime
DEV := $(VENV)/installed-dev

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help pretrain test test-all check ci ci-rest slow-share wheels bench bench-parallel bench-models mutate format clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

pretrain: $(RUNTIME)  ## Install the packages, then pretrain a small model on real text (about 10 minutes)
	$(BIN)/python examples/pretrain.py

test: check  ## All checks and all tests, within their time budgets
	$(BIN)/python tools/run_tests.py

test-all: test  ## The same and every slow test
	$(BIN)/python tools/run_tests.py --slow

check: $(DEV)  ## Format, lint, types, layers, file and function sizes
	$(BIN)/python tools/run_checks.py

ci: test ci-rest  ## What continuous integration runs

ci-rest: wheels slow-share

slow-share: $(DEV)
	$(BIN)/python tools/run_tests.py --slow-share auto

wheels: $(DEV)  ## Build every wheel, install each one alone in a clean environment, try it
	$(BIN)/python tools/check_wheels.py

bench: $(DEV)  ## Speed of a training step beside plain PyTorch and transformers
	$(BIN)/python tools/bench/train_step.py

bench-parallel: $(DEV)  ## Parallel training on 2 and 4 CPU ranks beside torch, formulas and limits
	$(BIN)/python tools/bench/parallel.py

bench-models: $(DEV)  ## Speed of every model family and of experts beside transformers
	$(BIN)/python tools/bench/models.py

mutate: $(DEV)  ## Break the code in known ways; each time a test must fail
	$(BIN)/python tools/mutate.py

format: $(DEV)  ## Format the code and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove the environment, wheels and caches (not runs/)
	rm -rf $(VENV) dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find packages tools tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone: a looser requirement of another package could otherwise bring a build
# that is gigabytes larger.
$(RUNTIME): constraints.txt $(PACKAGES:%=%/pyproject.toml)
	@$(PYTHON) tools/preflight.py $(VENV)
	@$(PYTHON) -m venv $(VENV)
	$(PIP) -qq --upgrade pip hatchling editables
	$(PIP) torch
	$(PIP) -qq --no-build-isolation $(PACKAGES:%=-e %)
	@touch $@

$(DEV): $(RUNTIME) pyproject.toml
	$(PIP) -qq --group dev
	@touch $@
