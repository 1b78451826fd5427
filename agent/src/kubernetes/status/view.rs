//! The state's owner tells here what is in force on its node.

use std::collections::BTreeMap;
use std::sync::Arc;

use namegate_policy::object::ObjectKind;
use namegate_policy::rule::PolicyRef;
use namegate_policy::table::TableError;
use tokio::sync::watch;

use super::census::{Census, Inquiry};
use super::facts::has_status;
use super::object::{NodePolicy, NodeStatus};
use crate::apply::{Apply, Kernel};
use crate::remembered;
use crate::source::{Changes, Version};
use crate::state::{LocalPod, State};

/// The most policies that a node speaks about: what more there are count as not reported. An object
/// of the API server has an end.
const POLICIES_MAX: usize = 4_096;

/// What is in force on this node, kept for whoever reports it.
#[derive(Debug)]
pub struct NodeView {
    versions: BTreeMap<PolicyRef, Version>,
    is_behind: bool,
    said: watch::Sender<Option<Arc<NodeStatus>>>,
    asked: watch::Receiver<u64>,
    census: watch::Sender<Arc<Census>>,
}

impl NodeView {
    pub(super) fn new() -> (Self, watch::Receiver<Option<Arc<NodeStatus>>>, Inquiry) {
        let (said, hears) = watch::channel(None);
        let (asked, hears_asked) = watch::channel(0);
        let (census, answered) = watch::channel(Arc::default());
        let versions = BTreeMap::new();
        let view = Self { versions, is_behind: true, said, asked: hears_asked, census };
        (view, hears, Inquiry { asked, answered })
    }

    /// Notes which versions of policies come into force with `changes`.
    pub fn note(&mut self, changes: &Changes) {
        self.is_behind = true;
        for object in &changes.removals {
            if let ObjectKind::Policy(kind) = object.kind {
                let (namespace, name) = (object.namespace.clone(), Arc::clone(&object.name));
                self.versions.remove(&PolicyRef { kind, namespace, name });
            }
        }
        let versions = changes.versions.iter().filter(|(policy, _)| has_status(policy.kind));
        self.versions.extend(versions.cloned());
    }

    /// Notes that something was written to the kernel, or could not be.
    pub fn touch(&mut self) {
        self.is_behind = true;
    }

    /// Says what is in force, where that may be something else than was said last; answers whoever
    /// asked for a census.
    pub fn update<K: Kernel>(&mut self, state: &State, apply: &Apply<K>) {
        if std::mem::take(&mut self.is_behind) {
            let status = Arc::new(self.status(state, apply));
            self.said.send_if_modified(|said| {
                let is_other = said.as_ref() != Some(&status);
                *said = Some(status);
                is_other
            });
        }
        let number = *self.asked.borrow_and_update();
        if self.census.borrow().number < number {
            let selected = |policy: &PolicyRef| (policy.clone(), state.selected(policy));
            let selected = self.versions.keys().map(selected).collect();
            let census = Census { number, pods: state.census(), selected };
            self.census.send_replace(Arc::new(census));
        }
    }

    fn status<K: Kernel>(&self, state: &State, apply: &Apply<K>) -> NodeStatus {
        let pods: Vec<(LocalPod, Option<String>)> = state
            .local_pods()
            .map(|pod| {
                let problem = problem(&pod, apply);
                (pod, problem)
            })
            .collect();
        let uncompiled: Vec<_> = state.uncompiled().map(|(_, error)| error).collect();
        let mut policies = Vec::new();
        for (policy, version) in &self.versions {
            let selected = state.selected(policy);
            let is_selected =
                |pod: &LocalPod| selected.iter().any(|set| set.contains(pod.identity));
            let mut line = mk_line(policy, version);
            for (_, problem) in pods.iter().filter(|(pod, _)| is_selected(pod)) {
                match problem {
                    None => line.endpoints += 1,
                    Some(problem) => {
                        line.pending += 1;
                        line.problem.get_or_insert_with(|| problem.clone());
                    }
                }
            }
            if line.endpoints + line.pending == 0 {
                continue;
            }
            let culprit = uncompiled.iter().find(|error| is_culprit(error, policy));
            if let Some(error) = culprit {
                line.problem = Some(format!("{error}; the pods that they select are closed"));
            }
            policies.push(line);
        }
        if policies.len() > POLICIES_MAX {
            tracing::warn!(
                policies = policies.len(),
                limit = POLICIES_MAX,
                "more policies select pods of this node than a report holds; the status of the rest stays False"
            );
            policies.truncate(POLICIES_MAX);
        }
        let pending = pods.iter().filter(|(_, problem)| problem.is_some()).count();
        NodeStatus {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: remembered::boot_id().unwrap_or_default(),
            endpoints: count(pods.len() - pending),
            pending: count(pending),
            policies,
        }
    }
}

/// Why a pod is not under the policy that it should be under.
fn problem<K: Kernel>(pod: &LocalPod, apply: &Apply<K>) -> Option<String> {
    match &pod.interface {
        Err(why) => Some(format!("Pod {}: {why}", pod.pod)),
        Ok(ifindex) if apply.is_in_force(*ifindex, pod.identity) => None,
        Ok(_) => Some(format!(
            "Pod {}: its policy could not be written to the kernel; the log of the node's agent says why",
            pod.pod
        )),
    }
}

fn is_culprit(error: &TableError, policy: &PolicyRef) -> bool {
    matches!(error, TableError::TooManyClauses { policy: culprit, .. } if culprit == policy)
}

fn mk_line(policy: &PolicyRef, version: &Version) -> NodePolicy {
    NodePolicy {
        kind: super::facts::kind_name(policy.kind).to_owned(),
        namespace: policy.namespace.as_deref().map(str::to_owned),
        name: policy.name.to_string(),
        uid: version.uid.to_string(),
        generation: version.generation,
        endpoints: 0,
        pending: 0,
        problem: None,
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
