//! What an earlier agent left, taken over.

use super::*;

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
    second.apply(Effects::default());
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

/// An agent that was killed may have let a pod go and left its flows: a pod that comes to the same
/// interface must not have them.
#[test]
fn no_number_that_a_flow_left_behind_carries_is_given_again() {
    let used = Numbers { table: 30, generation: 40, epoch: 50 };
    let inherits_nothing = Apply::new(Memory::default(), BTreeMap::new(), BTreeSet::new(), 1);
    let mut first = mk_apply();
    first.apply(mk_first());
    let kernel = first.into_kernel();
    let (rows, tables) = (kernel.endpoints.clone(), kernel.tables.clone());
    let inherits_another = Apply::new(kernel, rows, tables, 1);
    for apply in [inherits_nothing, inherits_another] {
        let mut apply = apply.above(used);
        let mut effects = mk_first();
        let stranger =
            EndpointSpec { addresses: BTreeSet::from([ip("10.244.1.9")]), ..mk_spec("b") };
        effects.endpoints.insert(LINK, EndpointEffect::Enforce(stranger));
        apply.apply(effects);
        let row = &apply.kernel().endpoints[&LINK];
        assert!(row.table > 30 && row.generation > 40 && row.epoch > 50, "{row:?}");
    }
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
