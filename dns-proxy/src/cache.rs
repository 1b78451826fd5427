//! Answers kept for their time: positive and negative (RFC 2308), by resolver and question, bounded
//! by octets.
//!
//! The cache shortens the way to the resolver and nothing else: a cached answer is decided, read,
//! learned and released like one that has just arrived, with its TTLs counted down.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::sync::Cache as Store;
use namegate_policy::time::Timestamp;

use crate::answer::Answer;
use crate::config::CacheLimits;
use crate::query::Query;
use crate::reply;

/// Octets of bookkeeping that an entry is charged beside its key and message.
const ENTRY_OVERHEAD: usize = 160;
/// The TTL of a stale answer (RFC 8767 section 4).
const STALE_TTL: u32 = 30;

/// What two queries have in common whose answers are the same: resolver, name, type, and what the
/// resolver is told beside.
pub(crate) type Key = Box<[u8]>;

/// The key of `query` to `resolver`.
pub(crate) fn key(query: &Query, resolver: SocketAddr) -> Key {
    let mut key = query.key();
    match resolver.ip() {
        std::net::IpAddr::V4(ip) => key.extend_from_slice(&ip.octets()),
        std::net::IpAddr::V6(ip) => key.extend_from_slice(&ip.octets()),
    }
    key.extend_from_slice(&resolver.port().to_be_bytes());
    key.into_boxed_slice()
}

/// Remembers which questions were asked lately, inexactly and for next to nothing, so that names
/// that are asked once, such as those of a flood, push nothing out of the cache and cost no room.
struct Doorkeeper {
    hasher: RandomState,
    marks: Box<[AtomicU32]>,
}

const MARKS: usize = 1 << 14;

impl Doorkeeper {
    fn new() -> Self {
        Self { hasher: RandomState::new(), marks: (0..MARKS).map(|_| AtomicU32::new(0)).collect() }
    }

    /// Whether `key` came by before; notes that it came by now.
    fn knows(&self, key: &Key) -> bool {
        let [a, b, c, d, e, f, ..] = self.hasher.hash_one(key).to_be_bytes();
        let mark = u32::from_be_bytes([a, b, c, d]) | 1;
        let place = usize::from(u16::from_be_bytes([e, f])) % MARKS;
        self.marks.get(place).is_some_and(|place| place.swap(mark, Ordering::Relaxed) == mark)
    }
}

/// The answers that are kept.
pub(crate) struct Cache {
    doorkeeper: Doorkeeper,
    store: Option<Store<Key, Arc<Kept>>>,
    limits: CacheLimits,
}

struct Kept {
    message: Box<[u8]>,
    ttls: Box<[u16]>,
    since: Timestamp,
    lifetime: Duration,
    stale: Duration,
}

impl Cache {
    pub(crate) fn new(limits: &CacheLimits) -> Self {
        let store = (limits.octets > 0).then(|| {
            Store::builder()
                .max_capacity(limits.octets)
                .weigher(|key: &Key, kept: &Arc<Kept>| {
                    let octets =
                        key.len() + kept.message.len() + 2 * kept.ttls.len() + ENTRY_OVERHEAD;
                    u32::try_from(octets).unwrap_or(u32::MAX)
                })
                .expire_after(WithItsLifetime)
                .build()
        });
        Self { doorkeeper: Doorkeeper::new(), store, limits: limits.clone() }
    }

    /// Keeps `message`, read as `answer`, for as long as it says and the limits allow, where its
    /// question was asked before.
    pub(crate) fn keep(&self, key: &Key, message: &[u8], answer: &Answer, now: Timestamp) {
        let Some(store) = &self.store else {
            return;
        };
        let bound = if answer.is_negative { self.limits.negative_max } else { self.limits.max };
        let lifetime = match answer.lifetime {
            Some(seconds) => Duration::from_secs(seconds.into()).min(bound),
            None => return,
        };
        if lifetime.is_zero() || !self.doorkeeper.knows(key) {
            return;
        }
        let kept = Kept {
            message: message.into(),
            ttls: answer.ttls.as_slice().into(),
            since: now,
            lifetime,
            stale: self.limits.serve_stale.unwrap_or_default(),
        };
        store.insert(key.clone(), Arc::new(kept));
    }

    /// A fresh answer, its TTLs counted down.
    pub(crate) fn fresh(&self, key: &Key, now: Timestamp) -> Option<Vec<u8>> {
        let kept = self.store.as_ref()?.get(key)?;
        let age = now.since(kept.since);
        if age >= kept.lifetime {
            return None;
        }
        // A second that has begun counts: the answer is never kept for longer than it says, and never
        // opens its addresses for longer than when it arrived.
        let seconds = u32::try_from(age.as_nanos().div_ceil(1_000_000_000)).unwrap_or(u32::MAX);
        Some(kept.message_with(|ttl| ttl.saturating_sub(seconds)))
    }

    /// An answer past its time, for when the resolver is away (RFC 8767).
    pub(crate) fn stale(&self, key: &Key, now: Timestamp) -> Option<Vec<u8>> {
        self.limits.serve_stale?;
        let kept = self.store.as_ref()?.get(key)?;
        let is_usable = now.since(kept.since) < kept.lifetime + kept.stale;
        is_usable.then(|| kept.message_with(|ttl| ttl.min(STALE_TTL)))
    }
}

impl Kept {
    fn message_with(&self, map: impl Fn(u32) -> u32) -> Vec<u8> {
        let mut message = self.message.to_vec();
        reply::map_ttls(&mut message, &self.ttls, map);
        message
    }
}

/// Lets the store forget an entry when it can serve no more.
struct WithItsLifetime;

impl Expiry<Key, Arc<Kept>> for WithItsLifetime {
    fn expire_after_create(&self, _: &Key, kept: &Arc<Kept>, _: Instant) -> Option<Duration> {
        Some(kept.lifetime + kept.stale)
    }

    fn expire_after_update(
        &self,
        key: &Key,
        kept: &Arc<Kept>,
        updated: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.expire_after_create(key, kept, updated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{answer, gate};

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_nanos((1000 + seconds) * 1_000_000_000)
    }

    fn mk_query(name: &[u8]) -> Query {
        let mut message = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(name);
        message.extend_from_slice(&[0, 0, 1, 0, 1]);
        gate::read(&message).unwrap()
    }

    /// An answer with one address and this TTL.
    fn mk_answer(query: &Query, ttl: u32) -> Vec<u8> {
        let mut message = vec![0, 7, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
        message.extend_from_slice(query.question());
        message.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
        message.extend_from_slice(&ttl.to_be_bytes());
        message.extend_from_slice(&[0, 4, 192, 0, 2, 1]);
        message
    }

    fn ttl_of(message: &[u8]) -> u32 {
        u32::from_be_bytes(*message[..message.len() - 6].last_chunk().unwrap())
    }

    fn keep(cache: &Cache, query: &Query, ttl: u32) -> Key {
        let message = mk_answer(query, ttl);
        let answer = answer::read(&message, query).unwrap();
        let key = key(query, "10.0.0.10:53".parse().unwrap());
        cache.keep(&key, &message, &answer, at(0));
        cache.keep(&key, &message, &answer, at(0));
        key
    }

    #[test]
    fn ttls_count_down_to_the_end() {
        let cache = Cache::new(&CacheLimits::default());
        let key = keep(&cache, &mk_query(b"\x01a"), 60);
        assert_eq!(cache.fresh(&key, at(0)).map(|message| ttl_of(&message)), Some(60));
        assert_eq!(cache.fresh(&key, at(59)).map(|message| ttl_of(&message)), Some(1));
        let later = at(58).saturating_add(Duration::from_millis(1));
        assert_eq!(cache.fresh(&key, later).map(|message| ttl_of(&message)), Some(1), "begun");
        assert_eq!(cache.fresh(&key, at(60)), None);
        assert_eq!(cache.stale(&key, at(60)), None);
    }

    #[test]
    fn case_does_not_matter_and_resolver_and_flags_do() {
        let lower = mk_query(b"\x01a");
        let resolver = "10.0.0.10:53".parse().unwrap();
        assert_eq!(key(&lower, resolver), key(&mk_query(b"\x01A"), resolver));
        assert_ne!(key(&lower, resolver), key(&lower, "10.0.0.11:53".parse().unwrap()));
        let mut checking_disabled = lower.clone();
        checking_disabled.flags |= crate::wire::CD;
        assert_ne!(key(&lower, resolver), key(&checking_disabled, resolver));
    }

    #[test]
    fn nothing_is_kept_of_what_must_not_be() {
        let cache = Cache::new(&CacheLimits::default());
        let key = keep(&cache, &mk_query(b"\x01a"), 0);
        assert_eq!(cache.fresh(&key, at(0)), None);
        let off = Cache::new(&CacheLimits { octets: 0, ..CacheLimits::default() });
        let key = keep(&off, &mk_query(b"\x01a"), 60);
        assert_eq!(off.fresh(&key, at(0)), None);
    }

    #[test]
    fn stale_answers_serve_for_their_window_with_a_short_ttl() {
        let limits =
            CacheLimits { serve_stale: Some(Duration::from_secs(100)), ..CacheLimits::default() };
        let cache = Cache::new(&limits);
        let key = keep(&cache, &mk_query(b"\x01a"), 60);
        assert_eq!(cache.fresh(&key, at(60)), None);
        assert_eq!(cache.stale(&key, at(159)).map(|message| ttl_of(&message)), Some(30));
        assert_eq!(cache.stale(&key, at(160)), None);
    }

    #[test]
    fn question_asked_once_is_not_kept() {
        let cache = Cache::new(&CacheLimits::default());
        let query = mk_query(b"\x01a");
        let message = mk_answer(&query, 60);
        let answer = answer::read(&message, &query).unwrap();
        let key = key(&query, "10.0.0.10:53".parse().unwrap());
        cache.keep(&key, &message, &answer, at(0));
        assert_eq!(cache.fresh(&key, at(0)), None);
        cache.keep(&key, &message, &answer, at(1));
        assert!(cache.fresh(&key, at(1)).is_some());
    }

    #[test]
    fn octets_are_bounded() {
        let limits = CacheLimits { octets: 100_000, ..CacheLimits::default() };
        let cache = Cache::new(&limits);
        for number in 0..10_000 {
            keep(&cache, &mk_query(format!("\x05{number:05}").as_bytes()), 60);
        }
        let store = cache.store.as_ref().unwrap();
        store.run_pending_tasks();
        assert!(store.weighted_size() <= 100_000);
        assert!(store.entry_count() > 100);
    }
}
