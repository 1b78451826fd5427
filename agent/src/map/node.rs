//! `GET /v1/node`: the node's health as `namegate status` tells it, and the workloads that live on it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::Map;
use crate::admin::{StatusReport, status};

/// For how long a report is good: however many pages ask, the agent is looked at that often.
const GOOD_FOR: Duration = Duration::from_secs(3);

/// Workloads that are told of at most.
const WORKLOADS_MAX: usize = 4_096;

/// The node at one moment.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NodeReport {
    /// The node's name.
    pub node: Arc<str>,
    /// Its health; `null` where the agent did not answer in time.
    pub status: Option<StatusReport>,
    /// Why there is no health.
    pub trouble: Option<String>,
    /// Who lives on it.
    pub workloads: Vec<WorkloadItem>,
    /// How many workloads there are besides.
    pub workloads_omitted: usize,
}

/// A workload with pods on the node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct WorkloadItem {
    /// Their namespace.
    pub namespace: Arc<str>,
    /// What the pods are copies of.
    pub name: Arc<str>,
    /// How many there are.
    pub pods: u32,
    /// Whether a policy selects each of them.
    pub is_governed: bool,
}

/// The latest report, and when it was made.
#[derive(Debug, Default)]
pub(super) struct Lately(Mutex<Option<(Instant, Arc<NodeReport>)>>);

pub(super) async fn report(State(map): State<Map>) -> Json<Arc<NodeReport>> {
    let lately = map.node.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some((made, report)) = lately
        && made.elapsed() < GOOD_FOR
    {
        return Json(report);
    }
    let (status, trouble) = match status(&map.context).await {
        Ok(status) => (Some(status), None),
        Err(failure) => (None, Some(failure.to_string())),
    };
    let (workloads, workloads_omitted) = workloads(&map);
    let node = Arc::clone(&map.name);
    let report = Arc::new(NodeReport { node, status, trouble, workloads, workloads_omitted });
    let mut lately = map.node.0.lock().unwrap_or_else(PoisonError::into_inner);
    *lately = Some((Instant::now(), Arc::clone(&report)));
    Json(report)
}

fn workloads(map: &Map) -> (Vec<WorkloadItem>, usize) {
    let registry = &map.context.registry;
    let mut found: BTreeMap<(Arc<str>, Arc<str>), (u32, bool)> = BTreeMap::new();
    for (known, identity) in registry.endpoints() {
        let name = Arc::clone(&known.workload);
        let is_governed = identity.is_some_and(|identity| !registry.selecting(identity).is_empty());
        let place = found.entry((Arc::clone(&known.pod.namespace), name)).or_insert((0, true));
        place.0 += 1;
        place.1 &= is_governed;
    }
    let omitted = found.len().saturating_sub(WORKLOADS_MAX);
    let item = |((namespace, name), (pods, is_governed))| WorkloadItem {
        namespace,
        name,
        pods,
        is_governed,
    };
    (found.into_iter().take(WORKLOADS_MAX).map(item).collect(), omitted)
}
