//! The least policies that would allow what the audit log tells: an EgressPolicy and a NetworkPolicy
//! for each workload, with the evidence as comments.
//!
//! Nothing is opened that was not seen, unless wildcards are asked for. What no rule can say alone, such
//! as an echo request, and what would open more than was seen is told and left to the reader.

mod document;
mod names;
mod observed;
mod selectors;

use std::collections::BTreeMap;

use namegate_policy::api::{
    EgressPeer, EgressRule, Entity, LabelSelector, PortSpec, PortValue, Transport,
};
use namegate_policy::resource::NAMESPACE_NAME_LABEL;
use serde::Serialize;

pub use document::Document;
pub use observed::{Filter, Missing, Observed};

use document::Entry;
use observed::{Evidence, Port, Protocol, Remote, Workload, WorkloadRef};
use selectors::Selection;

/// How policies are worded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wording {
    /// Whether several names below one become a wildcard.
    pub wildcards: bool,
}

/// A rule of a NetworkPolicy's ingress.
#[derive(Clone, Debug, Serialize)]
struct IngressRule {
    from: Vec<IngressPeer>,
    ports: Vec<PortSpec>,
}

/// Who may open flows to the subject of a NetworkPolicy.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct IngressPeer {
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace_selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_block: Option<IpBlock>,
}

#[derive(Clone, Debug, Serialize)]
struct IpBlock {
    cidr: String,
}

/// The policies that would allow what was observed, workload by workload.
pub fn suggest(observed: &Observed, wording: Wording) -> Vec<Document> {
    let suggester = Suggester { observed, wording };
    observed
        .workloads
        .iter()
        .flat_map(|(reference, workload)| suggester.documents(reference, workload))
        .collect()
}

struct Suggester<'a> {
    observed: &'a Observed,
    wording: Wording,
}

/// Whom a policy selects, and the workloads that its labels cannot leave out.
type Subject = (LabelSelector, Vec<WorkloadRef>);

/// Peers of one kind that share their ports become one rule.
type Grouped<'a> = BTreeMap<(&'static str, Vec<Port>), Vec<(&'a Remote, Evidence)>>;

impl Suggester<'_> {
    fn documents(&self, reference: &WorkloadRef, workload: &Workload) -> Vec<Document> {
        let mut documents = Vec::new();
        let subject = match selectors::choose(&self.observed.workloads, reference) {
            Selection::Labels { labels, also } => (labels, also),
            Selection::Nothing if workload.is_peer_alone() => return documents,
            Selection::Nothing => {
                documents.push(Document::of_comment(format!(
                    "{reference}: nothing suggested: its pods have no label of their own, so no policy \
                     can be about them alone"
                )));
                return documents;
            }
        };
        if workload.has_egress() {
            documents.push(self.egress(reference, workload, &subject));
        }
        if workload.has_ingress() {
            documents.push(self.ingress(reference, workload, &subject));
        }
        documents
    }

    fn egress(&self, reference: &WorkloadRef, workload: &Workload, subject: &Subject) -> Document {
        let document = Document::new("namegate.dev/v1alpha1", "EgressPolicy", reference, "egress");
        let mut document = begun(document, reference, workload, subject);
        let mut rules = Vec::new();
        for ((kind, ports), peers) in group(&workload.egress) {
            let mut comments: Vec<String> =
                peers.iter().map(|(remote, evidence)| evidence.tell(remote, "flow")).collect();
            let mut to: Vec<EgressPeer> = Vec::new();
            if self.wording.wildcards && kind == "names" {
                let names: Vec<&str> =
                    peers.iter().filter_map(|(remote, _)| remote.name()).collect();
                for found in names::widen(&names) {
                    comments.extend(found.remark());
                    to.push(EgressPeer { fqdn: Some(found.pattern), ..EgressPeer::default() });
                }
            } else {
                for (remote, _) in &peers {
                    match self.egress_peer(reference, remote) {
                        Ok(peer) => to.push(peer),
                        Err(reason) => comments.push(format!("{remote}: left out: {reason}")),
                    }
                }
            }
            let rule = (!to.is_empty()).then(|| EgressRule {
                name: Some(rule_name(kind, &ports)),
                to: Some(to),
                ports: Some(ports.iter().map(port_spec).collect()),
            });
            rules.push(Entry { comments, rule });
        }
        document.list("egress", &rules);
        let connected = workload.egress.keys().filter_map(|(remote, _)| remote.name());
        let connected: std::collections::BTreeSet<&str> = connected.collect();
        let idle = workload.lookups.iter().filter(|(name, _)| !connected.contains(name.as_str()));
        document.remarks(
            "Asked for and never connected to, and so refused by this policy; write a rule for what has \
             to resolve:",
            idle.map(|(name, evidence)| evidence.tell(name, "lookup")),
        );
        document.remarks(
            "Seen, and allowed by no rule that names ports; left out:",
            workload.unsayable_egress.iter().map(|(what, evidence)| evidence.tell(what, "flow")),
        );
        document
    }

    fn egress_peer(&self, own: &WorkloadRef, remote: &Remote) -> Result<EgressPeer, String> {
        let peer = EgressPeer::default();
        Ok(match remote {
            Remote::Name(name) => EgressPeer { fqdn: Some(name.clone()), ..peer },
            Remote::Workload(other) => {
                let pod_selector = Some(self.peer_labels(other)?);
                EgressPeer { namespace_selector: elsewhere(own, other), pod_selector, ..peer }
            }
            Remote::Host => EgressPeer { entity: Some(Entity::Host), ..peer },
            Remote::OtherNode => EgressPeer { entity: Some(Entity::RemoteNode), ..peer },
            Remote::KubeApiserver => EgressPeer { entity: Some(Entity::KubeApiserver), ..peer },
            Remote::Address(address) => EgressPeer { cidr: Some(host_prefix(*address)), ..peer },
        })
    }

    fn ingress(&self, reference: &WorkloadRef, workload: &Workload, subject: &Subject) -> Document {
        let document = Document::new("networking.k8s.io/v1", "NetworkPolicy", reference, "ingress");
        let mut document = begun(document, reference, workload, subject);
        let mut rules = Vec::new();
        for ((_, ports), peers) in group(&workload.ingress) {
            let mut comments: Vec<String> =
                peers.iter().map(|(remote, evidence)| evidence.tell(remote, "flow")).collect();
            let mut from = Vec::new();
            for (remote, _) in &peers {
                match self.ingress_peer(reference, remote) {
                    Ok(peer) => from.push(peer),
                    Err(reason) => comments.push(format!("{remote}: left out: {reason}")),
                }
            }
            let ports = ports.iter().map(port_spec).collect();
            let rule = (!from.is_empty()).then_some(IngressRule { from, ports });
            rules.push(Entry { comments, rule });
        }
        document.field("policyTypes", &["Ingress"]);
        document.list("ingress", &rules);
        document.remarks(
            "Seen, and allowed by no rule that names ports; left out:",
            workload.unsayable_ingress.iter().map(|(what, evidence)| evidence.tell(what, "flow")),
        );
        document
    }

    fn ingress_peer(&self, own: &WorkloadRef, remote: &Remote) -> Result<IngressPeer, String> {
        match remote {
            Remote::Workload(other) => Ok(IngressPeer {
                namespace_selector: elsewhere(own, other),
                pod_selector: Some(self.peer_labels(other)?),
                ip_block: None,
            }),
            Remote::Address(address) => {
                let ip_block = Some(IpBlock { cidr: host_prefix(*address) });
                Ok(IngressPeer { ip_block, ..IngressPeer::default() })
            }
            Remote::Name(_) | Remote::Host | Remote::OtherNode | Remote::KubeApiserver => {
                Err("no rule of a NetworkPolicy means it".to_owned())
            }
        }
    }

    fn peer_labels(&self, of: &WorkloadRef) -> Result<LabelSelector, String> {
        match selectors::choose(&self.observed.workloads, of) {
            Selection::Labels { labels, .. } => Ok(labels),
            Selection::Nothing => {
                Err("its pods have no label of their own; name their addresses, or label them"
                    .into())
            }
        }
    }
}

/// A policy with what it is about: who was watched, and which pods it selects.
fn begun(
    mut document: Document,
    reference: &WorkloadRef,
    workload: &Workload,
    (labels, also): &Subject,
) -> Document {
    document.note(workload.describe(reference));
    document.note_all(
        also.iter()
            .map(|other| format!("also selects {other}: no label that lasts tells the two apart")),
    );
    document.field("podSelector", labels);
    document
}

/// The selector of another namespace; nothing for the own one.
fn elsewhere(own: &WorkloadRef, other: &WorkloadRef) -> Option<LabelSelector> {
    (own.namespace != other.namespace).then(|| LabelSelector {
        match_labels: [(NAMESPACE_NAME_LABEL.to_owned(), other.namespace.to_string())].into(),
        match_expressions: Vec::new(),
    })
}

fn host_prefix(address: std::net::IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

fn group(flows: &BTreeMap<(Remote, Port), Evidence>) -> Grouped<'_> {
    let mut by_remote: BTreeMap<&Remote, (Vec<Port>, Evidence)> = BTreeMap::new();
    for ((remote, port), evidence) in flows {
        let (ports, sum) = by_remote.entry(remote).or_default();
        ports.push(*port);
        sum.absorb(evidence);
    }
    let mut grouped = Grouped::new();
    for (remote, (ports, evidence)) in by_remote {
        grouped.entry((remote.kind(), ports)).or_default().push((remote, evidence));
    }
    grouped
}

fn rule_name(kind: &str, ports: &[Port]) -> String {
    match ports {
        [port] => format!("{kind}-{port}"),
        [port, more @ ..] => format!("{kind}-{port}-and-{}-more", more.len()),
        [] => kind.to_owned(),
    }
}

fn port_spec(port: &Port) -> PortSpec {
    PortSpec {
        protocol: match port.protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
            Protocol::Sctp => Transport::Sctp,
        },
        port: Some(PortValue::Number(port.number.into())),
        end_port: None,
    }
}

#[cfg(test)]
mod tests;
