//! One document in, one object out, or what is wrong with it: object, field, problem and fix.

use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api;
use crate::cilium;
use crate::cluster;
use crate::field::Place;
use crate::kubernetes;
use crate::misspelt::{self, Step};
use crate::problem::{FieldError, Problem, Shown, similar_kind};
use crate::resource::{CidrGroup, EndpointSlice, Namespace, Node, Pod, Service};
use crate::rule::{Policy, PolicyKind};
use crate::stand_in::stand_in;

/// An object that the agent acts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// `v1`
    Namespace(Namespace),
    /// `v1`
    Pod(Pod),
    /// `v1`
    Service(Service),
    /// `discovery.k8s.io/v1`
    EndpointSlice(EndpointSlice),
    /// `v1`
    Node(Node),
    /// `cilium.io/v2`
    CidrGroup(CidrGroup),
    /// A policy of any dialect.
    Policy(Policy),
}

/// The kind of an object that the agent acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// `v1`
    Namespace,
    /// `v1`
    Node,
    /// `v1`
    Pod,
    /// `v1`
    Service,
    /// `discovery.k8s.io/v1`
    EndpointSlice,
    /// `cilium.io/v2`
    CidrGroup,
    /// A policy of any dialect.
    Policy(PolicyKind),
}

/// An object by kind and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its namespace; `None` for a cluster-scoped object.
    pub namespace: Option<Arc<str>>,
    /// Its name.
    pub name: Arc<str>,
}

/// Why a document is no object that the agent acts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectError {
    /// The document's kind as written; empty where it has none.
    pub kind: String,
    /// The namespace as written.
    pub namespace: Option<String>,
    /// The name as written.
    pub name: Option<String>,
    /// What is wrong, and where in the document.
    pub error: Box<FieldError>,
    /// What must be in force for a policy where no earlier version of it is: the stricter side.
    /// `None` where the document is no policy, or where nobody can say whom it is about.
    pub stand_in: Option<Box<Policy>>,
}

impl ObjectError {
    /// Whether the document is of a kind that the agent does not read at all.
    pub fn is_unsupported_kind(&self) -> bool {
        matches!(self.error.problem, Problem::UnsupportedKind { .. })
    }

    /// Whether the document is none of our business: of a kind that the agent does not read, and not
    /// meant to be one that it does. A policy that is passed over in silence leaves its pods open.
    pub fn is_foreign(&self) -> bool {
        let Problem::UnsupportedKind { api_version, kind } = &self.error.problem else {
            return false;
        };
        let group = api_version.split('/').next();
        let is_ours = group == api::API_VERSION.split('/').next();
        !is_ours && !kind.contains("Polic") && similar_kind(api_version, kind).is_none()
    }

    /// The path of the field; `None` where the document as a whole is wrong.
    pub fn field(&self) -> Option<&str> {
        (!self.error.field.is_empty()).then_some(self.error.field.as_str())
    }

    /// What to write.
    pub fn fix(&self) -> Option<String> {
        self.error.problem.fix()
    }
}

impl fmt::Display for ObjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind.is_empty() { "document" } else { &self.kind };
        write!(f, "{}", Shown(kind))?;
        match (&self.namespace, &self.name) {
            (Some(namespace), Some(name)) => write!(f, " {}/{}", Shown(namespace), Shown(name))?,
            (None, Some(name)) => write!(f, " {}", Shown(name))?,
            (_, None) => {}
        }
        if let Some(field) = self.field() {
            write!(f, ": {field}")?;
        }
        write!(f, ": {}", self.error.problem)?;
        match self.fix() {
            Some(fix) => write!(f, " ({fix})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ObjectError {}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace => f.write_str("Namespace"),
            Self::Node => f.write_str("Node"),
            Self::Pod => f.write_str("Pod"),
            Self::Service => f.write_str("Service"),
            Self::EndpointSlice => f.write_str("EndpointSlice"),
            Self::CidrGroup => f.write_str("CiliumCIDRGroup"),
            Self::Policy(kind) => write!(f, "{kind}"),
        }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

impl Object {
    /// The object's kind and name.
    pub fn reference(&self) -> ObjectRef {
        let (kind, namespace, name) = match self {
            Self::Namespace(namespace) => (ObjectKind::Namespace, None, &namespace.name),
            Self::Node(node) => (ObjectKind::Node, None, &node.name),
            Self::CidrGroup(group) => (ObjectKind::CidrGroup, None, &group.name),
            Self::Pod(pod) => {
                (ObjectKind::Pod, Some(&pod.reference.namespace), &pod.reference.name)
            }
            Self::Service(service) => {
                let reference = &service.reference;
                (ObjectKind::Service, Some(&reference.namespace), &reference.name)
            }
            Self::EndpointSlice(slice) => {
                (ObjectKind::EndpointSlice, Some(&slice.namespace), &slice.name)
            }
            Self::Policy(policy) => {
                let reference = &policy.reference;
                (ObjectKind::Policy(reference.kind), reference.namespace.as_ref(), &reference.name)
            }
        };
        ObjectRef { kind, namespace: namespace.cloned(), name: Arc::clone(name) }
    }
}

/// The documents in one value, each with its path in it: the items of a List (`items[3]`), else the
/// value itself.
pub fn expand(value: Value) -> Vec<(String, Value)> {
    let mut documents = Vec::new();
    expand_into(String::new(), value, &mut documents);
    documents
}

fn expand_into(path: String, mut value: Value, documents: &mut Vec<(String, Value)>) {
    let is = |key: &str, text: &str| value.get(key).and_then(Value::as_str) == Some(text);
    if !is("apiVersion", "v1") || !is("kind", "List") {
        documents.push((path, value));
        return;
    }
    let Some(Value::Array(items)) = value.get_mut("items") else {
        documents.push((path, value));
        return;
    };
    for (index, item) in std::mem::take(items).into_iter().enumerate() {
        expand_into(Place(&path).entry("items", index), item, documents);
    }
}

/// Reads one document.
pub fn parse(value: Value) -> Result<Object, ObjectError> {
    let text_at = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    let (api_version, kind) = (text_at("/apiVersion"), text_at("/kind"));
    parse_as(api_version, kind, &value).map_err(|error| ObjectError {
        kind: kind.unwrap_or_default().to_owned(),
        namespace: text_at("/metadata/namespace").map(str::to_owned),
        name: text_at("/metadata/name").map(str::to_owned),
        stand_in: policy_kind(api_version, kind)
            .and_then(|kind| stand_in(kind, &value, &error))
            .map(Box::new),
        error: Box::new(error),
    })
}

/// The kind of policy that a document is.
fn policy_kind(api_version: Option<&str>, kind: Option<&str>) -> Option<PolicyKind> {
    Some(match (api_version?, kind?) {
        ("networking.k8s.io/v1", "NetworkPolicy") => PolicyKind::NetworkPolicy,
        (cluster::API_VERSION, "ClusterNetworkPolicy") => PolicyKind::ClusterNetworkPolicy,
        (cilium::API_VERSION, "CiliumNetworkPolicy") => PolicyKind::CiliumNetworkPolicy,
        (cilium::API_VERSION, "CiliumClusterwideNetworkPolicy") => {
            PolicyKind::CiliumClusterwideNetworkPolicy
        }
        (api::API_VERSION, "EgressPolicy") => PolicyKind::EgressPolicy,
        (api::API_VERSION, "ClusterEgressPolicy") => PolicyKind::ClusterEgressPolicy,
        _ => return None,
    })
}

fn parse_as(
    api_version: Option<&str>,
    kind: Option<&str>,
    value: &Value,
) -> Result<Object, FieldError> {
    if !value.is_object() {
        return Err(FieldError::new("", Problem::NotAnObject));
    }
    let Some(kind) = kind else {
        return Err(FieldError::new("kind", Problem::Missing));
    };
    let Some(api_version) = api_version else {
        return Err(FieldError::new("apiVersion", Problem::Missing));
    };
    if let Some(kind) = policy_kind(Some(api_version), Some(kind)) {
        return policy(kind, value).map(Object::Policy);
    }
    Ok(match (api_version, kind) {
        ("v1", "Namespace") => Object::Namespace(kubernetes::namespace(&known(value)?)?),
        ("v1", "Pod") => Object::Pod(kubernetes::pod(&known(value)?)?),
        ("v1", "Service") => Object::Service(kubernetes::service(&known(value)?)?),
        ("v1", "Node") => Object::Node(kubernetes::node(&known(value)?)?),
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            Object::EndpointSlice(kubernetes::endpoint_slice(&known(value)?)?)
        }
        (cilium::API_VERSION | cilium::API_VERSION_BEFORE, "CiliumCIDRGroup") => {
            Object::CidrGroup(cilium::cidr_group(&strict(value)?)?)
        }
        _ => {
            let (api_version, kind) = (api_version.to_owned(), kind.to_owned());
            return Err(FieldError::new("", Problem::UnsupportedKind { api_version, kind }));
        }
    })
}

fn policy(kind: PolicyKind, value: &Value) -> Result<Policy, FieldError> {
    match kind {
        PolicyKind::NetworkPolicy => kubernetes::network_policy(&strict(value)?),
        PolicyKind::ClusterNetworkPolicy => cluster::cluster_network_policy(&strict(value)?),
        PolicyKind::CiliumNetworkPolicy => cilium::network_policy(&strict(value)?),
        PolicyKind::CiliumClusterwideNetworkPolicy => {
            cilium::clusterwide_network_policy(&strict(value)?)
        }
        PolicyKind::EgressPolicy => api::egress_policy(&strict(value)?),
        PolicyKind::ClusterEgressPolicy => api::cluster_egress_policy(&strict(value)?),
    }
}

/// Reads an object whose unknown fields are none of our business.
fn known<T: DeserializeOwned>(value: &Value) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(value).map_err(|error| shape(&error))
}

/// Reads a policy: a field that nothing reads would be a rule that silently is not there.
fn strict<T: DeserializeOwned>(value: &Value) -> Result<T, FieldError> {
    let mut unknown = None;
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    let result = serde_ignored::deserialize(tracked, |path| {
        let steps = misspelt::steps(&path);
        if steps != [Step::Field("status".to_owned())] && unknown.is_none() {
            unknown = Some(steps);
        }
    });
    match (result, unknown) {
        (_, Some(steps)) => {
            let suggestion = misspelt::similar_field::<T>(&steps);
            Err(FieldError::new(misspelt::path(&steps), Problem::UnknownField { suggestion }))
        }
        (Err(error), None) => Err(shape(&serde_path_to_error::Error::new(track.path(), error))),
        (Ok(read), None) => Ok(read),
    }
}

fn shape(error: &serde_path_to_error::Error<serde_json::Error>) -> FieldError {
    let path = error.path().to_string();
    let field = if path == "." { String::new() } else { path };
    let message = error.inner().to_string();
    let problem = match misspelt::unknown_variant(&message) {
        Some((value, expected)) => {
            Problem::NotOneOf { value: value.to_owned(), expected: expected.into() }
        }
        None => Problem::Shape { message },
    };
    FieldError::new(field, problem)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// An EgressPolicy with `spec` over a valid one.
    fn mk_egress_policy(spec: Value) -> Value {
        let mut value = json!({
            "apiVersion": "namegate.dev/v1alpha1",
            "kind": "EgressPolicy",
            "metadata": {"name": "p", "namespace": "shop"},
            "spec": {"podSelector": {}},
        });
        if let (Some(Value::Object(whole)), Value::Object(part)) = (value.get_mut("spec"), spec) {
            whole.extend(part);
        }
        value
    }

    fn mk_network_policy(spec: Value) -> Value {
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "p", "namespace": "shop"},
            "spec": spec,
        })
    }

    fn to(peer: Value) -> Value {
        mk_egress_policy(json!({"egress": [{"to": [peer]}]}))
    }

    #[test]
    fn a_bad_policy_is_refused_with_object_field_problem_and_fix() {
        for (value, expected) in [
            (
                to(json!({"fqdn": "**.example.com"})),
                "EgressPolicy shop/p: spec.egress[0].to[0].fqdn: ** is no pattern here; \
                 *.example.com already matches one or more labels before example.com",
            ),
            (
                to(json!({"fdqn": "example.com"})),
                "EgressPolicy shop/p: spec.egress[0].to[0].fdqn: the field is unknown \
                 (did you mean `fqdn`?)",
            ),
            (
                to(json!({"cidr": "10.0.0.1"})),
                "EgressPolicy shop/p: spec.egress[0].to[0].cidr: `10.0.0.1` is not a CIDR \
                 (write 10.0.0.1/32)",
            ),
            (
                to(json!({"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]})),
                "EgressPolicy shop/p: spec.egress[0].to[0].except[0]: 11.0.0.0/16 does not lie \
                 strictly inside 10.0.0.0/8 (write a longer prefix inside 10.0.0.0/8, or remove it)",
            ),
            (
                to(json!({"fqdn": "a.com", "cidr": "10.0.0.0/8"})),
                "EgressPolicy shop/p: spec.egress[0].to[0]: fqdn, cidr, selectors, service and \
                 entity cannot be set together (write one peer for each; entries add up)",
            ),
            (
                to(json!({})),
                "EgressPolicy shop/p: spec.egress[0].to[0]: the peer is empty (write fqdn, cidr, \
                 namespaceSelector, podSelector, service or entity)",
            ),
            (
                mk_egress_policy(json!({"deny": [{"to": [{"fqdn": "a.com"}]}]})),
                "EgressPolicy shop/p: spec.deny[0].to[0].fqdn: a deny rule cannot name an fqdn: a \
                 denial by name cannot be complete (deny the addresses by cidr, or leave the name \
                 out of the allow rules)",
            ),
            (
                mk_egress_policy(json!({"egress": [{"ports": [{"port": 70000}]}]})),
                "EgressPolicy shop/p: spec.egress[0].ports[0].port: 70000 is not a port; ports are \
                 1 to 65535",
            ),
            (
                mk_egress_policy(json!({"egress": [{"to": []}]})),
                "EgressPolicy shop/p: spec.egress[0].to: the list is empty (leave the field out \
                 for any peer, or remove the rule)",
            ),
            (
                mk_egress_policy(json!({"mode": "Enforced"})),
                "EgressPolicy shop/p: spec.mode: `Enforced` is not a value of this field (did you \
                 mean `Enforce`?)",
            ),
            (
                mk_egress_policy(json!({"mode": "Permissive"})),
                "EgressPolicy shop/p: spec.mode: `Permissive` is not a value of this field (write \
                 Enforce or Audit)",
            ),
            (
                to(json!({"fqdn": "192.0.2.4"})),
                "EgressPolicy shop/p: spec.egress[0].to[0].fqdn: 192.0.2.4 is no name but an \
                 address, and nothing looks it up (write cidr: 192.0.2.4/32)",
            ),
            (
                to(json!({"fqdn": "2001:db8::1"})),
                "EgressPolicy shop/p: spec.egress[0].to[0].fqdn: 2001:db8::1 is no name but an \
                 address, and nothing looks it up (write cidr: 2001:db8::1/128)",
            ),
            (
                to(json!({"fqdn": "10.0.0.0/8"})),
                "EgressPolicy shop/p: spec.egress[0].to[0].fqdn: 10.0.0.0/8 is no name but an \
                 address, and nothing looks it up (write cidr: 10.0.0.0/8)",
            ),
            (
                mk_network_policy(json!({"podSelectr": {}})),
                "NetworkPolicy shop/p: spec.podSelectr: the field is unknown (did you mean \
                 `podSelector`?)",
            ),
            (
                mk_network_policy(json!({"policyTypes": ["egress"]})),
                "NetworkPolicy shop/p: spec.policyTypes[0]: `egress` is not a value of this field \
                 (did you mean `Egress`?)",
            ),
            (
                mk_network_policy(json!({"ingress": [{"from": [{}]}]})),
                "NetworkPolicy shop/p: spec.ingress[0].from[0]: the peer is empty (write \
                 podSelector, namespaceSelector or ipBlock)",
            ),
            (
                mk_network_policy(json!({"egress": [{"ports": [{"port": "web", "endPort": 9}]}]})),
                "NetworkPolicy shop/p: spec.egress[0].ports[0].endPort: endPort needs a numeric \
                 port beside it (set port to the first port of the range)",
            ),
            (
                mk_network_policy(json!({"egress": [{"ports": [{"port": 90, "endPort": 9}]}]})),
                "NetworkPolicy shop/p: spec.egress[0].ports[0].endPort: endPort 9 is below port 90 \
                 (write 90 or more)",
            ),
            (
                mk_network_policy(json!({"podSelector": {"matchExpressions": [
                    {"key": "app", "operator": "In"}
                ]}})),
                "NetworkPolicy shop/p: spec.podSelector.matchExpressions[0].values: In needs \
                 values (add values)",
            ),
            (
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
                    "status": {"podIPs": [{"ip": "10.0.0.256"}]}}),
                "Pod p: status.podIPs[0]: `10.0.0.256` is not an IP address (write an address \
                 such as 10.0.0.1)",
            ),
            (json!([1]), "document: the document is not an object"),
            (json!({"kind": "Pod"}), "Pod: apiVersion: the field is missing (add it)"),
        ] {
            let error = parse(value).unwrap_err();
            assert_eq!(error.to_string(), expected);
            assert!(!error.is_unsupported_kind());
        }
    }

    #[test]
    fn a_foreign_kind_is_told_apart_from_a_broken_object() {
        let value =
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}});
        assert!(parse(value).unwrap_err().is_unsupported_kind());
    }

    #[test]
    fn a_list_is_expanded_and_status_is_left_alone() {
        let mut policy = mk_egress_policy(json!({}));
        policy["status"] = json!({"conditions": [{"type": "Accepted"}]});
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [policy, policy]});
        let read: Vec<_> = expand(list).into_iter().map(|(_, value)| parse(value)).collect();
        assert_eq!(read.len(), 2);
        for object in read {
            assert_eq!(object.unwrap().reference().to_string(), "EgressPolicy shop/p");
        }
    }

    #[test]
    fn a_pod_is_trimmed_to_what_policies_ask_about() {
        let value = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "db-0", "namespace": "data", "labels": {"app": "db"}},
            "spec": {
                "nodeName": "n1",
                "containers": [{"name": "c", "ports": [
                    {"name": "metrics", "containerPort": 9090},
                    {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                ]}],
            },
            "status": {"phase": "Failed", "podIP": "10.0.0.1",
                "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
        });
        let Ok(Object::Pod(pod)) = parse(value) else { panic!("no pod") };
        let expected: Vec<std::net::IpAddr> =
            vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        assert_eq!(pod.addresses, expected, "NP-29: every address counts, once");
        assert!(pod.is_finished, "NP-28");
        assert_eq!(&*pod.service_account, "default");
        assert_eq!(pod.named_ports.len(), 2);
    }
}
