//! Who asked: the snapshot of endpoints that a query is attributed from.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use namegate_policy::dns::{NameDecision, NamePolicy};
use namegate_policy::identity::Identity;
use namegate_policy::name::DnsName;

/// The pod that an endpoint belongs to, as records name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointLabel {
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// The pod's name.
    pub pod: Arc<str>,
}

/// What decides which names may be asked. [`NamePolicy`] is the one that policies compile to.
pub trait NameRules: fmt::Debug + Send + Sync {
    /// Decides about a query for `name`.
    fn decide(&self, name: &DnsName) -> NameDecision;

    /// Whether wildcards alone let `name` be asked, so that it may be made up.
    fn is_wildcard_alone(&self, name: &DnsName) -> bool;
}

impl NameRules for NamePolicy {
    fn decide(&self, name: &DnsName) -> NameDecision {
        Self::decide(self, name)
    }

    fn is_wildcard_alone(&self, name: &DnsName) -> bool {
        Self::is_wildcard_alone(self, name)
    }
}

/// One endpoint as a snapshot shows it: immutable, replaced whole when the endpoint's policies
/// change.
#[derive(Clone, Debug)]
pub struct Client {
    /// The pod.
    pub endpoint: EndpointLabel,
    /// The pod's identity.
    pub identity: Identity,
    /// Which names the identity may ask for.
    pub names: Arc<dyn NameRules>,
}

/// The endpoints of the node, by source address.
///
/// Called for every query on the proxy's threads: it reads a snapshot and never waits.
pub trait Clients: Send + Sync {
    /// The endpoint that `source` belongs to; `None` where no governed endpoint has that address.
    ///
    /// The same `Arc` is handed out as long as nothing about the endpoint changed: an answer whose
    /// question was decided under another snapshot is decided again before it is released.
    fn client(&self, source: IpAddr) -> Option<Arc<Client>>;
}
