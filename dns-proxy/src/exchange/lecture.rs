//! An answer between the learner and the pod: the reply is made here, from what was learned.

use std::net::IpAddr;

use namegate_policy::time::Timestamp;

use super::{Ask, Core, Panicked, Source};
use crate::answer::Answer;
use crate::learner::{LearnError, Learned, TaughtAddress, Withheld};
use crate::record::{AnsweredAddress, DecisionRecord, DnsFailure, DnsVerdict, Rcode};
use crate::reply;

/// An answer that waits for the learner.
pub(crate) struct Lecture {
    pub(crate) ask: Ask,
    pub(super) message: Vec<u8>,
    pub(super) answer: Answer,
    pub(super) origin: Source,
    pub(super) surplus: Vec<TaughtAddress>,
    pub(super) now: Timestamp,
}

impl Lecture {
    /// Makes the reply once the learner is done.
    pub(crate) fn finish(
        mut self,
        core: &Core,
        outcome: Result<Learned, LearnError>,
        now: Timestamp,
    ) -> Vec<u8> {
        core.guarded(|| self.try_finish(core, outcome, now)).unwrap_or_else(|Panicked| {
            reply::own(&self.ask.query, Rcode::SERVFAIL, None, core.limits.udp_payload)
        })
    }

    fn try_finish(
        &mut self,
        core: &Core,
        outcome: Result<Learned, LearnError>,
        now: Timestamp,
    ) -> Vec<u8> {
        let learned = match outcome {
            Ok(learned) => learned,
            Err(error) => {
                core.counters.lessons_failed.increment();
                tracing::debug!(name = %self.ask.query.name, error = &error as &dyn std::error::Error, "addresses not learned");
                let failure = match error {
                    LearnError::Full => DnsFailure::LearnerFull,
                    LearnError::Stale => DnsFailure::Stale,
                    LearnError::Stopped | LearnError::Write(_) => DnsFailure::LearnerFailed,
                };
                return core.fail(&self.ask, failure, now);
            }
        };
        let ttl_max = learned.kept_for.map(|kept_for| {
            let left = self.now.saturating_add(kept_for).since(now);
            u32::try_from(left.as_secs()).unwrap_or(u32::MAX)
        });
        let verdict = if self.ask.allowance.audit {
            core.counters.audit.increment();
            DnsVerdict::Audit
        } else {
            core.counters.allowed.increment();
            DnsVerdict::Allowed
        };
        core.log.record(DecisionRecord {
            addresses: self.answered(&learned, ttl_max),
            cached: !matches!(self.origin, Source::Upstream),
            failure: match self.origin {
                Source::Upstream | Source::Cache => None,
                Source::Stale(failure) => Some(failure),
            },
            ..self.ask.record(verdict, self.answer.rcode, now)
        });
        reply::release(
            std::mem::take(&mut self.message),
            &self.answer,
            &self.ask.query,
            ttl_max,
            self.ask.reply_size(&core.limits),
            core.limits.udp_payload,
        )
    }

    fn answered(&self, learned: &Learned, ttl_max: Option<u32>) -> Vec<AnsweredAddress> {
        let cut = |ttl: u32| ttl_max.map_or(ttl, |max| ttl.min(max));
        let withheld = |address: IpAddr| {
            let reported = learned.withheld.iter().find(|(other, _)| *other == address);
            reported.map(|(_, reason)| *reason)
        };
        let taught = self.answer.addresses.iter().map(|taught| AnsweredAddress {
            address: taught.address,
            ttl: cut(taught.ttl),
            withheld: withheld(taught.address),
        });
        let surplus = self.surplus.iter().map(|taught| AnsweredAddress {
            address: taught.address,
            ttl: cut(taught.ttl),
            withheld: Some(Withheld::Limit),
        });
        taught.chain(surplus).collect()
    }
}
