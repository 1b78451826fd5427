//! What IP carries: TCP, UDP, SCTP, ICMP, errors about packets, and lookups.

use namegate_egress_bpf::abi::Direction;
use namegate_egress_bpf::sim::frame;

use super::{
    OPEN, POD, POD_V6, Row, SITE, SITE_V6, got, ip, sent, tcp, udp, v4, v4_back, v6, with,
};
use crate::random::MAC;

const SYN: u8 = 0x02;
const RESOLVER: &str = "10.244.1.53";
const RESOLVER_V6: &str = "fd00:10:244:1::53";

/// TCP flags of a packet that belongs to no flow: FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32.
const FLAGS: [(&str, u8, &str); 22] = [
    ("none", 0, "tcp-flags"),
    ("FIN", 1, "tcp-flags"),
    ("SYN", 2, "judged"),
    ("SYN FIN", 3, "tcp-flags"),
    ("RST", 4, "no-flow"),
    ("RST FIN", 5, "tcp-flags"),
    ("RST SYN", 6, "tcp-flags"),
    ("RST SYN FIN", 7, "tcp-flags"),
    ("PSH", 8, "tcp-flags"),
    ("SYN PSH", 10, "judged"),
    ("ACK", 16, "no-flow"),
    ("FIN ACK", 17, "no-flow"),
    ("SYN ACK", 18, "no-flow"),
    ("SYN FIN ACK", 19, "tcp-flags"),
    ("RST ACK", 20, "no-flow"),
    ("PSH ACK", 24, "no-flow"),
    ("URG", 32, "tcp-flags"),
    ("FIN PSH URG", 41, "tcp-flags"),
    ("SYN URG", 34, "judged"),
    ("SYN ECE CWR", 0xc2, "judged"),
    ("everything", 0x3f, "tcp-flags"),
    ("all eight", 0xff, "tcp-flags"),
];

/// ICMP types of IPv4.
const ICMP: [(u8, &str); 26] = [
    (0, "no-flow"),
    (1, "icmp-type"),
    (2, "icmp-type"),
    (3, "icmp-unrelated"),
    (4, "icmp-type"),
    (5, "router-message"),
    (6, "icmp-type"),
    (7, "icmp-type"),
    (8, "judged"),
    (9, "router-message"),
    (10, "icmp-type"),
    (11, "icmp-unrelated"),
    (12, "icmp-unrelated"),
    (13, "icmp-type"),
    (14, "icmp-type"),
    (15, "icmp-type"),
    (16, "icmp-type"),
    (17, "icmp-type"),
    (18, "icmp-type"),
    (30, "icmp-type"),
    (40, "icmp-type"),
    (41, "icmp-type"),
    (42, "icmp-type"),
    (43, "icmp-type"),
    (253, "icmp-type"),
    (255, "icmp-type"),
];

/// ICMP types of IPv6; those of neighbours are among the frames of the link.
const ICMP_V6: [(u8, &str); 24] = [
    (0, "icmp-type"),
    (1, "icmp-unrelated"),
    (2, "icmp-unrelated"),
    (3, "icmp-unrelated"),
    (4, "icmp-unrelated"),
    (5, "icmp-type"),
    (100, "icmp-type"),
    (127, "icmp-type"),
    (128, "judged"),
    (129, "no-flow"),
    (130, "icmp-type"),
    (131, "icmp-type"),
    (132, "icmp-type"),
    (138, "icmp-type"),
    (139, "icmp-type"),
    (140, "icmp-type"),
    (141, "icmp-type"),
    (144, "icmp-type"),
    (151, "icmp-type"),
    (155, "icmp-type"),
    (160, "icmp-type"),
    (161, "icmp-type"),
    (200, "icmp-type"),
    (255, "icmp-type"),
];

pub(super) fn rows() -> Vec<Row> {
    [segments(), datagrams(), messages(), errors(), lookups()].into_iter().flatten().collect()
}

fn segments() -> Vec<Row> {
    let opened = || vec![(Direction::Egress, v4(6, &tcp(SYN)))];
    let answered = || {
        let answer = v4_back(6, &frame::tcp(OPEN, 40_000, 0x12));
        [opened(), vec![(Direction::Ingress, answer)]].concat()
    };
    let closed = || [answered(), vec![(Direction::Egress, v4(6, &tcp(0x14)))]].concat();
    let offset = |words: u8| v4(6, &with(tcp(SYN), 12, &[words << 4]));
    let mut rows: Vec<Row> = FLAGS
        .into_iter()
        .flat_map(|(name, flags, becomes)| {
            let over_v6 = format!("TCP {name} over IPv6");
            [
                sent(format!("TCP {name}"), v4(6, &tcp(flags)), becomes),
                sent(over_v6, v6(6, &tcp(flags)), becomes),
            ]
        })
        .collect();
    for words in 0..5 {
        rows.push(sent(format!("TCP header of {words} words"), offset(words), "malformed"));
    }
    rows.extend([
        sent("TCP options past the end", offset(6), "truncated"),
        sent(
            "TCP options that are all there",
            v4(6, &[with(tcp(SYN), 12, &[0x60]), vec![1; 4]].concat()),
            "judged",
        ),
        sent("TCP header but for an octet", v4(6, &tcp(SYN)[..19]), "truncated"),
        sent("TCP ports alone", v4(6, &tcp(SYN)[..4]), "truncated"),
        sent("TCP with a wrong checksum", v4(6, &with(tcp(SYN), 16, &[1, 2])), "judged"),
        sent("TCP with data in the SYN", v4(6, &[tcp(SYN), vec![0; 100]].concat()), "judged"),
        sent("TCP from port zero", v4(6, &frame::tcp(0, OPEN, SYN)), "judged"),
        sent("TCP to port zero", v4(6, &frame::tcp(40_000, 0, SYN)), "denied"),
        sent("TCP to a closed port", v4(6, &frame::tcp(40_000, 25, SYN)), "denied"),
        sent("SYN again", v4(6, &tcp(SYN)), "known-flow").after(opened()),
        sent("ACK before an answer", v4(6, &tcp(0x10)), "known-flow").after(opened()),
        got("answer to a SYN", v4_back(6, &frame::tcp(OPEN, 40_000, 0x12)), "known-flow")
            .after(opened()),
        got("SYN in the place of an answer", v4_back(6, &frame::tcp(OPEN, 40_000, SYN)), "no-flow")
            .after(opened()),
        sent("data of a known flow", v4(6, &[tcp(0x18), vec![7; 32]].concat()), "known-flow")
            .after(answered()),
        sent(
            "data behind options of TCP",
            v4(6, &[with(tcp(0x18), 12, &[0x80]), vec![1; 32]].concat()),
            "known-flow",
        )
        .after(answered()),
        sent("data with a header past the end", v4(6, &with(tcp(0x18), 12, &[0x80])), "truncated")
            .after(answered()),
        sent(
            "data from another's MAC",
            with(v4(6, &tcp(0x18)), 6, &[2, 0, 0, 0, 0, 0x0b]),
            "spoofed",
        )
        .after(answered()),
        sent("data with options of IP", with(v4(6, &[1; 24]), 14, &[0x46]), "ip-options")
            .after(answered()),
        sent("data in a tag", with(v4(6, &tcp(0x18)), 12, &[0x81, 0]), "vlan").after(answered()),
        sent("NULL in a known flow", v4(6, &tcp(0)), "tcp-flags").after(answered()),
        got("data to the pod", v4_back(6, &frame::tcp(OPEN, 40_000, 0x18)), "known-flow")
            .after(answered()),
        got(
            "data to another pod",
            with(v4_back(6, &frame::tcp(OPEN, 40_000, 0x18)), 30, &[10, 244, 1, 11]),
            "not-addressed",
        )
        .after(answered()),
        sent("FIN of a known flow", v4(6, &tcp(0x11)), "known-flow").after(answered()),
        sent("RST of a known flow", v4(6, &tcp(0x14)), "known-flow").after(answered()),
        sent("SYN after a RST", v4(6, &tcp(SYN)), "judged").after(closed()),
        got(
            "SYN from the other end after a RST",
            v4_back(6, &frame::tcp(OPEN, 40_000, SYN)),
            "denied",
        )
        .after(closed()),
    ]);
    rows
}

fn datagrams() -> Vec<Row> {
    let chunk = |from, to, kind| [frame::sctp(from, to), vec![kind, 0, 0, 4]].concat();
    let init = || vec![(Direction::Egress, v4(132, &chunk(40_000, OPEN, 1)))];
    let aborted =
        || [init(), vec![(Direction::Ingress, v4_back(132, &chunk(OPEN, 40_000, 6)))]].concat();
    let length = |octets: [u8; 2]| v4(17, &with(udp(), 4, &octets));
    let opened = || vec![(Direction::Egress, v4(17, &udp()))];
    vec![
        sent("UDP", v4(17, &udp()), "judged"),
        sent("UDP over IPv6", v6(17, &udp()), "judged"),
        sent("UDP without data", v4(17, &frame::udp(1, OPEN, b"")), "judged"),
        sent("UDP with a wrong checksum", v4(17, &with(udp(), 6, &[1, 2])), "judged"),
        sent("UDP over IPv6 without a checksum", v6(17, &with(udp(), 6, &[0, 0])), "judged"),
        sent("UDP length of zero", length([0, 0]), "malformed"),
        sent("UDP length of seven", length([0, 7]), "malformed"),
        sent("UDP length below the payload", length([0, 9]), "judged"),
        sent("UDP length past the payload", length([0, 25]), "malformed"),
        sent("UDP header but for an octet", v4(17, &udp()[..7]), "truncated"),
        sent("UDP to a closed port", v4(17, &frame::udp(1, 25, b"")), "denied"),
        sent("UDP again", v4(17, &udp()), "known-flow").after(opened()),
        got("UDP answer", v4_back(17, &frame::udp(OPEN, 40_000, b"x")), "known-flow")
            .after(opened()),
        got(
            "UDP answer from another port",
            v4_back(17, &frame::udp(OPEN + 1, 40_000, b"x")),
            "denied",
        )
        .after(opened()),
        got(
            "UDP answer of a wrong length",
            v4_back(17, &with(frame::udp(OPEN, 40_000, b"x"), 4, &[0, 3])),
            "malformed",
        )
        .after(opened()),
        got("UDP to an open port", v4_back(17, &frame::udp(9, OPEN, b"x")), "judged"),
        sent("SCTP", v4(132, &frame::sctp(1, OPEN)), "judged"),
        sent("SCTP over IPv6", v6(132, &frame::sctp(1, OPEN)), "judged"),
        sent("SCTP INIT", v4(132, &chunk(40_000, OPEN, 1)), "judged"),
        sent("SCTP INIT again", v4(132, &chunk(40_000, OPEN, 1)), "known-flow").after(init()),
        got("SCTP INIT ACK", v4_back(132, &chunk(OPEN, 40_000, 2)), "known-flow").after(init()),
        got("SCTP INIT in its place", v4_back(132, &chunk(OPEN, 40_000, 1)), "no-flow")
            .after(init()),
        got("SCTP ABORT", v4_back(132, &chunk(OPEN, 40_000, 6)), "known-flow").after(init()),
        got("SCTP INIT after an ABORT", v4_back(132, &chunk(OPEN, 40_000, 1)), "denied")
            .after(aborted()),
        sent("SCTP to a closed port", v4(132, &frame::sctp(1, 25)), "denied"),
        sent("SCTP header but for an octet", v4(132, &frame::sctp(1, OPEN)[..11]), "truncated"),
    ]
}

fn messages() -> Vec<Row> {
    let v4_types = ICMP.into_iter().map(|(kind, becomes)| {
        sent(format!("ICMP type {kind}"), v4(1, &frame::echo(kind, 1)), becomes)
    });
    let v6_types = ICMP_V6.into_iter().map(|(kind, becomes)| {
        sent(format!("ICMPv6 type {kind}"), v6(58, &frame::echo(kind, 1)), becomes)
    });
    let asked = || vec![(Direction::Egress, v4(1, &frame::echo(8, 1)))];
    let others = [
        sent("ICMPv6 in IPv4", v4(58, &frame::echo(128, 1)), "protocol"),
        sent("ICMP in IPv6", v6(1, &frame::echo(8, 1)), "protocol"),
        sent("half an ICMP header", v4(1, &frame::echo(8, 1)[..7]), "truncated"),
        sent("echo again", v4(1, &frame::echo(8, 1)), "known-flow").after(asked()),
        got("echo reply", v4_back(1, &frame::echo(0, 1)), "known-flow").after(asked()),
        got("echo reply to another question", v4_back(1, &frame::echo(0, 2)), "no-flow")
            .after(asked()),
        got("echo to the pod", v4_back(1, &frame::echo(8, 1)), "denied"),
        got("redirect to the pod", v4_back(1, &frame::icmp(5, [0; 4], &[0; 28])), "router-message"),
    ];
    v4_types.chain(v6_types).chain(others).collect()
}

fn errors() -> Vec<Row> {
    let opened =
        || vec![(Direction::Egress, v4(6, &tcp(SYN))), (Direction::Egress, v4(17, &udp()))];
    let opened_v6 = || vec![(Direction::Egress, v6(6, &tcp(SYN)))];
    let about = |kind, quoted: &[u8]| {
        let message = frame::icmp(kind, [0, 0, 5, 0xdc], quoted);
        frame::ip(MAC, (ip("10.244.1.1"), ip(POD)), 1, &message)
    };
    let about_v6 = |kind, quoted: &[u8]| {
        let message = frame::icmp(kind, [0, 0, 5, 0xdc], quoted);
        frame::ip(MAC, (ip("fd00:10:244:1::1"), ip(POD_V6)), 58, &message)
    };
    let segment = || v4(6, &tcp(SYN))[14..].to_vec();
    let segment_v6 = || v6(6, &tcp(SYN))[14..].to_vec();
    let mut rows = Vec::new();
    for kind in [3, 11, 12] {
        rows.push(
            got(format!("error {kind} about a known flow"), about(kind, &segment()), "related")
                .after(opened()),
        );
    }
    for kind in [1, 2, 3, 4] {
        rows.push(
            got(
                format!("error {kind} about a known flow over IPv6"),
                about_v6(kind, &segment_v6()),
                "related",
            )
            .after(opened_v6()),
        );
    }
    let unrelated = |name: &str, quoted: &[u8]| {
        got(format!("error quoting {name}"), about(3, quoted), "icmp-unrelated").after(opened())
    };
    rows.extend([
        got("error with eight octets of the segment", about(3, &segment()[..28]), "related")
            .after(opened()),
        got("error about a datagram", about(3, &v4(17, &udp())[14..]), "related").after(opened()),
        unrelated("nothing", &[]),
        unrelated("half a header", &segment()[..10]),
        unrelated("a header without ports", &segment()[..20]),
        unrelated("another flow", &v4(6, &frame::tcp(40_001, OPEN, SYN))[14..]),
        unrelated("another protocol", &v4(132, &frame::sctp(40_000, OPEN))[14..]),
        unrelated(
            "the flow the wrong way round",
            &v4_back(6, &frame::tcp(OPEN, 40_000, SYN))[14..],
        ),
        unrelated("a packet of another pod", &with(segment(), 12, &[10, 244, 1, 11])),
        unrelated("options", &with(segment(), 0, &[0x46])),
        unrelated("another version", &with(segment(), 0, &[0x65])),
        unrelated("a later fragment", &with(segment(), 6, &[0, 5])),
        unrelated("an error", &v4(1, &frame::icmp(3, [0; 4], &[0; 20]))[14..]),
        got(
            "error quoting another version over IPv6",
            about_v6(1, &with(segment_v6(), 0, &[0x40])),
            "icmp-unrelated",
        )
        .after(opened_v6()),
        got(
            "error quoting half a header over IPv6",
            about_v6(1, &segment_v6()[..30]),
            "icmp-unrelated",
        )
        .after(opened_v6()),
        sent(
            "error from the pod about nothing",
            v4(1, &frame::icmp(3, [0; 4], &v4_back(6, &frame::tcp(1, 2, SYN))[14..])),
            "icmp-unrelated",
        ),
        sent(
            "error from the pod about what it got",
            v4(1, &frame::icmp(3, [0; 4], &v4_back(17, &frame::udp(9, OPEN, b"x"))[14..])),
            "related",
        )
        .after(vec![(Direction::Ingress, v4_back(17, &frame::udp(9, OPEN, b"x")))]),
    ]);
    rows
}

fn lookups() -> Vec<Row> {
    let ask = |number, to: &str, port| {
        let own = if to.contains(':') { POD_V6 } else { POD };
        let payload = match number {
            6 => frame::tcp(40_000, port, SYN),
            _ => frame::udp(40_000, port, b"question"),
        };
        frame::ip(MAC, (ip(own), ip(to)), number, &payload)
    };
    let answer = |from: u16| {
        let ends = (ip("169.254.53.53"), ip(POD));
        frame::ip(MAC, ends, 17, &frame::udp(from, 40_000, b"answered"))
    };
    vec![
        sent("lookup over UDP", ask(17, RESOLVER, 53), "to-proxy"),
        sent("lookup over TCP", ask(6, RESOLVER, 53), "to-proxy"),
        sent("lookup over IPv6", ask(17, RESOLVER_V6, 53), "to-proxy"),
        sent("lookup over TCP and IPv6", ask(6, RESOLVER_V6, 53), "to-proxy"),
        sent("lookup of nobody's resolver", ask(17, SITE, 53), "denied"),
        sent("lookup of nobody's resolver over IPv6", ask(6, SITE_V6, 53), "denied"),
        sent("lookup over TLS", ask(6, RESOLVER, 853), "denied"),
        sent("lookup to another port of the resolver", ask(17, RESOLVER, 5_353), "denied"),
        sent("lookup in pieces", with(ask(17, RESOLVER, 53), 20, &[0x20, 0]), "fragment-dns"),
        sent(
            "lookup from another's MAC",
            with(ask(17, RESOLVER, 53), 6, &[2, 0, 0, 0, 0, 9]),
            "spoofed",
        ),
        got("answer of the proxy", answer(15_300), "from-proxy"),
        got("answer for a slot that nobody has", answer(15_301), "proxy-address"),
        got("answer from below the slots", answer(15_299), "proxy-address"),
        got("answer from above the slots", answer(15_316), "proxy-address"),
        got("answer in pieces", with(answer(15_300), 20, &[0x20, 0]), "fragment-dns"),
        got(
            "echo from the proxy",
            frame::ip(MAC, (ip("169.254.53.53"), ip(POD)), 1, &frame::echo(8, 1)),
            "proxy-address",
        ),
    ]
}
