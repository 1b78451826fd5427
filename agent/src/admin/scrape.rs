//! `/metrics`, as OpenMetrics.

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;

use super::{Context, Failure};
use crate::metrics::CONTENT;

pub(super) fn routes() -> Router<Context> {
    Router::new().route("/metrics", get(scrape))
}

async fn scrape(State(context): State<Context>) -> Result<impl IntoResponse, Failure> {
    let readings = context.readings().await?;
    let text = context
        .metrics
        .encode(readings)
        .map_err(|_| Failure::Broken("metrics cannot be written".into()))?;
    Ok(([(CONTENT_TYPE, CONTENT)], text))
}
