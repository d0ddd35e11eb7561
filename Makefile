# `make help` lists the targets. All of them use .venv, which is created if it is missing.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
INSTALLED_DOCS := .venv/.installed-docs
# uv installs faster (docs/install.md); it is not needed.
INSTALL := $(if $(shell command -v uv),uv pip install --compile-bytecode --python $(BIN)/python,$(BIN)/python -m pip install)
PYTEST := $(BIN)/python -m pytest -q

# The stages in dvc.yaml call `python`, which must be that of .venv.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export RAY_USAGE_STATS_ENABLED := 0
export NO_MKDOCS_2_WARNING := 1
# With this variable set, each pytest process would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo prefect-demo test test-fast test-gpu lint docs bench dist clean
.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-14s%s\n", $$1, $$2}' Makefile

install: $(INSTALLED) ## Install into .venv

demo: $(INSTALLED) ## Run the stages that are out of date, then show the metrics
	@CSDN_SUMMARY=later $(BIN)/dvc repro
	@$(BIN)/csdn summary

prefect-demo: $(INSTALLED) ## Run the pipeline as a Prefect flow, on a temporary server, and show its page
	@$(BIN)/python -m flows.demo

test: lint docs ## Lint, the documentation site, and all tests
	@OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder

test-fast: $(INSTALLED) ## Tests that start no servers and no whole pipelines
	@OMP_NUM_THREADS=1 $(PYTEST) -n 2 -m "not slow"

test-gpu: $(INSTALLED) ## Tests that need a GPU; the others skip them without one
	@$(PYTEST) tests/gpu

lint: $(INSTALLED) ## Check style and format with ruff, types with mypy
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

docs: $(INSTALLED_DOCS) ## Build the documentation site, to be read from the disk: site/index.html
	@$(BIN)/mkdocs build --quiet
	@echo "site/index.html"

bench: $(INSTALLED) ## Measure the speed of ingest, loader, store, method, use and workers, on an idle machine
	@for name in ingest feed store speed rerank search export service scaling; do echo "== $$name"; $(BIN)/python "benchmarks/$$name.py" || exit 1; done

dist: $(INSTALLED) ## Build the wheel and the source archive: dist/
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --no-isolation

clean: ## Remove outputs of stages and tools; .venv, data, DVC's cache, metrics of RegDB and ablation stay
	rm -rf dist models evaluation report $(filter-out metrics/regdb metrics/ablation.json,$(wildcard metrics/*)) .state build site .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Installs again only after a change of pyproject.toml or constraints.txt.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Installing about 7 GB into .venv (once)"
	@$(PYTHON) -m venv .venv
	@$(INSTALL) --quiet -c constraints.txt -e '.[all,test]'
	@touch $@

$(INSTALLED_DOCS): $(INSTALLED)
	@$(INSTALL) --quiet -c constraints.txt -e '.[docs]'
	@touch $@
