//! What answers open, for how long, and for whom.

use super::*;

#[test]
fn ep_10_an_answer_opens_its_addresses_for_a_while() {
    let (mut state, identity) = mk_running();
    let address = ip("203.0.113.1");
    let answer = mk_answer(identity, "a.example.com", &[("203.0.113.1", 20)]);
    let (effects, taught) = state.teach(&answer, at(100)).unwrap();
    assert_eq!(taught, Taught { open_until: Some(at(125)), withheld: Vec::new() });
    let rules = effects.names[&(identity, address)].expect("open");
    assert_eq!(rules.deadline, at(125));
    assert!(!rules.fresh.is_empty() && rules.fresh == rules.live);
    assert_eq!(names(&state, identity, "203.0.113.1"), ["a.example.com"]);
    assert_eq!(state.next_deadline(), Some(at(125)));

    let effects = state.handle(Event::Tick, at(125));
    let rules = effects.names[&(identity, address)].expect("kept for live flows");
    assert!(rules.fresh.is_empty() && !rules.live.is_empty());

    let in_use = BTreeSet::from([(identity, address)]);
    let effects = state.handle(Event::Swept { since: at(130), in_use }, at(130));
    assert!(effects.names.is_empty(), "a flow lives");
    let effects = state.handle(Event::Swept { since: at(140), in_use: BTreeSet::new() }, at(140));
    assert_eq!(effects.names[&(identity, address)], None, "the last flow is gone");
}

#[test]
fn a_deadline_that_passed_and_was_not_ended_yet_closes_no_other_names_answer() {
    let (mut state, identity) = mk_running();
    let place = (identity, ip("203.0.113.1"));
    state.teach(&mk_answer(identity, "a.example.com", &[("203.0.113.1", 20)]), at(100)).unwrap();
    let answer = mk_answer(identity, "b.example.com", &[("203.0.113.1", 20)]);
    let (effects, taught) = state.teach(&answer, at(125)).unwrap();
    assert_eq!(taught.open_until, Some(at(150)));
    assert_eq!(effects.names[&place].expect("open").deadline, at(150));
}

/// What the kernel would have after these effects.
fn in_force(effects: &Effects, identity: Identity) -> impl Fn(IpAddr) -> Option<NameRules> {
    move |address| effects.names.get(&(identity, address)).copied().flatten()
}

#[test]
fn an_answer_that_says_what_is_in_force_has_to_be_taught_no_more() {
    let (mut state, identity) = mk_running();
    let addresses = [("203.0.113.1", 20), ("10.244.1.6", 20)];
    let answer = mk_answer(identity, "a.example.com", &addresses);
    assert_eq!(state.repeated(&answer, at(100), |_| None), None, "never heard of");
    let (effects, taught) = state.teach(&answer, at(100)).unwrap();
    assert_eq!(state.repeated(&answer, at(100), in_force(&effects, identity)), Some(taught));
    // From the cache, three seconds later.
    let cached = mk_answer(identity, "a.example.com", &[("203.0.113.1", 17)]);
    let known = state.repeated(&cached, at(103), in_force(&effects, identity)).unwrap();
    assert_eq!(known.open_until, Some(at(125)));
}

#[test]
fn an_answer_is_taught_whenever_it_opens_more_than_is_in_force() {
    let (mut state, identity) = mk_running();
    let answer = mk_answer(identity, "a.example.com", &[("203.0.113.1", 20)]);
    let (effects, _) = state.teach(&answer, at(100)).unwrap();
    let repeated = |answer: &Answer, seconds: u64, change: &dyn Fn(&mut NameRules)| {
        let known = in_force(&effects, identity);
        let changed = |address| known(address).map(|mut rules| (change(&mut rules), rules).1);
        state.repeated(answer, at(seconds), changed).is_some()
    };
    let as_it_is = |_: &mut NameRules| {};
    let other = mk_answer(identity, "b.example.com", &[("203.0.113.1", 20)]);
    let more = mk_answer(identity, "a.example.com", &[("203.0.113.1", 20), ("203.0.113.2", 20)]);
    let mut decided = mk_answer(identity, "unknown.test", &[("203.0.113.1", 20)]);
    decided.clauses = vec![0];
    assert!(
        repeated(&answer, 101, &as_it_is),
        "a grace of five seconds gives a second and a quarter"
    );
    assert!(!repeated(&answer, 102, &as_it_is), "a later deadline");
    assert!(!repeated(&other, 100, &as_it_is), "another name");
    assert!(!repeated(&more, 100, &as_it_is), "one address more");
    assert!(!repeated(&decided, 100, &as_it_is), "a name that the policy allows no more");
    assert!(!repeated(&answer, 100, &|rules| rules.fresh = RuleSet::EMPTY), "fewer rules");
    assert!(!repeated(&answer, 100, &|rules| rules.deadline = at(100)), "a row that has ended");
    assert!(state.repeated(&answer, at(100), |_| None).is_none(), "no row");
    assert!(state.repeated(&answer, at(101), in_force(&effects, identity)).is_some());
    state.handle(Event::Tick, at(125));
    assert!(!repeated_at(&state, &answer, &effects, 125), "what lingers opens nothing");
}

fn repeated_at(state: &State, answer: &Answer, effects: &Effects, seconds: u64) -> bool {
    state.repeated(answer, at(seconds), in_force(effects, answer.identity)).is_some()
}

#[test]
fn an_answer_whose_address_became_a_pod_is_taught_so_that_its_row_goes() {
    let (mut state, identity) = mk_running();
    let answer = mk_answer(identity, "a.example.com", &[("203.0.113.1", 20)]);
    let (effects, _) = state.teach(&answer, at(100)).unwrap();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: late, namespace: shop}\n\
               status: {podIPs: [{ip: 203.0.113.1}]}\n";
    state.handle(upsert(&format!("{OBJECTS}\n---\n{pod}")), at(101));
    assert!(!repeated_at(&state, &answer, &effects, 101));
    let (effects, taught) = state.teach(&answer, at(101)).unwrap();
    assert_eq!(effects.names[&(identity, ip("203.0.113.1"))], None);
    assert_eq!(taught.withheld, [(ip("203.0.113.1"), Withheld::NotOpened(NotOpened::Pod))]);
}

#[test]
fn ep_9_addresses_of_the_cluster_are_not_opened_by_names() {
    let (mut state, identity) = mk_running();
    let cases = [
        ("10.244.1.6", NotOpened::Pod),
        ("10.244.77.1", NotOpened::Pod),
        ("10.96.0.10", NotOpened::Service),
        ("192.0.2.1", NotOpened::Node),
        ("169.254.169.254", NotOpened::LinkLocal),
    ];
    for (address, reason) in cases {
        let answer = mk_answer(identity, "a.example.com", &[(address, 20)]);
        let (effects, taught) = state.teach(&answer, at(1)).unwrap();
        assert_eq!(taught.open_until, None, "{address}");
        assert_eq!(taught.withheld, [(ip(address), Withheld::NotOpened(reason))], "{address}");
        assert_eq!(effects.names[&(identity, ip(address))], None, "{address}");
    }
}

#[test]
fn an_answer_decided_under_a_policy_that_is_gone_opens_nothing() {
    let (mut state, identity) = mk_running();
    let policy = "apiVersion: namegate.dev/v1alpha1\nkind: EgressPolicy\n\
                  metadata: {name: apis, namespace: shop}\n\
                  spec: {podSelector: {matchLabels: {app: checkout}}}\n";
    state.handle(upsert(policy), at(2));
    let mut answer = mk_answer(identity, "a.example.com", &[("203.0.113.1", 20)]);
    answer.clauses = vec![0];
    assert!(matches!(state.teach(&answer, at(3)), Err(TeachError::Stale)));
    assert_eq!(state.next_deadline(), None, "nothing is learned");
}

#[test]
fn a_policy_change_takes_learned_addresses_along() {
    let (mut state, identity) = mk_running();
    let answer = mk_answer(identity, "a.example.com", &[("203.0.113.1", 20)]);
    state.teach(&answer, at(1)).unwrap();
    let policy = "apiVersion: namegate.dev/v1alpha1\nkind: EgressPolicy\n\
                  metadata: {name: apis, namespace: shop}\nspec:\n\
                  \x20 podSelector: {matchLabels: {app: checkout}}\n\
                  \x20 egress:\n  - to: [{fqdn: b.example.com}]\n";
    let effects = state.handle(upsert(policy), at(2));
    let rules = effects.tables[&identity].names[&ip("203.0.113.1")];
    assert_eq!(rules, NameRules::default(), "the name is allowed no more");
}

#[test]
fn a_pod_with_other_labels_keeps_what_it_learned() {
    let (mut state, identity) = mk_running();
    state.teach(&mk_answer(identity, "a.example.com", &[("203.0.113.1", 20)]), at(1)).unwrap();
    let relabelled = OBJECTS.replace("{app: checkout}, ann", "{app: checkout, tier: x}, ann");
    let effects = state.handle(upsert(&relabelled), at(2));
    let other = state.endpoints[&CHECKOUT_LINK].identity;
    assert_ne!(other, identity);
    let rules = effects.tables[&other].names[&ip("203.0.113.1")];
    assert_eq!(rules.deadline, at(26));
    assert!(!rules.fresh.is_empty());
    assert_eq!(names(&state, other, "203.0.113.1"), ["a.example.com"]);
    assert_eq!(state.learned().read().addresses(identity).count(), 0, "the old identity is gone");
}

#[test]
fn a_pod_with_other_labels_keeps_what_live_flows_of_it_may_need() {
    for is_ended in [false, true] {
        let (mut state, identity) = mk_running();
        state.teach(&mk_answer(identity, "a.example.com", &[("203.0.113.1", 20)]), at(1)).unwrap();
        if is_ended {
            state.handle(Event::Tick, at(30));
        }
        let relabelled = OBJECTS.replace("{app: checkout}, ann", "{app: checkout, tier: x}, ann");
        let effects = state.handle(upsert(&relabelled), at(40));
        let other = state.endpoints[&CHECKOUT_LINK].identity;
        let rules = effects.tables[&other].names[&ip("203.0.113.1")];
        assert!(rules.fresh.is_empty() && !rules.live.is_empty(), "{rules:?}");
        // The look began under the old labels.
        let in_use = BTreeSet::from([(identity, ip("203.0.113.1"))]);
        state.handle(Event::Swept { since: at(39), in_use }, at(41));
        assert_eq!(names(&state, other, "203.0.113.1"), ["a.example.com"], "{is_ended}");
        state.handle(Event::Swept { since: at(42), in_use: BTreeSet::new() }, at(42));
        assert_eq!(names(&state, other, "203.0.113.1"), [""; 0]);
    }
}

#[test]
fn a_look_that_takes_long_comes_to_its_end_although_others_follow() {
    let (mut state, identity) = mk_running();
    let mut in_use = BTreeSet::new();
    for number in 0..300_u16 {
        let [high, low] = number.to_be_bytes();
        let name = DnsName::parse(&format!("n{number}.example.com")).unwrap();
        let address = IpAddr::from([198, 51, high, low]);
        assert!(state.restore(identity, &name, address, at(10)));
        in_use.insert((identity, address));
    }
    let idle = DnsName::parse("idle.example.com").unwrap();
    assert!(state.restore(identity, &idle, ip("203.0.113.1"), at(11)));
    for second in 20..30 {
        state.handle(Event::Swept { since: at(second), in_use: in_use.clone() }, at(second));
    }
    assert_eq!(names(&state, identity, "203.0.113.1"), [""; 0]);
    assert_eq!(state.learned().read().addresses(identity).count(), in_use.len());
}

#[test]
fn ep_14_what_makes_room_for_an_answer_is_closed_with_it() {
    let (mut state, identity) = mk_running();
    *state.learned.write() =
        Learned::new(LearnedLimits { addresses_total: 1, ..Default::default() });
    state.teach(&mk_answer(identity, "a.example.com", &[("203.0.113.1", 20)]), at(100)).unwrap();
    let answer = mk_answer(identity, "b.example.com", &[("203.0.113.2", 5)]);
    let (effects, taught) = state.teach(&answer, at(100)).unwrap();
    assert_eq!(effects.names[&(identity, ip("203.0.113.1"))], None, "its row goes");
    assert_eq!(names(&state, identity, "203.0.113.1"), [""; 0]);
    assert!(effects.names[&(identity, ip("203.0.113.2"))].is_some());
    assert_eq!(taught.open_until, Some(at(115)), "as long as the answer's own address");
}

#[test]
fn ep_9_what_a_name_opened_is_closed_when_it_becomes_somebodys() {
    let pod = CLIENT.replace("10.244.2.7", "203.0.113.9");
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n2}\n\
                status: {addresses: [{type: InternalIP, address: 203.0.113.9}]}\n";
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: ledger, namespace: shop}\n\
                   spec: {clusterIP: 203.0.113.9, clusterIPs: [203.0.113.9], ports: [{port: 443}]}\n";
    for (whose, object) in [("a pod", &*pod), ("a node", node), ("a service", service)] {
        let (mut state, identity) = mk_running();
        let place = (identity, ip("203.0.113.9"));
        let answer = mk_answer(identity, "a.example.com", &[("203.0.113.9", 3_600)]);
        let (effects, _) = state.teach(&answer, at(2)).unwrap();
        let opened = effects.names[&place].expect("opened");

        let effects = state.handle(upsert(object), at(3));
        assert_eq!(effects.names, BTreeMap::from([(place, None)]), "{whose} has it");
        assert!(effects.is_anyone_elsewhere, "{whose}: live flows are judged again");
        let effects = state.handle(remove(object), at(4));
        assert_eq!(effects.names, BTreeMap::from([(place, Some(opened))]), "{whose} had it");
    }
}
