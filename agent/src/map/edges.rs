//! Decisions gathered into edges: who talks to whom, on which port, with which outcome, how often.
//!
//! Bounded in all: a workload that makes up names or scans ports pushes out edges of its own, and
//! where all together are too many, whoever holds most gives way. Every change has a number, so that
//! a reader that says what it has seen is given the rest alone. Reads no clock.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::party::Party;
use crate::audit::{
    DnsRecord, Entry, FlowDirection, FlowRecord, FlowVerdict, LookupVerdict, PolicyLabel, Record,
    ServiceEnd,
};

/// Names, policies and the like that an edge lists besides at most.
const LISTED_MAX: usize = 8;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Edges in all.
    pub edges: usize,
    /// Edges of one workload.
    pub of_one: usize,
    /// Numbers of edges that went, for readers that still show them.
    pub gone: usize,
    /// Edges that a reader is handed at once.
    pub batch: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { edges: 16_384, of_one: 512, gone: 8_192, batch: 2_048 }
    }
}

/// What became of the lookup or the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It went through.
    Allowed,
    /// It went through, and without Audit mode would not have.
    Audit,
    /// Policy refused it.
    Denied,
    /// It failed for another reason than policy.
    Error,
}

/// What tells edges apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub struct Talk {
    /// Who asks or opens.
    pub from: Party,
    /// Whom.
    pub to: Party,
    /// `dns` for a lookup, else the protocol.
    pub protocol: Arc<str>,
    /// The port; 0 where there is none.
    pub port: u16,
    /// At whose end it was decided; lookups are `egress`.
    pub direction: FlowDirection,
    /// What became of it.
    pub verdict: Verdict,
    /// Why, in a word.
    pub reason: Arc<str>,
    /// Code of the answer to a lookup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rcode: Option<Arc<str>>,
    /// The rule that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Arc<str>>,
}

/// All decisions that are alike.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Edge {
    /// Its number, for as long as it is kept.
    pub id: u64,
    /// What it is.
    #[serde(flatten)]
    pub talk: Talk,
    /// How many decisions.
    pub count: u64,
    /// When the first was, in milliseconds of Unix time.
    pub first_ms: u64,
    /// When the last was.
    pub last_ms: u64,
    /// The pod of the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Arc<str>>,
    /// The other end's address in the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The service that it went through in the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Arc<str>>,
    /// Other names that its address was learned under.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Arc<str>>,
    /// Policies that select the endpoint, where none of their rules decided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub selecting: Vec<Arc<str>>,
}

/// What changed since a reader looked.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Changes {
    /// The number of the last change in here: what the reader says next time.
    pub revision: u64,
    /// The last change when the reader began: what it says besides.
    pub began: u64,
    /// Whether the reader has to forget what it has.
    pub is_whole: bool,
    /// Whether there is more at once.
    pub has_more: bool,
    /// Edges that are not kept any more.
    pub gone: Vec<u64>,
    /// Edges that came or changed, the one that changed longest ago first.
    pub edges: Vec<Edge>,
    /// How many edges there are.
    pub kept: usize,
    /// How many there may be.
    pub max: usize,
    /// How many edges had to make room for others so far.
    pub evicted: u64,
    /// How many decisions the map did not hear of.
    pub missed: u64,
}

/// All edges.
#[derive(Debug)]
pub struct Edges {
    limits: Limits,
    revision: u64,
    next_id: u64,
    /// By the change that touched them last.
    edges: BTreeMap<u64, Edge>,
    places: HashMap<Talk, u64>,
    /// The places of each workload whose pod the decision was about.
    holders: HashMap<Party, BTreeSet<u64>>,
    gone: VecDeque<(u64, u64)>,
    /// The change up to which those that went are forgotten.
    forgotten: u64,
    evicted: u64,
    missed: u64,
}

impl Edges {
    /// None yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            revision: 0,
            next_id: 0,
            edges: BTreeMap::new(),
            places: HashMap::new(),
            holders: HashMap::new(),
            gone: VecDeque::new(),
            forgotten: 0,
            evicted: 0,
            missed: 0,
        }
    }

    /// Takes a decision.
    pub fn take(&mut self, entry: &Entry) {
        let seen = match &entry.record {
            Record::Dns(record) => Seen::lookup(record),
            Record::Flow(record) => Seen::flow(record),
            Record::Lost(lost) => {
                self.miss(lost.count);
                return;
            }
            // Kept out of the log, and heard here.
            Record::Suppressed(_) => return,
        };
        self.add(seen, milliseconds(entry.time));
    }

    /// Counts decisions that were not heard.
    pub const fn miss(&mut self, count: u64) {
        self.missed = self.missed.saturating_add(count);
    }

    /// What changed since the change numbered `since`, for a reader that began when `began` was the
    /// last: it needs to hear of no edge that went before.
    pub fn since(&self, since: u64, began: u64) -> Changes {
        let heard = since.max(began);
        let is_whole = since == 0 || heard < self.forgotten || heard > self.revision;
        let (since, began) = if is_whole { (0, self.revision) } else { (since, began) };
        let heard = since.max(began);
        let mut after = self.edges.range(since + 1..);
        let batch: Vec<(&u64, &Edge)> = after.by_ref().take(self.limits.batch).collect();
        let has_more = after.next().is_some();
        let revision = match batch.last() {
            Some((last, _)) if has_more => **last,
            _ => self.revision,
        };
        // Some are told twice to who is not done yet, and gone they stay.
        let gone = self.gone.iter().filter(|(at, _)| *at > heard);
        Changes {
            revision,
            began,
            is_whole,
            has_more,
            gone: gone.map(|(_, id)| *id).collect(),
            edges: batch.into_iter().map(|(_, edge)| edge.clone()).collect(),
            kept: self.edges.len(),
            max: self.limits.edges,
            evicted: self.evicted,
            missed: self.missed,
        }
    }

    fn add(&mut self, seen: Seen, now_ms: u64) {
        let Seen { talk, pod, address, service, also, selecting } = seen;
        self.revision += 1;
        let holder = talk.holder().clone();
        let edge = match self.places.get(&talk).and_then(|place| self.edges.remove(place)) {
            Some(edge) => {
                let former = self.places.insert(talk, self.revision);
                if let (Some(held), Some(former)) = (self.holders.get_mut(&holder), former) {
                    held.remove(&former);
                }
                let count = edge.count.saturating_add(1);
                Edge { count, last_ms: now_ms, pod, address, service, also, selecting, ..edge }
            }
            None => {
                self.make_room(&holder);
                // Making room is a change of its own.
                self.revision += 1;
                self.places.insert(talk.clone(), self.revision);
                self.next_id += 1;
                let (count, first_ms, last_ms) = (1, now_ms, now_ms);
                let id = self.next_id;
                Edge { id, talk, count, first_ms, last_ms, pod, address, service, also, selecting }
            }
        };
        self.edges.insert(self.revision, edge);
        self.holders.entry(holder).or_default().insert(self.revision);
    }

    /// Makes room for one edge more of `holder`.
    fn make_room(&mut self, holder: &Party) {
        let own = self.holders.get(holder);
        if own.is_some_and(|own| own.len() >= self.limits.of_one) {
            let oldest = own.and_then(|own| own.first().copied());
            self.evict(holder, oldest);
        } else if self.edges.len() >= self.limits.edges {
            let largest = self.holders.iter().max_by_key(|(_, held)| held.len());
            let Some((largest, held)) = largest else { return };
            // Several at once, so that the largest is not looked for each time.
            let oldest: Vec<u64> = held.iter().take(held.len().div_ceil(8)).copied().collect();
            let largest = largest.clone();
            self.evict(&largest, oldest);
        }
    }

    fn evict(&mut self, holder: &Party, places: impl IntoIterator<Item = u64>) {
        for place in places {
            let Some(edge) = self.edges.remove(&place) else { continue };
            self.places.remove(&edge.talk);
            if let Some(held) = self.holders.get_mut(holder) {
                held.remove(&place);
            }
            self.evicted += 1;
            self.gone.push_back((self.revision, edge.id));
        }
        if self.holders.get(holder).is_some_and(BTreeSet::is_empty) {
            self.holders.remove(holder);
        }
        while self.gone.len() > self.limits.gone {
            self.forgotten = self.gone.pop_front().map_or(self.forgotten, |(at, _)| at);
        }
    }
}

impl Talk {
    /// The workload that the decision is about.
    const fn holder(&self) -> &Party {
        match self.direction {
            FlowDirection::Egress => &self.from,
            FlowDirection::Ingress => &self.to,
        }
    }
}

/// One decision, ready to be counted.
struct Seen {
    talk: Talk,
    pod: Option<Arc<str>>,
    address: Option<IpAddr>,
    service: Option<Arc<str>>,
    also: Vec<Arc<str>>,
    selecting: Vec<Arc<str>>,
}

impl Seen {
    fn lookup(record: &DnsRecord) -> Self {
        let name = record.query.as_ref().map_or("?", |query| query.name.as_str());
        let talk = Talk {
            from: Party::of_endpoint(&record.endpoint),
            to: Party::Name { name: name.trim_end_matches('.').into() },
            protocol: "dns".into(),
            port: 0,
            direction: FlowDirection::Egress,
            verdict: match record.verdict {
                LookupVerdict::Allowed => Verdict::Allowed,
                LookupVerdict::Denied => Verdict::Denied,
                LookupVerdict::Audit => Verdict::Audit,
                LookupVerdict::Error => Verdict::Error,
            },
            reason: record.reason.as_ref().into(),
            rcode: record.rcode.as_deref().map(Into::into),
            policy: record.policy.as_ref().map(words),
        };
        Self {
            talk,
            pod: record.endpoint.pod.clone(),
            address: record.addresses.first().map(|answered| answered.address),
            service: None,
            also: Vec::new(),
            selecting: selecting(record.policy.as_ref(), &record.policies),
        }
    }

    fn flow(record: &FlowRecord) -> Self {
        let is_egress = record.direction == FlowDirection::Egress;
        let own = Party::of_endpoint(&record.endpoint);
        let (from, to, other) = if is_egress {
            (own, Party::of_target(&record.destination), &record.destination)
        } else {
            (Party::of_opener(&record.source), own, &record.source)
        };
        // An echo has an identifier where others have a port.
        let is_echo = record.protocol.starts_with("icmp");
        let talk = Talk {
            from,
            to,
            protocol: record.protocol.as_ref().into(),
            port: if is_echo { 0 } else { record.destination.port },
            direction: record.direction,
            verdict: match record.verdict {
                FlowVerdict::Forwarded => Verdict::Allowed,
                FlowVerdict::Dropped => Verdict::Denied,
                FlowVerdict::Audit => Verdict::Audit,
            },
            reason: record.reason.as_ref().into(),
            rcode: None,
            policy: record.policy.as_ref().map(words),
        };
        let also = other.names.iter().skip(1).take(LISTED_MAX).map(|name| name.as_ref().into());
        Self {
            talk,
            pod: record.endpoint.pod.clone(),
            address: other.address,
            service: record.service.as_ref().map(called),
            also: also.collect(),
            selecting: selecting(record.policy.as_ref(), &record.policies),
        }
    }
}

/// Who selects the endpoint, where no rule decided.
fn selecting(decider: Option<&PolicyLabel>, policies: &[PolicyLabel]) -> Vec<Arc<str>> {
    let listed = policies.iter().filter(|_| decider.is_none()).take(LISTED_MAX);
    listed.map(words).collect()
}

/// A service by its name, or by its address where that is all that is known.
fn called(service: &ServiceEnd) -> Arc<str> {
    match (&service.namespace, &service.name) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name} port {}", service.port).into(),
        _ => format!("{} port {}", service.address, service.port).into(),
    }
}

fn words(label: &PolicyLabel) -> Arc<str> {
    let PolicyLabel { kind, namespace, name, rule } = label;
    let namespace = namespace.as_deref().map(|own| format!("{own}/")).unwrap_or_default();
    let rule = rule.as_deref().map(|rule| format!(" rule {rule}")).unwrap_or_default();
    format!("{kind} {namespace}{name}{rule}").into()
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
