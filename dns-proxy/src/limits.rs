//! What each client has under way, and whether it may have more.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use namegate_policy::time::Timestamp;

use crate::config::Limits;

/// The load of every client that asked, by source address. Only attributed clients get an entry, so
/// their number bounds the table.
#[derive(Debug)]
pub(crate) struct Loads {
    in_flight_max: u32,
    rate: Option<u32>,
    connections_max: u32,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    loads: HashMap<IpAddr, Arc<Load>>,
    sweep_at: usize,
}

#[derive(Debug, Default)]
struct Load {
    in_flight: AtomicU32,
    connections: AtomicU32,
    bucket: Mutex<Bucket>,
}

/// Tokens in nanoseconds of the rate's time, so that whole numbers suffice.
#[derive(Debug, Default)]
struct Bucket {
    full_at: Timestamp,
}

/// One query of a client under way; ends when dropped.
#[derive(Debug)]
pub(crate) struct QueryPermit(Arc<Load>);

impl Drop for QueryPermit {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One TCP connection of a client; ends when dropped.
#[derive(Debug)]
pub(crate) struct ConnectionPermit(Arc<Load>);

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a client may not have one more query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shed {
    InFlight,
    Rate,
}

const SWEEP_MIN: usize = 1024;

impl Loads {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            in_flight_max: limits.client_in_flight,
            rate: limits.client_rate,
            connections_max: limits.client_connections,
            table: Mutex::new(Table { loads: HashMap::new(), sweep_at: SWEEP_MIN }),
        }
    }

    /// Takes one query of `client` in, or says why not.
    pub(crate) fn query(&self, client: IpAddr, now: Timestamp) -> Result<QueryPermit, Shed> {
        let load = self.load(client);
        if let Some(rate) = self.rate
            && !load.take_token(rate, now)
        {
            return Err(Shed::Rate);
        }
        if count_below(&load.in_flight, self.in_flight_max) {
            Ok(QueryPermit(load))
        } else {
            Err(Shed::InFlight)
        }
    }

    /// Takes one connection of `client` in; `None` where it has as many as it may.
    pub(crate) fn connection(&self, client: IpAddr) -> Option<ConnectionPermit> {
        let load = self.load(client);
        // Made only where it is granted: one that is dropped gives back what it stands for.
        count_below(&load.connections, self.connections_max).then(|| ConnectionPermit(load))
    }

    fn load(&self, client: IpAddr) -> Arc<Load> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(load) = table.loads.get(&client) {
            return Arc::clone(load);
        }
        if table.loads.len() >= table.sweep_at {
            table.loads.retain(|_, load| Arc::strong_count(load) > 1);
            table.sweep_at = SWEEP_MIN.max(table.loads.len() * 2);
        }
        Arc::clone(table.loads.entry(client).or_default())
    }
}

impl Load {
    /// A token bucket that holds a second's worth (the generic cell rate algorithm).
    fn take_token(&self, rate: u32, now: Timestamp) -> bool {
        let interval = Duration::from_secs(1) / rate.max(1);
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let next = bucket.full_at.max(now).saturating_add(interval);
        if next.since(now) > Duration::from_secs(1) {
            return false;
        }
        bucket.full_at = next;
        true
    }
}

fn count_below(count: &AtomicU32, max: u32) -> bool {
    count
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |value| {
            (value < max).then_some(value + 1)
        })
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 2));

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_nanos(1_000_000_000_000 + millis * 1_000_000)
    }

    #[test]
    fn queries_in_flight_are_bounded_for_each_client_alone() {
        let loads = Loads::new(&Limits { client_in_flight: 2, ..Limits::default() });
        let first = loads.query(POD, at(0)).unwrap();
        let _second = loads.query(POD, at(0)).unwrap();
        assert_eq!(loads.query(POD, at(0)).unwrap_err(), Shed::InFlight);
        assert!(loads.query(OTHER, at(0)).is_ok());
        drop(first);
        assert!(loads.query(POD, at(0)).is_ok());
    }

    #[test]
    fn refused_connection_gives_nothing_back() {
        let loads = Loads::new(&Limits { client_connections: 2, ..Limits::default() });
        let held = [loads.connection(POD).unwrap(), loads.connection(POD).unwrap()];
        assert_eq!((0..10).filter(|_| loads.connection(POD).is_some()).count(), 0);
        drop(held);
        assert!(loads.connection(POD).is_some());
    }

    #[test]
    fn rate_allows_a_burst_of_a_second_and_then_its_pace() {
        let loads = Loads::new(&Limits { client_rate: Some(10), ..Limits::default() });
        let burst = (0..20).filter(|_| loads.query(POD, at(0)).is_ok()).count();
        assert_eq!(burst, 10);
        assert_eq!(loads.query(POD, at(99)).unwrap_err(), Shed::Rate);
        assert!(loads.query(POD, at(100)).is_ok());
        assert_eq!(loads.query(POD, at(101)).unwrap_err(), Shed::Rate);
    }

    #[test]
    fn loads_of_clients_without_anything_under_way_are_swept() {
        let loads = Loads::new(&Limits::default());
        let kept = loads.connection(POD).unwrap();
        for number in 0..10_000u32 {
            drop(loads.query(IpAddr::V4((0x0a02_0000 + number).into()), at(0)));
        }
        let table = loads.table.lock().unwrap();
        assert!(table.loads.len() <= SWEEP_MIN);
        assert!(table.loads.contains_key(&POD));
        drop(kept);
    }
}
