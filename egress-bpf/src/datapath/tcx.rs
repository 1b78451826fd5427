//! tcx links (Linux 6.6): pinned, so that they outlive the agent.

use std::path::Path;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, TcAttachType};

use super::error::DatapathError;
use super::spot::{Spot, remove_file};
use super::{Datapath, load, query, unlink};
use crate::abi::Direction;

impl Datapath {
    /// Replaces the program of a pinned link and says whether there was one that is alive.
    pub(super) fn replace_link(&mut self, spot: &Spot) -> Result<bool, DatapathError> {
        // The pin keeps it; what this process holds is closed.
        Ok(self.replace_program(&spot.link(), spot)?.is_some())
    }

    /// Puts this build's program in place of one of another version; says whether there was one.
    pub(super) fn inherit_link(&mut self, from: &Spot, to: &Spot) -> Result<bool, DatapathError> {
        let old = from.link();
        let Some(link) = self.replace_program(&old, to)? else { return Ok(false) };
        pin(link, &to.link())?;
        remove_file(&old)?;
        Ok(true)
    }

    /// The link pinned at `path` with the program of `spot` in it; where there is none that is alive,
    /// `path` is free.
    fn replace_program(
        &mut self,
        path: &Path,
        spot: &Spot,
    ) -> Result<Option<FdLink>, DatapathError> {
        if !path.exists() {
            return Ok(None);
        }
        let program = load::program(&mut self.ebpf, spot.program())?;
        let unusable =
            |source| DatapathError::Link { path: path.to_path_buf(), source: Box::new(source) };
        let failed =
            |source| DatapathError::Replace { path: path.to_path_buf(), source: Box::new(source) };
        let pinned = PinnedLink::from_pin(path).map_err(unusable)?;
        let link = SchedClassifierLink::try_from(FdLink::from(pinned)).map_err(unusable)?;
        match program.attach_to_link(link) {
            Ok(id) => {
                let link = program.take_link(id).map_err(failed)?;
                FdLink::try_from(link).map(Some).map_err(unusable)
            }
            // Its interface is gone, or somebody detached it.
            Err(ProgramError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOLINK) =>
            {
                remove_file(path)?;
                Ok(None)
            }
            // As long as the pin stays, so does the program that is attached.
            Err(error) => Err(failed(error)),
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
        let link = FdLink::try_from(link).map_err(|source| DatapathError::Link {
            path: path.clone(),
            source: Box::new(source),
        })?;
        pin(link, &path)
    }
}

fn pin(link: FdLink, path: &Path) -> Result<(), DatapathError> {
    link.pin(path)
        .map(drop)
        .map_err(|source| DatapathError::Pin { path: path.to_path_buf(), source: Box::new(source) })
}

/// Whether a pinned link has its program on the interface.
pub(super) fn is_there(spot: &Spot) -> Result<bool, DatapathError> {
    let path = spot.link();
    if !path.exists() {
        return Ok(false);
    }
    let unusable = |source| DatapathError::Link { path: path.clone(), source: Box::new(source) };
    let link = FdLink::from(PinnedLink::from_pin(&path).map_err(unusable)?);
    let program = link.info().map_err(unusable)?.program_id();
    let programs = query::programs(spot.ifindex, spot.direction)
        .map_err(|source| DatapathError::Query { ifindex: spot.ifindex, source })?;
    Ok(programs.is_some_and(|programs| programs.contains(&program)))
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
