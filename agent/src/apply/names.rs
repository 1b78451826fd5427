//! What learned addresses open, in force and on its way there.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::net::IpAddr;
use std::sync::Arc;

use namegate_egress_bpf::abi::{Address, NameKey, PeerKey};
use namegate_egress_bpf::compile::{NameBook, NameWrites};
use namegate_policy::identity::Identity;
use namegate_policy::learned::Place;
use namegate_policy::limits::ADDRESSES_TOTAL;
use namegate_policy::table::PolicyTable;
use namegate_policy::time::Timestamp;

use super::{Apply, Kernel, NameRules, Outcome};

/// The table of one identity.
#[derive(Debug)]
pub(super) struct InForce {
    pub(super) table: u32,
    pub(super) policy: Arc<PolicyTable>,
    pub(super) book: NameBook,
    /// Whether the kernel may have other rows than `book`, after a failed write: everything is told
    /// again then.
    pub(super) is_unsure: bool,
    /// Rows of addresses that nobody holds any more and that the kernel may still have, after a failed
    /// write.
    pub(super) strays: BTreeSet<NameKey>,
    /// Rows of identities that the kernel may or may not have, after a failed write.
    pub(super) unsettled: BTreeSet<PeerKey>,
    /// Whether some of these are rows that it should have.
    pub(super) lacks_rows: bool,
}

impl InForce {
    /// What `address` opens, as the kernel was told.
    pub(super) fn rules(&self, address: Address) -> Option<NameRules> {
        let (deadline, fresh, live) = self.book.rules(address)?;
        Some(NameRules { deadline: Timestamp::from_nanos(deadline), fresh, live })
    }

    /// Has the rows deleted that an earlier write did not delete, but for those of addresses that are
    /// held again.
    pub(super) fn find_strays(&mut self, writes: &mut NameWrites) {
        self.strays.retain(|key| self.book.rules(key.address).is_none());
        writes.delete_entries.extend(&self.strays);
    }

    /// Keeps rows in mind that may not have been deleted: no more than there can be.
    fn keep_strays(&mut self, rows: Vec<NameKey>) {
        let room = ADDRESSES_TOTAL.saturating_sub(self.strays.len());
        self.strays.extend(rows.into_iter().take(room));
    }
}

impl<K: Kernel> Apply<K> {
    /// What a learned address opens, as the kernel has it; `None` also where that is not certain.
    pub fn opened(&self, (identity, address): Place) -> Option<NameRules> {
        let in_force = self.identities.get(&identity)?;
        if in_force.is_unsure || self.behind.contains(&identity) {
            return None;
        }
        in_force.rules(address.into())
    }

    /// Writes what answers taught, and nothing else: whoever waits for an answer does not wait for
    /// what failed before to be tried again.
    pub fn write_learned(&mut self, names: BTreeMap<Place, Option<NameRules>>) -> Outcome {
        let mut outcome = Outcome::default();
        self.write_places(names, &mut outcome);
        outcome
    }

    pub(super) fn write_places(
        &mut self,
        places: BTreeMap<Place, Option<NameRules>>,
        outcome: &mut Outcome,
    ) {
        let mut places = places.into_iter().peekable();
        while let Some(&((identity, _), _)) = places.peek() {
            let own = iter::from_fn(|| places.next_if(|((whose, _), _)| *whose == identity));
            let names = own.map(|((_, address), rules)| (address, rules)).collect();
            self.write_names(identity, names, outcome);
        }
    }

    /// Writes what all learned addresses of an identity open.
    pub(super) fn write_all_names(
        &mut self,
        identity: Identity,
        names: BTreeMap<IpAddr, Option<NameRules>>,
        outcome: &mut Outcome,
    ) {
        let is_written = self.write_names(identity, names, outcome);
        if let Some(in_force) = self.identities.get_mut(&identity) {
            in_force.is_unsure &= !is_written;
        }
    }

    /// Writes what some learned addresses open, and says whether all of it is written.
    pub(super) fn write_names(
        &mut self,
        identity: Identity,
        names: BTreeMap<IpAddr, Option<NameRules>>,
        outcome: &mut Outcome,
    ) -> bool {
        let unwritten = names.keys().map(|address| (identity, *address));
        let Some(in_force) = self.identities.get_mut(&identity) else {
            outcome.unwritten.extend(unwritten);
            return false;
        };
        // The clauses of a newer table have no meaning in the one that is in force.
        let is_behind = self.behind.contains(&identity);
        let mut writes = NameWrites::default();
        let mut failure = None;
        for (place, rules) in &names {
            let address = Address::from(*place);
            let Some(rules) = rules else {
                in_force.book.remove(address, &mut writes);
                continue;
            };
            if is_behind {
                outcome.unwritten.insert((identity, *place));
                continue;
            }
            if !in_force.is_unsure && in_force.rules(address) == Some(*rules) {
                continue;
            }
            let deadline = rules.deadline.as_nanos();
            let book = &mut in_force.book;
            if let Err(full) = book.set(address, deadline, &rules.fresh, &rules.live, &mut writes) {
                failure = Some(full.to_string());
            }
        }
        in_force.find_strays(&mut writes);
        match self.kernel.write_names(&writes) {
            Ok(()) => in_force.strays.clear(),
            Err(error) => {
                in_force.keep_strays(writes.delete_entries);
                failure = Some(error.to_string());
            }
        }
        let Some(error) = failure else { return !is_behind };
        in_force.is_unsure = true;
        let reason = format!("learned addresses of identity {}: {error}", identity.number());
        outcome.failures.push(reason.clone());
        outcome.unwritten.extend(unwritten);
        self.try_again(identity, reason);
        false
    }
}
