//! What API servers do in the course of a day, and what it costs: bookmarks, lists, tokens, pauses.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use namegate_integration::addresses::{ECHO, ECHO_PORT, EVIL};
use namegate_integration::agent::Agent;
use namegate_integration::apiserver::StreamedLists;
use namegate_integration::cluster::{Cluster, OUTPOST_NODE, mk_pod};
use namegate_integration::objects::Objects;
use namegate_integration::patience::wait_until;

/// Longer than the longest backoff, and than a token is kept.
const LONG: Duration = Duration::from_secs(150);

/// How requests about the policies of the tests look.
const POLICIES: &str = "/egresspolicies?";

/// The requests for policies after the first so many.
fn asked(cluster: &Cluster, after: usize) -> Vec<String> {
    let requests = cluster.api.requests();
    requests[after..].iter().filter(|request| request.contains(POLICIES)).cloned().collect()
}

fn is_list(request: &str) -> bool {
    request.contains("sendInitialEvents=true") || !request.contains("watch=")
}

fn evil() -> SocketAddr {
    (EVIL.v4, 443).into()
}

/// Checks that the policy of the far web pod is in force, by packets.
fn expect_enforced(cluster: &Cluster) -> Result<()> {
    let web = &cluster.outpost.web;
    web.try_tcp((ECHO.v4, ECHO_PORT).into())?.context("what the policy allows")?;
    assert!(web.try_tcp(evil())?.is_err(), "what it does not allow");
    Ok(())
}

fn expect_said(agent: &Agent, text: &str) -> Result<()> {
    wait_until(&format!("{text:?} in the agent's log"), LONG, || Ok(agent.log().contains(text)))
        .with_context(|| agent.log())
}

#[test]
fn bookmarks_spare_a_list_after_a_cut() -> Result<()> {
    let Some(cluster) = Cluster::for_test("bookmarks_spare_a_list_after_a_cut")? else {
        return Ok(());
    };
    cluster.let_web_reach_echo()?;
    for has_bookmarks in [true, false] {
        cluster.api.faults(|faults| faults.lacks_bookmarks = !has_bookmarks);
        let agent = cluster.start_outpost()?;
        // Policies stay as they are, and the cluster goes on.
        cluster.api.put(mk_pod("passer-by", "other", "elsewhere", "10.244.9.9"))?;
        let version = cluster.api.version();
        if has_bookmarks {
            wait_until("a bookmark of the policies", LONG, || {
                Ok(cluster.api.bookmarked("egresspolicies") >= version)
            })?;
        }
        cluster.api.forget(version);
        let before = cluster.api.requests().len();
        cluster.api.cut();
        wait_until("the policies to be watched again", LONG, || {
            Ok(!asked(&cluster, before).is_empty())
        })?;
        // What is told after the cut is in force, over the watch that there is by then.
        cluster.api.delete("EgressPolicy", "shop", "web")?;
        wait_until("the policy to be gone", LONG, || {
            Ok(cluster.outpost.web.try_tcp(evil())?.is_ok())
        })?;
        let asked = asked(&cluster, before);
        let has_listed = asked.iter().any(|request| is_list(request));
        assert_eq!(has_listed, !has_bookmarks, "{asked:?}");
        cluster.let_web_reach_echo()?;
        wait_until("the policy to be back", LONG, || {
            Ok(cluster.outpost.web.try_tcp(evil())?.is_err())
        })?;
        agent.kill()?;
    }
    Ok(())
}

#[test]
fn an_api_server_that_overlooks_streamed_lists_tells_everything_all_the_same() -> Result<()> {
    let test = "an_api_server_that_overlooks_streamed_lists_tells_everything_all_the_same";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    cluster.let_web_reach_echo()?;
    cluster.api.faults(|faults| faults.streamed_lists = StreamedLists::Overlooked);
    let agent = cluster.spawn_outpost()?;
    // Nobody says that a stream was all: it is listed in pages once it has paused for long.
    expect_said(&agent, " enforcing")?;
    expect_enforced(&cluster)?;
    let asked = asked(&cluster, 0);
    assert!(asked.iter().any(|request| request.contains("limit=")), "{asked:?}");
    Ok(())
}

#[test]
fn a_token_that_expires_is_read_again_from_its_file() -> Result<()> {
    let test = "a_token_that_expires_is_read_again_from_its_file";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    cluster.let_web_reach_echo()?;
    let (kubeconfig, token) = cluster.api.kubeconfig_with_token_file()?;
    let (lab, node) = (&cluster.town.lab, &cluster.outpost.node);
    let agent = Agent::spawn_in(lab, node, OUTPOST_NODE, &kubeconfig, &[])?.expect_ready()?;
    // As a kubelet does it: the file has the next token before the API server takes the last no more.
    std::fs::write(token, "another-token")?;
    cluster.api.faults(|faults| faults.token = Some("another-token"));
    cluster.api.cut();
    expect_said(&agent, "does not accept the agent's credentials")?;
    expect_enforced(&cluster)?;
    expect_said(&agent, "the API server answers again")?;
    cluster.api.delete("EgressPolicy", "shop", "web")?;
    wait_until("the policy to be gone", LONG, || Ok(cluster.outpost.web.try_tcp(evil())?.is_ok()))
}

#[test]
fn an_api_server_that_is_busy_is_asked_again_when_it_says() -> Result<()> {
    let test = "an_api_server_that_is_busy_is_asked_again_when_it_says";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    cluster.let_web_reach_echo()?;
    let agent = cluster.start_outpost()?;
    for code in [429, 503] {
        cluster.api.faults(|faults| {
            faults.fail_with = Some(code);
            faults.retry_after = Some(Duration::from_secs(3));
        });
        let before = cluster.api.requests().len();
        cluster.api.cut();
        wait_until("the agent to ask for policies twice", LONG, || {
            Ok(asked(&cluster, before).len() >= 2)
        })?;
        expect_enforced(&cluster)?;
        let early = cluster.api.early_requests();
        assert!(!early.iter().any(|request| request.contains("egresspolicies")), "{early:?}");
        cluster.api.faults(|faults| *faults = Default::default());
        wait_until("the agent to follow everything", LONG, || {
            Ok(!agent.ask(&["status"])?.stdout.contains("are not followed"))
        })?;
    }
    cluster.api.delete("EgressPolicy", "shop", "web")?;
    wait_until("the policy to be gone", LONG, || Ok(cluster.outpost.web.try_tcp(evil())?.is_ok()))
}

#[test]
fn policies_that_may_not_be_read_any_more_stay_in_force() -> Result<()> {
    let test = "policies_that_may_not_be_read_any_more_stay_in_force";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    cluster.let_web_reach_echo()?;
    cluster.start_outpost()?.kill()?;
    cluster.api.faults(|faults| {
        for verb in ["list", "watch"] {
            faults.forbidden.insert(verb, vec!["egresspolicies"]);
        }
    });
    let agent = cluster.start_outpost()?;
    expect_said(&agent, "egresspolicies.namegate.dev: give its account the verb")?;
    // A kind counts as gone that is not served, and not one that is denied: however often it is looked.
    let looks = || {
        let requests = cluster.api.requests();
        requests.iter().filter(|request| request.ends_with(" /apis")).count()
    };
    let before = looks();
    wait_until("the agent to look for kinds", LONG, || Ok(looks() >= before + 4))?;
    expect_enforced(&cluster)?;
    cluster.api.faults(|faults| *faults = Default::default());
    cluster.api.delete("EgressPolicy", "shop", "web")?;
    wait_until("the policy to be gone", LONG, || Ok(cluster.outpost.web.try_tcp(evil())?.is_ok()))
}

#[test]
fn objects_from_before_another_build_had_the_node_are_not_believed() -> Result<()> {
    let test = "objects_from_before_another_build_had_the_node_are_not_believed";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    cluster.let_web_reach_echo()?;
    cluster.start_outpost()?.kill()?;
    cluster.api.faults(|faults| faults.is_down = true);
    let agent = cluster.start_outpost()?;
    expect_said(&agent, "what an earlier agent had in force goes on")?;
    agent.kill()?;
    // A build that keeps no objects says no more than who it is.
    let lock = cluster.town.lab.file(&format!("run-{OUTPOST_NODE}")).join("agent.lock");
    std::fs::write(lock, "4711\n")?;
    let agent = cluster.spawn_outpost()?;
    expect_said(&agent, "are not those that were in force last")?;
    expect_said(&agent, "no answer from the API server")?;
    assert!(!agent.log().contains("goes on"), "{}", agent.log());
    expect_enforced(&cluster)?;
    cluster.api.faults(|faults| *faults = Default::default());
    expect_said(&agent, " enforcing")?;
    expect_enforced(&cluster)
}
