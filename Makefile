# Every command sets up what it needs: a Python environment in .venv, with the versions that
# constraints.txt pins, and lptensor itself, whose C++ library is built on the way.

PYTHON ?= python3
PYTEST ?=        # more for pytest, as in: make test PYTEST="-k fixed_point -x"
WORKERS ?= 2     # processes that share the tests; each gets one thread
TORCH ?=         # another PyTorch, in an environment of its own, as in: make test TORCH=2.11.0
DEMO ?=          # more for lptensor train, as in: make demo DEMO="--epochs 5"

VENV := .venv$(if $(strip $(TORCH)),-$(strip $(TORCH)))
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
PINNED := $(shell sed -n 's/^torch==//p' constraints.txt)
RUN_TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: demo test test-all bench bench-check pages docs lint clean
.DEFAULT_GOAL := test

# A small network trained in several number systems, side by side.
demo: $(INSTALLED)
	$(BIN)/lptensor train $(DEMO)

# All tests but the long ones; says how many it left out.
test: $(INSTALLED)
	$(RUN_TESTS) -m "not slow and not gpu and not theory" $(PYTEST)

# All tests: needs a CUDA device, and a registry of packages to build against.
test-all: $(INSTALLED)
	$(RUN_TESTS) $(PYTEST)

# The pages of docs/ that the code itself writes, pictures included.
pages: $(INSTALLED)
	$(BIN)/python docs/pages/formats_page.py docs
	$(BIN)/python docs/pages/accumulator_pictures.py docs

# The site, in out/docs; a warning is an error.
docs: $(INSTALLED)
	$(BIN)/sphinx-build -W --keep-going -q -j auto docs out/docs
	@echo "out/docs/index.html"

# How fast rounding is beside a copy and beside other libraries, and matrix products beside torch.mm; a picture and the figures go to out/.
bench: $(INSTALLED)
	$(BIN)/python tests/benchmarks/rounding.py --json out/rounding.json --plot out/rounding.svg
	$(BIN)/python tests/benchmarks/layouts.py
	$(BIN)/python tests/benchmarks/dispatch.py
	$(BIN)/python tests/benchmarks/compiled.py
	$(BIN)/python tests/benchmarks/gemm.py
	$(BIN)/python tests/benchmarks/efficient_simulation.py --json out/efficient_simulation.json --plot out/efficient_simulation.svg
	$(BIN)/python tests/benchmarks/models.py --json out/models.json
	$(BIN)/python tests/benchmarks/updates.py
	$(BIN)/python tests/benchmarks/float64.py
	$(BIN)/python tests/benchmarks/on_gpu.py

# Which ratios fell below their targets by more than the spread.
bench-check: $(INSTALLED)
	$(BIN)/python tests/benchmarks/rounding.py --check

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(wildcard csrc/* tests/emulation/*.cpp tests/emulation/*.h)

clean:
	rm -rf .venv .venv-* build dist out .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) what constraints.txt names; this happens once and takes a minute or two"
	sed 's/^torch==.*/torch==$(or $(strip $(TORCH)),$(PINNED))/' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check --constraint $(VENV)/constraints.txt --editable ".[dev]"
	touch $@
