//! How many records an endpoint may have, and what that kept out.
//!
//! Refusals have a rate of their own: a pod that opens many flows cannot hide in them what it was
//! refused.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{EndpointLabel, Record, SuppressedCounts, SuppressedRecord};

/// Endpoints that have counts of their own at most; what comes beyond shares one.
const ENDPOINTS_MAX: usize = 8_192;

/// How long an endpoint is silent before its counts are forgotten.
const IDLE: Duration = Duration::from_secs(60);

/// The bounds of each endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    /// Records a second, of refusals and of the rest each, with a second's worth at once.
    pub rate: Option<NonZeroU32>,
    /// Of what went through, one record in so many is kept.
    pub sample: Option<NonZeroU32>,
}

/// Counts the records of endpoints.
#[derive(Debug)]
pub(super) struct Limiter {
    bounds: Bounds,
    endpoints: HashMap<Option<Key>, Endpoint>,
}

/// Namespace and name of a pod.
pub(super) type Key = (Arc<str>, Arc<str>);

#[derive(Debug)]
struct Endpoint {
    label: EndpointLabel,
    /// When a record fits again, a second in advance: of what went through, of refusals.
    fits_from: [Instant; 2],
    seen: u32,
    last: Instant,
    rate: SuppressedCounts,
    sample: SuppressedCounts,
}

impl Limiter {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, endpoints: HashMap::new() }
    }

    /// Whether there is room for `record`; where there is none, it is counted.
    pub(super) fn admits(&mut self, record: &Record, now: Instant) -> bool {
        let Some(label) = record.endpoint() else { return true };
        let key = label.namespace.clone().zip(label.pod.clone());
        self.admits_of(key, record.is_refusal(), || label.clone(), now)
    }

    /// Whether there is room for a record of an endpoint, before anybody has made it; where there is
    /// none, it is counted.
    pub(super) fn admits_of(
        &mut self,
        key: Option<Key>,
        is_refusal: bool,
        label: impl FnOnce() -> EndpointLabel,
        now: Instant,
    ) -> bool {
        if self.bounds.rate.is_none() && self.bounds.sample.is_none() {
            return true;
        }
        let bounds = self.bounds;
        self.endpoint(key, label, now).admits(bounds, is_refusal, now)
    }

    /// The same for `count` records of one endpoint and kind, each through `tell`.
    pub(super) fn admits_each(
        &mut self,
        (key, is_refusal): (Option<Key>, bool),
        label: impl FnOnce() -> EndpointLabel,
        now: Instant,
        count: usize,
        mut tell: impl FnMut(bool),
    ) {
        let bounds = self.bounds;
        if bounds.rate.is_none() && bounds.sample.is_none() {
            (0..count).for_each(|_| tell(true));
            return;
        }
        let endpoint = self.endpoint(key, label, now);
        (0..count).for_each(|_| tell(endpoint.admits(bounds, is_refusal, now)));
    }

    /// Says what was kept out, each count through `tell`, which says whether it was heard; what was
    /// not heard is said again.
    pub(super) fn tell(&mut self, now: Instant, mut tell: impl FnMut(SuppressedRecord) -> bool) {
        self.endpoints.retain(|_, endpoint| {
            let (rate, sample) = (endpoint.rate, endpoint.sample);
            if rate != SuppressedCounts::default() || sample != SuppressedCounts::default() {
                if !tell(SuppressedRecord { endpoint: endpoint.label.clone(), rate, sample }) {
                    return true;
                }
                endpoint.rate = SuppressedCounts::default();
                endpoint.sample = SuppressedCounts::default();
            }
            now < endpoint.last + IDLE
        });
    }

    fn endpoint(
        &mut self,
        key: Option<Key>,
        label: impl FnOnce() -> EndpointLabel,
        now: Instant,
    ) -> &mut Endpoint {
        let has_room = self.endpoints.len() < ENDPOINTS_MAX || self.endpoints.contains_key(&key);
        let key = key.filter(|_| has_room);
        self.endpoints.entry(key).or_insert_with(|| Endpoint {
            label: if has_room { label() } else { EndpointLabel::default() },
            fits_from: [now; 2],
            seen: 0,
            last: now,
            rate: SuppressedCounts::default(),
            sample: SuppressedCounts::default(),
        })
    }
}

impl Endpoint {
    fn admits(&mut self, bounds: Bounds, is_refusal: bool, now: Instant) -> bool {
        self.last = now;
        if !is_refusal && let Some(sample) = bounds.sample {
            let place = self.seen;
            self.seen = (place + 1) % sample;
            if place != 0 {
                self.sample.allowed += 1;
                return false;
            }
        }
        let Some(rate) = bounds.rate else { return true };
        let fits_from = &mut self.fits_from[usize::from(is_refusal)];
        if *fits_from > now + Duration::from_secs(1) {
            let counts = &mut self.rate;
            *(if is_refusal { &mut counts.refused } else { &mut counts.allowed }) += 1;
            return false;
        }
        *fits_from = (*fits_from).max(now) + Duration::from_secs(1) / rate.get();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{mk_dns, mk_dns_of};
    use super::*;
    use crate::audit::LookupVerdict::{Allowed, Denied};

    fn told(limiter: &mut Limiter, now: Instant) -> Vec<(String, u64, u64, u64)> {
        let mut told = Vec::new();
        limiter.tell(now, |record| {
            let pod = record.endpoint.pod.as_deref().unwrap_or("-").to_owned();
            told.push((pod, record.rate.allowed, record.rate.refused, record.sample.allowed));
            true
        });
        told.sort();
        told
    }

    #[test]
    fn a_flood_of_what_is_allowed_hides_no_refusal() {
        let rate = NonZeroU32::new(10);
        let mut limiter = Limiter::new(Bounds { rate, sample: None });
        let start = Instant::now();
        let mut admitted = 0;
        for _ in 0..1_000 {
            admitted += u32::from(limiter.admits(&mk_dns(Allowed, "a.example"), start));
        }
        assert_eq!(admitted, 11, "a second's worth at once, and the one that is due");
        assert!(limiter.admits(&mk_dns(Denied, "b.example"), start));
        let other = mk_dns_of("other", Allowed, "a.example");
        assert!(limiter.admits(&other, start), "each endpoint has its own");
        assert_eq!(told(&mut limiter, start), [("checkout".to_owned(), 989, 0, 0)]);
        assert_eq!(told(&mut limiter, start), [], "said once");
        let later = start + Duration::from_secs(1);
        let admits = |limiter: &mut Limiter| {
            (0..100).filter(|_| limiter.admits(&mk_dns(Allowed, "a.example"), later)).count()
        };
        assert_eq!(admits(&mut limiter), 10, "what a second brings");
    }

    #[test]
    fn sampling_keeps_one_in_so_many_and_every_refusal() {
        let sample = NonZeroU32::new(4);
        let mut limiter = Limiter::new(Bounds { rate: None, sample });
        let now = Instant::now();
        let allowed =
            (0..40).filter(|_| limiter.admits(&mk_dns(Allowed, "a.example"), now)).count();
        let denied = (0..40).filter(|_| limiter.admits(&mk_dns(Denied, "a.example"), now)).count();
        assert_eq!((allowed, denied), (10, 40));
        assert_eq!(told(&mut limiter, now), [("checkout".to_owned(), 0, 0, 30)]);
    }

    #[test]
    fn what_nobody_heard_is_said_again() {
        let mut limiter = Limiter::new(Bounds { rate: NonZeroU32::new(1), sample: None });
        let now = Instant::now();
        for _ in 0..5 {
            limiter.admits(&mk_dns(Denied, "a.example"), now);
        }
        limiter.tell(now + IDLE * 2, |_| false);
        assert_eq!(told(&mut limiter, now + IDLE * 2), [("checkout".to_owned(), 0, 3, 0)]);
        assert!(limiter.endpoints.is_empty(), "a silent endpoint is forgotten");
    }

    #[test]
    fn endpoints_beyond_the_bound_share_one() {
        let mut limiter = Limiter::new(Bounds { rate: NonZeroU32::new(1), sample: None });
        let now = Instant::now();
        for number in 0..ENDPOINTS_MAX + 10 {
            let record = mk_dns_of(&format!("pod-{number}"), Denied, "a.example");
            limiter.admits(&record, now);
        }
        assert_eq!(limiter.endpoints.len(), ENDPOINTS_MAX + 1);
        assert_eq!(told(&mut limiter, now), [("-".to_owned(), 0, 8, 0)]);
    }
}
