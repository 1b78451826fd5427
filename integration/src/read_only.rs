//! A folder that nobody can write, root included.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::process::run;

const LIMIT: Duration = Duration::from_secs(5);

/// A folder that is mounted read-only over itself, until this value goes.
#[derive(Debug)]
pub struct ReadOnly {
    folder: PathBuf,
}

impl ReadOnly {
    /// Takes writing away.
    pub fn over(folder: &Path) -> Result<Self> {
        run(Command::new("mount").arg("--bind").args([folder, folder]), LIMIT)?.success()?;
        let read_only = Self { folder: folder.to_owned() };
        let mut remount = Command::new("mount");
        run(remount.args(["-o", "remount,bind,ro"]).arg(folder), LIMIT)?.success()?;
        Ok(read_only)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        // Whoever looks at the folder just then does not hold it.
        let unmounted = run(Command::new("umount").arg("--lazy").arg(&self.folder), LIMIT);
        if let Err(error) = unmounted.and_then(|finished| finished.success()) {
            eprintln!("{} stays read-only: {error:#}", self.folder.display());
        }
    }
}
