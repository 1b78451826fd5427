use std::path::Path;

use namegate_policy::name::DnsName;
use serde_json::{Value, json};

use super::*;
use crate::audit::Line;
use crate::source::Directory;

fn mk_filter() -> Filter {
    Filter {
        namespace: None,
        pod: None,
        refused: false,
        cluster_domain: DnsName::parse("cluster.local").unwrap(),
    }
}

fn mk_pod(namespace: &str, workload: &str, number: u8) -> Value {
    json!({
        "namespace": namespace, "pod": format!("{workload}-5c9-{number:05}"), "workload": workload,
        "identity": 256,
        "labels": {"app": workload, "pod-template-hash": format!("5c{number}")},
    })
}

fn mk_lookup(pod: &Value, name: &str, verdict: &str, rcode: &str) -> Value {
    json!({
        "time": "2026-03-01T09:00:00.000000Z", "schema": 1, "kind": "dns", "verdict": verdict,
        "reason": "rule", "endpoint": pod, "query": {"name": name, "type": "A"}, "rcode": rcode,
        "addresses": [{"address": "203.0.113.10", "ttl": 60}], "policy": null,
        "resolver": "10.96.0.10", "transport": "udp", "cached": false, "latency_us": 7,
    })
}

fn mk_flow(pod: &Value, verdict: &str, protocol: &str, port: u16, remote: &Value) -> Value {
    let mut destination = json!({
        "address": "203.0.113.10", "port": port, "namespace": null, "pod": null, "identity": 4,
        "names": [],
    });
    for (key, value) in remote.as_object().unwrap() {
        destination[key] = value.clone();
    }
    json!({
        "time": "2026-03-01T09:00:01.000000Z", "schema": 1, "kind": "flow", "verdict": verdict,
        "reason": if verdict == "dropped" { "denied" } else { "judged" }, "direction": "egress",
        "protocol": protocol, "endpoint": pod,
        "source": {"address": "10.244.1.10", "port": 40000, "namespace": pod["namespace"],
                   "pod": pod["pod"], "identity": 256, "names": []},
        "destination": destination, "policy": null,
    })
}

/// The same flow as the pod at its other end has it.
fn mk_ingress(pod: &Value, port: u16, source: &Value) -> Value {
    let mut flow = mk_flow(pod, "forwarded", "tcp", port, &json!({}));
    flow["direction"] = json!("ingress");
    let own = flow["source"].clone();
    flow["source"] = json!({"address": "10.244.2.7", "port": 40000, "namespace": null, "pod": null,
                            "identity": 300, "names": []});
    for (key, value) in source.as_object().unwrap() {
        flow["source"][key] = value.clone();
    }
    flow["destination"] = own;
    flow["destination"]["port"] = json!(port);
    flow
}

fn observe(filter: Filter, lines: &[Value]) -> Observed {
    let mut observed = Observed::new(filter);
    for line in lines {
        observed.add(&serde_json::from_value::<Line<'_>>(line.clone()).unwrap());
    }
    observed
}

/// The text, which has to be manifests without a fault.
fn checked(observed: &Observed, wording: Wording) -> String {
    let documents = suggest(observed, wording);
    let text: Vec<String> = documents.iter().map(Document::text).collect();
    let text = text.join("---\n");
    let mut directory = Directory::new([]);
    directory.add_text(Path::new("suggested.yaml"), text.clone().into_bytes());
    directory.look();
    let problems: Vec<String> = directory.problems().map(ToString::to_string).collect();
    assert!(problems.is_empty(), "{problems:#?}\n{text}");
    let manifests = documents.iter().filter(|document| document.is_manifest()).count();
    assert_eq!(directory.object_count(), manifests, "{text}");
    text
}

#[test]
fn what_was_seen_becomes_rules_with_their_evidence() {
    let (checkout, db) = (mk_pod("shop", "checkout", 1), mk_pod("data", "db", 1));
    let stripe = json!({"names": ["api.stripe.com"], "entity": "world"});
    let lines = [
        mk_lookup(&checkout, "api.stripe.com", "audit", "NOERROR"),
        mk_lookup(&checkout, "idle.example", "audit", "NOERROR"),
        mk_lookup(&checkout, "no-such.example", "audit", "NXDOMAIN"),
        mk_lookup(&checkout, "db.data.svc.cluster.local", "allowed", "NOERROR"),
        mk_lookup(&checkout, "1.0.0.10.in-addr.arpa", "audit", "NOERROR"),
        mk_flow(&checkout, "audit", "tcp", 443, &stripe),
        mk_flow(&mk_pod("shop", "checkout", 2), "audit", "tcp", 443, &stripe),
        mk_flow(&checkout, "forwarded", "tcp", 5432, &db),
        mk_flow(&checkout, "audit", "udp", 123, &json!({"address": "203.0.113.66"})),
        mk_flow(&checkout, "audit", "tcp", 6443, &json!({"entity": "kube-apiserver"})),
        mk_flow(&checkout, "audit", "icmp", 7, &json!({"address": "203.0.113.66"})),
        mk_ingress(&db, 5432, &checkout),
        mk_ingress(&db, 5432, &json!({"entity": "host"})),
        mk_ingress(&db, 9187, &json!({"address": "10.9.0.1", "entity": "world"})),
    ];
    let text = checked(&observe(mk_filter(), &lines), Wording::default());
    let expected = "\
# data/db: what 1 pod did, 2026-03-01T09:00:01.000000Z to 2026-03-01T09:00:01.000000Z
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: db-ingress
  namespace: data
spec:
  podSelector:
    matchLabels:
      app: db
  policyTypes:
    - Ingress
  ingress:
  # 10.9.0.1, under no name: 1 flow, last 2026-03-01T09:00:01.000000Z; 10.9.0.1
  - from:
";
    assert!(text.starts_with(expected), "{text}");
    for part in [
        "  name: checkout-egress\n  namespace: shop\n",
        "      app: checkout\n",
        "# shop/checkout: what 2 pods did, ",
        "  # api.stripe.com: 2 flows, 2 refused or only let through by Audit mode, last ",
        "fqdn: api.stripe.com\n",
        "entity: KubeApiserver\n",
        "cidr: 203.0.113.66/32\n",
        "kubernetes.io/metadata.name: data\n",
        "name: names-tcp-443\n",
        "  #   idle.example: 1 lookup, 1 refused",
        "  #   icmp 203.0.113.66, under no name: 1 flow",
    ] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
    for part in ["no-such", "svc.cluster", "arpa", "pod-template-hash", "the node"] {
        assert!(!text.contains(part), "{part:?} in\n{text}");
    }
}

#[test]
fn refusals_count_only_where_asked_for_and_only_where_a_rule_would_help() {
    let web = mk_pod("shop", "web", 1);
    let mut spoofed = mk_flow(&web, "dropped", "tcp", 666, &json!({}));
    spoofed["reason"] = json!("spoofed");
    let lines = [
        mk_flow(&web, "forwarded", "tcp", 80, &json!({})),
        mk_flow(&web, "dropped", "tcp", 443, &json!({})),
        mk_lookup(&web, "evil.example", "denied", "REFUSED"),
        spoofed,
    ];
    let observed = observe(mk_filter(), &lines);
    let text = checked(&observed, Wording::default());
    assert!(text.contains("tcp-80") && !text.contains("tcp-443") && !text.contains("evil"));
    assert_eq!(observed.missing().refused, 2);
    let all = observe(Filter { refused: true, ..mk_filter() }, &lines);
    let text = checked(&all, Wording::default());
    assert!(text.contains("port: 443") && text.contains("evil.example"), "{text}");
    assert!(!text.contains("666"), "{text}");
}

#[test]
fn filters_are_by_namespace_pod_and_workload() {
    let lines: Vec<Value> =
        [mk_pod("shop", "web", 1), mk_pod("shop", "db", 1), mk_pod("b", "web", 1)]
            .iter()
            .map(|pod| mk_flow(pod, "forwarded", "tcp", 80, &json!({})))
            .collect();
    let names = |namespace: Option<&str>, pod: Option<&str>| -> Vec<String> {
        let filter = Filter {
            namespace: namespace.map(str::to_owned),
            pod: pod.map(str::to_owned),
            ..mk_filter()
        };
        let observed = observe(filter, &lines);
        observed.workloads.keys().map(ToString::to_string).collect()
    };
    assert_eq!(names(None, None), ["b/web", "shop/db", "shop/web"]);
    assert_eq!(names(Some("shop"), None), ["shop/db", "shop/web"]);
    assert_eq!(names(None, Some("web")), ["b/web", "shop/web"]);
    assert_eq!(names(Some("shop"), Some("web-5c9-00001")), ["shop/web"]);
}

#[test]
fn labels_that_last_and_tell_apart_are_chosen() {
    let pod = |name: &str, labels: Value| {
        let pod = json!({"namespace": "shop", "pod": name, "workload": name, "identity": 1,
                         "labels": labels});
        mk_flow(&pod, "forwarded", "tcp", 80, &json!({}))
    };
    let observed = observe(
        mk_filter(),
        &[
            pod("api", json!({"app": "shop", "track": "stable", "team": "a", "version": "7"})),
            pod("api", json!({"app": "shop", "track": "stable", "team": "a", "version": "8"})),
            pod("canary", json!({"app": "shop", "track": "canary", "team": "a"})),
            pod("web", json!({"app": "web", "team": "a"})),
            pod("twin", json!({"app": "web", "team": "a", "extra": "1"})),
            pod("bare", json!({})),
        ],
    );
    let chosen = |name: &str| {
        let of = WorkloadRef { namespace: "shop".into(), name: name.into() };
        match selectors::choose(&observed.workloads, &of) {
            Selection::Labels { labels, also } => {
                let also: Vec<String> = also.iter().map(ToString::to_string).collect();
                let labels: Vec<String> =
                    labels.match_labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                (labels.join(","), also.join(","))
            }
            Selection::Nothing => (String::new(), String::new()),
        }
    };
    let text = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(chosen("api"), text("app=shop,team=a,track=stable", ""), "app is not enough");
    assert_eq!(chosen("web"), text("app=web,team=a", "shop/twin"), "it cannot be told apart");
    assert_eq!(chosen("twin"), text("app=web,extra=1,team=a", ""));
    assert_eq!(chosen("bare"), text("", ""));
    let text = checked(&observed, Wording::default());
    assert!(text.contains("# shop/bare: nothing suggested: its pods have no label"), "{text}");
    assert!(text.contains("# also selects shop/twin: "), "{text}");
}

#[test]
fn wildcards_come_only_where_asked_for() {
    let web = mk_pod("shop", "web", 1);
    let lines: Vec<Value> =
        ["eu.s3.example.com", "us.s3.example.com", "ap.s3.example.com", "x.example"]
            .iter()
            .map(|name| mk_flow(&web, "audit", "tcp", 443, &json!({"names": [name]})))
            .collect();
    let observed = observe(mk_filter(), &lines);
    let text = checked(&observed, Wording::default());
    assert!(!text.contains('*') && text.contains("fqdn: eu.s3.example.com"), "{text}");
    let text = checked(&observed, Wording { wildcards: true });
    assert!(text.contains("*.s3.example.com") && !text.contains("fqdn: eu."), "{text}");
    assert!(text.contains("fqdn: x.example"), "{text}");
    assert!(text.contains("# *.s3.example.com: wider than what was seen, 3 names"), "{text}");
}

/// A log is what others write: nothing in it may become YAML of its own or act upon a terminal.
#[test]
fn a_forged_log_makes_no_rule_of_its_own() {
    let hostile = "x\n  egress:\n  - {} # \u{1b}[2J";
    let web = mk_pod("shop", "web", 1);
    let named = json!({"names": [hostile, "ok.example", "*", "\\027[2j.example"]});
    let mut forged = mk_flow(&web, "audit", "tcp", 443, &named);
    forged["time"] = json!(hostile);
    let mut labels = web.clone();
    labels["labels"] = json!({"app": hostile});
    labels["workload"] = json!("other");
    let mut nobody = web.clone();
    nobody["workload"] = json!(hostile);
    let lines = [
        forged,
        mk_flow(&labels, "audit", hostile, 443, &json!({})),
        mk_flow(&nobody, "audit", "tcp", 443, &json!({})),
        mk_lookup(&web, "\\027[2j\\010evil.example", "audit", "NOERROR"),
    ];
    let observed = observe(mk_filter(), &lines);
    let documents = suggest(&observed, Wording::default());
    let text: String = documents.iter().map(Document::text).collect();
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text}");
    let rules = text.lines().filter(|line| line.trim_start().starts_with("egress:")).count();
    assert_eq!(rules, 2, "one a workload: {text}");
    assert!(text.contains("fqdn: ok.example") && !text.contains("fqdn: \"*\""), "{text}");
    assert_eq!(observed.missing().left_out, 1, "a workload that is none");
}
