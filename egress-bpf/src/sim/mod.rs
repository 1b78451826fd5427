//! Maps in memory.
//!
//! [`Simulation`] holds the same rows as the kernel's maps and answers the same questions, so that
//! `egress_verdict` can be asked without a kernel: by tests, and by whoever explains a verdict.

pub mod frame;

use std::collections::BTreeMap;

use crate::abi::{
    Address, Backend, BackendKey, CidrKey, Config, Direction, Endpoint, Event, Flow, FlowKey,
    Fragment, FragmentKey, HitKey, NameEntry, NameKey, PeerKey, PortKey, QuotaKey, RESOLVERS_MAX,
    RuleSet, Service, ServiceKey, Table, TableKey,
};
use crate::compile::TableRows;
use crate::packet::{Frame, Packet};
use crate::verdict::{Case, Full, Gate, Maps, Scene, Verdict, egress_verdict, pass_known};

/// Everything that the kernel's maps hold.
#[derive(Clone, Debug)]
pub struct Simulation {
    /// `CONFIG`.
    pub config: Option<Config>,
    /// `ENDPOINTS`.
    pub endpoints: BTreeMap<u32, Endpoint>,
    /// `RESOLVERS` and `RESOLVER_SLOTS`.
    pub resolvers: BTreeMap<u32, Address>,
    /// `IPCACHE`.
    pub ipcache: BTreeMap<Address, u32>,
    /// `RANGES`, by address and length.
    pub ranges: BTreeMap<(Address, u32), u32>,
    /// The rows of all tables.
    pub rows: TableRows,
    /// `NAMES`.
    pub names: BTreeMap<NameKey, NameEntry>,
    /// `SERVICES`.
    pub services: BTreeMap<ServiceKey, Service>,
    /// `BACKENDS`.
    pub backends: BTreeMap<BackendKey, Backend>,
    /// `FLOWS`.
    pub flows: BTreeMap<FlowKey, Flow>,
    /// `FRAGMENTS`.
    pub fragments: BTreeMap<FragmentKey, Fragment>,
    /// `HITS`.
    pub hits: BTreeMap<HitKey, u64>,
    /// `COUNTERS`, by direction and number.
    pub counters: BTreeMap<(Direction, u8), u64>,
    /// How many flows there may be.
    pub flows_max: usize,
    /// How many fragmented datagrams are remembered.
    pub fragments_max: usize,
}

impl Default for Simulation {
    fn default() -> Self {
        Self {
            config: None,
            endpoints: BTreeMap::new(),
            resolvers: BTreeMap::new(),
            ipcache: BTreeMap::new(),
            ranges: BTreeMap::new(),
            rows: TableRows::default(),
            names: BTreeMap::new(),
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            flows: BTreeMap::new(),
            fragments: BTreeMap::new(),
            hits: BTreeMap::new(),
            counters: BTreeMap::new(),
            flows_max: usize::MAX,
            fragments_max: usize::MAX,
        }
    }
}

impl Simulation {
    /// Adds the rows of a table.
    pub fn install(&mut self, rows: &TableRows) {
        self.rows.tables.extend(&rows.tables);
        self.rows.peers.extend(&rows.peers);
        self.rows.prefixes.extend(rows.prefixes.clone());
        self.rows.ports.extend(&rows.ports);
        self.hits.extend(rows.hits.iter().map(|key| (*key, 0)));
    }

    /// Judges a frame as the kernel program does: counted, and with the record that it would
    /// write.
    pub fn judge(&mut self, frame: &[u8], scene: &Scene) -> (Verdict, Option<Event>) {
        let Some(pass) = pass_known(&Frame(frame), self, scene) else {
            return self.judge_the_long_way(frame, scene);
        };
        let verdict = Verdict::Forward(pass);
        *self.counters.entry((scene.direction, verdict.counter())).or_default() += 1;
        (verdict, None)
    }

    /// The same without the short way that packets of known flows have: the outcome has to be the
    /// same, too.
    pub fn judge_the_long_way(&mut self, frame: &[u8], scene: &Scene) -> (Verdict, Option<Event>) {
        let mut case = Case::OPEN;
        let verdict = egress_verdict(&Frame(frame), self, scene, &mut case);
        let counter = verdict.counter();
        *self.counters.entry((scene.direction, counter)).or_default() += 1;
        let event = case.told(verdict).map(|told| case.event(scene, counter, told));
        (verdict, event)
    }
}

impl<P: Packet> Gate<P> for Simulation {}

impl Maps for Simulation {
    fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    fn endpoint(&self, ifindex: u32) -> Option<&Endpoint> {
        self.endpoints.get(&ifindex)
    }

    fn resolver_slot(&self, address: &Address) -> Option<u32> {
        self.resolvers.iter().find_map(|(slot, resolver)| (resolver == address).then_some(*slot))
    }

    fn has_resolver(&self, slot: u32, is_v4: bool) -> bool {
        usize::try_from(slot).is_ok_and(|slot| slot < RESOLVERS_MAX)
            && self.resolvers.get(&slot).is_some_and(|resolver| resolver.is_v4() == is_v4)
    }

    fn identity(&self, address: &Address) -> Option<u32> {
        self.ipcache.get(address).copied()
    }

    fn range_identity(&self, address: &Address) -> Option<u32> {
        self.ranges
            .iter()
            .filter(|((prefix, length), _)| shares(prefix, address, *length))
            .max_by_key(|((_, length), _)| *length)
            .map(|(_, identity)| *identity)
    }

    fn table(&self, key: &TableKey) -> Option<&Table> {
        self.rows.tables.get(key)
    }

    fn peers(&self, key: &PeerKey) -> Option<&RuleSet> {
        self.rows.peers.get(key)
    }

    fn cidr(&self, key: &CidrKey) -> Option<&RuleSet> {
        let (table, direction) = (u32::from_be_bytes(key.set), u32::from_be_bytes(key.direction));
        let prefixes = self.rows.prefixes.get(&TableKey { table, direction })?;
        let around =
            prefixes.iter().filter(|(prefix, length, _)| shares(prefix, &key.address, *length));
        around.max_by_key(|(_, length, _)| *length).map(|(_, _, rules)| rules)
    }

    fn ports(&self, key: &PortKey) -> Option<&RuleSet> {
        self.rows.ports.get(key)
    }

    fn name(&self, key: &NameKey) -> Option<&NameEntry> {
        self.names.get(key)
    }

    fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.get(key)
    }

    fn backend(&self, key: &BackendKey) -> Option<&Backend> {
        self.backends.get(key)
    }

    fn flow(&mut self, key: &FlowKey) -> Option<&mut Flow> {
        self.flows.get_mut(key)
    }

    // They are counted where they are.
    fn claim_flow(&mut self, key: &QuotaKey, may: impl FnOnce(u64, u64) -> bool) -> Option<bool> {
        let is_own = |flow: &&FlowKey| (flow.ifindex, flow.epoch) == (key.ifindex, key.epoch);
        let own = self.flows.keys().filter(is_own).count();
        Some(may(u64::try_from(own).ok()?, u64::try_from(self.flows.len()).ok()?))
    }

    fn put_flow(&mut self, key: &FlowKey, flow: &Flow) -> Result<(), Full> {
        if self.flows.len() >= self.flows_max && !self.flows.contains_key(key) {
            return Err(Full);
        }
        self.flows.insert(*key, *flow);
        Ok(())
    }

    fn fragment(&self, key: &FragmentKey) -> Option<&Fragment> {
        self.fragments.get(key)
    }

    fn put_fragment(&mut self, key: &FragmentKey, fragment: &Fragment) -> Result<(), Full> {
        if self.fragments.len() >= self.fragments_max && !self.fragments.contains_key(key) {
            return Err(Full);
        }
        self.fragments.insert(*key, *fragment);
        Ok(())
    }

    fn hit(&mut self, key: &HitKey) {
        if let Some(hits) = self.hits.get_mut(key) {
            *hits += 1;
        }
    }
}

/// Whether two addresses agree in their first `length` bits.
fn shares(one: &Address, other: &Address, length: u32) -> bool {
    let difference = u128::from_be_bytes(one.octets()) ^ u128::from_be_bytes(other.octets());
    difference.leading_zeros() >= length
}
