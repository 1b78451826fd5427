//! The loop of the state's owner: one event at a time, its effects written before the next.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use namegate_dns_proxy::{Proxy, Sockets};
use namegate_egress_bpf::abi::NameKey;
use namegate_egress_bpf::compile::NameWrites;
use namegate_egress_bpf::datapath::{DatapathError, DisplacedHook, Sweep};
use namegate_policy::identity::Identity;
use namegate_policy::resource::PodRef;
use namegate_policy::time::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::Signals;
use super::books::{Books, Shelf};
use super::inbox::Inbox;
use super::start::{Listen, update_proxy};
use super::windows::Windows;
use crate::admin::{Failure, PhaseCell, Pulse, Question, View};
use crate::apply::Unknown;
use crate::audit::AuditLog;
use crate::cli::AgentArgs;
use crate::clock::WallWatch;
use crate::cni::desk::{Demand, Waiting, Wish};
use crate::cni::protocol::Attachment;
use crate::dns::LessonRequest;
use crate::endpoints::{Town, Wanted};
use crate::flows::Follower;
use crate::hooks::HookReport;
use crate::kubernetes::{DaemonSetFate, NodeView, Reporting};
use crate::metrics::{Metrics, Step};
use crate::remembered::{Keeper, Pods};
use crate::source::{Changes, Problem};
use crate::state::{Claim, Effects, EndpointEffect, Event, State};
use crate::succession::{Heir, Heirs};
use crate::{clock, cni, ready_file, uninstall};

/// How often dead flows are removed and live ones asked which addresses they use.
const SWEEP: Duration = Duration::from_secs(3);

/// How often what failed is tried again, and what was learned is kept on disk.
const UPKEEP: Duration = Duration::from_secs(1);

/// How long what failed waits at most: pods that start wait for their table.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Deadlines that pass within this time are worked on together. Flows end at their deadline anyway,
/// which the kernel compares; an address that another name keeps open waits as long.
const EXPIRY_STEP: Duration = Duration::from_millis(20);

/// How often the programs are looked for where they were attached.
const HOOKS: Duration = Duration::from_millis(400);

/// Lessons taken at once before other events get their turn.
const LESSONS_TURN: usize = 64;

/// Demands of the CNI plugin taken at once.
const DEMANDS_TURN: usize = 128;

/// Everything that runs.
pub(super) struct Agent {
    pub(super) shelf: Arc<Shelf>,
    pub(super) log: AuditLog,
    pub(super) proxy: Proxy,
    pub(super) proxy_slots: BTreeMap<u8, IpAddr>,
    pub(super) listen: Listen,
    pub(super) keeper: Keeper,
    pub(super) retry_from: Instant,
    pub(super) events_lost: u64,
    pub(super) wanted: watch::Sender<Arc<Wanted>>,
    pub(super) inbox: Inbox,
    pub(super) metrics: Arc<Metrics>,
    pub(super) waiting: Waiting,
    pub(super) windows: Windows,
    pub(super) tasks: Vec<JoinHandle<()>>,
    /// Reads the kernel's records, from the end of the start on.
    pub(super) records: Option<Follower>,
    /// Who reports what is in force, and what they know of it.
    pub(super) reporting: Option<(Reporting, NodeView)>,
    /// What is known of the DaemonSet without which the agent leaves the node, where there is one.
    pub(super) daemon_set: Option<watch::Receiver<DaemonSetFate>>,
    pub(super) hooks: HookReport,
    pub(super) ready_file: Option<PathBuf>,
    pub(super) phase: PhaseCell,
    pub(super) pulse: Pulse,
    pub(super) wall: WallWatch,
}

/// Why the work ends.
pub(super) enum Summons {
    /// A signal of this name.
    Signal(&'static str),
    /// Another agent that is to go on.
    Heir(Heir),
}

/// What the owner has to do.
pub(super) enum Task {
    Teach(LessonRequest),
    Change(Changes),
    Look(Town),
    Answer(Question),
    Attend(Demand),
    Expire,
    Sweep,
    Swept(Timestamp, Result<Sweep, DatapathError>),
    Upkeep,
    LookAtHooks,
    Hooks(Result<Vec<DisplacedHook>, DatapathError>),
}

/// What the CNI plugin told and the state does not know yet.
#[derive(Default)]
struct Told {
    claims: BTreeMap<PodRef, Claim>,
    gone: BTreeSet<Attachment>,
    /// Who waits until it is known what is gone.
    answers: Vec<oneshot::Sender<Result<(), Failure>>>,
}

impl Agent {
    /// Works until it is to end, and says why.
    pub(super) async fn work(
        &mut self,
        signals: &mut Signals,
        heirs: &mut Heirs,
    ) -> anyhow::Result<Summons> {
        let mut sweep = tokio::time::interval(SWEEP);
        let mut upkeep = tokio::time::interval(UPKEEP);
        let mut hooks = tokio::time::interval(HOOKS);
        for interval in [&mut sweep, &mut upkeep, &mut hooks] {
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let mut expired_at = Instant::now();
        let (mut looking, mut sweeping) = (None, None);
        loop {
            self.pulse.beat();
            let books = self.shelf.take()?;
            let due =
                until(self.shelf.lay(books)).max(EXPIRY_STEP.saturating_sub(expired_at.elapsed()));
            // In no order: what is due again and again leaves the rest its turn.
            let task = tokio::select! {
                name = signals.next() => return Ok(Summons::Signal(name)),
                heir = heirs.next() => return Ok(Summons::Heir(heir)),
                _ = hooks.tick(), if looking.is_none() => Task::LookAtHooks,
                found = done(&mut looking) => Task::Hooks(found?),
                swept = done(&mut sweeping) => {
                    let (since, swept) = swept?;
                    Task::Swept(since, swept)
                }
                task = self.inbox.next() => task,
                () = self.shelf.has_earlier_deadline() => continue,
                () = tokio::time::sleep(due) => Task::Expire,
                _ = sweep.tick(), if sweeping.is_none() => Task::Sweep,
                _ = upkeep.tick() => Task::Upkeep,
            };
            let mut books = self.shelf.take()?;
            match task {
                Task::Teach(request) => teach_several(&mut self.inbox.lessons, &mut books, request),
                Task::Change(changes) => {
                    self.metrics.refused(report_problems(&changes.problems));
                    if let Some((_, view)) = &mut self.reporting {
                        view.note(&changes);
                    }
                    self.take(&mut books, Event::Objects(changes)).await;
                }
                Task::Look(town) => {
                    self.windows.note(&town);
                    self.take(&mut books, Event::Town(town)).await;
                }
                Task::Answer(question) => self.answer(&books, question),
                Task::Attend(demand) => self.attend(&mut books, demand).await,
                Task::Expire => {
                    self.take(&mut books, Event::Tick).await;
                    expired_at = Instant::now();
                }
                Task::Sweep => {
                    let since = clock::monotonic_now();
                    match books.apply.kernel().broom() {
                        // The table is read beside the work: lookups would wait for it.
                        Ok(broom) => {
                            let sweep = move || (since, broom.sweep(since));
                            sweeping = Some(tokio::task::spawn_blocking(sweep));
                        }
                        Err(error) => tracing::error!(%error, "cannot sweep the flows"),
                    }
                }
                Task::Swept(since, swept) => self.swept(&mut books, since, swept).await,
                Task::Upkeep => self.upkeep(&mut books).await,
                Task::LookAtHooks => {
                    // The kernel answers when nobody changes interfaces: not while pods come in numbers.
                    let watch = books.apply.kernel().hook_watch();
                    looking = Some(tokio::task::spawn_blocking(move || watch.displaced()));
                }
                Task::Hooks(found) => self.watch_hooks(&mut books, found),
            }
            self.waiting.settle(&books.state, &books.apply);
            self.shelf.lay(books);
        }
    }

    /// Whether the DaemonSet that put this agent on the node was deleted, so that none comes after it.
    pub(super) fn is_last(&self) -> bool {
        let fate = self.daemon_set.as_ref().map(|fate| *fate.borrow());
        fate == Some(DaemonSetFate::Deleted)
    }

    /// Ends in order, and gives back the sockets of lookups: enforcement stays pinned unless it
    /// `detaches`.
    pub(super) async fn end(
        mut self,
        args: &AgentArgs,
        detaches: bool,
    ) -> anyhow::Result<Vec<Sockets>> {
        for task in self.tasks.drain(..) {
            task.abort();
            // What it has in hand on another thread is done, or undone by what follows, not beside it.
            if let Err(error) = task.await
                && error.is_panic()
            {
                tracing::error!(%error, "a task of the agent panicked");
            }
        }
        if let Some((reporting, _)) = self.reporting.take() {
            reporting.end(detaches).await;
        }
        let Self { proxy, shelf, keeper, inbox, records, .. } = self;
        let mut lessons = inbox.lessons;
        let mut drained = pin!(proxy.hand_over());
        let sockets = loop {
            tokio::select! {
                sockets = &mut drained => break sockets,
                // Lookups under way still learn.
                Some(request) = lessons.recv() => {
                    let mut books = shelf.take()?;
                    teach_several(&mut lessons, &mut books, request);
                    shelf.lay(books);
                }
            }
        };
        drop(records);
        let books = shelf.take()?;
        keeper.end((!detaches).then(|| pods(&books.state)));
        if !detaches {
            tracing::info!(
                pins = %args.node.pin_dir.display(),
                "enforcement goes on; `namegate uninstall` ends it"
            );
        }
        if detaches {
            books
                .apply
                .into_kernel()
                .detach_all()
                .context("cannot remove everything from the kernel")?;
            uninstall::clean(&args.node).await?;
            tracing::info!("the node is as it was");
        }
        Ok(sockets)
    }

    /// Applies the first effects: here a port in use or an interface that takes no program is the
    /// end.
    pub(super) async fn apply_first(
        &mut self,
        books: &mut Books,
        effects: Effects,
        unknown: Unknown,
    ) -> anyhow::Result<()> {
        report_notices(&effects.notices);
        books.registry.update(&books.state, &effects);
        if let Some(wanted) = &effects.wanted {
            self.wanted.send_replace(Arc::clone(wanted));
        }
        if let Some(resolvers) = &effects.resolvers {
            let slots = &mut self.proxy_slots;
            let failures = update_proxy(&self.proxy, &self.listen, slots, resolvers).await;
            if let Some((_, error)) = failures.into_iter().next() {
                return Err(error).context("the DNS proxy cannot listen");
            }
        }
        let endpoints = effects.endpoints.values().filter_map(EndpointEffect::spec).count();
        let outcome = books.apply.enforce(effects);
        let enforced = outcome.swaps;
        books.note(outcome);
        let taken_over = books.apply.finish_take_over(unknown);
        books.note(taken_over);
        if let Err(error) = books.apply.kernel().retire_earlier() {
            tracing::error!(%error, "something of an agent of another version stays");
        }
        if endpoints > 0 && enforced == 0 {
            let why: Vec<&str> = books.failures().iter().map(String::as_str).collect();
            anyhow::bail!("nothing can be enforced: {}", why.join("; "));
        }
        Ok(())
    }

    /// Forgets learned addresses of an earlier agent that this one did not take over.
    pub(super) fn forget_names(books: &mut Books, names: impl IntoIterator<Item = NameKey>) {
        let is_known = |key: &NameKey| {
            Identity::new(key.identity).is_some_and(|identity| {
                let place = (identity, IpAddr::from(key.address));
                books.state.tables().contains_key(&identity)
                    && books.state.learned().read().leases(place).next().is_some()
            })
        };
        let delete_entries = names.into_iter().filter(|key| !is_known(key)).collect();
        let writes = NameWrites { delete_entries, ..NameWrites::default() };
        if let Err(error) = books.apply.kernel().write_names(&writes) {
            tracing::error!(%error, "learned addresses of an earlier agent stay");
        }
    }

    async fn take(&mut self, books: &mut Books, event: Event) {
        let began = Instant::now();
        let effects = books.state.handle(event, clock::monotonic_now());
        if effects.changes_policy() {
            self.metrics.applied(Step::Compile, began.elapsed());
        }
        self.put(books, effects).await;
    }

    async fn put(&mut self, books: &mut Books, effects: Effects) {
        let began = Instant::now();
        report_notices(&effects.notices);
        books.registry.update(&books.state, &effects);
        if let Some(wanted) = &effects.wanted {
            self.wanted.send_replace(Arc::clone(wanted));
        }
        if let Some(resolvers) = &effects.resolvers {
            let slots = &mut self.proxy_slots;
            let failures = update_proxy(&self.proxy, &self.listen, slots, resolvers).await;
            for error in failures.into_values() {
                tracing::error!(
                    %error,
                    "the proxy cannot stand in for a resolver: lookups to it end until it can"
                );
            }
        }
        let changes_policy = effects.changes_policy();
        let tables = effects.tables.len();
        let outcome = books.apply.enforce(effects);
        let took = began.elapsed();
        if changes_policy {
            self.metrics.applied(Step::Write, took);
        }
        let is_whole = outcome.failures.is_empty();
        let are_endpoints_written = outcome.swaps > 0;
        books.note(outcome);
        if are_endpoints_written {
            self.close_windows(books);
        }
        if let Some((_, view)) = &mut self.reporting {
            view.touch();
        }
        if changes_policy && is_whole {
            tracing::info!(
                tables,
                endpoints = books.state.endpoints().len(),
                policies = books.state.policy_count(),
                took_us = took.as_micros(),
                "policy applied"
            );
        }
    }

    /// Measures how long the interfaces of pods were there before what was just put in force.
    fn close_windows(&mut self, books: &Books) {
        let Books { state, apply, .. } = books;
        let spec = |index| state.endpoints().get(&index);
        let is_in_force =
            |index| spec(index).is_some_and(|spec| apply.is_in_force(index, spec.identity));
        for (index, open) in self.windows.close(is_in_force, Instant::now()) {
            let is_claimed = spec(index).is_some_and(|spec| state.is_claimed(&spec.pod));
            self.metrics.window(open, is_claimed);
        }
    }

    fn answer(&self, books: &Books, question: Question) {
        let kernel = books.apply.peek();
        question.answer(View {
            state: &books.state,
            failures: books.failures(),
            resolvers: &self.proxy_slots,
            hooks: &self.hooks,
            fill: &|addresses, names| kernel.fill(addresses, names),
        });
    }

    /// Does what the CNI plugin asks for, of everybody that waits: a look at all endpoints costs the
    /// same for one pod and for many. A pod that is to be under policy waits until it is.
    async fn attend(&mut self, books: &mut Books, first: Demand) {
        let more = iter::from_fn(|| self.inbox.demands.try_recv().ok());
        let demands: Vec<Demand> = iter::once(first).chain(more).take(DEMANDS_TURN).collect();
        let mut told = Told::default();
        for Demand { wish, answer } in demands {
            // What was asked first is done first; what is alike together.
            let is_alike = match wish {
                Wish::Attach(_) => told.gone.is_empty(),
                Wish::Release(_) => told.claims.is_empty(),
                Wish::Check(_) | Wish::Collect(_) => false,
            };
            if !is_alike {
                self.tell(books, &mut told).await;
            }
            match wish {
                Wish::Attach(asked) => told.claims.extend([self.waiting.add(&asked, answer)]),
                Wish::Release(gone) => {
                    told.gone.insert(gone);
                    told.answers.push(answer);
                }
                Wish::Check(asked) => {
                    // The plugin may have given up.
                    let _ = answer.send(cni::desk::check(&asked, &books.state, &books.apply));
                }
                Wish::Collect(left) => {
                    self.take(books, Event::Left(left)).await;
                    let _ = answer.send(Ok(()));
                }
            }
        }
        self.tell(books, &mut told).await;
    }

    /// Passes on what the plugin told.
    async fn tell(&mut self, books: &mut Books, told: &mut Told) {
        let Told { claims, gone, answers } = std::mem::take(told);
        if !claims.is_empty() {
            self.take(books, Event::Attached(claims)).await;
        }
        if !gone.is_empty() {
            self.take(books, Event::Detached(gone)).await;
        }
        for answer in answers {
            let _ = answer.send(Ok(()));
        }
    }

    async fn swept(
        &mut self,
        books: &mut Books,
        since: Timestamp,
        swept: Result<Sweep, DatapathError>,
    ) {
        match swept {
            Ok(sweep) => {
                tracing::debug!(live = sweep.live, removed = sweep.removed, "swept the flows");
                self.take(books, Event::Swept { since, in_use: sweep.in_use }).await;
            }
            Err(error) => tracing::error!(%error, "cannot sweep the flows"),
        }
        match books.apply.kernel().counters() {
            Ok(counters) => {
                let lost: u64 = counters.events_lost.values().sum();
                self.log.kernel_lost(lost.saturating_sub(self.events_lost));
                self.events_lost = lost;
            }
            Err(error) => tracing::error!(%error, "cannot read the counters"),
        }
    }

    async fn upkeep(&mut self, books: &mut Books) {
        if books.apply.needs_retry() && Instant::now() >= self.retry_from {
            let began = Instant::now();
            let mut effects = Effects::default();
            for identity in books.apply.retry_identities() {
                if let Some(effect) = books.state.table_effect(identity) {
                    effects.tables.insert(identity, effect);
                }
            }
            self.put(books, effects).await;
            // Lookups wait meanwhile: however much there is to write, it is for a fiftieth of the time where
            // that is not longer than a pod has to start.
            self.retry_from = Instant::now() + (began.elapsed() * 49).min(RETRY_PAUSE_MAX);
        }
        books.clear_away();
        self.listen_again(books).await;
        self.wall.look();
        if let Some((_, view)) = &mut self.reporting {
            view.update(&books.state, &books.apply);
        }
        self.keeper.keep(pods(&books.state));
    }

    /// Tries again to stand in for resolvers for which there was no socket.
    async fn listen_again(&mut self, books: &Books) {
        let wanted = books.state.resolvers();
        if self.proxy_slots == wanted {
            return;
        }
        let before = self.proxy_slots.len();
        let slots = &mut self.proxy_slots;
        let failures = update_proxy(&self.proxy, &self.listen, slots, &wanted).await;
        for error in failures.values() {
            tracing::debug!(%error, "the proxy still cannot stand in for a resolver");
        }
        if slots.len() > before {
            tracing::info!(lacking = failures.len(), "the proxy stands in for resolvers again");
        }
    }

    /// Puts right what others did to the hooks; whoever asks `namegate ready` or `/readyz` is told what
    /// stays wrong.
    fn watch_hooks(&mut self, books: &mut Books, found: Result<Vec<DisplacedHook>, DatapathError>) {
        let is_other = self.hooks.take(found, books.apply.kernel());
        if is_other {
            self.phase.lack(self.hooks.lacking().collect());
        }
        let Some(path) = self.ready_file.as_ref().filter(|_| is_other) else { return };
        if let Err(error) = ready_file::write(path, self.hooks.lacking()) {
            tracing::error!(%error, path = %path.display(), "cannot say whether the agent is ready");
        }
    }
}

fn teach_several(
    lessons: &mut mpsc::Receiver<LessonRequest>,
    books: &mut Books,
    first: LessonRequest,
) {
    let more = iter::from_fn(|| lessons.try_recv().ok());
    for LessonRequest { lessons, outcomes } in iter::once(first).chain(more).take(LESSONS_TURN) {
        // The proxy gave up on these queries: what was opened stays open until its deadline.
        let _ = outcomes.send(books.teach(&lessons));
    }
}

/// What comes of work beside, once it is done; never where there is none.
async fn done<T>(beside: &mut Option<JoinHandle<T>>) -> anyhow::Result<T> {
    match beside {
        Some(task) => {
            let outcome = task.await.context("a look at the kernel's state broke off")?;
            *beside = None;
            Ok(outcome)
        }
        None => std::future::pending().await,
    }
}

/// The pods whose identities the next agent knows by them.
fn pods(state: &State) -> Pods {
    state.endpoints().values().map(|spec| (spec.pod.clone(), spec.identity)).collect()
}

fn until(deadline: Option<Timestamp>) -> Duration {
    const LONG: Duration = Duration::from_secs(3_600);
    deadline.map_or(LONG, |deadline| deadline.since(clock::monotonic_now()).min(LONG))
}

/// Says what is wrong with manifests, and how many objects are refused.
pub(super) fn report_problems(problems: &[Problem]) -> u64 {
    let refused = problems.iter().filter(|problem| !problem.is_foreign()).count();
    for problem in problems {
        let (object, field) = (problem.object.as_deref(), problem.field.as_deref());
        if problem.is_foreign() {
            tracing::info!(
                file = %problem.file.display(), line = problem.line, object,
                "passed over: {}", problem.reason
            );
        } else {
            tracing::warn!(
                file = %problem.file.display(),
                line = problem.line,
                object,
                field,
                reason = problem.reason,
                fix = problem.fix,
                last_good_version_stays = problem.keeps_last_good,
                pods_are_closed = problem.has_stand_in,
                "object refused"
            );
        }
    }
    refused as u64
}

fn report_notices(notices: &[String]) {
    for notice in notices {
        tracing::warn!("{notice}");
    }
}
