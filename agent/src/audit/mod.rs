//! What was decided, told: to the sinks of the audit log, and to whoever listens in this process.
//!
//! Whoever decides hands over what it knows and never waits. The hub, a thread of its own, makes a
//! [`Record`] of it and passes that on: to each sink's thread through a bounded queue, and to
//! listeners through a ring that forgets its oldest. What does not fit anywhere is counted and told.
//! Says what was decided and decides nothing.

mod choice;
mod counts;
mod describe;
mod hub;
mod json;
mod limit;
mod line;
mod outlet;
mod record;
mod schema;
mod sink;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod workload;

use std::ffi::CStr;
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use namegate_dns_proxy::record::{DecisionRecord, DnsVerdict};
use namegate_egress_bpf::datapath::FlowEvent;
use tokio::sync::broadcast;

use crate::registry::Registry;

pub use choice::{Choice, Keep, PolicyChoice};
pub use counts::AuditCounts;
pub use limit::Bounds;
pub use line::{Entry, Line, SCHEMA};
pub use record::{
    AnsweredAddress, DnsRecord, EndpointLabel, FlowDirection, FlowRecord, FlowVerdict,
    LookupVerdict, LossSource, LostRecord, NotOpenedAddress, Peer, PolicyLabel, Query, Record,
    ServiceEnd, SuppressedCounts, SuppressedRecord, Transport, entity,
};
pub use schema::schema;
pub use sink::SyslogAddress;
pub use workload::workload;

use counts::Counts;
use describe::Describer;
use hub::{Hub, Message};
use limit::Limiter;
use sink::{RotatedFile, Sink, Stream, Syslog};

/// Decisions that wait for the hub at most.
const QUEUE_MAX: usize = 8_192;

/// Records that wait for a listener at most; one that is slower misses the oldest.
const LISTENER_MAX: usize = 4_096;

/// Addresses of an answer that a record holds at most.
const ADDRESSES_MAX: usize = 64;

/// How long closing waits for a sink that takes nothing.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// What is logged, and where.
#[derive(Clone, Debug)]
pub struct AuditConfig {
    /// A file; standard output for `-`.
    pub file: Option<PathBuf>,
    /// Octets that the file may have before another is begun.
    pub file_max_bytes: u64,
    /// How many earlier files are kept.
    pub file_keep: u32,
    /// A syslog daemon.
    pub syslog: Option<SyslogAddress>,
    /// Which records.
    pub choice: Choice,
    /// How many of an endpoint.
    pub bounds: Bounds,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            file: None,
            file_max_bytes: 100 << 20,
            file_keep: 5,
            syslog: None,
            choice: Choice::default(),
            bounds: Bounds { rate: NonZeroU32::new(1_000), sample: None },
        }
    }
}

/// The sink cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the audit log to {path}; check --audit-log", path = path.display())]
pub struct AuditError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// Takes decisions from any thread; a clone hands to the same log.
#[derive(Clone, Debug)]
pub struct AuditLog {
    queue: Sender<Message>,
    counts: Arc<Counts>,
    listeners: broadcast::Sender<Arc<Entry>>,
    describer: Describer,
    /// What asks before a record is made; where what is chosen depends on the record, the hub does.
    limiter: Option<Arc<Mutex<Limiter>>>,
}

/// Ends the log in order.
#[derive(Debug)]
pub struct AuditWriter {
    queue: Sender<Message>,
    finished: Receiver<()>,
    threads: usize,
}

/// Hears records from when it was made on: those that their endpoint's bounds admit, chosen for the
/// sinks or not, and while somebody follows ([`AuditLog::follow`]) all others too.
#[derive(Debug)]
pub struct Listener {
    entries: broadcast::Receiver<Arc<Entry>>,
    counts: Arc<Counts>,
}

/// Somebody watches: every record is made for listeners until this is dropped.
#[derive(Debug)]
pub struct Following {
    counts: Arc<Counts>,
}

/// What a listener hears.
#[derive(Clone, Debug)]
pub enum Heard {
    /// A record.
    Entry(Arc<Entry>),
    /// So many records came while the listener did not listen, and were forgotten.
    Missed(u64),
}

impl AuditLog {
    /// Opens the sinks and starts their threads. Records are described with what `registry` knows.
    pub fn start(
        config: &AuditConfig,
        registry: Arc<Registry>,
    ) -> Result<(Self, AuditWriter), AuditError> {
        let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
        if let Some(path) = &config.file {
            let opened = open(path, config);
            sinks.push(opened.map_err(|source| AuditError { path: path.to_owned(), source })?);
        }
        if let Some(address) = &config.syslog {
            sinks.push(Box::new(Syslog::new(address.clone())));
        }
        Ok(Self::over(sinks, config, registry))
    }

    fn over(
        sinks: Vec<Box<dyn Sink>>,
        config: &AuditConfig,
        registry: Arc<Registry>,
    ) -> (Self, AuditWriter) {
        let (queue, messages) = channel();
        let (listeners, _) = broadcast::channel(LISTENER_MAX);
        let counts = Arc::new(Counts::new(sinks.len()));
        let threads = sinks.len() + 1;
        let (finish, finished) = sync_channel(threads);
        let outlets = sinks
            .into_iter()
            .enumerate()
            .map(|(place, sink)| outlet::start(sink, place, Arc::clone(&counts), finish.clone()))
            .collect();
        let describer = Describer::new(registry);
        let limiter = Arc::new(Mutex::new(Limiter::new(config.bounds)));
        let hub = Hub::new(
            config,
            describer.clone(),
            Arc::clone(&limiter),
            outlets,
            listeners.clone(),
            Arc::clone(&counts),
        );
        std::thread::spawn(move || {
            call_thread(c"namegate-audit");
            hub.run(&messages);
            // Nobody waits where the agent did not close the log.
            let _ = finish.try_send(());
        });
        let limiter = config.choice.keeps_all().then_some(limiter);
        let log = Self { queue: queue.clone(), counts, listeners, describer, limiter };
        (log, AuditWriter { queue, finished, threads })
    }

    /// Takes a decision about a lookup.
    pub fn lookup(&self, mut decision: DecisionRecord) {
        if self.counts.is_anyone_there() {
            // A pod that asks more than its bounds let into the log costs a look at them and no record.
            let admitted = self.admits(&decision);
            if admitted == Some(false) && !self.counts.is_followed() {
                self.counts.suppress(1);
                return;
            }
            let omitted = decision.addresses.len().saturating_sub(ADDRESSES_MAX);
            decision.addresses.truncate(ADDRESSES_MAX);
            decision.addresses.shrink_to_fit();
            if self.counts.enter(1, QUEUE_MAX) == 0 {
                self.counts.lose(LossSource::Queue, 1);
                return;
            }
            let message = Message::Lookup {
                time: SystemTime::now(),
                decision: Box::new(decision),
                omitted: u32::try_from(omitted).unwrap_or(u32::MAX),
                admitted,
            };
            self.send(1, message);
        }
    }

    /// Whether the bounds of whoever asked let a record through; `None` where that is not known yet.
    fn admits(&self, decision: &DecisionRecord) -> Option<bool> {
        let shared = self.limiter.as_ref()?;
        let endpoint = &decision.client.endpoint;
        let key = (Arc::clone(&endpoint.namespace), Arc::clone(&endpoint.pod));
        let is_refusal = decision.verdict != DnsVerdict::Allowed;
        let label = || self.describer.asker(decision);
        Some(hub::limiter(shared).admits_of(Some(key), is_refusal, label, Instant::now()))
    }

    /// Takes decisions about packets.
    pub fn flows(&self, mut events: Vec<FlowEvent>) {
        if events.is_empty() || !self.counts.is_anyone_there() {
            return;
        }
        let fits = self.counts.enter(events.len(), QUEUE_MAX);
        self.counts.lose(LossSource::Queue, (events.len() - fits) as u64);
        events.truncate(fits);
        self.send(fits, Message::Flows(events));
    }

    /// Counts events that the kernel could not hand over.
    pub fn kernel_lost(&self, count: u64) {
        self.counts.lose(LossSource::Kernel, count);
    }

    /// Listens to every record from here on.
    pub fn listen(&self) -> Listener {
        self.counts.listeners_changed(true);
        Listener { entries: self.listeners.subscribe(), counts: Arc::clone(&self.counts) }
    }

    /// Has every record made for listeners while the guard is held.
    pub fn follow(&self) -> Following {
        self.counts.followers_changed(true);
        Following { counts: Arc::clone(&self.counts) }
    }

    /// What became of all records so far.
    pub fn counts(&self) -> AuditCounts {
        self.counts.snapshot()
    }

    /// Sends what has its places in the queue.
    fn send(&self, places: usize, message: Message) {
        if self.queue.send(message).is_err() {
            self.counts.leave(places);
        }
    }
}

impl Listener {
    /// Waits for the next record; `None` once the log has ended.
    pub async fn next(&mut self) -> Option<Heard> {
        match self.entries.recv().await {
            Ok(entry) => Some(Heard::Entry(entry)),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Heard::Missed(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.counts.listeners_changed(false);
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.counts.followers_changed(false);
    }
}

impl AuditWriter {
    /// Waits until everything handed over so far is written, for a bounded time.
    pub fn close(self) {
        let _ = self.queue.send(Message::Stop);
        let deadline = Instant::now() + CLOSE_PATIENCE;
        for _ in 0..self.threads {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.finished.recv_timeout(left).is_err() {
                tracing::warn!("a sink of the audit log does not take the last records");
                return;
            }
        }
    }
}

/// Gives the thread a name that `top` shows; without one it works as well.
fn call_thread(name: &CStr) {
    let _ = rustix::thread::set_name(name);
}

fn open(path: &Path, config: &AuditConfig) -> io::Result<Box<dyn Sink>> {
    if path == Path::new("-") {
        return Ok(Box::new(Stream(io::stdout())));
    }
    let is_special = std::fs::metadata(path).is_ok_and(|is| !is.is_file());
    if is_special {
        let file = std::fs::OpenOptions::new().append(true).open(path)?;
        return Ok(Box::new(Stream(file)));
    }
    Ok(Box::new(RotatedFile::open(path, config.file_max_bytes, config.file_keep)?))
}
