//! What waits between receiving and work: a queue for each client, served in turn.
//!
//! Receiving is cheap and empties the socket's buffer, which all clients share; work is dear. So a
//! client that sends more than its share waits behind itself, and what it sends beyond its queue is
//! shed before anybody reads it.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

/// Messages of one client that wait.
const CLIENT_MAX: usize = 256;
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
    clients: HashMap<IpAddr, VecDeque<Waiting>>,
    round: VecDeque<IpAddr>,
    spare: Vec<Vec<u8>>,
    length: usize,
}

impl FairQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Queues a message behind those of its client; says whether one had to be shed for it, be it this
    /// one.
    pub(super) fn push(&mut self, line: u16, source: SocketAddr, message: &[u8]) -> bool {
        let client = source.ip();
        let held = self.clients.get(&client).map_or(0, VecDeque::len);
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
        let queue = self.clients.entry(client).or_default();
        if queue.is_empty() {
            self.round.push_back(client);
        }
        queue.push_back(Waiting { line, source, message: room });
        self.length += 1;
        is_full
    }

    /// The next message: one of each client in turn.
    pub(super) fn pop(&mut self) -> Option<Waiting> {
        let client = self.round.pop_front()?;
        let queue = self.clients.get_mut(&client)?;
        let waiting = queue.pop_front()?;
        self.length -= 1;
        if queue.is_empty() {
            // A client that comes back gets its room again; one that is gone holds none.
            self.clients.remove(&client);
        } else {
            self.round.push_back(client);
        }
        Some(waiting)
    }

    /// Takes the room of a message that is done with.
    pub(super) fn recycle(&mut self, room: Vec<u8>) {
        if self.spare.len() < SPARE_MAX {
            self.spare.push(room);
        }
    }

    /// Sheds the newest message of whoever holds most, where that is more than `held` and one.
    fn shed_for(&mut self, held: usize) -> bool {
        let longest = self.clients.values_mut().max_by_key(|queue| queue.len());
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

    fn drain(queue: &mut FairQueue) -> Vec<SocketAddr> {
        std::iter::from_fn(|| queue.pop()).map(|waiting| waiting.source).collect()
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
        assert!(queue.is_empty() && queue.clients.is_empty() && queue.round.is_empty());
    }

    #[test]
    fn messages_of_a_client_keep_their_order() {
        let mut queue = FairQueue::default();
        for number in 0..10 {
            queue.push(1, client(1), &[number]);
        }
        for number in 0..10 {
            assert_eq!(queue.pop().map(|waiting| waiting.message), Some(vec![number]));
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
        for number in 0..32 {
            for _ in 0..CLIENT_MAX {
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
