# Two commands: `make demo` and `make test`. Both make what they need in .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# A process a core and a thread a process: two thread pools on the same cores only spin.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# Cheapest first, so that an aborted run still tells much.
GPU_TESTS := tests/engines/test_cuda.py tests/gpu_record tests/engines/tensorrt tests/profiling tests/gpu

.PHONY: help install demo test test-all test-fast test-gpu lint format types clean

help:
	@echo "make demo       install into .venv, run the main job on bundled data, print the summary"
	@echo "make test       install into .venv, run linters, types and the tests (10 minutes on 2 cores)"
	@echo "make test-all   what \`make test\` leaves out: whole networks, whole jobs, the benchmarks' scripts"
	@echo "make test-fast  the tests of a working day (no training, no whole networks)"
	@echo "make test-gpu   build, check and measure on an NVIDIA GPU, into reports/gpu/; says why it skips"
	@echo "make clean      remove .venv and the tools' caches"

$(STAMP): pyproject.toml optimizer/_version.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed; say which: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[tensorrt-rtx,cuda,loadgen,dev]'
	@touch $@

install: $(STAMP)

demo: install
	$(BIN)/resnet-opt demo

test: install lint types
	$(PYTEST) -m "not gpu and not long"

test-all: install
	$(PYTEST) -m "long and not gpu"

test-fast: install
	$(PYTEST) -m "not gpu and not slow and not long"

test-gpu: install
	$(BIN)/python -m pytest -m gpu $(GPU_TESTS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
