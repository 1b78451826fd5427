# Everything a contributor runs. `demo`, `test` and `check` run `setup` by themselves; no target asks
# a person anything.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export PATH := $(if $(CARGO_HOME),$(CARGO_HOME),$(HOME)/.cargo)/bin:/usr/lib/llvm-22/bin:$(PATH):/usr/sbin:/sbin

# Namespaces and BPF need root; the build does not.
as_root := $(if $(filter 0,$(shell id -u)),,--config 'target."cfg(unix)".runner=["sudo","-E"]')
sudo := $(if $(filter 0,$(shell id -u)),,sudo -E)
deny_version := 0.20.2
fuzz_version := 0.13.1
target := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)

.PHONY: help
help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' Makefile

.PHONY: setup
setup: ## Installs what is missing (Debian 12 with Rust)
	@.ci/setup

.PHONY: build
build: setup ## Builds everything, the eBPF program included
	@cargo build --workspace

.PHONY: demo
demo: setup ## Builds a small town in network namespaces and tells its story (KEEP=1 leaves it standing)
	@cargo build --workspace
	@$(sudo) $(target)/debug/demo

.PHONY: demo-clean
demo-clean: ## Removes a town that KEEP=1 left standing
	@cargo build --quiet --workspace
	@$(sudo) $(target)/debug/demo clean

.PHONY: test
test: build ## Runs every test, as root, and renders the chart
	cargo test --workspace $(as_root)
	.ci/chart

.PHONY: nightly
nightly: build ## Holds the three engines against each other over a million random flows, judges five million damaged frames, floods memory with ten million names and flows with two million openings, and revokes ten thousand flows, as root
	NAMEGATE_FLOOD_NAMES=10000000 cargo test --release -p namegate-policy --test learned_flood -- --nocapture
	NAMEGATE_DAMAGED_FRAMES=5000000 cargo test -p namegate-integration --test verdict $(as_root) -- --nocapture damaged
	NAMEGATE_REVOKED_FLOWS=10000 cargo test -p namegate-integration --test revocation $(as_root) -- --nocapture removed_rule
	NAMEGATE_SYNS=2000000 NAMEGATE_VICTIMS=10000 cargo test -p namegate-integration --test verdict $(as_root) -- --nocapture flood
	NAMEGATE_NIGHTLY=1 cargo test -p namegate-integration --test engines $(as_root) -- --nocapture

.PHONY: test-restart
test-restart: build ## Kills 200 agents under load, each followed by another build, and takes over between versions 20 times, as root
	cargo build --release -p namegate
	NAMEGATE_OTHER_BIN=$(abspath $(target))/release/namegate \
	NAMEGATE_RESTARTS=200 NAMEGATE_UPGRADES=20 NAMEGATE_LIVE_FLOWS=1000 NAMEGATE_DENIED_RATE=20000 \
	  cargo test -p namegate-integration --test restart $(as_root) -- --nocapture

.PHONY: test-kernels
test-kernels: setup ## Runs what a kernel can fail on this one, attached by tcx and by clsact, and on Debian's 6.1 in a virtual machine, as root
	@.ci/kernels

.PHONY: screenshots
screenshots: build ## Takes the pictures of the service map for the docs, as root
	NAMEGATE_SCREENSHOTS=$(abspath docs/images) cargo test -p namegate-integration --test map $(as_root) -- page

.PHONY: burst
burst: build ## Starts 500 pods through a real CNI, 50 at once, and counts their early packets, as root
	NAMEGATE_BURST=$(or $(NAMEGATE_BURST),500) cargo test -p namegate-integration --test cni $(as_root) -- --nocapture burst

.PHONY: fuzz
fuzz: ## Runs each fuzz target for a minute (SECONDS_EACH=600, ARGS='gate answer'); what breaks one stays in fuzz/artifacts
	@command -v c++ >/dev/null || .ci/setup g++
	@[[ "$$(cargo fuzz --version 2>/dev/null)" == "cargo-fuzz $(fuzz_version)" ]] || \
	  { echo 'fuzz: building cargo-fuzz $(fuzz_version)'; \
	    env -u CARGO_TARGET_DIR cargo install --locked --quiet cargo-fuzz --version $(fuzz_version); }
	@.ci/fuzz $(or $(SECONDS_EACH),60) $(ARGS)

.PHONY: bench-scale
bench-scale: setup ## Shows one agent 100,000 pods in 5,000 namespaces, as root
	@cargo build --release -p namegate
	NAMEGATE_BIN=$(abspath $(target))/release/namegate \
	  NAMEGATE_SCALE_PODS=100000 NAMEGATE_SCALE_NAMESPACES=5000 NAMEGATE_SCALE_CHANGES=2000 \
	  cargo test -p namegate-integration --test scale $(as_root) -- --nocapture

.PHONY: bench-policy
bench-policy: ## Measures matching of names, compiling of tables and deadlines that pass (ARGS='--json', ARGS='--only patterns')
	cargo bench --package namegate-policy --bench policy -- $(ARGS)

.PHONY: bench-dns
bench-dns: setup ## Measures lookups beside a bare forwarder and other name servers, as root (ARGS="--only fair,memory --json")
	@cargo build --release -p namegate
	@NAMEGATE_BIN=$(abspath $(target))/release/namegate \
	  cargo bench --quiet -p namegate-dns-proxy --bench dns $(as_root) -- $(ARGS)

.PHONY: bench-audit
bench-audit: setup ## Measures what records of decisions cost at 5,000 lookups and 20,000 new flows a second, as root
	@cargo build --release -p namegate
	@NAMEGATE_BIN=$(abspath $(target))/release/namegate \
	  cargo bench --quiet --profile dev -p namegate-integration --bench audit $(as_root)

.PHONY: bench-changes
bench-changes: setup ## Measures a policy of 1,000 patterns and prefixes that changes for 100 pods, as root
	@cargo build --release -p namegate
	@NAMEGATE_BIN=$(abspath $(target))/release/namegate \
	  cargo bench --quiet --profile dev -p namegate-integration --bench changes $(as_root)

.PHONY: bench-path
bench-path: setup ## Measures packets and verdicts beside other firewalls, as root (ARGS='--only verdict', ARGS=--json)
	@command -v ipset >/dev/null || .ci/setup ipset
	@cargo bench --quiet -p namegate-egress-bpf --bench path $(as_root) -- $(ARGS)

.PHONY: check
check: setup fmt clippy clippy-bpf doc deny chart alerts ## Runs formatting, lints, docs, dependency policy, and what looks at the chart

.PHONY: fmt clippy clippy-bpf doc deny chart alerts
fmt:
	cargo fmt --all --check

clippy:
	cargo clippy --workspace --all-targets -- -D warnings

# The kernel program is checked by the clippy of the compiler that builds it.
clippy-bpf:
	@[[ -x /usr/bin/clippy-driver ]] || .ci/setup rust-web-clippy
	RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=aya_ebpf /usr/bin/cargo-clippy clippy --target-dir $(target)/clippy-bpf \
	  -p namegate-egress-bpf --bin namegate-egress --no-default-features --target bpfel-unknown-none -- -D warnings

doc:
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' cargo doc --workspace --no-deps --document-private-items

deny:
	@[[ "$$(cargo deny --version 2>/dev/null)" == "cargo-deny $(deny_version)" ]] || \
	  { echo 'check: building cargo-deny $(deny_version)'; \
	    env -u CARGO_TARGET_DIR cargo install --locked --quiet cargo-deny --version $(deny_version); }
	cargo deny check bans licenses sources
	@if cargo deny fetch db >/dev/null 2>&1; then cargo deny check advisories; \
	  else echo 'check: the advisory database cannot be reached; advisories were not looked at'; fi

chart:
	.ci/chart

alerts:
	.ci/alerts
