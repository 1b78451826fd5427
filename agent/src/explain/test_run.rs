//! The loaded kernel program, by test runs: over maps of its own, on no interface.

use std::collections::BTreeMap;
use std::net::IpAddr;

use namegate_egress_bpf::abi::{Direction, NameEntry, NameKey, ServiceKey};
use namegate_egress_bpf::compile::{NameWrites, RowChanges, TableRows};
use namegate_egress_bpf::datapath::{
    Datapath, DatapathError, EndpointEntry, Events, Options, ProxySettings, RanVerdict,
    ServiceEntry, Settings,
};
use namegate_policy::identity::Identity;
use namegate_policy::oracle::{Circumstances, Flow};
use namegate_policy::time::Timestamp;

use super::frames;
use super::world::{Bench, Crossing, PROXY_MAC, PROXY_PORT, PROXY_V4, PROXY_V6};
use crate::apply::{EndpointRow, Kernel};

/// Test runs happen on the loopback.
const IFINDEX: u32 = 1;
const FLOWS_MAX: u32 = 65_536;
const NAMES_MAX: u32 = 16_384;
/// An endpoint may hold half of the flow table: an epoch opens fewer flows than that.
const FIRST_PORT: u16 = 40_000;

/// The kernel program and its maps.
pub struct TestRun {
    datapath: Datapath,
    events: Events,
    /// The endpoints by the interface that they would have.
    endpoints: BTreeMap<u32, EndpointRow>,
    /// The one whose interface the loopback stands for.
    standing: Option<u32>,
    /// What is learned, with the deadlines as they were given.
    names: BTreeMap<NameKey, NameEntry>,
    now: Timestamp,
    /// Flows of earlier epochs are dead: each run opens one of its own.
    epoch: u32,
    port: u16,
}

impl TestRun {
    /// Loads the program. Needs root; disturbs no agent.
    pub fn new(circumstances: &Circumstances) -> Result<Self, DatapathError> {
        let options = Options { names_max: NAMES_MAX, flows_max: FLOWS_MAX, ..Options::default() };
        let (mut datapath, events) = Datapath::unpinned(&options)?;
        datapath.configure(&Settings {
            proxy: Some(ProxySettings {
                ifindex: IFINDEX,
                mac: PROXY_MAC,
                v4: PROXY_V4,
                v6: PROXY_V6,
                port: PROXY_PORT,
            }),
            judges_other_protocols: false,
        })?;
        let ranges = &circumstances.ranges;
        let ranges = ranges.pods.iter().chain(&ranges.services);
        datapath.set_ranges(&ranges.map(|net| (*net, Identity::UNMANAGED)).collect())?;
        Ok(Self {
            datapath,
            events,
            endpoints: BTreeMap::new(),
            standing: None,
            names: BTreeMap::new(),
            now: Timestamp::default(),
            epoch: 1,
            port: FIRST_PORT,
        })
    }

    /// Lets the loopback stand for an endpoint's interface.
    fn stand_for(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        if self.standing == Some(ifindex) {
            return Ok(());
        }
        // No two flows of an epoch have the same port, so that nobody finds another's.
        self.datapath.remove_endpoint(IFINDEX)?;
        if let Some(row) = self.endpoints.get(&ifindex) {
            let row = EndpointRow { ifindex: IFINDEX, epoch: self.epoch, ..row.clone() };
            self.datapath.set_endpoint(&EndpointEntry::from(&row))?;
        }
        self.standing = Some(ifindex);
        Ok(())
    }

    fn stand_for_none(&mut self) -> Result<(), DatapathError> {
        self.standing = None;
        self.datapath.remove_endpoint(IFINDEX)
    }

    /// A source port that no flow of this epoch has.
    fn next_port(&mut self) -> Result<u16, DatapathError> {
        self.port = self.port.checked_add(1).unwrap_or(FIRST_PORT);
        if self.port == FIRST_PORT {
            self.epoch = self.epoch.wrapping_add(1);
            self.standing = None;
            self.datapath.remove_endpoint(IFINDEX)?;
            self.datapath.sweep(Timestamp::NEVER)?;
        }
        Ok(self.port)
    }

    /// An entry as the kernel's own clock has to see it: time stands still between two calls of
    /// [`Bench::set_now`].
    fn as_of_now(&self, entry: &NameEntry) -> NameEntry {
        let is_fresh = self.now.as_nanos() < entry.deadline_ns;
        NameEntry { deadline_ns: if is_fresh { u64::MAX } else { 1 }, ..*entry }
    }
}

impl std::fmt::Debug for TestRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestRun").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

impl Bench for TestRun {
    fn set_now(&mut self, now: Timestamp) -> Result<(), DatapathError> {
        self.now = now;
        let entries = self.names.iter().map(|(key, entry)| (*key, self.as_of_now(entry)));
        let writes = NameWrites { entries: entries.collect(), ..NameWrites::default() };
        self.datapath.write_names(&writes)
    }

    // A test run's packets are the node's own: whether they are asked to be makes no difference, for
    // only what comes from the node's address is exempt because of it.
    fn cross(
        &mut self,
        ifindex: u32,
        direction: Direction,
        flow: &Flow,
        _is_from_node: bool,
    ) -> Result<Option<Crossing>, DatapathError> {
        let port = self.next_port()?;
        self.stand_for(ifindex)?;
        let Some(frame) = frames::opening(flow, port) else { return Ok(None) };
        let ran = self.datapath.run(direction, &frame, 1)?;
        let is_lookup = ran.verdict == RanVerdict::Redirect;
        let event = self.events.next_event();
        while self.events.next_event().is_some() {}
        Ok(Some(Crossing { is_lookup, event }))
    }
}

impl Kernel for TestRun {
    type Error = DatapathError;

    fn install(&mut self, table: u32, rows: &TableRows) -> Result<(), DatapathError> {
        self.datapath.install(table, rows)
    }

    fn change_identities(&mut self, table: u32, changes: &RowChanges) -> Result<(), DatapathError> {
        self.datapath.change_identities(table, changes)
    }

    fn remove_table(&mut self, table: u32) -> Result<(), DatapathError> {
        self.stand_for_none()?;
        self.datapath.remove_table(table)
    }

    fn write_names(&mut self, writes: &NameWrites) -> Result<(), DatapathError> {
        self.names.extend(&writes.entries);
        for key in &writes.delete_entries {
            self.names.remove(key);
        }
        let entries = writes.entries.iter().map(|(key, entry)| (*key, self.as_of_now(entry)));
        let writes = NameWrites { entries: entries.collect(), ..writes.clone() };
        self.datapath.write_names(&writes)
    }

    fn set_endpoint(&mut self, row: &EndpointRow) -> Result<(), DatapathError> {
        self.endpoints.insert(row.ifindex, row.clone());
        self.stand_for_none()
    }

    fn remove_endpoint(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        self.endpoints.remove(&ifindex);
        self.stand_for_none()
    }

    fn close(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        self.remove_endpoint(ifindex)
    }

    fn attach(&mut self, _ifindex: u32) -> Result<(), DatapathError> {
        Ok(())
    }

    fn detach(&mut self, _ifindex: u32) -> Result<(), DatapathError> {
        Ok(())
    }

    fn put_identities(
        &mut self,
        entries: &BTreeMap<IpAddr, Identity>,
    ) -> Result<(), DatapathError> {
        self.datapath.put_identities(entries)
    }

    fn close_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), DatapathError> {
        self.datapath.close_addresses(addresses)
    }

    fn remove_identities(&mut self, addresses: &[IpAddr]) -> Result<(), DatapathError> {
        self.datapath.remove_identities(addresses)
    }

    fn set_complete(&mut self, is_complete: bool) -> Result<(), DatapathError> {
        self.datapath.set_complete(is_complete)
    }

    // Flows are asked about as they are behind the translation, so nothing is to be translated.
    fn set_services(
        &mut self,
        _services: &BTreeMap<ServiceKey, ServiceEntry>,
    ) -> Result<(), DatapathError> {
        Ok(())
    }

    fn set_resolvers(&mut self, resolvers: &BTreeMap<u8, IpAddr>) -> Result<(), DatapathError> {
        self.datapath.set_resolvers(resolvers)
    }
}
