//! Addresses that an identity may reach by one name, and that also answer for names that it may not.
//!
//! A packet carries an address and no name: whoever may reach the address reaches all that it serves.
//! Known are the names that pods of this node asked for and were answered; answers to names that are
//! refused are never fetched, so there may be more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use namegate_policy::dns::NameDecision;
use namegate_policy::identity::Identity;
use namegate_policy::learned::{Cursor, Learned, Lease};
use namegate_policy::name::DnsName;
use namegate_policy::rule::Origin;
use namegate_policy::table::PolicyTable;

use super::SharedLearned;

/// What is looked at before whoever learns gets a turn.
const TURN: usize = 256;

/// Addresses that are held in hand at a time: a copy of all would be half as large as what is learned.
const HAND: usize = 8_192;

/// An address that opens more than its names say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// Who may reach the address.
    pub identity: Identity,
    /// The address.
    pub address: IpAddr,
    /// The names that open it for the identity, with the rule that means each.
    pub opened_by: Vec<(DnsName, Option<Origin>)>,
    /// The names that the identity may not reach, with the identities that learned them for the
    /// address.
    pub also: Vec<(DnsName, BTreeSet<Identity>)>,
}

/// Hands each shared address to `found`, in order of addresses. What is learned is locked for a moment
/// at a time, and gone through once for each hand of addresses.
pub fn find_shared(
    learned: &SharedLearned,
    tables: &BTreeMap<Identity, Arc<PolicyTable>>,
    found: impl FnMut(Sharing),
) {
    find_by_hand(learned, tables, HAND, found);
}

fn find_by_hand(
    learned: &SharedLearned,
    tables: &BTreeMap<Identity, Arc<PolicyTable>>,
    hand: usize,
    mut found: impl FnMut(Sharing),
) {
    let mut last = None;
    loop {
        let holders: Vec<(IpAddr, Vec<Identity>)> =
            first_holders(learned, last, hand).into_iter().collect();
        for turn in holders.chunks(TURN) {
            let named: Vec<_> = {
                let learned = learned.read();
                turn.iter().map(|(address, holders)| names(&learned, *address, holders)).collect()
            };
            for ((address, holders), names) in turn.iter().zip(&named) {
                let shared = holders.iter().filter_map(|identity| {
                    let table = tables.get(identity)?;
                    sharing(*identity, *address, table, names)
                });
                shared.for_each(&mut found);
            }
        }
        if holders.len() < hand {
            return;
        }
        last = holders.last().map(|(address, _)| *address);
    }
}

/// The first `count` addresses after `last`, each with the identities that hold it, in their order.
fn first_holders(
    learned: &SharedLearned,
    last: Option<IpAddr>,
    count: usize,
) -> BTreeMap<IpAddr, Vec<Identity>> {
    let mut holders: BTreeMap<IpAddr, Vec<Identity>> = BTreeMap::new();
    let mut cursor = Cursor::all();
    let mut is_more = true;
    while is_more {
        is_more = learned.read().read_on(&mut cursor, TURN, |kept| {
            let address = kept.address;
            let is_beyond = holders.len() == count
                && holders.last_key_value().is_some_and(|(most, _)| address > *most);
            if is_beyond || last.is_some_and(|last| address <= last) {
                return;
            }
            let known = holders.entry(address).or_default();
            if let Err(place) = known.binary_search(&kept.identity) {
                known.insert(place, kept.identity);
            }
            if holders.len() > count {
                holders.pop_last();
            }
        });
    }
    holders
}

/// The fresh names of an address, and who learned each.
type Names = BTreeMap<DnsName, BTreeSet<Identity>>;

fn names(learned: &Learned, address: IpAddr, holders: &[Identity]) -> Names {
    let mut names = Names::new();
    for identity in holders {
        for (name, lease) in learned.leases((*identity, address)) {
            if matches!(lease, Lease::Fresh { .. }) {
                names.entry(name.clone()).or_default().insert(*identity);
            }
        }
    }
    names
}

fn sharing(
    identity: Identity,
    address: IpAddr,
    table: &PolicyTable,
    names: &Names,
) -> Option<Sharing> {
    if names.len() < 2 {
        return None;
    }
    let mut sharing = Sharing { identity, address, opened_by: Vec::new(), also: Vec::new() };
    for (name, learned_by) in names {
        if table.names.clauses(name).is_empty() {
            sharing.also.push((name.clone(), learned_by.clone()));
        } else if learned_by.contains(&identity) {
            let origin = match table.names.decide(name) {
                NameDecision::Allowed { origin, .. } => origin,
                NameDecision::SearchMiss | NameDecision::Refused { .. } => None,
            };
            sharing.opened_by.push((name.clone(), origin));
        }
    }
    (!sharing.opened_by.is_empty() && !sharing.also.is_empty()).then_some(sharing)
}

#[cfg(test)]
mod tests {
    use namegate_policy::resource::PodRef;
    use namegate_policy::time::Timestamp;

    use super::*;
    use crate::source::Changes;
    use crate::state::{Answer, Event, State};
    use crate::testing::{mk_objects, mk_state, mk_town};

    const OBJECTS: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: checkout, namespace: shop, labels: {app: checkout}, annotations: {namegate.dev/interface: a}}
status: {podIPs: [{ip: 10.244.1.5}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}, annotations: {namegate.dev/interface: b}}
status: {podIPs: [{ip: 10.244.1.6}]}
---
apiVersion: namegate.dev/v1alpha1
kind: EgressPolicy
metadata: {name: apis, namespace: shop}
spec:
  podSelector: {matchLabels: {app: checkout}}
  dns: {filter: Observe}
  egress:
  - name: payments
    to: [{fqdn: api.example.com}]
    ports: [{protocol: TCP, port: 443}]
---
apiVersion: namegate.dev/v1alpha1
kind: EgressPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  egress:
  - to: [{fqdn: '*.example.com'}]
";

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_nanos(seconds * 1_000_000_000)
    }

    fn mk_running() -> (State, Identity, Identity) {
        let mut state = mk_state();
        let changes = Changes { upserts: mk_objects(OBJECTS), ..Changes::default() };
        state.handle(Event::Objects(changes), at(1));
        state.handle(Event::Town(mk_town(&[("checkout", 7), ("web", 9)])), at(1));
        let identity = |name: &str| {
            let pod = PodRef { namespace: "shop".into(), name: name.into() };
            state.identity_of_pod(&pod).unwrap()
        };
        let (checkout, web) = (identity("checkout"), identity("web"));
        (state, checkout, web)
    }

    fn teach(state: &mut State, identity: Identity, name: &str, address: &str, now: Timestamp) {
        let answer = Answer {
            identity,
            name: DnsName::parse(name).unwrap(),
            clauses: Vec::new(),
            addresses: vec![(address.parse().unwrap(), 30)],
        };
        state.teach(&answer, now).unwrap();
    }

    fn found(state: &State) -> Vec<String> {
        found_by_hand(state, HAND)
    }

    fn found_by_hand(state: &State, hand: usize) -> Vec<String> {
        let mut all = Vec::new();
        find_by_hand(state.learned(), state.tables(), hand, |sharing| {
            let Sharing { identity, address, opened_by, also } = sharing;
            let by: Vec<String> = opened_by
                .iter()
                .map(|(name, origin)| {
                    let rule = origin.as_ref().and_then(|origin| origin.rule.as_deref());
                    format!("{name} by {}", rule.unwrap_or("-"))
                })
                .collect();
            let also: Vec<String> =
                also.iter().map(|(name, who)| format!("{name} of {}", who.len())).collect();
            all.push(format!(
                "{} {address}: {}; {}",
                identity.number(),
                by.join(", "),
                also.join(", ")
            ));
        });
        all
    }

    #[test]
    fn an_address_that_serves_more_than_its_rule_says_is_found() {
        let (mut state, checkout, web) = mk_running();
        teach(&mut state, checkout, "api.example.com", "203.0.113.1", at(2));
        assert_eq!(found(&state), Vec::<String>::new(), "one name, one rule");
        teach(&mut state, web, "admin.example.com", "203.0.113.1", at(2));
        let shared = format!(
            "{} 203.0.113.1: api.example.com by payments; admin.example.com of 1",
            checkout.number()
        );
        assert_eq!(found(&state), [shared], "web may reach both names");
        teach(&mut state, checkout, "evil.test", "203.0.113.1", at(2));
        let shared = [
            format!(
                "{} 203.0.113.1: api.example.com by payments; evil.test of 1, admin.example.com of 1",
                checkout.number()
            ),
            format!("{} 203.0.113.1: admin.example.com by egress[0]; evil.test of 1", web.number()),
        ];
        assert_eq!(found(&state), shared, "a name that resolves and opens nothing counts");
        teach(&mut state, web, "www.example.com", "203.0.113.2", at(2));
        assert_eq!(found(&state).len(), 2, "another address is another matter");
        state.handle(Event::Tick, at(1_000));
        assert_eq!(found(&state), Vec::<String>::new(), "names that ran out open nothing");
    }

    #[test]
    fn hands_of_any_size_find_the_same_addresses_in_the_same_order() {
        let (mut state, checkout, web) = mk_running();
        for number in [5, 1, 9, 3, 7, 2] {
            let address = format!("203.0.113.{number}");
            teach(&mut state, web, &format!("w{number}.example.com"), &address, at(2));
            teach(&mut state, checkout, "evil.test", &address, at(2));
            teach(&mut state, web, "alone.example.com", &format!("2001:db8::{number}"), at(2));
        }
        let all = found(&state);
        assert_eq!(all.len(), 6, "{all:?}");
        assert!(all.is_sorted(), "{all:?}");
        for hand in 1..14 {
            assert_eq!(found_by_hand(&state, hand), all, "hands of {hand}");
        }
    }
}
