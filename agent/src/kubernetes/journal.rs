//! The objects that are in force, on disk: what an agent begins with that starts while the API server
//! is away.
//!
//! A line for each object as it comes or goes, after one that says which cluster and node they are
//! about; of each object the last line counts. Lines of one event, or of one list, count together and
//! only once they are settled: half of a change may open what the whole does not. For the same reason
//! a journal is worth nothing before it says that every kind was read whole, and nothing at all where
//! a checksum is wrong: each is over everything up to its line. A journal has an id, which its agent
//! notes elsewhere: one whose id is not noted is older than what another agent enforced since. What is
//! read back is parsed and judged as if the API server had sent it, and is corrected by its first word.

mod entry;
mod memory;
mod scribe;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub(super) use entry::Entry;
use entry::{About, Checksum};
pub(super) use memory::Memory;
pub(super) use scribe::Scribe;

/// The largest file that is kept or read.
const FILE_MAX: u64 = 512 << 20;

/// The file is written anew when it is larger than this and than twice what it was begun with.
const REWRITE_MIN: u64 = 16 << 20;

/// Where the journal is, in the agent's run directory.
pub fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("objects.journal")
}

/// Where an agent keeps its journal that reads the cluster while another one has the node.
pub fn heirs_path(run_dir: &Path) -> PathBuf {
    run_dir.join("objects-heir.journal")
}

/// Where a journal is written before it replaces another one.
pub fn draft(path: &Path) -> PathBuf {
    path.with_extension("journal.draft")
}

/// A journal that is written.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    id: String,
    about: About,
    /// `None` once it could not be written: half of it is worth nothing.
    file: Option<Pen>,
    begun_with: u64,
    rewrite_min: u64,
}

impl Journal {
    /// Opens the journal at `path` over the cluster at `server` and a node, and says what it holds;
    /// nothing where there is none, where it does not say all, is about another cluster, is damaged,
    /// where anybody but the agent may have written it, or where its id is not the one that was `noted`.
    /// It keeps its id for as long as it is believed.
    pub(super) fn open(
        path: &Path,
        server: &str,
        node: &str,
        noted: Option<&str>,
    ) -> (Self, Option<Memory>) {
        let fresh = format!("{:016x}", RandomState::new().hash_one(std::process::id()));
        let id = noted.map_or_else(|| fresh.clone(), str::to_owned);
        let mut journal = Self {
            path: path.to_owned(),
            about: About::new(server, node, &id),
            id,
            file: None,
            begun_with: 0,
            rewrite_min: REWRITE_MIN,
        };
        let memory = journal.read().unwrap_or_else(|error| {
            tracing::warn!(
                path = %path.display(), %error,
                "the objects of an earlier agent are not believed: the API server has to answer first"
            );
            None
        });
        let memory = memory.filter(Memory::is_whole);
        if memory.is_none() {
            journal.about = About::new(server, node, &fresh);
            journal.id = fresh;
        }
        journal.try_to("begun", |journal| journal.rewrite(memory.as_ref()));
        (journal, memory)
    }

    /// What tells it from other journals.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Adds entries. What cannot be written ends the journal: the next agent waits for the API server.
    pub(super) fn add(&mut self, entries: &[Entry]) {
        if entries.is_empty() || self.file.is_none() {
            return;
        }
        self.try_to("added to", |journal| {
            let Some(pen) = &mut journal.file else { return Ok(()) };
            for entry in entries {
                pen.write(entry.text().as_bytes())?;
            }
            pen.file.flush()?;
            if pen.size > journal.rewrite_min.max(2 * journal.begun_with) {
                let memory = journal.read()?;
                journal.rewrite(memory.as_ref())?;
            }
            Ok(())
        });
    }

    /// Puts the journal in the place of the one at `path`.
    pub(super) fn settle(&mut self, path: PathBuf) {
        let from = std::mem::replace(&mut self.path, path);
        self.try_to("put in its place", |journal| match &journal.file {
            Some(_) => fs::rename(&from, &journal.path),
            None => Err(io::Error::other("it could not be begun")),
        });
    }

    fn read(&self) -> io::Result<Option<Memory>> {
        match File::open(&self.path) {
            Ok(file) => Memory::read(file, &self.about),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn try_to(&mut self, what: &str, act: impl FnOnce(&mut Self) -> io::Result<()>) {
        let Err(error) = act(self) else { return };
        self.file = None;
        Self::lose(&self.path, what, &error);
    }

    /// Takes a journal away that could not be written.
    fn lose(path: &Path, what: &str, error: &io::Error) {
        let shown = path.display();
        tracing::warn!(
            path = %shown, %error,
            "the objects that are in force cannot be kept (the journal was not {what}): an agent that starts without an API server waits for it"
        );
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(path = %shown, %error, "a journal that is not whole stays; remove it");
            }
            Ok(()) | Err(_) => {}
        }
    }

    /// Writes the journal anew, beside the old one until it is whole.
    fn rewrite(&mut self, memory: Option<&Memory>) -> io::Result<()> {
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory)?;
        }
        let draft = draft(&self.path);
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut pen = Pen::begin(&draft)?;
        pen.write(self.about.text().as_bytes())?;
        if let Some(memory) = memory {
            memory.tell(|text| pen.write(text))?;
        }
        pen.file.flush()?;
        self.begun_with = pen.size;
        self.file = Some(pen);
        fs::rename(&draft, &self.path)
    }
}

/// A file that grows by lines, each with the checksum of everything up to it.
#[derive(Debug)]
struct Pen {
    file: BufWriter<File>,
    checksum: Checksum,
    size: u64,
}

impl Pen {
    fn begin(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Self { file: BufWriter::new(file), checksum: Checksum::default(), size: 0 })
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        self.checksum.take(text);
        let checksum = self.checksum.to_string();
        self.size += (checksum.len() + text.len() + 2) as u64;
        if self.size > FILE_MAX {
            return Err(io::Error::other("the cluster's objects are too many to be kept"));
        }
        for part in [checksum.as_bytes(), b" ", text, b"\n"] {
            self.file.write_all(part)?;
        }
        Ok(())
    }
}
