//! What records and lookups need to know, readable from any thread without waiting.
//!
//! Written by the state's owner alone, one entry at a time; readers take what is there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use dashmap::DashMap;
use namegate_dns_proxy::clients::{Client, Clients, EndpointLabel, NameRules};
use namegate_egress_bpf::abi::ServiceKey;
use namegate_policy::identity::Identity;
use namegate_policy::learned::Place;
use namegate_policy::resource::PodRef;
use namegate_policy::rule::{Origin, PolicyRef, ServiceRef};
use namegate_policy::selector::Labels;
use namegate_policy::table::{Clause, PolicyTable};

use crate::audit::{PolicyLabel, workload};
use crate::state::{Effects, EndpointEffect, SharedLearned, State};

/// Tables that are remembered after they went: events that they decided may still be on their way.
const FORMER_TABLES: usize = 64;

/// A pod, with what records say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPod {
    /// Its namespace and name.
    pub pod: PodRef,
    /// Its labels.
    pub labels: Arc<Labels>,
    /// What it is a copy of.
    pub workload: Arc<str>,
}

/// Who is behind a table, by direction.
#[derive(Debug)]
struct Behind {
    egress: Side,
    ingress: Side,
}

/// Who is behind the clauses of one direction, and all of them once, in order of precedence.
#[derive(Debug)]
struct Side {
    clauses: Vec<Arc<[Origin]>>,
    policies: Arc<[PolicyLabel]>,
}

/// Endpoints, pods, tables and learned names, for readers.
#[derive(Debug, Default)]
pub struct Registry {
    clients: DashMap<IpAddr, Arc<Client>>,
    endpoints: DashMap<u32, (Arc<KnownPod>, Option<Identity>)>,
    pods: DashMap<IpAddr, Arc<KnownPod>>,
    service_owners: RwLock<Arc<BTreeMap<ServiceKey, ServiceRef>>>,
    learned: SharedLearned,
    selecting: DashMap<Identity, Arc<[PolicyLabel]>>,
    tables: DashMap<u32, Arc<Behind>>,
    former: Mutex<VecDeque<(u32, Arc<Behind>)>>,
}

impl Registry {
    /// The pod behind an interface, and its identity; none where the pod is gone and the interface is
    /// closed.
    pub fn endpoint(&self, ifindex: u32) -> Option<(Arc<KnownPod>, Option<Identity>)> {
        self.endpoints.get(&ifindex).map(|entry| entry.value().clone())
    }

    /// All endpoints, in no order: the pod of each, and its identity unless it is closed.
    pub fn endpoints(&self) -> impl Iterator<Item = (Arc<KnownPod>, Option<Identity>)> + '_ {
        self.endpoints.iter().map(|entry| entry.value().clone())
    }

    /// The pod with this address.
    pub fn pod(&self, address: IpAddr) -> Option<Arc<KnownPod>> {
        self.pods.get(&address).map(|entry| Arc::clone(entry.value()))
    }

    /// The names that an identity learned for an address.
    pub fn names(&self, place: Place) -> Vec<String> {
        self.learned.read().leases(place).map(|(name, _)| name.to_string()).collect()
    }

    /// What identities learned; the state keeps it up to date.
    pub const fn learned(&self) -> &SharedLearned {
        &self.learned
    }

    /// The Service that took a flow of this IP protocol to an address and port.
    pub fn service(&self, end: SocketAddr, protocol: u8) -> Option<ServiceRef> {
        let key = ServiceKey { address: end.ip().into(), port: end.port(), protocol, padding: 0 };
        let owners = self.service_owners.read().unwrap_or_else(PoisonError::into_inner);
        owners.get(&key).or_else(|| owners.get(&key.at_node())).cloned()
    }

    /// The policies that select an identity.
    pub fn selecting(&self, identity: Identity) -> Arc<[PolicyLabel]> {
        self.selecting.get(&identity).map(|entry| Arc::clone(entry.value())).unwrap_or_default()
    }

    /// Who is behind a clause of a table.
    pub fn origins(&self, table: u32, is_egress: bool, clause: u16) -> Option<Arc<[Origin]>> {
        let behind = self.behind(table)?;
        behind.side(is_egress).clauses.get(usize::from(clause)).map(Arc::clone)
    }

    /// Who is behind a table in one direction.
    pub fn selecting_by(&self, table: u32, is_egress: bool) -> Arc<[PolicyLabel]> {
        let behind = self.behind(table);
        behind.map(|behind| Arc::clone(&behind.side(is_egress).policies)).unwrap_or_default()
    }

    /// Adds a table, before any packet is judged by it.
    pub fn add_table(&self, number: u32, table: &PolicyTable) {
        let side = |clauses: &[Clause]| Side {
            clauses: clauses.iter().map(|clause| Arc::clone(&clause.origins)).collect(),
            policies: policies(clauses),
        };
        let behind = Behind { egress: side(&table.egress), ingress: side(&table.ingress) };
        self.tables.insert(number, Arc::new(behind));
    }

    /// Takes a table out of use.
    pub fn remove_table(&self, number: u32) {
        if let Some(former) = self.tables.remove(&number) {
            let mut kept = self.former.lock().unwrap_or_else(PoisonError::into_inner);
            kept.truncate(FORMER_TABLES - 1);
            kept.push_front(former);
        }
    }

    fn behind(&self, table: u32) -> Option<Arc<Behind>> {
        if let Some(behind) = self.tables.get(&table) {
            return Some(Arc::clone(behind.value()));
        }
        let former = self.former.lock().unwrap_or_else(PoisonError::into_inner);
        former.iter().find(|(number, _)| *number == table).map(|(_, behind)| Arc::clone(behind))
    }

    /// Takes what changed: called before the kernel is told, so that whoever the kernel lets ask is
    /// known.
    pub fn update(&self, state: &State, effects: &Effects) {
        for (address, identity) in &effects.ipcache {
            match identity.and_then(|_| state.pod_at(*address)) {
                Some(pod) => self.pods.insert(*address, known(state, pod)),
                None => self.pods.remove(address).map(|(_, pod)| pod),
            };
        }
        if let Some(owners) = &effects.service_owners {
            let owners = Arc::clone(owners);
            *self.service_owners.write().unwrap_or_else(PoisonError::into_inner) = owners;
        }
        for (identity, effect) in &effects.tables {
            let clauses = effect.table.egress.iter().chain(&effect.table.ingress);
            self.selecting.insert(*identity, policies(clauses));
        }
        for identity in &effects.retired {
            self.selecting.remove(identity);
        }
        for (ifindex, effect) in &effects.endpoints {
            match effect {
                EndpointEffect::Enforce(spec) => {
                    let pod = known(state, &spec.pod);
                    self.endpoints.insert(*ifindex, (pod, Some(spec.identity)));
                }
                // Whose packets are dropped stays worth knowing.
                EndpointEffect::Close => {
                    self.endpoints.alter(ifindex, |_, (pod, _)| (pod, None));
                }
                EndpointEffect::Release => {
                    self.endpoints.remove(ifindex);
                }
            }
        }
        if !effects.endpoints.is_empty() || !effects.tables.is_empty() {
            self.update_clients(state, effects);
        }
    }

    fn update_clients(&self, state: &State, effects: &Effects) {
        let mut known: BTreeSet<IpAddr> = BTreeSet::new();
        for spec in state.endpoints().values() {
            let Some(table) = state.tables().get(&spec.identity) else { continue };
            known.extend(&spec.addresses);
            let is_other_table = effects.tables.contains_key(&spec.identity);
            let is_same = |client: &Client| {
                client.identity == spec.identity
                    && client.endpoint.namespace == spec.pod.namespace
                    && client.endpoint.pod == spec.pod.name
            };
            for address in &spec.addresses {
                let kept = self.clients.get(address).is_some_and(|client| is_same(&client));
                if kept && !is_other_table {
                    continue;
                }
                let client = Client {
                    endpoint: EndpointLabel {
                        namespace: Arc::clone(&spec.pod.namespace),
                        pod: Arc::clone(&spec.pod.name),
                    },
                    identity: spec.identity,
                    names: Arc::clone(&table.names) as Arc<dyn NameRules>,
                };
                self.clients.insert(*address, Arc::new(client));
            }
        }
        self.clients.retain(|address, _| known.contains(address));
    }
}

impl Clients for Registry {
    fn client(&self, source: IpAddr) -> Option<Arc<Client>> {
        self.clients.get(&source).map(|entry| Arc::clone(entry.value()))
    }
}

impl Behind {
    fn side(&self, is_egress: bool) -> &Side {
        if is_egress { &self.egress } else { &self.ingress }
    }
}

fn known(state: &State, pod: &PodRef) -> Arc<KnownPod> {
    let labels = state.pod(pod).map(|pod| Arc::clone(&pod.labels)).unwrap_or_default();
    let workload = match workload(&pod.name, &labels) {
        name if *name == *pod.name => Arc::clone(&pod.name),
        owner => owner.into(),
    };
    Arc::new(KnownPod { pod: pod.clone(), labels, workload })
}

/// The policies behind clauses, each once.
fn policies<'a>(clauses: impl IntoIterator<Item = &'a Clause>) -> Arc<[PolicyLabel]> {
    let mut seen: BTreeSet<&PolicyRef> = BTreeSet::new();
    let origins = clauses.into_iter().flat_map(|clause| clause.origins.iter());
    let first = origins.map(|origin| &origin.policy).filter(|policy| seen.insert(policy));
    first.map(PolicyLabel::from).collect()
}
