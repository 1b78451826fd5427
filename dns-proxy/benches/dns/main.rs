//! Processor time, latency, memory and losses of the whole agent, beside a bare forwarder and the name
//! servers that are installed.
//!
//! A pod asks, a resolver beyond the node answers, and every subject runs as a process on the node
//! between them, in network namespaces of this run. The agent is the real one: interception, identity,
//! patterns, eBPF map writes, audit log. Processor time is what the kernel accounts to the subject's
//! process. Rounds of all subjects are interleaved and medians are shown, so that ratios hold where
//! times do not. `make bench-dns` runs it; needs root.
//!
//! `cargo bench -p namegate-dns-proxy --bench dns -- [--only speed,first,overload,fair,memory,flood]
//! [--rounds N] [--queries N] [--lookups N] [--seconds N] [--names N] [--json]`

#![expect(clippy::expect_used, reason = "a benchmark that fails ends")]

mod aims;
mod fair;
mod first;
mod forwarder;
mod load;
mod memory;
mod overload;
mod report;
mod subject;
mod town;
mod upstream;

use std::time::Duration;

use report::Report;
use subject::{Kind, Subject};
use town::Town;

/// What can be measured by itself.
const PARTS: [&str; 6] = ["speed", "first", "overload", "fair", "memory", "flood"];

/// What the command line says.
struct Options {
    only: Option<Vec<String>>,
    rounds: u32,
    queries: u32,
    lookups: u32,
    seconds: u32,
    names: u32,
    json: bool,
}

impl Options {
    fn has(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.iter().any(|name| name == part))
    }

    fn time(&self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }
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
    let only = value("--only").map(|only| only.split(',').map(str::to_owned).collect::<Vec<_>>());
    for part in only.iter().flatten() {
        assert!(PARTS.contains(&part.as_str()), "--only {part}: one of {PARTS:?}");
    }
    let options = Options {
        only,
        rounds: number("--rounds", 5),
        queries: number("--queries", 20_000),
        lookups: number("--lookups", 20_000),
        seconds: number("--seconds", 2),
        names: number("--names", 100_000),
        json: arguments.iter().any(|argument| argument == "--json"),
    };
    run(&options);
}

fn run(options: &Options) {
    let town = Town::build();
    let (_, mut upstream) =
        subject::own(&town, "upstream", town::OUTSIDE, (town::RESOLVER, 53).into());
    let mut report = Report::default();
    if options.has("speed") {
        interleave(options, &town, &mut report);
    }
    let unbounded = ["--dns-client-rate", "0", "--min-ttl", "1s", "--ttl-grace", "1s"];
    if options.has("first")
        && let Some(agent) = Subject::agent(&town, &unbounded)
    {
        report.firsts = Some(first::follow(&town, agent.address, options.lookups));
    }
    if options.has("overload") {
        let kinds = [Kind::Forwarder, Kind::Namegate];
        let subjects: Vec<_> = kinds.into_iter().filter_map(|k| Subject::start(k, &town)).collect();
        let (rounds, queries) = (options.rounds, options.queries);
        report.overloads = overload::measure(&town, &subjects, rounds, queries, options.time());
    }
    if options.has("fair") {
        // One agent at a time can stand in for the resolver.
        for (name, arguments) in [("the usual bound", &[][..]), ("no bound", &unbounded)] {
            let agent = Subject::agent(&town, arguments).map(|agent| (name, agent));
            let bare = Subject::start(Kind::Forwarder, &town).map(|bare| ("forwarder", bare));
            let subjects: Vec<_> = agent.into_iter().chain(bare).collect();
            let resolver = rustix::thread::Pid::from_child(&upstream);
            let (rounds, time) = (options.rounds, options.time());
            report.fairness.extend(fair::measure(&town, &subjects, resolver, rounds, time));
        }
    }
    if options.has("memory") {
        report.filled = memory::fill(&town);
    }
    if options.has("flood") {
        report.flooded = memory::flood(&town, options.names);
    }
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
            let (address, tag) = (subject.address, round * 16 + subject.kind as u32);
            let saturated =
                |names| subject.measure(|| load::saturate(address, tag, options.queries, names));
            let unique = saturated(load::Names::Unique);
            let hits = saturated(load::Names::Few);
            let paced = load::pace(address, tag, 5_000, options.queries / 4);
            // The first round warms everything up.
            if round > 0 {
                report.add(subject, &unique, &hits, &paced);
            }
        }
    }
}
