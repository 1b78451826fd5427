//! The one function that decides about a packet.
//!
//! [`egress_verdict`] reads headers, asks maps through the [`Maps`] trait and returns a [`Verdict`].
//! It runs in the kernel over eBPF maps and in user space over `sim`. Every gap ends in a drop: an
//! interface without endpoint, an endpoint without table, a promised row that is missing, a flow
//! table that is full.
//!
//! A packet is taken through these steps: headers, endpoint, source check (`source`), lookups
//! for the proxy (`dns`), known flows (`conntrack`), and for the first packet of a flow the rules of
//! the endpoint's table (`classify`).

mod classify;
mod conntrack;
mod dns;
mod fragment;
mod maps;
mod question;
mod source;

pub use classify::answer;
pub use conntrack::flow_is_expired;
pub use maps::{Full, Gate, Maps};
pub use question::Question;

use crate::abi::{
    Config, Direction, DropReason, ENDPOINT_DNS_GOVERNED, Event, EventVerdict, Flow, FlowKey,
    FragmentKey, NO_CLAUSE, Pass, RuleSet,
};
use crate::packet::{Embedded, Headers, Kind, Packet, Piece};

/// Number of the identity of the node itself; `namegate_policy::identity::Identity::HOST`.
pub const IDENTITY_HOST: u32 = 1;

/// Number of the identity of every address that no map knows;
/// `namegate_policy::identity::Identity::WORLD`.
pub const IDENTITY_WORLD: u32 = 4;

/// Number of the first identity that is a workload's;
/// `namegate_policy::identity::Identity::FIRST_WORKLOAD`.
pub const IDENTITY_FIRST_WORKLOAD: u32 = 256;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on as it is.
    Forward(Pass),
    /// It ends here.
    Drop(DropReason),
    /// A lookup: rewritten towards the proxy, at the port of this resolver slot.
    ToProxy {
        /// The resolver's slot.
        slot: u16,
    },
    /// An answer of the proxy: rewritten so that it comes from the resolver in this slot.
    FromProxy {
        /// The resolver's slot.
        slot: u16,
    },
}

impl Verdict {
    /// The counter that the packet counts in.
    #[inline(always)]
    pub const fn counter(self) -> u8 {
        match self {
            Self::Forward(pass) => pass as u8,
            Self::Drop(reason) => reason as u8,
            Self::ToProxy { .. } => Pass::ToProxy as u8,
            Self::FromProxy { .. } => Pass::FromProxy as u8,
        }
    }
}

/// Where and when a packet is judged.
#[derive(Clone, Copy, Debug)]
pub struct Scene {
    /// The endpoint's host-side interface.
    pub ifindex: u32,
    /// Which way the packet goes.
    pub direction: Direction,
    /// Whether the packet was made by the node itself rather than received by it.
    pub is_from_node: bool,
    /// The monotonic clock.
    pub now_ns: u64,
}

/// What was found out about a packet on the way to its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// Its headers.
    pub headers: Headers,
    /// The flow that the packet belongs to.
    pub key: FlowKey,
    /// The endpoint's identity; zero where unknown.
    pub identity: u32,
    /// Identity of the other end; zero where it was not looked up.
    pub remote_identity: u32,
    /// The endpoint's table.
    pub table: u32,
    /// The endpoint's generation.
    pub generation: u32,
    /// The endpoint's epoch.
    pub epoch: u32,
    /// Octets of the frame.
    pub length: u32,
    /// The rule that decided.
    pub clause: u16,
    /// The first Audit rule that matched.
    pub audit: u16,
    /// Who opens the flow.
    pub opener: Direction,
    /// Whether this is the first packet of a flow.
    pub is_first: bool,
    /// Whether the endpoint's lookups go to the proxy.
    is_dns_governed: bool,
    /// Room for the rules that match.
    matching: RuleSet,
    /// Room for an entry of a flow.
    flow: Flow,
    /// Room for what an ICMP error quotes.
    embedded: Embedded,
    /// Room for the key of the flow that it is about.
    quoted: FlowKey,
    /// Room for the key of a fragmented datagram.
    fragment: FragmentKey,
}

impl Case {
    /// A case before anything was found out.
    pub const OPEN: Self = Self {
        headers: Headers::UNREAD,
        key: FlowKey::UNKNOWN,
        identity: 0,
        remote_identity: 0,
        table: 0,
        generation: 0,
        epoch: 0,
        length: 0,
        clause: NO_CLAUSE,
        audit: NO_CLAUSE,
        opener: Direction::Egress,
        is_first: false,
        is_dns_governed: false,
        matching: RuleSet::EMPTY,
        flow: Flow::UNKNOWN,
        embedded: Embedded::UNREAD,
        quoted: FlowKey::UNKNOWN,
        fragment: FragmentKey::UNKNOWN,
    };

    /// Makes room for another packet.
    #[inline(always)]
    pub fn reset(&mut self) {
        self.headers = Headers::UNREAD;
        self.identity = 0;
        self.remote_identity = 0;
        self.table = 0;
        self.generation = 0;
        self.epoch = 0;
        self.length = 0;
        self.clause = NO_CLAUSE;
        self.audit = NO_CLAUSE;
        self.opener = Direction::Egress;
        self.is_first = false;
    }

    /// How user space is told of the verdict; `None` where it is not.
    #[inline(always)]
    pub const fn told(&self, verdict: Verdict) -> Option<EventVerdict> {
        match verdict {
            Verdict::Drop(_) => Some(EventVerdict::Dropped),
            Verdict::Forward(_) if !self.is_first => None,
            Verdict::Forward(_) if self.audit != NO_CLAUSE => Some(EventVerdict::Audit),
            Verdict::Forward(_) => Some(EventVerdict::Forwarded),
            Verdict::ToProxy { .. } | Verdict::FromProxy { .. } => None,
        }
    }

    /// The record that the case ends in.
    #[inline(always)]
    pub fn event(&self, scene: &Scene, verdict: Verdict, told: EventVerdict) -> Event {
        let key = &self.key;
        Event {
            time_ns: scene.now_ns,
            local: key.local,
            remote: key.remote,
            ifindex: scene.ifindex,
            identity: self.identity,
            remote_identity: self.remote_identity,
            table: self.table,
            length: self.length,
            clause: self.clause,
            audit: self.audit,
            local_port: key.local_port,
            remote_port: key.remote_port,
            protocol: key.protocol,
            direction: self.opener as u8,
            packet_direction: scene.direction as u8,
            verdict: told as u8,
            reason: verdict.counter(),
            padding: [0; 7],
        }
    }

    /// Finds the key of the flow that the packet belongs to.
    #[inline(always)]
    fn find_key(&mut self, scene: &Scene) {
        let (headers, key) = (&self.headers, &mut self.key);
        (key.local, key.remote, key.local_port, key.remote_port) = match scene.direction {
            Direction::Egress => {
                (headers.source, headers.destination, headers.source_port, headers.destination_port)
            }
            Direction::Ingress => {
                (headers.destination, headers.source, headers.destination_port, headers.source_port)
            }
        };
        key.ifindex = scene.ifindex;
        key.epoch = self.epoch;
        key.protocol = headers.protocol;
    }
}

/// Decides about `packet`, which crosses the interface of `scene`, and leaves what it found out in
/// `case`.
#[inline(always)]
pub fn egress_verdict<P: Packet, M: Gate<P>>(
    packet: &P,
    maps: &mut M,
    scene: &Scene,
    case: &mut Case,
) -> Verdict {
    match decide(packet, maps, scene, case) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::Drop(reason),
    }
}

#[inline(always)]
fn decide<P: Packet, M: Gate<P>>(
    packet: &P,
    maps: &mut M,
    scene: &Scene,
    case: &mut Case,
) -> Result<Verdict, DropReason> {
    maps.admit(packet, scene, case)?;
    match case.headers.kind {
        Kind::Arp | Kind::Neighbour | Kind::Router | Kind::Listener => {
            return Ok(Verdict::Forward(Pass::Link));
        }
        Kind::Tcp
        | Kind::Udp
        | Kind::Sctp
        | Kind::EchoRequest
        | Kind::EchoReply
        | Kind::IcmpError
        | Kind::Other => {}
    }
    let is_governed = case.is_dns_governed;
    if let Some(verdict) = dns::intercept(maps, &case.headers, scene.direction, is_governed)? {
        return Ok(verdict);
    }
    if let Piece::Later = case.headers.piece {
        return fragment::later(maps, scene, case);
    }
    if let Kind::IcmpError = case.headers.kind {
        return conntrack::related(packet, maps, scene, case);
    }
    let verdict = conntrack::track(maps, scene, case)?;
    if let Piece::First = case.headers.piece {
        fragment::remember(maps, scene, case)?;
    }
    Ok(verdict)
}

/// Reads the headers of a packet and checks whether it may carry its addresses at all.
#[inline(always)]
pub fn admit<P: Packet, M: Maps>(
    packet: &P,
    maps: &M,
    scene: &Scene,
    case: &mut Case,
) -> Result<(), DropReason> {
    case.opener = scene.direction;
    case.length = packet.length();
    let read = case.headers.read(packet);
    case.find_key(scene);
    let endpoint = maps.endpoint(scene.ifindex).ok_or(DropReason::NoEndpoint)?;
    case.identity = endpoint.identity;
    case.table = endpoint.table;
    case.generation = endpoint.generation;
    case.epoch = endpoint.epoch;
    case.key.epoch = endpoint.epoch;
    case.is_dns_governed = endpoint.flags & ENDPOINT_DNS_GOVERNED != 0;
    read?;
    source::check(packet, maps, &case.headers, endpoint, scene.direction)
}

/// Whether `config` lets other IP protocols be judged.
#[inline(always)]
fn judges_other_protocols(config: Option<&Config>) -> bool {
    config.is_some_and(|config| config.flags & crate::abi::CONFIG_OTHER_PROTOCOLS != 0)
}
