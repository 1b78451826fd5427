//! Two nodes, one API server: objects come and go there, and packets tell whether they are in force.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use namegate_integration::addresses::{DB, DB_PORT, ECHO, ECHO_PORT, EVIL, OUTPOST_TWIN, STRIPE};
use namegate_integration::agent::Agent;
use namegate_integration::apiserver::{Faults, StreamedLists};
use namegate_integration::cluster::{AnyCluster, Cluster, OUTPOST_NODE, mk_pod};
use namegate_integration::flood::{Flood, Sink};
use namegate_integration::lab::{Lab, can_run};
use namegate_integration::objects::Objects;
use namegate_integration::patience::wait_until;
use namegate_integration::pod::echo;
use namegate_integration::process::{Daemon, run};
use namegate_integration::remote::KUBECONFIG;
use serde_json::{Value, json};

/// How long a change may take to be in force.
const SOON: Duration = Duration::from_secs(10);
/// How long after a fault everything must work again: the longest backoff and a little.
const RECOVERY: Duration = Duration::from_secs(45);

fn database() -> SocketAddr {
    (DB.v4, DB_PORT).into()
}

/// An EgressPolicy over the web pods of `shop` that allows `peer`.
fn mk_policy(peer: Value) -> Value {
    json!({
        "apiVersion": "namegate.dev/v1alpha1", "kind": "EgressPolicy",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "egress": [{"to": [peer]}]},
    })
}

fn echo_peer() -> Value {
    json!({"cidr": format!("{}/32", ECHO.v4)})
}

/// Waits until the outpost's web pod can, or cannot, reach the echo server.
fn expect_echo<A>(
    cluster: &Cluster<A>,
    agent: &mut Agent,
    open: bool,
    limit: Duration,
) -> Result<()> {
    let echo = SocketAddr::from((ECHO.v4, ECHO_PORT));
    let what = format!("the far web's way to the echo server to be open={open}");
    let seen = wait_until(&what, limit, || {
        agent.check()?;
        Ok(cluster.outpost.web.try_tcp(echo)?.is_ok() == open)
    });
    seen.map_err(|error| anyhow::anyhow!("{error:#}; the agent said:\n{}", agent.log()))
}

#[test]
fn two_nodes_enforce_what_one_api_server_says() -> Result<()> {
    let Some(cluster) = AnyCluster::for_any("two_nodes_enforce_what_one_api_server_says")? else {
        return Ok(());
    };
    for file in ["checkout-apis.yaml", "database.yaml", "web-apis.yaml"] {
        cluster.apply(file)?;
    }
    let (mut town, mut outpost) = (cluster.start_town()?, cluster.start_outpost()?);
    let (checkout, twin) = (&cluster.town.checkout, &cluster.outpost.twin);

    // The town's story, behind a bridge.
    assert_eq!(checkout.resolve("api.stripe.com")?.status, "NOERROR");
    checkout.try_tcp((STRIPE.v4, 443).into())??;
    assert_eq!(checkout.resolve("evil.example")?.status, "REFUSED");
    assert!(checkout.try_tcp((EVIL.v4, 443).into())?.is_err());
    checkout.try_tcp(database())??;
    assert!(cluster.town.web.try_tcp(database())?.is_err());

    // The same policies on the other node, behind a route; peers are pods of the first.
    twin.try_tcp(database())??;
    assert!(twin.try_tcp((EVIL.v4, 443).into())?.is_err(), "isolated by checkout-apis");
    assert!(cluster.outpost.web.try_tcp(database())?.is_err(), "not among the database's peers");

    // A pod changes its labels on one node, and the other forgets it.
    let mut renamed = cluster.twin();
    renamed["metadata"]["labels"]["app"] = "renamed".into();
    cluster.api.put(renamed)?;
    let reaches = || Ok::<_, anyhow::Error>(twin.try_tcp(database())?.is_ok());
    wait_until("the database to forget the twin", SOON, || Ok(!reaches()?))?;
    cluster.api.put(cluster.twin())?;
    wait_until("the database to know the twin again", SOON, reaches)?;

    // A policy goes.
    cluster.api.delete("NetworkPolicy", "data", "database")?;
    wait_until("the database to be open to all that may send", SOON, || {
        Ok(cluster.outpost.web.try_tcp(database())?.is_ok())
    })?;
    town.check()?;
    outpost.check()
}

#[test]
fn an_agent_that_starts_without_an_api_server_goes_on_with_the_last_policy() -> Result<()> {
    let test = "an_agent_that_starts_without_an_api_server_goes_on_with_the_last_policy";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    for file in ["checkout-apis.yaml", "database.yaml"] {
        cluster.apply(file)?;
    }
    let (checkout, web) = (&cluster.town.checkout, &cluster.town.web);
    cluster.start_town()?.kill()?;
    cluster.api.faults(|faults| faults.is_down = true);

    // The second one finds what the first one left, the third what the second kept of that.
    for _ in 0..2 {
        let agent = cluster.start_town()?;
        agent.expect_log("what an earlier agent had in force goes on")?;
        agent.expect_log("no answer from the API server")?;
        assert_eq!(agent.warnings(), 1, "one clear message:\n{}", agent.log());
        assert_eq!(checkout.resolve("api.stripe.com")?.status, "NOERROR");
        checkout.try_tcp((STRIPE.v4, 443).into())??;
        assert_eq!(checkout.resolve("evil.example")?.status, "REFUSED");
        assert!(checkout.try_tcp((EVIL.v4, 443).into())?.is_err());
        checkout.try_tcp(database())??;
        assert!(web.try_tcp(database())?.is_err());
        agent.kill()?;
    }

    // What changed meanwhile is in force once the API server is read.
    let mut agent = cluster.start_town()?;
    cluster.api.delete("NetworkPolicy", "data", "database")?;
    cluster.api.delete("EgressPolicy", "shop", "checkout-apis")?;
    cluster.api.put(mk_policy(echo_peer()))?;
    assert!(checkout.try_tcp((EVIL.v4, 443).into())?.is_err(), "nobody told the agent");
    cluster.api.faults(|faults| faults.is_down = false);
    wait_until("the checkout to be without a policy", RECOVERY, || {
        agent.check()?;
        Ok(checkout.try_tcp((EVIL.v4, 443).into())?.is_ok())
    })?;
    wait_until("the web to be under one", SOON, || {
        Ok(web.try_tcp((EVIL.v4, 443).into())?.is_err())
    })?;
    web.try_tcp((ECHO.v4, ECHO_PORT).into())??;
    agent.check()
}

/// Whoever carries an address that is remembered may be another pod by now.
#[test]
fn what_came_while_nobody_could_tell_of_it_is_closed_until_somebody_does() -> Result<()> {
    let test = "what_came_while_nobody_could_tell_of_it_is_closed_until_somebody_does";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    cluster.api.put(mk_policy(echo_peer()))?;
    let (web, twin) = (&cluster.outpost.web, &cluster.outpost.twin);
    let evil = SocketAddr::from((EVIL.v4, 443));
    cluster.start_outpost()?.kill()?;
    cluster.api.faults(|faults| faults.is_down = true);
    cluster.outpost.plug_again(web)?;
    web.try_tcp(evil)?.context("nobody judges the new interface yet")?;

    let mut agent = cluster.start_outpost()?;
    agent.expect_log("came after the last word of the API server")?;
    assert!(web.try_tcp((ECHO.v4, ECHO_PORT).into())?.is_err(), "not even what is allowed");
    assert!(web.try_tcp(evil)?.is_err());
    twin.try_tcp(evil)?.context("a pod that is behind its own interface, and not governed")?;

    cluster.api.faults(|faults| faults.is_down = false);
    expect_echo(&cluster, &mut agent, true, RECOVERY)?;
    assert!(web.try_tcp(evil)?.is_err());
    agent.kill()?;

    // A journal that is damaged is not believed: the agent says so, and waits.
    cluster.api.faults(|faults| faults.is_down = true);
    let journal = cluster.town.lab.file(&format!("run-{OUTPOST_NODE}")).join("objects.journal");
    let mut objects = std::fs::read(&journal)?;
    let middle = objects.len() / 2;
    objects[middle] ^= 1;
    std::fs::write(&journal, objects)?;
    let agent = cluster.spawn_outpost()?;
    agent.expect_log("the objects of an earlier agent are not believed")?;
    agent.expect_log("no answer from the API server")?;
    assert!(web.try_tcp(evil)?.is_err(), "what is in force stays");
    web.try_tcp((ECHO.v4, ECHO_PORT).into())??;
    assert!(!agent.log().contains("enforcing"), "{}", agent.log());
    cluster.api.faults(|faults| faults.is_down = false);
    agent.expect_ready()?.check()
}

#[test]
fn pods_come_go_and_hand_their_address_on() -> Result<()> {
    let Some(cluster) = AnyCluster::for_any("pods_come_go_and_hand_their_address_on")? else {
        return Ok(());
    };
    cluster.api.put(mk_policy(echo_peer()))?;
    let mut agent = cluster.start_outpost()?;
    let evil = SocketAddr::from((EVIL.v4, 443));
    expect_echo(&cluster, &mut agent, true, SOON)?;
    assert!(cluster.outpost.web.try_tcp(evil)?.is_err());

    let address = OUTPOST_TWIN.v4.to_string();
    let twin = &cluster.outpost.twin;
    twin.try_tcp(evil)??;
    cluster.api.delete("Pod", "shop", "twin")?;
    cluster.api.put(mk_pod("heir", "web", OUTPOST_NODE, &address))?;
    wait_until("the heir of the address to be under the web's policy", SOON, || {
        Ok(twin.try_tcp(evil)?.is_err())
    })?;
    twin.try_tcp((ECHO.v4, ECHO_PORT).into())??;

    // A finished pod keeps no address; the same name can come back with it.
    let mut finished = mk_pod("heir", "web", OUTPOST_NODE, &address);
    finished["status"]["phase"] = "Succeeded".into();
    cluster.api.put(finished)?;
    cluster.api.put(cluster.twin())?;
    wait_until("the twin to be back without a policy", SOON, || Ok(twin.try_tcp(evil)?.is_ok()))?;
    agent.check()
}

/// The object of a pod that is deleted by force goes at once; what runs in it may run on.
#[test]
fn a_pod_deleted_by_force_sends_nothing_while_it_runs_on() -> Result<()> {
    let test = "a_pod_deleted_by_force_sends_nothing_while_it_runs_on";
    let Some(cluster) = AnyCluster::for_any(test)? else { return Ok(()) };
    let (web, twin) = (&cluster.outpost.web, &cluster.outpost.twin);
    let (echo_server, evil) = (SocketAddr::from((ECHO.v4, ECHO_PORT)), (EVIL.v4, 9_999).into());
    let mut sink = Sink::open(&cluster.town.internet, evil)?;
    let flood = Flood::start(&web.namespace, evil, 2_000)?;
    wait_until("the sink to hear a pod that nothing governs", SOON, || Ok(sink.received()? > 100))?;
    cluster.api.put(mk_policy(echo_peer()))?;
    let mut agent = cluster.start_outpost()?;
    let mut live = web.connect(echo_server)??;
    echo(&mut live)?;

    let before = sink.received()?;
    cluster.api.delete("Pod", "shop", "far-web")?;
    let is_closed = || Ok(web.try_tcp(echo_server)?.is_err());
    wait_until("what the object's policy opened to be closed", SOON, is_closed)?;
    assert!(echo(&mut live).is_err(), "the live flow as well");
    agent.expect_log("Pod shop/far-web: the object is gone")?;

    // Neither without an agent nor with the next one.
    agent.kill()?;
    assert!(web.try_tcp(echo_server)?.is_err());
    agent = cluster.start_outpost()?;
    assert!(web.try_tcp(echo_server)?.is_err());

    // Another pod of its name, elsewhere on the node, is itself alone.
    cluster.api.delete("Pod", "shop", "twin")?;
    let address = OUTPOST_TWIN.v4.to_string();
    cluster.api.put(mk_pod("far-web", "web", OUTPOST_NODE, &address))?;
    wait_until("the second pod of the name to be under the policy", SOON, || {
        Ok(twin.try_tcp(echo_server)?.is_ok() && twin.try_tcp((EVIL.v4, 443).into())?.is_err())
    })?;
    assert!(web.try_tcp(echo_server)?.is_err());
    let sent = flood.sent();
    wait_until("the flood to go on", SOON, || Ok(flood.sent() > sent + 100))?;
    assert_eq!(sink.received()?, before, "of {} datagrams since the first agent", flood.sent());

    // What was kept goes with the interface.
    let node = &cluster.outpost.node;
    let links = links_of(&cluster, OUTPOST_NODE)?;
    assert_eq!(links.len(), 4, "two programs for each of two interfaces: {links:?}");
    node.ip(&[&format!("link del {}", web.interface)])?;
    wait_until("the programs of the interface to be let go", SOON, || {
        Ok(links_of(&cluster, OUTPOST_NODE)?.len() == 2)
    })?;
    agent.check()
}

/// The names of the links that the agent of a node has pinned.
fn links_of(cluster: &AnyCluster, node: &str) -> Result<Vec<String>> {
    let mut links = Vec::new();
    for version in std::fs::read_dir(cluster.town.lab.pins().join(node))? {
        for link in std::fs::read_dir(version?.path().join("links"))? {
            links.push(link?.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(links)
}

#[test]
fn whatever_the_api_server_does_enforcement_stays() -> Result<()> {
    let Some(cluster) = Cluster::for_test("whatever_the_api_server_does_enforcement_stays")? else {
        return Ok(());
    };
    cluster.api.put(mk_policy(echo_peer()))?;
    let mut agent = cluster.start_outpost()?;
    let evil = SocketAddr::from((EVIL.v4, 443));
    let mut open = true;
    let faults = [
        ("cut", false),
        ("410", false),
        ("410 in the stream", false),
        ("watches that end soon", false),
        ("429", true),
        ("500", true),
        ("401", true),
        ("403", true),
        ("hangs", true),
        ("down", true),
    ];
    for (fault, is_away) in faults {
        cluster.api.faults(|faults| match fault {
            "429" => faults.fail_with = Some(429),
            "500" => faults.fail_with = Some(500),
            "401" => faults.fail_with = Some(401),
            "403" => {
                faults.forbidden =
                    ["list", "watch"].map(|verb| (verb, vec!["egresspolicies"])).into();
            }
            "hangs" => faults.hangs = true,
            "down" => faults.is_down = true,
            "410 in the stream" => faults.tells_gone_in_stream = true,
            "watches that end soon" => faults.watch_limit = Some(Duration::from_millis(300)),
            _ => {}
        });
        if fault.starts_with("410") {
            cluster.api.compact();
        }
        let before = cluster.api.requests().len();
        cluster.api.cut();
        let asked = if fault == "watches that end soon" { 40 } else { 1 };
        if !matches!(fault, "down") {
            wait_until("the agent to ask again", RECOVERY, || {
                Ok(cluster.api.requests().len() >= before + asked)
            })?;
        }
        // What changes meanwhile is not known to the agent; what was known is in force.
        let peer = if open { json!({"cidr": "192.0.2.200/32"}) } else { echo_peer() };
        if is_away {
            cluster.api.put(mk_policy(peer.clone()))?;
        }
        expect_echo(&cluster, &mut agent, open, SOON)?;
        assert!(cluster.outpost.web.try_tcp(evil)?.is_err(), "{fault} opens nothing");
        if matches!(fault, "401" | "403" | "down") {
            wait_until("the agent to say that it does not follow", RECOVERY, || {
                Ok(agent.ask(&["status"])?.stdout.contains("are not followed"))
            })?;
        }
        if is_away {
            expect_echo(&cluster, &mut agent, open, SOON)?;
            cluster.api.faults(|faults| *faults = Faults::default());
        } else {
            cluster.api.put(mk_policy(peer))?;
        }
        if fault == "hangs" {
            cluster.api.cut();
        }
        open = !open;
        expect_echo(&cluster, &mut agent, open, RECOVERY)
            .map_err(|error| anyhow::anyhow!("after {fault}: {error:#}"))?;
        cluster.api.faults(|faults| *faults = Faults::default());
    }
    wait_until("the agent to say that it follows everything", RECOVERY, || {
        Ok(!agent.ask(&["status"])?.stdout.contains("are not followed"))
    })
}

/// Its definition was deleted while nobody watched: the agent saw no policy go.
#[test]
fn a_kind_that_goes_away_unseen_stays_in_force_until_it_is_back() -> Result<()> {
    let test = "a_kind_that_goes_away_unseen_stays_in_force_until_it_is_back";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    let name = "egresspolicies.namegate.dev";
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": name},
        "spec": {"group": "namegate.dev", "names": {"kind": "EgressPolicy"}},
    });
    cluster.api.put(definition.clone())?;
    cluster.api.put(mk_policy(echo_peer()))?;
    let mut agent = cluster.start_outpost()?;
    let evil = SocketAddr::from((EVIL.v4, 443));
    expect_echo(&cluster, &mut agent, true, SOON)?;

    cluster.api.faults(|faults| faults.is_down = true);
    cluster.api.cut();
    cluster.api.delete("CustomResourceDefinition", "", name)?;
    cluster.api.compact();
    cluster.api.faults(|faults| faults.is_down = false);
    let said = format!("the API server has no {name} any more");
    wait_until("the agent to say that the kind is gone", RECOVERY, || {
        agent.check()?;
        Ok(agent.log().contains(&said))
    })?;
    expect_echo(&cluster, &mut agent, true, SOON)?;
    assert!(cluster.outpost.web.try_tcp(evil)?.is_err(), "what was known stays in force");
    assert!(agent.ask(&["status"])?.stdout.contains("are not followed"));

    cluster.api.put(definition)?;
    cluster.api.put(mk_policy(json!({"cidr": "192.0.2.200/32"})))?;
    expect_echo(&cluster, &mut agent, false, RECOVERY)?;
    assert!(cluster.outpost.web.try_tcp(evil)?.is_err());
    assert_eq!(agent.log().matches(&said).count(), 1, "said once:\n{}", agent.log());
    wait_until("the agent to say that it follows everything", RECOVERY, || {
        Ok(!agent.ask(&["status"])?.stdout.contains("are not followed"))
    })
}

/// The tests that need no faults, as they would run over a cluster: the API server is another program,
/// and all that is known of it is a kubeconfig.
#[test]
fn the_same_tests_run_over_whatever_a_kubeconfig_leads_to() -> Result<()> {
    let test = "the_same_tests_run_over_whatever_a_kubeconfig_leads_to";
    if std::env::var_os(KUBECONFIG).is_some() || !can_run(test)? {
        return Ok(());
    }
    let lab = Lab::for_test()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_apiserver"));
    command.args(["127.0.0.1:0".as_ref(), lab.folder().as_os_str()]);
    let mut api = Daemon::start_piped(&mut command, &lab.file("apiserver.log"))?;
    let mut kubeconfig = String::new();
    BufReader::new(api.stdout().context("no output")?).read_line(&mut kubeconfig)?;
    let mut tests = Command::new(std::env::current_exe()?);
    tests.env(KUBECONFIG, kubeconfig.trim()).args(["--exact", "--test-threads=1"]).args([
        "two_nodes_enforce_what_one_api_server_says",
        "pods_come_go_and_hand_their_address_on",
        "policy_kinds_that_appear_later_are_picked_up",
        "whatever_the_api_server_does_enforcement_stays",
    ]);
    let finished = run(&mut tests, Duration::from_secs(300))?;
    let told = format!("{}{}", finished.stdout, finished.stderr);
    api.check()?;
    assert_eq!(finished.code(), 0, "{told}");
    assert!(told.contains("4 passed"), "{told}");
    assert!(told.contains("SKIPPED whatever_the_api_server_does"), "{told}");
    Ok(())
}

#[test]
fn api_servers_without_streamed_lists_serve_as_well() -> Result<()> {
    let test = "api_servers_without_streamed_lists_serve_as_well";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    cluster.api.put(mk_policy(echo_peer()))?;
    for streamed in [StreamedLists::Refused, StreamedLists::FailInStream] {
        cluster.api.faults(|faults| faults.streamed_lists = streamed);
        let before = cluster.api.requests().len();
        let mut agent = cluster.start_outpost()?;
        expect_echo(&cluster, &mut agent, true, SOON)?;
        assert!(cluster.outpost.web.try_tcp((EVIL.v4, 443).into())?.is_err());
        let requests = cluster.api.requests();
        let lists = requests[before..].iter().filter(|request| request.contains("limit="));
        assert!(lists.count() > 0, "{streamed:?}: listed in pages: {requests:?}");
        agent.kill()?;
    }
    Ok(())
}

#[test]
fn policy_kinds_that_appear_later_are_picked_up() -> Result<()> {
    let test = "policy_kinds_that_appear_later_are_picked_up";
    let Some(cluster) = AnyCluster::for_any(test)? else { return Ok(()) };
    let mut agent = cluster.start_outpost()?;
    let evil = SocketAddr::from((EVIL.v4, 443));
    cluster.outpost.web.try_tcp(evil)??;
    cluster.api.define("CiliumNetworkPolicy")?;
    cluster.api.put(json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "web"}},
            "egress": [{"toCIDR": [format!("{}/32", ECHO.v4)]}],
        },
    }))?;
    wait_until("the Cilium policy to be in force", SOON, || {
        Ok(cluster.outpost.web.try_tcp(evil)?.is_err())
    })?;
    expect_echo(&cluster, &mut agent, true, SOON)
}

#[test]
fn a_policy_that_turns_bad_in_the_cluster_keeps_its_last_good_version() -> Result<()> {
    let test = "a_policy_that_turns_bad_in_the_cluster_keeps_its_last_good_version";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    cluster.api.put(mk_policy(echo_peer()))?;
    let mut agent = cluster.start_outpost()?;
    cluster.api.put(mk_policy(json!({"fqdn": "api.*.com"})))?;
    agent.expect_log("object refused")?;
    let log = agent.log();
    let said = log.lines().find(|line| line.contains("object refused")).unwrap();
    for word in
        ["EgressPolicy shop/web", "spec.egress[0].to[0].fqdn", "last_good_version_stays=true"]
    {
        assert!(said.contains(word), "{word}: {said}");
    }
    expect_echo(&cluster, &mut agent, true, SOON)?;
    assert!(cluster.outpost.web.try_tcp((EVIL.v4, 443).into())?.is_err());
    Ok(())
}
