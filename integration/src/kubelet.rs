//! A node on which pods start as a kubelet starts them: the outpost with a runtime, and the agent beside.

use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::cluster::{Cluster, OUTPOST_NODE};
use crate::cni::{Runtime, Sandbox};
use crate::namespace::Namespace;
use crate::objects::Objects;
use crate::patience::wait_until;

/// How long what is waited for may take.
pub const SOON: Duration = Duration::from_secs(15);
/// The plugin's name in lists.
pub const PLUGIN: &str = "namegate-cni";
/// How long a probe waits before it says that nothing comes back.
const PROBE: Duration = Duration::from_millis(700);

/// The outpost with a runtime and a policy over pods labelled `app: web`: the echo server, no more.
#[derive(Debug)]
pub struct Stand {
    /// Runs the plugins.
    pub runtime: Runtime,
    /// The API server and both nodes.
    pub cluster: Cluster,
}

/// One pod that a kubelet is about to start.
#[derive(Debug)]
pub struct Start {
    /// Where it runs.
    pub namespace: Namespace,
    /// What the runtime knows it by.
    pub sandbox: Sandbox,
    /// Its name.
    pub name: String,
}

impl Stand {
    /// `None`, after saying so, where this machine cannot.
    pub fn new(test: &str) -> Result<Option<Self>> {
        let Some(cluster) = Cluster::for_test(test)? else { return Ok(None) };
        let Some(runtime) = Runtime::new(&cluster.town.lab, &cluster.outpost.node)? else {
            return Ok(None);
        };
        cluster.let_web_reach_echo()?;
        Ok(Some(Self { runtime, cluster }))
    }

    /// Starts the agent with the plugin to be put in the list, and does not wait.
    pub fn spawn(&self, more: &[&str]) -> Result<Agent> {
        let (lists, programs) = (self.runtime.lists(), self.runtime.programs());
        let (lists, programs) = (lists.display().to_string(), programs.display().to_string());
        let own = ["--cni-lists", &lists, "--cni-programs", &programs];
        Agent::spawn_in(
            &self.cluster.town.lab,
            &self.cluster.outpost.node,
            OUTPOST_NODE,
            &self.cluster.kubeconfig,
            &[&own, more].concat(),
        )
    }

    /// Starts the agent, and waits until the plugin is where it belongs.
    pub fn start(&self, more: &[&str]) -> Result<Agent> {
        let agent = self.spawn(more)?.expect_ready()?;
        self.expect_chained()?;
        Ok(agent)
    }

    /// Waits until the plugin is the last of the list.
    pub fn expect_chained(&self) -> Result<()> {
        wait_until("the plugin in the list", SOON, || {
            let plugins = self.runtime.plugins().unwrap_or_default();
            Ok(plugins.last().is_some_and(|last| last["type"] == PLUGIN))
        })
    }

    /// The sandbox of a pod, before anything is plugged in. The API server knows the pod where
    /// `is_known`.
    pub fn sandbox(&self, name: &str, app: &str, is_known: bool) -> Result<Start> {
        let namespace = Namespace::create(&self.cluster.town.lab.namespace(name))?;
        let uid = if is_known { self.make_pod(name, app)? } else { String::new() };
        let sandbox = Sandbox::of_pod(&namespace, ("shop", name, &uid));
        Ok(Start { namespace, sandbox, name: name.to_owned() })
    }

    /// A Pod that was given to the outpost and has no address yet; its uid.
    pub fn make_pod(&self, name: &str, app: &str) -> Result<String> {
        self.cluster.api.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "labels": {"app": app}},
            "spec": {"nodeName": OUTPOST_NODE, "containers": [{"name": app, "image": app}]},
            "status": {"phase": "Pending"},
        }))?;
        let pod = self.cluster.api.object("Pod", "shop", name)?.context("the pod is not there")?;
        Ok(pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned())
    }
}

impl Stand {
    /// Tells the API server the address that the runtime made for a pod, as the kubelet does once its
    /// sandbox stands.
    pub fn tell_address(&self, start: &Start, result: &Value) -> Result<()> {
        let address =
            result["ips"][0]["address"].as_str().context("a result without an address")?;
        let address = address.split('/').next().unwrap_or_default();
        let api = &self.cluster.api;
        let mut pod = api.object("Pod", "shop", &start.name)?.context("the pod is gone")?;
        pod["status"] = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]});
        api.put(pod)?;
        Ok(())
    }
}

impl Start {
    /// Whether it can connect there.
    pub fn reaches(&self, to: impl Into<SocketAddr>) -> Result<bool> {
        let to = to.into();
        let opened = self.namespace.within(|| TcpStream::connect_timeout(&to, PROBE))?;
        Ok(opened.is_ok())
    }

    /// Waits until it can connect there: where that must come true, however slow the machine is.
    pub fn expect_reach(&self, to: impl Into<SocketAddr>) -> Result<()> {
        let to = to.into();
        wait_until(&format!("{} to reach {to}", self.name), SOON, || self.reaches(to))
    }

    /// Sends one datagram, as a program would that is faster than everybody.
    pub fn send(&self, to: impl Into<SocketAddr>) -> Result<()> {
        let to = to.into();
        let sent = self.namespace.within(|| -> io::Result<usize> {
            UdpSocket::bind(("0.0.0.0", 0))?.send_to(b"first", to)
        })?;
        sent.map(drop).context("nothing could be sent")
    }
}

/// What a bridge or a point-to-point CNI has in its list.
pub fn mk_plugins(kind: &str, folder: &str) -> Value {
    let mut plugin = json!({
        "type": kind,
        "ipam": {
            "type": "host-local", "dataDir": folder,
            "ranges": [[{"subnet": "10.244.2.128/25"}]], "routes": [{"dst": "0.0.0.0/0"}],
        },
    });
    if kind == "bridge" {
        plugin["bridge"] = "cni0".into();
        plugin["isGateway"] = true.into();
    }
    json!([plugin])
}
