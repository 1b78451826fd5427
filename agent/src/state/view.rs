//! Whom policies select, here and on other nodes: for reports, not for enforcement.

use std::collections::BTreeMap;
use std::sync::Arc;

use namegate_policy::identity::{Identity, IdentitySet};
use namegate_policy::resource::PodRef;
use namegate_policy::rule::PolicyRef;
use namegate_policy::table::TableError;

use super::State;

/// A pod of this node that is to be an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// The pod.
    pub pod: PodRef,
    /// What policies know it by.
    pub identity: Identity,
    /// Its host-side interface, or why there is none.
    pub interface: Result<u32, Arc<str>>,
}

impl State {
    /// The pods of this node that are to be endpoints.
    pub fn local_pods(&self) -> impl Iterator<Item = LocalPod> {
        let inventory = self.tables.inventory();
        self.wanted.keys().filter_map(move |(namespace, name)| {
            let pod = PodRef { namespace: Arc::clone(namespace), name: Arc::clone(name) };
            let identity = inventory.identity_of(&pod)?;
            let key = (Arc::clone(namespace), Arc::clone(name));
            let interface = match self.town.pods.get(&key) {
                Some(Ok(found)) => match self.endpoints.get(&found.index) {
                    Some(spec) if spec.pod == pod => Ok(found.index),
                    Some(spec) => {
                        Err(format!("interface {} is Pod {}'s", found.name, spec.pod).into())
                    }
                    None => Err("its interface is not taken yet".into()),
                },
                Some(Err(why)) => Err(Arc::clone(why)),
                None => Err("its interface was not looked for yet".into()),
            };
            Some(LocalPod { pod, identity, interface })
        })
    }

    /// Whom `policy` selects: one set for each of its subjects.
    pub fn selected(&self, policy: &PolicyRef) -> Vec<Arc<IdentitySet>> {
        self.tables.selected(policy)
    }

    /// The identities whose rules cannot be compiled, and why: their pods are closed.
    pub fn uncompiled(&self) -> impl Iterator<Item = (Identity, &TableError)> {
        self.tables.errors()
    }

    /// How many pods each identity has on each node, those left out that no policy selects because
    /// they ended, have no address or share their node's network.
    pub fn census(&self) -> BTreeMap<Identity, BTreeMap<Arc<str>, u32>> {
        let mut census: BTreeMap<Identity, BTreeMap<Arc<str>, u32>> = BTreeMap::new();
        for (pod, identity) in self.tables.inventory().pods() {
            let (Some(identity), Some(node)) = (identity, &pod.node_name) else { continue };
            if pod.is_host_network || pod.is_finished || pod.addresses.is_empty() {
                continue;
            }
            let nodes = census.entry(identity).or_default();
            *nodes.entry(Arc::clone(node)).or_default() += 1;
        }
        census
    }
}
