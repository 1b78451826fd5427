//! From what was decided to a record: names in the place of numbers.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use namegate_dns_proxy::record::{DecisionRecord, DnsVerdict, Transport as Asked};
use namegate_egress_bpf::abi::{Direction, EventVerdict};
use namegate_egress_bpf::datapath::FlowEvent;
use namegate_policy::identity::Identity;
use namegate_policy::rule::Origin;

use super::{
    AnsweredAddress, DnsRecord, EndpointLabel, FlowDirection, FlowRecord, FlowVerdict,
    LookupVerdict, NotOpenedAddress, Peer, PolicyLabel, Query, ServiceEnd, Transport, entity,
};
use crate::registry::{KnownPod, Registry};

/// Policies that a record names at most.
const POLICIES_MAX: usize = 16;

/// Names of an address that a record holds at most.
const NAMES_MAX: usize = 16;

/// Looks up what numbers stand for.
#[derive(Clone, Debug)]
pub(super) struct Describer {
    registry: Arc<Registry>,
}

/// The policies of a record: who decided, all of them, and how many there are besides.
type Deciders = (Option<PolicyLabel>, Vec<PolicyLabel>, u32);

impl Describer {
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        Self { registry }
    }

    /// The record of a lookup whose answer has `omitted` addresses more than `decision`.
    pub(super) fn lookup(&self, decision: &DecisionRecord, omitted: u32) -> DnsRecord {
        let failure = decision.failure.map(|failure| Cow::Owned(failure.to_string()));
        let (verdict, reason) = match decision.verdict {
            DnsVerdict::Allowed if decision.policies.is_empty() => {
                (LookupVerdict::Allowed, "no-rule-needed".into())
            }
            DnsVerdict::Allowed => (LookupVerdict::Allowed, "rule".into()),
            DnsVerdict::Denied => {
                (LookupVerdict::Denied, failure.unwrap_or(Cow::Borrowed("no-rule")))
            }
            DnsVerdict::Audit => (LookupVerdict::Audit, "no-rule".into()),
            DnsVerdict::Error => {
                (LookupVerdict::Error, failure.unwrap_or(Cow::Borrowed("internal")))
            }
        };
        let client = &decision.client;
        let (policy, policies, policies_omitted) = if decision.policies.is_empty() {
            selecting(&self.registry.selecting(client.identity))
        } else {
            deciders(&decision.policies)
        };
        let addresses = &decision.addresses;
        DnsRecord {
            verdict,
            reason,
            endpoint: self.asker(decision),
            query: Some(Query {
                name: decision.name.to_string(),
                kind: decision.query_type.to_string().into(),
            }),
            rcode: Some(decision.rcode.to_string().into()),
            addresses: addresses
                .iter()
                .map(|answered| AnsweredAddress { address: answered.address, ttl: answered.ttl })
                .collect(),
            addresses_omitted: omitted,
            not_opened: addresses
                .iter()
                .filter_map(|answered| {
                    let reason = answered.withheld?.to_string().into();
                    Some(NotOpenedAddress { address: answered.address, reason })
                })
                .collect(),
            policy,
            policies,
            policies_omitted,
            resolver: Some(decision.resolver),
            transport: match decision.transport {
                Asked::Udp => Transport::Udp,
                Asked::Tcp => Transport::Tcp,
            },
            cached: decision.cached,
            latency_us: u64::try_from(decision.latency.as_micros()).unwrap_or(u64::MAX),
        }
    }

    /// The pod that asked.
    pub(super) fn asker(&self, decision: &DecisionRecord) -> EndpointLabel {
        let client = &decision.client;
        let known = self.registry.pod(decision.source.ip()).filter(|known| {
            known.pod.namespace == client.endpoint.namespace
                && known.pod.name == client.endpoint.pod
        });
        EndpointLabel {
            namespace: Some(Arc::clone(&client.endpoint.namespace)),
            pod: Some(Arc::clone(&client.endpoint.pod)),
            identity: Some(client.identity.number()),
            ..known.as_deref().map(endpoint).unwrap_or_default()
        }
    }

    /// The pod behind an interface, as its records call it.
    pub(super) fn behind(&self, ifindex: u32) -> EndpointLabel {
        let known = self.registry.endpoint(ifindex);
        EndpointLabel {
            identity: known.as_ref().and_then(|(_, identity)| *identity).map(Identity::number),
            ..known.as_ref().map(|(pod, _)| endpoint(pod)).unwrap_or_default()
        }
    }

    /// The record of a packet.
    pub(super) fn flow(&self, event: &FlowEvent) -> FlowRecord {
        let known = self.registry.endpoint(event.ifindex);
        let identity = event.identity.or(known.as_ref().and_then(|(_, identity)| *identity));
        let endpoint = EndpointLabel {
            identity: identity.map(Identity::number),
            ..known.as_ref().map(|(pod, _)| endpoint(pod)).unwrap_or_default()
        };
        let local = Peer {
            address: given(event.local),
            port: event.local_port,
            namespace: endpoint.namespace.clone(),
            pod: endpoint.pod.clone(),
            workload: endpoint.workload.clone(),
            identity: endpoint.identity,
            labels: Arc::clone(&endpoint.labels),
            ..Peer::default()
        };
        let remote = self.remote(event, identity);
        let is_egress = matches!(event.direction, Direction::Egress);
        let (source, destination) = if is_egress { (local, remote) } else { (remote, local) };
        let (verdict, clause) = match event.verdict {
            EventVerdict::Forwarded => (FlowVerdict::Forwarded, event.clause),
            EventVerdict::Dropped => (FlowVerdict::Dropped, event.clause),
            EventVerdict::Audit => (FlowVerdict::Audit, event.audit),
        };
        let origins =
            clause.and_then(|clause| self.registry.origins(event.table, is_egress, clause));
        let (policy, policies, policies_omitted) = match origins.filter(|found| !found.is_empty()) {
            Some(origins) => deciders(&origins),
            None => selecting(&self.registry.selecting_by(event.table, is_egress)),
        };
        FlowRecord {
            verdict,
            reason: event.reason.as_str().into(),
            direction: if is_egress { FlowDirection::Egress } else { FlowDirection::Ingress },
            protocol: protocol(event.protocol),
            endpoint,
            source,
            destination,
            service: event.service.map(|service| self.service(service, event.protocol)),
            policy,
            policies,
            policies_omitted,
        }
    }

    fn service(&self, end: SocketAddr, protocol: u8) -> ServiceEnd {
        let known = self.registry.service(end, protocol);
        let (namespace, name) = known.map(|known| (known.namespace, known.name)).unzip();
        ServiceEnd { address: end.ip(), port: end.port(), namespace, name }
    }

    fn remote(&self, event: &FlowEvent, identity: Option<Identity>) -> Peer {
        let pod = self.registry.pod(event.remote);
        let pod = pod.as_deref();
        let names = identity.map(|identity| self.registry.names((identity, event.remote)));
        let mut names = names.unwrap_or_default();
        let names_omitted = beyond(names.len(), names.len().min(NAMES_MAX));
        names.truncate(NAMES_MAX);
        Peer {
            address: given(event.remote),
            port: event.remote_port,
            namespace: pod.map(|known| Arc::clone(&known.pod.namespace)),
            pod: pod.map(|known| Arc::clone(&known.pod.name)),
            workload: pod.map(|known| Arc::clone(&known.workload)),
            identity: event.remote_identity.map(Identity::number),
            entity: event.remote_identity.and_then(entity).map(Cow::Borrowed),
            names: names.into_iter().map(Cow::Owned).collect(),
            names_omitted,
            labels: pod.map(|known| Arc::clone(&known.labels)).unwrap_or_default(),
        }
    }
}

fn endpoint(known: &KnownPod) -> EndpointLabel {
    EndpointLabel {
        namespace: Some(Arc::clone(&known.pod.namespace)),
        pod: Some(Arc::clone(&known.pod.name)),
        workload: Some(Arc::clone(&known.workload)),
        identity: None,
        labels: Arc::clone(&known.labels),
    }
}

/// The rule that decided, and all where they are several.
fn deciders(origins: &[Origin]) -> Deciders {
    let policy = origins.first().map(PolicyLabel::from);
    if origins.len() < 2 {
        return (policy, Vec::new(), 0);
    }
    let (policies, omitted) = some(origins);
    (policy, policies, omitted)
}

/// None decided: those that select.
fn selecting(policies: &[PolicyLabel]) -> Deciders {
    let (policies, omitted) = some(policies);
    (None, policies, omitted)
}

fn some<'a, T>(all: &'a [T]) -> (Vec<PolicyLabel>, u32)
where
    PolicyLabel: From<&'a T>,
{
    let shown = &all[..all.len().min(POLICIES_MAX)];
    (shown.iter().map(PolicyLabel::from).collect(), beyond(all.len(), shown.len()))
}

fn beyond(all: usize, shown: usize) -> u32 {
    u32::try_from(all - shown).unwrap_or(u32::MAX)
}

/// The address, unless it is the one that stands for none.
fn given(address: IpAddr) -> Option<IpAddr> {
    (!address.is_unspecified()).then_some(address)
}

fn protocol(number: u8) -> Cow<'static, str> {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        other => other.to_string().into(),
    }
}
