//! What the program knows while it is measured: endpoints, their tables, learned addresses.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use namegate_egress_bpf::abi::{
    Direction, NameEntry, NameKey, PeerKey, PeerKind, RuleSet, TableKey,
};
use namegate_egress_bpf::compile::{NameWrites, TableRows};
use namegate_egress_bpf::datapath::{Datapath, EndpointEntry, Events, Options, Settings};
use namegate_policy::dns::{ClusterNames, NamePolicy};
use namegate_policy::identity::{Identity, IdentitySet};
use namegate_policy::name::DnsName;
use namegate_policy::rule::{PortRange, Protocol};
use namegate_policy::table::{
    Clause, ClauseAction, ClausePeers, ClausePorts, ClauseTier, PolicyTable,
};

/// The pod's address.
pub(crate) const POD: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
/// The pod's other address.
pub(crate) const POD_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 9, 0, 0, 0, 0, 2);
/// An address that it learned, beside those of [`site`].
pub(crate) const SITE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);
/// The port that its rules open.
pub(crate) const PORT: u16 = 443;
/// Names that a call writes.
const CHUNK: u32 = 10_000;

/// How far one learned address is from the next. Odd: every number has an address of its own.
pub(crate) const SPREAD: u32 = 0x9e_3779;

/// How much there is to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size {
    /// Learned addresses of the pod.
    pub(crate) names: u32,
    /// Rules of its policies, a policy each.
    pub(crate) policies: u16,
    /// Other identities that a rule names.
    pub(crate) identities: u32,
    /// Endpoints.
    pub(crate) pods: u32,
}

impl Size {
    /// One policy of one pod.
    pub(crate) const fn of_names(names: u32) -> Self {
        Self { names, policies: 1, identities: 1, pods: 1 }
    }
}

/// The learned address numbered `number`: spread over 11.0.0.0/8, as answers are.
pub(crate) fn site(number: u32) -> Ipv4Addr {
    let spread = number.wrapping_mul(SPREAD) & 0x00ff_ffff;
    Ipv4Addr::from(0x0b00_0000 | spread)
}

/// The program over maps of that size, with `ifindex` as the pod's interface. Pinned below `pins`
/// where it is to be attached.
pub(crate) fn fill(size: Size, ifindex: u32, pins: Option<&Path>) -> (Datapath, Events) {
    let mut options = Options { names_max: 1 << 20, flows_max: 1 << 18, ..Options::default() };
    let opened = match pins {
        Some(pins) => {
            options.pin_root = pins.to_path_buf();
            Datapath::open(&options)
        }
        None => Datapath::unpinned(&options),
    };
    let (mut datapath, events) = opened.expect("the program loads, as root");
    datapath.configure(&Settings::default()).expect("configured");
    let policy = policy(size);
    datapath.install(1, &TableRows::compile(1, &policy)).expect("a table");
    let key = TableKey { table: 1, direction: Direction::Egress as u32 };
    let identity = policy.identity.number();
    let class = PeerKey::new(&key, PeerKind::Names, 1);
    let rule = RuleSet::of([size.policies - 1]);
    let mut writes = NameWrites { classes: [(class, rule)].into(), ..NameWrites::default() };
    for first in (0..size.names).step_by(CHUNK as usize) {
        writes.entries = (first..size.names.min(first + CHUNK))
            .map(|number| IpAddr::V4(site(number)))
            .chain([IpAddr::V6(SITE_V6)])
            .map(|address| {
                let entry = NameEntry { deadline_ns: u64::MAX, class: 1, live_class: 1 };
                (NameKey { identity, address: address.into() }, entry)
            })
            .collect();
        datapath.write_names(&writes).expect("room for the names");
    }
    for pod in 0..size.pods {
        // Interfaces that are not there are rows all the same.
        let ifindex = if pod == 0 { ifindex } else { 1_000_000 + pod };
        let addresses = if pod == 0 {
            BTreeSet::from([IpAddr::V4(POD), IpAddr::V6(POD_V6)])
        } else {
            BTreeSet::from([IpAddr::V4(Ipv4Addr::from(0x0af0_0000 + pod))])
        };
        datapath.set_endpoint(&endpoint(ifindex, policy.identity, addresses)).expect("an endpoint");
    }
    datapath.set_complete(true).expect("all is written");
    (datapath, events)
}

fn endpoint(ifindex: u32, identity: Identity, addresses: BTreeSet<IpAddr>) -> EndpointEntry {
    EndpointEntry {
        ifindex,
        identity,
        table: 1,
        generation: 1,
        epoch: ifindex,
        is_dns_governed: true,
        is_translated: true,
        mac: None,
        addresses,
    }
}

/// The last rule opens the learned names; those before it mean others.
fn policy(size: Size) -> PolicyTable {
    let clause = |peers, ports| Clause {
        action: ClauseAction::Forward,
        tier: ClauseTier::Namespaced,
        peers,
        ports,
        origins: Arc::new([]),
    };
    let known = |number| Identity::new(1_000 + number).expect("not zero");
    let others: Arc<IdentitySet> = Arc::new((0..size.identities).map(known).collect());
    let mut egress: Vec<Clause> = (1..size.policies)
        .map(|number| {
            let peers = ClausePeers { identities: others.clone(), ..ClausePeers::default() };
            let port = PortRange::single(1_000 + number);
            clause(peers, ClausePorts::Of(vec![(Protocol::Tcp, port)]))
        })
        .collect();
    let ports = [Protocol::Tcp, Protocol::Udp].map(|it| (it, PortRange::single(PORT)));
    let names = ClausePeers { names: true, ..ClausePeers::default() };
    egress.push(clause(names, ClausePorts::Of(ports.to_vec())));
    PolicyTable {
        identity: Identity::new(300).expect("not zero"),
        egress,
        ingress: Vec::new(),
        names: Arc::new(NamePolicy::ungoverned(Arc::new(ClusterNames {
            domain: DnsName::parse("cluster.local").expect("a name"),
            search: Vec::new(),
            ranges: Vec::new(),
        }))),
    }
}
