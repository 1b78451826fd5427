//! From the kernel program's events to the audit log, on a thread of its own.

use std::io::{self, PipeReader, PipeWriter};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use namegate_egress_bpf::datapath::Events;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::audit::AuditLog;

/// Events that are handed on together.
const TURN: usize = 256;

/// How long events gather before they are read: the kernel wakes whoever waits for one, and waking is
/// dearer than reading.
const NAP: Duration = Duration::from_millis(10);

/// Events of one round after which the next begins at once: the buffer holds ten thousand, and a nap at
/// several times this pace would fill it.
const BUSY: usize = 2_048;

/// The thread that reads events. It ends with this: two agents that read share the events out
/// between them.
#[derive(Debug)]
pub struct Follower {
    /// Closed, it ends the thread. Nothing is ever written.
    open: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.open.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that read the kernel's events panicked");
        }
    }
}

/// Starts to read events and to hand them on.
pub fn follow(events: Events, log: AuditLog) -> io::Result<Follower> {
    let (ended, open) = io::pipe()?;
    let thread = thread::Builder::new()
        .name("namegate-events".into())
        .spawn(move || work(events, &log, &ended))?;
    Ok(Follower { open: Some(open), thread: Some(thread) })
}

fn work(mut events: Events, log: &AuditLog, ended: &PipeReader) {
    loop {
        let mut waited = [PollFd::new(&events, PollFlags::IN), PollFd::new(ended, PollFlags::IN)];
        match poll(&mut waited, None) {
            Ok(_) if !waited[1].revents().is_empty() => {
                drain(&mut events, log);
                return;
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "no more flow records: the kernel's events cannot be read");
                return;
            }
        }
        if drain(&mut events, log) < BUSY {
            thread::park_timeout(NAP);
        }
    }
}

/// Hands on what there is, and says how many events that was.
fn drain(events: &mut Events, log: &AuditLog) -> usize {
    let mut taken = 0;
    loop {
        let turn: Vec<_> = std::iter::from_fn(|| events.next_event()).take(TURN).collect();
        let count = turn.len();
        taken += count;
        log.flows(turn);
        if count < TURN {
            return taken;
        }
    }
}
