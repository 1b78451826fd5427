//! Effects → map writes, in an order that is never more open than old and new together.
//!
//! A table is written whole under a number of its own before any endpoint names it; one write of the
//! endpoint's row swaps; the old table goes a second later. Where only identities came to or went from
//! the peers of clauses, their rows are changed in the table in force: those that come before their
//! addresses are known, those that go after these are forgotten, and then flows are judged again. What
//! cannot be written is reported, leaves what was in force in force, and is tried again. Where what is
//! in force knows less than it should, what it does not know is closed.

mod addresses;
mod datapath;
mod endpoints;
mod in_place;
mod kernel;
mod names;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use namegate_egress_bpf::abi::{Address, ServiceKey};
use namegate_egress_bpf::compile::{NameBook, NameWrites, TableRows};
use namegate_egress_bpf::datapath::{Numbers, ServiceEntry};
use namegate_policy::identity::Identity;
use namegate_policy::learned::Place;
use namegate_policy::table::PolicyTable;

pub use kernel::{EndpointRow, Kernel};

use addresses::Addresses;
use in_place::Later;
use names::InForce;

use crate::state::{Effects, EndpointEffect, EndpointSpec, NameRules, TableEffect};

/// What is in force in the kernel, as this agent wrote it.
#[derive(Debug)]
pub struct Apply<K> {
    kernel: K,
    identities: BTreeMap<Identity, InForce>,
    endpoints: BTreeMap<u32, (EndpointSpec, EndpointRow)>,
    /// Rows of an earlier agent, whose flows go on where the endpoint is the same.
    inherited: BTreeMap<u32, EndpointRow>,
    next_table: u32,
    next_generation: u32,
    next_epoch: u32,
    /// Classes below belong to rows of an earlier agent.
    first_class: u32,
    /// Tables that no endpoint should name any more.
    stale_tables: BTreeSet<u32>,
    /// Of these, the ones that no endpoint named when somebody looked last.
    unused_tables: BTreeSet<u32>,
    retry: Retry,
    /// Whose table in force is not the one that names are judged by: the newer one could not be written.
    behind: BTreeSet<Identity>,
    addresses: Addresses,
    /// Whether the kernel was told that every address, service and resolver is written; `None` where
    /// what it was told last is not known.
    told_complete: Option<bool>,
    /// Whether endpoints of an earlier agent wait to be taken over or let go.
    is_taking_over: bool,
}

/// What could not be written.
#[derive(Debug, Default)]
struct Retry {
    /// Whose table is tried again as a whole, and why.
    identities: BTreeMap<Identity, String>,
    /// Learned addresses of identities that nobody has any more.
    retired: Vec<(Identity, NameWrites)>,
    /// Tables that could not be removed.
    tables: BTreeSet<u32>,
    endpoints: BTreeMap<u32, EndpointEffect>,
    ipcache: BTreeMap<IpAddr, Option<Identity>>,
    resolvers: Option<BTreeMap<u8, IpAddr>>,
    services: Option<Arc<BTreeMap<ServiceKey, ServiceEntry>>>,
    rejudge: Rejudge,
}

/// Whose live flows have to be judged again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rejudge {
    everybody: bool,
    identities: BTreeSet<Identity>,
}

/// What becomes of endpoints that an earlier agent enforced and no manifest names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// They are let go: their pods are gone.
    Go,
    /// They stay as they were: manifests that cannot be read may name them.
    Stay,
}

/// How a round of writes went.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What failed, for people.
    pub failures: Vec<String>,
    /// Tables that came into force.
    pub tables: BTreeMap<u32, Arc<PolicyTable>>,
    /// Tables that went.
    pub removed_tables: BTreeSet<u32>,
    /// Learned addresses that could not be written.
    pub unwritten: BTreeSet<Place>,
    /// How many tables were changed in place.
    pub changed_tables: usize,
    /// How many endpoints were written.
    pub swaps: usize,
}

impl<K: Kernel> Apply<K> {
    /// Takes over from an earlier agent that left these endpoints and tables in force, and learned
    /// addresses of classes below `first_class`.
    pub fn new(
        kernel: K,
        inherited: BTreeMap<u32, EndpointRow>,
        tables: BTreeSet<u32>,
        first_class: u32,
    ) -> Self {
        let is_taking_over = !inherited.is_empty();
        let above = |numbers: &mut dyn Iterator<Item = u32>| numbers.max().unwrap_or(0) + 1;
        Self {
            kernel,
            identities: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            next_table: above(&mut tables.iter().copied()),
            next_generation: above(&mut inherited.values().map(|row| row.generation)),
            next_epoch: above(&mut inherited.values().map(|row| row.epoch)),
            inherited,
            first_class,
            stale_tables: tables,
            unused_tables: BTreeSet::new(),
            retry: Retry::default(),
            behind: BTreeSet::new(),
            addresses: Addresses::default(),
            told_complete: None,
            is_taking_over,
        }
    }

    /// The same where more than rows of endpoints and tables carries numbers: none up to these is given
    /// again.
    #[must_use]
    pub fn above(self, used: Numbers) -> Self {
        Self {
            next_table: self.next_table.max(used.table.saturating_add(1)),
            next_generation: self.next_generation.max(used.generation.saturating_add(1)),
            next_epoch: self.next_epoch.max(used.epoch.saturating_add(1)),
            ..self
        }
    }

    /// The same where the tables taken over lie in the same maps, and go by these identities of
    /// addresses.
    #[must_use]
    pub fn with_former(self, former: BTreeMap<IpAddr, Identity>) -> Self {
        Self { addresses: Addresses::of_former(former), ..self }
    }

    /// The kernel's side.
    pub fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// The kernel's side, to be looked at.
    pub fn peek(&self) -> &K {
        &self.kernel
    }

    /// Gives the kernel's side back.
    pub fn into_kernel(self) -> K {
        self.kernel
    }

    /// Whether something failed and has to be tried again.
    pub fn needs_retry(&self) -> bool {
        let retry = &self.retry;
        !(retry.identities.is_empty()
            && retry.endpoints.is_empty()
            && retry.ipcache.is_empty()
            && retry.resolvers.is_none()
            && retry.rejudge == Rejudge::default()
            && retry.services.is_none()
            && retry.retired.is_empty()
            && retry.tables.is_empty()
            && self.told_complete.is_some()
            && !self.addresses.are_held())
    }

    /// The identities whose tables have to be tried again.
    pub fn retry_identities(&self) -> BTreeSet<Identity> {
        self.retry.identities.keys().copied().collect()
    }

    /// Whether the policy in force on an interface is the last one that was asked for.
    pub fn is_in_force(&self, ifindex: u32, identity: Identity) -> bool {
        let known = self.endpoints.get(&ifindex);
        let table = known.filter(|(spec, _)| spec.identity == identity).map(|(_, row)| row.table);
        // Learned addresses that found no room cost lookups, and no pod that starts.
        let wanted = self.identities.get(&identity).filter(|in_force| {
            !in_force.lacks_rows
                && in_force.unsettled.is_empty()
                && !self.behind.contains(&identity)
        });
        table.is_some()
            && table == wanted.map(|in_force| in_force.table)
            && !self.retry.endpoints.contains_key(&ifindex)
    }

    /// Does all at once, where no packets are under way: [`Apply::enforce`], and removes the tables that
    /// nothing uses any more.
    pub fn apply(&mut self, effects: Effects) -> Outcome {
        let mut outcome = self.enforce(effects);
        let unused = self.removable_tables();
        self.remove_tables(unused, &mut outcome);
        outcome
    }

    /// Writes what changed, and what failed before: when it returns, that is in force. Tables that went
    /// out of use stay.
    pub fn enforce(&mut self, mut effects: Effects) -> Outcome {
        let mut outcome = Outcome::default();
        let retry = std::mem::take(&mut self.retry);
        effects.ipcache = merge(retry.ipcache, effects.ipcache);
        effects.endpoints = merge(retry.endpoints, effects.endpoints);
        effects.resolvers = effects.resolvers.or(retry.resolvers);
        effects.services = effects.services.or(retry.services);
        // Those without a new table in this round stay to be tried.
        self.retry.identities = retry.identities;

        let mut rejudge = retry.rejudge;
        rejudge.everybody |= effects.is_anyone_elsewhere;
        let first_generation = self.next_generation;
        self.write_resolvers(effects.resolvers, &mut outcome);
        let mut later = Later::default();
        for (identity, table) in effects.rows {
            self.change_table(identity, table, &mut later, &mut outcome);
            rejudge.identities.insert(identity);
        }
        for (identity, effect) in effects.tables {
            self.retry.identities.remove(&identity);
            self.renew_table(identity, effect, &mut later, &mut outcome);
        }
        let are_moving = effects.endpoints.iter().any(|(ifindex, effect)| {
            let known = self.endpoints.get(ifindex).zip(effect.spec());
            known.is_some_and(|((known, _), spec)| known.identity != spec.identity)
        });
        self.write_addresses(effects.ipcache, are_moving, &mut outcome);
        self.write_services(effects.services, &mut outcome);
        self.tell_complete(&mut outcome);
        self.remove_gone(&mut later, &mut outcome);
        for (ifindex, effect) in effects.endpoints {
            match effect {
                EndpointEffect::Enforce(spec) => self.put_endpoint(ifindex, spec, &mut outcome),
                EndpointEffect::Close => self.close_endpoint(ifindex, &mut outcome),
                EndpointEffect::Release => self.drop_endpoint(ifindex, &mut outcome),
            }
        }
        self.swap_tables(&mut outcome);
        self.open_addresses(&mut outcome);
        self.judge_again(&rejudge, first_generation, &mut outcome);
        for (identity, names) in later.names {
            self.write_all_names(identity, names, &mut outcome);
        }
        self.write_places(effects.names, &mut outcome);
        for (identity, writes) in retry.retired {
            self.forget_names(identity, writes, &mut outcome);
        }
        for identity in effects.retired {
            self.retire(identity, &mut outcome);
        }
        for reason in self.retry.identities.values() {
            // What waits for its turn to be tried again is still so.
            if !outcome.failures.contains(reason) {
                outcome.failures.push(reason.clone());
            }
        }
        outcome
    }

    /// Removes the tables that nothing used when this was called last: a packet that began under one of
    /// them then is judged by now where calls are a second apart, and rows that go are used again at
    /// once (`bpf_mem_alloc`, Linux 6.1).
    pub fn clear_away(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        let unused = self.removable_tables();
        let before = std::mem::replace(&mut self.unused_tables, unused.clone());
        self.remove_tables(unused.intersection(&before).copied().collect(), &mut outcome);
        outcome
    }

    fn remove_tables(&mut self, tables: BTreeSet<u32>, outcome: &mut Outcome) {
        for table in tables {
            match self.kernel.remove_table(table) {
                Ok(()) => {
                    self.stale_tables.remove(&table);
                    outcome.removed_tables.insert(table);
                }
                Err(error) => {
                    outcome.fail(&format!("policy table {table}"), &error);
                    self.retry.tables.insert(table);
                }
            }
        }
    }

    /// Ends the take-over of endpoints that this agent does not know.
    pub fn finish_take_over(&mut self, unknown: Unknown) -> Outcome {
        let mut outcome = Outcome::default();
        self.is_taking_over = false;
        if unknown == Unknown::Stay {
            self.open_addresses(&mut outcome);
            return outcome;
        }
        let inherited: Vec<u32> = self.inherited.keys().copied().collect();
        for ifindex in inherited {
            if self.endpoints.contains_key(&ifindex) {
                self.inherited.remove(&ifindex);
            } else if !self.retry.endpoints.contains_key(&ifindex) {
                self.drop_endpoint(ifindex, &mut outcome);
            }
        }
        self.open_addresses(&mut outcome);
        outcome
    }

    fn write_resolvers(&mut self, resolvers: Option<BTreeMap<u8, IpAddr>>, outcome: &mut Outcome) {
        if let Some(resolvers) = resolvers
            && let Err(error) = self.kernel.set_resolvers(&resolvers)
        {
            outcome.fail("resolvers", &error);
            self.retry.resolvers = Some(resolvers);
        }
    }

    /// Writes the rows of an identity's new table, and what its learned addresses mean there. Nothing
    /// uses it before [`Self::swap_tables`].
    fn replace_table(
        &mut self,
        identity: Identity,
        effect: &TableEffect,
        later: &mut Later,
        outcome: &mut Outcome,
    ) {
        let table = self.next_table;
        self.next_table += 1;
        let what = || format!("policy table of identity {}", identity.number());
        let rows = TableRows::compile_among(&mut later.prefixes, table, &effect.table);
        if let Err(error) = self.kernel.install(table, &rows) {
            self.try_again(identity, outcome.fail(&what(), &error));
            // Rows of it may be left.
            self.stale_tables.insert(table);
            self.behind.insert(identity);
            return;
        }
        let number = identity.number();
        let mut book = match self.identities.get(&identity) {
            Some(known) => known.book.clone(),
            None => NameBook::new(number, table).with_first_class(self.first_class),
        };
        let rules = |address: Address| {
            let rules = effect.names.get(&IpAddr::from(address)).copied().unwrap_or_default();
            (rules.fresh, rules.live)
        };
        // Class rows of the old table that the move leaves behind go with that table.
        let written = match book.retable(table, rules) {
            Ok(retable) => {
                self.kernel.write_names(&retable.before).map_err(|error| error.to_string())
            }
            Err(full) => Err(full.to_string()),
        };
        if let Err(error) = written {
            if let Some(known) = self.identities.get_mut(&identity) {
                known.is_unsure = true;
            }
            let reason = format!("learned addresses of {}: {error}", what());
            outcome.failures.push(reason.clone());
            self.try_again(identity, reason);
            self.stale_tables.insert(table);
            self.behind.insert(identity);
            return;
        }
        self.behind.remove(&identity);
        let former = self.identities.get(&identity);
        let is_unsure = former.is_some_and(|known| known.is_unsure);
        let strays = former.map(|known| known.strays.clone()).unwrap_or_default();
        let policy = Arc::clone(&effect.table);
        let unsettled = BTreeSet::new();
        let in_force =
            InForce { table, policy, book, is_unsure, strays, unsettled, lacks_rows: false };
        let old = self.identities.insert(identity, in_force);
        let is_first = old.is_none();
        self.stale_tables.extend(old.map(|old| old.table));
        outcome.tables.insert(table, Arc::clone(&effect.table));
        let names = effect
            .names
            .iter()
            .map(|(address, rules)| (*address, (!rules.live.is_empty()).then_some(*rules)));
        if is_first {
            // No endpoint uses the table yet: flows that live must find their names there at once.
            self.write_all_names(identity, names.collect(), outcome);
        } else {
            later.names.push((identity, names.collect()));
        }
    }

    fn write_services(
        &mut self,
        services: Option<Arc<BTreeMap<ServiceKey, ServiceEntry>>>,
        outcome: &mut Outcome,
    ) {
        if let Some(services) = services
            && let Err(error) = self.kernel.set_services(&services)
        {
            outcome.fail("services", &error);
            self.retry.services = Some(services);
        }
    }

    fn retire(&mut self, identity: Identity, outcome: &mut Outcome) {
        self.retry.identities.remove(&identity);
        self.behind.remove(&identity);
        let Some(mut gone) = self.identities.remove(&identity) else { return };
        let mut writes = NameWrites::default();
        let held: Vec<Address> = gone.book.entries().map(|(address, _)| address).collect();
        for address in held {
            gone.book.remove(address, &mut writes);
        }
        gone.find_strays(&mut writes);
        self.stale_tables.insert(gone.table);
        self.forget_names(identity, writes, outcome);
    }

    fn forget_names(&mut self, identity: Identity, writes: NameWrites, outcome: &mut Outcome) {
        if let Err(error) = self.kernel.write_names(&writes) {
            outcome.fail(&format!("learned addresses of identity {}", identity.number()), &error);
            self.retry.retired.push((identity, writes));
        }
    }

    /// Has the identity's table tried again as a whole.
    fn try_again(&mut self, identity: Identity, reason: String) {
        self.retry.identities.insert(identity, reason);
    }

    /// The tables that nothing uses and that are there still.
    fn removable_tables(&self) -> BTreeSet<u32> {
        let in_use: BTreeSet<u32> = self
            .endpoints
            .values()
            .map(|(_, row)| row.table)
            .chain(self.inherited.values().map(|row| row.table))
            .collect();
        self.stale_tables.difference(&in_use).copied().collect()
    }
}

impl Outcome {
    /// Adds a failure, and returns it as it is told.
    fn fail(&mut self, what: &str, error: &dyn std::error::Error) -> String {
        let mut text = format!("{what}: {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        self.failures.push(text.clone());
        text
    }
}

fn merge<K: Ord, V>(mut older: BTreeMap<K, V>, newer: BTreeMap<K, V>) -> BTreeMap<K, V> {
    older.extend(newer);
    older
}
