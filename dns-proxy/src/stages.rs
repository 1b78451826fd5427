//! How long the stages of a query take, counted in buckets: plain atomics without labels, for whoever
//! publishes them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The lowest bucket ends here; each of the others at twice the one before.
const FIRST: Duration = Duration::from_micros(1);
/// The buckets that end: up to 4.2 s.
const BUCKETS: usize = 23;
/// Of so many queries the gate and the policy time one: reading the clock costs as much as they do.
const SAMPLE: u64 = 64;

/// Durations in buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    /// By bucket; the last is for what is longer than all.
    counts: [AtomicU64; BUCKETS + 1],
    sum_ns: AtomicU64,
}

/// A histogram at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramReading {
    /// Where each bucket ends, and how many durations are in it, the shorter ones not counted again.
    pub buckets: Vec<(Duration, u64)>,
    /// How many are longer.
    pub longer: u64,
    /// All of them together.
    pub sum: Duration,
}

/// The stages of a query.
#[derive(Debug, Default)]
pub struct Stages {
    /// Reading and checking the message; of one query in 64.
    pub gate: Histogram,
    /// Deciding about the name; of one query in 64.
    pub policy: Histogram,
    /// From sending a query to the resolver to its answer.
    pub upstream: Histogram,
    /// Learning an answer's addresses and writing them to the map, as long as each answer waited.
    pub learn: Histogram,
}

impl Stages {
    /// The stages with their labels, in the order in which a query goes through them.
    pub fn each(&self) -> [(&'static str, &Histogram); 4] {
        [
            ("gate", &self.gate),
            ("policy", &self.policy),
            ("upstream", &self.upstream),
            ("learn", &self.learn),
        ]
    }

    /// Whether the query with this number is one of those that are timed.
    pub(crate) const fn is_sample(number: u64) -> bool {
        number.is_multiple_of(SAMPLE)
    }
}

impl Histogram {
    /// Adds a duration.
    pub(crate) fn note(&self, took: Duration) {
        self.note_for(took, 1);
    }

    /// Adds a duration that so many waited for.
    pub(crate) fn note_for(&self, took: Duration, count: usize) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let firsts = nanos.div_ceil(FIRST.as_nanos() as u64).max(1);
        let bucket = firsts.next_power_of_two().trailing_zeros() as usize;
        let count = count as u64;
        if let Some(place) = self.counts.get(bucket.min(BUCKETS)) {
            place.fetch_add(count, Ordering::Relaxed);
        }
        self.sum_ns.fetch_add(nanos.saturating_mul(count), Ordering::Relaxed);
    }

    /// What is in it.
    pub fn reading(&self) -> HistogramReading {
        let mut counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let ends = (0..BUCKETS).map(|bucket| FIRST * (1 << bucket));
        let buckets = ends.zip(counts.by_ref()).collect();
        HistogramReading {
            buckets,
            longer: counts.next().unwrap_or(0),
            sum: Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_is_in_the_bucket_that_ends_next() {
        let cases = [
            (Duration::ZERO, Some(Duration::from_micros(1))),
            (Duration::from_nanos(1_000), Some(Duration::from_micros(1))),
            (Duration::from_nanos(1_001), Some(Duration::from_micros(2))),
            (Duration::from_micros(700), Some(Duration::from_micros(1_024))),
            (Duration::from_micros(4_194_304), Some(Duration::from_micros(4_194_304))),
            (Duration::from_secs(5), None),
            (Duration::MAX, None),
        ];
        for (took, expected) in cases {
            let histogram = Histogram::default();
            histogram.note_for(took, 2);
            let reading = histogram.reading();
            assert_eq!(reading.buckets.len(), BUCKETS);
            let found = reading.buckets.iter().find(|(_, count)| *count == 2).map(|found| found.0);
            assert_eq!(found, expected, "{took:?}");
            assert_eq!(reading.longer, if expected.is_some() { 0 } else { 2 }, "{took:?}");
        }
    }

    #[test]
    fn sum_is_of_all() {
        let histogram = Histogram::default();
        histogram.note(Duration::from_micros(3));
        histogram.note_for(Duration::from_micros(10), 4);
        assert_eq!(histogram.reading().sum, Duration::from_micros(43));
    }
}
