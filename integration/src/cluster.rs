//! A cluster: the town's node, the outpost and an API server that both agents read.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::addresses::{ECHO, NODE, OUTPOST, ROUTER};
use crate::agent::Agent;
use crate::apiserver::ApiServer;
use crate::lab::say_skipped;
use crate::manifests::examples;
use crate::objects::{Objects, documents};
use crate::outpost::Outpost;
use crate::remote::{KUBECONFIG, Remote};
use crate::town::Town;

/// The name of the town's Node.
pub const TOWN_NODE: &str = "town";
/// The name of the second Node.
pub const OUTPOST_NODE: &str = "outpost";
/// Where the API server listens: beyond both nodes' uplinks.
pub const API_PORT: u16 = 6443;
const API: SocketAddr = SocketAddr::new(IpAddr::V4(ROUTER.v4), API_PORT);
/// The resolver that the town's pods ask, [`KUBE_DNS_SERVICE`](crate::addresses::KUBE_DNS_SERVICE).
const TOWN_RESOLVER: &str = "10.96.0.10";

/// Everything but agents, over an API server that is a double of the test's own unless it says
/// otherwise. Fields drop in order.
#[derive(Debug)]
pub struct Cluster<A = ApiServer> {
    /// The API server.
    pub api: A,
    /// How agents find it.
    pub kubeconfig: PathBuf,
    /// What agents are told besides.
    arguments: &'static [&'static str],
    /// The second node.
    pub outpost: Outpost,
    /// The first node, its pods, and everything around.
    pub town: Town,
}

/// A cluster over whatever API server the tests are to use.
pub type AnyCluster = Cluster<Box<dyn Objects>>;

impl Cluster {
    /// The town and the outpost with their Pods known to an API server that does wrong on demand, the
    /// kinds of Namegate defined, and no policy; `None`, after saying so, where this machine cannot or
    /// the tests are to use another API server.
    pub fn for_test(name: &str) -> Result<Option<Self>> {
        if std::env::var_os(KUBECONFIG).is_some() {
            say_skipped(name, "it needs an API server that does wrong on demand")?;
            return Ok(None);
        }
        let Some(town) = Town::for_test(name)? else { return Ok(None) };
        Self::over_double(town).map(Some)
    }

    /// Makes a policy over pods of `shop` labelled `app: web`: the echo server, no more.
    pub fn let_web_reach_echo(&self) -> Result<()> {
        self.api.put(json!({
            "apiVersion": "namegate.dev/v1alpha1", "kind": "EgressPolicy",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "web"}},
                "egress": [{"to": [{"cidr": format!("{}/32", ECHO.v4)}]}],
            },
        }))
    }

    fn over_double(town: Town) -> Result<Self> {
        let outpost = Outpost::build(&town)?;
        let api = ApiServer::start(&town.lab, &town.internet, API)?;
        let kubeconfig = api.kubeconfig()?;
        let cluster = Self { api, kubeconfig, arguments: &[], outpost, town };
        cluster.fill(|_| true)?;
        Ok(cluster)
    }
}

impl AnyCluster {
    /// The same over the API server of `NAMEGATE_TEST_KUBECONFIG`, or over a double where none is named.
    pub fn for_any(name: &str) -> Result<Option<Self>> {
        let Some(town) = Town::for_test(name)? else { return Ok(None) };
        let Some(remote) = Remote::asked()? else {
            let Cluster { api, kubeconfig, arguments, outpost, town } = Cluster::over_double(town)?;
            let api: Box<dyn Objects> = Box::new(api);
            return Ok(Some(Self { api, kubeconfig, arguments, outpost, town }));
        };
        let outpost = Outpost::build(&town)?;
        let kubeconfig = town.lab.file("kubeconfig");
        remote.reach(&town.internet, API, &kubeconfig)?;
        // A cluster has a resolver of its own; pods of the town ask the town's.
        let arguments = &["--resolver", TOWN_RESOLVER];
        let api: Box<dyn Objects> = Box::new(remote);
        let cluster = Self { api, kubeconfig, arguments, outpost, town };
        let is_own = |place: Option<&str>| place != Some("kube-system");
        cluster.fill(|object| {
            let text = |pointer| object.pointer(pointer).and_then(Value::as_str);
            is_own(text("/metadata/namespace")) && is_own(text("/metadata/name"))
        })?;
        Ok(Some(cluster))
    }
}

impl<A: Objects> Cluster<A> {
    /// Puts nodes, kinds, and what is `wanted` of the town's objects in place.
    fn fill(&self, wanted: impl Fn(&Value) -> bool) -> Result<()> {
        for (name, addresses) in [(TOWN_NODE, NODE), (OUTPOST_NODE, OUTPOST)] {
            self.api.put(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "status": {"addresses": [{"type": "InternalIP", "address": addresses.v4}]},
            }))?;
        }
        for kind in ["EgressPolicy", "ClusterEgressPolicy", "NamegateNode"] {
            self.api.define(kind)?;
        }
        for mut object in documents(&example("cluster.yaml")?)?.into_iter().filter(wanted) {
            if object["kind"] == "Pod" {
                object["spec"]["nodeName"] = TOWN_NODE.into();
                if let Some(metadata) = object["metadata"].as_object_mut() {
                    metadata.remove("annotations");
                }
            }
            self.api.put(object)?;
        }
        self.api.put(self.twin())?;
        let web = &self.outpost.web;
        self.api.put(mk_pod("far-web", "web", OUTPOST_NODE, &web.addresses.v4.to_string()))
    }

    /// The Pod `shop/twin` of the outpost.
    pub fn twin(&self) -> Value {
        let address = self.outpost.twin.addresses.v4.to_string();
        mk_pod("twin", "checkout", OUTPOST_NODE, &address)
    }

    /// Applies a manifest of `examples/town`.
    pub fn apply(&self, file: &str) -> Result<()> {
        self.api.apply(&example(file)?)
    }

    /// Starts the agent of the town's node and waits until it enforces.
    pub fn start_town(&self) -> Result<Agent> {
        let agent = self.spawn_town()?;
        agent.expect_ready()
    }

    /// Starts the agent of the town's node.
    pub fn spawn_town(&self) -> Result<Agent> {
        let node = &self.town.node.namespace;
        Agent::spawn_in(&self.town.lab, node, TOWN_NODE, &self.kubeconfig, self.arguments)
    }

    /// Starts another agent of the outpost beside the one that runs, to go on in its place.
    pub fn spawn_heir_of_outpost(&self) -> Result<Agent> {
        let node = &self.outpost.node;
        let (lab, kubeconfig) = (&self.town.lab, &self.kubeconfig);
        Agent::spawn_heir_in(lab, node, OUTPOST_NODE, kubeconfig, self.arguments)
    }

    /// Starts the agent of the outpost and waits until it enforces.
    pub fn start_outpost(&self) -> Result<Agent> {
        self.spawn_outpost()?.expect_ready()
    }

    /// Starts the agent of the outpost.
    pub fn spawn_outpost(&self) -> Result<Agent> {
        let node = &self.outpost.node;
        Agent::spawn_in(&self.town.lab, node, OUTPOST_NODE, &self.kubeconfig, self.arguments)
    }
}

/// A manifest of `examples/town`.
pub fn example(file: &str) -> Result<String> {
    let path = examples().join("town").join(file);
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// A running pod of the namespace `shop`.
pub fn mk_pod(name: &str, app: &str, node: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": app}},
        "spec": {"nodeName": node, "containers": [{"name": app, "image": app}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    })
}
