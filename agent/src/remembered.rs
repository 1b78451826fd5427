//! What identities learned, kept on disk so that a restart forgets no name.
//!
//! Identities are numbers of one process; on disk a pod stands for its identity.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, IntoInnerError};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use namegate_policy::learned::Lease;
use namegate_policy::name::DnsName;
use namegate_policy::resource::PodRef;
use namegate_policy::time::Timestamp;
use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize, Serializer};

use crate::state::{EndpointSpec, State};

/// The largest file that is read back.
const FILE_MAX: u64 = 256 << 20;

/// Identifies a run of the kernel, whose monotonic clock deadlines are told by.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The file as it is read; [`Held`] is how it is written.
#[derive(Debug, Deserialize)]
struct Remembered {
    boot_id: String,
    leases: Vec<RememberedLease>,
}

#[derive(Debug, Deserialize)]
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

/// The file that is written before it takes the place of `path`; one that was killed leaves it.
pub fn draft(path: &Path) -> PathBuf {
    path.with_extension("json.draft")
}

/// Writes everything learned: the file whole or not at all, and nothing of it held in memory.
pub fn write(path: &Path, state: &State) -> io::Result<()> {
    let draft = draft(path);
    let mut file = BufWriter::new(File::create(&draft)?);
    let held = Held { boot_id: boot_id().unwrap_or_default(), leases: Leases(state) };
    serde_json::to_writer(&mut file, &held)?;
    file.into_inner().map_err(IntoInnerError::into_error)?;
    fs::rename(draft, path)
}

#[derive(Serialize)]
struct Held<'a> {
    boot_id: String,
    leases: Leases<'a>,
}

struct Leases<'a>(&'a State);

#[derive(Serialize)]
struct HeldLease<'a> {
    namespace: &'a str,
    pod: &'a str,
    #[serde(serialize_with = "as_text")]
    name: &'a DnsName,
    address: IpAddr,
    deadline_ns: u64,
}

impl Serialize for Leases<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut leases = serializer.serialize_seq(None)?;
        let mut seen = BTreeSet::new();
        let learned = self.0.learned().read();
        // One pod stands for all of its identity.
        let first = |spec: &&EndpointSpec| seen.insert(spec.identity);
        for spec in self.0.endpoints().values().filter(first) {
            for address in learned.addresses(spec.identity) {
                for (name, lease) in learned.leases((spec.identity, address)) {
                    let deadline = match lease {
                        Lease::Fresh { deadline } => deadline,
                        Lease::Lingering { since } => since,
                    };
                    let (namespace, pod) = (&*spec.pod.namespace, &*spec.pod.name);
                    let deadline_ns = deadline.as_nanos();
                    let lease = HeldLease { namespace, pod, name, address, deadline_ns };
                    leases.serialize_element(&lease)?;
                }
            }
        }
        leases.end()
    }
}

fn as_text<S: Serializer>(name: &DnsName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(name)
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
    let remembered: Remembered = serde_json::from_reader(BufReader::new(File::open(path)?))?;
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

/// Tells this run of the kernel from every other.
pub(crate) fn boot_id() -> Option<String> {
    fs::read_to_string(BOOT_ID).ok().map(|id| id.trim().to_owned())
}
