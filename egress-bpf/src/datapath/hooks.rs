//! Whether the programs are where they were attached: another program can be put before them, and
//! whoever may attach may detach.

use super::attach::{AttachPoint, detach, make_directories};
use super::error::DatapathError;
use super::spot::{BOTH, Role, SHUT, Spot, interface};
use super::{Datapath, load, query};
use crate::abi::Direction;

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
    /// It is not attached, or not known to be.
    Missing,
    /// Another one sees packets first, and decides whether this one sees them at all.
    Behind {
        /// The kernel's number of that one; zero where it has none.
        program: u32,
    },
}

impl Datapath {
    /// The hooks at which a program of the datapath is not the first; an interface that is gone has
    /// none. A few system calls an interface.
    pub fn displaced_hooks(&self) -> Result<Vec<DisplacedHook>, DatapathError> {
        let mut displaced = Vec::new();
        for &ifindex in &self.attached {
            for direction in BOTH {
                let spot = self.spot(ifindex, direction, Role::Judge);
                // What another version enforces is left to it until its endpoint is written anew.
                if self.earlier_spots(&spot).iter().any(Spot::is_taken) {
                    continue;
                }
                let Some(programs) = self.programs_at(ifindex, direction)? else { continue };
                let own = self.program_numbers[direction as usize];
                let fault = match programs.first() {
                    Some(&first) if first == own && spot.is_taken() => continue,
                    Some(&program) if program != own && programs.contains(&own) => {
                        HookFault::Behind { program }
                    }
                    Some(_) | None => HookFault::Missing,
                };
                displaced.push(DisplacedHook { ifindex, direction, fault });
            }
        }
        Ok(displaced)
    }

    /// Makes the program at a hook the first one. While it changes places nothing passes.
    pub fn repair_hook(&mut self, hook: &DisplacedHook) -> Result<(), DatapathError> {
        let interface = interface(hook.ifindex)?;
        if self.is_behind_tcx(hook)? {
            return Err(DatapathError::BehindTcx { interface });
        }
        // Whoever took the program away may have taken the pins with it.
        make_directories(&self.pins)?;
        let shut = self.spot(hook.ifindex, hook.direction, Role::Shut);
        detach(&shut)?;
        if !self.is_shut_loaded {
            load::verify(&mut self.ebpf, SHUT)?;
            self.is_shut_loaded = true;
        }
        self.create(&interface, &shut)?;
        let judge = self.spot(hook.ifindex, hook.direction, Role::Judge);
        detach(&judge)?;
        // Where this fails the interface stays shut.
        self.create(&interface, &judge)?;
        detach(&shut)
    }

    /// Whether what is before the program comes before every filter there is.
    fn is_behind_tcx(&self, hook: &DisplacedHook) -> Result<bool, DatapathError> {
        let HookFault::Behind { .. } = hook.fault else { return Ok(false) };
        if self.attach_point == AttachPoint::Tcx || !self.has_tcx {
            return Ok(false);
        }
        let linked = query::programs(hook.ifindex, hook.direction)
            .map_err(|source| DatapathError::Query { ifindex: hook.ifindex, source })?;
        Ok(linked.is_some_and(|programs| !programs.is_empty()))
    }

    /// Ends what an agent that crashed while it repaired a hook left: the interface stays shut until
    /// its own program is there.
    pub(super) fn finish_repairs(&mut self) -> Result<(), DatapathError> {
        for ifindex in self.attached.clone() {
            for direction in BOTH {
                let shut = self.spot(ifindex, direction, Role::Shut);
                if !shut.is_taken() {
                    continue;
                }
                match self.attach(ifindex) {
                    Ok(()) | Err(DatapathError::NoInterface { .. }) => detach(&shut)?,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}
