//! Where this agent's objects come from, and the two things it wants of that: everything at the
//! start, and what changes from then on.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::work::report_problems;
use crate::cli::AgentArgs;
use crate::kubernetes::{self, Access, DaemonSetFate, NodeView, Reporting, WatchHealth};
use crate::lock::AgentLock;
use crate::source::{self, Changes, Directory};
use crate::uninstall;

/// How many names of nodes a message has.
const NODES_NAMED: usize = 5;

/// Where objects come from.
#[derive(Debug)]
pub(super) enum Objects {
    /// A directory, followed or not.
    Directory { directory: Box<Directory>, is_followed: bool },
    /// The API server.
    Cluster(Box<Cluster>),
}

/// The API server, and what is followed there.
#[derive(Debug)]
pub(super) struct Cluster {
    source: kubernetes::Source,
    connection: kubernetes::Connection,
    node_name: Arc<str>,
}

/// Where objects are kept.
struct Journal {
    path: PathBuf,
    /// Which one was in force last.
    noted: Option<String>,
}

/// A source, and what it said at first.
pub(super) type Read = (Objects, FirstRead);

/// What was read first.
#[derive(Debug)]
pub(super) struct FirstRead {
    pub(super) changes: Changes,
    /// Whether something could not be read: what an earlier agent enforces may be meant by it.
    pub(super) has_problems: bool,
    /// The node whose pods are the endpoints; `None` where pods say by annotation where they live.
    pub(super) node_name: Option<Arc<str>>,
    /// Whether this is what an earlier agent knew, until the API server has told everything.
    pub(super) is_remembered: bool,
}

impl Objects {
    /// Opens the source and reads all of it. With an API server this takes until it answers, unless an
    /// earlier agent's objects are known; `lock` says whether they are what was in force last.
    pub(super) async fn read(
        args: &AgentArgs,
        health: &WatchHealth,
        lock: &mut AgentLock,
    ) -> anyhow::Result<Read> {
        match &args.manifests {
            Some(manifests) => {
                // What the node's agent in a cluster remembers is older than what goes on from here.
                uninstall::remove_file(&kubernetes::journal_path(&args.node.run_dir()))?;
                let mut directory = Directory::new([manifests.clone()]);
                let changes = directory.look();
                report_problems(&changes.problems);
                anyhow::ensure!(
                    directory.object_count() > 0 || args.watch,
                    "no valid object in {}: there is nothing to enforce; see `namegate check {0}`",
                    manifests.display()
                );
                let has_problems = changes.problems.iter().any(|problem| !problem.is_foreign());
                let source =
                    Self::Directory { directory: Box::new(directory), is_followed: args.watch };
                let (node_name, is_remembered) = (None, false);
                Ok((source, FirstRead { changes, has_problems, node_name, is_remembered }))
            }
            None => {
                let path = kubernetes::journal_path(&args.node.run_dir());
                let journal = Journal { path, noted: lock.note().map(str::to_owned) };
                let cluster = Self::begin(args, journal, health).await?;
                cluster.note(lock)?;
                cluster.read().await
            }
        }
    }

    /// The same while another agent has the node and its journal: `None` where it is read quickly enough
    /// afterwards. What an earlier agent knew is not read, so this waits for the API server.
    pub(super) async fn read_beside(
        args: &AgentArgs,
        health: &WatchHealth,
    ) -> anyhow::Result<Option<Read>> {
        if args.manifests.is_some() {
            return Ok(None);
        }
        let path = kubernetes::heirs_journal_path(&args.node.run_dir());
        uninstall::remove_file(&path)?;
        let journal = Journal { path, noted: None };
        Self::begin(args, journal, health).await?.read().await.map(Some)
    }

    /// Keeps what is in force where the agent that has the node does.
    pub(super) fn settle(&mut self, args: &AgentArgs, lock: &mut AgentLock) -> anyhow::Result<()> {
        if let Self::Cluster(cluster) = self {
            cluster.source.settle(kubernetes::journal_path(&args.node.run_dir()));
            cluster.note(lock)?;
        }
        Ok(())
    }

    async fn begin(
        args: &AgentArgs,
        journal: Journal,
        health: &WatchHealth,
    ) -> anyhow::Result<Box<Cluster>> {
        let node_name = node_name(args)?;
        let access = args.kubeconfig.clone().map_or(Access::InCluster, Access::Kubeconfig);
        let connection = kubernetes::connect(&access).await?;
        tracing::info!(server = connection.server(), node = %node_name, "reading the cluster");
        let options = kubernetes::SourceOptions {
            survey: args.discovery_interval,
            journal: journal.path,
            noted: journal.noted,
            node_name: Arc::clone(&node_name),
        };
        let source = kubernetes::Source::begin(connection.clone(), &options, health.clone());
        Ok(Box::new(Cluster { source, connection, node_name }))
    }

    /// Begins to report what is in force, where there is anybody to report to.
    pub(super) fn report(
        &self,
        node_name: Option<Arc<str>>,
        args: &AgentArgs,
    ) -> Option<(Reporting, NodeView)> {
        let (Self::Cluster(cluster), Some(node_name)) = (self, node_name) else {
            return None;
        };
        let options = kubernetes::ReportOptions { node_name, lease: args.status_lease };
        Some(Reporting::begin(cluster.connection.clone(), cluster.source.facts(), &options))
    }

    /// Follows the DaemonSet without which the agent leaves the node, where there is one.
    pub(super) fn follow_daemon_set(
        &self,
        args: &AgentArgs,
    ) -> Option<(watch::Receiver<DaemonSetFate>, JoinHandle<()>)> {
        let (Self::Cluster(cluster), Some(name)) = (self, &args.detach_with) else {
            return None;
        };
        let (send, fate) = watch::channel(DaemonSetFate::default());
        let connection = cluster.connection.clone();
        let following = kubernetes::follow_daemon_set(connection, name.clone(), send);
        Some((fate, tokio::spawn(following)))
    }

    /// Hands on what changes from now on; `None` where nothing is followed.
    pub(super) fn follow(self, changes: mpsc::Sender<Changes>) -> Option<JoinHandle<()>> {
        match self {
            Self::Directory { is_followed: false, .. } => None,
            Self::Directory { directory, .. } => {
                Some(tokio::spawn(source::follow(*directory, changes)))
            }
            Self::Cluster(cluster) => Some(tokio::spawn(cluster.source.follow(changes))),
        }
    }
}

impl Cluster {
    /// Notes on the node which journal is that of what is in force.
    fn note(&self, lock: &mut AgentLock) -> anyhow::Result<()> {
        Ok(lock.set_note(self.source.journal_id())?)
    }

    async fn read(mut self: Box<Self>) -> anyhow::Result<Read> {
        let kubernetes::First { changes, has_refusals, nodes, is_remembered } =
            self.source.first().await;
        let (connection, node_name) = (&self.connection, Arc::clone(&self.node_name));
        if is_remembered {
            tracing::info!(
                server = connection.server(),
                objects = changes.upserts.len(),
                "the API server has not told everything: what an earlier agent had in force goes on, and pods that came since are closed until it has"
            );
        }
        anyhow::ensure!(
            nodes.contains(&node_name),
            "the cluster has no Node {node_name} (it has {}); set --node-name or NODE_NAME to the one that this agent runs on",
            named(&nodes)
        );
        let first = FirstRead {
            changes,
            has_problems: has_refusals,
            node_name: Some(node_name),
            is_remembered,
        };
        Ok((Objects::Cluster(self), first))
    }
}

/// The name that this node has in the cluster.
pub(super) fn node_name(args: &AgentArgs) -> anyhow::Result<Arc<str>> {
    if let Some(name) = &args.node_name {
        return Ok(name.as_str().into());
    }
    let host = rustix::system::uname();
    let host = host.nodename().to_str().context("the host's name is not text; set --node-name")?;
    // A kubelet registers under the host's name in lower case.
    Ok(host.to_lowercase().into())
}

fn named(nodes: &BTreeSet<Arc<str>>) -> String {
    let mut names: Vec<&str> = nodes.iter().take(NODES_NAMED).map(|name| &**name).collect();
    if names.is_empty() {
        return "none".to_owned();
    }
    if nodes.len() > NODES_NAMED {
        names.push("others");
    }
    names.join(", ")
}
