//! Queries to one resolver over UDP, without a task or a socket for each.
//!
//! A few connected sockets carry all queries: the kernel drops what does not come from the
//! resolver's address and port, and gives each socket a random port. A socket takes queries for
//! [`PORT_LIFE`] or [`PORT_QUERIES`] queries and then only waits for its answers, so that what an
//! attacker has to guess is 16 bits of id and a port of the ephemeral range that lives for a moment.
//! Equal questions share one query; a guess has one id to hit, not many.

use std::collections::{BTreeMap, HashMap, VecDeque};
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

use crate::answer;
use crate::exchange::{Ask, Core};
use crate::record::DnsFailure;
use crate::reply;
use crate::resolve::entropy::Entropy;
use crate::wire::{self, Header};

/// For how long a socket takes queries.
const PORT_LIFE: Duration = Duration::from_millis(250);
/// How many queries a socket takes.
const PORT_QUERIES: u32 = 512;
/// Messages that answer nothing after which a socket is taken to be under attack: more than late
/// answers to repeated queries account for.
const UNMATCHED_MAX: u32 = 8;
/// Messages read from one socket before others get their turn.
const BATCH: usize = 64;

/// The queries under way to one resolver.
pub(crate) struct Exchanges {
    core: Arc<Core>,
    resolver: SocketAddr,
    entropy: Entropy,
    ports: BTreeMap<u64, Port>,
    open: HashMap<u64, Exchange>,
    equal: HashMap<Box<[u8]>, u64>,
    timers: VecDeque<(Timestamp, u64)>,
    timer: Pin<Box<Sleep>>,
    serial: u64,
    waiting: usize,
    buffer: Box<[u8]>,
}

struct Port {
    socket: Arc<UdpSocket>,
    broken: Pin<Box<dyn Future<Output = ()> + Send>>,
    ids: HashMap<u16, u64>,
    taken: u32,
    unmatched: u32,
    opened: Timestamp,
}

struct Exchange {
    asks: Vec<Ask>,
    message: Vec<u8>,
    key: Box<[u8]>,
    sent: Vec<(u64, u16)>,
    is_reachable: bool,
}

/// A query that has come to its end over UDP.
pub(crate) struct Done {
    /// Everyone who asked it.
    pub(crate) asks: Vec<Ask>,
    /// How it ended.
    pub(crate) outcome: Outcome,
}

/// How a query over UDP ended.
pub(crate) enum Outcome {
    /// With an answer.
    Answered(Vec<u8>),
    /// With a truncated answer, or amid forged ones: the same query belongs on TCP.
    NeedsTcp(Vec<u8>),
    /// Without an answer.
    Failed(DnsFailure),
}

impl Exchanges {
    pub(crate) fn new(core: Arc<Core>, resolver: SocketAddr) -> Self {
        Self {
            core,
            resolver,
            entropy: Entropy::new(),
            ports: BTreeMap::new(),
            open: HashMap::new(),
            equal: HashMap::new(),
            timers: VecDeque::new(),
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            serial: 0,
            waiting: 0,
            buffer: vec![0; 4096].into_boxed_slice(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Sends the query of `ask`, or lets it join an equal one; an ask that cannot be served comes
    /// back done.
    pub(crate) fn ask(&mut self, ask: Ask, now: Timestamp) -> Result<(), Done> {
        let counters = &self.core.counters;
        if self.waiting >= self.core.limits.upstream_in_flight as usize {
            counters.upstream_overloaded.increment();
            return Err(failed(vec![ask], DnsFailure::Overloaded));
        }
        let message = reply::upstream_query(&ask.query, self.core.limits.udp_payload);
        let key = ask.key.clone();
        if let Some(exchange) = self.equal.get(&key).and_then(|serial| self.open.get_mut(serial)) {
            counters.upstream_merged.increment();
            exchange.asks.push(ask);
            self.waiting += 1;
            return Ok(());
        }
        self.serial += 1;
        let mut exchange = Exchange {
            asks: vec![ask],
            message,
            key,
            sent: Vec::with_capacity(1),
            is_reachable: true,
        };
        let serial = self.serial;
        if let Err(error) = self.send(serial, &mut exchange, now) {
            return Err(failed(exchange.asks, self.failure(&error)));
        }
        self.waiting += 1;
        self.equal.insert(exchange.key.clone(), serial);
        self.open.insert(serial, exchange);
        Ok(())
    }

    /// Reads what has arrived and what has timed out into `done`, and arranges to be woken.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, now: Timestamp, done: &mut Vec<Done>) {
        let serials: Vec<u64> = self.ports.keys().copied().collect();
        let newest = serials.last().copied().unwrap_or(0);
        for port in serials {
            self.poll_port(cx, port, now, done);
        }
        self.expire(now, done);
        self.retire(now);
        if self.ports.range(newest + 1..).next().is_some() {
            // A repeated query opened a socket that nobody waits on yet.
            cx.waker().wake_by_ref();
        }
        self.arm(cx, now);
    }

    fn poll_port(
        &mut self,
        cx: &mut Context<'_>,
        serial: u64,
        now: Timestamp,
        done: &mut Vec<Done>,
    ) {
        for _ in 0..BATCH {
            let Some(port) = self.ports.get(&serial) else {
                return;
            };
            let mut buffer = ReadBuf::new(&mut self.buffer);
            match port.socket.poll_recv(cx, &mut buffer) {
                Poll::Pending => return self.poll_broken(cx, serial, now, done),
                Poll::Ready(Ok(())) => {
                    let length = buffer.filled().len();
                    self.receive(serial, length, done);
                }
                Poll::Ready(Err(error)) => {
                    tracing::debug!(resolver = %self.resolver, %error, "resolver unreachable");
                    self.abandon(serial, now, done);
                    return;
                }
            }
        }
        cx.waker().wake_by_ref();
    }

    /// Notices an ICMP error: the next attempt may fare better, from another port.
    fn poll_broken(
        &mut self,
        cx: &mut Context<'_>,
        serial: u64,
        now: Timestamp,
        done: &mut Vec<Done>,
    ) {
        let is_broken = self
            .ports
            .get_mut(&serial)
            .is_some_and(|port| port.broken.as_mut().poll(cx).is_ready());
        if is_broken {
            self.abandon(serial, now, done);
        }
    }

    /// Matches one message from the resolver's address with an open query.
    fn receive(&mut self, port: u64, length: usize, done: &mut Vec<Done>) {
        let Some(message) = self.buffer.get(..length) else {
            return;
        };
        let matched = Header::read(message)
            .and_then(|header| {
                let serial = self.ports.get(&port)?.ids.get(&header.id)?;
                Some((*serial, header))
            })
            .filter(|(serial, _)| {
                self.open.get(serial).is_some_and(|exchange| {
                    exchange.asks.first().is_some_and(|ask| {
                        answer::is_response_to_question(message, ask.query.question())
                    })
                })
            });
        let Some((serial, header)) = matched else {
            return self.suspect(port, done);
        };
        let answer = message.to_vec();
        let Some(exchange) = self.close(serial) else {
            return;
        };
        let outcome = if header.flags & wire::TC != 0 {
            self.core.counters.upstream_truncated.increment();
            Outcome::NeedsTcp(exchange.message)
        } else {
            Outcome::Answered(answer)
        };
        done.push(Done { asks: exchange.asks, outcome });
    }

    /// Counts a message that answers no open query, and moves what waits on the socket to TCP before
    /// a forger can try many guesses.
    fn suspect(&mut self, serial: u64, done: &mut Vec<Done>) {
        self.core.counters.upstream_unmatched.increment();
        let Some(port) = self.ports.get_mut(&serial) else {
            return;
        };
        port.unmatched += 1;
        if port.unmatched < UNMATCHED_MAX {
            return;
        }
        let Some(port) = self.ports.remove(&serial) else {
            return;
        };
        tracing::warn!(resolver = %self.resolver, "answers to no query: asking over TCP");
        for serial in port.ids.into_values() {
            if let Some(exchange) = self.close(serial) {
                self.core.counters.upstream_suspected.increment();
                let outcome = Outcome::NeedsTcp(exchange.message);
                done.push(Done { asks: exchange.asks, outcome });
            }
        }
    }

    /// Asks everything that waits on a broken socket again, from another one.
    fn abandon(&mut self, port: u64, now: Timestamp, done: &mut Vec<Done>) {
        let Some(port) = self.ports.remove(&port) else {
            return;
        };
        for serial in port.ids.into_values() {
            if let Some(exchange) = self.open.get_mut(&serial) {
                exchange.is_reachable = false;
                self.again(serial, now, done);
            }
        }
    }

    fn expire(&mut self, now: Timestamp, done: &mut Vec<Done>) {
        while let Some(&(deadline, serial)) = self.timers.front() {
            if deadline > now {
                break;
            }
            self.timers.pop_front();
            self.again(serial, now, done);
        }
    }

    /// Sends an open query once more, or gives it up after its last attempt.
    fn again(&mut self, serial: u64, now: Timestamp, done: &mut Vec<Done>) {
        let Some(mut exchange) = self.open.remove(&serial) else {
            return;
        };
        let attempts = u32::try_from(exchange.sent.len()).unwrap_or(u32::MAX);
        let failure = if attempts < self.core.timeouts.attempts {
            self.core.counters.upstream_retries.increment();
            match self.send(serial, &mut exchange, now) {
                Ok(()) => {
                    self.open.insert(serial, exchange);
                    return;
                }
                Err(error) => self.failure(&error),
            }
        } else if exchange.is_reachable {
            self.core.counters.upstream_timeouts.increment();
            DnsFailure::UpstreamTimeout
        } else {
            self.core.counters.upstream_unreachable.increment();
            DnsFailure::UpstreamUnreachable
        };
        self.open.insert(serial, exchange);
        if let Some(exchange) = self.close(serial) {
            done.push(failed(exchange.asks, failure));
        }
    }

    fn failure(&self, error: &io::Error) -> DnsFailure {
        tracing::debug!(resolver = %self.resolver, %error, "query not sent");
        let is_unreachable = matches!(
            error.kind(),
            io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::ConnectionRefused
                | io::ErrorKind::AddrNotAvailable
        );
        if is_unreachable {
            self.core.counters.upstream_unreachable.increment();
            DnsFailure::UpstreamUnreachable
        } else {
            DnsFailure::Internal
        }
    }

    /// Forgets a query and every id that it was sent under.
    fn close(&mut self, serial: u64) -> Option<Exchange> {
        let exchange = self.open.remove(&serial)?;
        self.equal.remove(&exchange.key);
        self.waiting = self.waiting.saturating_sub(exchange.asks.len());
        for (port, id) in &exchange.sent {
            if let Some(port) = self.ports.get_mut(port) {
                port.ids.remove(id);
            }
        }
        Some(exchange)
    }

    fn send(&mut self, serial: u64, exchange: &mut Exchange, now: Timestamp) -> io::Result<()> {
        let number = self.port(now)?;
        let Some(port) = self.ports.get_mut(&number) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let id = loop {
            let id = self.entropy.id().map_err(io::Error::other)?;
            if !port.ids.contains_key(&id) {
                break id;
            }
        };
        reply::set_id(&mut exchange.message, id);
        // Past tokio: a socket it has just taken in counts as not writable yet.
        let socket = SockRef::from(&port.socket);
        match socket.send(&exchange.message) {
            Ok(_) => {}
            // Lost like a lost packet: the next attempt follows.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // An earlier packet's error; this one was not sent, so it goes out once more.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                socket.send(&exchange.message)?;
            }
            Err(error) => return Err(error),
        }
        self.core.counters.upstream_udp.increment();
        port.ids.insert(id, serial);
        port.taken += 1;
        exchange.sent.push((number, id));
        let deadline = now.saturating_add(self.core.timeouts.attempt);
        self.timers.push_back((deadline, serial));
        Ok(())
    }

    /// The socket that takes queries, a fresh one where the last has had its share.
    fn port(&mut self, now: Timestamp) -> io::Result<u64> {
        if let Some((number, port)) = self.ports.last_key_value()
            && port.taken < PORT_QUERIES
            && now.since(port.opened) < PORT_LIFE
        {
            return Ok(*number);
        }
        let socket = Arc::new(connect(self.resolver)?);
        let port = Port {
            broken: Box::pin(broken(Arc::clone(&socket))),
            socket,
            ids: HashMap::new(),
            taken: 0,
            unmatched: 0,
            opened: now,
        };
        self.serial += 1;
        self.ports.insert(self.serial, port);
        Ok(self.serial)
    }

    /// Closes sockets that take no more queries and wait for no answer.
    fn retire(&mut self, now: Timestamp) {
        self.ports.retain(|_, port| {
            let takes_queries = port.taken < PORT_QUERIES && now.since(port.opened) < PORT_LIFE;
            takes_queries || !port.ids.is_empty()
        });
    }

    /// Sets the timer to the next deadline, that of a query or of an idle socket.
    fn arm(&mut self, cx: &mut Context<'_>, now: Timestamp) {
        while let Some((_, serial)) = self.timers.front()
            && !self.open.contains_key(serial)
        {
            self.timers.pop_front();
        }
        let query = self.timers.front().map(|(deadline, _)| *deadline);
        let idle = self
            .ports
            .values()
            .next_back()
            .map(|port| port.opened.saturating_add(PORT_LIFE))
            .filter(|_| query.is_none());
        let Some(deadline) = query.or(idle) else {
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

fn failed(asks: Vec<Ask>, failure: DnsFailure) -> Done {
    Done { asks, outcome: Outcome::Failed(failure) }
}

/// Ends when the kernel reports an error on `socket`, which makes it neither readable nor writable.
async fn broken(socket: Arc<UdpSocket>) {
    if let Err(error) = socket.ready(Interest::ERROR).await {
        tracing::debug!(%error, "waiting for a socket failed");
    }
}

fn connect(resolver: SocketAddr) -> io::Result<UdpSocket> {
    // Connecting an unbound socket draws a port of the ephemeral range at random.
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(resolver),
        socket2::Type::DGRAM,
        Some(socket2::Protocol::UDP),
    )?;
    socket.set_nonblocking(true)?;
    socket.connect(&resolver.into())?;
    UdpSocket::from_std(socket.into())
}
