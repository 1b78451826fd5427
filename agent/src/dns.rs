//! Between the DNS proxy and the state's owner: answers are learned before they leave, and every
//! decision is recorded.

use std::collections::BTreeSet;
use std::future::ready;

use namegate_dns_proxy::learner::{
    LearnError, Learned, Learner, Learning, Lesson, TaughtAddress, Withheld as ProxyWithheld,
};
use namegate_dns_proxy::record::{DecisionLog, DecisionRecord};
use namegate_policy::learned::Place;
use tokio::sync::{mpsc, oneshot};

use crate::audit::AuditLog;
use crate::state::{Taught, TeachError, Withheld};

/// Batches of lessons that wait for the state's owner at most.
const BATCHES_MAX: usize = 1_024;

/// What became of each lesson of a batch.
pub type Outcomes = Vec<Result<Learned, LearnError>>;

/// Lessons and where their outcomes go.
#[derive(Debug)]
pub struct LessonRequest {
    /// What answers teach.
    pub lessons: Vec<Lesson>,
    /// Who waits.
    pub outcomes: oneshot::Sender<Outcomes>,
}

/// Teaches a batch at once, or says that the state's owner has to.
type Teacher = Box<dyn Fn(&[Lesson]) -> Option<Outcomes> + Send + Sync>;

/// Teaches lessons on the thread that has them, or hands them to the state's owner and awaits it.
pub struct LessonDesk {
    teacher: Teacher,
    requests: mpsc::Sender<LessonRequest>,
}

impl LessonDesk {
    /// A desk with a `teacher`, and where the lessons come out that it does not take.
    pub fn new(
        teacher: impl Fn(&[Lesson]) -> Option<Outcomes> + Send + Sync + 'static,
    ) -> (Self, mpsc::Receiver<LessonRequest>) {
        let (requests, lessons) = mpsc::channel(BATCHES_MAX);
        (Self { teacher: Box::new(teacher), requests }, lessons)
    }
}

impl Learner for LessonDesk {
    fn learn(&self, lessons: Vec<Lesson>) -> Learning {
        if let Some(outcomes) = (self.teacher)(&lessons) {
            return Box::pin(ready(outcomes));
        }
        let requests = self.requests.clone();
        Box::pin(async move {
            let (outcomes, learned) = oneshot::channel();
            // A lesson without an outcome has failed, which is what an agent that ends means.
            match requests.send(LessonRequest { lessons, outcomes }).await {
                Ok(()) => learned.await.unwrap_or_default(),
                Err(_) => Outcomes::new(),
            }
        })
    }
}

/// What the proxy is told of a lesson, given the addresses that could not be written.
pub fn outcome(
    lesson: &Lesson,
    taught: Result<Taught, TeachError>,
    unwritten: &BTreeSet<Place>,
) -> Result<Learned, LearnError> {
    let taught = match taught {
        Ok(taught) => taught,
        Err(TeachError::Stale) => return Err(LearnError::Stale),
        Err(error @ TeachError::Limit(_)) => {
            tracing::warn!(%error, "an answer was not learned");
            return Err(LearnError::Full);
        }
    };
    let identity = lesson.client.identity;
    let is_unwritten = |taught: &TaughtAddress| unwritten.contains(&(identity, taught.address));
    if !unwritten.is_empty() && lesson.addresses.iter().any(is_unwritten) {
        return Err(LearnError::Full);
    }
    let withheld_of = |(address, reason)| (address, withheld(reason));
    Ok(Learned {
        kept_for: taught.open_until.map(|until| until.since(lesson.now)),
        withheld: taught.withheld.into_iter().map(withheld_of).collect(),
    })
}

/// The proxy's word for why an address was not opened.
fn withheld(reason: Withheld) -> ProxyWithheld {
    match reason {
        Withheld::NoRule => ProxyWithheld::NoRule,
        Withheld::NotOpened(reason) => ProxyWithheld::Address(reason),
    }
}

/// Hands the proxy's decisions to the audit log.
#[derive(Debug)]
pub struct DnsAudit(pub AuditLog);

impl DecisionLog for DnsAudit {
    fn record(&self, decision: DecisionRecord) {
        self.0.lookup(decision);
    }
}
