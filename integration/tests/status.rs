//! What agents write in the API server: the status of policies, by one of them, and Events.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use namegate_integration::addresses::{ECHO, EVIL};
use namegate_integration::agent::Agent;
use namegate_integration::apiserver::{ApiServer, StreamedLists};
use namegate_integration::cluster::{AnyCluster, Cluster, OUTPOST_NODE, TOWN_NODE};
use namegate_integration::objects::Objects;
use namegate_integration::patience::{wait_for, wait_until};
use serde_json::{Value, json};

/// How long a change may take to be reported: reports, the writer's turns, and a Lease that runs out.
const SOON: Duration = Duration::from_secs(60);
/// The same where a write failed before.
const RETRIED: Duration = Duration::from_secs(120);

/// An EgressPolicy over the web pods of `shop`, of which each node has one.
fn mk_policy(name: &str, peer: Value) -> Value {
    json!({
        "apiVersion": "namegate.dev/v1alpha1", "kind": "EgressPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "egress": [{"to": [peer]}]},
    })
}

/// A ClusterNetworkPolicy, with a condition of somebody else's.
fn mk_guard() -> Value {
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "guard"},
        "spec": {
            "tier": "Admin", "priority": 10, "subject": {"namespaces": {}},
            "egress": [{"name": "no", "action": "Deny", "to": [{"networks": ["203.0.113.99/32"]}]}],
        },
        "status": {"conditions": [{
            "type": "Elsewhere", "status": "True", "reason": "Else", "message": "another's",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]},
    })
}

/// A ClusterEgressPolicy over the web pods of all namespaces, before the namespaced ones.
fn mk_floor(name: &str, peer: Value) -> Value {
    json!({
        "apiVersion": "namegate.dev/v1alpha1", "kind": "ClusterEgressPolicy",
        "metadata": {"name": name},
        "spec": {
            "namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}},
            "egress": [{"to": [peer]}],
        },
    })
}

fn echo_peer() -> Value {
    json!({"cidr": format!("{}/32", ECHO.v4)})
}

/// A condition of a policy, shortly: status, reason and generation; and its message.
fn condition(
    api: &impl Objects,
    policy: (&str, &str, &str),
    kind: &str,
) -> Result<(String, String)> {
    let object = api.object(policy.0, policy.1, policy.2)?.context("no such policy")?;
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    let found = conditions.into_iter().flatten().find(|found| found["type"] == kind);
    let Some(found) = found else { return Ok(("none".to_owned(), String::new())) };
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    let brief = format!("{} {} {}", text("status"), text("reason"), found["observedGeneration"]);
    Ok((brief, text("message")))
}

/// Waits until a condition says so, with these words.
fn expect_condition(
    api: &impl Objects,
    (policy, kind): ((&str, &str, &str), &str),
    (expected, words): (&str, &[&str]),
    limit: Duration,
) -> Result<()> {
    let mut last = String::new();
    let seen = wait_until("the condition", limit, || {
        let (brief, message) = condition(api, policy, kind)?;
        last = format!("{brief}: {message}");
        Ok(brief == expected && words.iter().all(|word| message.contains(word)))
    });
    seen.with_context(|| format!("{policy:?} {kind}: expected {expected} {words:?}, is {last}"))
}

const WEB: (&str, &str, &str) = ("EgressPolicy", "shop", "web");
const BAD: (&str, &str, &str) = ("EgressPolicy", "shop", "bad");

/// How many requests there were whose method and path hold these.
fn requests(api: &ApiServer, method: &str, path: &str) -> usize {
    let all = api.requests();
    all.iter().filter(|line| line.starts_with(method) && line.contains(path)).count()
}

/// The node whose agent writes.
fn writer(api: &impl Objects) -> Result<Option<String>> {
    let lease = api.object("Lease", "default", "namegate-status")?;
    let holder =
        lease.and_then(|lease| lease["spec"]["holderIdentity"].as_str().map(str::to_owned));
    Ok(holder.filter(|holder| !holder.is_empty()))
}

#[test]
fn status_says_what_is_in_force_and_what_is_refused() -> Result<()> {
    let test = "status_says_what_is_in_force_and_what_is_refused";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    let api = &cluster.api;
    api.define("ClusterNetworkPolicy")?;
    api.put(mk_policy("web", echo_peer()))?;
    api.put(mk_policy("bad", json!({"fqdn": "api.*.com"})))?;
    api.put(mk_guard())?;
    api.put(mk_floor("all", json!({"cidr": "192.0.2.0/24"})))?;
    api.put(mk_floor("broken", json!({"fqdn": "api.*.com"})))?;
    let (mut town, mut outpost) = (cluster.start_town()?, cluster.start_outpost()?);

    let in_force = ("True Programmed 1", &["in force for 2 pods on 2 nodes"][..]);
    expect_condition(api, (WEB, "Programmed"), in_force, SOON)?;
    expect_condition(api, (WEB, "Accepted"), ("True Accepted 1", &[]), SOON)?;
    let web = api.object(WEB.0, WEB.1, WEB.2)?.unwrap();
    assert_eq!((&web["status"]["endpoints"], &web["status"]["nodes"]), (&2.into(), &2.into()));

    let why = &["spec.egress[0].to[0].fqdn", "what it selects is closed"][..];
    expect_condition(api, (BAD, "Accepted"), ("False Invalid 1", why), SOON)?;
    let all = ("ClusterEgressPolicy", "", "all");
    expect_condition(api, (all, "Accepted"), ("True Accepted 1", &[]), SOON)?;
    expect_condition(api, (all, "Programmed"), ("True Programmed 1", &["2 nodes"]), SOON)?;
    let broken = ("ClusterEgressPolicy", "", "broken");
    expect_condition(api, (broken, "Accepted"), ("False Invalid 1", why), SOON)?;
    expect_condition(api, (broken, "Programmed"), ("False NotAccepted 1", &[]), SOON)?;
    let closed = ("False NotAccepted 1", &["2 pods are closed"][..]);
    expect_condition(api, (BAD, "Programmed"), closed, SOON)?;

    // Of a kind that is not Namegate's, others' conditions stay, and nothing has no place there.
    let guard = ("ClusterNetworkPolicy", "", "guard");
    expect_condition(api, (guard, "Programmed"), ("True Programmed 1", &[]), SOON)?;
    let status = api.object(guard.0, guard.1, guard.2)?.unwrap()["status"].clone();
    assert_eq!(status["conditions"].as_array().map(Vec::len), Some(3), "{status}");
    assert_eq!(status["endpoints"], Value::Null, "{status}");

    // One Event for each that is refused, with all that `kubectl describe` shows.
    wait_until("the Events", SOON, || Ok(api.objects("Event")?.len() >= 2))?;
    let mut events = api.objects("Event")?;
    assert_eq!(events.len(), 2, "{events:?}");
    events.sort_by_key(|event| event["regarding"]["name"] != "bad");
    assert_eq!(events[1]["regarding"]["name"], "broken");
    assert_eq!(events[0]["regarding"]["name"], "bad");
    assert_eq!(events[0]["metadata"]["namespace"], "shop");
    assert!(events[0]["note"].as_str().unwrap().contains("spec.egress[0].to[0].fqdn"));

    // While nothing changes, nothing is written but the Lease.
    let count = || requests(api, "PATCH", "") + requests(api, "POST", "");
    let (before, leases) = (count(), requests(api, "PUT", "/leases/"));
    wait_until("the Lease to be renewed", SOON, || {
        Ok(requests(api, "PUT", "/leases/") >= leases + 4)
    })?;
    assert_eq!(count(), before, "{:?}", api.requests());

    // Mended, it comes into force; a change of a good one that turns it bad keeps what was.
    api.put(mk_policy("bad", echo_peer()))?;
    expect_condition(api, (BAD, "Accepted"), ("True Accepted 2", &[]), SOON)?;
    expect_condition(api, (BAD, "Programmed"), ("True Programmed 2", &["2 nodes"]), SOON)?;
    api.put(mk_policy("web", json!({"fqdn": "*a.com"})))?;
    let kept = ("False NotAccepted 2", &["an earlier generation stays in force for 2 pods"][..]);
    expect_condition(api, (WEB, "Programmed"), kept, SOON)?;
    town.check()?;
    outpost.check()
}

#[test]
fn many_policies_are_written_about_at_a_pace() -> Result<()> {
    /// Writes of a turn, and how many turns there are in a second: as README and the writer have it.
    const EACH_TURN: usize = 20;
    const POLICIES: usize = 100;
    let test = "many_policies_are_written_about_at_a_pace";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    let api = &cluster.api;
    let mut agent = cluster.start_outpost()?;
    wait_until("a writer", SOON, || Ok(writer(api)?.is_some()))?;
    let written = || requests(api, "PATCH", "/status");
    let before = written();
    for number in 0..POLICIES {
        api.put(mk_policy(&format!("web-{number}"), echo_peer()))?;
    }
    let began = Instant::now();
    wait_until("all to be written about", RETRIED, || {
        agent.check()?;
        let count = written() - before;
        // The first turn may come at once, and another may have begun since.
        let turns = usize::try_from(began.elapsed().as_secs())? + 2;
        ensure!(count <= turns * EACH_TURN, "{count} writes in {turns} turns");
        Ok((0..POLICIES).all(|number| {
            let policy = ("EgressPolicy", "shop", &*format!("web-{number}"));
            condition(api, policy, "Accepted").is_ok_and(|(brief, _)| brief == "True Accepted 1")
        }))
    })?;
    let least = POLICIES / EACH_TURN - 2;
    ensure!(began.elapsed().as_secs() >= least as u64, "in {:?}", began.elapsed());
    Ok(())
}

#[test]
fn another_agent_writes_when_the_writer_dies() -> Result<()> {
    let Some(cluster) = AnyCluster::for_any("another_agent_writes_when_the_writer_dies")? else {
        return Ok(());
    };
    let api = &cluster.api;
    api.put(mk_policy("web", echo_peer()))?;

    // A node without an agent is told, and not taken for one that enforces.
    let mut outpost = cluster.start_outpost()?;
    let silent = ("False Pending 1", &["1 of 2 nodes", "town: no agent reports from there"][..]);
    expect_condition(api, (WEB, "Programmed"), silent, SOON)?;
    assert_eq!(writer(api)?.as_deref(), Some(OUTPOST_NODE));
    let town = cluster.start_town()?;
    expect_condition(api, (WEB, "Programmed"), ("True Programmed 1", &["2 nodes"]), SOON)?;

    // The writer dies. The other one takes over, and says what is behind on the node of the dead.
    outpost.check()?;
    outpost.kill()?;
    api.put(mk_policy("web", json!({"cidr": "192.0.2.200/32"})))?;
    let behind = ("False Pending 2", &["outpost: generation 1 is in force still"][..]);
    expect_condition(api, (WEB, "Programmed"), behind, SOON)?;
    assert_eq!(writer(api)?.as_deref(), Some(TOWN_NODE));
    let outpost = cluster.start_outpost()?;
    expect_condition(api, (WEB, "Programmed"), ("True Programmed 2", &["2 nodes"]), SOON)?;

    // One that ends gives the Lease back; a node that started again enforces nothing by its word.
    town.stop(rustix::process::Signal::TERM)?;
    wait_until("the outpost to write", SOON, || Ok(writer(api)?.as_deref() == Some(OUTPOST_NODE)))?;
    let mut node = api.object("Node", "", TOWN_NODE)?.unwrap();
    node["status"]["nodeInfo"] = json!({"bootID": "another"});
    api.put(node)?;
    let silent = ("False Pending 2", &["town: no agent reports from there"][..]);
    expect_condition(api, (WEB, "Programmed"), silent, SOON)?;
    assert!(outpost.log().contains("this agent writes the status"), "{}", outpost.log());
    Ok(())
}

#[test]
fn writes_that_meet_others_are_made_again() -> Result<()> {
    let Some(cluster) = Cluster::for_test("writes_that_meet_others_are_made_again")? else {
        return Ok(());
    };
    let api = &cluster.api;
    api.faults(|faults| faults.conflicts = 3);
    api.put(mk_policy("web", echo_peer()))?;
    let _outpost = cluster.start_outpost()?;
    let _town = cluster.start_town()?;
    wait_until("the first conflict", SOON, || Ok(requests(api, "PATCH", "/web/status") > 0))?;
    // Somebody else changes the object meanwhile; what was met is looked at anew.
    let mut object = mk_policy("web", echo_peer());
    object["metadata"]["labels"] = json!({"touched": "true"});
    api.put(object)?;
    expect_condition(api, (WEB, "Programmed"), ("True Programmed 1", &["2 nodes"]), RETRIED)
}

/// Waits until the agent warned with all these words in one line.
fn expect_warning(agent: &Agent, words: &[&str]) -> Result<()> {
    wait_for("a warning", SOON, || {
        let log = agent.log();
        let mut lines = log.lines().filter(|line| line.contains("WARN"));
        Ok(lines.find(|line| words.iter().all(|word| line.contains(word))).map(|_| ()))
    })
    .with_context(|| format!("{words:?}; the agent said:\n{}", agent.log()))
}

/// Puts a good and a bad policy in place of those that are there.
fn renew_policies(api: &ApiServer) -> Result<()> {
    for (name, peer) in [("web", echo_peer()), ("bad", json!({"fqdn": "api.*.com"}))] {
        if api.object("EgressPolicy", "shop", name)?.is_some() {
            api.delete("EgressPolicy", "shop", name)?;
        }
        api.put(mk_policy(name, peer))?;
    }
    Ok(())
}

#[test]
fn an_agent_that_may_not_write_says_the_verb_and_enforces() -> Result<()> {
    let test = "an_agent_that_may_not_write_says_the_verb_and_enforces";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    let api = &cluster.api;
    let evil = (EVIL.v4, 443).into();
    for (verb, resource, words) in [
        ("get", "leases", ["may not get leases.coordination.k8s.io", "ClusterRole"]),
        ("patch", "namegatenodes", ["may not patch namegatenodes.namegate.dev", "enforcement"]),
        (
            "patch",
            "egresspolicies/status",
            ["may not patch egresspolicies.namegate.dev/status", "enforcement goes on"],
        ),
        ("create", "events", ["may not create events.events.k8s.io", "enforcement goes on"]),
    ] {
        api.faults(|faults| {
            faults.forbidden = [(verb, vec![resource])].into();
        });
        // Policies without a status, whatever the agent before had time to write.
        renew_policies(api)?;
        let agent = cluster.start_outpost()?;
        expect_warning(&agent, &words)?;
        assert!(cluster.outpost.web.try_tcp(evil)?.is_err(), "{resource}: enforced all the same");
        let said = agent.log().lines().filter(|line| line.contains(words[0])).count();
        assert_eq!(said, 1, "said once:\n{}", agent.log());
        agent.kill()?;
        for event in api.objects("Event")? {
            api.delete("Event", "shop", event["metadata"]["name"].as_str().unwrap())?;
        }
    }
    // Given the verb, the agent that lacked it catches up.
    api.faults(|faults| faults.forbidden = [("patch", vec!["egresspolicies/status"])].into());
    renew_policies(api)?;
    let agent = cluster.start_outpost()?;
    expect_warning(&agent, &["may not patch egresspolicies"])?;
    api.faults(|faults| faults.forbidden.clear());
    expect_condition(api, (WEB, "Accepted"), ("True Accepted 1", &[]), RETRIED)?;
    agent.expect_log("status is written again")
}

/// Verb, group and resource of a request, as RBAC has them.
fn access(request: &str) -> Option<(String, String, String)> {
    let (method, uri) = request.split_once(' ')?;
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let mut parts: Vec<&str> = path.split('/').skip(1).collect();
    let group = match parts[..] {
        ["apis", group, _, _, ..] => {
            parts.drain(..3);
            group
        }
        ["api", _, _, ..] => {
            parts.drain(..2);
            ""
        }
        // Which kinds there are, anybody may ask.
        _ => return None,
    };
    if parts.first() == Some(&"namespaces") && parts.len() > 2 {
        parts.drain(..2);
    }
    let (resource, name) = (*parts.first()?, parts.get(1));
    let verb = match (method, name) {
        ("GET", None) if query.contains("watch=") => "watch",
        ("GET", None) => "list",
        ("GET", Some(_)) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        _ => "delete",
    };
    let part = parts.get(2).map(|part| format!("/{part}")).unwrap_or_default();
    Some((verb.to_owned(), group.to_owned(), format!("{resource}{part}")))
}

/// What the chart's rules allow.
fn allowed() -> Result<BTreeSet<(String, String, String)>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../helm/namegate/templates/rbac.yaml");
    let chart = std::fs::read_to_string(path)?;
    let mut allowed = BTreeSet::new();
    for document in chart.split("---") {
        let Some((_, rules)) = document.split_once("\nrules:\n") else { continue };
        // Conditions and names are helm's.
        let rules = rules.lines().filter(|line| !line.contains("{{"));
        let rules = rules.collect::<Vec<_>>().join("\n");
        let rules: Vec<Value> = serde_saphyr::from_str(&rules)?;
        let list = |rule: &Value, key: &str| -> Vec<String> {
            let entries = rule[key].as_array().into_iter().flatten();
            entries.filter_map(|entry| entry.as_str().map(str::to_owned)).collect()
        };
        for rule in &rules {
            for verb in list(rule, "verbs") {
                for group in list(rule, "apiGroups") {
                    let resources = list(rule, "resources").into_iter();
                    allowed.extend(resources.map(|one| (verb.clone(), group.clone(), one)));
                }
            }
        }
    }
    Ok(allowed)
}

#[test]
fn the_chart_gives_the_verbs_that_are_used_and_no_others() -> Result<()> {
    let test = "the_chart_gives_the_verbs_that_are_used_and_no_others";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    let api = &cluster.api;
    for kind in [
        "ClusterNetworkPolicy",
        "CiliumNetworkPolicy",
        "CiliumClusterwideNetworkPolicy",
        "CiliumCIDRGroup",
    ] {
        api.define(kind)?;
    }
    api.put(mk_policy("web", json!({"fqdn": "api.*.com"})))?;
    api.put(json!({
        "apiVersion": "namegate.dev/v1alpha1", "kind": "ClusterEgressPolicy",
        "metadata": {"name": "all"}, "spec": {"namespaceSelector": {}},
    }))?;
    api.put(mk_guard())?;
    // Streamed lists ask for `watch` alone.
    api.faults(|faults| faults.streamed_lists = StreamedLists::Refused);
    let detach = ["--detach-on-exit", "--detach-with", "namegate"];
    let agent = Agent::spawn_in(
        &cluster.town.lab,
        &cluster.outpost.node,
        OUTPOST_NODE,
        &cluster.kubeconfig,
        &detach,
    )?
    .expect_ready()?;
    for path in ["egresspolicies/web/status", "all/status", "guard/status"] {
        wait_until(path, SOON, || Ok(requests(api, "PATCH", path) > 0))?;
    }
    wait_until("the Event", SOON, || Ok(!api.objects("Event")?.is_empty()))?;
    agent.stop(rustix::process::Signal::TERM)?;
    assert_eq!(api.objects("NamegateNode")?.len(), 0, "nothing is enforced there any more");

    let used: BTreeSet<_> = api.requests().iter().filter_map(|request| access(request)).collect();
    let allowed = allowed()?;
    let missing: Vec<_> = used.difference(&allowed).collect();
    assert!(missing.is_empty(), "used and not given: {missing:?}");
    // The right to apply an object asks for that to create it.
    let create = ("create".to_owned(), "namegate.dev".to_owned(), "namegatenodes".to_owned());
    let spare: Vec<_> = allowed.difference(&used).filter(|one| **one != create).collect();
    assert!(spare.is_empty(), "given and not used: {spare:?}");
    Ok(())
}
