# Everything is done inside the repository: tools in .tools, packages in .venv. Works as root and as anybody else.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
.PHONY: help demo test test-fast check bench docs format clean setup needs

# Interpreters come from the system: 3.11 to 3.13, as pyproject.toml says.
# The system's certificates, so that a proxy of the company does not stop the set-up.
export UV_SYSTEM_CERTS := true
export UV_PYTHON_DOWNLOADS := never
export UV_PYTHON_PREFERENCE := only-system
export UV_PROJECT_ENVIRONMENT := $(CURDIR)/.venv
# Hundreds of starts follow one install: compiled once, also where Python may write no caches of its own.
export UV_COMPILE_BYTECODE := 1
export DO_NOT_TRACK := 1
# Another active environment must not leak in.
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH

# Without a home that can be written, caches stay in the repository.
ifneq ($(shell test -n "$$HOME" && test -d "$$HOME" && test -w "$$HOME" && echo yes),yes)
export HOME := $(CURDIR)/.tools/home
export UV_CACHE_DIR := $(CURDIR)/.tools/cache
endif

STAMP := .venv/.synced
BIN := .venv/bin
# As root everything runs; others leave out what only root can do, and are told so.
ROOT := $(shell test "$$(id -u)" = 0 && echo yes)
MARKS := $(if $(ROOT),,not root)
WORKERS ?= 2
ARGS ?=

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## bring uv if it is missing, and all packages as uv.lock has them

$(STAMP): pyproject.toml uv.lock
	@mkdir -p .tools/home
	@uv="$$(.ci/uv)"; echo 'installing packages into .venv (about 1 GB, once)'; "$$uv" sync --quiet --frozen --all-extras
	@touch $@

needs:
	@.ci/needs

demo: $(STAMP) ## a shop from nothing to a page, then five injuries, and what becomes of them
	@$(BIN)/millrace demo

test: $(STAMP) needs ## all tests; ARGS="-k name" for some
	@$(if $(ROOT),,echo 'not run: tests marked root: sudo make test';)
	@$(BIN)/pytest -n $(WORKERS) --dist worksteal -m "$(MARKS)" $(ARGS)

test-fast: $(STAMP) ## tests that need no server and take no time
	@$(BIN)/pytest -q -n $(WORKERS) --dist worksteal -m "not slow and not servers and not root" $(ARGS)

check: $(STAMP) ## format, lint, types and the layers of the house
	@failed=; for tool in 'ruff format --check' 'ruff check' mypy 'lint-imports --no-logo'; do \
	  echo "$$tool"; $(BIN)/$$tool || failed="$$failed, $$tool"; \
	done; [ -z "$$failed" ] || { echo "failed: $${failed#, } (make format mends what can be mended)"; exit 1; }

format: $(STAMP) ## format the code and mend what ruff can mend
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

docs: $(STAMP) ## write the reference pages that are made from the code
	@$(BIN)/python tests/test_docs.py

bench: $(STAMP) ## measure against the limits and the peers; see benchmarks/README.md
	@benchmarks/run

clean: ## remove what make brought and made
	@rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist demo
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
