//! The queries under way to one resolver over UDP, on the sockets of one worker.

use std::io;

use namegate_policy::time::Timestamp;

use crate::exchange::Ask;
use crate::resolve::exchanges::{Asked, Done, Exchanges, Reach};
use crate::resolve::ports::PortId;
use crate::resolve::sockets::{Batch, Sockets};

/// Times that queued queries move from a broken socket to the next in one turn.
const MOVES: usize = 4;

/// Queries and the sockets that carry them.
pub(crate) struct UdpUpstream {
    exchanges: Exchanges,
    sockets: Sockets,
    batch: Batch,
    broken: Vec<(PortId, io::Error)>,
}

impl UdpUpstream {
    pub(crate) fn new(exchanges: Exchanges, sockets: Sockets) -> Self {
        Self { exchanges, sockets, batch: Batch::new(), broken: Vec::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.exchanges.is_empty()
    }

    /// Queues the query of `ask`, or lets it join an equal one. What is queued leaves with
    /// [`Self::turn`].
    pub(crate) fn ask(&mut self, ask: Box<Ask>, reach: Reach, now: Timestamp) -> Asked {
        self.exchanges.ask(&mut self.sockets, ask, reach, now)
    }

    /// Gives up all queries; returns who asked them.
    pub(crate) fn end(&mut self) -> Vec<Ask> {
        self.exchanges.end()
    }

    /// Reads what has arrived on `port`, which is readable or broken, into `done`, and says how many
    /// messages that were.
    pub(crate) fn receive(&mut self, port: PortId, now: Timestamp, done: &mut Vec<Done>) -> usize {
        let mut messages = 0;
        loop {
            if let Err(error) = self.sockets.receive(port, &mut self.batch) {
                tracing::debug!(%error, "resolver unreachable");
                self.exchanges.broken(&mut self.sockets, port, now, done);
                return messages;
            }
            messages += self.batch.count();
            for message in self.batch.messages() {
                self.exchanges.received(&mut self.sockets, port, message, now, done);
            }
            if !self.batch.is_full() || !self.sockets.is_open(port) {
                return messages;
            }
        }
    }

    /// Ends or repeats what has waited long enough, and sends what is queued.
    pub(crate) fn turn(&mut self, now: Timestamp, done: &mut Vec<Done>) {
        self.exchanges.expire(&mut self.sockets, now, done);
        for _ in 0..MOVES {
            self.sockets.flush(&mut self.broken);
            if self.broken.is_empty() {
                return;
            }
            for (port, error) in self.broken.drain(..) {
                tracing::debug!(%error, "query not sent");
                self.exchanges.broken(&mut self.sockets, port, now, done);
            }
        }
    }

    /// When [`Self::turn`] has to be called, should nothing arrive before.
    pub(crate) fn next_deadline(&mut self) -> Option<Timestamp> {
        self.exchanges.next_deadline()
    }
}
