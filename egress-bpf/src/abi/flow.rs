use super::{Address, Direction};

/// A flow that the reply direction has not been seen of.
pub const FLOW_OPENING: u8 = 0;
/// A flow with packets both ways.
pub const FLOW_ESTABLISHED: u8 = 1;
/// A TCP flow after a FIN or RST.
pub const FLOW_CLOSING: u8 = 2;

/// A flow that a changed policy cut: kept, so that the other end cannot bring it back.
pub const FLOW_REVOKED: u8 = 3;

/// [`Flow::role`]: the endpoint and the other end speak to each other's own addresses.
pub const ROLE_PLAIN: u8 = 0;
/// [`Flow::role`]: the endpoint speaks to a service; [`Flow::peer`] is the backend.
pub const ROLE_TRANSLATED: u8 = 1;
/// [`Flow::role`]: the endpoint speaks through a service to itself; [`Flow::peer`] is the backend.
pub const ROLE_HAIRPIN: u8 = 2;
/// [`Flow::role`]: no flow, but where a translated one is found by what its backend sends.
/// [`Flow::peer`] is the service.
pub const ROLE_REPLY: u8 = 3;
/// [`Flow::role`]: no flow, but where a hairpin one is found by what its server sends and gets.
/// [`Flow::peer`] is the client's address, with the port of the service.
pub const ROLE_HAIRPIN_SERVER: u8 = 4;

/// Key of `FLOWS`: a flow as its endpoint sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FlowKey {
    /// The endpoint's address.
    pub local: Address,
    /// The other end.
    pub remote: Address,
    /// Host-side interface of the endpoint.
    pub ifindex: u32,
    /// [`super::Endpoint::epoch`].
    pub epoch: u32,
    /// Port on the endpoint's side. An echo's identifier stands on the side that asked.
    pub local_port: u16,
    /// Port on the other side.
    pub remote_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub padding: [u8; 3],
}

impl FlowKey {
    /// The key of no flow.
    pub const UNKNOWN: Self = Self {
        local: Address::UNSPECIFIED,
        remote: Address::UNSPECIFIED,
        ifindex: 0,
        epoch: 0,
        local_port: 0,
        remote_port: 0,
        protocol: 0,
        padding: [0; 3],
    };
}

/// Value of `FLOWS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// When the flow was first forwarded, on the monotonic clock.
    pub created_ns: u64,
    /// When a packet of it was last forwarded.
    pub seen_ns: u64,
    /// Packets by [`super::Direction`].
    pub packets: [u64; 2],
    /// Octets by [`super::Direction`], Ethernet header included.
    pub octets: [u64; 2],
    /// The generation that it was judged under.
    pub generation: u32,
    /// The table that it was judged by.
    pub table: u32,
    /// The clause that let it through.
    pub clause: u16,
    /// The first Audit clause that matched before it.
    pub audit: u16,
    /// Who opened it, as [`super::Direction`].
    pub initiator: u8,
    /// `FLOW_*`.
    pub state: u8,
    /// `ROLE_*`.
    pub role: u8,
    /// One where nobody saw it open, so that `initiator` is whoever was seen first.
    pub midway: u8,
    /// See [`Flow::role`].
    pub peer: Address,
    /// Port at `peer`.
    pub peer_port: u16,
    /// Zero.
    pub reserved: [u8; 6],
}

impl Flow {
    /// A flow that nothing was seen of.
    pub const UNKNOWN: Self = Self {
        created_ns: 0,
        seen_ns: 0,
        packets: [0; 2],
        octets: [0; 2],
        generation: 0,
        table: 0,
        clause: 0,
        audit: 0,
        initiator: 0,
        state: FLOW_OPENING,
        role: ROLE_PLAIN,
        midway: 0,
        peer: Address::UNSPECIFIED,
        peer_port: 0,
        reserved: [0; 6],
    };

    /// Whether the endpoint opened it, or may have.
    pub const fn may_be_own(&self) -> bool {
        self.initiator == Direction::Egress as u8 || self.midway != 0
    }
}

/// The places of `TOTALS`, which counts the entries of `FLOWS`, whoever's they are.
pub const TOTALS: u32 = 2;
/// Of [`TOTALS`]: entries that were ever made, counted by the kernel program.
pub const TOTAL_OPENED: u32 = 0;
/// Of [`TOTALS`]: how many of these are gone, counted by user space.
pub const TOTAL_RELEASED: u32 = 1;

/// Key of `OPENED` and `RELEASED`: whose entries of `FLOWS` are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct QuotaKey {
    /// Host-side interface of the endpoint.
    pub ifindex: u32,
    /// [`super::Endpoint::epoch`].
    pub epoch: u32,
}

/// Datagrams in pieces that an endpoint has room for; one more takes the place of one of its own.
pub const FRAGMENTS_EACH: u32 = 64;

/// Key of `FRAGMENTS`: one of the places that an endpoint has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FragmentKey {
    /// Host-side interface of the endpoint.
    pub ifindex: u32,
    /// Below [`FRAGMENTS_EACH`].
    pub place: u32,
}

/// Value of `FRAGMENTS`: a datagram in pieces (RFC 791 section 3.2, RFC 8200 section 4.5) whose first
/// piece was forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Fragment {
    /// When later pieces stop being forwarded.
    pub deadline_ns: u64,
    /// The endpoint's address.
    pub local: Address,
    /// The other end.
    pub remote: Address,
    /// The address that the pieces get: backend or service; `::` where they keep theirs.
    pub target: Address,
    /// The generation that the first piece was judged under.
    pub generation: u32,
    /// [`super::Endpoint::epoch`].
    pub epoch: u32,
    /// The datagram's identification.
    pub identification: u32,
    /// IP protocol number of the payload.
    pub protocol: u8,
    /// [`super::Direction`] of the packet.
    pub direction: u8,
    /// Zero.
    pub padding: [u8; 2],
}

impl Fragment {
    /// No datagram.
    pub const UNKNOWN: Self = Self {
        deadline_ns: 0,
        local: Address::UNSPECIFIED,
        remote: Address::UNSPECIFIED,
        target: Address::UNSPECIFIED,
        generation: 0,
        epoch: 0,
        identification: 0,
        protocol: 0,
        direction: 0,
        padding: [0; 2],
    };

    /// Whether both are pieces of one datagram.
    #[inline(always)]
    pub const fn is_of(&self, other: &Self) -> bool {
        self.identification == other.identification
            && self.protocol == other.protocol
            && self.direction == other.direction
            && self.epoch == other.epoch
            && self.local.is(&other.local)
            && self.remote.is(&other.remote)
    }
}

const _: () = assert!(size_of::<FlowKey>() == 48);
const _: () = assert!(size_of::<QuotaKey>() == 8);
const _: () = assert!(size_of::<Flow>() == 88);
const _: () = assert!(size_of::<FragmentKey>() == 8);
const _: () = assert!(size_of::<Fragment>() == 72);
