//! Giving memory back that only the start needed.

use std::time::Duration;

use namegate_egress_bpf::resident;

/// Until everything that goes on beside the agent's work has gone on once.
const SETTLED: Duration = Duration::from_secs(90);

/// Gives back what only the start needed; to be called before anybody is told that it is over.
pub(super) fn give_back() {
    if let Err(error) = resident::release_text() {
        tracing::debug!(%error, "the text that only the start needed stays in memory");
    }
    resident::release_heap();
}

/// Gives back what was needed once since: the first look at hooks, pods, files and shared addresses.
pub(super) async fn give_back_once_settled() {
    tokio::time::sleep(SETTLED).await;
    give_back();
}
