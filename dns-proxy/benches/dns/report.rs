//! The table.

use std::time::Duration;

use crate::aims;
use crate::fair::{Fairness, LOUD_RATE};
use crate::first::Firsts;
use crate::load::{self, Paced};
use crate::memory::{Filled, Flooded};
use crate::overload::Overload;
use crate::subject::{Cost, Kind, Memory, Subject};

/// What the rounds said of one subject.
#[derive(Default)]
pub(crate) struct Row {
    pub(crate) kind: Option<Kind>,
    /// Processor time of a new name in microseconds, by round; the same of a cached one.
    pub(crate) unique: Vec<f64>,
    pub(crate) hits: Vec<f64>,
    /// Latency in microseconds, by round.
    pub(crate) p50: Vec<f64>,
    p99: Vec<f64>,
    rate: Vec<f64>,
    memory: u64,
    lost: u32,
}

/// Medians over the rounds, for each subject, and what is measured of the agent alone.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    pub(crate) firsts: Option<Firsts>,
    pub(crate) overloads: Vec<Overload>,
    pub(crate) fairness: Vec<Fairness>,
    pub(crate) filled: Option<Filled>,
    pub(crate) flooded: Option<Flooded>,
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn mebibytes(octets: u64) -> f64 {
    octets as f64 / f64::from(1 << 20)
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The latency below which so many of a thousand are, in microseconds.
pub(crate) fn percentile(sorted: &[Duration], of_thousand: usize) -> f64 {
    sorted.get(sorted.len() * of_thousand / 1000).map_or(f64::NAN, |latency| micros(*latency))
}

impl Report {
    pub(crate) fn add(&mut self, subject: &Subject, unique: &Cost, hits: &Cost, paced: &Paced) {
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
        row.memory = row.memory.max(subject.memory().resident);
        row.lost += unique.load.asked - unique.load.answered;
        row.lost += hits.load.asked - hits.load.answered;
        row.lost += paced.asked - u32::try_from(paced.latencies.len()).expect("few");
    }

    pub(crate) fn print(&self, json: bool) {
        if !self.rows.is_empty() {
            self.print_speed(json);
        }
        if let Some(firsts) = &self.firsts {
            print_firsts(firsts, json);
        }
        for overload in &self.overloads {
            print_overload(overload, json);
        }
        for fairness in &self.fairness {
            print_fairness(fairness, json);
            if fairness.kind == Kind::Namegate {
                aims::quiet(fairness).iter().for_each(|outcome| outcome.print(json));
            }
        }
        if let Some(Filled { idle, names, full }) = &self.filled {
            print_memory("idle", 0, idle, json);
            print_memory("filled", *names, full, json);
        }
        if let Some(Flooded { warm, names, after }) = &self.flooded {
            print_memory("warm", 0, warm, json);
            print_memory("flooded", *names, after, json);
        }
    }

    fn print_speed(&self, json: bool) {
        let of = |kind| self.rows.iter().find(|row| row.kind == Some(kind));
        let bare = of(Kind::Forwarder).map_or(f64::NAN, |row| median(&row.unique));
        let direct = of(Kind::Direct).map_or(f64::NAN, |row| median(&row.p50));
        if !json {
            println!(
                "{:<15} {:>9} {:>7} {:>9} {:>10} {:>8} {:>10} {:>8} {:>6}",
                "",
                "cpu us",
                "x bare",
                "us/hit",
                "added p50",
                "p99 us",
                "queries/s",
                "RSS MiB",
                "lost"
            );
        }
        for row in &self.rows {
            let name = row.kind.map_or("", Kind::name);
            let (unique, hits) = (median(&row.unique), median(&row.hits));
            let (added, p99) = (median(&row.p50) - direct, median(&row.p99));
            let (ratio, rate) = (unique / bare, median(&row.rate));
            let memory = mebibytes(row.memory);
            if json {
                println!(
                    "{{\"subject\":\"{name}\",\"cpu_us\":{unique:.3},\"ratio_to_bare\":{ratio:.3},\
                     \"cpu_us_hit\":{hits:.3},\"added_p50_us\":{added:.1},\"p99_us\":{p99:.1},\
                     \"queries_per_second\":{rate:.0},\"rss_mib\":{memory:.1},\"lost\":{}}}",
                    row.lost
                );
            } else {
                println!(
                    "{name:<15} {unique:>9.2} {ratio:>7.2} {hits:>9.2} {added:>10.1} {p99:>8.1} \
                     {rate:>10.0} {memory:>8.1} {:>6}",
                    row.lost
                );
            }
        }
        for outcome in aims::outcomes(&self.rows) {
            outcome.print(json);
        }
    }
}

fn print_firsts(Firsts { answered, lost, unanswered }: &Firsts, json: bool) {
    if json {
        println!(
            "{{\"first_packets\":{answered},\"first_packets_lost\":{lost},\"unanswered\":{unanswered}}}"
        );
    } else {
        println!(
            "first packets: {lost} lost of {answered} connections, each at once after an answer of 64 \
             addresses; {unanswered} lookups had no answer"
        );
    }
}

fn print_overload(Overload { name, rate, goodput, memory }: &Overload, json: bool) {
    let (rate, goodput) = (median(rate), median(goodput));
    let [before, peak] = [memory.0, memory.1].map(mebibytes);
    if json {
        println!(
            "{{\"overloaded\":\"{name}\",\"queries_per_second\":{rate:.0},\"goodput_at_3x\":{goodput:.3},\
             \"rss_before_mib\":{before:.1},\"rss_peak_mib\":{peak:.1}}}"
        );
    } else {
        println!(
            "overload: {name} answers {rate:.0}/s at saturation and {goodput:.2} of that at three times \
             the load; {before:.1} MiB before, {peak:.1} MiB at most"
        );
    }
}

fn print_fairness(fairness: &Fairness, json: bool) {
    let Fairness { name, alone, control, beside, loud: (asked, answered), .. } = fairness;
    let [p99_alone, p99_control, p99_beside] = [alone, control, beside].map(|q| median(&q.p99));
    let [lost_alone, lost_control, lost_beside] =
        [alone, control, beside].map(|quiet| quiet.lost_percent());
    if json {
        println!(
            "{{\"fairness\":\"{name}\",\"loud_per_second\":{LOUD_RATE},\"loud_asked\":{asked},\
             \"loud_answered\":{answered},\"p99_alone_us\":{p99_alone:.0},\
             \"p99_control_us\":{p99_control:.0},\"p99_beside_us\":{p99_beside:.0},\
             \"lost_alone_percent\":{lost_alone:.3},\"lost_control_percent\":{lost_control:.3},\
             \"lost_beside_percent\":{lost_beside:.3}}}"
        );
    } else {
        println!(
            "fairness, {name}: p99 of a quiet pod {p99_alone:.0} us alone ({lost_alone:.2} % lost), \
             {p99_control:.0} us while the machine is flooded past it ({lost_control:.2} %), \
             {p99_beside:.0} us beside a pod that asks {LOUD_RATE}/s ({lost_beside:.2} %), of which \
             {answered} of {asked} were answered"
        );
    }
}

fn print_memory(when: &str, names: u32, memory: &Memory, json: bool) {
    let [resident, own, peak, maps] =
        [memory.resident, memory.own, memory.peak, memory.maps].map(mebibytes);
    if json {
        println!(
            "{{\"memory\":\"{when}\",\"names\":{names},\"rss_mib\":{resident:.1},\
             \"own_mib\":{own:.1},\"peak_mib\":{peak:.1},\"maps_mib\":{maps:.1}}}"
        );
    } else {
        println!(
            "memory, {when}: {names} names, {resident:.1} MiB resident ({own:.1} of its own, {peak:.1} at \
             most), {maps:.1} MiB of maps"
        );
    }
}
