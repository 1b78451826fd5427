//! Who stands at an end of an edge.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::audit::{EndpointLabel, Peer, workload};

/// One end of an edge, as coarse as the map draws it: copies of one workload are one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Party {
    /// Pods of the cluster that are copies of one thing.
    Workload {
        /// Their namespace.
        namespace: Arc<str>,
        /// What they are copies of.
        name: Arc<str>,
    },
    /// What is reached, or asked for, by a name.
    Name {
        /// The name in presentation form.
        name: Arc<str>,
    },
    /// An address that no name led to.
    Address {
        /// The address.
        name: Arc<str>,
        /// What is known of it, in a word.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        entity: Option<Arc<str>>,
    },
    /// Everybody that one word stands for: `world`, `host` and the like.
    Entity {
        /// The word.
        name: Arc<str>,
    },
}

/// The word for an end that nothing is known of.
const UNKNOWN: &str = "unknown";

impl Party {
    /// The pod that a decision is about.
    pub(super) fn of_endpoint(endpoint: &EndpointLabel) -> Self {
        let name = endpoint
            .workload
            .clone()
            .or_else(|| endpoint.pod.as_deref().map(|pod| workload(pod, &endpoint.labels).into()));
        Self::pod(endpoint.namespace.as_ref(), name)
    }

    /// Whom a pod opens a flow to.
    pub(super) fn of_target(peer: &Peer) -> Self {
        if let Some(pod) = Self::of_pod(peer) {
            return pod;
        }
        match (peer.names.first(), peer.address) {
            (Some(name), _) => Self::Name { name: name.as_ref().into() },
            (None, Some(address)) => Self::Address {
                name: address.to_string().into(),
                entity: peer.entity.as_deref().map(Into::into),
            },
            (None, None) => Self::entity(peer),
        }
    }

    /// Who opens a flow to a pod. Strangers are one, however many addresses they come from.
    pub(super) fn of_opener(peer: &Peer) -> Self {
        Self::of_pod(peer).unwrap_or_else(|| Self::entity(peer))
    }

    fn of_pod(peer: &Peer) -> Option<Self> {
        let pod = peer.pod.as_deref()?;
        let name = peer.workload.clone().unwrap_or_else(|| workload(pod, &peer.labels).into());
        Some(Self::pod(peer.namespace.as_ref(), Some(name)))
    }

    fn pod(namespace: Option<&Arc<str>>, name: Option<Arc<str>>) -> Self {
        match (namespace, name) {
            (Some(namespace), Some(name)) => Self::Workload { namespace: namespace.clone(), name },
            (None, Some(name)) => Self::Entity { name },
            (_, None) => Self::Entity { name: UNKNOWN.into() },
        }
    }

    fn entity(peer: &Peer) -> Self {
        Self::Entity { name: peer.entity.as_deref().unwrap_or(UNKNOWN).into() }
    }
}
