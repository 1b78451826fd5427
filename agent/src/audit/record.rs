//! The records of the audit log: field names are its schema.

use std::net::IpAddr;
use std::sync::Arc;

use namegate_policy::identity::Identity;
use namegate_policy::rule::Origin;
use serde::{Serialize, Serializer};

/// One line of the log.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Record {
    /// A decision about a lookup.
    Dns(Box<DnsRecord>),
    /// A decision about the first packet of a flow, or about a dropped packet.
    Flow(Box<FlowRecord>),
    /// Records that are missing here.
    Lost(LostRecord),
}

/// The pod that asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EndpointLabel {
    /// Namespace of the pod.
    pub namespace: Option<Arc<str>>,
    /// Name of the pod.
    pub pod: Option<Arc<str>>,
    /// Number of the identity.
    pub identity: Option<u32>,
}

/// A decision about a lookup.
#[derive(Clone, Debug, Serialize)]
pub struct DnsRecord {
    /// `allowed`, `denied`, `audit` or `error`.
    pub verdict: &'static str,
    /// What led to the verdict, in a word.
    pub reason: String,
    /// Who asked.
    pub endpoint: EndpointLabel,
    /// What was asked; `null` where the message was not understood that far.
    pub query: Option<Query>,
    /// Code of the answer that the pod got; `null` where it got none.
    pub rcode: Option<String>,
    /// Addresses of the answer that count for the asked name.
    pub addresses: Vec<AnsweredAddress>,
    /// Those of them that were not opened.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_opened: Vec<NotOpenedAddress>,
    /// The rule that decided.
    pub policy: Option<PolicyLabel>,
    /// All that decided together, where there are several: the policies that filter lookups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyLabel>,
    /// The resolver that the pod asked.
    pub resolver: Option<IpAddr>,
    /// `udp` or `tcp`.
    pub transport: &'static str,
    /// From the query's arrival to the decision or answer.
    pub latency_us: u64,
}

/// A question.
#[derive(Clone, Debug, Serialize)]
pub struct Query {
    /// Name in presentation form, hostile octets as `\DDD`.
    pub name: String,
    /// Type mnemonic, or `TYPEn`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// An address of an answer.
#[derive(Clone, Debug, Serialize)]
pub struct AnsweredAddress {
    /// The address.
    pub address: IpAddr,
    /// TTL of the answer, in seconds.
    pub ttl: u32,
}

/// An address that a name may not open.
#[derive(Clone, Debug, Serialize)]
pub struct NotOpenedAddress {
    /// The address.
    pub address: IpAddr,
    /// Why, in a word.
    pub reason: String,
}

/// A decision about a flow.
#[derive(Clone, Debug, Serialize)]
pub struct FlowRecord {
    /// `forwarded`, `dropped` or `audit`.
    pub verdict: &'static str,
    /// What led to the verdict, in a word.
    pub reason: &'static str,
    /// Seen from the endpoint: `egress` where it opens the flow.
    pub direction: &'static str,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6`, or the protocol's number.
    pub protocol: String,
    /// The pod whose interface the packet crossed.
    pub endpoint: EndpointLabel,
    /// Who opens the flow.
    pub source: Peer,
    /// Whom it is opened to.
    pub destination: Peer,
    /// The rule that decided.
    pub policy: Option<PolicyLabel>,
    /// All that decided together, where there are several: the policies that isolate.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyLabel>,
}

/// One end of a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// Address; `null` where the packet was not understood that far.
    pub address: Option<IpAddr>,
    /// Port, or identifier of an echo.
    pub port: u16,
    /// Namespace of the pod with this address.
    pub namespace: Option<Arc<str>>,
    /// Name of the pod with this address.
    pub pod: Option<Arc<str>>,
    /// Number of its identity.
    pub identity: Option<u32>,
    /// Name of a reserved identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entity: Option<&'static str>,
    /// The names that the endpoint's identity learned this address under.
    pub names: Vec<String>,
}

/// The rule that a decision goes back to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyLabel {
    /// Kind of the object.
    #[serde(rename = "kind", serialize_with = "as_text")]
    pub policy_kind: namegate_policy::rule::PolicyKind,
    /// Namespace of the object.
    pub namespace: Option<Arc<str>>,
    /// Name of the object.
    pub name: Arc<str>,
    /// Name or path of the rule; `null` where the object as a whole decides.
    pub rule: Option<Arc<str>>,
}

/// Records that are missing.
#[derive(Clone, Debug, Serialize)]
pub struct LostRecord {
    /// `audit` where the log's own queue was full or its sink failed, `kernel` where the ring buffer
    /// was full.
    pub source: &'static str,
    /// How many.
    pub count: u64,
}

impl From<&Origin> for PolicyLabel {
    fn from(origin: &Origin) -> Self {
        Self {
            policy_kind: origin.policy.kind,
            namespace: origin.policy.namespace.clone(),
            name: Arc::clone(&origin.policy.name),
            rule: origin.rule.clone(),
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

fn as_text<S: Serializer>(value: &impl ToString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}
