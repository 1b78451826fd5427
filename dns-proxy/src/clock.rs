//! The clock that the kernel's maps know.

use namegate_policy::time::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// Reads `CLOCK_MONOTONIC`.
pub(crate) fn now() -> Timestamp {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Timestamp::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}
