//! What the chart takes for granted of an agent: when it counts as alive, and what is left of it once the
//! chart is uninstalled.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use namegate_integration::addresses::{ECHO, ECHO_PORT, EVIL};
use namegate_integration::agent::Agent;
use namegate_integration::cluster::{Cluster, OUTPOST_NODE};
use namegate_integration::objects::Objects;
use namegate_integration::patience::wait_until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

/// The name that the chart's DaemonSet has.
const DAEMON_SET: &str = "namegate";

/// The node's list of CNI plugins before there was an agent.
const LIST: &str =
    r#"{"cniVersion": "1.0.0", "name": "lab", "plugins": [{"type": "ptp", "ipam": {}}]}"#;

fn mk_daemon_set() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": DAEMON_SET, "namespace": "default"}, "spec": {},
    })
}

/// The outpost's node under agents that leave it with their DaemonSet.
struct Node {
    cluster: Cluster,
    lists: String,
    programs: String,
}

impl Node {
    fn new(cluster: Cluster) -> Result<Self> {
        let folder = |name: &str| -> Result<String> {
            let folder = cluster.town.lab.file(name);
            fs::create_dir_all(&folder)?;
            Ok(folder.display().to_string())
        };
        let (lists, programs) = (folder("lists")?, folder("programs")?);
        fs::write(Path::new(&lists).join("10-lab.conflist"), LIST)?;
        cluster.let_web_reach_echo()?;
        Ok(Self { cluster, lists, programs })
    }

    /// Starts an agent and waits until its plugin is among the node's.
    fn start(&self) -> Result<Agent> {
        let arguments = [
            ["--detach-with", DAEMON_SET],
            ["--cni-lists", &self.lists],
            ["--cni-programs", &self.programs],
        ];
        let Cluster { town, outpost, kubeconfig, .. } = &self.cluster;
        let arguments = arguments.concat();
        let agent =
            Agent::spawn_in(&town.lab, &outpost.node, OUTPOST_NODE, kubeconfig, &arguments)?
                .expect_ready()?;
        wait_until("the plugin to be in its place", SOON, || {
            Ok(self.list()?.contains("namegate"))
        })?;
        self.expect_enforced()?;
        Ok(agent)
    }

    fn list(&self) -> Result<String> {
        Ok(fs::read_to_string(Path::new(&self.lists).join("10-lab.conflist"))?)
    }

    fn expect_enforced(&self) -> Result<()> {
        let web = &self.cluster.outpost.web;
        ensure!(web.try_tcp((EVIL.v4, 443).into())?.is_err(), "what no rule allows is open");
        web.try_tcp((ECHO.v4, ECHO_PORT).into())?.context("what a rule allows")
    }

    /// Ends an agent, after which everything has to be as it left it at work.
    fn expect_left_enforced(&self, agent: Agent, why: &str) -> Result<()> {
        let log = agent.log();
        assert!(agent.stop(Signal::TERM)?.success(), "{why}: {log}");
        self.expect_enforced().with_context(|| format!("{why}: {log}"))?;
        assert!(self.list()?.contains("namegate"), "{why}: the plugin stays");
        Ok(())
    }
}

#[test]
fn an_agent_whose_daemon_set_is_deleted_leaves_its_node_as_it_was() -> Result<()> {
    let test = "an_agent_whose_daemon_set_is_deleted_leaves_its_node_as_it_was";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    let node = Node::new(cluster)?;
    let api = &node.cluster.api;

    node.expect_left_enforced(node.start()?, "a DaemonSet of that name was never seen")?;
    api.put(mk_daemon_set())?;
    node.expect_left_enforced(node.start()?, "it is there")?;

    let agent = node.start()?;
    api.delete("DaemonSet", "default", DAEMON_SET)?;
    agent.expect_log("the agent's DaemonSet is deleted")?;
    node.expect_enforced().context("until it ends")?;
    api.put(mk_daemon_set())?;
    agent.expect_log("there is a DaemonSet of the agent's again")?;
    node.expect_left_enforced(agent, "another one came in its place")?;

    // The account and its rights go in the same moment, and the agent ends later.
    let agent = node.start()?;
    api.delete("DaemonSet", "default", DAEMON_SET)?;
    agent.expect_log("the agent's DaemonSet is deleted")?;
    api.faults(|faults| faults.fail_with = Some(401));
    api.cut();
    assert!(agent.stop(Signal::TERM)?.success());
    let web = &node.cluster.outpost.web;
    web.try_tcp((EVIL.v4, 443).into())?.context("nothing judges any more")?;
    assert_eq!(serde_json::from_str::<Value>(&node.list()?)?, serde_json::from_str::<Value>(LIST)?);
    assert_eq!(fs::read_dir(&node.programs)?.count(), 0, "the plugin is gone");
    let lab = &node.cluster.town.lab;
    assert!(!lab.pins().join(OUTPOST_NODE).exists(), "programs and maps are gone");
    assert!(!lab.file(&format!("run-{OUTPOST_NODE}")).exists(), "so is what it kept");
    Ok(())
}

#[test]
fn an_agent_is_alive_while_it_waits_and_not_when_it_hangs() -> Result<()> {
    let test = "an_agent_is_alive_while_it_waits_and_not_when_it_hangs";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    cluster.api.faults(|faults| faults.is_down = true);
    let agent = cluster.spawn_outpost()?;
    agent.expect_log("no answer from the API server")?;
    let alive = |agent: &Agent| agent.ask(&["alive"]);
    let asked = alive(&agent)?;
    assert_eq!(asked.code(), 0, "it waits for the API server: {asked:?}");
    cluster.api.faults(|faults| faults.is_down = false);
    let agent = agent.expect_ready()?;
    assert_eq!(alive(&agent)?.code(), 0);

    let process = Pid::from_raw(agent.process_id().try_into()?).context("a process number")?;
    kill_process(process, Signal::STOP)?;
    let asked = alive(&agent)?;
    kill_process(process, Signal::CONT)?;
    assert_eq!(asked.code(), 1, "{asked:?}");
    assert!(asked.stderr.contains("not alive"), "{asked:?}");
    assert_eq!(alive(&agent)?.code(), 0, "it goes on");
    agent.kill()?;
    assert_eq!(cluster.start_outpost()?.ask(&["alive"])?.code(), 0, "so does the next one");
    Ok(())
}
