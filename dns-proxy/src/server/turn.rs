//! The turns of a UDP worker: what arrived upstream first, then what pods ask.
//!
//! One clock reading serves all that a turn finds. Answers of one turn are learned together: one
//! call, one batch of map writes, and only then is any of them sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use namegate_policy::time::Timestamp;
use nix::sys::socket::SockaddrStorage;
use tokio::runtime::Handle;

use super::Slot;
use super::fair::{FairQueue, Waiting};
use super::join::Join;
use super::worker::{Desk, Service};
use crate::batch::{BATCH, Inbox, Outbox};
use crate::clock;
use crate::exchange::{Admission, Arrival, Ask, Conclusion, Core, Lecture, Resolution};
use crate::learner::{LearnError, Learned, Learning, Lesson};
use crate::poller::{Events, Poller, Ready};
use crate::record::Transport;
use crate::resolve::exchanges::{Asked, Done, Exchanges, Outcome, Reach};
use crate::resolve::sockets::Sockets;
use crate::resolve::udp::UdpUpstream;

/// Longer messages are no queries that anyone sends; what is cut off makes them malformed.
const QUERY_MAX: usize = 1024;
/// Queries worked on before answers get their turn.
const WORK: usize = BATCH;
/// Batches received from one line before work gets its turn: more than is worked on, so that what
/// is too much is shed here and not in the buffer that all clients share.
const RECEIVE: usize = 8;

/// Everything that one worker serves.
pub(super) struct Lines {
    core: Arc<Core>,
    poller: Poller,
    tasks: Handle,
    party: Party,
    lines: BTreeMap<u16, Line>,
    /// One for IPv4 and one for IPv6.
    inboxes: [Inbox<SockaddrStorage>; 2],
    queue: FairQueue,
    readable: BTreeSet<u16>,
    done: Vec<Done>,
    lessons: Lessons,
}

/// The workers, of whom this one has a number.
pub(super) struct Party {
    pub(super) number: usize,
    pub(super) desks: Arc<[Desk]>,
}

/// One listening address.
struct Line {
    listener: Arc<UdpSocket>,
    is_ipv6: bool,
    exchanges: UdpUpstream,
    outbox: Outbox,
    is_stopping: bool,
    // Last: who waits for the slot to drain finds the port free.
    slot: Slot,
}

/// Addresses that are taught together: for so many more than its own an answer waits at most.
const TOGETHER: usize = 256;

/// Answers that are taught together, and where each goes.
#[derive(Default)]
struct Lessons {
    lessons: Vec<Lesson>,
    lectures: Vec<(u16, SocketAddr, Box<Lecture>)>,
}

impl Lessons {
    /// Takes the first of them: all, unless they have more than [`TOGETHER`] addresses.
    fn take(&mut self) -> Self {
        let count = together(self.lessons.iter().map(|lesson| lesson.addresses.len()));
        if count == self.lessons.len() {
            // The next ones are about as many, and find their room.
            let next =
                Self { lessons: Vec::with_capacity(count), lectures: Vec::with_capacity(count) };
            return std::mem::replace(self, next);
        }
        Self {
            lessons: self.lessons.drain(..count).collect(),
            lectures: self.lectures.drain(..count).collect(),
        }
    }
}

/// How many lessons with so many addresses are taught together; one that has too many goes alone.
fn together(addresses: impl Iterator<Item = usize>) -> usize {
    let sums = addresses.scan(0, |sum, more| {
        *sum += more;
        Some(*sum)
    });
    sums.enumerate().take_while(|(place, sum)| *place == 0 || *sum <= TOGETHER).count()
}

impl Lines {
    pub(super) fn new(core: Arc<Core>, poller: Poller, tasks: Handle, party: Party) -> Self {
        Self {
            core,
            poller,
            tasks,
            party,
            lines: BTreeMap::new(),
            inboxes: [Inbox::new(QUERY_MAX), Inbox::new(QUERY_MAX)],
            queue: FairQueue::default(),
            readable: BTreeSet::new(),
            done: Vec::new(),
            lessons: Lessons::default(),
        }
    }

    pub(super) fn add(&mut self, service: Service) {
        let Service { line: number, listener, under_way, slot } = service;
        if let Err(error) = self.poller.add(&listener, Ready::Listener(number)) {
            tracing::error!(%error, "a thread that serves UDP cannot wait for a socket");
        }
        let sockets = Sockets::new(self.poller.clone(), number);
        let (core, servers) = (Arc::clone(&self.core), Arc::clone(&slot.servers));
        let exchanges = Exchanges::new(core, servers, under_way, self.party.number);
        let line = Line {
            is_ipv6: listener.local_addr().is_ok_and(|address| address.is_ipv6()),
            listener: Arc::new(listener),
            exchanges: UdpUpstream::new(exchanges, sockets),
            outbox: Outbox::default(),
            is_stopping: false,
            slot,
        };
        self.lines.insert(number, line);
    }

    /// Receives no more on a line than what has come; its replies still leave from its port.
    pub(super) fn stop(&mut self, number: u16) {
        self.receive(number);
        if let Some(line) = self.lines.get_mut(&number) {
            line.is_stopping = true;
            if let Err(error) = self.poller.remove(&*line.listener) {
                tracing::debug!(%error, "a socket was not waited for");
            }
        }
    }

    /// For how long nothing has to be done unless something arrives.
    pub(super) fn patience(&mut self) -> Option<Duration> {
        let now = clock::now();
        let queued = self.queue.patience(now);
        if queued == Some(Duration::ZERO) {
            return queued;
        }
        let deadlines = self.lines.values_mut().filter_map(|line| line.exchanges.next_deadline());
        let waits = deadlines.map(|deadline| deadline.since(now)).chain(queued);
        // Rounded up to what the kernel waits in, so that the deadline has passed then.
        waits.min().map(|wait| wait + Duration::from_millis(1))
    }

    /// Does all that is ready, and says how many messages there were.
    pub(super) fn turn(&mut self, events: &Events, now: Timestamp) -> usize {
        let mut messages = 0;
        for ready in events.ready() {
            match ready {
                Ready::Woken => {}
                Ready::Listener(number) => {
                    self.readable.insert(number);
                }
                Ready::Upstream(number, socket) => {
                    if let Some(line) = self.lines.get_mut(&number) {
                        messages += line.exchanges.receive(socket, now, &mut self.done);
                        self.conclude(number, now);
                    }
                }
            }
        }
        // Before queries are taken in: whoever waits for an answer waits no longer than it takes.
        self.teach();
        while let Some(number) = self.readable.pop_first() {
            messages += self.receive(number);
        }
        for _ in 0..WORK {
            let Some(waiting) = self.queue.pop(now) else { break };
            self.admit(waiting, now);
        }
        let numbers: Vec<u16> = self.lines.keys().copied().collect();
        for number in numbers {
            if let Some(line) = self.lines.get_mut(&number) {
                line.exchanges.turn(now, &mut self.done);
                self.conclude(number, now);
            }
        }
        self.teach();
        let queue = &self.queue;
        self.lines.retain(|number, line| {
            !line.is_stopping || !line.exchanges.is_empty() || queue.holds(*number)
        });
        messages
    }

    fn flush(&mut self) {
        for line in self.lines.values_mut() {
            line.flush(&self.core);
        }
    }

    /// Empties the buffer of a listening socket into the queue, and says how many messages it held.
    fn receive(&mut self, number: u16) -> usize {
        let Some(line) = self.lines.get(&number).filter(|line| !line.is_stopping) else {
            return 0;
        };
        let mut messages = 0;
        let inbox = &mut self.inboxes[usize::from(line.is_ipv6)];
        for _ in 0..RECEIVE {
            if let Err(error) = inbox.receive(&*line.listener) {
                tracing::debug!(%error, "receiving failed");
                break;
            }
            messages += inbox.count();
            let mut shed = 0;
            for (message, source) in inbox.datagrams() {
                if let Some(source) = source {
                    shed += u64::from(self.queue.push(number, source, message));
                }
            }
            if shed > 0 {
                self.core.counters.dropped_client_queue.add(shed);
            }
            if !inbox.is_full() {
                break;
            }
        }
        messages
    }

    fn admit(&mut self, waiting: Waiting, now: Timestamp) {
        let Waiting { line: number, source, message } = waiting;
        let Some(line) = self.lines.get_mut(&number) else {
            return;
        };
        let admission = self.core.admit(&Arrival {
            message: &message,
            source,
            transport: Transport::Udp,
            resolver: line.slot.resolver,
            now,
        });
        self.queue.recycle(message);
        match admission {
            Admission::Drop => {}
            Admission::Reply(reply) => line.outbox.push(&reply, Some(source)),
            Admission::Cached(ask, message) => {
                line.release(*ask, Resolution::Cache(message), now, number, &mut self.lessons);
            }
            Admission::Resolve(ask) => self.resolve(number, ask, Reach::All, now),
        }
    }

    /// Takes over a query from a worker that found an equal one here. Where that one has come to its
    /// end meanwhile, this one is asked.
    pub(super) fn join(&mut self, join: Join, now: Timestamp) {
        let number = join.line;
        if self.lines.contains_key(&number)
            && let Some(ask) = join.take()
        {
            self.resolve(number, ask, Reach::Own, now);
        }
    }

    fn resolve(&mut self, number: u16, ask: Box<Ask>, reach: Reach, now: Timestamp) {
        let Some(line) = self.lines.get_mut(&number) else {
            return;
        };
        let client = ask.source.ip();
        match line.exchanges.ask(ask, reach, now) {
            Asked::UnderWay => self.queue.begin(client, now),
            Asked::Done(done) => line.conclude(done, now, number, &mut self.lessons),
            Asked::Elsewhere(worker, ask) => {
                let listener = Arc::clone(&line.listener);
                let join = Box::new(Join::new(number, ask, listener, line.slot.clone()));
                let returned = match self.party.desks.get(worker) {
                    Some(desk) => desk.join(join).err(),
                    None => Some(join),
                };
                if let Some(ask) = returned.and_then(|join| join.take()) {
                    self.resolve(number, ask, Reach::Own, now);
                }
            }
        }
    }

    fn conclude(&mut self, number: u16, now: Timestamp) {
        if let Some(line) = self.lines.get_mut(&number) {
            for done in self.done.drain(..) {
                end_all(&mut self.queue, &done);
                line.conclude(done, now, number, &mut self.lessons);
            }
        }
    }

    /// Teaches what the turn's answers say, and sends them and whatever else waits to be sent.
    fn teach(&mut self) {
        while !self.lessons.lessons.is_empty() {
            let batch = self.lessons.take();
            self.teach_batch(batch);
            self.flush();
        }
        self.flush();
    }

    /// Teaches a batch, then lets its answers go. A learner that is not ready at once is awaited by a
    /// task, and the worker goes on.
    fn teach_batch(&mut self, Lessons { lessons, lectures }: Lessons) {
        let began = clock::now();
        let mut learning = self.core.teach(lessons);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match learning.as_mut().poll(&mut cx) {
            Poll::Ready(outcomes) => {
                let now = clock::now();
                self.core.stages.learn.note_for(now.since(began), lectures.len());
                for ((number, source, lecture), outcome) in paired(lectures, outcomes) {
                    let reply = lecture.finish(&self.core, outcome, now);
                    if let Some(line) = self.lines.get_mut(&number) {
                        line.outbox.push(&reply, Some(source));
                    }
                }
            }
            Poll::Pending => self.await_learner(learning, lectures, began),
        }
    }

    fn await_learner(
        &self,
        learning: Learning,
        lectures: Vec<(u16, SocketAddr, Box<Lecture>)>,
        began: Timestamp,
    ) {
        let held: Vec<_> = lectures
            .into_iter()
            .filter_map(|(number, source, lecture)| {
                let line = self.lines.get(&number)?;
                Some((Arc::clone(&line.listener), source, lecture, line.slot.clone()))
            })
            .collect();
        let core = Arc::clone(&self.core);
        self.tasks.spawn(async move {
            let outcomes = learning.await;
            let now = clock::now();
            core.stages.learn.note_for(now.since(began), held.len());
            for ((listener, source, lecture, _slot), outcome) in paired(held, outcomes) {
                let reply = lecture.finish(&core, outcome, now);
                send(&core, &listener, &reply, source);
            }
        });
    }
}

/// Whoever waits for a worker that ends, be it by a panic, is told so.
impl Drop for Lines {
    fn drop(&mut self) {
        let now = clock::now();
        let lectures = std::mem::take(&mut self.lessons).lectures;
        for (number, line) in &mut self.lines {
            let untaught = lectures.iter().filter(|(of, ..)| of == number);
            let asked = line.exchanges.end();
            for ask in asked.iter().chain(untaught.map(|(.., lecture)| &lecture.ask)) {
                if let Some(reply) = self.core.abandon(ask, now) {
                    line.outbox.push(&reply, Some(ask.source));
                }
            }
            line.flush(&self.core);
        }
    }
}

impl Line {
    fn conclude(&mut self, done: Done, now: Timestamp, number: u16, lessons: &mut Lessons) {
        let mut asks = done.asks;
        match done.outcome {
            Outcome::Answered(message) => {
                let last = asks.pop();
                for ask in asks {
                    let resolution = Resolution::Upstream(message.clone());
                    self.release(ask, resolution, now, number, lessons);
                }
                if let Some(ask) = last {
                    self.release(ask, Resolution::Upstream(message), now, number, lessons);
                }
            }
            Outcome::Failed(failure) => {
                for ask in asks {
                    self.release(ask, Resolution::Failed(failure), now, number, lessons);
                }
            }
            Outcome::NeedsTcp(query) => self.ask_whole(asks, query),
        }
    }

    /// Queues the answer to one pod, or what has to be learned before it may be.
    fn release(
        &mut self,
        ask: Ask,
        outcome: Resolution,
        now: Timestamp,
        number: u16,
        lessons: &mut Lessons,
    ) {
        let source = ask.source;
        match self.slot.core.conclude(ask, outcome, now) {
            Conclusion::Drop => {}
            Conclusion::Reply(reply) => self.outbox.push(&reply, Some(source)),
            Conclusion::Learn(lesson, lecture) => {
                lessons.lessons.push(lesson);
                lessons.lectures.push((number, source, lecture));
            }
        }
    }

    /// Asks a query again over TCP, for all who wait for it.
    fn ask_whole(&self, asks: Vec<Ask>, query: Vec<u8>) {
        let Some(question) = asks.first().map(|ask| ask.query.question.clone()) else {
            return;
        };
        let listener = Arc::clone(&self.listener);
        let slot = self.slot.clone();
        self.slot.tasks.spawn(async move {
            let outcome = match slot.upstream.ask(query, question).await {
                Ok(message) => Resolution::Upstream(message),
                Err(failure) => Resolution::Failed(failure),
            };
            for ask in asks {
                let source = ask.source;
                if let Some(reply) = slot.release(ask, outcome.clone()).await {
                    send(&slot.core, &listener, &reply, source);
                }
            }
            // Before the slot: who waits for it to drain finds the port free.
            drop(listener);
        });
    }

    fn flush(&mut self, core: &Core) {
        if self.outbox.is_empty() {
            return;
        }
        let sent = self.outbox.flush(&*self.listener);
        if let Some(error) = sent.error {
            let lost = u64::try_from(sent.lost).unwrap_or(u64::MAX);
            core.counters.dropped_send.add(lost);
            tracing::debug!(%error, lost, "replies not sent");
        }
    }
}

/// Lets everyone who asked a query have another in its place.
fn end_all(queue: &mut FairQueue, done: &Done) {
    for ask in &done.asks {
        queue.end(ask.source.ip());
    }
}

/// Sends a reply; one that finds no room is lost like a lost packet, and counted.
pub(super) fn send(core: &Core, listener: &UdpSocket, reply: &[u8], source: SocketAddr) {
    if let Err(error) = listener.send_to(reply, source) {
        core.counters.dropped_send.increment();
        tracing::debug!(%source, %error, "reply not sent");
    }
}

/// Each lecture with its outcome; a lesson without one was not learned.
fn paired<T>(
    lectures: Vec<T>,
    outcomes: Vec<Result<Learned, LearnError>>,
) -> impl Iterator<Item = (T, Result<Learned, LearnError>)> {
    let missing = std::iter::repeat_with(|| Err(LearnError::Stopped));
    lectures.into_iter().zip(outcomes.into_iter().chain(missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lessons_are_taught_together_up_to_a_bound() {
        let cases: [(&[usize], usize); 6] = [
            (&[], 0),
            (&[1; 64], 64),
            (&[64, 64, 64, 64, 1], 4),
            (&[TOGETHER, 1], 1),
            (&[TOGETHER + 1, 1], 1),
            (&[1, TOGETHER, 1], 1),
        ];
        for (addresses, expected) in cases {
            assert_eq!(together(addresses.iter().copied()), expected, "{addresses:?}");
        }
    }
}
