use super::{
    ETHERNET, Packet, SCTP_ABORT, SCTP_INIT, SCTP_SHUTDOWN_COMPLETE, TCP_ACK, TCP_FIN, TCP_RST,
    TCP_SYN,
};
use crate::abi::{Address, DropReason, Mac};

pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_VLAN: u16 = 0x8100;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;
const ETHERTYPE_QINQ: u16 = 0x9100;

/// Octets that a short frame may be filled up to: 60 are what Ethernet asks for, and four more are there
/// where a tag was.
const PADDED: u32 = 64;

/// What kind of packet it is, as far as verdicts differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// ARP.
    Arp,
    /// Neighbour discovery: solicitations, advertisements and router solicitations (RFC 4861).
    Neighbour,
    /// What only routers send: router advertisements and redirects (RFC 4861).
    Router,
    /// Multicast listener discovery (RFC 2710, RFC 3810).
    Listener,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// An echo request.
    EchoRequest,
    /// An echo reply.
    EchoReply,
    /// An ICMP error, with the packet that it is about embedded.
    IcmpError,
    /// Any other IP protocol.
    Other,
}

/// Which piece of a datagram it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Piece {
    /// All of it.
    Whole,
    /// The first fragment: it has the transport header.
    First,
    /// A later fragment: it has none.
    Later,
}

/// The fields of a packet that verdicts are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Source address; the sender's for ARP.
    pub source: Address,
    /// Destination address; the target's for ARP.
    pub destination: Address,
    /// Identification of the datagram, for fragments.
    pub identification: u32,
    /// Octets from the transport header on.
    pub payload: u32,
    /// Source port; an echo request's identifier.
    pub source_port: u16,
    /// Destination port; an echo reply's identifier.
    pub destination_port: u16,
    /// Where the transport header starts.
    pub transport: u16,
    /// Ethernet source.
    pub source_mac: Mac,
    /// IP protocol number; zero for ARP.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hops: u8,
    /// Flags of TCP; type of ICMP; type of the first chunk of SCTP.
    pub flags: u8,
    /// What kind of packet it is.
    pub kind: Kind,
    /// Which piece of a datagram it is.
    pub piece: Piece,
}

impl Headers {
    /// Headers before anything was read.
    pub const UNREAD: Self = Self {
        source: Address::UNSPECIFIED,
        destination: Address::UNSPECIFIED,
        identification: 0,
        payload: 0,
        source_port: 0,
        destination_port: 0,
        transport: 0,
        source_mac: Mac([0; 6]),
        protocol: 0,
        hops: 0,
        flags: 0,
        kind: Kind::Other,
        piece: Piece::Whole,
    };

    /// Reads a frame. What was read before an error stays, so that a record can tell it.
    #[inline(always)]
    pub fn read<P: Packet>(&mut self, packet: &P) -> Result<(), DropReason> {
        let ethernet: [u8; ETHERNET] = packet.read(0).ok_or(DropReason::Truncated)?;
        let [_, _, _, _, _, _, a, b, c, d, e, f, high, low] = ethernet;
        self.source_mac = Mac([a, b, c, d, e, f]);
        if packet.has_vlan_tag() {
            return Err(DropReason::Vlan);
        }
        match u16::from_be_bytes([high, low]) {
            ETHERTYPE_IPV4 => self.read_v4(packet),
            ETHERTYPE_IPV6 => {
                self.read_v6(packet)?;
                self.end_with_frame(packet)
            }
            ETHERTYPE_ARP => self.read_arp(packet),
            ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN | ETHERTYPE_QINQ => Err(DropReason::Vlan),
            _ => Err(DropReason::Ethertype),
        }
    }

    /// Refuses octets behind a packet that stays on the link without being judged.
    #[inline(always)]
    fn end_with_frame<P: Packet>(&self, packet: &P) -> Result<(), DropReason> {
        let is_on_link = matches!(self.kind, Kind::Neighbour | Kind::Router | Kind::Listener);
        let end = self.transport as u32 + self.payload;
        if is_on_link && packet.length() > end && packet.length() > PADDED {
            return Err(DropReason::Malformed);
        }
        Ok(())
    }

    /// ARP for IPv4 over Ethernet (RFC 826); nothing else is known by that ethertype.
    #[inline(always)]
    fn read_arp<P: Packet>(&mut self, packet: &P) -> Result<(), DropReason> {
        let arp: [u8; 28] = packet.read(ETHERNET).ok_or(DropReason::Truncated)?;
        self.kind = Kind::Arp;
        self.source = Address::v4([arp[14], arp[15], arp[16], arp[17]]);
        self.destination = Address::v4([arp[24], arp[25], arp[26], arp[27]]);
        self.flags = arp[7];
        let is_ethernet_ipv4 = arp[..7] == [0, 1, 8, 0, 6, 4, 0];
        let sender = Mac([arp[8], arp[9], arp[10], arp[11], arp[12], arp[13]]);
        if !is_ethernet_ipv4 || !matches!(arp[7], 1 | 2) || packet.length() > PADDED {
            return Err(DropReason::Malformed);
        }
        // Who speaks for another in ARP is told apart by the source check.
        if sender != self.source_mac {
            return Err(DropReason::Spoofed);
        }
        Ok(())
    }

    /// Whether the packet asks for a connection of TCP or an association of SCTP.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        let is_syn = self.flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
        (matches!(self.kind, Kind::Tcp) && is_syn)
            || (matches!(self.kind, Kind::Sctp) && self.flags == SCTP_INIT)
    }

    /// Whether the packet ends one.
    #[inline(always)]
    pub const fn ends(&self) -> bool {
        let is_last_chunk = matches!(self.flags, SCTP_ABORT | SCTP_SHUTDOWN_COMPLETE);
        (matches!(self.kind, Kind::Tcp) && self.flags & (TCP_FIN | TCP_RST) != 0)
            || (matches!(self.kind, Kind::Sctp) && is_last_chunk)
    }
}
