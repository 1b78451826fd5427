//! Asking the state's owner without holding it up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use namegate_egress_bpf::datapath::{DatapathError, Fill};
use tokio::sync::{mpsc, oneshot};

use super::failure::Failure;
use crate::hooks::HookReport;
use crate::state::State;

/// Questions that wait for the state's owner at most.
const QUESTIONS_MAX: usize = 32;

/// How long a question waits for its answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the state's owner lets be looked at. A look copies what it needs and leaves; what is long goes
/// in pages, one question each.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Policies, endpoints, identities and learned addresses.
    pub state: &'a State,
    /// What cannot be enforced at present, for people.
    pub failures: &'a BTreeSet<String>,
    /// The resolvers that the proxy stands in for, by slot.
    pub resolvers: &'a BTreeMap<u8, IpAddr>,
    /// How the hooks of the kernel program fare.
    pub hooks: &'a HookReport,
    /// How full the kernel's maps are, given how many addresses of pods and of names there are.
    pub fill: &'a Filling<'a>,
}

/// Counts the entries of the kernel's maps.
pub type Filling<'a> = dyn Fn(usize, usize) -> Result<Vec<Fill>, DatapathError> + 'a;

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("state", self.state).finish_non_exhaustive()
    }
}

/// One look, with the way back for what it saw.
pub struct Question(Box<dyn FnOnce(View<'_>) + Send>);

impl Question {
    /// Looks, and answers whoever asked.
    pub fn answer(self, view: View<'_>) {
        (self.0)(view);
    }
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Question")
    }
}

/// Where questions are handed in.
#[derive(Clone, Debug)]
pub struct Desk {
    questions: mpsc::Sender<Question>,
    patience: Duration,
}

impl Desk {
    /// A desk, and where its questions come out.
    pub fn new() -> (Self, mpsc::Receiver<Question>) {
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        (Self { questions, patience: PATIENCE }, asked)
    }

    /// Asks. Fails where too many wait, where no answer comes in time, and where the agent ends.
    pub async fn ask<T: Send + 'static>(
        &self,
        look: impl FnOnce(View<'_>) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let (answer, answered) = oneshot::channel();
        let question = Question(Box::new(move |view| {
            // Whoever gave up does not mind.
            let _ = answer.send(look(view));
        }));
        self.questions.try_send(question).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Failure::Busy,
            mpsc::error::TrySendError::Closed(_) => Failure::Ending,
        })?;
        match tokio::time::timeout(self.patience, answered).await {
            Ok(Ok(seen)) => Ok(seen),
            Ok(Err(_)) => Err(Failure::Ending),
            Err(_) => Err(Failure::Late),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::testing::mk_state;

    fn look(state: &State, question: Question) {
        let (failures, resolvers) = (BTreeSet::new(), BTreeMap::new());
        let (hooks, fill) = (HookReport::default(), |_, _| Ok(Vec::new()));
        question.answer(View {
            state,
            failures: &failures,
            resolvers: &resolvers,
            hooks: &hooks,
            fill: &fill,
        });
    }

    #[tokio::test]
    async fn an_answer_is_what_the_owner_saw() {
        let (desk, mut asked) = Desk::new();
        let state = mk_state();
        let owner = async { look(&state, asked.recv().await.unwrap()) };
        let (seen, ()) = tokio::join!(desk.ask(|view| view.state.policy_count()), owner);
        assert_eq!(seen.unwrap(), 0);
    }

    #[tokio::test]
    async fn the_queue_is_bounded_and_an_agent_that_ends_says_so() {
        let (desk, asked) = Desk::new();
        for _ in 0..QUESTIONS_MAX {
            assert!(desk.ask(|_| ()).now_or_never().is_none(), "waits for its answer");
        }
        assert!(matches!(desk.ask(|_| ()).await, Err(Failure::Busy)));
        drop(asked);
        assert!(matches!(desk.ask(|_| ()).await, Err(Failure::Ending)));
    }

    #[tokio::test]
    async fn an_owner_that_never_answers_is_given_up() {
        let (desk, _asked) = Desk::new();
        let desk = Desk { patience: Duration::from_millis(1), ..desk };
        assert!(matches!(desk.ask(|_| ()).await, Err(Failure::Late)));
    }
}
