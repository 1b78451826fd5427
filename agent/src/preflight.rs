//! What must be true of a node before anything can be enforced there: one message each.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::statfs;
use rustix::system::uname;
use rustix::thread::{CapabilitySet, capabilities};

/// The oldest kernel that the datapath was tried on (`make test-kernels`).
pub const KERNEL_MIN: (u32, u32) = (6, 1);

/// `f_type` of a BPF file system (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Why nothing can be enforced on this node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PreflightError {
    /// The process may not load programs or change interfaces.
    #[error("missing privileges: {missing}; run as root, or with these capabilities")]
    Privileges {
        /// The capabilities that are missing.
        missing: String,
    },
    /// The process's capabilities cannot be read.
    #[error("cannot read the process's capabilities")]
    Capabilities(#[source] rustix::io::Errno),
    /// The kernel is too old.
    #[error("kernel {release} is too old: {}.{} or newer is needed", KERNEL_MIN.0, KERNEL_MIN.1)]
    Kernel {
        /// What `uname -r` says.
        release: String,
    },
    /// The pin directory is on no BPF file system.
    #[error("{path} is on no BPF file system; mount one: mount -t bpf bpf {mount_point}", path = path.display(), mount_point = mount_point.display())]
    BpfFs {
        /// The pin directory.
        path: PathBuf,
        /// Where one could be mounted.
        mount_point: PathBuf,
    },
    /// The directory for the lock cannot be used.
    #[error("cannot use {path} for the agent's lock; check --run-dir", path = path.display())]
    RunDir {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another agent holds the lock.
    #[error("another agent ({holder}) works with these maps: {path} is locked; stop it first, or give this one its own --pin-dir", path = path.display())]
    Locked {
        /// The lock.
        path: PathBuf,
        /// Who holds it, as far as known.
        holder: String,
    },
}

/// Checks privileges, kernel and the file system of `pin_dir`. Entering the pods' namespaces takes
/// one privilege more.
pub fn check(pin_dir: &Path, enters_namespaces: bool) -> Result<(), PreflightError> {
    check_privileges(enters_namespaces)?;
    check_kernel(&uname().release().to_string_lossy())?;
    check_bpffs(pin_dir)
}

fn check_privileges(enters_namespaces: bool) -> Result<(), PreflightError> {
    let held = capabilities(None).map_err(PreflightError::Capabilities)?.effective;
    let admin = held.contains(CapabilitySet::SYS_ADMIN);
    let needed = [
        (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN", false),
        (CapabilitySet::BPF, "CAP_BPF", admin),
        (CapabilitySet::PERFMON, "CAP_PERFMON", admin),
        (
            CapabilitySet::SYS_ADMIN,
            "CAP_SYS_ADMIN (to look into the pods' namespaces)",
            !enters_namespaces,
        ),
    ];
    let missing: Vec<&str> = needed
        .into_iter()
        .filter(|(capability, _, implied)| !implied && !held.contains(*capability))
        .map(|(_, name, _)| name)
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(PreflightError::Privileges { missing: missing.join(", ") })
    }
}

fn check_kernel(release: &str) -> Result<(), PreflightError> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = (numbers.next(), numbers.next());
    match version {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= KERNEL_MIN => Ok(()),
        _ => Err(PreflightError::Kernel { release: release.to_owned() }),
    }
}

fn check_bpffs(pin_dir: &Path) -> Result<(), PreflightError> {
    let there = pin_dir.ancestors().find(|path| path.exists());
    let on_bpffs = there.and_then(|path| statfs(path).ok()).is_some_and(|fs| {
        u64::try_from(fs.f_type).is_ok_and(|kind| kind & 0xffff_ffff == BPF_FS_MAGIC)
    });
    if on_bpffs {
        return Ok(());
    }
    let mount_point = if pin_dir.starts_with("/sys/fs/bpf") {
        PathBuf::from("/sys/fs/bpf")
    } else {
        there.unwrap_or(pin_dir).to_owned()
    };
    Err(PreflightError::BpfFs { path: pin_dir.to_owned(), mount_point })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_compared_by_number() {
        let cases = [
            ("6.18.44-fc", true),
            ("6.1.0-56-cloud-amd64", true),
            ("6.0.19", false),
            ("5.4.0", false),
            ("4.19.0", false),
            ("10.0", true),
            ("unknown", false),
        ];
        for (release, fits) in cases {
            assert_eq!(check_kernel(release).is_ok(), fits, "{release}");
        }
    }

    #[test]
    fn a_pin_directory_elsewhere_is_refused_with_the_command_that_helps() {
        let error = check_bpffs(Path::new("/proc/self/namegate")).expect_err("proc is no bpffs");
        let text = error.to_string();
        assert!(text.contains("mount -t bpf bpf"), "{text}");
    }
}
