use std::collections::BTreeSet;

use namegate_egress_bpf::abi::{NameEntry, NameKey, PeerKey, RuleSet};
use namegate_egress_bpf::compile::RowChanges;
use namegate_policy::dns::{ClusterNames, NamePolicy};
use namegate_policy::name::DnsName;
use namegate_policy::resource::PodRef;
use namegate_policy::table::{Clause, ClauseAction, ClausePeers, ClausePorts, ClauseTier};
use namegate_policy::time::Timestamp;

use super::*;

/// A kernel in memory that refuses what the real one would, and fails when told.
#[derive(Debug, Default)]
struct Memory {
    tables: BTreeSet<u32>,
    classes: BTreeMap<PeerKey, RuleSet>,
    names: BTreeMap<NameKey, NameEntry>,
    endpoints: BTreeMap<u32, EndpointRow>,
    attached: BTreeSet<u32>,
    ipcache: BTreeMap<IpAddr, Identity>,
    closed: BTreeSet<IpAddr>,
    resolvers: BTreeMap<u8, IpAddr>,
    services: BTreeMap<ServiceKey, ServiceEntry>,
    is_incomplete: bool,
    log: Vec<String>,
    calls: usize,
    /// Numbers of the calls that fail.
    failing: BTreeSet<usize>,
}

#[derive(Debug, thiserror::Error)]
#[error("no room")]
struct NoRoom;

impl Memory {
    fn call(&mut self, what: String) -> Result<(), NoRoom> {
        self.calls += 1;
        if self.failing.contains(&self.calls) {
            return Err(NoRoom);
        }
        self.log.push(what);
        Ok(())
    }
}

impl Kernel for Memory {
    type Error = NoRoom;

    fn install(&mut self, table: u32, _rows: &TableRows) -> Result<(), NoRoom> {
        self.call(format!("install {table}"))?;
        assert!(self.tables.insert(table), "table {table} is installed twice");
        Ok(())
    }

    fn change_identities(&mut self, table: u32, changes: &RowChanges) -> Result<(), NoRoom> {
        let (more, less) = (changes.upsert.len(), changes.delete.len());
        self.call(format!("change {table} by {more} and {less}"))?;
        assert!(self.tables.contains(&table), "table {table} is not installed");
        Ok(())
    }

    fn remove_table(&mut self, table: u32) -> Result<(), NoRoom> {
        self.call(format!("remove {table}"))?;
        let user = self.endpoints.values().find(|row| row.table == table);
        assert_eq!(user, None, "table {table} is removed while an endpoint names it");
        self.tables.remove(&table);
        self.classes.retain(|key, _| key.table != table);
        Ok(())
    }

    fn write_names(&mut self, writes: &NameWrites) -> Result<(), NoRoom> {
        if *writes == NameWrites::default() {
            return Ok(());
        }
        self.call("names".to_owned())?;
        self.classes.extend(&writes.classes);
        self.names.retain(|key, _| !writes.delete_entries.contains(key));
        self.names.extend(&writes.entries);
        self.classes.retain(|key, _| !writes.delete_classes.contains(key));
        Ok(())
    }

    fn set_endpoint(&mut self, row: &EndpointRow) -> Result<(), NoRoom> {
        self.call(format!("endpoint {} table {}", row.ifindex, row.table))?;
        assert!(self.tables.contains(&row.table), "table {} is not installed", row.table);
        self.endpoints.insert(row.ifindex, row.clone());
        Ok(())
    }

    fn remove_endpoint(&mut self, ifindex: u32) -> Result<(), NoRoom> {
        self.call(format!("no endpoint {ifindex}"))?;
        self.endpoints.remove(&ifindex);
        Ok(())
    }

    fn close(&mut self, ifindex: u32) -> Result<(), NoRoom> {
        self.call(format!("close {ifindex}"))?;
        self.endpoints.remove(&ifindex);
        self.attached.insert(ifindex);
        Ok(())
    }

    fn attach(&mut self, ifindex: u32) -> Result<(), NoRoom> {
        self.call(format!("attach {ifindex}"))?;
        self.attached.insert(ifindex);
        Ok(())
    }

    fn detach(&mut self, ifindex: u32) -> Result<(), NoRoom> {
        self.call(format!("detach {ifindex}"))?;
        self.attached.remove(&ifindex);
        Ok(())
    }

    fn put_identities(&mut self, entries: &BTreeMap<IpAddr, Identity>) -> Result<(), NoRoom> {
        if entries.is_empty() {
            return Ok(());
        }
        self.call("ipcache".to_owned())?;
        self.ipcache.extend(entries);
        self.closed.retain(|address| !entries.contains_key(address));
        Ok(())
    }

    fn close_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), NoRoom> {
        if addresses.is_empty() {
            return Ok(());
        }
        self.call("close addresses".to_owned())?;
        self.ipcache.retain(|address, _| !addresses.contains(address));
        self.closed.extend(addresses);
        Ok(())
    }

    fn remove_identities(&mut self, addresses: &[IpAddr]) -> Result<(), NoRoom> {
        self.ipcache.retain(|address, _| !addresses.contains(address));
        self.closed.retain(|address| !addresses.contains(address));
        Ok(())
    }

    fn set_complete(&mut self, is_complete: bool) -> Result<(), NoRoom> {
        if self.is_incomplete != is_complete {
            return Ok(());
        }
        self.call(format!("complete: {is_complete}"))?;
        self.is_incomplete = !is_complete;
        Ok(())
    }

    fn set_services(
        &mut self,
        services: &BTreeMap<ServiceKey, ServiceEntry>,
    ) -> Result<(), NoRoom> {
        self.call("services".to_owned())?;
        self.services.clone_from(services);
        Ok(())
    }

    fn set_resolvers(&mut self, resolvers: &BTreeMap<u8, IpAddr>) -> Result<(), NoRoom> {
        self.resolvers.clone_from(resolvers);
        self.call("resolvers".to_owned())
    }
}

const LINK: u32 = 7;

fn identity() -> Identity {
    Identity::FIRST_WORKLOAD
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn mk_table(names: &[(&str, NameRules)]) -> TableEffect {
    let cluster = ClusterNames {
        domain: DnsName::parse("cluster.local").unwrap(),
        search: Vec::new(),
        ranges: Vec::new(),
    };
    let table = PolicyTable {
        identity: identity(),
        egress: Vec::new(),
        ingress: Vec::new(),
        names: Arc::new(NamePolicy::ungoverned(Arc::new(cluster))),
    };
    let names = names.iter().map(|(address, rules)| (ip(address), *rules)).collect();
    TableEffect { table: Arc::new(table), names }
}

fn mk_rules(deadline: u64, rules: &[u16]) -> NameRules {
    let set = RuleSet::of(rules.iter().copied());
    NameRules { deadline: Timestamp::from_nanos(deadline), fresh: set, live: set }
}

fn mk_spec(pod: &str) -> EndpointSpec {
    EndpointSpec {
        pod: PodRef { namespace: "shop".into(), name: pod.into() },
        interface: "veth".to_owned(),
        identity: identity(),
        mac: None,
        addresses: BTreeSet::from([ip("10.244.1.5")]),
    }
}

fn mk_effects(table: TableEffect) -> Effects {
    Effects { tables: BTreeMap::from([(identity(), table)]), ..Effects::default() }
}

fn mk_first() -> Effects {
    Effects {
        ipcache: BTreeMap::from([(ip("10.244.1.5"), Some(identity()))]),
        endpoints: BTreeMap::from([(LINK, EndpointEffect::Enforce(mk_spec("a")))]),
        resolvers: Some(BTreeMap::from([(0, ip("10.96.0.10"))])),
        ..mk_effects(mk_table(&[]))
    }
}

fn mk_apply() -> Apply<Memory> {
    Apply::new(Memory::default(), BTreeMap::new(), BTreeSet::new(), 1)
}

/// What a new flow and a known flow of the endpoint find for `address`.
fn found(kernel: &Memory, address: &str) -> Option<(u64, RuleSet, RuleSet)> {
    let table = kernel.endpoints[&LINK].table;
    let key = NameKey { identity: identity().number(), address: ip(address).into() };
    let entry = kernel.names.get(&key)?;
    let class = |number: u32| {
        let is_it = |key: &&PeerKey| key.table == table && key.class == number;
        let row = kernel.classes.iter().find(|(key, _)| is_it(key));
        if number == 0 { RuleSet::EMPTY } else { *row.expect("a row for each class").1 }
    };
    Some((entry.deadline_ns, class(entry.class), class(entry.live_class)))
}

#[test]
fn a_table_is_there_before_its_endpoint_and_the_endpoint_before_its_programs() {
    let mut apply = mk_apply();
    let outcome = apply.apply(mk_first());
    assert_eq!(outcome.failures, Vec::<String>::new());
    let expected = ["resolvers", "install 1", "ipcache", "endpoint 7 table 1", "attach 7"];
    assert_eq!(apply.kernel().log, expected);
}

#[test]
fn a_swap_writes_the_next_table_first_and_removes_the_last_after() {
    let mut apply = mk_apply();
    apply.apply(mk_first());
    let before = apply.kernel().endpoints[&LINK].clone();
    apply.kernel().log.clear();
    apply.apply(mk_effects(mk_table(&[])));
    let expected = ["install 2", "endpoint 7 table 2", "attach 7", "remove 1"];
    assert_eq!(apply.kernel().log, expected);
    let after = apply.kernel().endpoints[&LINK].clone();
    assert!(after.generation > before.generation, "flows are judged again");
    assert_eq!(after.epoch, before.epoch, "flows stay");
}

#[test]
fn another_pod_on_the_interface_inherits_no_flow() {
    let mut apply = mk_apply();
    apply.apply(mk_first());
    let before = apply.kernel().endpoints[&LINK].epoch;
    let endpoints = BTreeMap::from([(LINK, EndpointEffect::Enforce(mk_spec("b")))]);
    apply.apply(Effects { endpoints, ..Effects::default() });
    assert_ne!(apply.kernel().endpoints[&LINK].epoch, before);
}

#[test]
fn learned_addresses_move_with_the_table() {
    let mut apply = mk_apply();
    apply.apply(mk_first());
    let place = |address: &str| (identity(), ip(address));
    let names = BTreeMap::from([
        (place("203.0.113.1"), Some(mk_rules(9, &[1]))),
        (place("203.0.113.2"), Some(mk_rules(9, &[1]))),
    ]);
    apply.apply(Effects { names, ..Effects::default() });
    let one = RuleSet::of([1]);
    assert_eq!(found(apply.kernel(), "203.0.113.1"), Some((9, one, one)));

    // In the next table the first address means another rule, the second none, a third is there.
    let table = mk_table(&[
        ("203.0.113.1", mk_rules(12, &[3])),
        ("203.0.113.2", NameRules::default()),
        ("203.0.113.3", mk_rules(20, &[3, 4])),
    ]);
    apply.apply(mk_effects(table));
    let (three, both) = (RuleSet::of([3]), RuleSet::of([3, 4]));
    assert_eq!(found(apply.kernel(), "203.0.113.1"), Some((12, three, three)));
    assert_eq!(found(apply.kernel(), "203.0.113.2"), None);
    assert_eq!(found(apply.kernel(), "203.0.113.3"), Some((20, both, both)));
    let table = apply.kernel().endpoints[&LINK].table;
    assert!(apply.kernel().classes.keys().all(|key| key.table == table), "nothing is left behind");
}

#[test]
fn a_first_table_has_its_names_before_its_endpoint() {
    let table = mk_table(&[("203.0.113.1", mk_rules(9, &[1]))]);
    let mut apply = Apply::new(Memory::default(), BTreeMap::new(), BTreeSet::new(), 40);
    apply.apply(Effects { tables: BTreeMap::from([(identity(), table)]), ..mk_first() });
    let place = |what: &str, log: &[String]| log.iter().position(|call| call.starts_with(what));
    let log = apply.kernel().log.clone();
    assert!(place("names", &log) < place("endpoint", &log), "{log:?}");
    let classes: Vec<u32> = apply.kernel().names.values().map(|entry| entry.class).collect();
    assert_eq!(classes, [40], "no class of an earlier agent is used again");
}

#[test]
fn what_did_not_change_is_not_written_again() {
    let mut apply = mk_apply();
    apply.apply(mk_first());
    let rules = [("203.0.113.1", mk_rules(9, &[1]))];
    apply.apply(mk_effects(mk_table(&rules)));
    apply.kernel().log.clear();
    let names = BTreeMap::from([((identity(), ip("203.0.113.1")), Some(rules[0].1))]);
    apply.apply(Effects { names, ..Effects::default() });
    assert_eq!(apply.kernel().log, Vec::<String>::new());
}

#[test]
fn an_identity_without_endpoints_leaves_nothing() {
    let mut apply = mk_apply();
    apply.apply(mk_first());
    let names = BTreeMap::from([((identity(), ip("203.0.113.1")), Some(mk_rules(9, &[1])))]);
    apply.apply(Effects { names, ..Effects::default() });
    apply.apply(Effects {
        endpoints: BTreeMap::from([(LINK, EndpointEffect::Release)]),
        retired: BTreeSet::from([identity()]),
        ipcache: BTreeMap::from([(ip("10.244.1.5"), None)]),
        ..Effects::default()
    });
    let kernel = apply.into_kernel();
    assert!(kernel.tables.is_empty() && kernel.classes.is_empty() && kernel.names.is_empty());
    assert!(kernel.endpoints.is_empty() && kernel.attached.is_empty());
    assert!(kernel.ipcache.is_empty());
}

/// Whichever write fails, it is told, and trying again ends where it should.
#[test]
fn whichever_write_fails_is_told_and_heals() {
    let old = [("203.0.113.1", mk_rules(9, &[1]))];
    let new = [("203.0.113.1", mk_rules(9, &[2])), ("203.0.113.2", mk_rules(9, &[2, 3]))];
    for failing in 1..12 {
        let mut apply = mk_apply();
        apply.apply(mk_first());
        apply.apply(mk_effects(mk_table(&old)));
        let calls = apply.kernel().calls;
        apply.kernel().failing = BTreeSet::from([calls + failing]);
        let outcome = apply.apply(mk_effects(mk_table(&new)));
        let failed = apply.kernel().calls >= calls + failing;
        assert_eq!(!outcome.failures.is_empty(), failed, "call {failing} is told");
        for _ in 0..3 {
            let mut again = Effects::default();
            for identity in apply.retry_identities() {
                again.tables.insert(identity, mk_table(&new));
            }
            apply.apply(again);
        }
        assert!(!apply.needs_retry(), "call {failing}");
        let (two, both) = (RuleSet::of([2]), RuleSet::of([2, 3]));
        let kernel = apply.into_kernel();
        assert_eq!(found(&kernel, "203.0.113.1"), Some((9, two, two)), "call {failing}");
        assert_eq!(found(&kernel, "203.0.113.2"), Some((9, both, both)), "call {failing}");
        assert_eq!(kernel.tables.len(), 1, "call {failing}");
    }
}

#[test]
fn what_answers_teach_is_written_without_trying_again_what_failed() {
    let mut apply = mk_apply();
    apply.apply(mk_first());
    let next = apply.kernel().calls + 1;
    apply.kernel().failing = BTreeSet::from([next]);
    apply.apply(Effects { services: Some(Arc::default()), ..Effects::default() });
    assert!(apply.needs_retry());
    apply.kernel().log.clear();
    let rules = mk_rules(9, &[1]);
    let names = BTreeMap::from([((identity(), ip("203.0.113.1")), Some(rules))]);
    let outcome = apply.write_learned(names);
    assert!(outcome.failures.is_empty() && outcome.unwritten.is_empty());
    assert_eq!(apply.opened((identity(), ip("203.0.113.1"))), Some(rules));
    assert_eq!(apply.kernel().log, ["names"]);
    assert!(apply.needs_retry(), "the owner's, and not the lookups'");
}

/// An address or a service that the kernel does not have may be anybody's: until it has, what is not
/// found is closed.
#[test]
fn missing_address_or_service_closes_what_is_not_found_until_it_is_written() {
    let address = Effects {
        ipcache: BTreeMap::from([(ip("10.244.1.6"), Some(identity()))]),
        ..Effects::default()
    };
    let key = ServiceKey { address: ip("10.96.0.80").into(), port: 80, protocol: 6, padding: 0 };
    let services = BTreeMap::from([(key, ServiceEntry::default())]);
    let service = Effects { services: Some(Arc::new(services.clone())), ..Effects::default() };
    for (effects, what) in [(address, "an address"), (service, "a service")] {
        for failing in [1..2, 1..3] {
            let mut apply = mk_apply();
            apply.apply(mk_first());
            let calls = apply.kernel().calls;
            apply.kernel().failing = failing.clone().map(|call| calls + call).collect();
            let outcome = apply.apply(effects.clone());
            assert_eq!(outcome.failures.len(), failing.len(), "{what}: {:?}", outcome.failures);
            assert_eq!(apply.kernel().is_incomplete, failing.len() == 1, "{what}: {failing:?}");
            assert!(apply.needs_retry(), "{what}: {failing:?}");
            assert_eq!(apply.apply(Effects::default()).failures, Vec::<String>::new());
            assert!(!apply.needs_retry(), "{what}: {failing:?}");
            let kernel = apply.into_kernel();
            assert!(!kernel.is_incomplete, "{what}: {failing:?}");
            let is_written =
                kernel.ipcache.contains_key(&ip("10.244.1.6")) || kernel.services == services;
            assert!(is_written, "{what}: {failing:?}");
        }
    }
}

#[test]
fn a_take_over_keeps_the_flows_of_endpoints_that_are_the_same() {
    let mut first = mk_apply();
    first.apply(mk_first());
    let mut kernel = first.into_kernel();
    kernel.endpoints.insert(99, EndpointRow { ifindex: 99, ..kernel.endpoints[&LINK].clone() });
    let (rows, tables) = (kernel.endpoints.clone(), kernel.tables.clone());
    let before = rows[&LINK].clone();

    let mut second = Apply::new(kernel, rows, tables, 1);
    second.apply(mk_first());
    second.finish_take_over(Unknown::Go);
    let kernel = second.into_kernel();
    let after = &kernel.endpoints[&LINK];
    assert_eq!(after.epoch, before.epoch);
    assert!(after.generation > before.generation && after.table != before.table);
    assert_eq!(kernel.endpoints.len(), 1, "an endpoint that nobody names is gone");
    assert_eq!(kernel.tables, BTreeSet::from([after.table]));
}

#[test]
fn a_take_over_beside_unreadable_manifests_lets_no_endpoint_go() {
    let mut first = mk_apply();
    first.apply(mk_first());
    let kernel = first.into_kernel();
    let (rows, tables) = (kernel.endpoints.clone(), kernel.tables.clone());
    let mut second = Apply::new(kernel, rows.clone(), tables, 1);
    second.apply(Effects::default());
    second.finish_take_over(Unknown::Stay);
    let kernel = second.into_kernel();
    assert_eq!(kernel.endpoints, rows);
    assert!(kernel.attached.contains(&LINK));
}

/// At a take-over old and new tables are there at once, so that one may find no room.
#[test]
fn a_take_over_whose_table_finds_no_room_leaves_the_endpoint_as_it_was() {
    let mut first = mk_apply();
    first.apply(mk_first());
    let mut kernel = first.into_kernel();
    let (rows, tables) = (kernel.endpoints.clone(), kernel.tables.clone());
    let install = kernel.calls + 2;
    kernel.failing.insert(install);
    let former = kernel.ipcache.clone();
    let mut second = Apply::new(kernel, rows.clone(), tables.clone(), 1).with_former(former);
    let outcome = second.apply(mk_first());
    assert_eq!(outcome.failures.len(), 2, "the table and the pod: {:?}", outcome.failures);
    second.finish_take_over(Unknown::Go);
    assert_eq!(second.kernel().endpoints, rows);
    assert_eq!(second.kernel().tables, tables);
    assert!(second.kernel().attached.contains(&LINK));

    second.apply(mk_effects(mk_table(&[])));
    let kernel = second.into_kernel();
    assert_ne!(kernel.endpoints[&LINK].table, rows[&LINK].table);
    assert_eq!(kernel.tables, BTreeSet::from([kernel.endpoints[&LINK].table]));
}

/// A clause's number means something else in each table.
#[test]
fn names_are_not_opened_by_the_clauses_of_a_table_that_is_not_there() {
    let mut apply = mk_apply();
    apply.apply(mk_first());
    let install = apply.kernel().calls + 1;
    apply.kernel().failing.insert(install);
    apply.apply(mk_effects(mk_table(&[])));
    assert!(apply.needs_retry());

    let place = (identity(), ip("203.0.113.1"));
    let names = BTreeMap::from([(place, Some(mk_rules(9, &[1])))]);
    let outcome = apply.apply(Effects { names: names.clone(), ..Effects::default() });
    assert_eq!(outcome.unwritten, BTreeSet::from([place]));
    assert_eq!(found(apply.kernel(), "203.0.113.1"), None);

    apply.apply(mk_effects(mk_table(&[])));
    let outcome = apply.apply(Effects { names, ..Effects::default() });
    assert_eq!(outcome.unwritten, BTreeSet::new());
    assert!(found(apply.kernel(), "203.0.113.1").is_some());
}

/// A pod that is deleted by force leaves processes behind, which may send as long as they run.
#[test]
fn a_closed_interface_keeps_its_programs_and_loses_its_row_and_table() {
    for failing in [false, true] {
        let mut apply = mk_apply();
        apply.apply(mk_first());
        let calls = apply.kernel().calls;
        apply.kernel().failing.extend(failing.then_some(calls + 1));
        let outcome = apply.apply(Effects {
            endpoints: BTreeMap::from([(LINK, EndpointEffect::Close)]),
            ..Effects::default()
        });
        assert_eq!(outcome.failures.len(), usize::from(failing), "{:?}", outcome.failures);
        assert_eq!(apply.needs_retry(), failing);
        apply.apply(Effects {
            retired: BTreeSet::from([identity()]),
            ipcache: BTreeMap::from([(ip("10.244.1.5"), None)]),
            ..Effects::default()
        });
        assert!(!apply.needs_retry());
        let kernel = apply.kernel();
        assert!(kernel.endpoints.is_empty() && kernel.tables.is_empty());
        assert_eq!(kernel.attached, BTreeSet::from([LINK]));
        assert!(!kernel.log.contains(&format!("detach {LINK}")), "{:?}", kernel.log);

        let endpoints = BTreeMap::from([(LINK, EndpointEffect::Release)]);
        apply.apply(Effects { endpoints, ..Effects::default() });
        assert!(apply.into_kernel().attached.is_empty(), "gone with its interface");
    }
}

#[test]
fn a_pod_whose_policy_is_not_in_place_is_not_under_the_policy_of_the_last() {
    let mut apply = mk_apply();
    apply.apply(mk_first());
    let mut spec = mk_spec("b");
    spec.identity = Identity::new(identity().number() + 1).unwrap();
    let endpoints = BTreeMap::from([(LINK, EndpointEffect::Enforce(spec))]);
    apply.apply(Effects { endpoints, ..Effects::default() });
    assert!(apply.needs_retry());
    let kernel = apply.into_kernel();
    assert!(kernel.endpoints.is_empty(), "closed until its own is");
    assert_eq!(kernel.attached, BTreeSet::from([LINK]));
}

#[test]
fn a_take_over_closes_what_is_closed() {
    let mut first = mk_apply();
    first.apply(mk_first());
    let mut kernel = first.into_kernel();
    kernel.attached.insert(99);
    let (rows, tables) = (kernel.endpoints.clone(), kernel.tables.clone());
    let mut second = Apply::new(kernel, rows, tables, 1);
    let endpoints = [LINK, 99].map(|ifindex| (ifindex, EndpointEffect::Close));
    second.apply(Effects { endpoints: endpoints.into(), ..Effects::default() });
    second.finish_take_over(Unknown::Go);
    let kernel = second.into_kernel();
    assert!(kernel.endpoints.is_empty() && kernel.tables.is_empty());
    assert_eq!(kernel.attached, BTreeSet::from([LINK, 99]));
}

/// A table with one clause for these identities, of the shape and names of `like`.
fn mk_rows(like: &TableEffect, identities: &[u32]) -> Arc<PolicyTable> {
    let known = identities.iter().filter_map(|number| Identity::new(*number));
    let peers = ClausePeers { identities: Arc::new(known.collect()), ..ClausePeers::default() };
    let clause = Clause {
        action: ClauseAction::Forward,
        tier: ClauseTier::Namespaced,
        peers,
        ports: ClausePorts::Any,
        origins: Arc::new([]),
    };
    let egress = vec![clause];
    Arc::new(PolicyTable { egress, ..PolicyTable::clone(&like.table) })
}

/// An endpoint whose table has a clause for identity 300.
fn mk_with_rows() -> (Apply<Memory>, TableEffect) {
    let mut apply = mk_apply();
    let mut effect = mk_table(&[]);
    effect.table = mk_rows(&effect, &[300]);
    apply.apply(mk_first());
    apply.apply(mk_effects(effect.clone()));
    apply.kernel().log.clear();
    (apply, effect)
}

fn mk_change(table: Arc<PolicyTable>) -> Effects {
    let ipcache = BTreeMap::from([(ip("10.244.2.7"), Identity::new(301))]);
    Effects { rows: BTreeMap::from([(identity(), table)]), ipcache, ..Effects::default() }
}

#[test]
fn identities_that_come_are_written_before_their_addresses_and_those_that_go_after() {
    let (mut apply, effect) = mk_with_rows();
    let before = apply.kernel().endpoints[&LINK].clone();
    let outcome = apply.apply(mk_change(mk_rows(&effect, &[301])));
    assert_eq!(outcome.failures, Vec::<String>::new());
    let expected = ["change 2 by 1 and 0", "ipcache", "change 2 by 0 and 1", "endpoint 7 table 2"];
    assert_eq!(apply.kernel().log, expected);
    let after = apply.kernel().endpoints[&LINK].clone();
    assert!(after.generation > before.generation, "live flows are judged again");
    assert_eq!(after, EndpointRow { generation: after.generation, ..before });
}

#[test]
fn a_change_of_more_than_identities_swaps_the_table() {
    let (mut apply, effect) = mk_with_rows();
    apply.apply(mk_change(mk_rows(&effect, &[])));
    let expected =
        ["install 3", "close addresses", "endpoint 7 table 3", "attach 7", "ipcache", "remove 2"];
    assert_eq!(apply.kernel().log, expected, "whom the old table does not know waits for the swap");
}

/// A table beside the one in force would take as much room again, where there is none.
#[test]
fn rows_that_cannot_be_written_are_tried_again_in_their_table() {
    for failing in [1, 3] {
        let (mut apply, mut effect) = mk_with_rows();
        let calls = apply.kernel().calls;
        apply.kernel().failing = BTreeSet::from([calls + failing]);
        effect.table = mk_rows(&effect, &[301]);
        let outcome = apply.apply(mk_change(Arc::clone(&effect.table)));
        assert!(!outcome.failures.is_empty(), "call {failing}");
        assert_eq!(apply.retry_identities(), BTreeSet::from([identity()]), "call {failing}");
        apply.kernel().log.clear();
        let outcome = apply.apply(mk_effects(effect));
        assert_eq!(outcome.failures, Vec::<String>::new(), "call {failing}");
        assert!(!apply.needs_retry(), "call {failing}");
        let kernel = apply.into_kernel();
        assert_eq!(kernel.tables, BTreeSet::from([2]), "call {failing}");
        let changes = kernel.log.iter().filter(|call| call.starts_with("change 2")).count();
        assert!(changes > 0, "call {failing}: {:?}", kernel.log);
    }
}

/// A rule that denies by labels does not meet a pod whose row is missing: the pod is closed instead.
#[test]
fn whom_a_table_lacks_is_closed_until_its_rows_fit() {
    let (mut apply, mut effect) = mk_with_rows();
    let calls = apply.kernel().calls;
    apply.kernel().failing = BTreeSet::from([calls + 1]);
    effect.table = mk_rows(&effect, &[300, 301]);
    let outcome = apply.apply(mk_change(Arc::clone(&effect.table)));
    let new = ip("10.244.2.7");
    assert_eq!(apply.kernel().closed, BTreeSet::from([new]));
    assert!(!apply.kernel().ipcache.contains_key(&new));
    let is_named = |outcome: &Outcome| {
        outcome.failures.iter().any(|failure| failure.contains("10.244.2.7 (identity 301)"))
    };
    assert!(is_named(&outcome), "{:?}", outcome.failures);

    // Who came since may be unknown to it, too; who was there before is not.
    let [later, known] = ["10.244.2.8", "10.244.2.9"].map(ip);
    let ipcache = [(later, Identity::new(302)), (known, Some(identity()))];
    let outcome = apply.apply(Effects { ipcache: ipcache.into(), ..Effects::default() });
    assert!(is_named(&outcome), "it is still so: {:?}", outcome.failures);
    assert!(outcome.failures.iter().any(|failure| failure.contains("policy table")));
    assert_eq!(apply.kernel().closed, BTreeSet::from([new, later]));
    assert_eq!(apply.kernel().ipcache[&known], identity());

    assert!(apply.needs_retry());
    let outcome = apply.apply(mk_effects(effect));
    assert_eq!(outcome.failures, Vec::<String>::new());
    let kernel = apply.into_kernel();
    assert_eq!(kernel.closed, BTreeSet::new());
    let written = [new, later].map(|address| kernel.ipcache[&address].number());
    assert_eq!(written, [301, 302]);
}

#[test]
fn a_closed_address_that_is_given_up_is_nobodys() {
    let (mut apply, effect) = mk_with_rows();
    let calls = apply.kernel().calls;
    apply.kernel().failing = BTreeSet::from([calls + 1]);
    apply.apply(mk_change(mk_rows(&effect, &[300, 301])));
    let ipcache = BTreeMap::from([(ip("10.244.2.7"), None)]);
    apply.apply(Effects { ipcache, ..Effects::default() });
    apply.apply(mk_effects(effect));
    assert!(!apply.needs_retry());
    let kernel = apply.into_kernel();
    assert!(kernel.closed.is_empty() && !kernel.ipcache.contains_key(&ip("10.244.2.7")));
}

/// The tables of an earlier agent go by its numbers until the swap.
#[test]
fn a_take_over_closes_whom_the_old_tables_would_take_for_another() {
    let mut first = mk_apply();
    first.apply(mk_first());
    let mut kernel = first.into_kernel();
    kernel.log.clear();
    let [same, other] = ["10.244.1.5", "10.244.2.7"].map(ip);
    let former = BTreeMap::from([(same, identity()), (other, Identity::new(300).unwrap())]);
    let (rows, tables) = (kernel.endpoints.clone(), kernel.tables.clone());
    let mut second = Apply::new(kernel, rows, tables, 1).with_former(former);
    let mut effects = mk_first();
    effects.ipcache.insert(other, Identity::new(301));
    second.apply(effects);
    second.finish_take_over(Unknown::Go);
    let expected = [
        "resolvers",
        "install 2",
        "close addresses",
        "endpoint 7 table 2",
        "attach 7",
        "ipcache",
        "remove 1",
    ];
    assert_eq!(second.kernel().log, expected);
    assert_eq!(second.kernel().ipcache[&other].number(), 301);
}

/// An interface without programs is open.
#[test]
fn an_endpoint_that_finds_no_room_is_closed() {
    let mut apply = mk_apply();
    // Resolvers, table, address, then the endpoint.
    apply.kernel().failing = BTreeSet::from([4]);
    let outcome = apply.apply(mk_first());
    assert_eq!(outcome.failures.len(), 1, "{:?}", outcome.failures);
    assert!(apply.kernel().endpoints.is_empty());
    assert_eq!(apply.kernel().attached, BTreeSet::from([LINK]));
    apply.apply(Effects::default());
    assert!(!apply.needs_retry());
    assert!(apply.kernel().endpoints.contains_key(&LINK));
}

/// What an endpoint is to become is not forgotten over what it still is.
#[test]
fn an_endpoint_whose_every_write_fails_becomes_what_was_asked_for_last() {
    let mut apply = mk_apply();
    apply.apply(mk_first());
    let next = Identity::new(identity().number() + 1).unwrap();
    let mut spec = mk_spec("a");
    spec.identity = next;
    let mut table = mk_table(&[]);
    table.table = Arc::new(PolicyTable { identity: next, ..PolicyTable::clone(&table.table) });
    let calls = apply.kernel().calls;
    apply.kernel().failing = (calls + 1..calls + 40).collect();
    apply.apply(Effects {
        endpoints: BTreeMap::from([(LINK, EndpointEffect::Enforce(spec))]),
        tables: BTreeMap::from([(next, table.clone())]),
        retired: BTreeSet::from([identity()]),
        is_anyone_elsewhere: true,
        ..Effects::default()
    });
    apply.kernel().failing = BTreeSet::new();
    let tables = BTreeMap::from([(next, table)]);
    for _ in 0..2 {
        apply.apply(Effects { tables: tables.clone(), ..Effects::default() });
    }
    assert!(!apply.needs_retry());
    assert_eq!(apply.kernel().endpoints[&LINK].identity, next);
}

/// The row of the interface's last pod is not the next one's.
#[test]
fn an_endpoint_that_cannot_be_written_is_not_under_the_policy_of_the_last() {
    let mut apply = mk_apply();
    apply.apply(mk_first());
    let calls = apply.kernel().calls;
    apply.kernel().failing = BTreeSet::from([calls + 1]);
    let endpoints = BTreeMap::from([(LINK, EndpointEffect::Enforce(mk_spec("b")))]);
    apply.apply(Effects { endpoints, ..Effects::default() });
    assert!(apply.kernel().endpoints.is_empty(), "closed until its own is written");
    assert_eq!(apply.kernel().attached, BTreeSet::from([LINK]));
    apply.apply(Effects::default());
    assert!(apply.kernel().endpoints.contains_key(&LINK));
}

#[test]
fn flows_are_judged_again_when_somebody_gives_up_an_address() {
    let mut apply = mk_apply();
    apply.apply(mk_first());
    let before = apply.kernel().endpoints[&LINK].generation;
    let ipcache = BTreeMap::from([(ip("10.244.2.7"), None)]);
    let effects = Effects { ipcache, is_anyone_elsewhere: true, ..Effects::default() };
    apply.apply(effects);
    assert!(apply.kernel().endpoints[&LINK].generation > before);
    let before = apply.kernel().endpoints[&LINK].generation;
    apply.apply(Effects::default());
    assert_eq!(apply.kernel().endpoints[&LINK].generation, before, "once");
}
