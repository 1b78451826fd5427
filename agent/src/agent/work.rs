//! The loop of the state's owner: one event at a time, its effects written before the next.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use namegate_dns_proxy::Proxy;
use namegate_dns_proxy::learner::Lesson;
use namegate_egress_bpf::abi::NameKey;
use namegate_egress_bpf::compile::NameWrites;
use namegate_egress_bpf::datapath::Datapath;
use namegate_policy::identity::Identity;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::Signals;
use super::start::{Listen, update_proxy};
use crate::admin::{Question, View};
use crate::apply::{Apply, Outcome, Unknown};
use crate::audit::AuditLog;
use crate::cli::AgentArgs;
use crate::dns::{self, LessonRequest};
use crate::endpoints::{Town, Wanted};
use crate::registry::Registry;
use crate::source::{Changes, Problem};
use crate::state::{Answer, Effects, EndpointEffect, Event, State};
use crate::{clock, remembered, uninstall};

/// How often dead flows are removed and live ones asked which addresses they use.
const SWEEP: Duration = Duration::from_secs(3);

/// How often what failed is tried again, and what was learned is kept on disk.
const UPKEEP: Duration = Duration::from_secs(1);

/// Lessons taken at once before other events get their turn.
const LESSONS_TURN: usize = 64;

/// Everything that runs.
pub(super) struct Agent {
    pub(super) state: State,
    pub(super) apply: Apply<Datapath>,
    pub(super) registry: Arc<Registry>,
    pub(super) log: AuditLog,
    pub(super) proxy: Proxy,
    pub(super) proxy_slots: BTreeMap<u8, IpAddr>,
    pub(super) listen: Listen,
    pub(super) remembered_path: PathBuf,
    pub(super) remembered_is_behind: bool,
    pub(super) remember_from: Instant,
    pub(super) events_lost: u64,
    pub(super) wanted: watch::Sender<Arc<Wanted>>,
    pub(super) lessons: mpsc::Receiver<LessonRequest>,
    pub(super) questions: mpsc::Receiver<Question>,
    pub(super) towns: mpsc::Receiver<Town>,
    pub(super) changes: mpsc::Receiver<Changes>,
    pub(super) tasks: Vec<JoinHandle<()>>,
    pub(super) last_failures: BTreeSet<String>,
}

impl Agent {
    /// Works until a signal comes, and says which.
    pub(super) async fn work(&mut self, signals: &mut Signals) -> &'static str {
        let mut sweep = tokio::time::interval(SWEEP);
        let mut upkeep = tokio::time::interval(UPKEEP);
        for interval in [&mut sweep, &mut upkeep] {
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            let deadline = self.until_deadline();
            tokio::select! {
                biased;
                name = signals.next() => return name,
                Some(request) = self.lessons.recv() => {
                    self.teach_several(request);
                    // Lessons that never end leave a turn for whoever asks.
                    if let Ok(question) = self.questions.try_recv() {
                        self.answer(question);
                    }
                }
                Some(changes) = self.changes.recv() => {
                    report_problems(&changes.problems);
                    self.take(Event::Objects(changes)).await;
                }
                Some(town) = self.towns.recv() => self.take(Event::Town(town)).await,
                Some(question) = self.questions.recv() => self.answer(question),
                () = tokio::time::sleep(deadline) => self.take(Event::Tick).await,
                _ = sweep.tick() => self.sweep().await,
                _ = upkeep.tick() => self.upkeep().await,
            }
        }
    }

    /// Ends in order: enforcement stays pinned unless asked otherwise.
    pub(super) async fn end(mut self, args: &AgentArgs) -> anyhow::Result<()> {
        for task in self.tasks.drain(..) {
            task.abort();
        }
        if !args.detach_on_exit {
            self.remember();
            tracing::info!(
                pins = %args.node.pin_dir.display(),
                "enforcement goes on; `namegate uninstall` ends it"
            );
        }
        self.proxy.shutdown().await;
        if args.detach_on_exit {
            self.apply
                .into_kernel()
                .detach_all()
                .context("cannot remove everything from the kernel")?;
            uninstall::clean(&args.node).await?;
            tracing::info!("the node is as it was");
        }
        Ok(())
    }

    /// Applies the first effects: here a port in use or an interface that takes no program is the
    /// end.
    pub(super) async fn apply_first(
        &mut self,
        effects: Effects,
        unknown: Unknown,
    ) -> anyhow::Result<()> {
        report_notices(&effects.notices);
        self.registry.update(&self.state, &effects);
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
        let outcome = self.apply.apply(effects);
        let enforced = outcome.swaps;
        self.note(outcome);
        let taken_over = self.apply.finish_take_over(unknown);
        self.note(taken_over);
        if endpoints > 0 && enforced == 0 {
            let why: Vec<&str> = self.last_failures.iter().map(String::as_str).collect();
            anyhow::bail!("nothing can be enforced: {}", why.join("; "));
        }
        Ok(())
    }

    /// Forgets learned addresses of an earlier agent that this one did not take over.
    pub(super) fn forget_names(&mut self, names: impl IntoIterator<Item = NameKey>) {
        let is_known = |key: &NameKey| {
            Identity::new(key.identity).is_some_and(|identity| {
                let place = (identity, IpAddr::from(key.address));
                self.state.tables().contains_key(&identity)
                    && self.state.learned().leases(place).next().is_some()
            })
        };
        let delete_entries = names.into_iter().filter(|key| !is_known(key)).collect();
        let writes = NameWrites { delete_entries, ..NameWrites::default() };
        if let Err(error) = self.apply.kernel().write_names(&writes) {
            tracing::error!(%error, "learned addresses of an earlier agent stay");
        }
    }

    async fn take(&mut self, event: Event) {
        let effects = self.state.handle(event, clock::monotonic_now());
        self.put(effects).await;
    }

    async fn put(&mut self, mut effects: Effects) {
        let began = Instant::now();
        report_notices(&effects.notices);
        self.registry.update(&self.state, &effects);
        if let Some(wanted) = &effects.wanted {
            self.wanted.send_replace(Arc::clone(wanted));
        }
        if let Some(resolvers) = &mut effects.resolvers {
            let slots = &mut self.proxy_slots;
            let failures = update_proxy(&self.proxy, &self.listen, slots, resolvers).await;
            for (slot, error) in failures {
                tracing::error!(%error, "the proxy cannot stand in for a resolver");
                resolvers.remove(&slot);
            }
        }
        let changes_policy = effects.changes_policy();
        self.remembered_is_behind |= !effects.labels.is_empty();
        let tables = effects.tables.len();
        let outcome = self.apply.apply(effects);
        let is_whole = outcome.failures.is_empty();
        self.note(outcome);
        if changes_policy && is_whole {
            tracing::info!(
                tables,
                endpoints = self.state.endpoints().len(),
                policies = self.state.policy_count(),
                took_us = began.elapsed().as_micros(),
                "policy applied"
            );
        }
    }

    fn teach_several(&mut self, first: LessonRequest) {
        self.teach(first);
        for _ in 1..LESSONS_TURN {
            match self.lessons.try_recv() {
                Ok(request) => self.teach(request),
                Err(_) => return,
            }
        }
    }

    /// Opens the addresses of answers with one batch of writes; the proxy holds the answers back until
    /// it hears the outcomes.
    fn teach(&mut self, LessonRequest { lessons, outcomes }: LessonRequest) {
        let mut effects = Effects::default();
        let taught: Vec<_> = lessons
            .iter()
            .map(|lesson| {
                let (caused, taught) = self.state.teach(&answered(lesson), lesson.now)?;
                effects.absorb(caused);
                Ok(taught)
            })
            .collect();
        self.registry.update(&self.state, &effects);
        self.remembered_is_behind = true;
        let written = self.apply.apply(effects);
        let learned = lessons.iter().zip(taught);
        let learned = learned
            .map(|(lesson, taught)| dns::outcome(lesson, taught, &written.unwritten))
            .collect();
        self.note(written);
        // The proxy gave up on these queries: what was opened stays open until its deadline.
        let _ = outcomes.send(learned);
    }

    fn answer(&self, question: Question) {
        question.answer(View {
            state: &self.state,
            failures: &self.last_failures,
            resolvers: &self.proxy_slots,
        });
    }

    async fn sweep(&mut self) {
        let since = clock::monotonic_now();
        match self.apply.kernel().sweep(since) {
            Ok(sweep) => {
                tracing::debug!(live = sweep.live, removed = sweep.removed, "swept the flows");
                self.take(Event::Swept { since, in_use: sweep.in_use }).await;
            }
            Err(error) => tracing::error!(%error, "cannot sweep the flows"),
        }
        match self.apply.kernel().counters() {
            Ok(counters) => {
                let lost: u64 = counters.events_lost.values().sum();
                self.log.kernel_lost(lost.saturating_sub(self.events_lost));
                self.events_lost = lost;
            }
            Err(error) => tracing::error!(%error, "cannot read the counters"),
        }
    }

    async fn upkeep(&mut self) {
        if self.apply.needs_retry() {
            let mut effects = Effects::default();
            for identity in self.apply.retry_identities() {
                if let Some(effect) = self.state.table_effect(identity) {
                    effects.tables.insert(identity, effect);
                }
            }
            self.put(effects).await;
        }
        if self.remembered_is_behind && Instant::now() >= self.remember_from {
            let began = Instant::now();
            self.remember();
            // However much there is to write, it takes a fiftieth of a processor at most.
            self.remember_from = Instant::now() + began.elapsed() * 49;
        }
    }

    fn remember(&mut self) {
        let written = remembered::encode(&self.state)
            .map_err(std::io::Error::from)
            .and_then(|content| remembered::write(&self.remembered_path, &content));
        match written {
            Ok(()) => self.remembered_is_behind = false,
            Err(error) => {
                tracing::warn!(%error, "what was learned cannot be kept for a restart");
            }
        }
    }

    fn until_deadline(&self) -> Duration {
        const LONG: Duration = Duration::from_secs(3_600);
        self.state
            .next_deadline()
            .map_or(LONG, |deadline| deadline.since(clock::monotonic_now()).min(LONG))
    }

    /// Tells readers of tables that came and went, and the operator what failed, once.
    fn note(&mut self, outcome: Outcome) {
        for (number, table) in &outcome.tables {
            self.registry.add_table(*number, table);
        }
        for table in &outcome.removed_tables {
            self.registry.remove_table(*table);
        }
        let failures: BTreeSet<String> = outcome.failures.into_iter().collect();
        for failure in failures.difference(&self.last_failures) {
            tracing::error!(failure = %failure, "cannot be enforced yet; tried again every second");
        }
        self.last_failures = failures;
    }
}

fn answered(lesson: &Lesson) -> Answer {
    Answer {
        identity: lesson.client.identity,
        name: lesson.name.clone(),
        clauses: lesson.clauses.clone(),
        addresses: lesson.addresses.iter().map(|taught| (taught.address, taught.ttl)).collect(),
    }
}

/// Says what is wrong with manifests.
pub(super) fn report_problems(problems: &[Problem]) {
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
}

fn report_notices(notices: &[String]) {
    for notice in notices {
        tracing::warn!("{notice}");
    }
}
