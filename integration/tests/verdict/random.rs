//! Random worlds: an endpoint, who is around it, its policy, and frames that cross its interface.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use namegate_egress_bpf::abi::{
    Address, Backend, Direction, Mac, NameEntry, NameKey, PeerKey, PeerKind, RuleSet, ServiceKey,
    TableKey,
};
use namegate_egress_bpf::compile::{NameWrites, TableRows};
use namegate_egress_bpf::datapath::{EndpointEntry, ProxySettings, ServiceEntry, Settings};
use namegate_egress_bpf::sim::frame;
use namegate_policy::dns::{ClusterNames, NamePolicy};
use namegate_policy::identity::Identity;
use namegate_policy::name::DnsName;
use namegate_policy::rule::{CidrReach, PortRange, Protocol};
use namegate_policy::table::{
    CidrPeer, Clause, ClauseAction, ClausePeers, ClausePorts, ClauseTier, PolicyTable,
};

const POD_V4: [u8; 4] = [10, 244, 1, 10];
const POD_V6: &str = "fd00:10:244:1::10";
pub(crate) const MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0x0a]);
const PROXY_V4: &str = "169.254.53.53";
const PROXY_V6: &str = "fd6e:616d:6567:6174::53";
const PROXY_PORT: u16 = 15_300;
const PORTS: [u16; 10] = [0, 22, 53, 80, 443, 8_000, 8_080, 8_100, 15_301, 65_535];
const REMOTES_V4: [&str; 10] = [
    "10.244.1.1",
    "10.244.1.53",
    "10.244.1.11",
    "10.244.2.7",
    "10.96.0.10",
    "203.0.113.10",
    "203.0.113.20",
    "169.254.169.254",
    "198.51.100.1",
    "169.254.53.53",
];
const REMOTES_V6: [&str; 8] = [
    "fd00:10:244:1::1",
    "fd00:10:244:1::53",
    "fd00:10:244:1::11",
    "fd00:10:244:2::7",
    "2001:db8:1::10",
    "2001:db8:1::20",
    "2001:db8:2::1",
    "fd6e:616d:6567:6174::53",
];
const NETS: [&str; 12] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.244.0.0/16",
    "10.244.1.0/24",
    "203.0.113.0/24",
    "203.0.113.10/32",
    "169.254.0.0/16",
    "::/0",
    "fd00::/8",
    "fd00:10:244:1::/64",
    "2001:db8::/32",
    "2001:db8:1::10/128",
];

/// A small generator (xorshift64*): repeatable from its seed alone.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// True once in `odds` times.
    pub(crate) fn once_in(&mut self, odds: usize) -> bool {
        self.below(odds) == 0
    }

    pub(crate) fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())].clone()
    }

    pub(crate) fn octet(&mut self) -> u8 {
        self.next() as u8
    }

    pub(crate) fn direction(&mut self) -> Direction {
        self.pick(&[Direction::Egress, Direction::Ingress])
    }
}

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) resolvers: BTreeMap<u8, IpAddr>,
    pub(crate) identities: BTreeMap<IpAddr, Identity>,
    pub(crate) ranges: BTreeMap<IpNet, Identity>,
    pub(crate) services: BTreeMap<ServiceKey, ServiceEntry>,
    policy: PolicyTable,
    generation: u32,
    is_dns_governed: bool,
    is_translated: bool,
    mac: Option<[u8; 6]>,
    /// By address: has it expired, class, live class.
    learned: BTreeMap<IpAddr, (bool, u32, u32)>,
    classes: BTreeMap<u32, RuleSet>,
}

impl World {
    pub(crate) fn random(random: &mut Random) -> Self {
        let mut identities = BTreeMap::new();
        for text in REMOTES_V4.iter().chain(&REMOTES_V6) {
            if !random.once_in(3) {
                identities.insert(address(text), any_identity(random));
            }
        }
        let mut ranges = BTreeMap::new();
        if random.once_in(2) {
            ranges.insert(net("10.244.0.0/16"), Identity::UNMANAGED);
            ranges.insert(net("fd00:10:244::/48"), Identity::UNMANAGED);
        }
        let resolvers = ["10.244.1.53", "fd00:10:244:1::53", "203.0.113.10"];
        let mut world = Self {
            settings: Settings {
                proxy: (!random.once_in(4)).then(proxy),
                judges_other_protocols: random.once_in(2),
            },
            resolvers: (0..).zip(resolvers.map(address)).collect(),
            identities,
            ranges,
            services: any_services(random),
            policy: PolicyTable {
                identity: identity(300),
                egress: Vec::new(),
                ingress: Vec::new(),
                names: Arc::new(NamePolicy::ungoverned(Arc::new(ClusterNames {
                    domain: DnsName::parse("cluster.local").expect("a name"),
                    search: Vec::new(),
                    ranges: Vec::new(),
                }))),
            },
            generation: 0,
            is_dns_governed: random.once_in(2),
            is_translated: !random.once_in(3),
            mac: (!random.once_in(3)).then_some(MAC.0),
            learned: BTreeMap::new(),
            classes: BTreeMap::new(),
        };
        world.change_policy(random);
        world
    }

    /// A world in which everything is open.
    pub(crate) fn open() -> Self {
        let mut world = Self::random(&mut Random::new(1));
        let open = Clause {
            action: ClauseAction::Forward,
            tier: ClauseTier::Open,
            peers: ClausePeers { any: true, ..ClausePeers::default() },
            ports: ClausePorts::Any,
            origins: Arc::new([]),
        };
        world.policy.egress = vec![open.clone()];
        world.policy.ingress = vec![open];
        world.identities.clear();
        world.ranges.clear();
        world.services.clear();
        world.learned.clear();
        world.mac = Some(MAC.0);
        world
    }

    /// An open world but for these rules, with a node, another pod, and resolvers that are watched.
    pub(crate) fn ruled(egress: Vec<Clause>, ingress: Vec<Clause>) -> Self {
        let mut world = Self::open();
        (world.policy.egress, world.policy.ingress) = (egress, ingress);
        for (text, number) in [("10.244.1.1", 1), ("fd00:10:244:1::1", 1), ("10.244.2.7", 256)] {
            world.identities.insert(address(text), identity(number));
        }
        world.govern_dns();
        world.settings.judges_other_protocols = false;
        world
    }

    /// An open world with one service, on port 80 over TCP and UDP, whose backend serves on 8080.
    pub(crate) fn serving(service: IpAddr, backend: IpAddr) -> Self {
        let mut world = Self::open();
        for protocol in [6, 17] {
            world.serve(protocol, (service, 80), &[(backend, 8_080)]);
        }
        world
    }

    /// Adds a service with these backends.
    pub(crate) fn serve(&mut self, protocol: u8, at: (IpAddr, u16), backends: &[(IpAddr, u16)]) {
        self.is_translated = true;
        let key = ServiceKey { address: at.0.into(), port: at.1, protocol, padding: 0 };
        let backends = backends
            .iter()
            .map(|(ip, port)| Backend { address: (*ip).into(), port: *port, padding: [0; 2] })
            .collect();
        self.services.insert(key, ServiceEntry { is_affine: false, backends });
    }

    /// Draws other rules, and another generation.
    pub(crate) fn change_policy(&mut self, random: &mut Random) {
        self.generation += 1;
        self.policy.egress = any_clauses(random, true);
        self.policy.ingress = any_clauses(random, false);
        let count = self.policy.egress.len();
        self.classes = (1..5)
            .map(|class| {
                let rules = (0..3).map(|_| random.below(count.max(1)) as u16);
                (class, RuleSet::of(rules.collect::<Vec<_>>()))
            })
            .collect();
        for text in REMOTES_V4.iter().chain(&REMOTES_V6) {
            if random.once_in(2) {
                let classes = (random.below(5) as u32, random.below(5) as u32);
                self.learned.insert(address(text), (random.once_in(2), classes.0, classes.1));
            }
        }
    }

    /// The same under other rules for what leaves.
    pub(crate) fn rule(&mut self, egress: Vec<Clause>) {
        self.generation += 1;
        self.policy.egress = egress;
    }

    /// The same under other rules for what comes.
    pub(crate) fn admit(&mut self, ingress: Vec<Clause>) {
        self.generation += 1;
        self.policy.ingress = ingress;
    }

    /// Has an address be learned for names of a class.
    pub(crate) fn learn(&mut self, ip: IpAddr, class: u32) {
        self.learned.insert(ip, (false, class, class));
    }

    /// Has rules be those of the names of a class.
    pub(crate) fn name(&mut self, class: u32, rules: &[u16]) {
        self.classes.insert(class, RuleSet::of(rules.iter().copied()));
    }

    pub(crate) fn govern_dns(&mut self) {
        self.is_dns_governed = true;
        self.settings.proxy = Some(proxy());
    }

    pub(crate) fn rows(&self, table: u32) -> TableRows {
        TableRows::compile(table, &self.policy)
    }

    pub(crate) fn names(&self, table: u32) -> NameWrites {
        let key = TableKey { table, direction: Direction::Egress as u32 };
        NameWrites {
            classes: self
                .classes
                .iter()
                .map(|(class, rules)| (PeerKey::new(&key, PeerKind::Names, *class), *rules))
                .collect(),
            entries: self
                .learned
                .iter()
                .map(|(ip, (is_expired, class, live_class))| {
                    let key = NameKey {
                        identity: self.policy.identity.number(),
                        address: Address::from(*ip),
                    };
                    let deadline_ns = if *is_expired { 1 } else { u64::MAX };
                    (key, NameEntry { deadline_ns, class: *class, live_class: *live_class })
                })
                .collect(),
            ..NameWrites::default()
        }
    }

    pub(crate) fn endpoint(&self, ifindex: u32, table: u32, epoch: u32) -> EndpointEntry {
        EndpointEntry {
            ifindex,
            identity: self.policy.identity,
            table,
            generation: self.generation,
            epoch,
            is_dns_governed: self.is_dns_governed,
            is_translated: self.is_translated,
            mac: self.mac,
            addresses: BTreeSet::from([IpAddr::from(POD_V4), address(POD_V6)]),
        }
    }

    /// A lookup, or an answer from the proxy.
    pub(crate) fn dns_frame(&self, random: &mut Random, direction: Direction) -> Vec<u8> {
        let is_v4 = random.once_in(2);
        let pod = if is_v4 { IpAddr::from(POD_V4) } else { address(POD_V6) };
        let port = 40_000 + random.below(100) as u16;
        let slot = if is_v4 { random.pick(&[0, 2]) } else { 1 };
        let (ends, from, to) = match direction {
            Direction::Egress => ((pod, self.resolvers[&slot]), port, 53),
            Direction::Ingress => {
                let proxy = address(if is_v4 { PROXY_V4 } else { PROXY_V6 });
                ((proxy, pod), PROXY_PORT + u16::from(slot), port)
            }
        };
        let payload: Vec<u8> = (0..random.below(40)).map(|_| random.octet()).collect();
        match random.below(2) {
            0 => frame::ip(MAC, ends, 17, &frame::udp(from, to, &payload)),
            _ => frame::ip(MAC, ends, 6, &[frame::tcp(from, to, 0x18), payload].concat()),
        }
    }

    /// A frame of any kind, whole or with some of its octets changed.
    pub(crate) fn frame(&self, random: &mut Random, direction: Direction) -> Vec<u8> {
        let mut frame = self.sane_frame(random, direction);
        if random.once_in(4) {
            for _ in 0..=random.below(3) {
                let at = if random.once_in(2) {
                    12 + random.below(frame.len().min(64) - 12)
                } else {
                    random.below(frame.len())
                };
                frame[at] = random.octet();
            }
        }
        if random.once_in(16) {
            frame.truncate(54.max(random.below(frame.len() + 1)).min(frame.len()));
        }
        if random.once_in(16) {
            frame.extend([0; 6]);
        }
        // The kernel runs no program on less than an Ethernet and an IP header.
        frame.resize(frame.len().max(54), 0);
        frame
    }

    fn sane_frame(&self, random: &mut Random, direction: Direction) -> Vec<u8> {
        let is_v4 = random.once_in(2);
        let mac = if random.once_in(12) { Mac([2; 6]) } else { MAC };
        let pod = if is_v4 { IpAddr::from(POD_V4) } else { address(POD_V6) };
        let remotes: &[&str] = if is_v4 { &REMOTES_V4 } else { &REMOTES_V6 };
        let remote = address(random.pick(remotes));
        let strange = address(random.pick(remotes));
        let mut ends = match direction {
            Direction::Egress => (pod, remote),
            Direction::Ingress => (remote, pod),
        };
        if random.once_in(24) {
            ends.0 = strange;
        }
        if random.once_in(24) {
            ends.1 = strange;
        }
        match random.below(20) {
            0..=6 => {
                let flags = random.pick(&[0x02, 0x02, 0x10, 0x18, 0x12, 0x11, 0x04, 0x14, 0x03, 0]);
                frame::ip(mac, ends, 6, &frame::tcp(port(random), port(random), flags))
            }
            7..=10 => frame::ip(mac, ends, 17, &frame::udp(port(random), port(random), b"payload")),
            11 => frame::ip(mac, ends, 132, &frame::sctp(port(random), port(random))),
            12 | 13 => frame::ip(mac, ends, icmp(is_v4), &any_echo(random, is_v4)),
            14 => frame::ip(mac, ends, icmp(is_v4), &any_error(random, ends, is_v4)),
            15 => self.dns_frame(random, direction),
            16 => any_link(random, mac, ends, is_v4),
            17 => any_fragment(random, mac, ends, is_v4),
            18 => {
                let number = random.pick(&[0, 2, 4, 41, 43, 44, 47, 50, 51, 58, 59, 60, 136, 255]);
                frame::ip(mac, ends, number, &[random.octet(); 24])
            }
            _ => {
                let ethertype = random.pick(&[0x8100, 0x88a8, 0x0806, 0x0800, 0x86dd, 0x8847]);
                let payload: Vec<u8> = (0..60).map(|_| random.octet()).collect();
                frame::ethernet(mac, ethertype, &payload)
            }
        }
    }
}

/// Services at some of the remotes' addresses, with others of them and the endpoint as backends.
fn any_services(random: &mut Random) -> BTreeMap<ServiceKey, ServiceEntry> {
    let mut services = BTreeMap::new();
    for _ in 0..random.below(12) {
        let is_v4 = random.once_in(2);
        let (remotes, own): (&[&str], IpAddr) = if is_v4 {
            (&REMOTES_V4, IpAddr::from(POD_V4))
        } else {
            (&REMOTES_V6, address(POD_V6))
        };
        let key = ServiceKey {
            address: address(random.pick(remotes)).into(),
            port: port(random),
            protocol: random.pick(&[6, 6, 17, 17, 132]),
            padding: 0,
        };
        let backends = (0..random.below(4))
            .map(|_| {
                let ip = if random.once_in(4) { own } else { address(random.pick(remotes)) };
                Backend { address: ip.into(), port: port(random), padding: [0; 2] }
            })
            .collect();
        services.insert(key, ServiceEntry { is_affine: random.once_in(3), backends });
    }
    services
}

fn any_clauses(random: &mut Random, has_names: bool) -> Vec<Clause> {
    let limit = random.pick(&[3, 10, 80, 200, 512]);
    let mut clauses: Vec<Clause> =
        (0..random.below(limit)).map(|_| any_clause(random, has_names)).collect();
    clauses.sort_by_key(|clause| clause.tier);
    clauses
}

fn any_cidr(random: &mut Random) -> CidrPeer {
    CidrPeer {
        net: net(random.pick(&NETS)),
        except: (0..random.below(3)).map(|_| net(random.pick(&NETS))).collect(),
        reach: CidrReach::All,
    }
}

fn any_clause(random: &mut Random, has_names: bool) -> Clause {
    let is_any = random.once_in(8);
    let cidrs = if is_any || random.once_in(2) { 0 } else { random.below(3) };
    let identities = if is_any { 0 } else { random.below(4) };
    Clause {
        action: random.pick(&[
            ClauseAction::Forward,
            ClauseAction::Forward,
            ClauseAction::Forward,
            ClauseAction::Drop,
            ClauseAction::Audit,
            ClauseAction::Pass,
        ]),
        tier: random.pick(&[
            ClauseTier::Admin,
            ClauseTier::Namespaced,
            ClauseTier::Namespaced,
            ClauseTier::Baseline,
            ClauseTier::Open,
        ]),
        peers: ClausePeers {
            any: is_any,
            identities: Arc::new((0..identities).map(|_| any_identity(random)).collect()),
            cidrs: Arc::new((0..cidrs).map(|_| any_cidr(random)).collect()),
            names: has_names && random.once_in(4),
        },
        ports: if random.once_in(3) {
            ClausePorts::Any
        } else {
            ClausePorts::Of((0..random.below(4)).map(|_| any_ports(random)).collect())
        },
        origins: Arc::new([]),
    }
}

fn any_ports(random: &mut Random) -> (Protocol, PortRange) {
    let protocol = random.pick(&[
        Protocol::Tcp,
        Protocol::Tcp,
        Protocol::Udp,
        Protocol::Sctp,
        Protocol::Icmp,
        Protocol::Icmpv6,
    ]);
    let (one, other) = (port(random), port(random));
    let range = PortRange::new(one.min(other), one.max(other)).unwrap_or(PortRange::ALL);
    (protocol, if random.once_in(2) { PortRange::single(one) } else { range })
}

fn any_identity(random: &mut Random) -> Identity {
    identity(random.pick(&[1, 2, 3, 4, 5, 256, 257, 258, 300]))
}

fn any_echo(random: &mut Random, is_v4: bool) -> Vec<u8> {
    let kinds: &[u8] = if is_v4 { &[8, 8, 0, 13] } else { &[128, 128, 129, 138] };
    frame::echo(random.pick(kinds), random.below(4) as u16)
}

/// An error about a packet that goes the other way.
fn any_error(random: &mut Random, ends: (IpAddr, IpAddr), is_v4: bool) -> Vec<u8> {
    let kinds: &[u8] = if is_v4 { &[3, 11, 12, 5] } else { &[1, 2, 3, 4, 137] };
    let (from, to) = (port(random), port(random));
    let quoted = match random.below(3) {
        0 => frame::ip(MAC, (ends.1, ends.0), 6, &frame::tcp(from, to, 0x10)),
        1 => frame::ip(MAC, (ends.1, ends.0), 17, &frame::udp(from, to, b"quoted")),
        _ => frame::ip(MAC, (ends.1, ends.0), icmp(is_v4), &any_echo(random, is_v4)),
    };
    let room = 28 + random.below(80);
    let quoted: Vec<u8> = quoted.into_iter().skip(14).take(room).collect();
    frame::icmp(random.pick(kinds), [0, 0, 5, 0xdc], &quoted)
}

fn any_link(random: &mut Random, mac: Mac, ends: (IpAddr, IpAddr), is_v4: bool) -> Vec<u8> {
    match (ends, is_v4) {
        ((IpAddr::V4(source), IpAddr::V4(target)), true) => {
            let sender = random.pick(&[source.octets(), [0; 4], [10, 244, 1, 77]]);
            frame::arp(mac, random.pick(&[1, 2, 3]), sender, target.octets())
        }
        _ => {
            let link_local = "fe80::ff:fe00:a";
            let sources =
                [ends.0, address("::"), address(link_local), address("fe80::1"), address(POD_V6)];
            let target = random.pick(&[address(POD_V6), address(link_local), ends.1]);
            let mut body = match target {
                IpAddr::V6(target) => target.octets().to_vec(),
                IpAddr::V4(_) => vec![0; 16],
            };
            let claimed = random.pick(&[MAC, MAC, Mac([4; 6])]);
            body.extend([random.pick(&[1, 2, 14]), 1]);
            body.extend(claimed.0);
            let message = frame::icmp(random.pick(&[133, 134, 135, 136, 137]), [0; 4], &body);
            frame::ip(mac, (random.pick(&sources), ends.1), 58, &message)
        }
    }
}

fn any_fragment(random: &mut Random, mac: Mac, ends: (IpAddr, IpAddr), is_v4: bool) -> Vec<u8> {
    let number = random.pick(&[6, 17, 17, icmp(is_v4)]);
    let payload = match number {
        6 => frame::tcp(port(random), port(random), 0x10),
        17 => frame::udp(port(random), port(random), &[0; 16]),
        _ => any_echo(random, is_v4),
    };
    let mut payload = payload;
    payload.resize(random.pick(&[8, 16, 24, 32, 40]), 0);
    let offset: u16 = random.pick(&[0, 0, 0, 1, 2, 5]);
    let has_more = random.once_in(2);
    let identification = random.below(6) as u8;
    if is_v4 {
        let mut frame = frame::ip(mac, ends, number, &payload);
        frame[18..20].copy_from_slice(&[0, identification]);
        let field = offset | if has_more { 0x2000 } else { 0 };
        frame[20..22].copy_from_slice(&field.to_be_bytes());
        frame
    } else {
        let field = (offset << 3 | u16::from(has_more)).to_be_bytes();
        let mut body = vec![number, 0, field[0], field[1], 0, 0, 0, identification];
        body.extend(payload);
        frame::ip(mac, ends, 44, &body)
    }
}

fn port(random: &mut Random) -> u16 {
    random.pick(&PORTS)
}

const fn icmp(is_v4: bool) -> u8 {
    if is_v4 { 1 } else { 58 }
}

fn proxy() -> ProxySettings {
    ProxySettings {
        // The loopback: a redirect that a test run never makes.
        ifindex: 1,
        mac: [2, 0, 0, 0, 0, 0x53],
        v4: PROXY_V4.parse().expect("an address"),
        v6: PROXY_V6.parse().expect("an address"),
        port: PROXY_PORT,
    }
}

fn identity(number: u32) -> Identity {
    Identity::new(number).expect("not zero")
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}
