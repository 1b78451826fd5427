//! The proxy over real sockets on loopback, between scripted pods, resolver and learner.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]

mod cached;
mod fair;
mod merged;
mod messages;
mod odd;
mod order;
mod scripted;
mod slow;
mod sockets;
mod upstream;
mod upstream_tcp;
mod workers;
