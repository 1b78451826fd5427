use super::Case;
use super::classify::Standing;
use crate::abi::{Direction, ECHO_PORT_V4, ECHO_PORT_V6, PortClass};
use crate::packet::{Kind, protocol};

/// What the rules are asked about a flow, as one number, which can be handed to a kernel function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question(u64);

/// What rules' ports are compared with.
#[derive(Clone, Copy)]
pub(super) struct Port {
    /// Number of a [`PortClass`].
    pub(super) class: u8,
    /// The port.
    pub(super) number: u16,
}

const INGRESS: u64 = 1;
const LIVE: u64 = 1 << 1;
const LIVE_FROM_NODE: u64 = 1 << 2;
const MIDWAY: u64 = 1 << 3;
const OTHER_SIDE: u64 = 1 << 4;
const CLASS_SHIFT: u32 = 8;
const LOCAL_SHIFT: u32 = 16;
const REMOTE_SHIFT: u32 = 32;

impl Question {
    /// The question about the flow of `case`, whose opener stands on the side of `opener`.
    #[inline(always)]
    pub(super) const fn new(case: &Case, opener: Direction, standing: Standing) -> Self {
        let (key, remote_port) = (&case.key, case.remote_port);
        let (class, local_port, remote_port) = match (key.protocol, case.headers.kind) {
            (protocol::TCP, _) => (PortClass::Tcp, key.local_port, remote_port),
            (protocol::UDP, _) => (PortClass::Udp, key.local_port, remote_port),
            (protocol::SCTP, _) => (PortClass::Sctp, key.local_port, remote_port),
            (_, Kind::Other) => (PortClass::Other, 0, 0),
            (protocol::ICMP, _) => (PortClass::Echo, ECHO_PORT_V4, ECHO_PORT_V4),
            _ => (PortClass::Echo, ECHO_PORT_V6, ECHO_PORT_V6),
        };
        let opener = match opener {
            Direction::Egress => 0,
            Direction::Ingress => INGRESS,
        };
        let standing = match standing {
            Standing::Opened => 0,
            Standing::Live => LIVE,
            Standing::LiveFromNode => LIVE_FROM_NODE,
        };
        let midway = if case.is_midway { MIDWAY } else { 0 };
        let number = opener
            | standing
            | midway
            | (class as u64) << CLASS_SHIFT
            | (local_port as u64) << LOCAL_SHIFT
            | (remote_port as u64) << REMOTE_SHIFT;
        Self(number)
    }

    /// The number.
    #[inline(always)]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The question with this number.
    #[inline(always)]
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// The same question, had the other side opened the flow.
    #[inline(always)]
    pub(super) const fn reversed(self) -> Self {
        Self((self.0 ^ INGRESS) | OTHER_SIDE)
    }

    /// The same question to the rules of the server, where an endpoint speaks to itself.
    #[inline(always)]
    pub(super) const fn of_server(self) -> Self {
        let port = self.0 >> REMOTE_SHIFT & 0xffff;
        Self(self.0 & !(0xffff << LOCAL_SHIFT) | port << LOCAL_SHIFT | INGRESS)
    }

    /// Who opens the flow.
    #[inline(always)]
    pub(super) const fn opener(self) -> Direction {
        if self.0 & INGRESS == 0 { Direction::Egress } else { Direction::Ingress }
    }

    /// Whether the flow was let through before.
    #[inline(always)]
    pub(super) const fn standing(self) -> Standing {
        if self.0 & LIVE != 0 {
            Standing::Live
        } else if self.0 & LIVE_FROM_NODE != 0 {
            Standing::LiveFromNode
        } else {
            Standing::Opened
        }
    }

    /// Whether it is asked what would be if the side that did not send the packet had opened the
    /// flow.
    #[inline(always)]
    pub(super) const fn is_of_other_side(self) -> bool {
        self.0 & OTHER_SIDE != 0
    }

    /// Whether nobody saw the flow open.
    #[inline(always)]
    pub(super) const fn is_midway(self) -> bool {
        self.0 & MIDWAY != 0
    }

    /// What the rules' ports are compared with: the kind of flow, and the port of its destination.
    #[inline(always)]
    pub(super) const fn port(self) -> Port {
        let number = match self.opener() {
            Direction::Egress => self.0 >> REMOTE_SHIFT,
            Direction::Ingress => self.0 >> LOCAL_SHIFT,
        };
        Port { class: (self.0 >> CLASS_SHIFT) as u8, number: number as u16 }
    }
}
