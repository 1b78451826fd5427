//! The one rule model that every dialect ends in.
//!
//! A [`Policy`] is one object in normal form; a [`Rule`] is one entry of it: peers × ports × action,
//! in one direction. Nothing here is resolved against the cluster: selectors are selectors, a named
//! port is a name. Resolution happens in [`crate::table`].

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::dns::RefuseWith;
use crate::name::DnsName;
use crate::note::{Note, Remark};
use crate::pattern::DomainPattern;
use crate::selector::{Condition, Selector};

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
    /// ICMP requests (RFC 792); where a port is asked for, the message type stands.
    Icmp,
    /// ICMPv6 requests (RFC 4443); where a port is asked for, the message type stands.
    Icmpv6,
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
    /// `policy.networking.k8s.io/v1alpha2`
    ClusterNetworkPolicy,
    /// `cilium.io/v2`
    CiliumNetworkPolicy,
    /// `cilium.io/v2`
    CiliumClusterwideNetworkPolicy,
}

impl PolicyKind {
    /// The group and version that objects of the kind carry.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::EgressPolicy | Self::ClusterEgressPolicy => crate::api::API_VERSION,
            Self::NetworkPolicy => "networking.k8s.io/v1",
            Self::ClusterNetworkPolicy => crate::cluster::API_VERSION,
            Self::CiliumNetworkPolicy | Self::CiliumClusterwideNetworkPolicy => {
                crate::cilium::API_VERSION
            }
        }
    }

    /// The name that messages and logs carry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EgressPolicy => "EgressPolicy",
            Self::ClusterEgressPolicy => "ClusterEgressPolicy",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
            // Other groups have kinds of this name (CNP-23).
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy.policy.networking.k8s.io",
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
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

impl fmt::Display for PolicyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
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

/// One policy object in normal form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The object.
    pub reference: PolicyRef,
    /// The workloads that it is about.
    pub subject: Workloads,
    /// Whether it drops or only logs.
    pub mode: Mode,
    /// Where it stands in the order of precedence.
    pub tier: Tier,
    /// The directions in which its subject is closed except for what is allowed.
    pub isolates: Isolation,
    /// What it says about lookups; `None` leaves lookups alone.
    pub dns: Option<DnsPolicy>,
    /// Its rules, in the order that counts.
    pub rules: Vec<Rule>,
    /// What its author should know although the object is in force.
    pub notes: Vec<Note>,
    /// What the same object says about other subjects, as Cilium's `specs` does; empty in each of
    /// these.
    pub also: Vec<Self>,
}

impl Policy {
    /// All that the object says, a subject at a time: itself, then [`Policy::also`].
    pub fn parts(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.also)
    }

    /// Whether this is not what was written but stands in for it: the object was refused, and no
    /// version of it was good before.
    pub fn stands_in(&self) -> bool {
        self.notes.iter().any(|note| note.remark == Remark::StandsIn)
    }
}

/// Whether a policy enforces (EP-12).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// What it refuses is refused.
    #[default]
    Enforce,
    /// What only it refuses goes through and is logged.
    Audit,
}

/// Where a policy stands in the order of precedence; a lower priority number wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Before every namespaced policy.
    Admin {
        /// Lower wins.
        priority: u16,
    },
    /// Adds up with NetworkPolicies.
    Namespaced,
    /// For what no namespaced policy isolates.
    Baseline {
        /// Lower wins.
        priority: u16,
    },
}

/// The directions that a policy closes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Isolation {
    /// Flows that the subject opens.
    pub egress: bool,
    /// Flows that others open to it.
    pub ingress: bool,
}

impl Isolation {
    /// Whether `direction` is closed.
    pub const fn covers(self, direction: Direction) -> bool {
        match direction {
            Direction::Egress => self.egress,
            Direction::Ingress => self.ingress,
        }
    }
}

/// What a policy says about the lookups of its subject (EP-2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsPolicy {
    /// Whether names that no rule allows are refused.
    pub filter: DnsFilter,
    /// How they are refused.
    pub refuse_with: RefuseWith,
    /// Names that resolve and open nothing.
    pub names: Vec<NameRule>,
}

/// Whether lookups are filtered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DnsFilter {
    /// A name that no rule allows is refused.
    #[default]
    Enforce,
    /// Every name resolves; only allowed ones open addresses.
    Observe,
}

/// A name that may be asked for without opening anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameRule {
    /// The rule's name or path, for [`Origin::rule`].
    pub label: Arc<str>,
    /// The names.
    pub pattern: DomainPattern,
}

/// One entry of a policy: peers × ports × action, in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The rule's name or path, for [`Origin::rule`].
    pub label: Arc<str>,
    /// The direction, seen from the subject.
    pub direction: Direction,
    /// What becomes of a matching flow.
    pub action: Action,
    /// The remote ends.
    pub peers: Peers,
    /// The ports of the flow's destination.
    pub ports: Ports,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// The flow goes through.
    Allow,
    /// The flow is refused.
    Deny,
    /// The rest of the tier is skipped.
    Pass,
}

/// The remote ends that a rule means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Every remote, outside the cluster too.
    Any,
    /// These; an empty list matches nothing.
    Of(Vec<Peer>),
}

/// One remote end of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Pods by their labels.
    Workloads(Workloads),
    /// A prefix.
    Cidr(CidrPeer),
    /// The addresses that the subject learned for a name.
    Fqdn(FqdnPeer),
    /// A part of the world with a name of its own.
    Entity(Entity),
    /// The prefixes of CIDR groups, whichever exist.
    CidrGroups(CidrGroupsPeer),
    /// A Service, by its addresses and its backends; the rule's ports are ports of the Service.
    Service(ServiceRef),
    /// Services by their labels, each as [`Peer::Service`] means one.
    Services(ServicesPeer),
    /// Nodes by their labels, with all their addresses.
    Nodes(Selector),
}

/// Pods selected by namespace, labels and service account, all of which must match.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Workloads {
    /// The namespaces.
    pub namespaces: Namespaces,
    /// The pods' labels.
    pub pods: Selector,
    /// The names of service accounts, as conditions; an empty list means all.
    pub service_accounts: Vec<Condition>,
}

/// A choice of namespaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespaces {
    /// The one with this name.
    Named(Arc<str>),
    /// Those whose labels are selected.
    Selected(Selector),
}

/// A prefix as a peer, and what is cut out of it (NP-12).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CidrPeer {
    /// The prefix.
    pub net: IpNet,
    /// Prefixes inside `net` that this peer does not mean.
    pub except: Vec<IpNet>,
    /// Whether addresses of pods and nodes count.
    pub reach: CidrReach,
}

impl CidrPeer {
    /// Whether `address` is in the prefix and in nothing that is cut out of it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.net.contains(&address) && !self.except.iter().any(|net| net.contains(&address))
    }
}

/// The prefixes of CIDR groups as a peer. They reach as [`CidrReach::World`] does (CL-9).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CidrGroupsPeer {
    /// The groups.
    pub groups: CidrGroups,
    /// Prefixes that this peer does not mean.
    pub except: Vec<IpNet>,
}

/// A choice of CIDR groups; a group that does not exist has no prefixes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CidrGroups {
    /// The one with this name.
    Named(Arc<str>),
    /// Those whose labels are selected.
    Selected(Selector),
}

/// Which addresses of a prefix a rule means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CidrReach {
    /// All of them, addresses of pods and nodes too (CH-1).
    #[default]
    All,
    /// Those that no pod and no node has (CL-9).
    World,
}

/// Names as a peer (EP-4, EP-5, EP-9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FqdnPeer {
    /// The names.
    pub pattern: DomainPattern,
    /// Names among them that this peer does not mean.
    pub except: Vec<DomainPattern>,
    /// Whether private addresses are opened even under the strict rebinding guard.
    pub allow_private: bool,
    /// Whether the names may be asked for because of this peer.
    pub resolves: bool,
}

impl FqdnPeer {
    /// Whether `name` is meant.
    pub fn matches(&self, name: &DnsName) -> bool {
        self.pattern.matches(name) && !self.except.iter().any(|except| except.matches(name))
    }
}

/// A part of the world with a name of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entity {
    /// What is outside the cluster.
    World,
    /// The IPv4 half of [`Entity::World`].
    WorldIpv4,
    /// The IPv6 half of [`Entity::World`].
    WorldIpv6,
    /// Every pod and node, and what has an address of a cluster range.
    Cluster,
    /// The node of the subject.
    Host,
    /// The other nodes.
    RemoteNode,
    /// The Kubernetes API server.
    KubeApiserver,
    /// What has an address of a cluster range and is no known pod.
    Unmanaged,
}

/// A Service by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceRef {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// Services by their labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicesPeer {
    /// Their namespace; `None` means every one.
    pub namespace: Option<Arc<str>>,
    /// Their labels.
    pub labels: Selector,
}

/// The ports that a rule means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Every port of every protocol, and what has no ports.
    Any,
    /// These; an empty list matches nothing.
    Of(Vec<PortMatch>),
}

/// Ports of one protocol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortMatch {
    /// The protocol; an SCTP rule opens no TCP port (NP-18).
    pub protocol: Protocol,
    /// The ports.
    pub ports: PortSet,
}

/// Ports by number or by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortSet {
    /// By number.
    Range(PortRange),
    /// By the name that the destination pod gives them (NP-17).
    Named(Arc<str>),
}
