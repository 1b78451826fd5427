//! Nodes on which the plugin cannot be put in its place: what is told, and what becomes of pods.

use std::process::Command;

use anyhow::{Context, Result, anyhow};
use namegate_integration::addresses::{ECHO, ECHO_PORT, EVIL};
use namegate_integration::agent::{Agent, binary};
use namegate_integration::cluster::OUTPOST_NODE;
use namegate_integration::kubelet::{PLUGIN, SOON, Stand, Start, mk_plugins};
use namegate_integration::objects::Objects;
use namegate_integration::patience::wait_until;
use namegate_integration::process::run;
use namegate_integration::read_only::ReadOnly;

const LIST: &str = "10-lab.conflist";

/// What `namegate status` says of a plugin that is not where it belongs.
const FINDING: &str = "pods start without the CNI plugin";

/// The value of a metric of the agent's.
fn metric(agent: &Agent, name: &str) -> Result<f64> {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "10", "http://agent/metrics", "--unix-socket"]);
    let text = run(curl.arg(agent.socket()), SOON)?.success()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = line.with_context(|| format!("no {name} in:\n{text}"))?;
    Ok(value.parse()?)
}

fn expect_metric(agent: &Agent, name: &str, value: f64) -> Result<()> {
    wait_until(&format!("{name} to be {value}"), SOON, || Ok(metric(agent, name)? == value))
}

/// Starts a pod in the runtime, and has the API server told of its address.
fn start_pod(stand: &Stand, name: &str) -> Result<Start> {
    let start = stand.sandbox(name, "web", true)?;
    let result = stand.runtime.add(&start.sandbox)?.map_err(|refused| anyhow!("{refused}"))?;
    stand.tell_address(&start, &result)?;
    Ok(start)
}

/// Waits until nothing but what its policy allows passes a pod.
fn expect_enforced(start: &Start) -> Result<()> {
    let evil = (EVIL.v4, 443);
    wait_until("the pod to be under policy", SOON, || Ok(!start.reaches(evil)?))?;
    start.expect_reach((ECHO.v4, ECHO_PORT)).context("not more than that is closed")
}

fn write_list(stand: &Stand) -> Result<()> {
    let folder = stand.cluster.town.lab.file("ipam").display().to_string();
    stand.runtime.write_list(LIST, &mk_plugins("ptp", &folder))
}

#[test]
fn a_folder_that_cannot_be_written_is_told_of_once_and_mended_by_itself() -> Result<()> {
    let test = "a_folder_that_cannot_be_written_is_told_of_once_and_mended_by_itself";
    let Some(stand) = Stand::new(test)? else { return Ok(()) };
    write_list(&stand)?;
    for folder in [stand.runtime.programs(), stand.runtime.lists()] {
        let read_only = ReadOnly::over(folder)?;
        let mut agent = stand.spawn(&[])?.expect_ready()?;
        agent.expect_log("Read-only file system")?;
        let said = agent.log();
        let lines: Vec<&str> =
            said.lines().filter(|line| line.contains("Read-only file system")).collect();
        let line = lines.first().context("nothing was said")?;
        for words in [
            folder.to_str().context("a path of text")?,
            "check that the node's folder is mounted writable",
            "pods that start meanwhile are under policy once their interface is found",
        ] {
            assert!(line.contains(words), "{line}");
        }
        assert_eq!(metric(&agent, "namegate_cni_plugin_in_place")?, 0.0);
        let status = agent.ask(&["status"])?.stdout;
        assert!(status.contains(FINDING) && status.contains("Read-only file system"), "{status}");

        // What is enforced and who is found stays as it was: without the plugin.
        let start = start_pod(&stand, "meanwhile")?;
        expect_enforced(&start)?;
        assert_eq!(metric(&agent, "namegate_enforcing")?, 1.0);

        drop(read_only);
        stand.expect_chained()?;
        expect_metric(&agent, "namegate_cni_plugin_in_place", 1.0)?;
        let status = agent.ask(&["status"])?.stdout;
        assert!(!status.contains(FINDING), "{status}");
        let said = agent.log();
        let lines: Vec<&str> =
            said.lines().filter(|line| line.contains("Read-only file system")).collect();
        assert_eq!(lines.len(), 1, "{said}");

        stand.runtime.del(&start.sandbox)?.map_err(|refused| anyhow!("{refused}"))?;
        stand.cluster.api.delete("Pod", "shop", &start.name)?;
        agent.check()?;
        agent.kill()?;
        // As the next one finds them.
        std::fs::remove_file(stand.runtime.programs().join(PLUGIN))?;
        write_list(&stand)?;
    }
    Ok(())
}

#[test]
fn how_long_a_pod_was_up_before_its_policy_is_measured() -> Result<()> {
    let test = "how_long_a_pod_was_up_before_its_policy_is_measured";
    let Some(stand) = Stand::new(test)? else { return Ok(()) };
    let by = |word: &str, what: &str| {
        format!("namegate_pod_window_seconds_{what}{{told_by=\"{word}\"}}")
    };
    write_list(&stand)?;

    // A node without the plugin: the pod is found once the API server has its address.
    let agent = stand.cluster.start_outpost()?;
    assert_eq!(metric(&agent, &by("object", "count"))?, 0.0, "who was there before is not counted");
    let first = start_pod(&stand, "outside")?;
    expect_enforced(&first)?;
    expect_metric(&agent, &by("object", "count"), 1.0)?;
    let open = metric(&agent, &by("object", "sum"))?;
    assert!(open > 0.0 && open < SOON.as_secs_f64(), "{open} s");
    assert_eq!(metric(&agent, &by("plugin", "count"))?, 0.0);
    agent.kill()?;

    // A node with it: the pod's containers wait for as long.
    let agent = stand.start(&[])?;
    let second = start_pod(&stand, "inside")?;
    expect_metric(&agent, &by("plugin", "count"), 1.0)?;
    expect_enforced(&second)?;
    assert_eq!(metric(&agent, &by("object", "count"))?, 0.0);
    assert_eq!(metric(&agent, "namegate_pods_unguarded_total")?, 0.0);

    // A pod that the plugin let start while no agent was there.
    agent.kill()?;
    write_list(&stand)?;
    stand.start(&["--cni-failure-policy", "allow"])?.kill()?;
    let third = start_pod(&stand, "unguarded")?;
    let agent = stand.start(&[])?;
    expect_metric(&agent, "namegate_pods_unguarded_total", 1.0)?;
    expect_enforced(&third)?;
    assert_eq!(metric(&agent, &by("object", "count"))?, 0.0, "it was there before the agent");
    Ok(())
}

#[test]
fn uninstall_takes_the_plugin_and_its_word_away() -> Result<()> {
    let Some(stand) = Stand::new("uninstall_takes_the_plugin_and_its_word_away")? else {
        return Ok(());
    };
    let (runtime, lab) = (&stand.runtime, &stand.cluster.town.lab);
    write_list(&stand)?;
    let before = runtime.plugins()?;
    stand.start(&["--cni-failure-policy", "allow"])?.kill()?;
    // The plugin leaves word of a pod that nobody comes to read.
    start_pod(&stand, "unguarded")?;
    let run_dir = lab.file(&format!("run-{OUTPOST_NODE}"));
    assert_eq!(std::fs::read_dir(run_dir.join("unguarded"))?.count(), 1);

    let mut uninstall = stand.cluster.outpost.node.command(binary()?);
    uninstall.arg("uninstall").arg("--pin-dir").arg(lab.pins().join(OUTPOST_NODE));
    uninstall.arg("--run-dir").arg(&run_dir);
    uninstall.arg("--cni-lists").arg(runtime.lists());
    uninstall.arg("--cni-programs").arg(runtime.programs());
    run(&mut uninstall, SOON)?.success()?;
    assert_eq!(runtime.plugins()?, before);
    assert!(!runtime.programs().join(PLUGIN).exists());
    assert!(!run_dir.exists(), "{:?}", std::fs::read_dir(&run_dir)?.collect::<Vec<_>>());
    let start = start_pod(&stand, "after")?;
    start.expect_reach((EVIL.v4, 443)).context("nothing is enforced, and pods start")
}
