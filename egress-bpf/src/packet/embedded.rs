use super::{Headers, Packet, protocol};
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
    /// Before anything was read.
    pub const UNREAD: Self = Self {
        source: Address::UNSPECIFIED,
        destination: Address::UNSPECIFIED,
        source_port: 0,
        destination_port: 0,
        protocol: 0,
    };

    /// Reads what the ICMP error in `packet` quotes, and says whether that can be told to be part of
    /// a flow.
    #[inline(always)]
    pub fn read<P: Packet>(&mut self, packet: &P, outer: &Headers) -> bool {
        self.source_port = 0;
        self.destination_port = 0;
        let at = outer.transport as usize + 8;
        if outer.source.is_v4() {
            self.read_v4(packet, at) && self.read_ports(packet, at + 20)
        } else {
            self.read_v6(packet, at) && self.read_ports(packet, at + 40)
        }
    }

    #[inline(always)]
    fn read_v4<P: Packet>(&mut self, packet: &P, at: usize) -> bool {
        let Some([version, _, _, _, _, _, high, low, _, number, _, _]) = packet.read(at) else {
            return false;
        };
        let Some([a, b, c, d, e, f, g, h]) = packet.read(at + 12) else {
            return false;
        };
        self.source = Address::v4([a, b, c, d]);
        self.destination = Address::v4([e, f, g, h]);
        self.protocol = number;
        let is_later_fragment = u16::from_be_bytes([high, low]) & 0x1fff != 0;
        version == 0x45 && !is_later_fragment
    }

    #[inline(always)]
    fn read_v6<P: Packet>(&mut self, packet: &P, at: usize) -> bool {
        let Some([version, _, _, _, _, _, next, _]) = packet.read(at) else {
            return false;
        };
        self.protocol = next;
        let Some(source) = packet.read(at + 8) else {
            return false;
        };
        self.source = Address::new(source);
        let Some(destination) = packet.read(at + 24) else {
            return false;
        };
        self.destination = Address::new(destination);
        version >> 4 == 6
    }

    #[inline(always)]
    fn read_ports<P: Packet>(&mut self, packet: &P, at: usize) -> bool {
        match self.protocol {
            protocol::TCP | protocol::UDP | protocol::SCTP => {
                let Some([a, b, c, d]) = packet.read(at) else {
                    return false;
                };
                self.source_port = u16::from_be_bytes([a, b]);
                self.destination_port = u16::from_be_bytes([c, d]);
            }
            protocol::ICMP | protocol::ICMPV6 => {
                let Some([kind, _, _, _, a, b, _, _]) = packet.read(at) else {
                    return false;
                };
                let identifier = u16::from_be_bytes([a, b]);
                match kind {
                    8 | 128 => self.source_port = identifier,
                    0 | 129 => self.destination_port = identifier,
                    _ => return false,
                }
            }
            _ => {}
        }
        true
    }
}
