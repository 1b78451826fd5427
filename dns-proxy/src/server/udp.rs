//! The UDP worker: one task for one listening address and all its queries.
//!
//! Each turn it first ends queries whose answers have arrived, then takes in a batch of new ones. A
//! learner that is ready at once costs no task; one that is not gets a task, and the worker goes on.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use namegate_policy::time::Timestamp;
use socket2::SockRef;
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use super::Slot;
use crate::clock;
use crate::exchange::{Admission, Arrival, Ask, Conclusion, Core, Resolution};
use crate::record::Transport;
use crate::resolve::exchanges::{Done, Outcome};
use crate::resolve::udp::UdpUpstream;

/// Queries taken in before answers get their turn.
const BATCH: usize = 64;
/// Longer messages are no queries that anyone sends; what is cut off makes them malformed.
const QUERY_MAX: usize = 2048;

/// Starts the worker of `listener`.
pub(super) fn spawn(slot: Slot, listener: UdpSocket) -> JoinHandle<()> {
    let mut stop = slot.stop.clone();
    let mut worker = Worker {
        exchanges: UdpUpstream::new(Arc::clone(&slot.core), Arc::clone(&slot.servers)),
        slot,
        listener: Arc::new(listener),
        buffer: vec![0; QUERY_MAX].into_boxed_slice(),
        done: Vec::new(),
        is_stopping: false,
    };
    let thread = worker.slot.worker.clone();
    thread.spawn(async move {
        let mut stopped = pin!(stop.wait_for(|stop| *stop));
        poll_fn(move |cx| {
            if !worker.is_stopping && stopped.as_mut().poll(cx).is_ready() {
                worker.is_stopping = true;
            }
            worker.turn(cx)
        })
        .await;
    })
}

struct Worker {
    listener: Arc<UdpSocket>,
    exchanges: UdpUpstream,
    buffer: Box<[u8]>,
    done: Vec<Done>,
    is_stopping: bool,
    // Last: who waits for the slot to drain finds the port free.
    slot: Slot,
}

impl Worker {
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = clock::now();
        if !self.is_stopping {
            self.take_queries(cx, now);
        }
        let mut done = std::mem::take(&mut self.done);
        self.exchanges.poll(cx, now, &mut done);
        for done in done.drain(..) {
            self.conclude(cx, done, now);
        }
        self.done = done;
        if self.is_stopping && self.exchanges.is_empty() {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn take_queries(&mut self, cx: &mut Context<'_>, now: Timestamp) {
        for _ in 0..BATCH {
            let mut buffer = ReadBuf::new(&mut self.buffer);
            let source = match self.listener.poll_recv_from(cx, &mut buffer) {
                Poll::Pending => return,
                Poll::Ready(Ok(source)) => source,
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "receiving failed");
                    continue;
                }
            };
            let admission = self.slot.core.admit(&Arrival {
                message: buffer.filled(),
                source,
                transport: Transport::Udp,
                resolver: self.slot.resolver,
                now,
            });
            match admission {
                Admission::Drop => {}
                Admission::Reply(reply) => send(&self.slot.core, &self.listener, &reply, source),
                Admission::Cached(ask, message) => {
                    self.release(cx, *ask, Resolution::Cache(message), now);
                }
                Admission::Resolve(ask) => {
                    if let Err(done) = self.exchanges.ask(*ask, now) {
                        self.done.push(done);
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
    }

    fn conclude(&self, cx: &mut Context<'_>, done: Done, now: Timestamp) {
        let mut asks = done.asks;
        match done.outcome {
            Outcome::Answered(message) => {
                let last = asks.pop();
                for ask in asks {
                    self.release(cx, ask, Resolution::Upstream(message.clone()), now);
                }
                if let Some(ask) = last {
                    self.release(cx, ask, Resolution::Upstream(message), now);
                }
            }
            Outcome::Failed(failure) => {
                for ask in asks {
                    self.release(cx, ask, Resolution::Failed(failure), now);
                }
            }
            Outcome::NeedsTcp(query) => self.ask_whole(asks, query),
        }
    }

    /// Sends the answer to one pod, when the learner is done with it.
    fn release(&self, cx: &mut Context<'_>, ask: Ask, outcome: Resolution, now: Timestamp) {
        let source = ask.source;
        let core = &self.slot.core;
        match core.conclude(ask, outcome, now) {
            Conclusion::Drop => {}
            Conclusion::Reply(reply) => send(core, &self.listener, &reply, source),
            Conclusion::Learn(mut learning, lecture) => match learning.as_mut().poll(cx) {
                Poll::Ready(learned) => {
                    let reply = lecture.finish(core, learned, clock::now());
                    send(core, &self.listener, &reply, source);
                }
                Poll::Pending => {
                    let slot = self.slot.clone();
                    let listener = Arc::clone(&self.listener);
                    self.slot.tasks.spawn(async move {
                        let learned = learning.await;
                        let reply = lecture.finish(&slot.core, learned, clock::now());
                        send(&slot.core, &listener, &reply, source);
                    });
                }
            },
        }
    }

    /// Asks a query again over TCP, for all who wait for it.
    fn ask_whole(&self, asks: Vec<Ask>, query: Vec<u8>) {
        let Some(question) = asks.first().map(|ask| ask.query.question.clone()) else {
            return;
        };
        let slot = self.slot.clone();
        let listener = Arc::clone(&self.listener);
        self.slot.tasks.spawn(async move {
            let outcome = match slot.upstream.ask(query, question).await {
                Ok(message) => Resolution::Upstream(message),
                Err(failure) => Resolution::Failed(failure),
            };
            for ask in asks {
                let source = ask.source;
                let now = clock::now();
                let reply = match slot.core.conclude(ask, outcome.clone(), now) {
                    Conclusion::Drop => continue,
                    Conclusion::Reply(reply) => reply,
                    Conclusion::Learn(learning, lecture) => {
                        lecture.finish(&slot.core, learning.await, clock::now())
                    }
                };
                send(&slot.core, &listener, &reply, source);
            }
        });
    }
}

/// Sends a reply; one that finds no room is lost like a lost packet, and counted.
fn send(core: &Core, listener: &UdpSocket, reply: &[u8], source: SocketAddr) {
    if let Err(error) = SockRef::from(listener).send_to(reply, &source.into()) {
        core.counters.dropped_send.increment();
        tracing::debug!(%source, %error, "reply not sent");
    }
}
