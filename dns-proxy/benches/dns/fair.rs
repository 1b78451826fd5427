//! What a pod that asks 20,000 times a second costs one that asks now and then.
//!
//! The quiet pod asks alone, then while the loud one floods the agent, and, as a control, while
//! somebody whom the agent does not govern sends the same flood to the resolver: the control shows
//! what the machine takes when it is busy, whoever sits between.

use std::net::SocketAddr;
use std::time::Duration;

use crate::load::{self, Paced};
use crate::report::percentile;
use crate::town::{PLAIN_POD, POD, QUIET_POD, RESOLVER, Town};

/// What the loud pod asks a second.
pub(crate) const LOUD_RATE: u32 = 20_000;
/// What the quiet pod asks a second.
const QUIET_RATE: u32 = 500;

/// The quiet pod's latencies and losses, round by round.
#[derive(Default)]
pub(crate) struct Quiet {
    /// 99th percentiles in microseconds.
    pub(crate) p99: Vec<f64>,
    pub(crate) asked: u32,
    pub(crate) lost: u32,
}

/// One agent's fairness.
#[derive(Default)]
pub(crate) struct Fairness {
    pub(crate) alone: Quiet,
    pub(crate) control: Quiet,
    pub(crate) beside: Quiet,
    /// What the loud pod asked and got.
    pub(crate) loud: (u32, u32),
}

impl Quiet {
    fn add(&mut self, paced: &Paced) {
        self.p99.push(percentile(&paced.latencies, 990));
        self.asked += paced.asked;
        self.lost += paced.asked - u32::try_from(paced.latencies.len()).expect("few");
    }
}

/// Rounds of the three, in turns, each for `time`.
pub(crate) fn measure(town: &Town, agent: SocketAddr, rounds: u32, time: Duration) -> Fairness {
    let mut fairness = Fairness::default();
    for round in 0..rounds {
        let ask = |turn: u32| {
            town.enter(QUIET_POD);
            let queries = (time.as_secs_f64() * f64::from(QUIET_RATE)) as u32;
            load::pace(agent, 0x10_0000 + round * 4 + turn, QUIET_RATE, queries)
        };
        let ask_beside = |turn: u32, pod: &'static str, server: SocketAddr| {
            std::thread::scope(|scope| {
                let loud = scope.spawn(move || {
                    town.enter(pod);
                    load::flood(server, 0x20_0000 + round * 4 + turn, LOUD_RATE.into(), time)
                });
                let quiet = ask(turn);
                (quiet, loud.join().expect("no thread panics"))
            })
        };
        fairness.alone.add(&ask(0));
        fairness.control.add(&ask_beside(1, PLAIN_POD, (RESOLVER, 53).into()).0);
        let (quiet, loud) = ask_beside(2, POD, agent);
        fairness.beside.add(&quiet);
        fairness.loud.0 += loud.asked;
        fairness.loud.1 += loud.answered;
    }
    fairness
}
