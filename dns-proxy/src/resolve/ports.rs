//! The ports that queries leave from: which take queries, which ids each has out, and when each goes.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use namegate_policy::time::Timestamp;

/// For how long a port takes queries.
const LIFE: Duration = Duration::from_millis(250);
/// How many queries a port takes.
const QUERIES: usize = 32;
/// Ports of one server that take queries at a time.
const TAKING: usize = 4;

/// A socket, as whoever holds the sockets numbers them. No number is used twice.
pub(crate) type PortId = u64;

/// Whoever holds the sockets.
pub(crate) trait Ports {
    /// Opens a socket connected to `server`, on a port that nobody can foresee.
    fn open(&mut self, server: SocketAddr) -> io::Result<PortId>;
    /// Sends `message`, or queues it. A message that finds no room is lost like a lost packet.
    fn send(&mut self, port: PortId, message: &[u8]) -> io::Result<()>;
    /// Closes a socket; nothing of it is handed in after that.
    fn close(&mut self, port: PortId);
}

/// Every port that is open.
pub(crate) struct PortTable {
    ports: HashMap<PortId, Port>,
    /// For each server the ports that take queries.
    taking: Vec<[Option<PortId>; TAKING]>,
}

/// An open port.
pub(crate) struct Port {
    pub(crate) server: usize,
    pub(crate) noise: u32,
    ids: Vec<(u16, Issued)>,
    waiting: usize,
    opened: Timestamp,
}

/// What became of an id. An ended one is remembered as long as the port: what comes for it is late
/// and no forgery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Issued {
    /// Under way, for the query of this serial.
    Open(u64),
    /// Answered or given up.
    Ended,
}

impl PortTable {
    pub(crate) fn new(servers: usize) -> Self {
        Self { ports: HashMap::new(), taking: vec![[None; TAKING]; servers] }
    }

    pub(crate) fn port(&self, number: PortId) -> Option<&Port> {
        self.ports.get(&number)
    }

    pub(crate) fn port_mut(&mut self, number: PortId) -> Option<&mut Port> {
        self.ports.get_mut(&number)
    }

    /// The port of `server` that the random number `draw` falls on; a fresh one where that has had
    /// its share.
    pub(crate) fn pick(
        &mut self,
        sockets: &mut impl Ports,
        (server, address): (usize, SocketAddr),
        draw: u16,
        now: Timestamp,
    ) -> io::Result<PortId> {
        let draw = usize::from(draw) % TAKING;
        let held = self.taking.get(server).and_then(|places| *places.get(draw)?);
        if let Some(number) = held {
            if self.port(number).is_some_and(|port| port.takes_queries(now)) {
                return Ok(number);
            }
            self.rest(sockets, number);
        }
        let number = sockets.open(address)?;
        let port = Port { server, ids: Vec::new(), waiting: 0, noise: 0, opened: now };
        self.ports.insert(number, port);
        if let Some(place) = self.taking.get_mut(server).and_then(|places| places.get_mut(draw)) {
            *place = Some(number);
        }
        Ok(number)
    }

    /// Ends `id` on a port, and closes the port where nobody needs it.
    pub(crate) fn end(&mut self, sockets: &mut impl Ports, number: PortId, id: u16) {
        let Some(port) = self.ports.get_mut(&number) else {
            return;
        };
        port.end(id);
        let taking = self.taking.get(port.server);
        if port.waiting == 0 && !taking.is_some_and(|all| all.contains(&Some(number))) {
            self.shut(sockets, number);
        }
    }

    /// Closes a port and returns what was known of it.
    pub(crate) fn shut(&mut self, sockets: &mut impl Ports, number: PortId) -> Option<Port> {
        let port = self.ports.remove(&number)?;
        self.forsake(port.server, number);
        sockets.close(number);
        Some(port)
    }

    /// Gives a port no more queries.
    pub(crate) fn forsake(&mut self, server: usize, number: PortId) {
        for place in self.taking.get_mut(server).into_iter().flatten() {
            if *place == Some(number) {
                *place = None;
            }
        }
    }

    /// Gives ports that had their time no more queries, and closes those that nothing waits on.
    pub(crate) fn retire(&mut self, sockets: &mut impl Ports, now: Timestamp) {
        let taking = self.taking.iter().flatten().flatten().copied();
        let aged: Vec<PortId> = taking
            .filter(|number| !self.port(*number).is_some_and(|port| port.takes_queries(now)))
            .collect();
        for number in aged {
            self.rest(sockets, number);
        }
    }

    /// When [`PortTable::retire`] has something to do next.
    pub(crate) fn next_retirement(&self) -> Option<Timestamp> {
        let taking = self.taking.iter().flatten().flatten();
        let oldest = taking.filter_map(|number| self.port(*number)).map(|port| port.opened).min();
        oldest.map(|opened| opened.saturating_add(LIFE))
    }

    fn rest(&mut self, sockets: &mut impl Ports, number: PortId) {
        let Some(port) = self.ports.get(&number) else {
            return;
        };
        let (server, is_idle) = (port.server, port.waiting == 0);
        self.forsake(server, number);
        if is_idle {
            self.shut(sockets, number);
        }
    }
}

impl Port {
    /// What became of `id`; `None` where it was never given out here.
    pub(crate) fn issued(&self, id: u16) -> Option<Issued> {
        self.ids.iter().find(|(issued, _)| *issued == id).map(|(_, issued)| *issued)
    }

    /// Gives out `id`, which was not given out here.
    pub(crate) fn issue(&mut self, id: u16, serial: u64) {
        self.ids.push((id, Issued::Open(serial)));
        self.waiting += 1;
    }

    /// The queries that wait on it.
    pub(crate) fn open(&self) -> Vec<u64> {
        let open = self.ids.iter().filter_map(|(_, issued)| match issued {
            Issued::Open(serial) => Some(*serial),
            Issued::Ended => None,
        });
        open.collect()
    }

    fn end(&mut self, id: u16) {
        let place = self.ids.iter_mut().find(|(issued, _)| *issued == id);
        if let Some((_, issued @ Issued::Open(_))) = place {
            *issued = Issued::Ended;
            self.waiting -= 1;
        }
    }

    fn takes_queries(&self, now: Timestamp) -> bool {
        self.ids.len() < QUERIES && now.since(self.opened) < LIFE
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[derive(Default)]
    struct Sockets {
        open: BTreeSet<PortId>,
        last: PortId,
    }

    impl Ports for Sockets {
        fn open(&mut self, _server: SocketAddr) -> io::Result<PortId> {
            self.last += 1;
            self.open.insert(self.last);
            Ok(self.last)
        }

        fn send(&mut self, _port: PortId, _message: &[u8]) -> io::Result<()> {
            Ok(())
        }

        fn close(&mut self, port: PortId) {
            assert!(self.open.remove(&port), "closed once");
        }
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_nanos(1_000_000_000_000 + millis * 1_000_000)
    }

    fn server() -> (usize, SocketAddr) {
        (0, ([192, 0, 2, 1], 53).into())
    }

    #[test]
    fn a_port_takes_its_share_of_queries_and_goes_with_the_last_answer() {
        let (mut table, mut sockets) = (PortTable::new(1), Sockets::default());
        let first = table.pick(&mut sockets, server(), 0, at(0)).unwrap();
        for id in 0..u16::try_from(QUERIES).unwrap() {
            assert_eq!(table.pick(&mut sockets, server(), 4, at(0)).unwrap(), first);
            table.port_mut(first).unwrap().issue(id, id.into());
        }
        let second = table.pick(&mut sockets, server(), 8, at(0)).unwrap();
        assert_ne!(second, first);
        for id in 0..u16::try_from(QUERIES).unwrap() {
            assert!(sockets.open.contains(&first));
            table.end(&mut sockets, first, id);
        }
        assert_eq!(sockets.open, BTreeSet::from([second]));
    }

    #[test]
    fn a_port_that_had_its_time_goes_and_one_that_waits_stays() {
        let (mut table, mut sockets) = (PortTable::new(1), Sockets::default());
        let idle = table.pick(&mut sockets, server(), 0, at(0)).unwrap();
        let waiting = table.pick(&mut sockets, server(), 1, at(100)).unwrap();
        assert_ne!(idle, waiting, "another draw, another port");
        table.port_mut(waiting).unwrap().issue(7, 1);
        assert_eq!(table.next_retirement(), Some(at(250)));
        table.retire(&mut sockets, at(400));
        assert_eq!(sockets.open, BTreeSet::from([waiting]));
        assert_eq!(table.next_retirement(), None);
        table.end(&mut sockets, waiting, 7);
        assert_eq!(sockets.open, BTreeSet::new());
    }

    #[test]
    fn an_ended_id_is_known_and_ends_once() {
        let (mut table, mut sockets) = (PortTable::new(1), Sockets::default());
        let number = table.pick(&mut sockets, server(), 0, at(0)).unwrap();
        let port = table.port_mut(number).unwrap();
        port.issue(7, 1);
        port.issue(8, 2);
        for _ in 0..2 {
            table.end(&mut sockets, number, 7);
        }
        let port = table.port(number).unwrap();
        assert_eq!(port.issued(7), Some(Issued::Ended));
        assert_eq!(port.issued(9), None);
        assert_eq!(port.open(), [2]);
    }
}
