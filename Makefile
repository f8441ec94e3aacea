# make run    build and serve the demo model; further settings: make run ARGS="--model NAME=PATH"
# make test   everything that CI runs
# make bench  criterion benches of the token path
# make engine-bench   our engine beside llama-server and the bare decode loop (loadtests/engine/README.md)
# make bench-compare BASE=main    this tree beside another revision: fails where it is worse (loadtests/README.md)
# make lint   formatting, clippy, documentation, dependencies

.PHONY: run test lint bench bench-compare engine-bench tools test-tools portable

ARGS ?=

run: tools
	cargo build --release --locked --bin sluicegate
	@exec target/release/sluicegate serve $(ARGS)

test: test-tools lint
	cargo build --locked --bin sluicegate
	.ci/clients target/debug/sluicegate
	.ci/observability target/debug/sluicegate
	cargo test --locked --workspace
	cargo run --locked --quiet --package loadtests -- run steady --short --sluicegate target/debug/sluicegate

lint: tools
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items --quiet
	@if command -v cargo-deny >/dev/null 2>&1; then \
		cargo deny check bans licenses sources; \
	else \
		echo "skipped: cargo deny (not installed; cargo install cargo-deny)"; \
	fi

bench: tools
	cargo bench --locked

bench-compare: tools
	@.ci/compare "$(BASE)" $(ARGS)

engine-bench: export LLAMA_BATCHED_BENCH ?= target/release/examples/bare
engine-bench: tools
	cargo build --release --locked --workspace
	cargo build --release --locked --example bare
	@exec target/release/loadtests engine $(ARGS)

# An image for other machines of this architecture: AVX2 and FMA, what llama.cpp needs at the least.
portable: tools
	RUSTFLAGS="-C target-cpu=x86-64-v3" cargo build --release --locked --bin sluicegate \
		--target-dir target/portable

tools:
	@.ci/need build

test-tools:
	@.ci/need build test
