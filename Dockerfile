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
RUN cargo build --release --locked -p namegate && strip target/release/namegate

# The agent is root on the node for its three capabilities; the chart drops all others.
FROM gcr.io/distroless/cc-debian12
COPY --from=build /src/target/release/namegate /usr/bin/namegate
ENTRYPOINT ["/usr/bin/namegate"]
