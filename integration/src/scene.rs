//! A town under a running agent: where most end-to-end tests begin.

use anyhow::Result;

use crate::agent::Agent;
use crate::manifests::Manifests;
use crate::process::Daemon;
use crate::town::Town;

/// Names stay open for two seconds after an answer, so that tests see them expire.
pub const SHORT_LIFE: [&str; 4] = ["--min-ttl", "1s", "--ttl-grace", "1s"];

/// A town, its manifests and its agent. The agent ends first.
#[derive(Debug)]
pub struct Scene {
    /// A transfer that one step of a story starts and another ends.
    pub download: Option<Daemon>,
    /// The running agent.
    pub agent: Agent,
    /// What it watches.
    pub manifests: Manifests,
    /// Where it runs.
    pub town: Town,
}

impl Scene {
    /// The whole of `examples/town` in force; `None`, after saying so, where this machine cannot.
    pub fn for_test(name: &str, arguments: &[&str]) -> Result<Option<Self>> {
        let Some(town) = Town::for_test(name)? else {
            return Ok(None);
        };
        let manifests = Manifests::town(&town.lab)?;
        Self::begin(town, manifests, arguments).map(Some)
    }

    /// The town's pods without any policy, and the agent watching.
    pub fn without_policies(name: &str, arguments: &[&str]) -> Result<Option<Self>> {
        let Some(town) = Town::for_test(name)? else {
            return Ok(None);
        };
        let manifests = Manifests::cluster(&town.lab)?;
        Self::begin(town, manifests, arguments).map(Some)
    }

    /// Starts the agent over `manifests`.
    pub fn begin(town: Town, manifests: Manifests, arguments: &[&str]) -> Result<Self> {
        let agent = Agent::start(&town, &manifests, arguments)?;
        Ok(Self { download: None, agent, manifests, town })
    }
}
