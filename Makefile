# Needs make and Python 3.11 or newer; everything else goes into .venv.
PYTHON := $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
STAMP := .venv/.installed
DEMO := outputs/demo
# accelerate would give one CPU thread to each process, and report every flag that it had to fill in.
LAUNCH = $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	--num_cpu_threads_per_process $$($(BIN)/python -c 'import os; print(os.cpu_count())')

.PHONY: help setup check test demo canvas clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup: $(STAMP)  ## Create .venv and install the package, with the pinned versions, for development

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found: install python3.11 (with venv)."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test]"
	@touch $@

check: setup  ## Lint, check the format and the types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

test: check  ## check, then the tests
	$(BIN)/python -m pytest

demo: setup  ## Erase "cat" from the bundled emoji model and show that it is gone (minutes, no GPU, no download)
	$(LAUNCH) erase.py --pretrained_model_name_or_path canvas --concept cat \
		--mixed_precision no --output_dir $(DEMO) --overwrite_output_dir
	@echo
	@echo "What was lost and what was kept:    $(DEMO)/report.html"
	@echo "Before and after at the same seeds: $(DEMO)/grid.png"
	@echo "The table above, for programs:      $(DEMO)/metrics.json"
	@echo "The erased pipeline, for diffusers: $(DEMO)"

canvas: setup  ## Rebuild the bundled emoji model from its font (about 2 hours)
	$(BIN)/python scripts/canvas/build.py

clean:  ## Remove caches and build output; .venv and outputs/ stay
	rm -rf build dist .pytest_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
