//! The UDP sockets towards one resolver's servers, and every system call that they take.
//!
//! Each is connected: the kernel drops what does not come from the server's address and port, and
//! draws the socket's own port at random. What is sent leaves by the batch.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};

use crate::batch::{Inbox, Outbox};
use crate::poller::{Poller, Ready};
use crate::resolve::ports::{PortId, Ports};

/// The longest answer that is read; what is longer is cut and then malformed.
const ANSWER_MAX: usize = 4096;

/// The sockets of one line of a worker.
pub(crate) struct Sockets {
    poller: Poller,
    line: u16,
    open: HashMap<PortId, Upstream>,
    /// Sockets with something to send.
    waiting: Vec<PortId>,
    /// Room of closed sockets, for those to come.
    spare: Vec<Outbox>,
    last: PortId,
}

struct Upstream {
    socket: UdpSocket,
    outbox: Outbox,
}

/// Answers of one socket, read at once.
pub(crate) struct Batch(Inbox<()>);

impl Batch {
    pub(crate) fn new() -> Self {
        Self(Inbox::new(ANSWER_MAX))
    }

    /// What [`Sockets::receive`] read.
    pub(crate) fn messages(&self) -> impl Iterator<Item = &[u8]> {
        self.0.datagrams().map(|(message, _)| message)
    }

    /// How many they are.
    pub(crate) fn count(&self) -> usize {
        self.0.count()
    }

    /// Whether the socket may have more.
    pub(crate) fn is_full(&self) -> bool {
        self.0.is_full()
    }
}

impl Sockets {
    /// None yet; `poller` reports each as one of `line`.
    pub(crate) fn new(poller: Poller, line: u16) -> Self {
        Self { poller, line, open: HashMap::new(), waiting: Vec::new(), spare: Vec::new(), last: 0 }
    }

    pub(crate) fn is_open(&self, port: PortId) -> bool {
        self.open.contains_key(&port)
    }

    /// Sends what is queued. What finds no room is lost like a lost packet; sockets with any other
    /// error are added to `broken`.
    pub(crate) fn flush(&mut self, broken: &mut Vec<(PortId, io::Error)>) {
        for port in self.waiting.drain(..) {
            let Some(upstream) = self.open.get_mut(&port) else {
                continue;
            };
            if let Some(error) = upstream.outbox.flush(&upstream.socket).error
                && error.kind() != io::ErrorKind::WouldBlock
            {
                broken.push((port, error));
            }
        }
    }

    /// Replaces what `batch` holds by what has arrived. An error, such as a report that nobody
    /// listens there, means that the socket is of no more use.
    pub(crate) fn receive(&self, port: PortId, batch: &mut Batch) -> io::Result<()> {
        match self.open.get(&port) {
            Some(upstream) => batch.0.receive(&upstream.socket),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Ports for Sockets {
    fn open(&mut self, server: SocketAddr) -> io::Result<PortId> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(server),
            socket2::Type::DGRAM.nonblocking(),
            Some(socket2::Protocol::UDP),
        )?;
        // Connecting an unbound socket draws a port of the ephemeral range at random.
        socket.connect(&server.into())?;
        self.last += 1;
        self.poller.add(&socket, Ready::Upstream(self.line, self.last))?;
        let outbox = self.spare.pop().unwrap_or_default();
        self.open.insert(self.last, Upstream { socket: socket.into(), outbox });
        Ok(self.last)
    }

    /// Queues a copy of `message`; it leaves with [`Self::flush`].
    fn send(&mut self, port: PortId, message: &[u8]) -> io::Result<()> {
        let upstream = self.open.get_mut(&port).ok_or(io::ErrorKind::NotFound)?;
        if upstream.outbox.is_empty() {
            self.waiting.push(port);
        }
        upstream.outbox.push(message, None);
        Ok(())
    }

    /// Closes a socket; what is queued on it is not sent.
    fn close(&mut self, port: PortId) {
        if let Some(Upstream { mut outbox, .. }) = self.open.remove(&port) {
            outbox.clear();
            self.spare.push(outbox);
        }
    }
}
