//! Whether pods whose egress is closed can look names up.
//!
//! Policies add up, so the judgement is about what all of them let out together. EgressPolicies and
//! rules with names need nothing: the node's proxy answers their pods (EP-2).

use std::sync::Arc;

use super::{Code, Part, Place, Report, Review, Severity, by_name, is_cilium};
use crate::identity::WorkloadLabels;
use crate::resource::NAMESPACE_NAME_LABEL;
use crate::rule::{
    Action, Direction, Entity, Mode, Namespaces, Peer, Peers, Policy, PortRange, PortSet, Ports,
    Protocol, Rule, Tier, Workloads,
};
use crate::selector::{Condition, Labels};

const PORT: u16 = 53;
/// Where the resolvers of a cluster are.
const RESOLVERS: &str = "kube-system";

const ADVICE: &str = "allow UDP and TCP port 53 to the cluster's resolvers, or govern the pods with an \
                      EgressPolicy, whose lookups need no rule";

pub(super) fn review(review: &Review<'_>, policy: &Policy, findings: &mut Vec<super::Finding>) {
    let mut report = Report { policy, findings };
    derived(review, &mut report);
    if policy.mode == Mode::Audit
        || !matches!(policy.tier, Tier::Namespaced)
        || !policy.isolates.egress
        || policy.dns.is_some()
    {
        return;
    }
    let Some(beside) = review.beside(policy) else { return };
    let selected: Vec<&Arc<WorkloadLabels>> =
        review.workloads.values().flatten().filter(|pod| policy.subject.matches(pod)).collect();
    let place = Place::whole(Part::Closing(Direction::Egress));
    if selected.is_empty() {
        let same = |other: &&&Policy| review.covers_workloads(&other.subject, &policy.subject);
        let way = Way::of(review, beside.iter().filter(same).copied());
        return way.report(&mut report, place, "the pods that it selects");
    }
    let ways = selected.iter().map(|pod| {
        (pod, Way::of(review, beside.iter().copied().filter(|other| other.subject.matches(pod))))
    });
    if let Some((pod, way)) = ways.min_by_key(|(_, way)| way.rank()) {
        way.report(&mut report, place, &told(pod));
    }
}

/// CL-1.
fn derived(review: &Review<'_>, report: &mut Report<'_>) {
    let policy = report.policy;
    let mut derived = policy
        .rules
        .iter()
        .flat_map(|rule| by_name(rule).filter(|fqdn| fqdn.resolves).map(move |fqdn| (rule, fqdn)));
    let Some((rule, fqdn)) = derived.next().filter(|_| is_cilium(policy)) else { return };
    let has_lookups = |other: &&Policy| {
        other.dns.as_ref().is_some_and(|dns| !dns.names.is_empty())
            && review.covers_workloads(&other.subject, &policy.subject)
    };
    if review.beside(policy).is_none_or(|beside| beside.iter().any(has_lookups)) {
        return;
    }
    report.say(
        Code::FqdnWithoutDnsRule,
        Place::of(&rule.label, Part::Pattern(fqdn.pattern.clone())),
        "no rules.dns lets these names be asked for: namegate derives that from toFQDNs, Cilium \
         itself would learn nothing"
            .to_owned(),
        "for use with Cilium too, add a rule for port 53 with rules.dns that lists the same names",
    );
}

fn told(pod: &WorkloadLabels) -> String {
    let labels: Vec<String> =
        pod.pod_labels.iter().take(3).map(|(key, value)| format!("{key}={value}")).collect();
    if labels.is_empty() {
        return format!("pods of {} without labels", pod.namespace);
    }
    format!("pods of {} with {}", pod.namespace, labels.join(","))
}

/// How lookups get out.
#[derive(Clone, Copy, Default)]
struct Way {
    has_udp: bool,
    has_tcp: bool,
    /// Whether anything at all is let out.
    has_any: bool,
}

impl Way {
    fn of<'p>(review: &Review<'_>, policies: impl Iterator<Item = &'p Policy>) -> Self {
        let mut way = Self::default();
        for policy in policies {
            if policy.dns.is_some() {
                way = Self { has_udp: true, has_tcp: true, ..way };
            }
            let allows =
                |rule: &&Rule| rule.direction == Direction::Egress && rule.action == Action::Allow;
            for rule in policy.rules.iter().filter(allows) {
                way.has_any |= rule.peers != Peers::Of(Vec::new());
                way.has_udp |= lets_out(review, rule, Protocol::Udp);
                way.has_tcp |= lets_out(review, rule, Protocol::Tcp);
            }
        }
        way
    }

    fn rank(self) -> (bool, bool, bool) {
        (self.has_udp, self.has_tcp, !self.has_any)
    }

    fn report(self, report: &mut Report<'_>, place: Place, pods: &str) {
        match self {
            Self { has_udp: true, has_tcp: true, .. } => {}
            Self { has_udp: true, has_tcp: false, .. } => report.say(
                Code::DnsUdpOnly,
                place,
                format!("{pods} can ask for names over UDP and not over TCP"),
                "allow TCP port 53 too: answers that do not fit a datagram are asked for again over it",
            ),
            Self { has_any: true, .. } => report.say(
                Code::DnsUnreachable,
                place,
                format!("egress of {pods} is closed and no rule lets lookups out"),
                ADVICE,
            ),
            Self { has_any: false, .. } => report.say_as(
                Severity::Hint,
                Code::DnsUnreachable,
                place,
                format!("nothing is let out of {pods}, lookups neither"),
                ADVICE,
            ),
        }
    }
}

/// Whether a rule lets lookups reach a resolver. A rule that names port 53 is taken at its word.
fn lets_out(review: &Review<'_>, rule: &Rule, protocol: Protocol) -> bool {
    let is_meant = match &rule.ports {
        Ports::Any => false,
        Ports::Of(ports) => {
            let matching = ports.iter().filter(|port| port.protocol == protocol);
            let mut ranges = matching.filter_map(|port| match &port.ports {
                PortSet::Range(range) if range.contains(PORT) => Some(*range),
                // `dns` and `dns-tcp` are the names that CoreDNS gives its ports.
                PortSet::Named(name) if name.contains("dns") => Some(PortRange::single(PORT)),
                PortSet::Range(_) | PortSet::Named(_) => None,
            });
            match ranges.next() {
                None => return false,
                Some(range) => range.end() - range.start() < 1024,
            }
        }
    };
    match &rule.peers {
        Peers::Any => true,
        Peers::Of(peers) => peers.iter().any(|peer| match peer {
            Peer::Fqdn(_) => false,
            Peer::Workloads(workloads) => is_meant || selects_resolvers(review, workloads),
            Peer::Service(service) => is_meant || service.name.contains("dns"),
            Peer::Services(_) => is_meant,
            Peer::Entity(Entity::KubeApiserver) => false,
            Peer::Cidr(_) | Peer::CidrGroups(_) | Peer::Entity(_) | Peer::Nodes(_) => true,
        }),
    }
}

/// Whether pods of a cluster's resolvers can be meant.
fn selects_resolvers(review: &Review<'_>, workloads: &Workloads) -> bool {
    let in_namespace = match &workloads.namespaces {
        Namespaces::Named(name) => &**name == RESOLVERS,
        Namespaces::Selected(selector) => {
            let labels = review.labels_of(RESOLVERS);
            // Labels that are not known of the namespace may be there.
            let unknown = |labels: &Labels| {
                selector
                    .requirements()
                    .any(|one| !labels.contains_key(&one.key) && *one.key != *NAMESPACE_NAME_LABEL)
            };
            selector.matches(&labels)
                || (!review.namespaces.contains_key(RESOLVERS) && unknown(&labels))
        }
    };
    let is_dns = |key: &str| key == "k8s-app" || key.contains("dns");
    in_namespace
        && workloads
            .pods
            .requirements()
            .all(|one| is_dns(&one.key) || matches!(&one.condition, Condition::NotIn(_)))
}
