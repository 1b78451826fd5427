//! A query on its way to the worker that asks the same question already.

use std::net::UdpSocket;
use std::sync::Arc;

use super::Slot;
use super::turn::send;
use crate::clock;
use crate::exchange::Ask;

/// A query that is to join one of another worker. It cannot be lost: one that is dropped on the way is
/// answered SERVFAIL.
pub(super) struct Join {
    /// The line that it came over; every worker has one with this number.
    pub(super) line: u16,
    ask: Option<Box<Ask>>,
    listener: Arc<UdpSocket>,
    // Last: who waits for the slot to drain finds the port free.
    slot: Slot,
}

impl Join {
    /// Takes `ask`, which came over `listener`.
    pub(super) fn new(line: u16, ask: Box<Ask>, listener: Arc<UdpSocket>, slot: Slot) -> Self {
        Self { line, ask: Some(ask), listener, slot }
    }

    /// The query, for whoever answers it.
    pub(super) fn take(mut self) -> Option<Box<Ask>> {
        self.ask.take()
    }
}

impl Drop for Join {
    fn drop(&mut self) {
        if let Some(ask) = self.ask.take()
            && let Some(reply) = self.slot.core.abandon(&ask, clock::now())
        {
            send(&self.slot.core, &self.listener, &reply, ask.source);
        }
    }
}
