//! What a UDP worker waits for: one epoll instance, and the word for what became ready.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};

use crate::resolve::ports::PortId;

/// Events taken from the kernel at once.
const EVENTS: usize = 128;

/// What became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    /// Somebody used a [`Waker`].
    Woken,
    /// The listening socket of this line.
    Listener(u16),
    /// A socket towards the resolver of this line.
    Upstream(u16, PortId),
}

/// An epoll instance; a clone adds to the same one.
#[derive(Clone, Debug)]
pub(crate) struct Poller(Arc<OwnedFd>);

/// Wakes a worker from any thread.
#[derive(Clone, Debug)]
pub(crate) struct Waker(Arc<OwnedFd>);

/// Room for the events of one wait.
pub(crate) struct Events(Vec<Event>);

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(epoll::create(CreateFlags::CLOEXEC)?)))
    }

    /// Reports `source` as `ready` for as long as it is readable or broken. A closed socket leaves by
    /// itself.
    pub(crate) fn add(&self, source: impl AsFd, ready: Ready) -> io::Result<()> {
        Ok(epoll::add(&*self.0, source, EventData::new_u64(ready.encode()), EventFlags::IN)?)
    }

    /// Reports `source` no more.
    pub(crate) fn remove(&self, source: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&*self.0, source)?)
    }

    /// Makes the waker of whoever waits here.
    pub(crate) fn waker(&self) -> io::Result<Waker> {
        let waker = Waker(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?));
        self.add(&*waker.0, Ready::Woken)?;
        Ok(waker)
    }

    /// Waits until something is ready, at most for `limit`. An interruption is an empty wait.
    pub(crate) fn wait(&self, events: &mut Events, limit: Option<Duration>) -> io::Result<()> {
        let limit = limit.and_then(|limit| limit.try_into().ok());
        events.0.clear();
        match epoll::wait(&*self.0, rustix::buffer::spare_capacity(&mut events.0), limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Events {
    pub(crate) fn new() -> Self {
        Self(Vec::with_capacity(EVENTS))
    }

    pub(crate) fn ready(&self) -> impl Iterator<Item = Ready> {
        self.0.iter().map(|event| Ready::decode(event.data.u64()))
    }
}

impl Waker {
    /// Ends the worker's wait, now or the next time it waits.
    pub(crate) fn wake(&self) {
        if let Err(error) = rustix::io::write(&*self.0, &1u64.to_ne_bytes()) {
            // Only a full counter refuses, and one that is not zero wakes already.
            tracing::trace!(%error, "worker is being woken already");
        }
    }

    /// Takes note, so that the next wait waits.
    pub(crate) fn clear(&self) {
        if let Err(error) = rustix::io::read(&*self.0, &mut [0; 8]) {
            tracing::trace!(%error, "nobody woke the worker");
        }
    }
}

impl Ready {
    const WOKEN: u64 = 0;
    const LISTENER: u64 = 1;
    const UPSTREAM: u64 = 2;

    fn encode(self) -> u64 {
        match self {
            Self::Woken => Self::WOKEN,
            Self::Listener(line) => Self::LISTENER | u64::from(line) << 8,
            // No worker opens more than two to the fortieth sockets.
            Self::Upstream(line, port) => Self::UPSTREAM | u64::from(line) << 8 | port << 24,
        }
    }

    fn decode(word: u64) -> Self {
        let [.., high, low, kind] = word.to_be_bytes();
        let line = u16::from_be_bytes([high, low]);
        match u64::from(kind) {
            Self::WOKEN => Self::Woken,
            Self::LISTENER => Self::Listener(line),
            _ => Self::Upstream(line, word >> 24),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_kernel() {
        let readies = [Ready::Woken, Ready::Listener(15), Ready::Upstream(u16::MAX, (1 << 40) - 1)];
        for ready in readies {
            assert_eq!(Ready::decode(ready.encode()), ready);
        }
    }

    #[test]
    fn waking_ends_one_wait() {
        let poller = Poller::new().unwrap();
        let waker = poller.waker().unwrap();
        let mut events = Events::new();
        waker.wake();
        waker.wake();
        poller.wait(&mut events, None).unwrap();
        assert_eq!(events.ready().collect::<Vec<_>>(), [Ready::Woken]);
        waker.clear();
        poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert_eq!(events.ready().count(), 0);
    }
}
