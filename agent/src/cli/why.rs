//! `namegate why`: what becomes of a flow now, and what would let it through.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::client::{AskArgs, Client, Format};
use super::lists::{duration, json, path};
use super::subject;
use super::table::{Screen, Tone, print, printable};
use crate::admin::{EndReport, TargetReport, WhyReport};

/// Options of `namegate why`.
#[derive(Debug, Args)]
pub struct WhyArgs {
    /// The pod that opens the flow
    #[arg(value_name = "NAMESPACE/POD", value_parser = subject::pod)]
    pod: String,
    /// Whom to
    #[arg(value_name = "NAME|ADDRESS", value_parser = subject::target)]
    to: String,
    /// The port there
    #[arg(default_value_t = 443, value_parser = subject::port)]
    port: u16,
    /// The protocol
    #[arg(long, value_enum, default_value = "tcp")]
    protocol: Transport,
    /// Show every rule of the tables, also where the flow goes through
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    ask: AskArgs,
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// RFC 9293
    Tcp,
    /// RFC 768
    Udp,
    /// RFC 9260
    Sctp,
}

/// Exit code 0 where the flow goes through, 3 where it does not, 1 where nobody can say.
pub(super) fn run(args: &WhyArgs) -> ExitCode {
    match ask(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(3),
        Err(error) => {
            eprintln!("namegate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn ask(args: &WhyArgs) -> anyhow::Result<bool> {
    let protocol = match args.protocol {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
        Transport::Sctp => "sctp",
    };
    let given = |text: &str| Some(text.to_owned());
    let asked = path(
        "/v1/why",
        [
            ("pod", &given(&args.pod)),
            ("to", &given(&args.to)),
            ("port", &given(&args.port.to_string())),
            ("protocol", &given(protocol)),
        ],
    );
    let report: WhyReport = Client::new(&args.ask).get(&asked)?;
    match args.ask.output {
        Format::Json => json(&report)?,
        Format::Table => print(&Words { args, screen: Screen::stdout() }.report(&report))?,
    }
    Ok(matches!(&*report.verdict, "forwarded" | "audit"))
}

struct Words<'a> {
    args: &'a WhyArgs,
    screen: Screen,
}

impl Words<'_> {
    fn report(&self, report: &WhyReport) -> String {
        let mut out = String::new();
        let (word, tone) = match &*report.verdict {
            "forwarded" => ("goes through", Tone::Good),
            "audit" => ("goes through; without Audit mode it would not", Tone::Odd),
            "unlearned" => ("does not go through: the pod has not looked the name up", Tone::Bad),
            "refused" => ("does not go through: the lookup is refused", Tone::Bad),
            _ => ("does not go through", Tone::Bad),
        };
        let question = format!("{} -> {}:{}", self.args.pod, self.args.to, self.args.port);
        self.line(&mut out, 0, &format!("{} ", printable(&question)), word, tone);
        let policies: Vec<&str> = report.policies.iter().map(String::as_str).collect();
        let policies =
            if policies.is_empty() { "none: all is open".to_owned() } else { policies.join(", ") };
        self.line(&mut out, 2, "selected by ", &policies, Tone::Plain);
        if let Some(lookup) = &report.lookup {
            let by = if lookup.rules.is_empty() {
                lookup.verdict.clone()
            } else {
                format!("{}, {}", lookup.verdict, lookup.rules.join(", "))
            };
            let tone = if lookup.verdict == "refused" { Tone::Bad } else { Tone::Good };
            self.line(&mut out, 2, "lookup      ", &by, tone);
            let opens = if lookup.opens.is_empty() {
                "nothing".to_owned()
            } else {
                lookup.opens.join(", ")
            };
            self.line(&mut out, 2, "opens       ", &opens, Tone::Plain);
        }
        for target in &report.targets {
            self.target(&mut out, target);
        }
        for advice in &report.advice {
            self.line(&mut out, 0, "=> ", advice, Tone::Odd);
        }
        out
    }

    fn target(&self, out: &mut String, target: &TargetReport) {
        let mut whom = format!("{}:{}", target.address, target.port);
        // Writing to a string does not fail.
        let _ = match (&target.who, target.service) {
            (Some(who), Some((address, port))) => {
                write!(whom, " ({who}), behind the service {address}:{port}")
            }
            (Some(who), None) => write!(whom, " ({who})"),
            (None, Some((address, port))) => write!(whom, " behind the service {address}:{port}"),
            (None, None) => Ok(()),
        };
        self.line(out, 0, "", &whom, Tone::Plain);
        for learned in &target.learned {
            let open = match (&learned.not_opened, learned.open_for_s) {
                (Some(why), _) => format!("which does not open it: {why}"),
                (None, Some(seconds)) => format!("open for {}", duration(seconds)),
                (None, None) => "past its time".to_owned(),
            };
            self.line(out, 2, "learned     ", &format!("{}, {open}", learned.name), Tone::Plain);
        }
        self.end(out, "egress      ", &target.egress);
        if let Some(ingress) = &target.ingress {
            self.end(out, "ingress     ", ingress);
        }
        for flow in &target.flows {
            let text = format!(
                "from port {}, {} for {}, {} packets",
                flow.local_port,
                flow.state,
                duration(flow.age_s),
                flow.packets
            );
            self.line(out, 2, "live flow   ", &text, Tone::Plain);
        }
    }

    fn end(&self, out: &mut String, label: &str, end: &EndReport) {
        let is_through = matches!(&*end.verdict, "forwarded" | "lookup");
        let tone = match &*end.verdict {
            "audit" => Tone::Odd,
            _ if is_through => Tone::Good,
            _ => Tone::Bad,
        };
        let text = match end.rules.is_empty() {
            true => format!("{}, {}", end.verdict, end.reason),
            false => format!("{}, {}: {}", end.verdict, end.reason, end.rules.join(", ")),
        };
        self.line(out, 2, label, &text, tone);
        if is_through && !self.args.verbose {
            return;
        }
        for rule in &end.considered {
            let why = match (rule.means_peer, rule.means_port) {
                (true, true) => "means it",
                (true, false) => "other port",
                (false, true) => "other peer",
                (false, false) => "other peer and port",
            };
            self.line(
                out,
                4,
                &format!("{why:<20}"),
                &format!("{} {}", rule.action, rule.rule),
                Tone::Faint,
            );
        }
    }

    fn line(&self, out: &mut String, indent: usize, label: &str, text: &str, tone: Tone) {
        let _ = writeln!(out, "{:indent$}{label}{}", "", self.screen.paint(text, tone));
    }
}
