//! Pods and their interfaces: found, gone, forced away, another's.

use super::*;

#[test]
fn pods_are_looked_for_where_they_say_they_live() {
    let effects = mk_state().handle(upsert(OBJECTS), at(1));
    let wanted = effects.wanted.expect("pods to look for");
    let attachments: Vec<String> = wanted.values().map(|(a, _)| format!("{a:?}")).collect();
    assert_eq!(attachments, [r#"Namespace("/run/netns/a")"#, r#"Interface("veth-web")"#]);
    assert!(effects.endpoints.is_empty(), "nothing is enforced on an unknown interface");
    assert_eq!(effects.ipcache.len(), 3);
}

#[test]
fn a_pod_on_the_host_network_is_no_endpoint() {
    let mut state = State::new(Settings { node_name: Some("node".into()), ..mk_settings() });
    let here = "spec: {nodeName: node}\nstatus: {podIPs";
    let objects = OBJECTS.replace("status: {podIPs", here);
    let (rest, web) = objects.split_once("metadata: {name: web").unwrap();
    let web = web.replacen("nodeName: node", "nodeName: node, hostNetwork: true", 1);
    let effects = state.handle(upsert(&format!("{rest}metadata: {{name: web{web}")), at(1));
    let wanted: Vec<_> = effects.wanted.unwrap().keys().map(|(_, name)| name.clone()).collect();
    assert_eq!(wanted, ["checkout".into()]);
    let town = mk_town(&[("checkout", CHECKOUT_LINK), ("web", WEB_LINK)]);
    let effects = state.handle(Event::Town(town), at(1));
    assert_eq!(effects.endpoints.keys().collect::<Vec<_>>(), [&CHECKOUT_LINK]);
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
