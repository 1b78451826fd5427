use super::{Address, RuleSet};

/// Key of `TABLES` and part of the keys of every row of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct TableKey {
    /// The table.
    pub table: u32,
    /// [`super::Direction`] in which flows are opened.
    pub direction: u32,
}

/// [`Table::flags`]: some rule names remotes by identity.
pub const TABLE_IDENTITIES: u16 = 1;
/// [`Table::flags`]: some rule matches any remote, and its row must be there.
pub const TABLE_ANY_PEER: u16 = 1 << 1;
/// [`Table::flags`]: some rule names remotes by prefix.
pub const TABLE_CIDRS: u16 = 1 << 2;
/// [`Table::flags`]: some rule names remotes by domain name.
pub const TABLE_NAMES: u16 = 1 << 3;

/// What all lookups in one direction of a table need to know beforehand: value of `TABLES`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Table {
    /// Rules that drop.
    pub drop: RuleSet,
    /// Rules that are remembered while the search goes on.
    pub audit: RuleSet,
    /// Rules that skip the rest of their tier.
    pub pass: RuleSet,
    /// The rules of each tier that can be passed over: admin, namespaced, baseline.
    pub tiers: [RuleSet; 3],
    /// Which [`LEVELS`] of port blocks have rows, one bit a level, by [`PortClass`].
    pub levels: [u8; PORT_CLASSES_MAX],
    /// `TABLE_*`.
    pub flags: u16,
    /// Zero.
    pub padding: [u8; 2],
    /// The set of prefixes under which `CIDRS` is asked: the table's own number, or that of another
    /// table which means the same by its prefixes.
    pub prefixes: u32,
}

/// What a row of `PEERS` is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PeerKind {
    /// The remote's identity.
    Identity = 0,
    /// Nothing: these rules match every remote.
    Any = 1,
    /// The class of the addresses learned for names.
    Names = 2,
}

/// Key of `PEERS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PeerKey {
    /// The table.
    pub table: u32,
    /// The identity's or the class's number; zero for [`PeerKind::Any`].
    pub class: u32,
    /// [`super::Direction`] in which flows are opened.
    pub direction: u8,
    /// [`PeerKind`].
    pub kind: u8,
    /// Zero.
    pub padding: [u8; 2],
}

impl PeerKey {
    /// The key of the rules that match remotes of this kind and class.
    #[inline(always)]
    pub const fn new(table: &TableKey, kind: PeerKind, class: u32) -> Self {
        Self {
            table: table.table,
            class,
            direction: table.direction as u8,
            kind: kind as u8,
            padding: [0; 2],
        }
    }
}

/// Key of `CIDRS` without the prefix length, which counts the octets of set and direction too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct CidrKey {
    /// The set of prefixes, as [`Table::prefixes`] names it, in network order.
    pub set: [u8; 4],
    /// [`super::Direction`] in which flows are opened, in network order.
    pub direction: [u8; 4],
    /// The remote.
    pub address: Address,
}

impl CidrKey {
    /// Bits of the key before those of the address.
    pub const PREFIX_BASE: u32 = 64;

    /// The key under which `address` is found in a set of prefixes.
    #[inline(always)]
    pub const fn new(set: u32, direction: u32, address: Address) -> Self {
        Self { set: set.to_be_bytes(), direction: direction.to_be_bytes(), address }
    }
}

/// The number of [`PortClass`]es that there is room for.
pub const PORT_CLASSES_MAX: usize = 8;

/// The kinds of flows that port rules tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PortClass {
    /// TCP by destination port.
    Tcp = 0,
    /// UDP by destination port.
    Udp = 1,
    /// SCTP by destination port.
    Sctp = 2,
    /// ICMP and ICMPv6 echo.
    Echo = 3,
    /// Every other IP protocol.
    Other = 4,
}

/// What stands for the port of an IPv4 echo: the message type of a request (RFC 792).
pub const ECHO_PORT_V4: u16 = 8;
/// What stands for the port of an IPv6 echo: the message type of a request (RFC 4443).
pub const ECHO_PORT_V6: u16 = 128;

/// Sizes of the aligned port blocks that rows exist for, from narrow to wide: 1, 16, 256, 4,096 and
/// all ports.
pub const LEVELS: usize = 5;

/// How far a port is shifted to get the number of its block, by level.
pub const LEVEL_SHIFTS: [u32; LEVELS] = [0, 4, 8, 12, 16];

/// Key of `PORTS`. Each row holds the rules of every wider block that contains its own, so that the
/// first hit from the narrowest level is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PortKey {
    /// The table.
    pub table: u32,
    /// [`super::Direction`] in which flows are opened.
    pub direction: u8,
    /// [`PortClass`].
    pub class: u8,
    /// The level of the block.
    pub level: u8,
    /// Zero.
    pub padding: u8,
    /// The number of the block.
    pub block: u32,
}

/// Key of `NAMES`: an address that an identity learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct NameKey {
    /// Who learned it.
    pub identity: u32,
    /// The address.
    pub address: Address,
}

/// Value of `NAMES`. Classes are numbers local to the identity that stand for sets of rules; zero
/// stands for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct NameEntry {
    /// Until when `class` counts for flows that are opened, on the monotonic clock.
    pub deadline_ns: u64,
    /// The rules that the unexpired names belong to.
    pub class: u32,
    /// The rules of all names, expired ones with live flows included: counts when a known flow is
    /// judged again.
    pub live_class: u32,
}

/// Key of `HITS`: how often a rule decided, or was remembered by an Audit policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct HitKey {
    /// The table.
    pub table: u32,
    /// [`super::Direction`] in which flows are opened.
    pub direction: u16,
    /// The rule's bit.
    pub clause: u16,
}

const _: () = assert!(size_of::<TableKey>() == 8);
const _: () = assert!(size_of::<Table>() == 400);
const _: () = assert!(size_of::<PeerKey>() == 12);
const _: () = assert!(size_of::<CidrKey>() == 24);
const _: () = assert!(size_of::<PortKey>() == 12);
const _: () = assert!(size_of::<NameKey>() == 20);
const _: () = assert!(size_of::<NameEntry>() == 16);
const _: () = assert!(size_of::<HitKey>() == 8);
