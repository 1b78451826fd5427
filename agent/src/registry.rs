//! What records and lookups need to know, readable from any thread without waiting.
//!
//! Written by the state's owner alone, one entry at a time; readers take what is there.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use dashmap::DashMap;
use namegate_dns_proxy::clients::{Client, Clients, EndpointLabel, NameRules};
use namegate_policy::identity::Identity;
use namegate_policy::learned::Place;
use namegate_policy::resource::PodRef;
use namegate_policy::rule::Origin;
use namegate_policy::table::{Clause, PolicyTable};

use crate::state::{Effects, EndpointEffect, State};

/// Who is behind the clauses of a table, by direction.
#[derive(Debug)]
pub struct Origins {
    egress: Vec<Arc<[Origin]>>,
    ingress: Vec<Arc<[Origin]>>,
}

/// Endpoints, pods, tables and learned names, for readers.
#[derive(Debug, Default)]
pub struct Registry {
    clients: DashMap<IpAddr, Arc<Client>>,
    endpoints: DashMap<u32, (PodRef, Option<Identity>)>,
    pods: DashMap<IpAddr, PodRef>,
    names: DashMap<Place, Arc<[Arc<str>]>>,
    tables: DashMap<u32, Arc<Origins>>,
}

impl Registry {
    /// The pod behind an interface, and its identity; none where the pod is gone and the interface is
    /// closed.
    pub fn endpoint(&self, ifindex: u32) -> Option<(PodRef, Option<Identity>)> {
        self.endpoints.get(&ifindex).map(|entry| entry.value().clone())
    }

    /// The pod with this address.
    pub fn pod(&self, address: IpAddr) -> Option<PodRef> {
        self.pods.get(&address).map(|entry| entry.value().clone())
    }

    /// The names that an identity learned for an address.
    pub fn names(&self, place: Place) -> Arc<[Arc<str>]> {
        self.names.get(&place).map(|entry| Arc::clone(entry.value())).unwrap_or_default()
    }

    /// Who is behind a clause of a table.
    pub fn origins(&self, table: u32, is_egress: bool, clause: u16) -> Option<Arc<[Origin]>> {
        let origins = Arc::clone(self.tables.get(&table)?.value());
        let side = if is_egress { &origins.egress } else { &origins.ingress };
        side.get(usize::from(clause)).map(Arc::clone)
    }

    /// Adds a table, before any packet is judged by it.
    pub fn add_table(&self, number: u32, table: &PolicyTable) {
        let origins =
            |clauses: &[Clause]| clauses.iter().map(|clause| Arc::clone(&clause.origins)).collect();
        let origins = Origins { egress: origins(&table.egress), ingress: origins(&table.ingress) };
        self.tables.insert(number, Arc::new(origins));
    }

    /// Forgets a table.
    pub fn remove_table(&self, number: u32) {
        self.tables.remove(&number);
    }

    /// Takes what changed: called before the kernel is told, so that whoever the kernel lets ask is
    /// known.
    pub fn update(&self, state: &State, effects: &Effects) {
        for (place, names) in &effects.labels {
            if names.is_empty() {
                self.names.remove(place);
            } else {
                self.names.insert(*place, names.as_slice().into());
            }
        }
        for (address, identity) in &effects.ipcache {
            match identity.and_then(|_| state.pod_at(*address)) {
                Some(pod) => self.pods.insert(*address, pod.clone()),
                None => self.pods.remove(address).map(|(_, pod)| pod),
            };
        }
        for (ifindex, effect) in &effects.endpoints {
            match effect {
                EndpointEffect::Enforce(spec) => {
                    self.endpoints.insert(*ifindex, (spec.pod.clone(), Some(spec.identity)));
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
