# Needs Python >= 3.11 and make, nothing else: every target sets up what it needs in .venv first.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
ARGS ?=
APP_DIR ?=
NODES ?=
POSTGRES ?=
GATEWAY ?=
# A file stays in one process, for its tests share servers. More processes than cores, for they wait half of
# the time; in the order of the folders, which ends with the unit tests: many small files leave no core idle.
SHARED_OUT := -n 6 --dist loadfile --no-loadscope-reorder
SETUP := @PYTHON='$(PYTHON)' sh .ci/venv

# What is compiled is kept (make clean removes it): tests start programs a hundred times.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help up test test-all lint format proto docs pictures bench chaos model clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile
	@echo '  ARGS="..." is handed on to what the target runs; PYTHON=... chooses the Python of .venv when it is made: make clean first.'

up: $(VENV)/.ready-$(if $(POSTGRES),postgres,demo) $(if $(GATEWAY),$(VENV)/.ready-gateway) ## Run the control plane, a node and two demo apps on this machine; APP_DIR=path adds your code, NODES=3 runs three nodes, POSTGRES=1 a PostgreSQL, GATEWAY=1 a gateway
	@$(PY) -m compose.local $(if $(APP_DIR),--app-dir '$(APP_DIR)') $(if $(NODES),--nodes '$(NODES)') $(if $(POSTGRES),--postgres) $(if $(GATEWAY),--gateway) $(ARGS)

test: $(VENV)/.ready-tests ## Run the tests that take a few minutes in all
	@$(PY) -m pytest -m "not slow" $(SHARED_OUT) $(ARGS)

test-all: $(VENV)/.ready-tests ## Run every test, the slow ones too
	@$(PY) -m pytest $(SHARED_OUT) $(ARGS)

lint: $(VENV)/.ready-dev ## Check format, style, types, dependency rules and generated code
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" sh .ci/lint

format: $(VENV)/.ready-dev ## Format the code and apply the safe fixes
	@$(PY) -m ruff check --fix --quiet . ; $(PY) -m ruff format .

proto: $(VENV)/.ready-dev ## Generate gen/ and docs/reference/ from protos/
	@$(PY) protos/generate.py

docs: $(VENV)/.ready-dev ## Build the pages of docs/ into .cache/site
	@$(PY) -m services.cli.reference
	@$(PY) -m mkdocs build --quiet --strict --config-file .ci/mkdocs.yml

pictures: $(VENV)/.ready-dev ## Record the pictures of docs/pictures from a running stack
	@$(PY) .ci/pictures.py

model: $(VENV)/.ready-dev ## Play 100,000 schedules of leases and failover in virtual time
	@$(PY) -m pytest tests/model -m model -n 2 --dist load $(ARGS)

bench: $(VENV)/.ready-dev ## Measure against bare servers in one run; prints a table with ratios
	@$(PY) -m tests.bench $(ARGS)

chaos: $(VENV)/.ready-dev ## Kill processes at random moments and check the promises
	@CHAOS_ROUNDS=$${CHAOS_ROUNDS:-4} $(PY) -m pytest -m "chaos or hypothesis" $(ARGS)

clean: ## Remove .venv, caches and build products; data/ stays
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist build *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(VENV)/.ready-demo: pyproject.toml constraints.txt
	$(SETUP) demo

$(VENV)/.ready-postgres: pyproject.toml constraints.txt
	$(SETUP) postgres

$(VENV)/.ready-gateway: pyproject.toml constraints.txt
	$(SETUP) gateway

$(VENV)/.ready-dev: pyproject.toml constraints.txt
	$(SETUP) dev

# Each process of the tests collects all of them: in a fresh clone each would compile them all, at the same time.
$(VENV)/.ready-tests: $(VENV)/.ready-dev
	@for part in tests/unit 'tests --ignore=tests/unit'; do \
		$(PY) -m pytest --collect-only -qq $$part >/dev/null 2>&1 & \
	done; wait; touch $@
