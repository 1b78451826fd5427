use super::headers::{Headers, Kind, Piece};
use super::{Packet, protocol};
use crate::abi::DropReason;

/// No more data from the sender.
pub const TCP_FIN: u8 = 0x01;
/// Opens a flow.
pub const TCP_SYN: u8 = 0x02;
/// Ends a flow at once.
pub const TCP_RST: u8 = 0x04;
/// The acknowledgement field counts.
pub const TCP_ACK: u8 = 0x10;

/// The chunk that opens an association of SCTP; it is alone in its packet (RFC 9260, 6.10).
pub const SCTP_INIT: u8 = 1;
/// Ends one at once.
pub const SCTP_ABORT: u8 = 6;
/// The last word of one that was closed.
pub const SCTP_SHUTDOWN_COMPLETE: u8 = 14;
/// Octets of the header that chunks follow.
const SCTP_HEADER: u32 = 12;

impl Headers {
    /// Reads what follows the IP header; `icmp` is the number that ICMP has in this family.
    #[inline(always)]
    pub(super) fn read_transport<P: Packet>(
        &mut self,
        packet: &P,
        icmp: u8,
    ) -> Result<(), DropReason> {
        self.kind = match self.protocol {
            protocol::TCP => Kind::Tcp,
            protocol::UDP => Kind::Udp,
            protocol::SCTP => Kind::Sctp,
            number if number == icmp => Kind::EchoRequest,
            _ => Kind::Other,
        };
        if let Piece::Later = self.piece {
            return Ok(());
        }
        match self.kind {
            Kind::Tcp => self.read_tcp(packet),
            Kind::Udp => self.read_udp(packet),
            Kind::Sctp => self.read_sctp(packet),
            Kind::EchoRequest => self.read_icmp(packet, icmp),
            Kind::Other
            | Kind::Arp
            | Kind::Neighbour
            | Kind::Router
            | Kind::Listener
            | Kind::EchoReply
            | Kind::IcmpError => Ok(()),
        }
    }

    #[inline(always)]
    fn read_tcp<P: Packet>(&mut self, packet: &P) -> Result<(), DropReason> {
        let tcp: [u8; 14] = self.transport_header(packet, 20)?;
        self.ports(tcp[0], tcp[1], tcp[2], tcp[3]);
        let header = (tcp[12] >> 4) as u32 * 4;
        if header < 20 {
            return Err(DropReason::Malformed);
        }
        if header > self.payload {
            return Err(self.too_short());
        }
        self.flags = tcp[13];
        let starts_or_ends = tcp[13] & (TCP_SYN | TCP_FIN | TCP_RST);
        let is_sane = match starts_or_ends {
            0 | TCP_FIN => tcp[13] & TCP_ACK != 0,
            TCP_SYN | TCP_RST => true,
            _ => false,
        };
        if is_sane { Ok(()) } else { Err(DropReason::TcpFlags) }
    }

    #[inline(always)]
    fn read_udp<P: Packet>(&mut self, packet: &P) -> Result<(), DropReason> {
        let udp: [u8; 8] = self.transport_header(packet, 8)?;
        self.ports(udp[0], udp[1], udp[2], udp[3]);
        let length = u16::from_be_bytes([udp[4], udp[5]]) as u32;
        let fits = length >= 8 && (length <= self.payload || matches!(self.piece, Piece::First));
        if fits { Ok(()) } else { Err(DropReason::Malformed) }
    }

    #[inline(always)]
    fn read_sctp<P: Packet>(&mut self, packet: &P) -> Result<(), DropReason> {
        let sctp: [u8; 4] = self.transport_header(packet, SCTP_HEADER)?;
        self.ports(sctp[0], sctp[1], sctp[2], sctp[3]);
        if self.payload > SCTP_HEADER {
            let chunk = self.transport as usize + SCTP_HEADER as usize;
            [self.flags] = packet.read(chunk).ok_or(DropReason::Truncated)?;
        }
        Ok(())
    }

    #[inline(always)]
    fn read_icmp<P: Packet>(&mut self, packet: &P, icmp: u8) -> Result<(), DropReason> {
        let header: [u8; 8] = self.transport_header(packet, 8)?;
        self.flags = header[0];
        let identifier = u16::from_be_bytes([header[4], header[5]]);
        self.kind = if icmp == protocol::ICMP { kind_v4(header[0])? } else { kind_v6(header[0])? };
        match self.kind {
            Kind::EchoRequest => self.source_port = identifier,
            Kind::EchoReply => self.destination_port = identifier,
            // RFC 6980 forbids fragments of neighbour discovery; errors fit in one packet.
            _ if !matches!(self.piece, Piece::Whole) => return Err(DropReason::Malformed),
            Kind::Neighbour | Kind::Router if self.hops != 255 || header[1] != 0 => {
                return Err(DropReason::Malformed);
            }
            Kind::Arp
            | Kind::Neighbour
            | Kind::Router
            | Kind::Listener
            | Kind::Tcp
            | Kind::Udp
            | Kind::Sctp
            | Kind::IcmpError
            | Kind::Other => {}
        }
        Ok(())
    }

    /// The first `N` octets of a transport header of at least `header` octets.
    #[inline(always)]
    fn transport_header<P: Packet, const N: usize>(
        &self,
        packet: &P,
        header: u32,
    ) -> Result<[u8; N], DropReason> {
        if self.payload < header {
            return Err(self.too_short());
        }
        packet.read(self.transport as usize).ok_or(DropReason::Truncated)
    }

    #[inline(always)]
    const fn too_short(&self) -> DropReason {
        match self.piece {
            Piece::First => DropReason::TinyFragment,
            Piece::Whole | Piece::Later => DropReason::Truncated,
        }
    }

    #[inline(always)]
    const fn ports(&mut self, a: u8, b: u8, c: u8, d: u8) {
        self.source_port = u16::from_be_bytes([a, b]);
        self.destination_port = u16::from_be_bytes([c, d]);
    }
}

#[inline(always)]
const fn kind_v4(number: u8) -> Result<Kind, DropReason> {
    match number {
        0 => Ok(Kind::EchoReply),
        8 => Ok(Kind::EchoRequest),
        3 | 11 | 12 => Ok(Kind::IcmpError),
        5 | 9 => Err(DropReason::Router),
        _ => Err(DropReason::IcmpType),
    }
}

#[inline(always)]
const fn kind_v6(number: u8) -> Result<Kind, DropReason> {
    match number {
        128 => Ok(Kind::EchoRequest),
        129 => Ok(Kind::EchoReply),
        1..=4 => Ok(Kind::IcmpError),
        133 | 135 | 136 => Ok(Kind::Neighbour),
        134 | 137 => Ok(Kind::Router),
        _ => Err(DropReason::IcmpType),
    }
}
