//! What the running agent tells and takes over its socket: HTTP with JSON, versioned paths.
//!
//! One file a resource, each with its `routes()`. A request that needs what the state's owner knows
//! asks its [`Desk`]: a bounded queue, a deadline, and a short look that copies what the answer needs.
//! Everything here runs on a thread of its own, so that no request delays a lookup or a write.

mod desk;
mod endpoints;
mod failure;
mod health;
mod listen;
mod phase;
mod scrape;
mod server;

use std::sync::Arc;

use axum::Router;

use crate::metrics::Metrics;

pub use desk::{Desk, Question, View};
pub use endpoints::EndpointItem;
pub use failure::{ErrorBody, Failure};
pub use health::Version;
pub use listen::ListenError;
pub use phase::{Phase, PhaseCell};
pub use server::{Places, Routers, Server};

/// What the handlers of all resources share.
#[derive(Clone, Debug)]
pub struct Context {
    /// Asks the state's owner.
    pub desk: Desk,
    /// How far the agent is.
    pub phase: PhaseCell,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Everything, for whoever may open the socket.
pub fn router(context: Context) -> Router {
    Router::new()
        .merge(health::routes())
        .merge(scrape::routes())
        .nest("/v1", Router::new().merge(endpoints::routes()).merge(health::versioned()))
        .fallback(failure::no_such_path)
        .method_not_allowed_fallback(failure::no_such_method)
        .with_state(context)
}

/// What a scraper may see over the network: metrics and health alone.
pub fn scrape_router(context: Context) -> Router {
    Router::new()
        .merge(health::routes())
        .merge(scrape::routes())
        .fallback(failure::no_such_path)
        .method_not_allowed_fallback(failure::no_such_method)
        .with_state(context)
}

/// Path of the socket where nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/namegate/namegate.sock";
