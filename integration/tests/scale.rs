//! A large cluster before one agent: what it holds in memory, and what one pod's change costs it.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use namegate_integration::addresses::EVIL;
use namegate_integration::agent::Agent;
use namegate_integration::cluster::{Cluster, OUTPOST_NODE, mk_pod};
use namegate_integration::objects::Objects;
use namegate_integration::patience::wait_until;
use serde_json::{Value, json};

/// How long the agent may take to read everything, and to take all changes in.
const LIMIT: Duration = Duration::from_secs(600);
/// What an agent may hold, in KiB.
const RESIDENT_MAX: u64 = 150 << 10;
/// What a change may cost, in processor time: in a large cluster, and with a build that is not optimised in
/// a small one, where it shows what grows with the cluster.
const CHANGE_MAX: Duration = Duration::from_millis(1);
const SMALL_CHANGE_MAX: Duration = Duration::from_millis(10);
/// From how many pods on a cluster is large.
const LARGE: usize = 100_000;
/// Clock ticks a second of `/proc/PID/stat` (`USER_HZ`).
const TICKS: u64 = 100;
/// Applications of a namespace, each with labels of its own.
const APPS: usize = 4;
/// Pods of a node.
const PODS_OF_A_NODE: usize = 100;

/// How large.
struct Size {
    pods: usize,
    namespaces: usize,
    changes: usize,
}

impl Size {
    fn asked() -> Result<Self> {
        let number = |name: &str, usual: usize| match std::env::var(name) {
            Ok(text) => text.parse().with_context(|| format!("{name}={text:?}")),
            Err(_) => Ok(usual),
        };
        Ok(Self {
            pods: number("NAMEGATE_SCALE_PODS", 1_000)?,
            namespaces: number("NAMEGATE_SCALE_NAMESPACES", 50)?,
            changes: number("NAMEGATE_SCALE_CHANGES", 200)?,
        })
    }
}

/// A pod of another node; `round` is another address of it.
fn mk_far_pod(number: usize, size: &Size, round: u32) -> Value {
    let number_u32 = u32::try_from(number).unwrap_or(u32::MAX);
    let address = Ipv4Addr::from(0x0a80_0000 + (round << 20) + number_u32);
    let app = format!("app{}", number / size.namespaces % APPS);
    let team = number % size.namespaces;
    // As a Deployment names and labels its pods.
    let hash = format!("{:x}", 0x0700_0000 + team * APPS + number / size.namespaces % APPS);
    let mut pod = mk_pod(&format!("{app}-{hash}-{number:05}"), &app, "far", &address.to_string());
    pod["metadata"]["namespace"] = format!("team{team}").into();
    let labels = &mut pod["metadata"]["labels"];
    labels["pod-template-hash"] = hash.into();
    labels["app.kubernetes.io/part-of"] = "town".into();
    pod["spec"]["nodeName"] = format!("far{}", number / PODS_OF_A_NODE).into();
    pod["spec"]["serviceAccountName"] = app.into();
    pod["spec"]["containers"][0]["ports"] = json!([{"name": "http", "containerPort": 8080}]);
    pod
}

/// Pods labelled `app: web` of `shop` may reach one application of every team; with `evil`, more.
fn mk_policy(evil: bool) -> Value {
    let mut peers = vec![json!({
        "podSelector": {"matchLabels": {"app": "app1"}},
        "namespaceSelector": {"matchLabels": {"team": "yes"}},
    })];
    if evil {
        peers.push(json!({"cidr": format!("{}/32", EVIL.v4)}));
    }
    json!({
        "apiVersion": "namegate.dev/v1alpha1", "kind": "EgressPolicy",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "egress": [{"to": peers}]},
    })
}

/// Resident memory and its height, in KiB.
fn resident(agent: &Agent) -> Result<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.process_id()))?;
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
    };
    field("VmRSS:").zip(field("VmHWM:")).context("no VmRSS in the status of the agent")
}

/// Processor time that the agent had so far.
fn processor(agent: &Agent) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", agent.process_id()))?;
    let (_, fields) = stat.rsplit_once(')').context("no name in the agent's stat")?;
    let ticks = |at: usize| fields.split_whitespace().nth(at)?.parse::<u64>().ok();
    let (user, system) = ticks(11).zip(ticks(12)).context("no times in the agent's stat")?;
    Ok(Duration::from_millis((user + system) * 1_000 / TICKS))
}

#[test]
fn a_large_cluster_fits_and_a_change_costs_what_it_changes() -> Result<()> {
    let test = "a_large_cluster_fits_and_a_change_costs_what_it_changes";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    let size = Size::asked()?;
    for number in 0..size.pods.div_ceil(PODS_OF_A_NODE) {
        let metadata = json!({"name": format!("far{number}")});
        cluster.api.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata}))?;
    }
    for number in 0..size.namespaces {
        cluster.api.put(json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": format!("team{number}"), "labels": {"team": "yes"}},
        }))?;
    }
    for number in 0..size.pods {
        cluster.api.put(mk_far_pod(number, &size, 0))?;
    }
    cluster.api.put(mk_policy(false))?;

    let began = Instant::now();
    let mut agent = cluster.spawn_outpost()?;
    wait_until("the agent to enforce", LIMIT, || {
        agent.check()?;
        Ok(agent.log().contains("enforcing"))
    })?;
    let (started, spent) = (began.elapsed(), processor(&agent)?);
    let (now, height) = resident(&agent)?;
    println!(
        "{} pods in {} namespaces: read and enforced after {started:.1?} with {spent:.1?} of a processor; {} MiB resident, {} at most",
        size.pods,
        size.namespaces,
        now >> 10,
        height >> 10,
    );

    let web = &cluster.outpost.web;
    let evil = (EVIL.v4, 443).into();
    assert!(web.try_tcp(evil)?.is_err());
    let (began, before) = (Instant::now(), processor(&agent)?);
    for change in 0..size.changes {
        cluster.api.put(mk_far_pod(change % size.pods, &size, 1))?;
    }
    // A pod of this node without an interface, which the agent's log names: it comes after the others.
    let last = mk_pod("last", "last", OUTPOST_NODE, "10.140.0.1");
    cluster.api.put(last)?;
    wait_until("the last change to be known", LIMIT, || {
        agent.check()?;
        Ok(agent.log().contains("shop/last"))
    })?;
    let (took, spent) = (began.elapsed(), processor(&agent)?.saturating_sub(before));
    let each = spent / u32::try_from(size.changes)?;
    println!("{} pods changed: {took:.1?}, {each:.0?} of a processor each", size.changes);
    let bound = if size.pods < LARGE { SMALL_CHANGE_MAX } else { CHANGE_MAX };
    assert!(each < bound, "{each:?} of a processor for a change");
    cluster.api.put(mk_policy(true))?;
    wait_until("the policy to be another", LIMIT, || Ok(web.try_tcp(evil)?.is_ok()))?;
    let (now, _) = resident(&agent)?;
    println!("{} MiB resident afterwards", now >> 10);
    assert!(now < RESIDENT_MAX, "{} MiB", now >> 10);
    agent.check()
}
