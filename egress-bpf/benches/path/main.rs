//! What a packet costs: through the whole stack beside other firewalls, and as a verdict alone.
//!
//! Every subject has a pod, a node and a world of its own in network namespaces, so that none pays for
//! another's hooks. Rounds of all subjects are interleaved and medians are shown: ratios hold where times
//! do not. Processor time is that of the sending thread, which carries each packet through every hook to
//! the socket that it ends at. `make bench-path` runs it; needs root.
//!
//! `cargo bench -p namegate-egress-bpf --bench path -- [--rounds N] [--packets N] [--connections N]
//! [--repeat N] [--firsts N] [--only stack|connections|verdict] [--json]`

#![expect(clippy::expect_used, reason = "a benchmark that fails ends")]

mod empty;
mod report;
mod stack;
mod step;
mod verdict;
mod world;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use namegate_egress_bpf::abi::{NameEntry, NameKey};
use namegate_egress_bpf::compile::NameWrites;

use report::{Report, Row};
use stack::{ALLOWED, Kind};
use step::Step;
use world::Size;

/// Turns that the subjects take in a round; of each the cheapest counts, since whatever else runs on the
/// machine only adds to it.
const SLICES: u32 = 20;
/// The identity that learns while connections are made; nobody has it.
const STRANGER: u32 = 999;
/// Map writes a second meanwhile.
const WRITES: u64 = 5_000;

/// What the command line says.
struct Options {
    rounds: u32,
    packets: u32,
    connections: u32,
    repeat: u32,
    firsts: u32,
    only: Option<String>,
    json: bool,
}

impl Options {
    fn wants(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == part)
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let number = |name: &str, usual: u32| {
        value(name).map_or(usual, |number| number.parse().expect("a number"))
    };
    let options = Options {
        rounds: number("--rounds", 9).max(1),
        packets: number("--packets", 20_000),
        connections: number("--connections", 2_000),
        repeat: number("--repeat", 1_000_000),
        firsts: number("--firsts", 5_000),
        only: value("--only"),
        json: arguments.iter().any(|argument| argument == "--json"),
    };
    let mut report = Report::default();
    if options.wants("verdict") {
        verdicts(&options, &mut report);
    }
    if options.wants("stack") {
        packets(&options, &mut report);
    }
    if options.wants("connections") {
        connections(&options, &mut report);
    }
    report.print(options.json);
}

/// Verdicts alone, by size.
fn verdicts(options: &Options, report: &mut Report) {
    let pin = PathBuf::from(format!("/sys/fs/bpf/namegate-bench-{}", std::process::id()));
    let mut empty = empty::load_empty(&pin).expect("the empty program: run this as root");
    let by_names = [10, 1_000, 100_000, 900_000].map(Size::of_names);
    let many = Size { names: 1_000, policies: 500, identities: 1_000, pods: 1_000 };
    let subject = |size| verdict::Subject::new(size, &pin);
    let mut subjects: Vec<verdict::Subject> =
        by_names.into_iter().chain([many]).map(subject).collect();
    let fd = empty.fd().expect("it is loaded");
    let mut nothing = Step::before_program(fd.as_fd(), &pin).expect("a step");
    for _ in 0..options.rounds {
        for subject in &mut subjects {
            let cost = subject.measure((&mut empty, &mut nothing), options.repeat, options.firsts);
            report.verdict(subject.size, &cost);
        }
    }
}

/// Processor time of a packet of a known flow.
fn packets(options: &Options, report: &mut Report) {
    let subjects: Vec<stack::Subject> =
        Kind::ALL.into_iter().filter_map(|kind| build(kind, ALLOWED)).collect();
    // The first round warms everything up.
    for round in 0..=options.rounds {
        let mut least = vec![f64::INFINITY; subjects.len()];
        for _ in 0..SLICES {
            for (subject, least) in subjects.iter().zip(&mut least) {
                let cost = subject.network.packets(options.packets / SLICES);
                *least = least.min(cost.as_nanos() as f64);
            }
        }
        for (subject, least) in subjects.iter().zip(least) {
            if round > 0 {
                report.add(Row::Packet(subject.kind), least);
            }
        }
    }
}

/// Connections a second, of each firewall, and of the program with writes meanwhile.
fn connections(options: &Options, report: &mut Report) {
    for names in [ALLOWED, 900_000] {
        let mut subjects: Vec<stack::Subject> =
            Kind::ALL.into_iter().filter_map(|kind| build(kind, names)).collect();
        let count = options.connections / SLICES;
        let mut first = 0;
        // The first round warms everything up.
        for round in 0..=options.rounds {
            let mut most = BTreeMap::new();
            let mut note = |kind, writes, rate: f64| {
                let best = most.entry(Row::Connections { kind, names, writes }).or_insert(rate);
                *best = best.max(rate);
            };
            for _ in 0..SLICES {
                for subject in &mut subjects {
                    let kind = subject.kind;
                    note(kind, false, subject.network.connections(count, first, names));
                    if let Kind::Namegate = kind {
                        first += count;
                        note(kind, true, under_writes(subject, count, first, names));
                    }
                }
                first += count;
            }
            if round > 0 {
                most.into_iter().for_each(|(row, rate)| report.add(row, rate));
            }
        }
    }
}

/// The same while somebody learns [`WRITES`] addresses a second.
fn under_writes(subject: &mut stack::Subject, count: u32, first: u32, names: u32) -> f64 {
    let is_over = AtomicBool::new(false);
    let (network, datapath) = subject.parts();
    let datapath = datapath.expect("the program");
    thread::scope(|scope| {
        scope.spawn(|| {
            let started = Instant::now();
            let mut written = 0;
            while !is_over.load(Ordering::Relaxed) {
                let due = started.elapsed().as_millis() as u64 * WRITES / 1_000;
                let writes = NameWrites {
                    entries: (written..due.max(written)).map(learned).collect(),
                    ..NameWrites::default()
                };
                written = due.max(written);
                datapath.write_names(&writes).expect("room for the names");
                thread::park_timeout(Duration::from_millis(1));
            }
        });
        let rate = network.connections(count, first, names);
        is_over.store(true, Ordering::Relaxed);
        rate
    })
}

fn learned(number: u64) -> (NameKey, NameEntry) {
    let last = u32::try_from(number % 10_000).expect("below ten thousand");
    let address = IpAddr::from((0x0c00_0000 | last).to_be_bytes()).into();
    let entry = NameEntry { deadline_ns: number, class: 1, live_class: 1 };
    (NameKey { identity: STRANGER, address }, entry)
}

fn build(kind: Kind, names: u32) -> Option<stack::Subject> {
    let subject = stack::Subject::build(kind, names);
    if subject.is_none() {
        eprintln!("{} is not installed or was refused: left out", kind.name());
    }
    subject
}
