//! The audit log: one JSON object per line for each decision.
//!
//! Whoever records never waits: records go through a bounded queue to a thread that owns the sink,
//! and what does not fit is counted and told in a record of its own. Says what was decided and
//! decides nothing.

mod json;
mod record;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::clock;

pub use record::{
    AnsweredAddress, DnsRecord, EndpointLabel, FlowRecord, LostRecord, NotOpenedAddress, Peer,
    PolicyLabel, Query, Record, entity,
};

/// Records that wait for the sink at most.
pub const QUEUE_MAX: usize = 16_384;

/// Bytes that are gathered before they are written.
const BATCH_BYTES: usize = 64 << 10;

/// How long closing waits for a sink that takes nothing.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

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

/// Takes records from any thread; a clone writes to the same log.
#[derive(Clone, Debug)]
pub struct AuditLog {
    queue: Option<SyncSender<(SystemTime, Record)>>,
    losses: Arc<Losses>,
}

/// Ends the log in order.
#[derive(Debug)]
pub struct AuditWriter {
    finished: Option<Receiver<()>>,
}

#[derive(Debug, Default)]
struct Losses {
    queue: AtomicU64,
    kernel: AtomicU64,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    record: &'a Record,
}

impl AuditLog {
    /// Opens the log: standard output for `-`, nothing for `None`.
    pub fn open(path: Option<&Path>) -> Result<(Self, AuditWriter), AuditError> {
        let Some(path) = path else {
            return Ok((Self::disabled(), AuditWriter { finished: None }));
        };
        if path == Path::new("-") {
            return Ok(Self::to_sink(Box::new(io::stdout()), QUEUE_MAX));
        }
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| AuditError { path: path.to_owned(), source })?;
        Ok(Self::to_sink(Box::new(file), QUEUE_MAX))
    }

    /// A log that keeps nothing.
    pub fn disabled() -> Self {
        Self { queue: None, losses: Arc::default() }
    }

    fn to_sink(sink: Box<dyn Write + Send>, capacity: usize) -> (Self, AuditWriter) {
        let (queue, records) = sync_channel(capacity);
        let (finish, finished) = sync_channel(1);
        let losses = Arc::new(Losses::default());
        let shared = Arc::clone(&losses);
        std::thread::spawn(move || {
            write_all(&records, sink, &shared);
            // Nobody waits where the agent did not close the log.
            let _ = finish.try_send(());
        });
        (Self { queue: Some(queue), losses }, AuditWriter { finished: Some(finished) })
    }

    /// Whether anything is kept, so that records are worth building.
    pub fn is_enabled(&self) -> bool {
        self.queue.is_some()
    }

    /// Records a decision made just then.
    pub fn record(&self, record: Record) {
        self.record_at(SystemTime::now(), record);
    }

    /// Records a decision made at `time`.
    pub fn record_at(&self, time: SystemTime, record: Record) {
        if let Some(queue) = &self.queue
            && queue.try_send((time, record)).is_err()
        {
            self.losses.queue.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts events that the kernel could not hand over.
    pub fn kernel_lost(&self, count: u64) {
        self.losses.kernel.fetch_add(count, Ordering::Relaxed);
    }
}

impl AuditWriter {
    /// Waits until everything recorded is written, for a bounded time. Every [`AuditLog`] must be
    /// dropped before.
    pub fn close(self) {
        if let Some(finished) = self.finished
            && finished.recv_timeout(CLOSE_PATIENCE).is_err()
        {
            tracing::warn!("the audit log's sink does not take the last records");
        }
    }
}

fn write_all(
    records: &Receiver<(SystemTime, Record)>,
    mut sink: Box<dyn Write + Send>,
    losses: &Losses,
) {
    let mut batch = Vec::with_capacity(BATCH_BYTES);
    let mut broken = false;
    loop {
        let ended = match records.recv_timeout(Duration::from_secs(1)) {
            Ok((time, record)) => {
                let mut lines = encode(&mut batch, time, &record, losses);
                while batch.len() < BATCH_BYTES
                    && let Ok((time, record)) = records.try_recv()
                {
                    lines += encode(&mut batch, time, &record, losses);
                }
                lines += report_losses(&mut batch, losses);
                let outcome = sink.write_all(&batch).and_then(|()| sink.flush());
                note_outcome(outcome, lines, &mut broken, losses);
                false
            }
            Err(RecvTimeoutError::Timeout) => {
                if !broken && report_losses(&mut batch, losses) > 0 {
                    let outcome = sink.write_all(&batch).and_then(|()| sink.flush());
                    note_outcome(outcome, 0, &mut broken, losses);
                }
                false
            }
            Err(RecvTimeoutError::Disconnected) => true,
        };
        batch.clear();
        if ended {
            return;
        }
    }
}

fn note_outcome(outcome: io::Result<()>, lines: u64, broken: &mut bool, losses: &Losses) {
    match outcome {
        Ok(()) => *broken = false,
        Err(error) => {
            losses.queue.fetch_add(lines, Ordering::Relaxed);
            if !*broken {
                tracing::error!(%error, "cannot write the audit log; records are lost until it works");
            }
            *broken = true;
        }
    }
}

fn encode(batch: &mut Vec<u8>, time: SystemTime, record: &Record, losses: &Losses) -> u64 {
    let line = Line { time: clock::rfc3339(time), record };
    match json::write_line(batch, &line) {
        Ok(()) => 1,
        Err(error) => {
            tracing::error!(%error, "a record cannot be encoded");
            losses.queue.fetch_add(1, Ordering::Relaxed);
            0
        }
    }
}

fn report_losses(batch: &mut Vec<u8>, losses: &Losses) -> u64 {
    let mut lines = 0;
    for (source, counter) in [("audit", &losses.queue), ("kernel", &losses.kernel)] {
        let count = counter.swap(0, Ordering::Relaxed);
        if count > 0 {
            let record = Record::Lost(LostRecord { source, count });
            lines += encode(batch, SystemTime::now(), &record, losses);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::Sender;

    use namegate_policy::identity::Identity;

    use serde_json::{Value, json};

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Memory {
        fn lines(&self) -> Vec<Value> {
            let bytes = self.0.lock().unwrap().clone();
            let text = String::from_utf8(bytes).unwrap();
            text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
        }
    }

    fn mk_dns(name: &str) -> Record {
        Record::Dns(Box::new(DnsRecord {
            verdict: "denied",
            reason: "no-rule".to_owned(),
            endpoint: EndpointLabel {
                namespace: Some("shop".into()),
                pod: Some("checkout".into()),
                identity: Some(256),
            },
            query: Some(Query { name: name.to_owned(), kind: "A".to_owned() }),
            rcode: Some("REFUSED".to_owned()),
            addresses: vec![AnsweredAddress { address: "203.0.113.1".parse().unwrap(), ttl: 60 }],
            not_opened: Vec::new(),
            policy: None,
            policies: Vec::new(),
            resolver: Some("10.96.0.10".parse().unwrap()),
            transport: "udp",
            latency_us: 7,
        }))
    }

    #[test]
    fn a_dns_record_has_the_published_fields() {
        let memory = Memory::default();
        let (log, writer) = AuditLog::to_sink(Box::new(memory.clone()), 8);
        log.record_at(SystemTime::UNIX_EPOCH, mk_dns("api.example.com"));
        drop(log);
        writer.close();
        assert_eq!(
            memory.lines(),
            [json!({
                "time": "1970-01-01T00:00:00.000000Z",
                "kind": "dns",
                "verdict": "denied",
                "reason": "no-rule",
                "endpoint": {"namespace": "shop", "pod": "checkout", "identity": 256},
                "query": {"name": "api.example.com", "type": "A"},
                "rcode": "REFUSED",
                "addresses": [{"address": "203.0.113.1", "ttl": 60}],
                "policy": null,
                "resolver": "10.96.0.10",
                "transport": "udp",
                "latency_us": 7,
            })]
        );
    }

    #[test]
    fn a_flow_record_has_the_published_fields() {
        let memory = Memory::default();
        let (log, writer) = AuditLog::to_sink(Box::new(memory.clone()), 8);
        let policy = PolicyLabel {
            policy_kind: namegate_policy::rule::PolicyKind::EgressPolicy,
            namespace: Some("shop".into()),
            name: "checkout-apis".into(),
            rule: Some("payments".into()),
        };
        let record = FlowRecord {
            verdict: "forwarded",
            reason: "judged",
            direction: "egress",
            protocol: "tcp".to_owned(),
            endpoint: EndpointLabel::default(),
            source: Peer { port: 40_000, ..Peer::default() },
            destination: Peer {
                address: Some("203.0.113.1".parse().unwrap()),
                port: 443,
                identity: Some(4),
                entity: entity(Identity::WORLD),
                names: vec!["api.example.com".to_owned()],
                ..Peer::default()
            },
            policy: Some(policy),
            policies: Vec::new(),
        };
        log.record(Record::Flow(Box::new(record)));
        drop(log);
        writer.close();
        let line = &memory.lines()[0];
        assert_eq!(line["kind"], "flow");
        assert_eq!(
            line["destination"],
            json!({
                "address": "203.0.113.1", "port": 443, "namespace": null, "pod": null,
                "identity": 4, "entity": "world", "names": ["api.example.com"],
            })
        );
        assert_eq!(
            line["policy"],
            json!({
                "kind": "EgressPolicy", "namespace": "shop", "name": "checkout-apis",
                "rule": "payments",
            })
        );
    }

    #[test]
    fn every_line_parses_whatever_the_name() {
        let memory = Memory::default();
        let (log, writer) = AuditLog::to_sink(Box::new(memory.clone()), 4_096);
        for code in (0..0x3000).chain(0x1_f600..0x1_f610) {
            if let Some(character) = char::from_u32(code) {
                log.record(mk_dns(&format!("a{character}\"}}\n{{\\")));
            }
            if code % 1_000 == 0 {
                // Lets the writer keep up: what is lost is the matter of another test.
                while memory.0.lock().unwrap().is_empty() {
                    std::thread::yield_now();
                }
            }
        }
        drop(log);
        writer.close();
        for line in memory.lines() {
            assert!(line["kind"] == "dns" || line["kind"] == "lost");
        }
    }

    /// A sink that takes nothing until told.
    struct Gate(Receiver<()>, Memory);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_slow_sink_stalls_nobody_and_losses_are_told() {
        let memory = Memory::default();
        let (open, gate): (Sender<()>, _) = std::sync::mpsc::channel();
        let (log, writer) = AuditLog::to_sink(Box::new(Gate(gate, memory.clone())), 4);
        for _ in 0..100 {
            log.record(mk_dns("slow.example"));
        }
        log.kernel_lost(3);
        drop(open);
        log.record(mk_dns("last.example"));
        drop(log);
        writer.close();
        let lines = memory.lines();
        let told = |source: &str| -> u64 {
            let of = |l: &&Value| l["kind"] == "lost" && l["source"] == source;
            lines.iter().filter(of).filter_map(|l| l["count"].as_u64()).sum()
        };
        let written = u64::try_from(lines.iter().filter(|l| l["kind"] == "dns").count()).unwrap();
        assert_eq!(told("kernel"), 3);
        assert!(written >= 4, "{written}");
        assert_eq!(written + told("audit"), 101, "nothing is lost in silence");
    }

    #[test]
    fn a_sink_that_cannot_be_opened_is_named() {
        let error =
            AuditLog::open(Some(Path::new("/proc/no/such/file"))).expect_err("no such place");
        assert!(error.to_string().contains("/proc/no/such/file"));
    }
}
