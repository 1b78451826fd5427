//! `GET /v1/endpoints`: the pods that are enforced on.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::{Context, Failure, View};

/// One pod of the node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct EndpointItem {
    /// Namespace of the pod.
    pub namespace: Arc<str>,
    /// Name of the pod.
    pub pod: Arc<str>,
    /// Host-side interface.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// Number of the pod's identity.
    pub identity: u32,
    /// The pod's addresses.
    pub addresses: BTreeSet<IpAddr>,
}

pub(super) fn routes() -> Router<Context> {
    Router::new().route("/endpoints", get(list))
}

async fn list(State(context): State<Context>) -> Result<Json<Vec<EndpointItem>>, Failure> {
    Ok(Json(context.desk.ask(items).await?))
}

fn items(view: View<'_>) -> Vec<EndpointItem> {
    let endpoints = view.state.endpoints().iter();
    endpoints
        .map(|(ifindex, spec)| EndpointItem {
            namespace: Arc::clone(&spec.pod.namespace),
            pod: Arc::clone(&spec.pod.name),
            interface: spec.interface.clone(),
            ifindex: *ifindex,
            identity: spec.identity.number(),
            addresses: spec.addresses.clone(),
        })
        .collect()
}
