//! Network namespaces by name, as `ip netns` keeps them under `/run/netns`.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{Finished, run};

const QUICK: Duration = Duration::from_secs(10);
const NETNS: &str = "/run/netns";
const RESOLVER_FILES: &str = "/etc/netns";

/// A network namespace that goes away with this value.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    kept: bool,
}

impl Namespace {
    /// Makes the namespace, with IPv6 addresses usable at once and the loopback interface up.
    pub fn create(name: &str) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", name]), QUICK)?
            .success()
            .with_context(|| format!("cannot make network namespace {name}"))?;
        let namespace = Self { name: name.to_owned(), kept: false };
        namespace.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        namespace.sysctl("net/ipv6/conf/all/accept_dad", "0")?;
        namespace.sysctl("net/ipv4/ping_group_range", "0 0")?;
        namespace.ip(&["link set lo up"])?;
        Ok(namespace)
    }

    /// The name that `ip netns` knows.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that holds the namespace.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS).join(&self.name)
    }

    /// Runs lines of `ip` commands in the namespace, as one batch.
    pub fn ip(&self, lines: &[&str]) -> Result<()> {
        let mut script = lines.join("\n");
        script.push('\n');
        let file =
            std::env::temp_dir().join(format!("{}.{:?}.ip", self.name, thread::current().id()));
        fs::write(&file, &script)?;
        let finished = run(Command::new("ip").args(["-n", &self.name, "-batch"]).arg(&file), QUICK);
        fs::remove_file(&file)?;
        finished?.success().with_context(|| format!("ip in {}:\n{script}", self.name))?;
        Ok(())
    }

    /// The index of an interface in the namespace.
    pub fn interface_index(&self, name: &str) -> Result<u32> {
        let line = self.run(&["ip", "-o", "link", "show", "dev", name], QUICK)?.success()?;
        let index = line.split(':').next().and_then(|index| index.trim().parse().ok());
        index.with_context(|| format!("no index in {line:?}"))
    }

    /// Writes one file below `/proc/sys`, as seen from the namespace.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.within(|| fs::write(&path, value))?
            .with_context(|| format!("cannot set {key} in {}", self.name))
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets made there stay there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(self.path())
            .with_context(|| format!("cannot open network namespace {}", self.name))?;
        thread::scope(|scope| {
            scope
                .spawn(move || {
                    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
                    Ok(work())
                })
                .join()
                .map_err(|_| anyhow!("a thread in {} panicked", self.name))?
        })
    }

    /// A command inside the namespace that sees this machine's file systems, `/sys/fs/bpf` too.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// A command inside the namespace that resolves names as set by [`Self::set_resolver`].
    pub fn resolving_command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        for variable in ["http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env_remove(variable);
        }
        command
    }

    /// Runs a command with its arguments inside the namespace to its end.
    pub fn run(&self, command: &[&str], limit: Duration) -> Result<Finished> {
        let (program, arguments) = command.split_first().context("an empty command")?;
        run(self.command(program).args(arguments), limit)
    }

    /// Writes the `resolv.conf` that [`Self::resolving_command`] shows to programs.
    pub fn set_resolver(&self, text: &str) -> Result<()> {
        let folder = Path::new(RESOLVER_FILES).join(&self.name);
        fs::create_dir_all(&folder)?;
        Ok(fs::write(folder.join("resolv.conf"), text)?)
    }

    /// Leaves the namespace standing when this value goes.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = remove(&self.name)
        {
            eprintln!("lab: {error:#}");
        }
    }
}

/// Ends every process in the namespace `name` and removes it with its files.
pub fn remove(name: &str) -> Result<()> {
    let processes = run(Command::new("ip").args(["netns", "pids", name]), QUICK)?.success()?;
    for process in processes.split_whitespace().filter_map(|id| id.parse().ok()) {
        if let Some(process) = Pid::from_raw(process) {
            // It may have ended by itself meanwhile.
            let _gone = kill_process(process, Signal::KILL);
        }
    }
    let folder = Path::new(RESOLVER_FILES).join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    run(Command::new("ip").args(["netns", "del", name]), QUICK)?
        .success()
        .with_context(|| format!("cannot remove network namespace {name}"))?;
    Ok(())
}

/// The names of the namespaces that begin with `prefix`.
pub fn names_with(prefix: &str) -> Result<Vec<String>> {
    if !Path::new(NETNS).exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(NETNS)? {
        if let Ok(name) = entry?.file_name().into_string()
            && name.starts_with(prefix)
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
