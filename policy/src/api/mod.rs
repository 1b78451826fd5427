//! `namegate.dev/v1alpha1` as users write it: the types of EgressPolicy and ClusterEgressPolicy with
//! their schema.
//!
//! These types hold what was written and nothing more; `convert` turns them into the normal form
//! and refuses what makes no sense.

mod convert;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use convert::{Manifest, cluster_egress_policy, egress_policy};
pub(crate) use convert::{own_pods, pods_in, priority};

/// The group and version of the kinds in this module.
pub const API_VERSION: &str = "namegate.dev/v1alpha1";

/// What an EgressPolicy says.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressPolicySpec {
    /// The pods of the namespace that the policy is about; empty means all of them.
    pub pod_selector: LabelSelector,
    /// Whether the policy drops or only logs.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mode: Mode,
    /// What becomes of lookups.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dns: DnsSpec,
    /// What is allowed; a rule is peers x ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<EgressRule>,
    /// What is refused, whatever allows it in the same tier.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<EgressRule>,
}

/// What a ClusterEgressPolicy says.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterEgressPolicySpec {
    /// The namespaces whose pods the policy is about; empty means all of them.
    pub namespace_selector: LabelSelector,
    /// The pods in those namespaces; all of them where left out.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pod_selector: LabelSelector,
    /// The tier; without one the policy adds up with the namespaced ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// The place in the tier; the lower number wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u16>,
    /// Whether the policy drops or only logs.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mode: Mode,
    /// What becomes of lookups.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dns: DnsSpec,
    /// What is allowed; a rule is peers x ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<EgressRule>,
    /// What is refused, before every allow of the same priority.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<EgressRule>,
}

/// Whether writing the field out says nothing.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Whether a policy drops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// It does.
    #[default]
    Enforce,
    /// It decides and logs, and drops nothing.
    Audit,
}

/// A tier of ClusterEgressPolicies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Tier {
    /// Decides before every namespaced policy.
    Admin,
    /// Decides where no namespaced policy isolates.
    Baseline,
}

/// What becomes of lookups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DnsSpec {
    /// Whether names that no rule allows are refused. Enforce where left out; Observe in a tier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<DnsFilter>,
    /// How they are refused.
    #[serde(default, skip_serializing_if = "is_default")]
    pub refuse_with: RefuseWith,
}

/// Whether lookups are filtered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DnsFilter {
    /// A name that no rule allows is refused.
    Enforce,
    /// Every name resolves; only allowed ones open addresses.
    Observe,
}

/// How a refused name is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RefuseWith {
    /// With the response code REFUSED.
    #[default]
    Refused,
    /// With NXDOMAIN.
    NxDomain,
    /// With NOERROR and no records.
    Empty,
}

/// One rule: peers x ports.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressRule {
    /// A name for logs; the rule's place in the object stands in for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The remote ends; any where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<EgressPeer>>,
    /// The ports; all where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<PortSpec>>,
}

/// One remote end: exactly one of `fqdn`, `cidr`, `service`, `entity`, or selectors.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressPeer {
    /// A name, `*.` before a name, or `*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fqdn: Option<String>,
    /// A prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidr: Option<String>,
    /// What this peer does not mean: names beside `fqdn`, prefixes beside `cidr`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<String>,
    /// Whether `fqdn` opens private addresses under the strict rebinding guard too.
    #[serde(default, skip_serializing_if = "is_default")]
    pub allow_private: bool,
    /// Pods in these namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Pods with these labels, of the policy's own namespace where `namespaceSelector` is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// A Service; the rule's ports are ports of the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServicePeer>,
    /// A part of the world with a name of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entity: Option<Entity>,
}

/// A Service by name.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ServicePeer {
    /// Its namespace; the policy's own where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// A part of the world with a name of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Entity {
    /// What is outside the cluster.
    World,
    /// Every pod and node.
    Cluster,
    /// The pod's own node.
    Host,
    /// The other nodes.
    RemoteNode,
    /// The Kubernetes API server.
    KubeApiserver,
}

/// Ports of one protocol.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortSpec {
    /// TCP where left out.
    #[serde(default)]
    pub protocol: Transport,
    /// A number, or a name that the destination pod gives its port; every port where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortValue>,
    /// The last port of a range that begins at a numeric `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_port: Option<u16>,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Transport {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port by number or by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(extend("x-kubernetes-int-or-string" = true))]
pub enum PortValue {
    /// By number.
    Number(i64),
    /// By name.
    Name(String),
}

/// A label selector; all its conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that must have these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Conditions on labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<LabelRequirement>,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LabelRequirement {
    /// The label's key.
    pub key: String,
    /// In, NotIn, Exists or DoesNotExist.
    pub operator: String,
    /// The values for In and NotIn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}
