//! Real programs: commands that run to their end under a deadline, and daemons that live as long as
//! their owner.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::patience::wait_for;

/// What a command left behind.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it said.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Finished {
    /// The exit code; -1 where a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Standard output of a command that succeeded; an error with its complaint otherwise.
    pub fn success(self) -> Result<String> {
        if self.status.success() {
            Ok(self.stdout)
        } else {
            bail!("{}: {}", self.status, self.stderr.trim())
        }
    }
}

/// What a process holds in memory.
pub fn resident_kib(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    line.trim().trim_end_matches(" kB").parse().context("VmRSS is no number")
}

/// Runs `command` to its end; kills it and fails once `limit` has passed.
pub fn run(command: &mut Command, limit: Duration) -> Result<Finished> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let ended = wait_for(&shown, limit, || Ok(child.try_wait()?));
    if ended.is_err() {
        end(&mut child, Signal::KILL);
    }
    let status = ended?;
    Ok(Finished {
        status,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    })
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe
            && let Err(error) = pipe.read_to_end(&mut bytes)
        {
            return format!("unreadable output: {error}");
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A program in the background, with everything it forks; it ends with this value.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` with both outputs in the file `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        Self::start_with_stdout(command, file.try_clone()?.into(), file, log)
    }

    /// Starts `command` with complaints in the file `log` and its output to be read by the caller.
    pub fn start_piped(command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        Self::start_with_stdout(command, Stdio::piped(), file, log)
    }

    /// Starts `command` with complaints in the file `log` and both its input and its output in the
    /// caller's hands.
    pub fn start_dialogue(
        command: &mut Command,
        log: &Path,
    ) -> Result<(Self, ChildStdin, ChildStdout)> {
        let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let daemon = Self { child, log: log.to_owned() };
        Ok((daemon, input.context("no input")?, output.context("no output")?))
    }

    fn start_with_stdout(
        command: &mut Command,
        stdout: Stdio,
        stderr: File,
        log: &Path,
    ) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// The process's standard output, once.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote into its log.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How it ended, or `None` while it runs.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Fails with its log if it is gone.
    pub fn check(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => bail!("ended early, {status}: {}", self.log().trim()),
        }
    }

    /// Sends `signal` and waits for the end.
    pub fn stop(&mut self, signal: Signal, limit: Duration) -> Result<ExitStatus> {
        signal_group(&self.child, signal);
        wait_for("the end of a daemon", limit, || self.ended())
    }

    /// Sends `signal` and goes on.
    pub fn signal(&self, signal: Signal) {
        signal_group(&self.child, signal);
    }

    /// Lets the program outlive its owner.
    pub fn release(self) {
        std::mem::forget(self);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        end(&mut self.child, Signal::KILL);
    }
}

fn end(child: &mut Child, signal: Signal) {
    signal_group(child, signal);
    if let Err(error) = child.wait() {
        eprintln!("lab: cannot wait for process {}: {error}", child.id());
    }
}

fn signal_group(child: &Child, signal: Signal) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(group) = group {
        // The group is gone once its last member was waited for; that is the wanted state.
        let _gone = kill_process_group(group, signal);
    }
}
