//! The walk of one query, whatever carried it: admitted, resolved, learned, released.
//!
//! The order is the crate's promise and is kept here alone: a reply with an upstream's addresses is
//! made in [`Lecture::finish`] ([`lecture`]), which takes the learner's outcome as an argument.

mod lecture;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;

use namegate_policy::dns::{ClauseSet, NameDecision, RefuseWith};
use namegate_policy::rule::Origin;
use namegate_policy::time::Timestamp;

use crate::answer::{self, AnswerError};
use crate::budget::NewNames;
use crate::cache::{self, Cache, Key};
use crate::clients::{Client, Clients};
use crate::clock;
use crate::config::{Limits, Timeouts};
use crate::counters::Counters;
use crate::gate::{self, Reason};
use crate::learner::{Learned, Learner, Learning, Lesson};
use crate::limits::{Loads, QueryPermit, Shed};
use crate::query::Query;
use crate::record::{DecisionLog, DecisionRecord, DnsFailure, DnsVerdict, Rcode, Transport};
use crate::reply::{self, Note};
use crate::stages::{Histogram, Stages};

pub(crate) use lecture::Lecture;

/// What every exchange needs.
pub(crate) struct Core {
    pub(crate) clients: Arc<dyn Clients>,
    pub(crate) learner: Arc<dyn Learner>,
    pub(crate) log: Arc<dyn DecisionLog>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) stages: Arc<Stages>,
    pub(crate) loads: Loads,
    pub(crate) new_names: NewNames,
    pub(crate) cache: Cache,
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
    pub(crate) shuffles_case: bool,
}

/// What becomes of a message from a pod.
pub(crate) enum Admission {
    /// Nothing is sent back.
    Drop,
    /// This is sent back.
    Reply(Vec<u8>),
    /// The cache has the answer.
    Cached(Box<Ask>, Vec<u8>),
    /// The upstream is asked.
    Resolve(Box<Ask>),
}

/// An allowed query under way.
pub(crate) struct Ask {
    pub(crate) query: Query,
    pub(crate) source: SocketAddr,
    pub(crate) key: Key,
    client: Arc<Client>,
    allowance: Allowance,
    transport: Transport,
    resolver: SocketAddr,
    received: Timestamp,
    _permit: QueryPermit,
}

/// Why a name may be asked, and what it opens.
struct Allowance {
    clauses: ClauseSet,
    origin: Option<Origin>,
    audit: bool,
}

/// The pod's message and where it came from.
pub(crate) struct Arrival<'a> {
    pub(crate) message: &'a [u8],
    pub(crate) source: SocketAddr,
    pub(crate) transport: Transport,
    pub(crate) resolver: SocketAddr,
    pub(crate) now: Timestamp,
}

/// What happens to an upstream's answer next.
pub(crate) enum Conclusion {
    /// Nothing is sent: the client is gone.
    Drop,
    /// This is sent.
    Reply(Vec<u8>),
    /// The learner is taught the lesson and awaited first.
    Learn(Lesson, Box<Lecture>),
}

impl Core {
    /// Attributes, reads and decides about one message. Shedding comes before parsing.
    pub(crate) fn admit(&self, arrival: &Arrival<'_>) -> Admission {
        self.guarded(|| self.try_admit(arrival)).unwrap_or_else(|Panicked| {
            let query = self.guarded(|| gate::read(arrival.message).ok()).ok().flatten();
            query.map_or(Admission::Drop, |query| {
                let payload = self.limits.udp_payload;
                Admission::Reply(reply::own(&query, Rcode::SERVFAIL, None, payload))
            })
        })
    }

    fn try_admit(&self, arrival: &Arrival<'_>) -> Admission {
        let counters = &self.counters;
        let number = match arrival.transport {
            Transport::Udp => counters.udp_messages.next(),
            Transport::Tcp => counters.tcp_messages.next(),
        };
        let timed = Stages::is_sample(number).then_some(&*self.stages);
        let Some(client) = self.clients.client(arrival.source.ip()) else {
            counters.dropped_unknown_client.increment();
            return Admission::Drop;
        };
        let permit = match self.loads.query(arrival.source.ip(), arrival.now) {
            Ok(permit) => permit,
            Err(shed) => {
                match shed {
                    Shed::InFlight => counters.dropped_client_in_flight.increment(),
                    Shed::Rate => counters.dropped_client_rate.increment(),
                }
                return Admission::Drop;
            }
        };
        let query = match taken(timed, |stages| &stages.gate, || gate::read(arrival.message)) {
            Ok(query) => query,
            Err(rejection) => {
                self.count_rejection(rejection.reason);
                return rejection.reply.map_or(Admission::Drop, Admission::Reply);
            }
        };
        let decide = || client.names.decide(&query.name);
        let decision = taken(timed, |stages| &stages.policy, decide);
        let mut ask = Ask {
            key: cache::key(&query, arrival.resolver),
            query,
            source: arrival.source,
            client,
            allowance: Allowance { clauses: ClauseSet::new(), origin: None, audit: false },
            transport: arrival.transport,
            resolver: arrival.resolver,
            received: arrival.now,
            _permit: permit,
        };
        match self.apply(decision, &mut ask, arrival.now) {
            Some(refusal) => Admission::Reply(refusal),
            None => match self.cache.fresh(&ask.key, arrival.now) {
                Some(message) => {
                    self.counters.cache_hits.increment();
                    Admission::Cached(Box::new(ask), message)
                }
                None => {
                    self.counters.cache_misses.increment();
                    Admission::Resolve(Box::new(ask))
                }
            },
        }
    }

    /// Takes an upstream's answer, or why there is none, and says what happens next.
    pub(crate) fn conclude(&self, ask: Ask, outcome: Resolution, now: Timestamp) -> Conclusion {
        let mut place = Some(ask);
        match self.guarded(|| self.try_conclude(&mut place, outcome, now)) {
            Ok(conclusion) => conclusion.unwrap_or(Conclusion::Drop),
            Err(Panicked) => place.map_or(Conclusion::Drop, |ask| {
                let failed = self.guarded(|| self.fail(&ask, DnsFailure::Internal, now));
                failed.map_or(Conclusion::Drop, Conclusion::Reply)
            }),
        }
    }

    /// Leaves the ask in its place until nothing more can go wrong.
    fn try_conclude(
        &self,
        place: &mut Option<Ask>,
        outcome: Resolution,
        now: Timestamp,
    ) -> Option<Conclusion> {
        let ask = place.as_mut()?;
        match self.confirm(ask, now) {
            Confirmation::Stands => {}
            Confirmation::Gone => return Some(Conclusion::Drop),
            Confirmation::Refused(reply) => return Some(Conclusion::Reply(reply)),
        }
        let (message, origin) = match outcome {
            Resolution::Upstream(message) => (message, Source::Upstream),
            Resolution::Cache(message) => (message, Source::Cache),
            Resolution::Failed(failure) => match self.cache.stale(&ask.key, now) {
                Some(message) => {
                    self.counters.cache_stale.increment();
                    (message, Source::Stale(failure))
                }
                None => return Some(Conclusion::Reply(self.fail(ask, failure, now))),
            },
        };
        let mut answer = match answer::read(&message, &ask.query) {
            Ok(answer) => answer,
            Err(error) => {
                self.counters.answers_malformed.increment();
                let failure = match error {
                    AnswerError::Malformed => DnsFailure::MalformedAnswer,
                    AnswerError::Truncated => DnsFailure::TruncatedAnswer,
                };
                return Some(Conclusion::Reply(self.fail(ask, failure, now)));
            }
        };
        if matches!(origin, Source::Upstream) {
            self.cache.keep(&ask.key, &message, &answer, now);
        }
        let kept = answer.addresses.len().min(self.limits.answer_addresses);
        let surplus = answer.addresses.split_off(kept);
        let lesson = (!answer.addresses.is_empty()).then(|| Lesson {
            client: Arc::clone(&ask.client),
            name: ask.query.name.clone(),
            clauses: ask.allowance.clauses.clone(),
            addresses: answer.addresses.clone(),
            now,
        });
        let ask = place.take()?;
        let lecture = Box::new(Lecture { ask, message, answer, origin, surplus, now });
        Some(match lesson {
            None => Conclusion::Reply(lecture.finish(self, Ok(Learned::default()), now)),
            Some(lesson) => {
                self.counters.lessons.increment();
                Conclusion::Learn(lesson, lecture)
            }
        })
    }

    /// Hands lessons to the learner. One that panics has learned nothing.
    pub(crate) fn teach(&self, lessons: Vec<Lesson>) -> Learning {
        let learning = self.guarded(|| self.learner.learn(lessons));
        let mut learning =
            learning.unwrap_or_else(|Panicked| Box::pin(std::future::ready(Vec::new())));
        let counters = Arc::clone(&self.counters);
        Box::pin(poll_fn(move |cx| {
            guarded(&counters, || learning.as_mut().poll(cx))
                .unwrap_or_else(|Panicked| Poll::Ready(Vec::new()))
        }))
    }

    fn guarded<T>(&self, work: impl FnOnce() -> T) -> Result<T, Panicked> {
        guarded(&self.counters, work)
    }

    /// Whether the endpoint and its policy still stand behind the decision about `ask`.
    fn confirm(&self, ask: &mut Ask, now: Timestamp) -> Confirmation {
        match self.clients.client(ask.source.ip()) {
            Some(client) if Arc::ptr_eq(&client, &ask.client) => Confirmation::Stands,
            Some(client) if client.endpoint == ask.client.endpoint => {
                let decision = client.names.decide(&ask.query.name);
                ask.client = client;
                match self.apply(decision, ask, now) {
                    Some(refusal) => Confirmation::Refused(refusal),
                    None => Confirmation::Stands,
                }
            }
            Some(_) | None => {
                self.counters.dropped_client_gone.increment();
                Confirmation::Gone
            }
        }
    }

    /// Notes an allowance in `ask`, or makes the refusal.
    fn apply(&self, decision: NameDecision, ask: &mut Ask, now: Timestamp) -> Option<Vec<u8>> {
        let (rcode, filters) = match decision {
            NameDecision::Allowed { clauses, origin, audit } => {
                ask.allowance = Allowance { clauses, origin, audit };
                if self.has_budget(ask, now) {
                    return None;
                }
                self.counters.denied.increment();
                self.counters.denied_new_names.increment();
                self.log.record(DecisionRecord {
                    failure: Some(DnsFailure::NewNames),
                    ..ask.record(DnsVerdict::Denied, Rcode::REFUSED, now)
                });
                let (note, payload) = (Some(Note::NewNames), self.limits.udp_payload);
                return Some(reply::own(&ask.query, Rcode::REFUSED, note, payload));
            }
            NameDecision::SearchMiss => (Rcode::NXDOMAIN, Vec::new()),
            NameDecision::Refused { with, filters } => {
                let rcode = match with {
                    RefuseWith::Refused => Rcode::REFUSED,
                    RefuseWith::NxDomain => Rcode::NXDOMAIN,
                    RefuseWith::Empty => Rcode::NOERROR,
                };
                (rcode, filters)
            }
        };
        self.counters.denied.increment();
        self.log.record(DecisionRecord {
            policies: filters,
            ..ask.record(DnsVerdict::Denied, rcode, now)
        });
        let payload = self.limits.udp_payload;
        Some(reply::own(&ask.query, rcode, Some(Note::Blocked), payload))
    }

    /// Whether the pod may ask this name, as far as it is a new one below wildcards.
    fn has_budget(&self, ask: &Ask, now: Timestamp) -> bool {
        let (client, name) = (&ask.client, &ask.query.name);
        !self.new_names.is_bounded()
            || !client.names.is_wildcard_alone(name)
            || self.new_names.admits(&client.endpoint, name, now)
    }

    /// The reply to a query that nobody is there to answer; `None` where not even that can be made.
    pub(crate) fn abandon(&self, ask: &Ask, now: Timestamp) -> Option<Vec<u8>> {
        self.guarded(|| self.fail(ask, DnsFailure::Internal, now)).ok()
    }

    fn fail(&self, ask: &Ask, failure: DnsFailure, now: Timestamp) -> Vec<u8> {
        let note = match failure {
            DnsFailure::LearnerFull | DnsFailure::LearnerFailed | DnsFailure::Stale => {
                Note::NotLearned
            }
            DnsFailure::UpstreamTimeout
            | DnsFailure::UpstreamUnreachable
            | DnsFailure::Overloaded
            | DnsFailure::MalformedAnswer
            | DnsFailure::TruncatedAnswer
            | DnsFailure::NewNames
            | DnsFailure::Internal => Note::Upstream,
        };
        self.counters.error.increment();
        self.log.record(DecisionRecord {
            failure: Some(failure),
            ..ask.record(DnsVerdict::Error, Rcode::SERVFAIL, now)
        });
        reply::own(&ask.query, Rcode::SERVFAIL, Some(note), self.limits.udp_payload)
    }

    fn count_rejection(&self, reason: Reason) {
        let counters = &self.counters;
        let counter = match reason {
            Reason::Short => &counters.dropped_short,
            Reason::Response => &counters.dropped_response,
            Reason::Malformed => &counters.rejected_malformed,
            Reason::Opcode => &counters.rejected_opcode,
            Reason::Class => &counters.rejected_class,
            Reason::Type => &counters.rejected_type,
            Reason::Signed => &counters.rejected_signed,
            Reason::Version => &counters.rejected_version,
        };
        counter.increment();
    }
}

/// What the upstream or the cache said.
#[derive(Clone)]
pub(crate) enum Resolution {
    /// The upstream's answer, just arrived.
    Upstream(Vec<u8>),
    /// An answer that was kept and is fresh.
    Cache(Vec<u8>),
    /// There is none.
    Failed(DnsFailure),
}

/// Where an answer came from.
#[derive(Clone, Copy)]
enum Source {
    Upstream,
    Cache,
    Stale(DnsFailure),
}

/// Does `work`, and notes how long it took where it is timed.
fn taken<T>(
    timed: Option<&Stages>,
    stage: impl FnOnce(&Stages) -> &Histogram,
    work: impl FnOnce() -> T,
) -> T {
    let Some(stages) = timed else {
        return work();
    };
    let began = clock::now();
    let done = work();
    stage(stages).note(clock::now().since(began));
    done
}

/// Something went wrong that nobody foresaw; the panic hook has said what.
struct Panicked;

/// Does `work`; a panic in it ends one query and not the thread.
fn guarded<T>(counters: &Counters, work: impl FnOnce() -> T) -> Result<T, Panicked> {
    // What the work changes is atomic, behind locks that outlive a panic, or the query's own.
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| {
        counters.panics.increment();
        Panicked
    })
}

enum Confirmation {
    Stands,
    Gone,
    Refused(Vec<u8>),
}

impl Ask {
    fn record(&self, verdict: DnsVerdict, rcode: Rcode, now: Timestamp) -> DecisionRecord {
        DecisionRecord {
            verdict,
            client: Arc::clone(&self.client),
            source: self.source,
            name: self.query.name.clone(),
            query_type: self.query.query_type,
            rcode,
            addresses: Vec::new(),
            policies: self.allowance.origin.iter().cloned().collect(),
            resolver: self.resolver.ip(),
            transport: self.transport,
            latency: now.since(self.received),
            failure: None,
            cached: false,
        }
    }

    /// The largest reply that the pod takes and the path carries.
    fn reply_size(&self, limits: &Limits) -> usize {
        match self.transport {
            Transport::Udp => self.query.payload().min(usize::from(limits.udp_payload)),
            Transport::Tcp => crate::wire::MESSAGE_MAX,
        }
    }
}
