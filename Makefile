# What a developer and CI run. `make` alone lists the targets; each of them sets up .venv first if need be.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The interpreter that .venv is made with (3.10 or newer).
PYTHON ?= python3
# More arguments for pytest, for example: make test PYTEST_ARGS="-k takeover -x".
PYTEST_ARGS ?=
# More arguments for nox, for example: make compat NOX_ARGS="--no-stop-on-first-error".
NOX_ARGS ?=
# No test starts after this many seconds of a run; a single test has its own limit in pyproject.toml.
TEST_SECONDS ?= 900
FAULTS_SECONDS ?= 3600

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PINS := requirements/test.txt
SOURCES := $(wildcard celery_highlander tests example_project benchmarks scripts docs/conf.py docs/_ext docs/tutorial noxfile.py)

.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: venv
venv: $(STAMP) ## Make .venv with the pinned tools and the project itself (editable)

$(STAMP): $(PINS) pyproject.toml
	@if [ ! -x $(BIN)/python ] || ! $(BIN)/python -m pip --version > /dev/null 2>&1; then \
	    command -v "$(PYTHON)" > /dev/null || { \
	        echo "error: no '$(PYTHON)' on PATH. Install Python 3.10 or newer, or name one: make venv PYTHON=/path/to/python3" >&2; exit 1; }; \
	    "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	        echo "error: $(PYTHON) is $$("$(PYTHON)" --version 2>&1), celery-highlander needs Python 3.10 or newer. Name one: make venv PYTHON=/path/to/python3" >&2; exit 1; }; \
	    "$(PYTHON)" -c 'import venv, ensurepip' 2> /dev/null || { \
	        echo "error: $(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }; \
	    "$(PYTHON)" -m venv --clear $(VENV); \
	fi
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "error: $(VENV) was made with $$($(BIN)/python --version), celery-highlander needs Python 3.10 or newer. Run: make clean venv PYTHON=/path/to/python3" >&2; exit 1; }
	$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r $(PINS)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: demo
demo: $(STAMP) ## Run the demonstration: workers, a leader that is killed, and a takeover
	$(BIN)/python -m example_project.demo

.PHONY: test
test: $(STAMP) ## Run the test suite, without what is marked slow (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest tests/unit tests/planted -n 2 --dist worksteal --session-timeout=$(TEST_SECONDS) $(PYTEST_ARGS)
	$(BIN)/python -m pytest tests/contract tests/integration tests/docs tests/acceptance tests/faults -n 2 --dist worksteal \
	    --session-timeout=$(TEST_SECONDS) $(PYTEST_ARGS)

.PHONY: test-quick
test-quick: $(STAMP) ## Run the unit tests only
	$(BIN)/python -m pytest tests/unit $(PYTEST_ARGS)

.PHONY: faults
faults: $(STAMP) ## Run every fault, the long ones too; report in reports/faults.xml and reports/faults.txt
	@mkdir -p reports
	$(BIN)/python -m pytest tests/faults tests/planted -m "" -v -rA --durations=0 --session-timeout=$(FAULTS_SECONDS) \
	    --junitxml=reports/faults.xml $(PYTEST_ARGS) 2>&1 | tee reports/faults.txt

.PHONY: compat
compat: $(STAMP) ## Run the suite over versions of Python, Celery, SQLAlchemy, drivers and PostgreSQL (see noxfile.py)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nox --tags compat $(NOX_ARGS)

.PHONY: bench
bench: $(STAMP) ## Measure takeover times and overheads
	$(BIN)/python -m benchmarks

.PHONY: docs
docs: $(STAMP) ## Build the documentation into docs/_build/html; a warning is an error
	$(BIN)/python docs/_ext/states.py
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

.PHONY: lint
lint: $(STAMP) lint-sources ## Check style, types, import rules, and that no file names a package index
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports
	@$(BIN)/python -c 'import sys, celery_highlander.keeper, celery_highlander.store; loaded = {"celery", "kombu", "billiard"} & set(sys.modules); sys.exit(f"error: importing the keeper and the store loads {sorted(loaded)}; celery_highlander/__init__.py has to stay lazy" if loaded else 0)'

# The same files must install from whichever index a machine is set up with, so none may be named. The patterns are
# written so that they do not find themselves.
.PHONY: lint-sources
lint-sources:
	@if grep -nEi 'https?[:]|[a-z]+[:]//|^ *(-i|-f|--(extra-)?index-url|--find-links|--trusted-host)\b' requirements/*.txt; then \
	    echo "error: requirements/ must name no host and no index; re-create it with 'make pins'" >&2; exit 1; \
	fi
	@set +e; \
	git grep --no-index --exclude-standard -nIEi '(pypi|pythonhosted|npmjs|debian|ubuntu)[.](org|com)|index[-_]url[ ]*[=:]|\[\[tool[.]uv[.]index' -- . ; \
	case $$? in \
	    0) echo "error: the lines above name a package registry or an index" >&2; exit 1 ;; \
	    1) exit 0 ;; \
	    *) echo "error: git grep failed; the check needs git" >&2; exit 1 ;; \
	esac

.PHONY: pins
pins: $(STAMP) ## Re-create requirements/test.txt from pyproject.toml (newest versions that fit)
	{ echo "# Made by 'make pins' from pyproject.toml, for Python 3.10 and newer. Do not edit."; \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --upgrade --generate-hashes --no-header --no-emit-index-url \
	      --no-emit-find-links --no-emit-package celery-highlander --all-extras --group dev pyproject.toml; } > $(PINS).new
	mv $(PINS).new $(PINS)

.PHONY: clean
clean: ## Remove .venv, caches, builds and reports
	rm -rf $(VENV) build dist docs/_build reports .hypothesis .import_linter_cache .mypy_cache .nox .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
