//! Whether anybody looks at the page.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::audit::{AuditLog, Following};

/// How long after its last question a page counts as looked at; one that is asks each second.
const PATIENCE: Duration = Duration::from_secs(10);

/// Has every decision heard of while somebody looks. A page that asks nothing, and an agent that nobody
/// looks at, cost no more than what the log's bounds let through.
#[derive(Debug)]
pub(super) struct Looked {
    log: AuditLog,
    held: Mutex<Option<Held>>,
}

#[derive(Debug)]
struct Held {
    _following: Following,
    until: Instant,
}

impl Looked {
    pub(super) const fn new(log: AuditLog) -> Self {
        Self { log, held: Mutex::new(None) }
    }

    /// A page has asked.
    pub(super) fn note(&self, now: Instant) {
        let mut held = self.held();
        let until = now + PATIENCE;
        match &mut *held {
            Some(held) => held.until = until,
            None => *held = Some(Held { _following: self.log.follow(), until }),
        }
    }

    /// Lets go where no page has asked for long.
    pub(super) fn expire(&self, now: Instant) {
        let mut held = self.held();
        if held.as_ref().is_some_and(|held| now >= held.until) {
            *held = None;
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::audit::AuditConfig;

    #[test]
    fn a_page_that_asks_no_more_holds_nothing() {
        let (log, writer) = AuditLog::start(&AuditConfig::default(), Arc::default()).unwrap();
        let (looked, now) = (Looked::new(log.clone()), Instant::now());
        let followers = || log.counts().followers;
        looked.expire(now);
        assert_eq!(followers(), 0, "nobody has looked yet");
        looked.note(now);
        looked.note(now + PATIENCE / 2);
        assert_eq!(followers(), 1, "however often it asks");
        looked.expire(now + PATIENCE);
        assert_eq!(followers(), 1, "it asked meanwhile");
        looked.expire(now + PATIENCE / 2 + PATIENCE);
        assert_eq!(followers(), 0);
        looked.note(now + PATIENCE * 3);
        assert_eq!(followers(), 1, "it is back");
        writer.close();
    }
}
