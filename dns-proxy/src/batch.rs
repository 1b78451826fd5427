//! Datagrams by the batch: one system call for as many as there are.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrLike, SockaddrStorage, recvmmsg};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};

/// Datagrams that one system call carries.
pub(crate) const BATCH: usize = 64;

/// Room for received datagrams, used again and again. `S` is what is kept of who sent them:
/// [`SockaddrStorage`], or `()` on connected sockets.
///
/// An inbox is for sockets of one address family: there is room for a sender as long as the last one
/// in the same place, and an IPv6 address behind an IPv4 one would be cut.
pub(crate) struct Inbox<S> {
    headers: MultiHeaders<S>,
    octets: Box<[u8]>,
    size: usize,
    received: Vec<(usize, Option<SocketAddr>)>,
}

/// What an [`Inbox`] keeps of a sender.
pub(crate) trait Sender: SockaddrLike + Copy {
    /// The sender's address and port, where they are kept.
    fn address(&self) -> Option<SocketAddr>;
}

impl Sender for () {
    fn address(&self) -> Option<SocketAddr> {
        None
    }
}

impl Sender for SockaddrStorage {
    fn address(&self) -> Option<SocketAddr> {
        let v4 = self.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
        v4.or_else(|| self.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
    }
}

impl<S: Sender> Inbox<S> {
    /// Room for [`BATCH`] datagrams of `size` octets; longer ones are cut.
    pub(crate) fn new(size: usize) -> Self {
        Self {
            headers: MultiHeaders::preallocate(BATCH, None),
            octets: vec![0; BATCH * size].into_boxed_slice(),
            size,
            received: Vec::with_capacity(BATCH),
        }
    }

    /// Replaces what is held by what `socket` has. An error means that nothing was received;
    /// nothing to receive is none.
    pub(crate) fn receive(&mut self, socket: impl AsFd) -> io::Result<()> {
        self.received.clear();
        let mut places = self.octets.chunks_exact_mut(self.size);
        let mut slices: [[IoSliceMut<'_>; 1]; BATCH] =
            std::array::from_fn(|_| [IoSliceMut::new(places.next().unwrap_or_default())]);
        let fd = socket.as_fd().as_raw_fd();
        let flags = MsgFlags::MSG_DONTWAIT;
        match recvmmsg(fd, &mut self.headers, slices.iter_mut(), flags, None) {
            Ok(messages) => {
                self.received.extend(messages.map(|message| {
                    (message.bytes, message.address.and_then(|address| address.address()))
                }));
                Ok(())
            }
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// How many were received.
    pub(crate) fn count(&self) -> usize {
        self.received.len()
    }

    /// Whether there may be more to receive.
    pub(crate) fn is_full(&self) -> bool {
        self.received.len() == BATCH
    }

    /// What was received, each with who sent it.
    pub(crate) fn datagrams(&self) -> impl Iterator<Item = (&[u8], Option<SocketAddr>)> {
        let places = self.octets.chunks_exact(self.size);
        self.received
            .iter()
            .zip(places)
            .map(|((length, from), place)| (place.get(..*length).unwrap_or(place), *from))
    }
}

/// Datagrams that wait to be sent, in one buffer that is used again and again.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    octets: Vec<u8>,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    end: usize,
    to: Option<SocketAddrAny>,
}

/// How sending went.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// Datagrams that were lost.
    pub(crate) lost: usize,
    /// Why, for the last of them.
    pub(crate) error: Option<io::Error>,
}

impl Outbox {
    /// Queues a copy of `message`, to `to` or to whom the socket is connected.
    pub(crate) fn push(&mut self, message: &[u8], to: Option<SocketAddr>) {
        self.octets.extend_from_slice(message);
        self.waiting.push(Waiting { end: self.octets.len(), to: to.map(SocketAddrAny::from) });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Forgets what waits.
    pub(crate) fn clear(&mut self) {
        self.octets.clear();
        self.waiting.clear();
    }

    /// Sends all that waits. A datagram that cannot be sent is lost and keeps none back.
    pub(crate) fn flush(&mut self, socket: impl AsFd) -> Sent {
        let mut sent = Sent::default();
        let mut done = 0;
        while let Some(rest) = self.waiting.get(done..).filter(|rest| !rest.is_empty()) {
            let start = done.checked_sub(1).and_then(|last| self.waiting.get(last));
            let start = start.map_or(0, |last| last.end);
            match send(&socket, &self.octets, start, rest) {
                Ok(count) => done += count.max(1),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    sent.lost += 1;
                    sent.error = Some(error.into());
                    done += 1;
                }
            }
        }
        self.clear();
        sent
    }
}

/// Sends up to [`BATCH`] datagrams of `waiting`, the first of which starts at `start`.
fn send(
    socket: impl AsFd,
    octets: &[u8],
    start: usize,
    waiting: &[Waiting],
) -> rustix::io::Result<usize> {
    let batch = waiting.get(..BATCH).unwrap_or(waiting);
    let mut at = start;
    let mut places = batch.iter().map(|waiting| {
        let place = octets.get(at..waiting.end).unwrap_or_default();
        at = waiting.end;
        place
    });
    let slices: [[IoSlice<'_>; 1]; BATCH] =
        std::array::from_fn(|_| [IoSlice::new(places.next().unwrap_or_default())]);
    let mut controls: [SendAncillaryBuffer<'_, '_, '_>; BATCH] =
        std::array::from_fn(|_| SendAncillaryBuffer::default());
    let mut rest = batch.iter().zip(&slices).zip(&mut controls);
    let mut header = || {
        let ((waiting, slice), control) = rest.next()?;
        Some(match &waiting.to {
            Some(to) => MMsgHdr::new_with_addr(to, slice, control),
            None => MMsgHdr::new(slice, control),
        })
    };
    let mut headers: Vec<MMsgHdr<'_>> = Vec::with_capacity(batch.len());
    while let Some(header) = header() {
        headers.push(header);
    }
    sendmmsg(socket, &mut headers, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};

    use super::*;

    fn socket() -> UdpSocket {
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
    }

    #[test]
    fn datagrams_arrive_in_order_with_their_sender() {
        let (here, there) = (socket(), socket());
        let to = there.local_addr().unwrap();
        let mut outbox = Outbox::default();
        for number in 0..=u8::try_from(BATCH).unwrap() {
            outbox.push(&[number; 3], Some(to));
        }
        let sent = outbox.flush(&here);
        assert!(outbox.is_empty() && sent.lost == 0 && sent.error.is_none());

        let mut inbox: Inbox<SockaddrStorage> = Inbox::new(16);
        inbox.receive(&there).unwrap();
        assert!(inbox.is_full());
        for (number, (message, from)) in inbox.datagrams().enumerate() {
            assert_eq!(message, [u8::try_from(number).unwrap(); 3]);
            assert_eq!(from, Some(here.local_addr().unwrap()));
        }
        inbox.receive(&there).unwrap();
        assert_eq!(inbox.datagrams().count(), 1);
        inbox.receive(&there).unwrap();
        assert_eq!(inbox.datagrams().count(), 0);
    }

    #[test]
    fn datagram_that_cannot_be_sent_keeps_none_back() {
        let (here, there) = (socket(), socket());
        let to = there.local_addr().unwrap();
        let mut outbox = Outbox::default();
        outbox.push(b"first", Some(to));
        outbox.push(&[0; 66_000], Some(to));
        outbox.push(b"last", Some(to));
        let sent = outbox.flush(&here);
        assert_eq!(sent.lost, 1);
        assert!(sent.error.is_some());
        let mut inbox: Inbox<SockaddrStorage> = Inbox::new(16);
        inbox.receive(&there).unwrap();
        let messages: Vec<&[u8]> = inbox.datagrams().map(|(message, _)| message).collect();
        assert_eq!(messages, [&b"first"[..], b"last"]);
    }

    #[test]
    fn connected_socket_reports_its_errors() {
        let (here, there) = (socket(), socket());
        here.connect(there.local_addr().unwrap()).unwrap();
        drop(there);
        let mut outbox = Outbox::default();
        outbox.push(b"nobody hears", None);
        outbox.flush(&here);
        let mut inbox: Inbox<()> = Inbox::new(16);
        let error = inbox.receive(&here).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
