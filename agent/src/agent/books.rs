//! What the state's owner and the threads of the DNS proxy both change: the state, and what of it is
//! in force.
//!
//! The books lie on a shelf. The owner takes them away for the time of an event, from the state's
//! change to its last write, so that nobody learns between the two; nothing is locked meanwhile. While
//! they lie there a thread of the proxy that has answers to teach does so itself, behind a lock that
//! it holds for one batch, and spares two switches of threads. Where they do not, it queues its batch
//! for the owner.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use namegate_dns_proxy::learner::Lesson;
use namegate_egress_bpf::datapath::Datapath;
use namegate_policy::learned;
use namegate_policy::time::Timestamp;
use tokio::sync::Notify;

use crate::apply::{Apply, Outcome};
use crate::dns::{self, Outcomes};
use crate::registry::Registry;
use crate::state::{Answer, NameRules, State};

/// The state, and what of it is in force.
pub(super) struct Books {
    pub(super) state: State,
    pub(super) apply: Apply<Datapath>,
    pub(super) registry: Arc<Registry>,
    failures: BTreeSet<String>,
}

impl Books {
    pub(super) fn new(state: State, apply: Apply<Datapath>, registry: Arc<Registry>) -> Self {
        Self { state, apply, registry, failures: BTreeSet::new() }
    }

    /// What could not be enforced, as of the last writes.
    pub(super) const fn failures(&self) -> &BTreeSet<String> {
        &self.failures
    }

    /// Opens the addresses of answers with one batch of writes, and says what became of each.
    pub(super) fn teach(&mut self, lessons: &[Lesson]) -> Outcomes {
        let mut changes: BTreeMap<learned::Place, Option<NameRules>> = BTreeMap::new();
        let taught: Vec<_> = lessons
            .iter()
            .map(|lesson| {
                let answer = answer(lesson);
                // What the batch changes is in force before any answer of it leaves.
                let in_force = |address| {
                    let place = (answer.identity, address);
                    changes.get(&place).copied().unwrap_or_else(|| self.apply.opened(place))
                };
                if let Some(taught) = self.state.repeated(&answer, lesson.now, in_force) {
                    return Ok(taught);
                }
                self.state.teach_into(&mut changes, &answer, lesson.now)
            })
            .collect();
        let written = self.apply.write_learned(changes);
        let learned = lessons.iter().zip(taught);
        let outcomes = learned
            .map(|(lesson, taught)| dns::outcome(lesson, taught, &written.unwritten))
            .collect();
        self.tell(&written.failures);
        self.failures.extend(written.failures);
        outcomes
    }

    /// Tells readers of tables that came and went, and the operator what failed, once.
    pub(super) fn note(&mut self, outcome: Outcome) {
        for (number, table) in &outcome.tables {
            self.registry.add_table(*number, table);
        }
        for table in &outcome.removed_tables {
            self.registry.remove_table(*table);
        }
        self.tell(&outcome.failures);
        self.failures = outcome.failures.into_iter().collect();
    }

    /// Removes tables that went out of use, and tells readers of tables.
    pub(super) fn clear_away(&mut self) {
        let outcome = self.apply.clear_away();
        for table in &outcome.removed_tables {
            self.registry.remove_table(*table);
        }
        self.tell(&outcome.failures);
        self.failures.extend(outcome.failures);
    }

    /// Tells the operator of failures that were not there before.
    fn tell(&self, failures: &[String]) {
        for failure in failures.iter().filter(|failure| !self.failures.contains(*failure)) {
            tracing::error!(failure = %failure, "cannot be enforced yet; tried again every second");
        }
    }
}

fn answer(lesson: &Lesson) -> Answer {
    Answer {
        identity: lesson.client.identity,
        name: lesson.name.clone(),
        clauses: lesson.clauses.clone(),
        addresses: lesson.addresses.iter().map(|taught| (taught.address, taught.ttl)).collect(),
    }
}

/// Where the books lie.
#[derive(Default)]
pub(super) struct Shelf {
    place: Mutex<Place>,
    /// Wakes the owner for a deadline that comes before those it knew.
    earlier: Notify,
}

#[derive(Default)]
struct Place {
    books: Option<Box<Books>>,
    /// When the owner looks at deadlines next.
    owner_wakes_at: Timestamp,
}

/// A thread of the proxy panicked over the books: what they say may be half written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("learning an answer broke off in its middle: the state may be half written")]
pub(super) struct Spoiled;

impl Shelf {
    /// Takes the books away; the owner alone does, and only where it laid them.
    pub(super) fn take(&self) -> Result<Box<Books>, Spoiled> {
        let mut place = self.place.lock().map_err(|_| Spoiled)?;
        place.books.take().ok_or(Spoiled)
    }

    /// Lays the books there, and returns when the next deadline is.
    pub(super) fn lay(&self, books: Box<Books>) -> Option<Timestamp> {
        let next = books.state.next_deadline();
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        place.owner_wakes_at = next.unwrap_or(Timestamp::NEVER);
        place.books = Some(books);
        next
    }

    /// Teaches with the books that lie there; `None` where they do not.
    pub(super) fn teach(&self, lessons: &[Lesson]) -> Option<Outcomes> {
        let mut place = self.place.lock().ok()?;
        let books = place.books.as_mut()?;
        let outcomes = books.teach(lessons);
        if let Some(next) = books.state.next_deadline()
            && next < place.owner_wakes_at
        {
            place.owner_wakes_at = next;
            self.earlier.notify_one();
        }
        Some(outcomes)
    }

    /// Returns when a deadline came before those that the owner knew.
    pub(super) async fn has_earlier_deadline(&self) {
        self.earlier.notified().await;
    }
}
