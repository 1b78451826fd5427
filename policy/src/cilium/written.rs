//! The objects as users write them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;
use serde_json::Value;

/// A policy as a manifest holds it.
#[derive(Debug, Deserialize)]
pub struct Manifest {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    pub(super) metadata: ObjectMeta,
    pub(super) spec: Option<Spec>,
    #[serde(default)]
    pub(super) specs: Vec<Spec>,
}

/// A CiliumCIDRGroup as a manifest holds it.
#[derive(Debug, Deserialize)]
pub struct CidrGroupManifest {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    pub(super) metadata: ObjectMeta,
    pub(super) spec: CidrGroupSpec,
}

#[derive(Debug, Deserialize)]
pub(super) struct CidrGroupSpec {
    #[serde(rename = "externalCIDRs")]
    pub(super) external_cidrs: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spec {
    #[serde(rename = "description")]
    _description: Option<String>,
    pub(super) endpoint_selector: Option<LabelSelector>,
    pub(super) node_selector: Option<Value>,
    pub(super) enable_default_deny: Option<DefaultDeny>,
    pub(super) ingress: Option<Vec<Rule>>,
    pub(super) egress: Option<Vec<Rule>>,
    pub(super) ingress_deny: Option<Vec<Rule>>,
    pub(super) egress_deny: Option<Vec<Rule>>,
    #[serde(rename = "labels")]
    _labels: Option<Vec<PolicyLabel>>,
    #[serde(rename = "log")]
    _log: Option<LogLine>,
}

/// What Cilium adds to its log where the policy decides.
#[derive(Debug, Deserialize)]
struct LogLine {
    #[serde(rename = "value")]
    _value: Option<String>,
}

/// A label of the policy itself; it selects nothing.
#[derive(Debug, Deserialize)]
struct PolicyLabel {
    #[serde(rename = "key")]
    _key: Option<String>,
    #[serde(rename = "value")]
    _value: Option<String>,
    #[serde(rename = "source")]
    _source: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct DefaultDeny {
    pub(super) ingress: Option<bool>,
    pub(super) egress: Option<bool>,
}

/// A rule of either direction; fields of the other direction are refused where they stand.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rule {
    pub(super) to_endpoints: Option<Vec<LabelSelector>>,
    pub(super) from_endpoints: Option<Vec<LabelSelector>>,
    #[serde(rename = "toCIDR")]
    pub(super) to_cidr: Option<Vec<String>>,
    #[serde(rename = "fromCIDR")]
    pub(super) from_cidr: Option<Vec<String>>,
    #[serde(rename = "toCIDRSet")]
    pub(super) to_cidr_set: Option<Vec<CidrRule>>,
    #[serde(rename = "fromCIDRSet")]
    pub(super) from_cidr_set: Option<Vec<CidrRule>>,
    pub(super) to_entities: Option<Vec<String>>,
    pub(super) from_entities: Option<Vec<String>>,
    pub(super) to_services: Option<Vec<ServiceRule>>,
    #[serde(rename = "toFQDNs")]
    pub(super) to_fqdns: Option<Vec<NameRule>>,
    pub(super) to_ports: Option<Vec<PortRule>>,
    pub(super) icmps: Option<Vec<IcmpRule>>,
    pub(super) to_requires: Option<Value>,
    pub(super) from_requires: Option<Value>,
    pub(super) to_groups: Option<Value>,
    pub(super) from_groups: Option<Value>,
    pub(super) to_nodes: Option<Value>,
    pub(super) from_nodes: Option<Value>,
    #[serde(alias = "auth")]
    pub(super) authentication: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CidrRule {
    pub(super) cidr: Option<String>,
    #[serde(default)]
    pub(super) except: Vec<String>,
    pub(super) cidr_group_ref: Option<String>,
    pub(super) cidr_group_selector: Option<LabelSelector>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceRule {
    pub(super) k8s_service: Option<NamedService>,
    pub(super) k8s_service_selector: Option<SelectedServices>,
}

#[derive(Debug, Deserialize)]
pub(super) struct SelectedServices {
    pub(super) selector: LabelSelector,
    pub(super) namespace: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NamedService {
    pub(super) service_name: String,
    pub(super) namespace: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NameRule {
    pub(super) match_name: Option<String>,
    pub(super) match_pattern: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PortRule {
    pub(super) ports: Option<Vec<Port>>,
    pub(super) rules: Option<Layer7>,
    #[serde(rename = "terminatingTLS")]
    pub(super) terminating_tls: Option<Value>,
    #[serde(rename = "originatingTLS")]
    pub(super) originating_tls: Option<Value>,
    pub(super) server_names: Option<Value>,
    pub(super) listener: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Port {
    pub(super) port: Option<IntOrString>,
    pub(super) end_port: Option<i64>,
    pub(super) protocol: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Layer7 {
    pub(super) dns: Option<Vec<NameRule>>,
    pub(super) http: Option<Value>,
    pub(super) kafka: Option<Value>,
    pub(super) l7: Option<Value>,
    pub(super) l7proto: Option<Value>,
}

#[derive(Debug, Deserialize)]
pub(super) struct IcmpRule {
    #[serde(default)]
    pub(super) fields: Vec<IcmpField>,
}

#[derive(Debug, Deserialize)]
pub(super) struct IcmpField {
    #[serde(rename = "type")]
    pub(super) kind: IntOrString,
    pub(super) family: Option<String>,
}
