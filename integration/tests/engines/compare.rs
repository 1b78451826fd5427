//! One town, told to three engines; what each says to every question.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use namegate::explain::{Engine, EngineKind, Ruled};
use namegate_policy::name::DnsName;
use namegate_policy::object::Object;
use namegate_policy::opening::ClusterRanges;
use namegate_policy::oracle::{Circumstances, Flow, Lesson, LookupRuling, Oracle, Verdict};
use namegate_policy::resource::{Pod, PodRef};
use namegate_policy::rule::Direction;
use namegate_policy::testing::Documents;
use namegate_policy::time::Timestamp;

const KINDS: [EngineKind; 3] = [EngineKind::Oracle, EngineKind::Host, EngineKind::Kernel];

/// The three engines; those with maps keep them from town to town, empty in between.
pub(crate) struct Engines {
    kinds: Vec<EngineKind>,
    /// By the circumstances that they were made for: loading the program takes its time.
    known: BTreeMap<String, Vec<(EngineKind, Engine)>>,
}

/// How much was compared.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) flows: u64,
    ends: u64,
    lookups: u64,
    by_outcome: BTreeMap<&'static str, u64>,
}

/// Two engines that say different things.
#[derive(Debug)]
pub(crate) struct Disagreement {
    question: String,
    said: Vec<(EngineKind, String)>,
}

/// Something that happens in a town.
enum Step<'a> {
    Lesson(&'a Pod, Lesson),
    Flow(&'a Flow, [Option<&'a Pod>; 2]),
    Lookup(&'a Pod, &'a DnsName),
}

/// What an engine says.
#[derive(Debug, PartialEq)]
enum Said {
    Nothing,
    Ends([Option<Ruled>; 2]),
    Lookup(LookupRuling),
}

impl Engines {
    pub(crate) fn open() -> Self {
        Self { kinds: KINDS.to_vec(), known: BTreeMap::new() }
    }

    /// The oracle, and of the others one that disagrees with it: enough to shrink a town by.
    pub(crate) fn apart(disagreement: &Disagreement) -> Self {
        let (_, oracle) = &disagreement.said[0];
        let other = disagreement.said.iter().find(|(_, said)| said != oracle);
        let other = other.map_or(EngineKind::Kernel, |(kind, _)| *kind);
        Self { kinds: vec![EngineKind::Oracle, other], known: BTreeMap::new() }
    }

    /// Asks all engines everything about a town; the first question that they disagree about.
    pub(crate) fn compare(
        &mut self,
        town: &Documents,
        tally: &mut Tally,
    ) -> Result<Option<Disagreement>> {
        let objects = town.case()?.objects;
        let circumstances = circumstances(town);
        let steps = steps(town, &objects, &circumstances);
        let mut said = Vec::new();
        let engines = self.of(&circumstances)?;
        for (kind, engine) in engines.iter_mut() {
            said.push((*kind, tell(engine, &objects, &circumstances, &steps)?));
        }
        for (index, (_, step)) in steps.iter().enumerate() {
            let (_, first) = &said[0];
            tally.count(&first[index]);
            if said.iter().any(|(_, all)| all[index] != first[index]) {
                let said = said.iter().map(|(kind, all)| (*kind, format!("{:?}", all[index])));
                let said = said.collect();
                // What was left half done is not carried on.
                self.known.clear();
                return Ok(Some(Disagreement { question: step.to_string(), said }));
            }
        }
        Ok(None)
    }

    fn of(&mut self, circumstances: &Circumstances) -> Result<&mut Vec<(EngineKind, Engine)>> {
        let Self { kinds, known } = self;
        match known.entry(format!("{circumstances:?}")) {
            Entry::Occupied(engines) => Ok(engines.into_mut()),
            Entry::Vacant(place) => {
                let open = |kind: &EngineKind| Ok((*kind, Engine::new(*kind, circumstances)?));
                Ok(place.insert(kinds.iter().map(open).collect::<Result<_>>()?))
            }
        }
    }
}

/// Goes through the whole story of a town with one engine, and empties it again.
fn tell(
    engine: &mut Engine,
    objects: &[Object],
    circumstances: &Circumstances,
    steps: &[(Timestamp, Step<'_>)],
) -> Result<Vec<Said>> {
    engine.take(objects)?;
    let pods = objects
        .iter()
        .filter_map(|object| if let Object::Pod(pod) = object { Some(pod) } else { None });
    engine.house(pods.filter(|pod| has_place(pod)).map(|pod| &pod.reference))?;
    let mut said = Vec::with_capacity(steps.len());
    let mut now = None;
    for (at, step) in steps {
        if now != Some(*at) {
            engine.advance(*at)?;
            now = Some(*at);
        }
        said.push(match step {
            Step::Lesson(pod, lesson) => {
                engine.teach(pod, lesson)?;
                Said::Nothing
            }
            Step::Lookup(pod, name) => Said::Lookup(engine.ask(pod, name)),
            Step::Flow(flow, [source, destination]) => {
                let mut judge = |direction, pod: &Option<&Pod>| {
                    let own = &circumstances.own_addresses;
                    pod.map(|pod| engine.judge(direction, pod, own, flow)).transpose()
                };
                Said::Ends([
                    judge(Direction::Egress, source)?,
                    judge(Direction::Ingress, destination)?,
                ])
            }
        });
    }
    engine.leave()?;
    Ok(said)
}

fn has_place(pod: &Pod) -> bool {
    !pod.is_host_network && !pod.is_finished && !pod.addresses.is_empty()
}

fn circumstances(town: &Documents) -> Circumstances {
    Circumstances {
        own_addresses: town.own_addresses.clone(),
        ranges: ClusterRanges { pods: town.ranges.clone(), ..ClusterRanges::default() },
        ..Circumstances::default()
    }
}

/// What happens, in order. Before a pod learns a name it asks for it.
fn steps<'a>(
    town: &'a Documents,
    objects: &'a [Object],
    circumstances: &'a Circumstances,
) -> Vec<(Timestamp, Step<'a>)> {
    let oracle = Oracle { objects, circumstances, lessons: &[], now: Timestamp::default() };
    let pod_at = |address: IpAddr| oracle.party(address).pod();
    let asker = |name: &PodRef| {
        oracle.pods().find(|pod| pod.reference == *name).filter(|pod| has_place(pod))
    };
    let mut steps = Vec::new();
    for one in &town.lessons {
        let Some(pod) = asker(&one.pod) else { continue };
        let at = seconds(one.at);
        let (name, address, ttl) = (one.name.clone(), one.address, Duration::from_secs(one.ttl));
        steps.push((at, Step::Lookup(pod, &one.name)));
        let pod_ref = one.pod.clone();
        steps.push((at, Step::Lesson(pod, Lesson { pod: pod_ref, name, address, ttl, at })));
    }
    for (flow, at) in &town.flows {
        let ends = [pod_at(flow.source), pod_at(flow.destination)];
        steps.push((seconds(*at), Step::Flow(flow, ends)));
    }
    // A stable sort: at one second, answers come before flows.
    steps.sort_by_key(|(at, _)| *at);
    steps
}

/// The clock does not start at zero, so that nothing has expired because it is early.
fn seconds(seconds: u64) -> Timestamp {
    Timestamp::from_nanos((seconds + 1_000) * 1_000_000_000)
}

impl Tally {
    /// Whether no engine was asked anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.flows + self.lookups == 0
    }

    fn count(&mut self, said: &Said) {
        match said {
            Said::Nothing => {}
            Said::Lookup(ruling) => {
                self.lookups += 1;
                self.note(match ruling {
                    LookupRuling::Ungoverned => "lookups ungoverned",
                    LookupRuling::Allowed { audit: true, .. } => "lookups audited",
                    LookupRuling::Allowed { opens: true, .. } => "lookups that open",
                    LookupRuling::Allowed { .. } => "lookups that open nothing",
                    LookupRuling::SearchMiss => "search misses",
                    LookupRuling::Refused { .. } => "lookups refused",
                });
            }
            Said::Ends(ends) => {
                self.flows += 1;
                for ruled in ends.iter().flatten() {
                    self.ends += 1;
                    let by_rule = ruled.ruling.origins.iter().any(|one| one.rule.is_some());
                    self.note(match (ruled.ruling.verdict, by_rule, ruled.exempt) {
                        (_, _, Some(exempt)) => exempt,
                        (Verdict::Forward, true, _) => "allowed by a rule",
                        (Verdict::Forward, false, _) => "open",
                        (Verdict::Audit, ..) => "audited",
                        (Verdict::Drop, true, _) => "denied by a rule",
                        (Verdict::Drop, false, _) => "dropped by isolation",
                    });
                }
            }
        }
    }

    fn note(&mut self, outcome: &'static str) {
        *self.by_outcome.entry(outcome).or_default() += 1;
    }

    /// Whether enough of every kind came about for the agreement to mean something.
    pub(crate) fn is_telling(&self) -> Result<()> {
        for outcome in [
            "allowed by a rule",
            "denied by a rule",
            "dropped by isolation",
            "open",
            "audited",
            "own-node",
            "itself",
            "lookup",
            "lookups that open",
            "lookups refused",
        ] {
            let count = self.by_outcome.get(outcome).copied().unwrap_or(0);
            ensure!(count * 1_000 >= self.flows, "only {count} times {outcome}: {self}");
        }
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flows, ends, lookups, by_outcome } = self;
        write!(f, "{flows} flows judged at {ends} ends and {lookups} lookups by three engines (")?;
        for (index, (outcome, count)) in by_outcome.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{outcome} {count}")?;
        }
        f.write_str(")")
    }
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the engines disagree about {}", self.question)?;
        self.said.iter().try_for_each(|(kind, said)| write!(f, "\n  {kind}: {said}"))
    }
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lesson(pod, lesson) => write!(f, "an answer to {}: {lesson:?}", pod.reference),
            Self::Lookup(pod, name) => write!(f, "{} asking for {name}", pod.reference),
            Self::Flow(flow, _) => write!(f, "{flow:?}"),
        }
    }
}
