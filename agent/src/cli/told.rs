//! A record of a decision in words.

use std::fmt::Write as _;
use std::net::SocketAddr;

use serde::Serialize;

use crate::audit::{
    DnsRecord, EndpointLabel, FlowRecord, FlowVerdict, LookupVerdict, Peer, PolicyLabel, Record,
    ServiceEnd,
};

/// What a record says, without when.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Told {
    /// Who asked or opened the flow.
    pub(super) who: String,
    /// For what, or to whom.
    pub(super) whom: String,
    /// What became of it.
    pub(super) verdict: &'static str,
    /// Why.
    pub(super) why: String,
}

pub(super) fn told(record: &Record) -> Told {
    match record {
        Record::Dns(dns) => lookup(dns),
        Record::Flow(flow) => of_flow(flow),
        Record::Lost(lost) => Told {
            who: String::new(),
            whom: String::new(),
            verdict: "lost",
            why: format!("{} records are missing here", lost.count),
        },
        Record::Suppressed(suppressed) => Told {
            who: pod(&suppressed.endpoint),
            whom: String::new(),
            verdict: "lost",
            why: "records over the rate or kept out by sampling".to_owned(),
        },
    }
}

fn lookup(dns: &DnsRecord) -> Told {
    let verdict = match dns.verdict {
        LookupVerdict::Allowed => "allowed",
        LookupVerdict::Denied => "denied",
        LookupVerdict::Audit => "audit",
        LookupVerdict::Error => "error",
    };
    let whom = dns.query.as_ref().map_or_else(
        || "a message that is no query".to_owned(),
        |query| format!("{} {}", query.name, query.kind),
    );
    let rcode = dns.rcode.as_deref().unwrap_or("no answer");
    let why = match dns.verdict {
        LookupVerdict::Allowed => {
            let by = dns.policy.as_ref().map_or_else(|| "no rule needed".to_owned(), label);
            format!("{rcode}, {by}")
        }
        LookupVerdict::Denied if dns.reason == "no-rule" => {
            format!("{rcode}, no rule names it: {}", labels(dns.policy.as_ref(), &dns.policies))
        }
        LookupVerdict::Audit => {
            format!("{rcode}, would be refused: {}", labels(dns.policy.as_ref(), &dns.policies))
        }
        LookupVerdict::Denied | LookupVerdict::Error => format!("{rcode}, {}", dns.reason),
    };
    Told { who: pod(&dns.endpoint), whom, verdict, why }
}

fn of_flow(flow: &FlowRecord) -> Told {
    let verdict = match flow.verdict {
        FlowVerdict::Forwarded => "forwarded",
        FlowVerdict::Dropped => "dropped",
        FlowVerdict::Audit => "audit",
    };
    let policies = || labels(flow.policy.as_ref(), &flow.policies);
    let why = match (&*flow.reason, flow.verdict) {
        ("judged", FlowVerdict::Forwarded) => policies(),
        (_, FlowVerdict::Audit) => format!("would be dropped: {}", policies()),
        ("denied", _) if flow.policy.as_ref().is_some_and(|policy| policy.rule.is_some()) => {
            format!("denied by {}", policies())
        }
        ("denied" | "no-rule", _) => format!("no rule allows it: {}", policies()),
        ("revoked", _) => "a changed policy cut it".to_owned(),
        (reason, _) => reason.to_owned(),
    };
    let mut whom = end(&flow.destination);
    let is_icmp = flow.protocol.starts_with("icmp");
    if !is_icmp {
        // Writing to a string does not fail.
        let _ = write!(whom, ":{}", flow.destination.port);
    }
    let _ = write!(whom, "/{}", flow.protocol);
    if let Some(service) = &flow.service {
        let _ = write!(whom, " for {}", through(service));
    }
    Told { who: end(&flow.source), whom, verdict, why }
}

/// The service that was asked for: its name and port, or its address where nobody's is known.
fn through(service: &ServiceEnd) -> String {
    match (&service.namespace, &service.name) {
        (Some(namespace), Some(name)) => {
            format!("service {namespace}/{name}:{}", service.port)
        }
        _ => format!("service {}", SocketAddr::new(service.address, service.port)),
    }
}

/// A pod, a name with its address, or what is known.
fn end(peer: &Peer) -> String {
    if let (Some(namespace), Some(pod)) = (&peer.namespace, &peer.pod) {
        return format!("{namespace}/{pod}");
    }
    let address = match peer.address {
        Some(address) if address.is_ipv6() => format!("[{address}]"),
        Some(address) => address.to_string(),
        None => "unknown".to_owned(),
    };
    match (peer.names.first(), peer.entity.as_deref()) {
        (Some(name), _) if peer.names.len() > 1 => {
            format!("{name} and {} names more ({address})", peer.names.len() - 1)
        }
        (Some(name), _) => format!("{name} ({address})"),
        (None, Some(entity)) if entity != "world" => format!("{entity} ({address})"),
        (None, _) => address,
    }
}

fn pod(endpoint: &EndpointLabel) -> String {
    match (&endpoint.namespace, &endpoint.pod) {
        (Some(namespace), Some(pod)) => format!("{namespace}/{pod}"),
        _ => "a pod that is gone".to_owned(),
    }
}

fn labels(policy: Option<&PolicyLabel>, policies: &[PolicyLabel]) -> String {
    let all: Vec<String> = match policy {
        Some(policy) if policies.is_empty() => vec![label(policy)],
        _ => policies.iter().map(label).collect(),
    };
    if all.is_empty() { "no policy selects it".to_owned() } else { all.join(", ") }
}

fn label(label: &PolicyLabel) -> String {
    let mut text = label.kind.to_string();
    let _ = match &label.namespace {
        Some(namespace) => write!(text, " {namespace}/{}", label.name),
        None => write!(text, " {}", label.name),
    };
    if let Some(rule) = &label.rule {
        let _ = write!(text, " rule {rule}");
    }
    text
}
