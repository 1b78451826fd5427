use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{MapData, RingBuf};
use namegate_policy::identity::Identity;
use namegate_policy::time::Timestamp;

use crate::abi::{Address, Direction, DropReason, Event, EventVerdict, NO_CLAUSE, Pass};

/// Why a packet's verdict is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// It was let through.
    Pass(Pass),
    /// It was dropped.
    Drop(DropReason),
}

impl Reason {
    /// The reason numbered `number`.
    pub fn from_number(number: u8) -> Option<Self> {
        Pass::from_number(number)
            .map(Self::Pass)
            .or_else(|| DropReason::from_number(number).map(Self::Drop))
    }

    /// `forwarded` or `dropped`.
    pub const fn verdict(self) -> &'static str {
        match self {
            Self::Pass(_) => "forwarded",
            Self::Drop(_) => "dropped",
        }
    }

    /// The name that logs and metrics carry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass(pass) => pass.as_str(),
            Self::Drop(reason) => reason.as_str(),
        }
    }
}

/// A dropped packet, or the first of a flow that was let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEvent {
    /// When.
    pub time: Timestamp,
    /// Host-side interface of the endpoint.
    pub ifindex: u32,
    /// The endpoint's identity, where the interface is known.
    pub identity: Option<Identity>,
    /// The other end's identity, where it was looked up.
    pub remote_identity: Option<Identity>,
    /// The endpoint's address; unspecified where the packet was not understood that far.
    pub local: IpAddr,
    /// The other end; of a flow to a service, the backend.
    pub remote: IpAddr,
    /// The service, where the flow is one to a service.
    pub service: Option<SocketAddr>,
    /// Port on the endpoint's side; an echo's identifier.
    pub local_port: u16,
    /// Port on the other side.
    pub remote_port: u16,
    /// IP protocol number; zero for what is not IP.
    pub protocol: u8,
    /// Who opens the flow.
    pub direction: Direction,
    /// Which way the packet goes.
    pub packet_direction: Direction,
    /// What became of it.
    pub verdict: EventVerdict,
    /// Why.
    pub reason: Reason,
    /// The table that was asked.
    pub table: u32,
    /// Position of the clause that decided.
    pub clause: Option<u16>,
    /// Position of the first Audit clause that matched.
    pub audit: Option<u16>,
    /// Octets of the frame.
    pub length: u32,
}

impl FlowEvent {
    /// Reads a record; `None` where a number in it stands for nothing.
    pub fn from_record(event: &Event) -> Option<Self> {
        let clause = |number| (number != NO_CLAUSE).then_some(number);
        Some(Self {
            time: Timestamp::from_nanos(event.time_ns),
            ifindex: event.ifindex,
            identity: Identity::new(event.identity),
            remote_identity: Identity::new(event.remote_identity),
            local: event.local.into(),
            remote: event.remote.into(),
            service: (event.service != Address::UNSPECIFIED)
                .then(|| SocketAddr::new(event.service.into(), event.service_port)),
            local_port: event.local_port,
            remote_port: event.remote_port,
            protocol: event.protocol,
            direction: Direction::from_number(event.direction)?,
            packet_direction: Direction::from_number(event.packet_direction)?,
            verdict: EventVerdict::from_number(event.verdict)?,
            reason: Reason::from_number(event.reason)?,
            table: event.table,
            clause: clause(event.clause),
            audit: clause(event.audit),
            length: event.length,
        })
    }
}

/// The records that the kernel program writes. Its descriptor is readable when there are any; level
/// triggered polling is not enough, so read until [`Events::next_event`] has none.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring }
    }

    /// The oldest record that was not read; records of no known form are left out.
    pub fn next_event(&mut self) -> Option<FlowEvent> {
        loop {
            let item = self.ring.next()?;
            if let Some(event) = record(&item).as_ref().and_then(FlowEvent::from_record) {
                return Some(event);
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

#[expect(unsafe_code, reason = "a record is read from octets")]
fn record(octets: &[u8]) -> Option<Event> {
    // SAFETY: an `Event` is numbers and octets without padding, so that any content is one.
    (octets.len() == size_of::<Event>())
        .then(|| unsafe { std::ptr::read_unaligned(octets.as_ptr().cast()) })
}
