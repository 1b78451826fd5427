//! The thread between those who decide and those who are told.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use namegate_dns_proxy::record::DecisionRecord;
use namegate_egress_bpf::datapath::FlowEvent;
use tokio::sync::broadcast;

use super::counts::{Counts, Told};
use super::describe::Describer;
use super::limit::Limiter;
use super::outlet::{Outlet, lost};
use super::{AuditConfig, Choice, Entry, Record};
use crate::clock;

/// How often it is said what was kept out or lost.
const TELL: Duration = Duration::from_secs(10);

/// How long decisions gather: whoever hands one over does not wake the hub each time, and a pod that
/// has a record a millisecond does not wake three threads and write a line each time.
const NAP: Duration = Duration::from_millis(20);

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
    /// A decision about a packet.
    Flow(FlowEvent),
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
            told: Told::default(),
            tell_at: Instant::now() + TELL,
        }
    }

    /// Works until it is told to stop or nobody is left to hand anything over.
    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        loop {
            match messages.recv_timeout(TELL) {
                Ok(message) => {
                    if self.take(message).is_break() {
                        break;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.drain(messages).is_break() {
                break;
            }
            self.tell_if_due(Instant::now());
            std::thread::park_timeout(NAP);
        }
        self.tell(Instant::now());
    }

    fn drain(&mut self, messages: &Receiver<Message>) -> ControlFlow<()> {
        while let Ok(message) = messages.try_recv() {
            self.take(message)?;
        }
        ControlFlow::Continue(())
    }

    fn take(&mut self, message: Message) -> ControlFlow<()> {
        let (entry, admitted) = match message {
            Message::Lookup { time, decision, omitted, admitted } => {
                let record = self.describer.lookup(&decision, omitted);
                (Entry { time, record: Record::Dns(Box::new(record)) }, admitted)
            }
            Message::Flow(event) => {
                let time = clock::wall_time(event.time, clock::monotonic_now(), SystemTime::now());
                (Entry { time, record: Record::Flow(Box::new(self.describer.flow(&event))) }, None)
            }
            Message::Stop => return ControlFlow::Break(()),
        };
        self.counts.leave();
        let now = Instant::now();
        self.pass_on(&Arc::new(entry), admitted, now);
        self.tell_if_due(now);
        ControlFlow::Continue(())
    }

    fn pass_on(&self, entry: &Arc<Entry>, admitted: Option<bool>, now: Instant) {
        let is_chosen = self.choice.keeps(&entry.record);
        let admits = || limiter(&self.limiter).admits(&entry.record, now);
        let is_admitted = !is_chosen || admitted.unwrap_or_else(admits);
        if is_admitted || self.counts.is_followed() {
            // Nobody listens: nothing is kept.
            let _ = self.listeners.send(Arc::clone(entry));
        }
        if !is_admitted {
            self.counts.suppress();
        } else if is_chosen {
            for outlet in &self.outlets {
                outlet.put(entry, &self.counts);
            }
        } else if !self.outlets.is_empty() {
            self.counts.not_chosen.fetch_add(1, Ordering::Relaxed);
        }
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

/// The limiter, which lookups' threads ask too.
pub(super) fn limiter(shared: &Mutex<Limiter>) -> MutexGuard<'_, Limiter> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
