//! What became of lookups: counted where they are decided, one relaxed addition a number.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use namegate_dns_proxy::record::{DecisionLog, DecisionRecord, DnsFailure, DnsVerdict};
use namegate_dns_proxy::stages;

/// Upper bounds of the latency histogram, in microseconds.
const BOUNDS_US: [u64; 16] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000,
];

/// Why a lookup ended as it did.
const REASONS: [(DnsVerdict, &str); 14] = [
    (DnsVerdict::Allowed, "rule"),
    (DnsVerdict::Allowed, "no-rule-needed"),
    (DnsVerdict::Denied, "no-rule"),
    (DnsVerdict::Audit, "no-rule"),
    (DnsVerdict::Error, "upstream-timeout"),
    (DnsVerdict::Error, "upstream-unreachable"),
    (DnsVerdict::Error, "overloaded"),
    (DnsVerdict::Error, "malformed-answer"),
    (DnsVerdict::Error, "truncated-answer"),
    (DnsVerdict::Error, "learner-full"),
    (DnsVerdict::Error, "stale"),
    (DnsVerdict::Error, "learner-failed"),
    (DnsVerdict::Error, "internal"),
    (DnsVerdict::Denied, "new-names"),
];

/// Why lookups end as they do.
pub fn lookup_reasons() -> impl Iterator<Item = &'static str> {
    REASONS.iter().map(|(_, reason)| *reason)
}

/// The codes that are told apart; any other is the last.
const RCODES: [&str; 7] =
    ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "other"];

/// Lookups by verdict, reason and code, and how long they took.
#[derive(Debug, Default)]
pub struct Lookups {
    decided: [[AtomicU64; RCODES.len()]; REASONS.len()],
    cached: Latency,
    asked: Latency,
}

/// How long lookups took.
#[derive(Debug, Default)]
struct Latency {
    /// By the first bound that is not exceeded; the last is above all.
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

/// A histogram as it is told.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramReading {
    /// The sum of all, in seconds.
    pub sum: f64,
    /// How many.
    pub count: u64,
    /// Upper bounds in seconds, each with how many are above the bound before.
    pub buckets: Vec<(f64, u64)>,
}

impl From<&stages::Histogram> for HistogramReading {
    fn from(histogram: &stages::Histogram) -> Self {
        let stages::HistogramReading { buckets, longer, sum } = histogram.reading();
        let ends = buckets.into_iter().map(|(end, count)| (end.as_secs_f64(), count));
        let buckets: Vec<(f64, u64)> = ends.chain([(f64::INFINITY, longer)]).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        Self { sum: sum.as_secs_f64(), count, buckets }
    }
}

impl Lookups {
    /// Counts one.
    pub fn note(&self, decision: &DecisionRecord) {
        let rcode = usize::from(decision.rcode.0).min(RCODES.len() - 1);
        if let Some(count) = self.decided.get(reason(decision)).and_then(|row| row.get(rcode)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let latency = if decision.cached { &self.cached } else { &self.asked };
        latency.note(decision.latency);
    }

    /// Verdict, reason, code and count of every combination that occurred.
    pub fn decided(&self) -> impl Iterator<Item = (DnsVerdict, &'static str, &'static str, u64)> {
        REASONS.iter().zip(&self.decided).flat_map(|(&(verdict, reason), row)| {
            RCODES.iter().zip(row).filter_map(move |(&rcode, count)| {
                let count = count.load(Ordering::Relaxed);
                (count > 0).then_some((verdict, reason, rcode, count))
            })
        })
    }

    /// How long lookups took, by where their answers came from.
    pub fn latencies(&self) -> [(&'static str, HistogramReading); 2] {
        [("cache", self.cached.read()), ("proxy", self.asked.read())]
    }
}

fn reason(decision: &DecisionRecord) -> usize {
    match (decision.verdict, decision.failure) {
        (DnsVerdict::Allowed, _) => usize::from(decision.policies.is_empty()),
        (DnsVerdict::Denied, Some(DnsFailure::NewNames)) => 13,
        (DnsVerdict::Denied, _) => 2,
        (DnsVerdict::Audit, _) => 3,
        (DnsVerdict::Error, Some(failure)) => match failure {
            DnsFailure::UpstreamTimeout => 4,
            DnsFailure::UpstreamUnreachable => 5,
            DnsFailure::Overloaded => 6,
            DnsFailure::MalformedAnswer => 7,
            DnsFailure::TruncatedAnswer => 8,
            DnsFailure::LearnerFull => 9,
            DnsFailure::Stale => 10,
            DnsFailure::LearnerFailed => 11,
            DnsFailure::Internal => 12,
            DnsFailure::NewNames => 13,
        },
        (DnsVerdict::Error, None) => 12,
    }
}

impl Latency {
    fn note(&self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        if let Some(count) = self.buckets.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    fn read(&self) -> HistogramReading {
        let counts: Vec<u64> =
            self.buckets.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let bounds = BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
        HistogramReading {
            sum: self.sum_us.load(Ordering::Relaxed) as f64 / 1e6,
            count: counts.iter().sum(),
            buckets: bounds.zip(counts).collect(),
        }
    }
}

/// Counts decisions on their way to a log.
#[derive(Debug)]
pub struct Counted<L> {
    /// Where they are counted.
    pub lookups: Arc<Lookups>,
    /// Where they go.
    pub log: L,
}

impl<L: DecisionLog> DecisionLog for Counted<L> {
    fn record(&self, decision: DecisionRecord) {
        self.lookups.note(&decision);
        self.log.record(decision);
    }
}

#[cfg(test)]
mod tests {
    use namegate_dns_proxy::record::Rcode;

    use super::*;

    #[test]
    fn codes_stand_at_their_numbers() {
        for (number, label) in RCODES.iter().enumerate().take(RCODES.len() - 1) {
            assert_eq!(Rcode(u16::try_from(number).unwrap()).to_string(), *label);
        }
    }

    #[test]
    fn a_latency_counts_in_the_first_bucket_that_holds_it() {
        let latency = Latency::default();
        for us in [50, 51, 5_000_000, 5_000_001] {
            latency.note(Duration::from_micros(us));
        }
        let reading = latency.read();
        assert_eq!(reading.count, 4);
        let filled: Vec<usize> = reading
            .buckets
            .iter()
            .enumerate()
            .filter(|(_, (_, count))| *count > 0)
            .map(|(place, _)| place)
            .collect();
        assert_eq!(filled, [0, 1, 15, 16], "bounds belong to their bucket");
        assert!((reading.sum - 10.000_102).abs() < 1e-9);
    }
}
