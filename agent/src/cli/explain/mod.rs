//! `namegate explain`: what becomes of a flow, which rule decides, and why the others do not.

mod answer;
mod cast;
mod flows;
mod reasons;
mod session;
mod text;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write as _};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use namegate_policy::name::DnsName;
use namegate_policy::object::Object;
use namegate_policy::opening::{ClusterRanges, RebindingGuard};
use namegate_policy::oracle::Circumstances;
use namegate_policy::problem::distance;
use namegate_policy::rule::Protocol;
use serde::Serialize;

use super::{Guard, check, subject};
use crate::explain::{Engine, EngineKind};
use crate::source::ProblemKind;
use answer::Answer;
use session::{Answers, Asked, Detail, Session};

/// Options of `namegate explain`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  namegate explain --manifests examples/town --from shop/checkout --to data/db --port 5432
      Both ends: egress of the checkout, ingress of the database.
  namegate explain --manifests examples/town --from shop/checkout --to api.stripe.com --port 443 \\
      --dns api.stripe.com=203.0.113.10
      The lookup, then the flow to what it resolves to.
  namegate explain --manifests . --from shop/web --to service:shop/ledger --port https -o json
      A Service by its backends, for programs.
  namegate explain --manifests . --flows flows.jsonl
      One {\"from\", \"to\", \"port\", \"protocol\"} a line, one answer a line.

A pod needs its addresses in status.podIPs; it lives on the Node that spec.nodeName names, else on
one with the addresses of --node-address. A Service is judged by its backends, from EndpointSlices.

Engines: `host`, the default, is what agents would enforce, and needs no privileges: their state,
their rows, and the function that the kernel program runs. `kernel` runs that program itself, on
maps of its own beside a running agent. `oracle` reads the objects in the plainest way. All three
agree; tests hold them against each other.

Exit codes: 0 the flow is explained, 1 manifests are invalid or a flow could not be judged, 2 wrong
usage, an unknown pod or service among it. docs/explain.md has the schema of both JSON outputs.")]
pub struct ExplainArgs {
    /// Manifests of the cluster: directories or files; may be repeated
    #[arg(long, required = true, value_name = "DIR")]
    manifests: Vec<PathBuf>,
    /// Who opens the flow
    #[arg(long, value_name = "NS/POD|ADDRESS", required_unless_present = "flows")]
    from: Option<String>,
    /// Whom it is opened to
    #[arg(
        long,
        value_name = "NS/POD|ADDRESS|NAME|service:NS/NAME",
        required_unless_present = "flows"
    )]
    to: Option<String>,
    /// Port of the destination: a number, or a name that the pod or Service gives it
    #[arg(long, value_name = "N|NAME", value_parser = cast::port)]
    port: Option<cast::Port>,
    /// TCP, UDP, SCTP or ICMP (an echo request, which has no port)
    #[arg(long, default_value = "TCP", value_parser = cast::protocol)]
    protocol: Protocol,
    /// Answer one flow a line from this file; `-` for standard input
    #[arg(long, value_name = "FILE|-", conflicts_with_all = ["from", "to", "port"])]
    flows: Option<PathBuf>,
    /// What a name resolves to; may be repeated
    #[arg(long = "dns", value_name = "NAME=ADDRESS,...", value_parser = dns_answer)]
    dns: Vec<(DnsName, Vec<IpAddr>)>,
    /// Who decides
    #[arg(long, value_enum, default_value = "host")]
    engine: EngineKind,
    /// How to answer
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
    /// Addresses of the node of pods without spec.nodeName
    #[arg(long = "node-address", value_name = "ADDRESS", value_delimiter = ',', value_parser = subject::address)]
    node_addresses: Vec<IpAddr>,
    /// Domain of the cluster, as the agent has it
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    cluster_domain: String,
    /// Range that pods get their addresses from, as the agent has it; may be repeated
    #[arg(long = "pod-cidr", value_name = "CIDR", value_delimiter = ',', value_parser = subject::cidr)]
    pod_cidrs: Vec<IpNet>,
    /// Range that services get their addresses from, as the agent has it; may be repeated
    #[arg(long = "service-cidr", value_name = "CIDR", value_delimiter = ',', value_parser = subject::cidr)]
    service_cidrs: Vec<IpNet>,
    /// Addresses of nodes, as the agent has them; may be repeated
    #[arg(long = "node-cidr", value_name = "CIDR", value_delimiter = ',', value_parser = subject::cidr)]
    node_cidrs: Vec<IpNet>,
    /// A further resolver whose lookups go through the proxy; may be repeated
    #[arg(long = "resolver", value_name = "ADDRESS", value_delimiter = ',', value_parser = subject::address)]
    resolvers: Vec<IpAddr>,
    /// Whether a name may open private addresses, as the agent has it
    #[arg(long, value_enum, default_value = "standard")]
    rebinding_guard: Guard,
}

/// How to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// One answer as a program reads it.
#[derive(Serialize)]
struct Explanation<'a> {
    from: &'a str,
    to: &'a str,
    protocol: &'static str,
    engine: String,
    #[serde(flatten)]
    answer: Answer,
}

pub(super) fn run(args: &ExplainArgs) -> ExitCode {
    let circumstances = match circumstances(args) {
        Ok(circumstances) => circumstances,
        Err(complaint) => return misused(&complaint),
    };
    if let Some(complaint) = unasked(args) {
        return misused(&complaint);
    }
    let directory = match check::read(&args.manifests) {
        Ok(directory) => directory,
        Err(complaint) => return misused(&format!("--manifests {complaint}")),
    };
    let errors = directory.problems().filter(|problem| problem.kind != ProblemKind::Foreign);
    if errors.inspect(|problem| eprintln!("error: {problem}")).count() > 0 {
        return ExitCode::FAILURE;
    }
    let objects: Vec<Object> = directory.objects().map(|object| (**object).clone()).collect();
    let answers: Answers =
        args.dns.iter().fold(Answers::new(), |mut answers, (name, addresses)| {
            answers.entry(name.clone()).or_default().extend(addresses);
            answers
        });
    let engine = match Engine::new(args.engine, &circumstances) {
        Ok(engine) => engine,
        Err(error) => {
            return failed(&anyhow::Error::new(error).context(format!("--engine {}", args.engine)));
        }
    };
    match Session::new(engine, &objects, circumstances, &answers) {
        Ok(mut session) => match &args.flows {
            Some(path) => many(&mut session, path),
            None => one(&mut session, args),
        },
        Err(complaint) => failed(&anyhow::Error::msg(complaint)),
    }
}

fn one(session: &mut Session<'_>, args: &ExplainArgs) -> ExitCode {
    let (from, to) =
        (args.from.as_deref().unwrap_or_default(), args.to.as_deref().unwrap_or_default());
    let asked = Asked {
        from: from.to_owned(),
        to: to.to_owned(),
        protocol: args.protocol,
        port: args.port.clone(),
    };
    let answer = match session.answer(&asked, Detail::Reasons) {
        Ok(answer) => answer,
        Err(complaint) => return misused(&complaint),
    };
    for notice in session.notices() {
        eprintln!("namegate: {notice}");
    }
    let is_told = answer.verdict.is_some();
    let protocol = namegate_policy::explain::protocol(args.protocol);
    let printed = match args.output {
        Output::Text => {
            let port = match &args.port {
                Some(cast::Port::Number(number)) => format!(" port {number}"),
                Some(cast::Port::Name(name)) => format!(" port {name}"),
                None => String::new(),
            };
            print(&text::render(&format!("{from} to {to}, {protocol}{port}"), &answer))
        }
        Output::Json => {
            let engine = args.engine.to_string();
            let explanation = Explanation { from, to, protocol, engine, answer };
            serde_json::to_string_pretty(&explanation)
                .map_err(anyhow::Error::new)
                .and_then(|text| print(&format!("{text}\n")))
        }
    };
    match printed {
        Err(error) => failed(&error),
        Ok(()) if is_told => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
    }
}

fn many(session: &mut Session<'_>, path: &std::path::Path) -> ExitCode {
    let mut output = BufWriter::new(std::io::stdout().lock());
    let outcome = if path == std::path::Path::new("-") {
        flows::answer(session, &mut std::io::stdin().lock(), &mut output)
    } else {
        match File::open(path) {
            Ok(file) => flows::answer(session, &mut BufReader::new(file), &mut output),
            Err(error) => return misused(&format!("--flows {}: {error}", path.display())),
        }
    };
    match outcome {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => failed(&error),
    }
}

fn circumstances(args: &ExplainArgs) -> Result<Circumstances, String> {
    let domain = DnsName::parse(&args.cluster_domain)
        .map_err(|error| format!("--cluster-domain {}: {error}", args.cluster_domain))?;
    Ok(Circumstances {
        own_addresses: args.node_addresses.iter().copied().collect::<BTreeSet<_>>(),
        ranges: ClusterRanges {
            nodes: args.node_cidrs.clone(),
            pods: args.pod_cidrs.clone(),
            services: args.service_cidrs.clone(),
        },
        resolvers: args.resolvers.iter().copied().collect(),
        domain,
        guard: match args.rebinding_guard {
            Guard::Standard => RebindingGuard::Relaxed,
            Guard::Strict => RebindingGuard::Strict,
        },
        ..Circumstances::default()
    })
}

/// What is wrong where the name has no answer and one that is almost the same has: a typing error would
/// be taken for a name without addresses.
fn unasked(args: &ExplainArgs) -> Option<String> {
    let to = args.to.as_deref().filter(|to| !to.contains([':', '/']))?;
    let asked = DnsName::parse(to).ok()?;
    if args.dns.iter().any(|(given, _)| *given == asked) {
        return None;
    }
    let (written, tolerance) = (asked.to_string(), (to.len() / 5).clamp(1, 3));
    let is_near = |given: &DnsName| distance(&given.to_string(), &written) <= tolerance;
    let (near, _) = args.dns.iter().find(|(given, _)| is_near(given))?;
    Some(format!(
        "--dns {near}: nothing asks for it, since --to is {asked}; write one name in both"
    ))
}

/// Reads `NAME=ADDRESS,...`.
fn dns_answer(text: &str) -> Result<(DnsName, Vec<IpAddr>), String> {
    let (name, addresses) = text
        .split_once('=')
        .ok_or_else(|| "expected NAME=ADDRESS, such as api.example.com=203.0.113.1".to_owned())?;
    let name = DnsName::parse(name).map_err(|error| format!("{name}: {error}"))?;
    let addresses: Result<Vec<IpAddr>, String> = addresses
        .split(',')
        .map(|text| text.parse().map_err(|_| format!("`{text}` is not an IP address")))
        .collect();
    Ok((name, addresses?))
}

fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("cannot write the answer")
}

fn misused(complaint: &str) -> ExitCode {
    eprintln!("namegate: {complaint}");
    ExitCode::from(2)
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("namegate: {error:#}");
    ExitCode::FAILURE
}
