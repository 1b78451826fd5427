//! What the running agent tells and takes over its socket: HTTP with JSON, versioned paths.
//!
//! One file a resource, each with its `routes()`. A request that needs what the state's owner knows
//! asks its [`Desk`]: a bounded queue, a deadline, and a short look that copies what the answer needs.
//! Everything here runs on a thread of its own, so that no request delays a lookup or a write.

mod advice;
mod context;
mod desk;
mod endpoints;
mod failure;
mod flows;
mod health;
mod hits;
mod identities;
mod listen;
mod names;
mod phase;
mod policies;
mod pulse;
mod records;
mod scrape;
mod server;
mod shared;
mod sieve;
mod stall;
mod status;
mod why;

use axum::Router;

pub use context::Context;
pub use desk::{Desk, Filling, Question, View};
pub use endpoints::EndpointItem;
pub use failure::{ErrorBody, Failure};
pub(crate) use failure::{no_such_method, no_such_path};
pub use flows::FlowItem;
pub use health::Version;
pub use hits::{HitBook, Tallies, Tally};
pub use identities::IdentityItem;
pub use listen::ListenError;
pub(crate) use listen::{Socket, SocketPath};
pub use names::NameItem;
pub use phase::{Phase, PhaseCell};
pub use policies::{PolicyItem, RuleItem};
pub use pulse::Pulse;
pub use records::{KEPT as RECORDS_KEPT, Recent};
pub use server::{Places, Routers, Server};
pub use shared::{AlsoName, OpeningName, SharedAddresses, SharedItem, follow_shared};
pub use sieve::{VERDICTS, Wanted, reasons};
pub use status::{Finding, Severity, StatusReport, status};
pub use why::{ConsideredReport, EndReport, LearnedReport, LookupReport, TargetReport, WhyReport};

/// Everything, for whoever may open the socket.
pub fn router(context: Context) -> Router {
    Router::new()
        .merge(health::routes())
        .merge(scrape::routes())
        .nest("/v1", versioned())
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(context)
}

fn versioned() -> Router<Context> {
    Router::new()
        .merge(endpoints::routes())
        .merge(flows::routes())
        .merge(health::versioned())
        .merge(identities::routes())
        .merge(names::routes())
        .merge(policies::routes())
        .merge(shared::routes())
        .merge(records::routes())
        .merge(status::routes())
        .merge(why::routes())
}

/// Whether the agent enforces: what the CNI plugin asks besides.
pub fn health_router(context: Context) -> Router {
    Router::new()
        .merge(health::routes())
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(context)
}

/// What a scraper may see over the network: metrics and health alone.
pub fn scrape_router(context: Context) -> Router {
    Router::new()
        .merge(health::routes())
        .merge(scrape::routes())
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(context)
}

/// Path of the socket where nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/namegate/namegate.sock";
