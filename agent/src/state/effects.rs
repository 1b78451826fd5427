//! What the state's owner wants to be true outside: written by [`crate::apply`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use namegate_egress_bpf::abi::{RuleSet, ServiceKey};
use namegate_egress_bpf::datapath::ServiceEntry;
use namegate_policy::identity::Identity;
use namegate_policy::learned::Place;
use namegate_policy::resource::PodRef;
use namegate_policy::rule::ServiceRef;
use namegate_policy::table::PolicyTable;
use namegate_policy::time::Timestamp;

use crate::endpoints::Wanted;

/// What changed with one event. What is not named stays as it is.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// Who addresses are; `None` where they are nobody's any more.
    pub ipcache: BTreeMap<IpAddr, Option<Identity>>,
    /// Identities whose policy table is another one.
    pub tables: BTreeMap<Identity, TableEffect>,
    /// Identities in whose policy table the peers of clauses mean others, and nothing else differs.
    pub rows: BTreeMap<Identity, Arc<PolicyTable>>,
    /// Whether an address is somebody else's, or a service's since: live flows to it are to be judged
    /// again.
    pub is_anyone_elsewhere: bool,
    /// Identities that no endpoint has any more.
    pub retired: BTreeSet<Identity>,
    /// What becomes of host-side interfaces.
    pub endpoints: BTreeMap<u32, EndpointEffect>,
    /// Learned addresses that open other rules or until another time; `None` where they are
    /// forgotten. Identities in `tables` have all of theirs there.
    pub names: BTreeMap<Place, Option<NameRules>>,
    /// The services that the kernel translates, all of them, where they changed.
    pub services: Option<Arc<BTreeMap<ServiceKey, ServiceEntry>>>,
    /// Whose they are, all of them, where that changed.
    pub service_owners: Option<Arc<BTreeMap<ServiceKey, ServiceRef>>>,
    /// The resolvers by slot, where they changed.
    pub resolvers: Option<BTreeMap<u8, IpAddr>>,
    /// The pods to look for, where they changed.
    pub wanted: Option<Arc<Wanted>>,
    /// What the operator has to know, each said once.
    pub notices: Vec<String>,
}

/// A policy table to be put in force.
#[derive(Clone, Debug)]
pub struct TableEffect {
    /// The table.
    pub table: Arc<PolicyTable>,
    /// All addresses that the identity learned, with what they open under this table.
    pub names: BTreeMap<IpAddr, NameRules>,
}

/// What a learned address opens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameRules {
    /// The earliest deadline of the names behind `fresh` (EP-11).
    pub deadline: Timestamp,
    /// The rules of the names that are fresh.
    pub fresh: RuleSet,
    /// The rules of all names, expired ones included: for flows that live (EP-10).
    pub live: RuleSet,
}

/// What becomes of a host-side interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointEffect {
    /// It is a pod's, and what passes it is judged by that pod's policy.
    Enforce(EndpointSpec),
    /// Nothing passes it: whose it is is not known, and what runs behind it may still send.
    Close,
    /// It is let go: it is no longer there, or nobody wants it enforced.
    Release,
}

impl EndpointEffect {
    /// The endpoint that is enforced.
    pub const fn spec(&self) -> Option<&EndpointSpec> {
        match self {
            Self::Enforce(spec) => Some(spec),
            Self::Close | Self::Release => None,
        }
    }
}

/// An endpoint as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSpec {
    /// The pod.
    pub pod: PodRef,
    /// Name of the host-side interface.
    pub interface: String,
    /// The pod's identity.
    pub identity: Identity,
    /// The pod's MAC, where known.
    pub mac: Option<[u8; 6]>,
    /// The pod's addresses.
    pub addresses: BTreeSet<IpAddr>,
}

impl Effects {
    /// Adds what a later event changed.
    pub fn absorb(&mut self, later: Self) {
        self.ipcache.extend(later.ipcache);
        for (identity, table) in later.rows {
            match self.tables.get_mut(&identity) {
                Some(whole) => whole.table = table,
                None => {
                    self.rows.insert(identity, table);
                }
            }
        }
        self.rows.retain(|identity, _| !later.tables.contains_key(identity));
        self.tables.extend(later.tables);
        self.is_anyone_elsewhere |= later.is_anyone_elsewhere;
        self.retired.extend(later.retired);
        self.endpoints.extend(later.endpoints);
        self.names.extend(later.names);
        self.services = later.services.or(self.services.take());
        self.service_owners = later.service_owners.or(self.service_owners.take());
        self.resolvers = later.resolvers.or(self.resolvers.take());
        self.wanted = later.wanted.or(self.wanted.take());
        self.notices.extend(later.notices);
    }

    /// Whether policy, endpoints or resolvers changed, rather than learned addresses alone.
    pub fn changes_policy(&self) -> bool {
        !(self.ipcache.is_empty()
            && self.tables.is_empty()
            && self.rows.is_empty()
            && self.retired.is_empty()
            && self.endpoints.is_empty()
            && self.services.is_none()
            && self.resolvers.is_none())
    }
}
