//! Header parsing: from a frame to the few fields that verdicts are made of.
//!
//! Whatever the parser does not understand is an error with its own [`DropReason`]; it never
//! guesses. It reads through the [`Packet`] trait, so that the same code walks socket buffers in the
//! kernel and byte slices in tests.

mod embedded;
mod headers;
mod ip;
mod transport;

pub use embedded::Embedded;
pub(crate) use headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
pub use headers::{Headers, Kind, Piece};
pub use transport::{
    SCTP_ABORT, SCTP_INIT, SCTP_SHUTDOWN_COMPLETE, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN,
};

#[cfg(doc)]
use crate::abi::DropReason;

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;

/// IP protocol numbers that the parser tells apart.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// A frame that can be read.
pub trait Packet {
    /// Octets of the frame, Ethernet header included.
    fn length(&self) -> u32;

    /// Whether the frame carried a VLAN tag that was taken off before it got here.
    fn has_vlan_tag(&self) -> bool;

    /// The `N` octets from `offset` on; `None` where the frame ends before.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// The `N` words of four octets from `offset` on, as they lie in memory, where they can be had
    /// without a copy: `None` says nothing about the frame's length. A header's fields lie on
    /// multiples of their size, counted from where the IP header starts.
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]>;

    /// The same for words of two octets.
    fn halfwords<const N: usize>(&self, offset: usize) -> Option<[u16; N]>;
}

/// A frame in memory.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a>(pub &'a [u8]);

impl Packet for Frame<'_> {
    fn length(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    fn has_vlan_tag(&self) -> bool {
        false
    }

    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk().copied()
    }

    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let octets = self.0.get(offset..offset + 4 * N)?;
        let mut words = [0; N];
        for (word, octets) in words.iter_mut().zip(octets.chunks_exact(4)) {
            *word = u32::from_ne_bytes(*octets.first_chunk()?);
        }
        Some(words)
    }

    fn halfwords<const N: usize>(&self, offset: usize) -> Option<[u16; N]> {
        let octets = self.0.get(offset..offset + 2 * N)?;
        let mut words = [0; N];
        for (word, octets) in words.iter_mut().zip(octets.chunks_exact(2)) {
            *word = u16::from_ne_bytes(*octets.first_chunk()?);
        }
        Some(words)
    }
}
