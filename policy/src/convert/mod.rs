//! From Cilium policies with `toFQDNs` to EgressPolicies.
//!
//! What an EgressPolicy cannot say is left out of an allow rule, which only closes, and told; a
//! denial that cannot be kept, or a subject that cannot be named, ends the conversion of that object.
//! Each [`Difference`] says whether the result allows more or less than before.

mod peers;

use std::sync::Arc;

use serde::Serialize;

use crate::api::{
    self, ClusterEgressPolicySpec, DnsFilter, DnsSpec, EgressPolicySpec, EgressRule, PortSpec,
    PortValue, Transport,
};
use crate::dns::RefuseWith;
use crate::name::DnsName;
use crate::review::{Part, Place};
use crate::rule::{
    self, Action, Direction, Namespaces, Peer, Peers, Policy, PolicyKind, PortRange, PortSet,
    Ports, Protocol, Rule,
};

/// The port of lookups.
const DNS: u16 = 53;

/// An object as a manifest holds it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    api_version: &'static str,
    kind: &'static str,
    /// Its name.
    pub metadata: Metadata,
    spec: Spec,
}

/// The name of an object.
#[derive(Clone, Debug, Serialize)]
pub struct Metadata {
    /// Its name.
    pub name: String,
    /// Its namespace; `None` for a cluster-scoped object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
enum Spec {
    Egress(EgressPolicySpec),
    Cluster(ClusterEgressPolicySpec),
}

/// What is not the same after the conversion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where in the Cilium policy.
    pub place: Place,
    /// In which direction it differs.
    pub effect: Effect,
    /// What differs.
    pub message: String,
}

/// In which direction two policies differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// More is allowed than before.
    Wider,
    /// Less is allowed than before.
    Narrower,
}

/// What becomes of a policy.
#[derive(Clone, Debug)]
pub enum Conversion {
    /// It has no `toFQDNs`: there is nothing that had to be converted.
    Untouched,
    /// It cannot be converted, for these reasons.
    Impossible(Vec<Difference>),
    /// The same, as far as the differences do not say otherwise.
    Converted(Box<Manifest>, Vec<Difference>),
}

/// Converts one part of a Cilium policy ([`Policy::parts`]); `domain` is the cluster's.
pub fn convert(policy: &Policy, domain: &DnsName) -> Conversion {
    let is_cilium = matches!(
        policy.reference.kind,
        PolicyKind::CiliumNetworkPolicy | PolicyKind::CiliumClusterwideNetworkPolicy
    );
    let has_names = policy.rules.iter().any(|rule| match &rule.peers {
        Peers::Of(peers) => peers.iter().any(|peer| matches!(peer, Peer::Fqdn(_))),
        Peers::Any => false,
    });
    if !is_cilium || !has_names {
        return Conversion::Untouched;
    }
    let mut converter = Converter { policy, differences: Vec::new(), obstacles: Vec::new() };
    let manifest = converter.manifest(domain);
    if !converter.obstacles.is_empty() {
        return Conversion::Impossible(converter.obstacles);
    }
    Conversion::Converted(Box::new(manifest), converter.differences)
}

struct Converter<'a> {
    policy: &'a Policy,
    differences: Vec<Difference>,
    /// What makes the conversion impossible.
    obstacles: Vec<Difference>,
}

impl Converter<'_> {
    fn tell(&mut self, place: Place, effect: Effect, message: impl Into<String>) {
        self.differences.push(Difference { place, effect, message: message.into() });
    }

    fn give_up(&mut self, place: Place, message: impl Into<String>) {
        let effect = Effect::Wider;
        self.obstacles.push(Difference { place, effect, message: message.into() });
    }

    fn manifest(&mut self, domain: &DnsName) -> Manifest {
        let policy = self.policy;
        if !policy.isolates.egress {
            self.give_up(
                Place::whole(Part::Whole),
                "enableDefaultDeny leaves egress open; an EgressPolicy always closes it",
            );
        }
        let has_ingress = policy.rules.iter().any(|rule| rule.direction == Direction::Ingress);
        if has_ingress || policy.isolates.ingress {
            self.tell(
                Place::whole(Part::Closing(Direction::Ingress)),
                Effect::Wider,
                "an EgressPolicy says nothing about ingress; keep that part, or write a NetworkPolicy",
            );
        }
        let dns = self.dns(domain);
        let (deny, egress) = (self.rules(Action::Deny), self.rules(Action::Allow));
        let subject = &policy.subject;
        if !subject.service_accounts.is_empty() {
            self.give_up(
                Place::whole(Part::Subject),
                "an EgressPolicy does not select by service account",
            );
        }
        let pod_selector = peers::selector(&subject.pods);
        let mode = api::Mode::Enforce;
        let (kind, spec) = match &subject.namespaces {
            Namespaces::Named(_) => {
                let spec = EgressPolicySpec { pod_selector, mode, dns, egress, deny };
                ("EgressPolicy", Spec::Egress(spec))
            }
            Namespaces::Selected(namespaces) => {
                if policy.reference.namespace.is_some() {
                    self.give_up(
                        Place::whole(Part::Subject),
                        "an EgressPolicy selects by labels of pods, not by those of their namespace",
                    );
                }
                let namespace_selector = peers::selector(namespaces);
                let (tier, priority) = (None, None);
                let spec = ClusterEgressPolicySpec {
                    namespace_selector,
                    pod_selector,
                    tier,
                    priority,
                    mode,
                    dns,
                    egress,
                    deny,
                };
                ("ClusterEgressPolicy", Spec::Cluster(spec))
            }
        };
        Manifest {
            api_version: api::API_VERSION,
            kind,
            metadata: Metadata {
                name: policy.reference.name.to_string(),
                namespace: policy.reference.namespace.as_deref().map(str::to_owned),
            },
            spec,
        }
    }

    /// Which names may be asked for (CL-1, EP-2).
    fn dns(&mut self, domain: &DnsName) -> DnsSpec {
        let observe =
            DnsSpec { filter: Some(DnsFilter::Observe), refuse_with: api::RefuseWith::Refused };
        let Some(dns) = &self.policy.dns else { return observe };
        let is_open = dns.filter == rule::DnsFilter::Observe;
        if is_open || dns.names.iter().any(|name| name.pattern.is_any()) {
            return observe;
        }
        let opened: Vec<_> = self
            .policy
            .rules
            .iter()
            .flat_map(|rule| fqdns(rule).map(move |fqdn| (rule, &fqdn.pattern)))
            .collect();
        for name in &dns.names {
            let written = name.pattern.to_string();
            let suffix = written.trim_start_matches(['*', '.']);
            let is_cluster = DnsName::parse(suffix).is_ok_and(|name| name.is_at_or_below(domain));
            if !is_cluster && !opened.iter().any(|(_, pattern)| pattern.covers(&name.pattern)) {
                self.tell(
                    Place::of(&name.label, Part::Pattern(name.pattern.clone())),
                    Effect::Narrower,
                    format!(
                        "`{written}` can be asked for and opens nothing; an EgressPolicy refuses it"
                    ),
                );
            }
        }
        for (rule, pattern) in opened {
            if !dns.names.iter().any(|name| name.pattern.covers(pattern)) {
                self.tell(
                    Place::of(&rule.label, Part::Pattern(pattern.clone())),
                    Effect::Wider,
                    format!(
                        "rules.dns does not let all of `{pattern}` be asked for; an EgressPolicy does"
                    ),
                );
            }
        }
        let refuse_with = match dns.refuse_with {
            RefuseWith::Refused => api::RefuseWith::Refused,
            RefuseWith::NxDomain => api::RefuseWith::NxDomain,
            RefuseWith::Empty => api::RefuseWith::Empty,
        };
        DnsSpec { filter: None, refuse_with }
    }

    fn rules(&mut self, action: Action) -> Vec<EgressRule> {
        let policy = self.policy;
        let egress = policy.rules.iter().filter(|rule| rule.direction == Direction::Egress);
        egress.filter(|rule| rule.action == action).filter_map(|rule| self.rule(rule)).collect()
    }

    /// A rule; `None` for one that matches nothing, and for that which lets lookups out.
    fn rule(&mut self, rule: &Rule) -> Option<EgressRule> {
        if self.is_for_lookups(rule) {
            return None;
        }
        let to = match &rule.peers {
            Peers::Any => None,
            Peers::Of(peers) => {
                let mut to = Vec::new();
                let mut by_labels = 0;
                for peer in peers {
                    to.extend(self.peer(rule, peer, by_labels));
                    by_labels += usize::from(matches!(peer, Peer::Workloads(_)));
                }
                Some(to).filter(|to| !to.is_empty()).map(Some)?
            }
        };
        let ports = match &rule.ports {
            Ports::Any => None,
            Ports::Of(ports) => {
                let ports: Vec<_> = ports.iter().filter_map(|port| self.port(rule, port)).collect();
                Some(ports).filter(|ports| !ports.is_empty()).map(Some)?
            }
        };
        Some(EgressRule { name: None, to, ports })
    }

    /// Whether a rule carries rules.dns and is about nothing else: an EgressPolicy needs none.
    fn is_for_lookups(&self, rule: &Rule) -> bool {
        let has_names = self
            .policy
            .dns
            .iter()
            .flat_map(|dns| &dns.names)
            .any(|name| Arc::ptr_eq(&name.label, &rule.label) || name.label == rule.label);
        let is_dns = |port: &rule::PortMatch| match &port.ports {
            PortSet::Range(range) => *range == PortRange::single(DNS),
            PortSet::Named(_) => false,
        };
        has_names && matches!(&rule.ports, Ports::Of(ports) if ports.iter().all(is_dns))
    }

    fn port(&mut self, rule: &Rule, written: &rule::PortMatch) -> Option<PortSpec> {
        let protocol = match written.protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
            Protocol::Sctp => Transport::Sctp,
            Protocol::Icmp | Protocol::Icmpv6 => {
                self.lose(rule, Part::Whole, "icmps has no form in an EgressPolicy");
                return None;
            }
        };
        let (port, end_port) = match &written.ports {
            PortSet::Named(name) => (Some(PortValue::Name(name.to_string())), None),
            PortSet::Range(range) if *range == PortRange::ALL => (None, None),
            PortSet::Range(range) => {
                let end = (range.end() != range.start()).then_some(range.end());
                (Some(PortValue::Number(range.start().into())), end)
            }
        };
        Some(PortSpec { protocol, port, end_port })
    }

    /// A part of a rule that has no form: an allow rule is closed by it, a denial would be opened.
    fn lose(&mut self, rule: &Rule, part: Part, message: &str) {
        let place = Place::of(&rule.label, part);
        match rule.action {
            Action::Allow => {
                self.tell(place, Effect::Narrower, format!("left out: {message}"));
            }
            Action::Deny | Action::Pass => self.give_up(place, message),
        }
    }
}

fn fqdns(rule: &Rule) -> impl Iterator<Item = &rule::FqdnPeer> {
    let peers = match &rule.peers {
        Peers::Any => &[][..],
        Peers::Of(peers) => peers,
    };
    peers.iter().filter_map(|peer| {
        let Peer::Fqdn(fqdn) = peer else { return None };
        Some(fqdn)
    })
}
