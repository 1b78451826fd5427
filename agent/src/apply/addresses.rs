//! Who addresses are, told to the kernel no sooner than every table in force knows them.
//!
//! A table passes over the rules that mean an identity which it does not know, a denial by labels
//! among them. So while a table in force is not the one that was asked for, the addresses of
//! identities that it may not know are closed: the kernel is told that nobody knows who they are.

use std::collections::BTreeMap;
use std::net::IpAddr;

use namegate_policy::identity::Identity;

use super::{Apply, Kernel, Outcome};
use crate::state::EndpointEffect;

/// Addresses named where some are closed; the others are counted.
const NAMED_MAX: usize = 3;

/// What the kernel is not told yet.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    /// Closed, with whose they are.
    held: BTreeMap<IpAddr, Identity>,
    /// Every table that came into force knows the identities below this number.
    known_below: u32,
    /// No address has an identity of this number or above.
    unseen_from: u32,
    /// Who addresses are to the tables of an earlier agent, until the first round.
    former: Option<BTreeMap<IpAddr, Identity>>,
}

impl Addresses {
    /// Those that tables of an earlier agent in the same maps go by.
    pub(super) fn of_former(former: BTreeMap<IpAddr, Identity>) -> Self {
        Self { former: Some(former), ..Self::default() }
    }

    /// Whether some are closed.
    pub(super) fn are_held(&self) -> bool {
        !self.held.is_empty()
    }
}

impl<K: Kernel> Apply<K> {
    /// Tells the kernel whose addresses are, and closes those that a table in force may take for
    /// nobody's. `are_moving` says whether endpoints are about to come under the table of another
    /// identity.
    pub(super) fn write_addresses(
        &mut self,
        changes: BTreeMap<IpAddr, Option<Identity>>,
        are_moving: bool,
        outcome: &mut Outcome,
    ) {
        let former = self.addresses.former.take();
        let is_behind = former.is_some() || are_moving || self.is_behind();
        let (mut gone, mut known, mut held) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for (address, who) in changes {
            self.addresses.held.remove(&address);
            let Some(identity) = who else {
                gone.push(address);
                continue;
            };
            let was = former.as_ref().and_then(|former| former.get(&address));
            let number = identity.number();
            if !identity.is_reserved() {
                self.addresses.unseen_from = self.addresses.unseen_from.max(number + 1);
            }
            let is_known = identity.is_reserved() || number < self.addresses.known_below;
            if was == Some(&identity) {
                // The kernel has it.
            } else if is_known || !is_behind {
                known.insert(address, identity);
            } else {
                held.insert(address, identity);
            }
        }
        if let Err(error) = self.kernel.remove_identities(&gone) {
            outcome.fail("addresses of pods that are gone", &error);
            self.retry.ipcache.extend(gone.into_iter().map(|address| (address, None)));
        }
        self.put_addresses(known, outcome);
        let closed: Vec<IpAddr> = held.keys().copied().collect();
        match self.kernel.close_addresses(&closed) {
            Ok(()) => self.addresses.held.extend(held),
            Err(error) => {
                outcome.fail("addresses of pods, to be closed", &error);
                self.retry_addresses(held);
            }
        }
    }

    /// Opens what was closed, where every table in force is the one that was asked for.
    pub(super) fn open_addresses(&mut self, outcome: &mut Outcome) {
        let known = &self.addresses;
        if known.held.is_empty() && known.known_below == known.unseen_from {
            return;
        }
        if self.is_behind() {
            // In the midst of a take-over nothing is wrong yet.
            outcome.failures.extend(self.held_text().filter(|_| !self.is_taking_over));
            return;
        }
        self.addresses.known_below = self.addresses.unseen_from;
        let held = std::mem::take(&mut self.addresses.held);
        self.put_addresses(held, outcome);
        self.tell_complete(outcome);
    }

    /// Tells the kernel whether an address, service or resolver that it does not find is known not to
    /// be there.
    pub(super) fn tell_complete(&mut self, outcome: &mut Outcome) {
        let retry = &self.retry;
        let is_complete =
            retry.ipcache.is_empty() && retry.services.is_none() && retry.resolvers.is_none();
        if self.told_complete == Some(is_complete) {
            return;
        }
        self.told_complete = match self.kernel.set_complete(is_complete) {
            Ok(()) => Some(is_complete),
            Err(error) => {
                outcome.fail("the mark that addresses are missing", &error);
                None
            }
        };
    }

    /// Whether an endpoint is judged by another table than the last that was asked for.
    fn is_behind(&self) -> bool {
        let is_last = |identity: Identity, table: u32| {
            let known = self.identities.get(&identity);
            known.is_some_and(|known| known.table == table && !known.lacks_rows)
                && !self.behind.contains(&identity)
        };
        let waited_for = |index| self.retry.endpoints.get(index).and_then(EndpointEffect::spec);
        self.endpoints.iter().any(|(index, (spec, row))| {
            let is_moving = waited_for(index).is_some_and(|next| next.identity != spec.identity);
            is_moving || !is_last(spec.identity, row.table)
        }) || self.inherited.keys().any(|index| self.is_taking_over || waited_for(index).is_some())
    }

    fn put_addresses(&mut self, known: BTreeMap<IpAddr, Identity>, outcome: &mut Outcome) {
        if let Err(error) = self.kernel.put_identities(&known) {
            outcome.fail("addresses of pods", &error);
            self.retry_addresses(known);
        }
    }

    fn retry_addresses(&mut self, addresses: BTreeMap<IpAddr, Identity>) {
        let again = addresses.into_iter().map(|(address, identity)| (address, Some(identity)));
        self.retry.ipcache.extend(again);
    }

    fn held_text(&self) -> Option<String> {
        let held = &self.addresses.held;
        let named: Vec<String> = held
            .iter()
            .take(NAMED_MAX)
            .map(|(address, identity)| format!("{address} (identity {})", identity.number()))
            .collect();
        let others = held.len() - named.len();
        let others = if others == 0 { String::new() } else { format!(" and {others} more") };
        (!named.is_empty()).then(|| {
            format!(
                "addresses {}{others}: closed to new flows until every policy table in force knows whose they are",
                named.join(", ")
            )
        })
    }
}
