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

impl Datapath {
    /// Attaches both programs to an interface, before any other program there. Where a link is
    /// pinned already, its program is replaced without a packet in between.
    pub fn attach(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        let interface = interface(ifindex)?;
        for direction in [Direction::Egress, Direction::Ingress] {
            if !self.update_link(ifindex, direction)? {
                self.create_link(ifindex, &interface, direction)?;
            }
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
        for direction in [Direction::Egress, Direction::Ingress] {
            let path = self.link_path(ifindex, direction);
            unlink::detach(&path).map_err(|source| DatapathError::Pins {
                what: "detach",
                path: path.clone(),
                source,
            })?;
            remove_file(&path)?;
        }
        Ok(())
    }

    /// The interfaces that have pinned links.
    pub fn attached(&self) -> Result<BTreeSet<u32>, DatapathError> {
        let path = self.pins.join("links");
        let failed = |source| DatapathError::Pins { what: "list", path: path.clone(), source };
        let mut attached = BTreeSet::new();
        for entry in fs::read_dir(&path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let ifindex: Option<u32> = name
                .to_str()
                .and_then(|name| name.split_once('-'))
                .and_then(|(ifindex, _)| ifindex.parse().ok());
            attached.extend(ifindex);
        }
        Ok(attached)
    }

    /// Detaches from every interface, removes every pin, and leaves the node as it was.
    pub fn detach_all(mut self) -> Result<(), DatapathError> {
        for ifindex in self.attached()? {
            self.detach(ifindex)?;
        }
        remove_tree(&self.pins)
    }

    /// Puts this agent's programs in the place of the previous agent's; an interface that is gone
    /// loses its pins.
    pub(super) fn replace_program(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        for direction in [Direction::Egress, Direction::Ingress] {
            self.update_link(ifindex, direction)?;
        }
        Ok(())
    }

    /// Replaces the program of a pinned link and says whether there was one that is alive.
    fn update_link(&mut self, ifindex: u32, direction: Direction) -> Result<bool, DatapathError> {
        let path = self.link_path(ifindex, direction);
        if !path.exists() {
            return Ok(false);
        }
        let program = load::program(&mut self.ebpf, load::program_name(direction))?;
        let replaced = PinnedLink::from_pin(&path)
            .ok()
            .and_then(|pinned| SchedClassifierLink::try_from(FdLink::from(pinned)).ok())
            .map(|link| program.attach_to_link(link));
        match replaced {
            Some(Ok(link)) => {
                // The pin keeps it; what this process holds is closed.
                drop(program.take_link(link));
                Ok(true)
            }
            // Its interface is gone (the kernel answers ENOLINK), or it is no link of ours.
            Some(Err(_)) | None => {
                remove_file(&path)?;
                Ok(false)
            }
        }
    }

    fn create_link(
        &mut self,
        ifindex: u32,
        interface: &str,
        direction: Direction,
    ) -> Result<(), DatapathError> {
        let path = self.link_path(ifindex, direction);
        let program = load::program(&mut self.ebpf, load::program_name(direction))?;
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
        link.pin(&path)
            .map(drop)
            .map_err(|source| DatapathError::Pin { path, source: Box::new(source) })
    }

    fn link_path(&self, ifindex: u32, direction: Direction) -> PathBuf {
        let name = format!("{ifindex}-{}", direction.as_str());
        self.pins.join("links").join(name)
    }
}

/// The name of an interface of the network namespace that the agent runs in.
fn interface(ifindex: u32) -> Result<String, DatapathError> {
    let missing = |_| DatapathError::NoInterface { ifindex };
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(missing)?;
    netdevice::index_to_name(any, ifindex).map_err(missing)
}

fn remove_file(path: &Path) -> Result<(), DatapathError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DatapathError::Pins { what: "remove", path: path.to_path_buf(), source: error })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn remove_tree(pins: &Path) -> Result<(), DatapathError> {
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
