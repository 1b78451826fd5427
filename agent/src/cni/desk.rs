//! The agent's side of the plugin: pods that wait until their policy is in force.

use std::time::{Duration, Instant};

use axum::extract::State as Shared;
use axum::routing::post;
use axum::{Json, Router};
use namegate_policy::resource::PodRef;
use tokio::sync::{mpsc, oneshot};

use super::protocol::{AttachedPod, Attachment, Attachments, PATH};
use crate::admin::Failure;
use crate::apply::{Apply, Kernel};
use crate::state::{Claim, State};

/// Requests that wait for the state's owner at most, and pods that wait for their policy: more than a
/// kubelet starts at once.
const DEMANDS_MAX: usize = 1_024;

/// The longest that a pod waits here, whatever the plugin asks for.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What the plugin wants.
#[derive(Debug)]
pub enum Wish {
    /// The pod's interface is to be under policy.
    Attach(AttachedPod),
    /// Whether it is.
    Check(AttachedPod),
    /// It goes.
    Release(Attachment),
    /// All others go.
    Collect(Attachments),
}

/// A wish, and who waits for it to be granted.
#[derive(Debug)]
pub struct Demand {
    pub(crate) wish: Wish,
    pub(crate) answer: oneshot::Sender<Result<(), Failure>>,
}

/// Routes for the agent's socket, and where what they are asked arrives.
pub fn routes() -> (Router, mpsc::Receiver<Demand>) {
    let (send, demands) = mpsc::channel(DEMANDS_MAX);
    let router = Router::new()
        .route(&format!("{PATH}/add"), post(add))
        .route(&format!("{PATH}/check"), post(ask_check))
        .route(&format!("{PATH}/del"), post(del))
        .route(&format!("{PATH}/gc"), post(collect))
        .with_state(send);
    (router, demands)
}

type Owner = Shared<mpsc::Sender<Demand>>;

async fn add(owner: Owner, Json(pod): Json<AttachedPod>) -> Result<Json<()>, Failure> {
    demand(&owner, Wish::Attach(pod)).await
}

async fn ask_check(owner: Owner, Json(pod): Json<AttachedPod>) -> Result<Json<()>, Failure> {
    demand(&owner, Wish::Check(pod)).await
}

async fn del(owner: Owner, Json(attachment): Json<Attachment>) -> Result<Json<()>, Failure> {
    demand(&owner, Wish::Release(attachment)).await
}

async fn collect(owner: Owner, Json(left): Json<Attachments>) -> Result<Json<()>, Failure> {
    demand(&owner, Wish::Collect(left)).await
}

async fn demand(owner: &mpsc::Sender<Demand>, wish: Wish) -> Result<Json<()>, Failure> {
    let (answer, answered) = oneshot::channel();
    owner.try_send(Demand { wish, answer }).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => Failure::Busy,
        mpsc::error::TrySendError::Closed(_) => Failure::Ending,
    })?;
    answered.await.map_err(|_| Failure::Ending)?.map(Json)
}

/// The pods that wait for their policy.
#[derive(Debug, Default)]
pub struct Waiting(Vec<Wait>);

#[derive(Debug)]
struct Wait {
    pod: PodRef,
    claim: Claim,
    since: Instant,
    until: Instant,
    answer: oneshot::Sender<Result<(), Failure>>,
}

impl Waiting {
    /// Puts a pod in line until [`Waiting::settle`] finds it under policy; says what was said of it.
    pub fn add(
        &mut self,
        asked: &AttachedPod,
        answer: oneshot::Sender<Result<(), Failure>>,
    ) -> (PodRef, Claim) {
        let (pod, claim) = claim(asked);
        if self.0.len() < DEMANDS_MAX {
            let since = Instant::now();
            let until = since + Duration::from_millis(asked.wait_ms).min(WAIT_MAX);
            self.0.push(Wait { pod: pod.clone(), claim: claim.clone(), since, until, answer });
        } else {
            // The plugin may have gone meanwhile.
            let _ = answer.send(Err(Failure::Busy));
        }
        (pod, claim)
    }

    /// Answers those that are under policy, and those that waited for too long.
    pub fn settle<K: Kernel>(&mut self, state: &State, apply: &Apply<K>) {
        let now = Instant::now();
        for wait in std::mem::take(&mut self.0) {
            if wait.answer.is_closed() {
                continue;
            }
            let outcome = match standing(&wait.pod, &wait.claim, state, apply) {
                Ok(()) => {
                    tracing::debug!(
                        pod = %wait.pod,
                        took_ms = wait.since.elapsed().as_millis(),
                        "a pod's policy is in force before it starts"
                    );
                    Ok(())
                }
                Err(why) if now >= wait.until => {
                    tracing::warn!(pod = %wait.pod, why, "a pod's policy did not come in time");
                    Err(Failure::Unready(format!("Pod {}: {why}", wait.pod)))
                }
                Err(_) => {
                    self.0.push(wait);
                    continue;
                }
            };
            // Whoever asked may have given up; its runtime asks again.
            let _ = wait.answer.send(outcome);
        }
    }
}

/// Whether a pod is under the policy that it should be under.
pub fn check<K: Kernel>(
    asked: &AttachedPod,
    state: &State,
    apply: &Apply<K>,
) -> Result<(), Failure> {
    let (pod, claim) = claim(asked);
    standing(&pod, &claim, state, apply)
        .map_err(|why| Failure::Unready(format!("Pod {pod}: {why}")))
}

/// What a request says of a pod.
fn claim(asked: &AttachedPod) -> (PodRef, Claim) {
    let namespace = asked.namespace.as_str().into();
    let pod = PodRef { namespace, name: asked.pod.as_str().into() };
    let claim = Claim {
        attachment: asked.attachment.clone(),
        uid: asked.uid.as_deref().map(Into::into),
        addresses: asked.addresses.clone(),
    };
    (pod, claim)
}

/// Why a pod is not under the policy that it should be under, if it is not.
fn standing<K: Kernel>(
    pod: &PodRef,
    claim: &Claim,
    state: &State,
    apply: &Apply<K>,
) -> Result<(), String> {
    let (ifindex, identity) = state.claimed(pod, claim)?;
    if apply.is_in_force(ifindex, identity) {
        Ok(())
    } else {
        Err("its policy could not be written to the kernel; the agent's log says why".to_owned())
    }
}
