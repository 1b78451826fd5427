use super::Address;

/// The place of a rule where none decided.
pub const NO_CLAUSE: u16 = u16::MAX;

/// What became of an event's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum EventVerdict {
    /// The first packet of a flow that is let through.
    Forwarded = 0,
    /// The packet was dropped.
    Dropped = 1,
    /// The first packet of a flow that only an Audit policy would drop.
    Audit = 2,
}

impl EventVerdict {
    /// The verdict numbered `number`.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Forwarded),
            1 => Some(Self::Dropped),
            2 => Some(Self::Audit),
            _ => None,
        }
    }
}

/// A record of the ring buffer: a dropped packet, or the first of a flow that was let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// When, on the monotonic clock.
    pub time_ns: u64,
    /// The endpoint's address; `::` where the packet was not understood that far.
    pub local: Address,
    /// The other end; of a flow to a service, the backend.
    pub remote: Address,
    /// The service, where the flow is one to a service; `::` elsewhere.
    pub service: Address,
    /// Host-side interface.
    pub ifindex: u32,
    /// Identity of the endpoint; zero where unknown.
    pub identity: u32,
    /// Identity of the other end; zero where it was not looked up.
    pub remote_identity: u32,
    /// The table that was asked.
    pub table: u32,
    /// Octets of the frame.
    pub length: u32,
    /// The rule that decided, or [`NO_CLAUSE`].
    pub clause: u16,
    /// The first Audit rule that matched, or [`NO_CLAUSE`].
    pub audit: u16,
    /// Port, or echo identifier, on the endpoint's side.
    pub local_port: u16,
    /// Port on the other side.
    pub remote_port: u16,
    /// Port of `service`.
    pub service_port: u16,
    /// IP protocol number; zero where there is none.
    pub protocol: u8,
    /// [`super::Direction`] in which the flow is opened.
    pub direction: u8,
    /// [`super::Direction`] of the packet.
    pub packet_direction: u8,
    /// [`EventVerdict`].
    pub verdict: u8,
    /// [`super::DropReason`] or [`super::Pass`].
    pub reason: u8,
    /// Zero.
    pub padding: [u8; 5],
}

const _: () = assert!(size_of::<Event>() == 96);
