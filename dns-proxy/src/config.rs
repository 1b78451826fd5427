//! What the proxy is told at its start, and what can go wrong then.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use crate::record::Transport;

/// A resolver that pods ask, and where the proxy stands in for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolverSlot {
    /// The number that the kernel's map knows the resolver by.
    pub slot: u8,
    /// The resolver, asked from the node.
    pub resolver: SocketAddr,
    /// Servers that give the same answers and may be asked in its place: where it does not answer,
    /// fails, or takes long. At most 15.
    pub alternatives: Vec<SocketAddr>,
    /// The proxy's addresses for this resolver; UDP and TCP on each. Port 0 takes any free port.
    pub listen: Vec<SocketAddr>,
}

/// Bounds on what clients and upstreams can make the proxy hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Queries of one client that wait for an upstream or the learner.
    pub client_in_flight: u32,
    /// Queries of one client per second, with a second's worth of burst; `None` for no bound.
    pub client_rate: Option<u32>,
    /// Names that wildcards alone allow and that one pod did not ask lately: so many a minute, and a
    /// minute's worth at once; more are refused. `None` for no bound.
    pub client_new_names: Option<u32>,
    /// TCP connections of one client.
    pub client_connections: u32,
    /// TCP connections of all clients of one slot.
    pub connections: u32,
    /// Queries of one TCP connection that are under way; more are not read meanwhile.
    pub pipelined: u32,
    /// Queries under way to one resolver over UDP, all clients together.
    pub upstream_in_flight: u32,
    /// TCP connections to one resolver.
    pub upstream_connections: u32,
    /// The largest UDP message sent or asked for, in octets.
    pub udp_payload: u16,
    /// Addresses that one answer can teach; the rest is withheld.
    pub answer_addresses: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            client_in_flight: 1024,
            client_rate: None,
            client_new_names: None,
            client_connections: 32,
            connections: 1024,
            pipelined: 32,
            upstream_in_flight: 8192,
            upstream_connections: 8,
            udp_payload: 1232,
            answer_addresses: 256,
        }
    }
}

/// What the cache may keep, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// Octets of questions and answers; 0 keeps nothing.
    pub octets: u64,
    /// The longest that an answer is kept.
    pub max: Duration,
    /// The longest that an answer is kept that says there is nothing.
    pub negative_max: Duration,
    /// For how long an answer past its time may serve while the resolver is away (RFC 8767); `None`
    /// never.
    pub serve_stale: Option<Duration>,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self {
            octets: 8 << 20,
            max: Duration::from_secs(3600),
            negative_max: Duration::from_secs(30),
            serve_stale: None,
        }
    }
}

/// How long the proxy waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For an upstream's answer to one UDP query, before the next attempt.
    pub attempt: Duration,
    /// UDP attempts for one query; then SERVFAIL.
    pub attempts: u32,
    /// For an upstream's answer over TCP, connecting included.
    pub upstream_tcp: Duration,
    /// A connection to an upstream without queries is closed after this.
    pub upstream_idle: Duration,
    /// A client's connection that completes no query for this long is closed.
    pub tcp_idle: Duration,
    /// For a client to take an answer over TCP.
    pub tcp_write: Duration,
    /// For queries under way when the proxy shuts down.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            attempt: Duration::from_millis(1300),
            attempts: 3,
            upstream_tcp: Duration::from_secs(4),
            upstream_idle: Duration::from_secs(5),
            tcp_idle: Duration::from_secs(10),
            tcp_write: Duration::from_secs(5),
            drain: Duration::from_secs(2),
        }
    }
}

/// All that [`crate::Proxy::start`] is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The resolvers at the start; more can come and go later.
    pub resolvers: Vec<ResolverSlot>,
    /// Bounds.
    pub limits: Limits,
    /// Waiting times.
    pub timeouts: Timeouts,
    /// The cache.
    pub cache: CacheLimits,
    /// Whether queries go out over UDP in random letter case, which answers must repeat: a bit more
    /// for each letter that a forger has to guess. A resolver that does not repeat it is asked over
    /// TCP.
    pub shuffles_case: bool,
    /// Threads that serve UDP; `None` for one a processor.
    pub workers: Option<NonZeroUsize>,
}

/// Why the proxy cannot stand in for a resolver.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Another socket has the address and port.
    #[error(
        "{address} ({transport}) is in use: another agent or DNS server listens there; stop it or choose another base port"
    )]
    AddressInUse {
        /// The address.
        address: SocketAddr,
        /// UDP or TCP.
        transport: Transport,
    },
    /// The address is not on this node.
    #[error("{address} ({transport}) is no address of this node: check the proxy's interface")]
    AddressMissing {
        /// The address.
        address: SocketAddr,
        /// UDP or TCP.
        transport: Transport,
    },
    /// Any other reason.
    #[error("cannot listen on {address} ({transport})")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// UDP or TCP.
        transport: Transport,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The thread that serves UDP did not start.
    #[error("the thread that serves UDP cannot be started: check the limits on tasks and files")]
    Worker {
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Two resolvers in one slot.
    #[error("slot {slot} has a resolver already")]
    SlotTaken {
        /// The slot.
        slot: u8,
    },
}
