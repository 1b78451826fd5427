//! What identities learned, kept on disk so that a restart forgets no name.
//!
//! Identities are numbers of one process; on disk a pod stands for its identity.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use namegate_policy::learned::Lease;
use namegate_policy::name::DnsName;
use namegate_policy::resource::PodRef;
use namegate_policy::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::state::State;

/// The largest file that is read back.
const FILE_MAX: u64 = 256 << 20;

/// Identifies a run of the kernel, whose monotonic clock deadlines are told by.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[derive(Debug, Default, Deserialize, Serialize)]
struct Remembered {
    boot_id: String,
    leases: Vec<RememberedLease>,
}

#[derive(Debug, Deserialize, Serialize)]
struct RememberedLease {
    namespace: String,
    pod: String,
    name: String,
    address: IpAddr,
    deadline_ns: u64,
}

/// The file in `run_dir`.
pub fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("learned.json")
}

/// Everything learned, encoded.
pub fn encode(state: &State) -> Result<Vec<u8>, serde_json::Error> {
    let mut leases = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for spec in state.endpoints().values() {
        if !seen.insert(spec.identity) {
            continue;
        }
        let learned = state.learned();
        for address in learned.addresses(spec.identity) {
            for (name, lease) in learned.leases((spec.identity, address)) {
                let deadline = match lease {
                    Lease::Fresh { deadline } => deadline,
                    Lease::Lingering { since } => since,
                };
                leases.push(RememberedLease {
                    namespace: spec.pod.namespace.to_string(),
                    pod: spec.pod.name.to_string(),
                    name: name.to_string(),
                    address,
                    deadline_ns: deadline.as_nanos(),
                });
            }
        }
    }
    serde_json::to_vec(&Remembered { boot_id: boot_id().unwrap_or_default(), leases })
}

/// Writes the file whole or not at all.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("json.draft");
    fs::write(&draft, content)?;
    fs::rename(draft, path)
}

/// Gives back to `state` what an earlier agent learned since the node started, and says how many
/// addresses that were.
pub fn restore(path: &Path, state: &mut State) -> io::Result<usize> {
    let size = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    if size > FILE_MAX {
        return Err(io::Error::other("the file is too large"));
    }
    let remembered: Remembered = serde_json::from_slice(&fs::read(path)?)?;
    if Some(remembered.boot_id) != boot_id() {
        return Ok(0);
    }
    let mut restored = 0;
    for lease in remembered.leases {
        let pod = PodRef { namespace: lease.namespace.into(), name: lease.pod.into() };
        let (Some(identity), Ok(name)) = (state.identity_of_pod(&pod), DnsName::parse(&lease.name))
        else {
            continue;
        };
        let deadline = Timestamp::from_nanos(lease.deadline_ns);
        restored += usize::from(state.restore(identity, &name, lease.address, deadline));
    }
    Ok(restored)
}

fn boot_id() -> Option<String> {
    fs::read_to_string(BOOT_ID).ok().map(|id| id.trim().to_owned())
}
