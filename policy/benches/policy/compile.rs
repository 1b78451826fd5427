//! 1,000 policies of 1,000 patterns, 110 pods of this node, 10,000 of others.

use std::collections::BTreeMap;
use std::sync::Arc;

use namegate_policy::dns::{ClusterNames, RefuseWith};
use namegate_policy::identity::Identity;
use namegate_policy::name::DnsName;
use namegate_policy::object::Object;
use namegate_policy::pattern::DomainPattern;
use namegate_policy::resource::{Pod, PodRef};
use namegate_policy::rule::{
    Action, Direction, DnsFilter, DnsPolicy, FqdnPeer, Isolation, Mode, Namespaces, Peer, Peers,
    Policy, PolicyKind, PolicyRef, PortMatch, PortRange, PortSet, Ports, Protocol, Rule, Tier,
    Workloads,
};
use namegate_policy::selector::{Labels, Requirement, Selector};
use namegate_policy::table::{TableSource, Tables};

use crate::report::{Report, median, memory, timed};

const GROUP: &str = "compile: 1,000 policies x 1,000 patterns, 110 local pods, 10,000 remote pods";
const POLICIES: usize = 1_000;
const PATTERNS: usize = 1_000;
const LOCAL: usize = 110;
const REMOTE: usize = 10_000;
const APPS: usize = 500;
const EVENTS: usize = 101;
const ROUNDS: usize = 5;

/// Whom the policies select.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// Nine or ten policies for each local pod.
    Spread,
    /// Every policy for every local pod.
    All,
}

pub(crate) fn run(report: &mut Report) {
    let before = memory("VmRSS");
    let objects = mk_objects(Reading::Spread);
    let held = memory("VmRSS") - before;
    let (tables, took) = timed(|| from_nothing(&objects));
    let compiled = memory("VmRSS") - before - held;
    report.add(GROUP, "from nothing, every pod with labels of its own", millis(took), "ms");
    report.add(GROUP, "memory of the objects", held, "MiB");
    report.add(GROUP, "memory of what is compiled", compiled, "MiB");
    report.add(GROUP, "peak of both", memory("VmHWM") - before, "MiB");
    let mut patterns = [0, 0];
    for table in tables.built().values() {
        let (count, octets) = table.names.size();
        patterns = [patterns[0] + count, patterns[1] + octets];
    }
    report.add(GROUP, "patterns in tables", patterns[0] as f64, "");
    report.add(GROUP, "memory of these", patterns[1] as f64 / 1024.0 / 1024.0, "MiB");
    changes(report, tables);
    drop(objects);
    all(report);
}

fn millis(took: std::time::Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

fn micros(took: std::time::Duration) -> f64 {
    took.as_secs_f64() * 1e6
}

fn mk_tables() -> Tables {
    let ranges = vec!["10.0.0.0/8".parse().unwrap()];
    let domain = DnsName::parse("cluster.local").unwrap();
    Tables::new(Arc::new(ClusterNames { domain, search: Vec::new(), ranges }))
}

fn from_nothing(objects: &[Arc<Object>]) -> Tables {
    let mut tables = mk_tables();
    for object in objects {
        tables.upsert(object);
    }
    tables.settle();
    let local: Vec<Identity> = (0..LOCAL)
        .filter_map(|number| tables.inventory().identity_of(&local_ref(number)))
        .collect();
    for identity in local {
        tables.govern(identity);
    }
    tables.rebuild();
    tables
}

/// Single events, each with the tables that it changes, against building all tables again.
fn changes(report: &mut Report, mut tables: Tables) {
    let [mut second, mut other, mut relabelled, mut policies, mut rebuilt] =
        [const { Vec::new() }; 5];
    let mut touched = 0;
    for event in 0..EVENTS {
        let round = |tables: &mut Tables, object: Object| {
            let object = Arc::new(object);
            let (changed, took) = timed(|| {
                tables.upsert(&object);
                tables.settle();
                tables.rebuild().len()
            });
            (changed, micros(took))
        };
        let known = mk_remote(event, REMOTE + event);
        let (changed, took) = round(&mut tables, Object::Pod(known));
        assert_eq!(changed, 0, "a second pod of a known identity touches no table");
        second.push(took);
        let (changed, took) =
            round(&mut tables, Object::Pod(mk_remote(REMOTE + event, 2 * REMOTE + event)));
        touched = changed;
        other.push(took);
        let (_, took) =
            round(&mut tables, Object::Pod(mk_remote(REMOTE * 2 + event, REMOTE + event)));
        relabelled.push(took);
        let mut policy = mk_policy(event, Reading::Spread);
        policy.rules[1].label = format!("changed-{event}").into();
        policies.push(round(&mut tables, Object::Policy(policy)).1);
    }
    let by_name: BTreeMap<PolicyRef, Arc<Policy>> =
        tables.policies().map(|one| (one.reference.clone(), Arc::new(one.clone()))).collect();
    let names = Arc::new(ClusterNames {
        domain: DnsName::parse("cluster.local").unwrap(),
        search: Vec::new(),
        ranges: vec!["10.0.0.0/8".parse().unwrap()],
    });
    let (policies_now, inventory) = (&by_name, tables.inventory());
    for _ in 0..ROUNDS {
        let source = TableSource { policies: policies_now, inventory, names: &names };
        let (_, took) = timed(|| {
            let identities = tables.built().keys();
            identities.map(|identity| source.build(*identity).unwrap()).collect::<Vec<_>>()
        });
        rebuilt.push(micros(took));
    }
    let (second, other, relabelled) = (median(second), median(other), median(relabelled));
    let (policies, rebuilt) = (median(policies), median(rebuilt));
    report.add(GROUP, "one remote pod more, of a known identity", second, "us");
    report.add(GROUP, "one remote pod more, of a new identity", other, "us");
    report.add(GROUP, "  tables that this changes", touched as f64, "");
    report.add(GROUP, "one remote pod with other labels", relabelled, "us");
    report.add(GROUP, "one policy with another rule", policies, "us");
    report.add(GROUP, "all tables again, as a peer", rebuilt, "us");
    report.add(GROUP, "all tables again / one remote pod of a new identity", rebuilt / other, "x");
}

fn all(report: &mut Report) {
    let objects = mk_objects(Reading::All);
    let (tables, took) = timed(|| from_nothing(&objects));
    let refused = tables.errors().count();
    report.add(GROUP, "every policy for every local pod, from nothing", millis(took), "ms");
    report.add(GROUP, "  identities past the limit, closed", refused as f64, "");
    if let Some((_, error)) = tables.errors().next() {
        eprintln!("every policy for every local pod: {error}");
    }
}

fn mk_objects(reading: Reading) -> Vec<Arc<Object>> {
    let local = (0..LOCAL).map(mk_local).map(Object::Pod);
    let remote = (0..REMOTE).map(|number| Object::Pod(mk_remote(number, number)));
    let policies = (0..POLICIES).map(|number| Object::Policy(mk_policy(number, reading)));
    local.chain(remote).chain(policies).map(Arc::new).collect()
}

fn local_ref(number: usize) -> PodRef {
    PodRef { namespace: "shop".into(), name: format!("local-{number}").into() }
}

fn mk_local(number: usize) -> Pod {
    let labels = [("app", "local".to_owned()), ("team", number.to_string())];
    mk_pod(local_ref(number), &labels, u32::try_from(number).unwrap())
}

/// A pod with the labels of workload `labels`.
fn mk_remote(labels: usize, number: usize) -> Pod {
    let reference = PodRef { namespace: "data".into(), name: format!("remote-{number}").into() };
    let pairs = [("app", format!("app-{}", labels % APPS)), ("replica", labels.to_string())];
    mk_pod(reference, &pairs, u32::try_from(number + 1_000).unwrap())
}

fn mk_pod(reference: PodRef, labels: &[(&str, String)], number: u32) -> Pod {
    let pairs = labels.iter().map(|(key, value)| ((*key).into(), value.as_str().into()));
    Pod {
        reference,
        uid: None,
        labels: Arc::new(pairs.collect::<Labels>()),
        annotations: BTreeMap::new(),
        service_account: "default".into(),
        node_name: None,
        is_host_network: false,
        is_finished: false,
        addresses: vec![std::net::Ipv4Addr::from(0x0a00_0000 + number).into()],
        named_ports: Arc::default(),
    }
}

fn mk_workloads(namespace: &str, key: &str, value: &str) -> Workloads {
    Workloads {
        namespaces: Namespaces::Named(namespace.into()),
        pods: Selector::from_iter([Requirement::equals(key, value)]),
        service_accounts: Vec::new(),
    }
}

/// One rule of 1,000 patterns, one for the pods of an app.
fn mk_policy(number: usize, reading: Reading) -> Policy {
    let name = |pattern: usize| {
        Peer::Fqdn(FqdnPeer {
            pattern: DomainPattern::parse(&format!("*.tenant-{number}-{pattern}.example.com"))
                .unwrap(),
            except: Vec::new(),
            allow_private: false,
            resolves: true,
        })
    };
    let port = PortMatch { protocol: Protocol::Tcp, ports: PortSet::Range(PortRange::single(443)) };
    let rule = |label: &str, peers| Rule {
        label: label.into(),
        direction: Direction::Egress,
        action: Action::Allow,
        peers: Peers::Of(peers),
        ports: Ports::Of(vec![port.clone()]),
    };
    let app = format!("app-{}", number % APPS);
    let subject = match reading {
        Reading::Spread => mk_workloads("shop", "team", &(number % LOCAL).to_string()),
        Reading::All => mk_workloads("shop", "app", "local"),
    };
    Policy {
        reference: PolicyRef {
            kind: PolicyKind::EgressPolicy,
            namespace: Some("shop".into()),
            name: format!("policy-{number}").into(),
        },
        subject,
        mode: Mode::Enforce,
        tier: Tier::Namespaced,
        isolates: Isolation { egress: true, ingress: false },
        dns: Some(DnsPolicy {
            filter: DnsFilter::Enforce,
            refuse_with: RefuseWith::Refused,
            names: Vec::new(),
        }),
        rules: vec![
            rule("names", (0..PATTERNS).map(name).collect()),
            rule("app", vec![Peer::Workloads(mk_workloads("data", "app", &app))]),
        ],
        notes: Vec::new(),
        also: Vec::new(),
    }
}
