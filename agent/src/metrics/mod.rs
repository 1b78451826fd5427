//! What is counted, and how it is told: OpenMetrics text by the `prometheus-client` crate.
//!
//! Counting costs whoever works a relaxed addition; everything else is read when somebody scrapes.
//! All names stand in [`table`]; labels are bounded: words of this program and names of policies,
//! never a domain name or an address.

mod lookups;
mod readings;
mod table;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

pub use lookups::{Counted, HistogramReading, Lookups, lookup_reasons};
pub use readings::{PolicyReading, Readings};

/// The type of what [`Metrics::encode`] writes.
pub const CONTENT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How long changes take, by step.
type Applied = Family<[(&'static str, &'static str); 1], Histogram, fn() -> Histogram>;

/// What is done of a change of policy, endpoints or addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Finding out which tables, addresses and names it means.
    Compile,
    /// Writing them to the kernel's maps, until packets are judged by them.
    Write,
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Decisions about lookups.
    pub lookups: Arc<Lookups>,
    applied: Applied,
    windows: [Histogram; 2],
    refused: Counter,
    readings: Arc<Mutex<Readings>>,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix(table::PREFIX);
        let lookups = Arc::new(Lookups::default());
        let readings = Arc::new(Mutex::new(Readings::default()));
        // From 100 microseconds to 26 seconds.
        let applied: Applied =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(1e-4, 4.0, 10)));
        for step in [Step::Compile, Step::Write] {
            drop(applied.get_or_create(&step.labels()));
        }
        registry.register(table::APPLY.name, table::APPLY.help, applied.clone());
        let windows = Family::<[(&str, &str); 1], _, _>::new_with_constructor(mk_windows);
        registry.register(table::WINDOWS.name, table::WINDOWS.help, windows.clone());
        // Told from the start, so that no pod can be told from no agent.
        let windows =
            ["object", "plugin"].map(|word| windows.get_or_create(&[("told_by", word)]).clone());
        let refused = Counter::default();
        registry.register(table::REFUSED.name, table::REFUSED.help, refused.clone());
        registry.register_collector(Box::new(table::Table {
            lookups: Arc::clone(&lookups),
            readings: Arc::clone(&readings),
        }));
        Self { registry, lookups, applied, windows, refused, readings }
    }

    /// Counts a step of a change of policy, endpoints or addresses that took so long.
    pub fn applied(&self, step: Step, took: Duration) {
        self.applied.get_or_create(&step.labels()).observe(took.as_secs_f64());
    }

    /// Counts a pod whose interface was there for so long before its policy was in force; whether the
    /// CNI plugin told of it, so that its containers waited meanwhile.
    pub fn window(&self, open: Duration, is_told_by_plugin: bool) {
        self.windows[usize::from(is_told_by_plugin)].observe(open.as_secs_f64());
    }

    /// Counts objects that were refused.
    pub fn refused(&self, objects: u64) {
        self.refused.inc_by(objects);
    }

    /// All of them as text; `readings` are what others count.
    pub fn encode(&self, readings: Readings) -> Result<String, std::fmt::Error> {
        // A scrape that broke off leaves nothing half done: readings are replaced whole.
        *self.readings.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = readings;
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Step {
    const fn labels(self) -> [(&'static str, &'static str); 1] {
        match self {
            Self::Compile => [("step", "compile")],
            Self::Write => [("step", "write")],
        }
    }
}

/// From a millisecond to 17 minutes.
fn mk_windows() -> Histogram {
    Histogram::new(exponential_buckets(1e-3, 4.0, 11))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_of_the_table_is_told_once_filled() {
        let metrics = Metrics::new();
        metrics.applied(Step::Write, Duration::from_millis(3));
        let text = metrics.encode(readings::tests::mk_full()).unwrap();
        for name in table::ALL {
            assert!(text.contains(&format!("# TYPE {}_{} ", table::PREFIX, name.name)), "{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_hostile_policy_name_stays_inside_its_quotes() {
        let mut readings = readings::tests::mk_full();
        readings.policies[0].name = "a\"} 1\nnamegate_up{x=\"".into();
        let text = Metrics::new().encode(readings).unwrap();
        assert!(text.contains(r#"name="a\"} 1\nnamegate_up{x=\"""#), "{text}");
    }
}
