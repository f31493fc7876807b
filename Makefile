# Development targets. `make` alone lists them; docs/development.md explains when to use which.
# A target that needs root ends with a message and exit code 2. Every target sets up the machine first (0.1 s if done).

SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
PYTHON := $(BIN)/python
PYTEST := $(PYTHON) -m pytest
# additional arguments for pytest, such as ARGS='-k bridge -x'
ARGS ?=
# CI runs a failed test of real programs a second time and shows the first failure (docs/development.md).
RERUNS := --reruns $(if $(CI),1,0)

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The tests need no registry: they make the base image on this machine.
image-test compose-test kubelet-test: export BASE_IMAGE ?= hotnic-base:local
# The kubectl of the lock file has precedence over the machine's.
kubelet-test plugins-test telemetry-test bench-interop bench-security: export PATH := $(CURDIR)/$(BIN):$(PATH)
# These targets run tests of the libvirt driver, so their set-up includes libvirt.
test test-busy test-integration: export LIBVIRT := 1

.PHONY: setup
setup: ## Install what is missing into .venv and .cache/tools (LIBVIRT=1 adds libvirt; no network if nothing is missing)
	@scripts/setup

.PHONY: demo
demo: ## Plug an interface into a real guest, in a lab of its own (root; KEEP=1 keeps it; OTLP=URL exports its traces)
	@scripts/as-root-tier demo
	@KEEP='$(KEEP)' OTLP='$(OTLP)' scripts/demo

.PHONY: test
test: setup ## Run all tests: unit, cluster (against the lab's API server), integration and e2e (root)
	@scripts/as-root-tier test
	@scripts/test/tiers unit cluster integration e2e

.PHONY: test-unit
test-unit: setup ## Run the tests that need neither root nor a network
	@scripts/test/tiers unit -- $(ARGS)

.PHONY: test-integration
test-integration: setup ## Run the tests against real NATS, namespaces, CNI plugins and guests (root)
	@scripts/as-root-tier test-integration
	@scripts/test/tiers integration -- $(ARGS)

.PHONY: test-e2e
test-e2e: setup ## Run the tests of the whole lab (root)
	@scripts/as-root-tier test-e2e
	@scripts/test/tiers e2e -- $(ARGS)

.PHONY: test-long
test-long: setup ## Run the complete tables, in the lab and on Kubernetes: generated examples, crash matrix, chaos, random operations (root, Go)
	@scripts/as-root-tier test-long
	@scripts/tools/interop-tools helm etcd kubernetes-1.36
	@HOTNIC_HYPOTHESIS_PROFILE=long scripts/test/tiers unit integration e2e kubernetes-1.36 -- --timeout 900 -o faulthandler_timeout=1800 $(ARGS)
	@$(MAKE) --no-print-directory fuzz SECONDS=60 ARGS=

.PHONY: fuzz
fuzz: setup ## Feed every decoder of data from outside with mutated inputs, each for SECONDS=… (10)
	@$(PYTHON) scripts/test/fuzz.py $(or $(SECONDS),10) $(ARGS)

.PHONY: test-busy
test-busy: setup ## Run all tests twice beside three endless loops, without second tries (root; before a landing)
	@scripts/as-root-tier test-busy
	@scripts/test/busy

.PHONY: test-cluster
test-cluster: setup ## Run the conformance suite against a real cluster: KUBECONFIG=...
	@test -n '$(KUBECONFIG)' || { echo 'make test-cluster needs a cluster. Run: make test-cluster KUBECONFIG=FILE' >&2; exit 2; }
	@HOTNIC_TEST_CLUSTER=1 KUBECONFIG='$(KUBECONFIG)' $(PYTEST) tests/cluster --timeout 600 $(ARGS)

.PHONY: bench
bench: setup ## Measure plugs and unplugs by hop, parallel plugs, and the memory of every role (root)
	@scripts/as-root-tier bench
	@$(PYTEST) tests/bench --ignore tests/bench/test_scale.py --ignore tests/bench/test_many_requests.py \
		--ignore tests/bench/test_security_cost.py -s --timeout 900 $(ARGS)

.PHONY: bench-scale
bench-scale: setup ## Measure what 100, 1,000 and 10,000 VMs cost, and 1,000 requests of 50 clients beside slow and oversized ones
	@$(PYTEST) tests/bench/test_scale.py tests/bench/test_many_requests.py -s --timeout 3600 $(ARGS)

.PHONY: bench-interop
bench-interop: setup ## Measure attachments to pods on a real kubelet and containerd 2, beside the plugin and a patch alone (root, Go)
	@scripts/as-root-tier bench-interop
	@scripts/tools/interop-tools helm etcd kubernetes-1.36 containerd
	@HOTNIC_TEST_KUBERNETES=1.36 $(PYTEST) tests/bench/test_annotation_to_status.py -s --timeout 900 $(ARGS)

.PHONY: bench-security
bench-security: setup ## Measure a plug with and without bus identities, and with and without admission policies, in turns (root, Go)
	@scripts/as-root-tier bench-security
	@scripts/tools/interop-tools helm etcd kubernetes-1.36
	@scripts/as-root-tier bench-security $(PYTEST) tests/bench/test_security_cost.py -s $(ARGS)

.PHONY: chart-test
chart-test: setup ## Render the Helm chart with the real helm and check it against two versions of Kubernetes (Go)
	@scripts/tools/interop-tools helm helm3 kubeconform
	@$(PYTEST) tests/interop/chart -n 2 --timeout 300 $(RERUNS) $(ARGS)

.PHONY: cluster-chart-test
cluster-chart-test: setup ## Install the Helm chart on a real Kubernetes control plane, and run api and controller there (root, Go)
	@scripts/as-root-tier cluster-chart-test
	@scripts/tools/interop-tools helm etcd kubernetes-1.30 kubernetes-1.36
	@scripts/as-root-tier cluster-chart-test $(PYTEST) tests/interop/cluster --timeout 600 $(RERUNS) $(ARGS)

.PHONY: admission-test
admission-test: setup ## Send the changes of every identity to Kubernetes 1.30 and 1.36 with the admission policies (root, Go)
	@scripts/as-root-tier admission-test
	@scripts/tools/interop-tools helm etcd kubernetes-1.30 kubernetes-1.36
	@scripts/as-root-tier admission-test $(PYTEST) tests/interop/admission --timeout 600 $(RERUNS) $(ARGS)

.PHONY: kubernetes-test
kubernetes-test: setup ## Run conformance and end-to-end tests on Kubernetes itself, 1.30 and 1.36, with RBAC (root, Go)
	@scripts/as-root-tier kubernetes-test
	@scripts/tools/interop-tools helm etcd kubernetes-1.30 kubernetes-1.36
	@scripts/test/tiers kubernetes-cluster kubernetes-1.30 kubernetes-1.36 -- $(ARGS)

.PHONY: kubelet-test
kubelet-test: image ## Run pods and the Helm chart on a real kubelet and containerd 2, and interrupt every process (root, Go)
	@scripts/as-root-tier kubelet-test
	@scripts/tools/interop-tools helm etcd kubernetes-1.36 containerd
	@scripts/with-docker-engine --if-needed docker save hotnic:dev --output .cache/hotnic-dev.tar
	@HOTNIC_TEST_KUBERNETES=1.36 scripts/as-root-tier kubelet-test $(PYTEST) tests/interop/kubelet \
		--timeout 1500 $(RERUNS) --durations=5 $(ARGS)

.PHONY: telemetry-test
telemetry-test: setup ## Check the metrics and traces of a lab with a real Prometheus and a real Jaeger (root, Go)
	@scripts/as-root-tier telemetry-test
	@scripts/tools/interop-tools prometheus jaeger helm etcd kubernetes-1.36
	@scripts/as-root-tier telemetry-test $(PYTEST) tests/interop/prometheus tests/interop/jaeger \
		--timeout 300 $(RERUNS) --durations=5 $(ARGS)

.PHONY: plugins-test
plugins-test: setup ## Run the CNI and IPAM plugins of two releases under multus, whereabouts on Kubernetes itself (root, Go)
	@scripts/as-root-tier plugins-test
	@scripts/tools/interop-tools cni-plugins whereabouts helm etcd kubernetes-1.36
	@scripts/as-root-tier plugins-test $(PYTEST) tests/interop/plugins --timeout 300 $(RERUNS) --durations=5 $(ARGS)

.PHONY: chart-golden
chart-golden: setup ## Write the chart's schema of values and its rendered golden files
	@scripts/tools/interop-tools helm helm3 kubeconform
	@$(PYTHON) scripts/generate/chart_schema.py
	@HOTNIC_WRITE_GOLDEN=1 $(PYTEST) tests/interop/chart/test_rendering.py -k golden_file --timeout 300 $(ARGS)

.PHONY: fmt
fmt: setup ## Format the code and sort its imports
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

.PHONY: lint
lint: setup ## Check style, types, layers, spelling, locks, known vulnerabilities, generated files and the wheels
	@scripts/lint

.PHONY: schemas
schemas: setup ## Write the JSON Schemas and the AsyncAPI document of the events
	@$(PYTHON) -m schemas.generate

.PHONY: proto
proto: setup ## Write the CRI stubs from their trimmed proto file
	@$(PYTHON) scripts/generate/proto

.PHONY: shim-static
shim-static: setup ## Build the multus shim as one executable for hosts without Python
	@scripts/image/shim

.PHONY: image
image: setup ## Build the images hotnic:dev and hotnic-lab:dev (BASE_IMAGE=hotnic-base:local where no registry can be reached)
	@scripts/with-docker-engine --if-needed scripts/image/build

.PHONY: image-test
image-test: image ## Test the images: users, contents, size, start of every role, the shim on a node without Python
	@scripts/with-docker-engine --if-needed $(PYTEST) tests/interop/image --timeout 180 $(RERUNS) $(ARGS)

.PHONY: compose-test
compose-test: setup ## Test docker-compose.yml on a Docker engine of its own: plug, trace, restarts, removal (root, Go)
	@scripts/test/compose $(RERUNS) $(ARGS)

.PHONY: image-pin
image-pin: setup ## Write the digests of the base images into the Dockerfile (needs a registry)
	@scripts/with-docker-engine --if-needed scripts/image/pin

.PHONY: interop-tools
interop-tools: ## Build the Go programs of the interop tests that are missing (needs Go; TOOLS='compose jaeger': only these)
	@scripts/tools/interop-tools $(TOOLS)

.PHONY: lock
lock: setup ## Resolve the dependencies of pyproject.toml into the lock files
	@scripts/generate/lock

.PHONY: clean
clean: ## Remove caches and build results, but not .venv and the tools
	@rm -rf dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find schemas services lab tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
