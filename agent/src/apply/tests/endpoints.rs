//! Interfaces: enforced, closed, another pod's.

use super::*;

#[test]
fn another_pod_on_the_interface_inherits_no_flow() {
    let mut apply = mk_apply();
    apply.apply(mk_first());
    let before = apply.kernel().endpoints[&LINK].epoch;
    let endpoints = BTreeMap::from([(LINK, EndpointEffect::Enforce(mk_spec("b")))]);
    apply.apply(Effects { endpoints, ..Effects::default() });
    assert_ne!(apply.kernel().endpoints[&LINK].epoch, before);
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
