//! Resolvers, Services and the search list.

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
