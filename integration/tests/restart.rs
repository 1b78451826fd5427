//! Agents that are killed again and again, and followed by others of another build and of another version,
//! under live flows and packets that are denied to a pod and from it: nothing leaks, nothing breaks.
//! `make test-restart` is the long form.

use std::env;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use namegate_integration::agent::{Agent, Build};
use namegate_integration::flood::Denied;
use namegate_integration::live::LiveFlows;
use namegate_integration::manifests::Manifests;
use namegate_integration::patience::wait_until;
use namegate_integration::town::Town;

const SOON: Duration = Duration::from_secs(30);

/// A server that the checkout may reach.
const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 200);

/// What the checkout may reach besides, and that nobody opens a flow to it: what comes are replies.
const POLICIES: &str = "apiVersion: namegate.dev/v1alpha1\nkind: EgressPolicy\n\
    metadata: {name: live, namespace: shop}\n\
    spec: {podSelector: {matchLabels: {app: checkout}}, egress: [{to: [{cidr: 203.0.113.200/32}]}]}\n\
    ---\n\
    apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
    metadata: {name: replies-only, namespace: shop}\n\
    spec: {podSelector: {matchLabels: {app: checkout}}, policyTypes: [Ingress]}\n";

/// How much is done.
struct Extent {
    kills: u32,
    upgrades: u32,
    flows: usize,
    denied_per_second: u32,
}

impl Extent {
    fn asked_for() -> Result<Self> {
        let number = |name: &str, otherwise: u32| match env::var(name) {
            Ok(text) => text.parse().with_context(|| format!("{name}={text}")),
            Err(_) => Ok(otherwise),
        };
        Ok(Self {
            kills: number("NAMEGATE_RESTARTS", 4)?,
            upgrades: number("NAMEGATE_UPGRADES", 2)?,
            flows: usize::try_from(number("NAMEGATE_LIVE_FLOWS", 100)?)?,
            denied_per_second: number("NAMEGATE_DENIED_RATE", 2_000)?,
        })
    }
}

#[test]
fn killed_agents_leak_nothing_and_break_no_flow() -> Result<()> {
    let test = "killed_agents_leak_nothing_and_break_no_flow";
    let Some(town) = Town::for_test(test)? else { return Ok(()) };
    let extent = Extent::asked_for()?;
    town.internet.ip(&[&format!("addr add {SERVER}/32 dev lo")])?;
    let manifests = Manifests::town(&town.lab)?;
    manifests.write("live.yaml", POLICIES)?;
    let mut denied = Denied::both_ways(&town, extent.denied_per_second / 2)?;
    let spawn = |build: &Build| Agent::spawn_build(&town, &manifests, build);
    let builds = [Build::named().map_or_else(Build::own, Ok)?, Build::other()?];
    let mut agent = spawn(&builds[1])?.expect_ready()?;
    let mut tags = agent.program_tags()?;
    denied.iter_mut().try_for_each(Denied::watch)?;

    let from = &town.checkout.namespace;
    let flows = LiveFlows::open(from, &town.internet, (SERVER, 7_777).into(), extent.flows)?;
    let used = || {
        let before = flows.exchanges();
        let enough = u64::try_from(extent.flows).unwrap_or(u64::MAX);
        wait_until("the flows to be used", SOON, || Ok(flows.exchanges() > before + enough))
    };
    for (number, build) in (1..=extent.kills).zip(builds.iter().cycle()) {
        agent.kill()?;
        used()?;
        agent = spawn(build)?;
        if number % 4 < 2 {
            // In the midst of its start.
            wait_until("the agent to take over", SOON, || {
                agent.check()?;
                Ok(agent.log().contains("taking over"))
            })?;
        } else {
            agent = agent.expect_ready()?;
            used()?;
        }
        let former = std::mem::replace(&mut tags, agent.program_tags()?);
        assert_ne!(former, tags, "the builds' programs have the same instructions");
        let when = format!("after {number} kills");
        denied.iter_mut().try_for_each(|denied| denied.expect_closed(&when))?;
    }
    let builds = [Build::own()?, Build::other()?];
    for (version, build) in (1_000..1_000 + extent.upgrades).zip(builds.iter().cycle()) {
        agent.kill()?;
        let build = build.clone().of_version(version);
        if version % 2 == 1 {
            // Killed in the midst of the upgrade, each time elsewhere, and begun again.
            agent = spawn(&build)?;
            wait_until("the agent to find the other", SOON, || {
                agent.check()?;
                Ok(agent.log().contains("an agent of another version was here"))
            })?;
            agent.kill()?;
        }
        agent = spawn(&build)?.expect_ready()?;
        used()?;
        let when = format!("version {version}");
        denied.iter_mut().try_for_each(|denied| denied.expect_closed(&when))?;
    }
    agent.check()?;
    let report = flows.end()?;
    denied.iter_mut().try_for_each(|denied| denied.expect_closed("in the end"))?;
    assert_eq!(report.broken, Vec::<String>::new(), "of {} flows", report.flows);
    let [from_pod, to_pod] = denied.map(|denied| denied.sent());
    println!(
        "{} kills, each followed by another build, {} upgrades to another version: 0 of {from_pod} denied \
         datagrams from the pod leaked and 0 of {to_pod} to it, 0 of {} flows broke, longest gap {:?}",
        extent.kills, extent.upgrades, report.flows, report.longest_gap
    );
    Ok(())
}
