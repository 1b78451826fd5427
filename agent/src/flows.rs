//! Events of the kernel program → records of the audit log.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use namegate_egress_bpf::abi::{Direction, EventVerdict};
use namegate_egress_bpf::datapath::{Events, FlowEvent};
use namegate_policy::identity::Identity;

use crate::audit::{AuditLog, EndpointLabel, FlowRecord, Peer, PolicyLabel, Record, entity};
use crate::clock;
use crate::readiness;
use crate::registry::Registry;

/// Events taken at once before others get their turn.
const TURN: usize = 256;

/// Reads events and records them, until the task is ended.
pub async fn follow(mut events: Events, registry: Arc<Registry>, log: AuditLog) {
    let readiness = match readiness::of(&events) {
        Ok(readiness) => readiness,
        Err(error) => {
            tracing::error!(%error, "no flow records: the kernel's events cannot be read");
            return;
        }
    };
    loop {
        let mut ready = match readiness.readable().await {
            Ok(ready) => ready,
            Err(error) => {
                tracing::error!(%error, "no more flow records: the kernel's events broke off");
                return;
            }
        };
        // Cleared before reading: an event that comes while the last are read wakes again.
        ready.clear_ready();
        let mut taken = 0;
        while let Some(event) = events.next_event() {
            if log.is_enabled() {
                let now = clock::monotonic_now();
                let time = clock::wall_time(event.time, now, SystemTime::now());
                log.record_at(time, Record::Flow(Box::new(flow_record(&event, &registry))));
            }
            taken += 1;
            if taken % TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
    }
}

fn flow_record(event: &FlowEvent, registry: &Registry) -> FlowRecord {
    let known = registry.endpoint(event.ifindex);
    let identity = event.identity.or(known.as_ref().and_then(|(_, identity)| *identity));
    let pod = known.map(|(pod, _)| pod);
    let endpoint = EndpointLabel {
        namespace: pod.as_ref().map(|pod| Arc::clone(&pod.namespace)),
        pod: pod.as_ref().map(|pod| Arc::clone(&pod.name)),
        identity: identity.map(Identity::number),
    };
    let local = Peer {
        address: given(event.local),
        port: event.local_port,
        namespace: endpoint.namespace.clone(),
        pod: endpoint.pod.clone(),
        identity: endpoint.identity,
        entity: None,
        names: Vec::new(),
    };
    let remote_pod = registry.pod(event.remote);
    let names = identity.map(|identity| registry.names((identity, event.remote)));
    let remote = Peer {
        address: given(event.remote),
        port: event.remote_port,
        namespace: remote_pod.as_ref().map(|pod| Arc::clone(&pod.namespace)),
        pod: remote_pod.as_ref().map(|pod| Arc::clone(&pod.name)),
        identity: event.remote_identity.map(Identity::number),
        entity: event.remote_identity.and_then(entity),
        names: names.iter().flat_map(|names| names.iter()).map(ToString::to_string).collect(),
    };
    let is_egress = matches!(event.direction, Direction::Egress);
    let (source, destination) = if is_egress { (local, remote) } else { (remote, local) };
    let (verdict, clause) = match event.verdict {
        EventVerdict::Forwarded => ("forwarded", event.clause),
        EventVerdict::Dropped => ("dropped", event.clause),
        EventVerdict::Audit => ("audit", event.audit),
    };
    let origins = clause.and_then(|clause| registry.origins(event.table, is_egress, clause));
    let labels: Vec<PolicyLabel> =
        origins.iter().flat_map(|origins| origins.iter()).map(PolicyLabel::from).collect();
    FlowRecord {
        verdict,
        reason: event.reason.as_str(),
        direction: if is_egress { "egress" } else { "ingress" },
        protocol: protocol(event.protocol),
        endpoint,
        source,
        destination,
        policy: labels.first().cloned(),
        policies: if labels.len() > 1 { labels } else { Vec::new() },
    }
}

/// The address, unless it is the one that stands for none.
fn given(address: IpAddr) -> Option<IpAddr> {
    (!address.is_unspecified()).then_some(address)
}

fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}
