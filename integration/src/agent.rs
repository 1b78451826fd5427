//! The real `namegate` binary, running on a lab's node.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::audit::AuditLog;
use crate::lab::Lab;
use crate::manifests::Manifests;
use crate::namespace::Namespace;
use crate::patience::wait_until;
use crate::process::{Daemon, Finished, run};
use crate::town::Town;

/// What the agent says once everything it read is in force.
const READY: &str = "enforcing";
const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(10);
const ASK_LIMIT: Duration = Duration::from_secs(10);

/// Name of the socket in the agent's run directory.
const SOCKET: &str = "namegate.sock";

/// A running agent; it is killed, not stopped, when this value goes.
#[derive(Debug)]
pub struct Agent {
    process: Daemon,
    socket: PathBuf,
    /// What it decided.
    pub audit: AuditLog,
}

impl Agent {
    /// Starts the agent on the town's node over `manifests`, and waits until it enforces them.
    pub fn start(town: &Town, manifests: &Manifests, arguments: &[&str]) -> Result<Self> {
        Self::spawn(town, manifests, arguments)?.expect_ready()
    }

    /// Waits until everything that it read is in force.
    pub fn expect_ready(mut self) -> Result<Self> {
        wait_until("the agent to enforce", START_LIMIT, || {
            self.process.check()?;
            Ok(self.log().contains(READY))
        })
        .with_context(|| format!("the agent said:\n{}", self.log()))?;
        Ok(self)
    }

    /// Starts the agent of the Node `name` over an API server, and does not wait.
    pub fn spawn_in(
        lab: &Lab,
        node: &Namespace,
        name: &str,
        kubeconfig: &Path,
        arguments: &[&str],
    ) -> Result<Self> {
        Self::launch_in(lab, command(node)?, (name, ""), kubeconfig, arguments)
    }

    /// Starts it as a container with these capabilities would be: it has no others and can gain none, and
    /// may write to nothing on disk but the lab's folder. Does not wait.
    pub fn spawn_confined(
        (lab, node): (&Lab, &Namespace),
        name: &str,
        kubeconfig: &Path,
        capabilities: &[String],
        arguments: &[&str],
    ) -> Result<Self> {
        const READ_ONLY_ROOT: &str =
            r#"mount --bind "$0" "$0" && mount -o remount,bind,ro / && exec "$@""#;
        let bounds: String =
            capabilities.iter().map(|capability| format!(",+{capability}")).collect();
        let mut command = node.command("unshare");
        command
            .env("NO_COLOR", "1")
            .args(["--mount", "--propagation", "private", "sh", "-c", READ_ONLY_ROOT])
            .arg(lab.folder())
            .args(["setpriv", "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all"])
            .arg(format!("--bounding-set=-all{bounds}"))
            .arg(binary()?);
        Self::launch_in(lab, command, (name, ""), kubeconfig, arguments)
    }

    /// Starts another agent of the Node `name` beside the one that runs, to go on in its place, and does
    /// not wait.
    pub fn spawn_heir_in(
        lab: &Lab,
        node: &Namespace,
        name: &str,
        kubeconfig: &Path,
        arguments: &[&str],
    ) -> Result<Self> {
        let arguments = [arguments, &["--take-over"]].concat();
        Self::launch_in(lab, command(node)?, (name, "heir-"), kubeconfig, &arguments)
    }

    /// Starts an agent of a Node whose logs have names of their own.
    fn launch_in(
        lab: &Lab,
        mut command: Command,
        (name, logs): (&str, &str),
        kubeconfig: &Path,
        arguments: &[&str],
    ) -> Result<Self> {
        let audit = AuditLog::new(&lab.file(&format!("{logs}audit-{name}.log")));
        command
            .arg("agent")
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["--node-name", name, "--discovery-interval", "1s", "--status-lease", "3s"])
            .arg("--audit-log")
            .arg(audit.path())
            .arg("--pin-dir")
            .arg(lab.pins().join(name))
            .arg("--run-dir")
            .arg(lab.file(&format!("run-{name}")))
            .args(arguments);
        let process = Daemon::start(&mut command, &lab.file(&format!("{logs}agent-{name}.log")))?;
        let socket = lab.file(&format!("run-{name}")).join(SOCKET);
        Ok(Self { process, socket, audit })
    }

    /// Starts the agent and does not wait.
    pub fn spawn(town: &Town, manifests: &Manifests, arguments: &[&str]) -> Result<Self> {
        Self::spawn_version(town, manifests, None, arguments)
    }

    /// Starts the agent as one whose maps are of another version of the ABI would be, and does not
    /// wait.
    pub fn spawn_version(
        town: &Town,
        manifests: &Manifests,
        version: Option<u32>,
        arguments: &[&str],
    ) -> Result<Self> {
        Self::spawn_on(&town.lab, &town.node.namespace, manifests, version, arguments)
    }

    /// Starts this build of the agent, and does not wait.
    pub fn spawn_build(town: &Town, manifests: &Manifests, build: &Build) -> Result<Self> {
        let mut command = town.node.namespace.command(&build.program);
        command.env("NO_COLOR", "1").envs(build.environment.clone());
        Self::launch(&town.lab, manifests, command, "", &[])
    }

    /// Starts the agent with this in its environment, and does not wait.
    pub fn spawn_with(
        town: &Town,
        manifests: &Manifests,
        environment: impl IntoIterator<Item = (&'static str, OsString)>,
        arguments: &[&str],
    ) -> Result<Self> {
        let mut command = command(&town.node.namespace)?;
        command.envs(environment);
        Self::launch(&town.lab, manifests, command, "", arguments)
    }

    /// The same as [`Self::spawn_version`] on a node that no town is around.
    pub fn spawn_on(
        lab: &Lab,
        node: &Namespace,
        manifests: &Manifests,
        version: Option<u32>,
        arguments: &[&str],
    ) -> Result<Self> {
        let mut command = command(node)?;
        command.envs(version.map(|version| ("NAMEGATE_TEST_ABI_VERSION", version.to_string())));
        Self::launch(lab, manifests, command, "", arguments)
    }

    /// Starts another agent of the node beside the one that runs, to go on in its place, and does not
    /// wait. `name` tells its logs from the other's.
    pub fn spawn_heir(town: &Town, manifests: &Manifests, name: &str) -> Result<Self> {
        let command = command(&town.node.namespace)?;
        Self::launch(&town.lab, manifests, command, &format!("{name}-"), &["--take-over"])
    }

    fn launch(
        lab: &Lab,
        manifests: &Manifests,
        mut command: Command,
        name: &str,
        arguments: &[&str],
    ) -> Result<Self> {
        let audit = AuditLog::new(&lab.file(&format!("{name}audit.log")));
        command
            .arg("agent")
            .arg("--manifests")
            .arg(manifests.folder())
            .arg("--watch")
            .arg("--audit-log")
            .arg(audit.path())
            .arg("--pin-dir")
            .arg(lab.pins())
            .arg("--run-dir")
            .arg(lab.file("run"))
            .args(arguments);
        let process = Daemon::start(&mut command, &lab.file(&format!("{name}agent.log")))?;
        Ok(Self { process, socket: lab.file("run").join(SOCKET), audit })
    }

    /// Asks the agent by one of the commands that read its socket.
    pub fn ask(&self, words: &[&str]) -> Result<Finished> {
        let mut command = Command::new(binary()?);
        command.args(words).env("NAMEGATE_SOCKET", &self.socket).env("NO_COLOR", "1");
        run(&mut command, ASK_LIMIT)
    }

    /// The number of its process.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// The socket that the agent answers on.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What the agent said on its own log.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// What the kernel makes of the instructions of the programs that it loaded.
    pub fn program_tags(&self) -> Result<String> {
        let log = self.log();
        let tags = log.split_once(" tags=").and_then(|(_, rest)| rest.split_whitespace().next());
        tags.map(str::to_owned).with_context(|| format!("the agent said:\n{log}"))
    }

    /// How often it warned there.
    pub fn warnings(&self) -> usize {
        self.log().lines().filter(|line| line.contains("WARN")).count()
    }

    /// Waits until the agent's own log says `text`.
    pub fn expect_log(&self, text: &str) -> Result<()> {
        wait_until(&format!("{text:?} in the agent's log"), Duration::from_secs(5), || {
            Ok(self.log().contains(text))
        })
        .with_context(|| format!("the agent said:\n{}", self.log()))
    }

    /// Waits until what the pods of `town` learned is on disk.
    pub fn expect_remembered(&self, town: &Town) -> Result<()> {
        let file = town.lab.file("run").join("learned.jsonl");
        wait_until("what was learned to be on disk", Duration::from_secs(5), || {
            let content = std::fs::read_to_string(&file).unwrap_or_default();
            Ok(content.contains("{\"lease\":"))
        })
    }

    /// Fails with its log if it is gone.
    pub fn check(&mut self) -> Result<()> {
        self.process.check()
    }

    /// Ends it as an operator would.
    pub fn stop(mut self, signal: Signal) -> Result<ExitStatus> {
        self.process
            .stop(signal, STOP_LIMIT)
            .with_context(|| format!("the agent said:\n{}", self.process.log()))
    }

    /// Ends it as a crash would.
    pub fn kill(self) -> Result<()> {
        self.stop(Signal::KILL).map(drop)
    }

    /// Lets the agent outlive its owner.
    pub fn release(self) {
        self.process.release();
    }
}

/// One of several builds of the agent that follow each other on a node.
#[derive(Clone, Debug)]
pub struct Build {
    program: PathBuf,
    environment: Vec<(&'static str, String)>,
}

impl Build {
    /// The one that is tested everywhere.
    pub fn own() -> Result<Self> {
        Ok(Self { program: binary()?, environment: Vec::new() })
    }

    /// One whose kernel program has other instructions.
    pub fn other() -> Result<Self> {
        Ok(Self::own()?.with("NAMEGATE_TEST_OTHER_PROGRAM", "1"))
    }

    /// The one that `NAMEGATE_OTHER_BIN` names.
    pub fn named() -> Option<Self> {
        let program = env::var_os("NAMEGATE_OTHER_BIN")?.into();
        Some(Self { program, environment: Vec::new() })
    }

    /// The same as if its maps were of another version of the ABI; not of a release.
    pub fn of_version(self, version: u32) -> Self {
        self.with("NAMEGATE_TEST_ABI_VERSION", &version.to_string())
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }
}

/// Runs the agent to its end: for what it should refuse.
pub fn run_to_end(node: &Namespace, arguments: &[&str], limit: Duration) -> Result<Finished> {
    run(command(node)?.arg("agent").args(arguments), limit)
}

fn command(node: &Namespace) -> Result<Command> {
    let mut command = node.command(binary()?);
    command.env("NO_COLOR", "1");
    Ok(command)
}

/// The `namegate` binary: `NAMEGATE_BIN`, or the one beside the running program.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("NAMEGATE_BIN") {
        return Ok(path.into());
    }
    let own = env::current_exe()?;
    let folders = own.ancestors().skip(1).take(2);
    for candidate in folders.map(|folder: &Path| folder.join("namegate")) {
        if candidate.is_file() {
            return Ok(candidate);
        }
    }
    bail!("no namegate binary beside {}: run `cargo build --workspace`", own.display())
}
