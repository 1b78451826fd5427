//! Identities that come to and go from a table in force.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use namegate_egress_bpf::abi::PeerKey;
use namegate_egress_bpf::compile::{KnownPrefixes, RowChanges};
use namegate_policy::identity::Identity;
use namegate_policy::table::PolicyTable;

use super::{Apply, Kernel, NameRules, Outcome, Rejudge, TableEffect};
use crate::state::EndpointEffect;

/// What tables that change leave to others and to later, when the addresses of identities are written.
#[derive(Debug, Default)]
pub(super) struct Later {
    /// Learned addresses of replaced tables, once these are in force.
    pub(super) names: Vec<(Identity, BTreeMap<IpAddr, Option<NameRules>>)>,
    /// Rows of identities that went, with their table.
    pub(super) gone: Vec<(Identity, u32, Vec<PeerKey>)>,
    /// What tables that were replaced have in common.
    pub(super) prefixes: KnownPrefixes,
}

impl<K: Kernel> Apply<K> {
    /// Brings the table of `identity` to `table`, which differs in the identities of its clauses:
    /// writes the rows of those that came, and leaves those that went to `later`. Where it differs
    /// in more, from what could not be written before, it is replaced.
    pub(super) fn change_table(
        &mut self,
        identity: Identity,
        table: Arc<PolicyTable>,
        later: &mut Later,
        outcome: &mut Outcome,
    ) {
        // One that was never written is tried again as a whole.
        let Some(in_force) = self.identities.get(&identity) else { return };
        let Some(changes) = self.changes_in_place(identity, &table) else {
            let held = in_force.book.entries();
            let names = held.filter_map(|(at, _)| Some((at.into(), in_force.rules(at)?))).collect();
            self.replace_table(identity, &TableEffect { table, names }, later, outcome);
            return;
        };
        self.change_rows(identity, table, changes, later, outcome);
    }

    /// Puts a table in force that was not, or could not be: rows that could not be written into the
    /// one in force are tried there again, since a table beside it would take as much room again.
    pub(super) fn renew_table(
        &mut self,
        identity: Identity,
        effect: TableEffect,
        later: &mut Later,
        outcome: &mut Outcome,
    ) {
        let waits_for_rows = self
            .identities
            .get(&identity)
            .is_some_and(|in_force| !in_force.unsettled.is_empty() && !in_force.is_unsure)
            && !self.behind.contains(&identity);
        let changes = self.changes_in_place(identity, &effect.table).filter(|_| waits_for_rows);
        let Some(changes) = changes else {
            self.replace_table(identity, &effect, later, outcome);
            return;
        };
        self.change_rows(identity, effect.table, changes, later, outcome);
        let live = |rules: NameRules| (!rules.live.is_empty()).then_some(rules);
        let names = effect.names.into_iter().map(|(address, rules)| (address, live(rules)));
        later.names.push((identity, names.collect()));
    }

    /// The rows in which the table in force differs from `table`; `None` where it differs in more.
    fn changes_in_place(&self, identity: Identity, table: &PolicyTable) -> Option<RowChanges> {
        let in_force = self.identities.get(&identity)?;
        let mut changes = RowChanges::in_place(in_force.table, &in_force.policy, table)?;
        changes.restate(table, &in_force.unsettled);
        Some(changes)
    }

    /// Writes the rows of identities that came. What cannot be written leaves rows of old and new: all
    /// of them are tried again.
    fn change_rows(
        &mut self,
        identity: Identity,
        policy: Arc<PolicyTable>,
        changes: RowChanges,
        later: &mut Later,
        outcome: &mut Outcome,
    ) {
        let Some(number) = self.identities.get(&identity).map(|in_force| in_force.table) else {
            return;
        };
        outcome.changed_tables += 1;
        let RowChanges { upsert, delete } = changes;
        let more = RowChanges { upsert, delete: Vec::new() };
        let written = self.write_rows(number, &more);
        let Some(in_force) = self.identities.get_mut(&identity) else { return };
        in_force.lacks_rows = written.is_err();
        if let Err(error) = written {
            in_force.unsettled.extend(more.upsert.keys().chain(&delete));
            let what = format!("policy table of identity {}", identity.number());
            self.try_again(identity, outcome.fail(&what, &error));
        } else {
            in_force.policy = policy;
            in_force.unsettled = delete.iter().copied().collect();
        }
        // Those that went make room, for one that did not fit above all.
        later.gone.push((identity, number, delete));
    }

    fn write_rows(&mut self, table: u32, changes: &RowChanges) -> Result<(), K::Error> {
        if changes.is_empty() { Ok(()) } else { self.kernel.change_identities(table, changes) }
    }

    /// Removes the rows of identities that went.
    pub(super) fn remove_gone(&mut self, later: &mut Later, outcome: &mut Outcome) {
        for (identity, number, delete) in std::mem::take(&mut later.gone) {
            let less = RowChanges { delete, ..RowChanges::default() };
            let written = self.write_rows(number, &less);
            let gone: BTreeSet<PeerKey> = less.delete.into_iter().collect();
            let in_force = self.identities.get_mut(&identity);
            let Some(in_force) = in_force.filter(|in_force| in_force.table == number) else {
                continue;
            };
            match written {
                Ok(()) => in_force.unsettled.retain(|row| !gone.contains(row)),
                Err(error) => {
                    let what = format!("policy table of identity {}", identity.number());
                    self.try_again(identity, outcome.fail(&what, &error));
                }
            }
        }
    }

    /// Raises the generation of endpoints whose rows were last written before `generation`, so that
    /// each of their live flows is judged by what is in force. All take one number: it means something
    /// beside an interface and an epoch only, and pods that come and go elsewhere use none up.
    pub(super) fn judge_again(&mut self, whose: &Rejudge, generation: u32, outcome: &mut Outcome) {
        let is_meant = |identity| whose.everybody || whose.identities.contains(&identity);
        let (next, mut is_taken) = (self.next_generation, false);
        for (ifindex, (spec, row)) in &mut self.endpoints {
            if row.generation >= generation || !is_meant(spec.identity) {
                continue;
            }
            (row.generation, is_taken) = (next, true);
            if let Err(error) = self.kernel.set_endpoint(row) {
                outcome.fail(&format!("Pod {}: interface {}", spec.pod, spec.interface), &error);
                let again = EndpointEffect::Enforce(spec.clone());
                // What it is to become, where that waits already, comes first.
                self.retry.endpoints.entry(*ifindex).or_insert(again);
            }
        }
        self.next_generation += u32::from(is_taken);
        // Addresses and services that could not be written are others only when they are.
        let waits = !self.retry.ipcache.is_empty() || self.retry.services.is_some();
        self.retry.rejudge.everybody |= whose.everybody && waits;
    }
}
