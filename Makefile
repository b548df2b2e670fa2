# `make` alone lists the targets. All of them work on a clean clone; what takes
# long is built once into ${XDG_CACHE_HOME:-~/.cache}/rollout-guard.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# What make builds with cargo goes where another clone finds it again, unless
# CARGO_TARGET_DIR says otherwise. (`=`: asked for only by the targets that use it.)
ifeq ($(origin CARGO_TARGET_DIR),undefined)
CARGO = CARGO_TARGET_DIR=$$(tests/kind/cargo-target.sh) cargo
else
CARGO = cargo
endif

##@ To try it
.PHONY: demo cluster cluster-down image

demo: ## Install the guard into a kind cluster and watch it stop a bad rollout
	tests/demo.sh

cluster: ## Make the kind cluster `rollout-guard` (kubeconfig: target/kind/kubeconfig)
	tests/kind/cluster.sh up rollout-guard
	@echo 'Use it:  eval "$$(tests/kind/cluster.sh env)"'

cluster-down: ## Delete our kind clusters, that of the tests too
	tests/kind/cluster.sh down rollout-guard
	for name in rollout-guard-test{,-2}; do tests/kind/cluster.sh down $$name; done

image: ## Build the images and load them into our clusters that are up (IMAGE_TAG=dev)
	tests/kind/image.sh all -

##@ To check it
.PHONY: test lint fmt clippy deny unit e2e bench

test: ## Everything that CI runs: lint, unit, e2e
	tests/kind/stages.sh fmt clippy deny unit e2e

lint: fmt clippy deny ## Formatting, clippy, dependencies (cargo deny)

fmt:
	cargo fmt --all --check

clippy:
	$(CARGO) clippy --all-targets --locked -- -D warnings

deny:
	tests/kind/deny.sh

unit: ## All tests that need no cluster (Helm and promtool, for the chart and the alerts, are got where there are none)
	tests/kind/tools.sh helm
	tests/kind/prometheus.sh > /dev/null
	eval "$$(tests/kind/tools.sh --path)"; unset KUBECONFIG; $(CARGO) test --locked

e2e: ## The tests in a real cluster, made for them (KEEP=1: do not delete it; ARGS: for the test binary)
	tests/kind/e2e.sh $(ARGS)

bench: ## The benchmarks, with what they are compared with where there is Go to build it
	export KUBE_STATE_METRICS=$$(tests/kind/kube-state-metrics.sh) CONTROLLER_RUNTIME=$$(benches/peers/build.sh); \
	  $(CARGO) bench --locked

##@ To change it
.PHONY: manifests krew help

manifests: ## Render charts/ and src/api/ into manifests/
	tests/kind/tools.sh helm
	eval "$$(tests/kind/tools.sh --path)"; UPDATE_MANIFESTS=1 $(CARGO) test --locked --test manifests

krew: ## An archive of this commit for kubectl's plugin manager, and its manifest (target/krew)
	krew/archive.sh target/krew
	krew/render.sh $$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1) target/krew > target/krew/rollout-guard.yaml

help: ## This list
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
