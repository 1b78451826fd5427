//! The kernel program: two classifiers at the host-side interface of each endpoint.
//!
//! It decides nothing. It reads the packet and the clock, calls `egress_verdict`, carries the
//! verdict out, counts it, and tells user space.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod hooks;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod rewrite;
#[cfg(target_arch = "bpf")]
mod skb;
#[cfg(target_arch = "bpf")]
mod translate;

/// Stands in on every other target, where this binary has nothing to do.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
