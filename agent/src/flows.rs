//! From the kernel program's events to the audit log.

use namegate_egress_bpf::datapath::Events;

use crate::audit::AuditLog;
use crate::readiness;

/// Events taken at once before others get their turn.
const TURN: usize = 256;

/// Reads events and hands them on, until the task is ended.
pub async fn follow(mut events: Events, log: AuditLog) {
    let readiness = match readiness::of(&events) {
        Ok(readiness) => readiness,
        Err(error) => {
            tracing::error!(%error, "no flow records: the kernel's events cannot be read");
            return;
        }
    };
    loop {
        let mut ready = match readiness.readable().await {
            Ok(ready) => ready,
            Err(error) => {
                tracing::error!(%error, "no more flow records: the kernel's events broke off");
                return;
            }
        };
        // Cleared before reading: an event that comes while the last are read wakes again.
        ready.clear_ready();
        let mut taken = 0;
        while let Some(event) = events.next_event() {
            log.flow(event);
            taken += 1;
            if taken % TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
    }
}
