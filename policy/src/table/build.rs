//! From rules to the clauses of one identity.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    CLAUSES_MAX, CidrPeer, CidrReach, Clause, ClauseAction, ClausePeers, ClausePorts, ClauseTier,
    PolicyTable,
};
use crate::dns::{ClusterNames, NamePolicy};
use crate::identity::{Identity, WorkloadLabels};
use crate::inventory::Inventory;
use crate::resource::Service;
use crate::rule::{
    Action, CidrGroupsPeer, Direction, DnsFilter, Entity, FqdnPeer, Mode, Origin, Peer, Peers,
    Policy, PolicyKind, PolicyRef, PortMatch, PortRange, PortSet, Ports, Protocol, Rule, Tier,
};

/// Why an identity has no table of its own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// More clauses than bits.
    #[error(
        "{direction:?} rules for one workload need {needed} clauses, {limit} are possible; \
         {policy} is the first that does not fit"
    )]
    TooManyClauses {
        /// The direction.
        direction: Direction,
        /// The object whose clause is the first past the limit.
        policy: PolicyRef,
        /// How many there would be.
        needed: usize,
        /// How many there can be.
        limit: usize,
    },
    /// The identity is not in use.
    #[error("identity {0} is not in use")]
    UnknownIdentity(u32),
}

/// What tables are built from.
#[derive(Clone, Copy, Debug)]
pub struct TableSource<'a> {
    /// Every policy in force.
    pub policies: &'a BTreeMap<PolicyRef, Arc<Policy>>,
    /// The cluster.
    pub inventory: &'a Inventory,
    /// What lookups need to know.
    pub names: &'a Arc<ClusterNames>,
}

impl TableSource<'_> {
    /// Builds the table of `identity`.
    pub fn build(&self, identity: Identity) -> Result<PolicyTable, TableError> {
        let labels = self
            .inventory
            .identities()
            .labels(identity)
            .ok_or(TableError::UnknownIdentity(identity.number()))?;
        let mut selecting: Vec<&Policy> = self
            .policies
            .values()
            .flat_map(|policy| policy.parts())
            .filter(|policy| policy.subject.matches(labels))
            .collect();
        // Within a tier the priority decides, then the name, so that ties are deterministic.
        selecting.sort_by(|a, b| (a.tier, &a.reference).cmp(&(b.tier, &b.reference)));

        let ladder = |direction| Ladder { source: self, labels, direction, steps: Vec::new() };
        let egress = ladder(Direction::Egress).build(&selecting)?;
        let ingress = ladder(Direction::Ingress).build(&selecting)?;
        let names = name_policy(&selecting, &egress, self.names);
        Ok(PolicyTable {
            identity,
            egress: egress.into_iter().map(|step| step.clause).collect(),
            ingress: ingress.into_iter().map(|step| step.clause).collect(),
            names: Arc::new(names),
        })
    }
}

impl PolicyTable {
    /// A table that drops every flow both ways because of `culprit`: the stricter side, for an
    /// identity whose rules cannot be compiled.
    pub fn closed(identity: Identity, culprit: PolicyRef, names: &Arc<ClusterNames>) -> Self {
        let origin = Origin { policy: culprit, rule: None };
        let everything =
            vec![everything(ClauseAction::Drop, ClauseTier::Admin, Arc::new([origin.clone()]))];
        let mut policy = NamePolicy::ungoverned(Arc::clone(names));
        policy.govern();
        policy.filter(origin, crate::dns::RefuseWith::Refused);
        Self { identity, egress: everything.clone(), ingress: everything, names: Arc::new(policy) }
    }
}

/// A clause, and the names that open addresses for it.
struct Step<'a> {
    clause: Clause,
    fqdns: Vec<&'a FqdnPeer>,
}

/// The clauses of one direction while they are put in order.
struct Ladder<'a> {
    source: &'a TableSource<'a>,
    labels: &'a WorkloadLabels,
    direction: Direction,
    steps: Vec<Step<'a>>,
}

impl<'a> Ladder<'a> {
    fn build(mut self, selecting: &[&'a Policy]) -> Result<Vec<Step<'a>>, TableError> {
        let in_tier = |is: fn(Tier) -> bool| selecting.iter().copied().filter(move |p| is(p.tier));
        let admin: Vec<_> = in_tier(|tier| matches!(tier, Tier::Admin { .. })).collect();
        self.add_tier(&admin, ClauseTier::Admin);
        let namespaced: Vec<_> = in_tier(|tier| matches!(tier, Tier::Namespaced)).collect();
        for mode in [Mode::Enforce, Mode::Audit] {
            for policy in namespaced.iter().filter(|policy| policy.mode == mode) {
                self.add_rules(policy, ClauseTier::Namespaced, |action| action == Action::Deny);
            }
        }
        for policy in &namespaced {
            self.add_rules(policy, ClauseTier::Namespaced, |action| action != Action::Deny);
        }
        self.add_isolation(&namespaced);
        let baseline: Vec<_> = in_tier(|tier| matches!(tier, Tier::Baseline { .. })).collect();
        self.add_tier(&baseline, ClauseTier::Baseline);
        let is_closed =
            namespaced.iter().any(|p| p.mode == Mode::Enforce && p.isolates.covers(self.direction));
        if !is_closed {
            let open = everything(ClauseAction::Forward, ClauseTier::Open, Arc::new([]));
            self.push(open, Vec::new());
        }
        self.check_limit()
    }

    /// An ordered tier. What ClusterEgressPolicies deny comes before what those of the same priority
    /// allow; elsewhere the order inside an object counts (CNP-3).
    fn add_tier(&mut self, policies: &[&'a Policy], tier: ClauseTier) {
        let is_peer =
            |a: &&Policy, b: &&Policy| (a.tier, a.reference.kind) == (b.tier, b.reference.kind);
        for equal in policies.chunk_by(is_peer) {
            let denies_first =
                equal.iter().all(|policy| policy.reference.kind == PolicyKind::ClusterEgressPolicy);
            let passes: &[fn(Action) -> bool] = if denies_first {
                &[|action| action == Action::Deny, |action| action != Action::Deny]
            } else {
                &[|_| true]
            };
            for wanted in passes {
                for policy in equal {
                    self.add_rules(policy, tier, *wanted);
                }
            }
        }
    }

    /// The final clause of the namespaced tier: what no rule allowed is dropped where an Enforce
    /// policy isolates, and remembered where only Audit policies do (EP-12).
    fn add_isolation(&mut self, namespaced: &[&Policy]) {
        let direction = self.direction;
        let isolating: Vec<_> =
            namespaced.iter().filter(|policy| policy.isolates.covers(direction)).collect();
        let enforced = isolating.iter().any(|policy| policy.mode == Mode::Enforce);
        let (mode, action) = if enforced {
            (Mode::Enforce, ClauseAction::Drop)
        } else {
            (Mode::Audit, ClauseAction::Audit)
        };
        let deciding = isolating.iter().filter(|policy| policy.mode == mode);
        let mut origins: Vec<Origin> = deciding
            .map(|policy| Origin { policy: policy.reference.clone(), rule: None })
            .collect();
        // An object with several subjects can isolate by more than one of them.
        origins.dedup();
        if !origins.is_empty() {
            self.push(everything(action, ClauseTier::Namespaced, origins.into()), Vec::new());
        }
    }

    fn add_rules(&mut self, policy: &'a Policy, tier: ClauseTier, wanted: fn(Action) -> bool) {
        let rules = policy.rules.iter();
        let direction = self.direction;
        for rule in rules.filter(|rule| rule.direction == direction && wanted(rule.action)) {
            let action = match (rule.action, policy.mode) {
                (Action::Allow, _) => ClauseAction::Forward,
                (Action::Deny, Mode::Enforce) => ClauseAction::Drop,
                (Action::Deny, Mode::Audit) => ClauseAction::Audit,
                (Action::Pass, _) => ClauseAction::Pass,
            };
            let rule_origin =
                Origin { policy: policy.reference.clone(), rule: Some(Arc::clone(&rule.label)) };
            let origins: Arc<[Origin]> = Arc::new([rule_origin]);
            for (peers, ports, fqdns) in self.resolve(rule) {
                let origins = Arc::clone(&origins);
                self.push(Clause { action, tier, peers, ports, origins }, fqdns);
            }
        }
    }

    fn push(&mut self, clause: Clause, fqdns: Vec<&'a FqdnPeer>) {
        self.steps.push(Step { clause, fqdns });
    }

    fn check_limit(self) -> Result<Vec<Step<'a>>, TableError> {
        let needed = self.steps.len();
        let origins = self.steps.iter().skip(CLAUSES_MAX).flat_map(|step| &*step.clause.origins);
        // Where only the final open clause is too many, the last rule is the one that did not fit.
        let last = self.steps.iter().rev().flat_map(|step| &*step.clause.origins);
        match origins.chain(last).next() {
            Some(culprit) if needed > CLAUSES_MAX => Err(TableError::TooManyClauses {
                direction: self.direction,
                policy: culprit.policy.clone(),
                needed,
                limit: CLAUSES_MAX,
            }),
            Some(_) | None => Ok(self.steps),
        }
    }

    /// A rule as peers × ports, resolved. Several, where named ports have different numbers or a
    /// Service's backends serve on other ports than it does.
    fn resolve(&self, rule: &'a Rule) -> Vec<(ClausePeers, ClausePorts, Vec<&'a FqdnPeer>)> {
        let mut parts = Vec::new();
        let (peers, fqdns) = self.peers(&rule.peers);
        if !is_nothing(&peers) {
            match self.numbered(&rule.ports) {
                Some(ports) => parts.push((peers.clone(), ports, fqdns)),
                // Names resolve whatever the ports (EP-2), and open nothing on those of pods alone.
                None if !fqdns.is_empty() => {
                    let names = ClausePeers { names: true, ..ClausePeers::default() };
                    parts.push((names, ClausePorts::Of(Vec::new()), fqdns));
                }
                None => {}
            }
            if self.direction == Direction::Egress {
                for (protocol, name) in named(&rule.ports) {
                    for (number, peers) in self.holders_of(protocol, name, &peers) {
                        let range = PortRange::single(number);
                        parts.push((peers, ClausePorts::Of(vec![(protocol, range)]), Vec::new()));
                    }
                }
            }
        }
        if let Peers::Of(peers) = &rule.peers {
            for peer in peers {
                for service in self.services(peer) {
                    let resolved = self.service(service, &rule.ports);
                    parts.extend(resolved.into_iter().map(|(p, ports)| (p, ports, Vec::new())));
                }
            }
        }
        parts
    }

    fn peers(&self, peers: &'a Peers) -> (ClausePeers, Vec<&'a FqdnPeer>) {
        let mut resolved = ClausePeers::default();
        let mut fqdns = Vec::new();
        let Peers::Of(peers) = peers else {
            return (ClausePeers { any: true, ..resolved }, fqdns);
        };
        let mut identities = BTreeSet::new();
        for peer in peers {
            match peer {
                Peer::Workloads(workloads) => {
                    let known = self.source.inventory.identities().iter();
                    let meant = known.filter(|(_, labels)| workloads.matches(labels));
                    identities.extend(meant.map(|(identity, _)| identity));
                }
                Peer::Cidr(cidr) => resolved.cidrs.extend(self.reach(cidr)),
                Peer::Fqdn(fqdn) => {
                    resolved.names = true;
                    fqdns.push(fqdn);
                }
                Peer::Entity(entity) => self.entity(*entity, &mut identities, &mut resolved.cidrs),
                Peer::Nodes(selector) => {
                    let meant =
                        self.source.inventory.nodes().filter(|n| selector.matches(&n.labels));
                    resolved.cidrs.extend(meant.flat_map(|n| &n.addresses).map(|a| host(*a)));
                }
                Peer::CidrGroups(groups) => resolved.cidrs.extend(self.groups(groups)),
                // Their ports need translation: see `service`.
                Peer::Service(_) | Peer::Services(_) => {}
            }
        }
        resolved.identities = Arc::new(identities);
        (resolved, fqdns)
    }

    fn entity(
        &self,
        entity: Entity,
        identities: &mut BTreeSet<Identity>,
        cidrs: &mut Vec<CidrPeer>,
    ) {
        match entity {
            Entity::World => {
                identities.insert(Identity::WORLD);
            }
            Entity::WorldIpv4 => cidrs.extend(self.world(Ipv4Net::default().into())),
            Entity::WorldIpv6 => cidrs.extend(self.world(Ipv6Net::default().into())),
            Entity::Cluster => {
                identities.extend([
                    Identity::HOST,
                    Identity::REMOTE_NODE,
                    Identity::KUBE_APISERVER,
                    Identity::UNMANAGED,
                ]);
                identities.extend(self.source.inventory.identities().iter().map(|(one, _)| one));
            }
            Entity::Host => {
                identities.insert(Identity::HOST);
            }
            Entity::RemoteNode => {
                identities.insert(Identity::REMOTE_NODE);
            }
            // By address: the API server's can be those of a node.
            Entity::KubeApiserver => {
                let addresses = self.source.inventory.apiserver_addresses();
                cidrs.extend(addresses.into_iter().map(host));
            }
            Entity::Unmanaged => {
                identities.insert(Identity::UNMANAGED);
            }
        }
    }

    /// A prefix as it is; where it does not mean pods and nodes (CL-9), with those cut out of it.
    /// `None` where nothing is left.
    fn reach(&self, cidr: &CidrPeer) -> Option<CidrPeer> {
        let mut resolved = cidr.clone();
        if cidr.reach == CidrReach::World {
            let ranges = &self.source.names.ranges;
            if ranges.iter().any(|range| range.contains(&cidr.net)) {
                return None;
            }
            resolved.reach = CidrReach::All;
            let inventory = self.source.inventory;
            let pods = inventory.pods().filter(|(_, identity)| identity.is_some());
            let of_pods = pods.flat_map(|(pod, _)| &pod.addresses);
            let of_nodes = inventory.nodes().flat_map(|node| &node.addresses);
            let inside = of_pods.chain(of_nodes).filter(|address| cidr.net.contains(*address));
            resolved.except.extend(inside.map(|address| IpNet::from(*address)));
            resolved.except.extend(ranges.iter().filter(|range| cidr.net.contains(*range)));
        }
        Some(resolved)
    }

    /// The prefixes of the groups that there are.
    fn groups(&self, peer: &CidrGroupsPeer) -> Vec<CidrPeer> {
        let groups = self.source.inventory.cidr_groups();
        let nets = groups.filter(|group| peer.groups.matches(group)).flat_map(|group| &group.nets);
        let is_left = |net: &&IpNet| !peer.except.iter().any(|except| except.contains(*net));
        let narrowed = nets.filter(is_left).map(|net| CidrPeer {
            net: *net,
            except: peer.except.iter().filter(|except| net.contains(*except)).copied().collect(),
            reach: CidrReach::World,
        });
        narrowed.filter_map(|cidr| self.reach(&cidr)).collect()
    }

    /// One address family of the world.
    fn world(&self, net: IpNet) -> Option<CidrPeer> {
        let whole = CidrPeer { net, except: Vec::new(), reach: CidrReach::World };
        let mut resolved = self.reach(&whole)?;
        let apiserver = self.source.inventory.apiserver_addresses();
        let inside = apiserver.into_iter().filter(|address| net.contains(address));
        resolved.except.extend(inside.map(IpNet::from));
        Some(resolved)
    }

    /// The ports that have a number: for flows to the endpoint itself its own named ports too.
    /// `None` where there is none.
    fn numbered(&self, ports: &Ports) -> Option<ClausePorts> {
        let Ports::Of(matches) = ports else { return Some(ClausePorts::Any) };
        let number = |port: &PortMatch| match (&port.ports, self.direction) {
            (PortSet::Range(range), _) => Some((port.protocol, *range)),
            (PortSet::Named(name), Direction::Ingress) => {
                let key = (Arc::clone(name), port.protocol);
                let number = self.labels.named_ports.get(&key)?;
                Some((port.protocol, PortRange::single(*number)))
            }
            (PortSet::Named(_), Direction::Egress) => None,
        };
        let numbered: Vec<_> = matches.iter().filter_map(number).collect();
        (!numbered.is_empty()).then_some(ClausePorts::Of(numbered))
    }

    /// Of `peers`, the pods that call a port of theirs `name`, by its number (NP-17).
    fn holders_of(
        &self,
        protocol: Protocol,
        name: &Arc<str>,
        peers: &ClausePeers,
    ) -> BTreeMap<u16, ClausePeers> {
        let key = (Arc::clone(name), protocol);
        let mut identities: BTreeMap<u16, BTreeSet<Identity>> = BTreeMap::new();
        for (identity, labels) in self.source.inventory.identities().iter() {
            if (peers.any || peers.identities.contains(&identity))
                && let Some(number) = labels.named_ports.get(&key)
            {
                identities.entry(*number).or_default().insert(identity);
            }
        }
        let mut holders: BTreeMap<u16, ClausePeers> = identities
            .into_iter()
            .map(|(number, found)| {
                (number, ClausePeers { identities: Arc::new(found), ..ClausePeers::default() })
            })
            .collect();
        for (pod, identity) in self.source.inventory.pods() {
            let Some(number) = pod.named_ports.get(&key).filter(|_| identity.is_some()) else {
                continue;
            };
            let meant =
                pod.addresses.iter().filter(|a| peers.cidrs.iter().any(|c| c.contains(**a)));
            for address in meant {
                holders.entry(*number).or_default().cidrs.push(host(*address));
            }
        }
        holders
    }

    /// The Services that a peer means.
    fn services(&self, peer: &Peer) -> Vec<&'a Service> {
        let inventory = self.source.inventory;
        match peer {
            Peer::Service(reference) => inventory.service(reference).into_iter().collect(),
            Peer::Services(meant) => inventory.services().filter(|s| meant.matches(s)).collect(),
            Peer::Workloads(_)
            | Peer::Cidr(_)
            | Peer::CidrGroups(_)
            | Peer::Fqdn(_)
            | Peer::Entity(_)
            | Peer::Nodes(_) => Vec::new(),
        }
    }

    /// A Service by its own addresses on the rule's ports, and by its backends on the ports that
    /// those translate to.
    fn service(&self, known: &Service, ports: &Ports) -> Vec<(ClausePeers, ClausePorts)> {
        let inventory = self.source.inventory;
        let mut parts = Vec::new();
        let own = known.cluster_addresses.iter().chain(&known.external_addresses);
        parts.push((hosts(own.copied()), own_ports(known, ports)));
        for slice in inventory.slices_of(&known.reference) {
            let backends = hosts(slice.addresses.iter().copied());
            let Ports::Of(matches) = ports else {
                parts.push((backends, ClausePorts::Any));
                continue;
            };
            let is_meant = |protocol, number, name: &str| {
                matches.iter().any(|meant| {
                    meant.protocol == protocol
                        && match &meant.ports {
                            PortSet::Range(range) => range.contains(number),
                            PortSet::Named(meant) => **meant == *name,
                        }
                })
            };
            let meant = known.ports.iter().filter(|p| is_meant(p.protocol, p.port, &p.name));
            let serving = meant.flat_map(|port| {
                let same = |backend: &&crate::resource::BackendPort| {
                    backend.name == port.name && backend.protocol == port.protocol
                };
                slice.ports.iter().filter(same).map(|backend| {
                    (port.protocol, backend.port.map_or(PortRange::ALL, PortRange::single))
                })
            });
            parts.push((backends, ClausePorts::Of(serving.collect())));
        }
        let is_empty = |ports: &ClausePorts| *ports == ClausePorts::Of(Vec::new());
        parts.retain(|(peers, ports)| !is_nothing(peers) && !is_empty(ports));
        parts
    }
}

/// What the selecting policies say about lookups (EP-2, EP-12).
fn name_policy(
    selecting: &[&Policy],
    egress: &[Step<'_>],
    cluster: &Arc<ClusterNames>,
) -> NamePolicy {
    let mut names = NamePolicy::ungoverned(Arc::clone(cluster));
    for policy in selecting {
        let Some(dns) = &policy.dns else { continue };
        names.govern();
        let whole = Origin { policy: policy.reference.clone(), rule: None };
        match (dns.filter, policy.mode) {
            (DnsFilter::Enforce, Mode::Enforce) => names.filter(whole, dns.refuse_with),
            (DnsFilter::Enforce, Mode::Audit) => names.audit(whole),
            (DnsFilter::Observe, Mode::Enforce | Mode::Audit) => {}
        }
        for rule in &dns.names {
            let rule_origin =
                Origin { policy: policy.reference.clone(), rule: Some(Arc::clone(&rule.label)) };
            names.resolve(&rule.pattern, rule_origin);
        }
    }
    // CLAUSES_MAX positions fit.
    for (position, step) in (0_u16..).zip(egress) {
        for fqdn in &step.fqdns {
            if let Some(origin) = step.clause.origins.first() {
                names.open(fqdn, position, origin.clone());
            }
        }
    }
    names
}

/// The ports of a Service's own addresses that a rule means, by number or by the Service's name.
fn own_ports(service: &Service, ports: &Ports) -> ClausePorts {
    let Ports::Of(matches) = ports else { return ClausePorts::Any };
    let mut own = Vec::new();
    for meant in matches {
        match &meant.ports {
            PortSet::Range(range) => own.push((meant.protocol, *range)),
            PortSet::Named(name) => {
                let named = service.ports.iter().filter(|p| p.name == *name);
                let named = named.filter(|port| port.protocol == meant.protocol);
                own.extend(named.map(|port| (port.protocol, PortRange::single(port.port))));
            }
        }
    }
    ClausePorts::Of(own)
}

fn everything(action: ClauseAction, tier: ClauseTier, origins: Arc<[Origin]>) -> Clause {
    let peers = ClausePeers { any: true, ..ClausePeers::default() };
    Clause { action, tier, peers, ports: ClausePorts::Any, origins }
}

fn is_nothing(peers: &ClausePeers) -> bool {
    !peers.any && !peers.names && peers.identities.is_empty() && peers.cidrs.is_empty()
}

fn named(ports: &Ports) -> impl Iterator<Item = (Protocol, &Arc<str>)> {
    let matches = match ports {
        Ports::Any => &[][..],
        Ports::Of(matches) => matches,
    };
    matches.iter().filter_map(|port| match &port.ports {
        PortSet::Named(name) => Some((port.protocol, name)),
        PortSet::Range(_) => None,
    })
}

fn host(address: IpAddr) -> CidrPeer {
    CidrPeer { net: IpNet::from(address), except: Vec::new(), reach: CidrReach::All }
}

fn hosts(addresses: impl Iterator<Item = IpAddr>) -> ClausePeers {
    ClausePeers { cidrs: addresses.map(host).collect(), ..ClausePeers::default() }
}
