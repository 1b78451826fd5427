//! Carrying out [`Way`]s: packets of flows with services.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::programs::TcContext;
use namegate_egress_bpf::abi::Mac;
use namegate_egress_bpf::packet::{ETHERNET, Headers, Packet as _, Piece};
use namegate_egress_bpf::verdict::{Case, Way};

use crate::hooks::NEXT;
use crate::maps;
use crate::rewrite::{
    DESTINATION_PORT, FAILED, Failed, IPV4_DESTINATION, IPV4_SOURCE, IPV6_DESTINATION, IPV6_SOURCE,
    SOURCE_PORT, difference, replace_address, replace_port,
};
use crate::skb::Skb;

/// Octets of an ICMP header, behind which the quoted packet begins.
const ICMP: usize = 8;
const ICMP_CHECKSUM: usize = 2;

/// Rewrites a packet to the target of its case.
#[inline(always)]
pub(crate) fn translate(packet: &Skb, way: Way) -> i32 {
    translate_frame(packet.context(), way as u32)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn translate_frame(skb: *mut __sk_buff, way: u32) -> i32 {
    let Some(case) = maps::case() else {
        return FAILED;
    };
    carry_out(&Skb(TcContext::new(skb)), case, Way::from_number(way)).unwrap_or(FAILED)
}

#[inline(always)]
fn carry_out(packet: &Skb, case: &Case, way: Way) -> Result<i32, Failed> {
    let headers = &case.headers;
    match way {
        Way::Straight => Ok(NEXT),
        Way::ToBackend => {
            replace_address(
                packet,
                headers,
                destination(headers),
                &headers.destination,
                &case.target,
            )?;
            change_port(packet, headers, DESTINATION_PORT, headers.destination_port, case)?;
            Ok(NEXT)
        }
        Way::FromBackend => {
            replace_address(packet, headers, source(headers), &headers.source, &case.target)?;
            change_port(packet, headers, SOURCE_PORT, headers.source_port, case)?;
            Ok(NEXT)
        }
        Way::Quoted => {
            mend_quoted(packet, case)?;
            Ok(NEXT)
        }
        Way::HairpinOut => {
            change_port(packet, headers, DESTINATION_PORT, headers.destination_port, case)?;
            turn_round(packet, case)
        }
        Way::HairpinBack => {
            change_port(packet, headers, SOURCE_PORT, headers.source_port, case)?;
            turn_round(packet, case)
        }
    }
}

/// Makes the service the source and the case's target the destination, and sends the packet out of
/// the interface that it came in by.
#[inline(always)]
fn turn_round(packet: &Skb, case: &Case) -> Result<i32, Failed> {
    let headers = &case.headers;
    replace_address(packet, headers, source(headers), &headers.source, &headers.destination)?;
    replace_address(packet, headers, destination(headers), &headers.destination, &case.target)?;
    let [a, b, c, d, e, f]: [u8; 6] = packet.read(0).ok_or(Failed)?;
    packet.0.store(0, &headers.source_mac, 0).map_err(|_| Failed)?;
    packet.0.store(6, &Mac([a, b, c, d, e, f]), 0).map_err(|_| Failed)?;
    // SAFETY: the helper takes two numbers.
    let code = unsafe { bpf_redirect(packet.ifindex(), 0) };
    Ok(code as i32)
}

/// Puts the service in the place of the backend in the packet that an ICMP error quotes: the endpoint
/// knows no other.
#[inline(always)]
fn mend_quoted(packet: &Skb, case: &Case) -> Result<(), Failed> {
    let transport = case.headers.transport as usize;
    let (at, skb) = (transport + ICMP - ETHERNET, &packet.0);
    let ports = match (case.key.remote.as_v4(), case.target.as_v4()) {
        (Some(old), Some(new)) => {
            let (from, to) = (u32::from_ne_bytes(old), u32::from_ne_bytes(new));
            // The sum over the quoted header stays, and so does that over the message.
            skb.l3_csum_replace(at + ETHERNET + 10, from as u64, to as u64, 4)
                .map_err(|_| Failed)?;
            skb.store(at + IPV4_DESTINATION, &new, 0).map_err(|_| Failed)?;
            at + ETHERNET + 20
        }
        (None, None) => {
            let difference = difference(&case.key.remote, &case.target)?;
            skb.l4_csum_replace(transport + ICMP_CHECKSUM, 0, difference, 0).map_err(|_| Failed)?;
            skb.store(at + IPV6_DESTINATION, &case.target, 0).map_err(|_| Failed)?;
            at + ETHERNET + 40
        }
        (Some(_), None) | (None, Some(_)) => return Err(Failed),
    };
    let (from, to) = (case.key.remote_port.to_be(), case.target_port.to_be());
    skb.l4_csum_replace(transport + ICMP_CHECKSUM, from as u64, to as u64, 2)
        .map_err(|_| Failed)?;
    skb.store(ports + DESTINATION_PORT, &to, 0).map_err(|_| Failed)
}

/// Writes the target's port; later pieces have none.
#[inline(always)]
fn change_port(
    packet: &Skb,
    headers: &Headers,
    at: usize,
    old: u16,
    case: &Case,
) -> Result<(), Failed> {
    if let Piece::Later = headers.piece {
        return Ok(());
    }
    replace_port(packet, headers, at, old, case.target_port)
}

#[inline(always)]
fn source(headers: &Headers) -> usize {
    if headers.source.is_v4() { IPV4_SOURCE } else { IPV6_SOURCE }
}

#[inline(always)]
fn destination(headers: &Headers) -> usize {
    if headers.source.is_v4() { IPV4_DESTINATION } else { IPV6_DESTINATION }
}
