//! `/healthz`: the agent answers. `/readyz`: everything of the first read is enforced, as `namegate
//! ready` says it by exit code.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::{Context, Phase};

/// Which agent answers.
#[derive(Debug, Deserialize, Serialize)]
pub struct Version {
    /// Version of the agent.
    pub version: String,
    /// Version of the layout of its maps.
    pub abi: u32,
}

pub(super) fn routes() -> Router<Context> {
    Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz))
}

pub(super) fn versioned() -> Router<Context> {
    Router::new().route("/version", get(version))
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(context): State<Context>) -> (StatusCode, String) {
    let phase = context.phase.now();
    let status = match phase {
        Phase::Enforcing => StatusCode::OK,
        Phase::Starting | Phase::Ending => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, format!("{}\n", phase.as_str()))
}

async fn version() -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        abi: namegate_egress_bpf::abi::ABI_VERSION,
    })
}
