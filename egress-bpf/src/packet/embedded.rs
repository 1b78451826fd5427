use super::{ETHERNET, Headers, Packet, protocol};
use crate::abi::Address;

/// The packet that an ICMP error is about, as far as the error quotes it (RFC 792, RFC 4443
/// section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Embedded {
    /// Its source.
    pub source: Address,
    /// Its destination.
    pub destination: Address,
    /// Its source port; an echo request's identifier.
    pub source_port: u16,
    /// Its destination port; an echo reply's identifier.
    pub destination_port: u16,
    /// Its IP protocol number.
    pub protocol: u8,
}

impl Embedded {
    /// Reads what the ICMP error in `packet` quotes; `None` where that cannot be told to be part of
    /// a flow.
    #[inline(always)]
    pub fn read<P: Packet>(packet: &P, outer: &Headers) -> Option<Self> {
        if outer.source.is_v4() {
            Self::read_v4(packet)
        } else {
            Self::read_v6(packet, outer.transport as usize + 8)
        }
    }

    #[inline(always)]
    fn read_v4<P: Packet>(packet: &P) -> Option<Self> {
        let at = ETHERNET + 20 + 8;
        let ip: [u8; 20] = packet.read(at)?;
        let is_later_fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff != 0;
        if ip[0] != 0x45 || is_later_fragment {
            return None;
        }
        let mut embedded = Self {
            source: Address::v4([ip[12], ip[13], ip[14], ip[15]]),
            destination: Address::v4([ip[16], ip[17], ip[18], ip[19]]),
            source_port: 0,
            destination_port: 0,
            protocol: ip[9],
        };
        embedded.read_ports(packet, at + 20)?;
        Some(embedded)
    }

    #[inline(always)]
    fn read_v6<P: Packet>(packet: &P, at: usize) -> Option<Self> {
        let [version, _, _, _, _, _, next, _]: [u8; 8] = packet.read(at)?;
        if version >> 4 != 6 {
            return None;
        }
        let mut embedded = Self {
            source: Address(packet.read(at + 8)?),
            destination: Address(packet.read(at + 24)?),
            source_port: 0,
            destination_port: 0,
            protocol: next,
        };
        embedded.read_ports(packet, at + 40)?;
        Some(embedded)
    }

    #[inline(always)]
    fn read_ports<P: Packet>(&mut self, packet: &P, at: usize) -> Option<()> {
        match self.protocol {
            protocol::TCP | protocol::UDP | protocol::SCTP => {
                let [a, b, c, d]: [u8; 4] = packet.read(at)?;
                self.source_port = u16::from_be_bytes([a, b]);
                self.destination_port = u16::from_be_bytes([c, d]);
            }
            protocol::ICMP | protocol::ICMPV6 => {
                let [kind, _, _, _, a, b, _, _]: [u8; 8] = packet.read(at)?;
                let identifier = u16::from_be_bytes([a, b]);
                match kind {
                    8 | 128 => self.source_port = identifier,
                    0 | 129 => self.destination_port = identifier,
                    _ => return None,
                }
            }
            _ => {}
        }
        Some(())
    }
}
