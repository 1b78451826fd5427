//! `GET /v1/identities`: who is told apart on this node, and by what.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use namegate_policy::identity::Identity;
use namegate_policy::selector::Labels;
use namegate_policy::table::PolicyTable;
use serde::{Deserialize, Serialize};

use super::{Context, Failure, View};

/// The pods that policies cannot tell apart.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct IdentityItem {
    /// Its number, which counts on this node alone.
    pub identity: u32,
    /// Namespace of its pods.
    pub namespace: Arc<str>,
    /// Labels of its pods.
    pub labels: Labels,
    /// Service account of its pods.
    pub service_account: Arc<str>,
    /// Names of its pods on this node.
    pub pods: BTreeSet<Arc<str>>,
    /// The policies that select it, as `Kind namespace/name`; empty where it has no endpoint here.
    pub policies: BTreeSet<String>,
    /// How many addresses it learned.
    pub learned: usize,
}

pub(super) fn routes() -> Router<Context> {
    Router::new().route("/identities", get(list))
}

async fn list(State(context): State<Context>) -> Result<Json<Vec<IdentityItem>>, Failure> {
    Ok(Json(context.desk.ask(items).await?))
}

/// Those with endpoints here; remote ones are many and have nothing to show.
fn items(view: View<'_>) -> Vec<IdentityItem> {
    let state = view.state;
    let mut items: Vec<IdentityItem> = Vec::new();
    for (identity, table) in state.tables() {
        let Some(labels) = state.inventory().identities().labels(*identity) else { continue };
        let endpoints = state.endpoints().values().filter(|spec| spec.identity == *identity);
        items.push(IdentityItem {
            identity: identity.number(),
            namespace: Arc::clone(&labels.namespace),
            labels: Labels::clone(&labels.pod_labels),
            service_account: Arc::clone(&labels.service_account),
            pods: endpoints.map(|spec| Arc::clone(&spec.pod.name)).collect(),
            policies: policies(table),
            learned: learned(view, *identity),
        });
    }
    items
}

fn learned(view: View<'_>, identity: Identity) -> usize {
    view.state.learned().read().addresses(identity).count()
}

/// The policies behind the clauses of a table.
pub(super) fn policies(table: &PolicyTable) -> BTreeSet<String> {
    let clauses = table.egress.iter().chain(&table.ingress);
    clauses.flat_map(|clause| clause.origins.iter()).map(|o| o.policy.to_string()).collect()
}
