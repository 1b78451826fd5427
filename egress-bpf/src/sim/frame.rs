//! Frames, octet by octet: for tests, and for asking a simulation what would become of a packet.

use std::net::IpAddr;

use crate::abi::Mac;
use crate::packet::protocol;

/// IPv4.
pub const IPV4: u16 = 0x0800;
/// ARP.
pub const ARP: u16 = 0x0806;
/// IPv6.
pub const IPV6: u16 = 0x86dd;

/// An Ethernet frame.
pub fn ethernet(source: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 0xfe];
    frame.extend(source.0);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An Ethernet frame around an IP packet.
pub fn ip(
    mac: Mac,
    (source, destination): (IpAddr, IpAddr),
    number: u8,
    payload: &[u8],
) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let length = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
            let mut packet = vec![0x45, 0, length[0], length[1], 0, 7, 0, 0, 64, number, 0, 0];
            packet.extend(source.octets());
            packet.extend(destination.octets());
            let checksum = sum_of(&packet, 0);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
            packet.extend(payload);
            ethernet(mac, IPV4, &packet)
        }
        (source, destination) => {
            let length = u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes();
            let hops = if number == protocol::ICMPV6 { 255 } else { 64 };
            let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], number, hops];
            packet.extend(octets(source));
            packet.extend(octets(destination));
            packet.extend(payload);
            ethernet(mac, IPV6, &packet)
        }
    }
}

/// A TCP header without options.
pub fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut header = ports(source, destination);
    header.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    header
}

/// A UDP datagram.
pub fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = ports(source, destination);
    datagram.extend(u16::try_from(8 + payload.len()).unwrap_or(u16::MAX).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    datagram
}

/// An SCTP common header.
pub fn sctp(source: u16, destination: u16) -> Vec<u8> {
    let mut header = ports(source, destination);
    header.extend([0; 8]);
    header
}

/// An ICMP or ICMPv6 message: its type, the second word, and what follows.
pub fn icmp(kind: u8, word: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(word);
    message.extend(body);
    message
}

/// An echo request or reply, by its type.
pub fn echo(kind: u8, identifier: u16) -> Vec<u8> {
    let [high, low] = identifier.to_be_bytes();
    icmp(kind, [high, low, 0, 1], b"echo")
}

/// An ARP frame: 1 asks, 2 answers.
pub fn arp(mac: Mac, operation: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend(mac.0);
    packet.extend(sender);
    packet.extend([0; 6]);
    packet.extend(target);
    ethernet(mac, ARP, &packet)
}

/// Fills in the checksum of the TCP segment, UDP datagram or ICMP message in a frame.
pub fn with_checksum(mut frame: Vec<u8>) -> Vec<u8> {
    if let Some(at) = checksum_place(&frame) {
        frame[at..at + 2].fill(0);
        let checksum = transport_sum(&frame).unwrap_or(0);
        frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
    frame
}

/// Whether the checksums of IP header and of TCP segment, UDP datagram or ICMP message in a frame are
/// right.
pub fn has_right_checksums(frame: &[u8]) -> bool {
    let ip_is_right = match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(14..34).is_some_and(|header| sum_of(header, 0) == 0),
        _ => true,
    };
    ip_is_right && transport_sum(frame) == Some(0)
}

fn transport_sum(frame: &[u8]) -> Option<u16> {
    let (addresses, number, payload) = match frame.get(12..14)? {
        [0x08, 0x00] => (frame.get(26..34)?, *frame.get(23)?, frame.get(34..)?),
        [0x86, 0xdd] => (frame.get(22..54)?, *frame.get(20)?, frame.get(54..)?),
        _ => return None,
    };
    let length = u32::try_from(payload.len()).ok()?;
    // ICMP for IPv4 has no pseudo-header (RFC 792).
    let pseudo =
        if number == protocol::ICMP { 0 } else { words(addresses) + u32::from(number) + length };
    Some(sum_of(payload, pseudo))
}

fn checksum_place(frame: &[u8]) -> Option<usize> {
    let (number, transport) = match frame.get(12..14)? {
        [0x08, 0x00] => (*frame.get(23)?, 34),
        [0x86, 0xdd] => (*frame.get(20)?, 54),
        _ => return None,
    };
    match number {
        protocol::TCP => Some(transport + 16),
        protocol::UDP => Some(transport + 6),
        protocol::ICMP | protocol::ICMPV6 => Some(transport + 2),
        _ => None,
    }
}

/// The internet checksum (RFC 1071).
fn sum_of(octets: &[u8], start: u32) -> u16 {
    let mut sum = start + words(octets);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

fn words(octets: &[u8]) -> u32 {
    octets
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
            [high] => u32::from(*high) << 8,
            _ => 0,
        })
        .sum()
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    [source.to_be_bytes(), destination.to_be_bytes()].concat()
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
