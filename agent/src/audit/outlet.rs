//! The way to a sink: a bounded queue, and the thread that alone waits for the sink.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use super::counts::{Counts, SinkCounts, Told};
use super::sink::{Batch, Sink};
use super::{Entry, LossSource, LostRecord, Record};

/// Records that wait for a sink at most.
pub(super) const OUTLET_MAX: usize = 4_096;

/// Octets that are gathered before they are written.
const BATCH_BYTES: usize = 64 << 10;

/// How long a silent log waits before it tells of losses.
const TELL: Duration = Duration::from_secs(1);

/// Where records for a sink go.
#[derive(Debug)]
pub(super) struct Outlet {
    queue: SyncSender<Arc<Entry>>,
    place: usize,
}

impl Outlet {
    /// Hands a record to the sink's thread; one that does not fit is lost and counted.
    pub(super) fn put(&self, entry: &Arc<Entry>, counts: &Counts) {
        if self.queue.try_send(Arc::clone(entry)).is_err()
            && let Some(sink) = counts.sink(self.place)
        {
            sink.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Hands over a record that is not lost where it does not fit; says whether it did.
    pub(super) fn offer(&self, entry: &Arc<Entry>) -> bool {
        self.queue.try_send(Arc::clone(entry)).is_ok()
    }
}

/// Starts the thread of `sink`, which counts in `place`.
pub(super) fn start(
    sink: Box<dyn Sink>,
    place: usize,
    counts: Arc<Counts>,
    finish: SyncSender<()>,
) -> Outlet {
    let (queue, entries) = sync_channel(OUTLET_MAX);
    std::thread::spawn(move || {
        Writer { sink, place, counts, told: Told::default(), is_broken: false }.run(&entries);
        let _ = finish.try_send(());
    });
    Outlet { queue, place }
}

struct Writer {
    sink: Box<dyn Sink>,
    place: usize,
    counts: Arc<Counts>,
    told: Told,
    is_broken: bool,
}

impl Writer {
    fn run(mut self, entries: &Receiver<Arc<Entry>>) {
        let mut batch = Batch::default();
        loop {
            let outcome = entries.recv_timeout(TELL);
            if let Ok(entry) = &outcome {
                self.encode(&mut batch, entry);
                while batch.text.len() < BATCH_BYTES
                    && let Ok(entry) = entries.try_recv()
                {
                    self.encode(&mut batch, &entry);
                }
                let lost = self.write(&batch);
                let count = |of: fn(&SinkCounts) -> &_| self.counts.sink(self.place).map(of);
                count_up(count(|sink| &sink.lost), lost);
                count_up(count(|sink| &sink.written), batch.len() - lost);
                batch.clear();
            }
            self.tell_losses(&mut batch);
            if matches!(outcome, Err(RecvTimeoutError::Disconnected)) {
                return;
            }
        }
    }

    fn encode(&self, batch: &mut Batch, entry: &Entry) {
        match entry.write_line(&mut batch.text) {
            Ok(()) => batch.ends.push((batch.text.len(), entry.record.is_refusal())),
            Err(error) => {
                tracing::error!(%error, "a record cannot be encoded");
                count_up(self.counts.sink(self.place).map(|sink| &sink.lost), 1);
            }
        }
    }

    /// Writes the batch and says how many lines of it were lost.
    fn write(&mut self, batch: &Batch) -> u64 {
        match self.sink.write(batch) {
            Ok(()) => {
                if std::mem::take(&mut self.is_broken) {
                    tracing::info!("the audit log works again");
                }
                0
            }
            Err(unwritten) => {
                if !self.is_broken {
                    tracing::error!(error = %unwritten.source, "cannot write the audit log; records are lost until it works");
                }
                self.is_broken = true;
                unwritten.lines.min(batch.len())
            }
        }
    }

    /// Says what is missing, each count in a write of its own, so that it is known whether it was
    /// heard.
    fn tell_losses(&mut self, batch: &mut Batch) {
        let mut told = std::mem::take(&mut self.told);
        told.tell(self.counts.losses(Some(self.place)), |source, count| {
            self.encode(batch, &lost(source, count));
            let is_heard = self.write(batch) == 0;
            batch.clear();
            is_heard
        });
        self.told = told;
    }
}

fn count_up(counter: Option<&std::sync::atomic::AtomicU64>, count: u64) {
    if let Some(counter) = counter {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// The record of a loss.
pub(super) fn lost(source: LossSource, count: u64) -> Entry {
    Entry { time: SystemTime::now(), record: Record::Lost(LostRecord { source, count }) }
}
