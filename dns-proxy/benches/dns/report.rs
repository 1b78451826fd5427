//! The table.

use std::time::Duration;

use crate::load::Paced;
use crate::subject::Cost;

#[derive(Default)]
struct Row {
    name: &'static str,
    unique: Vec<f64>,
    hits: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    rate: Vec<f64>,
    lost: u32,
}

/// Medians over the rounds, for each subject.
pub(crate) struct Report(Vec<Row>);

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn percentile(sorted: &[Duration], of_thousand: usize) -> f64 {
    sorted.get(sorted.len() * of_thousand / 1000).map_or(f64::NAN, |latency| micros(*latency))
}

impl Report {
    pub(crate) fn new(names: impl Iterator<Item = &'static str>) -> Self {
        Self(names.map(|name| Row { name, ..Row::default() }).collect())
    }

    pub(crate) fn add(&mut self, at: usize, unique: &Cost, hits: &Cost, paced: &Paced) {
        let row = &mut self.0[at];
        row.unique.push(micros(unique.processor));
        row.hits.push(micros(hits.processor));
        row.p50.push(percentile(&paced.latencies, 500));
        row.p99.push(percentile(&paced.latencies, 990));
        row.rate.push(f64::from(unique.load.answered) / unique.load.took.as_secs_f64());
        row.lost += unique.load.asked - unique.load.answered;
        row.lost += hits.load.asked - hits.load.answered;
        row.lost += paced.asked - u32::try_from(paced.latencies.len()).expect("few");
    }

    pub(crate) fn print(&self, json: bool) {
        let bare = self.0.first().map_or(f64::NAN, |row| median(&row.unique));
        if !json {
            println!(
                "{:<10} {:>12} {:>8} {:>12} {:>10} {:>10} {:>10} {:>6}",
                "", "cpu us/query", "x bare", "cpu us/hit", "p50 us", "p99 us", "queries/s", "lost"
            );
        }
        for row in &self.0 {
            let unique = median(&row.unique);
            let (hits, p50, p99) = (median(&row.hits), median(&row.p50), median(&row.p99));
            let (ratio, rate) = (unique / bare, median(&row.rate));
            if json {
                println!(
                    "{{\"subject\":\"{}\",\"cpu_us\":{unique:.3},\"ratio_to_bare\":{ratio:.3},\
                     \"cpu_us_hit\":{hits:.3},\"p50_us\":{p50:.1},\"p99_us\":{p99:.1},\
                     \"queries_per_second\":{rate:.0},\"lost\":{}}}",
                    row.name, row.lost
                );
            } else {
                println!(
                    "{:<10} {unique:>12.2} {ratio:>8.2} {hits:>12.2} {p50:>10.1} {p99:>10.1} {rate:>10.0} {:>6}",
                    row.name, row.lost
                );
            }
        }
    }
}
