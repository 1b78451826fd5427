//! Whether the DaemonSet that put this agent on its node is still wanted.
//!
//! It is watched all along and not asked for at the end: whoever uninstalls the chart takes the agent's
//! account and its rights away in the same moment, long before the kubelet ends the agent. What a watch that
//! is open already tells is allowed all the same.

use std::pin::pin;

use futures_util::StreamExt;
use kube::api::{Api, ApiResource};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watch_object};
use serde_json::Value;
use tokio::sync::watch;

use super::client::Connection;
use super::raw::Raw;

/// What is known of the DaemonSet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DaemonSetFate {
    /// It was not seen: nothing follows from that.
    #[default]
    Unseen,
    /// It is there.
    Wanted,
    /// It was there, and was deleted or is being deleted.
    Deleted,
}

impl DaemonSetFate {
    /// What is known once the API server told of the object, or that there is none.
    fn after(self, found: Option<&Value>) -> Self {
        let is_ending = |object: &Value| {
            object.pointer("/metadata/deletionTimestamp").is_some_and(|at| !at.is_null())
        };
        match (found, self) {
            (Some(object), _) if !is_ending(object) => Self::Wanted,
            (None, Self::Unseen) => Self::Unseen,
            (Some(_) | None, _) => Self::Deleted,
        }
    }
}

/// Follows the DaemonSet `name` in the namespace of the agent's account until nobody listens.
pub async fn follow_daemon_set(
    connection: Connection,
    name: String,
    fate: watch::Sender<DaemonSetFate>,
) {
    let namespace = connection.namespace.as_str();
    let api: Api<Raw> = Api::namespaced_with(connection.client.clone(), namespace, &resource());
    let mut seen = pin!(watch_object(api, &name).default_backoff());
    let mut is_said = false;
    loop {
        let event = tokio::select! {
            Some(event) = seen.next() => event,
            () = fate.closed() => return,
            else => return,
        };
        match event {
            Ok(found) => {
                let before = *fate.borrow();
                let after = before.after(found.as_ref().map(|object| &object.value));
                if before == after {
                    continue;
                }
                if after == DaemonSetFate::Deleted {
                    tracing::warn!(
                        name,
                        namespace,
                        "the agent's DaemonSet is deleted: this agent leaves the node as it found it when it is told to end"
                    );
                }
                if before == DaemonSetFate::Deleted {
                    tracing::info!(
                        name,
                        namespace,
                        "there is a DaemonSet of the agent's again: enforcement outlives this agent"
                    );
                }
                fate.send_replace(after);
            }
            // The rights go with the DaemonSet.
            Err(error) if *fate.borrow() != DaemonSetFate::Deleted && is_forbidden(&error) => {
                if !std::mem::replace(&mut is_said, true) {
                    tracing::warn!(
                        name,
                        namespace,
                        "the agent may not list and watch its own DaemonSet: after uninstalling, enforcement stays on this node; see the Role of the chart"
                    );
                }
            }
            Err(error) => tracing::debug!(%error, name, "the watch of the DaemonSet failed"),
        }
    }
}

fn resource() -> ApiResource {
    ApiResource {
        group: "apps".to_owned(),
        version: "v1".to_owned(),
        api_version: "apps/v1".to_owned(),
        kind: "DaemonSet".to_owned(),
        plural: "daemonsets".to_owned(),
    }
}

fn is_forbidden(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.code == 403,
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_was_seen_can_be_deleted() {
        use DaemonSetFate::{Deleted, Unseen, Wanted};
        let there = json!({"metadata": {"name": "namegate", "deletionTimestamp": null}});
        let ending = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        for (before, found, after, why) in [
            (Unseen, None, Unseen, "a name that nothing has"),
            (Unseen, Some(&there), Wanted, "it is there"),
            (Unseen, Some(&ending), Deleted, "it was, and goes"),
            (Wanted, Some(&there), Wanted, "it changed"),
            (Wanted, Some(&ending), Deleted, "its pods go first"),
            (Wanted, None, Deleted, "it went"),
            (Deleted, None, Deleted, "it stays away"),
            (Deleted, Some(&there), Wanted, "another one came in its place"),
        ] {
            assert_eq!(before.after(found), after, "{why}");
        }
    }
}
