# The commands of this project. `make demo` and `make test` install what they need.
SHELL := /bin/bash
export PATH := $(PATH):$(CURDIR)/.tools/bin
RUN := uv run --no-sync
# Two tests at a time: they wait for servers more than they compute. More would need more memory.
TWO := -n 2 --dist
CLICKS ?=
# Not ?=: shells read a variable of this name too, for another purpose.
ENV = embedded

.PHONY: help setup demo ui test test-fresh test-integration test-faults test-cluster e2e lint lint-deploy format bench-gate bench-features bench-inference bench-recovery
help: ## this list
	@grep -hE '^[a-z0-9%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

setup: ## install uv, a Python, the locked packages and Java, where missing
	@deploy/setup.sh

demo: setup ## 4 days through the whole graph; CLICKS=folder-or-file for real clicks, ENV=real on S3 and Postgres
	@$(RUN) mlops-assets demo --environment $(ENV) $(if $(CLICKS),--clicks "$(CLICKS)")

ui: setup ## Dagster's UI on the demo's instance
	@$(RUN) mlops-assets ui --environment $(ENV)

test: lint ## lint, types, layers, and the everyday tests
	$(RUN) pytest -m "not integration and not faults and not cluster" -rs $(TWO) loadfile

test-integration: setup ## on real servers, started here: Kafka, S3, Postgres, MLflow; what can't be had is skipped
	$(RUN) pytest -m "integration and not faults" -rs $(TWO) worksteal

e2e: setup ## from promoted model to running pods on the Kubernetes of KUBECONFIG, with load on
	@$(RUN) python -m benchmarks.e2e $(ARGS)

test-cluster: setup ## rolls that go wrong and Spark's clusters, on the Kubernetes of KUBECONFIG; ARGS for pytest
	$(RUN) pytest -m cluster -rs $(ARGS)

test-fresh: ## `make demo` and `make test` on a bare Debian 12 and 13 in a folder; as root, with debootstrap; ARGS for suites
	@deploy/test-fresh.sh $(ARGS)

test-faults: setup ## the long fault tests on a real Kafka
	$(RUN) pytest -m faults

lint: setup ## ruff, mypy and the import contracts
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) lint-imports --no-logo

lint-deploy: setup ## zizmor, actionlint, hadolint and checkov, pinned, for the workflow, the Dockerfile and the manifests
	@deploy/lint.sh

format: setup ## rewrite the sources as ruff wants them
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

bench-gate: setup ## false promotions and power of the gate
	@$(RUN) python -m benchmarks.gate $(ARGS)

bench-features: setup ## the Spark features against the original's and Polars
	@$(RUN) python -m benchmarks.features $(ARGS)

bench-inference: setup ## the service against the original's loop and an echo
	@$(RUN) python -m benchmarks.inference $(ARGS)

bench-recovery: setup ## how long nobody answers after a kill or a rebalance, late in the day, with and without snapshots
	@$(RUN) python -m benchmarks.recovery $(ARGS)
