mod cluster;
mod lessons;
mod pods;
mod services;

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
fn a_policy_changes_only_the_tables_of_whom_it_selects() {
    let (mut state, identity) = mk_running();
    let other = state.endpoints[&WEB_LINK].identity;
    let before = Arc::clone(&state.tables()[&other]);
    let effects = state.handle(upsert(CLIENTS_ONLY), at(2));
    assert_eq!(effects.tables.keys().collect::<Vec<_>>(), [&identity]);
    assert!(Arc::ptr_eq(&before, &state.tables()[&other]), "the other table was not looked at");
}
