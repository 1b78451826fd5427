//! Compiled rules decide as the clauses read.

mod pod;

use std::net::IpAddr;
use std::sync::Arc;

use namegate_egress_bpf::abi::{DropReason, EventVerdict, NO_CLAUSE};
use namegate_egress_bpf::packet::TCP_SYN;
use namegate_egress_bpf::sim::frame;
use namegate_egress_bpf::verdict::Verdict;
use namegate_policy::identity::{Identity, IdentitySet};
use namegate_policy::rule::{CidrReach, PortRange, Protocol};
use namegate_policy::table::{
    CidrPeer, Clause, ClauseAction, ClausePeers, ClausePorts, ClauseTier,
};
use pod::{MAC, POD, POD_V6, Pod, SITE, any_peer, clause, ip, open};
use proptest::prelude::*;

const REMOTES: [(&str, u32); 6] = [
    ("10.244.2.7", 256),
    ("10.244.2.8", 257),
    ("203.0.113.10", 4),
    ("fd00:10:244:2::7", 256),
    ("2001:db8:1::10", 4),
    ("10.244.1.1", 1),
];
const NETS: [&str; 7] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.244.2.0/24",
    "203.0.113.10/32",
    "::/0",
    "fd00::/8",
    "2001:db8::/32",
];
const PORTS: [u16; 5] = [22, 80, 443, 8_080, 65_535];

/// What the clauses say, read one after the other: who decides, and the first Audit on the way.
fn read(
    clauses: &[Clause],
    remote: (IpAddr, u32),
    port: Option<(Protocol, u16)>,
) -> (Option<u16>, bool, u16) {
    let mut audit = NO_CLAUSE;
    let mut passed = None;
    for (number, clause) in (0..).zip(clauses) {
        if passed == Some(clause.tier) || !matches(clause, remote, port) {
            continue;
        }
        match clause.action {
            ClauseAction::Forward => return (Some(number), true, audit),
            ClauseAction::Drop => return (Some(number), false, audit),
            ClauseAction::Audit if audit == NO_CLAUSE => audit = number,
            ClauseAction::Audit => {}
            ClauseAction::Pass => passed = Some(clause.tier),
        }
    }
    (None, false, audit)
}

fn matches(
    clause: &Clause,
    (address, identity): (IpAddr, u32),
    port: Option<(Protocol, u16)>,
) -> bool {
    let peers = &clause.peers;
    let is_peer = peers.any
        || peers.identities.iter().any(|known| known.number() == identity)
        || peers.cidrs.iter().any(|cidr| {
            cidr.net.contains(&address) && !cidr.except.iter().any(|net| net.contains(&address))
        });
    let is_port = match (&clause.ports, port) {
        (ClausePorts::Any, _) => true,
        (ClausePorts::Of(ranges), Some((protocol, port))) => {
            ranges.iter().any(|(named, range)| *named == protocol && range.contains(port))
        }
        (ClausePorts::Of(_), None) => false,
    };
    is_peer && is_port
}

fn any_clause() -> impl Strategy<Value = Clause> {
    let action = prop_oneof![
        3 => Just(ClauseAction::Forward),
        1 => Just(ClauseAction::Drop),
        1 => Just(ClauseAction::Audit),
        1 => Just(ClauseAction::Pass),
    ];
    let tier = prop_oneof![
        Just(ClauseTier::Admin),
        Just(ClauseTier::Namespaced),
        Just(ClauseTier::Baseline),
    ];
    let net = proptest::sample::select(&NETS[..]).prop_map(|text| text.parse().expect("a prefix"));
    let cidr = (net.clone(), proptest::collection::vec(net, 0..2))
        .prop_map(|(net, except)| CidrPeer { net, except, reach: CidrReach::All });
    let identity = proptest::sample::select(vec![1_u32, 4, 256, 257]);
    let identities = proptest::collection::btree_set(identity, 0..3)
        .prop_map(|set| set.into_iter().filter_map(Identity::new).collect::<IdentitySet>());
    let peers = prop_oneof![
        1 => Just(any_peer()),
        4 => (identities, proptest::collection::vec(cidr, 0..3)).prop_map(|(identities, cidrs)| {
            let (identities, cidrs) = (Arc::new(identities), Arc::new(cidrs));
            ClausePeers { identities, cidrs, ..ClausePeers::default() }
        }),
    ];
    let protocol = proptest::sample::select(vec![
        Protocol::Tcp,
        Protocol::Udp,
        Protocol::Sctp,
        Protocol::Icmp,
    ]);
    let range = (proptest::sample::select(&PORTS[..]), proptest::sample::select(&PORTS[..]))
        .prop_filter_map("start after end", |(start, end)| PortRange::new(start, end));
    let ports = prop_oneof![
        Just(ClausePorts::Any),
        proptest::collection::vec((protocol, range), 0..3).prop_map(ClausePorts::Of),
    ];
    (action, tier, peers, ports)
        .prop_map(|(action, tier, peers, ports)| Clause { ports, ..clause(action, tier, peers) })
}

fn any_clauses() -> impl Strategy<Value = Vec<Clause>> {
    // Some tables need more than one word of bits.
    prop_oneof![
        proptest::collection::vec(any_clause(), 0..8),
        proptest::collection::vec(any_clause(), 60..140),
    ]
    .prop_map(|mut clauses| {
        clauses.sort_by_key(|clause| clause.tier);
        clauses
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn the_lowest_matching_rule_decides(
        egress in any_clauses(),
        ingress in any_clauses(),
        remote in proptest::sample::select(&REMOTES[..]),
        port in proptest::sample::select(&PORTS[..]),
        protocol in proptest::sample::select(vec![6_u8, 17, 132]),
        is_out in any::<bool>(),
    ) {
        let mut pod = Pod::new(egress.clone(), ingress.clone());
        for (address, identity) in REMOTES {
            pod.sim.ipcache.insert(ip(address).into(), identity);
        }
        let (address, identity) = (ip(remote.0), remote.1);
        let own = ip(if address.is_ipv4() { POD } else { POD_V6 });
        let payload = match protocol {
            6 => frame::tcp(40_000, port, TCP_SYN),
            17 => frame::udp(40_000, port, b""),
            _ => frame::sctp(40_000, port),
        };
        let named = match protocol {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            _ => Protocol::Sctp,
        };
        let (verdict, clauses) = if is_out {
            (pod.sends(&frame::ip(MAC, (own, address), protocol, &payload)), &egress)
        } else {
            (pod.gets(&frame::ip(MAC, (address, own), protocol, &payload)), &ingress)
        };
        let (decider, forwards, audit) = read(clauses, (address, identity), Some((named, port)));
        let expected = match (decider, forwards) {
            (Some(_), true) => "forwarded",
            (Some(_), false) => "denied",
            (None, _) => "no-rule",
        };
        let found = match verdict {
            Verdict::Forward(_) | Verdict::Translate { .. } => "forwarded",
            Verdict::Drop(DropReason::Denied) => "denied",
            Verdict::Drop(reason) => reason.as_str(),
            Verdict::ToProxy { .. } | Verdict::FromProxy { .. } => "proxy",
        };
        prop_assert_eq!(found, expected);
        let event = pod.events[0];
        prop_assert_eq!((event.clause, event.audit), (decider.unwrap_or(NO_CLAUSE), audit));
        prop_assert_eq!(event.remote_identity, identity);
        let told = match (forwards, audit) {
            (false, _) => EventVerdict::Dropped,
            (true, NO_CLAUSE) => EventVerdict::Forwarded,
            (true, _) => EventVerdict::Audit,
        };
        prop_assert_eq!(event.verdict, told as u8);
    }
}

#[test]
fn ch_2_an_echo_follows_rules_without_ports_and_those_for_its_own_family() {
    let of = |protocol, number| Clause {
        ports: ClausePorts::Of(vec![(protocol, PortRange::single(number))]),
        ..open()
    };
    let ping = |pod: &mut Pod, is_v4: bool| {
        let (kind, number, own, site) =
            if is_v4 { (8, 1, POD, SITE) } else { (128, 58, POD_V6, pod::SITE_V6) };
        let frame = frame::ip(MAC, (ip(own), ip(site)), number, &frame::echo(kind, 7));
        matches!(pod.sends(&frame), Verdict::Forward(_))
    };
    let cases = [
        ("any port", open(), true, true),
        ("every TCP port", of(Protocol::Tcp, 8), false, false),
        ("ICMP echo", of(Protocol::Icmp, 8), true, false),
        ("ICMPv6 echo", of(Protocol::Icmpv6, 128), false, true),
        ("another ICMP type", of(Protocol::Icmp, 13), false, false),
    ];
    for (name, rule, v4, v6) in cases {
        let mut pod = Pod::new(vec![rule], vec![]);
        assert_eq!((ping(&mut pod, true), ping(&mut pod, false)), (v4, v6), "{name}");
    }
}

#[test]
fn a_pass_skips_its_tier_and_no_other() {
    let mk = |action, tier| clause(action, tier, any_peer());
    let clauses = vec![
        mk(ClauseAction::Pass, ClauseTier::Admin),
        mk(ClauseAction::Drop, ClauseTier::Admin),
        mk(ClauseAction::Audit, ClauseTier::Namespaced),
        mk(ClauseAction::Pass, ClauseTier::Baseline),
        mk(ClauseAction::Drop, ClauseTier::Baseline),
        open(),
    ];
    let mut pod = Pod::new(clauses, vec![]);
    let syn = frame::ip(MAC, (ip(POD), ip(SITE)), 6, &frame::tcp(1, 443, TCP_SYN));
    assert!(matches!(pod.sends(&syn), Verdict::Forward(_)));
    assert_eq!((pod.events[0].clause, pod.events[0].audit), (5, 2));
}
