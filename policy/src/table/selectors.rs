//! Distinct selectors and whom they select, kept as identities come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::resolve::Members;
use crate::identity::{Identity, IdentitySet, WorkloadLabels};
use crate::resource::NAMESPACE_NAME_LABEL;
use crate::rule::{Namespaces, PolicyRef, Workloads};
use crate::selector::{Condition, Selector};

/// The number of a distinct selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SelectorId(u32);

/// Every distinct selector in use, evaluated once for each identity that it could select.
#[derive(Debug, Default)]
pub(super) struct Selectors {
    ids: BTreeMap<Arc<Workloads>, SelectorId>,
    known: BTreeMap<SelectorId, Known>,
    next: u32,
    /// Selectors by what an identity must have to be selected.
    by_handle: BTreeMap<Handle, BTreeSet<SelectorId>>,
    identities: BTreeMap<Identity, Arc<WorkloadLabels>>,
    /// Identities by what they have.
    having: BTreeMap<Handle, Arc<IdentitySet>>,
}

#[derive(Debug)]
struct Known {
    workloads: Arc<Workloads>,
    members: Arc<IdentitySet>,
    users: BTreeMap<PolicyRef, usize>,
}

/// One condition that everything selected meets, to look few things over. Every identity meets
/// [`Handle::Any`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Handle {
    Any,
    Namespace(Arc<str>),
    Label(Arc<str>, Arc<str>),
}

impl Selectors {
    /// Keeps track of `workloads` for `user`, until [`Selectors::let_go`] was called as often.
    pub(super) fn hold(&mut self, workloads: &Workloads, user: &PolicyRef) -> SelectorId {
        let id = self.ids.get(workloads).copied().unwrap_or_else(|| self.add(workloads));
        if let Some(known) = self.known.get_mut(&id) {
            *known.users.entry(user.clone()).or_default() += 1;
        }
        id
    }

    /// Takes back one [`Selectors::hold`].
    pub(super) fn let_go(&mut self, id: SelectorId, user: &PolicyRef) {
        let Some(known) = self.known.get_mut(&id) else { return };
        if let Some(times) = known.users.get_mut(user) {
            *times -= 1;
            if *times == 0 {
                known.users.remove(user);
            }
        }
        if known.users.is_empty() {
            let handle = handle_of(&known.workloads);
            self.ids.remove(&known.workloads);
            self.known.remove(&id);
            if let Some(others) = self.by_handle.get_mut(&handle) {
                others.remove(&id);
                if others.is_empty() {
                    self.by_handle.remove(&handle);
                }
            }
        }
    }

    /// Whom a selector selects.
    pub(super) fn members(&self, id: SelectorId) -> Arc<IdentitySet> {
        self.known.get(&id).map(|known| Arc::clone(&known.members)).unwrap_or_default()
    }

    /// Whether `identity` is selected.
    pub(super) fn selects(&self, id: SelectorId, identity: Identity) -> bool {
        self.known.get(&id).is_some_and(|known| known.members.contains(identity))
    }

    /// Takes in what `identity` is, or with `None` that it is gone. Adds who uses a selector that
    /// selects it to `users`. Says whether anything differs.
    pub(super) fn set(
        &mut self,
        identity: Identity,
        labels: Option<&Arc<WorkloadLabels>>,
        users: &mut BTreeSet<PolicyRef>,
    ) -> bool {
        let before = self.identities.get(&identity).cloned();
        if before.as_ref() == labels {
            return false;
        }
        for (labels, is_there) in
            before.iter().map(|labels| (labels, false)).chain(labels.map(|labels| (labels, true)))
        {
            for handle in handles_of(labels) {
                self.index(&handle, identity, is_there);
                let candidates = self.by_handle.get(&handle).into_iter().flatten();
                for id in candidates {
                    let Some(known) = self.known.get_mut(id) else { continue };
                    if known.workloads.matches(labels) {
                        let members = Arc::make_mut(&mut known.members);
                        change(members, identity, is_there);
                        users.extend(known.users.keys().cloned());
                    }
                }
            }
        }
        match labels {
            Some(labels) => self.identities.insert(identity, Arc::clone(labels)),
            None => self.identities.remove(&identity),
        };
        true
    }

    fn add(&mut self, workloads: &Workloads) -> SelectorId {
        let id = SelectorId(self.next);
        self.next += 1;
        let handle = handle_of(workloads);
        let candidates = self.having.get(&handle).into_iter().flat_map(|set| set.iter());
        let members = candidates.filter(|identity| {
            self.identities.get(identity).is_some_and(|labels| workloads.matches(labels))
        });
        let members = Arc::new(members.collect());
        let workloads = Arc::new(workloads.clone());
        self.ids.insert(Arc::clone(&workloads), id);
        self.known.insert(id, Known { workloads, members, users: BTreeMap::new() });
        self.by_handle.entry(handle).or_default().insert(id);
        id
    }

    fn index(&mut self, handle: &Handle, identity: Identity, is_there: bool) {
        let having = self.having.entry(handle.clone()).or_default();
        change(Arc::make_mut(having), identity, is_there);
        if having.is_empty() {
            self.having.remove(handle);
        }
    }
}

impl Members for Selectors {
    fn of(&self, workloads: &Workloads) -> Arc<IdentitySet> {
        self.ids.get(workloads).map(|id| self.members(*id)).unwrap_or_default()
    }

    fn all(&self) -> Arc<IdentitySet> {
        self.having.get(&Handle::Any).cloned().unwrap_or_default()
    }
}

fn change(set: &mut IdentitySet, identity: Identity, is_there: bool) {
    if is_there {
        set.insert(identity);
    } else {
        set.remove(identity);
    }
}

fn handle_of(workloads: &Workloads) -> Handle {
    let namespace = match &workloads.namespaces {
        Namespaces::Named(name) => Some(name),
        Namespaces::Selected(selector) => {
            equalities(selector).find(|(key, _)| ***key == *NAMESPACE_NAME_LABEL).map(|(_, v)| v)
        }
    };
    if let Some(name) = namespace {
        return Handle::Namespace(Arc::clone(name));
    }
    match equalities(&workloads.pods).next() {
        Some((key, value)) => Handle::Label(Arc::clone(key), Arc::clone(value)),
        None => Handle::Any,
    }
}

fn handles_of(labels: &WorkloadLabels) -> impl Iterator<Item = Handle> {
    let pairs = labels.pod_labels.iter();
    let pairs = pairs.map(|(key, value)| Handle::Label(Arc::clone(key), Arc::clone(value)));
    [Handle::Any, Handle::Namespace(Arc::clone(&labels.namespace))].into_iter().chain(pairs)
}

/// The labels that a selector asks to have one value.
fn equalities(selector: &Selector) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
    selector.requirements().filter_map(|requirement| match &requirement.condition {
        Condition::In(values) if values.len() == 1 => Some((&requirement.key, values.first()?)),
        Condition::In(_) | Condition::NotIn(_) | Condition::Exists | Condition::DoesNotExist => {
            None
        }
    })
}
