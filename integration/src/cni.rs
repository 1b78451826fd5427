//! What a container runtime does with CNI plugins: the first list of its folder, one plugin after the
//! other, configuration on standard input and the rest in the environment.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use crate::lab::{Lab, skip};
use crate::namespace::Namespace;

/// Where Debian has the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";

/// How long a plugin may take: longer than the agent's own waits, so that it can say why.
const LIMIT: Duration = Duration::from_secs(90);

/// A node's runtime.
#[derive(Debug)]
pub struct Runtime {
    node: PathBuf,
    lists: PathBuf,
    programs: PathBuf,
}

/// A container's sandbox: what a runtime knows it by.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// The container's id.
    pub id: String,
    /// The file of its network namespace.
    pub namespace: PathBuf,
    /// `CNI_ARGS`.
    pub arguments: String,
}

impl Sandbox {
    /// The sandbox of a pod.
    pub fn of_pod(namespace: &Namespace, (pod_namespace, pod, uid): (&str, &str, &str)) -> Self {
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={pod_namespace};K8S_POD_NAME={pod};K8S_POD_UID={uid}"
        );
        Self { id: namespace.name().to_owned(), namespace: namespace.path(), arguments }
    }
}

impl Runtime {
    /// A runtime on `node` with folders of its own and the reference plugins; `None`, after saying so,
    /// where there are none.
    pub fn new(lab: &Lab, node: &Namespace) -> Result<Option<Self>> {
        if !Path::new(REFERENCE).join("bridge").exists() {
            skip(
                "a runtime",
                &format!("no {REFERENCE}/bridge; install containernetworking-plugins"),
            )?;
            return Ok(None);
        }
        let (lists, programs) = (lab.file("net.d"), lab.file("cni-bin"));
        fs::create_dir_all(&lists)?;
        fs::create_dir_all(&programs)?;
        for plugin in fs::read_dir(REFERENCE)? {
            let plugin = plugin?;
            let link = programs.join(plugin.file_name());
            if !link.exists() {
                std::os::unix::fs::symlink(plugin.path(), link)?;
            }
        }
        Ok(Some(Self { node: node.path(), lists, programs }))
    }

    /// The folder of lists.
    pub fn lists(&self) -> &Path {
        &self.lists
    }

    /// The folder of plugins.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// Writes a list, as a CNI does that is installed or upgraded.
    pub fn write_list(&self, name: &str, plugins: &Value) -> Result<()> {
        let list = json!({"cniVersion": "1.0.0", "name": "lab", "plugins": plugins});
        Ok(fs::write(self.lists.join(name), format!("{list:#}\n"))?)
    }

    /// The plugins of the list that is used.
    pub fn plugins(&self) -> Result<Vec<Value>> {
        let list = self.list()?;
        Ok(list["plugins"].as_array().context("a list without plugins")?.clone())
    }

    /// Makes the sandbox's interface; the last plugin's result, or what the one that failed said.
    pub fn add(&self, sandbox: &Sandbox) -> Result<Result<Value, Value>> {
        let list = self.list()?;
        let mut previous = None;
        for plugin in list["plugins"].as_array().into_iter().flatten() {
            match self.call("ADD", sandbox, &list, plugin, previous.as_ref())? {
                Ok(result) => previous = Some(result),
                Err(refused) => return Ok(Err(refused)),
            }
        }
        let result = previous.context("no plugin made a result")?;
        fs::write(self.result(sandbox), result.to_string())?;
        Ok(Ok(result))
    }

    /// Asks every plugin whether all is as ADD left it.
    pub fn check(&self, sandbox: &Sandbox) -> Result<Result<(), Value>> {
        let list = self.list()?;
        let previous: Value = serde_json::from_slice(&fs::read(self.result(sandbox))?)?;
        for plugin in list["plugins"].as_array().into_iter().flatten() {
            if let Err(refused) = self.call("CHECK", sandbox, &list, plugin, Some(&previous))? {
                return Ok(Err(refused));
            }
        }
        Ok(Ok(()))
    }

    /// Takes the interface away, the last plugin first.
    pub fn del(&self, sandbox: &Sandbox) -> Result<Result<(), Value>> {
        let list = self.list()?;
        let previous = fs::read(self.result(sandbox)).ok();
        let previous: Option<Value> =
            previous.map(|text| serde_json::from_slice(&text)).transpose()?;
        for plugin in list["plugins"].as_array().into_iter().flatten().rev() {
            if let Err(refused) = self.call("DEL", sandbox, &list, plugin, previous.as_ref())? {
                return Ok(Err(refused));
            }
        }
        Ok(Ok(()))
    }

    /// Runs one plugin with a configuration of one's own.
    pub fn ask(&self, command: &str, configuration: &Value) -> Result<Result<Value, Value>> {
        let plugin = configuration["type"].as_str().context("a configuration without a type")?;
        self.run(command, None, plugin, configuration)
    }

    fn list(&self) -> Result<Value> {
        let mut lists: Vec<PathBuf> = fs::read_dir(&self.lists)?
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<_>>()?;
        lists.retain(|path| path.extension().is_some_and(|kind| kind == "conflist"));
        lists.sort();
        let first = lists.first().context("no list of plugins")?;
        Ok(serde_json::from_slice(&fs::read(first)?)?)
    }

    /// Where a runtime keeps the result of ADD.
    fn result(&self, sandbox: &Sandbox) -> PathBuf {
        self.programs.with_file_name(format!("{}.result", sandbox.id))
    }

    fn call(
        &self,
        command: &str,
        sandbox: &Sandbox,
        list: &Value,
        plugin: &Value,
        previous: Option<&Value>,
    ) -> Result<Result<Value, Value>> {
        let mut configuration = plugin.clone();
        configuration["cniVersion"] = list["cniVersion"].clone();
        configuration["name"] = list["name"].clone();
        if let Some(previous) = previous {
            configuration["prevResult"] = previous.clone();
        }
        let name = plugin["type"].as_str().context("a plugin without a type")?;
        self.run(command, Some(sandbox), name, &configuration)
    }

    fn run(
        &self,
        command: &str,
        sandbox: Option<&Sandbox>,
        plugin: &str,
        configuration: &Value,
    ) -> Result<Result<Value, Value>> {
        let mut process = Command::new(self.programs.join(plugin));
        process.env("CNI_COMMAND", command).env("CNI_PATH", &self.programs);
        if let Some(sandbox) = sandbox {
            process
                .env("CNI_CONTAINERID", &sandbox.id)
                .env("CNI_NETNS", &sandbox.namespace)
                .env("CNI_IFNAME", "eth0")
                .env("CNI_ARGS", &sandbox.arguments);
        }
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            self.spawn(&mut process).with_context(|| format!("cannot start {plugin}"))?;
        let mut input = child.stdin.take().context("a plugin without standard input")?;
        // One that reads nothing has said why.
        let _unread = input.write_all(configuration.to_string().as_bytes());
        drop(input);
        let Output { status, stdout, stderr } = finish(child)?;
        let said = serde_json::from_slice(&stdout).unwrap_or(Value::Null);
        match status.code() {
            Some(0) => Ok(Ok(said)),
            Some(_) if said.get("code").is_some() => Ok(Err(said)),
            _ => bail!("{plugin} {command}: {status}: {}", String::from_utf8_lossy(&stderr)),
        }
    }

    /// Starts a process on the node with no other program in between, as a runtime does: what a plugin
    /// costs is all that is measured.
    fn spawn(&self, process: &mut Command) -> Result<Child> {
        let node = File::open(&self.node)?;
        thread::scope(|scope| {
            let started = scope.spawn(|| -> Result<Child> {
                move_into_link_name_space(node.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(process.spawn()?)
            });
            started.join().map_err(|_| anyhow!("a thread on the node panicked"))?
        })
    }
}

/// Waits for the end of a plugin, and ends it where it takes too long.
fn finish(child: Child) -> Result<Output> {
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let (ended, end) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            if end.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                // It may have ended just then.
                let _ended = pidfd_send_signal(&process, Signal::KILL);
            }
        });
        let output = child.wait_with_output()?;
        drop(ended);
        Ok(output)
    })
}
