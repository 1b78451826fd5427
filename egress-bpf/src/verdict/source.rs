//! Whether a packet may carry the addresses that it does.
//!
//! From an endpoint: its own addresses and, where known, its MAC, in ARP and neighbour discovery
//! too. To an endpoint: its own addresses, so that frames flooded by a bridge open nothing.

use super::{IDENTITY_FIRST_WORKLOAD, IDENTITY_HOST, Maps, classify};
use crate::abi::{Address, Direction, DropReason, ENDPOINT_MAC_KNOWN, Endpoint, Mac};
use crate::packet::{Headers, Kind, Packet};

const ARP_REQUEST: u8 = 1;
const ROUTER_SOLICITATION: u8 = 133;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const LISTENER_QUERY: u8 = 130;
const OPTION_SOURCE: u8 = 1;
const OPTION_TARGET: u8 = 2;
const OPTIONS_MAX: usize = 4;
/// Octets of neighbour discovery's options: a link-layer address, and the nonce of duplicate address
/// detection (RFC 7527). More is nothing that a pod needs, and carries data past its policy.
const OPTIONS_LENGTH_MAX: u32 = 16;
/// Octets of a report of listeners: 24 groups without sources (RFC 3810 section 5.2), for the same reason: a pod
/// joins one for all nodes and one or two for each address, and reports them together.
const REPORT_LENGTH_MAX: u32 = 8 + 24 * 20;

#[inline(always)]
pub(super) fn check<P: Packet, M: Maps>(
    packet: &P,
    maps: &M,
    headers: &Headers,
    endpoint: &Endpoint,
    direction: Direction,
) -> Result<(), DropReason> {
    match direction {
        Direction::Egress => leaving(packet, maps, headers, endpoint),
        Direction::Ingress => arriving(headers, endpoint),
    }
}

#[inline(always)]
fn leaving<P: Packet, M: Maps>(
    packet: &P,
    maps: &M,
    headers: &Headers,
    endpoint: &Endpoint,
) -> Result<(), DropReason> {
    let knows_mac = endpoint.flags & ENDPOINT_MAC_KNOWN != 0;
    if knows_mac && headers.source_mac != endpoint.mac {
        return Err(DropReason::Spoofed);
    }
    let source = &headers.source;
    let is_own = match headers.kind {
        Kind::Tcp
        | Kind::Udp
        | Kind::Sctp
        | Kind::EchoRequest
        | Kind::EchoReply
        | Kind::IcmpError
        | Kind::Other => endpoint.has(source),
        Kind::Arp => {
            // A probe asks for its address before it has it (RFC 5227 section 2.1.1).
            let is_probe = source.is(&Address::v4([0; 4])) && headers.flags == ARP_REQUEST;
            endpoint.has(if is_probe { &headers.destination } else { source })
        }
        Kind::Neighbour => {
            stays_on_link(maps, &headers.destination)
                && neighbour(packet, headers, endpoint, knows_mac)?
        }
        Kind::Router => return Err(DropReason::Router),
        Kind::Listener => {
            if headers.payload > REPORT_LENGTH_MAX {
                return Err(DropReason::Malformed);
            }
            headers.flags != LISTENER_QUERY
                && headers.destination.is_link_multicast_v6()
                && (source.is(&Address::UNSPECIFIED) || endpoint.has_on_link(source))
        }
    };
    if is_own { Ok(()) } else { Err(DropReason::Spoofed) }
}

/// Whether neighbour discovery may go there: to the link, to the node, or to a pod. A router passes
/// its packets on like any other, so that elsewhere they would carry data out.
#[inline(always)]
fn stays_on_link<M: Maps>(maps: &M, destination: &Address) -> bool {
    if destination.is_link_multicast_v6() || destination.is_link_local_v6() {
        return true;
    }
    let identity = classify::identity(maps, destination);
    identity == IDENTITY_HOST || identity >= IDENTITY_FIRST_WORKLOAD
}

/// Solicitations and advertisements: their source, the address that an advertisement claims, and
/// the link-layer addresses in their options.
#[inline(always)]
fn neighbour<P: Packet>(
    packet: &P,
    headers: &Headers,
    endpoint: &Endpoint,
    knows_mac: bool,
) -> Result<bool, DropReason> {
    let at = headers.transport as usize;
    let is_unspecified = headers.source.is(&Address::UNSPECIFIED);
    let (options, is_own) = match headers.flags {
        ROUTER_SOLICITATION => (8, is_unspecified || endpoint.has_on_link(&headers.source)),
        NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT => {
            let target = Address::new(packet.read(at + 8).ok_or(DropReason::Truncated)?);
            let is_solicitation = headers.flags == NEIGHBOUR_SOLICITATION;
            // Duplicate address detection asks from `::` (RFC 4862 section 5.4.2) for what is to be one's
            // own: who has the address hears that another wants it, and gives it up.
            let is_detection = is_solicitation && is_unspecified;
            let is_own = is_detection || endpoint.has_on_link(&headers.source);
            let speaks_of_itself =
                is_solicitation && !is_detection || endpoint.has_on_link(&target);
            (24, is_own && speaks_of_itself)
        }
        _ => return Err(DropReason::Router),
    };
    if headers.payload < options {
        return Err(DropReason::Truncated);
    }
    if headers.payload - options > OPTIONS_LENGTH_MAX {
        return Err(DropReason::Malformed);
    }
    let speaks_for_itself = !knows_mac
        || claims_only(packet, at + options as usize, headers.payload - options, &endpoint.mac)?;
    Ok(is_own && speaks_for_itself)
}

/// Whether the link-layer addresses among neighbour discovery options (RFC 4861 section 4.6) are
/// all `mac`.
#[inline(always)]
fn claims_only<P: Packet>(
    packet: &P,
    mut at: usize,
    mut left: u32,
    mac: &Mac,
) -> Result<bool, DropReason> {
    let mut seen = 0;
    while seen < OPTIONS_MAX {
        if left == 0 {
            return Ok(true);
        }
        let option: [u8; 8] = packet.read(at).ok_or(DropReason::Truncated)?;
        let [kind, units, a, b, c, d, e, f] = option;
        let length = units as u32 * 8;
        if length == 0 || length > left {
            return Err(DropReason::Malformed);
        }
        if matches!(kind, OPTION_SOURCE | OPTION_TARGET) && Mac([a, b, c, d, e, f]) != *mac {
            return Ok(false);
        }
        left -= length;
        at += length as usize;
        seen += 1;
    }
    if left == 0 { Ok(true) } else { Err(DropReason::Malformed) }
}

#[inline(always)]
fn arriving(headers: &Headers, endpoint: &Endpoint) -> Result<(), DropReason> {
    match headers.kind {
        Kind::Arp | Kind::Neighbour | Kind::Router | Kind::Listener => return Ok(()),
        Kind::Tcp
        | Kind::Udp
        | Kind::Sctp
        | Kind::EchoRequest
        | Kind::EchoReply
        | Kind::IcmpError
        | Kind::Other => {}
    }
    let destination = &headers.destination;
    if endpoint.has(destination) || is_group(destination) {
        Ok(())
    } else {
        Err(DropReason::Misaddressed)
    }
}

/// Multicast in both families, and the limited broadcast.
#[inline(always)]
pub(super) fn is_group(address: &Address) -> bool {
    match address.as_v4() {
        Some([first, rest @ ..]) => first >> 4 == 0xe || (first == 255 && rest == [255; 3]),
        None => address.is_multicast_v6(),
    }
}
