//! What this node enforces, said in its NamegateNode whenever it is something else.

use std::future::Future;
use std::sync::Arc;

use kube::api::{Api, ApiResource, DeleteParams, Patch, PatchParams};
use serde_json::json;
use tokio::sync::{oneshot, watch};
use tokio::time::{Duration, sleep};

use super::object::NodeStatus;
use super::{CALL_LIMIT, Facts, MANAGER, Options, pace};
use crate::kubernetes::client::Connection;
use crate::kubernetes::raw::Raw;
use crate::kubernetes::trouble::{Call, Trouble};
use namegate_policy::api::API_VERSION;

/// How long to wait after a write that failed.
const RETRY: Duration = Duration::from_secs(10);

pub(super) const RESOURCE: &str = "namegatenodes.namegate.dev";

/// Says what the node enforces.
#[derive(Clone)]
pub(super) struct Reporter {
    api: Api<Raw>,
    server: String,
    node: Arc<str>,
    facts: watch::Receiver<Facts>,
    status: watch::Receiver<Option<Arc<NodeStatus>>>,
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporter").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Reporter {
    pub(super) fn new(
        connection: Connection,
        facts: watch::Receiver<Facts>,
        status: watch::Receiver<Option<Arc<NodeStatus>>>,
        options: &Options,
    ) -> Self {
        Self {
            api: Api::all_with(connection.client, &resource()),
            server: connection.server,
            node: Arc::clone(&options.node_name),
            facts,
            status,
        }
    }

    /// Reports until `end`.
    pub(super) async fn run(mut self, mut end: oneshot::Receiver<()>) {
        let mut trouble = None;
        loop {
            let changed = async {
                // The first value is none; what comes after it is to be said.
                self.status.changed().await
            };
            tokio::select! {
                changed = changed => if changed.is_err() { return },
                _ = &mut end => return,
            }
            loop {
                let status = self.status.borrow_and_update().clone();
                let Some(status) = status else { break };
                let wait = match self.write(&status).await {
                    Ok(()) => {
                        if trouble.take().is_some() {
                            tracing::info!("what this node enforces is reported again");
                        }
                        pace(self.facts.borrow().nodes.len())
                    }
                    Err(found) => {
                        if trouble.as_ref() != Some(&found) {
                            warn_of(&found);
                        }
                        trouble = Some(found);
                        RETRY
                    }
                };
                tokio::select! {
                    () = sleep(wait) => {}
                    _ = &mut end => return,
                }
                if trouble.is_none() {
                    break;
                }
            }
        }
    }

    /// Takes back what was said: nothing is enforced from here on.
    pub(super) async fn take_back(&self) {
        match limited(self.api.delete(&self.node, &DeleteParams::default())).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => {
                let trouble = self.call("delete").trouble(&error);
                tracing::warn!("the NamegateNode {} stays: {trouble}", self.node);
            }
        }
    }

    async fn write(&self, status: &NodeStatus) -> Result<(), Trouble> {
        let mut metadata = json!({
            "name": &*self.node,
            "labels": {"app.kubernetes.io/managed-by": MANAGER},
        });
        if let Some(node) = self.facts.borrow().nodes.get(&self.node) {
            // With its Node it is cleared away.
            metadata["ownerReferences"] = json!([
                {"apiVersion": "v1", "kind": "Node", "name": &*self.node, "uid": &*node.uid},
            ]);
        }
        let object = json!({
            "apiVersion": API_VERSION, "kind": "NamegateNode",
            "metadata": metadata, "status": status,
        });
        let params = PatchParams::apply(MANAGER).force();
        let written = limited(self.api.patch(&self.node, &params, &Patch::Apply(&object))).await;
        written.map(drop).map_err(|error| self.call("patch").trouble(&error))
    }

    fn call(&self, verb: &'static str) -> Call<'_> {
        Call { server: &self.server, verb, resource: RESOURCE }
    }
}

/// NamegateNodes.
pub(super) fn resource() -> ApiResource {
    let (group, version) = API_VERSION.split_once('/').unwrap_or(("", API_VERSION));
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: API_VERSION.to_owned(),
        kind: "NamegateNode".to_owned(),
        plural: "namegatenodes".to_owned(),
    }
}

/// Says what keeps a report from being written or read, and what to do.
pub(super) fn warn_of(trouble: &Trouble) {
    match trouble {
        // Those that watch objects say it.
        Trouble::Away { .. } | Trouble::Unauthorized { .. } => {
            tracing::debug!(%trouble, "status cannot be reported");
        }
        Trouble::Vanished { .. } => tracing::warn!(
            "the cluster has no {RESOURCE}: apply the chart's CRDs (`namegate crds`); until then no policy's status says what is enforced; enforcement goes on"
        ),
        Trouble::Forbidden { .. } | Trouble::Refused { .. } => {
            tracing::warn!("status cannot be reported: {trouble}; enforcement goes on");
        }
    }
}

/// A request with a limit to the time that it takes.
pub(super) async fn limited<T>(
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, kube::Error> {
    tokio::time::timeout(CALL_LIMIT, request).await.unwrap_or_else(|_| {
        Err(kube::Error::Service(format!("no answer within {CALL_LIMIT:?}").into()))
    })
}
