//! Names in, answers out, addresses reported before the answer leaves.
//!
//! The proxy stands in for the resolvers that pods ask. It attributes each query to an endpoint,
//! decides about the name, resolves an allowed one, hands the addresses of the answer to a
//! [`learner::Learner`], awaits it, and only then releases the answer.
//!
//! It knows endpoints through [`clients::Clients`] and the kernel through the learner, and knows
//! neither Kubernetes nor eBPF. It reads and writes messages itself: what it sends is either a
//! question that it rebuilt, a reply without records, or an upstream's octets with a few fields
//! overwritten, so that an answer reaches the pod as the resolver wrote it. A codec that decodes
//! records and encodes them again could not promise that; one serves as the second opinion in tests.

#![forbid(unsafe_code)]

pub mod answer;
mod batch;
mod budget;
mod cache;
pub mod clients;
mod clock;
pub mod config;
pub mod counters;
mod exchange;
pub mod frame;
pub mod gate;
pub mod learner;
mod limits;
mod poller;
pub mod query;
pub mod record;
mod reply;
mod resolve;
mod server;
pub mod stages;
mod wire;

pub use config::{CacheLimits, Config, Limits, ResolverSlot, StartError, Timeouts};
pub use counters::Counters;
pub use server::{Proxy, Services, Sockets};
pub use stages::Stages;
