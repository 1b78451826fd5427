//! Named frames and what becomes of them: the corpus of packet shapes.

mod pod;

use namegate_egress_bpf::abi::{
    Address, DropReason, ENDPOINT_DNS_GOVERNED, ENDPOINT_MAC_KNOWN, Endpoint, FRAGMENTS_EACH, Mac,
    Pass,
};
use namegate_egress_bpf::packet::{Frame, Packet, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};
use namegate_egress_bpf::sim::frame;
use namegate_egress_bpf::verdict::{Case, Scene, Verdict, egress_verdict};
use pod::{
    ELSEWHERE, IFINDEX, MAC, OTHER_MAC, POD, POD_V6, PROXY, Pod, RESOLVER, SITE, SITE_V6, drop, ip,
    isolated, open,
};
use proptest::prelude::*;

const JUDGED: Verdict = Verdict::Forward(Pass::Judged);
const LINK: Verdict = Verdict::Forward(Pass::Link);
const ROUTERS: &str = "ff02::2";
const NODES: &str = "ff02::1";
const LINK_LOCAL: &str = "fe80::ff:fe00:a";

fn tcp(flags: u8) -> Vec<u8> {
    frame::tcp(40_000, 443, flags)
}

fn v4(number: u8, payload: &[u8]) -> Vec<u8> {
    frame::ip(MAC, (ip(POD), ip(SITE)), number, payload)
}

fn v6(number: u8, payload: &[u8]) -> Vec<u8> {
    frame::ip(MAC, (ip(POD_V6), ip(SITE_V6)), number, payload)
}

/// The frame with other octets at a place.
fn with(mut frame: Vec<u8>, at: usize, octets: &[u8]) -> Vec<u8> {
    frame[at..at + octets.len()].copy_from_slice(octets);
    frame
}

fn cut(mut frame: Vec<u8>, length: usize) -> Vec<u8> {
    frame.truncate(length);
    frame
}

/// An IPv6 packet with an extension header of eight octets in front.
fn extended(next: u8, header: [u8; 8], payload: &[u8]) -> Vec<u8> {
    v6(next, &[&header[..], payload].concat())
}

/// Neighbour discovery: its type, the target, and a link-layer address with its option's type.
fn neighbour(ends: (&str, &str), kind: u8, target: &str, option: Option<(u8, Mac)>) -> Vec<u8> {
    let mut body = Address::from(ip(target)).octets().to_vec();
    if let Some((number, mac)) = option {
        body.extend([number, 1]);
        body.extend(mac.0);
    }
    frame::ip(MAC, (ip(ends.0), ip(ends.1)), 58, &frame::icmp(kind, [0; 4], &body))
}

/// A solicitation to the node with these options.
fn solicitation(options: &[u8]) -> Vec<u8> {
    let body = [&Address::from(ip(SITE_V6)).octets(), options].concat();
    let ends = (ip(POD_V6), ip("fd00:10:244:1::1"));
    frame::ip(MAC, ends, 58, &frame::icmp(135, [0; 4], &body))
}

fn listener(source: &str, destination: &str, kind: u8) -> Vec<u8> {
    let body = [&[58, 0, 5, 2, 0, 0, 1, 0][..], &frame::icmp(kind, [0; 4], &[0; 16])].concat();
    with(frame::ip(MAC, (ip(source), ip(destination)), 0, &body), 21, &[1])
}

#[test]
fn every_shape_that_an_endpoint_can_send_has_its_verdict() {
    let syn = || tcp(TCP_SYN);
    let hop = |next| [next, 0, 1, 4, 0, 0, 0, 0];
    let cases: Vec<(&str, Vec<u8>, Verdict)> = vec![
        ("tcp v4", v4(6, &syn()), JUDGED),
        ("tcp v6", v6(6, &syn()), JUDGED),
        ("udp v4", v4(17, &frame::udp(1, 2, b"x")), JUDGED),
        ("udp v6", v6(17, &frame::udp(1, 2, b"x")), JUDGED),
        ("sctp", v4(132, &frame::sctp(1, 2)), JUDGED),
        ("echo v4", v4(1, &frame::echo(8, 1)), JUDGED),
        ("echo v6", v6(58, &frame::echo(128, 1)), JUDGED),
        ("padded to the least frame", [v4(6, &syn()), vec![0; 6]].concat(), JUDGED),
        ("atomic fragment", extended(44, [6, 0, 0, 0, 0, 0, 0, 1], &syn()), JUDGED),
        ("no frame", vec![], drop(DropReason::Truncated)),
        ("half an ethernet header", cut(v4(6, &syn()), 10), drop(DropReason::Truncated)),
        ("half an ip header", cut(v4(6, &syn()), 30), drop(DropReason::Truncated)),
        ("half an ipv6 header", cut(v6(6, &syn()), 40), drop(DropReason::Truncated)),
        ("half a tcp header", cut(v4(6, &syn()), 44), drop(DropReason::Truncated)),
        ("ip length past the frame", with(v4(6, &syn()), 16, &[9, 9]), drop(DropReason::Truncated)),
        (
            "ip length below its header",
            with(v4(6, &syn()), 16, &[0, 19]),
            drop(DropReason::Truncated),
        ),
        ("ip length of zero", with(v4(6, &syn()), 16, &[0, 0]), drop(DropReason::Truncated)),
        ("tcp shorter than a header", v4(6, &syn()[..19]), drop(DropReason::Truncated)),
        ("udp shorter than a header", v4(17, &[0; 7]), drop(DropReason::Truncated)),
        ("icmp shorter than a header", v4(1, &[8, 0, 0]), drop(DropReason::Truncated)),
        ("ip version 5 in ipv4", with(v4(6, &syn()), 14, &[0x55]), drop(DropReason::Malformed)),
        ("ip version 4 in ipv6", with(v6(6, &syn()), 14, &[0x40]), drop(DropReason::Malformed)),
        ("ip header of 16", with(v4(6, &syn()), 14, &[0x44]), drop(DropReason::Malformed)),
        ("ip options", with(v4(6, &[0; 24]), 14, &[0x46]), drop(DropReason::Options)),
        ("reserved fragment bit", with(v4(6, &syn()), 20, &[0x80, 0]), drop(DropReason::Malformed)),
        ("tcp header of 16", v4(6, &with(syn(), 12, &[0x40])), drop(DropReason::Malformed)),
        ("tcp options past the end", v4(6, &with(syn(), 12, &[0xf0])), drop(DropReason::Truncated)),
        (
            "udp length of 7",
            v4(17, &with(frame::udp(1, 2, b""), 4, &[0, 7])),
            drop(DropReason::Malformed),
        ),
        (
            "udp length past the end",
            v4(17, &with(frame::udp(1, 2, b""), 4, &[0, 9])),
            drop(DropReason::Malformed),
        ),
        ("tcp without flags", v4(6, &tcp(0)), drop(DropReason::TcpFlags)),
        ("tcp fin alone", v4(6, &tcp(TCP_FIN)), drop(DropReason::TcpFlags)),
        ("tcp syn and fin", v4(6, &tcp(TCP_SYN | TCP_FIN)), drop(DropReason::TcpFlags)),
        ("tcp syn and rst", v4(6, &tcp(TCP_SYN | TCP_RST)), drop(DropReason::TcpFlags)),
        ("tcp everything", v4(6, &tcp(0xff)), drop(DropReason::TcpFlags)),
        ("tcp syn and ack", v4(6, &tcp(TCP_SYN | TCP_ACK)), drop(DropReason::NoFlow)),
        ("echo reply", v4(1, &frame::echo(0, 1)), drop(DropReason::NoFlow)),
        ("timestamp request", v4(1, &frame::echo(13, 1)), drop(DropReason::IcmpType)),
        ("redirect", v4(1, &frame::icmp(5, [0; 4], &[0; 28])), drop(DropReason::Router)),
        ("error about nothing", v4(1, &frame::icmp(3, [0; 4], &[])), drop(DropReason::Unrelated)),
        (
            "error about nothing known",
            v4(1, &frame::icmp(3, [0; 4], &v4(6, &syn())[14..])),
            drop(DropReason::Unrelated),
        ),
        ("icmpv6 in ipv4", v4(58, &frame::echo(128, 1)), drop(DropReason::Protocol)),
        ("icmp in ipv6", v6(1, &frame::echo(8, 1)), drop(DropReason::Protocol)),
        ("ip in ip", v4(4, &v4(6, &syn())[14..]), drop(DropReason::Protocol)),
        ("ipv6 in ip", v4(41, &v6(6, &syn())[14..]), drop(DropReason::Protocol)),
        ("gre", v4(47, &[0; 24]), drop(DropReason::Protocol)),
        ("esp", v6(50, &[0; 24]), drop(DropReason::Protocol)),
        ("udp-lite", v4(136, &frame::udp(1, 2, b"")), drop(DropReason::Protocol)),
        ("no next header", v6(59, &[]), drop(DropReason::Protocol)),
        ("hop-by-hop", extended(0, hop(6), &syn()), drop(DropReason::ExtensionHeader)),
        ("routing header", extended(43, hop(6), &syn()), drop(DropReason::ExtensionHeader)),
        ("destination options", extended(60, hop(6), &syn()), drop(DropReason::ExtensionHeader)),
        ("authentication header", extended(51, hop(6), &syn()), drop(DropReason::ExtensionHeader)),
        ("mobility header", extended(135, hop(6), &syn()), drop(DropReason::ExtensionHeader)),
        (
            "options behind a fragment header",
            extended(44, [60, 0, 0, 1, 0, 0, 0, 1], &syn()[..16]),
            drop(DropReason::ExtensionHeader),
        ),
        (
            "fragment behind a fragment",
            extended(44, [44, 0, 0, 0, 0, 0, 0, 1], &syn()),
            drop(DropReason::ExtensionHeader),
        ),
        (
            "mapped source",
            with(v6(6, &syn()), 22, &Address::v4([10, 244, 1, 10]).octets()),
            drop(DropReason::MappedAddress),
        ),
        (
            "mapped destination",
            with(v6(6, &syn()), 38, &Address::v4([203, 0, 113, 10]).octets()),
            drop(DropReason::MappedAddress),
        ),
        ("vlan tag", frame::ethernet(MAC, 0x8100, &[0; 46]), drop(DropReason::Vlan)),
        ("service vlan tag", frame::ethernet(MAC, 0x88a8, &[0; 46]), drop(DropReason::Vlan)),
        ("old qinq tag", frame::ethernet(MAC, 0x9100, &[0; 46]), drop(DropReason::Vlan)),
        ("802.3 length", frame::ethernet(MAC, 0x0026, &[0; 46]), drop(DropReason::Ethertype)),
        ("mpls", frame::ethernet(MAC, 0x8847, &[0; 46]), drop(DropReason::Ethertype)),
        ("lldp", frame::ethernet(MAC, 0x88cc, &[0; 46]), drop(DropReason::Ethertype)),
        (
            "to the proxy itself",
            frame::ip(MAC, (ip(POD), ip(PROXY)), 17, &frame::udp(1, 15_300, b"")),
            drop(DropReason::ProxyAddress),
        ),
    ];
    for (name, frame, expected) in cases {
        let mut pod = Pod::open();
        assert_eq!(pod.sends(&frame), expected, "{name}");
        assert_eq!(pod.sim.counters.values().sum::<u64>(), 1, "{name} is counted once");
        assert_eq!(pod.sim.flows.is_empty(), expected != JUDGED, "{name} leaves a flow behind");
    }
}

#[test]
fn nothing_leaves_under_a_strange_address() {
    let from = |mac, source: &str| frame::ip(mac, (ip(source), ip(SITE)), 6, &tcp(TCP_SYN));
    let from_v6 = |source: &str| frame::ip(MAC, (ip(source), ip(SITE_V6)), 6, &tcp(TCP_SYN));
    let spoofed = drop(DropReason::Spoofed);
    let router = drop(DropReason::Router);
    let to = "ff02::1:ff00:10";
    let cases: Vec<(&str, Vec<u8>, Verdict)> = vec![
        ("another pod's address", from(MAC, "10.244.1.11"), spoofed),
        ("another mac", from(OTHER_MAC, POD), spoofed),
        ("no address", from(MAC, "0.0.0.0"), spoofed),
        ("loopback", from(MAC, "127.0.0.1"), spoofed),
        ("another pod's v6 address", from_v6("fd00:10:244:1::11"), spoofed),
        ("no v6 address", from_v6("::"), spoofed),
        ("its link-local address for tcp", from_v6(LINK_LOCAL), spoofed),
        ("arp request", frame::arp(MAC, 1, [10, 244, 1, 10], [10, 244, 1, 1]), LINK),
        ("arp reply", frame::arp(MAC, 2, [10, 244, 1, 10], [10, 244, 1, 1]), LINK),
        ("arp probe", frame::arp(MAC, 1, [0; 4], [10, 244, 1, 10]), LINK),
        ("arp reply from nobody", frame::arp(MAC, 2, [0; 4], [10, 244, 1, 1]), spoofed),
        ("arp for another", frame::arp(MAC, 2, [10, 244, 1, 1], [10, 244, 1, 9]), spoofed),
        (
            "arp with another mac",
            frame::arp(OTHER_MAC, 1, [10, 244, 1, 10], [10, 244, 1, 1]),
            spoofed,
        ),
        (
            "arp with two macs",
            with(frame::arp(MAC, 1, [10, 244, 1, 10], [10, 244, 1, 1]), 22, &OTHER_MAC.0),
            spoofed,
        ),
        (
            "reverse arp",
            frame::arp(MAC, 3, [10, 244, 1, 10], [10, 244, 1, 1]),
            drop(DropReason::Malformed),
        ),
        (
            "arp cut short",
            cut(frame::arp(MAC, 1, [10, 244, 1, 10], [0; 4]), 40),
            drop(DropReason::Truncated),
        ),
        ("solicitation", neighbour((POD_V6, to), 135, SITE_V6, Some((1, MAC))), LINK),
        ("duplicate address detection", neighbour(("::", to), 135, POD_V6, None), LINK),
        (
            "solicitation from its link-local address",
            neighbour((LINK_LOCAL, to), 135, POD_V6, None),
            LINK,
        ),
        ("solicitation from another's", neighbour(("fe80::1", to), 135, POD_V6, None), spoofed),
        (
            "solicitation with another mac",
            neighbour((POD_V6, to), 135, POD_V6, Some((1, OTHER_MAC))),
            spoofed,
        ),
        ("advertisement", neighbour((POD_V6, NODES), 136, POD_V6, Some((2, MAC))), LINK),
        (
            "advertisement for another",
            neighbour((POD_V6, NODES), 136, "fd00:10:244:1::1", None),
            spoofed,
        ),
        (
            "advertisement for a router",
            neighbour((LINK_LOCAL, NODES), 136, "fe80::1", None),
            spoofed,
        ),
        (
            "advertisement with another mac",
            neighbour((POD_V6, NODES), 136, POD_V6, Some((2, OTHER_MAC))),
            spoofed,
        ),
        (
            "solicitation with a nonce",
            solicitation(&[1, 1, 2, 0, 0, 0, 0, 10, 14, 1, 1, 2, 3, 4, 5, 6]),
            LINK,
        ),
        (
            "solicitation that carries data",
            solicitation(&[[14, 3].as_slice(), &[7; 22]].concat()),
            drop(DropReason::Malformed),
        ),
        ("to the node", neighbour((POD_V6, "fd00:10:244:1::1"), 136, POD_V6, None), LINK),
        ("to a site, as a way out", neighbour((POD_V6, SITE_V6), 135, SITE_V6, None), spoofed),
        (
            "solicitation through a router",
            with(neighbour((POD_V6, to), 135, POD_V6, None), 21, &[64]),
            drop(DropReason::Malformed),
        ),
        (
            "solicitation of no length",
            with(neighbour((POD_V6, to), 135, POD_V6, Some((1, MAC))), 79, &[0]),
            drop(DropReason::Malformed),
        ),
        (
            "router solicitation",
            neighbour((LINK_LOCAL, ROUTERS), 133, "::", None),
            drop(DropReason::Malformed),
        ),
        (
            "router solicitation, plain",
            frame::ip(MAC, (ip(LINK_LOCAL), ip(ROUTERS)), 58, &frame::icmp(133, [0; 4], &[])),
            LINK,
        ),
        ("router advertisement", neighbour((LINK_LOCAL, NODES), 134, "::", None), router),
        ("redirect", neighbour((LINK_LOCAL, NODES), 137, "::", None), router),
        ("listener report", listener(LINK_LOCAL, "ff02::16", 143), LINK),
        ("listener report from nobody", listener("::", "ff02::16", 143), LINK),
        ("listener report to a site", listener(LINK_LOCAL, SITE_V6, 143), spoofed),
        ("listener report beyond the link", listener(LINK_LOCAL, "ff05::16", 143), spoofed),
        ("listener query", listener(LINK_LOCAL, NODES, 130), spoofed),
    ];
    for (name, frame, expected) in cases {
        assert_eq!(Pod::open().sends(&frame), expected, "{name}");
    }
}

#[test]
fn what_is_for_another_is_not_delivered() {
    let to = |address: &str| frame::ip(OTHER_MAC, (ip(SITE), ip(address)), 6, &tcp(TCP_SYN));
    let cases = [
        ("the pod", to(POD), JUDGED),
        ("another pod, flooded by the bridge", to(ELSEWHERE), drop(DropReason::Misaddressed)),
        ("a multicast group", to("224.0.0.251"), JUDGED),
        ("everyone", to("255.255.255.255"), JUDGED),
    ];
    for (name, frame, expected) in cases {
        assert_eq!(Pod::open().gets(&frame), expected, "{name}");
    }
}

#[test]
fn pieces_follow_their_first() {
    let piece = |frame: Vec<u8>, offset: u16, has_more: bool| {
        let field = offset | u16::from(has_more) << 13;
        with(frame, 20, &field.to_be_bytes())
    };
    let first = piece(v4(17, &with(frame::udp(1, 9_000, &[0; 16]), 4, &[0, 64])), 0, true);
    let last = piece(v4(17, &[0; 40]), 3, false);
    let passes = Verdict::Forward(Pass::Fragment);
    let unknown = drop(DropReason::UnknownFragment);

    let mut pod = Pod::open();
    assert_eq!(pod.sends(&last), unknown, "before its first");
    assert_eq!(pod.sends(&first), JUDGED);
    assert_eq!(pod.sends(&last), passes);
    assert_eq!(pod.sends(&with(last.clone(), 18, &[0, 9])), unknown, "of another datagram");
    assert_eq!(pod.sends(&with(last.clone(), 23, &[6])), unknown, "of another protocol");
    pod.pass(31);
    assert_eq!(pod.sends(&last), unknown, "too late");

    let mut pod = Pod::new(vec![isolated()], vec![open()]);
    assert_eq!(pod.sends(&first), drop(DropReason::Denied));
    assert_eq!(pod.sends(&last), unknown, "of a first that was dropped");

    let mut pod = Pod::open();
    pod.sends(&first);
    pod.change_policy(vec![isolated()], vec![open()]);
    assert_eq!(pod.sends(&last), unknown, "after a change of policy");

    let mut pod = Pod::open();
    pod.sim.fragments_max = 0;
    assert_eq!(pod.sends(&first), drop(DropReason::FragmentsFull));

    let tiny = drop(DropReason::TinyFragment);
    assert_eq!(
        Pod::open().sends(&piece(v4(6, &tcp(TCP_SYN)[..16]), 0, true)),
        tiny,
        "half a header"
    );
    assert_eq!(Pod::open().sends(&piece(v4(6, &[0; 16]), 1, false)), tiny, "over the flags");
    let huge = piece(v4(17, &[0; 40]), 0x1fff, false);
    assert_eq!(Pod::open().sends(&huge), drop(DropReason::Malformed), "past the largest datagram");
}

#[test]
fn flood_of_pieces_pushes_out_its_own_endpoints_alone() {
    let piece = |id: u16, field: u16| {
        let datagram = v4(17, &with(frame::udp(1, 9_000, &[0; 16]), 4, &[0, 64]));
        with(with(datagram, 18, &id.to_be_bytes()), 20, &field.to_be_bytes())
    };
    let (first, last) = (|id| piece(id, 0x2000), |id| piece(id, 3));
    let passes = Verdict::Forward(Pass::Fragment);
    let mut pod = Pod::open();
    assert_eq!(pod.sends(&first(1)), JUDGED);
    // Another endpoint, with the same addresses even.
    let own = *pod.endpoint();
    let mut other = pod.clone();
    other.sim.endpoints.insert(IFINDEX + 1, Endpoint { epoch: 2, ..own });
    for id in 0..10_000 {
        other.sends_from(IFINDEX + 1, &first(id));
    }
    let places = FRAGMENTS_EACH as usize;
    assert_eq!(other.sim.fragments.len(), 1 + places, "the other's places are all taken");
    assert_eq!(other.sends(&last(1)), passes, "what the first one waits for is there");
    let live = (0..10_000).filter(|id| other.sends_from(IFINDEX + 1, &last(*id)) == passes);
    assert_eq!(live.count(), places, "and the other's newest");
}

#[test]
fn ep_2_governed_lookups_go_to_the_proxy_and_come_back() {
    let ask = |number: u8, resolver: &str, port: u16| {
        let payload = match number {
            17 => frame::udp(40_000, port, b"lookup"),
            _ => frame::tcp(40_000, port, TCP_SYN),
        };
        frame::ip(MAC, (ip(POD), ip(resolver)), number, &payload)
    };
    let answer = |port: u16| {
        frame::ip(OTHER_MAC, (ip(PROXY), ip(POD)), 17, &frame::udp(port, 40_000, b"answer"))
    };
    let mut governed = Pod::new(vec![isolated()], vec![isolated()]);
    governed.endpoint().flags = ENDPOINT_DNS_GOVERNED | ENDPOINT_MAC_KNOWN;
    let mut without_proxy = governed.clone();
    without_proxy.sim.config = None;
    let free = Pod::new(vec![isolated()], vec![isolated()]);
    let denied = drop(DropReason::Denied);
    let taken = Verdict::ToProxy { slot: 0 };
    let fragment = with(ask(17, RESOLVER, 53), 20, &[0x20, 0]);
    let fragment = with(fragment, 16, &[0, 28]);
    let cases = [
        ("udp", &governed, ask(17, RESOLVER, 53), taken),
        ("tcp", &governed, ask(6, RESOLVER, 53), taken),
        ("another port", &governed, ask(17, RESOLVER, 54), denied),
        ("another resolver", &governed, ask(17, ELSEWHERE, 53), denied),
        ("ungoverned", &free, ask(17, RESOLVER, 53), denied),
        ("no proxy", &without_proxy, ask(17, RESOLVER, 53), drop(DropReason::NoProxy)),
        ("in pieces", &governed, fragment, drop(DropReason::DnsFragment)),
        (
            "an answer's port from the pod",
            &governed,
            ask(17, PROXY, 15_300),
            drop(DropReason::ProxyAddress),
        ),
    ];
    for (name, pod, frame, expected) in cases {
        assert_eq!(pod.clone().sends(&frame), expected, "{name}");
    }
    let cases = [
        ("its answer", answer(15_300), Verdict::FromProxy { slot: 0 }),
        ("of no resolver", answer(15_301), drop(DropReason::ProxyAddress)),
        ("from below", answer(15_299), drop(DropReason::ProxyAddress)),
        ("from above", answer(15_428), drop(DropReason::ProxyAddress)),
    ];
    for (name, frame, expected) in cases {
        let mut governed = governed.clone();
        assert_eq!(governed.gets(&frame), drop(DropReason::ProxyAddress), "{name}, from elsewhere");
        governed.is_from_node = true;
        assert_eq!(governed.gets(&frame), expected, "{name}");
    }
}

/// A frame whose VLAN tag was taken off by the driver.
struct Tagged<'a>(Frame<'a>);

impl Packet for Tagged<'_> {
    fn length(&self) -> u32 {
        self.0.length()
    }

    fn has_vlan_tag(&self) -> bool {
        true
    }

    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.read(offset)
    }

    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        self.0.words(offset)
    }

    fn halfwords<const N: usize>(&self, offset: usize) -> Option<[u16; N]> {
        self.0.halfwords(offset)
    }
}

#[test]
fn a_tag_that_was_taken_off_counts() {
    let mut pod = Pod::open();
    let scene = Scene {
        ifindex: IFINDEX,
        direction: namegate_egress_bpf::abi::Direction::Egress,
        is_from_node: false,
        is_returned: false,
        now_ns: pod.now_ns,
    };
    let frame = v4(6, &tcp(TCP_SYN));
    let verdict =
        egress_verdict(&Tagged(Frame(&frame)), &mut pod.sim, &scene, &mut Case::OPEN.clone());
    assert_eq!(verdict, drop(DropReason::Vlan));
}

proptest! {
    #[test]
    fn no_octets_panic_and_isolation_lets_nothing_but_the_link_through(
        octets in proptest::collection::vec(any::<u8>(), 0..120),
        ethertype in proptest::sample::select(vec![0x0800_u16, 0x86dd, 0x0806]),
    ) {
        let frame = frame::ethernet(MAC, ethertype, &octets);
        let mut pod = Pod::new(vec![isolated()], vec![isolated()]);
        for verdict in [pod.sends(&frame), pod.gets(&frame)] {
            let passes = matches!(verdict, Verdict::Forward(Pass::Link) | Verdict::Drop(_));
            prop_assert!(passes, "{:?}", verdict);
        }
        prop_assert!(pod.sim.flows.is_empty());
    }
}
