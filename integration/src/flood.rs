//! Datagrams without end, and a sink that counts those that get through.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::addresses::{CHECKOUT, EVIL};
use crate::namespace::Namespace;
use crate::patience::wait_until;
use crate::town::Town;

/// How often a flood sends what is due.
const BEAT: Duration = Duration::from_millis(1);

/// A port that no policy opens.
const DENIED: u16 = 9_999;
const SOON: Duration = Duration::from_secs(10);

/// A sender of datagrams, which goes on until this value goes.
#[derive(Debug)]
pub struct Flood {
    is_over: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    sender: Option<JoinHandle<()>>,
}

impl Flood {
    /// Sends about `per_second` datagrams a second to `to`, from inside `namespace`.
    pub fn start(namespace: &Namespace, to: SocketAddr, per_second: u32) -> Result<Self> {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = namespace.within(|| UdpSocket::bind(any))?.context("a socket to send from")?;
        let is_over = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stop, count) = (Arc::clone(&is_over), Arc::clone(&sent));
        let sender = thread::spawn(move || {
            let began = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                let due = (began.elapsed().as_secs_f64() * f64::from(per_second)) as u64;
                while count.load(Ordering::Relaxed) < due {
                    // A full queue refuses some: those are not counted, and others follow.
                    if socket.send_to(b"flood", to).is_err() {
                        break;
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                }
                thread::park_timeout(BEAT);
            }
        });
        Ok(Self { is_over, sent, sender: Some(sender) })
    }

    /// How many were sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(sender) = self.sender.take() {
            // It can only end; what it sent is counted.
            let _ended = sender.join();
        }
    }
}

/// A receiver that counts the datagrams that arrive.
#[derive(Debug)]
pub struct Sink {
    socket: UdpSocket,
    received: u64,
}

impl Sink {
    /// Listens at `at` inside `namespace`.
    pub fn open(namespace: &Namespace, at: SocketAddr) -> Result<Self> {
        let socket = namespace.within(|| UdpSocket::bind(at))?.context("a socket for the sink")?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, received: 0 })
    }

    /// How many arrived so far.
    pub fn received(&mut self) -> Result<u64> {
        let mut datagram = [0; 64];
        loop {
            match self.socket.recv(&mut datagram) {
                Ok(_) => self.received += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(self.received),
                Err(error) => return Err(error).context("the sink"),
            }
        }
    }
}

/// Datagrams without end that policy denies to or from the town's checkout, and where they would arrive.
#[derive(Debug)]
pub struct Denied {
    flood: Flood,
    sink: Sink,
    way: &'static str,
    /// How many had arrived when they were first denied.
    before: u64,
}

impl Denied {
    /// What the checkout must not send, and what nobody may send to it; both arrive as long as no agent
    /// runs.
    pub fn both_ways(town: &Town, per_second: u32) -> Result<[Self; 2]> {
        let (pod, far) = (&town.checkout.namespace, &town.internet);
        let start = |way, from, at, to| -> Result<Self> {
            let sink = Sink::open(at, to)?;
            let flood = Flood::start(from, to, per_second)?;
            let mut denied = Self { flood, sink, way, before: 0 };
            wait_until(way, SOON, || Ok(denied.sink.received()? > 0))?;
            Ok(denied)
        };
        Ok([
            start("datagrams from the pod", pod, far, (EVIL.v4, DENIED).into())?,
            start("datagrams to the pod", far, pod, (CHECKOUT.v4, DENIED).into())?,
        ])
    }

    /// Begins to count those that get through, once an agent enforces.
    pub fn watch(&mut self) -> Result<()> {
        self.before = self.sink.received()?;
        self.expect_closed("from the first agent on")
    }

    /// Sees many sent, and that none got through since [`Self::watch`].
    pub fn expect_closed(&mut self, when: &str) -> Result<()> {
        let sent = self.flood.sent();
        wait_until(self.way, SOON, || Ok(self.flood.sent() > sent + 100))?;
        let leaked = self.sink.received()? - self.before;
        anyhow::ensure!(leaked == 0, "{when}: {leaked} {} got through", self.way);
        Ok(())
    }

    /// How many were sent so far.
    pub fn sent(&self) -> u64 {
        self.flood.sent()
    }
}
