# `make help` lists what there is. Everything happens in .venv, which is made when it is needed.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PYTEST := $(BIN)/python -m pytest -q

# The stages of dvc.yaml call `python`: it has to be this environment's.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export RAY_USAGE_STATS_ENABLED := 0
# Without byte code each of pytest's processes would compile every test anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo prefect-demo test test-fast lint bench clean
.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-14s%s\n", $$1, $$2}' Makefile

demo: $(INSTALLED) ## Run the pipeline (only what is out of date), then show the figures
	@CSDN_SUMMARY=later $(BIN)/dvc repro
	@$(BIN)/csdn summary

prefect-demo: $(INSTALLED) ## Run the pipeline in Prefect, on a server of its own, and show its page
	@$(BIN)/python -m flows.demo

test: lint ## Lint, and every test
	@OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder

test-fast: $(INSTALLED) ## The tests that start no servers and no whole pipelines
	@OMP_NUM_THREADS=1 $(PYTEST) -n 2 -m "not slow"

lint: $(INSTALLED) ## Check style and format
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

bench: $(INSTALLED) ## Measure the speed of ingest, feed, method and workers, on an idle machine
	@for name in ingest feed speed scaling; do echo "== $$name"; $(BIN)/python "benchmarks/$$name.py" || exit 1; done

clean: ## Remove what stages and tools made; .venv, data, DVC's cache, RegDB's and the ablation's figures stay
	rm -rf models evaluation report $(filter-out metrics/regdb metrics/ablation.json,$(wildcard metrics/*)) .state build .pytest_cache .ruff_cache .hypothesis

# One installation, until pyproject.toml or constraints.txt changes.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Installing into .venv, once: about 6 GB"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[pipeline,test]'
	@touch $@
