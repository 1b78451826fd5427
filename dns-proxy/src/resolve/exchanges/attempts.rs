//! While there is no answer: attempts that end, second servers asked beside the first, ports that
//! break, and queries that are given up.

use std::io;

use namegate_policy::time::Timestamp;

use super::{Done, Exchange, Exchanges, Outcome, Sent};
use crate::record::DnsFailure;
use crate::reply;
use crate::resolve::ports::{PortId, Ports};

impl Exchanges {
    /// Learns that `port` gave an error, such as an ICMP message: what waits on it is asked again,
    /// from another port.
    pub(crate) fn broken(
        &mut self,
        ports: &mut impl Ports,
        port: PortId,
        now: Timestamp,
        done: &mut Vec<Done>,
    ) {
        let Some(known) = self.table.shut(ports, port) else {
            return;
        };
        self.servers.failed(known.server, now);
        for serial in known.open() {
            if let Some(exchange) = self.open.get_mut(&serial) {
                exchange.sent.retain(|sent| sent.port != port);
                exchange.is_reachable = false;
                self.again(ports, serial, now, done);
            }
        }
    }

    /// Does what is due: next attempts, second servers, ends, and old ports closed.
    pub(crate) fn expire(&mut self, ports: &mut impl Ports, now: Timestamp, done: &mut Vec<Done>) {
        while let Some(&(due, serial, attempt)) = self.attempts.front()
            && due <= now
        {
            self.attempts.pop_front();
            let open = self.open.get(&serial);
            if let Some(exchange) = open.filter(|exchange| exchange.attempts == attempt) {
                self.blame(exchange, now);
                self.again(ports, serial, now, done);
            }
        }
        while let Some(&(due, serial)) = self.hedges.first()
            && due <= now
        {
            self.hedges.pop_first();
            self.hedge(ports, serial, now);
        }
        self.table.retire(ports, now);
    }

    /// When [`Exchanges::expire`] has something to do next.
    pub(crate) fn next_deadline(&mut self) -> Option<Timestamp> {
        while let Some(&(_, serial, attempt)) = self.attempts.front()
            && self.open.get(&serial).is_none_or(|exchange| exchange.attempts != attempt)
        {
            self.attempts.pop_front();
        }
        let attempt = self.attempts.front().map(|(due, ..)| *due);
        let hedge = self.hedges.first().map(|(due, _)| *due);
        let aged = self.table.next_retirement();
        attempt.into_iter().chain(hedge).chain(aged).min()
    }

    /// After one server said that it failed: asks one that was not asked yet, or waits for one that
    /// was, or passes the failure on.
    pub(super) fn elsewhere(
        &mut self,
        ports: &mut impl Ports,
        serial: u64,
        port: PortId,
        now: Timestamp,
        done: &mut Vec<Done>,
    ) {
        self.end_ids(ports, serial, Some(port));
        let Some(exchange) = self.open.get_mut(&serial) else {
            return;
        };
        exchange.sent.retain(|sent| sent.port != port);
        let is_awaited = !exchange.sent.is_empty();
        if self.servers.has_untried(exchange.tried) {
            self.core.counters.upstream_failovers.increment();
            self.again(ports, serial, now, done);
        } else if !is_awaited {
            self.give_up(ports, serial, DnsFailure::UpstreamTimeout, done);
        }
    }

    /// Notes against the server that was asked last that it takes long; its answer, even a late one,
    /// makes up for it.
    fn blame(&self, exchange: &Exchange, now: Timestamp) {
        let last = exchange.sent.last().and_then(|sent| self.table.port(sent.port));
        if let Some(port) = last {
            self.servers.failed(port.server, now);
        }
    }

    /// Sends an open query once more, or gives it up after its last attempt.
    fn again(&mut self, ports: &mut impl Ports, serial: u64, now: Timestamp, done: &mut Vec<Done>) {
        let Some(mut exchange) = self.open.remove(&serial) else {
            return;
        };
        let failure = if exchange.attempts < self.core.timeouts.attempts {
            self.core.counters.upstream_retries.increment();
            match self.attempt(ports, serial, &mut exchange, now) {
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
        self.give_up(ports, serial, failure, done);
    }

    fn give_up(
        &mut self,
        ports: &mut impl Ports,
        serial: u64,
        failure: DnsFailure,
        done: &mut Vec<Done>,
    ) {
        if let Some(mut exchange) = self.close(ports, serial) {
            let outcome = match exchange.fallback.take() {
                Some(message) => Outcome::Answered(message),
                None => Outcome::Failed(failure),
            };
            done.push(Done { asks: exchange.asks, outcome });
        }
    }

    pub(super) fn failure(&self, error: &io::Error) -> DnsFailure {
        tracing::debug!(asked = ?self.servers.address(0), %error, "query not sent");
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

    /// Sends `exchange` to the server whose turn it is, or to the next where that one cannot be
    /// sent to, and sets its timers.
    pub(super) fn attempt(
        &mut self,
        ports: &mut impl Ports,
        serial: u64,
        exchange: &mut Exchange,
        now: Timestamp,
    ) -> io::Result<()> {
        exchange.attempts += 1;
        let server = loop {
            let server = self.servers.choose(exchange.tried, now);
            let was_last = !self.servers.has_untried(exchange.tried);
            exchange.tried.note(server);
            match self.send(ports, server, serial, exchange, now) {
                Ok(()) => break server,
                Err(error) => {
                    self.servers.failed(server, now);
                    if was_last || !self.servers.has_untried(exchange.tried) {
                        return Err(error);
                    }
                }
            }
        };
        let attempt = self.core.timeouts.attempt;
        self.attempts.push_back((now.saturating_add(attempt), serial, exchange.attempts));
        if self.servers.has_untried(exchange.tried) {
            let patience = self.servers.patience(server, attempt);
            self.hedges.insert((now.saturating_add(patience), serial));
        }
        Ok(())
    }

    /// Asks a second server beside the one that takes long, where one is up and not too many
    /// queries have been doubled lately.
    fn hedge(&mut self, ports: &mut impl Ports, serial: u64, now: Timestamp) {
        let Some(mut exchange) = self.open.remove(&serial) else {
            return;
        };
        let server = self.servers.up(exchange.tried, now).filter(|_| self.hedge_credit >= 10);
        if let Some(server) = server {
            self.hedge_credit -= 10;
            self.blame(&exchange, now);
            self.core.counters.upstream_hedged.increment();
            exchange.tried.note(server);
            if let Err(error) = self.send(ports, server, serial, &mut exchange, now) {
                tracing::debug!(server = ?self.servers.address(server), %error, "not asked");
                self.servers.failed(server, now);
            }
        }
        self.open.insert(serial, exchange);
    }

    fn send(
        &mut self,
        ports: &mut impl Ports,
        server: usize,
        serial: u64,
        exchange: &mut Exchange,
        now: Timestamp,
    ) -> io::Result<()> {
        let address = self.servers.address(server).ok_or(io::ErrorKind::NotFound)?;
        let draw = self.entropy.id().map_err(io::Error::other)?;
        let number = self.table.pick(ports, (server, address), draw, now)?;
        let Some(port) = self.table.port_mut(number) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let id = loop {
            let id = self.entropy.id().map_err(io::Error::other)?;
            if port.issued(id).is_none() {
                break id;
            }
        };
        reply::set_id(&mut exchange.message, id);
        if let Err(error) = ports.send(number, &exchange.message) {
            // The socket is of no use; what else waits on it hears so when it is polled.
            self.table.forsake(server, number);
            return Err(error);
        }
        self.core.counters.upstream_udp.increment();
        port.issue(id, serial);
        exchange.sent.push(Sent { port: number, id, at: now });
        Ok(())
    }
}
