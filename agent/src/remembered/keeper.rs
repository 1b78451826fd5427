//! The thread that keeps the journal.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use super::Pods;
use super::journal::Journal;
use crate::state::SharedLearned;

/// Keeps what is learned on disk, on a thread of its own.
#[derive(Debug)]
pub struct Keeper {
    rounds: SyncSender<Pods>,
    thread: JoinHandle<()>,
}

impl Keeper {
    /// Begins to keep `learned` in `path`; nothing is written before [`Self::keep`].
    pub fn start(path: PathBuf, learned: SharedLearned) -> io::Result<Self> {
        let (rounds, wanted) = sync_channel(1);
        let journal = Journal::new(path, learned);
        let thread =
            thread::Builder::new().name("namegate-keep".into()).spawn(|| work(journal, wanted))?;
        Ok(Self { rounds, thread })
    }

    /// Asks for the file to be brought up to date, and waits for nothing: while an earlier round
    /// is being written the next one may as well come later.
    pub fn keep(&self, pods: Pods) {
        if let Err(TrySendError::Disconnected(_)) = self.rounds.try_send(pods) {
            tracing::error!("the thread that keeps what was learned is gone; restart the agent");
        }
    }

    /// Ends, with the file as it is, or where `pods` are given up to date.
    pub fn end(self, pods: Option<Pods>) {
        let Self { rounds, thread } = self;
        if let Some(pods) = pods
            && rounds.send(pods).is_err()
        {
            tracing::warn!("nobody is left to keep what was learned for a restart");
        }
        drop(rounds);
        if thread.join().is_err() {
            tracing::error!("the thread that keeps what was learned panicked");
        }
    }
}

fn work(mut journal: Journal, wanted: Receiver<Pods>) {
    let mut is_failing = false;
    for pods in wanted {
        let kept = journal.keep(pods);
        if let Err(error) = &kept
            && !is_failing
        {
            tracing::warn!(%error, "what was learned cannot be kept for a restart; tried again");
        }
        is_failing = kept.is_err();
    }
}
