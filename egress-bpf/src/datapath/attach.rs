//! Programs at interfaces, in a way that outlives the agent.

use std::collections::BTreeSet;
use std::path::Path;

use super::error::DatapathError;
use super::spot::{
    BOTH, FILTERS, LINKS, Role, Spot, attached, interface, make_directory, remove_tree,
};
use super::{Datapath, clsact, earlier, load, query, tcx};
use crate::abi::Direction;

/// What holds a program at an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachPoint {
    /// A link (Linux 6.6).
    Tcx,
    /// A filter of the clsact qdisc, behind every tcx link.
    Clsact,
}

impl AttachPoint {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }

    /// The one that is asked for, or the best that this kernel has.
    pub(super) fn choose(wanted: Option<Self>, has_tcx: bool) -> Result<Self, DatapathError> {
        match wanted {
            None if has_tcx => Ok(Self::Tcx),
            None => Ok(Self::Clsact),
            Some(Self::Tcx) if !has_tcx => Err(DatapathError::NoTcx),
            Some(wanted) => Ok(wanted),
        }
    }
}

impl Datapath {
    /// What holds the programs that this datapath attaches.
    pub fn attach_point(&self) -> AttachPoint {
        self.attach_point
    }

    /// Tries on an interface of the agent's own whether the kernel has all that attaching takes.
    pub fn check_attach(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        match self.attach_point {
            AttachPoint::Tcx => Ok(()),
            AttachPoint::Clsact => {
                clsact::check(ifindex, load::descriptor(&mut self.ebpf, "pod_egress")?)
            }
        }
    }

    /// Attaches both programs to an interface, before any other program there. Where one is attached
    /// already, by an agent of whatever version, it is replaced without a packet in between.
    pub fn attach(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        let interface = interface(ifindex)?;
        self.attached.insert(ifindex);
        for direction in BOTH {
            let spot = self.spot(ifindex, direction, Role::Judge);
            if !(self.replace(&spot)? || self.inherit(&spot)?) {
                self.create(&interface, &spot)?;
            }
            self.detach_other(&spot)?;
            self.detach_earlier(&spot)?;
        }
        self.settle_qdiscs(ifindex)
    }

    /// Lets nothing pass an interface: its endpoint goes, and the programs stay there, or come where
    /// they are missing. An interface that is gone is no error.
    pub fn close(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        self.remove_endpoint(ifindex)?;
        match self.attach(ifindex) {
            Ok(()) | Err(DatapathError::NoInterface { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Detaches both programs from an interface; one that has none, or is gone, is no error.
    pub fn detach(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        for pins in self.earlier.iter().map(earlier::Earlier::pins).chain([self.pins.as_path()]) {
            detach_all(pins, ifindex)?;
        }
        self.attached.remove(&ifindex);
        Ok(())
    }

    /// The interfaces that have programs attached, those of agents of other versions included.
    pub fn attached(&self) -> &BTreeSet<u32> {
        &self.attached
    }

    /// Detaches from every interface, removes every pin, and leaves the node as it was.
    pub fn detach_all(mut self) -> Result<(), DatapathError> {
        for ifindex in std::mem::take(&mut self.attached) {
            self.detach(ifindex)?;
        }
        for earlier in &self.earlier {
            remove_tree(earlier.pins())?;
        }
        remove_tree(&self.pins)
    }

    /// Removes what agents of every version left below `pin_root`, when none runs.
    pub fn remove(pin_root: &Path) -> Result<(), DatapathError> {
        for (_, pins) in earlier::versions(pin_root)? {
            for ifindex in attached(&pins)? {
                detach_all(&pins, ifindex)?;
            }
        }
        remove_tree(pin_root)
    }

    /// Puts this agent's programs in the place of the previous agent's; an interface that is gone
    /// loses its pins.
    pub(super) fn adopt_attached(&mut self) -> Result<(), DatapathError> {
        for ifindex in attached(&self.pins)? {
            let Ok(interface) = interface(ifindex) else {
                detach_all(&self.pins, ifindex)?;
                continue;
            };
            if !is_judged(&self.pins, ifindex)? {
                forget_all(&self.pins, ifindex)?;
                continue;
            }
            for direction in BOTH {
                let spot = self.spot(ifindex, direction, Role::Judge);
                let mut is_there = self.replace(&spot)?;
                // The agent before this one attached by other means.
                if !is_there && spot.is_taken() {
                    self.create(&interface, &spot)?;
                    self.detach_other(&spot)?;
                    is_there = true;
                }
                if is_there || self.spot(ifindex, direction, Role::Shut).is_taken() {
                    self.attached.insert(ifindex);
                }
            }
            self.settle_qdiscs(ifindex)?;
        }
        Ok(())
    }

    /// A place of this agent's.
    pub(super) fn spot(&self, ifindex: u32, direction: Direction, role: Role) -> Spot {
        Spot { pins: self.pins.clone(), ifindex, direction, role }
    }

    /// Attaches a program before all others.
    pub(super) fn create(&mut self, interface: &str, spot: &Spot) -> Result<(), DatapathError> {
        match self.attach_point {
            AttachPoint::Tcx => self.create_link(interface, spot),
            AttachPoint::Clsact => {
                clsact::create(spot, load::descriptor(&mut self.ebpf, spot.program())?)
            }
        }
    }

    /// Replaces a program that is attached, and says whether one was.
    fn replace(&mut self, spot: &Spot) -> Result<bool, DatapathError> {
        match self.attach_point {
            AttachPoint::Tcx => self.replace_link(spot),
            AttachPoint::Clsact => {
                clsact::replace(spot, load::descriptor(&mut self.ebpf, spot.program())?)
            }
        }
    }

    /// Puts this build's program in place of one of another version; says whether there was one.
    fn inherit(&mut self, spot: &Spot) -> Result<bool, DatapathError> {
        for from in self.earlier_spots(spot) {
            let is_there = match self.attach_point {
                AttachPoint::Tcx => self.inherit_link(&from, spot)?,
                AttachPoint::Clsact => {
                    let program = load::descriptor(&mut self.ebpf, spot.program())?;
                    clsact::inherit(&from, spot, program)?
                }
            };
            if is_there {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Detaches what programs of other versions are left at a hook where this one's is.
    fn detach_earlier(&self, spot: &Spot) -> Result<(), DatapathError> {
        for role in [Role::Judge, Role::Shut] {
            let own = self.spot(spot.ifindex, spot.direction, role);
            for from in self.earlier_spots(&own) {
                tcx::detach_earlier(&from, &own)?;
                if own.filter().exists() {
                    // It has the handle of this one's, which took its place.
                    clsact::forget(&from)?;
                } else {
                    clsact::detach(&from)?;
                }
            }
        }
        Ok(())
    }

    /// Detaches what an agent of this version attached by the other means.
    fn detach_other(&self, spot: &Spot) -> Result<(), DatapathError> {
        match self.attach_point {
            AttachPoint::Tcx => clsact::detach(spot),
            AttachPoint::Clsact => tcx::detach(spot),
        }
    }

    /// Takes over the qdisc that an earlier agent made, or removes it where nothing needs it.
    fn settle_qdiscs(&self, ifindex: u32) -> Result<(), DatapathError> {
        for from in self.earlier.iter().map(earlier::Earlier::pins) {
            clsact::hand_over(from, &self.pins, ifindex)?;
        }
        match self.attach_point {
            AttachPoint::Tcx => clsact::leave(&self.pins, ifindex),
            AttachPoint::Clsact => Ok(()),
        }
    }
}

/// The programs at a hook in the order in which they see packets; `None` where there is no such
/// interface. Filters are asked for where `attach_point` puts the datapath's own among them.
pub(super) fn programs_at(
    (has_tcx, attach_point): (bool, AttachPoint),
    ifindex: u32,
    direction: Direction,
) -> Result<Option<Vec<u32>>, DatapathError> {
    let failed = |source| DatapathError::Query { ifindex, source };
    let linked = if has_tcx {
        query::programs(ifindex, direction).map_err(failed)?
    } else {
        interface(ifindex).ok().map(|_| Vec::new())
    };
    let Some(mut programs) = linked else { return Ok(None) };
    if attach_point == AttachPoint::Clsact {
        programs.extend(clsact::programs(ifindex, direction).map_err(failed)?);
    }
    Ok(Some(programs))
}

/// Takes one program off its hook, by whatever means it was attached.
pub(super) fn detach(spot: &Spot) -> Result<(), DatapathError> {
    tcx::detach(spot)?;
    clsact::detach(spot)
}

/// Whether any program that agents with these pins attached is on an interface. Where none is, it is
/// another interface of the same number, or somebody took them all away.
pub(super) fn is_judged(pins: &Path, ifindex: u32) -> Result<bool, DatapathError> {
    for spot in spots(pins, ifindex) {
        if tcx::is_there(&spot)? || clsact::is_there(&spot)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Forgets what agents with these pins attached to an interface that has none of it.
pub(super) fn forget_all(pins: &Path, ifindex: u32) -> Result<(), DatapathError> {
    for spot in spots(pins, ifindex) {
        tcx::detach(&spot)?;
        clsact::forget(&spot)?;
    }
    Ok(())
}

/// Takes off an interface what agents with these pins attached.
pub(super) fn detach_all(pins: &Path, ifindex: u32) -> Result<(), DatapathError> {
    spots(pins, ifindex).iter().try_for_each(detach)?;
    clsact::leave(pins, ifindex)
}

/// Where agents with these pins attach to an interface.
fn spots(pins: &Path, ifindex: u32) -> [Spot; 4] {
    let spot = |direction, role| Spot { pins: pins.to_path_buf(), ifindex, direction, role };
    let [egress, ingress] = BOTH;
    [
        spot(egress, Role::Judge),
        spot(egress, Role::Shut),
        spot(ingress, Role::Judge),
        spot(ingress, Role::Shut),
    ]
}

/// Makes the directories that say what is attached.
pub(super) fn make_directories(pins: &Path) -> Result<(), DatapathError> {
    [LINKS, FILTERS].iter().try_for_each(|part| make_directory(&pins.join(part)))
}
