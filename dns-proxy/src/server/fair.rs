//! What waits between receiving and work: a queue for each client, served in turn.
//!
//! Receiving is cheap and empties the socket's buffer, which all clients share; work is dear. So a
//! client that sends more than its share waits behind itself, and what it sends beyond its queue is
//! shed before anybody reads it.
//!
//! A resolver serves who comes first: what one client has there, others wait for. So a client that
//! sends faster than it is answered waits here, and not in front of the others there. A resolver that
//! answers late or never holds nobody up: [`AHEAD`] more go to it every [`SPELL`].

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use namegate_policy::time::Timestamp;

/// Messages of one client that wait.
const CLIENT_MAX: usize = 512;
/// Queries of one client that are passed on in a spell, beyond those that came to their end meanwhile.
const AHEAD: u32 = 128;
/// After so long a resolver is slow rather than busy.
const SPELL: Duration = Duration::from_millis(20);
/// Messages of all clients that wait.
const TOTAL_MAX: usize = 8_192;
/// Used room that is kept for messages to come.
const SPARE_MAX: usize = 512;

/// A message that waits for the worker.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// Where it arrived.
    pub(super) line: u16,
    /// Who sent it.
    pub(super) source: SocketAddr,
    /// What was sent.
    pub(super) message: Vec<u8>,
}

/// Queues by client, each with a place in the round.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    clients: HashMap<IpAddr, Client>,
    round: VecDeque<IpAddr>,
    spare: Vec<Vec<u8>>,
    length: usize,
}

/// What a client has here and beyond.
#[derive(Debug, Default)]
struct Client {
    queue: VecDeque<Waiting>,
    /// Queries that were passed on and did not end.
    under_way: u32,
    /// How many more were passed on than ended, of this spell.
    ahead: u32,
    spell_ends: Timestamp,
}

impl Client {
    fn waits(&self, now: Timestamp) -> bool {
        self.ahead >= AHEAD && now < self.spell_ends
    }

    fn is_gone(&self) -> bool {
        self.queue.is_empty() && self.under_way == 0
    }
}

impl FairQueue {
    /// For how long nothing can be popped unless something is pushed or a query ends; `None` where
    /// nothing is queued.
    pub(super) fn patience(&self, now: Timestamp) -> Option<Duration> {
        let clients = self.round.iter().filter_map(|client| self.clients.get(client));
        let wait = |client: &Client| {
            if client.waits(now) { client.spell_ends.since(now) } else { Duration::ZERO }
        };
        clients.map(wait).min()
    }

    /// Whether any message that came over `line` waits.
    pub(super) fn holds(&self, line: u16) -> bool {
        let mut queues = self.clients.values().map(|client| &client.queue);
        queues.any(|queue| queue.iter().any(|waiting| waiting.line == line))
    }

    /// Queues a message behind those of its client; says whether one had to be shed for it, be it this
    /// one.
    pub(super) fn push(&mut self, line: u16, source: SocketAddr, message: &[u8]) -> bool {
        let client = source.ip();
        let held = self.clients.get(&client).map_or(0, |client| client.queue.len());
        if held >= CLIENT_MAX {
            return true;
        }
        let is_full = self.length >= TOTAL_MAX;
        if is_full && !self.shed_for(held) {
            return true;
        }
        let mut room = self.spare.pop().unwrap_or_default();
        room.clear();
        room.extend_from_slice(message);
        let Client { queue, .. } = self.clients.entry(client).or_default();
        if queue.is_empty() {
            self.round.push_back(client);
        }
        queue.push_back(Waiting { line, source, message: room });
        self.length += 1;
        is_full
    }

    /// The next message: one of each client in turn, but for those that are ahead of their answers.
    pub(super) fn pop(&mut self, now: Timestamp) -> Option<Waiting> {
        let client = (0..self.round.len()).find_map(|_| {
            let client = self.round.pop_front()?;
            if !self.clients.get(&client)?.waits(now) {
                return Some(client);
            }
            self.round.push_back(client);
            None
        })?;
        let known = self.clients.get_mut(&client)?;
        let waiting = known.queue.pop_front()?;
        self.length -= 1;
        if !known.queue.is_empty() {
            self.round.push_back(client);
        } else if known.is_gone() {
            // A client that comes back gets its room again; one that is gone holds none.
            self.clients.remove(&client);
        }
        Some(waiting)
    }

    /// Takes note of a query that is passed on.
    pub(super) fn begin(&mut self, client: IpAddr, now: Timestamp) {
        let known = self.clients.entry(client).or_default();
        if now >= known.spell_ends {
            (known.ahead, known.spell_ends) = (0, now.saturating_add(SPELL));
        }
        known.ahead += 1;
        known.under_way += 1;
    }

    /// Takes note of the end of a query that was passed on.
    pub(super) fn end(&mut self, client: IpAddr) {
        if let Some(known) = self.clients.get_mut(&client) {
            known.ahead = known.ahead.saturating_sub(1);
            known.under_way = known.under_way.saturating_sub(1);
            if known.is_gone() {
                self.clients.remove(&client);
            }
        }
    }

    /// Takes the room of a message that is done with.
    pub(super) fn recycle(&mut self, room: Vec<u8>) {
        if self.spare.len() < SPARE_MAX {
            self.spare.push(room);
        }
    }

    /// Sheds the newest message of whoever holds most, where that is more than `held` and one.
    fn shed_for(&mut self, held: usize) -> bool {
        let queues = self.clients.values_mut().map(|client| &mut client.queue);
        let longest = queues.max_by_key(|queue| queue.len());
        let Some(queue) = longest.filter(|queue| queue.len() > held + 1) else {
            return false;
        };
        if let Some(shed) = queue.pop_back() {
            self.length -= 1;
            self.recycle(shed.message);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u16) -> SocketAddr {
        let [high, low] = number.to_be_bytes();
        SocketAddr::from(([10, 0, high, low], 4000))
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_nanos(1_000_000_000 + millis * 1_000_000)
    }

    fn drain(queue: &mut FairQueue) -> Vec<SocketAddr> {
        std::iter::from_fn(|| queue.pop(at(0))).map(|waiting| waiting.source).collect()
    }

    #[test]
    fn clients_are_served_in_turn_whatever_they_send() {
        let mut queue = FairQueue::default();
        for _ in 0..4 {
            assert!(!queue.push(1, client(1), b"loud"));
        }
        assert!(!queue.push(1, client(2), b"quiet"));
        let order = [1, 2, 1, 1, 1].map(client);
        assert_eq!(drain(&mut queue), order);
        assert!(queue.length == 0 && queue.clients.is_empty() && queue.round.is_empty());
    }

    #[test]
    fn messages_of_a_client_keep_their_order() {
        let mut queue = FairQueue::default();
        for number in 0..10 {
            queue.push(1, client(1), &[number]);
        }
        for number in 0..10 {
            assert_eq!(queue.pop(at(0)).map(|waiting| waiting.message), Some(vec![number]));
        }
    }

    #[test]
    fn flood_sheds_its_own() {
        let mut queue = FairQueue::default();
        let shed = (0..1000).filter(|_| queue.push(1, client(1), b"loud")).count();
        assert_eq!(shed, 1000 - CLIENT_MAX);
        assert!(!queue.push(1, client(2), b"quiet"));
        assert_eq!(drain(&mut queue)[1], client(2));
    }

    #[test]
    fn full_queue_sheds_of_those_who_hold_most() {
        let mut queue = FairQueue::default();
        for number in 0..16 {
            for _ in 0..TOTAL_MAX / 16 {
                queue.push(1, client(number), b"loud");
            }
        }
        assert_eq!(queue.length, TOTAL_MAX);
        assert!(queue.push(1, client(99), b"quiet"), "another's went");
        assert_eq!(queue.length, TOTAL_MAX);
        let served = drain(&mut queue);
        assert_eq!(served.iter().filter(|source| **source == client(99)).count(), 1);
        assert_eq!(served.len(), TOTAL_MAX);
    }

    #[test]
    fn who_is_ahead_of_its_answers_waits_for_one_or_for_the_end_of_the_spell() {
        let mut queue = FairQueue::default();
        let (loud, quiet) = (client(1), client(2));
        for _ in 0..AHEAD + 3 {
            queue.push(1, loud, b"loud");
        }
        for _ in 0..AHEAD {
            assert_eq!(queue.patience(at(0)), Some(Duration::ZERO));
            assert!(queue.pop(at(0)).is_some());
            queue.begin(loud.ip(), at(0));
        }
        assert_eq!(queue.pop(at(15)), None);
        assert_eq!(queue.patience(at(15)), Some(Duration::from_millis(5)));
        queue.push(1, quiet, b"quiet");
        assert_eq!(queue.patience(at(15)), Some(Duration::ZERO), "it has nothing to wait for");
        assert_eq!(queue.pop(at(15)).map(|waiting| waiting.source), Some(quiet));
        queue.end(loud.ip());
        assert_eq!(queue.pop(at(15)).map(|waiting| waiting.source), Some(loud));
        queue.begin(loud.ip(), at(15));
        assert_eq!(queue.pop(at(15)), None);
        assert!(queue.pop(at(20)).is_some(), "the resolver is slow rather than busy");
        queue.begin(loud.ip(), at(20));
        assert!(queue.pop(at(20)).is_some());
        assert_eq!(queue.patience(at(20)), None);
        for _ in 0..=AHEAD {
            assert!(!queue.clients.is_empty());
            queue.end(loud.ip());
        }
        assert!(queue.clients.is_empty() && queue.round.is_empty());
    }

    #[test]
    fn room_is_used_again_and_bounded() {
        let mut queue = FairQueue::default();
        for _ in 0..2 * SPARE_MAX {
            queue.recycle(Vec::with_capacity(8));
        }
        assert_eq!(queue.spare.len(), SPARE_MAX);
        queue.push(1, client(1), b"message");
        assert_eq!(queue.spare.len(), SPARE_MAX - 1);
    }
}
