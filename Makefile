# `make demo` and `make test` do all the set-up themselves: a virtual environment in .venv, the kernels, the package.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup test test-all demo lint format sanitize clean

setup: $(READY)

$(READY): requirements-dev.txt pyproject.toml setup.py $(wildcard csrc/*/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -r requirements-dev.txt
	DMLFAST_REQUIRE_NATIVE=$${DMLFAST_REQUIRE_NATIVE:-1} $(BIN)/pip install -q --no-build-isolation --no-deps -e .
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(BIN)/pytest -m "not long and not gpu" -n 2

test-all: lint
	$(BIN)/pytest -m "not gpu"

demo: setup
	$(BIN)/dmlfast demo

clean:
	rm -rf build $(VENV) *.egg-info dmlfast/ops/*.so
