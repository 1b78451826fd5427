//! One agent for one set of maps, and what the last one noted.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::preflight::PreflightError;

/// The lock of one agent; held until dropped, or until the process ends in whatever way.
#[derive(Debug)]
pub struct AgentLock {
    file: File,
    path: PathBuf,
    note: Option<String>,
}

/// The longest content that is read.
const CONTENT_MAX: u64 = 256;

impl AgentLock {
    /// Takes the lock in `run_dir`, which is made where it is missing. The note in it stays; agents of
    /// builds that know of none leave none.
    pub fn take(run_dir: &Path) -> Result<Self, PreflightError> {
        let failed = |path: &Path, source| PreflightError::RunDir { path: path.to_owned(), source };
        fs::create_dir_all(run_dir).map_err(|source| failed(run_dir, source))?;
        let path = run_dir.join("agent.lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|source| failed(&path, source))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let holder = match content(&file).split_whitespace().next() {
                Some(pid) => format!("process {pid}"),
                None => "unknown process".to_owned(),
            };
            return Err(PreflightError::Locked { path, holder });
        }
        let note = content(&file).split_whitespace().nth(1).map(str::to_owned);
        let mut lock = Self { file, path, note };
        lock.write().map_err(|source| failed(&lock.path, source))?;
        Ok(lock)
    }

    /// What the last agent noted; `None` where that was one that notes nothing.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Notes a word for the next agent, in the place of the last one's.
    pub fn set_note(&mut self, note: &str) -> Result<(), PreflightError> {
        self.note = Some(note.to_owned());
        self.write().map_err(|source| PreflightError::RunDir { path: self.path.clone(), source })
    }

    /// Who holds the lock, and the note.
    fn write(&mut self) -> io::Result<()> {
        let note = self.note.iter().map(|note| format!(" {note}"));
        let text = format!("{}{}\n", std::process::id(), note.collect::<String>());
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(text.as_bytes())
    }

    /// Where the lock is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What is in the file; nothing where it cannot be read.
fn content(file: &File) -> String {
    let mut text = String::new();
    if let Err(error) = file.take(CONTENT_MAX).read_to_string(&mut text) {
        tracing::debug!(%error, "what is in the lock cannot be read");
        text.clear();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_told_who_holds_the_lock() {
        let dir = std::env::temp_dir().join(format!("namegate-lock-{}", std::process::id()));
        let first = AgentLock::take(&dir).unwrap();
        let error = AgentLock::take(&dir).expect_err("the lock is held").to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        AgentLock::take(&dir).expect("the lock is free again");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_note_stays_until_an_agent_leaves_none() {
        let dir = std::env::temp_dir().join(format!("namegate-note-{}", std::process::id()));
        let mut lock = AgentLock::take(&dir).unwrap();
        assert_eq!(lock.note(), None);
        lock.set_note("0123").unwrap();
        assert!(AgentLock::take(&dir).unwrap_err().to_string().contains("process"));
        drop(lock);
        drop(AgentLock::take(&dir).unwrap());
        let lock = AgentLock::take(&dir).unwrap();
        assert_eq!(lock.note(), Some("0123"), "one that noted nothing of its own");
        let path = lock.path().to_owned();
        drop(lock);
        // As builds without notes take it.
        fs::write(path, "4711\n").unwrap();
        assert_eq!(AgentLock::take(&dir).unwrap().note(), None);
        fs::remove_dir_all(dir).unwrap();
    }
}
