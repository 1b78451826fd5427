//! Whether the programs are where they were attached: another program can be put before them, and
//! whoever may attach may detach.

use std::fs;
use std::path::PathBuf;

use super::attach::{BOTH, detach_pinned, interface, link_name};
use super::error::DatapathError;
use super::{Datapath, load, query};
use crate::abi::Direction;

/// The program that lets nothing pass.
const SHUT: &str = "pod_shut";

/// A hook at which a program of the datapath is not the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DisplacedHook {
    /// The interface.
    pub ifindex: u32,
    /// Which packets the hook sees.
    pub direction: Direction,
    /// What became of the program.
    pub fault: HookFault,
}

/// What became of a program at its hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HookFault {
    /// It is not attached.
    Missing,
    /// Another one sees packets first, and decides whether this one sees them at all.
    Behind {
        /// The kernel's number of that one.
        program: u32,
    },
}

impl Datapath {
    /// The hooks at which a program of the datapath is not the first; an interface that is gone has
    /// none. Two system calls an interface.
    pub fn displaced_hooks(&self) -> Result<Vec<DisplacedHook>, DatapathError> {
        let mut displaced = Vec::new();
        for &ifindex in &self.attached {
            for direction in BOTH {
                // What another version enforces is left to it until its endpoint is written anew.
                if self.earlier.iter().any(|from| from.link_path(ifindex, direction).exists()) {
                    continue;
                }
                let programs = query::programs(ifindex, direction)
                    .map_err(|source| DatapathError::Query { ifindex, source })?;
                let Some(programs) = programs else { continue };
                let own = self.program_numbers[direction as usize];
                let fault = match programs.first() {
                    Some(&first) if first == own => continue,
                    Some(&program) if programs.contains(&own) => HookFault::Behind { program },
                    Some(_) | None => HookFault::Missing,
                };
                displaced.push(DisplacedHook { ifindex, direction, fault });
            }
        }
        Ok(displaced)
    }

    /// Makes the program at a hook the first one. While it changes places nothing passes.
    pub fn repair_hook(&mut self, hook: &DisplacedHook) -> Result<(), DatapathError> {
        let name = interface(hook.ifindex)?;
        // Whoever took the program away may have taken the pins with it.
        let links = self.pins.join("links");
        fs::create_dir_all(&links).map_err(|source| DatapathError::Pins {
            what: "create",
            path: links,
            source,
        })?;
        let shut = self.shut_path(hook.ifindex, hook.direction);
        detach_pinned(&shut)?;
        if !self.is_shut_loaded {
            load::verify(&mut self.ebpf, SHUT)?;
            self.is_shut_loaded = true;
        }
        self.create_link(&name, hook.direction, SHUT, &shut)?;
        let path = self.link_path(hook.ifindex, hook.direction);
        detach_pinned(&path)?;
        // Where this fails the interface stays shut.
        self.create_link(&name, hook.direction, load::program_name(hook.direction), &path)?;
        detach_pinned(&shut)
    }

    /// Ends what an agent that crashed while it repaired a hook left: the interface stays shut until
    /// its own program is there.
    pub(super) fn finish_repairs(&mut self) -> Result<(), DatapathError> {
        for ifindex in self.attached.clone() {
            for direction in BOTH {
                let shut = self.shut_path(ifindex, direction);
                if !shut.exists() {
                    continue;
                }
                match self.attach(ifindex) {
                    Ok(()) | Err(DatapathError::NoInterface { .. }) => detach_pinned(&shut)?,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Where the link of the program that lets nothing pass is pinned.
    pub(super) fn shut_path(&self, ifindex: u32, direction: Direction) -> PathBuf {
        self.pins.join("links").join(format!("{}-shut", link_name(ifindex, direction)))
    }
}
