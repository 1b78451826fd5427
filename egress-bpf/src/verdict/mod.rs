//! The one function that decides about a packet.
//!
//! [`egress_verdict`] reads headers, asks maps through the [`Maps`] trait and returns a [`Verdict`].
//! It runs in the kernel over eBPF maps and in user space over `sim`. Every gap ends in a drop: an
//! interface without endpoint, an endpoint without table, a promised row that is missing, a flow
//! table that is full.
//!
//! A packet is taken through these steps: headers, endpoint, source check (`source`), lookups
//! for the proxy (`dns`), known flows (`conntrack`), and for the first packet of a flow the rules of
//! the endpoint's table (`classify`). Most packets need none of that: [`pass_known`] is asked first.

mod classify;
mod conntrack;
mod dns;
mod fragment;
mod maps;
mod question;
mod service;
mod shortcut;
mod source;

pub use classify::answer;
pub use conntrack::{flow_is_expired, track};
pub use maps::{Full, Gate, Maps};
pub use question::Question;
pub use shortcut::pass_known;

use crate::abi::{
    Address, Config, Direction, DropReason, ENDPOINT_DNS_GOVERNED, ENDPOINT_TRANSLATED, Event,
    EventVerdict, Flow, FlowKey, Fragment, NO_CLAUSE, Pass, RuleSet,
};
use crate::packet::{Embedded, Headers, Kind, Packet, Piece};

/// Number of the identity of the node itself; `namegate_policy::identity::Identity::HOST`.
pub const IDENTITY_HOST: u32 = 1;

/// Stands for the identity of an address that is not found while not every address is known, and is
/// written for one that somebody has whom not every table knows: it closes.
pub const IDENTITY_UNKNOWN: u32 = 0;

/// Number of the identity of the API server outside of the cluster;
/// `namegate_policy::identity::Identity::KUBE_APISERVER`.
pub const IDENTITY_KUBE_APISERVER: u32 = 3;

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
    /// It goes on between other addresses, because the flow is one with a service.
    Translate {
        /// Why it was let through.
        pass: Pass,
        /// How it is rewritten, to the target of the [`Case`].
        way: Way,
    },
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

/// How a packet of a flow with a service is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Way {
    /// Not at all.
    Straight,
    /// From the endpoint: the backend in the place of the service.
    ToBackend,
    /// To the endpoint: the service in the place of the backend.
    FromBackend,
    /// To the endpoint, an ICMP error: the service in the place of the backend in what it quotes.
    Quoted,
    /// From the endpoint to itself: the service as the source, the server as the destination, and
    /// back to where it came from.
    HairpinOut,
    /// From the endpoint's server to its client: the service as the source, the client as the
    /// destination, and back to where it came from.
    HairpinBack,
}

impl Way {
    /// The way numbered `number`; none is [`Way::Straight`].
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::ToBackend,
            2 => Self::FromBackend,
            3 => Self::Quoted,
            4 => Self::HairpinOut,
            5 => Self::HairpinBack,
            _ => Self::Straight,
        }
    }
}

impl Verdict {
    /// The counter that the packet counts in.
    #[inline(always)]
    pub const fn counter(self) -> u8 {
        match self {
            Self::Forward(pass) | Self::Translate { pass, .. } => pass as u8,
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
    /// Whether the packet came from the endpoint itself and was turned round.
    pub is_returned: bool,
    /// The monotonic clock.
    pub now_ns: u64,
}

const INGRESS: u32 = 1;
const FROM_NODE: u32 = 1 << 1;
const RETURNED: u32 = 1 << 2;

impl Scene {
    /// Everything but interface and time as one number, which can be handed to a kernel function.
    #[inline(always)]
    pub const fn flags(&self) -> u32 {
        let direction = if let Direction::Ingress = self.direction { INGRESS } else { 0 };
        let from_node = if self.is_from_node { FROM_NODE } else { 0 };
        direction | from_node | if self.is_returned { RETURNED } else { 0 }
    }

    /// The scene that these flags were made of.
    #[inline(always)]
    pub const fn from_flags(ifindex: u32, flags: u32, now_ns: u64) -> Self {
        Self {
            ifindex,
            direction: if flags & INGRESS == 0 { Direction::Egress } else { Direction::Ingress },
            is_from_node: flags & FROM_NODE != 0,
            is_returned: flags & RETURNED != 0,
            now_ns,
        }
    }
}

/// What was found out about a packet on the way to its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// Its headers.
    pub headers: Headers,
    /// The flow that the packet belongs to.
    pub key: FlowKey,
    /// The other end as the rules see it: the backend where the flow is one with a service.
    pub remote: Address,
    /// The address that a rewritten packet gets.
    pub target: Address,
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
    /// Port at `remote`.
    pub remote_port: u16,
    /// The port that a rewritten packet gets.
    pub target_port: u16,
    /// How the packet is rewritten.
    pub way: Way,
    /// Who opens the flow.
    pub opener: Direction,
    /// Whether this is the first packet of a flow.
    pub is_first: bool,
    /// Whether the flow table has an entry under `key`.
    is_entered: bool,
    /// Whether nobody saw the flow open.
    is_midway: bool,
    /// Whether the endpoint's lookups go to the proxy.
    is_dns_governed: bool,
    /// Whether the endpoint's flows to services are translated here.
    is_translated: bool,
    /// Room for the key of a flow's other half.
    twin: FlowKey,
    /// Room for the rules that match.
    matching: RuleSet,
    /// Room for an entry of a flow.
    flow: Flow,
    /// Room for what an ICMP error quotes.
    embedded: Embedded,
    /// Room for the key of the flow that it is about.
    quoted: FlowKey,
    /// Room for what is remembered of a fragmented datagram.
    fragment: Fragment,
}

impl Case {
    /// A case before anything was found out.
    pub const OPEN: Self = Self {
        headers: Headers::UNREAD,
        key: FlowKey::UNKNOWN,
        remote: Address::UNSPECIFIED,
        target: Address::UNSPECIFIED,
        identity: 0,
        remote_identity: 0,
        table: 0,
        generation: 0,
        epoch: 0,
        length: 0,
        clause: NO_CLAUSE,
        audit: NO_CLAUSE,
        remote_port: 0,
        target_port: 0,
        way: Way::Straight,
        opener: Direction::Egress,
        is_first: false,
        is_entered: false,
        is_midway: false,
        is_dns_governed: false,
        is_translated: false,
        twin: FlowKey::UNKNOWN,
        matching: RuleSet::EMPTY,
        flow: Flow::UNKNOWN,
        embedded: Embedded::UNREAD,
        quoted: FlowKey::UNKNOWN,
        fragment: Fragment::UNKNOWN,
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
        self.way = Way::Straight;
        self.opener = Direction::Egress;
        self.is_first = false;
        self.is_entered = false;
        self.is_midway = false;
    }

    /// How user space is told of the verdict; `None` where it is not.
    #[inline(always)]
    pub const fn told(&self, verdict: Verdict) -> Option<EventVerdict> {
        match verdict {
            Verdict::Drop(_) => Some(EventVerdict::Dropped),
            Verdict::Forward(_) | Verdict::Translate { .. } if !self.is_first => None,
            Verdict::Forward(_) | Verdict::Translate { .. } if self.audit != NO_CLAUSE => {
                Some(EventVerdict::Audit)
            }
            Verdict::Forward(_) | Verdict::Translate { .. } => Some(EventVerdict::Forwarded),
            Verdict::ToProxy { .. } | Verdict::FromProxy { .. } => None,
        }
    }

    /// The record that the case ends in: what the packet counts as, and how it is told.
    #[inline(always)]
    pub fn event(&self, scene: &Scene, counter: u8, told: EventVerdict) -> Event {
        let key = &self.key;
        let (service, service_port) = match self.way {
            Way::Straight => (Address::UNSPECIFIED, 0),
            Way::ToBackend
            | Way::FromBackend
            | Way::Quoted
            | Way::HairpinOut
            | Way::HairpinBack => (key.remote, key.remote_port),
        };
        Event {
            time_ns: scene.now_ns,
            local: key.local,
            remote: self.remote,
            service,
            ifindex: scene.ifindex,
            identity: self.identity,
            remote_identity: self.remote_identity,
            table: self.table,
            length: self.length,
            clause: self.clause,
            audit: self.audit,
            local_port: key.local_port,
            remote_port: self.remote_port,
            service_port,
            protocol: key.protocol,
            direction: self.opener as u8,
            packet_direction: scene.direction as u8,
            verdict: told as u8,
            reason: counter,
            padding: [0; 5],
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
        self.remote = key.remote;
        self.remote_port = key.remote_port;
    }

    /// The packet goes on, rewritten where its flow is one with a service.
    #[inline(always)]
    const fn let_through(&self, pass: Pass) -> Verdict {
        if let Way::Straight = self.way {
            Verdict::Forward(pass)
        } else {
            Verdict::Translate { pass, way: self.way }
        }
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
    if let Some(verdict) = dns::intercept(maps, &case.headers, scene, is_governed)? {
        return Ok(verdict);
    }
    if let Piece::Later = case.headers.piece {
        return fragment::later(maps, scene, case);
    }
    if let Kind::IcmpError = case.headers.kind {
        return conntrack::related(packet, maps, scene, case);
    }
    let pass = maps.track(scene, case)?;
    if let Piece::First = case.headers.piece {
        fragment::remember(maps, scene, case)?;
    }
    Ok(case.let_through(pass))
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
    case.is_translated = endpoint.flags & ENDPOINT_TRANSLATED != 0;
    read?;
    source::check(packet, maps, &case.headers, endpoint, scene.direction)
}

/// Whether some address, service or resolver is not written, so that one that is not found may be any.
#[inline(always)]
fn is_incomplete(config: Option<&Config>) -> bool {
    config.is_some_and(|config| config.flags & crate::abi::CONFIG_INCOMPLETE != 0)
}

/// Whether `config` lets other IP protocols be judged.
#[inline(always)]
fn judges_other_protocols(config: Option<&Config>) -> bool {
    config.is_some_and(|config| config.flags & crate::abi::CONFIG_OTHER_PROTOCOLS != 0)
}
