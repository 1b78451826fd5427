//! The thread that serves UDP, apart from the agent's tasks.
//!
//! A runtime of one thread wakes its tasks without handing them from core to core, which halves the
//! processor time of a query compared to the threads that the agent's tasks share.

use std::io;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::config::StartError;

/// The running thread; ends when dropped.
pub(super) struct WorkerThread {
    handle: Handle,
    _stop: oneshot::Sender<()>,
}

impl WorkerThread {
    pub(super) fn start() -> Result<Self, StartError> {
        Self::spawn().map_err(|source| StartError::Worker { source })
    }

    fn spawn() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        std::thread::Builder::new().name("dns-udp".into()).spawn(move || {
            // An error is the stop: nothing is ever sent.
            runtime.block_on(async { stopped.await.is_err() });
        })?;
        Ok(Self { handle, _stop: stop })
    }

    /// Where tasks of this thread are started.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}
