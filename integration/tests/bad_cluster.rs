//! What an agent says of a cluster that it cannot read, and that enforcement goes on as it was.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use namegate_integration::addresses::{ECHO, ECHO_PORT, EVIL};
use namegate_integration::agent;
use namegate_integration::cluster::{Cluster, OUTPOST_NODE, TOWN_NODE};
use namegate_integration::patience::wait_until;

/// How long after a fault everything must work again: the longest backoff and a little.
const RECOVERY: Duration = Duration::from_secs(45);

#[test]
fn an_agent_that_cannot_read_the_cluster_says_why() -> Result<()> {
    let test = "an_agent_that_cannot_read_the_cluster_says_why";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    let (node, lab) = (&cluster.town.node.namespace, &cluster.town.lab);
    let kubeconfig = cluster.kubeconfig.display().to_string();
    let pins = lab.pins().join(TOWN_NODE).display().to_string();
    let broken = lab.file("broken-kubeconfig");
    std::fs::write(&broken, "apiVersion: v1\nkind: Config\n")?;
    let broken = broken.display().to_string();
    for (arguments, words) in [
        (&["--kubeconfig", "/no/such/file"][..], &["/no/such/file"][..]),
        (&["--kubeconfig", &broken], &["broken-kubeconfig", "context"]),
        (&["--node-name", "town"], &["KUBERNETES_SERVICE_HOST", "--kubeconfig"]),
        (
            &["--kubeconfig", &kubeconfig, "--node-name", "nowhere"],
            &["no Node nowhere", "outpost, town", "NODE_NAME"],
        ),
    ] {
        let pins = ["--pin-dir", &pins, "--log-level", "warn"];
        let finished = agent::run_to_end(node, &[arguments, &pins].concat(), RECOVERY)?;
        assert_eq!(finished.code(), 1, "{finished:?}");
        assert_eq!(finished.stderr.lines().count(), 1, "one clear message: {finished:?}");
        for word in words {
            assert!(finished.stderr.contains(word), "{word}: {finished:?}");
        }
    }

    for (what, words) in [
        ("down", &["no answer from the API server", "https://192.0.2.1:6443"][..]),
        ("401", &["does not accept the agent's credentials", "token"]),
        ("403", &["may not", "networkpolicies.networking.k8s.io", "ClusterRole"]),
    ] {
        cluster.api.faults(|faults| match what {
            "down" => faults.is_down = true,
            "401" => faults.fail_with = Some(401),
            _ => {
                faults.forbidden.insert("list", vec!["networkpolicies"]);
                faults.forbidden.insert("watch", vec!["networkpolicies"]);
            }
        });
        let waiting = cluster.spawn_town()?;
        for word in words {
            waiting.expect_log(word)?;
        }
        assert_eq!(waiting.warnings(), 1, "{what}: one clear message:\n{}", waiting.log());
        cluster.api.faults(|faults| *faults = Default::default());
        waiting.expect_ready()?.kill()?;
        // The next one has nothing to begin with.
        std::fs::remove_file(lab.file(&format!("run-{TOWN_NODE}")).join("objects.journal"))?;
    }
    Ok(())
}

#[test]
fn kinds_of_another_version_are_told_of_once_and_the_rest_is_enforced() -> Result<()> {
    let test = "kinds_of_another_version_are_told_of_once_and_the_rest_is_enforced";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    cluster.api.define_version("ClusterNetworkPolicy", "v1")?;
    cluster.let_web_reach_echo()?;
    let mut agent = cluster.start_outpost()?;
    let before = cluster.api.requests().len();
    agent.expect_log("ClusterNetworkPolicy objects are not read")?;
    let log = agent.log();
    let said = log.lines().find(|line| line.contains("WARN")).context("no warning")?;
    for word in ["served=v1", "policy.networking.k8s.io/v1alpha2", "is not enforced"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let web = &cluster.outpost.web;
    web.try_tcp((ECHO.v4, ECHO_PORT).into())?.context("what the other policies allow")?;
    assert!(web.try_tcp((EVIL.v4, 443).into())?.is_err());
    // Looked for again and again, and said once.
    let looks = || {
        let requests = cluster.api.requests();
        requests[before..].iter().filter(|request| request.as_str() == "GET /apis").count()
    };
    wait_until("the agent to look again", RECOVERY, || Ok(looks() >= 3))?;
    assert_eq!(agent.warnings(), 1, "one clear message:\n{}", agent.log());
    agent.check()
}

#[test]
fn a_second_agent_of_a_node_is_refused_and_the_first_goes_on() -> Result<()> {
    let test = "a_second_agent_of_a_node_is_refused_and_the_first_goes_on";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    cluster.apply("web-apis.yaml")?;
    let evil = SocketAddr::from((EVIL.v4, 443));
    let mut first = cluster.start_outpost()?;
    let lab = &cluster.town.lab;
    let (pins, run) = (lab.pins().join(OUTPOST_NODE), lab.file(&format!("run-{OUTPOST_NODE}")));
    let (pins, run) = (pins.display().to_string(), run.display().to_string());
    let kubeconfig = cluster.kubeconfig.display().to_string();
    let arguments = [
        ["--kubeconfig", &kubeconfig],
        ["--node-name", OUTPOST_NODE],
        ["--pin-dir", &pins],
        ["--run-dir", &run],
        ["--log-level", "warn"],
    ];
    let second = agent::run_to_end(&cluster.outpost.node, arguments.as_flattened(), RECOVERY)?;
    assert_eq!(second.code(), 1, "{second:?}");
    assert_eq!(second.stderr.lines().count(), 1, "one clear message: {second:?}");
    for word in [&format!("process {}", first.process_id()), "agent.lock", "stop it first"] {
        assert!(second.stderr.contains(word), "{word}: {second:?}");
    }
    first.check()?;
    assert!(first.ask(&["status"])?.status.success());
    assert!(cluster.outpost.web.try_tcp(evil)?.is_err());
    Ok(())
}
