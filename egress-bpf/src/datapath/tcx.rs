//! tcx links (Linux 6.6): pinned, so that they outlive the agent.

use std::fs;
use std::io;
use std::path::Path;

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, TcAttachType};

use super::error::DatapathError;
use super::spot::{Spot, remove_file};
use super::{Datapath, load, query, unlink};
use crate::abi::Direction;

impl Datapath {
    /// Replaces the program of a pinned link and says whether there was one that is alive; where there is
    /// none, its path is free.
    pub(super) fn replace_link(&mut self, spot: &Spot) -> Result<bool, DatapathError> {
        let path = spot.link();
        if !path.exists() {
            return Ok(false);
        }
        let program = load::program(&mut self.ebpf, spot.program())?;
        let failed =
            |source| DatapathError::Replace { path: path.clone(), source: Box::new(source) };
        let link = SchedClassifierLink::try_from(open(&path)?).map_err(unusable(&path))?;
        match program.attach_to_link(link) {
            Ok(id) => {
                // The pin keeps it; what this process holds is closed.
                let link = program.take_link(id).map_err(failed)?;
                FdLink::try_from(link).map(|_| true).map_err(unusable(&path))
            }
            // Its interface is gone, or somebody detached it.
            Err(ProgramError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOLINK) =>
            {
                remove_file(&path)?;
                Ok(false)
            }
            // As long as the pin stays, so does the program that is attached.
            Err(error) => Err(failed(error)),
        }
    }

    /// Puts this build's program in place of one of another version; says whether there was one.
    ///
    /// The pin moves first, in one call: whoever is killed in the midst of this leaves it in one place.
    pub(super) fn inherit_link(&mut self, from: &Spot, to: &Spot) -> Result<bool, DatapathError> {
        let (old, path) = (from.link(), to.link());
        match fs::rename(&old, &path) {
            Ok(()) => self.replace_link(to),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(DatapathError::Pins { what: "move", path: old, source }),
        }
    }

    /// Links the program to the interface, before all others there, and pins the link.
    pub(super) fn create_link(
        &mut self,
        interface: &str,
        spot: &Spot,
    ) -> Result<(), DatapathError> {
        let program = load::program(&mut self.ebpf, spot.program())?;
        let hook = match spot.direction {
            Direction::Egress => TcAttachType::Ingress,
            Direction::Ingress => TcAttachType::Egress,
        };
        let failed = |source: ProgramError| DatapathError::Attach {
            interface: interface.to_owned(),
            source: Box::new(source),
        };
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program.attach_with_options(interface, hook, order).map_err(failed)?;
        let link = program.take_link(id).map_err(failed)?;
        let path = spot.link();
        let link = FdLink::try_from(link).map_err(unusable(&path))?;
        let pinned = link.pin(&path).map(drop);
        pinned.map_err(|source| DatapathError::Pin { path, source: Box::new(source) })
    }
}

fn open(path: &Path) -> Result<FdLink, DatapathError> {
    PinnedLink::from_pin(path).map(FdLink::from).map_err(unusable(path))
}

fn unusable(path: &Path) -> impl Fn(LinkError) -> DatapathError {
    move |source| DatapathError::Link { path: path.to_path_buf(), source: Box::new(source) }
}

/// Whether a pinned link has its program on the interface.
pub(super) fn is_there(spot: &Spot) -> Result<bool, DatapathError> {
    let path = spot.link();
    if !path.exists() {
        return Ok(false);
    }
    let program = open(&path)?.info().map_err(unusable(&path))?.program_id();
    let programs = query::programs(spot.ifindex, spot.direction)
        .map_err(|source| DatapathError::Query { ifindex: spot.ifindex, source })?;
    Ok(programs.is_some_and(|programs| programs.contains(&program)))
}

/// Takes off its interface what an agent of another version attached, but for the link that this one has
/// as well.
pub(super) fn detach_earlier(from: &Spot, own: &Spot) -> Result<(), DatapathError> {
    let (theirs, ours) = (from.link(), own.link());
    if theirs.exists() && ours.exists() {
        let number = |path: &Path| Ok(open(path)?.info().map_err(unusable(path))?.id());
        if number(&theirs)? == number(&ours)? {
            return remove_file(&theirs);
        }
    }
    detach(from)
}

/// Takes a program off its interface at once, and its pin away; one that is not there is no error.
pub(super) fn detach(spot: &Spot) -> Result<(), DatapathError> {
    let path = spot.link();
    unlink::detach(&path).map_err(|source| DatapathError::Pins {
        what: "detach",
        path: path.clone(),
        source,
    })?;
    remove_file(&path)
}
