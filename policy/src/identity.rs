//! Identities: interned label sets of workloads.

mod set;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

pub use set::IdentitySet;

use crate::resource::NamedPorts;
use crate::selector::Labels;

/// The interned label set of workloads, or one of the reserved identities. Local to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(u32);

impl Identity {
    /// The node the agent runs on: all its addresses.
    pub const HOST: Self = Self(1);
    /// Every other node of the cluster.
    pub const REMOTE_NODE: Self = Self(2);
    /// The addresses of the Kubernetes API server that are not addresses of a node.
    pub const KUBE_APISERVER: Self = Self(3);
    /// Every address that is no node, pod, or cluster range.
    pub const WORLD: Self = Self(4);
    /// An address inside a cluster range of which no pod is known.
    pub const UNMANAGED: Self = Self(5);
    /// The first identity that is interned from labels.
    pub const FIRST_WORKLOAD: Self = Self(256);

    /// The identity numbered `number`; zero is no identity.
    pub const fn new(number: u32) -> Option<Self> {
        if number == 0 { None } else { Some(Self(number)) }
    }

    /// The number that kernel maps carry.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Whether this is a reserved identity rather than an interned label set.
    pub const fn is_reserved(self) -> bool {
        self.0 < Self::FIRST_WORKLOAD.0
    }
}

/// All that policies can tell workloads apart by. Pods that agree in it share an identity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkloadLabels {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The namespace's labels.
    pub namespace_labels: Arc<Labels>,
    /// The pod's labels.
    pub pod_labels: Arc<Labels>,
    /// The pod's service account.
    pub service_account: Arc<str>,
    /// The pod's named ports.
    pub named_ports: Arc<NamedPorts>,
}

/// Identities in use, counted by the pods that have them.
#[derive(Debug)]
pub struct Identities {
    by_labels: BTreeMap<Arc<WorkloadLabels>, Identity>,
    in_use: BTreeMap<Identity, (Arc<WorkloadLabels>, usize)>,
    next: u32,
    /// Those that came or went since [`Identities::take_changed`].
    changed: BTreeSet<Identity>,
    /// The numbers that an earlier owner gave out, by address.
    former: BTreeMap<IpAddr, Identity>,
}

impl Default for Identities {
    fn default() -> Self {
        Self {
            by_labels: BTreeMap::new(),
            in_use: BTreeMap::new(),
            next: Identity::FIRST_WORKLOAD.0,
            changed: BTreeSet::new(),
            former: BTreeMap::new(),
        }
    }
}

impl Identities {
    /// Goes on from the numbers that an earlier owner gave to addresses: labels that are first seen
    /// at one of these get its number, and numbers that the earlier owner never gave out begin above
    /// all of them. So whoever still goes by its numbers takes nobody for another.
    pub fn continue_from(&mut self, mut former: BTreeMap<IpAddr, Identity>) {
        former.retain(|_, identity| !identity.is_reserved());
        let last = former.values().max().map_or(0, |identity| identity.0);
        self.next = self.next.max(last.checked_add(1).unwrap_or(Identity::FIRST_WORKLOAD.0));
        self.former = former;
    }

    /// Ends what [`Identities::continue_from`] began: addresses say nothing from here on.
    pub fn forget_former(&mut self) {
        self.former = BTreeMap::new();
    }

    /// The identity of `labels` for one pod more, which has these addresses. A number given back is
    /// not given out again before all others were.
    pub fn acquire(&mut self, labels: WorkloadLabels, addresses: &[IpAddr]) -> Identity {
        if let Some(&identity) = self.by_labels.get(&labels) {
            if let Some((_, users)) = self.in_use.get_mut(&identity) {
                *users += 1;
            }
            return identity;
        }
        let former = addresses.iter().find_map(|address| self.former.get(address).copied());
        let former = former.filter(|identity| !self.in_use.contains_key(identity));
        let identity = former.unwrap_or_else(|| self.unused());
        let labels = Arc::new(labels);
        self.by_labels.insert(Arc::clone(&labels), identity);
        self.in_use.insert(identity, (labels, 1));
        self.changed.insert(identity);
        identity
    }

    /// Takes back what one [`Identities::acquire`] gave.
    pub fn release(&mut self, identity: Identity) {
        let Some((labels, users)) = self.in_use.get_mut(&identity) else { return };
        *users -= 1;
        if *users == 0 {
            self.by_labels.remove(labels);
            self.in_use.remove(&identity);
            self.changed.insert(identity);
        }
    }

    /// The labels of an identity in use; `None` for a reserved one.
    pub fn labels(&self, identity: Identity) -> Option<&Arc<WorkloadLabels>> {
        self.in_use.get(&identity).map(|(labels, _)| labels)
    }

    /// The identities in use with their labels, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Identity, &WorkloadLabels)> {
        self.in_use.iter().map(|(identity, (labels, _))| (*identity, labels.as_ref()))
    }

    /// The identities that came or went since this was asked last; one that did both may be among
    /// them.
    pub(crate) fn take_changed(&mut self) -> BTreeSet<Identity> {
        std::mem::take(&mut self.changed)
    }

    fn unused(&mut self) -> Identity {
        loop {
            let candidate = Identity(self.next);
            self.next = self.next.checked_add(1).unwrap_or(Identity::FIRST_WORKLOAD.0);
            if !self.in_use.contains_key(&candidate) {
                return candidate;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_labels(app: &str) -> WorkloadLabels {
        WorkloadLabels {
            namespace: "shop".into(),
            namespace_labels: Arc::default(),
            pod_labels: Arc::new(Labels::from([("app".into(), app.into())])),
            service_account: "default".into(),
            named_ports: Arc::default(),
        }
    }

    #[test]
    fn an_identity_lives_as_long_as_a_pod_has_it() {
        let mut identities = Identities::default();
        let web = identities.acquire(mk_labels("web"), &[]);
        assert_eq!(identities.acquire(mk_labels("web"), &[]), web, "same labels, same identity");
        assert_ne!(identities.acquire(mk_labels("db"), &[]), web);
        identities.release(web);
        assert_eq!(
            identities.labels(web).map(|l| &**l),
            Some(&mk_labels("web")),
            "one pod is left"
        );
        identities.release(web);
        assert_eq!(identities.labels(web), None);
        assert_ne!(
            identities.acquire(mk_labels("web"), &[]),
            web,
            "numbers are not reused at once"
        );
    }

    #[test]
    fn an_earlier_owners_numbers_stay_with_their_addresses() {
        let [web, db, gone] =
            ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|text| text.parse().unwrap());
        let former = [(web, Identity(300)), (db, Identity(301)), (gone, Identity(700))];
        let mut identities = Identities::default();
        identities.continue_from(former.into());
        assert_eq!(identities.acquire(mk_labels("db"), &[db]), Identity(301), "as it was");
        assert_eq!(identities.acquire(mk_labels("new"), &[]), Identity(701), "nobody's before");
        assert_eq!(
            identities.acquire(mk_labels("relabelled"), &[db]),
            Identity(702),
            "301 is taken"
        );
        assert_eq!(identities.acquire(mk_labels("web"), &[web]), Identity(300));
        identities.forget_former();
        assert_eq!(identities.acquire(mk_labels("later"), &[gone]), Identity(703));
    }

    #[test]
    fn numbers_wrap_around_what_is_in_use_and_what_is_reserved() {
        let mut identities = Identities::default();
        let first = identities.acquire(mk_labels("first"), &[]);
        identities.next = u32::MAX;
        assert_eq!(identities.acquire(mk_labels("last"), &[]).number(), u32::MAX);
        let wrapped = identities.acquire(mk_labels("wrapped"), &[]);
        assert_eq!(wrapped.number(), first.number() + 1);
    }
}
