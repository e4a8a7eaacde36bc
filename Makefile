# Two commands: `make demo` and `make test`. Both make what they need in .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# A process a core and a thread a process: two thread pools on the same cores only spin. The tests start
# hundreds of processes, so bytecode is kept even where the environment says otherwise.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# Cheapest first, so that an aborted run still tells much.
GPU_TESTS := tests/engines/test_cuda.py tests/gpu_record tests/engines/tensorrt tests/profiling tests/gpu

.PHONY: help install wheels lock demo test test-all test-fast test-gpu \
	test-floors test-newest test-pinned dist lint format types clean

help:
	@echo "make demo       install into .venv, run the main job on bundled data, print the summary"
	@echo "make test       install into .venv, run linters, types and the tests (about 20 minutes on 2 cores)"
	@echo "make test-all   what \`make test\` leaves out: whole networks, whole jobs, the benchmarks' scripts"
	@echo "make test-fast  the tests of a working day (no training, no whole networks)"
	@echo "make test-gpu   build, check and measure on an NVIDIA GPU, into reports/gpu/; says why it skips"
	@echo "make test-floors, make test-newest  the demo and fast tests with the lowest and the newest versions"
	@echo "make lock       write constraints/, the versions and hashes that \`make install\` installs; UPGRADE=1"
	@echo "make dist       the wheel and the source distribution, checked"
	@echo "make clean      remove .venv and the tools' caches"

# A folder of wheels instead of the package index: `make wheels WHEELS=DIR`, then `make install WHEELS=DIR`.
WHEELS ?=

$(STAMP): pyproject.toml optimizer/_version.py constraints/dev.txt tools/install.py
	$(PYTHON) tools/install.py --venv $(VENV) $(if $(WHEELS),--wheels "$(WHEELS)")

wheels:
	@test -n "$(WHEELS)" || { echo "say where: make wheels WHEELS=DIR"; exit 2; }
	$(PYTHON) tools/install.py --download --wheels "$(WHEELS)"

lock: install
	$(BIN)/python tools/lock.py --uv $(BIN)/uv $(if $(UPGRADE),--upgrade)

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

# Other versions than the pinned ones, in environments of their own; RECORD=1 writes docs/compatibility.md.
test-floors test-newest test-pinned: test-%: install
	$(BIN)/python tools/versions.py $* --uv $(BIN)/uv --python "$(or $(TEST_PYTHON),$(BIN)/python)" \
		$(if $(RECORD),--record)

# The wheel and the source distribution, in dist/.
dist: install
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

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
