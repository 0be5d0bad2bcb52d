# `make demo` and `make test` do all the set-up themselves: a virtual environment in .venv, the kernels, the package.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

KERNELS := $(wildcard csrc/*.h csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu)
FORMATTED := $(KERNELS) $(wildcard tests/ops/ptx/core/*)

unexport PYTHONDONTWRITEBYTECODE  # what is imported is compiled once, rather than all when installed

.PHONY: setup test test-all gpu demo lint format clean

setup: $(READY)

$(READY): requirements-dev.txt pyproject.toml setup.py $(KERNELS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --no-compile -r requirements-dev.txt
	DMLFAST_REQUIRE_NATIVE=$${DMLFAST_REQUIRE_NATIVE:-cpu} $(BIN)/pip install -q --no-build-isolation --no-deps -e .
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)
	mkdir -p build/types/dmlfast  # the package as it is installed, with cli and bench in it
	ln -sfn $(CURDIR)/dmlfast/* $(CURDIR)/cli $(CURDIR)/bench build/types/dmlfast/
	cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not long and not gpu" -n 2 --dist worksteal

test-all: lint
	$(BIN)/pytest -m "not gpu"

gpu:  # of this machine, with its own Python; PART=smoke|test|sanitize|bench|train|tune
	@$(PYTHON) tools/gpu.py $(PART)

demo: setup
	$(BIN)/dmlfast demo

clean:
	rm -rf build $(VENV) *.egg-info dmlfast/ops/*.so
