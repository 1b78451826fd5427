//! The plugin among real ones: a pod's policy is in force when its interface is handed over.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use namegate_integration::addresses::{ECHO, ECHO_PORT, EVIL, OUTPOST, ROUTER};
use namegate_integration::capture::{Capture, sent_by};
use namegate_integration::kubelet::{PLUGIN, SOON, Stand, Start, mk_plugins};
use namegate_integration::objects::Objects;
use namegate_integration::patience::wait_until;
use serde_json::{Value, json};

fn code(refused: &Value) -> i64 {
    refused["code"].as_i64().unwrap_or_default()
}

fn said(refused: &Value) -> &str {
    refused["msg"].as_str().unwrap_or_default()
}

#[test]
fn a_pod_is_under_policy_when_its_interface_is_handed_over() -> Result<()> {
    let test = "a_pod_is_under_policy_when_its_interface_is_handed_over";
    let Some(stand) = Stand::new(test)? else { return Ok(()) };
    let folder = stand.cluster.town.lab.file("ipam").display().to_string();
    for kind in ["bridge", "ptp"] {
        stand.runtime.write_list("10-lab.conflist", &mk_plugins(kind, &folder))?;
        let mut agent = stand.start(&[])?;
        let (echo, evil) = ((ECHO.v4, ECHO_PORT), (EVIL.v4, 443));
        let start = stand.sandbox(&format!("{kind}-1"), "web", true)?;
        let result = stand.runtime.add(&start.sandbox)?.map_err(|refused| anyhow!("{refused}"))?;
        assert!(!start.reaches(evil)?, "{kind}: isolated from the first packet on");
        start.expect_reach(echo).with_context(|| format!("{kind}: and not more than that"))?;
        stand.runtime.check(&start.sandbox)?.map_err(|refused| anyhow!("{refused}"))?;

        // The kubelet tells the address now, and nothing changes by it.
        stand.tell_address(&start, &result)?;
        start.expect_reach(echo).context(kind)?;
        assert!(!start.reaches(evil)?, "{kind}");

        // A pod of no policy is made while its object is not known: nothing passes until it is.
        let late = stand.sandbox(&format!("{kind}-2"), "free", false)?;
        thread::scope(|scope| -> Result<()> {
            let adding = scope.spawn(|| stand.runtime.add(&late.sandbox));
            wait_until("the pod's interface", SOON, || {
                let addresses = late.namespace.run(&["ip", "-4", "addr", "show", "eth0"], SOON)?;
                Ok(addresses.stdout.contains("inet "))
            })?;
            wait_until("the interface to be closed", SOON, || Ok(!late.reaches(evil)?))?;
            assert!(!adding.is_finished(), "{kind}: it waits");
            stand.make_pod(&late.name, "free")?;
            let added = adding.join().map_err(|_| anyhow!("a panic"))??;
            added.map_err(|refused| anyhow!("{refused}"))?;
            Ok(())
        })?;
        late.expect_reach(evil).with_context(|| format!("{kind}: no policy selects it"))?;

        for start in [&start, &late] {
            for _ in 0..2 {
                let gone = stand.runtime.del(&start.sandbox)?;
                gone.map_err(|refused| anyhow!("{kind}: {refused}"))?;
            }
            stand.cluster.api.delete("Pod", "shop", &start.name)?;
        }
        agent.check()?;
        agent.kill()?;
    }
    Ok(())
}

#[test]
fn what_goes_wrong_between_the_steps_leaves_no_pod_open() -> Result<()> {
    let test = "what_goes_wrong_between_the_steps_leaves_no_pod_open";
    let Some(stand) = Stand::new(test)? else { return Ok(()) };
    let folder = stand.cluster.town.lab.file("ipam").display().to_string();
    stand.runtime.write_list("10-lab.conflist", &mk_plugins("ptp", &folder))?;
    let agent = stand.start(&["--cni-wait", "4s"])?;
    let evil = (EVIL.v4, 443);

    // The pod's object never comes: the pod does not start, and says why.
    let start = stand.sandbox("never", "web", false)?;
    let refused = stand.runtime.add(&start.sandbox)?.err().context("it was let through")?;
    assert_eq!(code(&refused), 11, "{refused}");
    assert!(
        said(&refused).contains("Pod shop/never: the API server has not told of it"),
        "{refused}"
    );
    assert!(!start.reaches(evil)?, "what is left of it is closed");
    stand.runtime.del(&start.sandbox)?.map_err(|refused| anyhow!("{refused}"))?;

    // The agent dies. No pod starts, and none that goes is held up.
    agent.kill()?;
    let start = stand.sandbox("away", "web", true)?;
    let refused = stand.runtime.add(&start.sandbox)?.err().context("it was let through")?;
    assert!(said(&refused).contains("no agent at"), "{refused}");
    let config = stand.runtime.plugins()?.pop().context("no plugin")?;
    let with = |more: Value| {
        let mut config = config.clone();
        config["cniVersion"] = "1.1.0".into();
        for (key, value) in more.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config
    };
    let status = stand.runtime.ask("STATUS", &with(json!({})))?;
    assert_eq!(status.map_err(|refused| code(&refused)), Err(50));
    stand.runtime.del(&start.sandbox)?.map_err(|refused| anyhow!("{refused}"))?;

    // It is back: the kubelet's next attempt succeeds, under policy.
    let agent = stand.start(&["--cni-failure-policy", "allow"])?;
    assert_eq!(stand.runtime.ask("STATUS", &with(json!({})))?, Ok(Value::Null));
    stand.runtime.add(&start.sandbox)?.map_err(|refused| anyhow!("{refused}"))?;
    assert!(!start.reaches(evil)?);

    // A runtime that names what is left: the claim of what it does not name is dropped.
    let left = json!({"cni.dev/valid-attachments": []});
    assert_eq!(stand.runtime.ask("GC", &with(left))?, Ok(Value::Null));
    let checked = stand.runtime.check(&start.sandbox)?;
    assert!(checked.is_err(), "nobody says that it has this address: {checked:?}");
    assert!(!start.reaches(evil)?, "closed, not open");
    stand.runtime.del(&start.sandbox)?.map_err(|refused| anyhow!("{refused}"))?;

    // Where the policy is to allow, a pod starts without the agent, which says so when it is back.
    agent.kill()?;
    stand.runtime.add(&start.sandbox)?.map_err(|refused| anyhow!("{refused}"))?;
    let agent = stand.start(&[])?;
    agent.expect_log("a pod started before its policy was in force")?;
    assert!(agent.log().contains("shop/away"), "{}", agent.log());
    Ok(())
}

#[test]
fn the_plugin_is_kept_in_the_list_and_taken_out() -> Result<()> {
    let Some(stand) = Stand::new("the_plugin_is_kept_in_the_list_and_taken_out")? else {
        return Ok(());
    };
    let runtime = &stand.runtime;
    // The agent comes before the CNI.
    let agent = stand.spawn(&["--detach-on-exit"])?.expect_ready()?;
    agent.expect_log("no list of CNI plugins yet")?;
    let plugins = mk_plugins("ptp", "/nowhere");
    runtime.write_list("10-lab.conflist", &plugins)?;
    stand.expect_chained()?;
    // The CNI writes its list anew; another one is put before it.
    runtime.write_list("10-lab.conflist", &plugins)?;
    stand.expect_chained()?;
    runtime.write_list("05-other.conflist", &mk_plugins("bridge", "/nowhere"))?;
    stand.expect_chained()?;
    assert_eq!(runtime.plugins()?.len(), 2);

    // What has no known shape is left as it is, and said once.
    for (text, words) in [("{\"plugins\": 7}", "is no list"), ("{", "EOF while parsing")] {
        let broken = runtime.lists().join("01-broken.conflist");
        std::fs::write(&broken, text)?;
        agent.expect_log(words)?;
        assert_eq!(std::fs::read_to_string(&broken)?, text);
        let web = &stand.cluster.outpost.web;
        assert!(web.try_tcp((EVIL.v4, 443).into())?.is_err(), "what is enforced stays");
        web.try_tcp((ECHO.v4, ECHO_PORT).into())??;
        std::fs::remove_file(&broken)?;
    }
    let said = agent.log().lines().filter(|line| line.contains("is no list:")).count();
    assert!(said <= 1, "{}", agent.log());

    agent.stop(rustix::process::Signal::TERM)?;
    for list in ["05-other.conflist", "10-lab.conflist"] {
        let list = std::fs::read_to_string(runtime.lists().join(list))?;
        assert!(!list.contains(PLUGIN), "{list}");
    }
    assert!(!runtime.programs().join(PLUGIN).exists());
    let drafts = std::fs::read_dir(runtime.lists())?.count();
    assert_eq!(drafts, 2, "nothing else is left");
    Ok(())
}

#[test]
fn no_packet_of_a_burst_of_pods_is_early() -> Result<()> {
    let Some(stand) = Stand::new("no_packet_of_a_burst_of_pods_is_early")? else { return Ok(()) };
    let (pods, at_once) = match std::env::var("NAMEGATE_BURST") {
        Ok(pods) => (pods.parse()?, 50),
        Err(_) => (24, 8),
    };
    let folder = stand.cluster.town.lab.file("ipam").display().to_string();
    let mut plugins = mk_plugins("bridge", &folder);
    plugins[0]["ipam"]["ranges"] = json!([[{"subnet": "10.244.8.0/21"}]]);
    let list = "10-lab.conflist";
    stand.runtime.write_list(list, &plugins)?;
    let internet = &stand.cluster.town.internet;
    internet.ip(&[&format!("route add 10.244.8.0/21 via {}", OUTPOST.v4)])?;

    // Without the plugin: what a pod costs, and that an early packet would be seen.
    let (bare, early) = burst(&stand, "bare", pods.min(100), at_once)?;
    assert!(early > 0, "nothing would be seen");
    // However slow the machine is: how long it took is said.
    let mut agent = stand.start(&["--cni-wait", "60s"])?;
    let (chained, early) = burst(&stand, "chained", pods, at_once)?;
    let at = |times: &[Duration], percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "ADD of {pods} pods, {at_once} at once: p50 {:?}, p99 {:?}; without the plugin p50 {:?}, p99 {:?}",
        at(&chained, 50),
        at(&chained, 99),
        at(&bare, 50),
        at(&bare, 99),
    );
    assert_eq!(early, 0, "packets went where no policy lets them");
    agent.check()
}

/// Starts pods, each of which sends to where it may not as soon as it can; how long each ADD took, in
/// order, and how many of those packets left the node.
fn burst(stand: &Stand, name: &str, pods: usize, at_once: usize) -> Result<(Vec<Duration>, usize)> {
    let town = &stand.cluster.town;
    let starts: Vec<Start> = (0..pods)
        .map(|number| stand.sandbox(&format!("{name}{number}"), "web", true))
        .collect::<Result<_>>()?;
    let capture = Capture::start(&town.lab, &town.internet, "outpost0")?;
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        while let Some(start) = starts.get(next.fetch_add(1, Ordering::Relaxed)) {
            let began = Instant::now();
            let added = stand.runtime.add(&start.sandbox)?;
            times.push(began.elapsed());
            added.map_err(|refused| anyhow!("{}: {refused}", start.name))?;
            start.send((EVIL.v4, 9_999))?;
        }
        Ok(times)
    };
    let mut times = thread::scope(|scope| -> Result<Vec<Duration>> {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        let mut times = Vec::new();
        for worker in workers {
            times.extend(worker.join().map_err(|_| anyhow!("a panic"))??);
        }
        Ok(times)
    })?;
    times.sort();
    let seen = capture.finish(&stand.cluster.outpost.node, ROUTER.v4.into())?;
    let evil = format!("{}.9999", EVIL.v4);
    let early =
        sent_by(&seen, &["10.244."]).into_iter().filter(|line| line.contains(&evil)).count();
    for start in &starts {
        stand.runtime.del(&start.sandbox)?.map_err(|refused| anyhow!("{refused}"))?;
        stand.cluster.api.delete("Pod", "shop", &start.name)?;
    }
    Ok((times, early))
}
