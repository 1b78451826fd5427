//! The table.

use std::time::Duration;

use crate::first::Firsts;
use crate::load::{self, Paced};
use crate::subject::{Cost, Kind, Subject};

#[derive(Default)]
struct Row {
    kind: Option<Kind>,
    unique: Vec<f64>,
    hits: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    rate: Vec<f64>,
    goodput: Vec<f64>,
    memory: u64,
    lost: u32,
}

/// What the agent takes: resident and in maps, in octets.
pub(crate) struct Memory {
    pub(crate) idle: (u64, u64),
    pub(crate) names: u32,
    pub(crate) full: (u64, u64),
}

/// Medians over the rounds, for each subject, and what is measured of the agent alone.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    pub(crate) memory: Option<Memory>,
    pub(crate) firsts: Option<Firsts>,
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn mebibytes(octets: u64) -> f64 {
    octets as f64 / f64::from(1 << 20)
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
    pub(crate) fn add(
        &mut self,
        subject: &Subject,
        unique: &Cost,
        hits: &Cost,
        paced: &Paced,
        flood: &load::Outcome,
    ) {
        let known = self.rows.iter().position(|row| row.kind == Some(subject.kind));
        let at = known.unwrap_or(self.rows.len());
        if known.is_none() {
            self.rows.push(Row { kind: Some(subject.kind), ..Row::default() });
        }
        let row = &mut self.rows[at];
        let rate = |load: &load::Outcome| f64::from(load.answered) / load.took.as_secs_f64();
        row.unique.push(micros(unique.processor));
        row.hits.push(micros(hits.processor));
        row.p50.push(percentile(&paced.latencies, 500));
        row.p99.push(percentile(&paced.latencies, 990));
        row.rate.push(rate(&unique.load));
        row.goodput.push(rate(flood) / rate(&unique.load));
        row.memory = row.memory.max(subject.memory().0);
        row.lost += unique.load.asked - unique.load.answered;
        row.lost += hits.load.asked - hits.load.answered;
        row.lost += paced.asked - u32::try_from(paced.latencies.len()).expect("few");
    }

    pub(crate) fn print(&self, json: bool) {
        let of = |kind| self.rows.iter().find(|row| row.kind == Some(kind));
        let bare = of(Kind::Forwarder).map_or(f64::NAN, |row| median(&row.unique));
        let direct = of(Kind::Direct).map_or(f64::NAN, |row| median(&row.p50));
        if !json {
            println!(
                "{:<15} {:>9} {:>7} {:>9} {:>10} {:>8} {:>10} {:>9} {:>8} {:>6}",
                "",
                "cpu us",
                "x bare",
                "us/hit",
                "added p50",
                "p99 us",
                "queries/s",
                "3x load",
                "RSS MiB",
                "lost"
            );
        }
        for row in &self.rows {
            let name = row.kind.map_or("", Kind::name);
            let (unique, hits) = (median(&row.unique), median(&row.hits));
            let (added, p99) = (median(&row.p50) - direct, median(&row.p99));
            let (ratio, rate) = (unique / bare, median(&row.rate));
            let (goodput, memory) = (median(&row.goodput), mebibytes(row.memory));
            if json {
                println!(
                    "{{\"subject\":\"{name}\",\"cpu_us\":{unique:.3},\"ratio_to_bare\":{ratio:.3},\
                     \"cpu_us_hit\":{hits:.3},\"added_p50_us\":{added:.1},\"p99_us\":{p99:.1},\
                     \"queries_per_second\":{rate:.0},\"goodput_at_3x\":{goodput:.3},\
                     \"rss_mib\":{memory:.1},\"lost\":{}}}",
                    row.lost
                );
            } else {
                println!(
                    "{name:<15} {unique:>9.2} {ratio:>7.2} {hits:>9.2} {added:>10.1} {p99:>8.1} \
                     {rate:>10.0} {goodput:>9.2} {memory:>8.1} {:>6}",
                    row.lost
                );
            }
        }
        self.print_agent(json);
    }

    fn print_agent(&self, json: bool) {
        if let Some(Memory { idle, names, full }) = &self.memory {
            let [idle, idle_maps, full, full_maps] =
                [idle.0, idle.1, full.0, full.1].map(mebibytes);
            if json {
                println!(
                    "{{\"idle_rss_mib\":{idle:.1},\"idle_maps_mib\":{idle_maps:.1},\"names\":{names},\
                     \"rss_mib\":{full:.1},\"maps_mib\":{full_maps:.1}}}"
                );
            } else {
                println!(
                    "memory: idle {idle:.1} MiB and {idle_maps:.1} MiB of maps; with {names} names \
                     {full:.1} MiB and {full_maps:.1} MiB of maps"
                );
            }
        }
        if let Some(Firsts { answered, lost, unanswered }) = &self.firsts {
            if json {
                println!(
                    "{{\"first_packets\":{answered},\"first_packets_lost\":{lost},\"unanswered\":{unanswered}}}"
                );
            } else {
                println!(
                    "first packets: {lost} lost of {answered}, sent at once after answers of 64 \
                     addresses; {unanswered} lookups had no answer"
                );
            }
        }
    }
}
