//! IP: lengths and versions, options, extension headers, other protocols, fragments, addresses.

use namegate_egress_bpf::abi::Direction;
use namegate_egress_bpf::sim::frame;

use super::{
    OPEN, POD, POD_V6, Row, SITE, SITE_V6, got, ip, sent, tcp, udp, v4, v4_back, v6, v6_back, with,
};
use crate::random::MAC;

const SYN: u8 = 0x02;

/// IPv4 options, as they lie.
const OPTIONS: [(&str, &[u8]); 20] = [
    ("end of options", &[0, 0, 0, 0]),
    ("no operation", &[1, 1, 1, 1]),
    ("record route", &[7, 7, 4, 0, 0, 0, 0, 0]),
    ("quick start", &[25, 8, 0, 0, 0, 0, 0, 0]),
    ("timestamp", &[68, 8, 5, 0, 0, 0, 0, 0]),
    ("traceroute", &[82, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ("security", &[130, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ("loose source route", &[131, 7, 4, 203, 0, 113, 99, 0]),
    ("extended security", &[133, 4, 0, 0]),
    ("CIPSO", &[134, 8, 0, 0, 0, 1, 0, 0]),
    ("stream identifier", &[136, 4, 0, 1]),
    ("strict source route", &[137, 7, 4, 203, 0, 113, 99, 0]),
    ("router alert", &[148, 4, 0, 0]),
    ("address extension", &[147, 4, 0, 0]),
    ("experimental", &[158, 4, 0, 0]),
    ("nobody's", &[255, 4, 0, 0]),
    ("of no length", &[7, 0, 0, 0]),
    ("past the header", &[7, 40, 4, 0]),
    ("and padding", &[148, 4, 0, 0, 0, 0, 0, 0]),
    ("to the last octet", &[1; 40]),
];

/// IPv6 extension headers in a chain: the first's number, and all of them.
const CHAINS: [(&str, u8, &[u8]); 18] = [
    ("hop-by-hop with padding", 0, &[6, 0, 1, 4, 0, 0, 0, 0]),
    ("hop-by-hop with a jumbo length", 0, &[6, 0, 0xc2, 4, 0, 1, 0, 0]),
    ("hop-by-hop with an alert", 0, &[6, 0, 5, 2, 0, 0, 1, 0]),
    ("hop-by-hop before an echo", 0, &[58, 0, 1, 4, 0, 0, 0, 0]),
    ("hop-by-hop before nothing", 0, &[59, 0, 1, 4, 0, 0, 0, 0]),
    ("hop-by-hop twice", 0, &[0, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0]),
    ("hop-by-hop past the end", 0, &[6, 255, 1, 4, 0, 0, 0, 0]),
    ("routing type 0", 43, &[6, 0, 0, 0, 0, 0, 0, 0]),
    ("routing type 2", 43, &[6, 0, 2, 0, 0, 0, 0, 0]),
    ("segment routing", 43, &[6, 0, 4, 0, 0, 0, 0, 0]),
    ("authentication header", 51, &[6, 4, 0, 0, 0, 0, 0, 1]),
    ("destination options", 60, &[6, 0, 1, 4, 0, 0, 0, 0]),
    ("destination options with a home address", 60, &[6, 0, 0xc9, 4, 0, 0, 0, 0]),
    ("mobility header", 135, &[59, 0, 5, 0, 0, 0, 0, 0]),
    ("host identity", 139, &[59, 0, 1, 0x11, 0, 0, 0, 0]),
    ("shim6", 140, &[6, 0, 0, 0, 0, 0, 0, 0]),
    ("options behind a fragment header", 44, &[60, 0, 0, 0, 0, 0, 0, 1, 6, 0, 1, 4, 0, 0, 0, 0]),
    ("fragment behind a fragment", 44, &[44, 0, 0, 0, 0, 0, 0, 1, 6, 0, 0, 0, 0, 0, 0, 1]),
];

/// IP protocols that nobody judges.
const PROTOCOLS: [(&str, u8); 26] = [
    ("IGMP", 2),
    ("GGP", 3),
    ("IP in IP", 4),
    ("stream", 5),
    ("EGP", 8),
    ("DCCP", 33),
    ("IPv6 in IP", 41),
    ("RSVP", 46),
    ("GRE", 47),
    ("ESP", 50),
    ("no next header", 59),
    ("EIGRP", 88),
    ("OSPF", 89),
    ("KA9Q", 94),
    ("Ethernet in IP", 97),
    ("PIM", 103),
    ("IPComp", 108),
    ("VRRP", 112),
    ("L2TP", 115),
    ("Fibre Channel", 133),
    ("UDP-Lite", 136),
    ("MPLS in IP", 137),
    ("Ethernet", 143),
    ("experimental", 253),
    ("other experimental", 254),
    ("reserved", 255),
];

pub(super) fn rows() -> Vec<Row> {
    let parts = [shapes(), options(), chains(), protocols(), addresses()];
    let pieces =
        [("IPv4", piece_v4 as Piece, 8), ("IPv6", piece_v6, 128)].map(|(family, piece, asks)| {
            let mut rows = pieces(piece, asks);
            rows.iter_mut().for_each(|row| row.name = format!("{family}: {}", row.name));
            rows
        });
    parts.into_iter().chain(pieces).flatten().collect()
}

fn shapes() -> Vec<Row> {
    let syn = || v4(6, &tcp(SYN));
    let syn_v6 = || v6(6, &tcp(SYN));
    let total = |octets: [u8; 2]| with(syn(), 16, &octets);
    let payload = |octets: [u8; 2]| with(syn_v6(), 18, &octets);
    let mut rows = vec![
        sent("padded to the least frame", [syn(), vec![0; 6]].concat(), "judged"),
        sent("padded by many octets", [syn(), vec![0; 400]].concat(), "judged"),
        sent("total length of zero", total([0, 0]), "truncated"),
        sent("total length below the header", total([0, 19]), "truncated"),
        sent("total length of the header alone", total([0, 20]), "truncated"),
        sent("total length one short of TCP", total([0, 39]), "truncated"),
        sent("total length past the frame", total([0, 41]), "truncated"),
        sent("total length of 65,535", total([255, 255]), "truncated"),
        sent("half an IPv4 header", syn()[..24].to_vec(), "truncated"),
        sent("IPv4 header but for an octet", syn()[..33].to_vec(), "truncated"),
        sent("TTL of zero", with(syn(), 22, &[0]), "judged"),
        sent("TTL of one", with(syn(), 22, &[1]), "judged"),
        sent("wrong header checksum", with(syn(), 24, &[0xde, 0xad]), "judged"),
        sent("any type of service", with(syn(), 15, &[0xff]), "judged"),
        sent("congestion experienced", with(syn(), 15, &[3]), "judged"),
        sent("do not fragment", with(syn(), 20, &[0x40, 0]), "judged"),
        sent("reserved bit", with(syn(), 20, &[0x80, 0]), "malformed"),
        sent("reserved bit and do not fragment", with(syn(), 20, &[0xc0, 0]), "malformed"),
        sent("payload length of zero", payload([0, 0]), "truncated"),
        sent("payload length one short of TCP", payload([0, 19]), "truncated"),
        sent("payload length past the frame", payload([0, 21]), "truncated"),
        sent("half an IPv6 header", syn_v6()[..40].to_vec(), "truncated"),
        sent("IPv6 header but for an octet", syn_v6()[..53].to_vec(), "truncated"),
        sent("IPv6 header alone", with(syn_v6()[..54].to_vec(), 18, &[0, 0]), "truncated"),
        sent("hop limit of zero", with(syn_v6(), 21, &[0]), "judged"),
        sent(
            "flow label and traffic class",
            with(syn_v6(), 14, &[0x6f, 0xff, 0xff, 0xff]),
            "judged",
        ),
        sent("datagram of 2,900 octets", v4(17, &frame::udp(1, OPEN, &[7; 2_872])), "judged"),
        sent("datagram of 9,000 octets", v4(17, &frame::udp(1, OPEN, &[7; 8_972])), "judged"),
        sent("offload of 65,535 octets", v4(17, &frame::udp(1, OPEN, &[7; 65_507])), "judged"),
        sent(
            "offload of 70,000 octets",
            with(v4(6, &[tcp(0x02), vec![0; 69_960]].concat()), 16, &[0, 0]),
            "judged",
        ),
        sent(
            "offload of 70,000 octets over IPv6",
            with(v6(6, &[tcp(0x02), vec![0; 69_940]].concat()), 18, &[0, 0]),
            "judged",
        ),
    ];
    for version in (0..16).filter(|version| *version != 4) {
        let frame = with(syn(), 14, &[version << 4 | 5]);
        rows.push(sent(format!("version {version} in IPv4"), frame, "malformed"));
    }
    for version in (0..16).filter(|version| *version != 6) {
        let frame = with(syn_v6(), 14, &[version << 4]);
        rows.push(sent(format!("version {version} in IPv6"), frame, "malformed"));
    }
    for words in 0..5 {
        let frame = with(syn(), 14, &[0x40 | words]);
        rows.push(sent(format!("IPv4 header of {words} words"), frame, "malformed"));
    }
    rows
}

fn options() -> Vec<Row> {
    let with_options = |frame: fn(u8, &[u8]) -> Vec<u8>, options: &[u8]| {
        let words = 5 + options.len() as u8 / 4;
        with(frame(6, &[options, &tcp(SYN)].concat()), 14, &[0x40 | words])
    };
    OPTIONS
        .into_iter()
        .flat_map(|(name, options)| {
            [
                sent(format!("option {name}"), with_options(v4, options), "ip-options"),
                got(
                    format!("option {name}, to the pod"),
                    with_options(v4_back, options),
                    "ip-options",
                ),
            ]
        })
        .collect()
}

fn chains() -> Vec<Row> {
    CHAINS
        .into_iter()
        .flat_map(|(name, first, headers)| {
            let behind = [headers, &tcp(SYN)].concat();
            let to_pod = format!("{name}, to the pod");
            [
                sent(name, v6(first, &behind), "extension-header"),
                got(to_pod, v6_back(first, &behind), "extension-header"),
            ]
        })
        .collect()
}

fn protocols() -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, number) in PROTOCOLS {
        rows.push(sent(format!("{name} over IPv4"), v4(number, &[0; 24]), "protocol"));
        rows.push(sent(format!("{name} over IPv6"), v6(number, &[0; 24]), "protocol"));
    }
    for (name, number) in [("hop-by-hop", 0), ("routing", 43), ("AH", 51), ("mobility", 135)] {
        rows.push(sent(format!("{name} as a protocol of IPv4"), v4(number, &[0; 24]), "protocol"));
    }
    rows.push(sent("whole packet in IP", v4(4, &v4(6, &tcp(SYN))[14..]), "protocol"));
    rows.push(sent(
        "whole packet in GRE",
        v4(47, &[&[0, 0, 8, 0][..], &v4(6, &tcp(SYN))[14..]].concat()),
        "protocol",
    ));
    rows.push(got("IP in IP to the pod", v4_back(4, &v4_back(6, &tcp(SYN))[14..]), "protocol"));
    rows
}

fn addresses() -> Vec<Row> {
    let from = |source: &str| {
        let to = if source.contains(':') { SITE_V6 } else { SITE };
        frame::ip(MAC, (ip(source), ip(to)), 6, &tcp(SYN))
    };
    let to = |target: &str| {
        let own = if target.contains(':') { POD_V6 } else { POD };
        frame::ip(MAC, (ip(own), ip(target)), 6, &tcp(SYN))
    };
    let spoofed = [
        "10.244.1.11",
        "10.244.1.1",
        "10.244.2.7",
        "127.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "169.254.1.1",
        SITE,
        "fd00:10:244:1::11",
        "fd00:10:244:1::1",
        "::1",
        "::",
        "ff02::1",
        "fe80::1",
        "fe80::ff:fe00:a",
        SITE_V6,
        "::10.244.1.10",
    ];
    let mut rows: Vec<Row> = spoofed
        .into_iter()
        .map(|source| sent(format!("from {source}"), from(source), "spoofed"))
        .collect();
    let mapped =
        |at| with(v6(6, &tcp(SYN)), at, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 244, 1, 10]);
    let answer = |flags, ends: (&str, &str)| {
        frame::ip(MAC, (ip(ends.0), ip(ends.1)), 6, &frame::tcp(50_000, OPEN, flags))
    };
    rows.extend([
        sent("from its own address", from(POD), "judged"),
        sent("from its other address", from(POD_V6), "judged"),
        sent("from another's MAC", with(from(POD), 6, &[2, 0, 0, 0, 0, 0x0b]), "spoofed"),
        sent(
            "from another's MAC over IPv6",
            with(from(POD_V6), 6, &[2, 0, 0, 0, 0, 0x0b]),
            "spoofed",
        ),
        sent("from a mapped address", mapped(22), "mapped-address"),
        sent("to a mapped address", mapped(38), "mapped-address"),
        sent("to the proxy itself", to("169.254.53.53"), "proxy-address"),
        sent("to the proxy itself over IPv6", to("fd6e:616d:6567:6174::53"), "proxy-address"),
        sent("to a group", to("224.0.0.251"), "judged"),
        sent("to everybody", to("255.255.255.255"), "judged"),
        sent("to a group over IPv6", to("ff05::2"), "judged"),
        got("to the pod", answer(SYN, (SITE, POD)), "judged"),
        got("to the pod over IPv6", answer(SYN, (SITE_V6, POD_V6)), "judged"),
        got("to another pod", answer(SYN, (SITE, "10.244.1.11")), "not-addressed"),
        got(
            "to another pod over IPv6",
            answer(SYN, (SITE_V6, "fd00:10:244:1::11")),
            "not-addressed",
        ),
        got("from the proxy, but no answer", answer(SYN, ("169.254.53.53", POD)), "proxy-address"),
        got("from the pod's own address", answer(SYN, (POD, POD)), "judged"),
        got(
            "from a mapped address, to the pod",
            with(
                answer(SYN, (SITE_V6, POD_V6)),
                22,
                &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 1, 2, 3, 4],
            ),
            "mapped-address",
        ),
    ]);
    rows
}

/// A piece of a datagram to the site: its identification, its offset in units of eight octets, whether more
/// follow, and what it carries.
type Piece = fn(u8, u16, bool, u8, &[u8]) -> Vec<u8>;

fn piece_v4(id: u8, offset: u16, has_more: bool, number: u8, payload: &[u8]) -> Vec<u8> {
    let field = offset | if has_more { 0x2000 } else { 0 };
    with(with(v4(number, payload), 18, &[0, id]), 20, &field.to_be_bytes())
}

fn piece_v6(id: u8, offset: u16, has_more: bool, number: u8, payload: &[u8]) -> Vec<u8> {
    let field = (offset << 3 | u16::from(has_more)).to_be_bytes();
    let number = if number == 1 { 58 } else { number };
    v6(44, &[&[number, 0, field[0], field[1], 0, 0, 0, id][..], payload].concat())
}

/// `asks` is the type of an echo request.
fn pieces(piece: Piece, asks: u8) -> Vec<Row> {
    let segment = |flags| [tcp(flags), vec![0; 4]].concat();
    let out = |frame| (Direction::Egress, frame);
    let first = || vec![out(piece(1, 0, true, 17, &udp()))];
    let refused = || vec![out(piece(1, 0, true, 17, &frame::udp(1, 25, &[0; 16])))];
    let rest = [0; 16];
    let echo = || [frame::echo(asks, 1), vec![0; 4]].concat();
    vec![
        sent("first piece, UDP", piece(1, 0, true, 17, &udp()), "judged"),
        sent("first piece, TCP", piece(1, 0, true, 6, &segment(SYN)), "judged"),
        sent(
            "first piece, SCTP",
            piece(1, 0, true, 132, &[frame::sctp(1, OPEN), vec![0; 4]].concat()),
            "judged",
        ),
        sent("first piece, echo", piece(1, 0, true, 1, &echo()), "judged"),
        sent(
            "first piece, closed port",
            piece(1, 0, true, 17, &frame::udp(1, 25, &[0; 16])),
            "denied",
        ),
        sent("first piece, GRE", piece(1, 0, true, 47, &rest), "protocol"),
        sent("first piece, an error", piece(1, 0, true, 1, &[3; 32]), "malformed"),
        sent("first piece twice", piece(1, 0, true, 17, &udp()), "known-flow").after(first()),
        sent(
            "first piece again with a closed port",
            piece(1, 0, true, 17, &frame::udp(40_000, 25, &[0; 16])),
            "denied",
        )
        .after(first()),
        sent("later piece of nothing", piece(1, 3, true, 17, &rest), "fragment-unknown"),
        sent("last piece of nothing", piece(1, 3, false, 17, &rest), "fragment-unknown"),
        sent("later piece", piece(1, 3, true, 17, &rest), "fragment").after(first()),
        sent("last piece", piece(1, 5, false, 17, &rest), "fragment").after(first()),
        sent("last piece of odd length", piece(1, 5, false, 17, &rest[..13]), "fragment")
            .after(first()),
        sent("overlapping piece", piece(1, 1, true, 17, &rest), "fragment").after(first()),
        sent("piece of another datagram", piece(2, 3, true, 17, &rest), "fragment-unknown")
            .after(first()),
        sent("piece of another protocol", piece(1, 3, true, 132, &rest), "fragment-unknown")
            .after(first()),
        sent("piece of a refused datagram", piece(1, 3, true, 17, &rest), "fragment-unknown")
            .after(refused()),
        got("the same piece the other way", piece(1, 3, true, 17, &rest), "not-addressed")
            .after(first()),
        sent("TCP piece over the flags", piece(1, 1, true, 6, &rest), "fragment-tiny"),
        sent("TCP piece over the flags, the last", piece(1, 1, false, 6, &rest), "fragment-tiny"),
        sent("TCP piece right behind the flags", piece(1, 2, true, 6, &rest), "fragment-unknown"),
        sent(
            "first piece below a TCP header",
            piece(1, 0, true, 6, &segment(SYN)[..16]),
            "fragment-tiny",
        ),
        sent(
            "first piece of eight octets, TCP",
            piece(1, 0, true, 6, &segment(SYN)[..8]),
            "fragment-tiny",
        ),
        sent("first piece of a UDP header alone", piece(1, 0, true, 17, &udp()[..8]), "judged"),
        sent("first piece of odd length", piece(1, 0, true, 17, &udp()[..20]), "malformed"),
        sent("later piece of odd length", piece(1, 3, true, 17, &rest[..15]), "malformed")
            .after(first()),
        sent("empty first piece", piece(1, 0, true, 17, &[]), "malformed"),
        sent("empty later piece", piece(1, 3, true, 17, &[]), "malformed").after(first()),
        sent("piece past 65,535 octets", piece(1, 8_191, false, 17, &rest), "malformed")
            .after(first()),
        sent("piece up to 65,535 octets", piece(1, 8_191, false, 17, &rest[..7]), "fragment")
            .after(first()),
    ]
}
