//! Identities that come to and go from a table in force.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use namegate_egress_bpf::abi::PeerKey;
use namegate_egress_bpf::compile::RowChanges;
use namegate_policy::identity::Identity;
use namegate_policy::table::PolicyTable;

use super::{Apply, Kernel, NameRules, Outcome, Rejudge, TableEffect};
use crate::state::EndpointEffect;

/// What is left to do when the addresses of identities are written.
#[derive(Debug, Default)]
pub(super) struct Later {
    /// Learned addresses of replaced tables, once these are in force.
    pub(super) names: Vec<(Identity, BTreeMap<IpAddr, Option<NameRules>>)>,
    /// Rows of identities that went, with their table.
    pub(super) gone: Vec<(Identity, u32, Vec<PeerKey>)>,
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
        let Some(in_force) = self.identities.get_mut(&identity) else { return };
        let number = in_force.table;
        let Some(changes) = RowChanges::in_place(number, &in_force.policy, &table) else {
            let held = in_force.book.entries();
            let names = held.filter_map(|(at, _)| Some((at.into(), in_force.rules(at)?))).collect();
            self.replace_table(identity, &TableEffect { table, names }, later, outcome);
            return;
        };
        in_force.policy = table;
        outcome.changed_tables += 1;
        let RowChanges { upsert, delete } = changes;
        self.change_rows(identity, number, &RowChanges { upsert, delete: Vec::new() }, outcome);
        later.gone.push((identity, number, delete));
    }

    pub(super) fn remove_gone(&mut self, later: &mut Later, outcome: &mut Outcome) {
        for (identity, table, delete) in std::mem::take(&mut later.gone) {
            let changes = RowChanges { delete, ..RowChanges::default() };
            self.change_rows(identity, table, &changes, outcome);
        }
    }

    /// What cannot be written leaves rows of old and new: the whole table is tried again.
    fn change_rows(
        &mut self,
        identity: Identity,
        table: u32,
        changes: &RowChanges,
        outcome: &mut Outcome,
    ) {
        if *changes == RowChanges::default() {
            return;
        }
        if let Err(error) = self.kernel.change_identities(table, changes) {
            outcome.fail(&format!("policy table of identity {}", identity.number()), &error);
            self.retry.identities.insert(identity);
        }
    }

    /// Raises the generation of endpoints whose rows were last written before `generation`, so that
    /// each of their live flows is judged by what is in force.
    pub(super) fn judge_again(&mut self, whose: &Rejudge, generation: u32, outcome: &mut Outcome) {
        let is_meant = |identity| whose.everybody || whose.identities.contains(&identity);
        let mut next = self.next_generation;
        for (ifindex, (spec, row)) in &mut self.endpoints {
            if row.generation >= generation || !is_meant(spec.identity) {
                continue;
            }
            row.generation = next;
            next += 1;
            if let Err(error) = self.kernel.set_endpoint(row) {
                outcome.fail(&format!("Pod {}: interface {}", spec.pod, spec.interface), &error);
                let again = EndpointEffect::Enforce(spec.clone());
                self.retry.endpoints.insert(*ifindex, again);
            }
        }
        self.next_generation = next;
        // Addresses and services that could not be written are others only when they are.
        let waits = !self.retry.ipcache.is_empty() || self.retry.services.is_some();
        self.retry.rejudge.everybody |= whose.everybody && waits;
    }
}
