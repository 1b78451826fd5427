//! The thread between those who decide and those who are told.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use namegate_dns_proxy::record::DecisionRecord;
use namegate_egress_bpf::abi::EventVerdict;
use namegate_egress_bpf::datapath::FlowEvent;
use tokio::sync::broadcast;

use super::counts::{Counts, Told};
use super::describe::Describer;
use super::limit::Limiter;
use super::outlet::{Outlet, lost};
use super::{AuditConfig, Choice, Entry, QUEUE_MAX, Record};
use crate::clock;

/// How often it is said what was kept out or lost.
const TELL: Duration = Duration::from_secs(10);

/// How long decisions gather: whoever hands one over does not wake the hub each time, and a pod that
/// has a record a millisecond does not wake three threads and write a line each time.
const NAP: Duration = Duration::from_millis(20);

/// Records that are passed on together: whoever takes them is woken once.
const BATCH: usize = 256;

/// Decisions of one round after which the next begins at once: more may be waiting than there is room
/// for in a nap.
const BUSY: usize = QUEUE_MAX / 8;

/// What the hub is handed.
#[derive(Debug)]
pub(super) enum Message {
    /// A decision about a lookup.
    Lookup {
        time: SystemTime,
        decision: Box<DecisionRecord>,
        /// How many addresses were left out of it.
        omitted: u32,
        /// Whether its endpoint's bounds let it through, where they were asked.
        admitted: Option<bool>,
    },
    /// Decisions about packets.
    Flows(Vec<FlowEvent>),
    /// Nothing more is of interest.
    Stop,
}

/// Makes records and passes them on.
#[derive(Debug)]
pub(super) struct Hub {
    describer: Describer,
    choice: Choice,
    limiter: Arc<Mutex<Limiter>>,
    outlets: Vec<Outlet>,
    listeners: broadcast::Sender<Arc<Entry>>,
    counts: Arc<Counts>,
    /// Records for listeners, and those of them that are for the sinks too.
    heard: Vec<Arc<Entry>>,
    logged: Vec<Arc<Entry>>,
    told: Told,
    tell_at: Instant,
}

impl Hub {
    pub(super) fn new(
        config: &AuditConfig,
        describer: Describer,
        limiter: Arc<Mutex<Limiter>>,
        outlets: Vec<Outlet>,
        listeners: broadcast::Sender<Arc<Entry>>,
        counts: Arc<Counts>,
    ) -> Self {
        Self {
            describer,
            choice: config.choice.clone(),
            limiter,
            outlets,
            listeners,
            counts,
            heard: Vec::new(),
            logged: Vec::new(),
            told: Told::default(),
            tell_at: Instant::now() + TELL,
        }
    }

    /// Works until it is told to stop or nobody is left to hand anything over.
    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        loop {
            let outcome = match messages.recv_timeout(TELL) {
                Ok(message) => self.drain(message, messages),
                Err(RecvTimeoutError::Timeout) => ControlFlow::Continue(0),
                Err(RecvTimeoutError::Disconnected) => ControlFlow::Break(()),
            };
            self.flush();
            let ControlFlow::Continue(taken) = outcome else { break };
            self.tell_if_due(Instant::now());
            if taken < BUSY {
                std::thread::park_timeout(NAP);
            }
        }
        self.tell(Instant::now());
    }

    /// Takes what waits, and says how many decisions that was: [`QUEUE_MAX`] or a batch more at most, so
    /// that what they became is handed on in time.
    fn drain(&mut self, first: Message, messages: &Receiver<Message>) -> ControlFlow<(), usize> {
        let (mut taken, mut next) = (0, Some(first));
        while let Some(message) = next {
            taken += self.take(message)?;
            next = if taken < QUEUE_MAX { messages.try_recv().ok() } else { None };
        }
        ControlFlow::Continue(taken)
    }

    fn take(&mut self, message: Message) -> ControlFlow<(), usize> {
        let now = Instant::now();
        let taken = match message {
            Message::Lookup { time, decision, omitted, admitted } => {
                let record = Record::Dns(Box::new(self.describer.lookup(&decision, omitted)));
                self.pass_on(Entry { time, record }, admitted, now);
                1
            }
            Message::Flows(events) => {
                self.take_flows(&events, now);
                events.len()
            }
            Message::Stop => return ControlFlow::Break(()),
        };
        self.counts.leave(taken);
        self.tell_if_due(now);
        ControlFlow::Continue(taken)
    }

    /// Makes records of events, where bounds can be asked first of those alone that they let through.
    fn take_flows(&mut self, events: &[FlowEvent], now: Instant) {
        let (monotonic, wall) = (clock::monotonic_now(), SystemTime::now());
        let mut admitted = Vec::with_capacity(events.len());
        for alike in events.chunk_by(|one, next| of_one_kind(one) == of_one_kind(next)) {
            self.admit(alike, now, &mut admitted);
        }
        let is_followed = self.counts.is_followed();
        let mut suppressed = 0;
        for (event, admitted) in events.iter().zip(admitted) {
            if admitted == Some(false) && !is_followed {
                suppressed += 1;
                continue;
            }
            let time = clock::wall_time(event.time, monotonic, wall);
            let record = Record::Flow(Box::new(self.describer.flow(event)));
            self.pass_on(Entry { time, record }, admitted, now);
        }
        self.counts.suppress(suppressed);
    }

    /// Whether the bounds of the endpoint let each of these events through; `None` where that is not
    /// known before there is a record.
    fn admit(&self, alike: &[FlowEvent], now: Instant, admitted: &mut Vec<Option<bool>>) {
        let Some(first) = alike.first().filter(|_| self.choice.keeps_all()) else {
            admitted.extend(alike.iter().map(|_| None));
            return;
        };
        let (ifindex, is_refusal) = of_one_kind(first);
        let label = self.describer.behind(ifindex);
        let key = label.namespace.clone().zip(label.pod.clone());
        limiter(&self.limiter).admits_each(
            (key, is_refusal),
            || label,
            now,
            alike.len(),
            |is_admitted| admitted.push(Some(is_admitted)),
        );
    }

    fn pass_on(&mut self, entry: Entry, admitted: Option<bool>, now: Instant) {
        let is_chosen = self.choice.keeps(&entry.record);
        let admits = || limiter(&self.limiter).admits(&entry.record, now);
        let is_admitted = !is_chosen || admitted.unwrap_or_else(admits);
        let entry = Arc::new(entry);
        if !is_admitted {
            self.counts.suppress(1);
        } else if is_chosen {
            self.logged.push(Arc::clone(&entry));
        } else if !self.outlets.is_empty() {
            self.counts.not_chosen.fetch_add(1, Ordering::Relaxed);
        }
        if is_admitted || self.counts.is_followed() {
            self.heard.push(entry);
        }
        if self.heard.len() >= BATCH {
            self.flush();
        }
    }

    /// Hands over what was gathered.
    fn flush(&mut self) {
        for entry in self.heard.drain(..) {
            // Nobody listens: nothing is kept.
            let _ = self.listeners.send(entry);
        }
        for outlet in &self.outlets {
            outlet.put(&self.logged, &self.counts);
        }
        self.logged.clear();
    }

    fn tell_if_due(&mut self, now: Instant) {
        if now >= self.tell_at {
            self.tell(now);
            self.tell_at = now + TELL;
        }
    }

    /// Says what was kept out, and to listeners what was lost before them; sinks say for themselves.
    fn tell(&mut self, now: Instant) {
        let outlets = &self.outlets;
        limiter(&self.limiter).tell(now, |record| {
            if outlets.is_empty() {
                return true;
            }
            let record = Record::Suppressed(Box::new(record));
            let entry = Arc::new(Entry { time: SystemTime::now(), record });
            // One sink that hears it is enough: another that does not is behind, and says so.
            outlets.iter().fold(false, |heard, outlet| outlet.offer(&entry) | heard)
        });
        let listeners = &self.listeners;
        self.told.tell(self.counts.losses(None), |source, count| {
            let _ = listeners.send(Arc::new(lost(source, count)));
            true
        });
    }
}

/// Whose bounds an event asks for, and whether for a refusal.
fn of_one_kind(event: &FlowEvent) -> (u32, bool) {
    (event.ifindex, !matches!(event.verdict, EventVerdict::Forwarded))
}

/// The limiter, which lookups' threads ask too.
pub(super) fn limiter(shared: &Mutex<Limiter>) -> MutexGuard<'_, Limiter> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
