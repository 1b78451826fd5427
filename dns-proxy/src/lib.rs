//! Names in, answers out, addresses reported before the answer leaves.
//!
//! The proxy stands in for the resolvers that pods ask. It attributes each query to an endpoint,
//! decides about the name, resolves an allowed one, hands the addresses of the answer to a
//! [`learner::Learner`], awaits it, and only then releases the answer.
//!
//! It knows endpoints through [`clients::Clients`] and the kernel through the learner, and knows
//! neither Kubernetes nor eBPF.

#![forbid(unsafe_code)]

pub mod clients;
pub mod config;
pub mod counters;
pub mod learner;
pub mod record;

pub use config::{Config, Limits, ResolverSlot, StartError, Timeouts};
pub use counters::Counters;
