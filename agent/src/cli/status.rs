//! `namegate status`: one screen, and an exit code.

use std::fmt::Write as _;
use std::process::ExitCode;

use super::client::{AskArgs, Client, Format};
use super::lists::{duration, json};
use super::table::{Screen, Tone, print};
use crate::admin::{Severity, StatusReport};

/// Exit code 0 where all is well or merely odd, 1 where something is wrong or nobody answers.
pub(super) fn run(args: &AskArgs) -> ExitCode {
    match ask(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("namegate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn ask(args: &AskArgs) -> anyhow::Result<bool> {
    let report: StatusReport = Client::new(args).get("/v1/status")?;
    match args.output {
        Format::Json => json(&report)?,
        Format::Table => print(&screen(&report, Screen::stdout()))?,
    }
    Ok(report.findings.iter().all(|finding| finding.severity != Severity::Error))
}

fn screen(report: &StatusReport, screen: Screen) -> String {
    let mut out = String::new();
    let errors = report.findings.iter().filter(|finding| finding.severity == Severity::Error);
    let (word, tone) = match (errors.count(), report.findings.len()) {
        (0, 0) => ("healthy", Tone::Good),
        (0, _) => ("healthy, with remarks", Tone::Odd),
        (_, _) => ("not healthy", Tone::Bad),
    };
    let mut line = |label: &str, text: String| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{label:<11}{text}");
    };
    line(
        "agent",
        format!(
            "{}, {} for {}, version {}",
            screen.paint(word, tone),
            report.phase,
            duration(report.uptime_s),
            report.version
        ),
    );
    let count = |state: &str| report.endpoints.get(state).copied().unwrap_or(0);
    line(
        "pods",
        format!("{} enforced, {} waiting for their interface", count("enforced"), count("waiting")),
    );
    line("policies", format!("{} in force, {} identities", report.policies, report.identities));
    let resolvers: Vec<String> = report.resolvers.iter().map(ToString::to_string).collect();
    line("resolvers", if resolvers.is_empty() { "none".to_owned() } else { resolvers.join(", ") });
    line("lookups", counts(&report.lookups));
    line("packets", counts(&report.packets));
    line("learned", format!("{} addresses", report.learned));
    line("flows", format!("{} of {}", report.flows.0, report.flows.1));
    for finding in &report.findings {
        let (word, tone) = match finding.severity {
            Severity::Error => ("error", Tone::Bad),
            Severity::Warning => ("remark", Tone::Odd),
        };
        // Findings may quote objects.
        let what = super::table::printable(&finding.what);
        let fix = super::table::printable(&finding.fix);
        let _ = writeln!(out, "\n{}: {what}\n    {fix}", screen.paint(word, tone));
    }
    out
}

fn counts(counts: &std::collections::BTreeMap<String, u64>) -> String {
    if counts.is_empty() {
        return "none yet".to_owned();
    }
    let counts: Vec<String> =
        counts.iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
    counts.join(", ")
}
