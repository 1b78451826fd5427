//! The link layer: ethertypes, tags, ARP, neighbour discovery, listener discovery.

use std::net::IpAddr;

use namegate_egress_bpf::abi::Mac;
use namegate_egress_bpf::sim::frame;

use super::{POD, POD_V6, Row, SITE_V6, got, ip, sent, tcp, udp, v4, v6, with};
use crate::random::MAC;

const OTHER: Mac = Mac([2, 0, 0, 0, 0, 0x0b]);
const LINK_LOCAL: &str = "fe80::ff:fe00:a";
const NODE_V6: &str = "fd00:10:244:1::1";
const ROUTERS: &str = "ff02::2";
const NODES: &str = "ff02::1";
const SYN: u8 = 0x02;

/// Protocols that are none of a pod's business.
const ETHERTYPES: [(u16, &str); 36] = [
    (0x0000, "length of zero"),
    (0x0026, "802.3 length with LLC"),
    (0x05dc, "802.3 length of 1,500"),
    (0x0600, "XNS"),
    (0x0801, "X.75"),
    (0x0805, "X.25"),
    (0x0842, "wake on LAN"),
    (0x22f0, "AVTP"),
    (0x22f3, "TRILL"),
    (0x6003, "DECnet"),
    (0x6558, "transparent Ethernet bridging"),
    (0x8035, "RARP"),
    (0x809b, "AppleTalk"),
    (0x80f3, "AARP"),
    (0x8137, "IPX"),
    (0x8808, "flow control"),
    (0x8809, "LACP"),
    (0x8847, "MPLS"),
    (0x8848, "MPLS multicast"),
    (0x8863, "PPPoE discovery"),
    (0x8864, "PPPoE session"),
    (0x8870, "jumbo frame"),
    (0x888e, "EAPOL"),
    (0x8892, "PROFINET"),
    (0x88a4, "EtherCAT"),
    (0x88b5, "experimental"),
    (0x88cc, "LLDP"),
    (0x88e5, "MACsec"),
    (0x88e7, "provider backbone bridging"),
    (0x88f7, "PTP"),
    (0x8902, "CFM"),
    (0x8906, "FCoE"),
    (0x894f, "NSH"),
    (0x9000, "loopback test"),
    (0x9200, "tag that nobody registered"),
    (0xffff, "reserved"),
];

pub(super) fn rows() -> Vec<Row> {
    let unknown = ETHERTYPES.into_iter().map(|(number, name)| {
        sent(format!("ethertype {name}"), frame::ethernet(MAC, number, &[0; 46]), "ethertype")
    });
    unknown.chain(tagged()).chain(arp()).chain(neighbours()).chain(listeners()).collect()
}

fn tagged() -> Vec<Row> {
    let inner = |number: u16, packet: Vec<u8>, tag: u16| {
        let behind = [&tag.to_be_bytes(), &packet[12..]].concat();
        frame::ethernet(MAC, number, &behind)
    };
    let syn = || v4(6, &tcp(SYN));
    let twice = inner(0x88a8, inner(0x8100, syn(), 7), 5);
    vec![
        sent("802.1Q tag", inner(0x8100, syn(), 7), "vlan"),
        sent("802.1Q tag around IPv6", inner(0x8100, v6(6, &tcp(SYN)), 7), "vlan"),
        sent("802.1Q priority tag", inner(0x8100, syn(), 0x6000), "vlan"),
        sent("802.1ad tag", inner(0x88a8, syn(), 7), "vlan"),
        sent("QinQ", twice.clone(), "vlan"),
        sent("old QinQ", inner(0x9100, syn(), 7), "vlan"),
        sent("802.1Q tag around ARP", inner(0x8100, arp_of(1, POD), 7), "vlan"),
        got("802.1Q tag to the pod", inner(0x8100, syn(), 7), "vlan"),
        got("QinQ to the pod", twice, "vlan"),
        sent("ethernet header alone", v4(6, &tcp(SYN))[..14].to_vec(), "truncated"),
        sent("half an ethernet header", v4(6, &tcp(SYN))[..9].to_vec(), "truncated"),
        sent("no octet", Vec::new(), "truncated"),
    ]
}

fn arp_of(operation: u8, sender: &str) -> Vec<u8> {
    let IpAddr::V4(sender) = ip(sender) else { return Vec::new() };
    let frame = frame::arp(MAC, operation, sender.octets(), [10, 244, 1, 1]);
    filled(frame, 60)
}

/// A frame with zeroes behind it.
fn filled(mut frame: Vec<u8>, length: usize) -> Vec<u8> {
    frame.resize(length, 0);
    frame
}

fn arp() -> Vec<Row> {
    let own = || arp_of(1, POD);
    vec![
        sent("ARP request", own(), "link"),
        sent("ARP reply", arp_of(2, POD), "link"),
        sent("ARP announcement", with(own(), 38, &[10, 244, 1, 10]), "link"),
        sent("ARP probe", with(arp_of(1, "0.0.0.0"), 38, &[10, 244, 1, 10]), "link"),
        sent("ARP probe for the node's address", arp_of(1, "0.0.0.0"), "spoofed"),
        sent(
            "ARP probe for another pod's address",
            with(arp_of(1, "0.0.0.0"), 38, &[10, 244, 1, 11]),
            "spoofed",
        ),
        sent("ARP request where a tag was", filled(own(), 64), "link"),
        sent("ARP request with a tail", filled(own(), 65), "malformed"),
        sent("ARP reply with a long tail", filled(arp_of(2, POD), 1_400), "malformed"),
        got("ARP request with a tail to the pod", filled(own(), 65), "malformed"),
        sent("ARP probe that answers", arp_of(2, "0.0.0.0"), "spoofed"),
        sent("ARP for another pod", arp_of(1, "10.244.1.11"), "spoofed"),
        sent("ARP reply for the node", arp_of(2, "10.244.1.1"), "spoofed"),
        sent("ARP with another's MAC inside", with(own(), 22, &OTHER.0), "spoofed"),
        sent("ARP from another's MAC", with(own(), 6, &OTHER.0), "spoofed"),
        sent(
            "ARP from another's MAC throughout",
            with(with(own(), 6, &OTHER.0), 22, &OTHER.0),
            "spoofed",
        ),
        sent("RARP operation in ARP", arp_of(3, POD), "malformed"),
        sent("ARP operation zero", arp_of(0, POD), "malformed"),
        sent("ARP of other hardware", with(own(), 14, &[0, 6]), "malformed"),
        sent("ARP of another protocol", with(own(), 16, &[0x86, 0xdd]), "malformed"),
        sent("ARP with long MACs", with(own(), 18, &[8]), "malformed"),
        sent("ARP with long addresses", with(own(), 19, &[16]), "malformed"),
        sent("ARP cut short", own()[..40].to_vec(), "truncated"),
        got("ARP request to the pod", arp_of(1, "10.244.1.1"), "link"),
    ]
}

/// Neighbour discovery: type, target, and options as they lie.
fn neighbour(ends: (&str, &str), kind: u8, target: &str, options: &[u8]) -> Vec<u8> {
    let IpAddr::V6(target) = ip(target) else { return Vec::new() };
    let body = [&target.octets(), options].concat();
    frame::ip(MAC, (ip(ends.0), ip(ends.1)), 58, &frame::icmp(kind, [0; 4], &body))
}

fn neighbours() -> Vec<Row> {
    let mine = |kind: u8| [&[kind, 1][..], &MAC.0].concat();
    let theirs = |kind: u8| [&[kind, 1][..], &OTHER.0].concat();
    let solicits = |options: &[u8]| neighbour((POD_V6, "ff02::1:ff00:1"), 135, NODE_V6, options);
    let advertises = |target| neighbour((POD_V6, NODES), 136, target, &mine(2));
    let router = |kind, source, options: &[u8]| {
        let message = frame::icmp(kind, [0; 4], options);
        frame::ip(MAC, (ip(source), ip(ROUTERS)), 58, &message)
    };
    vec![
        sent("solicitation", solicits(&mine(1)), "link"),
        sent("solicitation without options", solicits(&[]), "link"),
        sent(
            "solicitation of the node itself",
            neighbour((POD_V6, NODE_V6), 135, NODE_V6, &[]),
            "link",
        ),
        sent(
            "solicitation from the link-local address",
            neighbour((LINK_LOCAL, NODE_V6), 135, NODE_V6, &mine(1)),
            "link",
        ),
        sent(
            "duplicate address detection",
            neighbour(("::", "ff02::1:ff00:10"), 135, POD_V6, &[]),
            "link",
        ),
        sent(
            "duplicate address detection of the link-local address",
            neighbour(("::", "ff02::1:ff00:a"), 135, LINK_LOCAL, &[]),
            "link",
        ),
        sent(
            "duplicate address detection for another",
            neighbour(("::", "ff02::1:ff00:11"), 135, "fd00:10:244:1::11", &[]),
            "spoofed",
        ),
        sent(
            "duplicate address detection for the node",
            neighbour(("::", "ff02::1:ff00:1"), 135, NODE_V6, &[]),
            "spoofed",
        ),
        sent("solicitation with a tail", filled(solicits(&[]), 79), "malformed"),
        sent("advertisement with a long tail", filled(advertises(POD_V6), 1_400), "malformed"),
        got(
            "solicitation with a tail to the pod",
            filled(neighbour((NODE_V6, POD_V6), 135, POD_V6, &[]), 79),
            "malformed",
        ),
        sent("solicitation for another", solicits(&theirs(1)), "spoofed"),
        sent(
            "solicitation from another",
            neighbour(("fd00:10:244:1::11", NODES), 135, NODE_V6, &mine(1)),
            "spoofed",
        ),
        sent(
            "solicitation from a link-local address of another",
            neighbour(("fe80::1", NODES), 135, NODE_V6, &mine(1)),
            "spoofed",
        ),
        sent(
            "solicitation into the world",
            neighbour((POD_V6, SITE_V6), 135, NODE_V6, &[]),
            "spoofed",
        ),
        sent("solicitation that was forwarded", with(solicits(&[]), 21, &[254]), "malformed"),
        sent("solicitation with a code", with(solicits(&[]), 55, &[1]), "malformed"),
        sent(
            "solicitation cut short",
            frame::ip(MAC, (ip(POD_V6), ip(NODES)), 58, &frame::icmp(135, [0; 4], &[0; 8])),
            "truncated",
        ),
        sent("neighbour option of no length", solicits(&[1, 0, 0, 0, 0, 0, 0, 0]), "malformed"),
        sent("neighbour option past the end", solicits(&[1, 2, 2, 0, 0, 0, 0, 10]), "malformed"),
        sent("five options", solicits(&mine(1).repeat(5)), "malformed"),
        sent(
            "another's MAC in the second option",
            solicits(&[mine(1), theirs(1)].concat()),
            "spoofed",
        ),
        sent("nonce option", solicits(&[14, 1, 1, 2, 3, 4, 5, 6]), "link"),
        sent("advertisement", advertises(POD_V6), "link"),
        sent("advertisement of the link-local address", advertises(LINK_LOCAL), "link"),
        sent("advertisement of the node", advertises(NODE_V6), "spoofed"),
        sent(
            "advertisement with another's MAC",
            neighbour((POD_V6, NODES), 136, POD_V6, &theirs(2)),
            "spoofed",
        ),
        sent("router solicitation", router(133, LINK_LOCAL, &mine(1)), "link"),
        sent("router solicitation from nobody", router(133, "::", &[]), "link"),
        sent("router advertisement", router(134, LINK_LOCAL, &[0; 8]), "router-message"),
        sent("redirect", neighbour((POD_V6, NODES), 137, NODE_V6, &[0; 16]), "router-message"),
        got("solicitation to the pod", neighbour((NODE_V6, POD_V6), 135, POD_V6, &[]), "link"),
        got(
            "router advertisement to the pod",
            frame::ip(MAC, (ip("fe80::1"), ip(NODES)), 58, &frame::icmp(134, [0; 4], &[0; 8])),
            "link",
        ),
    ]
}

/// Listener discovery behind a hop-by-hop header.
fn listener(source: &str, kind: u8, header: [u8; 8]) -> Vec<u8> {
    report(source, kind, header, 16)
}

/// The same with so many octets behind the first eight.
fn report(source: &str, kind: u8, header: [u8; 8], octets: usize) -> Vec<u8> {
    let body = [&header[..], &frame::icmp(kind, [0; 4], &vec![0; octets])].concat();
    with(frame::ip(MAC, (ip(source), ip("ff02::16")), 0, &body), 21, &[1])
}

fn listeners() -> Vec<Row> {
    const ALERT: [u8; 8] = [58, 0, 5, 2, 0, 0, 1, 0];
    let elsewhere = |destination| with(listener(LINK_LOCAL, 143, ALERT), 38, destination);
    vec![
        sent("listener report", listener(LINK_LOCAL, 143, ALERT), "link"),
        sent("report of 24 groups", report(LINK_LOCAL, 143, ALERT, 24 * 20), "link"),
        sent("report of 25 groups", report(LINK_LOCAL, 143, ALERT, 25 * 20), "malformed"),
        sent(
            "listener report with a tail",
            filled(listener(LINK_LOCAL, 143, ALERT), 1_400),
            "malformed",
        ),
        sent("old listener report", listener(LINK_LOCAL, 131, ALERT), "link"),
        sent("listener done", listener(LINK_LOCAL, 132, ALERT), "link"),
        sent("listener report from nobody", listener("::", 143, ALERT), "link"),
        sent("listener query", listener(LINK_LOCAL, 130, ALERT), "spoofed"),
        sent("listener report from another", listener("fe80::1", 143, ALERT), "spoofed"),
        sent("listener report into the world", elsewhere(&[0x20, 1, 0x0d, 0xb8]), "spoofed"),
        sent(
            "listener report that was forwarded",
            with(listener(LINK_LOCAL, 143, ALERT), 21, &[2]),
            "extension-header",
        ),
        sent("router alert before an echo", listener(LINK_LOCAL, 128, ALERT), "extension-header"),
        sent(
            "router alert before TCP",
            listener(LINK_LOCAL, 143, [6, 0, 5, 2, 0, 0, 1, 0]),
            "extension-header",
        ),
        sent(
            "router alert and more",
            listener(LINK_LOCAL, 143, [58, 1, 5, 2, 0, 0, 1, 0]),
            "extension-header",
        ),
        sent(
            "alert for somebody else",
            listener(LINK_LOCAL, 143, [58, 0, 6, 2, 0, 0, 1, 0]),
            "extension-header",
        ),
        sent(
            "listener report without an alert",
            frame::ip(
                MAC,
                (ip(LINK_LOCAL), ip("ff02::16")),
                58,
                &frame::icmp(143, [0; 4], &[0; 16]),
            ),
            "icmp-type",
        ),
        sent(
            "datagram from the link-local address",
            frame::ip(MAC, (ip(LINK_LOCAL), ip(SITE_V6)), 17, &udp()),
            "spoofed",
        ),
    ]
}
