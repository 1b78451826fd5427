//! Tables kept up to date are those that a build from nothing makes, whatever happened before.

#![expect(clippy::unwrap_used, reason = "a test ends where an assumption fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use namegate_policy::dns::ClusterNames;
use namegate_policy::identity::{Identity, IdentitySet};
use namegate_policy::inventory::Inventory;
use namegate_policy::name::DnsName;
use namegate_policy::object::{Object, ObjectRef};
use namegate_policy::resource::PodRef;
use namegate_policy::rule::{Policy, PolicyRef};
use namegate_policy::table::{Clause, PolicyTable, TableChange, TableSource, Tables};
use namegate_policy::testing::Documents;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

const NAMES: [&str; 5] = ["a.test", "x.a.test", "b.test", "test", "other.example"];

/// One thing that happens.
#[derive(Clone, Debug)]
enum Event {
    Upsert(Index),
    Remove(Index),
    /// This pod is of this node, or not.
    Local(Index, bool),
    /// What happened so far is to be in force.
    Rebuild,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => any::<Index>().prop_map(Event::Upsert),
        3 => any::<Index>().prop_map(Event::Remove),
        3 => (any::<Index>(), any::<bool>()).prop_map(|(pod, is_local)| Event::Local(pod, is_local)),
        4 => Just(Event::Rebuild),
    ]
}

/// A node that keeps tables, and what it should have.
struct Node {
    tables: Tables,
    names: Arc<ClusterNames>,
    objects: BTreeMap<ObjectRef, Object>,
    local: BTreeSet<PodRef>,
    before: BTreeMap<Identity, Arc<PolicyTable>>,
}

impl Node {
    fn new(ranges: Vec<ipnet::IpNet>) -> Self {
        let names = Arc::new(ClusterNames {
            domain: DnsName::parse("cluster.local").unwrap(),
            search: Vec::new(),
            ranges,
        });
        Self {
            tables: Tables::new(Arc::clone(&names)),
            names,
            objects: BTreeMap::new(),
            local: BTreeSet::new(),
            before: BTreeMap::new(),
        }
    }

    fn rebuild(&mut self) -> BTreeMap<Identity, TableChange> {
        self.tables.settle();
        let inventory = self.tables.inventory();
        let wanted: BTreeSet<Identity> =
            self.local.iter().filter_map(|pod| inventory.identity_of(pod)).collect();
        for identity in self.before.keys().filter(|known| !wanted.contains(known)) {
            self.tables.release(*identity);
        }
        for identity in &wanted {
            self.tables.govern(*identity);
        }
        let changes = self.tables.rebuild();
        assert!(self.tables.built().keys().eq(&wanted), "the governed identities have tables");
        changes
    }

    /// Holds every table against one from nothing, and what was told against what there was.
    fn check(&mut self, changes: &BTreeMap<Identity, TableChange>) {
        let policies: BTreeMap<PolicyRef, Arc<Policy>> =
            self.tables.policies().map(|p| (p.reference.clone(), Arc::new(p.clone()))).collect();
        let inventory = self.tables.inventory();
        let source = TableSource { policies: &policies, inventory, names: &self.names };
        let errors: BTreeMap<_, _> = self.tables.errors().collect();
        for (identity, table) in self.tables.built() {
            match source.build(*identity) {
                Ok(expected) => assert_same(table, &expected),
                Err(error) => assert_eq!(errors.get(identity), Some(&&error)),
            }
            let before = self.before.get(identity);
            match (before, changes.get(identity)) {
                (Some(before), None) => assert_same(table, before),
                (Some(before), Some(TableChange::Members(members))) => {
                    assert!(Arc::ptr_eq(&before.names, &table.names));
                    assert_eq!(differences(before, table), *members);
                }
                (_, Some(TableChange::Replaced)) => {}
                (None, change) => panic!("a table without a word: {change:?}"),
            }
        }
        self.before = self.tables.built().clone();
        assert_eq!(who_is_who(inventory), who_is_who(&mk_inventory(&self.objects)));
    }
}

fn clauses(table: &PolicyTable) -> impl Iterator<Item = &Clause> {
    table.egress.iter().chain(&table.ingress)
}

fn assert_same(found: &PolicyTable, expected: &PolicyTable) {
    assert_eq!(found.egress, expected.egress);
    assert_eq!(found.ingress, expected.ingress);
    assert_eq!(found.names.is_governed(), expected.names.is_governed());
    for name in NAMES {
        let name = DnsName::parse(name).unwrap();
        assert_eq!(found.names.decide(&name), expected.names.decide(&name), "{name}");
        assert_eq!(found.names.private_clauses(&name), expected.names.private_clauses(&name));
    }
}

/// The identities that differ between tables of one shape.
fn differences(before: &PolicyTable, after: &PolicyTable) -> BTreeSet<Identity> {
    assert_eq!(
        (before.egress.len(), before.ingress.len()),
        (after.egress.len(), after.ingress.len())
    );
    let set = |set: &IdentitySet| set.iter().collect::<BTreeSet<_>>();
    clauses(before)
        .zip(clauses(after))
        .flat_map(|(before, after)| {
            assert!(before.is_shaped_like(after));
            &set(&before.peers.identities) ^ &set(&after.peers.identities)
        })
        .collect()
}

fn mk_inventory(objects: &BTreeMap<ObjectRef, Object>) -> Inventory {
    let mut inventory = Inventory::default();
    for object in objects.values().cloned() {
        match object {
            Object::Namespace(namespace) => inventory.upsert_namespace(namespace),
            Object::Pod(pod) => inventory.upsert_pod(pod),
            Object::Service(service) => inventory.upsert_service(service),
            Object::EndpointSlice(slice) => inventory.upsert_slice(slice),
            Object::Node(node) => inventory.upsert_node(node),
            Object::CidrGroup(group) => inventory.upsert_cidr_group(group),
            Object::Policy(_) => {}
        }
    }
    inventory
}

/// Identities are numbered by history; their labels are not.
fn who_is_who(inventory: &Inventory) -> BTreeMap<IpAddr, String> {
    let own = BTreeSet::from(["192.0.2.1".parse().unwrap()]);
    let ipcache = inventory.ipcache(&own).into_iter();
    let named = ipcache.map(|(address, identity)| {
        let labels = inventory.identities().labels(identity);
        (address, labels.map_or(format!("{identity:?}"), |labels| format!("{labels:?}")))
    });
    named.chain(inventory.conflicts().map(|(at, pods)| (at, format!("{pods:?}")))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn whatever_happens_the_tables_are_those_of_a_build_from_nothing(
        towns in vec(any::<u64>(), 2..4),
        events in vec(event(), 1..60),
    ) {
        let cases: Vec<_> =
            towns.into_iter().map(|seed| Documents::random(seed).case().unwrap()).collect();
        let mut node = Node::new(cases[0].ranges.clone());
        let objects: Vec<&Object> = cases.iter().flat_map(|case| &case.objects).collect();
        let is_pod = |object: &&&Object| matches!(object, Object::Pod(_));
        let pods: Vec<&Object> = objects.iter().filter(is_pod).copied().collect();
        for event in events.into_iter().chain([Event::Rebuild]) {
            match event {
                Event::Upsert(index) => {
                    let object = index.get(&objects);
                    node.objects.insert(object.reference(), (*object).clone());
                    node.tables.upsert(&Arc::new((*object).clone()));
                }
                Event::Remove(index) => {
                    let reference = index.get(&objects).reference();
                    node.objects.remove(&reference);
                    node.tables.remove(&reference);
                }
                Event::Local(index, is_local) => {
                    let Object::Pod(pod) = index.get(&pods) else { continue };
                    if is_local {
                        node.local.insert(pod.reference.clone());
                    } else {
                        node.local.remove(&pod.reference);
                    }
                }
                Event::Rebuild => {
                    let changes = node.rebuild();
                    node.check(&changes);
                }
            }
        }
    }
}
