//! What is written about policies and nodes, as the API server keeps it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The condition that says whether a policy can be read.
pub(super) const ACCEPTED: &str = "Accepted";

/// The condition that says whether the nodes enforce it.
pub(super) const PROGRAMMED: &str = "Programmed";

/// What became of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicyStatus {
    /// Accepted: what it says can be read. Programmed: the nodes enforce it.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Pods that the policy selects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<u32>,
    /// Nodes that those pods run on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<u32>,
}

/// One condition, as `metav1.Condition`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Condition {
    /// Accepted or Programmed.
    #[serde(rename = "type")]
    pub kind: String,
    /// True, False or Unknown.
    pub status: String,
    /// The generation of the policy that this is about.
    #[serde(default)]
    pub observed_generation: i64,
    /// When the status of the condition was another one last.
    pub last_transition_time: String,
    /// One word for programs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// What one node enforces, said by its agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeStatus {
    /// Version of the agent.
    #[serde(default)]
    pub agent_version: String,
    /// Which run of the node's kernel this is about: after a reboot nothing of it holds.
    #[serde(default, rename = "bootID")]
    pub boot_id: String,
    /// Pods under policy.
    #[serde(default)]
    pub endpoints: u32,
    /// Pods whose policy is not in force yet.
    #[serde(default)]
    pub pending: u32,
    /// Policies that select pods of the node.
    #[serde(default)]
    pub policies: Vec<NodePolicy>,
}

/// How one policy stands on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodePolicy {
    /// The policy's kind.
    pub kind: String,
    /// Its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The generation that is in force; 0 where what it selects is closed, since none was ever good.
    pub generation: i64,
    /// Pods that it selects and that are under policy.
    pub endpoints: u32,
    /// Pods that it selects and whose policy is not in force yet.
    #[serde(default)]
    pub pending: u32,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}
