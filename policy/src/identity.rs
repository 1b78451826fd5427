//! Identities: interned label sets of workloads.

/// The interned label set of workloads, or one of the reserved identities. Local to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(u32);

impl Identity {
    /// The node the agent runs on: all its addresses.
    pub const HOST: Self = Self(1);
    /// Every other node of the cluster.
    pub const REMOTE_NODE: Self = Self(2);
    /// The addresses of the Kubernetes API server that are not addresses of a node.
    pub const KUBE_APISERVER: Self = Self(3);
    /// Every address that is no node, pod, or cluster range.
    pub const WORLD: Self = Self(4);
    /// An address inside a cluster range of which no pod is known.
    pub const UNMANAGED: Self = Self(5);
    /// The first identity that is interned from labels.
    pub const FIRST_WORKLOAD: Self = Self(256);

    /// The identity numbered `number`; zero is no identity.
    pub const fn new(number: u32) -> Option<Self> {
        if number == 0 { None } else { Some(Self(number)) }
    }

    /// The number that kernel maps carry.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Whether this is a reserved identity rather than an interned label set.
    pub const fn is_reserved(self) -> bool {
        self.0 < Self::FIRST_WORKLOAD.0
    }
}
