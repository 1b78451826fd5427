//! A pod under a policy, in simulated maps.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::net::IpAddr;
use std::sync::Arc;

use namegate_egress_bpf::abi::{
    ABI_VERSION, ADDRESSES_MAX, Address, Config, Direction, DropReason, ENDPOINT_MAC_KNOWN,
    Endpoint, Event, Mac, NameEntry, NameKey, PeerKey, PeerKind, RuleSet, TableKey,
};
use namegate_egress_bpf::compile::TableRows;
use namegate_egress_bpf::sim::Simulation;
use namegate_egress_bpf::verdict::{Scene, Verdict};
use namegate_policy::dns::{ClusterNames, NamePolicy};
use namegate_policy::identity::Identity;
use namegate_policy::name::DnsName;
use namegate_policy::rule::{CidrReach, PortRange, Protocol};
use namegate_policy::table::{
    CidrPeer, Clause, ClauseAction, ClausePeers, ClausePorts, ClauseTier, PolicyTable,
};

pub(crate) const IFINDEX: u32 = 7;
pub(crate) const MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0x0a]);
pub(crate) const OTHER_MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0x0b]);
pub(crate) const POD: &str = "10.244.1.10";
pub(crate) const POD_V6: &str = "fd00:10:244:1::10";
pub(crate) const NODE: &str = "10.244.1.1";
pub(crate) const SITE: &str = "203.0.113.10";
pub(crate) const SITE_V6: &str = "2001:db8:1::10";
pub(crate) const ELSEWHERE: &str = "203.0.113.20";
pub(crate) const RESOLVER: &str = "10.244.1.53";
pub(crate) const PROXY: &str = "169.254.53.53";
pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const START: u64 = 1_000 * SECOND;
pub(crate) const IDENTITY: u32 = 300;

/// The simulation, and a clock.
#[derive(Clone)]
pub(crate) struct Pod {
    pub(crate) sim: Simulation,
    pub(crate) now_ns: u64,
    pub(crate) is_from_node: bool,
    pub(crate) is_returned: bool,
    pub(crate) events: Vec<Event>,
    table: u32,
}

impl Pod {
    /// A pod that these clauses hold for, by direction.
    pub(crate) fn new(egress: Vec<Clause>, ingress: Vec<Clause>) -> Self {
        let mut pod = Self {
            sim: Simulation::default(),
            now_ns: START,
            is_from_node: false,
            is_returned: false,
            events: Vec::new(),
            table: 0,
        };
        pod.sim.config = Some(Config {
            abi_version: ABI_VERSION,
            flags: 0,
            proxy_ifindex: 9,
            proxy_port: 15_300,
            proxy_mac: OTHER_MAC,
            flows_max: 1 << 17,
            proxy_v4: ip(PROXY).into(),
            proxy_v6: ip("fd6e:616d:6567:6174::53").into(),
        });
        pod.sim.resolvers.insert(0, ip(RESOLVER).into());
        pod.sim.ipcache.insert(ip(NODE).into(), 1);
        pod.sim.ipcache.insert(ip("fd00:10:244:1::1").into(), 1);
        let mut addresses = [Address::UNSPECIFIED; ADDRESSES_MAX];
        addresses[0] = ip(POD).into();
        addresses[1] = ip(POD_V6).into();
        pod.sim.endpoints.insert(
            IFINDEX,
            Endpoint {
                identity: IDENTITY,
                table: 0,
                generation: 0,
                epoch: 1,
                flags: ENDPOINT_MAC_KNOWN,
                mac: MAC,
                addresses,
            },
        );
        pod.change_policy(egress, ingress);
        pod
    }

    /// A pod that nothing isolates.
    pub(crate) fn open() -> Self {
        Self::new(vec![open()], vec![open()])
    }

    /// Puts other clauses in force.
    pub(crate) fn change_policy(&mut self, egress: Vec<Clause>, ingress: Vec<Clause>) {
        self.table += 1;
        self.sim.install(&TableRows::compile(self.table, &policy(egress, ingress)));
        let table = self.table;
        let endpoint = self.endpoint();
        endpoint.table = table;
        endpoint.generation = table;
    }

    pub(crate) fn endpoint(&mut self) -> &mut Endpoint {
        self.sim.endpoints.get_mut(&IFINDEX).expect("the pod's")
    }

    /// Opens an address for the rule numbered zero until `deadline_ns`, and for live flows.
    pub(crate) fn learn(&mut self, address: &str, deadline_ns: u64) {
        let key = TableKey { table: self.table, direction: 0 };
        let class = PeerKey::new(&key, PeerKind::Names, 1);
        self.sim.rows.peers.insert(class, RuleSet::of([0]));
        self.sim.names.insert(
            NameKey { identity: IDENTITY, address: ip(address).into() },
            NameEntry { deadline_ns, class: 1, live_class: 1 },
        );
    }

    pub(crate) fn sends(&mut self, frame: &[u8]) -> Verdict {
        self.judge(frame, Direction::Egress)
    }

    pub(crate) fn gets(&mut self, frame: &[u8]) -> Verdict {
        self.judge(frame, Direction::Ingress)
    }

    /// Another endpoint of the same simulation sends it.
    pub(crate) fn sends_from(&mut self, ifindex: u32, frame: &[u8]) -> Verdict {
        self.judge_at(ifindex, frame, Direction::Egress)
    }

    fn judge(&mut self, frame: &[u8], direction: Direction) -> Verdict {
        self.judge_at(IFINDEX, frame, direction)
    }

    fn judge_at(&mut self, ifindex: u32, frame: &[u8], direction: Direction) -> Verdict {
        let scene = Scene {
            ifindex,
            direction,
            is_from_node: self.is_from_node,
            is_returned: self.is_returned,
            now_ns: self.now_ns,
        };
        let (verdict, event) = self.sim.judge(frame, &scene);
        self.events.extend(event);
        verdict
    }

    pub(crate) fn pass(&mut self, seconds: u64) {
        self.now_ns += seconds * SECOND;
    }
}

pub(crate) fn policy(egress: Vec<Clause>, ingress: Vec<Clause>) -> PolicyTable {
    PolicyTable {
        identity: Identity::new(IDENTITY).expect("not zero"),
        egress,
        ingress,
        names: Arc::new(NamePolicy::ungoverned(Arc::new(ClusterNames {
            domain: DnsName::parse("cluster.local").expect("a name"),
            search: Vec::new(),
            ranges: Vec::new(),
        }))),
    }
}

pub(crate) fn clause(action: ClauseAction, tier: ClauseTier, peers: ClausePeers) -> Clause {
    Clause { action, tier, peers, ports: ClausePorts::Any, origins: Arc::new([]) }
}

pub(crate) fn any_peer() -> ClausePeers {
    ClausePeers { any: true, ..ClausePeers::default() }
}

pub(crate) fn open() -> Clause {
    clause(ClauseAction::Forward, ClauseTier::Open, any_peer())
}

pub(crate) fn isolated() -> Clause {
    clause(ClauseAction::Drop, ClauseTier::Namespaced, any_peer())
}

/// Allows a prefix on one TCP port.
pub(crate) fn allows(net: &str, port: u16) -> Clause {
    let cidr = CidrPeer { net: net.parse().expect("a net"), except: vec![], reach: CidrReach::All };
    let peers = ClausePeers { cidrs: Arc::new(vec![cidr]), ..ClausePeers::default() };
    Clause {
        ports: ClausePorts::Of(vec![(Protocol::Tcp, PortRange::single(port))]),
        ..clause(ClauseAction::Forward, ClauseTier::Namespaced, peers)
    }
}

/// Allows learned addresses.
pub(crate) fn allows_names() -> Clause {
    let peers = ClausePeers { names: true, ..ClausePeers::default() };
    clause(ClauseAction::Forward, ClauseTier::Namespaced, peers)
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn drop(reason: DropReason) -> Verdict {
    Verdict::Drop(reason)
}
