# The one list of commands; the README and .ci/run call it. Each installs what it needs (tools/setup.sh says what).

SHELL := /bin/sh
export CARGO_TERM_COLOR ?= auto
export PATH := $(PATH):$(HOME)/.cargo/bin
BIN = $${CARGO_TARGET_DIR:-target}/release

.PHONY: help build demo demo-stop run test soak fuzz bench bench-many bench-agent bench-proxy lint setup image

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup: ## install what building, running and testing need (Debian packages by name, cargo-deny)
	@tools/setup.sh test

build: ## release build: target/release/calico-node, calicoctl and calico-runtime
	@tools/setup.sh run
	cargo build --release --locked --bins

demo: ## show the main job on this machine's own dockerd, end to end; exit 0 only if all was seen to be true
	@tools/demo.sh start

demo-stop: ## undo all that `make demo` did
	@tools/demo.sh stop

run: build ## a node in the foreground, for use by hand; options: make run ARGS="--log-level debug"
	@exec $(BIN)/calico-node $(ARGS)

lint: ## formatting, clippy, documentation, licences and sources of dependencies, shell scripts
	@tools/setup.sh test
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --document-private-items
	cargo deny --locked check bans licenses sources
	shellcheck .ci/run tools/*.sh compose/*.sh

test: lint ## everything: lints, unit tests, then the tests from outside on real dockerd, etcd, BIRD and kernel
	cargo test --locked --lib --bins
	@tools/fuzz.sh 20
	cargo test --locked --test proxy -- --test-threads=3

soak: ## the life of containers at full counts, an hour long; prints tables for docs/benchmarks.md; a part: make soak ARGS=leaks::
	@tools/setup.sh test
	@tools/soak.sh $(ARGS)

fuzz: ## fuzz heads, framing, bodies and calls; longer than make test does: make fuzz ARGS=600 (seconds for each target)
	@tools/setup.sh test
	@tools/fuzz.sh $(or $(ARGS),300)

bench: ## what a container's life costs, measured interleaved in one run; prints tables for docs/benchmarks.md
	@tools/setup.sh run
	@tools/bench.sh start $(ARGS)

bench-many: ## what the life of one container costs beside thousands of others
	@tools/setup.sh run
	@tools/bench.sh many $(ARGS)

bench-agent: ## what the agent and its rules cost, beside the same calls by hand; a part: make bench-agent ARGS="--only add --sizes 10,1000 --n 50"
	@tools/setup.sh run
	@tools/bench.sh agent $(ARGS)

bench-proxy: ## what the proxy costs beside HAProxy, nginx and a bare copy of bytes
	@tools/setup.sh bench
	@tools/bench.sh proxy $(ARGS)

image: build ## the container image calico-node (needs the image debian:12)
	docker build --target node -t calico-node .
