//! `/healthz`: the agent answers, and the owner of its state goes on, as `namegate alive` says it by exit
//! code. `/readyz`: everything of the first read is enforced and the programs are where they belong, as
//! `namegate ready` says it by exit code.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::{Context, Phase};

/// How long the owner of the state may be at one task. It turns every 400 ms, and writes everything that a
/// node has in seconds.
const TURN_MAX: Duration = Duration::from_secs(60);

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

async fn healthz(State(context): State<Context>) -> (StatusCode, String) {
    health(context.phase.now(), context.pulse.silence())
}

/// An agent that starts waits for the API server as long as that takes: only its work has a pulse, and the
/// end of that, when it hands over.
fn health(phase: Phase, silence: Duration) -> (StatusCode, String) {
    match phase {
        Phase::Enforcing | Phase::Ending if silence > TURN_MAX => {
            let text = format!("hangs: at one task for {} s\n", silence.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
        Phase::Starting | Phase::Enforcing | Phase::Ending => (StatusCode::OK, "ok\n".to_owned()),
    }
}

async fn readyz(State(context): State<Context>) -> (StatusCode, String) {
    readiness(context.phase.now(), &context.phase.lacking())
}

/// A hook that cannot be put where it belongs makes the node's pod not ready, so that a rollout stops at
/// it and somebody looks. Nothing is restarted for it: that would put no hook right.
fn readiness(phase: Phase, lacking: &[String]) -> (StatusCode, String) {
    let word = phase.as_str();
    match phase {
        Phase::Enforcing if lacking.is_empty() => (StatusCode::OK, format!("{word}\n")),
        Phase::Enforcing => {
            let text = format!("{word}, and lacking:\n{}\n", lacking.join("\n"));
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
        Phase::Starting | Phase::Ending => (StatusCode::SERVICE_UNAVAILABLE, format!("{word}\n")),
    }
}

async fn version() -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        abi: namegate_egress_bpf::abi::ABI_VERSION,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_work_that_stands_still_is_ill() {
        let long = TURN_MAX + Duration::from_secs(1);
        for (phase, silence, status, text) in [
            (Phase::Starting, long, 200, "ok\n"),
            (Phase::Enforcing, TURN_MAX, 200, "ok\n"),
            (Phase::Enforcing, long, 503, "hangs: at one task for 61 s\n"),
            (Phase::Ending, Duration::ZERO, 200, "ok\n"),
            (Phase::Ending, long, 503, "hangs: at one task for 61 s\n"),
        ] {
            let (found, said) = health(phase, silence);
            assert_eq!((found.as_u16(), &*said), (status, text));
        }
    }

    #[test]
    fn ready_is_who_enforces_and_lacks_nothing() {
        let lacking = ["interface 7: gone astray".to_owned()];
        for (phase, lacking, status, text) in [
            (Phase::Starting, &[][..], 503, "starting\n"),
            (Phase::Enforcing, &[], 200, "enforcing\n"),
            (
                Phase::Enforcing,
                &lacking,
                503,
                "enforcing, and lacking:\ninterface 7: gone astray\n",
            ),
            (Phase::Ending, &lacking, 503, "ending\n"),
        ] {
            let (found, said) = readiness(phase, lacking);
            assert_eq!((found.as_u16(), &*said), (status, text));
        }
    }
}
