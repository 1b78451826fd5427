//! All watches together: first everything that exists, then what changes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use namegate_policy::object::Object;
use tokio::sync::{mpsc, watch as latest};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::client::Connection;
use super::discovery;
use super::gather::Gathered;
use super::health::WatchHealth;
use super::held::{Held, Refusal, Update};
use super::journal::{Entry, Journal, Memory, Scribe};
use super::kinds::{Presence, WATCHED, Watched};
use super::status::Facts;
use super::trouble::Trouble;
use super::watch::{self, News};
use crate::source::Changes;

/// News that wait at most; the watches wait when they are more.
const NEWS_MAX: usize = 1_024;

/// How long the API server may take to tell everything where an earlier agent's objects are known.
const PATIENCE: Duration = Duration::from_secs(3);

/// How the cluster is read.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// How often kinds that are absent are looked for.
    pub survey: Duration,
    /// Where objects are kept for an agent that starts without an API server.
    pub journal: PathBuf,
    /// The id of the journal that the last agent on the node kept, if it kept one.
    pub noted: Option<String>,
    /// The node that this is about.
    pub node_name: Arc<str>,
}

/// Everything that existed when the watches began.
#[derive(Debug)]
pub struct First {
    /// The objects.
    pub changes: Changes,
    /// Whether some are refused.
    pub has_refusals: bool,
    /// The names of the cluster's nodes.
    pub nodes: BTreeSet<Arc<str>>,
    /// Whether the API server did not tell all of it: the rest is what an earlier agent knew. What it
    /// tells later follows, and at last that this was all ([`Changes::is_current`]).
    pub is_remembered: bool,
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
    journal: Scribe,
    /// Objects of an earlier agent, of kinds that are not watched yet.
    remembered: BTreeMap<Watched, Held>,
    has_memory: bool,
    /// Whether kinds that are remembered were not found once.
    lacks_kinds: bool,
    /// Whether everything was read since the start, and whether that was told.
    is_read: bool,
    is_told: bool,
}

impl Source {
    /// Begins to watch, and keeps `health` up to date.
    pub fn begin(connection: Connection, options: &SourceOptions, health: WatchHealth) -> Self {
        let (send, news) = mpsc::channel(NEWS_MAX);
        let (journal, memory) = Journal::open(
            &options.journal,
            &connection.server,
            &options.node_name,
            options.noted.as_deref(),
        );
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
            journal: Scribe::start(journal),
            remembered: BTreeMap::new(),
            has_memory: false,
            lacks_kinds: false,
            is_read: false,
            is_told: false,
        };
        if let Some(memory) = memory {
            source.remember(&memory);
        }
        let connection = source.connection.clone();
        source.tasks.spawn(discovery::survey(connection, options.survey, source.send.clone()));
        for watched in WATCHED {
            if watched.presence == Presence::BuiltIn {
                source.watch(watched);
            }
        }
        source
    }

    /// The id of the journal that is kept: only where it is noted on the node is it believed.
    pub fn journal_id(&self) -> &str {
        self.journal.id()
    }

    /// Keeps objects at `journal` from here on, in the place of what is there.
    pub fn settle(&mut self, journal: PathBuf) {
        self.journal.settle(journal);
    }

    /// What is told of policies and nodes for their status.
    pub fn facts(&self) -> latest::Receiver<Facts> {
        self.facts.subscribe()
    }

    /// Waits until every kind was read whole: however long that takes, unless an earlier agent's
    /// objects are known.
    pub async fn first(&mut self) -> First {
        let enough = Instant::now() + PATIENCE;
        while !self.is_read {
            // The channel cannot end: this value holds a sender.
            tokio::select! {
                Some(news) = self.news.recv(), if self.journal.has_room() => self.take(news),
                () = self.journal.progress(), if !self.journal.is_written() => {}
                () = tokio::time::sleep_until(enough), if self.has_memory => break,
            }
        }
        while !self.journal.is_written() {
            self.journal.progress().await;
        }
        self.is_told = self.is_read;
        let changes = self.gathered.take();
        let nodes = changes.upserts.iter().filter_map(|object| {
            if let Object::Node(node) = &**object { Some(Arc::clone(&node.name)) } else { None }
        });
        First {
            nodes: nodes.collect(),
            has_refusals: self.has_refusals,
            is_remembered: !self.is_read,
            changes,
        }
    }

    /// Hands on what changes, until the receiver is gone. While it is busy changes add up, and of
    /// each object the last word counts.
    pub async fn follow(mut self, changes: mpsc::Sender<Changes>) {
        loop {
            tokio::select! {
                Some(news) = self.news.recv(), if self.journal.has_room() => self.take(news),
                () = self.journal.progress(), if !self.journal.is_written() => {}
                permit = changes.reserve(), if self.has_word() && self.journal.is_written() => match permit {
                    Ok(permit) => {
                        let is_current = self.is_read && !self.is_told;
                        self.is_told = self.is_read;
                        permit.send(Changes { is_current, ..self.gathered.take() });
                    }
                    Err(_) => return,
                },
                () = changes.closed() => return,
            }
        }
    }

    /// Takes what an earlier agent knew: all of it, or nothing.
    fn remember(&mut self, memory: &Memory) {
        let mut updates = Vec::new();
        for watched in WATCHED {
            let mut held = Held::new(watched);
            match held.remember(memory.objects(watched)) {
                Ok(update) => updates.push((watched, held, update)),
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "the objects of an earlier agent are not believed: the API server has to answer first"
                    );
                    return;
                }
            }
        }
        self.has_memory = true;
        for (watched, held, update) in updates {
            self.update(watched, update);
            self.remembered.insert(watched, held);
        }
    }

    /// Whether there is something to tell.
    fn has_word(&self) -> bool {
        !self.gathered.is_empty() || self.is_read != self.is_told
    }

    fn watch(&mut self, watched: Watched) {
        self.unread.insert(watched);
        self.health.begins(watched);
        let held = self.remembered.remove(&watched).unwrap_or_else(|| Held::new(watched));
        self.tasks.spawn(watch::follow(self.connection.clone(), watched, held, self.send.clone()));
    }

    /// Notes that everything was read, once it was.
    fn note_read(&mut self) {
        if self.is_read || !self.is_surveyed || !self.unread.is_empty() {
            return;
        }
        self.is_read = true;
        self.journal.add(vec![Entry::whole()]);
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
            News::Surveyed => self.surveyed(),
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
        self.note_read();
    }

    /// Forgets remembered kinds that the cluster does not have any more, once that was seen twice: an API
    /// server that has just started may not serve every kind yet that it has.
    fn surveyed(&mut self) {
        let lacks_some = self.remembered.values().any(|held| held.len() > 0);
        if lacks_some && !std::mem::replace(&mut self.lacks_kinds, true) {
            return;
        }
        self.is_surveyed = true;
        for (watched, held) in std::mem::take(&mut self.remembered) {
            self.update(watched, held.forget());
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
        self.journal.add(std::mem::take(&mut update.entries));
        self.gathered.add(update);
    }
}
