use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// How far the agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Objects are being read, or written for the first time.
    Starting,
    /// Everything of the first read is enforced, and changes are followed.
    Enforcing,
    /// A signal came.
    Ending,
}

impl Phase {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Enforcing => "enforcing",
            Self::Ending => "ending",
        }
    }
}

/// The phase, written by the agent and read from any thread.
#[derive(Clone, Debug, Default)]
pub struct PhaseCell(Arc<AtomicU8>);

impl PhaseCell {
    /// The phase now.
    pub fn now(&self) -> Phase {
        match self.0.load(Ordering::Relaxed) {
            0 => Phase::Starting,
            1 => Phase::Enforcing,
            _ => Phase::Ending,
        }
    }

    /// Enters a phase.
    pub fn enter(&self, phase: Phase) {
        let number = match phase {
            Phase::Starting => 0,
            Phase::Enforcing => 1,
            Phase::Ending => 2,
        };
        self.0.store(number, Ordering::Relaxed);
    }
}
