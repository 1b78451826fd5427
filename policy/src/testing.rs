//! Random clusters, policies and flows, for tests that hold one engine against another.
//!
//! Everything comes from a small town, so that selectors select, prefixes contain and ports hit
//! often enough to matter.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::dns::RefuseWith;
use crate::name::DnsName;
use crate::object::Object;
use crate::oracle::Flow;
use crate::pattern::DomainPattern;
use crate::resource::{
    BackendPort, EndpointSlice, NamedPorts, Namespace, Node, Pod, PodRef, Service, ServicePort,
};
use crate::rule::{
    Action, CidrPeer, CidrReach, Direction, DnsFilter, DnsPolicy, Entity, FqdnPeer, Isolation,
    Mode, Namespaces, Peer, Peers, Policy, PolicyKind, PolicyRef, PortMatch, PortRange, PortSet,
    Ports, Protocol, Rule, ServiceRef, Tier, Workloads,
};
use crate::selector::{Condition, Labels, Requirement, Selector};

/// Objects, what was learned, and flows to decide about.
#[derive(Clone, Debug)]
pub struct Case {
    /// Every object; no two of one kind and name, no two pods with one address.
    pub objects: Vec<Object>,
    /// The addresses of the node that decides.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Ranges of pods and services.
    pub ranges: Vec<IpNet>,
    /// Which pod learned which address for which name.
    pub learned: Vec<(PodRef, IpAddr, DnsName)>,
    /// Flows between the addresses of the town.
    pub flows: Vec<Flow>,
}

const NAMESPACES: [&str; 3] = ["default", "shop", "data"];
const PODS: usize = 6;
const WORLD: [&str; 4] = ["203.0.113.1", "203.0.113.2", "2001:db8::1", "10.20.0.9"];
const OTHERS: [&str; 8] = [
    "192.0.2.1",
    "192.0.2.2",
    "2001:db8:1::2",
    "198.51.100.9",
    "10.96.0.1",
    "10.96.0.2",
    "10.244.9.9",
    "10.244.0.1",
];
const NETS: [&str; 10] = [
    "0.0.0.0/0",
    "::/0",
    "10.0.0.0/8",
    "10.244.0.0/16",
    "10.244.0.0/30",
    "10.244.0.1/32",
    "10.96.0.0/24",
    "192.0.2.0/24",
    "203.0.113.0/31",
    "2001:db8::/32",
];
const NAMES: [&str; 3] = ["a.test", "x.a.test", "b.test"];
const PATTERNS: [&str; 5] = ["a.test", "*.a.test", "b.test", "*.test", "*"];
const PORTS: [u16; 5] = [80, 81, 443, 8080, 53];
const PORT_NAMES: [&str; 2] = ["http", "dns"];

/// Any case.
pub fn case() -> impl Strategy<Value = Case> {
    (objects(), learned(), vec(flow(), 1..100)).prop_map(|(objects, learned, flows)| Case {
        objects,
        own_addresses: BTreeSet::from([address("192.0.2.1")]),
        ranges: vec![net("10.244.0.0/16"), net("10.96.0.0/16")],
        learned,
        flows,
    })
}

fn objects() -> impl Strategy<Value = Vec<Object>> {
    let pods = (0..PODS).map(pod).collect::<Vec<_>>();
    let namespaces = subsequence(NAMESPACES.to_vec(), 0..=3)
        .prop_flat_map(|names| names.into_iter().map(namespace).collect::<Vec<_>>());
    (namespaces, pods, cluster(), vec(policy(), 0..7)).prop_map(
        |(namespaces, pods, cluster, policies)| {
            let mut objects: Vec<Object> = namespaces.into_iter().map(Object::Namespace).collect();
            objects.extend(pods.into_iter().map(Object::Pod));
            objects.extend(cluster);
            let by_name: BTreeMap<PolicyRef, Policy> =
                policies.into_iter().map(|policy| (policy.reference.clone(), policy)).collect();
            objects.extend(by_name.into_values().map(Object::Policy));
            objects
        },
    )
}

fn namespace(name: &'static str) -> impl Strategy<Value = Namespace> {
    labels("team", &["red", "blue"]).prop_map(move |labels| Namespace::new(name.into(), labels))
}

/// No, or one, label `key`.
fn labels(
    key: &'static str,
    values: &'static [&'static str],
) -> impl Strategy<Value = Labels> + use<> {
    option::of(select(values))
        .prop_map(move |value| value.map(|value| (key.into(), value.into())).into_iter().collect())
}

fn pod(index: usize) -> impl Strategy<Value = Pod> {
    let ports = vec((select(PORT_NAMES.to_vec()), protocol(), select(PORTS.to_vec())), 0..3);
    let flags =
        prop_oneof![8 => Just((false, false)), 1 => Just((true, false)), 1 => Just((false, true))];
    let account = select(vec!["default", "robot"]);
    (labels("app", &["web", "db"]), ports, flags, account).prop_map(
        move |(labels, ports, (is_host_network, is_finished), account)| Pod {
            reference: pod_ref(index),
            labels: Arc::new(labels),
            annotations: BTreeMap::new(),
            service_account: account.into(),
            node_name: None,
            is_host_network,
            is_finished,
            addresses: pod_addresses(index),
            named_ports: ports
                .into_iter()
                .map(|(name, protocol, port)| ((name.into(), protocol), port))
                .collect::<NamedPorts>(),
        },
    )
}

fn pod_ref(index: usize) -> PodRef {
    PodRef {
        namespace: NAMESPACES[index % NAMESPACES.len()].into(),
        name: format!("pod-{index}").into(),
    }
}

fn pod_addresses(index: usize) -> Vec<IpAddr> {
    vec![address(&format!("10.244.0.{index}")), address(&format!("fd00:244::{index}"))]
}

/// Two nodes, two Services and their backends.
fn cluster() -> impl Strategy<Value = Vec<Object>> {
    let own = labels("zone", &["a", "b"]).prop_map(|labels| node("own", labels, &["192.0.2.1"]));
    let other = labels("zone", &["a", "b"])
        .prop_map(|labels| node("other", labels, &["192.0.2.2", "2001:db8:1::2"]));
    let backends = vec(prop_oneof![3 => select(town()), 1 => select(world())], 0..3);
    let apiserver = subsequence(vec!["192.0.2.2", "198.51.100.9"], 0..=2);
    let ports = (select(PORTS.to_vec()), option::of(select(PORTS.to_vec())));
    (own, other, backends, apiserver, ports).prop_map(
        |(own, other, backends, apiserver, (port, target))| {
            let apiserver = apiserver.into_iter().map(address).collect();
            let (kubernetes, its_slice) =
                service("default", "kubernetes", "10.96.0.2", (443, Some(443)), apiserver);
            let (ledger, ledger_slice) =
                service("shop", "ledger", "10.96.0.1", (port, target), backends);
            vec![own, other, kubernetes, its_slice, ledger, ledger_slice]
        },
    )
}

fn node(name: &str, labels: Labels, addresses: &[&str]) -> Object {
    let addresses = addresses.iter().map(|text| address(text)).collect();
    Object::Node(Node { name: name.into(), labels, addresses })
}

fn service(
    namespace: &str,
    name: &str,
    cluster_address: &str,
    (port, target): (u16, Option<u16>),
    backends: Vec<IpAddr>,
) -> (Object, Object) {
    let reference = ServiceRef { namespace: namespace.into(), name: name.into() };
    let (protocol, port_name): (_, Arc<str>) = (Protocol::Tcp, "http".into());
    let service = Service {
        reference: reference.clone(),
        labels: Labels::new(),
        cluster_addresses: vec![address(cluster_address)],
        external_addresses: Vec::new(),
        ports: vec![ServicePort { name: Arc::clone(&port_name), protocol, port }],
    };
    let slice = EndpointSlice {
        namespace: namespace.into(),
        name: format!("{name}-1").into(),
        service: Some(reference),
        addresses: backends,
        ports: vec![BackendPort { name: port_name, protocol, port: target }],
    };
    (Object::Service(service), Object::EndpointSlice(slice))
}

fn policy() -> impl Strategy<Value = Policy> {
    let mode = prop_oneof![4 => Just(Mode::Enforce), 1 => Just(Mode::Audit)];
    let isolates =
        any::<(bool, bool)>().prop_map(|(egress, ingress)| Isolation { egress, ingress });
    let reference = (
        select(vec![
            PolicyKind::EgressPolicy,
            PolicyKind::ClusterEgressPolicy,
            PolicyKind::NetworkPolicy,
        ]),
        select(vec!["p", "q", "r", "s"]),
    );
    (reference, workloads(), mode, tier(), isolates, option::of(dns()), vec(rule(), 0..5)).prop_map(
        |((kind, name), subject, mode, tier, isolates, dns, mut rules)| {
            let is_namespaced = tier == Tier::Namespaced;
            for (index, rule) in rules.iter_mut().enumerate() {
                rule.label = format!("rule-{index}").into();
                if is_namespaced && rule.action == Action::Pass {
                    rule.action = Action::Allow;
                }
                if rule.direction == Direction::Ingress {
                    keep_ingress_peers(&mut rule.peers);
                }
            }
            // Objects list denials first.
            if kind != PolicyKind::NetworkPolicy {
                rules.sort_by_key(|rule| rule.action != Action::Deny);
            }
            Policy {
                reference: PolicyRef { kind, namespace: None, name: name.into() },
                subject,
                mode,
                tier,
                isolates: if is_namespaced { isolates } else { Isolation::default() },
                dns,
                rules,
                notes: Vec::new(),
                also: Vec::new(),
            }
        },
    )
}

fn tier() -> impl Strategy<Value = Tier> {
    prop_oneof![
        2 => (0_u16..2).prop_map(|priority| Tier::Admin { priority }),
        4 => Just(Tier::Namespaced),
        1 => (0_u16..2).prop_map(|priority| Tier::Baseline { priority }),
    ]
}

fn dns() -> impl Strategy<Value = DnsPolicy> {
    select(vec![DnsFilter::Enforce, DnsFilter::Observe]).prop_map(|filter| DnsPolicy {
        filter,
        refuse_with: RefuseWith::Refused,
        names: Vec::new(),
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    let action =
        prop_oneof![4 => Just(Action::Allow), 2 => Just(Action::Deny), 1 => Just(Action::Pass)];
    let direction = select(vec![Direction::Egress, Direction::Ingress]);
    let peers = prop_oneof![1 => Just(Peers::Any), 5 => vec(peer(), 0..4).prop_map(Peers::Of)];
    let ports =
        prop_oneof![2 => Just(Ports::Any), 3 => vec(port_match(), 0..4).prop_map(Ports::Of)];
    (direction, action, peers, ports).prop_map(|(direction, action, peers, ports)| Rule {
        label: "".into(),
        direction,
        action,
        peers,
        ports,
    })
}

/// Names and Services are destinations only.
fn keep_ingress_peers(peers: &mut Peers) {
    if let Peers::Of(list) = peers {
        list.retain(|peer| !matches!(peer, Peer::Fqdn(_) | Peer::Service(_)));
    }
}

fn peer() -> impl Strategy<Value = Peer> {
    let entities = vec![
        Entity::World,
        Entity::WorldIpv4,
        Entity::WorldIpv6,
        Entity::Cluster,
        Entity::Host,
        Entity::RemoteNode,
        Entity::KubeApiserver,
        Entity::Unmanaged,
    ];
    let services = vec![("shop", "ledger"), ("default", "kubernetes"), ("shop", "gone")];
    prop_oneof![
        4 => workloads().prop_map(Peer::Workloads),
        3 => cidr().prop_map(Peer::Cidr),
        3 => fqdn().prop_map(Peer::Fqdn),
        2 => select(entities).prop_map(Peer::Entity),
        1 => select(services).prop_map(|(namespace, name)| {
            Peer::Service(ServiceRef { namespace: namespace.into(), name: name.into() })
        }),
        1 => selector("zone", &["a", "b"]).prop_map(Peer::Nodes),
    ]
}

fn workloads() -> impl Strategy<Value = Workloads> {
    let namespaces = prop_oneof![
        select(NAMESPACES.to_vec()).prop_map(|name| Namespaces::Named(name.into())),
        selector("team", &["red", "blue"]).prop_map(Namespaces::Selected),
        selector("kubernetes.io/metadata.name", &NAMESPACES).prop_map(Namespaces::Selected),
    ];
    let accounts = vec(condition(&["default", "robot"]), 0..2);
    (namespaces, selector("app", &["web", "db"]), prop_oneof![4 => Just(vec![]), 1 => accounts])
        .prop_map(|(namespaces, pods, service_accounts)| Workloads {
            namespaces,
            pods,
            service_accounts,
        })
}

fn selector(
    key: &'static str,
    values: &'static [&'static str],
) -> impl Strategy<Value = Selector> + use<> {
    vec(condition(values), 0..3).prop_map(move |conditions| {
        conditions.into_iter().map(|condition| Requirement { key: key.into(), condition }).collect()
    })
}

fn condition(values: &'static [&'static str]) -> impl Strategy<Value = Condition> + use<> {
    let some = || {
        subsequence(values.to_vec(), 1..=values.len())
            .prop_map(|values| values.into_iter().map(Arc::from).collect::<BTreeSet<_>>())
    };
    prop_oneof![
        4 => some().prop_map(Condition::In),
        2 => some().prop_map(Condition::NotIn),
        1 => Just(Condition::Exists),
        1 => Just(Condition::DoesNotExist),
    ]
}

fn cidr() -> impl Strategy<Value = CidrPeer> {
    let reach = prop_oneof![4 => Just(CidrReach::All), 1 => Just(CidrReach::World)];
    let nets: Vec<IpNet> = NETS.iter().map(|text| net(text)).collect();
    (select(nets.clone()), subsequence(nets, 0..3), reach).prop_map(|(net, mut except, reach)| {
        except.retain(|inner| net.contains(inner) && *inner != net);
        CidrPeer { net, except, reach }
    })
}

fn fqdn() -> impl Strategy<Value = FqdnPeer> {
    let patterns: Vec<DomainPattern> =
        PATTERNS.iter().filter_map(|text| DomainPattern::parse(text).ok()).collect();
    (select(patterns.clone()), subsequence(patterns, 0..2)).prop_map(|(pattern, except)| FqdnPeer {
        pattern,
        except,
        allow_private: false,
        resolves: true,
    })
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

fn port_match() -> impl Strategy<Value = PortMatch> {
    let range = (select(PORTS.to_vec()), 0_u16..3).prop_filter_map("range", |(start, length)| {
        PortRange::new(start, start.saturating_add(length)).map(PortSet::Range)
    });
    let ports = prop_oneof![
        1 => Just(PortSet::Range(PortRange::ALL)),
        4 => range,
        2 => select(PORT_NAMES.to_vec()).prop_map(|name| PortSet::Named(name.into())),
    ];
    (protocol(), ports).prop_map(|(protocol, ports)| PortMatch { protocol, ports })
}

fn learned() -> impl Strategy<Value = Vec<(PodRef, IpAddr, DnsName)>> {
    let names: Vec<DnsName> = NAMES.iter().filter_map(|text| DnsName::parse(text).ok()).collect();
    vec((0..PODS, select(world()), select(names)), 0..12).prop_map(|learned| {
        learned.into_iter().map(|(pod, address, name)| (pod_ref(pod), address, name)).collect()
    })
}

fn flow() -> impl Strategy<Value = Flow> {
    let any_address = || prop_oneof![3 => select(town()), 1 => select(world())];
    let protocol = prop_oneof![
        8 => protocol(),
        1 => Just(Protocol::Icmp),
    ];
    (any_address(), any_address(), protocol, select(PORTS.to_vec())).prop_map(
        |(source, destination, protocol, port)| {
            let port = if protocol == Protocol::Icmp { 8 } else { port };
            Flow { source, destination, protocol, port }
        },
    )
}

fn town() -> Vec<IpAddr> {
    (0..PODS).flat_map(pod_addresses).chain(OTHERS.iter().map(|text| address(text))).collect()
}

fn world() -> Vec<IpAddr> {
    WORLD.iter().map(|text| address(text)).collect()
}

/// The constants above are addresses.
fn address(text: &str) -> IpAddr {
    text.parse().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
}

/// The constants above are prefixes.
fn net(text: &str) -> IpNet {
    text.parse().unwrap_or_default()
}
