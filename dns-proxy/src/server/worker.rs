//! A thread that serves UDP, and how it is told what to serve.
//!
//! The thread has one epoll instance and no runtime: everything that is ready is received by the
//! batch, worked through, learned by the batch and sent by the batch, and costs no task, no wake-up
//! and no socket of its own.

use std::io;
use std::net::UdpSocket;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tokio::runtime::Handle;

use super::Slot;
use super::join::Join;
use super::pace::Pace;
use super::turn::{Lines, Party};
use crate::clock;
use crate::config::StartError;
use crate::exchange::Core;
use crate::poller::{Events, Poller, Ready, Waker};
use crate::resolve::under_way::UnderWay;

/// Queries of other workers that wait for one at most; what is more is asked where it came in.
const JOINS_MAX: usize = 1_024;

/// A running thread; it ends when this is dropped.
pub(super) struct Worker {
    desk: Desk,
    thread: Option<JoinHandle<()>>,
}

/// Where a worker takes its orders, from any thread.
#[derive(Clone)]
pub(super) struct Desk {
    waker: Waker,
    orders: Arc<Mutex<Orders>>,
}

#[derive(Default)]
struct Orders {
    waiting: Vec<Order>,
    /// Nobody takes any more.
    is_closed: bool,
}

/// What a worker can be told.
pub(super) enum Order {
    /// Serves one more address, under a number that is in no use.
    Serve(Box<Service>),
    /// Receives no more on this line, and forgets it when its queries have ended.
    Stop(u16),
    /// Answers a query with an equal one of its own.
    Join(Box<Join>),
    /// Ends at once.
    End,
}

/// An address to serve.
pub(super) struct Service {
    pub(super) line: u16,
    pub(super) listener: UdpSocket,
    pub(super) under_way: Arc<UnderWay>,
    pub(super) slot: Slot,
}

impl Worker {
    /// Starts so many threads that know of each other; what has to be awaited becomes a task of
    /// `tasks`.
    pub(super) fn start(
        count: NonZeroUsize,
        core: &Arc<Core>,
        tasks: &Handle,
    ) -> Result<Arc<[Self]>, StartError> {
        Self::spawn(count, core, tasks).map_err(|source| StartError::Worker { source })
    }

    fn spawn(count: NonZeroUsize, core: &Arc<Core>, tasks: &Handle) -> io::Result<Arc<[Self]>> {
        let pollers: Vec<Poller> =
            (0..count.get()).map(|_| Poller::new()).collect::<Result<_, _>>()?;
        let desks: Arc<[Desk]> = pollers.iter().map(Desk::new).collect::<Result<_, _>>()?;
        let spawn = |(number, poller): (usize, Poller)| {
            let desk = desks.get(number).ok_or(io::ErrorKind::NotFound)?.clone();
            let work = Work { poller: poller.clone(), desk: desk.clone() };
            let party = Party { number, desks: Arc::clone(&desks) };
            let (core, tasks) = (Arc::clone(core), tasks.clone());
            let thread = std::thread::Builder::new()
                .name(format!("dns-udp-{number}"))
                .spawn(move || work.run(Lines::new(core, poller, tasks, party)))?;
            Ok(Self { desk, thread: Some(thread) })
        };
        pollers.into_iter().enumerate().map(spawn).collect()
    }

    /// Hands the thread an order, which it takes before anything else.
    pub(super) fn order(&self, order: Order) {
        self.desk.order(order);
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

impl Desk {
    fn new(poller: &Poller) -> io::Result<Self> {
        Ok(Self { waker: poller.waker()?, orders: Arc::default() })
    }

    fn order(&self, order: Order) {
        let mut orders = self.orders();
        if !orders.is_closed {
            orders.waiting.push(order);
        }
        drop(orders);
        self.waker.wake();
    }

    /// Hands the thread a query of another; one that it has no room for comes back.
    pub(super) fn join(&self, join: Box<Join>) -> Result<(), Box<Join>> {
        let mut orders = self.orders();
        if orders.is_closed || orders.waiting.len() >= JOINS_MAX {
            return Err(join);
        }
        orders.waiting.push(Order::Join(join));
        drop(orders);
        self.waker.wake();
        Ok(())
    }

    fn take(&self) -> Vec<Order> {
        self.waker.clear();
        std::mem::take(&mut self.orders().waiting)
    }

    /// Takes no more orders; queries that wait fail.
    fn close(&self) {
        let mut orders = self.orders();
        orders.is_closed = true;
        let waiting = std::mem::take(&mut orders.waiting);
        drop(orders);
        drop(waiting);
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's side.
struct Work {
    poller: Poller,
    desk: Desk,
}

impl Work {
    fn run(self, mut lines: Lines) {
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
        for order in self.desk.take() {
            match order {
                Order::Serve(service) => lines.add(*service),
                Order::Stop(line) => lines.stop(line),
                Order::Join(join) => lines.join(*join, clock::now()),
                Order::End => return false,
            }
        }
        true
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.desk.close();
    }
}
