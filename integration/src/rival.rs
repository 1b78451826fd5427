//! Another program that works at the agent's hooks: it comes before the agent's, or takes them away.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::patience::wait_until;
use crate::process::{Daemon, Finished, run};

/// A classic program that lets everything pass (`TC_ACT_OK`).
const PASS: &str = "1,6 0 0 0";

const SCRIPT: &str = include_str!("rival.pl");
const LIMIT: Duration = Duration::from_secs(10);

/// A hook of an interface, by the kernel's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `BPF_TCX_INGRESS`: what comes out of the pod.
    Ingress = 46,
    /// `BPF_TCX_EGRESS`: what goes into the pod.
    Egress = 47,
}

impl Hook {
    /// Its name among those of clsact.
    const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Programs that let everything pass, before all others at a hook, until this value goes.
#[derive(Debug)]
pub struct Rival {
    _process: Daemon,
}

/// A filter that lets everything pass, before all others at a hook, until this value goes.
#[derive(Debug)]
pub struct RivalFilter {
    remove: Command,
}

impl RivalFilter {
    /// Puts it at a hook of an interface of `node` that has a clsact qdisc.
    pub fn before(node: &Namespace, interface: &str, hook: Hook) -> Result<Self> {
        let filter = |what| {
            let mut command = node.command("tc");
            command.args(["filter", what, "dev", interface, hook.name()]);
            command.args(["protocol", "all", "prio", "1", "handle", "0xff", "bpf"]);
            command
        };
        run(filter("add").args(["da", "bytecode", PASS]), LIMIT)?.success()?;
        Ok(Self { remove: filter("del") })
    }
}

impl Drop for RivalFilter {
    fn drop(&mut self) {
        if let Err(error) = run(&mut self.remove, LIMIT).and_then(Finished::success) {
            eprintln!("a rival's filter stays: {error:#}");
        }
    }
}

/// The filters at a hook of an interface of `node`, as `tc` lists them.
pub fn filters(node: &Namespace, interface: &str, hook: Hook) -> Result<String> {
    node.run(&["tc", "filter", "show", "dev", interface, hook.name()], LIMIT)?.success()
}

/// Takes every filter of an interface away, with the qdisc that they belong to.
pub fn clear(node: &Namespace, interface: &str) -> Result<()> {
    node.run(&["tc", "qdisc", "del", "dev", interface, "clsact"], LIMIT)?.success().map(drop)
}

impl Rival {
    /// Puts `count` of them at a hook of the interface `index` of `node`.
    pub fn before(lab: &Lab, node: &Namespace, index: u32, hook: Hook, count: u32) -> Result<Self> {
        let log = lab.file("rival.log");
        let (index, hook) = (index.to_string(), (hook as u32).to_string());
        let mut command = node.command("perl");
        command.args(["-e", SCRIPT, "before", &index, &hook, &count.to_string()]);
        let mut process = Daemon::start(&mut command, &log)?;
        wait_until("the rival to be there", LIMIT, || {
            process.check()?;
            Ok(process.log().contains("attached"))
        })?;
        Ok(Self { _process: process })
    }
}

/// How many programs tcx has at a hook of the interface `index` of `node`, whoever's they are;
/// `None` where the kernel has no tcx.
pub fn count(node: &Namespace, index: u32, hook: Hook) -> Result<Option<u32>> {
    let (index, hook) = (index.to_string(), (hook as u32).to_string());
    let said = node.run(&["perl", "-e", SCRIPT, "count", &index, &hook], LIMIT)?.success()?;
    if said.trim() == "none" {
        return Ok(None);
    }
    said.trim().parse().map(Some).with_context(|| format!("no count in {said:?}"))
}

/// Puts a qdisc in the place of the one that filters need, so that there can be none for what goes
/// into a pod.
pub fn occupy(node: &Namespace, interface: &str) -> Result<()> {
    // The agent may be faster.
    wait_until("the qdisc to be another one", LIMIT, || {
        let _gone_already = clear(node, interface);
        let added = node.run(&["tc", "qdisc", "add", "dev", interface, "ingress"], LIMIT)?;
        Ok(added.code() == 0)
    })
}

/// Takes away what [`occupy`] put there.
pub fn vacate(node: &Namespace, interface: &str) -> Result<()> {
    node.run(&["tc", "qdisc", "del", "dev", interface, "ingress"], LIMIT)?.success().map(drop)
}

/// Detaches the link that is pinned at `pin`, as whoever may attach can.
pub fn detach(node: &Namespace, pin: &Path) -> Result<()> {
    let pin = pin.to_str().context("a pin's path is text")?;
    node.run(&["perl", "-e", SCRIPT, "detach", pin], LIMIT)?.success().map(drop)
}
