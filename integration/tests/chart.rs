//! What the chart takes for granted of an agent: with what rights it works, when it counts as alive, and
//! what is left of it once the chart is uninstalled.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use namegate_integration::addresses::{ECHO, ECHO_PORT, EVIL, STRIPE};
use namegate_integration::agent::Agent;
use namegate_integration::cluster::{Cluster, OUTPOST_NODE, TOWN_NODE};
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

/// The capabilities that the chart gives the agent.
fn capabilities_of_the_chart() -> Result<Vec<String>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../helm/namegate/templates/_names.tpl");
    let text = fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("add: ["));
    let names = line.context("no capabilities in _names.tpl")?.trim_end_matches(']');
    Ok(names.split(',').map(|name| name.trim().to_lowercase()).collect())
}

#[test]
fn an_agent_works_with_the_rights_that_the_chart_gives_it() -> Result<()> {
    let test = "an_agent_works_with_the_rights_that_the_chart_gives_it";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    cluster.apply("checkout-apis.yaml")?;
    let capabilities = capabilities_of_the_chart()?;
    let town = &cluster.town;
    let start = |arguments: &[&str]| {
        let (lab, node) = (&town.lab, &town.node.namespace);
        Agent::spawn_confined(
            (lab, node),
            TOWN_NODE,
            &cluster.kubeconfig,
            &capabilities,
            arguments,
        )?
        .expect_ready()
    };
    for arguments in [&["--attach", "auto"][..], &["--attach", "clsact"]] {
        let agent = start(arguments)?;
        let status = fs::read_to_string(format!("/proc/{}/status", agent.process_id()))?;
        let field = |name: &str| {
            let found = status.lines().find_map(|line| line.strip_prefix(name));
            found.map(str::trim).with_context(|| format!("no {name} in {status}"))
        };
        for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
            let bits = u64::from_str_radix(field(set)?, 16)?.count_ones();
            assert_eq!(usize::try_from(bits)?, capabilities.len(), "{set} {capabilities:?}");
        }
        assert_eq!(field("NoNewPrivs:")?, "1");

        assert_eq!(town.checkout.resolve("evil.example")?.status, "REFUSED");
        assert!(town.checkout.try_tcp((EVIL.v4, 443).into())?.is_err(), "no rule");
        assert_eq!(town.checkout.resolve("api.stripe.com")?.status, "NOERROR");
        town.checkout.try_tcp((STRIPE.v4, 443).into())?.context("a name that was learned")?;
        assert_eq!(agent.ask(&["alive"])?.code(), 0);
        // The next one takes over with no more than these.
        agent.kill()?;
    }
    let agent = start(&["--detach-on-exit"])?;
    assert!(agent.stop(Signal::TERM)?.success());
    assert!(!town.lab.pins().join(TOWN_NODE).exists(), "it takes away what it made");
    town.checkout.try_tcp((EVIL.v4, 443).into())?.context("nothing judges any more")?;
    Ok(())
}
