//! Writing the journal: what changed at its end, or all of it anew.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;

use namegate_policy::identity::Identity;
use namegate_policy::learned::{Cursor, Kept, Lease};
use namegate_policy::name::DnsName;
use namegate_policy::resource::PodRef;
use serde::{Serialize, Serializer};

use super::{Pods, boot_id, draft};
use crate::state::SharedLearned;

/// How many leases are read at once: whoever learns waits no longer than that takes.
const SLICE: usize = 128;

/// Octets that may be appended to a file, however small it was begun.
const APPENDED_MIN: u64 = 1 << 20;

/// A line as it is written; [`super::Line`] is how it is read.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Told<'a> {
    Boot(&'a str),
    Pod(u32, &'a str, &'a str),
    Gone(u32),
    Lease(u32, #[serde(serialize_with = "as_text")] &'a DnsName, IpAddr, u64, u64),
}

/// The file, and what it says.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    learned: SharedLearned,
    /// None before anything was learned, and where the last write failed.
    file: Option<File>,
    /// Whether more was learned than the file says, and is among the changes no more.
    is_behind: bool,
    pods: Pods,
    /// Octets that the file was begun with.
    begun: u64,
    /// Octets that were appended since.
    appended: u64,
}

impl Journal {
    pub(super) fn new(path: PathBuf, learned: SharedLearned) -> Self {
        let pods = Pods::new();
        Self { path, learned, file: None, is_behind: false, pods, begun: 0, appended: 0 }
    }

    /// Brings the file up to date, where `pods` are those of the node.
    pub(super) fn keep(&mut self, pods: Pods) -> io::Result<()> {
        let changes = self.learned.take_changes();
        let has_news = self.is_behind || changes.is_all() || !changes.is_empty();
        if self.file.is_none() && !has_news {
            return Ok(());
        }
        let gone = self.gone(&pods);
        let is_too_long = self.appended > self.begun.max(APPENDED_MIN);
        let file = self.file.take().filter(|_| !is_too_long && !changes.is_all());
        self.is_behind = true;
        self.file = Some(match file.zip(gone) {
            Some((file, gone)) => self.append(file, &pods, &gone, changes)?,
            None => self.rewrite(&pods)?,
        });
        self.is_behind = false;
        self.pods = pods;
        Ok(())
    }

    /// The identities that no pod has any more; `None` where the number of one is that of other pods,
    /// under which nothing must be found that it learned.
    fn gone(&self, pods: &Pods) -> Option<BTreeSet<Identity>> {
        let stays = |(pod, identity): &(&PodRef, &Identity)| pods.get(*pod) == Some(*identity);
        let staying: BTreeSet<Identity> =
            self.pods.iter().filter(stays).map(|(_, identity)| *identity).collect();
        let gone: BTreeSet<Identity> =
            self.pods.values().copied().filter(|identity| !staying.contains(identity)).collect();
        pods.values().all(|identity| !gone.contains(identity)).then_some(gone)
    }

    /// Writes all of it to another file, which takes the place of the file when it is whole.
    fn rewrite(&mut self, pods: &Pods) -> io::Result<File> {
        let draft = draft(&self.path);
        let mut file = File::create(&draft)?;
        let mut lines = Vec::new();
        tell(&mut lines, &Told::Boot(&boot_id().unwrap_or_default()))?;
        for (pod, identity) in pods {
            tell(&mut lines, &Told::Pod(identity.number(), &pod.namespace, &pod.name))?;
        }
        self.begun = self.write(&mut file, lines, Cursor::all())?;
        self.appended = 0;
        fs::rename(draft, &self.path)?;
        Ok(file)
    }

    /// Adds who went, the pods that are not known yet, and what was learned.
    fn append(
        &mut self,
        mut file: File,
        pods: &Pods,
        gone: &BTreeSet<Identity>,
        changes: Cursor,
    ) -> io::Result<File> {
        let mut lines = Vec::new();
        for identity in gone {
            tell(&mut lines, &Told::Gone(identity.number()))?;
        }
        let is_other =
            |(pod, identity): &(&PodRef, &Identity)| self.pods.get(*pod) != Some(*identity);
        for (pod, identity) in pods.iter().filter(is_other) {
            tell(&mut lines, &Told::Pod(identity.number(), &pod.namespace, &pod.name))?;
        }
        self.appended += self.write(&mut file, lines, changes)?;
        Ok(file)
    }

    /// Writes `lines` and the leases at the cursor, and says how many octets those were.
    fn write(&self, file: &mut File, mut lines: Vec<u8>, mut at: Cursor) -> io::Result<u64> {
        let mut octets = 0;
        loop {
            let mut told = Ok(());
            let is_more = self.learned.read().read_on(&mut at, SLICE, |kept| {
                if told.is_ok() {
                    told = tell(&mut lines, &lease(kept));
                }
            });
            told?;
            file.write_all(&lines)?;
            octets += lines.len() as u64;
            lines.clear();
            if !is_more {
                return Ok(octets);
            }
        }
    }
}

fn lease(Kept { identity, name, address, lease, since }: Kept<'_>) -> Told<'_> {
    let deadline = match lease {
        Lease::Fresh { deadline } => deadline,
        Lease::Lingering { since } => since,
    };
    let since_s = since.map_or(0, |since| since.as_nanos() / 1_000_000_000);
    Told::Lease(identity.number(), name, address, deadline.as_nanos(), since_s)
}

fn tell(lines: &mut Vec<u8>, line: &Told<'_>) -> io::Result<()> {
    serde_json::to_writer(&mut *lines, line)?;
    lines.push(b'\n');
    Ok(())
}

fn as_text<S: Serializer>(name: &DnsName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(name)
}
