use proptest::prelude::*;

use super::*;

const POD: Identity = Identity::FIRST_WORKLOAD;
const OTHER: Identity = Identity::WORLD;
const ALL: usize = usize::MAX;

fn mk_name(text: &str) -> DnsName {
    let mut wire = Vec::new();
    for label in text.split('.') {
        wire.push(u8::try_from(label.len()).unwrap());
        wire.extend(label.bytes());
    }
    wire.push(0);
    DnsName::from_wire(&wire).unwrap().0
}

fn mk_addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn mk_place(identity: Identity, address: &str) -> Place {
    (identity, address.parse().unwrap())
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_nanos(seconds * 1_000_000_000)
}

fn release(learned: &mut Learned, since: Timestamp, in_use: &BTreeSet<Place>) -> BTreeSet<Place> {
    learned.release(Look::new(since, in_use.clone()), ALL).0
}

fn leases(learned: &Learned, place: Place) -> Vec<(String, Lease)> {
    learned.leases(place).map(|(name, lease)| (name.to_string(), lease)).collect()
}

/// Everything that must agree between the indexes.
fn assert_consistent(learned: &Learned) {
    let mut octets = 0;
    let mut held = 0;
    for (identity, book) in &learned.books {
        let mut names = BTreeSet::new();
        let mut addresses = BTreeSet::new();
        for pair in book.pairs() {
            let place = learned.store.place_of(pair).unwrap();
            let name = &learned.store.name(learned.store.pair(pair).unwrap().name).unwrap().name;
            assert_eq!(place.0, *identity);
            assert!(learned.leases(place).any(|(leased, _)| leased == name), "{name}");
            names.insert(name.clone());
            addresses.insert(place.1);
            octets += 60;
        }
        for (instant, pair) in &book.fresh {
            let lease = learned.store.pair(*pair).unwrap().instant.lease();
            assert_eq!(lease, Lease::Fresh { deadline: *instant });
        }
        for (instant, pair) in &book.lingering {
            let lease = learned.store.pair(*pair).unwrap().instant.lease();
            assert_eq!(lease, Lease::Lingering { since: *instant });
        }
        assert_eq!((book.names, book.addresses), (names.len(), addresses.len()), "{identity:?}");
        assert_eq!(book.next, book.fresh.first().map(|(at, _)| *at));
        assert!(learned.holders.contains(&(addresses.len(), *identity)));
        octets += names.iter().map(|name| 80 + name.as_wire().len()).sum::<usize>();
        octets += 48 * addresses.len();
        held += addresses.len();
    }
    assert_eq!(learned.octets(), octets, "octets");
    assert_eq!(learned.address_count(), held, "addresses held");
    assert_eq!(learned.holders.len(), learned.books.len());
    let due: BTreeSet<_> =
        learned.books.iter().filter_map(|(id, book)| Some((book.next?, *id))).collect();
    assert_eq!(learned.due, due);
}

#[test]
fn first_answer_says_since_when_a_name_is_known() {
    let mut learned = Learned::default();
    let (name, place) = (mk_name("a.test"), mk_place(POD, "203.0.113.1"));
    let addresses = mk_addresses(&["203.0.113.1"]);
    let learn = |learned: &mut Learned, since: Option<u64>, deadline| {
        let term = Term { since: since.map(at), deadline: at(deadline) };
        learned.learn(POD, &name, &addresses, term).unwrap();
        learned.learned_at(place, &name)
    };
    assert_eq!(learn(&mut learned, None, 10), None, "nobody said");
    assert_eq!(learn(&mut learned, Some(7), 20), Some(at(7)));
    assert_eq!(learn(&mut learned, Some(15), 30), Some(at(7)), "a later answer");
    learned.expire(at(40), ALL);
    assert_eq!(learn(&mut learned, Some(50), 60), Some(at(7)), "it lingered meanwhile");
    learned.forget(POD);
    assert_eq!(learn(&mut learned, Some(70), 80), Some(at(70)), "it was gone meanwhile");
    let other = mk_place(OTHER, "203.0.113.1");
    assert_eq!(learned.learned_at(other, &mk_name("a.test")), None);
    assert_eq!(size_of::<Pair>(), 32, "four octets say it");
}

#[test]
fn ep_10_what_one_identity_learned_is_nothing_to_another() {
    let mut learned = Learned::default();
    learned.learn(POD, &mk_name("a.test"), &mk_addresses(&["203.0.113.1"]), at(10)).unwrap();
    assert_eq!(leases(&learned, mk_place(OTHER, "203.0.113.1")), []);
    assert_consistent(&learned);
}

#[test]
fn ep_10_asking_again_extends_and_never_shortens() {
    let mut learned = Learned::default();
    let place = mk_place(POD, "203.0.113.1");
    for deadline in [10, 30, 20] {
        learned
            .learn(POD, &mk_name("a.test"), &mk_addresses(&["203.0.113.1"]), at(deadline))
            .unwrap();
    }
    let fresh = Lease::Fresh { deadline: at(30) };
    assert_eq!(leases(&learned, place), [("a.test".to_owned(), fresh)]);
    assert_eq!(learned.next_deadline(), Some(at(30)));
    assert_consistent(&learned);
}

#[test]
fn ep_11_each_name_of_an_address_expires_by_itself() {
    let mut learned = Learned::default();
    let place = mk_place(POD, "203.0.113.1");
    let addresses = mk_addresses(&["203.0.113.1"]);
    learned.learn(POD, &mk_name("a.test"), &addresses, at(10)).unwrap();
    learned.learn(POD, &mk_name("b.test"), &addresses, at(20)).unwrap();
    assert_eq!(learned.expire(at(10), ALL), BTreeSet::from([place]));
    assert_eq!(
        leases(&learned, place),
        [
            ("a.test".to_owned(), Lease::Lingering { since: at(10) }),
            ("b.test".to_owned(), Lease::Fresh { deadline: at(20) }),
        ]
    );
    assert_eq!(learned.next_deadline(), Some(at(20)));
    assert_consistent(&learned);
}

#[test]
fn ep_10_an_expired_address_lingers_until_no_flow_uses_it() {
    let mut learned = Learned::default();
    let place = mk_place(POD, "203.0.113.1");
    learned.learn(POD, &mk_name("a.test"), &mk_addresses(&["203.0.113.1"]), at(10)).unwrap();
    learned.expire(at(10), ALL);
    let nothing = BTreeSet::new();
    assert_eq!(release(&mut learned, at(10), &nothing), nothing, "the look began too early");
    assert_eq!(release(&mut learned, at(11), &BTreeSet::from([place])), nothing, "a flow lives");
    assert_eq!(release(&mut learned, at(11), &nothing), BTreeSet::from([place]));
    assert_eq!(learned.address_count(), 0);
    assert_eq!(learned.identities().count(), 0, "an empty book is gone");
    assert_consistent(&learned);
}

#[test]
fn a_lingering_name_that_answers_again_is_fresh_again() {
    let mut learned = Learned::default();
    let place = mk_place(POD, "203.0.113.1");
    let addresses = mk_addresses(&["203.0.113.1"]);
    learned.learn(POD, &mk_name("a.test"), &addresses, at(10)).unwrap();
    learned.expire(at(15), ALL);
    learned.learn(POD, &mk_name("a.test"), &addresses, at(40)).unwrap();
    let fresh = Lease::Fresh { deadline: at(40) };
    assert_eq!(leases(&learned, place), [("a.test".to_owned(), fresh)]);
    assert_eq!(release(&mut learned, at(50), &BTreeSet::new()), BTreeSet::new());
    assert_consistent(&learned);
}

fn learn(
    learned: &mut Learned,
    identity: Identity,
    name: &str,
    text: &str,
    until: u64,
) -> Vec<Place> {
    let evicted = learned.learn(identity, &mk_name(name), &mk_addresses(&[text]), at(until));
    assert_consistent(learned);
    evicted.unwrap().into_iter().collect()
}

#[test]
fn ep_14_name_with_too_many_addresses_is_refused_and_nothing_changes() {
    let mut learned = Learned::new(LearnedLimits { addresses_per_name: 2, ..Default::default() });
    learn(&mut learned, POD, "a.test", "203.0.113.1", 9);
    learn(&mut learned, POD, "a.test", "203.0.113.2", 9);
    for refused in [&["203.0.113.3"][..], &["203.0.113.1", "203.0.113.3"]] {
        let outcome = learned.learn(POD, &mk_name("a.test"), &mk_addresses(refused), at(99));
        assert_eq!(outcome, Err(LearnError::AddressesPerName { limit: 2 }));
        assert_eq!((learned.address_count(), learned.next_deadline()), (2, Some(at(9))));
        assert_consistent(&learned);
    }
    assert_eq!(learn(&mut learned, POD, "a.test", "203.0.113.2", 99), []);
    assert_eq!(learn(&mut learned, POD, "b.test", "203.0.113.3", 99), []);
}

#[test]
fn ep_14_identity_with_too_many_names_loses_its_own_that_ends_first() {
    let mut learned = Learned::new(LearnedLimits { names_per_identity: 2, ..Default::default() });
    learn(&mut learned, OTHER, "z.test", "203.0.113.9", 1);
    learn(&mut learned, POD, "late.test", "203.0.113.1", 30);
    learn(&mut learned, POD, "soon.test", "203.0.113.2", 10);
    let evicted = learn(&mut learned, POD, "new.test", "203.0.113.3", 20);
    assert_eq!(evicted, [mk_place(POD, "203.0.113.2")]);
    assert_eq!((learned.evictions(POD), learned.evictions(OTHER)), (1, 0));
    assert_eq!(learned.addresses(POD).count(), 2);
    assert_eq!(learn(&mut learned, POD, "late.test", "203.0.113.1", 40), [], "a name it holds");
}

#[test]
fn ep_10_live_flows_keep_their_names_while_fresh_ones_can_go() {
    let mut learned = Learned::new(LearnedLimits { names_per_identity: 2, ..Default::default() });
    learn(&mut learned, POD, "live.test", "203.0.113.1", 10);
    learned.expire(at(10), ALL);
    learn(&mut learned, POD, "fresh.test", "203.0.113.2", 90);
    let evicted = learn(&mut learned, POD, "new.test", "203.0.113.3", 99);
    assert_eq!(evicted, [mk_place(POD, "203.0.113.2")]);
    assert_eq!(leases(&learned, mk_place(POD, "203.0.113.1")).len(), 1);
}

#[test]
fn ep_14_address_of_too_many_names_loses_the_one_that_ends_first() {
    let mut learned = Learned::new(LearnedLimits { names_per_address: 2, ..Default::default() });
    let place = mk_place(POD, "2001:db8::1");
    learn(&mut learned, POD, "a.test", "2001:db8::1", 30);
    learn(&mut learned, POD, "b.test", "2001:db8::1", 10);
    assert_eq!(learn(&mut learned, POD, "c.test", "2001:db8::1", 5), [place]);
    let names: Vec<String> = leases(&learned, place).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["a.test", "c.test"], "the newest stays, whenever it ends");
}

#[test]
fn ep_14_flood_of_one_identity_costs_another_nothing() {
    let limits = [
        LearnedLimits { addresses_total: 100, ..Default::default() },
        LearnedLimits { octets_total: 20_000, ..Default::default() },
    ];
    for limits in limits {
        let mut learned = Learned::new(limits);
        for number in 0..10 {
            // Even what ends sooner than anything of the flood stays.
            learn(
                &mut learned,
                OTHER,
                &format!("n{number}.quiet.test"),
                &format!("203.0.113.{number}"),
                1,
            );
        }
        for number in 0..500_u32 {
            let address = IpAddr::from(number.to_be_bytes());
            let evicted = learn(
                &mut learned,
                POD,
                &format!("n{number}.flood.test"),
                &address.to_string(),
                50,
            );
            assert!(evicted.iter().all(|(identity, _)| *identity == POD), "{number}");
            assert!(learned.address_count() <= limits.addresses_total);
            assert!(learned.octets() <= limits.octets_total);
        }
        assert!(learned.evictions(POD) > 300);
        assert_eq!(learned.addresses(OTHER).count(), 10);
        // The flood holds all the room there is, and yet another name of the quiet one fits.
        let evicted = learn(&mut learned, OTHER, "more.quiet.test", "203.0.113.200", 1);
        assert!(evicted.iter().all(|(identity, _)| *identity == POD));
        assert_eq!(learned.addresses(OTHER).count(), 11);
    }
}

#[test]
fn answer_that_was_just_learned_is_never_what_makes_room() {
    let mut learned = Learned::new(LearnedLimits { addresses_total: 4, ..Default::default() });
    learn(&mut learned, POD, "old.test", "203.0.113.1", 1_000);
    let answer = mk_addresses(&["203.0.113.2", "203.0.113.3", "203.0.113.4", "203.0.113.5"]);
    let evicted = learned.learn(POD, &mk_name("new.test"), &answer, at(1)).unwrap();
    assert_eq!(evicted, BTreeSet::from([mk_place(POD, "203.0.113.1")]));
    assert_eq!(learned.addresses(POD).collect::<BTreeSet<_>>(), answer);
    let answer = mk_addresses(&["::1", "::2", "::3", "::4", "::5"]);
    let refused = learned.learn(POD, &mk_name("big.test"), &answer, at(1));
    assert_eq!(refused, Err(LearnError::AddressesTotal { limit: 4 }));
    assert_consistent(&learned);
}

#[test]
fn many_addresses_of_one_name_go_in_order() {
    let mut learned = Learned::default();
    let all: BTreeSet<IpAddr> = (0..10_000_u32).map(|n| IpAddr::from(n.to_be_bytes())).collect();
    learned.learn(POD, &mk_name("many.test"), &all, at(10)).unwrap();
    assert_eq!(learned.expire(at(10), ALL).len(), 10_000);
    assert_eq!(release(&mut learned, at(11), &BTreeSet::new()).len(), 10_000);
    assert_consistent(&learned);
    assert_eq!((learned.octets(), learned.store.room()), (0, 0));
}

#[test]
fn what_is_due_goes_in_portions() {
    let mut learned = Learned::default();
    let mut all = BTreeSet::new();
    for (identity, first) in [(POD, 0_u32), (OTHER, 100)] {
        let addresses: BTreeSet<IpAddr> =
            (first..first + 10).map(|n| IpAddr::from(n.to_be_bytes())).collect();
        learned.learn(identity, &mk_name("many.test"), &addresses, at(10)).unwrap();
        all.extend(addresses.into_iter().map(|address| (identity, address)));
    }
    let mut expired = BTreeSet::new();
    for portion in [7, 7, 6] {
        assert_eq!(learned.next_deadline(), Some(at(10)));
        let due = learned.expire(at(10), 7);
        assert_eq!(due.len(), portion);
        expired.extend(due);
        assert_consistent(&learned);
    }
    assert_eq!((expired, learned.next_deadline()), (all.clone(), None));

    let in_use: BTreeSet<Place> = all.iter().copied().step_by(3).collect();
    let mut look = Some(Look::new(at(11), in_use.clone()));
    let (mut released, mut turns) = (BTreeSet::new(), 0);
    while let Some(found) = look {
        let (idle, rest) = learned.release(found, 7);
        assert!(idle.len() <= 7);
        released.extend(idle);
        (look, turns) = (rest, turns + 1);
        assert_consistent(&learned);
    }
    assert_eq!((turns, &released | &in_use, &released & &in_use), (3, all, BTreeSet::new()));
}

#[test]
fn backlog_of_one_identity_delays_no_other() {
    let mut learned = Learned::default();
    let many: BTreeSet<IpAddr> = (0..100_u32).map(|n| IpAddr::from(n.to_be_bytes())).collect();
    learned.learn(POD, &mk_name("many.test"), &many, at(10)).unwrap();
    let one = mk_addresses(&["203.0.113.1"]);
    learned.learn(OTHER, &mk_name("one.test"), &one, at(11)).unwrap();
    let due = learned.expire(at(12), 8);
    assert!(due.len() == 8 && due.contains(&mk_place(OTHER, "203.0.113.1")), "{due:?}");
    assert_consistent(&learned);
}

#[test]
fn flood_of_names_leaves_no_room_taken() {
    let mut learned = Learned::default();
    for number in 0..1_000_u32 {
        let address = BTreeSet::from([IpAddr::from(number.to_be_bytes())]);
        learned
            .learn(OTHER, &mk_name(&format!("n{number}.stays.test")), &address, Timestamp::NEVER)
            .unwrap();
    }
    let (octets, room) = (learned.octets(), learned.store.room());
    let mut most = 0;
    for number in 0..60_000_u32 {
        let second = u64::from(number) / 1_000;
        let address = BTreeSet::from([IpAddr::from((number + 1_000_000).to_be_bytes())]);
        learned
            .learn(POD, &mk_name(&format!("n{number}.flood.test")), &address, at(second + 30))
            .unwrap();
        if number % 1_000 == 0 {
            learned.expire(at(second), ALL);
            release(&mut learned, at(second), &BTreeSet::new());
        }
        most = most.max(learned.address_count());
    }
    assert!(most > 25_000, "{most}");
    learned.expire(at(10_000), ALL);
    release(&mut learned, at(10_001), &BTreeSet::new());
    assert_eq!(learned.octets(), octets);
    assert!(learned.store.room() <= room + room / 4, "{} of {room}", learned.store.room());
    assert_consistent(&learned);
}

/// What happens to the state and to a plain model of it.
#[derive(Clone, Debug)]
enum Step {
    Learn { identity: u32, name: u8, addresses: Vec<u8>, deadline: u64 },
    Expire(u64),
    Release { before: u64, in_use: Vec<(u32, u8)> },
    Forget(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let identity = 256_u32..259;
    prop_oneof![
        6 => (identity.clone(), 0_u8..6, proptest::collection::vec(0_u8..8, 1..4), 1_u64..60).prop_map(
            |(identity, name, addresses, deadline)| Step::Learn { identity, name, addresses, deadline }),
        2 => (0_u64..60).prop_map(Step::Expire),
        2 => (0_u64..60, proptest::collection::vec((identity.clone(), 0_u8..8), 0..3))
            .prop_map(|(before, in_use)| Step::Release { before, in_use }),
        1 => identity.prop_map(Step::Forget),
    ]
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([203, 0, 113, last])
}

type Model = BTreeMap<Place, BTreeMap<DnsName, Lease>>;

/// The same without indexes, and without limits.
fn walk(model: &mut Model, step: &Step) {
    match step {
        Step::Learn { identity, name, addresses, deadline } => {
            for last in addresses {
                let place = (Identity::new(*identity).unwrap(), address(*last));
                let leases = model.entry(place).or_default();
                let known = leases.get(&mk_name(&format!("n{name}.test")));
                let deadline = match known {
                    Some(Lease::Fresh { deadline: known }) => at(*deadline).max(*known),
                    Some(Lease::Lingering { .. }) | None => at(*deadline),
                };
                leases.insert(mk_name(&format!("n{name}.test")), Lease::Fresh { deadline });
            }
        }
        Step::Expire(now) => {
            for lease in model.values_mut().flat_map(BTreeMap::values_mut) {
                if let Lease::Fresh { deadline } = *lease
                    && deadline <= at(*now)
                {
                    *lease = Lease::Lingering { since: deadline };
                }
            }
        }
        Step::Release { before, in_use } => model.retain(|place, leases| {
            let is_used = in_use.iter().any(|(identity, last)| {
                *place == (Identity::new(*identity).unwrap(), address(*last))
            });
            leases.retain(|_, lease| match *lease {
                Lease::Fresh { .. } => true,
                Lease::Lingering { since } => is_used || since >= at(*before),
            });
            !leases.is_empty()
        }),
        Step::Forget(identity) => model.retain(|(known, _), _| known.number() != *identity),
    }
}

fn take(learned: &mut Learned, step: &Step) {
    match step {
        Step::Learn { identity, name, addresses, deadline } => {
            let addresses = addresses.iter().map(|last| address(*last)).collect();
            let name = mk_name(&format!("n{name}.test"));
            learned
                .learn(Identity::new(*identity).unwrap(), &name, &addresses, at(*deadline))
                .unwrap();
        }
        Step::Expire(now) => drop(learned.expire(at(*now), ALL)),
        Step::Release { before, in_use } => {
            let in_use =
                in_use.iter().map(|(id, last)| (Identity::new(*id).unwrap(), address(*last)));
            release(learned, at(*before), &in_use.collect());
        }
        Step::Forget(identity) => drop(learned.forget(Identity::new(*identity).unwrap())),
    }
}

proptest! {
    #[test]
    fn indexes_agree_with_a_plain_model(steps in proptest::collection::vec(step(), 0..60)) {
        let (mut learned, mut model) = (Learned::default(), Model::new());
        for step in &steps {
            take(&mut learned, step);
            walk(&mut model, step);
            assert_consistent(&learned);
        }
        let mut held = Model::new();
        for identity in learned.identities() {
            for address in learned.addresses(identity) {
                let leases = learned.leases((identity, address));
                held.insert((identity, address), leases.map(|(name, lease)| (name.clone(), lease)).collect());
            }
        }
        prop_assert_eq!(held, model);
    }

    #[test]
    fn bounds_hold_whatever_comes(steps in proptest::collection::vec(step(), 0..60)) {
        let limits = LearnedLimits {
            names_per_identity: 3, names_per_address: 2, addresses_total: 6, ..Default::default()
        };
        let mut learned = Learned::new(limits);
        for step in &steps {
            take(&mut learned, step);
            assert_consistent(&learned);
            prop_assert!(learned.address_count() <= limits.addresses_total);
            prop_assert!(learned.books.values().all(|book| book.names <= limits.names_per_identity));
        }
    }
}

#[test]
fn forget_leaves_no_timer_behind() {
    let mut learned = Learned::default();
    learned.learn(POD, &mk_name("a.test"), &mk_addresses(&["203.0.113.1"]), at(10)).unwrap();
    learned.expire(at(10), ALL);
    learned.learn(POD, &mk_name("b.test"), &mk_addresses(&["203.0.113.2"]), at(20)).unwrap();
    assert_eq!(
        learned.forget(POD),
        BTreeSet::from([mk_place(POD, "203.0.113.1"), mk_place(POD, "203.0.113.2")])
    );
    assert_eq!(learned.next_deadline(), None);
    assert_consistent(&learned);
}
