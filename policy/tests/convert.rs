//! A converted policy decides as the Cilium one did, for random names and addresses, or a difference
//! in that direction is told.

#![expect(clippy::unwrap_used, reason = "a test ends where an assumption fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use namegate_policy::convert::{Conversion, Effect, convert};
use namegate_policy::dns::{ClusterNames, NameDecision};
use namegate_policy::identity::Identity;
use namegate_policy::inventory::Inventory;
use namegate_policy::name::DnsName;
use namegate_policy::object::{self, Object};
use namegate_policy::resource::PodRef;
use namegate_policy::rule::{Policy, Protocol};
use namegate_policy::table::{ClauseAction, ClausePorts, PolicyTable, TableSource};
use serde_json::{Value, json};

/// What becomes of a Cilium policy with these rules, and the effects that must be told.
fn cases() -> Vec<(&'static str, Value, Vec<Effect>)> {
    let dns = |names: Value| {
        json!({"toEndpoints": [{"matchLabels": {"k8s:io.kubernetes.pod.namespace": "kube-system"}}],
               "toPorts": [{"ports": [{"port": "53", "protocol": "ANY"}], "rules": {"dns": names}}]})
    };
    let web = json!([{"ports": [{"port": "443", "protocol": "TCP"}]}]);
    vec![
        (
            "names alone",
            json!([{"toFQDNs": [{"matchName": "api.a.test"}], "toPorts": web}]),
            vec![],
        ),
        (
            "lookups of the same names",
            json!([dns(json!([{"matchName": "api.a.test"}])), {"toFQDNs": [{"matchName": "api.a.test"}]}]),
            vec![],
        ),
        (
            "lookups of every name",
            json!([dns(json!([{"matchPattern": "*"}])), {"toFQDNs": [{"matchName": "api.a.test"}]}]),
            vec![],
        ),
        ("one label or more", json!([{"toFQDNs": [{"matchPattern": "**.a.test"}]}]), vec![]),
        ("every name", json!([{"toFQDNs": [{"matchPattern": "*"}], "toPorts": web}]), vec![]),
        (
            "ports of every protocol, and ranges",
            json!([{"toFQDNs": [{"matchName": "a.test"}], "toPorts": [{"ports": [
                {"port": "443", "protocol": "ANY"}, {"port": "8000", "endPort": 8010, "protocol": "UDP"}]}]}]),
            vec![],
        ),
        (
            "peers by labels and entities",
            json!([{"toFQDNs": [{"matchName": "a.test"}]}, {"toEndpoints": [{"matchLabels": {"app": "db"}}]},
                   {"toEntities": ["host"], "toPorts": web}]),
            vec![],
        ),
        (
            "exactly one label",
            json!([{"toFQDNs": [{"matchPattern": "*.a.test"}]}]),
            vec![Effect::Wider],
        ),
        (
            "stars inside labels",
            json!([{"toFQDNs": [{"matchPattern": "a*.a.test"}, {"matchName": "b.test"}]}]),
            vec![Effect::Narrower],
        ),
        (
            "prefixes",
            json!([{"toFQDNs": [{"matchName": "a.test"}]}, {"toCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}]}]),
            vec![Effect::Wider],
        ),
        (
            "lookups of other names too",
            json!([dns(json!([{"matchName": "api.a.test"}, {"matchName": "b.test"}])), {"toFQDNs": [{"matchName": "api.a.test"}]}]),
            vec![Effect::Narrower],
        ),
        (
            "names that cannot be asked for",
            json!([dns(json!([{"matchName": "api.a.test"}])), {"toFQDNs": [{"matchName": "api.a.test"}, {"matchName": "b.test"}]}]),
            vec![Effect::Wider],
        ),
        (
            "messages",
            json!([{"toFQDNs": [{"matchName": "a.test"}]}, {"toEntities": ["world"], "icmps": [{"fields": [{"type": 8}]}]}]),
            vec![Effect::Narrower],
        ),
    ]
}

fn cilium(spec: &Value) -> Value {
    json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
           "metadata": {"name": "p", "namespace": "shop"}, "spec": spec})
}

fn policy(document: Value) -> Policy {
    let Object::Policy(policy) = object::parse(document).unwrap() else { panic!("no policy") };
    policy
}

fn domain() -> DnsName {
    DnsName::parse("cluster.local").unwrap()
}

#[test]
fn converted_policies_decide_alike_or_the_difference_is_told() {
    let mut dice = Dice(7);
    for (claim, egress, expected) in cases() {
        let before = policy(cilium(
            &json!({"endpointSelector": {"matchLabels": {"app": "web"}}, "egress": egress}),
        ));
        let Conversion::Converted(manifest, told) = convert(&before, &domain()) else {
            panic!("{claim}: not converted");
        };
        let effects: BTreeSet<Effect> = told.iter().map(|one| one.effect).collect();
        assert_eq!(effects, expected.iter().copied().collect(), "{claim}: {told:?}");
        let after = policy(serde_json::to_value(&*manifest).unwrap());
        let (before, after) = (Town::new(before), Town::new(after));
        let mut seen = BTreeSet::new();
        for _ in 0..5_000 {
            let question = Question::random(&mut dice);
            let (was, is) = (before.answer(&question), after.answer(&question));
            let effect = if is { Effect::Wider } else { Effect::Narrower };
            if is != was {
                assert!(effects.contains(&effect), "{claim}: {question:?}: was {was}, is {is}");
                seen.insert(effect);
            }
        }
        assert_eq!(seen, effects, "{claim}: what is told is seen");
    }
}

#[test]
fn what_cannot_be_said_is_not_converted() {
    let names = json!([{"toFQDNs": [{"matchName": "a.test"}]}]);
    for (claim, spec) in [
        (
            "a direction left open",
            json!({"endpointSelector": {}, "enableDefaultDeny": {"egress": false}, "egress": names}),
        ),
        (
            "labels of the namespace",
            json!({"endpointSelector": {"matchLabels": {"k8s:io.cilium.k8s.namespace.labels.team": "a"}}, "egress": names}),
        ),
        (
            "a service account",
            json!({"endpointSelector": {"matchLabels": {"io.cilium.k8s.policy.serviceaccount": "a"}}, "egress": names}),
        ),
        (
            "a denial without a form",
            json!({"endpointSelector": {}, "egress": names, "egressDeny": [{"toEntities": ["unmanaged"]}]}),
        ),
    ] {
        let result = convert(&policy(cilium(&spec)), &domain());
        assert!(matches!(result, Conversion::Impossible(_)), "{claim}: {result:?}");
    }
    let no_names = json!({"endpointSelector": {}, "egress": [{"toEntities": ["world"]}]});
    assert!(matches!(convert(&policy(cilium(&no_names)), &domain()), Conversion::Untouched));
}

#[test]
fn ingress_is_told_to_be_left_out() {
    let spec = json!({"endpointSelector": {}, "ingress": [{"fromEndpoints": [{}]}],
                      "egress": [{"toFQDNs": [{"matchName": "a.test"}]}]});
    let Conversion::Converted(_, told) = convert(&policy(cilium(&spec)), &domain()) else {
        panic!("not converted");
    };
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].message.contains("ingress") && told[0].effect == Effect::Wider, "{told:?}");
}

/// A lookup, or a flow to an address, which was learned for a name where there is one.
#[derive(Debug)]
enum Question {
    Lookup(DnsName),
    Flow { to: IpAddr, learned: Option<DnsName>, protocol: Protocol, port: u16 },
}

struct Dice(u64);

impl Dice {
    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        from[usize::try_from(self.0 >> 33).unwrap() % from.len()].clone()
    }
}

impl Question {
    fn random(dice: &mut Dice) -> Self {
        let before = dice.pick(&["", "api.", "a.", "ab.", "x.y.", "deep.api."]);
        let name = format!("{before}{}", dice.pick(&["a.test", "b.test", "other.test"]));
        let name = DnsName::parse(&name).unwrap();
        match dice.pick(&[0, 1, 2]) {
            0 => Self::Lookup(name),
            kind => Self::Flow {
                to: dice
                    .pick(&[
                        "203.0.113.1",
                        "10.5.0.1",
                        "10.1.0.1",
                        "10.244.0.2",
                        "10.244.0.3",
                        "192.0.2.1",
                    ])
                    .parse()
                    .unwrap(),
                learned: (kind == 1).then_some(name),
                protocol: dice.pick(&[
                    Protocol::Tcp,
                    Protocol::Udp,
                    Protocol::Sctp,
                    Protocol::Icmp,
                ]),
                port: dice.pick(&[443, 80, 8, 8005]),
            },
        }
    }
}

struct Town {
    ipcache: BTreeMap<IpAddr, Identity>,
    table: PolicyTable,
}

impl Town {
    fn new(policy: Policy) -> Self {
        let mut inventory = Inventory::default();
        for (name, address) in [("web", "10.244.0.1"), ("db", "10.244.0.2"), ("job", "10.244.0.3")]
        {
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "status": {"podIPs": [{"ip": address}]},
                             "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}}});
            let Object::Pod(pod) = object::parse(pod).unwrap() else { panic!("no pod") };
            inventory.upsert_pod(pod);
        }
        let web = PodRef { namespace: "shop".into(), name: "web".into() };
        let policies = BTreeMap::from([(policy.reference.clone(), Arc::new(policy))]);
        let names =
            Arc::new(ClusterNames { domain: domain(), search: Vec::new(), ranges: Vec::new() });
        let source = TableSource { policies: &policies, inventory: &inventory, names: &names };
        let table = source.build(inventory.identity_of(&web).unwrap()).unwrap();
        let ipcache = inventory.ipcache(&BTreeSet::from(["192.0.2.1".parse().unwrap()]));
        Self { ipcache, table }
    }

    fn answer(&self, question: &Question) -> bool {
        let may_ask = |name| matches!(self.table.names.decide(name), NameDecision::Allowed { .. });
        match question {
            Question::Lookup(name) => may_ask(name),
            Question::Flow { to, learned, protocol, port } => {
                let learned = learned.as_ref().filter(|name| may_ask(name));
                let opened = learned.map(|name| self.table.names.clauses(name)).unwrap_or_default();
                self.forwards(*to, &opened, *protocol, *port)
            }
        }
    }

    fn forwards(&self, to: IpAddr, opened: &[u16], protocol: Protocol, port: u16) -> bool {
        let identity = self.ipcache.get(&to).copied().unwrap_or(Identity::WORLD);
        let decides = self.table.egress.iter().zip(0_u16..).find(|(clause, position)| {
            let peers = &clause.peers;
            let in_cidr = peers.cidrs.iter().any(|cidr| {
                let is_meant = cidr.reach == namegate_policy::table::CidrReach::All
                    || identity == Identity::WORLD;
                is_meant && cidr.contains(to)
            });
            // A name opens no address of the cluster (EP-9).
            let by_name = peers.names && opened.contains(position) && identity == Identity::WORLD;
            let has_port = match &clause.ports {
                ClausePorts::Any => true,
                ClausePorts::Of(list) => {
                    list.iter().any(|(one, range)| *one == protocol && range.contains(port))
                }
            };
            has_port && (peers.any || in_cidr || by_name || peers.identities.contains(identity))
        });
        decides.is_some_and(|(clause, _)| clause.action == ClauseAction::Forward)
    }
}
