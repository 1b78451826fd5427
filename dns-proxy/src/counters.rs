//! What the proxy counts: plain atomics, a bounded set of labels, no names and no addresses.

use std::sync::atomic::{AtomicU64, Ordering};

/// One count that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds one and says how many there were before.
    pub(crate) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The count.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $field:ident = $label:literal,)+) => {
        /// Everything the proxy counts since its start.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $field: Counter,)+
        }

        impl Counters {
            /// Every count with its label, in a fixed order.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$(($label, self.$field.value())),+]
            }
        }
    };
}

counters! {
    /// Messages that arrived over UDP.
    udp_messages = "messages-udp",
    /// Messages that arrived over TCP.
    tcp_messages = "messages-tcp",
    /// Names allowed and answered.
    allowed = "verdict-allowed",
    /// Names refused.
    denied = "verdict-denied",
    /// Names refused because a pod asked too many new ones below wildcards.
    denied_new_names = "denied-new-names",
    /// Names that only Audit policies would have refused.
    audit = "verdict-audit",
    /// Allowed names that ended in SERVFAIL.
    error = "verdict-error",
    /// Messages too short to hold a header.
    dropped_short = "dropped-short",
    /// Messages that are responses.
    dropped_response = "dropped-response",
    /// Messages from an address of no governed endpoint.
    dropped_unknown_client = "dropped-unknown-client",
    /// Messages over a client's bound on queries in flight.
    dropped_client_in_flight = "dropped-client-in-flight",
    /// Messages over a client's rate.
    dropped_client_rate = "dropped-client-rate",
    /// Answers that found no room in the socket's send buffer.
    dropped_send = "dropped-send",
    /// Messages over a client's share of what waits for the worker.
    dropped_client_queue = "dropped-client-queue",
    /// Answers of a client whose address belongs to another endpoint or to none.
    dropped_client_gone = "dropped-client-gone",
    /// Messages that are no well-formed query.
    rejected_malformed = "rejected-malformed",
    /// Operations other than QUERY.
    rejected_opcode = "rejected-opcode",
    /// Classes other than IN.
    rejected_class = "rejected-class",
    /// Query types that are never forwarded, such as ANY and zone transfers.
    rejected_type = "rejected-type",
    /// Signed queries.
    rejected_signed = "rejected-signed",
    /// EDNS versions other than 0.
    rejected_version = "rejected-version",
    /// Client connections refused by a bound.
    connections_refused = "connections-refused",
    /// Client connections closed because they were idle, slow or broken.
    connections_closed = "connections-closed",
    /// Queries answered from the cache.
    cache_hits = "cache-hits",
    /// Queries that the cache had no fresh answer for.
    cache_misses = "cache-misses",
    /// Queries answered past the answer's time because the resolver was away.
    cache_stale = "cache-stale",
    /// Queries sent upstream over UDP, repeats included.
    upstream_udp = "upstream-udp",
    /// Queries sent upstream over TCP.
    upstream_tcp = "upstream-tcp",
    /// Repeated queries.
    upstream_retries = "upstream-retries",
    /// Queries that a second server was asked as well, because the first took long.
    upstream_hedged = "upstream-hedged",
    /// Queries that went to another server because one said that it failed.
    upstream_failovers = "upstream-failovers",
    /// Messages from an upstream that answer no open query.
    upstream_unmatched = "upstream-unmatched",
    /// Queries moved to TCP because of messages that could be forged answers.
    upstream_suspected = "upstream-suspected",
    /// Queries that ended without an answer in time.
    upstream_timeouts = "upstream-timeouts",
    /// Queries to a resolver that cannot be reached.
    upstream_unreachable = "upstream-unreachable",
    /// Answers that were cut short and asked for again over TCP.
    upstream_truncated = "upstream-truncated",
    /// Queries refused because too many are under way.
    upstream_overloaded = "upstream-overloaded",
    /// Queries that joined an equal one under way.
    upstream_merged = "upstream-merged",
    /// Answers that match their query and cannot be read.
    answers_malformed = "answers-malformed",
    /// Lessons handed to the learner.
    lessons = "lessons",
    /// Lessons that failed.
    lessons_failed = "lessons-failed",
    /// Queries whose handling panicked.
    panics = "panics",
}
