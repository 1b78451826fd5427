//! The objects of one kind as they are in force, and what an event changes about them.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::sync::Arc;

use kube::runtime::watcher;
use namegate_policy::object::{self, Object, ObjectError, ObjectRef};
use namegate_policy::rule::PolicyRef;
use serde_json::Value;

use super::commons::Commons;
use super::journal::Entry;
use super::kinds::Watched;
use super::raw::Raw;
use super::status::{Fact, PolicyFact, Refused, Sight, policy_kind};
use super::trim::trim;
use crate::source::Version;

/// What events changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Update {
    /// Objects that appeared or changed.
    pub(super) upserts: Vec<Arc<Object>>,
    /// Objects that vanished.
    pub(super) removals: Vec<ObjectRef>,
    /// Objects that are refused.
    pub(super) refusals: Vec<Refusal>,
    /// Which versions of policies are in force with this.
    pub(super) versions: Vec<(PolicyRef, Version)>,
    /// What is told of policies and nodes for their status.
    pub(super) facts: Vec<Fact>,
    /// What an agent has to know of it that starts without an API server.
    pub(super) entries: Vec<Entry>,
    /// Whether this completes a list: everything that exists was told.
    pub(super) is_whole: bool,
}

impl Update {
    /// Whether there is nothing to tell.
    pub(super) fn is_empty(&self) -> bool {
        self.upserts.is_empty()
            && self.removals.is_empty()
            && self.refusals.is_empty()
            && self.versions.is_empty()
            && self.facts.is_empty()
            && self.entries.is_empty()
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
type Key = (Arc<str>, Arc<str>);

/// The objects of one kind.
#[derive(Debug)]
pub(super) struct Held {
    watched: Watched,
    known: BTreeMap<Key, Known>,
    /// What a list under way told so far.
    arriving: Option<BTreeMap<Key, Seen>>,
    hasher: RandomState,
    commons: Commons,
}

/// One for each object of the cluster: what it costs counts.
#[derive(Clone, Debug)]
struct Known {
    /// Stands for the trimmed object; keyed by chance, so that nobody can aim at another's.
    fingerprint: u64,
    /// Stands for the object's uid.
    uid: u64,
    /// What is in force: the version that is known, an earlier one, or what stands in for it.
    reference: Option<ObjectRef>,
    /// Whether what is in force was ever written like that.
    is_good: bool,
    /// Why the version that is known is refused.
    refused: Option<Arc<Refused>>,
    /// Of a policy, which version is in force.
    version: Option<Box<Version>>,
}

/// An object as an event showed it.
#[derive(Debug)]
struct Seen {
    sight: Option<Box<Sight>>,
    /// `None` where it says what is known already.
    arrival: Option<Arrival>,
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
        Self {
            watched,
            known: BTreeMap::new(),
            arriving: None,
            hasher: RandomState::new(),
            commons: Commons::default(),
        }
    }

    /// How many objects are known.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Takes what an earlier agent had in force, before the first event.
    pub(super) fn remember(
        &mut self,
        objects: impl Iterator<Item = io::Result<Value>>,
    ) -> io::Result<Update> {
        let mut update = Update::default();
        for object in objects {
            let raw = Raw::from(object?);
            let key = self.key(&raw);
            let arrival = self.arrival(&key, raw, &mut Vec::new());
            self.settle(key, Seen { sight: None, arrival }, &mut update);
        }
        Ok(update)
    }

    /// Ends a kind that the cluster does not have.
    pub(super) fn forget(mut self) -> Update {
        let mut update = Update::default();
        for (key, known) in std::mem::take(&mut self.known) {
            update.removals.extend(known.reference);
            update.entries.push(Entry::gone(&self.watched, &key.0, &key.1));
        }
        update.entries.push(Entry::settled(&self.watched));
        update
    }

    /// Takes an event in. A list is gathered and put in place as one when it is complete.
    pub(super) fn take(&mut self, event: watcher::Event<Raw>) -> Update {
        let mut update = Update::default();
        match event {
            watcher::Event::Init => {
                self.arriving = Some(BTreeMap::new());
                update.entries.push(Entry::list(&self.watched));
            }
            watcher::Event::InitApply(raw) => {
                let key = self.key(&raw);
                let seen = self.see(&key, raw, &mut update.entries);
                if let Some(arriving) = &mut self.arriving {
                    arriving.insert(key, seen);
                }
            }
            watcher::Event::InitDone => {
                let arrived = self.arriving.take().unwrap_or_default();
                let is_gone = |key: &Key, _: &mut Known| !arrived.contains_key(key);
                let left: Vec<(Key, Known)> = self.known.extract_if(.., is_gone).collect();
                for (key, known) in left {
                    self.leave(&key, Some(known), &mut update);
                }
                for (key, seen) in arrived {
                    self.settle(key, seen, &mut update);
                }
                // What grew in the order of its keys is half empty; collected, it is full.
                self.known = std::mem::take(&mut self.known).into_iter().collect();
                update.entries.push(Entry::settled(&self.watched));
                update.is_whole = true;
            }
            watcher::Event::Apply(raw) => {
                let key = self.key(&raw);
                let seen = self.see(&key, raw, &mut update.entries);
                self.settle(key, seen, &mut update);
                self.settle_entries(&mut update);
            }
            watcher::Event::Delete(raw) => {
                let key = self.key(&raw);
                let known = self.known.remove(&key);
                self.leave(&key, known, &mut update);
                self.settle_entries(&mut update);
            }
        }
        update
    }

    fn leave(&self, key: &Key, known: Option<Known>, update: &mut Update) {
        update.removals.extend(known.and_then(|known| known.reference));
        update.facts.extend(gone(&self.watched, key));
        update.entries.push(Entry::gone(&self.watched, &key.0, &key.1));
    }

    fn settle_entries(&self, update: &mut Update) {
        if !update.entries.is_empty() {
            update.entries.push(Entry::settled(&self.watched));
        }
    }

    /// The key of an object: the one that is known already, where it is.
    fn key(&mut self, raw: &Raw) -> Key {
        let text = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
        let mut key = (text(&raw.metadata.namespace), text(&raw.metadata.name));
        if let Some((known, _)) = self.known.get_key_value(&key) {
            return known.clone();
        }
        self.commons.share_text(&mut key.0);
        key
    }

    fn see(&mut self, key: &Key, raw: Raw, entries: &mut Vec<Entry>) -> Seen {
        Seen {
            sight: Sight::of(&self.watched, &raw).map(Box::new),
            arrival: self.arrival(key, raw, entries),
        }
    }

    /// What an object says that is not known already; `entries` keep it for the next agent where it
    /// comes into force.
    fn arrival(&mut self, key: &Key, raw: Raw, entries: &mut Vec<Entry>) -> Option<Arrival> {
        let before = self.known.get(key);
        let uid = self.hasher.hash_one(&raw.metadata.uid);
        let is_same_object = before.is_some_and(|before| before.uid == uid);
        let trimmed = trim(&self.watched, raw.value);
        let fingerprint = self.hasher.hash_one(&trimmed);
        if is_same_object && before.is_some_and(|before| before.fingerprint == fingerprint) {
            return None;
        }
        let mut in_force = before.and_then(|before| before.reference.clone());
        let version = before.filter(|_| is_same_object).and_then(|before| before.version.clone());
        let known = |reference, is_good, refused: Option<Refused>| {
            let refused = refused.map(Arc::new);
            Known { fingerprint, uid, reference, is_good, refused, version }
        };
        let entry = Entry::put(&self.watched, &trimmed);
        let arrival = match object::parse(trimmed) {
            Ok(mut object) => {
                if let Object::Pod(pod) = &mut object {
                    self.commons.share(pod, key);
                }
                Arrival {
                    known: known(Some(object.reference()), true, None),
                    outcome: Ok(Arc::new(object)),
                    replaces: None,
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                if is_same_object && before.is_some_and(|before| before.is_good) {
                    let known = known(in_force, true, Some(Refused::new(&error, true)));
                    let refusal = Refusal { error, keeps_last_good: true, stand_in: None };
                    let outcome = Err(refusal);
                    return Some(Arrival { known, outcome, replaces: None });
                }
                let stand_in = error.stand_in.as_deref().cloned().map(Object::Policy);
                let reference = stand_in.as_ref().map(Object::reference);
                let stand_in = stand_in.map(Arc::new);
                let replaces = in_force.take().filter(|before| Some(before) != reference.as_ref());
                let known = known(reference, false, Some(Refused::new(&error, false)));
                let refusal = Refusal { error, keeps_last_good: false, stand_in };
                Arrival { known, outcome: Err(refusal), replaces }
            }
        };
        entries.push(entry);
        Some(arrival)
    }

    fn settle(&mut self, key: Key, seen: Seen, update: &mut Update) {
        if let Some(Arrival { known, outcome, replaces }) = seen.arrival {
            self.known.insert(key.clone(), known);
            update.removals.extend(replaces);
            match outcome {
                Ok(object) => update.upserts.push(object),
                Err(refusal) => {
                    update.upserts.extend(refusal.stand_in.clone());
                    update.refusals.push(refusal);
                }
            }
        }
        let (Some(sight), Some(known)) = (seen.sight, self.known.get_mut(&key)) else { return };
        match (*sight, policy(&self.watched, &key)) {
            (Sight::Node(fact), _) => update.facts.push(Fact::Node(Arc::clone(&key.1), Some(fact))),
            (Sight::Policy { uid, generation, version, status }, Some(policy)) => {
                if let Some(version) = known.now_in_force(&uid, generation) {
                    update.versions.push((policy.clone(), version));
                }
                let refusal = known.refused.clone();
                let fact = PolicyFact { uid, generation, version, refusal, status };
                update.facts.push(Fact::Policy(policy, Some(Arc::new(fact))));
            }
            (Sight::Policy { .. }, None) => {}
        }
    }
}

impl Known {
    /// Which version is in force once `generation` was seen, where that is another one.
    fn now_in_force(&mut self, uid: &Arc<str>, generation: i64) -> Option<Version> {
        let generation = match &self.refused {
            None => generation,
            Some(refused) if refused.keeps_last_good => return None,
            Some(_) => 0,
        };
        let version = Version { uid: Arc::clone(uid), generation };
        if self.version.as_deref() == Some(&version) {
            return None;
        }
        self.version = Some(Box::new(version.clone()));
        Some(version)
    }
}

/// The policy that a key stands for; `None` where it is none.
fn policy(watched: &Watched, (namespace, name): &Key) -> Option<PolicyRef> {
    let namespace = (!namespace.is_empty()).then(|| Arc::clone(namespace));
    Some(PolicyRef { kind: policy_kind(watched)?, namespace, name: Arc::clone(name) })
}

/// That an object of which somebody reports is gone.
fn gone(watched: &Watched, key: &Key) -> Option<Fact> {
    if watched.kind == "Node" {
        return Some(Fact::Node(Arc::clone(&key.1), None));
    }
    policy(watched, key).map(|policy| Fact::Policy(policy, None))
}

#[cfg(test)]
mod tests {
    use kube::runtime::watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
    use serde_json::json;

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

    fn versions(update: &Update) -> Vec<i64> {
        update.versions.iter().map(|(_, version)| version.generation).collect()
    }

    fn at_generation(mut policy: Raw, generation: i64) -> Raw {
        policy.metadata.generation = Some(generation);
        policy
    }

    #[test]
    fn the_version_in_force_is_that_of_the_last_good_object() {
        let mut held = mk_held();
        let good = |generation| at_generation(mk_policy("a", "1", "a.com"), generation);
        let bad = |uid, generation| at_generation(mk_policy("a", uid, "a.*.com"), generation);
        assert_eq!(versions(&list(&mut held, &[good(1)])), [1]);
        assert_eq!(versions(&held.take(Apply(good(1)))), [] as [i64; 0], "said once");
        assert_eq!(versions(&held.take(Apply(bad("1", 2)))), [] as [i64; 0], "1 stays in force");
        assert_eq!(versions(&held.take(Apply(good(3)))), [3]);
        assert_eq!(versions(&held.take(Apply(good(5)))), [5], "changed and changed back");
        assert_eq!(versions(&held.take(Apply(bad("2", 1)))), [0], "another object, closed");
    }

    #[test]
    fn what_is_told_for_status_follows_every_event() {
        let mut held = mk_held();
        let told = |update: Update| match update.facts.into_iter().next() {
            Some(Fact::Policy(policy, fact)) => {
                let refusal = fact.map(|fact| (fact.generation, fact.refusal.clone()));
                (policy.to_string(), refusal)
            }
            other => panic!("{other:?}"),
        };
        let bad = at_generation(mk_policy("a", "1", "a.*.com"), 4);
        let (name, fact) = told(list(&mut held, std::slice::from_ref(&bad)));
        assert_eq!(name, "EgressPolicy shop/a");
        let (generation, refusal) = fact.unwrap();
        let refusal = refusal.unwrap();
        assert_eq!((generation, refusal.is_closed, refusal.keeps_last_good), (4, true, false));
        assert!(refusal.why.starts_with("spec.egress[0].to[0].fqdn: "), "{}", refusal.why);
        // A list that says the same tells of it all the same: the resourceVersion may be another.
        assert_eq!(told(list(&mut held, std::slice::from_ref(&bad))).1.unwrap().1, Some(refusal));
        assert_eq!(told(held.take(Delete(bad))).1, None);
    }
}
