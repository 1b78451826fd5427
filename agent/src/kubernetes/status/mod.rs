//! What became of policies, written where `kubectl get` shows it.
//!
//! Each agent says of its own node, in a NamegateNode, which generation of which policy is in force
//! there. One agent, which holds a Lease, reads these and writes the conditions of the policies and
//! Events about those that are refused. Nothing here is asked by enforcement or waited for by it: an
//! agent that may not write, or whose API server is away, enforces as ever.

mod census;
mod election;
mod event;
mod facts;
mod judge;
mod object;
mod report;
mod view;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

pub use facts::Facts;
pub(super) use facts::{Fact, PolicyFact, Refused, Sight, policy_kind};
pub(super) use object::{NodeStatus, PolicyStatus};
pub use view::NodeView;

use super::client::Connection;
use report::Reporter;
use writer::Writer;

/// Who writes in the API server: the owner of fields, and the controller that Events name.
const MANAGER: &str = "namegate";

/// How long a request may take. A write that was lost is made again.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// How long the end waits for the last words to be said.
const END_LIMIT: Duration = Duration::from_secs(2);

/// How often something may be written, at the most, by every agent: a hundred requests a second for
/// all nodes together.
fn pace(nodes: usize) -> Duration {
    const SHORTEST: Duration = Duration::from_secs(1);
    const EACH: Duration = Duration::from_millis(10);
    SHORTEST.max(EACH.saturating_mul(u32::try_from(nodes).unwrap_or(u32::MAX)))
}

/// Who reports, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node that the agent runs on.
    pub node_name: Arc<str>,
    /// How long a writer that says nothing stays the writer.
    pub lease: Duration,
}

/// The tasks that report.
#[derive(Debug)]
pub struct Reporting {
    ends: Vec<oneshot::Sender<()>>,
    tasks: Vec<JoinHandle<()>>,
    reporter: Reporter,
}

impl Reporting {
    /// Begins to report what the returned view of the node is told.
    pub fn begin(
        connection: Connection,
        facts: watch::Receiver<Facts>,
        options: &Options,
    ) -> (Self, NodeView) {
        let (view, said, census) = NodeView::new();
        let reporter = Reporter::new(connection.clone(), facts.clone(), said, options);
        let writer = Writer::new(connection, facts, census, options);
        let (end_report, ended) = oneshot::channel();
        let reported = tokio::spawn(reporter.clone().run(ended));
        let (end_write, ended) = oneshot::channel();
        let written = tokio::spawn(writer.run(ended));
        let tasks = vec![reported, written];
        (Self { ends: vec![end_report, end_write], tasks, reporter }, view)
    }

    /// Ends: another agent can be the writer at once. Where enforcement ends with the agent, what was
    /// said of the node is taken back.
    pub async fn end(self, enforcement_ends: bool) {
        drop(self.ends);
        let finished = async {
            for task in self.tasks {
                if let Err(error) = task.await {
                    tracing::error!(%error, "reporting ended badly");
                }
            }
            if enforcement_ends {
                self.reporter.take_back().await;
            }
        };
        if tokio::time::timeout(END_LIMIT, finished).await.is_err() {
            tracing::debug!("the last words about status were not said in time");
        }
    }
}
