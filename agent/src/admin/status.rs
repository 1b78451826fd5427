//! `GET /v1/status`: whether all is well, and otherwise what is wrong and what to do.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::{Context, Failure, Phase, View};
use crate::metrics::Readings;

/// Of a map's entries, so many percent are worth a word.
const NEAR_FULL: u64 = 80;

/// Pods that a finding names at most.
const PODS_NAMED: usize = 5;

/// The agent at one moment.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct StatusReport {
    /// Version of the agent.
    pub version: String,
    /// `starting`, `enforcing` or `ending`.
    pub phase: String,
    /// Since the agent began, in seconds.
    pub uptime_s: u64,
    /// Pods by state.
    pub endpoints: BTreeMap<String, u64>,
    /// Policies in force.
    pub policies: u64,
    /// Identities with a policy table.
    pub identities: u64,
    /// Resolvers that the proxy stands in for.
    pub resolvers: Vec<std::net::IpAddr>,
    /// Learned addresses.
    pub learned: u64,
    /// Live flows, and those that fit.
    pub flows: (u64, u64),
    /// Lookups by verdict since the agent began.
    pub lookups: BTreeMap<String, u64>,
    /// Packets by verdict since the maps were made.
    pub packets: BTreeMap<String, u64>,
    /// Records of decisions that were lost, by where.
    pub lost: BTreeMap<String, u64>,
    /// Records of decisions that the bounds of their pods kept out of log and memory.
    #[serde(default)]
    pub suppressed: u64,
    /// What is wrong or odd, the worst first; empty where all is well.
    pub findings: Vec<Finding>,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// What is so.
    pub what: String,
    /// What to do.
    pub fix: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something that should be enforced or resolved is not as policies say.
    Error,
    /// It works, and something is odd.
    Warning,
}

pub(super) fn routes() -> Router<Context> {
    Router::new().route("/status", get(report))
}

async fn report(State(context): State<Context>) -> Result<Json<StatusReport>, Failure> {
    status(&context).await.map(Json)
}

/// The agent at this moment.
pub async fn status(context: &Context) -> Result<StatusReport, Failure> {
    let phase = context.phase.now();
    let mut report = StatusReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        phase: phase.as_str().to_owned(),
        uptime_s: context.began.elapsed().as_secs(),
        endpoints: BTreeMap::new(),
        policies: 0,
        identities: 0,
        resolvers: Vec::new(),
        learned: 0,
        flows: (0, 0),
        lookups: BTreeMap::new(),
        packets: BTreeMap::new(),
        lost: BTreeMap::new(),
        suppressed: context.log.counts().suppressed,
        findings: Vec::new(),
    };
    report.findings.extend(unfollowed(context.watches.each()));
    report.findings.extend(context.cni.trouble().map(unchained));
    if phase != Phase::Enforcing {
        report.findings.push(Finding {
            severity: Severity::Error,
            what: format!("the agent is {}: it does not follow changes", phase.as_str()),
            fix: "what an earlier agent pinned stays enforced; see the agent's log for what it \
                  waits for"
                .to_owned(),
        });
        return Ok(report);
    }
    let readings = context.readings().await?;
    let (resolvers, findings) = context.desk.ask(look).await?;
    report.resolvers = resolvers;
    report.findings.extend(findings);
    report.findings.extend(judged(&readings));
    report.findings.sort();
    fill(&mut report, &readings);
    for (verdict, _, _, count) in context.metrics.lookups.decided() {
        *report.lookups.entry(verdict.to_string()).or_default() += count;
    }
    Ok(report)
}

fn fill(report: &mut StatusReport, readings: &Readings) {
    let owned = |(word, count): (&&'static str, &u64)| ((*word).to_owned(), *count);
    report.endpoints = readings.endpoints.iter().map(owned).collect();
    report.lost = readings.lost.iter().map(owned).collect();
    report.policies = readings.policy_count;
    report.identities = readings.identities;
    report.learned = readings.learned_addresses;
    let flows = readings.fill.iter().find(|fill| fill.map == "FLOWS");
    report.flows = flows.map_or((0, 0), |fill| (fill.used, fill.max));
    for ((_, reason), count) in &readings.packets.packets {
        *report.packets.entry(reason.verdict().to_owned()).or_default() += count;
    }
}

/// What the state's owner knows to be wrong.
fn look(view: View<'_>) -> (Vec<std::net::IpAddr>, Vec<Finding>) {
    let error = |what, fix: &str| Finding { severity: Severity::Error, what, fix: fix.to_owned() };
    let warning =
        |what, fix: &str| Finding { severity: Severity::Warning, what, fix: fix.to_owned() };
    let mut findings = Vec::new();
    for failure in view.failures {
        findings.push(error(
            format!("cannot be enforced: {failure}"),
            "tried again every second, and what was in force stays; make room or see the agent's log",
        ));
    }
    for lacking in view.hooks.lacking() {
        findings.push(error(
            format!("the kernel program is not where it belongs: {lacking}"),
            "find out who attaches programs to the pods' interfaces: `bpftool net`",
        ));
    }
    for (identity, trouble) in view.state.table_errors() {
        findings.push(error(
            format!("identity {}: {trouble}", identity.number()),
            "its last table stays in force; let fewer rules select its pods",
        ));
    }
    for trouble in view.state.troubles() {
        findings.push(warning(trouble.clone(), "see the object that is named"));
    }
    let waiting = view.state.waiting_pods();
    if !waiting.is_empty() {
        let mut named: Vec<String> =
            waiting.iter().take(PODS_NAMED).map(ToString::to_string).collect();
        if waiting.len() > PODS_NAMED {
            named.push(format!("{} others", waiting.len() - PODS_NAMED));
        }
        findings.push(warning(
            format!("no interface is found for {}", named.join(", ")),
            "a pod that is starting is found within a second; otherwise compare `ip link` with the \
             pod's addresses",
        ));
    }
    if view.resolvers.is_empty() && view.state.policies().any(|policy| policy.dns.is_some()) {
        findings.push(error(
            "policies speak of names, and no resolver is known whose lookups they govern"
                .to_owned(),
            "give the pods' resolver with --resolver",
        ));
    }
    (view.resolvers.values().copied().collect(), findings)
}

/// What the API server does not let the agent follow: one finding for each reason.
fn unfollowed(watches: BTreeMap<&'static str, Option<String>>) -> Vec<Finding> {
    let mut reasons: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (kind, why) in watches {
        if let Some(why) = why {
            reasons.entry(why).or_default().push(kind);
        }
    }
    let finding = |(why, kinds): (String, Vec<&str>)| Finding {
        severity: Severity::Error,
        what: format!("changes of {} are not followed: {why}", kinds.join(", ")),
        fix: "what was known stays in force, and it is tried again".to_owned(),
    };
    reasons.into_iter().map(finding).collect()
}

/// The CNI plugin is not where it is to be.
fn unchained(trouble: String) -> Finding {
    Finding {
        severity: Severity::Warning,
        what: format!("pods start without the CNI plugin: {trouble}"),
        fix: "until then the first packets of a pod can pass before its interface is found; the metric \
              namegate_pod_window_seconds says for how long"
            .to_owned(),
    }
}

/// What the counts say.
fn judged(readings: &Readings) -> Vec<Finding> {
    let mut findings = Vec::new();
    for fill in &readings.fill {
        if fill.used.saturating_mul(100) >= fill.max.saturating_mul(NEAR_FULL) {
            findings.push(Finding {
                severity: Severity::Warning,
                what: format!("map {} holds {} of {} entries", fill.map, fill.used, fill.max),
                fix:
                    "ARCHITECTURE.md says what happens when it is full; have fewer of what it holds"
                        .to_owned(),
            });
        }
    }
    for (place, count) in readings.lost.iter().filter(|(_, count)| **count > 0) {
        findings.push(Finding {
            severity: Severity::Warning,
            what: format!("{count} records of decisions were lost ({place})"),
            fix: "log less, or to a faster sink; decisions themselves are not concerned".to_owned(),
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use namegate_egress_bpf::datapath::Fill;

    use super::*;

    #[test]
    fn kinds_that_are_not_followed_are_told_by_reason() {
        let why = Some("no answer from the API server".to_owned());
        let watches = BTreeMap::from([("pods", why.clone()), ("nodes", why), ("services", None)]);
        let found = unfollowed(watches);
        let what: Vec<&str> = found.iter().map(|found| found.what.as_str()).collect();
        assert_eq!(
            what,
            ["changes of nodes, pods are not followed: no answer from the API server"]
        );
    }

    #[test]
    fn a_map_that_is_nearly_full_and_lost_records_are_told() {
        let fill = |map, used| Fill { map, used, max: 100 };
        let readings = Readings {
            fill: vec![fill("NAMES", 79), fill("FLOWS", 80)],
            lost: BTreeMap::from([("kernel", 3), ("sink", 0)]),
            ..Readings::default()
        };
        let what: Vec<String> = judged(&readings).into_iter().map(|found| found.what).collect();
        assert_eq!(
            what,
            ["map FLOWS holds 80 of 100 entries", "3 records of decisions were lost (kernel)"]
        );
    }
}
