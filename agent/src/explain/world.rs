//! The agent's own way from objects to rows, up to a bench that judges frames.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use namegate_egress_bpf::abi::{Direction as Way, EventVerdict};
use namegate_egress_bpf::datapath::FlowEvent;
use namegate_policy::dns::NameDecision;
use namegate_policy::identity::Identity;
use namegate_policy::name::DnsName;
use namegate_policy::object::{Object, ObjectRef};
use namegate_policy::opening::Window;
use namegate_policy::oracle::{Circumstances, Flow, Lesson, LookupRuling, Ruling, Verdict};
use namegate_policy::resource::{Pod, PodRef};
use namegate_policy::rule::{Direction, Origin};
use namegate_policy::table::PolicyTable;
use namegate_policy::time::Timestamp;

use super::EngineError;
use crate::apply::{Apply, Kernel};
use crate::endpoints::{Interface, Town};
use crate::source::Changes;
use crate::state::{Answer, Effects, Event, Settings, State, Taught};

/// Where lookups are handed to: nothing listens there, the verdict alone counts.
pub(super) const PROXY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 53, 53);
pub(super) const PROXY_V6: Ipv6Addr = Ipv6Addr::new(0xfd6e, 0x616d, 0x6567, 0x6174, 0, 0, 0, 0x53);
pub(super) const PROXY_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x53];
pub(super) const PROXY_PORT: u16 = 15_300;

/// The loopback is the first interface everywhere.
const FIRST_IFINDEX: u32 = 2;
/// Past a deadline.
const PAST: Duration = Duration::from_nanos(1);

/// Rows, and something that judges frames by them.
pub trait Bench: Kernel<Error: Send + Sync + 'static> + fmt::Debug {
    /// Says what time it is from here on.
    fn set_now(&mut self, now: Timestamp) -> Result<(), Self::Error>;

    /// Judges the first frame of a flow at an endpoint's interface; `None` where no frame can carry
    /// its addresses.
    fn cross(
        &mut self,
        ifindex: u32,
        direction: Way,
        flow: &Flow,
        is_from_node: bool,
    ) -> Result<Option<Crossing>, Self::Error>;
}

/// What became of a frame.
#[derive(Clone, Debug)]
pub struct Crossing {
    /// Whether it was handed to the proxy.
    pub is_lookup: bool,
    /// The record of it.
    pub event: Option<FlowEvent>,
}

/// What became of a flow at one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruled {
    /// The verdict and who says so.
    pub ruling: Ruling,
    /// Why no rule was asked, or the gap that the datapath found: `itself`, `own-node`, `lookup`, or
    /// the name of a drop reason.
    pub exempt: Option<&'static str>,
}

/// A cluster as agents would enforce it: objects, learned addresses and rows.
#[derive(Debug)]
pub struct World<B> {
    state: State,
    apply: Apply<B>,
    objects: BTreeSet<ObjectRef>,
    interfaces: BTreeMap<PodRef, u32>,
    ipcache: BTreeMap<IpAddr, Identity>,
    tables: BTreeMap<u32, Arc<PolicyTable>>,
    notices: Vec<String>,
    circumstances: Circumstances,
    now: Timestamp,
}

impl<B: Bench> World<B> {
    /// A world without objects.
    pub fn new(bench: B, circumstances: &Circumstances) -> Self {
        Self {
            state: mk_state(circumstances),
            apply: Apply::new(bench, BTreeMap::new(), BTreeSet::new(), 0),
            objects: BTreeSet::new(),
            interfaces: BTreeMap::new(),
            ipcache: BTreeMap::new(),
            tables: BTreeMap::new(),
            notices: Vec::new(),
            circumstances: circumstances.clone(),
            now: Timestamp::default(),
        }
    }

    /// Takes objects in.
    pub fn take(&mut self, objects: &[Object]) -> Result<(), EngineError> {
        self.objects.extend(objects.iter().map(Object::reference));
        let upserts = objects.iter().cloned().map(with_interface).map(Arc::new).collect();
        let effects = self.handle(Event::Objects(Changes { upserts, ..Changes::default() }));
        self.settle(effects)
    }

    /// Forgets every object and all that was learned, so that the bench is as it was.
    pub fn leave(&mut self) -> Result<(), EngineError> {
        let removals = std::mem::take(&mut self.objects).into_iter().collect();
        self.interfaces.clear();
        let effects = self.handle(Event::Town(Town::default()));
        self.settle(effects)?;
        let effects = self.handle(Event::Objects(Changes { removals, ..Changes::default() }));
        self.settle(effects)?;
        self.state = mk_state(&self.circumstances);
        self.now = Timestamp::default();
        Ok(())
    }

    /// Puts pods under their policies, beside those that are.
    pub fn house<'p>(
        &mut self,
        pods: impl IntoIterator<Item = &'p PodRef>,
    ) -> Result<(), EngineError> {
        let before = self.interfaces.len();
        for pod in pods {
            let next = FIRST_IFINDEX + u32::try_from(self.interfaces.len()).unwrap_or(u32::MAX / 2);
            self.interfaces.entry(pod.clone()).or_insert(next);
        }
        if self.interfaces.len() == before {
            return Ok(());
        }
        let located = |(pod, index): (&PodRef, &u32)| {
            let key = (Arc::clone(&pod.namespace), Arc::clone(&pod.name));
            let interface = Interface { index: *index, name: format!("if{index}"), pod_mac: None };
            (key, Ok(interface))
        };
        let town = Town {
            pods: self.interfaces.iter().map(located).collect(),
            interfaces: self.interfaces.values().copied().collect(),
            ..Town::default()
        };
        let effects = self.handle(Event::Town(town));
        self.settle(effects)
    }

    /// Moves time on.
    pub fn advance(&mut self, now: Timestamp) -> Result<(), EngineError> {
        self.now = now;
        self.end(Event::Tick)?;
        self.apply.kernel().set_now(now).map_err(EngineError::run)
    }

    /// Forgets what was learned, by moving time on to where nothing of it counts.
    pub fn forget(&mut self) -> Result<(), EngineError> {
        while let Some(deadline) = self.state.next_deadline().filter(|next| *next > self.now) {
            self.advance(deadline.saturating_add(PAST))?;
        }
        self.end(Event::Swept { since: self.now, in_use: BTreeSet::new() })
    }

    /// Ends all that is due.
    fn end(&mut self, first: Event) -> Result<(), EngineError> {
        let effects = self.handle(first);
        self.settle(effects)?;
        while self.state.next_deadline().is_some_and(|deadline| deadline <= self.now) {
            let effects = self.handle(Event::Tick);
            self.settle(effects)?;
        }
        Ok(())
    }

    /// When it is.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// What the operator would be told of these objects.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Decides whether a pod that has a place may ask for `name`.
    pub fn ask(&self, pod: &PodRef, name: &DnsName) -> LookupRuling {
        let Some(table) = self.table_of(pod).filter(|table| table.names.is_governed()) else {
            return LookupRuling::Ungoverned;
        };
        match table.names.decide(name) {
            NameDecision::Allowed { clauses, origin, audit } => {
                LookupRuling::Allowed { origin, audit, opens: !clauses.is_empty() }
            }
            NameDecision::SearchMiss => LookupRuling::SearchMiss,
            NameDecision::Refused { with, filters } => LookupRuling::Refused { with, filters },
        }
    }

    /// Lets a pod that has a place get an answer, as the proxy does: only for a name that it may ask
    /// for.
    pub fn teach(&mut self, lesson: &Lesson) -> Result<Option<Taught>, EngineError> {
        let Lesson { pod, name, address, ttl, .. } = lesson;
        let Some(table) = self.table_of(pod) else { return Ok(None) };
        let NameDecision::Allowed { clauses, .. } = table.names.decide(name) else {
            return Ok(None);
        };
        let answer = Answer {
            identity: table.identity,
            name: name.clone(),
            clauses,
            addresses: vec![(*address, u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX))],
        };
        let taught = self.state.teach(&answer, self.now);
        let (effects, taught) = taught.map_err(EngineError::run)?;
        self.settle(effects)?;
        Ok(Some(taught))
    }

    /// Judges `flow` at the interface of `subject`, which has a place. `own_node` is the addresses
    /// of the node that the pod lives on.
    pub fn judge(
        &mut self,
        direction: Direction,
        subject: &Pod,
        own_node: &BTreeSet<IpAddr>,
        flow: &Flow,
    ) -> Result<Ruled, EngineError> {
        let remote = match direction {
            Direction::Egress => flow.destination,
            Direction::Ingress => flow.source,
        };
        let open = Ruling { verdict: Verdict::Forward, origins: Vec::new() };
        if subject.addresses.contains(&remote) {
            // Never leaves the pod (NP-23).
            return Ok(Ruled { ruling: open, exempt: Some("itself") });
        }
        let no_place = || EngineError::NoPlace { pod: subject.reference.clone() };
        let ifindex = *self.interfaces.get(&subject.reference).ok_or_else(no_place)?;
        // Each node is the host to its own pods alone.
        let is_host = own_node.contains(&remote) && self.state.pod_at(remote).is_none();
        if is_host {
            self.name(remote, Some(Identity::HOST))?;
        }
        let bench = self.apply.kernel();
        let crossing = bench.cross(ifindex, direction.into(), flow, is_host);
        if is_host {
            self.name(remote, self.ipcache.get(&remote).copied())?;
        }
        let crossing = crossing.map_err(EngineError::run)?.ok_or(EngineError::Families)?;
        if crossing.is_lookup {
            return Ok(Ruled { ruling: open, exempt: Some("lookup") });
        }
        let event = crossing.event.ok_or(EngineError::NoRecord)?;
        let exempt = match (event.verdict, event.clause) {
            (_, Some(_)) => None,
            (EventVerdict::Dropped, None) => Some(event.reason.as_str()),
            (EventVerdict::Forwarded | EventVerdict::Audit, None) => Some("own-node"),
        };
        Ok(Ruled { ruling: self.ruling(&event), exempt })
    }

    fn ruling(&self, event: &FlowEvent) -> Ruling {
        let (verdict, clause) = match event.verdict {
            EventVerdict::Forwarded => (Verdict::Forward, event.clause),
            EventVerdict::Audit => (Verdict::Audit, event.audit),
            EventVerdict::Dropped => (Verdict::Drop, event.clause),
        };
        Ruling { verdict, origins: self.origins(event, clause) }
    }

    fn origins(&self, event: &FlowEvent, clause: Option<u16>) -> Vec<Origin> {
        let clause = self.tables.get(&event.table).zip(clause).and_then(|(table, clause)| {
            let clauses = match event.direction {
                Way::Egress => &table.egress,
                Way::Ingress => &table.ingress,
            };
            clauses.get(usize::from(clause))
        });
        clause.map(|clause| clause.origins.to_vec()).unwrap_or_default()
    }

    fn name(&mut self, address: IpAddr, who: Option<Identity>) -> Result<(), EngineError> {
        let bench = self.apply.kernel();
        let written = match who {
            Some(identity) => bench.put_identities(&BTreeMap::from([(address, identity)])),
            None => bench.remove_identities(&[address]),
        };
        written.map_err(EngineError::run)
    }

    fn table_of(&self, pod: &PodRef) -> Option<&Arc<PolicyTable>> {
        self.state.tables().get(&self.state.identity_of_pod(pod)?)
    }

    fn handle(&mut self, event: Event) -> Effects {
        self.state.handle(event, self.now)
    }

    fn settle(&mut self, mut effects: Effects) -> Result<(), EngineError> {
        for (address, who) in &effects.ipcache {
            match who {
                Some(identity) => self.ipcache.insert(*address, *identity),
                None => self.ipcache.remove(address),
            };
        }
        self.notices.append(&mut effects.notices);
        let outcome = self.apply.apply(effects);
        self.tables.extend(outcome.tables);
        self.tables.retain(|table, _| !outcome.removed_tables.contains(table));
        if outcome.failures.is_empty() {
            Ok(())
        } else {
            Err(EngineError::Write { failures: outcome.failures })
        }
    }
}

fn mk_state(circumstances: &Circumstances) -> State {
    State::new(Settings {
        cluster_domain: circumstances.domain.clone(),
        ranges: circumstances.ranges.clone(),
        guard: circumstances.guard,
        window: Window { min_ttl: circumstances.min_ttl, grace: circumstances.grace },
        resolvers: circumstances.resolvers.iter().copied().collect(),
        own_addresses: BTreeSet::new(),
        has_ipv6: true,
        node_name: None,
    })
    .with_search(circumstances.search.clone())
}

/// A pod that says where it lives, as those must that the agent gives a place.
fn with_interface(object: Object) -> Object {
    const ANNOTATION: &str = "namegate.dev/interface";
    if let Object::Pod(mut pod) = object {
        pod.annotations.insert(ANNOTATION.into(), "explained".into());
        return Object::Pod(pod);
    }
    object
}
