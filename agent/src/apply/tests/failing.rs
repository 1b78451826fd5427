//! Writes that fail and maps without room: told, closed, healed.

use super::*;

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

#[test]
fn a_round_takes_one_number_for_all_whose_flows_are_judged_again() {
    const OTHER: u32 = LINK + 1;
    let mut apply = mk_apply();
    apply.apply(mk_first());
    let endpoints = BTreeMap::from([(OTHER, EndpointEffect::Enforce(mk_spec("b")))]);
    apply.apply(Effects { endpoints, ..Effects::default() });
    let before = apply.kernel().endpoints[&OTHER].generation;
    for round in 1..=3 {
        apply.apply(Effects { is_anyone_elsewhere: true, ..Effects::default() });
        let found = [LINK, OTHER].map(|ifindex| apply.kernel().endpoints[&ifindex].generation);
        assert_eq!(found, [before + round; 2]);
    }
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

/// A row that nobody knows any more would stay for good.
#[test]
fn an_address_that_could_not_be_deleted_goes_with_the_next_write() {
    let learned = [("203.0.113.1", mk_rules(9, &[1])), ("203.0.113.2", mk_rules(9, &[1]))];
    for (way, count) in [("learned", 1), ("table", 2), ("again", 1), ("retired", 2)] {
        let mut apply = mk_apply();
        apply.apply(mk_first());
        apply.apply(mk_effects(mk_table(&learned)));
        if way == "retired" {
            let endpoints = BTreeMap::from([(LINK, EndpointEffect::Release)]);
            apply.apply(Effects { endpoints, ..Effects::default() });
        }
        let gone = BTreeMap::from([((identity(), ip("203.0.113.1")), None)]);
        let calls = apply.kernel().calls;
        apply.kernel().failing = (calls + 1..=calls + count).collect();
        let outcome = apply.write_learned(gone);
        assert_eq!(outcome.failures.len(), 1, "{way}: {:?}", outcome.failures);
        assert_eq!(apply.kernel().names.len(), 2, "{way}");
        let again = BTreeMap::from([((identity(), ip("203.0.113.1")), Some(mk_rules(8, &[1])))]);
        match way {
            "learned" => apply.write_learned(BTreeMap::from([(
                (identity(), ip("203.0.113.2")),
                Some(mk_rules(10, &[1])),
            )])),
            "table" => {
                apply.apply(mk_effects(mk_table(&learned[1..])));
                apply.apply(mk_effects(mk_table(&learned[1..])))
            }
            "again" => apply.write_learned(again),
            _ => {
                let retired = BTreeSet::from([identity()]);
                apply.apply(Effects { retired, ..Effects::default() });
                apply.apply(Effects::default())
            }
        };
        let left: Vec<Address> = apply.kernel().names.keys().map(|key| key.address).collect();
        let expected: &[&str] = match way {
            "again" => &["203.0.113.1", "203.0.113.2"],
            "retired" => &[],
            _ => &["203.0.113.2"],
        };
        assert_eq!(left, expected.iter().map(|text| ip(text).into()).collect::<Vec<_>>(), "{way}");
    }
}
