//! Tables come whole, and go after what they served.

use super::*;

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
    let expected = ["install 2", "endpoint 7 table 2", "remove 1"];
    assert_eq!(apply.kernel().log, expected);
    let after = apply.kernel().endpoints[&LINK].clone();
    assert!(after.generation > before.generation, "flows are judged again");
    assert_eq!(after.epoch, before.epoch, "flows stay");
}

/// A packet may be under way in the table that an endpoint just left.
#[test]
fn a_table_outlives_the_first_look_after_its_last_use() {
    let mut apply = mk_apply();
    apply.enforce(mk_first());
    apply.clear_away();
    apply.enforce(mk_effects(mk_table(&[])));
    assert_eq!(apply.clear_away().removed_tables, BTreeSet::new());
    apply.enforce(mk_effects(mk_table(&[])));
    let call = apply.kernel().calls + 1;
    apply.kernel().failing.insert(call);
    assert_eq!(apply.clear_away().failures.len(), 1, "it is told that it stays");
    assert!(apply.needs_retry());
    assert_eq!(apply.kernel().tables, BTreeSet::from([1, 2, 3]));
    apply.enforce(Effects::default());
    assert_eq!(apply.clear_away().removed_tables, BTreeSet::from([1, 2]));
    assert_eq!(apply.kernel().tables, BTreeSet::from([3]));
    assert!(!apply.needs_retry() && apply.clear_away().removed_tables.is_empty());
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
    let expected = ["install 3", "close addresses", "endpoint 7 table 3", "ipcache", "remove 2"];
    assert_eq!(apply.kernel().log, expected, "whom the old table does not know waits for the swap");
}
