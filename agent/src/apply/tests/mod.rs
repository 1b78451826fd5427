mod endpoints;
mod failing;
mod names;
mod tables;
mod take_over;

use std::collections::BTreeSet;

use namegate_egress_bpf::abi::{NameEntry, NameKey, PeerKey, RuleSet};
use namegate_egress_bpf::compile::RowChanges;
use namegate_policy::dns::{ClusterNames, NamePolicy};
use namegate_policy::name::DnsName;
use namegate_policy::resource::PodRef;
use namegate_policy::table::{Clause, ClauseAction, ClausePeers, ClausePorts, ClauseTier};
use namegate_policy::time::Timestamp;

use super::*;

/// A kernel in memory that refuses what the real one would, and fails when told.
#[derive(Debug, Default)]
struct Memory {
    tables: BTreeSet<u32>,
    classes: BTreeMap<PeerKey, RuleSet>,
    names: BTreeMap<NameKey, NameEntry>,
    endpoints: BTreeMap<u32, EndpointRow>,
    attached: BTreeSet<u32>,
    ipcache: BTreeMap<IpAddr, Identity>,
    closed: BTreeSet<IpAddr>,
    resolvers: BTreeMap<u8, IpAddr>,
    services: BTreeMap<ServiceKey, ServiceEntry>,
    is_incomplete: bool,
    log: Vec<String>,
    calls: usize,
    /// Numbers of the calls that fail.
    failing: BTreeSet<usize>,
}

#[derive(Debug, thiserror::Error)]
#[error("no room")]
struct NoRoom;

impl Memory {
    fn call(&mut self, what: String) -> Result<(), NoRoom> {
        self.calls += 1;
        if self.failing.contains(&self.calls) {
            return Err(NoRoom);
        }
        self.log.push(what);
        Ok(())
    }
}

impl Kernel for Memory {
    type Error = NoRoom;

    fn install(&mut self, table: u32, _rows: &TableRows) -> Result<(), NoRoom> {
        self.call(format!("install {table}"))?;
        assert!(self.tables.insert(table), "table {table} is installed twice");
        Ok(())
    }

    fn change_identities(&mut self, table: u32, changes: &RowChanges) -> Result<(), NoRoom> {
        let (more, less) = (changes.upsert.len(), changes.delete.len());
        self.call(format!("change {table} by {more} and {less}"))?;
        assert!(self.tables.contains(&table), "table {table} is not installed");
        Ok(())
    }

    fn remove_table(&mut self, table: u32) -> Result<(), NoRoom> {
        self.call(format!("remove {table}"))?;
        let user = self.endpoints.values().find(|row| row.table == table);
        assert_eq!(user, None, "table {table} is removed while an endpoint names it");
        self.tables.remove(&table);
        self.classes.retain(|key, _| key.table != table);
        Ok(())
    }

    fn write_names(&mut self, writes: &NameWrites) -> Result<(), NoRoom> {
        if *writes == NameWrites::default() {
            return Ok(());
        }
        self.call("names".to_owned())?;
        self.classes.extend(&writes.classes);
        self.names.retain(|key, _| !writes.delete_entries.contains(key));
        self.names.extend(&writes.entries);
        self.classes.retain(|key, _| !writes.delete_classes.contains(key));
        Ok(())
    }

    fn set_endpoint(&mut self, row: &EndpointRow) -> Result<(), NoRoom> {
        self.call(format!("endpoint {} table {}", row.ifindex, row.table))?;
        assert!(self.tables.contains(&row.table), "table {} is not installed", row.table);
        self.endpoints.insert(row.ifindex, row.clone());
        Ok(())
    }

    fn remove_endpoint(&mut self, ifindex: u32) -> Result<(), NoRoom> {
        self.call(format!("no endpoint {ifindex}"))?;
        self.endpoints.remove(&ifindex);
        Ok(())
    }

    fn close(&mut self, ifindex: u32) -> Result<(), NoRoom> {
        self.call(format!("close {ifindex}"))?;
        self.endpoints.remove(&ifindex);
        self.attached.insert(ifindex);
        Ok(())
    }

    fn attach(&mut self, ifindex: u32) -> Result<(), NoRoom> {
        self.call(format!("attach {ifindex}"))?;
        self.attached.insert(ifindex);
        Ok(())
    }

    fn detach(&mut self, ifindex: u32) -> Result<(), NoRoom> {
        self.call(format!("detach {ifindex}"))?;
        self.attached.remove(&ifindex);
        Ok(())
    }

    fn put_identities(&mut self, entries: &BTreeMap<IpAddr, Identity>) -> Result<(), NoRoom> {
        if entries.is_empty() {
            return Ok(());
        }
        self.call("ipcache".to_owned())?;
        self.ipcache.extend(entries);
        self.closed.retain(|address| !entries.contains_key(address));
        Ok(())
    }

    fn close_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), NoRoom> {
        if addresses.is_empty() {
            return Ok(());
        }
        self.call("close addresses".to_owned())?;
        self.ipcache.retain(|address, _| !addresses.contains(address));
        self.closed.extend(addresses);
        Ok(())
    }

    fn remove_identities(&mut self, addresses: &[IpAddr]) -> Result<(), NoRoom> {
        self.ipcache.retain(|address, _| !addresses.contains(address));
        self.closed.retain(|address| !addresses.contains(address));
        Ok(())
    }

    fn set_complete(&mut self, is_complete: bool) -> Result<(), NoRoom> {
        if self.is_incomplete != is_complete {
            return Ok(());
        }
        self.call(format!("complete: {is_complete}"))?;
        self.is_incomplete = !is_complete;
        Ok(())
    }

    fn set_services(
        &mut self,
        services: &BTreeMap<ServiceKey, ServiceEntry>,
    ) -> Result<(), NoRoom> {
        self.call("services".to_owned())?;
        self.services.clone_from(services);
        Ok(())
    }

    fn set_resolvers(&mut self, resolvers: &BTreeMap<u8, IpAddr>) -> Result<(), NoRoom> {
        self.resolvers.clone_from(resolvers);
        self.call("resolvers".to_owned())
    }
}

const LINK: u32 = 7;

fn identity() -> Identity {
    Identity::FIRST_WORKLOAD
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn mk_table(names: &[(&str, NameRules)]) -> TableEffect {
    let cluster = ClusterNames {
        domain: DnsName::parse("cluster.local").unwrap(),
        search: Vec::new(),
        ranges: Vec::new(),
    };
    let table = PolicyTable {
        identity: identity(),
        egress: Vec::new(),
        ingress: Vec::new(),
        names: Arc::new(NamePolicy::ungoverned(Arc::new(cluster))),
    };
    let names = names.iter().map(|(address, rules)| (ip(address), *rules)).collect();
    TableEffect { table: Arc::new(table), names }
}

fn mk_rules(deadline: u64, rules: &[u16]) -> NameRules {
    let set = RuleSet::of(rules.iter().copied());
    NameRules { deadline: Timestamp::from_nanos(deadline), fresh: set, live: set }
}

fn mk_spec(pod: &str) -> EndpointSpec {
    EndpointSpec {
        pod: PodRef { namespace: "shop".into(), name: pod.into() },
        interface: "veth".to_owned(),
        identity: identity(),
        mac: None,
        addresses: BTreeSet::from([ip("10.244.1.5")]),
    }
}

fn mk_effects(table: TableEffect) -> Effects {
    Effects { tables: BTreeMap::from([(identity(), table)]), ..Effects::default() }
}

fn mk_first() -> Effects {
    Effects {
        ipcache: BTreeMap::from([(ip("10.244.1.5"), Some(identity()))]),
        endpoints: BTreeMap::from([(LINK, EndpointEffect::Enforce(mk_spec("a")))]),
        resolvers: Some(BTreeMap::from([(0, ip("10.96.0.10"))])),
        ..mk_effects(mk_table(&[]))
    }
}

fn mk_apply() -> Apply<Memory> {
    Apply::new(Memory::default(), BTreeMap::new(), BTreeSet::new(), 1)
}

/// What a new flow and a known flow of the endpoint find for `address`.
fn found(kernel: &Memory, address: &str) -> Option<(u64, RuleSet, RuleSet)> {
    let table = kernel.endpoints[&LINK].table;
    let key = NameKey { identity: identity().number(), address: ip(address).into() };
    let entry = kernel.names.get(&key)?;
    let class = |number: u32| {
        let is_it = |key: &&PeerKey| key.table == table && key.class == number;
        let row = kernel.classes.iter().find(|(key, _)| is_it(key));
        if number == 0 { RuleSet::EMPTY } else { *row.expect("a row for each class").1 }
    };
    Some((entry.deadline_ns, class(entry.class), class(entry.live_class)))
}

/// A table with one clause for these identities, of the shape and names of `like`.
fn mk_rows(like: &TableEffect, identities: &[u32]) -> Arc<PolicyTable> {
    let known = identities.iter().filter_map(|number| Identity::new(*number));
    let peers = ClausePeers { identities: Arc::new(known.collect()), ..ClausePeers::default() };
    let clause = Clause {
        action: ClauseAction::Forward,
        tier: ClauseTier::Namespaced,
        peers,
        ports: ClausePorts::Any,
        origins: Arc::new([]),
    };
    let egress = vec![clause];
    Arc::new(PolicyTable { egress, ..PolicyTable::clone(&like.table) })
}

/// An endpoint whose table has a clause for identity 300.
fn mk_with_rows() -> (Apply<Memory>, TableEffect) {
    let mut apply = mk_apply();
    let mut effect = mk_table(&[]);
    effect.table = mk_rows(&effect, &[300]);
    apply.apply(mk_first());
    apply.apply(mk_effects(effect.clone()));
    apply.kernel().log.clear();
    (apply, effect)
}

fn mk_change(table: Arc<PolicyTable>) -> Effects {
    let ipcache = BTreeMap::from([(ip("10.244.2.7"), Identity::new(301))]);
    Effects { rows: BTreeMap::from([(identity(), table)]), ipcache, ..Effects::default() }
}
