# Everything runs in .venv, which is made from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A worker that dies is a failure at once: one in its place would begin with the test that killed it, again and again.
PARALLEL := -n auto --max-worker-restart 0

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,offline,diffusers,evaluation,train,server,bench,remote,ray,teachers,report,app]"
	touch $@

.PHONY: demo
demo: $(INSTALLED) ## Score the example clips against their prompts
	$(BIN)/dover-eval score examples/clips --prompts examples/prompts.csv

.PHONY: browser
browser: ## Install the browser that tests of pages need, where apt-get can
	command -v chromium >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium fonts-liberation; }

.PHONY: test
test: $(INSTALLED) ## Run the tests, the kernel's interpreter tests among them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) --dist loadfile --ignore tests/scale --ignore tests/looking
	# In fresh processes: these fork decoders and drive a browser, and other tests' loaders would be forked with them.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) --dist loadfile tests/scale tests/looking

# The oldest Triton that the kernels take, and the newest that they are known to compile with.
TRITONS := 3.3.0 3.9.0

.PHONY: tritons
tritons: $(INSTALLED) ## Compile the kernels with the oldest and the newest Triton
	for version in $(TRITONS); do \
	  test -d $(VENV)/triton-$$version || $(BIN)/python -m pip install --quiet --no-deps --no-compile \
	    --target $(VENV)/triton-$$version triton==$$version || exit; \
	  PYTHONPATH=$(VENV)/triton-$$version $(BIN)/python -m pytest $(PARALLEL) -k 90 tests/kernels/test_offline.py || exit; \
	done

# Each dependency of scoring at the least version that pyproject.toml allows, but for torch, which has no old CPU builds.
OLDEST := $(VENV)/oldest

.PHONY: oldest
oldest: $(INSTALLED) ## Test scoring and callbacks with the oldest packages that pyproject.toml allows
	sed -n '/^dependencies/,/^]/ s/^  "\([a-z_]*\)>=\([0-9.]*\)",$$/\1==\2/p' pyproject.toml | grep -v torch > $(OLDEST).txt
	grep -E '^(torch|triton)==' constraints.txt >> $(OLDEST).txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet -r $(OLDEST).txt -e ".[offline]" \
	  pillow "click>=8.2" hypothesis pytest pytest-timeout pytest-xdist
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest $(PARALLEL) --dist loadfile -p no:cacheprovider \
	  tests/test_scorer.py tests/test_cli.py tests/test_weights.py tests/models tests/video
	# The oldest diffusers, with the last transformers 4, which those who stay with it have.
	$(OLDEST)/bin/python -m pip install --quiet diffusers==0.36.0 "transformers<5,>=4.57" -e ".[offline,diffusers]" ftfy
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest $(PARALLEL) -p no:cacheprovider tests/integrations/diffusers

.PHONY: lint
lint: $(INSTALLED) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: bench
bench: $(INSTALLED) ## Check and time kernel, scoring and callback here, into bench/results
	$(BIN)/python -m bench.run --patience 1
	$(BIN)/python -m bench.score
	$(BIN)/python -m bench.scale
	$(BIN)/python -m bench.diffusers_callback
	$(BIN)/python -m bench.rewards
	$(BIN)/python -m bench.report_page
	$(BIN)/python -m bench.report

.PHONY: clean
clean: ## Remove the environment and everything that was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
