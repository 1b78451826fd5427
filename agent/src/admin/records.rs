//! `GET /v1/records`: the latest decisions and those to come, each as one line of the audit log.
//!
//! The latest are kept in a ring, whatever the log's sinks are given. Whoever follows reads the ring
//! at its own pace: one that falls behind is told how many it missed, and holds up nobody.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream;
use tokio::sync::watch;

use super::sieve::{Sieve, Wanted};
use super::{Context, Failure};
use crate::audit::{Entry, Following, Heard, Listener, LossSource, LostRecord, Record};

/// Records that are kept.
pub const KEPT: usize = 4_096;

/// Records that a reader is handed at once.
const BATCH: usize = 256;

/// The latest records.
#[derive(Clone, Debug)]
pub struct Recent {
    ring: Arc<Mutex<Ring>>,
    grown: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    /// The number of the oldest that is kept.
    first: u64,
    entries: VecDeque<Arc<Entry>>,
}

/// Where one reader is.
struct Reading {
    recent: Recent,
    grown: watch::Receiver<u64>,
    next: u64,
    follows: bool,
    since: Option<SystemTime>,
    sieve: Sieve,
    /// While it is held, what the log has no room for is heard too.
    _following: Option<Following>,
}

impl Recent {
    /// None yet.
    pub fn new() -> Self {
        Self { ring: Arc::default(), grown: watch::Sender::new(0) }
    }

    /// Keeps what `listener` hears, until its log ends.
    pub async fn keep(self, mut listener: Listener) {
        while let Some(heard) = listener.next().await {
            let entry = match heard {
                Heard::Entry(entry) => entry,
                Heard::Missed(count) => Arc::new(lost(count)),
            };
            self.push(entry);
        }
    }

    fn push(&self, entry: Arc<Entry>) {
        let mut ring = self.ring();
        if ring.entries.len() == KEPT {
            ring.entries.pop_front();
            ring.first += 1;
        }
        ring.entries.push_back(entry);
        let end = ring.end();
        drop(ring);
        self.grown.send_replace(end);
    }

    /// Some records from the one numbered `next` on, how many before them are gone, and the number of
    /// the one after.
    fn batch(&self, next: u64) -> (Vec<Arc<Entry>>, u64, u64) {
        let ring = self.ring();
        let from = next.max(ring.first);
        let skipped = usize::try_from(from - ring.first).unwrap_or(usize::MAX);
        let batch: Vec<Arc<Entry>> =
            ring.entries.iter().skip(skipped).take(BATCH).map(Arc::clone).collect();
        let after = from + batch.len() as u64;
        (batch, from - next, after)
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Recent {
    fn default() -> Self {
        Self::new()
    }
}

impl Ring {
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }
}

impl Reading {
    /// The next lines; `None` at the end, which a follower does not see.
    async fn lines(&mut self) -> Option<Bytes> {
        loop {
            self.grown.mark_unchanged();
            let (batch, missed, after) = self.recent.batch(self.next);
            self.next = after;
            let mut lines = Vec::new();
            if missed > 0 {
                write(&lost(missed), &mut lines);
            }
            for entry in &batch {
                let is_recent = self.since.is_none_or(|since| entry.time >= since);
                if is_recent && self.sieve.lets_through(&entry.record) {
                    write(entry, &mut lines);
                }
            }
            if !lines.is_empty() {
                return Some(lines.into());
            }
            if batch.is_empty() && (!self.follows || self.grown.changed().await.is_err()) {
                return None;
            }
        }
    }
}

pub(super) fn routes() -> Router<Context> {
    Router::new().route("/records", get(records))
}

async fn records(
    State(context): State<Context>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Failure> {
    let since =
        wanted.since_s.and_then(|age| SystemTime::now().checked_sub(Duration::from_secs(age)));
    let ring = context.recent.ring();
    // Whoever follows without saying from when wants what comes.
    let next = if wanted.follow && since.is_none() { ring.end() } else { ring.first };
    drop(ring);
    let reading = Reading {
        grown: context.recent.grown.subscribe(),
        recent: context.recent,
        next,
        follows: wanted.follow,
        since,
        sieve: Sieve::new(&wanted)?,
        _following: wanted.follow.then(|| context.log.follow()),
    };
    let lines = stream::unfold(reading, |mut reading| async {
        let lines = reading.lines().await?;
        Some((Ok::<_, Infallible>(lines), reading))
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

fn lost(count: u64) -> Entry {
    let record = Record::Lost(LostRecord { source: LossSource::Sink, count });
    Entry { time: SystemTime::now(), record }
}

fn write(entry: &Entry, lines: &mut Vec<u8>) {
    if let Err(error) = entry.write_line(lines) {
        tracing::error!(%error, "a record cannot be written for a reader");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_reading(recent: &Recent, follows: bool) -> Reading {
        Reading {
            recent: recent.clone(),
            grown: recent.grown.subscribe(),
            next: 0,
            follows,
            since: None,
            sieve: Sieve::default(),
            _following: None,
        }
    }

    /// The counts of the lines: each record of the tests is told apart by it.
    async fn counts(reading: &mut Reading) -> Vec<u64> {
        let lines = reading.lines().await.unwrap();
        let lines = std::str::from_utf8(&lines).unwrap().lines();
        let count = |line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["count"].as_u64().unwrap()
        };
        lines.map(count).collect()
    }

    #[tokio::test]
    async fn a_reader_that_falls_behind_is_told_how_many_it_missed() {
        let recent = Recent::new();
        let mut slow = mk_reading(&recent, true);
        let all = KEPT as u64 + 10;
        for count in 0..all {
            recent.push(Arc::new(lost(1_000_000 + count)));
        }
        let first = counts(&mut slow).await;
        assert_eq!(first[..2], [10, 1_000_010], "ten are gone, then the oldest that is kept");
        assert_eq!(recent.ring().entries.len(), KEPT, "bounded");
    }

    #[tokio::test]
    async fn a_follower_hears_what_comes_and_others_end() {
        let recent = Recent::new();
        recent.push(Arc::new(lost(1)));
        let mut once = mk_reading(&recent, false);
        assert_eq!(counts(&mut once).await, [1]);
        assert!(once.lines().await.is_none());

        let mut follower = mk_reading(&recent, true);
        assert_eq!(counts(&mut follower).await, [1]);
        let push = async { recent.push(Arc::new(lost(2))) };
        let (heard, ()) = tokio::join!(counts(&mut follower), push);
        assert_eq!(heard, [2]);
    }
}
