//! Places where programs are attached, and where it is kept that they are.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketType, netdevice, socket};

use super::error::DatapathError;
use super::load::program_name;
use crate::abi::Direction;

/// Both hooks of an interface.
pub(super) const BOTH: [Direction; 2] = [Direction::Egress, Direction::Ingress];

/// Where links are pinned, and where it is kept which filters there are.
pub(super) const LINKS: &str = "links";
pub(super) const FILTERS: &str = "filters";

/// The program that lets nothing pass.
pub(super) const SHUT: &str = "pod_shut";

/// What an attached program is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It judges.
    Judge,
    /// It lets nothing pass, while another one changes places.
    Shut,
}

/// One program at one hook, as attached by an agent whose pins are below `pins`.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    pub(super) pins: PathBuf,
    pub(super) ifindex: u32,
    pub(super) direction: Direction,
    pub(super) role: Role,
}

impl Spot {
    /// The name of the object's program that belongs there.
    pub(super) const fn program(&self) -> &'static str {
        match self.role {
            Role::Judge => program_name(self.direction),
            Role::Shut => SHUT,
        }
    }

    /// Where its link is pinned.
    pub(super) fn link(&self) -> PathBuf {
        self.pins.join(LINKS).join(self.name())
    }

    /// The directory that says that its filter is there.
    pub(super) fn filter(&self) -> PathBuf {
        self.pins.join(FILTERS).join(self.name())
    }

    /// Whether something was attached there, by whatever means.
    pub(super) fn is_taken(&self) -> bool {
        self.link().exists() || self.filter().exists()
    }

    fn name(&self) -> String {
        let (ifindex, direction) = (self.ifindex, self.direction.as_str());
        match self.role {
            Role::Judge => format!("{ifindex}-{direction}"),
            Role::Shut => format!("{ifindex}-{direction}-shut"),
        }
    }
}

/// The interfaces at which an agent whose pins are below `pins` left something.
pub(super) fn attached(pins: &Path) -> Result<BTreeSet<u32>, DatapathError> {
    let mut attached = BTreeSet::new();
    for path in [pins.join(LINKS), pins.join(FILTERS)] {
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries,
        };
        let failed = |source| DatapathError::Pins { what: "list", path: path.clone(), source };
        for entry in entries.map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let ifindex: Option<u32> = name
                .to_str()
                .and_then(|name| name.split_once('-'))
                .and_then(|(ifindex, _)| ifindex.parse().ok());
            attached.extend(ifindex);
        }
    }
    Ok(attached)
}

/// The name of an interface of the network namespace that the agent runs in.
pub(super) fn interface(ifindex: u32) -> Result<String, DatapathError> {
    let missing = |_| DatapathError::NoInterface { ifindex };
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(missing)?;
    netdevice::index_to_name(any, ifindex).map_err(missing)
}

pub(super) fn make_directory(path: &Path) -> Result<(), DatapathError> {
    fs::create_dir_all(path).map_err(|source| DatapathError::Pins {
        what: "create",
        path: path.to_path_buf(),
        source,
    })
}

/// Removes a pin; one that is not there is no error.
pub(super) fn remove_file(path: &Path) -> Result<(), DatapathError> {
    removed(path, fs::remove_file(path))
}

/// Removes a directory with nothing in it; one that is not there is no error.
pub(super) fn remove_directory(path: &Path) -> Result<(), DatapathError> {
    removed(path, fs::remove_dir(path))
}

/// Removes the pins of one version.
pub(super) fn remove_tree(pins: &Path) -> Result<(), DatapathError> {
    removed(pins, fs::remove_dir_all(pins))?;
    // The directory above goes too when nobody else uses it.
    if let Some(root) = pins.parent() {
        let _still_used = fs::remove_dir(root);
    }
    Ok(())
}

fn removed(path: &Path, outcome: io::Result<()>) -> Result<(), DatapathError> {
    match outcome {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(DatapathError::Pins { what: "remove", path: path.to_path_buf(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
