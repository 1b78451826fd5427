//! The one agent that writes: reads what all nodes say, and writes what follows for each policy.
//!
//! Everything is worked out anew at intervals and compared with what is there, so that nothing that
//! was missed stays missed, and nothing is written that is there already. A write names the version of
//! the object that it is about: where somebody else wrote since, it fails, and the next turn looks
//! again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use kube::api::{Api, ApiResource, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Config, watcher};
use namegate_policy::rule::{PolicyKind, PolicyRef};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};
use tokio::time::{Duration, Instant, sleep_until};

use super::census::{Census, Inquiry};
use super::election::Election;
use super::facts::{PolicyFact, has_status, kind_name, watched};
use super::judge::{Word, judge};
use super::object::{ACCEPTED, Condition, NodeStatus, PROGRAMMED, PolicyStatus};
use super::report::{self, limited, warn_of};
use super::{Facts, MANAGER, Options, event, pace};
use crate::clock;
use crate::kubernetes::client::Connection;
use crate::kubernetes::raw::Raw;
use crate::kubernetes::trouble::{Call, Trouble};

/// Writes of one turn at most: with one turn a second the API server is asked no more than it takes
/// from any controller.
const WRITES_MAX: usize = 20;

/// How long nothing is written about a kind after a write about it failed.
const RETRY: Duration = Duration::from_secs(10);

type Reports = BoxStream<'static, watcher::Result<watcher::Event<Raw>>>;

pub(super) struct Writer {
    connection: Connection,
    node: Arc<str>,
    facts: watch::Receiver<Facts>,
    inquiry: Inquiry,
    election: Election,
    /// What is read of the nodes while this agent is the writer.
    reports: Option<Reports>,
    nodes: Nodes,
    /// The version of each policy that was written about, and when: what the watch tells is older for
    /// a while.
    written: BTreeMap<PolicyRef, (String, Instant)>,
    /// The versions of objects that Events were made about.
    told: BTreeSet<(Arc<str>, i64)>,
    troubles: BTreeMap<&'static str, (Trouble, Instant)>,
}

/// What the nodes say.
#[derive(Debug, Default)]
struct Nodes {
    known: BTreeMap<Arc<str>, NodeStatus>,
    /// A list under way.
    arriving: BTreeMap<Arc<str>, NodeStatus>,
    is_whole: bool,
}

impl Writer {
    pub(super) fn new(
        connection: Connection,
        facts: watch::Receiver<Facts>,
        inquiry: Inquiry,
        options: &Options,
    ) -> Self {
        Self {
            election: Election::new(&connection, &options.node_name, options.lease),
            connection,
            node: Arc::clone(&options.node_name),
            facts,
            inquiry,
            reports: None,
            nodes: Nodes::default(),
            written: BTreeMap::new(),
            told: BTreeSet::new(),
            troubles: BTreeMap::new(),
        }
    }

    /// Stands for election, and writes while it is won, until `end`.
    pub(super) async fn run(mut self, mut end: oneshot::Receiver<()>) {
        let mut next_stand = Instant::now();
        let mut next_turn = Instant::now();
        loop {
            tokio::select! {
                biased;
                _ = &mut end => {
                    self.election.resign().await;
                    return;
                }
                () = sleep_until(next_stand) => {
                    self.stand().await;
                    next_stand = Instant::now() + self.election.patience(self.pace());
                }
                Some(event) = next(&mut self.reports) => self.hear(event),
                () = sleep_until(next_turn), if self.nodes.is_whole => {
                    self.inquiry.ask();
                    next_turn = Instant::now() + self.pace();
                }
                census = self.inquiry.answer(), if self.nodes.is_whole => {
                    self.turn(&census, next_stand).await;
                }
            }
        }
    }

    fn pace(&self) -> Duration {
        pace(self.facts.borrow().nodes.len())
    }

    async fn stand(&mut self) {
        let was_won = self.reports.is_some();
        let stood = self.election.stand().await;
        self.settle("leases", stood);
        if self.election.is_won() == was_won {
            return;
        }
        self.nodes = Nodes::default();
        self.written.clear();
        self.told.clear();
        self.reports = self.election.is_won().then(|| {
            tracing::info!(node = %self.node, "this agent writes the status of policies");
            let api = Api::all_with(self.connection.client.clone(), &report::resource());
            watcher(api, Config::default()).default_backoff().boxed()
        });
        if was_won {
            tracing::info!(node = %self.node, "another agent writes the status of policies");
        }
    }

    fn hear(&mut self, event: watcher::Result<watcher::Event<Raw>>) {
        let outcome = match event {
            Ok(event) => {
                self.nodes.take(event);
                Ok(())
            }
            Err(error) => {
                let call = |verb| self.call(verb, report::RESOURCE);
                match &error {
                    watcher::Error::InitialListFailed(error) => Err(call("list").trouble(error)),
                    watcher::Error::WatchStartFailed(error)
                    | watcher::Error::WatchFailed(error) => Err(call("watch").trouble(error)),
                    // A history that was cleared away makes a new list.
                    watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => Ok(()),
                }
            }
        };
        self.settle("namegatenodes", outcome);
    }

    /// Looks at every policy, and writes what is not as it should be, until it is time to stand for
    /// election again.
    async fn turn(&mut self, census: &Census, until: Instant) {
        let facts = self.facts.borrow().clone();
        self.written.retain(|policy, _| facts.policies.contains_key(policy));
        let now = clock::rfc3339(SystemTime::now());
        let now = format!("{}Z", now.get(..19).unwrap_or(&now));
        let said = self.nodes.by_policy(&facts);
        let mut writes = Vec::new();
        for (policy, fact) in &facts.policies {
            if let Some(refused) = &fact.refusal
                && !self.told.contains(&(Arc::clone(&fact.uid), fact.generation))
            {
                let object = event::refusal(policy, fact, refused, &self.node);
                writes.push((policy, fact, Write::Event(object)));
            }
            if !has_status(policy.kind) || self.is_awaited(policy, fact) {
                continue;
            }
            let nodes = words(policy, census, &said);
            let status = judge(fact, &nodes, &now);
            if is_other(policy.kind, &fact.status, &status) {
                writes.push((policy, fact, Write::Status(status)));
            }
        }
        for (policy, fact, write) in writes.into_iter().take(WRITES_MAX) {
            if !self.election.is_won() || Instant::now() >= until {
                return;
            }
            let resource = write.resource(policy.kind);
            if self.is_resting(resource) {
                continue;
            }
            let outcome = match write {
                Write::Status(status) => self.write_status(policy, fact, &status).await,
                Write::Event(object) => self.write_event(policy, fact, &object).await,
            };
            self.settle(resource, outcome);
        }
    }

    async fn write_status(
        &mut self,
        policy: &PolicyRef,
        fact: &PolicyFact,
        status: &PolicyStatus,
    ) -> Result<(), Trouble> {
        let Some(watched) = watched(policy.kind) else { return Ok(()) };
        let api = self.api(&watched.api_resource(), policy.namespace.as_deref());
        let object = json!({
            "apiVersion": watched.api_version(), "kind": watched.kind,
            "metadata": {
                "name": &*policy.name,
                "uid": &*fact.uid,
                "resourceVersion": fact.version,
            },
            "status": document(policy.kind, status),
        });
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&object);
        match limited(api.patch_status(&policy.name, &params, &patch)).await {
            Ok(_) => {}
            // The object changed or went, or another one has its name: the watch will say it.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => {
                tracing::debug!(%policy, why = status.message, "its status is written later");
            }
            Err(error) => {
                let resource = format!("{}/status", watched.resource());
                return Err(self.call("patch", &resource).trouble(&error));
            }
        }
        self.written.insert(policy.clone(), (fact.version.clone(), Instant::now()));
        Ok(())
    }

    async fn write_event(
        &mut self,
        policy: &PolicyRef,
        fact: &PolicyFact,
        object: &Value,
    ) -> Result<(), Trouble> {
        let api = self.api(&event::resource(), Some(event::namespace(policy)));
        let object = Raw::from(object.clone());
        match limited(api.create(&PostParams::default(), &object)).await {
            Ok(_) => {}
            // An agent that wrote before said it, or the namespace is about to go.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => return Err(self.call("create", event::RESOURCE).trouble(&error)),
        }
        self.told.insert((Arc::clone(&fact.uid), fact.generation));
        Ok(())
    }

    /// Whether a write about this version was made, and the watch has not told what came of it.
    fn is_awaited(&self, policy: &PolicyRef, fact: &PolicyFact) -> bool {
        let written = self.written.get(policy);
        written.is_some_and(|(version, when)| *version == fact.version && when.elapsed() < RETRY)
    }

    fn api(&self, resource: &ApiResource, namespace: Option<&str>) -> Api<Raw> {
        let client = self.connection.client.clone();
        match namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, resource),
            None => Api::all_with(client, resource),
        }
    }

    fn call<'a>(&'a self, verb: &'static str, resource: &'a str) -> Call<'a> {
        Call { server: &self.connection.server, verb, resource }
    }

    /// Whether it is too early to try again what failed.
    fn is_resting(&self, about: &str) -> bool {
        self.troubles.get(about).is_some_and(|(_, since)| since.elapsed() < RETRY)
    }

    /// Says what is wrong, once, and that it is right again.
    fn settle(&mut self, about: &'static str, outcome: Result<(), Trouble>) {
        let trouble = match outcome {
            Ok(()) => {
                if self.troubles.remove(about).is_some() && self.troubles.is_empty() {
                    tracing::info!("status is written again");
                }
                return;
            }
            Err(trouble) => trouble,
        };
        let is_said = self.troubles.values().any(|(said, _)| said.is_like(&trouble));
        if !is_said {
            warn_of(&trouble);
        }
        self.troubles.insert(about, (trouble, Instant::now()));
    }
}

/// Something to be written about a policy.
enum Write {
    Status(PolicyStatus),
    Event(Value),
}

impl Write {
    /// What RBAC and troubles know it by.
    fn resource(&self, kind: PolicyKind) -> &'static str {
        match self {
            Self::Status(_) => kind_name(kind),
            Self::Event(_) => event::RESOURCE,
        }
    }
}

impl Nodes {
    fn take(&mut self, event: watcher::Event<Raw>) {
        match event {
            watcher::Event::Init => self.arriving.clear(),
            watcher::Event::InitApply(raw) => self.arriving.extend(read(&raw)),
            watcher::Event::InitDone => {
                self.known = std::mem::take(&mut self.arriving);
                self.is_whole = true;
            }
            watcher::Event::Apply(raw) => self.known.extend(read(&raw)),
            watcher::Event::Delete(raw) => {
                self.known.remove(raw.metadata.name.as_deref().unwrap_or_default());
            }
        }
    }

    /// What is said of each policy. The nodes that nobody reports for say nothing, and neither do
    /// those that started again since.
    fn by_policy(&self, facts: &Facts) -> Said<'_> {
        let mut said = Said::default();
        for (node, status) in &self.known {
            let Some(fact) = facts.nodes.get(node) else { continue };
            if !fact.boot_id.is_empty() && fact.boot_id != status.boot_id {
                continue;
            }
            said.nodes.insert(node);
            for line in &status.policies {
                let key = (&*line.kind, line.namespace.as_deref(), &*line.name);
                said.lines.entry(key).or_default().insert(node, line);
            }
        }
        said
    }
}

/// Kind, namespace and name of a policy.
type Key<'a> = (&'a str, Option<&'a str>, &'a str);

#[derive(Default)]
struct Said<'a> {
    nodes: BTreeSet<&'a str>,
    lines: BTreeMap<Key<'a>, BTreeMap<&'a str, &'a super::object::NodePolicy>>,
}

/// What each node says of `policy` whose pods it selects.
fn words<'a>(
    policy: &PolicyRef,
    census: &Census,
    said: &Said<'a>,
) -> BTreeMap<Arc<str>, (u32, Word<'a>)> {
    let key = (kind_name(policy.kind), policy.namespace.as_deref(), &*policy.name);
    let lines = said.lines.get(&key);
    let nodes = census.of(policy).into_iter().map(|(node, pods)| {
        let line = lines.and_then(|lines| lines.get(&*node).copied());
        let word = match line {
            Some(line) => Word::Line(line),
            None if said.nodes.contains(&*node) => Word::Nothing,
            None => Word::Silence,
        };
        (node, (pods, word))
    });
    nodes.collect()
}

fn read(raw: &Raw) -> Option<(Arc<str>, NodeStatus)> {
    let name = raw.metadata.name.as_deref()?;
    // What cannot be read was not written by an agent: as if it were not there.
    let status = NodeStatus::deserialize(raw.value.get("status")?).ok()?;
    Some((name.into(), status))
}

async fn next(reports: &mut Option<Reports>) -> Option<watcher::Result<watcher::Event<Raw>>> {
    match reports {
        Some(reports) => reports.next().await,
        None => std::future::pending().await,
    }
}

/// Whether `status` has to be written where `there` is. Conditions of others are theirs.
fn is_other(kind: PolicyKind, there: &PolicyStatus, status: &PolicyStatus) -> bool {
    let own = |status: &PolicyStatus| -> Vec<Condition> {
        let all = [ACCEPTED, PROGRAMMED].into_iter();
        all.filter_map(|kind| status.conditions.iter().find(|found| found.kind == kind).cloned())
            .collect()
    };
    let counts = |status: &PolicyStatus| (status.endpoints, status.nodes);
    own(there) != own(status) || (has_counts(kind) && counts(there) != counts(status))
}

/// What of a status the kind's definition has a place for.
fn document(kind: PolicyKind, status: &PolicyStatus) -> Value {
    let mut document = json!({"conditions": status.conditions});
    if has_counts(kind) {
        document["endpoints"] = status.endpoints.into();
        document["nodes"] = status.nodes.into();
    }
    document
}

/// Whether the kind is Namegate's own.
fn has_counts(kind: PolicyKind) -> bool {
    has_status(kind) && kind != PolicyKind::ClusterNetworkPolicy
}
