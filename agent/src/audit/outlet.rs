//! The way to a sink: a bounded queue, and the thread that alone waits for the sink.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel};
use std::time::{Duration, SystemTime};

use super::counts::{Counts, SinkCounts, Told};
use super::sink::{Batch, Sink};
use super::{Entry, LossSource, LostRecord, Record, call_thread};

/// Records that wait for a sink at most.
pub(super) const OUTLET_MAX: usize = 4_096;

/// Octets that are gathered before they are written.
const BATCH_BYTES: usize = 64 << 10;

/// How long a silent log waits before it tells of losses.
const TELL: Duration = Duration::from_secs(1);

/// Where records for a sink go.
#[derive(Debug)]
pub(super) struct Outlet {
    queue: Sender<Vec<Arc<Entry>>>,
    /// How many records wait.
    waiting: Arc<AtomicUsize>,
    place: usize,
}

impl Outlet {
    /// Hands records to the sink's thread; those that do not fit are lost and counted.
    pub(super) fn put(&self, entries: &[Arc<Entry>], counts: &Counts) {
        let taken = self.hand_over(entries);
        let sink = counts.sink(self.place);
        count_up(sink.map(|sink| &sink.lost), (entries.len() - taken) as u64);
    }

    /// Hands over a record that is not lost where it does not fit; says whether it did.
    pub(super) fn offer(&self, entry: &Arc<Entry>) -> bool {
        self.hand_over(std::slice::from_ref(entry)) == 1
    }

    /// Hands over as many as fit, the first ones, and says how many those are. Nobody but the hub adds
    /// to what waits.
    fn hand_over(&self, entries: &[Arc<Entry>]) -> usize {
        let room = OUTLET_MAX.saturating_sub(self.waiting.load(Ordering::Acquire));
        let taken = entries.len().min(room);
        if taken == 0 {
            return 0;
        }
        self.waiting.fetch_add(taken, Ordering::AcqRel);
        if self.queue.send(entries[..taken].to_vec()).is_err() {
            self.waiting.fetch_sub(taken, Ordering::AcqRel);
            return 0;
        }
        taken
    }
}

/// Starts the thread of `sink`, which counts in `place`.
pub(super) fn start(
    sink: Box<dyn Sink>,
    place: usize,
    counts: Arc<Counts>,
    finish: SyncSender<()>,
) -> Outlet {
    let (queue, batches) = channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    let writer = Writer {
        sink,
        place,
        waiting: Arc::clone(&waiting),
        counts,
        told: Told::default(),
        is_broken: false,
    };
    std::thread::spawn(move || {
        call_thread(c"namegate-sink");
        writer.run(&batches);
        let _ = finish.try_send(());
    });
    Outlet { queue, waiting, place }
}

struct Writer {
    sink: Box<dyn Sink>,
    place: usize,
    waiting: Arc<AtomicUsize>,
    counts: Arc<Counts>,
    told: Told,
    is_broken: bool,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Vec<Arc<Entry>>>) {
        let mut batch = Batch::default();
        loop {
            let outcome = queue.recv_timeout(TELL);
            for entry in outcome.iter().flatten() {
                self.encode(&mut batch, entry);
                self.waiting.fetch_sub(1, Ordering::AcqRel);
                if batch.text.len() >= BATCH_BYTES {
                    self.put_out(&mut batch);
                }
            }
            self.put_out(&mut batch);
            self.tell_losses(&mut batch);
            if matches!(outcome, Err(RecvTimeoutError::Disconnected)) {
                return;
            }
        }
    }

    /// Writes what was gathered, if anything was, and counts it.
    fn put_out(&mut self, batch: &mut Batch) {
        if batch.len() == 0 {
            return;
        }
        let lost = self.write(batch);
        let count = |of: fn(&SinkCounts) -> &_| self.counts.sink(self.place).map(of);
        count_up(count(|sink| &sink.lost), lost);
        count_up(count(|sink| &sink.written), batch.len() - lost);
        batch.clear();
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
