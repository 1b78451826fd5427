//! Policy tables walked in the plainest way: the lowest clause that matches decides.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use namegate_policy::dns::{ClusterNames, NameDecision};
use namegate_policy::identity::Identity;
use namegate_policy::inventory::Inventory;
use namegate_policy::name::DnsName;
use namegate_policy::object::Object;
use namegate_policy::opening::{ClusterRanges, RebindingGuard, carried_v4, refusal};
use namegate_policy::oracle::{Circumstances, Flow, Lesson, Ruling, Verdict};
use namegate_policy::resource::{Pod, PodRef};
use namegate_policy::rule::{
    CidrPeer, CidrReach, Direction, Policy, PolicyRef, Protocol, ServiceRef,
};
use namegate_policy::table::{
    Clause, ClauseAction, ClausePorts, ClauseTier, PolicyTable, TableSource,
};
use namegate_policy::testing::Case;
use namegate_policy::time::Timestamp;

/// What a case says beside objects.
pub(crate) fn circumstances(case: &Case) -> Circumstances {
    Circumstances {
        own_addresses: case.own_addresses.clone(),
        ranges: ClusterRanges { pods: case.ranges.clone(), ..ClusterRanges::default() },
        search: vec![DnsName::parse("corp.test").unwrap()],
        ..Circumstances::default()
    }
}

/// What was learned in a case, for good.
pub(crate) fn lessons(case: &Case) -> Vec<Lesson> {
    let learned = case.learned.iter().cloned();
    learned
        .map(|(pod, address, name)| Lesson {
            pod,
            name,
            address,
            ttl: Duration::from_secs(3_600),
            at: Timestamp::from_nanos(0),
        })
        .collect()
}

/// The engine that a case is compiled to.
pub(crate) struct Compiled {
    inventory: Inventory,
    ipcache: BTreeMap<IpAddr, Identity>,
    tables: BTreeMap<Identity, PolicyTable>,
    learned: BTreeSet<(Identity, IpAddr, DnsName)>,
    ranges: Vec<IpNet>,
}

impl Compiled {
    pub(crate) fn new(case: &Case) -> Self {
        let mut inventory = Inventory::default();
        let mut policies: BTreeMap<PolicyRef, Arc<Policy>> = BTreeMap::new();
        for object in case.objects.iter().cloned() {
            match object {
                Object::Namespace(namespace) => inventory.upsert_namespace(namespace),
                Object::Pod(pod) => inventory.upsert_pod(pod),
                Object::Service(service) => inventory.upsert_service(service),
                Object::EndpointSlice(slice) => inventory.upsert_slice(slice),
                Object::Node(node) => inventory.upsert_node(node),
                Object::CidrGroup(group) => inventory.upsert_cidr_group(group),
                Object::Policy(policy) => {
                    policies.insert(policy.reference.clone(), Arc::new(policy));
                }
            }
        }
        let names = Arc::new(ClusterNames {
            domain: DnsName::parse("cluster.local").unwrap(),
            search: vec![DnsName::parse("corp.test").unwrap()],
            ranges: case.ranges.clone(),
        });
        let source = TableSource { policies: &policies, inventory: &inventory, names: &names };
        let tables = inventory.identities().iter().map(|(identity, _)| {
            let table = source.build(identity).unwrap_or_else(|error| panic!("{error}"));
            (identity, table)
        });
        let tables = tables.collect();
        let learned = case.learned.iter().filter_map(|(pod, address, name)| {
            Some((inventory.identity_of(pod)?, *address, name.clone()))
        });
        let learned = learned.collect();
        let ipcache = inventory.ipcache(&case.own_addresses);
        Self { inventory, ipcache, tables, learned, ranges: case.ranges.clone() }
    }

    /// Asks the table of a pod about a query.
    pub(crate) fn decide_name(&self, pod: &PodRef, name: &DnsName) -> Option<NameDecision> {
        let names = &self.tables.get(&self.inventory.identity_of(pod)?)?.names;
        names.is_governed().then(|| names.decide(name))
    }

    fn names_of(&self, pod: &Pod, address: IpAddr) -> Vec<DnsName> {
        let Some(identity) = self.inventory.identity_of(&pod.reference) else {
            return Vec::new();
        };
        if !self.is_open_to_names(address) {
            return Vec::new();
        }
        let learned = self.learned.iter().filter(|(one, at, _)| (*one, *at) == (identity, address));
        learned.map(|(_, _, name)| name.clone()).collect()
    }

    /// Whether a name may open an address (EP-9).
    fn is_open_to_names(&self, address: IpAddr) -> bool {
        if carried_v4(address).is_some_and(|carried| !self.is_open_to_names(carried.into())) {
            return false;
        }
        let ranges = ClusterRanges { pods: self.ranges.clone(), ..ClusterRanges::default() };
        let mut services = self.inventory.services();
        matches!(self.identity_at(address), Identity::WORLD | Identity::KUBE_APISERVER)
            && !services.any(|service| service.cluster_addresses.contains(&address))
            && refusal(address, &ranges, RebindingGuard::Relaxed, false).is_none()
    }

    fn is_resolver(&self, address: IpAddr) -> bool {
        let service = ServiceRef { namespace: "kube-system".into(), name: "kube-dns".into() };
        let own = self.inventory.service(&service).into_iter().flat_map(|s| &s.cluster_addresses);
        let mut backends = self.inventory.slices_of(&service).flat_map(|slice| &slice.addresses);
        let is_known = self.inventory.service(&service).is_some();
        own.copied().any(|one| one == address)
            || (is_known && backends.any(|one| *one == address))
            || address == IpAddr::from([169, 254, 20, 10])
    }

    fn identity_at(&self, address: IpAddr) -> Identity {
        let outside = if self.ranges.iter().any(|range| range.contains(&address)) {
            Identity::UNMANAGED
        } else {
            Identity::WORLD
        };
        self.ipcache.get(&address).copied().unwrap_or(outside)
    }

    /// Walks the table of the pod at `local`; `None` where no table decides.
    pub(crate) fn decide(
        &self,
        direction: Direction,
        local: IpAddr,
        remote: IpAddr,
        flow: &Flow,
    ) -> Option<Ruling> {
        let (pod, identity) = self.inventory.pod_at(local)?;
        if pod.addresses.contains(&remote) {
            return None;
        }
        let identity_of_remote = self.identity_at(remote);
        if direction == Direction::Ingress && identity_of_remote == Identity::HOST {
            return None;
        }
        let table = &self.tables[&identity];
        let is_query = flow.port == 53 && matches!(flow.protocol, Protocol::Tcp | Protocol::Udp);
        if direction == Direction::Egress
            && is_query
            && table.names.is_governed()
            && self.is_resolver(remote)
        {
            // The proxy's matter.
            return None;
        }
        let clauses = match direction {
            Direction::Egress => &table.egress,
            Direction::Ingress => &table.ingress,
        };
        let opened: BTreeSet<u16> =
            self.names_of(pod, remote).iter().flat_map(|name| table.names.clauses(name)).collect();
        let mut audit: Option<&Clause> = None;
        let mut passed: Option<ClauseTier> = None;
        for (position, clause) in (0_u16..).zip(clauses) {
            let is_named = clause.peers.names && opened.contains(&position);
            let is_hit = (is_named || is_peer(clause, remote, identity_of_remote))
                && has_port(&clause.ports, flow);
            if !is_hit || passed == Some(clause.tier) {
                continue;
            }
            match clause.action {
                ClauseAction::Pass => passed = Some(clause.tier),
                ClauseAction::Audit => audit = audit.or(Some(clause)),
                ClauseAction::Drop => return Some(ruling(Verdict::Drop, clause)),
                ClauseAction::Forward => {
                    return Some(audit.map_or_else(
                        || ruling(Verdict::Forward, clause),
                        |audit| ruling(Verdict::Audit, audit),
                    ));
                }
            }
        }
        panic!("no clause matches: a table is never empty");
    }
}

fn is_peer(clause: &Clause, remote: IpAddr, identity: Identity) -> bool {
    let peers = &clause.peers;
    let is_in = |cidr: &CidrPeer| {
        let is_meant = match cidr.reach {
            CidrReach::All => true,
            CidrReach::World => identity == Identity::WORLD,
        };
        is_meant && cidr.contains(remote)
    };
    peers.any || peers.identities.contains(identity) || peers.cidrs.iter().any(is_in)
}

fn has_port(ports: &ClausePorts, flow: &Flow) -> bool {
    match ports {
        ClausePorts::Any => true,
        ClausePorts::Of(list) => list
            .iter()
            .any(|(protocol, range)| *protocol == flow.protocol && range.contains(flow.port)),
    }
}

fn ruling(verdict: Verdict, clause: &Clause) -> Ruling {
    Ruling { verdict, origins: clause.origins.to_vec() }
}
