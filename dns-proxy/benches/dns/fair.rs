//! What a pod that asks 20,000 times a second costs one that asks now and then.
//!
//! The quiet pod asks alone, then while the loud one floods the subject, and, as a control, while the
//! same flood goes to the resolver past the subject. The bare forwarder goes through the same: it shows
//! what the machine takes when it is busy, whoever sits between.
//!
//! Pods and resolver stand for other machines: they run before everything that is scheduled as usual,
//! so that what the quiet pod waits for is the subject and what is queued at the resolver.

use std::process::Command;
use std::time::Duration;

use rustix::thread::{Pid, gettid};

use crate::load::{self, Outcome, Paced};
use crate::report::percentile;
use crate::subject::{Kind, Subject};
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

/// One subject's fairness.
pub(crate) struct Fairness {
    pub(crate) kind: Kind,
    pub(crate) name: &'static str,
    pub(crate) alone: Quiet,
    pub(crate) control: Quiet,
    pub(crate) beside: Quiet,
    /// What the loud pod asked and got.
    pub(crate) loud: (u32, u32),
}

impl Quiet {
    pub(crate) fn lost_percent(&self) -> f64 {
        f64::from(self.lost) / f64::from(self.asked) * 100.0
    }

    fn add(&mut self, paced: &Paced) {
        self.p99.push(percentile(&paced.latencies, 990));
        self.asked += paced.asked;
        self.lost += paced.asked - u32::try_from(paced.latencies.len()).expect("few");
    }
}

/// Where a flood comes from and goes to.
struct Flood<'a> {
    pod: &'static str,
    server: std::net::SocketAddr,
    town: &'a Town,
    time: Duration,
}

impl Flood<'_> {
    fn run(&self, tag: u32) -> Outcome {
        let _promoted = Promoted::new(gettid());
        self.town.enter(self.pod);
        load::flood(self.server, tag, LOUD_RATE.into(), self.time)
    }
}

/// Rounds of the three for each subject, in turns, each for `time`; `resolver` is the resolver's
/// process.
pub(crate) fn measure(
    town: &Town,
    subjects: &[(&'static str, Subject)],
    resolver: Pid,
    rounds: u32,
    time: Duration,
) -> Vec<Fairness> {
    let _promoted = Promoted::new(resolver);
    let mut found: Vec<Fairness> =
        subjects.iter().map(|(name, subject)| Fairness::new(subject.kind, name)).collect();
    for round in 0..rounds {
        for ((number, (_, subject)), fairness) in (0..).zip(subjects).zip(&mut found) {
            let tag = |turn: u32| (round * 8 + number) * 4 + turn;
            let loud_pod = subject.kind.pod();
            let quiet_pod = if loud_pod == POD { QUIET_POD } else { loud_pod };
            let ask = |turn| {
                let _promoted = Promoted::new(gettid());
                town.enter(quiet_pod);
                let queries = (time.as_secs_f64() * f64::from(QUIET_RATE)) as u32;
                load::pace(subject.address, 0x10_0000 + tag(turn), QUIET_RATE, queries)
            };
            let flood = |pod, server| Flood { pod, server, town, time };
            let past = flood(PLAIN_POD, (RESOLVER, 53).into());
            let through = flood(loud_pod, subject.address);
            let beside = |turn, flood: Option<Flood<'_>>| {
                std::thread::scope(|scope| {
                    let loud =
                        flood.map(|flood| scope.spawn(move || flood.run(0x20_0000 + tag(turn))));
                    let quiet = scope.spawn(|| ask(turn)).join().expect("no thread panics");
                    let loud = loud.map(|loud| loud.join().expect("no thread panics"));
                    (quiet, loud.unwrap_or_default())
                })
            };
            fairness.alone.add(&beside(0, None).0);
            fairness.control.add(&beside(1, Some(past)).0);
            let (quiet, loud) = beside(2, Some(through));
            fairness.beside.add(&quiet);
            fairness.loud.0 += loud.asked;
            fairness.loud.1 += loud.answered;
        }
    }
    found
}

impl Fairness {
    fn new(kind: Kind, name: &'static str) -> Self {
        let [alone, control, beside] = std::array::from_fn(|_| Quiet::default());
        Self { kind, name, alone, control, beside, loud: (0, 0) }
    }
}

/// A thread, or a process of one, that runs before all that are scheduled as usual; until this is
/// dropped.
struct Promoted(Pid);

impl Promoted {
    fn new(task: Pid) -> Self {
        schedule(task, ["--fifo", "--pid", "10"]);
        Self(task)
    }
}

impl Drop for Promoted {
    fn drop(&mut self) {
        schedule(self.0, ["--other", "--pid", "0"]);
    }
}

fn schedule(task: Pid, arguments: [&str; 3]) {
    let task = task.as_raw_nonzero().to_string();
    let status = Command::new("chrt").args(arguments).arg(&task).status();
    assert!(status.is_ok_and(|status| status.success()), "chrt of util-linux schedules {task}");
}
