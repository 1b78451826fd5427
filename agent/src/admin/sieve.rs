//! Which records a reader wants.

use std::collections::BTreeSet;

use namegate_egress_bpf::abi::{DropReason, Pass};
use serde::{Deserialize, Serialize};

use super::Failure;
use crate::audit::{DnsRecord, FlowRecord, FlowVerdict, LookupVerdict, Peer, PolicyLabel, Record};
use crate::metrics::lookup_reasons;

/// The verdicts that records have.
pub const VERDICTS: [&str; 6] = ["allowed", "denied", "audit", "error", "forwarded", "dropped"];

/// The reasons that records have, in order.
pub fn reasons() -> BTreeSet<&'static str> {
    let passes = Pass::ALL.iter().map(|pass| pass.as_str());
    let drops = DropReason::ALL.iter().map(|reason| reason.as_str());
    lookup_reasons().chain(passes).chain(drops).collect()
}

/// What a reader asks for; what is not given does not matter.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Wanted {
    /// Those of the last so many seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_s: Option<u64>,
    /// Those to come as well.
    #[serde(default)]
    pub follow: bool,
    /// One of these verdicts, separated by commas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// About this pod at either end, as `NAMESPACE/POD`, or any of a namespace, as `NAMESPACE/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Asking for, or going to, a name that contains this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Decided by this policy, or made about a pod that it selects: `NAME` or `NAMESPACE/NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// For this reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Lets through what is wanted.
#[derive(Clone, Debug, Default)]
pub(super) struct Sieve {
    verdicts: Vec<String>,
    pod: Option<(String, Option<String>)>,
    name: Option<String>,
    policy: Option<String>,
    reason: Option<String>,
}

impl Sieve {
    pub(super) fn new(wanted: &Wanted) -> Result<Self, Failure> {
        let verdicts = wanted.verdict.iter().flat_map(|all| all.split(',')).map(str::to_owned);
        let verdicts: Vec<String> = verdicts.collect();
        if let Some(unknown) = verdicts.iter().find(|one| !VERDICTS.contains(&one.as_str())) {
            let known = VERDICTS.join(", ");
            return Err(Failure::Wrong(format!(
                "no verdict is called {unknown:?}; there are {known}"
            )));
        }
        let pod = wanted.pod.as_ref().map(|text| {
            text.split_once('/')
                .map(|(namespace, pod)| {
                    (namespace.to_owned(), (!pod.is_empty()).then(|| pod.to_owned()))
                })
                .ok_or_else(|| {
                    Failure::Wrong(format!("{text:?} is no pod: say NAMESPACE/POD, or NAMESPACE/"))
                })
        });
        Ok(Self {
            verdicts,
            pod: pod.transpose()?,
            name: wanted.name.as_ref().map(|name| name.to_ascii_lowercase()),
            policy: wanted.policy.clone(),
            reason: wanted.reason.clone(),
        })
    }

    /// Whether a record is wanted. What tells of missing records always is.
    pub(super) fn lets_through(&self, record: &Record) -> bool {
        match record {
            Record::Dns(dns) => self.wants_lookup(dns) && self.wants_policy(record),
            Record::Flow(flow) => self.wants_flow(flow) && self.wants_policy(record),
            Record::Lost(_) => true,
            Record::Suppressed(_) => false,
        }
    }

    fn wants_lookup(&self, dns: &DnsRecord) -> bool {
        let verdict = match dns.verdict {
            LookupVerdict::Allowed => "allowed",
            LookupVerdict::Denied => "denied",
            LookupVerdict::Audit => "audit",
            LookupVerdict::Error => "error",
        };
        let endpoint = &dns.endpoint;
        let name = dns.query.as_ref().map(|query| query.name.as_str());
        self.wants(verdict, &dns.reason)
            && self.wants_pods([(endpoint.namespace.as_deref(), endpoint.pod.as_deref())])
            && self.wants_names(name.into_iter())
    }

    fn wants_flow(&self, flow: &FlowRecord) -> bool {
        let verdict = match flow.verdict {
            FlowVerdict::Forwarded => "forwarded",
            FlowVerdict::Dropped => "dropped",
            FlowVerdict::Audit => "audit",
        };
        let ends = [&flow.source, &flow.destination];
        self.wants(verdict, &flow.reason)
            && self.wants_pods(ends.map(|end| (end.namespace.as_deref(), end.pod.as_deref())))
            && self.wants_names(ends.into_iter().flat_map(names))
    }

    fn wants(&self, verdict: &str, reason: &str) -> bool {
        (self.verdicts.is_empty() || self.verdicts.iter().any(|wanted| wanted == verdict))
            && self.reason.as_deref().is_none_or(|wanted| wanted == reason)
    }

    fn wants_pods<const N: usize>(&self, pods: [(Option<&str>, Option<&str>); N]) -> bool {
        self.pod.as_ref().is_none_or(|(namespace, pod)| {
            pods.iter().any(|(of, name)| {
                *of == Some(namespace.as_str())
                    && pod.as_ref().is_none_or(|pod| *name == Some(pod.as_str()))
            })
        })
    }

    fn wants_names<'a>(&self, mut names: impl Iterator<Item = &'a str>) -> bool {
        self.name
            .as_ref()
            .is_none_or(|wanted| names.any(|name| name.to_ascii_lowercase().contains(wanted)))
    }

    fn wants_policy(&self, record: &Record) -> bool {
        self.policy
            .as_ref()
            .is_none_or(|wanted| record.policies().any(|label| is_called(label, wanted)))
    }
}

fn names(peer: &Peer) -> impl Iterator<Item = &str> {
    peer.names.iter().map(AsRef::as_ref)
}

fn is_called(label: &PolicyLabel, wanted: &str) -> bool {
    match wanted.split_once('/') {
        Some((namespace, name)) => {
            *label.name == *name && label.namespace.as_deref() == Some(namespace)
        }
        None => *label.name == *wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_drop() -> Record {
        let peer = |namespace: &str, pod: &str, name: &str| Peer {
            namespace: Some(namespace.into()),
            pod: Some(pod.into()),
            names: vec![name.to_owned().into()],
            ..Peer::default()
        };
        Record::Flow(Box::new(FlowRecord {
            verdict: FlowVerdict::Dropped,
            reason: "no-rule".into(),
            direction: crate::audit::FlowDirection::Egress,
            protocol: "tcp".into(),
            endpoint: crate::audit::EndpointLabel::default(),
            source: peer("shop", "web", ""),
            destination: peer("data", "db", "db.example"),
            service: None,
            policy: None,
            policies: vec![PolicyLabel {
                kind: "EgressPolicy".into(),
                namespace: Some("shop".into()),
                name: "apis".into(),
                rule: None,
            }],
            policies_omitted: 0,
        }))
    }

    #[test]
    fn each_wish_narrows() {
        let wish = |query: &str| {
            let wanted: Wanted = serde_json::from_str(query).unwrap();
            Sieve::new(&wanted).unwrap().lets_through(&mk_drop())
        };
        let cases = [
            ("{}", true),
            (r#"{"verdict": "denied,dropped"}"#, true),
            (r#"{"verdict": "forwarded"}"#, false),
            (r#"{"pod": "shop/web"}"#, true),
            (r#"{"pod": "data/"}"#, true),
            (r#"{"pod": "shop/db"}"#, false),
            (r#"{"name": "DB.exam"}"#, true),
            (r#"{"name": "web"}"#, false),
            (r#"{"policy": "apis"}"#, true),
            (r#"{"policy": "shop/apis"}"#, true),
            (r#"{"policy": "data/apis"}"#, false),
            (r#"{"reason": "no-rule"}"#, true),
            (r#"{"reason": "denied"}"#, false),
        ];
        for (query, expected) in cases {
            assert_eq!(wish(query), expected, "{query}");
        }
    }

    #[test]
    fn a_wish_that_means_nothing_is_refused() {
        for query in [r#"{"verdict": "blocked"}"#, r#"{"pod": "web"}"#] {
            let wanted: Wanted = serde_json::from_str(query).unwrap();
            assert!(matches!(Sieve::new(&wanted), Err(Failure::Wrong(_))), "{query}");
        }
    }
}
