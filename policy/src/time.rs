//! Time as the caller tells it.

use std::time::Duration;

/// A point on the kernel's monotonic clock, in nanoseconds since boot without suspend.
///
/// The same clock as `CLOCK_MONOTONIC` and `bpf_ktime_get_ns`, so that a deadline computed here can
/// be compared in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// A deadline that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// The time `nanos` nanoseconds after boot.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since boot.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time `duration` later; saturates at [`Timestamp::NEVER`].
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero where it is not later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}
