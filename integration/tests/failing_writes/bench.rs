//! A node of which only the kernel's maps are real: no interface is attached, and the loopback, which
//! test runs happen on, stands for the first pod's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use namegate::apply::{EndpointRow, Kernel};
use namegate_egress_bpf::abi::{Direction, Mac, ServiceKey};
use namegate_egress_bpf::compile::{NameWrites, RowChanges, TableRows};
use namegate_egress_bpf::datapath::{
    Counters, Datapath, DatapathError, Options, ProxySettings, RanVerdict, ServiceEntry, Settings,
};
use namegate_egress_bpf::packet::{TCP_SYN, protocol};
use namegate_egress_bpf::sim::frame;
use namegate_policy::identity::Identity;
use namegate_policy::time::Timestamp;

/// The loopback's.
pub(crate) const IFINDEX: u32 = 1;
/// The pod behind it.
pub(crate) const OWN: [u8; 4] = [10, 244, 1, 5];

const MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0x01]);
const FIRST_PORT: u16 = 20_000;

/// A packet that would be the first of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Probe {
    pub(crate) direction: Direction,
    pub(crate) protocol: u8,
    pub(crate) remote: [u8; 4],
    pub(crate) port: u16,
}

impl Probe {
    pub(crate) const fn to(remote: [u8; 4], port: u16) -> Self {
        Self { direction: Direction::Egress, protocol: protocol::TCP, remote, port }
    }

    pub(crate) const fn from(remote: [u8; 4], port: u16) -> Self {
        Self { direction: Direction::Ingress, ..Self::to(remote, port) }
    }

    pub(crate) const fn lookup_at(remote: [u8; 4]) -> Self {
        Self { protocol: protocol::UDP, ..Self::to(remote, 53) }
    }
}

pub(crate) struct Bench {
    datapath: Datapath,
    /// Whether its maps are pinned, and programs really attached.
    is_pinned: bool,
    attached: BTreeSet<u32>,
    port: u16,
}

impl Bench {
    pub(crate) fn open(options: &Options) -> Result<Self> {
        Self::begin(Datapath::unpinned(options)?.0, false)
    }

    /// Over pinned maps, and those that others left below the same root.
    pub(crate) fn pinned(options: &Options) -> Result<Self> {
        Self::begin(Datapath::open(options)?.0, true)
    }

    fn begin(mut datapath: Datapath, is_pinned: bool) -> Result<Self> {
        datapath.configure(&Settings {
            proxy: Some(ProxySettings {
                ifindex: IFINDEX,
                mac: MAC.0,
                v4: [169, 254, 20, 53].into(),
                v6: "fd00::53".parse()?,
                port: 15_000,
            }),
            judges_other_protocols: false,
        })?;
        let ranges = ["10.244.0.0/16", "10.96.0.0/12"];
        let ranges = ranges.into_iter().map(|net| Ok((net.parse()?, Identity::UNMANAGED)));
        datapath.set_ranges(&ranges.collect::<Result<_>>()?)?;
        Ok(Self { datapath, is_pinned, attached: BTreeSet::new(), port: FIRST_PORT })
    }

    /// Which of `probes` would go on.
    pub(crate) fn open_of(&mut self, probes: &[Probe]) -> Result<BTreeSet<Probe>> {
        let mut open = BTreeSet::new();
        for probe in probes {
            if self.goes_on(*probe)? {
                open.insert(*probe);
            }
        }
        self.datapath.sweep(Timestamp::NEVER)?;
        Ok(open)
    }

    fn goes_on(&mut self, probe: Probe) -> Result<bool> {
        if !self.attached.contains(&IFINDEX) {
            return Ok(true);
        }
        self.port = self.port.checked_add(1).unwrap_or(FIRST_PORT);
        Ok(self.send(probe, self.port)? == RanVerdict::Next)
    }

    /// Sends a probe from this port.
    pub(crate) fn send(&mut self, probe: Probe, port: u16) -> Result<RanVerdict> {
        self.send_flags(probe, port, TCP_SYN)
    }

    /// The same with these flags, where it is one of TCP.
    pub(crate) fn send_flags(&mut self, probe: Probe, port: u16, flags: u8) -> Result<RanVerdict> {
        let payload = match probe.protocol {
            protocol::UDP => frame::udp(port, probe.port, b""),
            _ => frame::tcp(port, probe.port, flags),
        };
        let (own, remote) = (IpAddr::from(OWN), IpAddr::from(probe.remote));
        let ends = match probe.direction {
            Direction::Egress => (own, remote),
            Direction::Ingress => (remote, own),
        };
        let packet = frame::ip(MAC, ends, probe.protocol, &payload);
        Ok(self.datapath.run(probe.direction, &packet, 1).context("a test run")?.verdict)
    }

    /// The maps themselves.
    pub(crate) fn datapath(&mut self) -> &mut Datapath {
        &mut self.datapath
    }

    /// How many rows each map has.
    pub(crate) fn rows(&self) -> Result<BTreeMap<&'static str, usize>> {
        Ok(self.datapath.rows()?)
    }

    pub(crate) fn counters(&self) -> Result<Counters> {
        Ok(self.datapath.counters()?)
    }
}

impl Kernel for Bench {
    type Error = DatapathError;

    fn install(&mut self, table: u32, rows: &TableRows) -> Result<(), DatapathError> {
        self.datapath.install(table, rows)
    }

    fn change_identities(&mut self, table: u32, changes: &RowChanges) -> Result<(), DatapathError> {
        self.datapath.change_identities(table, changes)
    }

    fn remove_table(&mut self, table: u32) -> Result<(), DatapathError> {
        self.datapath.remove_table(table)
    }

    fn write_names(&mut self, writes: &NameWrites) -> Result<(), DatapathError> {
        self.datapath.write_names(writes)
    }

    fn set_endpoint(&mut self, row: &EndpointRow) -> Result<(), DatapathError> {
        self.datapath.set_endpoint(&row.into())
    }

    fn remove_endpoint(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        self.datapath.remove_endpoint(ifindex)
    }

    fn close(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        self.attached.insert(ifindex);
        self.datapath.remove_endpoint(ifindex)
    }

    fn attach(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        self.attached.insert(ifindex);
        if self.is_pinned { self.datapath.attach(ifindex) } else { Ok(()) }
    }

    fn detach(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        self.attached.remove(&ifindex);
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

    fn set_services(
        &mut self,
        services: &BTreeMap<ServiceKey, ServiceEntry>,
    ) -> Result<(), DatapathError> {
        self.datapath.set_services(services)
    }

    fn set_resolvers(&mut self, resolvers: &BTreeMap<u8, IpAddr>) -> Result<(), DatapathError> {
        self.datapath.set_resolvers(resolvers)
    }
}
