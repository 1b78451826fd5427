//! Writing frames to an interface as they are.

use anyhow::Result;
use namegate_integration::namespace::Namespace;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SendFlags, SocketType, sendto, socket};

/// Any protocol (`ETH_P_ALL`): that of a frame is what the frame says.
const ANY: u16 = 3;

/// Writes to one interface.
pub(crate) struct Pen {
    socket: OwnedFd,
    interface: Interface,
}

impl Pen {
    pub(crate) fn at(namespace: &Namespace, interface: &str) -> Result<Self> {
        let interface = Interface::numbered(namespace.interface_index(interface)?);
        let packets = || socket(AddressFamily::PACKET, SocketType::RAW, None);
        Ok(Self { socket: namespace.within(packets)??, interface })
    }

    /// Writes a frame. Whoever writes one that a hook drops on its way out is told of a queue without
    /// room, which is no error here.
    pub(crate) fn write(&self, frame: &[u8]) -> Result<()> {
        match sendto(&self.socket, frame, SendFlags::empty(), &self.interface) {
            Ok(_) | Err(Errno::NOBUFS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// An interface as an address (`struct sockaddr_ll`).
struct Interface([u8; 20]);

impl Interface {
    fn numbered(number: u32) -> Self {
        let mut octets = [0; 20];
        octets[..2].copy_from_slice(&AddressFamily::PACKET.as_raw().to_ne_bytes());
        octets[2..4].copy_from_slice(&ANY.to_be_bytes());
        octets[4..8].copy_from_slice(&number.to_ne_bytes());
        Self(octets)
    }
}

// SAFETY: the pointer is to as many octets as the length says, which are a `sockaddr_ll`.
unsafe impl SocketAddrArg for Interface {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        f(self.0.as_ptr().cast(), self.0.len() as SocketAddrLen)
    }
}
