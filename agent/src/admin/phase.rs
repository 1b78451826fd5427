//! How far the agent is, and what of it is not as it should be.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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
pub struct PhaseCell {
    phase: Arc<AtomicU8>,
    lacking: Arc<Mutex<Vec<String>>>,
}

impl PhaseCell {
    /// The phase now.
    pub fn now(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
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
        self.phase.store(number, Ordering::Relaxed);
    }

    /// What is not enforced although the agent is in [`Phase::Enforcing`], each in words.
    pub fn lacking(&self) -> Vec<String> {
        self.lacking.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says what is not enforced, all of it.
    pub fn lack(&self, what: Vec<String>) {
        *self.lacking.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }
}
