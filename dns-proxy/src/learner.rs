//! The awaited step between an upstream's answer and the pod: addresses are opened first.

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use namegate_policy::dns::ClauseSet;
use namegate_policy::name::DnsName;
use namegate_policy::opening::NotOpened;
use namegate_policy::time::Timestamp;

use crate::clients::Client;

/// An address that an answer led to, with the least TTL on the way from the asked name to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaughtAddress {
    /// The address.
    pub address: IpAddr,
    /// Seconds for which the answer may be kept.
    pub ttl: u32,
}

/// What an answer teaches about one name to the identity that asked.
#[derive(Clone, Debug)]
pub struct Lesson {
    /// Who asked, as the decision saw it.
    pub client: Arc<Client>,
    /// The asked name.
    pub name: DnsName,
    /// The clauses that the addresses are opened for. Where it is empty nothing is to be opened; the
    /// learner may remember the name for its logs.
    pub clauses: ClauseSet,
    /// The addresses, each once, in the order of the answer. Never empty.
    pub addresses: Vec<TaughtAddress>,
    /// When the answer arrived.
    pub now: Timestamp,
}

/// What became of a lesson.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Learned {
    /// For how long the kernel will accept flows to every address that was opened: the answer's
    /// TTLs are cut to this. `None` where nothing was opened.
    pub kept_for: Option<Duration>,
    /// The addresses that were not opened, and why; every other address of the lesson was.
    pub withheld: Vec<(IpAddr, Withheld)>,
}

/// Why an address of an allowed answer was not opened (EP-9, EP-14).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Withheld {
    /// The name resolves, but no rule opens its addresses.
    NoRule,
    /// More addresses or names than the identity may learn, or than one answer may teach.
    Limit,
    /// An address that no name opens.
    Address(NotOpened),
}

impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRule => "no-rule",
            Self::Limit => "limit",
            Self::Address(reason) => reason.as_str(),
        })
    }
}

/// Why a lesson was not learned. The pod gets SERVFAIL.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LearnError {
    /// The kernel's table of learned addresses has no room.
    #[error("the table of learned addresses is full")]
    Full,
    /// The endpoint or its policy changed since the question was decided.
    #[error("the endpoint or its policy changed meanwhile")]
    Stale,
    /// The learner is gone.
    #[error("the learner has stopped")]
    Stopped,
    /// Writing failed.
    #[error("the addresses could not be written")]
    Write(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The outcomes of lessons, one for each in their order, awaited.
pub type Learning = Pin<Box<dyn Future<Output = Vec<Result<Learned, LearnError>>> + Send>>;

/// Opens the addresses of answers before the answers leave.
pub trait Learner: Send + Sync {
    /// Opens the addresses of every lesson for the identity that asked. An answer is released when the
    /// future resolves to `Ok` for its lesson, and not before: no time-out lets an answer through, and
    /// a lesson without an outcome has failed.
    ///
    /// A worker brings the lessons of all answers that it found at once. The future is polled at once
    /// on the worker's thread; one that is ready then costs no task switch.
    fn learn(&self, lessons: Vec<Lesson>) -> Learning;
}

/// The outcome of the only lesson of `learning`.
pub(crate) async fn only(learning: Learning) -> Result<Learned, LearnError> {
    learning.await.pop().unwrap_or(Err(LearnError::Stopped))
}
