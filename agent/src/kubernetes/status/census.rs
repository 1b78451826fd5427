//! Whom the policies select on all nodes: worked out by the state's owner when it is asked, since
//! nobody else knows all pods.

use std::collections::BTreeMap;
use std::sync::Arc;

use namegate_policy::identity::{Identity, IdentitySet};
use namegate_policy::rule::PolicyRef;
use tokio::sync::watch;

/// Pods of all nodes, by what policies know them by, and whom each policy selects.
#[derive(Debug, Default)]
pub(super) struct Census {
    /// Which request this answers.
    pub(super) number: u64,
    pub(super) pods: BTreeMap<Identity, BTreeMap<Arc<str>, u32>>,
    pub(super) selected: BTreeMap<PolicyRef, Vec<Arc<IdentitySet>>>,
}

impl Census {
    /// How many pods `policy` selects on each node.
    pub(super) fn of(&self, policy: &PolicyRef) -> BTreeMap<Arc<str>, u32> {
        let mut found = BTreeMap::new();
        let sets = self.selected.get(policy).map_or(&[][..], Vec::as_slice);
        for (number, set) in sets.iter().enumerate() {
            let is_counted = |identity| sets.iter().take(number).any(|set| set.contains(identity));
            for identity in set.iter().filter(|identity| !is_counted(*identity)) {
                for (node, pods) in self.pods.get(&identity).into_iter().flatten() {
                    *found.entry(Arc::clone(node)).or_default() += pods;
                }
            }
        }
        found
    }
}

/// Asks for a [`Census`].
#[derive(Debug)]
pub(super) struct Inquiry {
    pub(super) asked: watch::Sender<u64>,
    pub(super) answered: watch::Receiver<Arc<Census>>,
}

impl Inquiry {
    /// Asks, and waits for nothing.
    pub(super) fn ask(&self) {
        self.asked.send_modify(|asked| *asked += 1);
    }

    /// The next answer. It comes when the state's owner has time for it, and not at all when the agent
    /// ends.
    pub(super) async fn answer(&mut self) -> Arc<Census> {
        match self.answered.changed().await {
            Ok(()) => Arc::clone(&self.answered.borrow_and_update()),
            Err(_) => std::future::pending().await,
        }
    }
}
