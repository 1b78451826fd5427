//! What answers teach, in step with the tables.

use super::*;

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

#[test]
fn learned_addresses_that_find_no_room_keep_no_pod_from_starting() {
    let mut apply = mk_apply();
    apply.apply(mk_first());
    assert!(apply.is_in_force(LINK, identity()));
    let next = apply.kernel().calls + 1;
    apply.kernel().failing = BTreeSet::from([next]);
    let rules = mk_rules(9, &[1]);
    let names = BTreeMap::from([((identity(), ip("203.0.113.1")), Some(rules))]);
    assert!(!apply.write_learned(names).failures.is_empty());
    assert!(apply.needs_retry() && apply.is_in_force(LINK, identity()));

    let next = apply.kernel().calls + 1;
    apply.kernel().failing = BTreeSet::from([next]);
    let other = mk_table(&[("203.0.113.1", mk_rules(9, &[0, 1]))]);
    apply.apply(Effects { tables: BTreeMap::from([(identity(), other)]), ..Effects::default() });
    assert!(!apply.is_in_force(LINK, identity()), "a table that is not there does");
}
