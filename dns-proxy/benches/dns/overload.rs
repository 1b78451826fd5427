//! Three times the load that saturates: how much is still answered, and in how much memory.

use std::time::Duration;

use crate::load::{self, Names};
use crate::subject::Subject;
use crate::town::Town;

/// A server under too much, round by round.
pub(crate) struct Overload {
    pub(crate) name: &'static str,
    /// Answers a second at saturation.
    pub(crate) rate: Vec<f64>,
    /// Answers a second at three times as many questions, beside those at saturation.
    pub(crate) goodput: Vec<f64>,
    /// Octets resident after the first saturation, and the most there ever were.
    pub(crate) memory: (u64, u64),
}

/// Rounds of all subjects, in turns: `queries` to saturation, then a flood of `time`.
pub(crate) fn measure(
    town: &Town,
    subjects: &[Subject],
    rounds: u32,
    queries: u32,
    time: Duration,
) -> Vec<Overload> {
    let mut overloads: Vec<Overload> = subjects
        .iter()
        .map(|subject| Overload {
            name: subject.kind.name(),
            rate: Vec::new(),
            goodput: Vec::new(),
            memory: (0, 0),
        })
        .collect();
    // The first round warms everything up.
    for round in 0..=rounds {
        for (subject, overload) in subjects.iter().zip(&mut overloads) {
            town.enter(subject.kind.pod());
            let tag = 0x30_0000 + round * 16 + subject.kind as u32;
            let saturated = load::saturate(subject.address, tag, queries, Names::Unique);
            let rate = f64::from(saturated.answered) / saturated.took.as_secs_f64();
            if round == 0 {
                overload.memory.0 = subject.memory().resident;
            }
            let flood = load::flood(subject.address, tag, 3.0 * rate, time);
            let goodput = f64::from(flood.answered) / flood.took.as_secs_f64();
            if round > 0 {
                overload.rate.push(rate);
                overload.goodput.push(goodput / rate);
            }
            overload.memory.1 = subject.memory().peak;
        }
    }
    overloads
}
