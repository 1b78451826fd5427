//! A random small town: namespaces, pods, nodes, Services and CIDR groups, as documents.

use serde_json::{Value, json};

use super::dice::Dice;
use super::fields::{
    ACCOUNTS, APPS, Fields, NAMESPACES, PARTS, PORT_NAMES, PORTS, PROTOCOLS, SITES, TEAMS, ZONES,
    labels,
};

/// How many pods there are.
pub(super) const PODS: usize = 6;

/// Addresses outside of the cluster.
pub(super) const WORLD: [&str; 6] =
    ["203.0.113.0", "203.0.113.1", "203.0.113.2", "2001:db8::1", "2001:db8::2", "10.20.0.9"];

/// Addresses of nodes, Services, the API server, and of nobody in the pods' ranges.
pub(super) const OTHERS: [&str; 12] = [
    "192.0.2.1",
    "192.0.2.2",
    "2001:db8:1::1",
    "2001:db8:1::2",
    "198.51.100.9",
    "10.96.0.1",
    "10.96.0.2",
    "10.96.0.10",
    "10.244.9.9",
    "fd00:244::9",
    "fd00:96::1",
    "169.254.20.10",
];

pub(super) const OWN: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];

/// The namespace and name of a pod.
pub(super) fn pod_name(index: usize) -> (&'static str, String) {
    (NAMESPACES[index % NAMESPACES.len()], format!("pod-{index}"))
}

pub(super) fn pod_addresses(index: usize) -> [String; 2] {
    [format!("10.244.0.{index}"), format!("fd00:244::{index}")]
}

pub(super) fn documents(dice: &mut Dice) -> Vec<Value> {
    let mut documents = Vec::new();
    for name in NAMESPACES {
        if dice.chance(75) {
            let labels = labels(dice, "team", &TEAMS);
            documents.push(json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": name, "labels": labels},
            }));
        }
    }
    documents.extend((0..PODS).map(|index| pod(dice, index)));
    if dice.chance(30) {
        documents.push(finished(dice));
    }
    if dice.chance(30) {
        documents.push(on_node(dice));
    }
    documents.push(node(dice, "own", &OWN));
    documents.push(node(dice, "other", &["192.0.2.2", "2001:db8:1::2"]));
    services(dice, &mut documents);
    for (name, nets) in [
        ("corp", ["203.0.113.0/31", "10.0.0.0/8"]),
        ("partner", ["203.0.113.1/32", "2001:db8::/32"]),
    ] {
        if dice.chance(70) {
            let labels = labels(dice, "site", &SITES);
            documents.push(json!({
                "apiVersion": dice.pick(&["cilium.io/v2", "cilium.io/v2alpha1"]),
                "kind": "CiliumCIDRGroup",
                "metadata": {"name": name, "labels": labels},
                "spec": {"externalCIDRs": dice.some(0, &nets)},
            }));
        }
    }
    documents
}

/// A pod with addresses of both families, or of one.
fn pod(dice: &mut Dice, index: usize) -> Value {
    let addresses = match dice.below(10) {
        0 => pod_addresses(index)[..1].to_vec(),
        1 => pod_addresses(index)[1..].to_vec(),
        _ => pod_addresses(index).to_vec(),
    };
    let (namespace, name) = pod_name(index);
    pod_document(dice, namespace, &name, &addresses, Fields::default(), "Running")
}

/// A pod that ended, on an address that another may have today (NP-28).
fn finished(dice: &mut Dice) -> Value {
    let addresses = pod_addresses(dice.below(PODS));
    let phase = dice.pick(&["Succeeded", "Failed"]);
    pod_document(dice, "shop", "finished", &addresses, Fields::default(), phase)
}

/// A pod on the network of a node (NP-21).
fn on_node(dice: &mut Dice) -> Value {
    let mut spec = Fields::default();
    spec.set("hostNetwork", json!(true));
    let address = dice.pick(&["192.0.2.1", "192.0.2.2"]).to_owned();
    pod_document(dice, "data", "on-node", &[address], spec, "Running")
}

fn pod_document(
    dice: &mut Dice,
    namespace: &str,
    name: &str,
    addresses: &[String],
    mut spec: Fields,
    phase: &str,
) -> Value {
    let labels = labels(dice, "app", &APPS);
    let ports = dice.list(0, 2, |dice| {
        json!({
            "name": dice.pick(&PORT_NAMES),
            "containerPort": dice.pick(&PORTS),
            "protocol": dice.pick(&PROTOCOLS),
        })
    });
    spec.set("containers", json!([{"name": "c", "ports": ports}]));
    spec.maybe(dice, 60, "serviceAccountName", |dice| json!(dice.pick(&ACCOUNTS)));
    let addresses: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": Value::from(spec),
        "status": {"phase": phase, "podIPs": addresses},
    })
}

fn node(dice: &mut Dice, name: &str, addresses: &[&str]) -> Value {
    let labels = labels(dice, "zone", &ZONES);
    let addresses: Vec<Value> =
        addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "status": {"addresses": addresses},
    })
}

fn services(dice: &mut Dice, documents: &mut Vec<Value>) {
    let apiserver = dice.some(0, &["192.0.2.2".to_owned(), "198.51.100.9".to_owned()]);
    let (port, target) = (443, Some(443));
    service(dice, documents, ("default", "kubernetes"), &["10.96.0.2"], (port, target), apiserver);
    let resolvers = dice.some(0, &[pod_addresses(0)[0].clone()]);
    let dns = ("kube-system", "kube-dns");
    service(dice, documents, dns, &["10.96.0.10"], (53, Some(53)), resolvers);
    for (name, addresses) in
        [(("shop", "ledger"), &["10.96.0.1", "fd00:96::1"][..]), (("data", "store"), &[])]
    {
        let backends = dice.list(0, 3, |dice| {
            if dice.chance(75) {
                let index = dice.below(PODS);
                pod_addresses(index)[dice.below(2)].clone()
            } else {
                dice.pick(&WORLD).to_owned()
            }
        });
        let port = dice.pick(&PORTS);
        let target = if dice.chance(80) { Some(dice.pick(&PORTS)) } else { None };
        service(dice, documents, name, addresses, (port, target), backends);
    }
}

/// A Service, and a slice of its backends for each family.
fn service(
    dice: &mut Dice,
    documents: &mut Vec<Value>,
    (namespace, name): (&str, &str),
    addresses: &[&str],
    (port, target): (u16, Option<u16>),
    backends: Vec<String>,
) {
    let labels = labels(dice, "part", &PARTS);
    documents.push(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "clusterIPs": if addresses.is_empty() { &["None"] } else { addresses },
            "ports": [{"name": "http", "port": port}],
        },
    }));
    let (v6, v4): (Vec<_>, Vec<_>) = backends.into_iter().partition(|one| one.contains(':'));
    for (family, addresses) in [("IPv4", v4), ("IPv6", v6)] {
        if addresses.is_empty() {
            continue;
        }
        let endpoints: Vec<Value> = addresses
            .into_iter()
            .map(|one| json!({"addresses": [one], "conditions": {"ready": dice.chance(85)}}))
            .collect();
        let mut served = Fields::default();
        served.set("name", json!("http"));
        if let Some(target) = target {
            served.set("port", json!(target));
        }
        documents.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-{}", family.to_lowercase()), "namespace": namespace,
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": family,
            "endpoints": endpoints,
            "ports": [Value::from(served)],
        }));
    }
}
