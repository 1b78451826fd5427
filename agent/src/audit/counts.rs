//! What becomes of records, counted.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::LossSource;

/// What became of all records since the start. Sinks count each for itself: a record that two sinks
/// wrote is two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditCounts {
    /// Lines that sinks wrote.
    pub written: u64,
    /// Events that the kernel could not hand over.
    pub lost_kernel: u64,
    /// Decisions that found the agent's queue full.
    pub lost_queue: u64,
    /// Records that a sink was too slow for or failed to write.
    pub lost_sink: u64,
    /// Records that the rate of their endpoint or the sampling kept out.
    pub suppressed: u64,
    /// Records that are not logged by choice.
    pub not_chosen: u64,
    /// Who listens in this process.
    pub listeners: usize,
    /// Who has every record made for listeners.
    pub followers: usize,
}

/// The counts as they grow.
#[derive(Debug)]
pub(super) struct Counts {
    waiting: AtomicUsize,
    listeners: AtomicUsize,
    followers: AtomicUsize,
    kernel: AtomicU64,
    queue: AtomicU64,
    pub(super) suppressed: AtomicU64,
    pub(super) not_chosen: AtomicU64,
    sinks: Vec<SinkCounts>,
}

/// The counts of one sink.
#[derive(Debug, Default)]
pub(super) struct SinkCounts {
    pub(super) written: AtomicU64,
    pub(super) lost: AtomicU64,
}

impl Counts {
    pub(super) fn new(sinks: usize) -> Self {
        Self {
            waiting: AtomicUsize::new(0),
            listeners: AtomicUsize::new(0),
            followers: AtomicUsize::new(0),
            kernel: AtomicU64::new(0),
            queue: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
            not_chosen: AtomicU64::new(0),
            sinks: std::iter::repeat_with(SinkCounts::default).take(sinks).collect(),
        }
    }

    /// Whether a record would reach anybody.
    pub(super) fn is_anyone_there(&self) -> bool {
        !self.sinks.is_empty() || self.listeners.load(Ordering::Relaxed) > 0
    }

    pub(super) fn listeners_changed(&self, is_more: bool) {
        if is_more {
            self.listeners.fetch_add(1, Ordering::Relaxed);
        } else {
            self.listeners.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(super) fn followers_changed(&self, is_more: bool) {
        if is_more {
            self.followers.fetch_add(1, Ordering::Relaxed);
        } else {
            self.followers.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether somebody watches what listeners hear.
    pub(super) fn is_followed(&self) -> bool {
        self.followers.load(Ordering::Relaxed) > 0
    }

    /// Counts records that their endpoints' bounds kept from the sinks.
    pub(super) fn suppress(&self, count: u64) {
        if !self.sinks.is_empty() {
            self.suppressed.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Takes places for `wanted` among at most `max` in the queue; says for how many there were some.
    pub(super) fn enter(&self, wanted: usize, max: usize) -> usize {
        let before = self.waiting.fetch_add(wanted, Ordering::Relaxed);
        let fits = wanted.min(max.saturating_sub(before));
        self.leave(wanted - fits);
        fits
    }

    /// Gives places back.
    pub(super) fn leave(&self, count: usize) {
        self.waiting.fetch_sub(count, Ordering::Relaxed);
    }

    /// Counts what was lost before it reached any sink.
    pub(super) fn lose(&self, source: LossSource, count: u64) {
        match source {
            LossSource::Kernel => self.kernel.fetch_add(count, Ordering::Relaxed),
            LossSource::Queue => self.queue.fetch_add(count, Ordering::Relaxed),
            LossSource::Sink => 0,
        };
    }

    pub(super) fn sink(&self, place: usize) -> Option<&SinkCounts> {
        self.sinks.get(place)
    }

    /// What was lost, as the sink in `place` has to tell it; without a sink, as listeners are told.
    pub(super) fn losses(&self, place: Option<usize>) -> [(LossSource, u64); 3] {
        let sink = place.and_then(|place| self.sink(place));
        [
            (LossSource::Kernel, self.kernel.load(Ordering::Relaxed)),
            (LossSource::Queue, self.queue.load(Ordering::Relaxed)),
            (LossSource::Sink, sink.map_or(0, |sink| sink.lost.load(Ordering::Relaxed))),
        ]
    }

    pub(super) fn snapshot(&self) -> AuditCounts {
        let sum = |of: fn(&SinkCounts) -> &AtomicU64| {
            self.sinks.iter().map(|sink| of(sink).load(Ordering::Relaxed)).sum()
        };
        AuditCounts {
            written: sum(|sink| &sink.written),
            lost_kernel: self.kernel.load(Ordering::Relaxed),
            lost_queue: self.queue.load(Ordering::Relaxed),
            lost_sink: sum(|sink| &sink.lost),
            suppressed: self.suppressed.load(Ordering::Relaxed),
            not_chosen: self.not_chosen.load(Ordering::Relaxed),
            listeners: self.listeners.load(Ordering::Relaxed),
            followers: self.followers.load(Ordering::Relaxed),
        }
    }
}

/// How much of the losses was told already.
#[derive(Debug, Default)]
pub(super) struct Told([u64; 3]);

impl Told {
    /// Hands what was not told yet to `tell`, which says whether it was heard.
    pub(super) fn tell(
        &mut self,
        losses: [(LossSource, u64); 3],
        mut tell: impl FnMut(LossSource, u64) -> bool,
    ) {
        for ((source, total), told) in losses.into_iter().zip(&mut self.0) {
            if total > *told && tell(source, total - *told) {
                *told = total;
            }
        }
    }
}
