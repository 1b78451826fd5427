//! A lab's name and folder: what keeps parallel labs apart, and what finds leftovers of dead ones.

use std::env;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use rustix::process::geteuid;

use crate::namespace;

const TEST_PREFIX: &str = "ngt";
const FOLDERS: &str = "/run/namegate-lab";
const PINS: &str = "/sys/fs/bpf";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The programs that a town is made of.
const PROGRAMS: [&str; 14] = [
    "ip", "nft", "nsenter", "nsd", "unbound", "nginx", "socat", "curl", "dig", "delv", "kdig",
    "busybox", "openssl", "tcpdump",
];

/// A name that no other lab on this machine has, and a folder of that name.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    kept: bool,
}

impl Lab {
    /// A lab for one test.
    pub fn for_test() -> Result<Self> {
        sweep_dead_tests()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self::named(&format!("{TEST_PREFIX}{}x{number}", process::id()))
    }

    /// A lab with a name of its own; whatever carries that name already is removed first.
    pub fn named(prefix: &str) -> Result<Self> {
        sweep(prefix)?;
        let lab = Self { prefix: prefix.to_owned(), kept: false };
        fs::create_dir_all(lab.folder())
            .with_context(|| format!("cannot make {}", lab.folder().display()))?;
        Ok(lab)
    }

    /// The full name of one of the lab's namespaces.
    pub fn namespace(&self, short: &str) -> String {
        format!("{}-{short}", self.prefix)
    }

    /// The prefix that the lab's namespaces carry.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The folder for configurations, logs and manifests.
    pub fn folder(&self) -> PathBuf {
        folder(&self.prefix)
    }

    /// A file in the lab's folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// Where the lab's agent pins its programs and maps.
    pub fn pins(&self) -> PathBuf {
        pins(&self.prefix)
    }

    /// Leaves the folder and the pins when this value goes.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = sweep(&self.prefix)
        {
            eprintln!("lab: {error:#}");
        }
    }
}

/// Whether a lab can be built here. Where it cannot: an error when `CI` is set, otherwise a line
/// that says SKIPPED and why, and `false`.
pub fn can_run(test: &str) -> Result<bool> {
    let Some(reason) = missing() else {
        return Ok(true);
    };
    skip(test, &reason)?;
    Ok(false)
}

/// Says that a test cannot run here; an error when `CI` is set.
pub fn skip(test: &str, reason: &str) -> Result<()> {
    if env::var_os("CI").is_some_and(|value| !value.is_empty()) {
        bail!("{test} cannot run in CI: {reason}");
    }
    say_skipped(test, reason)
}

/// Says that a test does not run; the test harness captures `eprintln!` of tests that pass, and this
/// must be seen.
pub fn say_skipped(test: &str, reason: &str) -> Result<()> {
    Ok(writeln!(std::io::stderr(), "SKIPPED {test}: {reason}")?)
}

/// What keeps a lab from being built on this machine.
pub fn missing() -> Option<String> {
    if !geteuid().is_root() {
        return Some("needs root for network namespaces; run `make test`".to_owned());
    }
    let absent: Vec<_> = PROGRAMS.iter().copied().filter(|name| !is_installed(name)).collect();
    (!absent.is_empty()).then(|| format!("needs {}; run `make setup`", absent.join(", ")))
}

fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file())
}

fn sweep_dead_tests() -> Result<()> {
    let mut prefixes: Vec<String> = namespace::names_with(TEST_PREFIX)?
        .iter()
        .filter_map(|name| name.split_once('-').map(|(prefix, _)| prefix.to_owned()))
        .collect();
    if Path::new(FOLDERS).exists() {
        for entry in fs::read_dir(FOLDERS)? {
            prefixes.extend(entry?.file_name().into_string());
        }
    }
    prefixes.sort();
    prefixes.dedup();
    for prefix in prefixes {
        let owner = prefix
            .strip_prefix(TEST_PREFIX)
            .and_then(|rest| rest.split_once('x'))
            .map(|(process, _)| process);
        if owner.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            // Another test's process may be sweeping the same leftovers.
            let _raced = sweep(&prefix);
        }
    }
    Ok(())
}

/// Removes everything that carries `prefix`: namespaces with their processes, pins, the folder.
pub fn sweep(prefix: &str) -> Result<()> {
    for name in namespace::names_with(&format!("{prefix}-"))? {
        namespace::remove(&name)?;
    }
    for folder in [pins(prefix), folder(prefix)] {
        match fs::remove_dir_all(&folder) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => bail!("cannot remove {}: {error}", folder.display()),
        }
    }
    Ok(())
}

/// What is left of the lab `prefix`, for a check that nothing is.
pub fn leftovers(prefix: &str) -> Result<Vec<String>> {
    let mut left = namespace::names_with(&format!("{prefix}-"))?;
    for folder in [pins(prefix), folder(prefix)] {
        if folder.exists() {
            left.push(folder.display().to_string());
        }
    }
    Ok(left)
}

fn folder(prefix: &str) -> PathBuf {
    Path::new(FOLDERS).join(prefix)
}

fn pins(prefix: &str) -> PathBuf {
    Path::new(PINS).join(format!("namegate-{prefix}"))
}
