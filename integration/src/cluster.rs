//! A cluster: the town's node, the outpost and an API server that both agents read.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::addresses::{NODE, OUTPOST, ROUTER};
use crate::agent::Agent;
use crate::apiserver::{ApiServer, documents};
use crate::manifests::examples;
use crate::outpost::Outpost;
use crate::town::Town;

/// The name of the town's Node.
pub const TOWN_NODE: &str = "town";
/// The name of the second Node.
pub const OUTPOST_NODE: &str = "outpost";
/// Where the API server listens: beyond both nodes' uplinks.
pub const API_PORT: u16 = 6443;

/// Everything but agents. Fields drop in order.
#[derive(Debug)]
pub struct Cluster {
    /// The API server.
    pub api: ApiServer,
    /// How agents find it.
    pub kubeconfig: PathBuf,
    /// The second node.
    pub outpost: Outpost,
    /// The first node, its pods, and everything around.
    pub town: Town,
}

impl Cluster {
    /// The town and the outpost with their Pods known to the API server, the kinds of Namegate
    /// defined, and no policy; `None`, after saying so, where this machine cannot.
    pub fn for_test(name: &str) -> Result<Option<Self>> {
        let Some(town) = Town::for_test(name)? else { return Ok(None) };
        let outpost = Outpost::build(&town)?;
        let api = ApiServer::start(&town.lab, &town.internet, (ROUTER.v4, API_PORT).into())?;
        let kubeconfig = api.kubeconfig(&town.lab)?;
        for (name, addresses) in [(TOWN_NODE, NODE), (OUTPOST_NODE, OUTPOST)] {
            api.put(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "status": {"addresses": [{"type": "InternalIP", "address": addresses.v4}]},
            }))?;
        }
        for kind in ["EgressPolicy", "ClusterEgressPolicy", "NamegateNode"] {
            api.define(kind)?;
        }
        let cluster = Self { api, kubeconfig, outpost, town };
        for mut object in documents(&example("cluster.yaml")?)? {
            if object["kind"] == "Pod" {
                object["spec"]["nodeName"] = TOWN_NODE.into();
                if let Some(metadata) = object["metadata"].as_object_mut() {
                    metadata.remove("annotations");
                }
            }
            cluster.api.put(object)?;
        }
        cluster.api.put(cluster.twin())?;
        let web = &cluster.outpost.web;
        cluster.api.put(mk_pod("far-web", "web", OUTPOST_NODE, &web.addresses.v4.to_string()))?;
        Ok(Some(cluster))
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
        Agent::spawn_in(&self.town.lab, node, TOWN_NODE, &self.kubeconfig, &[])
    }

    /// Starts the agent of the outpost and waits until it enforces.
    pub fn start_outpost(&self) -> Result<Agent> {
        let node = &self.outpost.node;
        Agent::spawn_in(&self.town.lab, node, OUTPOST_NODE, &self.kubeconfig, &[])?.expect_ready()
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
