//! The verdict function over maps in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::IpAddr;

use namegate_egress_bpf::abi::{
    ABI_VERSION, Address, CONFIG_INCOMPLETE, CONFIG_RANGES, Config, Direction, Mac, ServiceKey,
    TableKey,
};
use namegate_egress_bpf::compile::{NameWrites, RowChanges, TableRows};
use namegate_egress_bpf::datapath::{EndpointEntry, FlowEvent, ServiceEntry};
use namegate_egress_bpf::sim::Simulation;
use namegate_egress_bpf::verdict::{IDENTITY_UNKNOWN, Scene, Verdict};
use namegate_policy::identity::Identity;
use namegate_policy::oracle::{Circumstances, Flow};
use namegate_policy::time::Timestamp;

use super::frames;
use super::world::{Bench, Crossing, PROXY_MAC, PROXY_PORT, PROXY_V4, PROXY_V6};
use crate::apply::{EndpointRow, Kernel};

/// Maps in memory.
#[derive(Debug, Default)]
pub struct Simulated {
    sim: Simulation,
    now: Timestamp,
}

impl Simulated {
    /// Empty maps of a cluster with these ranges.
    pub fn new(circumstances: &Circumstances) -> Self {
        let ranges = &circumstances.ranges;
        let ranges: BTreeMap<(Address, u32), u32> = ranges
            .pods
            .iter()
            .chain(&ranges.services)
            .map(|net| {
                let is_v4 = net.addr().is_ipv4();
                let length = u32::from(net.prefix_len()) + if is_v4 { 96 } else { 0 };
                ((Address::from(net.network()), length), Identity::UNMANAGED.number())
            })
            .collect();
        let config = Config {
            abi_version: ABI_VERSION,
            flags: if ranges.is_empty() { 0 } else { CONFIG_RANGES },
            proxy_ifindex: 1,
            proxy_port: PROXY_PORT,
            proxy_mac: Mac(PROXY_MAC),
            proxy_v4: IpAddr::V4(PROXY_V4).into(),
            proxy_v6: IpAddr::V6(PROXY_V6).into(),
            flows_max: u32::MAX,
        };
        let sim = Simulation { config: Some(config), ranges, ..Simulation::default() };
        Self { sim, now: Timestamp::default() }
    }
}

impl Bench for Simulated {
    fn set_now(&mut self, now: Timestamp) -> Result<(), Infallible> {
        self.now = now;
        Ok(())
    }

    fn cross(
        &mut self,
        ifindex: u32,
        direction: Direction,
        flow: &Flow,
        is_from_node: bool,
    ) -> Result<Option<Crossing>, Infallible> {
        let Some(frame) = frames::opening(flow, 40_000) else { return Ok(None) };
        let now_ns = self.now.as_nanos();
        let scene = Scene { ifindex, direction, is_from_node, is_returned: false, now_ns };
        self.sim.flows.clear();
        let (verdict, event) = self.sim.judge(&frame, &scene);
        let is_lookup = matches!(verdict, Verdict::ToProxy { .. });
        Ok(Some(Crossing { is_lookup, event: event.as_ref().and_then(FlowEvent::from_record) }))
    }
}

impl Kernel for Simulated {
    type Error = Infallible;

    fn install(&mut self, _table: u32, rows: &TableRows) -> Result<(), Infallible> {
        self.sim.install(rows);
        Ok(())
    }

    fn change_identities(&mut self, _table: u32, changes: &RowChanges) -> Result<(), Infallible> {
        self.sim.rows.peers.extend(&changes.upsert);
        for key in &changes.delete {
            self.sim.rows.peers.remove(key);
        }
        Ok(())
    }

    fn remove_table(&mut self, table: u32) -> Result<(), Infallible> {
        let rows = &mut self.sim.rows;
        rows.tables.retain(|key: &TableKey, _| key.table != table);
        rows.peers.retain(|key, _| key.table != table);
        rows.prefixes.retain(|key, _| key.table != table);
        rows.ports.retain(|key, _| key.table != table);
        self.sim.hits.retain(|key, _| key.table != table);
        Ok(())
    }

    fn write_names(&mut self, writes: &NameWrites) -> Result<(), Infallible> {
        self.sim.rows.peers.extend(&writes.classes);
        self.sim.names.extend(&writes.entries);
        for key in &writes.delete_entries {
            self.sim.names.remove(key);
        }
        for key in &writes.delete_classes {
            self.sim.rows.peers.remove(key);
        }
        Ok(())
    }

    fn set_endpoint(&mut self, row: &EndpointRow) -> Result<(), Infallible> {
        // Only more addresses than a row holds are refused, and then nothing passes.
        match EndpointEntry::from(row).row() {
            Ok(entry) => self.sim.endpoints.insert(row.ifindex, entry),
            Err(_) => self.sim.endpoints.remove(&row.ifindex),
        };
        Ok(())
    }

    fn remove_endpoint(&mut self, ifindex: u32) -> Result<(), Infallible> {
        self.sim.endpoints.remove(&ifindex);
        Ok(())
    }

    fn close(&mut self, ifindex: u32) -> Result<(), Infallible> {
        self.remove_endpoint(ifindex)
    }

    fn attach(&mut self, _ifindex: u32) -> Result<(), Infallible> {
        Ok(())
    }

    fn detach(&mut self, _ifindex: u32) -> Result<(), Infallible> {
        Ok(())
    }

    fn put_identities(&mut self, entries: &BTreeMap<IpAddr, Identity>) -> Result<(), Infallible> {
        let rows = entries.iter().map(|(ip, identity)| (Address::from(*ip), identity.number()));
        self.sim.ipcache.extend(rows);
        Ok(())
    }

    fn close_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), Infallible> {
        let rows = addresses.iter().map(|ip| (Address::from(*ip), IDENTITY_UNKNOWN));
        self.sim.ipcache.extend(rows);
        Ok(())
    }

    fn remove_identities(&mut self, addresses: &[IpAddr]) -> Result<(), Infallible> {
        let gone: BTreeSet<Address> = addresses.iter().copied().map(Address::from).collect();
        self.sim.ipcache.retain(|address, _| !gone.contains(address));
        Ok(())
    }

    fn set_complete(&mut self, is_complete: bool) -> Result<(), Infallible> {
        if let Some(config) = &mut self.sim.config {
            config.flags &= !CONFIG_INCOMPLETE;
            if !is_complete {
                config.flags |= CONFIG_INCOMPLETE;
            }
        }
        Ok(())
    }

    // Flows are asked about as they are behind the translation, so nothing is to be translated.
    fn set_services(
        &mut self,
        _services: &BTreeMap<ServiceKey, ServiceEntry>,
    ) -> Result<(), Infallible> {
        Ok(())
    }

    fn set_resolvers(&mut self, resolvers: &BTreeMap<u8, IpAddr>) -> Result<(), Infallible> {
        self.sim.resolvers =
            resolvers.iter().map(|(slot, ip)| (u32::from(*slot), Address::from(*ip))).collect();
        Ok(())
    }
}
