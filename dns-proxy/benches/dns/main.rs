//! Processor time, latency, memory and losses of the whole agent, beside a bare forwarder and the name
//! servers that are installed.
//!
//! A pod asks, a resolver beyond the node answers, and every subject runs as a process on the node
//! between them, in network namespaces of this run. The agent is the real one: interception, identity,
//! patterns, eBPF map writes, audit log. Processor time is what the kernel accounts to the subject's
//! process. Rounds of all subjects are interleaved and medians are shown, so that ratios hold where
//! times do not. `make bench-dns` runs it; needs root.
//!
//! `cargo bench -p namegate-dns-proxy --bench dns -- [--rounds N] [--queries N] [--lookups N] [--json]`

#![expect(clippy::expect_used, reason = "a benchmark that fails ends")]

mod first;
mod forwarder;
mod load;
mod report;
mod subject;
mod town;
mod upstream;

use std::time::Duration;

use report::{Memory, Report};
use subject::{Kind, Subject};
use town::Town;

/// Names that the agent is filled with for its memory.
const NAMES: u32 = 100_000;

/// What the command line says.
struct Options {
    rounds: usize,
    queries: u32,
    lookups: u32,
    json: bool,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)
    };
    let number = |name: &str, usual: u32| {
        value(name).map_or(usual, |number| number.parse().expect("a number"))
    };
    if let Some(role) = value("--serve") {
        let upstream = value("--upstream").expect("--upstream").parse().expect("an address");
        return match role.as_str() {
            "upstream" => upstream::serve(),
            "forwarder" => forwarder::serve(upstream),
            other => panic!("no such role: {other}"),
        };
    }
    let options = Options {
        rounds: number("--rounds", 5) as usize,
        queries: number("--queries", 20_000),
        lookups: number("--lookups", 20_000),
        json: arguments.iter().any(|argument| argument == "--json"),
    };
    run(&options);
}

fn run(options: &Options) {
    let town = Town::build();
    let (_, mut upstream) =
        subject::own(&town, "upstream", town::OUTSIDE, (town::RESOLVER, 53).into());
    let mut report = Report::default();
    interleave(options, &town, &mut report);
    report.memory = fill(&town);
    report.print(options.json);
    // It may have ended by itself.
    let _ = upstream.kill();
    let _ = upstream.wait();
}

fn interleave(options: &Options, town: &Town, report: &mut Report) {
    let subjects: Vec<Subject> = Kind::ALL
        .into_iter()
        .filter_map(|kind| {
            let subject = Subject::start(kind, town);
            if subject.is_none() {
                eprintln!("{} is not installed or did not start: left out", kind.name());
            }
            subject
        })
        .collect();
    for round in 0..=options.rounds {
        for subject in &subjects {
            town.enter(subject.kind.pod());
            let (address, tag) = (subject.address, u32::try_from(round).expect("few rounds"));
            let tag = tag * 16 + subject.kind as u32;
            let saturated =
                |names| subject.measure(|| load::saturate(address, tag, options.queries, names));
            let unique = saturated(load::Names::Unique);
            let hits = saturated(load::Names::Few);
            let paced = load::pace(address, tag, 5_000, options.queries / 4);
            let rate = f64::from(unique.load.answered) / unique.load.took.as_secs_f64();
            let flood = load::flood(address, tag, 3.0 * rate, Duration::from_millis(500));
            // The first round warms everything up.
            if round > 0 {
                report.add(subject, &unique, &hits, &paced, &flood);
            }
        }
    }
    if let Some(agent) = subjects.iter().find(|subject| subject.kind == Kind::Namegate) {
        town.enter(agent.kind.pod());
        report.firsts = Some(first::follow(agent.address, options.lookups));
    }
}

/// What an agent takes when it is idle, and when it has learned [`NAMES`] names.
fn fill(town: &Town) -> Option<Memory> {
    let agent = Subject::keeping_agent(town)?;
    let idle = agent.memory();
    let filled = load::saturate(agent.address, 0, NAMES, load::Names::Unique);
    Some(Memory { idle, names: filled.answered, full: agent.memory() })
}
