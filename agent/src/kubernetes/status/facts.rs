//! What the watches tell about policies and nodes apart from what is enforced.

use std::collections::BTreeMap;
use std::sync::Arc;

use namegate_policy::object::ObjectError;
use namegate_policy::rule::{PolicyKind, PolicyRef};
use serde::Deserialize;
use serde_json::Value;

use super::object::PolicyStatus;
use crate::kubernetes::kinds::{WATCHED, Watched};
use crate::kubernetes::raw::Raw;

/// All policies and nodes, as the API server told them last.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub(super) policies: BTreeMap<PolicyRef, Arc<PolicyFact>>,
    pub(super) nodes: BTreeMap<Arc<str>, Arc<NodeFact>>,
}

/// A policy as an object of the cluster.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::kubernetes) struct PolicyFact {
    pub(in crate::kubernetes) uid: Arc<str>,
    pub(in crate::kubernetes) generation: i64,
    /// Its resourceVersion: a write that names it fails where somebody else wrote since.
    pub(in crate::kubernetes) version: String,
    pub(in crate::kubernetes) refusal: Option<Arc<Refused>>,
    pub(in crate::kubernetes) status: PolicyStatus,
}

/// Why a policy is refused, and what is in force in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::kubernetes) struct Refused {
    /// Field, problem and fix.
    pub(in crate::kubernetes) why: String,
    pub(in crate::kubernetes) keeps_last_good: bool,
    pub(in crate::kubernetes) is_closed: bool,
}

/// A Node.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::kubernetes) struct NodeFact {
    pub(in crate::kubernetes) uid: Arc<str>,
    /// Empty where the kubelet does not tell.
    pub(in crate::kubernetes) boot_id: String,
}

/// One thing that a watch told.
#[derive(Clone, Debug)]
pub(in crate::kubernetes) enum Fact {
    Policy(PolicyRef, Option<Arc<PolicyFact>>),
    Node(Arc<str>, Option<Arc<NodeFact>>),
}

/// What is kept of an object for [`Fact`]s; its refusal is known elsewhere.
#[derive(Debug)]
pub(in crate::kubernetes) enum Sight {
    Policy { uid: Arc<str>, generation: i64, version: String, status: PolicyStatus },
    Node(Arc<NodeFact>),
}

impl Facts {
    pub(in crate::kubernetes) fn take(&mut self, facts: Vec<Fact>) {
        for fact in facts {
            match fact {
                Fact::Policy(policy, Some(fact)) => {
                    self.policies.insert(policy, fact);
                }
                Fact::Policy(policy, None) => {
                    self.policies.remove(&policy);
                }
                Fact::Node(name, Some(fact)) => {
                    self.nodes.insert(name, fact);
                }
                Fact::Node(name, None) => {
                    self.nodes.remove(&name);
                }
            }
        }
    }
}

impl Refused {
    pub(in crate::kubernetes) fn new(error: &ObjectError, keeps_last_good: bool) -> Self {
        let mut why = error.error.problem.to_string();
        if let Some(field) = error.field() {
            why = format!("{field}: {why}");
        }
        if let Some(fix) = error.fix() {
            why = format!("{why} ({fix})");
        }
        Self { why, keeps_last_good, is_closed: !keeps_last_good && error.stand_in.is_some() }
    }

    /// What is wrong, and what is in force instead.
    pub(super) fn sentence(&self) -> String {
        let instead = match (self.keeps_last_good, self.is_closed) {
            (true, _) => "the last good version stays in force",
            (false, true) => "what it selects is closed until it is mended",
            (false, false) => "nobody can tell whom it selects, so nothing of it is in force",
        };
        format!("{}; {instead}", self.why)
    }
}

impl Sight {
    /// What is to be kept of `raw`; nothing for kinds that nobody reports about.
    pub(in crate::kubernetes) fn of(watched: &Watched, raw: &Raw) -> Option<Self> {
        let text = |pointer: &str| raw.value.pointer(pointer).and_then(Value::as_str);
        let uid: Arc<str> = raw.metadata.uid.as_deref().unwrap_or_default().into();
        if watched.kind == "Node" {
            let boot_id = text("/status/nodeInfo/bootID").unwrap_or_default().to_owned();
            return Some(Self::Node(Arc::new(NodeFact { uid, boot_id })));
        }
        policy_kind(watched)?;
        let status = raw.value.get("status").map(PolicyStatus::deserialize);
        Some(Self::Policy {
            uid,
            generation: raw.metadata.generation.unwrap_or_default(),
            version: raw.metadata.resource_version.clone().unwrap_or_default(),
            // A status of somebody else's making is written over.
            status: status.and_then(Result::ok).unwrap_or_default(),
        })
    }
}

/// The kind of policy that is watched.
pub(in crate::kubernetes) fn policy_kind(watched: &Watched) -> Option<PolicyKind> {
    Some(match watched.kind {
        "EgressPolicy" => PolicyKind::EgressPolicy,
        "ClusterEgressPolicy" => PolicyKind::ClusterEgressPolicy,
        "NetworkPolicy" => PolicyKind::NetworkPolicy,
        "ClusterNetworkPolicy" => PolicyKind::ClusterNetworkPolicy,
        "CiliumNetworkPolicy" => PolicyKind::CiliumNetworkPolicy,
        "CiliumClusterwideNetworkPolicy" => PolicyKind::CiliumClusterwideNetworkPolicy,
        _ => return None,
    })
}

/// What is watched of a kind of policy.
pub(super) fn watched(kind: PolicyKind) -> Option<Watched> {
    WATCHED.into_iter().find(|watched| policy_kind(watched) == Some(kind))
}

/// Whether Namegate writes the status of policies of this kind.
pub(super) fn has_status(kind: PolicyKind) -> bool {
    matches!(
        kind,
        PolicyKind::EgressPolicy
            | PolicyKind::ClusterEgressPolicy
            | PolicyKind::ClusterNetworkPolicy
    )
}

/// The kind as objects carry it; messages tell kinds of the same name apart.
pub(super) fn kind_name(kind: PolicyKind) -> &'static str {
    watched(kind).map_or("", |watched| watched.kind)
}
