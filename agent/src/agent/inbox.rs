//! What is asked of the state's owner: of each kind one at a time, in turn.
//!
//! Any of them can come without end: interfaces on a node whose pods restart all the time, objects of a
//! large cluster, lookups of a pod that floods. Whoever asks for something else waits for one of each
//! kind at most.

use std::future::poll_fn;
use std::task::{Context, Poll};

use tokio::sync::mpsc;

use super::work::Task;
use crate::admin::Question;
use crate::cni::desk::Demand;
use crate::dns::LessonRequest;
use crate::endpoints::Town;
use crate::source::Changes;

/// How many kinds there are.
const KINDS: usize = 5;

/// Where what is asked arrives. A channel that nobody writes to any more is passed over.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) changes: mpsc::Receiver<Changes>,
    pub(super) towns: mpsc::Receiver<Town>,
    pub(super) demands: mpsc::Receiver<Demand>,
    pub(super) questions: mpsc::Receiver<Question>,
    pub(super) lessons: mpsc::Receiver<LessonRequest>,
    /// Whose turn it is.
    turn: usize,
}

impl Inbox {
    /// Demands, questions and lessons; objects and interfaces are followed later.
    pub(super) fn new(
        demands: mpsc::Receiver<Demand>,
        questions: mpsc::Receiver<Question>,
        lessons: mpsc::Receiver<LessonRequest>,
    ) -> Self {
        let (changes, towns) = (mpsc::channel(1).1, mpsc::channel(1).1);
        Self { changes, towns, demands, questions, lessons, turn: 0 }
    }

    /// Waits for the next one. Nothing is lost where the wait is given up.
    pub(super) async fn next(&mut self) -> Task {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Task> {
        for _ in 0..KINDS {
            let kind = self.turn;
            self.turn = (kind + 1) % KINDS;
            let polled = match kind {
                0 => self.changes.poll_recv(context).map(|one| one.map(Task::Change)),
                1 => self.towns.poll_recv(context).map(|one| one.map(Task::Look)),
                2 => self.demands.poll_recv(context).map(|one| one.map(Task::Attend)),
                3 => self.questions.poll_recv(context).map(|one| one.map(Task::Answer)),
                _ => self.lessons.poll_recv(context).map(|one| one.map(Task::Teach)),
            };
            if let Poll::Ready(Some(task)) = polled {
                return Poll::Ready(task);
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;
    use crate::cni::desk::Wish;
    use crate::cni::protocol::Attachments;

    const ROOM: usize = 4;

    /// Writes to a channel for as long as somebody reads it.
    fn flood<T: Send + 'static>(mk: impl Fn() -> T + Send + 'static) -> mpsc::Receiver<T> {
        let (send, received) = mpsc::channel(ROOM);
        tokio::spawn(async move { while send.send(mk()).await.is_ok() {} });
        received
    }

    fn mk_demand() -> Demand {
        let wish = Wish::Collect(Attachments { valid: BTreeSet::new() });
        Demand { wish, answer: oneshot::channel().0 }
    }

    #[tokio::test]
    async fn what_comes_without_end_leaves_everything_else_its_turn() {
        let (demand, demands) = mpsc::channel(ROOM);
        let (lesson, lessons) = mpsc::channel(ROOM);
        let (_question, questions) = mpsc::channel(ROOM);
        let mut inbox = Inbox::new(demands, questions, lessons);
        inbox.changes = flood(Changes::default);
        inbox.towns = flood(Town::default);
        for round in 0..100 {
            demand.send(mk_demand()).await.unwrap();
            let (outcomes, _outcomes) = oneshot::channel();
            lesson.send(LessonRequest { lessons: Vec::new(), outcomes }).await.unwrap();
            let (mut are_attended, mut are_taught) = (false, false);
            for _ in 0..KINDS {
                // Room is filled again at once.
                tokio::task::yield_now().await;
                let task = inbox.next().await;
                are_attended |= matches!(task, Task::Attend(_));
                are_taught |= matches!(task, Task::Teach(_));
            }
            assert!(are_attended && are_taught, "round {round}");
        }
    }

    #[tokio::test]
    async fn a_channel_that_ended_is_passed_over() {
        let (demand, demands) = mpsc::channel(ROOM);
        let mut inbox = Inbox::new(demands, mpsc::channel(1).1, mpsc::channel(1).1);
        let waited = tokio::time::timeout(Duration::from_millis(10), inbox.next()).await;
        assert!(waited.is_err(), "nothing was asked");
        demand.send(mk_demand()).await.unwrap();
        assert!(matches!(inbox.next().await, Task::Attend(_)));
    }
}
