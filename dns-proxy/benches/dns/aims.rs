//! What lookups are meant to cost beside other name servers and beside a loud pod, and what came out:
//! medians of what each round says by itself, since rounds differ more than the subjects of one.

use crate::fair::Fairness;
use crate::report::{Row, median};
use crate::subject::Kind;

/// Which number of a subject is compared.
type Figure = fn(&Row) -> &[f64];

/// What is compared with what.
enum Comparison {
    /// The first subject's number divided by the second's.
    Ratio(Kind, Kind),
    /// The second's taken from the first's.
    Excess(Kind, Kind),
}

/// Which side of the limit is good.
#[derive(Clone, Copy)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

struct Aim {
    key: &'static str,
    text: &'static str,
    figure: Figure,
    comparison: Comparison,
    limit: Limit,
}

/// How an aim came out.
pub(crate) struct Outcome {
    key: &'static str,
    text: &'static str,
    limit: Limit,
    found: f64,
}

fn unique(row: &Row) -> &[f64] {
    &row.unique
}

fn hits(row: &Row) -> &[f64] {
    &row.hits
}

fn p50(row: &Row) -> &[f64] {
    &row.p50
}

const AIMS: [Aim; 7] = [
    Aim {
        key: "cpu_to_forwarder",
        text: "processor time of a new name, in forwarders",
        figure: unique,
        comparison: Comparison::Ratio(Kind::Namegate, Kind::Forwarder),
        limit: Limit::AtMost(1.25),
    },
    Aim {
        key: "cpu_of_dnsmasq_nftset",
        text: "dnsmasq with an nftables set takes so many times as much",
        figure: unique,
        comparison: Comparison::Ratio(Kind::DnsmasqNftset, Kind::Namegate),
        limit: Limit::AtLeast(7.5),
    },
    Aim {
        key: "cpu_of_dnsmasq",
        text: "dnsmasq takes so many times as much",
        figure: unique,
        comparison: Comparison::Ratio(Kind::Dnsmasq, Kind::Namegate),
        limit: Limit::AtLeast(2.4),
    },
    Aim {
        key: "cpu_to_dnsdist",
        text: "processor time of a new name, in dnsdists",
        figure: unique,
        comparison: Comparison::Ratio(Kind::Namegate, Kind::Dnsdist),
        limit: Limit::AtMost(1.0),
    },
    Aim {
        key: "p50_over_forwarder_us",
        text: "median latency over the forwarder's at 5,000/s, in us",
        figure: p50,
        comparison: Comparison::Excess(Kind::Namegate, Kind::Forwarder),
        limit: Limit::AtMost(15.0),
    },
    Aim {
        key: "hit_cpu_to_unbound",
        text: "processor time of a cached name, in unbounds",
        figure: hits,
        comparison: Comparison::Ratio(Kind::Namegate, Kind::Unbound),
        limit: Limit::AtMost(0.9),
    },
    Aim {
        key: "hit_cpu_to_dnsdist",
        text: "processor time of a cached name, in dnsdists",
        figure: hits,
        comparison: Comparison::Ratio(Kind::Namegate, Kind::Dnsdist),
        limit: Limit::AtMost(0.9),
    },
];

/// Every aim whose subjects took part.
pub(crate) fn outcomes(rows: &[Row]) -> impl Iterator<Item = Outcome> {
    AIMS.iter().filter_map(|aim| {
        let of = |kind| rows.iter().find(|row| row.kind == Some(kind)).map(aim.figure);
        let pairs = |one, other| Some(of(one)?.iter().zip(of(other)?));
        let each: Vec<f64> = match aim.comparison {
            Comparison::Ratio(one, other) => pairs(one, other)?.map(|(a, b)| a / b).collect(),
            Comparison::Excess(one, other) => pairs(one, other)?.map(|(a, b)| a - b).collect(),
        };
        let Aim { key, text, limit, .. } = *aim;
        Some(Outcome { key, text, limit, found: median(&each) })
    })
}

/// What a quiet pod may wait and lose beside a loud one.
pub(crate) fn quiet(fairness: &Fairness) -> [Outcome; 2] {
    let Fairness { alone, beside, .. } = fairness;
    let undisturbed = median(&alone.p99);
    [
        Outcome {
            key: "quiet_p99_us",
            text: "99th percentile of a quiet pod beside a loud one, in us",
            limit: Limit::AtMost((2.0 * undisturbed).max(undisturbed + 2000.0)),
            found: median(&beside.p99),
        },
        Outcome {
            key: "quiet_lost_percent",
            text: "answers that a quiet pod loses beside a loud one, in %",
            limit: Limit::AtMost(0.1),
            found: beside.lost_percent(),
        },
    ]
}

impl Outcome {
    fn is_met(&self) -> bool {
        match self.limit {
            Limit::AtMost(limit) => self.found <= limit,
            Limit::AtLeast(limit) => self.found >= limit,
        }
    }

    pub(crate) fn print(&self, json: bool) {
        let Self { key, text, limit, found } = self;
        let is_met = self.is_met();
        let (side, bound) = match limit {
            Limit::AtMost(bound) => ("at most", bound),
            Limit::AtLeast(bound) => ("at least", bound),
        };
        if json {
            println!(
                "{{\"aim\":\"{key}\",\"found\":{found:.3},\"is\":\"{side}\",\"limit\":{bound},\
                 \"met\":{is_met}}}"
            );
        } else {
            let word = if is_met { "met" } else { "MISSED" };
            println!("{word:<6} {found:>8.2}, aim {side} {bound}: {text}");
        }
    }
}
