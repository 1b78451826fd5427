//! The short way: packets of flows that are known, current and go on as they came.
//!
//! It can let a packet through and nothing else, and lets through only what the long way would as
//! [`Pass::Known`], with the same traces left behind. What it does not recognise at once takes the
//! long way: tags, options, fragments, packets that open a connection, lookups, services, other
//! protocols, and headers outside of the linear part of a socket buffer.

use super::conntrack::{goes_on, note_known};
use super::dns::{self, is_proxy};
use super::source::is_group;
use super::{Maps, Scene};
use crate::abi::{Address, Direction, FlowKey, Mac, Pass, Passage};
use crate::packet::{
    ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Packet, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, protocol,
};

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
/// Version 4, five words of header.
const PLAIN_IPV4: u8 = 0x45;
const DO_NOT_FRAGMENT: u8 = 0x40;

/// Lets a packet of a known flow through; `None` leaves it to [`super::egress_verdict`].
#[inline(always)]
pub fn pass_known<P: Packet, M: Maps>(packet: &P, maps: &mut M, scene: &Scene) -> Option<Pass> {
    let passage = maps.passage(scene.ifindex)?;
    let read = Read::from(packet, scene.direction, &passage)?;
    let (local, remote) = read.ends;
    let [a, b, c, d] = read.ports.to_ne_bytes();
    let (source, destination) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    let (local_port, remote_port) = match scene.direction {
        Direction::Egress => (source, destination),
        Direction::Ingress => (destination, source),
    };
    if is_proxy(maps.config()?, &remote) {
        return None;
    }
    // A flow of this epoch has an address of the endpoint, but for what is sent to groups.
    if matches!(scene.direction, Direction::Egress)
        && (remote_port == dns::PORT || is_group(&local))
    {
        return None;
    }
    let key = FlowKey {
        local,
        remote,
        ifindex: scene.ifindex,
        epoch: passage.epoch(),
        local_port,
        remote_port,
        protocol: read.protocol,
        padding: [0; 3],
    };
    let flow = maps.flow(&key)?;
    if !goes_on(flow, key.protocol, passage.generation(), scene.now_ns) {
        return None;
    }
    note_known(flow, scene, packet.length(), read.ends_flow);
    Some(Pass::Known)
}

/// What a flow is found by, as it lies in the packet.
struct Read {
    /// The endpoint's address and the other one.
    ends: (Address, Address),
    /// Source and destination port.
    ports: u32,
    protocol: u8,
    /// Whether it closes a connection.
    ends_flow: bool,
}

impl Read {
    #[inline(always)]
    fn from<P: Packet>(packet: &P, direction: Direction, passage: &Passage) -> Option<Self> {
        if packet.has_vlan_tag() {
            return None;
        }
        let [a, b, c, ethertype] = packet.halfwords(6)?;
        if matches!(direction, Direction::Egress)
            && !passage.lets_come_from(Mac::from_halfwords([a, b, c]))
        {
            return None;
        }
        match u16::from_be(ethertype) {
            ETHERTYPE_IPV4 => Self::from_v4(packet, direction),
            ETHERTYPE_IPV6 => Self::from_v6(packet, direction),
            _ => None,
        }
    }

    #[inline(always)]
    fn from_v4<P: Packet>(packet: &P, direction: Direction) -> Option<Self> {
        let [first, second, third, source, destination, ports] = packet.words(ETHERNET)?;
        let [version, _, high, low] = first.to_ne_bytes();
        let [_, _, flags, offset] = second.to_ne_bytes();
        let [_, protocol, ..] = third.to_ne_bytes();
        let total = u16::from_be_bytes([high, low]) as u32;
        let is_whole = flags & !DO_NOT_FRAGMENT == 0 && offset == 0;
        let carried = packet.length().wrapping_sub(ETHERNET as u32);
        if version != PLAIN_IPV4 || !is_whole || total > carried {
            return None;
        }
        let payload = total.checked_sub(IPV4_HEADER as u32)?;
        let ends_flow = ends_flow(packet, ETHERNET + IPV4_HEADER, protocol, payload)?;
        let ends = (Address::from_v4_word(source), Address::from_v4_word(destination));
        Some(Self { ends: turned(ends, direction), ports, protocol, ends_flow })
    }

    #[inline(always)]
    fn from_v6<P: Packet>(packet: &P, direction: Direction) -> Option<Self> {
        let [first, second, a, b, c, d, e, f, g, h, ports] = packet.words(ETHERNET)?;
        let [version, ..] = first.to_ne_bytes();
        let [high, low, protocol, _] = second.to_ne_bytes();
        let payload = u16::from_be_bytes([high, low]) as u32;
        let carried = packet.length().wrapping_sub((ETHERNET + IPV6_HEADER) as u32);
        if version >> 4 != 6 || payload > carried {
            return None;
        }
        let ends = (Address::from_words([a, b, c, d]), Address::from_words([e, f, g, h]));
        if ends.0.is_v4() || ends.1.is_v4() {
            return None;
        }
        let ends_flow = ends_flow(packet, ETHERNET + IPV6_HEADER, protocol, payload)?;
        Some(Self { ends: turned(ends, direction), ports, protocol, ends_flow })
    }
}

/// Source and destination as the endpoint's address and the other one.
#[inline(always)]
const fn turned(ends: (Address, Address), direction: Direction) -> (Address, Address) {
    match direction {
        Direction::Egress => ends,
        Direction::Ingress => (ends.1, ends.0),
    }
}

/// Whether the packet closes a connection; `None` where its transport header is not whole, or opens one.
#[inline(always)]
fn ends_flow<P: Packet>(packet: &P, at: usize, number: u8, payload: u32) -> Option<bool> {
    match number {
        protocol::TCP => {
            let [fourth] = packet.words(at + 12)?;
            let [offset, flags, ..] = fourth.to_ne_bytes();
            let header = (offset >> 4) as u32 * 4;
            let acknowledges = flags & TCP_ACK != 0;
            let (goes_on, ends) = match flags & (TCP_SYN | TCP_FIN | TCP_RST) {
                0 | TCP_SYN => (acknowledges, false),
                TCP_FIN => (acknowledges, true),
                TCP_RST => (true, true),
                _ => (false, false),
            };
            (goes_on && header >= 20 && header <= payload).then_some(ends)
        }
        protocol::UDP => {
            let [second] = packet.words(at + 4)?;
            let [high, low, ..] = second.to_ne_bytes();
            let length = u16::from_be_bytes([high, low]) as u32;
            (length >= 8 && length <= payload).then_some(false)
        }
        _ => None,
    }
}
