//! Agents that are killed again and again, under denied packets and live flows: nothing leaks, nothing
//! breaks. `make test-restart` is the long form.

use std::env;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use namegate_integration::addresses::EVIL;
use namegate_integration::agent::Agent;
use namegate_integration::flood::{Flood, Sink};
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
    let spawn = |version| Agent::spawn_version(&town, &manifests, version, &[]);
    let mut agent = spawn(None)?.expect_ready()?;

    let denied = SocketAddr::from((EVIL.v4, 9_999));
    let mut sink = Sink::open(&town.internet, denied)?;
    let flood = Flood::start(&town.checkout.namespace, denied, extent.denied_per_second)?;
    let from = &town.checkout.namespace;
    let flows = LiveFlows::open(from, &town.internet, (SERVER, 7_777).into(), extent.flows)?;
    let used = || {
        let before = flows.exchanges();
        let enough = u64::try_from(extent.flows).unwrap_or(u64::MAX);
        wait_until("the flows to be used", SOON, || Ok(flows.exchanges() > before + enough))
    };
    for number in 0..extent.kills {
        agent.kill()?;
        used()?;
        agent = spawn(None)?;
        if number % 2 == 0 {
            // In the midst of its start.
            wait_until("the agent to take over", SOON, || {
                agent.check()?;
                Ok(agent.log().contains("taking over"))
            })?;
        } else {
            agent = agent.expect_ready()?;
            used()?;
        }
        assert_eq!(sink.received()?, 0, "after {} kills", number + 1);
    }
    for version in (1_000..).take(usize::try_from(extent.upgrades)?) {
        agent.kill()?;
        agent = spawn(Some(version))?.expect_ready()?;
        used()?;
        assert_eq!(sink.received()?, 0, "version {version}");
    }
    agent.check()?;
    let report = flows.end()?;
    assert_eq!(sink.received()?, 0, "of {} denied datagrams", flood.sent());
    assert!(flood.sent() > u64::from(extent.denied_per_second), "the flood went on");
    assert_eq!(report.broken, Vec::<String>::new(), "of {} flows", report.flows);
    println!(
        "{} kills, {} upgrades: 0 of {} denied datagrams leaked, 0 of {} flows broke, longest gap {:?}",
        extent.kills,
        extent.upgrades,
        flood.sent(),
        report.flows,
        report.longest_gap
    );
    Ok(())
}
