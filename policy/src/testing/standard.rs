//! Random NetworkPolicies and ClusterNetworkPolicies.

use serde_json::{Value, json};

use super::dice::Dice;
use super::fields::{
    APPS, Fields, NAMESPACES, NETS, PATTERNS, PORT_NAMES, PORTS, ZONES, cidr, namespaces, port,
    selector,
};

pub(super) fn network_policy(dice: &mut Dice, name: &str) -> Value {
    let mut spec = Fields::default();
    spec.maybe(dice, 85, "podSelector", |dice| selector(dice, "app", &APPS));
    spec.maybe(dice, 70, "policyTypes", |dice| json!(dice.some(0, &["Ingress", "Egress"])));
    for (list, side) in [("ingress", "from"), ("egress", "to")] {
        spec.maybe(dice, 60, list, |dice| {
            json!(dice.list(0, 3, |dice| {
                let mut rule = Fields::default();
                rule.maybe(dice, 75, side, |dice| json!(dice.list(0, 3, peer)));
                rule.maybe(dice, 60, "ports", |dice| json!(dice.list(0, 3, port)));
                Value::from(rule)
            }))
        });
    }
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": dice.pick(&NAMESPACES)},
        "spec": Value::from(spec),
    })
}

fn peer(dice: &mut Dice) -> Value {
    match dice.below(4) {
        0 => json!({"podSelector": selector(dice, "app", &APPS)}),
        1 => json!({"namespaceSelector": namespaces(dice)}),
        2 => json!({
            "namespaceSelector": namespaces(dice),
            "podSelector": selector(dice, "app", &APPS),
        }),
        _ => {
            let (net, except) = cidr(dice);
            let mut block = Fields::default();
            block.set("cidr", json!(net));
            if !except.is_empty() {
                block.set("except", json!(except));
            }
            json!({"ipBlock": Value::from(block)})
        }
    }
}

pub(super) fn cluster_network_policy(dice: &mut Dice, name: &str) -> Value {
    let mut spec = Fields::default();
    spec.set("tier", json!(dice.pick(&["Admin", "Baseline"])));
    spec.set("priority", json!(dice.below(3)));
    spec.set("subject", pods(dice));
    for (list, side) in [("ingress", "from"), ("egress", "to")] {
        spec.maybe(dice, 60, list, |dice| json!(dice.list(0, 4, |dice| cluster_rule(dice, side))));
    }
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": Value::from(spec),
    })
}

fn cluster_rule(dice: &mut Dice, side: &str) -> Value {
    let mut rule = Fields::default();
    rule.maybe(dice, 30, "name", |dice| json!(dice.pick(&["one", "two"])));
    rule.set("action", json!(dice.pick(&["Accept", "Accept", "Deny", "Pass"])));
    rule.set(
        side,
        json!(dice.list(1, 3, |dice| if side == "to" { destination(dice) } else { pods(dice) })),
    );
    rule.maybe(dice, 50, "protocols", |dice| json!(dice.list(1, 3, protocol)));
    rule.into()
}

fn pods(dice: &mut Dice) -> Value {
    if dice.chance(50) {
        json!({"namespaces": namespaces(dice)})
    } else {
        let (namespaces, pods) = (namespaces(dice), selector(dice, "app", &APPS));
        json!({"pods": {"namespaceSelector": namespaces, "podSelector": pods}})
    }
}

fn destination(dice: &mut Dice) -> Value {
    match dice.below(12) {
        0..=4 => pods(dice),
        5..=7 => json!({"networks": dice.list(1, 2, |dice| dice.pick(&NETS))}),
        8 => json!({"nodes": selector(dice, "zone", &ZONES)}),
        9 | 10 => json!({"domainNames": dice.list(1, 2, |dice| dice.pick(&PATTERNS[..4]))}),
        // A peer of a later version (CNP-7).
        _ => json!({}),
    }
}

fn protocol(dice: &mut Dice) -> Value {
    if dice.chance(25) {
        return json!({"destinationNamedPort": dice.pick(&PORT_NAMES)});
    }
    let mut transport = Fields::default();
    transport.maybe(dice, 80, "destinationPort", |dice| {
        let port = dice.pick(&PORTS);
        if dice.chance(60) {
            json!({"number": port})
        } else {
            json!({"range": {"start": port, "end": port + dice.pick(&[1, 2, 400])}})
        }
    });
    let mut fields = Fields::default();
    fields.set(dice.pick(&["tcp", "tcp", "udp", "sctp"]), transport.into());
    fields.into()
}
