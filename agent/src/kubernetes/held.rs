//! The objects of one kind as they are in force, and what an event changes about them.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;

use kube::runtime::watcher;
use namegate_policy::object::{self, Object, ObjectError, ObjectRef};

use super::kinds::Watched;
use super::raw::Raw;
use super::trim::trim;

/// What events changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Update {
    /// Objects that appeared or changed.
    pub(super) upserts: Vec<Arc<Object>>,
    /// Objects that vanished.
    pub(super) removals: Vec<ObjectRef>,
    /// Objects that are refused.
    pub(super) refusals: Vec<Refusal>,
    /// Whether this completes a list: everything that exists was told.
    pub(super) is_whole: bool,
}

impl Update {
    /// Whether there is nothing to tell.
    pub(super) fn is_empty(&self) -> bool {
        self.upserts.is_empty()
            && self.removals.is_empty()
            && self.refusals.is_empty()
            && !self.is_whole
    }
}

/// An object that is refused.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) error: Arc<ObjectError>,
    /// Whether an earlier version of the object stays in force.
    pub(super) keeps_last_good: bool,
    /// What is in force where there is none: the stricter side.
    pub(super) stand_in: Option<Arc<Object>>,
}

/// Namespace and name; the namespace is empty for a cluster-scoped object.
type Key = (Box<str>, Box<str>);

/// The objects of one kind.
#[derive(Debug)]
pub(super) struct Held {
    watched: Watched,
    known: BTreeMap<Key, Known>,
    /// What a list under way told so far; `None` where it told what is known already.
    arriving: Option<BTreeMap<Key, Option<Arrival>>>,
    hasher: RandomState,
}

#[derive(Clone, Debug)]
struct Known {
    /// Stands for the trimmed object; keyed by chance, so that nobody can aim at another's.
    fingerprint: u64,
    uid: Option<Box<str>>,
    /// What is in force: the version that is known, an earlier one, or what stands in for it.
    reference: Option<ObjectRef>,
    /// Whether what is in force was ever written like that.
    is_good: bool,
}

#[derive(Debug)]
struct Arrival {
    known: Known,
    outcome: Result<Arc<Object>, Refusal>,
    /// An earlier object of the same name that is gone.
    replaces: Option<ObjectRef>,
}

impl Held {
    pub(super) fn new(watched: Watched) -> Self {
        Self { watched, known: BTreeMap::new(), arriving: None, hasher: RandomState::new() }
    }

    /// How many objects are known.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Takes an event in. A list is gathered and put in place as one when it is complete.
    pub(super) fn take(&mut self, event: watcher::Event<Raw>) -> Update {
        let mut update = Update::default();
        match event {
            watcher::Event::Init => self.arriving = Some(BTreeMap::new()),
            watcher::Event::InitApply(raw) => {
                let key = key(&raw);
                let arrival = self.arrival(raw);
                if let Some(arriving) = &mut self.arriving {
                    arriving.insert(key, arrival);
                }
            }
            watcher::Event::InitDone => {
                let arrived = self.arriving.take().unwrap_or_default();
                self.known.retain(|key, known| {
                    let stays = arrived.contains_key(key);
                    if !stays {
                        update.removals.extend(known.reference.take());
                    }
                    stays
                });
                for (key, arrival) in arrived {
                    self.settle(key, arrival, &mut update);
                }
                update.is_whole = true;
            }
            watcher::Event::Apply(raw) => {
                let key = key(&raw);
                let arrival = self.arrival(raw);
                self.settle(key, arrival, &mut update);
            }
            watcher::Event::Delete(raw) => {
                let gone = self.known.remove(&key(&raw));
                update.removals.extend(gone.and_then(|known| known.reference));
            }
        }
        update
    }

    /// What an object says that is not known already.
    fn arrival(&self, raw: Raw) -> Option<Arrival> {
        let before = self.known.get(&key(&raw));
        let uid: Option<Box<str>> = raw.metadata.uid.map(Into::into);
        let is_same_object = before.is_some_and(|before| before.uid == uid);
        let trimmed = trim(&self.watched, raw.value);
        let fingerprint = self.hasher.hash_one(&trimmed);
        if is_same_object && before.is_some_and(|before| before.fingerprint == fingerprint) {
            return None;
        }
        let mut in_force = before.and_then(|before| before.reference.clone());
        let known = |reference, is_good| Known { fingerprint, uid, reference, is_good };
        Some(match object::parse(trimmed) {
            Ok(object) => Arrival {
                known: known(Some(object.reference()), true),
                outcome: Ok(Arc::new(object)),
                replaces: None,
            },
            Err(error) => {
                let error = Arc::new(error);
                if is_same_object && before.is_some_and(|before| before.is_good) {
                    let refusal = Refusal { error, keeps_last_good: true, stand_in: None };
                    let known = known(in_force, true);
                    return Some(Arrival { known, outcome: Err(refusal), replaces: None });
                }
                let stand_in = error.stand_in.as_deref().cloned().map(Object::Policy);
                let reference = stand_in.as_ref().map(Object::reference);
                let stand_in = stand_in.map(Arc::new);
                let replaces = in_force.take().filter(|before| Some(before) != reference.as_ref());
                let refusal = Refusal { error, keeps_last_good: false, stand_in };
                Arrival { known: known(reference, false), outcome: Err(refusal), replaces }
            }
        })
    }

    fn settle(&mut self, key: Key, arrival: Option<Arrival>, update: &mut Update) {
        let Some(Arrival { known, outcome, replaces }) = arrival else { return };
        self.known.insert(key, known);
        update.removals.extend(replaces);
        match outcome {
            Ok(object) => update.upserts.push(object),
            Err(refusal) => {
                update.upserts.extend(refusal.stand_in.clone());
                update.refusals.push(refusal);
            }
        }
    }
}

fn key(raw: &Raw) -> Key {
    let text = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
    (text(&raw.metadata.namespace), text(&raw.metadata.name))
}

#[cfg(test)]
mod tests {
    use kube::runtime::watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
    use serde_json::{Value, json};

    use super::super::kinds::WATCHED;
    use super::*;

    fn mk_held() -> Held {
        Held::new(*WATCHED.iter().find(|watched| watched.kind == "EgressPolicy").unwrap())
    }

    /// A policy that allows `peer`; a star in the middle of it makes it invalid.
    fn mk_policy(name: &str, uid: &str, peer: &str) -> Raw {
        let value: Value = json!({
            "metadata": {"name": name, "namespace": "shop", "uid": uid},
            "spec": {"podSelector": {}, "egress": [{"to": [{"fqdn": peer}]}]},
        });
        serde_json::from_value(value).unwrap()
    }

    fn told(update: &Update) -> (Vec<String>, Vec<String>, Vec<bool>) {
        (
            update.upserts.iter().map(|object| object.reference().name.to_string()).collect(),
            update.removals.iter().map(|reference| reference.name.to_string()).collect(),
            update.refusals.iter().map(|refusal| refusal.keeps_last_good).collect(),
        )
    }

    fn list(held: &mut Held, policies: &[Raw]) -> Update {
        held.take(Init);
        for policy in policies {
            let update = held.take(InitApply(policy.clone()));
            assert_eq!(told(&update), (vec![], vec![], vec![]), "nothing before the list is whole");
        }
        let update = held.take(InitDone);
        assert!(update.is_whole);
        update
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_list_is_put_in_place_as_one() {
        let mut held = mk_held();
        let (a, b, c) = (
            mk_policy("a", "1", "a.com"),
            mk_policy("b", "2", "b.com"),
            mk_policy("c", "3", "c.com"),
        );
        let first = list(&mut held, &[a.clone(), b.clone()]);
        assert_eq!(told(&first), (names(&["a", "b"]), vec![], vec![]));
        let again = list(&mut held, &[a.clone(), b]);
        assert_eq!(told(&again), (vec![], vec![], vec![]), "a relist that says the same");
        let other = list(&mut held, &[a, c]);
        assert_eq!(told(&other), (names(&["c"]), names(&["b"]), vec![]));
    }

    #[test]
    fn a_list_that_is_cut_off_takes_nothing_back() {
        let mut held = mk_held();
        let (a, b) = (mk_policy("a", "1", "a.com"), mk_policy("b", "2", "b.com"));
        list(&mut held, &[a.clone(), b.clone()]);
        held.take(Init);
        held.take(InitApply(mk_policy("a", "1", "changed.com")));
        // The stream ended here; the watcher begins anew.
        let update = list(&mut held, &[a, b]);
        assert_eq!(told(&update), (vec![], vec![], vec![]));
    }

    #[test]
    fn an_object_that_turns_bad_keeps_its_last_good_version() {
        let mut held = mk_held();
        list(&mut held, &[mk_policy("a", "1", "a.com")]);
        let bad = held.take(Apply(mk_policy("a", "1", "a.*.com")));
        assert_eq!(told(&bad), (vec![], vec![], vec![true]));
        let again = list(&mut held, &[mk_policy("a", "1", "a.*.com")]);
        assert_eq!(told(&again), (vec![], vec![], vec![]), "said once");
        let gone = held.take(Delete(mk_policy("a", "1", "a.*.com")));
        assert_eq!(told(&gone), (vec![], names(&["a"]), vec![]));
    }

    #[test]
    fn for_a_policy_that_never_was_good_the_stricter_side_stands_in() {
        let mut held = mk_held();
        let first = list(&mut held, &[mk_policy("a", "1", "a.*.com")]);
        assert_eq!(told(&first), (names(&["a"]), vec![], vec![false]));
        let good = held.take(Apply(mk_policy("a", "1", "a.com")));
        assert_eq!(told(&good), (names(&["a"]), vec![], vec![]));
        // Another object of the same name inherits nothing.
        let other = list(&mut held, &[mk_policy("a", "2", "a.*.com")]);
        assert_eq!(told(&other), (names(&["a"]), vec![], vec![false]));
        assert_eq!(other.upserts, first.upserts);
    }

    #[test]
    fn status_and_versions_are_no_news() {
        let mut held = mk_held();
        let mut policy = mk_policy("a", "1", "a.com");
        held.take(Apply(policy.clone()));
        policy.value["status"] = json!({"conditions": []});
        policy.value["metadata"]["resourceVersion"] = "9".into();
        assert_eq!(told(&held.take(Apply(policy))), (vec![], vec![], vec![]));
    }
}
