//! Whether what is enforced is where it was attached, and what is done about it.
//!
//! The kernel tells nobody that a program was put before another one or taken away, so it is asked
//! often enough that this lasts less than a second.

use std::collections::BTreeMap;

use namegate_egress_bpf::datapath::{Datapath, DatapathError, DisplacedHook, HookFault};

/// How many findings of a kind have a line each in the log.
const LINES: u64 = 16;

/// How the hooks fared since the agent's start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookReport {
    /// How often another program was found before one of the agent's.
    pub displaced: u64,
    /// How often a program of the agent was found detached.
    pub detached: u64,
    /// How many of both were put right.
    pub repaired: u64,
    /// Why the programs of these interfaces are not where they belong.
    pub failing: BTreeMap<u32, String>,
    /// Why it is not known where the programs are.
    pub unknown: Option<String>,
}

impl HookReport {
    /// Takes what a [`namegate_egress_bpf::datapath::HookWatch`] found and puts it right, where it is
    /// so still; says whether [`HookReport::lacking`] changed.
    pub fn take(
        &mut self,
        found: Result<Vec<DisplacedHook>, DatapathError>,
        datapath: &mut Datapath,
    ) -> bool {
        let found = found.and_then(|hooks| {
            let interfaces = hooks.iter().map(|hook| hook.ifindex).collect();
            datapath.hook_watch().of(&interfaces).displaced()
        });
        let hooks = match found {
            Ok(hooks) => hooks,
            Err(error) => {
                let before = self.unknown.replace(chain(&error));
                if before.is_none() {
                    tracing::error!(error = %chain(&error), "the programs cannot be looked for");
                }
                return before != self.unknown;
            }
        };
        let mut failing = BTreeMap::new();
        for hook in hooks {
            let repaired = datapath.repair_hook(&hook);
            // Told afterwards: who reads it may rely on the hook from then on.
            self.count(&hook, repaired.is_ok());
            match repaired {
                Ok(()) => self.repaired += 1,
                Err(error) => {
                    failing.insert(hook.ifindex, chain(&error));
                }
            }
        }
        for (ifindex, why) in failing.iter().filter(|entry| !self.failing.contains_key(entry.0)) {
            tracing::error!(ifindex, why, "programs cannot be put where they belong; tried again");
        }
        let is_other = failing != self.failing || self.unknown.is_some();
        (self.failing, self.unknown) = (failing, None);
        is_other
    }

    /// What is not enforced because of it, for people.
    pub fn lacking(&self) -> impl Iterator<Item = String> {
        let failing =
            self.failing.iter().map(|(ifindex, why)| format!("interface {ifindex}: {why}"));
        failing.chain(self.unknown.iter().cloned())
    }

    fn count(&mut self, hook: &DisplacedHook, is_repaired: bool) {
        let (ifindex, direction) = (hook.ifindex, hook.direction.as_str());
        let times = match hook.fault {
            HookFault::Behind { .. } => &mut self.displaced,
            HookFault::Missing => &mut self.detached,
        };
        *times += 1;
        // Somebody who insists is not worth a line each time.
        if *times > LINES && !times.is_power_of_two() {
            return;
        }
        match hook.fault {
            HookFault::Behind { program } => tracing::warn!(
                ifindex,
                direction,
                program,
                times = *times,
                is_repaired,
                "another program was put before the agent's: until it was put behind, it decided what is judged"
            ),
            HookFault::Missing => tracing::warn!(
                ifindex,
                direction,
                times = *times,
                is_repaired,
                "the agent's program was detached: until it was attached again, nothing was judged"
            ),
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
