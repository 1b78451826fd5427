# The agent's image: the binary, the C library, certificates; no shell.
#
#   docker build -t namegate:0.1.0 .

FROM docker.io/library/rust:1.95-bookworm AS build
# The kernel program has a compiler of its own; .ci/setup says the same versions and why.
RUN apt-get update -qq && apt-get install -qq --no-install-recommends \
    rustc-web libstd-rust-web-dev-bpf llvm-22-dev && rm -rf /var/lib/apt/lists/*
RUN LLVM_PREFIX=/usr/lib/llvm-22 PATH=/usr/lib/llvm-22/bin:$PATH cargo install --locked \
    bpf-linker --version 0.13.0 --no-default-features --features llvm-22
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p namegate --bin namegate && strip target/release/namegate
# The plugin runs on the node, which may have another C library or none: it brings its own.
RUN target="$(uname -m)-unknown-linux-gnu" && RUSTFLAGS='-C target-feature=+crt-static' \
    cargo build --release --locked -p namegate --bin namegate-cni --target "$target" && \
    strip -o target/release/namegate-cni "target/$target/release/namegate-cni"

# The agent is root on the node for its three capabilities; the chart drops all others.
FROM gcr.io/distroless/cc-debian12
COPY --from=build /src/target/release/namegate /src/target/release/namegate-cni /usr/bin/
ENTRYPOINT ["/usr/bin/namegate"]
