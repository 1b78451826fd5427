//! The one rule model that every dialect ends in.
//!
//! A [`Policy`] is one object in normal form; a [`Rule`] is one entry of it: peers × ports × action,
//! in one direction. Nothing here is resolved against the cluster: selectors are selectors, a named
//! port is a name. Resolution happens in [`crate::table`].

use std::fmt;
use std::sync::Arc;

/// Which way a flow goes, seen from the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// The endpoint opens the flow.
    Egress,
    /// The peer opens the flow.
    Ingress,
}

/// A transport that rules can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

/// Inclusive range of port numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    start: u16,
    end: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self { start: 0, end: u16::MAX };

    /// The ports from `start` to `end`, both included; `None` where `end` is smaller.
    pub const fn new(start: u16, end: u16) -> Option<Self> {
        if start <= end { Some(Self { start, end }) } else { None }
    }

    /// The one port `port`.
    pub const fn single(port: u16) -> Self {
        Self { start: port, end: port }
    }

    /// The lowest port.
    pub const fn start(self) -> u16 {
        self.start
    }

    /// The highest port.
    pub const fn end(self) -> u16 {
        self.end
    }

    /// Whether `port` is inside.
    pub const fn contains(self, port: u16) -> bool {
        self.start <= port && port <= self.end
    }
}

/// The kind of object that a rule comes from, with its API group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum PolicyKind {
    /// `namegate.dev/v1alpha1`
    EgressPolicy,
    /// `namegate.dev/v1alpha1`
    ClusterEgressPolicy,
    /// `networking.k8s.io/v1`
    NetworkPolicy,
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EgressPolicy => "EgressPolicy",
            Self::ClusterEgressPolicy => "ClusterEgressPolicy",
            Self::NetworkPolicy => "NetworkPolicy",
        })
    }
}

/// The object that a decision goes back to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyRef {
    /// Kind of the object.
    pub kind: PolicyKind,
    /// Namespace; `None` for a cluster-scoped object.
    pub namespace: Option<Arc<str>>,
    /// Name of the object.
    pub name: Arc<str>,
}

/// The rule that a decision goes back to: an object, and where in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The object.
    pub policy: PolicyRef,
    /// The rule's own name where it has one, else its path, such as `egress[2]` or `deny[0]`; `None`
    /// where the object as a whole decides, as isolation does.
    pub rule: Option<Arc<str>>,
}
