//! Carrying out the verdicts that change a packet.

use core::mem::offset_of;

use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_redirect};
use aya_ebpf::programs::TcContext;
use namegate_egress_bpf::abi::{Address, Config};
use namegate_egress_bpf::packet::{ETHERNET, Headers, Kind, Piece};

use crate::hooks::NEXT;
use crate::maps;
use crate::skb::Skb;

const IPV4_CHECKSUM: usize = ETHERNET + 10;
pub(crate) const IPV4_SOURCE: usize = ETHERNET + 12;
pub(crate) const IPV4_DESTINATION: usize = ETHERNET + 16;
pub(crate) const IPV6_SOURCE: usize = ETHERNET + 8;
pub(crate) const IPV6_DESTINATION: usize = ETHERNET + 24;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
/// No place: an Ethernet header is there. An `Option` would leave a register unset, which the verifier
/// refuses to see stored.
const NO_CHECKSUM: usize = 0;
pub(crate) const SOURCE_PORT: usize = 0;
pub(crate) const DESTINATION_PORT: usize = 2;

/// Stands for a code where a helper failed, or a row is missing.
pub(crate) const FAILED: i32 = i32::MIN;

/// A helper failed, or a row is missing.
pub(crate) struct Failed;

const _: () = assert!(offset_of!(Config, proxy_v4) % 4 == 0);

/// Rewrites a lookup to the proxy and hands it to the proxy's interface, as if it came in there.
#[inline(always)]
pub(crate) fn to_proxy(packet: &Skb, slot: u16) -> i32 {
    to_proxy_frame(packet.context(), slot as u32)
}

/// Global like `ask_rules`, and so are its siblings: each is checked once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn to_proxy_frame(skb: *mut __sk_buff, slot: u32) -> i32 {
    let Some(case) = maps::case() else {
        return FAILED;
    };
    hand_over(&Skb(TcContext::new(skb)), &case.headers, slot as u16).unwrap_or(FAILED)
}

/// Rewrites an answer so that it comes from the resolver, and lets it go on.
#[inline(always)]
pub(crate) fn from_proxy(packet: &Skb, slot: u16) -> i32 {
    from_proxy_frame(packet.context(), slot as u32)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn from_proxy_frame(skb: *mut __sk_buff, slot: u32) -> i32 {
    let Some(case) = maps::case() else {
        return FAILED;
    };
    match disguise(&Skb(TcContext::new(skb)), &case.headers, slot as u16) {
        Ok(()) => NEXT,
        Err(Failed) => FAILED,
    }
}

#[inline(always)]
fn hand_over(packet: &Skb, headers: &Headers, slot: u16) -> Result<i32, Failed> {
    let config = maps::config().ok_or(Failed)?;
    let is_v4 = headers.destination.is_v4();
    let proxy = if is_v4 { &config.proxy_v4 } else { &config.proxy_v6 };
    let at = if is_v4 { IPV4_DESTINATION } else { IPV6_DESTINATION };
    replace_address(packet, headers, at, &headers.destination, proxy)?;
    let port = config.proxy_port.wrapping_add(slot);
    replace_port(packet, headers, DESTINATION_PORT, headers.destination_port, port)?;
    packet.0.store(0, &config.proxy_mac, 0).map_err(|_| Failed)?;
    // SAFETY: the helper takes two numbers.
    let code = unsafe { bpf_redirect(config.proxy_ifindex, BPF_F_INGRESS as u64) };
    Ok(code as i32)
}

#[inline(always)]
fn disguise(packet: &Skb, headers: &Headers, slot: u16) -> Result<(), Failed> {
    let is_v4 = headers.source.is_v4();
    let resolver = maps::resolver(slot as u32, is_v4).ok_or(Failed)?;
    let at = if is_v4 { IPV4_SOURCE } else { IPV6_SOURCE };
    replace_address(packet, headers, at, &headers.source, resolver)?;
    replace_port(packet, headers, SOURCE_PORT, headers.source_port, 53)
}

/// Writes an address over another and mends the checksums that cover it.
#[inline(always)]
pub(crate) fn replace_address(
    packet: &Skb,
    headers: &Headers,
    at: usize,
    old: &Address,
    new: &Address,
) -> Result<(), Failed> {
    let flags = BPF_F_PSEUDO_HDR as u64 | udp_flag(headers);
    let checksum = checksum(headers);
    match (old.as_v4(), new.as_v4()) {
        (Some(old), Some(new)) => {
            let (from, to) = (u32::from_ne_bytes(old), u32::from_ne_bytes(new));
            let skb = &packet.0;
            skb.l3_csum_replace(IPV4_CHECKSUM, from as u64, to as u64, 4).map_err(|_| Failed)?;
            if checksum != NO_CHECKSUM {
                skb.l4_csum_replace(checksum, from as u64, to as u64, flags | 4)
                    .map_err(|_| Failed)?;
            }
            skb.store(at, &new, 0).map_err(|_| Failed)
        }
        (None, None) => {
            if checksum != NO_CHECKSUM {
                let difference = difference(old, new)?;
                packet.0.l4_csum_replace(checksum, 0, difference, flags).map_err(|_| Failed)?;
            }
            packet.0.store(at, new, 0).map_err(|_| Failed)
        }
        (Some(_), None) | (None, Some(_)) => Err(Failed),
    }
}

/// By how much a checksum over `old` differs from one over `new`.
#[inline(always)]
pub(crate) fn difference(old: &Address, new: &Address) -> Result<u64, Failed> {
    let (from, to) = (core::ptr::from_ref(old), core::ptr::from_ref(new));
    // SAFETY: both are sixteen octets, which the helper reads as words and does not write.
    let difference =
        unsafe { bpf_csum_diff(from.cast_mut().cast(), 16, to.cast_mut().cast(), 16, 0) };
    if difference < 0 { Err(Failed) } else { Ok(difference as u64) }
}

#[inline(always)]
pub(crate) fn replace_port(
    packet: &Skb,
    headers: &Headers,
    at: usize,
    old: u16,
    new: u16,
) -> Result<(), Failed> {
    if old == new {
        return Ok(());
    }
    let checksum = checksum(headers);
    if checksum == NO_CHECKSUM {
        return Err(Failed);
    }
    let (from, to) = (old.to_be(), new.to_be());
    packet
        .0
        .l4_csum_replace(checksum, from as u64, to as u64, 2 | udp_flag(headers))
        .map_err(|_| Failed)?;
    packet.0.store(headers.transport as usize + at, &to, 0).map_err(|_| Failed)
}

/// Where the checksum is that covers addresses and ports, or [`NO_CHECKSUM`]: later pieces have none,
/// and that of SCTP covers no address.
#[inline(always)]
fn checksum(headers: &Headers) -> usize {
    if matches!(headers.piece, Piece::Later) {
        return NO_CHECKSUM;
    }
    let field = match headers.kind {
        Kind::Tcp => TCP_CHECKSUM,
        Kind::Udp => UDP_CHECKSUM,
        Kind::Arp
        | Kind::Neighbour
        | Kind::Router
        | Kind::Listener
        | Kind::Sctp
        | Kind::EchoRequest
        | Kind::EchoReply
        | Kind::IcmpError
        | Kind::Other => return NO_CHECKSUM,
    };
    headers.transport as usize + field
}

/// A UDP checksum of zero stands for none (RFC 768) and stays so.
#[inline(always)]
fn udp_flag(headers: &Headers) -> u64 {
    if is_udp(headers) { BPF_F_MARK_MANGLED_0 as u64 } else { 0 }
}

#[inline(always)]
fn is_udp(headers: &Headers) -> bool {
    matches!(headers.kind, Kind::Udp)
}
