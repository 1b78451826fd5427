//! Resolvers and the search list.

use super::*;

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
