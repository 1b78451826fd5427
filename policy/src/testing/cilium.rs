//! Random CiliumNetworkPolicies and CiliumClusterwideNetworkPolicies.

use serde_json::{Value, json};

use super::dice::Dice;
use super::fields::{
    ACCOUNTS, APPS, Fields, GROUPS, NAMESPACES, NETS, PARTS, PORT_NAMES, PORTS, SERVICES, SITES,
    TEAMS, cidr, selector, selector_over,
};

const ENTITIES: [&str; 11] = [
    "all",
    "world",
    "world-ipv4",
    "world-ipv6",
    "cluster",
    "host",
    "remote-node",
    "kube-apiserver",
    "init",
    "unmanaged",
    "none",
];
const MATCH_PATTERNS: [&str; 6] = ["*.a.test", "**.a.test", "*a.test", "y.*.a.test", "b*", "*"];
const MATCH_NAMES: [&str; 3] = ["a.test", "x.a.test", "b.test"];

pub(super) fn network_policy(dice: &mut Dice, name: &str) -> Value {
    let namespace = dice.pick(&NAMESPACES);
    policy(dice, "CiliumNetworkPolicy", json!({"name": name, "namespace": namespace}))
}

pub(super) fn clusterwide_network_policy(dice: &mut Dice, name: &str) -> Value {
    policy(dice, "CiliumClusterwideNetworkPolicy", json!({"name": name}))
}

fn policy(dice: &mut Dice, kind: &str, metadata: Value) -> Value {
    let mut policy = Fields::default();
    policy.set("apiVersion", json!("cilium.io/v2"));
    policy.set("kind", json!(kind));
    policy.set("metadata", metadata);
    let has_specs = dice.chance(20);
    if !has_specs || dice.chance(30) {
        policy.set("spec", spec(dice));
    }
    if has_specs {
        policy.set("specs", json!(dice.list(1, 3, spec)));
    }
    policy.into()
}

fn spec(dice: &mut Dice) -> Value {
    let mut spec = Fields::default();
    spec.set("endpointSelector", endpoints(dice));
    spec.maybe(dice, 25, "enableDefaultDeny", |dice| {
        let mut deny = Fields::default();
        deny.maybe(dice, 60, "egress", |dice| json!(dice.chance(40)));
        deny.maybe(dice, 60, "ingress", |dice| json!(dice.chance(40)));
        deny.into()
    });
    for (list, percent, side, is_allow) in [
        ("egress", 65, "to", true),
        ("egressDeny", 25, "to", false),
        ("ingress", 45, "from", true),
        ("ingressDeny", 20, "from", false),
    ] {
        spec.maybe(dice, percent, list, |dice| {
            json!(dice.list(0, 3, |dice| rule(dice, side, is_allow)))
        });
    }
    spec.into()
}

fn rule(dice: &mut Dice, side: &str, is_allow: bool) -> Value {
    let mut rule = Fields::default();
    match dice.below(12) {
        0..=2 => rule.set(&format!("{side}Endpoints"), json!(dice.list(0, 2, peer))),
        3 => rule.set(&format!("{side}CIDR"), json!(dice.list(0, 2, |dice| dice.pick(&NETS)))),
        4 | 5 => rule.set(&format!("{side}CIDRSet"), json!(dice.list(0, 2, cidr_set))),
        6 => rule
            .set(&format!("{side}Entities"), json!(dice.list(0, 2, |dice| dice.pick(&ENTITIES)))),
        7 if side == "to" => rule.set("toServices", json!(dice.list(0, 2, service))),
        8 | 9 if side == "to" && is_allow => rule.set("toFQDNs", json!(dice.list(0, 2, name))),
        _ => {}
    }
    if dice.chance(55) {
        let is_lookup = side == "to" && is_allow && dice.chance(20);
        rule.set(
            "toPorts",
            json!([if is_lookup {
                lookups(dice)
            } else {
                json!({"ports": dice.list(0, 3, port)})
            }]),
        );
    } else if dice.chance(20) {
        let fields = dice.list(1, 2, |dice| {
            let (kind, family) = dice.pick(&[
                ("8", "IPv4"),
                ("EchoRequest", "IPv4"),
                ("EchoRequest", "IPv6"),
                ("0", "IPv4"),
                ("129", "IPv6"),
            ]);
            json!({"type": kind, "family": family})
        });
        rule.set("icmps", json!([{"fields": fields}]));
    }
    rule.into()
}

/// The endpoints that a policy is about.
fn endpoints(dice: &mut Dice) -> Value {
    if dice.chance(70) {
        let key = dice.pick(&["app", "k8s:app", "any:app"]);
        selector(dice, key, &APPS)
    } else {
        labels(dice)
    }
}

fn peer(dice: &mut Dice) -> Value {
    if dice.chance(12) {
        let name = dice.pick(&["world", "host", "remote-node", "kube-apiserver", "unmanaged"]);
        return json!({"matchLabels": {format!("reserved:{name}"): ""}});
    }
    labels(dice)
}

fn labels(dice: &mut Dice) -> Value {
    selector_over(
        dice,
        &[
            ("app", &APPS),
            ("k8s:io.kubernetes.pod.namespace", &NAMESPACES),
            ("k8s:io.cilium.k8s.namespace.labels.team", &TEAMS),
            ("io.cilium.k8s.policy.serviceaccount", &ACCOUNTS),
        ],
    )
}

fn cidr_set(dice: &mut Dice) -> Value {
    let mut set = Fields::default();
    match dice.below(3) {
        0 => set.set("cidrGroupRef", json!(dice.pick(&GROUPS))),
        1 => set.set("cidrGroupSelector", selector(dice, "site", &SITES)),
        _ => {
            let (net, except) = cidr(dice);
            set.set("cidr", json!(net));
            if !except.is_empty() {
                set.set("except", json!(except));
            }
            return set.into();
        }
    }
    set.maybe(dice, 40, "except", |dice| json!(dice.list(1, 2, |dice| dice.pick(&NETS))));
    set.into()
}

fn service(dice: &mut Dice) -> Value {
    if dice.chance(60) {
        let (namespace, name) = dice.pick(&SERVICES);
        json!({"k8sService": {"serviceName": name, "namespace": namespace}})
    } else {
        let mut selected = Fields::default();
        selected.set("selector", selector(dice, "part", &PARTS));
        selected.maybe(dice, 50, "namespace", |dice| json!(dice.pick(&NAMESPACES)));
        json!({"k8sServiceSelector": Value::from(selected)})
    }
}

fn name(dice: &mut Dice) -> Value {
    if dice.chance(40) {
        json!({"matchName": dice.pick(&MATCH_NAMES)})
    } else {
        json!({"matchPattern": dice.pick(&MATCH_PATTERNS)})
    }
}

fn lookups(dice: &mut Dice) -> Value {
    json!({
        "ports": [{"port": "53", "protocol": dice.pick(&["ANY", "UDP"])}],
        "rules": {"dns": dice.list(0, 2, name)},
    })
}

fn port(dice: &mut Dice) -> Value {
    let mut fields = Fields::default();
    fields.maybe(dice, 80, "protocol", |dice| json!(dice.pick(&["TCP", "UDP", "SCTP", "ANY"])));
    match dice.below(8) {
        0 => fields.set("port", json!("0")),
        1 | 2 => fields.set("port", json!(dice.pick(&PORT_NAMES))),
        3 => {
            let start = dice.pick(&PORTS);
            fields.set("port", json!(start.to_string()));
            fields.set("endPort", json!(start + dice.pick(&[1, 2, 400])));
        }
        _ => fields.set("port", json!(dice.pick(&PORTS).to_string())),
    }
    fields.into()
}
