//! All watches together: first everything that exists, then what changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use namegate_policy::object::Object;
use tokio::sync::{mpsc, watch as latest};
use tokio::task::JoinSet;

use super::client::Connection;
use super::discovery;
use super::gather::Gathered;
use super::health::WatchHealth;
use super::held::{Refusal, Update};
use super::kinds::{Presence, WATCHED, Watched};
use super::status::Facts;
use super::trouble::Trouble;
use super::watch::{self, News};
use crate::source::Changes;

/// News that wait at most; the watches wait when they are more.
const NEWS_MAX: usize = 1_024;

/// Everything that existed when the watches began.
#[derive(Debug)]
pub struct First {
    /// The objects.
    pub changes: Changes,
    /// Whether some are refused.
    pub has_refusals: bool,
    /// The names of the cluster's nodes.
    pub nodes: BTreeSet<Arc<str>>,
}

/// The watches of all kinds.
#[derive(Debug)]
pub struct Source {
    connection: Connection,
    tasks: JoinSet<()>,
    send: mpsc::Sender<News>,
    news: mpsc::Receiver<News>,
    gathered: Gathered,
    facts: latest::Sender<Facts>,
    /// Kinds that are served and were not read whole yet.
    unread: BTreeSet<Watched>,
    is_surveyed: bool,
    has_refusals: bool,
    troubles: BTreeMap<Watched, Trouble>,
    health: WatchHealth,
}

impl Source {
    /// Begins to watch, and keeps `health` up to date; kinds that are absent are looked for at intervals
    /// of `survey`.
    pub fn begin(connection: Connection, survey: Duration, health: WatchHealth) -> Self {
        let (send, news) = mpsc::channel(NEWS_MAX);
        let mut source = Self {
            connection,
            tasks: JoinSet::new(),
            send,
            news,
            gathered: Gathered::default(),
            facts: latest::Sender::default(),
            unread: BTreeSet::new(),
            is_surveyed: false,
            has_refusals: false,
            troubles: BTreeMap::new(),
            health,
        };
        let connection = source.connection.clone();
        source.tasks.spawn(discovery::survey(connection, survey, source.send.clone()));
        for watched in WATCHED {
            if watched.presence == Presence::BuiltIn {
                source.watch(watched);
            }
        }
        source
    }

    /// What is told of policies and nodes for their status.
    pub fn facts(&self) -> latest::Receiver<Facts> {
        self.facts.subscribe()
    }

    /// Waits until every kind was read whole, however long that takes.
    pub async fn first(&mut self) -> First {
        while !self.is_surveyed || !self.unread.is_empty() {
            // The channel cannot end: this value holds a sender.
            if let Some(news) = self.news.recv().await {
                self.take(news);
            }
        }
        let changes = self.gathered.take();
        let nodes = changes.upserts.iter().filter_map(|object| {
            if let Object::Node(node) = &**object { Some(Arc::clone(&node.name)) } else { None }
        });
        First { nodes: nodes.collect(), has_refusals: self.has_refusals, changes }
    }

    /// Hands on what changes, until the receiver is gone. While it is busy changes add up, and of
    /// each object the last word counts.
    pub async fn follow(mut self, changes: mpsc::Sender<Changes>) {
        loop {
            tokio::select! {
                Some(news) = self.news.recv() => self.take(news),
                permit = changes.reserve(), if !self.gathered.is_empty() => match permit {
                    Ok(permit) => permit.send(self.gathered.take()),
                    Err(_) => return,
                },
                () = changes.closed() => return,
            }
        }
    }

    fn watch(&mut self, watched: Watched) {
        self.unread.insert(watched);
        self.health.begins(watched);
        self.tasks.spawn(watch::follow(self.connection.clone(), watched, self.send.clone()));
    }

    fn take(&mut self, news: News) {
        match news {
            News::Update(watched, update) => self.update(watched, update),
            News::Appeared(watched) => {
                if self.is_surveyed {
                    tracing::info!(kind = watched.kind, "the cluster has this kind from now on");
                }
                self.watch(watched);
            }
            News::Surveyed => self.is_surveyed = true,
            News::Trouble(watched, Some(trouble)) => {
                self.health.fails(watched, &trouble);
                let is_said = self.troubles.values().any(|said| said.is_like(&trouble));
                self.troubles.insert(watched, trouble.clone());
                if !is_said {
                    tracing::warn!(
                        "{trouble}; what was known stays in force, and it is tried again"
                    );
                }
            }
            News::Trouble(watched, None) => {
                self.health.follows(watched);
                if self.troubles.remove(&watched).is_some() && self.troubles.is_empty() {
                    tracing::info!(server = %self.connection.server, "the API server answers again");
                }
            }
        }
    }

    fn update(&mut self, watched: Watched, mut update: Update) {
        let facts = std::mem::take(&mut update.facts);
        if !facts.is_empty() {
            self.facts.send_modify(|known| known.take(facts));
        }
        if update.is_whole && self.unread.remove(&watched) {
            let waiting: Vec<&str> = self.unread.iter().map(|kind| kind.plural).collect();
            tracing::debug!(kind = watched.kind, waiting = waiting.join(", "), "read whole");
        }
        self.has_refusals |= !update.refusals.is_empty();
        for Refusal { error, keeps_last_good, stand_in } in &update.refusals {
            let name = error.name.as_deref().unwrap_or_default();
            let object = match &error.namespace {
                Some(namespace) => format!("{} {namespace}/{name}", error.kind),
                None => format!("{} {name}", error.kind),
            };
            tracing::warn!(
                object,
                field = error.field(),
                reason = %error.error.problem,
                fix = error.fix(),
                last_good_version_stays = keeps_last_good,
                is_closed_instead = stand_in.is_some(),
                "object refused"
            );
        }
        self.gathered.add(update);
    }
}
