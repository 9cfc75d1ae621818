# Everything a newcomer needs: `make demo` and `make test` on Debian or Ubuntu with Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM_TESTS := tests/feedback/remote/test_vllm.py tests/rollouts/test_vllm.py tests/rollouts/test_vllm_push.py tests/rollouts/test_vllm_ranks.py

.PHONY: demo test test-slow test-engines test-ray test-hosts test-vllm torture audit check format docs release-check setup gate clean

demo: $(VENV)/.installed ## the whole method on the embedded task; writes runs/demo/report.html
	$(BIN)/p3o demo

# One process per core, each with one thread: two threads on one core wait for each other.
test: $(VENV)/.installed-dev ## all tests but those marked slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

test-slow: $(VENV)/.installed-dev ## tests that kill processes, drive browsers or measure coverage of intervals
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m slow --ignore tests/scale $(VLLM_TESTS:%=--ignore %)

test-engines: test-ray test-vllm ## the slow tests of engines that are packages of their own; each target installs what it needs

RAY_TESTS := tests/scale/test_ray.py tests/scale/test_ray_elastic.py tests/scale/test_ray_settings.py tests/scale/test_ray_stages.py tests/scale/test_recipes.py

# One after the other: each test has a cluster with as many workers as this machine has cores, or more. Without Ray these tests
# would be skipped, so it is imported first.
test-ray: $(VENV)/.installed-ray ## Ray Train: workers killed, drivers stopped, nodes lost and back
	$(BIN)/python -c 'import ray.train.torch'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(RAY_TESTS)

test-hosts: $(VENV)/.installed-ray ## Ray on two virtual hosts, one of them cut off and back; needs root
	$(BIN)/python -c 'import ray.train.torch, sys; from tests.scale.two_hosts import refusal; sys.exit(refusal())'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/scale/test_two_hosts.py

torture: $(VENV)/.installed-dev ## kills, damage, full disks, malformed input, soak, threads: the numbers of docs/reliability.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.torture.kills --count 150
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.torture.soak --count 5000
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.torture.threads
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.torture.malformed

# Ends with 3 where the environment cannot be downloaded: then nothing was tested, and nothing failed.
test-vllm: $(VENV)/.installed-dev ## a real vLLM server on the CPU as sampler, reward model and judge; makes its environment first
	@PYTHON=$(PYTHON) tools/vllm_env.sh $(P3O_VLLM_ENV); code=$$?; \
	if [ $$code -eq 3 ]; then \
	  echo "*** NOTHING WAS TESTED: the vLLM environment cannot be downloaded here ***"; exit 0; \
	elif [ $$code -ne 0 ]; then exit $$code; fi; \
	[ -e "$${P3O_SMOLLM2:-models/smollm2}/model.safetensors" ] || \
	  { $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt gguf && \
	    $(BIN)/python examples/smollm2/get_model.py models/smollm2; } || \
	  echo "*** SmolLM2 cannot be downloaded here: only what needs no model of others is tested ***"; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s $(VLLM_TESTS)

# An index that knows nothing of a package gives pip-audit a "skip_reason" and no list "vulns": that is no answer.
audit: $(VENV)/.installed-dev ## known vulnerabilities of what is installed; where no index can be asked, the pinned review
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	grep '^idna==' constraints.txt > $(VENV)/audit/one.txt
	@if timeout 60 $(VENV)/audit/bin/pip-audit --disable-pip --no-deps --progress-spinner off --format json \
	    --requirement $(VENV)/audit/one.txt 2>/dev/null | grep -q '"vulns"'; then \
	  echo "asking the index about all that is installed"; \
	  $(VENV)/audit/bin/pip-audit --strict --skip-editable --path $(VENV)/lib/python3*/site-packages; \
	else \
	  echo "the index cannot be asked from here; checking security/reviewed.txt instead"; \
	  $(BIN)/python -m pytest -q tests/test_dependency_review.py; \
	fi

check: $(VENV)/.installed-dev ## format, lint, types, layers
	$(BIN)/ruff format --check src tests examples docs/site
	$(BIN)/ruff check src tests examples docs/site
	$(BIN)/mypy
	$(BIN)/lint-imports

release-check: $(VENV)/.installed-dev ## wheel and sdist; the wheel in an empty environment does what the README shows
	$(BIN)/python tests/release/check_wheel.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff format src tests examples docs/site
	$(BIN)/ruff check --fix src tests examples docs/site

docs: $(VENV)/.installed-docs ## the site, in build/site: open build/site/index.html
	$(BIN)/python docs/site/build.py build/pages
	$(BIN)/zensical build --clean --strict

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

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch -e '.[docs]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-ray: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch -e '.[dev,ray]'
	@touch $@ $(VENV)/.installed-dev $(VENV)/.installed

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
