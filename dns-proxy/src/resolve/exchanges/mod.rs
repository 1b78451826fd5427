//! The queries under way to one resolver over UDP: which port and id each went out under, and what
//! counts as its answer. What happens while there is none is in [`attempts`]. Touches no socket.
//!
//! What an attacker who cannot see the traffic has to guess is 16 bits of id and a port of the
//! ephemeral range, used for a few queries and a moment (see [`crate::resolve::ports`]). Equal
//! questions share one query, of whichever worker, so that a guess has one id to hit. The first message that could be
//! such a guess ends the guessing: the query goes to TCP.

mod attempts;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use namegate_policy::time::Timestamp;

use crate::answer;
use crate::cache::Key;
use crate::exchange::{Ask, Core};
use crate::record::{DnsFailure, Rcode};
use crate::reply;
use crate::resolve::entropy::Entropy;
use crate::resolve::ports::{Issued, PortId, PortTable, Ports};
use crate::resolve::servers::{Servers, Tried};
use crate::resolve::under_way::{Leader, Question, UnderWay};
use crate::wire::{self, HEADER, Header};

/// Messages on one port that fit no query of it, not even as a guess, before all its queries go to
/// TCP.
const NOISE_MAX: u32 = 8;
/// Second queries for each that gets none: in tenths, and at most so many in a row.
const HEDGE_TENTHS: u32 = 1;
const HEDGE_BURST: u32 = 32;

/// The queries under way.
pub(crate) struct Exchanges {
    core: Arc<Core>,
    servers: Arc<Servers>,
    entropy: Entropy,
    table: PortTable,
    open: HashMap<u64, Exchange>,
    under_way: Arc<UnderWay>,
    /// This worker's number among those that share `under_way`.
    worker: usize,
    /// When attempts end; in order, as all take equally long.
    attempts: VecDeque<(Timestamp, u64, u32)>,
    /// When a second server is asked.
    hedges: BTreeSet<(Timestamp, u64)>,
    hedge_credit: u32,
    serial: u64,
    waiting: usize,
}

struct Exchange {
    asks: Vec<Ask>,
    message: Vec<u8>,
    question_end: usize,
    /// What it leads; nothing where another query has the question.
    leads: Option<Question>,
    sent: Vec<Sent>,
    attempts: u32,
    tried: Tried,
    is_reachable: bool,
    /// A server's failure, for when no other does better.
    fallback: Option<Vec<u8>>,
}

#[derive(Clone, Copy)]
struct Sent {
    port: PortId,
    id: u16,
    at: Timestamp,
}

/// What became of a query that was to be asked.
pub(crate) enum Asked {
    /// It is under way.
    UnderWay,
    /// This worker asks the same: the query is to join that one, where [`Reach`] lets it.
    Elsewhere(usize, Box<Ask>),
    /// It ended at once.
    Done(Done),
}

/// Whose equal query one may join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// That of any worker.
    All,
    /// One of the worker that has it.
    Own,
}

/// A query that has come to its end over UDP.
pub(crate) struct Done {
    /// Everyone who asked it.
    pub(crate) asks: Vec<Ask>,
    /// How it ended.
    pub(crate) outcome: Outcome,
}

/// How a query over UDP ended.
pub(crate) enum Outcome {
    /// With an answer.
    Answered(Vec<u8>),
    /// With a truncated answer, or amid forged ones: the same query belongs on TCP.
    NeedsTcp(Vec<u8>),
    /// Without an answer.
    Failed(DnsFailure),
}

impl Exchanges {
    /// None yet, of the worker with this number.
    pub(crate) fn new(
        core: Arc<Core>,
        servers: Arc<Servers>,
        under_way: Arc<UnderWay>,
        worker: usize,
    ) -> Self {
        Self {
            core,
            table: PortTable::new(servers.len()),
            servers,
            entropy: Entropy::new(),
            open: HashMap::new(),
            under_way,
            worker,
            attempts: VecDeque::new(),
            hedges: BTreeSet::new(),
            hedge_credit: HEDGE_BURST * 10,
            serial: 0,
            waiting: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Sends the query of `ask`, or lets it join an equal one.
    pub(crate) fn ask(
        &mut self,
        ports: &mut impl Ports,
        ask: Box<Ask>,
        reach: Reach,
        now: Timestamp,
    ) -> Asked {
        if self.waiting >= self.core.limits.upstream_in_flight as usize {
            self.core.counters.upstream_overloaded.increment();
            return Asked::Done(failed(vec![*ask], DnsFailure::Overloaded));
        }
        self.serial += 1;
        let leader = Leader { worker: self.worker, serial: self.serial };
        let question = self.under_way.question(&ask.key);
        let leads = match self.under_way.claim(question, leader) {
            Ok(()) => Some(question),
            Err(other) if other.worker != self.worker => match reach {
                Reach::All => return Asked::Elsewhere(other.worker, ask),
                Reach::Own => None,
            },
            Err(own) => match self.open.get_mut(&own.serial) {
                Some(exchange) if exchange.asks(&ask.key) => {
                    self.core.counters.upstream_merged.increment();
                    exchange.asks.push(*ask);
                    self.waiting += 1;
                    return Asked::UnderWay;
                }
                Some(_) | None => None,
            },
        };
        let begun = self.begin(ports, *ask, leads, now);
        if let (Some(question), Asked::Done(_)) = (leads, &begun) {
            self.under_way.release(question, leader);
        }
        begun
    }

    /// Sends the query of `ask` under the newest serial.
    fn begin(
        &mut self,
        ports: &mut impl Ports,
        ask: Ask,
        leads: Option<Question>,
        now: Timestamp,
    ) -> Asked {
        let mut message = reply::upstream_query(&ask.query, self.core.limits.udp_payload);
        let question_end = HEADER + ask.query.question.len();
        if self.core.shuffles_case
            && let Some(name) = message.get_mut(HEADER..question_end - 4)
            && let Err(error) = self.entropy.shuffle_case(name)
        {
            tracing::error!(%error, "query not sent");
            return Asked::Done(failed(vec![ask], DnsFailure::Internal));
        }
        let serial = self.serial;
        let mut exchange = Exchange {
            asks: vec![ask],
            message,
            question_end,
            leads,
            sent: Vec::with_capacity(1),
            attempts: 0,
            tried: Tried::default(),
            is_reachable: true,
            fallback: None,
        };
        self.hedge_credit = (self.hedge_credit + HEDGE_TENTHS).min(HEDGE_BURST * 10);
        if let Err(error) = self.attempt(ports, serial, &mut exchange, now) {
            let failure = self.failure(&error);
            return Asked::Done(failed(exchange.asks, failure));
        }
        self.waiting += 1;
        self.open.insert(serial, exchange);
        Asked::UnderWay
    }

    /// Takes a message that arrived on `port`.
    pub(crate) fn received(
        &mut self,
        ports: &mut impl Ports,
        port: PortId,
        message: &[u8],
        now: Timestamp,
        done: &mut Vec<Done>,
    ) {
        let Some(known) = self.table.port(port) else {
            return;
        };
        let response = Header::read(message).filter(|header| header.flags & wire::QR != 0);
        let Some(header) = response else {
            return self.noise(ports, port, done);
        };
        match known.issued(header.id) {
            Some(Issued::Open(serial)) if self.is_answer(serial, message) => {
                self.answered(ports, (serial, port, header), message, now, done);
            }
            Some(Issued::Open(serial)) => self.suspect(ports, serial, done),
            Some(Issued::Ended) => {
                self.core.counters.upstream_unmatched.increment();
                self.servers.heard(known.server);
            }
            None => match known.open().into_iter().find(|at| self.is_answer(*at, message)) {
                Some(serial) => self.suspect(ports, serial, done),
                None => self.noise(ports, port, done),
            },
        }
    }

    /// Whether `message` answers the question of `serial`, its id aside; in the case that it was
    /// asked in, where that is random.
    fn is_answer(&self, serial: u64, message: &[u8]) -> bool {
        let Some(exchange) = self.open.get(&serial) else {
            return false;
        };
        let question = exchange.question();
        answer::is_response_to_question(message, question)
            && (!self.core.shuffles_case
                || message.len() == HEADER
                || message.get(HEADER..exchange.question_end) == Some(question))
    }

    fn answered(
        &mut self,
        ports: &mut impl Ports,
        (serial, port, header): (u64, PortId, Header),
        message: &[u8],
        now: Timestamp,
        done: &mut Vec<Done>,
    ) {
        let Some(exchange) = self.open.get_mut(&serial) else {
            return;
        };
        let sent = exchange.sent.iter().find(|sent| sent.port == port && sent.id == header.id);
        if let (Some(sent), Some(known)) = (sent, self.table.port(port)) {
            let took = now.since(sent.at);
            self.servers.answered(known.server, took);
            self.core.stages.upstream.note(took);
        }
        if Rcode(header.rcode()) == Rcode::SERVFAIL && self.servers.len() > 1 {
            exchange.fallback = Some(message.to_vec());
            return self.elsewhere(ports, serial, port, now, done);
        }
        let Some(exchange) = self.close(ports, serial) else {
            return;
        };
        let outcome = if header.flags & wire::TC != 0 {
            self.core.counters.upstream_truncated.increment();
            Outcome::NeedsTcp(exchange.message)
        } else {
            Outcome::Answered(message.to_vec())
        };
        done.push(Done { asks: exchange.asks, outcome });
    }

    /// Moves a query to TCP at the first sign that somebody tries to guess its answer.
    fn suspect(&mut self, ports: &mut impl Ports, serial: u64, done: &mut Vec<Done>) {
        self.core.counters.upstream_unmatched.increment();
        if let Some(exchange) = self.close(ports, serial) {
            tracing::debug!(asked = ?self.servers.address(0), "a forged answer: asking over TCP");
            self.core.counters.upstream_suspected.increment();
            let outcome = Outcome::NeedsTcp(exchange.message);
            done.push(Done { asks: exchange.asks, outcome });
        }
    }

    /// Counts a message that fits nothing, and gives the port up before there are many.
    fn noise(&mut self, ports: &mut impl Ports, port: PortId, done: &mut Vec<Done>) {
        self.core.counters.upstream_unmatched.increment();
        let Some(known) = self.table.port_mut(port) else {
            return;
        };
        known.noise += 1;
        if known.noise < NOISE_MAX {
            return;
        }
        let Some(known) = self.table.shut(ports, port) else {
            return;
        };
        tracing::warn!(server = ?self.servers.address(known.server), "answers to no query: asking over TCP");
        for serial in known.open() {
            if let Some(exchange) = self.close(ports, serial) {
                self.core.counters.upstream_suspected.increment();
                let outcome = Outcome::NeedsTcp(exchange.message);
                done.push(Done { asks: exchange.asks, outcome });
            }
        }
    }

    /// Gives up all queries of a worker that ends, so that others may ask them: returns who asked.
    pub(crate) fn end(&mut self) -> Vec<Ask> {
        let mut asks = Vec::new();
        for (serial, exchange) in self.open.drain() {
            if let Some(question) = exchange.leads {
                self.under_way.release(question, Leader { worker: self.worker, serial });
            }
            asks.extend(exchange.asks);
        }
        asks
    }

    /// Forgets a query and ends every id that it was sent under.
    fn close(&mut self, ports: &mut impl Ports, serial: u64) -> Option<Exchange> {
        self.end_ids(ports, serial, None);
        let exchange = self.open.remove(&serial)?;
        if let Some(question) = exchange.leads {
            self.under_way.release(question, Leader { worker: self.worker, serial });
        }
        self.waiting = self.waiting.saturating_sub(exchange.asks.len());
        Some(exchange)
    }

    /// Ends the ids of `serial`, on one port or on all.
    fn end_ids(&mut self, ports: &mut impl Ports, serial: u64, only: Option<PortId>) {
        let sent = self.open.get(&serial).map(|exchange| exchange.sent.as_slice());
        for sent in sent.into_iter().flatten() {
            if only.is_none_or(|only| only == sent.port) {
                self.table.end(ports, sent.port, sent.id);
            }
        }
    }
}

impl Exchange {
    /// Whether it asks what has this key.
    fn asks(&self, key: &Key) -> bool {
        self.asks.first().is_some_and(|first| first.key == *key)
    }

    /// The question as it was sent.
    fn question(&self) -> &[u8] {
        self.message.get(HEADER..self.question_end).unwrap_or_default()
    }
}

fn failed(asks: Vec<Ask>, failure: DnsFailure) -> Done {
    Done { asks, outcome: Outcome::Failed(failure) }
}
