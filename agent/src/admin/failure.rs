use axum::Json;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The queue of questions is full.
    #[error("the agent has too many requests to answer; try again")]
    Busy,
    /// The state's owner was occupied for too long.
    #[error("the agent did not answer in time; it is starting, or has much to write")]
    Late,
    /// There is no owner to ask any more.
    #[error("the agent is ending")]
    Ending,
    /// What is waited for did not come about in time.
    #[error("{0}")]
    Unready(String),
    /// The request means nothing.
    #[error("{0}")]
    Wrong(String),
    /// What was asked about does not exist.
    #[error("{0}")]
    Absent(String),
    /// The kernel, or another part of the agent, did not do its part.
    #[error("{0}")]
    Broken(String),
}

/// What is sent for a failure.
#[derive(Debug, Deserialize, Serialize)]
pub struct ErrorBody {
    /// What went wrong, for people.
    pub error: String,
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Busy | Self::Ending => StatusCode::SERVICE_UNAVAILABLE,
            Self::Late | Self::Unready(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Wrong(_) => StatusCode::BAD_REQUEST,
            Self::Absent(_) => StatusCode::NOT_FOUND,
            Self::Broken(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(ErrorBody { error: self.to_string() })).into_response()
    }
}

pub(crate) async fn no_such_path(uri: Uri) -> Failure {
    Failure::Absent(format!("no such path: {}; is the agent older than this command?", uri.path()))
}

pub(crate) async fn no_such_method(method: Method, uri: Uri) -> Response {
    let error = format!("{} does not take {method}", uri.path());
    (StatusCode::METHOD_NOT_ALLOWED, Json(ErrorBody { error })).into_response()
}
