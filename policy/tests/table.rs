//! Policy tables: order of precedence, resolution of ports and peers, lookups.

#![expect(clippy::unwrap_used, reason = "a test ends where an assumption fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use namegate_policy::dns::{ClusterNames, NameDecision, RefuseWith};
use namegate_policy::identity::{Identity, IdentitySet};
use namegate_policy::inventory::Inventory;
use namegate_policy::name::DnsName;
use namegate_policy::pattern::DomainPattern;
use namegate_policy::resource::{
    BackendPort, EndpointSlice, NamedPorts, Pod, PodRef, Service, ServicePort,
};
use namegate_policy::rule::{
    Action, CidrPeer, CidrReach, Direction, DnsFilter, DnsPolicy, Entity, FqdnPeer, Isolation,
    Mode, Namespaces, Peer, Peers, Policy, PolicyKind, PolicyRef, PortMatch, PortRange, PortSet,
    Ports, Protocol, Rule, ServiceRef, Tier, Workloads,
};
use namegate_policy::selector::{Labels, Requirement, Selector};
use namegate_policy::table::{
    CLAUSES_MAX, ClauseAction, ClausePorts, ClauseTier, PolicyTable, TableError, TableSource,
};

#[derive(Default)]
struct World {
    inventory: Inventory,
    policies: BTreeMap<PolicyRef, Arc<Policy>>,
}

impl World {
    fn with_pod(mut self, name: &str, address: &str, ports: &[(&str, u16)]) -> Self {
        let named = ports.iter().map(|(name, port)| ((Arc::from(*name), Protocol::Tcp), *port));
        self.inventory.upsert_pod(Pod {
            reference: mk_pod_ref(name),
            uid: None,
            labels: Arc::new(Labels::from([("app".into(), name.into())])),
            annotations: BTreeMap::new(),
            service_account: "default".into(),
            node_name: None,
            is_host_network: false,
            is_finished: false,
            addresses: vec![address.parse().unwrap()],
            named_ports: Arc::new(named.collect::<NamedPorts>()),
        });
        self
    }

    fn with_policy(mut self, policy: Policy) -> Self {
        self.policies.insert(policy.reference.clone(), Arc::new(policy));
        self
    }

    fn identity(&self, name: &str) -> Identity {
        self.inventory.identity_of(&mk_pod_ref(name)).unwrap()
    }

    fn build(&self, name: &str) -> Result<PolicyTable, TableError> {
        let names = Arc::new(ClusterNames {
            domain: DnsName::parse("cluster.local").unwrap(),
            search: vec![DnsName::parse("corp.test").unwrap()],
            ranges: vec!["10.96.0.0/16".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
        });
        let (policies, inventory) = (&self.policies, &self.inventory);
        TableSource { policies, inventory, names: &names }.build(self.identity(name))
    }

    fn table(&self, name: &str) -> PolicyTable {
        self.build(name).unwrap()
    }
}

fn mk_pod_ref(name: &str) -> PodRef {
    PodRef { namespace: "shop".into(), name: name.into() }
}

fn mk_app(app: &str) -> Workloads {
    Workloads {
        namespaces: Namespaces::Named("shop".into()),
        pods: Selector::from_iter([Requirement::equals("app", app)]),
        service_accounts: Vec::new(),
    }
}

/// Isolates the egress of `app: web`.
fn mk_policy(name: &str, rules: Vec<Rule>) -> Policy {
    Policy {
        reference: PolicyRef {
            kind: PolicyKind::EgressPolicy,
            namespace: Some("shop".into()),
            name: name.into(),
        },
        subject: mk_app("web"),
        mode: Mode::Enforce,
        tier: Tier::Namespaced,
        isolates: Isolation { egress: true, ingress: false },
        dns: Some(DnsPolicy {
            filter: DnsFilter::Enforce,
            refuse_with: RefuseWith::Refused,
            names: Vec::new(),
        }),
        rules,
        notes: Vec::new(),
        also: Vec::new(),
    }
}

fn mk_rule(action: Action, peers: Peers, ports: Ports) -> Rule {
    Rule { label: "egress[0]".into(), direction: Direction::Egress, action, peers, ports }
}

fn mk_cidr(net: &str) -> Peer {
    Peer::Cidr(CidrPeer { net: net.parse().unwrap(), except: Vec::new(), reach: CidrReach::All })
}

fn mk_fqdn(pattern: &str) -> Peer {
    Peer::Fqdn(FqdnPeer {
        pattern: DomainPattern::parse(pattern).unwrap(),
        except: Vec::new(),
        allow_private: false,
        resolves: true,
    })
}

fn mk_port(port: u16) -> PortMatch {
    PortMatch { protocol: Protocol::Tcp, ports: PortSet::Range(PortRange::single(port)) }
}

fn mk_named(name: &str) -> Ports {
    Ports::Of(vec![PortMatch { protocol: Protocol::Tcp, ports: PortSet::Named(name.into()) }])
}

fn actions(table: &PolicyTable) -> Vec<(ClauseAction, ClauseTier)> {
    table.egress.iter().map(|clause| (clause.action, clause.tier)).collect()
}

fn single(port: u16) -> ClausePorts {
    ClausePorts::Of(vec![(Protocol::Tcp, PortRange::single(port))])
}

#[test]
fn np_1_an_unselected_pod_is_open_and_says_so_by_a_clause() {
    let world =
        World::default().with_pod("db", "10.244.1.7", &[]).with_policy(mk_policy("p", vec![]));
    let table = world.table("db");
    assert_eq!(actions(&table), [(ClauseAction::Forward, ClauseTier::Open)]);
    assert!(!table.names.is_governed(), "EP-2: nothing selects it");
}

#[test]
fn np_6_isolation_without_rules_is_one_clause_that_drops() {
    let world =
        World::default().with_pod("web", "10.244.1.5", &[]).with_policy(mk_policy("p", vec![]));
    let table = world.table("web");
    assert_eq!(actions(&table), [(ClauseAction::Drop, ClauseTier::Namespaced)]);
    assert_eq!(table.ingress.len(), 1, "EP-1: ingress is untouched");
    assert_eq!(table.ingress[0].action, ClauseAction::Forward);
}

#[test]
fn denials_stand_before_allowances_and_enforced_ones_before_audited() {
    let deny = || mk_rule(Action::Deny, Peers::Of(vec![mk_cidr("192.0.2.0/24")]), Ports::Any);
    let allow = || mk_rule(Action::Allow, Peers::Any, Ports::Any);
    let audited = Policy { mode: Mode::Audit, ..mk_policy("a", vec![allow(), deny()]) };
    let world = World::default()
        .with_pod("web", "10.244.1.5", &[])
        .with_policy(audited)
        .with_policy(mk_policy("b", vec![allow(), deny()]));
    let namespaced = |action| (action, ClauseTier::Namespaced);
    assert_eq!(
        actions(&world.table("web")),
        [
            namespaced(ClauseAction::Drop),
            namespaced(ClauseAction::Audit),
            namespaced(ClauseAction::Forward),
            namespaced(ClauseAction::Forward),
            namespaced(ClauseAction::Drop),
        ]
    );
}

#[test]
fn ep_12_where_only_audit_policies_isolate_the_flow_is_remembered_and_goes_through() {
    let world = World::default()
        .with_pod("web", "10.244.1.5", &[])
        .with_policy(Policy { mode: Mode::Audit, ..mk_policy("a", vec![]) });
    assert_eq!(
        actions(&world.table("web")),
        [(ClauseAction::Audit, ClauseTier::Namespaced), (ClauseAction::Forward, ClauseTier::Open)]
    );
}

#[test]
fn tiers_are_in_order_and_ties_follow_the_name() {
    let tiered = |name, tier| Policy {
        tier,
        isolates: Isolation::default(),
        ..mk_policy(name, vec![mk_rule(Action::Deny, Peers::Any, Ports::Any)])
    };
    let world = World::default()
        .with_pod("web", "10.244.1.5", &[])
        .with_policy(tiered("z", Tier::Admin { priority: 1 }))
        .with_policy(tiered("b", Tier::Admin { priority: 2 }))
        .with_policy(tiered("a", Tier::Admin { priority: 2 }))
        .with_policy(tiered("y", Tier::Baseline { priority: 0 }));
    let table = world.table("web");
    let order: Vec<_> = table
        .egress
        .iter()
        .map(|clause| clause.origins.first().map(|origin| origin.policy.name.to_string()))
        .collect();
    assert_eq!(
        order,
        [Some("z"), Some("a"), Some("b"), Some("y"), None].map(|n| n.map(String::from))
    );
}

#[test]
fn np_17_a_named_port_is_each_destination_s_own_number() {
    let peers = Peers::Of(vec![Peer::Workloads(mk_app("db")), mk_cidr("10.244.1.0/24")]);
    let world = World::default()
        .with_pod("web", "10.244.1.5", &[])
        .with_pod("db", "10.244.2.7", &[("sql", 5432)])
        .with_pod("other", "10.244.1.8", &[("sql", 3306)])
        .with_pod("plain", "10.244.1.9", &[])
        .with_policy(mk_policy("p", vec![mk_rule(Action::Allow, peers, mk_named("sql"))]));
    let table = world.table("web");
    let [low, high, isolation] = &table.egress[..] else { panic!("{:?}", table.egress) };
    assert_eq!((&low.ports, &high.ports), (&single(3306), &single(5432)));
    assert_eq!(low.peers.cidrs.len(), 1, "the pod inside the prefix, by its address");
    assert!(low.peers.identities.is_empty());
    assert_eq!(*high.peers.identities, IdentitySet::from_iter([world.identity("db")]));
    assert_eq!(isolation.action, ClauseAction::Drop);
}

#[test]
fn np_17_an_unknown_port_name_matches_nothing() {
    let rule = mk_rule(Action::Allow, Peers::Of(vec![mk_cidr("0.0.0.0/0")]), mk_named("sql"));
    let world =
        World::default().with_pod("web", "10.244.1.5", &[]).with_policy(mk_policy("p", vec![rule]));
    assert_eq!(world.table("web").egress.len(), 1, "isolation alone");
}

#[test]
fn an_empty_list_of_peers_matches_nothing() {
    let rule = mk_rule(Action::Allow, Peers::Of(Vec::new()), Ports::Any);
    let world =
        World::default().with_pod("web", "10.244.1.5", &[]).with_policy(mk_policy("p", vec![rule]));
    assert_eq!(world.table("web").egress.len(), 1, "isolation alone");
}

#[test]
fn a_service_peer_is_its_address_on_its_port_and_its_backends_on_theirs() {
    let ledger = ServiceRef { namespace: "shop".into(), name: "ledger".into() };
    let peers = Peers::Of(vec![Peer::Service(ledger.clone())]);
    let rule = mk_rule(Action::Allow, peers, Ports::Of(vec![mk_port(443)]));
    let mut world =
        World::default().with_pod("web", "10.244.1.5", &[]).with_policy(mk_policy("p", vec![rule]));
    let port = |name: &str, port| ServicePort {
        name: name.into(),
        protocol: Protocol::Tcp,
        port,
        node_port: None,
    };
    world.inventory.upsert_service(Service {
        reference: ledger.clone(),
        labels: Labels::new(),
        cluster_addresses: vec!["10.96.0.7".parse().unwrap()],
        external_addresses: Vec::new(),
        ports: vec![port("https", 443), port("admin", 9000)],
        is_affine: false,
        is_internal_local: false,
        left_alone: BTreeSet::new(),
        restricted: BTreeSet::new(),
        sources: Vec::new(),
    });
    let backend = |name: &str, port| BackendPort {
        name: name.into(),
        protocol: Protocol::Tcp,
        port: Some(port),
    };
    world.inventory.upsert_slice(EndpointSlice {
        namespace: "shop".into(),
        name: "ledger-1".into(),
        service: Some(ledger),
        addresses: vec!["10.244.3.1".parse().unwrap(), "10.244.3.2".parse().unwrap()],
        ending: BTreeSet::new(),
        ports: vec![backend("https", 8443), backend("admin", 9001)],
    });
    let table = world.table("web");
    let [own, backends, _] = &table.egress[..] else { panic!("{:?}", table.egress) };
    assert_eq!((own.peers.cidrs.len(), &own.ports), (1, &single(443)));
    assert_eq!((backends.peers.cidrs.len(), &backends.ports), (2, &single(8443)));
}

/// Whoever may edit a Service writes its external addresses.
#[test]
fn a_service_peer_is_no_address_that_its_owner_writes_and_no_port_that_it_has_not() {
    let ledger = ServiceRef { namespace: "shop".into(), name: "ledger".into() };
    for ports in [Ports::Any, Ports::Of(vec![mk_port(443), mk_port(80)])] {
        let peers = Peers::Of(vec![Peer::Service(ledger.clone())]);
        let rule = mk_rule(Action::Allow, peers, ports.clone());
        let mut world = World::default()
            .with_pod("web", "10.244.1.5", &[])
            .with_policy(mk_policy("p", vec![rule]));
        let https = ServicePort {
            name: "https".into(),
            protocol: Protocol::Tcp,
            port: 443,
            node_port: None,
        };
        let balancer: IpAddr = "198.51.100.8".parse().unwrap();
        world.inventory.upsert_service(Service {
            reference: ledger.clone(),
            labels: Labels::new(),
            cluster_addresses: vec!["10.96.0.7".parse().unwrap()],
            external_addresses: vec!["169.254.169.254".parse().unwrap(), balancer],
            ports: vec![https],
            is_affine: false,
            is_internal_local: false,
            left_alone: BTreeSet::from([balancer]),
            restricted: BTreeSet::new(),
            sources: Vec::new(),
        });
        let table = world.table("web");
        let own = &table.egress[0];
        let nets: Vec<String> = own.peers.cidrs.iter().map(|cidr| cidr.net.to_string()).collect();
        assert_eq!(nets, ["10.96.0.7/32", "198.51.100.8/32"], "{ports:?}");
        let expected = ClausePorts::Of(vec![(Protocol::Tcp, PortRange::single(443))]);
        assert_eq!(own.ports, expected, "{ports:?}");
    }
}

#[test]
fn cl_9_a_prefix_of_the_world_leaves_out_pods() {
    let peer = CidrPeer {
        net: "10.0.0.0/8".parse().unwrap(),
        except: Vec::new(),
        reach: CidrReach::World,
    };
    let rule = mk_rule(Action::Allow, Peers::Of(vec![Peer::Cidr(peer)]), Ports::Any);
    let world =
        World::default().with_pod("web", "10.244.1.5", &[]).with_policy(mk_policy("p", vec![rule]));
    let table = world.table("web");
    let contains = |text: &str| {
        let address: IpAddr = text.parse().unwrap();
        table.egress[0].peers.cidrs[0].contains(address)
    };
    assert!(contains("10.20.0.1"));
    assert!(!contains("10.244.1.5"), "a pod");
    assert!(!contains("10.96.0.1"), "a cluster range");
}

#[test]
fn entities_are_identities() {
    let peers = Peers::Of(vec![Peer::Entity(Entity::World), Peer::Entity(Entity::Host)]);
    let world = World::default()
        .with_pod("web", "10.244.1.5", &[])
        .with_policy(mk_policy("p", vec![mk_rule(Action::Allow, peers, Ports::Any)]));
    let expected = IdentitySet::from_iter([Identity::WORLD, Identity::HOST]);
    assert_eq!(*world.table("web").egress[0].peers.identities, expected);
}

#[test]
fn ep_14_too_many_clauses_are_an_error_that_names_the_object() {
    let rules = |count| vec![mk_rule(Action::Allow, Peers::Any, Ports::Any); count];
    let world = |count| {
        World::default()
            .with_pod("web", "10.244.1.5", &[])
            .with_policy(mk_policy("p", rules(count)))
    };
    assert_eq!(world(CLAUSES_MAX - 1).table("web").egress.len(), CLAUSES_MAX);
    let error = world(CLAUSES_MAX).build("web").unwrap_err();
    assert!(error.to_string().contains("EgressPolicy shop/p"), "{error}");
}

#[test]
fn ep_2_to_ep_12_lookups() {
    let enforced = || {
        let allow = |peer| mk_rule(Action::Allow, Peers::Of(vec![peer]), Ports::Any);
        mk_policy("p", vec![allow(mk_fqdn("api.stripe.com")), allow(mk_fqdn("*.example.com"))])
    };
    let decide = |policy: Policy, name: &str| {
        let world = World::default().with_pod("web", "10.244.1.5", &[]).with_policy(policy);
        world.table("web").names.decide(&DnsName::parse(name).unwrap())
    };
    let label = |decision| match decision {
        NameDecision::Allowed { clauses, origin, audit } => {
            format!("allowed {clauses:?} by rule {} audit {audit}", origin.is_some())
        }
        NameDecision::SearchMiss => "search miss".to_owned(),
        NameDecision::Refused { with, filters } => format!("{with:?} by {}", filters.len()),
    };
    let cases = [
        ("api.stripe.com", "allowed [0] by rule true audit false", "EP-2"),
        ("a.b.example.com", "allowed [1] by rule true audit false", "EP-4"),
        ("example.com", "Refused by 1", "EP-4: never the apex"),
        ("web.shop.svc.cluster.local", "allowed [] by rule false audit false", "EP-6"),
        ("7.0.96.10.in-addr.arpa", "allowed [] by rule false audit false", "EP-6: reverse"),
        ("96.10.in-addr.arpa", "allowed [] by rule false audit false", "EP-6: reverse zone"),
        ("10.in-addr.arpa", "Refused by 1", "EP-6: wider than any range"),
        ("7.0.97.10.in-addr.arpa", "Refused by 1", "EP-6: another range"),
        ("1.7.0.96.10.in-addr.arpa", "Refused by 1", "EP-6: too many labels"),
        ("007.0.96.10.in-addr.arpa", "Refused by 1", "EP-6: no octet"),
        ("6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa", "Refused by 1", "EP-6: zone above the range"),
        ("api.stripe.com.corp.test", "search miss", "EP-7"),
        ("corp.test", "Refused by 1", "EP-7: the suffix itself"),
        ("evil.test", "Refused by 1", "EP-2"),
        ("API.Stripe.COM.", "allowed [0] by rule true audit false", "EP-3: case and final dot"),
        (r"\097pi.stripe.com", "allowed [0] by rule true audit false", "EP-3: an escaped letter"),
        (r"api\.stripe.com", "Refused by 1", "EP-3: a dot inside a label"),
        (r"api\.stripe\.com", "Refused by 1", "EP-3: the whole name in one label"),
        (r"api.stripe.com\000", "Refused by 1", "EP-3: a zero octet"),
        (r"api.stripe.com\000.evil.test", "Refused by 1", "EP-3: a zero octet before the rest"),
        (r"api.stripe.com\.evil.test", "Refused by 1", "EP-3: a dot before the rest"),
        (r"evil\.example.com", "Refused by 1", "EP-4: a label that ends in the suffix"),
        (r"evil\000.example.com", "allowed [1] by rule true audit false", "EP-3: any octet below"),
        (
            r"*.example.com",
            "allowed [1] by rule true audit false",
            "EP-4: a star that is asked for",
        ),
        (r"x\.svc.cluster\.local", "Refused by 1", "EP-6: dots inside labels"),
        (r"corp\.test", "Refused by 1", "EP-7: a dot inside a label"),
    ];
    for (name, expected, why) in cases {
        assert_eq!(label(decide(enforced(), name)), expected, "{why}: {name}");
    }
    let reverse = "a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa";
    assert_eq!(label(decide(enforced(), reverse)), "allowed [] by rule false audit false", "EP-6");

    let audited = Policy { mode: Mode::Audit, ..enforced() };
    assert_eq!(
        label(decide(audited, "evil.test")),
        "allowed [] by rule true audit true",
        "EP-12: only an Audit policy refuses"
    );
    let mut observed = enforced();
    observed.dns = Some(DnsPolicy {
        filter: DnsFilter::Observe,
        refuse_with: RefuseWith::NxDomain,
        names: Vec::new(),
    });
    assert_eq!(
        label(decide(observed, "evil.test")),
        "allowed [] by rule false audit false",
        "EP-2: every name resolves"
    );
    let mut other = enforced();
    other.dns = other.dns.map(|dns| DnsPolicy { refuse_with: RefuseWith::NxDomain, ..dns });
    assert_eq!(label(decide(other, "evil.test")), "NxDomain by 1", "refuseWith");
    let mut empty = enforced();
    empty.dns = empty.dns.map(|dns| DnsPolicy { refuse_with: RefuseWith::Empty, ..dns });
    assert_eq!(label(decide(empty, "evil.test")), "Empty by 1", "refuseWith");
}

#[test]
fn ep_9_private_addresses_are_opened_only_for_the_peer_that_allows_them() {
    let Peer::Fqdn(plain) = mk_fqdn("*.corp.example") else { panic!("an fqdn") };
    let private = FqdnPeer { allow_private: true, ..plain.clone() };
    let allow = |peer| mk_rule(Action::Allow, Peers::Of(vec![Peer::Fqdn(peer)]), Ports::Any);
    let policy = mk_policy("names", vec![allow(plain), allow(private)]);
    let world = World::default().with_pod("web", "10.244.1.5", &[]).with_policy(policy);
    let names = world.table("web").names;
    let name = DnsName::parse("git.corp.example").unwrap();
    assert_eq!(names.clauses(&name), [0, 1]);
    assert_eq!(names.private_clauses(&name), [1]);
}
