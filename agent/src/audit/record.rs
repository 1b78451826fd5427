//! The records of the audit log: their field names are its schema.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use namegate_policy::identity::Identity;
use namegate_policy::rule::{Origin, PolicyRef};
use namegate_policy::selector::Labels;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What one line of the log tells.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Record {
    /// A decision about a lookup.
    Dns(Box<DnsRecord>),
    /// A decision about the first packet of a flow, or about a dropped packet.
    Flow(Box<FlowRecord>),
    /// Records that are missing here and should not be.
    Lost(LostRecord),
    /// Records of one endpoint that a bound or the sampling kept out.
    Suppressed(Box<SuppressedRecord>),
}

/// The pod that a decision is about.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct EndpointLabel {
    /// Namespace of the pod.
    pub namespace: Option<Arc<str>>,
    /// Name of the pod.
    pub pod: Option<Arc<str>>,
    /// What the pod is a copy of, as far as its name and labels tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<Arc<str>>,
    /// Number of the identity, which counts on this node alone.
    pub identity: Option<u32>,
    /// Labels of the pod.
    #[serde(default, skip_serializing_if = "has_none")]
    pub labels: Arc<Labels>,
}

/// What became of a lookup.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LookupVerdict {
    /// The name was resolved.
    Allowed,
    /// No rule allows the name: it was refused.
    Denied,
    /// The name was resolved, and without Audit mode would have been refused.
    Audit,
    /// The name may be asked, and the pod got SERVFAIL or nothing.
    Error,
}

/// A decision about a lookup.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct DnsRecord {
    /// What became of it.
    pub verdict: LookupVerdict,
    /// What led to the verdict, in a word.
    pub reason: Cow<'static, str>,
    /// Who asked.
    pub endpoint: EndpointLabel,
    /// What was asked; `null` where the message was not understood that far.
    pub query: Option<Query>,
    /// Code of the answer that the pod got; `null` where it got none.
    pub rcode: Option<Cow<'static, str>>,
    /// Addresses of the answer that count for the asked name.
    pub addresses: Vec<AnsweredAddress>,
    /// How many addresses there are besides.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub addresses_omitted: u32,
    /// Those of `addresses` that were not opened.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_opened: Vec<NotOpenedAddress>,
    /// The rule that decided.
    pub policy: Option<PolicyLabel>,
    /// Where several decided together, all of them; where none did, those that select the endpoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyLabel>,
    /// How many policies there are besides.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub policies_omitted: u32,
    /// The resolver that the pod asked.
    pub resolver: Option<IpAddr>,
    /// How the pod asked.
    pub transport: Transport,
    /// Whether the proxy knew the answer.
    pub cached: bool,
    /// From the query's arrival to the decision or answer.
    pub latency_us: u64,
}

/// How a pod asked.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// RFC 1035 section 4.2.1.
    Udp,
    /// RFC 7766.
    Tcp,
}

/// A question.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct Query {
    /// Name in presentation form, hostile octets as `\DDD`.
    pub name: String,
    /// Type mnemonic, or `TYPEn`.
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
}

/// An address of an answer.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct AnsweredAddress {
    /// The address.
    pub address: IpAddr,
    /// TTL of the answer, in seconds.
    pub ttl: u32,
}

/// An address that a name may not open.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct NotOpenedAddress {
    /// The address.
    pub address: IpAddr,
    /// Why, in a word.
    pub reason: Cow<'static, str>,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowVerdict {
    /// The first packet of a flow was let through.
    Forwarded,
    /// The packet was dropped.
    Dropped,
    /// The first packet of a flow was let through, and without Audit mode would have been dropped.
    Audit,
}

/// Who opens a flow, seen from the endpoint.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowDirection {
    /// The endpoint.
    Egress,
    /// The other end.
    Ingress,
}

/// A decision about a flow.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct FlowRecord {
    /// What became of it.
    pub verdict: FlowVerdict,
    /// What led to the verdict, in a word.
    #[schemars(schema_with = "super::schema::flow_reasons")]
    pub reason: Cow<'static, str>,
    /// Who opens the flow, seen from the endpoint.
    pub direction: FlowDirection,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6`, or the protocol's number.
    pub protocol: Cow<'static, str>,
    /// The pod whose interface the packet crossed.
    pub endpoint: EndpointLabel,
    /// Who opens the flow.
    pub source: Peer,
    /// Whom it is opened to: of a flow to a service, the backend.
    pub destination: Peer,
    /// The service that it was opened to, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceEnd>,
    /// The rule that decided.
    pub policy: Option<PolicyLabel>,
    /// Where several decided together, all of them; where none did, those that select the endpoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyLabel>,
    /// How many policies there are besides.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub policies_omitted: u32,
}

/// The service that an endpoint asked for.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct ServiceEnd {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Namespace of the Service with this address.
    pub namespace: Option<Arc<str>>,
    /// Name of the Service with this address.
    pub name: Option<Arc<str>>,
}

/// One end of a flow.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Peer {
    /// Address; `null` where the packet was not understood that far.
    pub address: Option<IpAddr>,
    /// Port, or identifier of an echo.
    pub port: u16,
    /// Namespace of the pod with this address.
    pub namespace: Option<Arc<str>>,
    /// Name of the pod with this address.
    pub pod: Option<Arc<str>>,
    /// What that pod is a copy of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<Arc<str>>,
    /// Number of its identity, which counts on this node alone.
    pub identity: Option<u32>,
    /// Name of a reserved identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entity: Option<Cow<'static, str>>,
    /// The names that the endpoint's identity learned this address under.
    pub names: Vec<Cow<'static, str>>,
    /// How many names there are besides.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub names_omitted: u32,
    /// Labels of the pod.
    #[serde(default, skip_serializing_if = "has_none")]
    pub labels: Arc<Labels>,
}

/// A policy, and the rule in it that a decision goes back to.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct PolicyLabel {
    /// Kind of the object.
    pub kind: Cow<'static, str>,
    /// Namespace of the object.
    pub namespace: Option<Arc<str>>,
    /// Name of the object.
    pub name: Arc<str>,
    /// Name or path of the rule; `null` where the object as a whole decides.
    pub rule: Option<Arc<str>>,
}

/// Where records were lost.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum LossSource {
    /// The kernel's ring buffer was full.
    Kernel,
    /// The agent's queue was full.
    Queue,
    /// The sink was slow, or failed.
    Sink,
}

/// Records that are missing.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct LostRecord {
    /// Where.
    pub source: LossSource,
    /// How many.
    pub count: u64,
}

/// Records of an endpoint that were kept out since the last such record.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct SuppressedRecord {
    /// The endpoint.
    pub endpoint: EndpointLabel,
    /// How many over the rate.
    pub rate: SuppressedCounts,
    /// How many by sampling.
    pub sample: SuppressedCounts,
}

/// Records that were kept out, by what they tell.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct SuppressedCounts {
    /// Of what went through.
    pub allowed: u64,
    /// Of what was refused or failed, or would have been without Audit mode.
    pub refused: u64,
}

impl Record {
    /// Whether it tells of a refusal, of a failure, or of what only Audit mode let through.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Dns(record) => record.verdict != LookupVerdict::Allowed,
            Self::Flow(record) => record.verdict != FlowVerdict::Forwarded,
            Self::Lost(_) | Self::Suppressed(_) => false,
        }
    }

    /// The pod that it is about.
    pub fn endpoint(&self) -> Option<&EndpointLabel> {
        match self {
            Self::Dns(record) => Some(&record.endpoint),
            Self::Flow(record) => Some(&record.endpoint),
            Self::Lost(_) => None,
            Self::Suppressed(record) => Some(&record.endpoint),
        }
    }

    /// The policies that it names, the one that decided first.
    pub fn policies(&self) -> impl Iterator<Item = &PolicyLabel> {
        let (policy, policies) = match self {
            Self::Dns(record) => (record.policy.as_ref(), record.policies.as_slice()),
            Self::Flow(record) => (record.policy.as_ref(), record.policies.as_slice()),
            Self::Lost(_) | Self::Suppressed(_) => (None, &[][..]),
        };
        policy.into_iter().chain(policies)
    }
}

impl From<&Self> for PolicyLabel {
    fn from(label: &Self) -> Self {
        label.clone()
    }
}

impl From<&Origin> for PolicyLabel {
    fn from(origin: &Origin) -> Self {
        Self { rule: origin.rule.clone(), ..Self::from(&origin.policy) }
    }
}

impl From<&PolicyRef> for PolicyLabel {
    fn from(policy: &PolicyRef) -> Self {
        Self {
            kind: policy.kind.as_str().into(),
            namespace: policy.namespace.clone(),
            name: Arc::clone(&policy.name),
            rule: None,
        }
    }
}

/// The name that logs carry for a reserved identity.
pub const fn entity(identity: Identity) -> Option<&'static str> {
    match identity {
        Identity::HOST => Some("host"),
        Identity::REMOTE_NODE => Some("remote-node"),
        Identity::KUBE_APISERVER => Some("kube-apiserver"),
        Identity::WORLD => Some("world"),
        Identity::UNMANAGED => Some("unmanaged"),
        _ => None,
    }
}

fn has_none(labels: &Arc<Labels>) -> bool {
    labels.is_empty()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}
