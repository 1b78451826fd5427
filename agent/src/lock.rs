//! One agent for one set of maps.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::preflight::PreflightError;

/// The lock of one agent; held until dropped, or until the process ends in whatever way.
#[derive(Debug)]
pub struct AgentLock {
    _file: File,
    path: PathBuf,
}

impl AgentLock {
    /// Takes the lock in `run_dir`, which is made where it is missing.
    pub fn take(run_dir: &Path) -> Result<Self, PreflightError> {
        let failed = |path: &Path, source| PreflightError::RunDir { path: path.to_owned(), source };
        fs::create_dir_all(run_dir).map_err(|source| failed(run_dir, source))?;
        let path = run_dir.join("agent.lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|source| failed(&path, source))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            let known = file.read_to_string(&mut pid).is_ok() && !pid.trim().is_empty();
            let holder = if known {
                format!("process {}", pid.trim())
            } else {
                "unknown process".to_owned()
            };
            return Err(PreflightError::Locked { path, holder });
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|source| failed(&path, source))?;
        Ok(Self { _file: file, path })
    }

    /// Where the lock is.
    pub fn path(&self) -> &Path {
        &self.path
    }
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
}
