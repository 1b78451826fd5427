//! Links between interfaces and the programs, pinned so that they outlive the agent.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, TcAttachType};
use rustix::net::{AddressFamily, SocketType, netdevice, socket};

use super::error::DatapathError;
use super::{Datapath, load, unlink};
use crate::abi::Direction;

/// Both hooks of an interface.
pub(super) const BOTH: [Direction; 2] = [Direction::Egress, Direction::Ingress];

impl Datapath {
    /// Attaches both programs to an interface, before any other program there. Where a link is
    /// pinned already, by an agent of whatever version, its program is replaced without a packet in
    /// between.
    pub fn attach(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        let interface = interface(ifindex)?;
        self.attached.insert(ifindex);
        for direction in BOTH {
            let is_there =
                self.update_link(ifindex, direction)? || self.inherit_link(ifindex, direction)?;
            if !is_there {
                let path = self.link_path(ifindex, direction);
                self.create_link(&interface, direction, load::program_name(direction), &path)?;
            }
            self.detach_earlier(ifindex, direction)?;
        }
        Ok(())
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
        for direction in BOTH {
            self.detach_earlier(ifindex, direction)?;
            detach_pinned(&self.link_path(ifindex, direction))?;
        }
        self.attached.remove(&ifindex);
        Ok(())
    }

    /// The interfaces that have pinned links, those of agents of other versions included.
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

    /// Puts this agent's programs in the place of the previous agent's; an interface that is gone
    /// loses its pins.
    pub(super) fn adopt_links(&mut self) -> Result<(), DatapathError> {
        for ifindex in linked(&self.pins)? {
            for direction in BOTH {
                let is_shut = self.shut_path(ifindex, direction).exists();
                if self.update_link(ifindex, direction)? || is_shut {
                    self.attached.insert(ifindex);
                }
            }
        }
        Ok(())
    }

    /// Replaces the program of a pinned link and says whether there was one that is alive.
    fn update_link(&mut self, ifindex: u32, direction: Direction) -> Result<bool, DatapathError> {
        let path = self.link_path(ifindex, direction);
        // The pin keeps it; what this process holds is closed.
        Ok(self.replace_program(&path, direction)?.is_some())
    }

    /// The link pinned at `path` with this build's program in it; where there is none that is alive,
    /// `path` is free.
    pub(super) fn replace_program(
        &mut self,
        path: &Path,
        direction: Direction,
    ) -> Result<Option<FdLink>, DatapathError> {
        if !path.exists() {
            return Ok(None);
        }
        let program = load::program(&mut self.ebpf, load::program_name(direction))?;
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

    /// Links the program `name` to an interface, before all others there, and pins the link.
    pub(super) fn create_link(
        &mut self,
        interface: &str,
        direction: Direction,
        name: &'static str,
        path: &Path,
    ) -> Result<(), DatapathError> {
        let program = load::program(&mut self.ebpf, name)?;
        let hook = match direction {
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
        let link = FdLink::try_from(link)
            .map_err(|_| DatapathError::NoTcx { interface: interface.to_owned() })?;
        pin(link, path)
    }

    /// Where the link of an interface is pinned.
    pub(super) fn link_path(&self, ifindex: u32, direction: Direction) -> PathBuf {
        self.pins.join("links").join(link_name(ifindex, direction))
    }
}

/// The name of the pin of a link.
pub(super) fn link_name(ifindex: u32, direction: Direction) -> String {
    format!("{ifindex}-{}", direction.as_str())
}

/// The interfaces that have links below `pins`.
pub(super) fn linked(pins: &Path) -> Result<BTreeSet<u32>, DatapathError> {
    let path = pins.join("links");
    let failed = |source| DatapathError::Pins { what: "list", path: path.clone(), source };
    let mut linked = BTreeSet::new();
    for entry in fs::read_dir(&path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let ifindex: Option<u32> = name
            .to_str()
            .and_then(|name| name.split_once('-'))
            .and_then(|(ifindex, _)| ifindex.parse().ok());
        linked.extend(ifindex);
    }
    Ok(linked)
}

pub(super) fn pin(link: FdLink, path: &Path) -> Result<(), DatapathError> {
    link.pin(path)
        .map(drop)
        .map_err(|source| DatapathError::Pin { path: path.to_path_buf(), source: Box::new(source) })
}

/// Takes a program off its interface at once, and its pin away; one that is not there is no error.
pub(super) fn detach_pinned(path: &Path) -> Result<(), DatapathError> {
    unlink::detach(path).map_err(|source| DatapathError::Pins {
        what: "detach",
        path: path.to_path_buf(),
        source,
    })?;
    remove_file(path)
}

/// The name of an interface of the network namespace that the agent runs in.
pub(super) fn interface(ifindex: u32) -> Result<String, DatapathError> {
    let missing = |_| DatapathError::NoInterface { ifindex };
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(missing)?;
    netdevice::index_to_name(any, ifindex).map_err(missing)
}

pub(super) fn remove_file(path: &Path) -> Result<(), DatapathError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DatapathError::Pins { what: "remove", path: path.to_path_buf(), source: error })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes the pins of one version.
pub(super) fn remove_tree(pins: &Path) -> Result<(), DatapathError> {
    match fs::remove_dir_all(pins) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DatapathError::Pins { what: "remove", path: pins.to_path_buf(), source: error })
        }
        Ok(()) | Err(_) => {
            // The directory above goes too when nobody else uses it.
            if let Some(root) = pins.parent() {
                let _still_used = fs::remove_dir(root);
            }
            Ok(())
        }
    }
}
