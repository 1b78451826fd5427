//! The town: one node with three pods and a resolver, and the internet that they talk to.

use std::net::IpAddr;

use anyhow::{Context, Result};

use crate::addresses::{
    ASSETS, AUTHORITY, CHECKOUT, DB, DB_PORT, ECHO, ECHO_PORT, EVIL, EXAMPLE, KUBE_DNS, METADATA,
    RELEASES, STORAGE, STRIPE, WEB,
};
use crate::authority::{self, wait_listening};
use crate::lab::{self, Lab};
use crate::namespace::Namespace;
use crate::node::Node;
use crate::pod::{Pod, echo_servers};
use crate::process::Daemon;
use crate::{resolver, site};

/// A whole town. Fields drop in order: servers first, then namespaces, then the lab's folder.
#[derive(Debug)]
pub struct Town {
    /// The resolver's process; tests take it away.
    pub resolver: Option<Daemon>,
    servers: Vec<Daemon>,
    /// Pod `shop/checkout`.
    pub checkout: Pod,
    /// Pod `shop/web`.
    pub web: Pod,
    /// Pod `data/db`.
    pub db: Pod,
    /// Pod `kube-system/kube-dns`.
    pub kube_dns: Pod,
    /// The node.
    pub node: Node,
    /// Everything beyond the node's uplink.
    pub internet: Namespace,
    /// The lab that the town stands in.
    pub lab: Lab,
}

impl Town {
    /// Builds a town for the test `name`; `None`, after saying so, where this machine cannot.
    pub fn for_test(name: &str) -> Result<Option<Self>> {
        if !lab::can_run(name)? {
            return Ok(None);
        }
        Ok(Some(Self::build(Lab::for_test()?)?))
    }

    /// Builds the town in `lab`; every server answers when this returns.
    pub fn build(lab: Lab) -> Result<Self> {
        let internet = Namespace::create(&lab.namespace("internet"))?;
        let node = Node::create(&lab, &internet)?;
        give_addresses(&internet)?;
        let kube_dns = Pod::create(&lab, &node, "kube-dns", KUBE_DNS)?;
        let checkout = Pod::create(&lab, &node, "checkout", CHECKOUT)?;
        let mut web = Pod::create(&lab, &node, "web", WEB)?;
        let mut db = Pod::create(&lab, &node, "db", DB)?;
        web.serve_echo(&lab, 80)?;
        db.serve_echo(&lab, DB_PORT)?;
        let hosts = [IpAddr::V4(ECHO.v4), IpAddr::V6(ECHO.v6)];
        let mut servers = echo_servers(&internet, &lab, &hosts, ECHO_PORT)?;
        servers.push(authority::start(&lab, &internet).context("nsd")?);
        servers.push(site::start(&lab, &internet).context("nginx")?);
        for (index, host) in hosts.into_iter().enumerate() {
            let server = servers.get_mut(index * 2).context("an echo server")?;
            wait_listening(server, &internet, "the echo server", ECHO_PORT, host)?;
        }
        let resolver = Some(resolver::start(&lab, &kube_dns).context("unbound")?);
        Ok(Self { resolver, servers, checkout, web, db, kube_dns, node, internet, lab })
    }

    /// Leaves the town standing when this value goes.
    pub fn keep(mut self) {
        for pod in [&mut self.checkout, &mut self.web, &mut self.db, &mut self.kube_dns] {
            pod.keep();
        }
        for server in self.servers.drain(..).chain(self.resolver.take()) {
            server.release();
        }
        self.node.namespace.keep();
        self.internet.keep();
        self.lab.keep();
    }
}

fn give_addresses(internet: &Namespace) -> Result<()> {
    let mut lines = vec![format!("addr add {METADATA}/32 dev lo")];
    for pair in [AUTHORITY, STRIPE, RELEASES, ASSETS, STORAGE, ECHO, EXAMPLE, EVIL] {
        lines.push(format!("addr add {}/32 dev lo", pair.v4));
        lines.push(format!("addr add {}/128 dev lo nodad", pair.v6));
    }
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    internet.ip(&lines)
}
