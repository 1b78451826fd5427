//! The servers that may answer for one resolver, and how they have been doing.
//!
//! A pod is answered by the resolver that it asked. Others are asked in its place only where the
//! configuration says that they give the same answers; which of them is asked next is decided here,
//! from what each did lately. Shared by the workers of a slot without a lock.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use namegate_policy::time::Timestamp;

/// Servers of one group at most.
pub(crate) const SERVERS_MAX: usize = 16;
/// Queries without an answer, and no answer between them, after which a server counts as down. One
/// name whose own servers are dead must not take the resolver down.
const DOWN_AFTER: u32 = 3;
/// For how long a server that went down is passed over; doubles with every probe that fails.
const DOWN_FIRST: Duration = Duration::from_millis(500);
const DOWN_MAX: Duration = Duration::from_secs(30);
/// A second server is not asked earlier than this.
const HEDGE_MIN: Duration = Duration::from_millis(20);
/// When a second server is asked while nothing is known about the first.
const HEDGE_UNKNOWN: Duration = Duration::from_millis(200);

/// The servers of one slot: first the resolver that pods ask, then those that answer the same.
#[derive(Debug)]
pub(crate) struct Servers(Box<[Server]>);

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    /// Smoothed time to an answer in microseconds; 0 before the first.
    usual_us: AtomicU32,
    /// Queries without an answer since the last answer.
    failures: AtomicU32,
    /// While down: when it may be probed.
    probe_at: AtomicU64,
}

/// Which servers a query went to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tried(u16);

impl Tried {
    pub(crate) fn note(&mut self, server: usize) {
        self.0 |= 1 << (server % SERVERS_MAX);
    }

    fn has(self, server: usize) -> bool {
        self.0 >> (server % SERVERS_MAX) & 1 == 1
    }
}

impl Servers {
    /// `asked` and the servers that may stand in for it; at most [`SERVERS_MAX`] in all.
    pub(crate) fn new(asked: SocketAddr, alternatives: &[SocketAddr]) -> Self {
        let others = alternatives.iter().filter(|address| **address != asked);
        let all = std::iter::once(&asked).chain(others).take(SERVERS_MAX);
        Self(all.map(|address| Server::new(*address)).collect())
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().map(|server| server.address)
    }

    pub(crate) fn address(&self, server: usize) -> Option<SocketAddr> {
        self.0.get(server).map(|server| server.address)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The first server in order that is up and not in `tried`; a server that is down is due for a
    /// probe now and then, by one query.
    pub(crate) fn up(&self, tried: Tried, now: Timestamp) -> Option<usize> {
        let untried = self.0.iter().enumerate().filter(|(index, _)| !tried.has(*index));
        untried.into_iter().find(|(_, server)| server.is_up(now)).map(|(index, _)| index)
    }

    /// The server to ask next: one that is up, or the first untried, or the first.
    pub(crate) fn choose(&self, tried: Tried, now: Timestamp) -> usize {
        if self.0.len() == 1 {
            return 0;
        }
        self.up(tried, now)
            .or_else(|| (0..self.0.len()).find(|index| !tried.has(*index)))
            .or_else(|| self.up(Tried::default(), now))
            .unwrap_or(0)
    }

    /// Whether some server is not in `tried`.
    pub(crate) fn has_untried(&self, tried: Tried) -> bool {
        (0..self.0.len()).any(|index| !tried.has(index))
    }

    /// Notes an answer that took so long.
    pub(crate) fn answered(&self, server: usize, took: Duration) {
        if let Some(server) = self.0.get(server) {
            server.answered(took);
        }
    }

    /// Notes an answer that came too late to count.
    pub(crate) fn heard(&self, server: usize) {
        if let Some(server) = self.0.get(server) {
            server.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Notes a query without an answer in time.
    pub(crate) fn failed(&self, server: usize, now: Timestamp) {
        if let Some(server) = self.0.get(server) {
            server.failed(now);
        }
    }

    /// How long `server` is waited for before another is asked beside it: four times what it
    /// usually takes, and never longer than half an attempt.
    pub(crate) fn patience(&self, server: usize, attempt: Duration) -> Duration {
        let usual = self.0.get(server).map_or(0, |server| server.usual_us.load(Ordering::Relaxed));
        let patience = match usual {
            0 => HEDGE_UNKNOWN,
            usual => (4 * Duration::from_micros(usual.into())).max(HEDGE_MIN),
        };
        patience.min(attempt / 2)
    }
}

impl Server {
    fn new(address: SocketAddr) -> Self {
        Self {
            address,
            usual_us: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            probe_at: AtomicU64::new(0),
        }
    }

    fn is_up(&self, now: Timestamp) -> bool {
        let failures = self.failures.load(Ordering::Relaxed);
        if failures < DOWN_AFTER {
            return true;
        }
        let due = self.probe_at.load(Ordering::Relaxed);
        let next = now.saturating_add(rest(failures)).as_nanos();
        // Whoever moves the time on is the one that probes.
        now.as_nanos() >= due
            && self
                .probe_at
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    fn answered(&self, took: Duration) {
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1);
        let usual = self.usual_us.load(Ordering::Relaxed);
        // Workers that race lose a sample, no more.
        let smoothed = if usual == 0 { took } else { usual - usual / 8 + took / 8 };
        self.usual_us.store(smoothed.max(1), Ordering::Relaxed);
        self.failures.store(0, Ordering::Relaxed);
    }

    fn failed(&self, now: Timestamp) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures == DOWN_AFTER {
            tracing::warn!(server = %self.address, "the resolver does not answer");
        }
        if failures >= DOWN_AFTER {
            self.probe_at
                .fetch_max(now.saturating_add(rest(failures)).as_nanos(), Ordering::Relaxed);
        }
    }
}

/// For how long a server with so many failures is passed over.
fn rest(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(DOWN_AFTER).min(6);
    (DOWN_FIRST * (1 << doublings)).min(DOWN_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_nanos(1_000_000_000_000 + millis * 1_000_000)
    }

    fn mk_servers(count: u8) -> Servers {
        let address = |last| SocketAddr::from(([192, 0, 2, last], 53));
        let others: Vec<_> = (1..count).map(address).collect();
        Servers::new(address(0), &others)
    }

    fn tried(servers: &[usize]) -> Tried {
        let mut tried = Tried::default();
        servers.iter().for_each(|server| tried.note(*server));
        tried
    }

    #[test]
    fn the_asked_one_comes_first_and_the_untried_next() {
        let servers = mk_servers(3);
        let cases: [(&[usize], usize); 4] = [(&[], 0), (&[0], 1), (&[0, 1], 2), (&[0, 1, 2], 0)];
        for (already, expected) in cases {
            assert_eq!(servers.choose(tried(already), at(0)), expected, "after {already:?}");
        }
        assert!(servers.has_untried(tried(&[0, 1])));
        assert!(!servers.has_untried(tried(&[0, 1, 2])));
    }

    #[test]
    fn a_server_that_is_down_is_passed_over_and_probed_by_one_query() {
        let servers = mk_servers(2);
        for _ in 0..DOWN_AFTER {
            assert_eq!(servers.choose(Tried::default(), at(0)), 0);
            servers.failed(0, at(0));
        }
        assert_eq!(servers.choose(Tried::default(), at(499)), 1);
        assert_eq!(servers.choose(Tried::default(), at(500)), 0, "the probe");
        assert_eq!(servers.choose(Tried::default(), at(500)), 1, "and no other query");
        servers.failed(0, at(500));
        assert_eq!(servers.choose(Tried::default(), at(1_499)), 1, "twice as long");
        assert_eq!(servers.choose(Tried::default(), at(1_500)), 0);
        servers.answered(0, Duration::from_millis(1));
        assert_eq!(servers.choose(Tried::default(), at(1_501)), 0, "back");
    }

    #[test]
    fn all_down_means_the_asked_one_and_alone_it_is_never_down() {
        let (pair, single) = (mk_servers(2), mk_servers(1));
        for _ in 0..20 {
            for server in [0, 1] {
                pair.failed(server, at(0));
            }
            single.failed(0, at(0));
        }
        assert_eq!(pair.choose(Tried::default(), at(1)), 0);
        assert_eq!(pair.choose(tried(&[0]), at(1)), 1);
        assert_eq!(single.choose(tried(&[0]), at(1)), 0);
    }

    #[test]
    fn answers_between_losses_keep_a_server_up() {
        let servers = mk_servers(2);
        for _ in 0..10 {
            servers.failed(0, at(0));
            servers.failed(0, at(0));
            servers.answered(0, Duration::from_millis(1));
        }
        assert_eq!(servers.choose(Tried::default(), at(0)), 0);
    }

    #[test]
    fn patience_follows_what_a_server_takes_within_bounds() {
        let servers = mk_servers(2);
        let attempt = Duration::from_millis(1300);
        assert_eq!(servers.patience(0, attempt), HEDGE_UNKNOWN);
        servers.answered(0, Duration::from_micros(300));
        assert_eq!(servers.patience(0, attempt), HEDGE_MIN);
        for _ in 0..100 {
            servers.answered(0, Duration::from_millis(50));
        }
        let patience = servers.patience(0, attempt).as_millis();
        assert!((190..=200).contains(&patience), "{patience}");
        assert_eq!(servers.patience(1, Duration::from_millis(100)), Duration::from_millis(50));
    }

    #[test]
    fn a_group_names_nobody_twice_and_is_bounded() {
        let asked: SocketAddr = "192.0.2.1:53".parse().unwrap();
        assert_eq!(Servers::new(asked, &[asked]).len(), 1);
        let many: Vec<SocketAddr> = (2..40).map(|last| ([192, 0, 2, last], 53).into()).collect();
        assert_eq!(Servers::new(asked, &many).len(), SERVERS_MAX);
    }
}
