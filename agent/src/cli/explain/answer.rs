//! What is answered: field names are the schema of `docs/explain.md`.

use std::net::IpAddr;
use std::sync::Arc;

use namegate_policy::oracle::{LookupRuling, Outcome, Stage, Verdict};
use namegate_policy::rule::{Action, Origin};
use serde::Serialize;

use crate::explain::Ruled;

/// The answer about one flow.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Answer {
    /// `forwarded`, `dropped` or `audit`; `null` where something is needed to tell.
    pub(super) verdict: Option<&'static str>,
    pub(super) egress: EndAnswer,
    pub(super) ingress: EndAnswer,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dns: Option<DnsAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) service: Option<String>,
    /// Every flow that was judged, where there are several or words were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) targets: Vec<Target>,
}

/// One flow between two addresses.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Target {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) port: Option<u16>,
    pub(super) verdict: &'static str,
    pub(super) egress: EndAnswer,
    pub(super) ingress: EndAnswer,
}

/// What is said at one end.
#[derive(Clone, Debug, Serialize)]
pub(super) struct EndAnswer {
    /// `forwarded`, `dropped` or `audit`.
    pub(super) verdict: &'static str,
    /// What kind of thing decided: `rule`, `isolation`, `open`, `lookup`, `itself`, `own-node`,
    /// `not-a-pod`, `name-refused`, or a gap that the datapath found.
    pub(super) reason: &'static str,
    /// Who is judged here.
    pub(super) endpoint: String,
    /// The rule that decided.
    pub(super) policy: Option<PolicyAnswer>,
    /// All that isolate together, or filter names together.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) policies: Vec<PolicyAnswer>,
    /// Every rule that concerns this end, in the order of precedence.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) considered: Vec<Considered>,
    /// Policies that do not select this end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) not_selecting: Vec<Unselecting>,
}

/// A policy, and where in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PolicyAnswer {
    pub(super) api_version: &'static str,
    pub(super) kind: String,
    pub(super) namespace: Option<Arc<str>>,
    pub(super) name: Arc<str>,
    /// The rule's own name, or its place.
    pub(super) rule: Option<Arc<str>>,
    /// The path of the rule, where it has no name of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) field: Option<String>,
}

/// A rule on the way to the verdict.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Considered {
    pub(super) policy: PolicyAnswer,
    /// `admin`, `namespaced` or `baseline`.
    pub(super) tier: &'static str,
    /// `allow`, `deny`, `pass` or `isolate`.
    pub(super) action: &'static str,
    /// `decided`, `audited`, `passed`, `no-match`, `skipped` or `not-reached`.
    pub(super) outcome: &'static str,
    /// Why, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) because: Vec<String>,
}

/// A policy that is not about this end.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Unselecting {
    pub(super) policy: PolicyAnswer,
    pub(super) because: String,
}

/// What becomes of the lookup before a flow.
#[derive(Clone, Debug, Serialize)]
pub(super) struct DnsAnswer {
    pub(super) name: String,
    /// `resolves`, `audit`, `refused`, `search-miss`, `ungoverned` or `not-asked`.
    pub(super) verdict: &'static str,
    /// How a refused name is answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rcode: Option<&'static str>,
    /// The rule that allows the name, or the Audit policy that would refuse it.
    pub(super) policy: Option<PolicyAnswer>,
    /// The patterns that mean the name, with the rules they open addresses for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) patterns: Vec<PatternAnswer>,
    /// The policies that filter the pod's names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) policies: Vec<PolicyAnswer>,
    pub(super) answers: Vec<AddressAnswer>,
    /// What has to be given to go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) needed: Option<String>,
}

/// A pattern that means the asked name.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PatternAnswer {
    pub(super) pattern: String,
    pub(super) policy: PolicyAnswer,
}

/// An address that was given as an answer.
#[derive(Clone, Debug, Serialize)]
pub(super) struct AddressAnswer {
    pub(super) address: IpAddr,
    /// Whether the answer opens it for some rule.
    pub(super) opened: bool,
    /// Why no name opens such an address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) not_opened: Option<&'static str>,
}

impl EndAnswer {
    /// An end that no policy is asked about.
    pub(super) const fn of_nobody(endpoint: String) -> Self {
        Self {
            verdict: "forwarded",
            reason: "not-a-pod",
            endpoint,
            policy: None,
            policies: Vec::new(),
            considered: Vec::new(),
            not_selecting: Vec::new(),
        }
    }

    /// An end as an engine ruled.
    pub(super) fn of_ruling(endpoint: String, ruled: &Ruled) -> Self {
        let origins = &ruled.ruling.origins;
        let (policy, policies) = match origins.as_slice() {
            [origin] if origin.rule.is_some() => (Some(origin.into()), Vec::new()),
            several => (None, several.iter().map(PolicyAnswer::from).collect()),
        };
        let reason = match (&policy, policies.is_empty()) {
            (Some(_), _) => "rule",
            (None, false) => "isolation",
            (None, true) => ruled.exempt.unwrap_or("open"),
        };
        Self {
            verdict: verdict(ruled.ruling.verdict),
            reason,
            policy,
            policies,
            ..Self::of_nobody(endpoint)
        }
    }
}

impl From<&Origin> for PolicyAnswer {
    fn from(origin: &Origin) -> Self {
        let policy = &origin.policy;
        let kind = policy.kind.to_string();
        // A label that is no name is the rule's path below `spec`.
        let path = origin.rule.as_ref().filter(|rule| rule.ends_with(']'));
        Self {
            api_version: policy.kind.api_version(),
            kind: kind.split('.').next().unwrap_or_default().to_owned(),
            namespace: policy.namespace.clone(),
            name: Arc::clone(&policy.name),
            rule: origin.rule.clone(),
            field: path.map(|path| {
                if path.starts_with("spec") { path.to_string() } else { format!("spec.{path}") }
            }),
        }
    }
}

impl PolicyAnswer {
    /// Kind, name and rule.
    pub(super) fn short(&self) -> String {
        let Self { kind, namespace, name, rule, .. } = self;
        let namespace = namespace.as_ref().map(|one| format!("{one}/")).unwrap_or_default();
        let rule = rule.as_ref().map(|one| format!(" {one}")).unwrap_or_default();
        format!("{kind} {namespace}{name}{rule}")
    }
}

impl std::fmt::Display for PolicyAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.short(), self.api_version)
    }
}

/// The word for a verdict.
pub(super) const fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Forward => "forwarded",
        Verdict::Audit => "audit",
        Verdict::Drop => "dropped",
    }
}

/// The worst of several verdicts.
pub(super) fn worst(verdicts: impl IntoIterator<Item = &'static str>) -> &'static str {
    let rank = |verdict: &&str| match *verdict {
        "dropped" => 2,
        "audit" => 1,
        _ => 0,
    };
    verdicts.into_iter().max_by_key(rank).unwrap_or("forwarded")
}

pub(super) const fn tier(stage: Stage) -> &'static str {
    match stage {
        Stage::Admin => "admin",
        Stage::Namespaced => "namespaced",
        Stage::Baseline => "baseline",
    }
}

pub(super) const fn action(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
        Action::Pass => "pass",
    }
}

pub(super) const fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Decided => "decided",
        Outcome::Audited => "audited",
        Outcome::Passed => "passed",
        Outcome::NoMatch => "no-match",
        Outcome::Skipped(_) => "skipped",
        Outcome::NotReached => "not-reached",
    }
}

/// The word for what becomes of a query.
pub(super) const fn lookup(ruling: &LookupRuling) -> &'static str {
    match ruling {
        LookupRuling::Ungoverned => "ungoverned",
        LookupRuling::Allowed { audit: false, .. } => "resolves",
        LookupRuling::Allowed { audit: true, .. } => "audit",
        LookupRuling::SearchMiss => "search-miss",
        LookupRuling::Refused { .. } => "refused",
    }
}
