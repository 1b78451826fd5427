//! A sign of life of the state's owner.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When the state's owner turned to its next task, written by it and read from any thread.
#[derive(Clone, Debug)]
pub struct Pulse {
    began: Instant,
    beat_ms: Arc<AtomicU64>,
}

impl Pulse {
    /// One that beats at this moment.
    pub fn new() -> Self {
        Self { began: Instant::now(), beat_ms: Arc::default() }
    }

    /// The owner turns to its next task.
    pub fn beat(&self) {
        self.beat_ms.store(self.elapsed_ms(), Ordering::Relaxed);
    }

    /// How long it has been at the same one.
    pub fn silence(&self) -> Duration {
        let beat_ms = self.beat_ms.load(Ordering::Relaxed);
        Duration::from_millis(self.elapsed_ms().saturating_sub(beat_ms))
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new()
    }
}
