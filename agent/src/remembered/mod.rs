//! What identities learned, kept on disk so that a restart forgets no name.
//!
//! The file is a journal of JSON lines: which run of the kernel its deadlines are told by, which
//! identity a pod has, which address a name has for an identity and until when. Later lines outweigh
//! earlier ones. A thread of its own appends what changed, once a second, and writes the file anew
//! where what is appended outgrows what it was begun with; nobody who learns waits for it. Identities
//! are numbers of one process: who reads the file knows them by their pods.

mod journal;
mod keeper;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use namegate_policy::identity::Identity;
use namegate_policy::learned::Term;
use namegate_policy::name::DnsName;
use namegate_policy::resource::PodRef;
use namegate_policy::time::Timestamp;
use serde::Deserialize;

pub use keeper::Keeper;

use crate::state::State;

/// The largest file that is read back.
const FILE_MAX: u64 = 256 << 20;

/// Identifies a run of the kernel, whose monotonic clock deadlines are told by.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A line as it is read; `journal.rs` says how it is written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// The run of the kernel.
    Boot(String),
    /// An identity, namespace and name of a pod that has it.
    Pod(u32, String, String),
    /// An identity that no pod has any more: the leases before this line are nobody's.
    Gone(u32),
    /// An identity, a name, one of its addresses, the deadline in nanoseconds, and the second at which
    /// it was learned first, zero where that is not known.
    Lease(u32, String, IpAddr, u64, #[serde(default)] u64),
}

/// The pods of the node, by which the next agent knows what is whose.
pub type Pods = BTreeMap<PodRef, Identity>;

/// What came back from an earlier agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// How many addresses of names.
    pub leases: usize,
    /// How many lines could not be read.
    pub unreadable: usize,
}

/// The file in `run_dir`.
pub fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("learned.jsonl")
}

/// The file that is written before it takes the place of `path`; one that was killed leaves it.
pub fn draft(path: &Path) -> PathBuf {
    path.with_extension("jsonl.draft")
}

/// Gives back to `state` what an earlier agent learned since the node started. An agent that was
/// killed may have left the last line in its middle: that one does not count.
pub fn restore(path: &Path, state: &mut State) -> io::Result<Restored> {
    let size = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Restored::default()),
        Err(error) => return Err(error),
    };
    if size > FILE_MAX {
        return Err(io::Error::other("the file is too large"));
    }
    let mut restored = Restored::default();
    let (mut is_of_this_boot, boot_id) = (false, boot_id());
    // The last word on a pod may come after the leases of its identity.
    let mut known: BTreeMap<PodRef, u32> = BTreeMap::new();
    let mut gone: BTreeMap<u32, usize> = BTreeMap::new();
    read_lines(path, |at, line| match line {
        Some(Line::Boot(boot)) => is_of_this_boot = Some(boot) == boot_id,
        Some(Line::Pod(number, namespace, pod)) => {
            known.insert(PodRef { namespace: namespace.into(), name: pod.into() }, number);
        }
        Some(Line::Gone(number)) => {
            gone.insert(number, at);
        }
        Some(Line::Lease(..)) => {}
        None => restored.unreadable += 1,
    })?;
    if !is_of_this_boot {
        return Ok(restored);
    }
    // Pods of one identity may be of several since: most of them say where its names go.
    let mut identities: BTreeMap<u32, BTreeMap<Identity, usize>> = BTreeMap::new();
    for (pod, number) in known {
        if let Some(identity) = state.identity_of_pod(&pod) {
            *identities.entry(number).or_default().entry(identity).or_default() += 1;
        }
    }
    let identities: BTreeMap<u32, Identity> = identities
        .into_iter()
        .filter_map(|(number, votes)| {
            let (identity, _) = votes.into_iter().max_by_key(|&(_, pods)| pods)?;
            Some((number, identity))
        })
        .collect();
    read_lines(path, |at, line| {
        let Some(Line::Lease(number, name, address, deadline_ns, since_s)) = line else { return };
        if gone.get(&number).is_some_and(|gone| at < *gone) {
            return;
        }
        let (Some(&identity), Ok(name)) = (identities.get(&number), DnsName::parse(&name)) else {
            return;
        };
        let deadline = Timestamp::from_nanos(deadline_ns);
        let since = (since_s > 0)
            .then(|| Timestamp::default().saturating_add(Duration::from_secs(since_s)));
        restored.leases +=
            usize::from(state.restore(identity, &name, address, Term { since, deadline }));
    })?;
    Ok(restored)
}

/// Shows every whole line by its number, `None` for one that cannot be read.
fn read_lines(path: &Path, mut show: impl FnMut(usize, Option<Line>)) -> io::Result<()> {
    let mut file = BufReader::new(File::open(path)?.take(FILE_MAX));
    let mut line = Vec::new();
    for number in 0.. {
        line.clear();
        file.read_until(b'\n', &mut line)?;
        let Some((b'\n', line)) = line.split_last() else { break };
        show(number, serde_json::from_slice(line).ok());
    }
    Ok(())
}

/// Tells this run of the kernel from every other.
pub(crate) fn boot_id() -> Option<String> {
    fs::read_to_string(BOOT_ID).ok().map(|id| id.trim().to_owned())
}
