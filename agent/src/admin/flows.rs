//! `GET /v1/flows`: the flows that the kernel knows of this node's pods.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use namegate_egress_bpf::abi::{
    Direction, FLOW_CLOSING, FLOW_ESTABLISHED, FLOW_OPENING, FLOW_REVOKED, Flow, FlowKey,
    ROLE_HAIRPIN, ROLE_PLAIN, ROLE_TRANSLATED,
};
use namegate_egress_bpf::packet::protocol;
use namegate_egress_bpf::verdict::flow_is_expired;
use namegate_policy::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::names::described;
use super::policies::way;
use super::{Context, Failure};
use crate::clock;
use crate::registry::Registry;

/// Rows of an answer at most.
const ROWS_MAX: usize = 262_144;

/// Which flows.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Wanted {
    /// Those of this pod, as `NAMESPACE/NAME`.
    pod: Option<String>,
}

/// One flow, as its endpoint sees it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct FlowItem {
    /// The pod, as `NAMESPACE/NAME`.
    pub pod: String,
    /// Who opened it: `egress` where the pod did.
    pub direction: String,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6`, or the protocol's number.
    pub protocol: String,
    /// The pod's address.
    pub local: IpAddr,
    /// Its port; an echo's identifier.
    pub local_port: u16,
    /// The other end: of a flow to a service, the backend.
    pub remote: IpAddr,
    /// Its port.
    pub remote_port: u16,
    /// The service that the pod speaks to, and its port.
    pub service: Option<(IpAddr, u16)>,
    /// The pod with the other end's address.
    pub remote_pod: Option<String>,
    /// The names that the pod's identity learned the other end's address under.
    pub names: Vec<String>,
    /// `opening`, `established`, `closing` or `cut`.
    pub state: String,
    /// For how many seconds it has been there.
    pub age_s: u64,
    /// For how many seconds no packet of it went through.
    pub idle_s: u64,
    /// Packets both ways.
    pub packets: u64,
    /// Octets both ways.
    pub octets: u64,
    /// The rule that let it through.
    pub rules: Vec<String>,
}

pub(super) fn routes() -> Router<Context> {
    Router::new().route("/flows", get(list))
}

async fn list(
    State(context): State<Context>,
    Query(wanted): Query<Wanted>,
) -> Result<Json<Vec<FlowItem>>, Failure> {
    let registry = Arc::clone(&context.registry);
    let items = context
        .read(move |kernel| {
            let now = clock::monotonic_now();
            let flows = kernel.flows()?.into_iter();
            let items = flows.filter_map(|(key, flow)| item(&registry, &key, &flow, now));
            let is_wanted =
                |item: &FlowItem| wanted.pod.as_ref().is_none_or(|pod| item.pod == *pod);
            Ok(items.filter(is_wanted).take(ROWS_MAX).collect())
        })
        .await?;
    Ok(Json(items.unwrap_or_default()))
}

/// The flow in words; `None` where it is dead, or the other half of one.
pub(super) fn item(
    registry: &Registry,
    key: &FlowKey,
    flow: &Flow,
    now: Timestamp,
) -> Option<FlowItem> {
    let is_translated = match flow.role {
        ROLE_PLAIN => false,
        ROLE_TRANSLATED | ROLE_HAIRPIN => true,
        _ => return None,
    };
    if flow_is_expired(key.protocol, flow, now.as_nanos()) {
        return None;
    }
    let (pod, identity) = registry.endpoint(key.ifindex)?;
    let direction = Direction::from_number(flow.initiator)?;
    let (remote, remote_port) = if is_translated {
        (IpAddr::from(flow.peer), flow.peer_port)
    } else {
        (key.remote.into(), key.remote_port)
    };
    let is_egress = matches!(direction, Direction::Egress);
    let origins = registry.origins(flow.table, is_egress, flow.clause);
    let since = |ns: u64| now.since(Timestamp::from_nanos(ns)).as_secs();
    let names = identity.map(|identity| registry.names((identity, remote)));
    Some(FlowItem {
        pod: pod.pod.to_string(),
        direction: way(direction).to_owned(),
        protocol: transport(key.protocol),
        local: key.local.into(),
        local_port: key.local_port,
        remote,
        remote_port,
        service: is_translated.then(|| (key.remote.into(), key.remote_port)),
        remote_pod: registry.pod(remote).map(|known| known.pod.to_string()),
        names: names.iter().flat_map(|names| names.iter()).map(ToString::to_string).collect(),
        state: state(flow.state).to_owned(),
        age_s: since(flow.created_ns),
        idle_s: since(flow.seen_ns),
        packets: flow.packets.iter().sum(),
        octets: flow.octets.iter().sum(),
        rules: origins.iter().flat_map(|origins| origins.iter()).map(described).collect(),
    })
}

fn state(number: u8) -> &'static str {
    match number {
        FLOW_OPENING => "opening",
        FLOW_ESTABLISHED => "established",
        FLOW_CLOSING => "closing",
        FLOW_REVOKED => "cut",
        _ => "unknown",
    }
}

fn transport(number: u8) -> String {
    match number {
        protocol::TCP => "tcp".to_owned(),
        protocol::UDP => "udp".to_owned(),
        protocol::SCTP => "sctp".to_owned(),
        protocol::ICMP => "icmp".to_owned(),
        protocol::ICMPV6 => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}
