use namegate_egress_bpf::abi::RuleSet;
use namegate_policy::object::ObjectRef;

use namegate_policy::dns::NameDecision;
use namegate_policy::learned::{Learned, LearnedLimits};

use super::*;
use crate::endpoints::Attachment;
use crate::testing::{mk_objects, mk_settings, mk_state, mk_town};

const OBJECTS: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: checkout, namespace: shop, labels: {app: checkout}, annotations: {namegate.dev/netns: /run/netns/a}}
status: {podIPs: [{ip: 10.244.1.5}, {ip: 'fd00:10:244:1::5'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}, annotations: {namegate.dev/interface: veth-web}}
status: {podIPs: [{ip: 10.244.1.6}]}
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ports: [{port: 53, protocol: UDP}]}
---
apiVersion: namegate.dev/v1alpha1
kind: EgressPolicy
metadata: {name: apis, namespace: shop}
spec:
  podSelector: {matchLabels: {app: checkout}}
  egress:
  - to: [{fqdn: '*.example.com'}]
    ports: [{protocol: TCP, port: 443}]
";

const CHECKOUT_LINK: u32 = 7;
const WEB_LINK: u32 = 9;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_nanos(seconds * 1_000_000_000)
}

fn upsert(text: &str) -> Event {
    Event::Objects(source::Changes { upserts: mk_objects(text), ..Default::default() })
}

fn remove(text: &str) -> Event {
    let removals: Vec<ObjectRef> = mk_objects(text).iter().map(|o| o.reference()).collect();
    Event::Objects(source::Changes { removals, ..Default::default() })
}

/// A state with both pods located, and the identity of the first.
fn mk_running() -> (State, Identity) {
    mk_running_from(mk_state())
}

fn mk_running_from(mut state: State) -> (State, Identity) {
    state.handle(upsert(OBJECTS), at(1));
    state.handle(Event::Town(mk_town(&[("checkout", CHECKOUT_LINK), ("web", WEB_LINK)])), at(1));
    let identity = state.endpoints[&CHECKOUT_LINK].identity;
    (state, identity)
}

fn mk_answer(identity: Identity, name: &str, addresses: &[(&str, u32)]) -> Answer {
    Answer {
        identity,
        name: DnsName::parse(name).unwrap(),
        clauses: Vec::new(),
        addresses: addresses.iter().map(|(address, ttl)| (ip(address), *ttl)).collect(),
    }
}

/// The names of an address, as records say them.
fn names(state: &State, identity: Identity, address: &str) -> Vec<String> {
    let learned = state.learned().read();
    let names = learned.leases((identity, ip(address))).map(|(name, _)| name.to_string());
    names.collect()
}

#[test]
fn pods_are_looked_for_where_they_say_they_live() {
    let effects = mk_state().handle(upsert(OBJECTS), at(1));
    let wanted = effects.wanted.expect("pods to look for");
    let attachments: Vec<String> = wanted.values().map(|(a, _)| format!("{a:?}")).collect();
    assert_eq!(attachments, [r#"Namespace("/run/netns/a")"#, r#"Interface("veth-web")"#]);
    assert!(effects.endpoints.is_empty(), "nothing is enforced on an unknown interface");
    assert_eq!(effects.ipcache.len(), 3);
}

/// NP-24: isolation is there with the endpoint, not after it.
#[test]
fn an_endpoint_comes_with_its_table() {
    let mut state = mk_state();
    state.handle(upsert(OBJECTS), at(1));
    let effects = state.handle(Event::Town(mk_town(&[("checkout", CHECKOUT_LINK)])), at(1));
    let spec = effects.endpoints[&CHECKOUT_LINK].spec().expect("an endpoint").clone();
    assert_eq!(spec.addresses, BTreeSet::from([ip("10.244.1.5"), ip("fd00:10:244:1::5")]));
    assert_eq!(spec.mac, Some([2; 6]));
    assert_eq!(effects.tables.keys().collect::<Vec<_>>(), [&spec.identity]);
    assert!(effects.tables[&spec.identity].table.names.is_governed());
    assert_eq!(effects.ipcache[&ip("10.244.1.1")], Some(Identity::HOST));
}

/// NP-25, NP-27: a policy that comes after its pod isolates it then, and opens it when it goes.
#[test]
fn only_tables_that_differ_are_replaced() {
    let (mut state, identity) = mk_running();
    let effects = state.handle(upsert(OBJECTS), at(2));
    assert!(effects.endpoints.is_empty() && effects.ipcache.is_empty(), "nothing differs");
    let other = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                 metadata: {name: closed, namespace: shop}\n\
                 spec: {podSelector: {matchLabels: {app: checkout}}, policyTypes: [Ingress]}\n";
    let effects = state.handle(upsert(other), at(3));
    assert_eq!(effects.tables.keys().collect::<Vec<_>>(), [&identity]);
    let effects = state.handle(remove(other), at(4));
    assert_eq!(effects.tables.keys().collect::<Vec<_>>(), [&identity]);
}

#[test]
fn a_pod_that_vanishes_takes_everything_with_it() {
    let (mut state, identity) = mk_running();
    state.teach(&mk_answer(identity, "a.example.com", &[("203.0.113.1", 20)]), at(2)).unwrap();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: checkout, namespace: shop}\n";
    let effects = state.handle(remove(pod), at(3));
    assert_eq!(effects.endpoints[&CHECKOUT_LINK], EndpointEffect::Release);
    assert_eq!(effects.retired, BTreeSet::from([identity]));
    assert_eq!(effects.ipcache[&ip("10.244.1.5")], None);
    assert_eq!(names(&state, identity, "203.0.113.1"), [""; 0]);
    assert_eq!(state.next_deadline(), None);
}

/// A state of the node `node`, with both pods there and located.
fn mk_in_cluster() -> (State, Identity) {
    let mut state = State::new(Settings { node_name: Some("node".into()), ..mk_settings() });
    let objects = OBJECTS.replace("status: {podIPs", "spec: {nodeName: node}\nstatus: {podIPs");
    state.handle(upsert(&objects), at(1));
    state.handle(Event::Town(mk_town(&[("checkout", CHECKOUT_LINK), ("web", WEB_LINK)])), at(1));
    let identity = state.endpoints[&CHECKOUT_LINK].identity;
    (state, identity)
}

const CHECKOUT: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: checkout, namespace: shop}\n";

/// What is left of a picture in which no pod is looked for any more.
fn mk_interfaces(interfaces: &[u32]) -> Town {
    Town { interfaces: interfaces.iter().copied().collect(), ..mk_town(&[("web", WEB_LINK)]) }
}

#[test]
fn a_pod_deleted_by_force_is_closed_until_its_interface_goes() {
    let (mut state, identity) = mk_in_cluster();
    let effects = state.handle(remove(CHECKOUT), at(2));
    assert_eq!(effects.endpoints, BTreeMap::from([(CHECKOUT_LINK, EndpointEffect::Close)]));
    assert_eq!(effects.retired, BTreeSet::from([identity]));
    assert_eq!(effects.notices.len(), 1, "{:?}", effects.notices);
    assert!(effects.notices[0].contains("Pod shop/checkout"), "{:?}", effects.notices);
    assert!(state.closed().contains_key(&CHECKOUT_LINK));

    let same = Event::Town(mk_interfaces(&[CHECKOUT_LINK, WEB_LINK]));
    assert_eq!(state.handle(same, at(3)).endpoints, BTreeMap::new(), "it stays closed");
    let effects = state.handle(Event::Town(mk_interfaces(&[WEB_LINK])), at(4));
    assert_eq!(effects.endpoints, BTreeMap::from([(CHECKOUT_LINK, EndpointEffect::Release)]));
    assert!(state.closed().is_empty());
}

#[test]
fn a_pod_whose_interface_went_first_is_let_go() {
    let (mut state, _) = mk_in_cluster();
    let effects = state.handle(Event::Town(mk_interfaces(&[WEB_LINK])), at(2));
    assert_eq!(effects.endpoints, BTreeMap::from([(CHECKOUT_LINK, EndpointEffect::Release)]));
    let effects = state.handle(remove(CHECKOUT), at(3));
    assert!(effects.endpoints.is_empty() && effects.notices.is_empty(), "{effects:?}");
}

#[test]
fn a_closed_interface_opens_for_the_pod_that_gets_it() {
    let (mut state, _) = mk_in_cluster();
    state.handle(remove(CHECKOUT), at(2));
    let heir = "apiVersion: v1\nkind: Pod\nmetadata: {name: heir, namespace: shop}\n\
                spec: {nodeName: node}\nstatus: {podIPs: [{ip: 10.244.1.5}]}\n";
    state.handle(upsert(heir), at(3));
    let town = mk_town(&[("heir", CHECKOUT_LINK), ("web", WEB_LINK)]);
    let effects = state.handle(Event::Town(town), at(3));
    assert_eq!(&*effects.endpoints[&CHECKOUT_LINK].spec().unwrap().pod.name, "heir");
    assert!(state.closed().is_empty());
    assert_eq!(state.troubles, BTreeSet::new());
}

/// A finished pod runs nothing, and an interface whose pod cannot be found is not said to be nobody's.
#[test]
fn pods_that_are_known_are_closed_without_a_word() {
    let (mut state, _) = mk_in_cluster();
    let finished = format!("{CHECKOUT}spec: {{nodeName: node}}\nstatus: {{phase: Succeeded}}\n");
    let effects = state.handle(upsert(&finished), at(2));
    assert_eq!(effects.endpoints, BTreeMap::from([(CHECKOUT_LINK, EndpointEffect::Close)]));
    assert_eq!(effects.notices, Vec::<String>::new());
}

#[test]
fn another_pod_of_the_same_name_is_looked_for_anew() {
    let (mut state, _) = mk_in_cluster();
    let pod = |uid: &str, address: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: checkout, namespace: shop, uid: {uid}}}\n\
             spec: {{nodeName: node}}\nstatus: {{podIPs: [{address}]}}\n"
        )
    };
    let same = "{ip: 10.244.1.5}, {ip: 'fd00:10:244:1::5'}";
    let effects = state.handle(upsert(&pod("b", same)), at(2));
    let key = ("shop".into(), "checkout".into());
    let wanted = Attachment::Addresses { uid: Some("b".into()) };
    assert_eq!(effects.wanted.expect("looked for")[&key].0, wanted);

    let mut town = mk_town(&[("checkout", 21), ("web", WEB_LINK)]);
    town.interfaces.insert(CHECKOUT_LINK);
    let effects = state.handle(Event::Town(town), at(3));
    assert_eq!(effects.endpoints[&CHECKOUT_LINK], EndpointEffect::Close, "of the first");
    assert!(effects.endpoints[&21].spec().is_some(), "of the second");

    let effects = state.handle(upsert(&pod("c", "")), at(4));
    assert_eq!(effects.endpoints, BTreeMap::from([(21, EndpointEffect::Close)]), "no address yet");
}

#[test]
fn what_an_earlier_agent_enforced_is_closed_where_no_pod_is_known() {
    let (mut state, _) = mk_in_cluster();
    state.handle(Event::Town(mk_interfaces(&[21, WEB_LINK])), at(2));
    let inherited = BTreeSet::from([WEB_LINK, 21, 22]);
    let effects = state.inherit(&inherited);
    let expected = [(21, EndpointEffect::Close), (22, EndpointEffect::Release)];
    assert_eq!(effects.endpoints, BTreeMap::from(expected));
    let effects = state.handle(Event::Town(mk_interfaces(&[WEB_LINK])), at(3));
    assert_eq!(effects.endpoints, BTreeMap::from([(21, EndpointEffect::Release)]));

    let (mut state, _) = mk_running();
    let effects = state.inherit(&BTreeSet::from([CHECKOUT_LINK, 21])).endpoints;
    let expected = BTreeMap::from([(21, EndpointEffect::Release)]);
    assert_eq!(effects, expected, "whose manifest is gone is let go");
}

#[test]
fn an_interface_that_comes_back_is_an_endpoint_again() {
    let (mut state, _) = mk_running();
    let gone = state.handle(Event::Town(mk_town(&[("web", WEB_LINK)])), at(2));
    assert_eq!(gone.endpoints[&CHECKOUT_LINK], EndpointEffect::Release);
    let town = mk_town(&[("checkout", 12), ("web", WEB_LINK)]);
    let back = state.handle(Event::Town(town), at(3));
    assert!(back.endpoints[&12].spec().is_some());
    assert_eq!(back.tables.len(), 1);
}

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
fn troubles_are_told_once() {
    let mut state = mk_state();
    let pods = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: x, annotations: {namegate.dev/netns: /n}}\n\
                status: {podIPs: [{ip: 10.244.1.5}]}\n---\n\
                apiVersion: v1\nkind: Pod\nmetadata: {name: b, namespace: x, annotations: {namegate.dev/netns: /m}}\n\
                status: {podIPs: [{ip: 10.244.1.5}]}\n---\n\
                apiVersion: v1\nkind: Pod\nmetadata: {name: c, namespace: x, annotations: {namegate.dev/netns: /o}}\n";
    let first = state.handle(upsert(pods), at(1));
    let told = |part: &str| first.notices.iter().filter(|notice| notice.contains(part)).count();
    assert_eq!(told("Pod x/b: status.podIPs: 10.244.1.5 belongs to Pod x/a"), 1);
    assert_eq!(told("Pod x/c: status.podIPs: the pod has no addresses"), 1);
    assert_eq!(first.notices.len(), 2, "{:?}", first.notices);

    let mut town = Town::default();
    let missing = Err("network namespace /n: no such file".into());
    town.pods.insert(("x".into(), "a".into()), missing);
    let second = state.handle(Event::Town(town.clone()), at(2));
    assert_eq!(second.notices, ["Pod x/a: network namespace /n: no such file"]);
    assert!(state.handle(Event::Town(town), at(3)).notices.is_empty());
}

#[test]
fn a_pod_without_addresses_may_send_nothing() {
    let mut state = mk_state();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop, annotations: {namegate.dev/interface: v}}\n";
    state.handle(upsert(pod), at(1));
    let effects = state.handle(Event::Town(mk_town(&[("a", 5)])), at(1));
    assert_eq!(effects.endpoints[&5].spec().unwrap().addresses, BTreeSet::new());
}

#[test]
fn two_pods_on_one_interface_are_told_apart_by_order() {
    let mut state = mk_state();
    state.handle(upsert(OBJECTS), at(1));
    let effects = state.handle(Event::Town(mk_town(&[("checkout", 7), ("web", 7)])), at(1));
    assert_eq!(effects.endpoints.len(), 1);
    assert_eq!(&*effects.endpoints[&7].spec().unwrap().pod.name, "checkout");
    assert!(effects.notices[0].contains("Pod shop/web"), "{:?}", effects.notices);
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
fn ep_7_search_list_of_the_node_makes_misses() {
    let state = mk_state().with_search(vec![DnsName::parse("corp.test").unwrap()]);
    let (state, _) = mk_running_from(state);
    let table = state.tables().values().find(|table| table.names.is_governed()).unwrap();
    let decided = table.names.decide(&DnsName::parse("a.example.com.corp.test").unwrap());
    assert_eq!(decided, NameDecision::SearchMiss);
}

#[test]
fn ep_2_resolvers_are_those_of_the_cluster_the_node_and_the_operator() {
    let mut state = mk_state();
    let slots = state.handle(upsert(OBJECTS), at(1)).resolvers.expect("resolvers");
    let known = [ip("10.96.0.10"), crate::resolvers::NODE_LOCAL, ip("192.0.2.53")];
    assert_eq!(slots, (0..).zip(known).collect(), "no IPv6 resolver where there is no IPv6");
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
                 metadata: {name: kube-dns-x, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}\n\
                 endpoints: [{addresses: [10.244.1.53]}]\nports: [{name: dns, port: 53, protocol: UDP}]\n";
    let slots = state.handle(upsert(slice), at(2)).resolvers.expect("one more");
    assert_eq!(slots[&0], ip("10.96.0.10"), "slots stay");
    assert_eq!(slots[&3], ip("10.244.1.53"));
}

#[test]
fn ep_2_backends_of_the_cluster_dns_leave_room_for_the_resolvers_that_pods_are_told() {
    let mut state = mk_state();
    let backends: Vec<String> = (1..=200).map(|n| format!("10.244.1.{n}")).collect();
    let slice = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: kube-dns-x, namespace: kube-system, labels: {{kubernetes.io/service-name: kube-dns}}}}\n\
         endpoints: [{{addresses: [{}]}}]\nports: [{{name: dns, port: 53, protocol: UDP}}]\n",
        backends.join(", ")
    );
    let effects = state.handle(upsert(&format!("{OBJECTS}{slice}")), at(1));
    let slots = effects.resolvers.expect("resolvers");
    assert_eq!(slots.len(), usize::from(crate::resolvers::SLOTS));
    let held: BTreeSet<IpAddr> = slots.into_values().collect();
    for resolver in ["10.96.0.10", "169.254.20.10", "192.0.2.53", "10.244.1.125"] {
        assert!(held.contains(&ip(resolver)), "{resolver}");
    }
    assert!(effects.notices.iter().any(|text| text.contains("10.244.1.126")), "who is left out");
}

/// Who may edit Services in one namespace takes no other one's address.
#[test]
fn a_services_own_addresses_come_before_what_others_claim() {
    let claim = |name: &str, external: &str, port: u16| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: aaa}}\n\
             spec: {{clusterIP: 10.96.9.{port}, clusterIPs: [10.96.9.{port}], externalIPs: [{external}], ports: [{{port: {port}}}]}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
             metadata: {{name: {name}-x, namespace: aaa, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             endpoints: [{{addresses: [10.244.6.6]}}]\nports: [{{port: {port}}}]\n"
        )
    };
    let own = "---\napiVersion: v1\nkind: Service\nmetadata: {name: ledger, namespace: shop}\n\
               spec: {type: NodePort, clusterIP: 10.96.0.80, clusterIPs: [10.96.0.80], ports: [{port: 80, nodePort: 99}]}\n";
    let (cluster, node) = (claim("a", "10.96.0.80", 80), claim("b", "192.0.2.1", 99));
    let free = claim("c", "198.51.100.7", 81);
    let (mut state, _) = mk_running();
    let effects = state.handle(upsert(&format!("{own}{cluster}{node}{free}")), at(2));
    let services = effects.services.expect("services");
    let backends = |address: &str, port| {
        let key = ServiceKey { address: ip(address).into(), port, protocol: 6, padding: 0 };
        services[&key].backends.len()
    };
    assert_eq!(backends("10.96.0.80", 80), 0, "the ledger's, which has no backend");
    assert_eq!(backends("192.0.2.1", 99), 0, "its node port");
    assert_eq!(backends("198.51.100.7", 81), 1, "nobody else's");
    for (service, address) in [("aaa/a", "10.96.0.80 port 80"), ("aaa/b", "192.0.2.1 port 99")] {
        let is_it = |text: &&String| text.contains(service) && text.contains(address);
        let notice = effects.notices.iter().find(is_it).expect("said");
        assert!(notice.contains("shop/ledger"), "{notice}");
    }
}

const CLIENT: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
status: {podIPs: [{ip: 10.244.2.7}]}
";

/// Only clients may come to the pod `checkout`.
const CLIENTS_ONLY: &str = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: clients, namespace: shop}
spec: {podSelector: {matchLabels: {app: checkout}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}
";

#[test]
fn a_pod_changes_only_the_rows_that_mean_it() {
    let (mut state, identity) = mk_running();
    let effects = state.handle(upsert(CLIENTS_ONLY), at(2));
    assert_eq!(effects.tables.keys().collect::<Vec<_>>(), [&identity]);

    let effects = state.handle(upsert(CLIENT), at(3));
    assert!(effects.tables.is_empty() && effects.is_anyone_elsewhere);
    assert_eq!(effects.rows.keys().collect::<Vec<_>>(), [&identity]);
    let client = effects.ipcache[&ip("10.244.2.7")].expect("known");
    assert!(effects.rows[&identity].ingress[0].peers.identities.contains(client));

    let second = CLIENT.replace("name: client,", "name: client-2,").replace("2.7", "2.8");
    let effects = state.handle(upsert(&second), at(4));
    assert!(effects.tables.is_empty() && effects.rows.is_empty(), "the identity is known");
    assert_eq!(effects.ipcache, BTreeMap::from([(ip("10.244.2.8"), Some(client))]));
    assert!(effects.is_anyone_elsewhere, "flows to it were judged as if it were nobody's");
    let effects = state.handle(upsert(&second), at(4));
    assert!(!effects.is_anyone_elsewhere, "nothing changed");

    let relabelled = second.replace("app: client", "app: stranger");
    let effects = state.handle(upsert(&relabelled), at(5));
    assert!(effects.tables.is_empty() && effects.rows.is_empty(), "nobody means it");
    assert!(effects.is_anyone_elsewhere, "its live flows are judged again");

    let effects = state.handle(remove(CLIENT), at(6));
    assert!(effects.rows[&identity].ingress[0].peers.identities.is_empty());
    assert_eq!(effects.ipcache, BTreeMap::from([(ip("10.244.2.7"), None)]));
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

#[test]
fn a_service_at_an_address_that_had_none_has_live_flows_judged_again() {
    let (mut state, _) = mk_running();
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: ledger, namespace: shop}\n\
                   spec: {clusterIP: 10.96.0.80, clusterIPs: [10.96.0.80], ports: [{port: 80}]}\n";
    let effects = state.handle(upsert(service), at(2));
    assert!(effects.services.is_some() && effects.is_anyone_elsewhere);
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
                 metadata: {name: ledger-x, namespace: shop, labels: {kubernetes.io/service-name: ledger}}\n\
                 endpoints: [{addresses: [10.244.1.80]}]\nports: [{port: 80}]\n";
    let effects = state.handle(upsert(slice), at(3));
    assert!(effects.services.is_some());
    assert!(!effects.is_anyone_elsewhere, "flows keep the backend that they have");
}

#[test]
fn a_policy_changes_only_the_tables_of_whom_it_selects() {
    let (mut state, identity) = mk_running();
    let other = state.endpoints[&WEB_LINK].identity;
    let before = Arc::clone(&state.tables()[&other]);
    let effects = state.handle(upsert(CLIENTS_ONLY), at(2));
    assert_eq!(effects.tables.keys().collect::<Vec<_>>(), [&identity]);
    assert!(Arc::ptr_eq(&before, &state.tables()[&other]), "the other table was not looked at");
}
