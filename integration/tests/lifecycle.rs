//! What stays when the agent goes: pinned enforcement, take-over, and interfaces left as found.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use namegate_integration::addresses::{DB, DB_PORT, ECHO, ECHO_PORT, EVIL, RELEASES, STRIPE};
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
fn name_is_open_under_the_next_agent_until_its_time() -> Result<()> {
    names_end_in_their_time("name_is_open_under_the_next_agent_until_its_time", None)
}

#[test]
fn name_is_open_under_an_agent_of_another_version_until_its_time() -> Result<()> {
    let test = "name_is_open_under_an_agent_of_another_version_until_its_time";
    names_end_in_their_time(test, Some(101))
}

/// Gives names more time where the machine takes longer to start an agent.
fn names_end_in_their_time(test: &str, version: Option<u32>) -> Result<()> {
    for life in [6, 30, 200] {
        let Some(town) = Town::for_test(test)? else { return Ok(()) };
        if outlives(&town, Duration::from_secs(life), version)? {
            return Ok(());
        }
    }
    bail!("no agent started before the name ended")
}

/// An answer opens its address for `life`, and so long under two agents; `false` where the second came
/// too late to show it.
fn outlives(town: &Town, life: Duration, version: Option<u32>) -> Result<bool> {
    const GRACE: Duration = Duration::from_secs(1);
    let manifests = Manifests::town(&town.lab)?;
    let min_ttl = format!("{}s", life.as_secs());
    let settings = ["--min-ttl", &min_ttl, "--ttl-grace", "1s"];
    let site = SocketAddr::from((RELEASES.v4, 443));
    let agent = Agent::start(town, &manifests, &settings)?;
    let before = Instant::now();
    ensure!(town.checkout.resolve("releases.acme.example")?.status == "NOERROR");
    let after = Instant::now();
    agent.expect_remembered(town)?;
    // Had the next agent given it its time anew, that would show.
    wait_until("the name to grow old", life, || Ok(after.elapsed() > life / 4))?;
    agent.kill()?;

    let mut next = Agent::spawn_version(town, &manifests, version, &settings)?.expect_ready()?;
    let outcome = town.checkout.try_tcp(site)?;
    if before.elapsed() > life {
        return Ok(false);
    }
    outcome.context("nobody asked for the name again, and it has time left")?;
    let asked = after.elapsed();
    let names = next.ask(&["names", "--name", "releases", "-o", "json"])?.success()?;
    let names: serde_json::Value = serde_json::from_str(&names)?;
    let open_for = names[0]["open_for_s"].as_u64().with_context(|| format!("{names:#}"))?;
    ensure!(
        Duration::from_secs(open_for) + asked <= life + GRACE,
        "{asked:?} after the answer it is open for {open_for} s more"
    );
    wait_until("the name to end", Duration::from_secs(open_for + 10), || {
        Ok(town.checkout.try_tcp(site)?.is_err())
    })?;
    ensure!(before.elapsed() > life, "it ended after {:?}", before.elapsed());
    ensure!(town.checkout.resolve("releases.acme.example")?.status == "NOERROR");
    town.checkout.try_tcp(site)??;
    next.check()?;
    Ok(true)
}

/// What a pod may that takes the checkout's place, and the checkout itself; what comes are replies.
const SUCCESSION: &str = "apiVersion: namegate.dev/v1alpha1\nkind: EgressPolicy\n\
    metadata: {name: succession, namespace: shop}\nspec:\n  \
    podSelector: {matchExpressions: [{key: app, operator: In, values: [checkout, other]}]}\n  \
    egress: [{to: [{fqdn: api.stripe.com}]}, {to: [{cidr: 203.0.113.7/32}]}]\n\
    ---\n\
    apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
    metadata: {name: replies-only, namespace: shop}\n\
    spec: {podSelector: {}, policyTypes: [Ingress]}\n";

#[test]
fn interface_and_address_that_change_hands_between_agents_start_clean() -> Result<()> {
    let test = "interface_and_address_that_change_hands_between_agents_start_clean";
    for (app, version, means) in
        [("other", None, "auto"), ("checkout", Some(101), "auto"), ("other", Some(102), "clsact")]
    {
        let Some(town) = Town::for_test(test)? else { return Ok(()) };
        starts_clean(&town, app, version, means)
            .with_context(|| format!("app {app}, version {version:?}, attached by {means}"))?;
    }
    Ok(())
}

/// While no agent runs, a pod goes and another comes, behind an interface of the same number and with the
/// same addresses.
fn starts_clean(town: &Town, app: &str, version: Option<u32>, means: &str) -> Result<()> {
    let manifests = Manifests::town(&town.lab)?;
    manifests.write("succession.yaml", SUCCESSION)?;
    let start = |version| {
        Agent::spawn_version(town, &manifests, version, &["--attach", means])?.expect_ready()
    };
    let agent = start(None)?;
    let (site, far) = (SocketAddr::from((STRIPE.v4, 443)), SocketAddr::from((ECHO.v4, ECHO_PORT)));
    ensure!(town.checkout.resolve("api.stripe.com")?.status == "NOERROR");
    town.checkout.try_tcp(site)??;
    let mut live = town.checkout.connect(far)??;
    echo(&mut live)?;
    agent.expect_remembered(town)?;
    agent.kill()?;

    town.checkout.replug(&town.node)?;
    wait_until("the connection to go on where nobody judges", Duration::from_secs(10), || {
        Ok(echo(&mut live).is_ok())
    })?;
    let pod = format!("name: {app}-2\n  namespace: shop\n  labels: {{app: {app}}}");
    let former = "name: checkout\n  namespace: shop\n  labels: {app: checkout}";
    manifests.edit("cluster.yaml", former, &pod)?;
    let mut agent = start(version)?;
    ensure!(echo(&mut live).is_err(), "a flow that the other pod opened goes on");
    ensure!(town.checkout.try_tcp(site)?.is_err(), "what the other pod learned is open");
    town.checkout.try_tcp(far)?.context("what the pod may")?;
    ensure!(town.checkout.resolve("api.stripe.com")?.status == "NOERROR");
    town.checkout.try_tcp(site)?.context("what the pod learned itself")?;
    agent.check()
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
