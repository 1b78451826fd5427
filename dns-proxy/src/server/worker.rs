//! A thread that serves UDP, and how it is told what to serve.
//!
//! The thread has one epoll instance and no runtime: everything that is ready is received by the
//! batch, worked through, learned by the batch and sent by the batch, and costs no task, no wake-up
//! and no socket of its own.

use std::io;
use std::net::UdpSocket;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::runtime::Handle;

use super::Slot;
use super::pace::Pace;
use super::turn::Lines;
use crate::clock;
use crate::config::StartError;
use crate::exchange::Core;
use crate::poller::{Events, Poller, Ready, Waker};

/// A running thread; it ends when this is dropped.
pub(super) struct Worker {
    waker: Waker,
    orders: Arc<Orders>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Orders(Mutex<Vec<Order>>);

/// What a worker can be told.
pub(super) enum Order {
    /// Serves one more address, under a number that is in no use.
    Serve(u16, UdpSocket, Box<Slot>),
    /// Receives no more on this line, and forgets it when its queries have ended.
    Stop(u16),
    /// Ends at once.
    End,
}

impl Worker {
    /// Starts the thread; what has to be awaited becomes a task of `tasks`.
    pub(super) fn start(number: usize, core: Arc<Core>, tasks: Handle) -> Result<Self, StartError> {
        Self::spawn(number, core, tasks).map_err(|source| StartError::Worker { source })
    }

    fn spawn(number: usize, core: Arc<Core>, tasks: Handle) -> io::Result<Self> {
        let poller = Poller::new()?;
        let waker = poller.waker()?;
        let orders = Arc::new(Orders::default());
        let work = Work { poller, waker: waker.clone(), orders: Arc::clone(&orders) };
        let thread = std::thread::Builder::new()
            .name(format!("dns-udp-{number}"))
            .spawn(move || work.run(core, tasks))?;
        Ok(Self { waker, orders, thread: Some(thread) })
    }

    /// Hands the thread an order, which it takes before anything else.
    pub(super) fn order(&self, order: Order) {
        self.orders.0.lock().unwrap_or_else(PoisonError::into_inner).push(order);
        self.waker.wake();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.order(Order::End);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a thread that served UDP had ended by a panic");
        }
    }
}

/// The thread's side.
struct Work {
    poller: Poller,
    waker: Waker,
    orders: Arc<Orders>,
}

impl Work {
    fn run(self, core: Arc<Core>, tasks: Handle) {
        let mut lines = Lines::new(core, self.poller.clone(), tasks);
        let mut events = Events::new();
        let mut pace = Pace::default();
        loop {
            let (limit, began) = (lines.patience(), clock::now());
            if let Err(error) = self.poller.wait(&mut events, limit) {
                tracing::error!(%error, "a thread that serves UDP cannot wait and ends");
                return;
            }
            if events.ready().any(|ready| ready == Ready::Woken) && !self.take_orders(&mut lines) {
                return;
            }
            let now = clock::now();
            let messages = lines.turn(&events, now);
            pace.keep(messages, now.since(began));
        }
    }

    /// Carries out what was ordered; false for the end.
    fn take_orders(&self, lines: &mut Lines) -> bool {
        self.waker.clear();
        let orders =
            std::mem::take(&mut *self.orders.0.lock().unwrap_or_else(PoisonError::into_inner));
        for order in orders {
            match order {
                Order::Serve(line, listener, slot) => lines.add(line, listener, *slot),
                Order::Stop(line) => lines.stop(line),
                Order::End => return false,
            }
        }
        true
    }
}
