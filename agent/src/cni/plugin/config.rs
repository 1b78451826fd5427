//! The plugin's configuration: its entry in the node's list, and what earlier plugins made.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::reply::{Code, Refusal};
use crate::cni::protocol::Attachment;

/// Where the agent listens where the entry does not say.
const SOCKET: &str = "/run/namegate/namegate.cni.sock";

/// How long to wait for a pod's policy where the entry does not say.
const WAIT: Duration = Duration::from_secs(10);

/// The longest wait: runtimes give up on a plugin later than that.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What becomes of a pod whose policy cannot be seen to be in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) enum FailurePolicy {
    /// It does not start; the kubelet tries again.
    #[default]
    Fail,
    /// It starts, and an alarm is left for the agent.
    Allow,
}

/// What the runtime hands over on standard input.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) version: String,
    pub(super) socket: PathBuf,
    pub(super) failure_policy: FailurePolicy,
    pub(super) wait: Duration,
    previous: Option<Value>,
    valid: Option<Value>,
}

#[derive(Deserialize)]
struct Written {
    #[serde(rename = "cniVersion", default)]
    version: String,
    #[serde(default)]
    socket: Option<PathBuf>,
    #[serde(rename = "failurePolicy", default)]
    failure_policy: FailurePolicy,
    #[serde(rename = "waitSeconds", default)]
    wait_seconds: Option<u64>,
    #[serde(rename = "prevResult", default)]
    previous: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments", default)]
    valid: Option<Value>,
}

#[derive(Deserialize)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

impl Config {
    pub(super) fn parse(written: &[u8]) -> Result<Self, Refusal> {
        let written: Written = serde_json::from_slice(written).map_err(|error| {
            Refusal::new(Code::Decode, "the plugin's configuration cannot be read").because(error)
        })?;
        Ok(Self {
            version: if written.version.is_empty() { "0.2.0".into() } else { written.version },
            socket: written.socket.unwrap_or_else(|| SOCKET.into()),
            failure_policy: written.failure_policy,
            wait: written.wait_seconds.map_or(WAIT, Duration::from_secs).min(WAIT_MAX),
            previous: written.previous,
            valid: written.valid,
        })
    }

    /// What earlier plugins made.
    pub(super) fn previous(&self) -> Result<&Value, Refusal> {
        self.previous.as_ref().ok_or_else(|| {
            Refusal::new(
                Code::Config,
                "there is no prevResult: the plugin makes no interface and has to stand behind one that does",
            )
        })
    }

    /// The addresses that earlier plugins gave the container.
    pub(super) fn addresses(&self) -> Result<BTreeSet<IpAddr>, Refusal> {
        let previous = self.previous()?;
        let interfaces = previous.get("interfaces").and_then(Value::as_array);
        let is_inside = |index: usize| {
            let interface = interfaces.and_then(|interfaces| interfaces.get(index));
            let sandbox = interface.and_then(|interface| interface.get("sandbox"));
            // A list that says nothing of sandboxes tells none apart.
            sandbox.is_none_or(|sandbox| sandbox.as_str().is_none_or(|path| !path.is_empty()))
        };
        let mut addresses = BTreeSet::new();
        let entries = previous.get("ips").and_then(Value::as_array);
        for entry in entries.into_iter().flatten() {
            let index = entry.get("interface").and_then(Value::as_u64);
            if !index.and_then(|index| usize::try_from(index).ok()).is_none_or(is_inside) {
                continue;
            }
            let text = entry.get("address").and_then(Value::as_str).unwrap_or_default();
            let address = text.split('/').next().unwrap_or_default().parse().map_err(|_| {
                let message = format!("prevResult has an address that is none: {text:?}");
                Refusal::new(Code::Config, message)
            })?;
            addresses.insert(address);
        }
        if addresses.is_empty() {
            let message =
                "prevResult names no address of the container: nothing tells its interface";
            return Err(Refusal::new(Code::Config, message));
        }
        Ok(addresses)
    }

    /// The interfaces that are left, of `GC`.
    pub(super) fn valid_attachments(&self) -> Result<BTreeSet<Attachment>, Refusal> {
        let valid = self.valid.as_ref().ok_or_else(|| {
            Refusal::new(Code::Config, "cni.dev/valid-attachments is missing: it says what to keep")
        })?;
        let valid = Vec::<ValidAttachment>::deserialize(valid).map_err(|error| {
            Refusal::new(Code::Config, "cni.dev/valid-attachments cannot be read").because(error)
        })?;
        let attachments = valid
            .into_iter()
            .map(|valid| Attachment { container_id: valid.container_id, interface: valid.ifname });
        Ok(attachments.collect())
    }
}
