//! What stays when the agent goes: pinned enforcement, take-over, and interfaces left as found.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use namegate_integration::addresses::{DB, DB_PORT, EVIL, STRIPE};
use namegate_integration::agent::{Agent, binary};
use namegate_integration::manifests::Manifests;
use namegate_integration::patience::wait_until;
use namegate_integration::pod::echo;
use namegate_integration::process::run;
use namegate_integration::rival::{self, Hook};
use namegate_integration::scene::Scene;
use namegate_integration::town::Town;
use rustix::process::Signal;

#[test]
fn enforcement_outlives_the_agent_and_a_restart_takes_over() -> Result<()> {
    let test = "enforcement_outlives_the_agent_and_a_restart_takes_over";
    let Some(scene) = Scene::for_test(test, &[])? else {
        return Ok(());
    };
    let Scene { agent, manifests, town, .. } = scene;
    let site = SocketAddr::from((STRIPE.v4, 443));
    let evil = SocketAddr::from((EVIL.v6, 443));
    let mut live = town.checkout.connect((DB.v4, DB_PORT).into())??;
    town.checkout.resolve("api.stripe.com")?;
    agent.expect_remembered(&town)?;
    agent.kill()?;

    echo(&mut live)?;
    town.checkout.try_tcp(site)??;
    assert!(town.checkout.try_tcp(evil)?.is_err(), "a dead agent opens nothing");
    assert!(town.web.try_tcp((DB.v4, DB_PORT).into())?.is_err());

    let mut agent = Agent::start(&town, &manifests, &[])?;
    echo(&mut live)?;
    town.checkout.try_tcp(site)?.context("what the first agent learned is open under the next")?;
    assert!(town.checkout.try_tcp(evil)?.is_err());
    assert_eq!(town.checkout.resolve("evil.example")?.status, "REFUSED");
    assert_eq!(town.checkout.resolve("api.stripe.com")?.status, "NOERROR");
    town.checkout.try_tcp(site)??;
    agent.check()?;

    assert!(agent.stop(Signal::TERM)?.success(), "a clean end");
    assert!(town.checkout.try_tcp(evil)?.is_err(), "pinned after a clean end, too");
    Ok(())
}

#[test]
fn detach_on_exit_leaves_the_node_as_found() -> Result<()> {
    let test = "detach_on_exit_leaves_the_node_as_found";
    let Some(town) = Town::for_test(test)? else {
        return Ok(());
    };
    for signal in [Signal::TERM, Signal::INT] {
        let before = state_of(&town)?;
        let manifests = Manifests::town(&town.lab)?;
        let agent = Agent::start(&town, &manifests, &["--detach-on-exit"])?;
        let evil = SocketAddr::from((EVIL.v4, 443));
        assert!(town.checkout.try_tcp(evil)?.is_err());
        assert!(agent.stop(signal)?.success(), "{signal:?}");
        town.checkout.try_tcp(evil)??;
        assert_eq!(state_of(&town)?, before, "after {signal:?}");
        assert!(!town.lab.pins().exists(), "pins are gone");
    }
    Ok(())
}

#[test]
fn uninstall_leaves_the_node_as_found() -> Result<()> {
    let test = "uninstall_leaves_the_node_as_found";
    let Some(town) = Town::for_test(test)? else {
        return Ok(());
    };
    let before = state_of(&town)?;
    let manifests = Manifests::town(&town.lab)?;
    let agent = Agent::start(&town, &manifests, &[])?;
    let evil = SocketAddr::from((EVIL.v4, 443));
    assert!(town.checkout.try_tcp(evil)?.is_err());
    assert_ne!(state_of(&town)?, before, "what an agent does is seen, or this shows nothing");
    agent.kill()?;
    let (pins, run_dir) = (town.lab.pins(), town.lab.file("run"));
    let mut uninstall = town.node.namespace.command(binary()?);
    uninstall.arg("uninstall").arg("--pin-dir").arg(&pins).arg("--run-dir").arg(&run_dir);
    run(&mut uninstall, Duration::from_secs(10))?.success()?;
    assert!(!pins.exists() && !run_dir.exists());
    // The kernel lets go of links on a worker of its own.
    wait_until("the node to be as it was found", Duration::from_secs(5), || {
        Ok(state_of(&town)? == before)
    })?;
    town.checkout.try_tcp(evil)?.map_err(Into::into)
}

/// The node's links, addresses, routes, rules, settings and attached programs, as text.
fn state_of(town: &Town) -> Result<String> {
    let mut state = String::new();
    let node = &town.node.namespace;
    for command in [
        &["ip", "-br", "-d", "link"][..],
        &["ip", "-br", "addr"],
        &["ip", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["ip", "rule"],
        &["tc", "qdisc"],
        &["tc", "filter"],
        &["nft", "list", "ruleset"],
        &["grep", "-rs", ".", "/proc/sys/net/ipv4/conf", "/proc/sys/net/ipv6/conf"],
    ] {
        state.push_str(&node.run(command, Duration::from_secs(5))?.stdout);
    }
    for pod in [&town.checkout, &town.web, &town.db, &town.kube_dns] {
        let index = node.interface_index(&pod.interface)?;
        for hook in [Hook::Ingress, Hook::Egress] {
            let programs = rival::count(node, index, hook)?;
            let filters = rival::filters(node, &pod.interface, hook)?;
            state.push_str(&format!("{}: {hook:?}: {programs:?} {filters}\n", pod.interface));
        }
    }
    Ok(state)
}

#[test]
fn pods_come_go_and_hand_their_address_on() -> Result<()> {
    let Some(scene) = Scene::for_test("pods_come_go_and_hand_their_address_on", &[])? else {
        return Ok(());
    };
    let database = SocketAddr::from((DB.v4, DB_PORT));
    scene.town.checkout.try_tcp(database)??;
    let (from, to) = ("labels: {app: checkout}", "labels: {app: renamed}");
    scene.manifests.edit("cluster.yaml", from, to)?;
    wait_until("the database to forget the checkout", Duration::from_secs(3), || {
        Ok(scene.town.checkout.try_tcp(database)?.is_err())
    })?;
    scene.manifests.edit("cluster.yaml", to, from)?;
    wait_until("the database to know the checkout again", Duration::from_secs(3), || {
        Ok(scene.town.checkout.try_tcp(database)?.is_ok())
    })
}
