//! Random EgressPolicies and ClusterEgressPolicies.

use serde_json::{Value, json};

use super::dice::Dice;
use super::fields::{
    APPS, Fields, NAMESPACES, PATTERNS, SERVICES, cidr, namespaces, port, selector,
};

const ENTITIES: [&str; 5] = ["World", "Cluster", "Host", "RemoteNode", "KubeApiserver"];

/// Whether a policy belongs to a namespace, which its peers mean where they name none.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Namespace,
    Cluster,
}

pub(super) fn egress_policy(dice: &mut Dice, name: &str) -> Value {
    let mut spec = common(dice, Scope::Namespace);
    spec.set("podSelector", selector(dice, "app", &APPS));
    json!({
        "apiVersion": "namegate.dev/v1alpha1",
        "kind": "EgressPolicy",
        "metadata": {"name": name, "namespace": dice.pick(&NAMESPACES)},
        "spec": Value::from(spec),
    })
}

pub(super) fn cluster_egress_policy(dice: &mut Dice, name: &str) -> Value {
    let mut spec = common(dice, Scope::Cluster);
    spec.set("namespaceSelector", namespaces(dice));
    spec.maybe(dice, 50, "podSelector", |dice| selector(dice, "app", &APPS));
    if dice.chance(60) {
        spec.set("tier", json!(dice.pick(&["Admin", "Baseline"])));
        spec.maybe(dice, 80, "priority", |dice| json!(dice.below(3)));
    }
    json!({
        "apiVersion": "namegate.dev/v1alpha1",
        "kind": "ClusterEgressPolicy",
        "metadata": {"name": name},
        "spec": Value::from(spec),
    })
}

fn common(dice: &mut Dice, scope: Scope) -> Fields {
    let mut spec = Fields::default();
    spec.maybe(dice, 30, "mode", |dice| json!(dice.pick(&["Audit", "Enforce"])));
    spec.maybe(dice, 40, "dns", |dice| {
        let mut dns = Fields::default();
        dns.maybe(dice, 70, "filter", |dice| json!(dice.pick(&["Enforce", "Observe"])));
        dns.maybe(dice, 40, "refuseWith", |dice| {
            json!(dice.pick(&["Refused", "NxDomain", "Empty"]))
        });
        dns.into()
    });
    spec.maybe(dice, 85, "egress", |dice| {
        json!(dice.list(0, 4, |dice| rule(dice, scope, &[0, 1, 2, 3, 4, 5])))
    });
    spec.maybe(dice, 35, "deny", |dice| {
        json!(dice.list(0, 2, |dice| rule(dice, scope, &[2, 3, 4, 5])))
    });
    spec
}

/// A rule whose peers are of the kinds `kinds` of [`peer`]: a denial has no names.
fn rule(dice: &mut Dice, scope: Scope, kinds: &[usize]) -> Value {
    let mut rule = Fields::default();
    rule.maybe(dice, 20, "name", |dice| json!(dice.pick(&["one", "two"])));
    rule.maybe(dice, 85, "to", |dice| {
        json!(dice.list(1, 3, |dice| {
            let kind = dice.pick(kinds);
            peer(dice, scope, kind)
        }))
    });
    rule.maybe(dice, 60, "ports", |dice| json!(dice.list(1, 3, port)));
    rule.into()
}

fn peer(dice: &mut Dice, scope: Scope, kind: usize) -> Value {
    let mut peer = Fields::default();
    match kind {
        0 | 1 => {
            peer.set("fqdn", json!(dice.pick(&PATTERNS)));
            peer.maybe(dice, 30, "except", |dice| json!(dice.some(1, &PATTERNS[..4])));
            peer.maybe(dice, 30, "allowPrivate", |dice| json!(dice.chance(50)));
        }
        2 => {
            let (net, except) = cidr(dice);
            peer.set("cidr", json!(net));
            if !except.is_empty() {
                peer.set("except", json!(except));
            }
        }
        3 => {
            if scope == Scope::Cluster || dice.chance(60) {
                peer.set("namespaceSelector", namespaces(dice));
                peer.maybe(dice, 60, "podSelector", |dice| selector(dice, "app", &APPS));
            } else {
                peer.set("podSelector", selector(dice, "app", &APPS));
            }
        }
        4 => {
            let (namespace, name) = dice.pick(&SERVICES);
            let mut service = Fields::default();
            service.set("name", json!(name));
            if scope == Scope::Cluster || dice.chance(70) {
                service.set("namespace", json!(namespace));
            }
            peer.set("service", service.into());
        }
        _ => peer.set("entity", json!(dice.pick(&ENTITIES))),
    }
    peer.into()
}
