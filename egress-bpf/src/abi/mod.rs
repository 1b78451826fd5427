//! The layout that the kernel program and user space share.
//!
//! Every type is `repr(C)` without implicit padding, addresses and MACs are byte arrays in network
//! order, and ports are plain numbers in host order. Sizes are asserted at compile time; a change
//! of any layout or of what a field means raises [`ABI_VERSION`].

mod address;
mod config;
mod endpoint;
mod event;
mod flow;
mod passage;
mod reason;
mod ruleset;
mod service;
mod table;
mod vacancy;

pub use address::{Address, Mac};
pub use config::{CONFIG_INCOMPLETE, CONFIG_OTHER_PROTOCOLS, CONFIG_RANGES, Config, RESOLVERS_MAX};
pub use endpoint::{
    ADDRESSES_MAX, ENDPOINT_DNS_GOVERNED, ENDPOINT_MAC_KNOWN, ENDPOINT_TRANSLATED, Endpoint,
};
pub use event::{Event, EventVerdict, NO_CLAUSE};
pub use flow::{
    FLOW_CLOSING, FLOW_ESTABLISHED, FLOW_OPENING, FLOW_REVOKED, FRAGMENTS_EACH, Flow, FlowKey,
    Fragment, FragmentKey, QuotaKey, ROLE_HAIRPIN, ROLE_HAIRPIN_SERVER, ROLE_PLAIN, ROLE_REPLY,
    ROLE_TRANSLATED, TOTAL_OPENED, TOTAL_RELEASED, TOTALS,
};
pub use passage::{PASSAGES, Passage};
pub use reason::{COUNTER_SLOTS, DropReason, Pass};
pub use ruleset::{RULES_MAX, RuleSet, WORDS};
pub use service::{Backend, BackendKey, SERVICE_AFFINE, Service, ServiceKey};
pub use table::{
    CidrKey, ECHO_PORT_V4, ECHO_PORT_V6, HitKey, LEVEL_SHIFTS, LEVELS, NameEntry, NameKey,
    PORT_CLASSES_MAX, PeerKey, PeerKind, PortClass, PortKey, TABLE_ANY_PEER, TABLE_CIDRS,
    TABLE_IDENTITIES, TABLE_NAMES, Table, TableKey,
};

pub use vacancy::BLOCKS;

/// Raised with every change of a layout; part of the path that maps are pinned under.
pub const ABI_VERSION: u32 = 7;

/// The oldest version whose rows of `ENDPOINTS` and `FLOWS` have this layout and meaning: from there on
/// they are carried over.
pub const FLOWS_SINCE: u32 = 3;

/// Which way a packet crosses an endpoint's interface, or a flow was opened, seen from the
/// endpoint. Kernel maps carry the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Direction {
    /// From the endpoint to the world.
    Egress = 0,
    /// From the world to the endpoint.
    Ingress = 1,
}

impl Direction {
    /// The direction numbered `number`.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Egress),
            1 => Some(Self::Ingress),
            _ => None,
        }
    }

    /// The other one.
    #[must_use]
    pub const fn reverse(self) -> Self {
        match self {
            Self::Egress => Self::Ingress,
            Self::Ingress => Self::Egress,
        }
    }

    /// The name that logs carry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }
}
