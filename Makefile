# Everything a contributor runs: setup, build, demo, test, check. The first three targets need no
# answer from a person; each of the others runs them by itself.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export PATH := $(if $(CARGO_HOME),$(CARGO_HOME),$(HOME)/.cargo)/bin:/usr/lib/llvm-22/bin:$(PATH):/usr/sbin:/sbin

# Namespaces and BPF need root; the build does not.
as_root := $(if $(filter 0,$(shell id -u)),,--config 'target."cfg(unix)".runner=["sudo","-E"]')
deny_version := 0.20.2

.PHONY: help
help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-8s %s\n", $$1, $$2 }' Makefile

.PHONY: setup
setup: ## Installs what is missing (Debian or Ubuntu with Rust)
	@.ci/setup

.PHONY: build
build: setup ## Builds everything, the eBPF program included
	@cargo build --workspace

.PHONY: demo
demo: setup ## Builds a small town in network namespaces and tells its story (KEEP=1 leaves it standing)
	@cargo build -p namegate -p namegate-integration --bins
	@cargo run --quiet -p namegate-integration --bin demo $(as_root)

.PHONY: test
test: build ## Runs every test, as root
	cargo test --workspace $(as_root)

.PHONY: check
check: setup ## Runs formatting, lints, docs, dependency policy and the chart's lint
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	$(MAKE) --no-print-directory clippy-bpf doc deny chart

.PHONY: doc
doc:
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --document-private-items

.PHONY: deny
deny:
	@[[ "$$(cargo deny --version 2>/dev/null)" == "cargo-deny $(deny_version)" ]] || \
	  { echo 'check: building cargo-deny $(deny_version)'; \
	    env -u CARGO_TARGET_DIR cargo install --locked --quiet cargo-deny --version $(deny_version); }
	cargo deny check bans licenses sources
	@if cargo deny fetch db >/dev/null 2>&1; then cargo deny check advisories; \
	  else echo 'check: the advisory database cannot be reached; advisories were not looked at'; fi
