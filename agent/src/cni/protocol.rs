//! What plugin and agent say to each other, as JSON over HTTP on the agent's socket.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Where the plugin asks; a path for each command below it.
pub const PATH: &str = "/v1/cni";

/// One interface of a container, as the runtime knows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Attachment {
    /// The runtime's name for the container, or rather the pod's sandbox.
    pub container_id: String,
    /// The interface's name in it.
    pub interface: String,
}

/// A pod that got an interface: body of `add` and `check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttachedPod {
    /// Its interface.
    pub attachment: Attachment,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid, where the runtime tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The addresses that earlier plugins gave it.
    pub addresses: BTreeSet<IpAddr>,
    /// How long to wait for its policy.
    pub wait_ms: u64,
}

/// Interfaces that are left: body of `gc`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Attachments {
    /// All of them.
    pub valid: BTreeSet<Attachment>,
}
