//! Where Services are reached on a node, which backends have them there, and who has an address that
//! several claim.

use super::*;

/// The Service `shop/ledger`, whose `spec` and `status` go on with these lines.
fn mk_ledger(spec: &str, status: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: ledger, namespace: shop}}\n\
         spec: {{clusterIPs: [10.96.0.80], {spec}}}\nstatus: {{{status}}}\n"
    )
}

/// An address with its conditions.
type Endpoint = (&'static str, &'static str);
/// An address and a port, and the backends that have it.
type Translated = (&'static str, &'static str);

/// Backends of the ledger on port 8080.
fn mk_slice(name: &str, family: &str, endpoints: &[Endpoint]) -> String {
    let endpoints: Vec<String> = endpoints
        .iter()
        .map(|(address, conditions)| {
            format!("{{addresses: ['{address}'], conditions: {{{conditions}}}}}")
        })
        .collect();
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: {family}\n\
         metadata: {{name: ledger-{name}, namespace: shop, labels: {{kubernetes.io/service-name: ledger}}}}\n\
         endpoints: [{}]\nports: [{{port: 8080}}]\n",
        endpoints.join(", ")
    )
}

/// What the kernel is told of the ledger's TCP ports, as `address port: backends`.
fn translated(objects: &str) -> Vec<String> {
    let (mut state, _) = mk_running();
    state.handle(upsert(objects), at(2));
    let ledgers = state.services.iter().filter(|(key, _)| key.protocol == 6);
    let mut lines: Vec<String> = ledgers
        .map(|(key, entry)| {
            let backends = entry.backends.iter();
            let backends = backends
                .map(|one| format!(" {} {}", IpAddr::from(one.address), one.port))
                .collect::<Vec<_>>()
                .join(",");
            format!("{} {}:{backends}", IpAddr::from(key.address), key.port)
        })
        .collect();
    lines.sort();
    lines
}

/// The checkout, which is on this node, and a pod elsewhere.
const NEAR: &str = "10.244.1.5";
const FAR: &str = "10.244.2.9";
const READY: &str = "ready: true, serving: true, terminating: false";
const ENDING: &str = "ready: false, serving: true, terminating: true";
const PORTS: &str = "ports: [{port: 80}]";
const BOTH: &str = " 10.244.1.5 8080, 10.244.2.9 8080";
const NEAR_ONE: &str = " 10.244.1.5 8080";
const FAR_ONE: &str = " 10.244.2.9 8080";

#[test]
fn service_is_reached_where_the_node_translates_it() {
    let node_port = "ports: [{port: 80, nodePort: 30080}]";
    let external = &format!("externalIPs: [198.51.100.7], {PORTS}");
    let balanced = |mode: &str| format!("loadBalancer: {{ingress: [{{ip: 198.51.100.8{mode}}}]}}");
    let plain = &balanced("");
    let ranges = |ranges: &str| format!("loadBalancerSourceRanges: [{ranges}], {PORTS}");
    let rows: [(&str, &str, &str, &[Translated]); 17] = [
        ("cluster address", PORTS, "", &[("10.96.0.80 80", BOTH)]),
        (
            "node port: at every address of the node",
            node_port,
            "",
            &[("0.0.0.0 30080", BOTH), ("10.96.0.80 80", BOTH)],
        ),
        ("external address", external, "", &[("10.96.0.80 80", BOTH), ("198.51.100.7 80", BOTH)]),
        (
            "unspecified addresses, which stand for the node's",
            &format!("externalIPs: [0.0.0.0, '::', '::ffff:0.0.0.0'], {PORTS}"),
            "loadBalancer: {ingress: [{ip: 0.0.0.0}]}",
            &[("10.96.0.80 80", BOTH)],
        ),
        ("balancer", PORTS, plain, &[("10.96.0.80 80", BOTH), ("198.51.100.8 80", BOTH)]),
        (
            "balancer in front of nodes: mode VIP",
            PORTS,
            &balanced(", ipMode: VIP"),
            &[("10.96.0.80 80", BOTH), ("198.51.100.8 80", BOTH)],
        ),
        (
            "balancer that connects by itself: mode Proxy",
            PORTS,
            &balanced(", ipMode: Proxy"),
            &[("10.96.0.80 80", BOTH)],
        ),
        (
            "balancer by name",
            PORTS,
            "loadBalancer: {ingress: [{hostname: lb.example.com}]}",
            &[("10.96.0.80 80", BOTH)],
        ),
        (
            "internal policy Local",
            &format!("internalTrafficPolicy: Local, externalIPs: [198.51.100.7], {PORTS}"),
            plain,
            &[("10.96.0.80 80", NEAR_ONE), ("198.51.100.7 80", BOTH), ("198.51.100.8 80", BOTH)],
        ),
        (
            "external policy Local, which is not about this node's pods",
            &format!("externalTrafficPolicy: Local, externalIPs: [198.51.100.7], {node_port}"),
            plain,
            &[
                ("0.0.0.0 30080", BOTH),
                ("10.96.0.80 80", BOTH),
                ("198.51.100.7 80", BOTH),
                ("198.51.100.8 80", BOTH),
            ],
        ),
        (
            "sources that hold every pod of the node",
            &ranges("192.0.2.0/24, ' 10.244.0.0/16 '"),
            plain,
            &[("10.96.0.80 80", BOTH), ("198.51.100.8 80", BOTH)],
        ),
        (
            "sources that hold one pod of two",
            &ranges("10.244.1.5/32"),
            plain,
            &[("10.96.0.80 80", BOTH), ("198.51.100.8 80", "")],
        ),
        (
            "sources of the other family",
            &ranges("'::/0'"),
            plain,
            &[("10.96.0.80 80", BOTH), ("198.51.100.8 80", "")],
        ),
        (
            "sources that cannot be read",
            &ranges("everybody"),
            plain,
            &[("10.96.0.80 80", BOTH), ("198.51.100.8 80", "")],
        ),
        (
            "sources are the balancer's, not the external address's",
            &format!("loadBalancerSourceRanges: [203.0.113.0/24], {external}"),
            plain,
            &[("10.96.0.80 80", BOTH), ("198.51.100.7 80", BOTH), ("198.51.100.8 80", "")],
        ),
        (
            "two ports, of which the backends serve the one without a name",
            "ports: [{port: 80}, {name: admin, port: 81}]",
            "",
            &[("10.96.0.80 80", BOTH), ("10.96.0.80 81", "")],
        ),
        ("headless", &format!("clusterIPs: [None], {PORTS}"), "", &[]),
    ];
    for (name, spec, status, expected) in rows {
        let slice = mk_slice("v4", "IPv4", &[(NEAR, READY), (FAR, READY)]);
        let mut ledger = mk_ledger(spec, status);
        if name == "headless" {
            ledger = ledger.replace("clusterIPs: [10.96.0.80], ", "");
        }
        let expected: Vec<String> =
            expected.iter().map(|(at, backends)| format!("{at}:{backends}")).collect();
        assert_eq!(translated(&format!("{ledger}{slice}")), expected, "{name}");
    }
}

/// KEP-1669: those that end serve as long as nobody else does, on the node and in the cluster each.
#[test]
fn backends_that_end_serve_where_none_is_ready() {
    let rows: [(&str, [Endpoint; 2], &str, &str); 10] = [
        ("both ready", [(NEAR, READY), (FAR, READY)], BOTH, NEAR_ONE),
        ("the near one ends", [(NEAR, ENDING), (FAR, READY)], FAR_ONE, NEAR_ONE),
        ("the far one ends", [(NEAR, READY), (FAR, ENDING)], NEAR_ONE, NEAR_ONE),
        ("both end", [(NEAR, ENDING), (FAR, ENDING)], BOTH, NEAR_ONE),
        ("the near one is not there", [("10.244.2.8", ENDING), (FAR, READY)], FAR_ONE, ""),
        (
            "one ends and serves no more",
            [(NEAR, "ready: false, serving: false, terminating: true"), (FAR, ENDING)],
            FAR_ONE,
            "",
        ),
        (
            "one is not ready, and does not end either",
            [(NEAR, "ready: false, serving: true, terminating: false"), (FAR, ENDING)],
            FAR_ONE,
            "",
        ),
        ("nothing is said", [(NEAR, ""), (FAR, ENDING)], NEAR_ONE, NEAR_ONE),
        (
            "it is not said whether they serve",
            [(NEAR, "ready: false"), (FAR, "ready: false, terminating: true")],
            FAR_ONE,
            "",
        ),
        (
            "ready whatever ends, as with publishNotReadyAddresses",
            [(NEAR, "ready: true, serving: false, terminating: true"), (FAR, READY)],
            BOTH,
            NEAR_ONE,
        ),
    ];
    for (name, endpoints, all, local) in rows {
        let slice = mk_slice("v4", "IPv4", &endpoints);
        for (policy, expected) in [("Cluster", all), ("Local", local)] {
            let ledger = mk_ledger(&format!("internalTrafficPolicy: {policy}, {PORTS}"), "");
            let expected = [format!("10.96.0.80 80:{expected}")];
            assert_eq!(translated(&format!("{ledger}{slice}")), expected, "{name}: {policy}");
        }
    }
}

#[test]
fn each_family_has_its_backends() {
    let objects = [
        mk_ledger(PORTS, "").replace("[10.96.0.80]", "[10.96.0.80, 'fd00:10:96::80']"),
        mk_slice("v4", "IPv4", &[(FAR, READY)]),
        mk_slice("v6", "IPv6", &[("fd00:10:244:1::5", READY), ("fd00:10:244:2::9", ENDING)]),
    ];
    let expected = ["10.96.0.80 80: 10.244.2.9 8080", "fd00:10:96::80 80: fd00:10:244:1::5 8080"];
    assert_eq!(translated(&objects.concat()), expected);
}

/// It is that node which translates there, and that node which is reached.
#[test]
fn node_port_of_another_node_is_not_translated() {
    let node = |name: &str, address: &str| {
        format!(
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n\
             status: {{addresses: [{{type: InternalIP, address: {address}}}]}}\n"
        )
    };
    let objects = [
        node("node", "192.0.2.1"),
        node("other", "192.0.2.2"),
        mk_ledger("ports: [{port: 80, nodePort: 30080}]", ""),
        mk_slice("v4", "IPv4", &[(NEAR, READY), (FAR, READY)]),
    ];
    let (mut state, _) = mk_running();
    let effects = state.handle(upsert(&objects.concat()), at(2));
    assert_eq!(effects.ipcache[&ip("192.0.2.2")], Some(Identity::REMOTE_NODE));
    for (address, is_translated) in
        [("192.0.2.1", true), ("10.244.1.1", true), ("192.0.2.2", false)]
    {
        let key = ServiceKey { address: ip(address).into(), port: 30_080, protocol: 6, padding: 0 };
        assert_eq!(state.service_at(&key).is_some(), is_translated, "{address}");
    }
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
    assert_eq!(backends("0.0.0.0", 99), 0, "its node port");
    assert!(services.keys().all(|key| key.address != ip("192.0.2.1").into()), "at any address");
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

/// kube-proxy may translate it for a while yet, to whom nobody judged.
#[test]
fn what_a_service_had_is_closed_for_a_minute() {
    let objects = [mk_ledger(PORTS, ""), mk_slice("v4", "IPv4", &[(NEAR, READY)])].concat();
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: ledger, namespace: shop}\n";
    let key = |port| ServiceKey { address: ip("10.96.0.80").into(), port, protocol: 6, padding: 0 };
    let count = |state: &State, port| state.services.get(&key(port)).map(|one| one.backends.len());

    let (mut state, _) = mk_running();
    state.handle(upsert(&objects), at(10));
    let effects = state.handle(upsert(&objects.replace("port: 80}", "port: 81}")), at(20));
    assert!(effects.is_anyone_elsewhere, "the new port");
    assert_eq!((count(&state, 80), count(&state, 81)), (Some(0), Some(1)), "another port");
    let effects = state.handle(remove(service), at(30));
    assert!(effects.services.is_some() && !effects.is_anyone_elsewhere);
    assert_eq!((count(&state, 80), count(&state, 81)), (Some(0), Some(0)), "removed");
    assert_eq!(state.service_owners[&key(81)].to_string(), "shop/ledger", "for records");
    assert_eq!(state.next_deadline(), Some(at(80)));
    assert!(state.handle(Event::Tick, at(79)).services.is_none());
    let effects = state.handle(Event::Tick, at(80));
    assert!(effects.services.is_some() && effects.service_owners.is_some());
    assert_eq!((count(&state, 80), count(&state, 81)), (None, Some(0)), "each in its time");

    state.handle(upsert(&objects.replace("port: 80}", "port: 81}")), at(85));
    assert_eq!(count(&state, 81), Some(1), "there again");
    assert_eq!(state.next_deadline(), None);
    state.handle(Event::Tick, at(200));
    assert_eq!((count(&state, 80), count(&state, 81)), (None, Some(1)));
    assert!(!state.service_owners.contains_key(&key(80)));
}
