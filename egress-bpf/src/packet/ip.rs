use super::headers::{Headers, Kind, Piece};
use super::{ETHERNET, Packet, protocol};
use crate::abi::{Address, DropReason};

const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;
const FRAGMENT_HEADER: u32 = 8;
const DATAGRAM_MAX: u32 = 65_535;

const NEXT_HOP_BY_HOP: u8 = 0;
const NEXT_ROUTING: u8 = 43;
const NEXT_FRAGMENT: u8 = 44;
const NEXT_AUTHENTICATION: u8 = 51;
const NEXT_DESTINATION: u8 = 60;
const NEXT_MOBILITY: u8 = 135;
const NEXT_HOST_IDENTITY: u8 = 139;
const NEXT_SHIM6: u8 = 140;

impl Headers {
    #[inline(always)]
    pub(super) fn read_v4<P: Packet>(&mut self, packet: &P) -> Result<(), DropReason> {
        let ip: [u8; 20] = packet.read(ETHERNET).ok_or(DropReason::Truncated)?;
        self.source = Address::v4([ip[12], ip[13], ip[14], ip[15]]);
        self.destination = Address::v4([ip[16], ip[17], ip[18], ip[19]]);
        self.protocol = ip[9];
        self.hops = ip[8];
        self.transport = (ETHERNET + 20) as u16;
        if ip[0] >> 4 != 4 || ip[0] & 0xf < 5 {
            return Err(DropReason::Malformed);
        }
        if ip[0] & 0xf > 5 {
            return Err(DropReason::Options);
        }
        let carried = packet.length().wrapping_sub(ETHERNET as u32);
        // Offloads that outgrow the field leave it zero (Linux 6.3, "BIG TCP" for IPv4).
        let total = match u16::from_be_bytes([ip[2], ip[3]]) {
            0 if carried > DATAGRAM_MAX => carried,
            total => total as u32,
        };
        if total < IPV4_HEADER || total > carried {
            return Err(DropReason::Truncated);
        }
        self.payload = total - IPV4_HEADER;
        self.identification = u16::from_be_bytes([ip[4], ip[5]]) as u32;
        let fragment = u16::from_be_bytes([ip[6], ip[7]]);
        if fragment & 0x8000 != 0 {
            return Err(DropReason::Malformed);
        }
        self.read_piece((fragment & 0x1fff) as u32, fragment & 0x2000 != 0)?;
        self.read_transport(packet, protocol::ICMP)
    }

    #[inline(always)]
    pub(super) fn read_v6<P: Packet>(&mut self, packet: &P) -> Result<(), DropReason> {
        let ip: [u8; 40] = packet.read(ETHERNET).ok_or(DropReason::Truncated)?;
        self.source = address(&ip, 8);
        self.destination = address(&ip, 24);
        self.protocol = ip[6];
        self.hops = ip[7];
        self.transport = (ETHERNET + 40) as u16;
        if ip[0] >> 4 != 6 {
            return Err(DropReason::Malformed);
        }
        if self.source.is_v4() || self.destination.is_v4() {
            return Err(DropReason::MappedAddress);
        }
        let carried = packet.length().wrapping_sub(ETHERNET as u32).wrapping_sub(IPV6_HEADER);
        let payload = match u16::from_be_bytes([ip[4], ip[5]]) {
            0 if carried > DATAGRAM_MAX => carried,
            payload => payload as u32,
        };
        if payload > carried {
            return Err(DropReason::Truncated);
        }
        self.payload = payload;
        match self.protocol {
            NEXT_FRAGMENT => self.read_fragment_header(packet)?,
            NEXT_HOP_BY_HOP => return self.read_listener(packet),
            _ => {}
        }
        match self.protocol {
            NEXT_HOP_BY_HOP | NEXT_ROUTING | NEXT_FRAGMENT | NEXT_AUTHENTICATION
            | NEXT_DESTINATION | NEXT_MOBILITY | NEXT_HOST_IDENTITY | NEXT_SHIM6 => {
                Err(DropReason::ExtensionHeader)
            }
            _ => self.read_transport(packet, protocol::ICMPV6),
        }
    }

    /// The fragment header (RFC 8200 section 4.5); an atomic fragment (RFC 6946) is a whole packet.
    #[inline(always)]
    fn read_fragment_header<P: Packet>(&mut self, packet: &P) -> Result<(), DropReason> {
        let header: [u8; 8] =
            packet.read(ETHERNET + IPV6_HEADER as usize).ok_or(DropReason::Truncated)?;
        if self.payload < FRAGMENT_HEADER {
            return Err(DropReason::Truncated);
        }
        self.payload -= FRAGMENT_HEADER;
        self.transport += FRAGMENT_HEADER as u16;
        self.protocol = header[0];
        self.identification = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let field = u16::from_be_bytes([header[2], header[3]]);
        self.read_piece((field >> 3) as u32, field & 1 != 0)
    }

    /// Multicast listener discovery comes behind a hop-by-hop header with a router alert and
    /// nothing else (RFC 2710 section 3); any other such header is refused.
    #[inline(always)]
    fn read_listener<P: Packet>(&mut self, packet: &P) -> Result<(), DropReason> {
        let header: [u8; 12] =
            packet.read(ETHERNET + IPV6_HEADER as usize).ok_or(DropReason::Truncated)?;
        let [next, units, option, length, _, _, pad, _, kind, ..] = header;
        let is_router_alert = units == 0 && option == 5 && length == 2 && pad <= 1;
        if !is_router_alert || next != protocol::ICMPV6 || self.payload < 16 {
            return Err(DropReason::ExtensionHeader);
        }
        if !matches!(kind, 130..=132 | 143) || self.hops != 1 {
            return Err(DropReason::ExtensionHeader);
        }
        self.protocol = next;
        self.payload -= 8;
        self.transport += 8;
        self.flags = kind;
        self.kind = Kind::Listener;
        Ok(())
    }

    /// `offset` counts units of eight octets.
    #[inline(always)]
    fn read_piece(&mut self, offset: u32, has_more: bool) -> Result<(), DropReason> {
        if has_more && (self.payload == 0 || !self.payload.is_multiple_of(8)) {
            return Err(DropReason::Malformed);
        }
        if offset * 8 + self.payload > DATAGRAM_MAX && (offset != 0 || has_more) {
            return Err(DropReason::Malformed);
        }
        self.piece = match (offset, has_more) {
            (0, false) => Piece::Whole,
            (0, true) => Piece::First,
            // It would overwrite the flags of the first one's header (RFC 3128).
            (1, _) if self.protocol == protocol::TCP => return Err(DropReason::TinyFragment),
            _ => Piece::Later,
        };
        Ok(())
    }
}

#[inline(always)]
fn address(ip: &[u8; 40], at: usize) -> Address {
    let mut octets = [0; 16];
    let mut index = 0;
    while index < 16 {
        octets[index] = ip[at + index];
        index += 1;
    }
    Address::new(octets)
}
