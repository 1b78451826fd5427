//! Whether the programs are where they were attached: another program can be put before them, and
//! whoever may attach may detach.

use std::collections::BTreeSet;

use super::attach::{AttachPoint, detach, make_directories, programs_at};
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

/// Where programs of the datapath are to be first. It borrows nothing, so that the kernel, which lets
/// nobody change interfaces meanwhile, can be asked on a thread that may wait.
#[derive(Clone, Debug)]
pub struct HookWatch {
    hooks: Vec<Spot>,
    own: [u32; 2],
    has_tcx: bool,
    attach_point: AttachPoint,
}

impl HookWatch {
    /// The hooks of these interfaces alone.
    #[must_use]
    pub fn of(mut self, interfaces: &BTreeSet<u32>) -> Self {
        self.hooks.retain(|spot| interfaces.contains(&spot.ifindex));
        self
    }

    /// The hooks at which a program of the datapath is not the first; an interface that is gone has
    /// none. A few system calls an interface.
    pub fn displaced(&self) -> Result<Vec<DisplacedHook>, DatapathError> {
        let mut displaced = Vec::new();
        for spot in &self.hooks {
            let (ifindex, direction) = (spot.ifindex, spot.direction);
            let fault = self.fault(spot)?;
            displaced.extend(fault.map(|fault| DisplacedHook { ifindex, direction, fault }));
        }
        Ok(displaced)
    }

    fn fault(&self, spot: &Spot) -> Result<Option<HookFault>, DatapathError> {
        let at = (self.has_tcx, self.attach_point);
        let programs = programs_at(at, spot.ifindex, spot.direction)?;
        let own = self.own[spot.direction as usize];
        Ok(programs.and_then(|programs| match programs.first() {
            Some(&first) if first == own && spot.is_taken() => None,
            Some(&program) if program != own && programs.contains(&own) => {
                Some(HookFault::Behind { program })
            }
            Some(_) | None => Some(HookFault::Missing),
        }))
    }
}

impl Datapath {
    /// The hooks that are to be looked at, as of now.
    pub fn hook_watch(&self) -> HookWatch {
        let spots = self
            .attached
            .iter()
            .flat_map(|&ifindex| BOTH.map(|direction| self.spot(ifindex, direction, Role::Judge)));
        // What another version enforces is left to it until its endpoint is written anew.
        let is_own = |spot: &Spot| !self.earlier_spots(spot).iter().any(Spot::is_taken);
        HookWatch {
            hooks: spots.filter(is_own).collect(),
            own: self.program_numbers,
            has_tcx: self.has_tcx,
            attach_point: self.attach_point,
        }
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
