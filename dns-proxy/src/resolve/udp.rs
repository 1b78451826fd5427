//! The sockets of [`Exchanges`], without a task for each.
//!
//! Each is connected: the kernel drops what does not come from the server's address and port, and
//! draws the socket's own port at random.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use namegate_policy::time::Timestamp;
use socket2::SockRef;
use tokio::io::{Interest, ReadBuf};
use tokio::net::UdpSocket;
use tokio::time::{Instant, Sleep};

use crate::exchange::{Ask, Core};
use crate::resolve::exchanges::{Done, Exchanges};
use crate::resolve::ports::{PortId, Ports};
use crate::resolve::servers::Servers;

/// Messages read from one socket before others get their turn.
const BATCH: usize = 64;

/// The queries under way to one resolver over UDP, and their sockets.
pub(crate) struct UdpUpstream {
    exchanges: Exchanges,
    sockets: Sockets,
    timer: Pin<Box<Sleep>>,
    buffer: Box<[u8]>,
}

#[derive(Default)]
struct Sockets {
    open: BTreeMap<PortId, Socket>,
    last: PortId,
}

struct Socket {
    socket: Arc<UdpSocket>,
    broken: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl UdpUpstream {
    pub(crate) fn new(core: Arc<Core>, servers: Arc<Servers>) -> Self {
        Self {
            exchanges: Exchanges::new(core, servers),
            sockets: Sockets::default(),
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            buffer: vec![0; 4096].into_boxed_slice(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.exchanges.is_empty()
    }

    /// Sends the query of `ask`, or lets it join an equal one; an ask that cannot be served comes
    /// back done.
    pub(crate) fn ask(&mut self, ask: Ask, now: Timestamp) -> Result<(), Done> {
        self.exchanges.ask(&mut self.sockets, ask, now)
    }

    /// Reads what has arrived and what has timed out into `done`, and arranges to be woken.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, now: Timestamp, done: &mut Vec<Done>) {
        let newest = self.sockets.last;
        let all: Vec<PortId> = self.sockets.open.keys().copied().collect();
        for port in all {
            self.poll_port(cx, port, now, done);
        }
        self.exchanges.expire(&mut self.sockets, now, done);
        if self.sockets.last > newest {
            // A repeated query opened a socket that nobody waits on yet.
            cx.waker().wake_by_ref();
        }
        self.arm(cx, now);
    }

    fn poll_port(
        &mut self,
        cx: &mut Context<'_>,
        port: PortId,
        now: Timestamp,
        done: &mut Vec<Done>,
    ) {
        for _ in 0..BATCH {
            let Some(socket) = self.sockets.open.get_mut(&port) else {
                return;
            };
            let mut buffer = ReadBuf::new(&mut self.buffer);
            match socket.poll_receive(cx, &mut buffer) {
                Poll::Pending => return,
                Poll::Ready(Ok(())) => {
                    let message = buffer.filled();
                    self.exchanges.received(&mut self.sockets, port, message, now, done);
                }
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "resolver unreachable");
                    return self.exchanges.broken(&mut self.sockets, port, now, done);
                }
            }
        }
        cx.waker().wake_by_ref();
    }

    /// Sets the timer to the next deadline.
    fn arm(&mut self, cx: &mut Context<'_>, now: Timestamp) {
        let Some(deadline) = self.exchanges.next_deadline() else {
            return;
        };
        let at = Instant::now() + deadline.since(now) + Duration::from_millis(1);
        if self.timer.deadline() < Instant::now() || self.timer.deadline() > at {
            self.timer.as_mut().reset(at);
        }
        if self.timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }
}

impl Ports for Sockets {
    fn open(&mut self, server: SocketAddr) -> io::Result<PortId> {
        let socket = Arc::new(connect(server)?);
        let broken = Box::pin(broken(Arc::clone(&socket)));
        self.last += 1;
        self.open.insert(self.last, Socket { socket, broken });
        Ok(self.last)
    }

    fn send(&mut self, port: PortId, message: &[u8]) -> io::Result<()> {
        let Some(socket) = self.open.get(&port) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        // Past tokio: a socket it has just taken in counts as not writable yet.
        match SockRef::from(&socket.socket).send(message) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn close(&mut self, port: PortId) {
        self.open.remove(&port);
    }
}

impl Socket {
    /// Receives, and notices an ICMP error.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = self.socket.poll_recv(cx, buffer);
        if polled.is_pending() && self.broken.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into()));
        }
        polled
    }
}

/// Ends when the kernel reports an error on `socket`, which makes it neither readable nor writable.
async fn broken(socket: Arc<UdpSocket>) {
    if let Err(error) = socket.ready(Interest::ERROR).await {
        tracing::debug!(%error, "waiting for a socket failed");
    }
}

fn connect(server: SocketAddr) -> io::Result<UdpSocket> {
    // Connecting an unbound socket draws a port of the ephemeral range at random.
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(server),
        socket2::Type::DGRAM,
        Some(socket2::Protocol::UDP),
    )?;
    socket.set_nonblocking(true)?;
    socket.connect(&server.into())?;
    UdpSocket::from_std(socket.into())
}
