# Everything a newcomer needs: `make demo` and `make test` on Debian or Ubuntu with Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-engines test-ray torture audit check format setup gate clean

demo: $(VENV)/.installed ## the whole method on the embedded task; writes runs/demo/report.html
	$(BIN)/p3o demo

# One process per core, each with one thread: two threads on one core wait for each other.
test: $(VENV)/.installed-dev ## all tests but those marked slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

test-slow: $(VENV)/.installed-dev ## tests that kill processes, drive browsers or measure coverage of intervals
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m slow --ignore tests/scale

test-engines: test-ray ## the slow tests of engines that are packages of their own; each target installs what it needs

# One after the other: each test has a cluster with as many workers as this machine has cores, or more.
test-ray: $(VENV)/.installed-ray ## Ray Train: workers killed, drivers stopped, two virtual hosts (as root)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/scale/test_ray.py tests/scale/test_two_hosts.py

torture: $(VENV)/.installed-dev ## kills, damage, full disks, malformed input, soak, threads: the numbers of docs/reliability.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.torture.kills --count 150
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.torture.soak --count 5000
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.torture.threads
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.torture.malformed

audit: $(VENV)/.installed-dev ## known vulnerabilities of what is installed; needs the index that pip-audit asks
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	$(VENV)/audit/bin/pip-audit --strict --skip-editable --path $(VENV)/lib/python3*/site-packages

check: $(VENV)/.installed-dev ## format, lint, types, layers
	$(BIN)/ruff format --check src tests examples
	$(BIN)/ruff check src tests examples
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff format src tests examples
	$(BIN)/ruff check --fix src tests examples

gate: $(VENV)/.installed ## the embedded task's acceptance gate over 3 seeds
	$(BIN)/p3o gate --json gate.json

setup: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "p3o needs Python 3.11 or later; run: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "no venv module; run: apt-get install python3-venv"; exit 2; }

# torch is named with the rest and pinned: a free range would fetch gigabytes of CUDA on a machine without a GPU.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch -e '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-ray: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch -e '.[dev,ray]'
	@touch $@ $(VENV)/.installed-dev $(VENV)/.installed

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
