//! The service map: a page that shows live who talks to whom, what was refused, and why.
//!
//! [`Edges`] gathers decisions and knows no IO. [`router`] serves them with the page, which is part of
//! the binary and loads nothing from elsewhere. Everything here is read only, for whoever may open the
//! address: the gate lets through requests for this machine alone, so that a name that an attacker
//! points at it (DNS rebinding) is answered nothing.

mod edges;
mod gate;
mod looked;
mod node;
mod page;
mod party;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router, middleware};
use serde::{Deserialize, Serialize};

use crate::admin::{Context, no_such_method, no_such_path};
use crate::audit::{Entry, Heard, Listener};

pub use edges::{Changes, Edge, Edges, Limits, Talk, Verdict};
pub use gate::{Exposed, Hosts};
pub use node::{NodeReport, WorkloadItem};
pub use party::Party;

use looked::Looked;

/// How often it is seen whether somebody still looks.
const LOOK: Duration = Duration::from_secs(1);

/// What the map shows, shared by whoever fills it and whoever reads it.
#[derive(Clone, Debug)]
pub struct Map {
    edges: Arc<Mutex<Edges>>,
    looked: Arc<Looked>,
    context: Context,
    node: Arc<node::Lately>,
    name: Arc<str>,
    /// Tells this agent from the one before.
    run: u32,
}

/// What a reader has seen.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Seen {
    #[serde(default)]
    run: u32,
    #[serde(default)]
    since: u64,
    #[serde(default)]
    began: u64,
}

/// What a reader is told.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Told {
    /// The agent that says so.
    pub run: u32,
    /// What changed.
    #[serde(flatten)]
    pub changes: Changes,
}

impl Map {
    /// An empty map of the node `name`.
    pub fn new(context: Context, name: Arc<str>, limits: Limits) -> Self {
        Self {
            edges: Arc::new(Mutex::new(Edges::new(limits))),
            looked: Arc::new(Looked::new(context.log.clone())),
            context,
            node: Arc::default(),
            name,
            run: RandomState::new().hash_one(std::process::id()) as u32,
        }
    }

    /// Takes what `listener` hears, until its log ends: while somebody looks what the log has no room
    /// for as well.
    pub async fn follow(self, mut listener: Listener) {
        let mut looks = tokio::time::interval(LOOK);
        loop {
            let heard = tokio::select! {
                heard = listener.next() => heard,
                _ = looks.tick() => {
                    self.looked.expire(Instant::now());
                    continue;
                }
            };
            match heard {
                Some(Heard::Entry(entry)) => self.take(&entry),
                Some(Heard::Missed(count)) => self.edges().miss(count),
                None => return,
            }
        }
    }

    /// Takes a decision.
    pub fn take(&self, entry: &Entry) {
        self.edges().take(entry);
    }

    fn told(&self, seen: Seen) -> Told {
        let (since, began) = if seen.run == self.run { (seen.since, seen.began) } else { (0, 0) };
        Told { run: self.run, changes: self.edges().since(since, began) }
    }

    fn edges(&self) -> MutexGuard<'_, Edges> {
        self.edges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The page and what it asks for, for requests that name one of `hosts`.
pub fn router(map: Map, hosts: Hosts) -> Router {
    let hosts = Arc::new(hosts);
    let answers = Router::new()
        .route("/v1/map", get(changes))
        .route("/v1/node", get(node::report))
        .with_state(map);
    page::routes()
        .merge(answers)
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn(move |request, next| {
            gate::pass(Arc::clone(&hosts), request, next)
        }))
}

async fn changes(State(map): State<Map>, Query(seen): Query<Seen>) -> Json<Told> {
    map.looked.note(Instant::now());
    Json(map.told(seen))
}
