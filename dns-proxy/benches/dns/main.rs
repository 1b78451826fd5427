//! Processor time and latency for each query, beside a bare forwarder and the name servers that
//! are installed.
//!
//! Every subject runs as a process of its own between the same load and the same upstream on
//! loopback; processor time is what the kernel accounts to that process. Rounds of all subjects are
//! interleaved and medians are shown, so that ratios hold where times do not.
//!
//! `cargo bench -p namegate-dns-proxy --bench dns -- [--rounds N] [--queries N] [--json]`

#![expect(clippy::expect_used, reason = "a benchmark that fails ends")]

mod forwarder;
mod load;
mod report;
mod subject;
mod upstream;

use std::net::SocketAddr;

use subject::{Kind, Subject};

/// What the command line says.
struct Options {
    rounds: usize,
    queries: u32,
    json: bool,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)
    };
    if let Some(role) = value("--serve") {
        let upstream: SocketAddr = value("--upstream")
            .map_or_else(|| "127.0.0.1:0".parse(), |address| address.parse())
            .expect("an address");
        return match role.as_str() {
            "upstream" => upstream::serve(),
            "forwarder" => forwarder::serve(upstream),
            "proxy" => subject::serve_proxy(upstream),
            other => panic!("no such role: {other}"),
        };
    }
    let options = Options {
        rounds: value("--rounds").map_or(5, |rounds| rounds.parse().expect("a number")),
        queries: value("--queries").map_or(40_000, |queries| queries.parse().expect("a number")),
        json: arguments.iter().any(|argument| argument == "--json"),
    };
    run(&options);
}

fn run(options: &Options) {
    let upstream = Subject::start(Kind::Upstream, None).expect("the upstream starts");
    let subjects: Vec<Subject> = [Kind::Forwarder, Kind::Proxy, Kind::Dnsmasq, Kind::Unbound]
        .into_iter()
        .filter_map(|kind| {
            let subject = Subject::start(kind, Some(upstream.address));
            if subject.is_none() {
                eprintln!("{} is not installed or did not start: left out", kind.name());
            }
            subject
        })
        .collect();
    let mut report = report::Report::new(subjects.iter().map(|subject| subject.kind.name()));
    for round in 0..=options.rounds {
        for (at, subject) in subjects.iter().enumerate() {
            let tag = u32::try_from(round * subjects.len() + at).expect("few rounds");
            let unique = subject.measure(|| {
                load::saturate(subject.address, tag, options.queries, load::Names::Unique)
            });
            let hits = subject.measure(|| {
                load::saturate(subject.address, tag, options.queries, load::Names::Few)
            });
            let paced = load::pace(subject.address, tag, 5_000, options.queries / 8);
            // The first round warms everything up.
            if round > 0 {
                report.add(at, &unique, &hits, &paced);
            }
        }
    }
    report.print(options.json);
}
