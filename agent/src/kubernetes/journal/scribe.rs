//! A journal that is written on a thread of its own: writing it anew takes seconds where a cluster is
//! large, and a thread that others run on does not wait for a disk. What is told to be in force has to be
//! written before: an agent that dies in between would be followed by one that knows less.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use tokio::sync::Notify;

use super::{Entry, Journal};

/// Octets of entries that may wait; where more do, no more is taken from the API server.
const WAITING_MAX: usize = 32 << 20;

/// Writes a journal. When this goes, everything that was added is written.
#[derive(Debug)]
pub(in super::super) struct Scribe {
    /// What tells the journal from others.
    id: String,
    /// `None` where there is no thread: the journal was given up.
    orders: Option<Sender<Order>>,
    backlog: Arc<Backlog>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Order {
    Add(Vec<Entry>),
    /// Puts the journal in another one's place and says so.
    Settle(PathBuf, Sender<()>),
}

/// What waits to be written.
#[derive(Debug, Default)]
struct Backlog {
    octets: AtomicUsize,
    is_less: Notify,
}

impl Scribe {
    /// Starts the thread.
    pub(in super::super) fn start(journal: Journal) -> Self {
        let id = journal.id().to_owned();
        let backlog = Arc::new(Backlog::default());
        let (orders, ordered) = mpsc::channel();
        let path = journal.path.clone();
        let work = {
            let backlog = Arc::clone(&backlog);
            move || write(journal, &ordered, &backlog)
        };
        match thread::Builder::new().name("namegate-journal".into()).spawn(work) {
            Ok(thread) => Self { id, orders: Some(orders), backlog, thread: Some(thread) },
            Err(error) => {
                Journal::lose(&path, "begun", &error);
                Self { id, orders: None, backlog, thread: None }
            }
        }
    }

    /// What tells the journal from others.
    pub(in super::super) fn id(&self) -> &str {
        &self.id
    }

    /// Has entries added.
    pub(in super::super) fn add(&self, entries: Vec<Entry>) {
        let Some(orders) = self.orders.as_ref().filter(|_| !entries.is_empty()) else { return };
        let size = size(&entries);
        self.backlog.octets.fetch_add(size, Ordering::Relaxed);
        if orders.send(Order::Add(entries)).is_err() {
            self.backlog.octets.fetch_sub(size, Ordering::Relaxed);
            tracing::error!("the thread that keeps the objects that are in force is gone");
        }
    }

    /// Whether not too much waits.
    pub(in super::super) fn has_room(&self) -> bool {
        self.backlog.octets.load(Ordering::Relaxed) <= WAITING_MAX
    }

    /// Whether all that was added is written, or given up.
    pub(in super::super) fn is_written(&self) -> bool {
        self.backlog.octets.load(Ordering::Acquire) == 0
    }

    /// Waits until some of what waits is written.
    pub(in super::super) async fn progress(&self) {
        self.backlog.is_less.notified().await;
    }

    /// Puts the journal in the place of the one at `path`, with all that was added.
    pub(in super::super) fn settle(&self, path: PathBuf) {
        let Some(orders) = &self.orders else { return };
        let (done, settled) = mpsc::channel();
        if orders.send(Order::Settle(path, done)).is_err() || settled.recv().is_err() {
            tracing::error!("the thread that keeps the objects that are in force is gone");
        }
    }
}

impl Drop for Scribe {
    fn drop(&mut self) {
        drop(self.orders.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that keeps the objects that are in force panicked");
        }
    }
}

fn size(entries: &[Entry]) -> usize {
    entries.iter().map(|entry| entry.text().len()).sum()
}

/// Nothing waits for a thread that is gone, in whatever way.
struct Ended<'a>(&'a Backlog);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.octets.store(0, Ordering::Release);
        self.0.is_less.notify_one();
    }
}

fn write(mut journal: Journal, orders: &Receiver<Order>, backlog: &Backlog) {
    let _ended = Ended(backlog);
    for order in orders {
        match order {
            Order::Add(entries) => {
                journal.add(&entries);
                backlog.octets.fetch_sub(size(&entries), Ordering::Release);
                backlog.is_less.notify_one();
            }
            Order::Settle(path, done) => {
                journal.settle(path);
                // Whoever waits for it has not gone.
                let _ = done.send(());
            }
        }
    }
}
