//! Frames by name: what each is, and what becomes of it.
//!
//! Every row is judged by the host's verdict function and by the kernel program in a test run, and those
//! that a wire takes also cross a real interface, where the kernel's own counters say what became of
//! them. Each row stands alone: a pod that nobody knows a flow of, but for the frames that go before.

mod link;
mod network;
mod service;
mod transport;
mod wire;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use namegate_egress_bpf::abi::Direction;
use namegate_egress_bpf::datapath::Reason;
use namegate_egress_bpf::sim::frame;
use namegate_integration::lab;
use namegate_policy::rule::{PortRange, Protocol};
use namegate_policy::table::{Clause, ClauseAction, ClausePeers, ClausePorts, ClauseTier};

use crate::random::{MAC, World};
use crate::twin::{Origin, Twin};

pub(crate) const POD: &str = "10.244.1.10";
pub(crate) const POD_V6: &str = "fd00:10:244:1::10";
pub(crate) const SITE: &str = "203.0.113.20";
pub(crate) const SITE_V6: &str = "2001:db8:1::10";
/// The port that rules open in both directions.
pub(crate) const OPEN: u16 = 443;
/// Test runs take no frame that is shorter, and none that does not fit into a page.
const TEST_RUNS: std::ops::RangeInclusive<usize> = 54..=3_000;

/// A frame, which way it goes, and the name of what becomes of it.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) direction: Direction,
    /// Who had it before it came to the pod's interface: frames that go before are the node's own.
    pub(crate) origin: Origin,
    /// What is sent before, whatever becomes of it.
    pub(crate) before: Vec<(Direction, Vec<u8>)>,
    pub(crate) frame: Vec<u8>,
    pub(crate) becomes: &'static str,
}

impl Row {
    /// The same after other frames.
    pub(crate) fn after(mut self, before: Vec<(Direction, Vec<u8>)>) -> Self {
        self.before = before;
        self
    }

    /// The same from somebody else than the node.
    pub(crate) fn from(mut self, origin: Origin) -> Self {
        self.origin = origin;
        self
    }
}

/// A frame from the pod.
pub(crate) fn sent(name: impl Into<String>, frame: Vec<u8>, becomes: &'static str) -> Row {
    Row {
        name: name.into(),
        direction: Direction::Egress,
        origin: Origin::Node,
        before: Vec::new(),
        frame,
        becomes,
    }
}

/// A frame to the pod.
pub(crate) fn got(name: impl Into<String>, frame: Vec<u8>, becomes: &'static str) -> Row {
    Row { direction: Direction::Ingress, ..sent(name, frame, becomes) }
}

pub(crate) fn rows() -> Vec<Row> {
    [link::rows(), network::rows(), transport::rows(), service::rows()]
        .into_iter()
        .flatten()
        .collect()
}

/// Some ports are open, towards and from anybody; everything else is closed. There are services.
pub(crate) fn world() -> World {
    let clause = |action, ports| Clause {
        action,
        tier: ClauseTier::Namespaced,
        peers: ClausePeers { any: true, ..ClausePeers::default() },
        ports,
        origins: Arc::new([]),
    };
    let single = |protocol| (protocol, PortRange::single(OPEN));
    let open = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(single).to_vec();
    let echoes =
        vec![(Protocol::Icmp, PortRange::single(8)), (Protocol::Icmpv6, PortRange::single(128))];
    let allows = |ports| clause(ClauseAction::Forward, ClausePorts::Of(ports));
    let closed = clause(ClauseAction::Drop, ClausePorts::Any);
    let egress = vec![allows([open.clone(), echoes].concat()), closed.clone()];
    let mut world = World::ruled(egress, vec![allows(open), closed]);
    service::offer(&mut world);
    world
}

#[test]
fn every_named_frame_has_its_verdict() -> Result<()> {
    if !lab::can_run("every_named_frame_has_its_verdict")? {
        return Ok(());
    }
    let (mut twin, world, rows) = (Twin::open("named")?, world(), rows());
    let mut names = BTreeSet::new();
    for row in &rows {
        ensure!(names.insert(row.name.as_str()), "two rows are called {}", row.name);
    }
    let mut in_kernel = 0;
    let mut wrong = Vec::new();
    for row in &rows {
        twin.enter(&world)?;
        for (direction, frame) in &row.before {
            twin.judge(*direction, frame).with_context(|| format!("before {}", row.name))?;
        }
        let verdict = if TEST_RUNS.contains(&row.frame.len()) {
            in_kernel += 1;
            let (_, verdict) = twin
                .judge_from(row.origin, row.direction, &row.frame)
                .with_context(|| row.name.clone())?;
            twin.compare().with_context(|| row.name.clone())?;
            verdict
        } else {
            twin.imagine(row.origin, row.direction, &row.frame)
        };
        let found = Reason::from_number(verdict.counter()).context("a known number")?;
        if found.as_str() != row.becomes {
            wrong.push(format!("{}: {}, not {}", row.name, found.as_str(), row.becomes));
        }
    }
    ensure!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    println!("{} named frames, {in_kernel} of them in the kernel", rows.len());
    ensure!(rows.len() >= 300, "{} rows", rows.len());
    twin.close()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// An IPv4 packet from the pod to a site.
pub(crate) fn v4(number: u8, payload: &[u8]) -> Vec<u8> {
    frame::ip(MAC, (ip(POD), ip(SITE)), number, payload)
}

/// An IPv6 packet from the pod to a site.
pub(crate) fn v6(number: u8, payload: &[u8]) -> Vec<u8> {
    frame::ip(MAC, (ip(POD_V6), ip(SITE_V6)), number, payload)
}

/// The other way.
pub(crate) fn v4_back(number: u8, payload: &[u8]) -> Vec<u8> {
    frame::ip(MAC, (ip(SITE), ip(POD)), number, payload)
}

/// The other way.
pub(crate) fn v6_back(number: u8, payload: &[u8]) -> Vec<u8> {
    frame::ip(MAC, (ip(SITE_V6), ip(POD_V6)), number, payload)
}

/// A TCP segment to the open port.
pub(crate) fn tcp(flags: u8) -> Vec<u8> {
    frame::tcp(40_000, OPEN, flags)
}

/// A UDP datagram to the open port.
pub(crate) fn udp() -> Vec<u8> {
    frame::udp(40_000, OPEN, b"sixteen octets..")
}

/// The frame with other octets at a place.
pub(crate) fn with(mut frame: Vec<u8>, at: usize, octets: &[u8]) -> Vec<u8> {
    frame[at..at + octets.len()].copy_from_slice(octets);
    frame
}
