//! Another program that works at the agent's hooks: it comes before the agent's, or takes them away.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::patience::wait_until;
use crate::process::Daemon;

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

/// Programs that let everything pass, before all others at a hook, until this value goes.
#[derive(Debug)]
pub struct Rival {
    _process: Daemon,
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

/// How many programs are at a hook of the interface `index` of `node`, whoever's they are.
pub fn count(node: &Namespace, index: u32, hook: Hook) -> Result<u32> {
    let (index, hook) = (index.to_string(), (hook as u32).to_string());
    let said = node.run(&["perl", "-e", SCRIPT, "count", &index, &hook], LIMIT)?.success()?;
    said.trim().parse().with_context(|| format!("no count in {said:?}"))
}

/// Detaches the link that is pinned at `pin`, as whoever may attach can.
pub fn detach(node: &Namespace, pin: &Path) -> Result<()> {
    let pin = pin.to_str().context("a pin's path is text")?;
    node.run(&["perl", "-e", SCRIPT, "detach", pin], LIMIT)?.success().map(drop)
}
