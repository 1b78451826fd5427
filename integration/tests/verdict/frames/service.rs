//! Services, an endpoint that reaches itself by one, and who had a packet before the pod gets it.

use namegate_egress_bpf::abi::Direction;
use namegate_egress_bpf::sim::frame;

use super::{OPEN, POD, POD_V6, Row, SITE, SITE_V6, got, ip, sent};
use crate::random::{MAC, World};
use crate::twin::Origin;

const SERVICE: &str = "10.96.0.80";
const SERVICE_V6: &str = "fd00:10:96::80";
const NODE: &str = "10.244.1.1";
const RESOLVER: &str = "10.244.1.53";
/// A port of the service for each kind of backend.
const TO_OPEN: u16 = 80;
const TO_CLOSED: u16 = 81;
const TO_NOBODY: u16 = 82;
const TO_ITSELF: u16 = 83;
const TO_ITSELF_CLOSED: u16 = 84;
const TO_RESOLVER: u16 = 85;
const CLOSED: u16 = 444;
const CLIENT: u16 = 40_000;
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;

/// Puts the services of these rows into a world.
pub(super) fn offer(world: &mut World) {
    for (service, site, own) in [(SERVICE, SITE, POD), (SERVICE_V6, SITE_V6, POD_V6)] {
        let (site, own) = (ip(site), ip(own));
        for protocol in [6, 17] {
            for (port, backend) in [
                (TO_OPEN, (site, OPEN)),
                (TO_CLOSED, (site, CLOSED)),
                (TO_ITSELF, (own, OPEN)),
                (TO_ITSELF_CLOSED, (own, CLOSED)),
            ] {
                world.serve(protocol, (ip(service), port), &[backend]);
            }
            world.serve(protocol, (ip(service), TO_NOBODY), &[]);
        }
        world.serve(132, (ip(service), OPEN), &[(site, OPEN)]);
        world.serve(132, (ip(service), TO_OPEN), &[(site, OPEN)]);
    }
    world.serve(17, (ip(SERVICE), TO_RESOLVER), &[(ip(RESOLVER), 53)]);
}

pub(super) fn rows() -> Vec<Row> {
    [served(), clashes(), pieces(), turned(), quoted(), origins()].into_iter().flatten().collect()
}

fn tcp(from: (&str, u16), to: (&str, u16), flags: u8) -> Vec<u8> {
    frame::ip(MAC, (ip(from.0), ip(to.0)), 6, &frame::tcp(from.1, to.1, flags))
}

fn udp(from: (&str, u16), to: (&str, u16)) -> Vec<u8> {
    frame::ip(MAC, (ip(from.0), ip(to.0)), 17, &frame::udp(from.1, to.1, b"sixteen octets.."))
}

fn sctp(from: (&str, u16), to: (&str, u16)) -> Vec<u8> {
    frame::ip(MAC, (ip(from.0), ip(to.0)), 132, &frame::sctp(from.1, to.1))
}

fn served() -> Vec<Row> {
    let families = [("", SERVICE, SITE, POD), (" over IPv6", SERVICE_V6, SITE_V6, POD_V6)];
    let rows = families.into_iter().flat_map(|(family, service, site, own)| {
        let own = (own, CLIENT);
        let asks = |port| tcp(own, (service, port), SYN);
        let answers = |flags| tcp((site, OPEN), own, flags);
        let opened = || vec![(Direction::Egress, asks(TO_OPEN))];
        let asked = || vec![(Direction::Egress, udp(own, (service, TO_OPEN)))];
        [
            sent("SYN to an open backend", asks(TO_OPEN), "judged"),
            sent("SYN to it again", asks(TO_OPEN), "known-flow").after(opened()),
            sent("ACK to a service", tcp(own, (service, TO_OPEN), ACK), "no-flow"),
            sent("SYN to a closed backend", asks(TO_CLOSED), "denied"),
            sent("SYN to no backend", asks(TO_NOBODY), "service-no-backend"),
            sent("SYN to another port of a service", asks(9), "denied"),
            got("answer of a backend", answers(SYN_ACK), "known-flow").after(opened()),
            got("answer of a backend from elsewhere", answers(SYN_ACK), "known-flow")
                .after(opened())
                .from(Origin::Elsewhere),
            got("SYN of a backend", answers(SYN), "no-flow").after(opened()),
            got("RST of a backend", answers(0x14), "known-flow").after(opened()),
            got("answer of the service", tcp((service, TO_OPEN), own, SYN_ACK), "no-flow")
                .after(opened()),
            got("answer from another port", tcp((site, CLOSED), own, SYN_ACK), "no-flow")
                .after(opened()),
            sent("datagram to an open backend", udp(own, (service, TO_OPEN)), "judged"),
            sent("datagram to a closed backend", udp(own, (service, TO_CLOSED)), "denied"),
            sent("datagram to no backend", udp(own, (service, TO_NOBODY)), "service-no-backend"),
            got("datagram of a backend", udp((site, OPEN), own), "known-flow").after(asked()),
            got("datagram of another's backend", udp((site, CLOSED), own), "denied").after(asked()),
            sent("SCTP to a backend's own port", sctp(own, (service, OPEN)), "judged"),
            sent("SCTP to another port", sctp(own, (service, TO_OPEN)), "service-protocol"),
        ]
        .map(|row| Row { name: format!("service: {}{family}", row.name), ..row })
    });
    rows.chain([sent(
        "service: lookup past the proxy",
        udp((POD, CLIENT), (SERVICE, TO_RESOLVER)),
        "service-resolver",
    )])
    .collect()
}

fn clashes() -> Vec<Row> {
    let direct = || udp((POD, CLIENT), (SITE, OPEN));
    let by_service = || udp((POD, CLIENT), (SERVICE, TO_OPEN));
    vec![
        sent("service: backend spoken to already", by_service(), "service-clash")
            .after(vec![(Direction::Egress, direct())]),
        sent("service: backend spoken to by the service", direct(), "service-clash")
            .after(vec![(Direction::Egress, by_service())]),
    ]
}

/// Datagrams in two pieces.
fn pieces() -> Vec<Row> {
    let first = |mut frame: Vec<u8>| {
        frame[18..22].copy_from_slice(&[0, 7, 0x20, 0]);
        frame
    };
    let later = |mut frame: Vec<u8>| {
        frame[18..22].copy_from_slice(&[0, 7, 0, 3]);
        frame
    };
    let out = || udp((POD, CLIENT), (SERVICE, TO_OPEN));
    let back = || udp((SITE, OPEN), (POD, CLIENT));
    let asked = || vec![(Direction::Egress, first(out()))];
    let answered = || [asked(), vec![(Direction::Ingress, first(back()))]].concat();
    vec![
        sent("service: first piece", first(out()), "judged"),
        sent("service: later piece", later(out()), "fragment").after(asked()),
        sent("service: later piece alone", later(out()), "fragment-unknown"),
        got("service: first piece back", first(back()), "known-flow").after(asked()),
        got("service: later piece back", later(back()), "fragment").after(answered()),
        sent(
            "service: first piece to itself",
            first(udp((POD, CLIENT), (SERVICE, TO_ITSELF))),
            "fragment-hairpin",
        ),
    ]
}

/// A pod that is its own backend.
fn turned() -> Vec<Row> {
    let families = [("", SERVICE, POD), (" over IPv6", SERVICE_V6, POD_V6)];
    let rows = families.into_iter().flat_map(|(family, service, own)| {
        let (client, server) = ((own, CLIENT), (own, OPEN));
        let asks = |port| tcp(client, (service, port), SYN);
        let opened = || vec![(Direction::Egress, asks(TO_ITSELF))];
        let asked = || tcp((service, CLIENT), server, SYN);
        let answer = || tcp(server, (service, CLIENT), SYN_ACK);
        let answered = || tcp((service, TO_ITSELF), client, SYN_ACK);
        [
            sent("SYN", asks(TO_ITSELF), "judged"),
            sent("SYN to a closed port", asks(TO_ITSELF_CLOSED), "denied"),
            got("SYN that was turned", asked(), "known-flow")
                .after(opened())
                .from(Origin::Endpoint),
            got("SYN that looks turned", asked(), "no-flow").after(opened()),
            got("SYN that looks turned, from elsewhere", asked(), "no-flow")
                .after(opened())
                .from(Origin::Elsewhere),
            sent("answer", answer(), "known-flow").after(opened()),
            sent("answer to nobody", answer(), "no-flow"),
            got("answer that was turned", answered(), "known-flow")
                .after(opened())
                .from(Origin::Endpoint),
            got("answer that looks turned", answered(), "no-flow").after(opened()),
            got("answer that looks turned, from elsewhere", answered(), "no-flow")
                .after(opened())
                .from(Origin::Elsewhere),
            got("turned without a flow", asked(), "judged").from(Origin::Endpoint),
        ]
        .map(|row| Row { name: format!("itself: {}{family}", row.name), ..row })
    });
    rows.collect()
}

/// Errors about packets that went to a backend.
fn quoted() -> Vec<Row> {
    let families =
        [("", SERVICE, SITE, POD, 1, 3), (" over IPv6", SERVICE_V6, SITE_V6, POD_V6, 58, 1)];
    let rows = families.into_iter().flat_map(|(family, service, site, own, number, kind)| {
        let opened = || vec![(Direction::Egress, tcp((own, CLIENT), (service, TO_OPEN), SYN))];
        let about = |to| {
            let quoted = &tcp((own, CLIENT), to, SYN)[14..];
            let message = frame::icmp(kind, [0, 0, 5, 0xdc], quoted);
            frame::ip(MAC, (ip(site), ip(own)), number, &message)
        };
        [
            got("error about the backend", about((site, OPEN)), "related").after(opened()),
            got("error about another port", about((site, CLOSED)), "icmp-unrelated")
                .after(opened()),
            got("error about no flow", about((site, OPEN)), "icmp-unrelated"),
        ]
        .map(|row| Row { name: format!("service: {}{family}", row.name), ..row })
    });
    rows.collect()
}

/// The node always reaches its pods; who bears its address, or the proxy's, does not.
fn origins() -> Vec<Row> {
    let closed = || tcp((NODE, 9), (POD, CLOSED), SYN);
    let answer = || udp(("169.254.53.53", 15_300), (POD, CLIENT));
    let open = || tcp((SITE, 9), (POD, OPEN), SYN);
    vec![
        got("origin: node to a closed port", closed(), "judged"),
        got("origin: node's address from elsewhere", closed(), "denied").from(Origin::Elsewhere),
        got("origin: node's address from the pod", closed(), "denied").from(Origin::Endpoint),
        got("origin: proxy's address from elsewhere", answer(), "proxy-address")
            .from(Origin::Elsewhere),
        got("origin: proxy's address from the pod", answer(), "proxy-address")
            .from(Origin::Endpoint),
        got("origin: open port from elsewhere", open(), "judged").from(Origin::Elsewhere),
        got("origin: closed port from elsewhere", tcp((SITE, 9), (POD, CLOSED), SYN), "denied")
            .from(Origin::Elsewhere),
    ]
}
