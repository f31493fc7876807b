# Development targets. `make` alone lists them; docs/development.md explains when to use which.
# A target that needs root ends with a message and exit code 2. Every target sets up the machine first (0.1 s if done).

SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
PYTHON := $(BIN)/python
PYTEST := $(PYTHON) -m pytest
# additional arguments for pytest, such as ARGS='-k bridge -x'
ARGS ?=

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# These targets run tests of the libvirt driver, so their set-up includes libvirt.
test test-busy test-integration: export LIBVIRT := 1

.PHONY: setup
setup: ## Install what is missing into .venv and .cache/tools (LIBVIRT=1 adds libvirt; no network if nothing is missing)
	@scripts/setup

.PHONY: demo
demo: ## Plug an interface into a real guest, in a lab of its own (root; KEEP=1 leaves the lab running)
	@scripts/as-root-tier demo
	@KEEP='$(KEEP)' scripts/demo

.PHONY: test
test: setup ## Run all tests: unit, cluster (against the lab's API server), integration and e2e (root)
	@scripts/as-root-tier test
	@scripts/run-tiers unit cluster integration e2e

.PHONY: test-unit
test-unit: setup ## Run the tests that need neither root nor a network
	@scripts/run-tiers unit -- $(ARGS)

.PHONY: test-integration
test-integration: setup ## Run the tests against real NATS, namespaces, CNI plugins and guests (root)
	@scripts/as-root-tier test-integration
	@scripts/run-tiers integration -- $(ARGS)

.PHONY: test-e2e
test-e2e: setup ## Run the tests of the whole lab (root)
	@scripts/as-root-tier test-e2e
	@scripts/run-tiers e2e -- $(ARGS)

.PHONY: test-long
test-long: setup ## Run the complete tables: generated examples, crash matrix, chaos, random operations with real guests (root)
	@scripts/as-root-tier test-long
	@HOTNIC_HYPOTHESIS_PROFILE=long scripts/run-tiers unit e2e -- --timeout 900 -o faulthandler_timeout=1800 $(ARGS)

.PHONY: test-busy
test-busy: setup ## Run all tests twice beside three endless loops, without second tries (root; before a landing)
	@scripts/as-root-tier test-busy
	@scripts/test-busy

.PHONY: test-cluster
test-cluster: setup ## Run the conformance suite against a real cluster: KUBECONFIG=...
	@test -n '$(KUBECONFIG)' || { echo 'make test-cluster needs a cluster. Run: make test-cluster KUBECONFIG=FILE' >&2; exit 2; }
	@HOTNIC_TEST_CLUSTER=1 KUBECONFIG='$(KUBECONFIG)' $(PYTEST) tests/cluster --timeout 300 $(ARGS)

.PHONY: bench
bench: setup ## Measure plugs and unplugs by hop, parallel plugs, and the memory of every role (root)
	@scripts/as-root-tier bench
	@$(PYTEST) tests/bench -s --timeout 900 $(ARGS)

.PHONY: fmt
fmt: setup ## Format the code and sort its imports
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

.PHONY: lint
lint: setup ## Check style, types, layers, spelling, generated files and the wheels
	@scripts/lint

.PHONY: schemas
schemas: setup ## Write the JSON Schemas and the AsyncAPI document of the events
	@$(PYTHON) -m schemas.generate

.PHONY: proto
proto: setup ## Write the CRI stubs from their trimmed proto file
	@$(PYTHON) scripts/proto

.PHONY: shim-static
shim-static: setup ## Build the multus shim as one executable for hosts without Python
	@scripts/shim-static

.PHONY: lock
lock: setup ## Resolve the dependencies of pyproject.toml into the lock files
	@scripts/lock

.PHONY: clean
clean: ## Remove caches and build results, but not .venv and the tools
	@rm -rf dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find schemas services lab tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
