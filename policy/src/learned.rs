//! What identities learned: which addresses answered for which names, and until when.
//!
//! An address is *fresh* under a name until the deadline of the newest answer; only fresh names open
//! it to new flows. After that the pair is *lingering*: it opens nothing, but is kept so that a flow
//! that is alive can be judged again after a policy change (EP-10), until [`Learned::release`] is
//! told that no flow uses the address. Nothing is evicted: what does not fit is refused (see
//! [`crate::limits`]), and no identity can use up what another holds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::identity::Identity;
use crate::limits;
use crate::name::DnsName;
use crate::time::Timestamp;

/// One address, as one identity learned it.
pub type Place = (Identity, IpAddr);

/// Why an answer was not learned; nothing changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LearnError {
    /// The identity holds as many names as it may.
    #[error("the identity holds {limit} names, which is the limit")]
    NamesPerIdentity {
        /// The limit.
        limit: usize,
    },
    /// The name would hold more addresses than it may.
    #[error("the name would hold more than {limit} addresses, which is the limit")]
    AddressesPerName {
        /// The limit.
        limit: usize,
    },
    /// An address belongs to as many names as it may.
    #[error("{address} belongs to {limit} names, which is the limit")]
    NamesPerAddress {
        /// The address.
        address: IpAddr,
        /// The limit.
        limit: usize,
    },
    /// All identities together hold as many addresses as they may.
    #[error("the node holds {limit} learned addresses, which is the limit")]
    AddressesTotal {
        /// The limit.
        limit: usize,
    },
}

/// The bounds of [`Learned`]; the defaults are those of [`crate::limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearnedLimits {
    /// Names of one identity.
    pub names_per_identity: usize,
    /// Addresses of one name of one identity.
    pub addresses_per_name: usize,
    /// Names of one address of one identity.
    pub names_per_address: usize,
    /// Addresses of all identities.
    pub addresses_total: usize,
}

impl Default for LearnedLimits {
    fn default() -> Self {
        Self {
            names_per_identity: limits::NAMES_PER_IDENTITY,
            addresses_per_name: limits::ADDRESSES_PER_NAME,
            names_per_address: limits::NAMES_PER_ADDRESS,
            addresses_total: limits::ADDRESSES_TOTAL,
        }
    }
}

/// How long an address counts under one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// New flows may start until the deadline.
    Fresh {
        /// First instant at which none may.
        deadline: Timestamp,
    },
    /// No new flow may start; kept for flows that live.
    Lingering {
        /// When the lease stopped being fresh.
        since: Timestamp,
    },
}

/// Addresses by identity and name, with their deadlines.
#[derive(Debug, Default)]
pub struct Learned {
    limits: LearnedLimits,
    books: BTreeMap<Identity, Book>,
    addresses: usize,
    deadlines: BTreeSet<Due>,
    lingering: BTreeSet<Due>,
}

#[derive(Debug, Default)]
struct Book {
    names: BTreeMap<Arc<DnsName>, BTreeSet<IpAddr>>,
    addresses: BTreeMap<IpAddr, BTreeMap<Arc<DnsName>, Lease>>,
}

/// A lease and the instant that orders it: its deadline, or when it began to linger.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: Timestamp,
    identity: Identity,
    address: IpAddr,
    name: Arc<DnsName>,
}

impl Learned {
    /// Nothing learned, bounded by `limits`.
    pub fn new(limits: LearnedLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Records that `name` answered with `addresses` for `identity`, open to new flows until
    /// `deadline`. A lease that is fresh for longer keeps its later deadline. On an error nothing
    /// changed.
    pub fn learn(
        &mut self,
        identity: Identity,
        name: &DnsName,
        addresses: &BTreeSet<IpAddr>,
        deadline: Timestamp,
    ) -> Result<(), LearnError> {
        if addresses.is_empty() {
            return Ok(());
        }
        self.check_room(identity, name, addresses)?;
        let book = self.books.entry(identity).or_default();
        let name = match book.names.get_key_value(name) {
            Some((known, _)) => Arc::clone(known),
            None => Arc::new(name.clone()),
        };
        book.names.entry(Arc::clone(&name)).or_default().extend(addresses);
        for &address in addresses {
            let leases = book.addresses.entry(address).or_insert_with(|| {
                self.addresses += 1;
                BTreeMap::new()
            });
            let due = |at| Due { at, identity, address, name: Arc::clone(&name) };
            match leases.get(&name) {
                Some(&Lease::Fresh { deadline: known }) if known >= deadline => continue,
                Some(&Lease::Fresh { deadline: known }) => {
                    self.deadlines.remove(&due(known));
                }
                Some(&Lease::Lingering { since }) => {
                    self.lingering.remove(&due(since));
                }
                None => {}
            }
            leases.insert(Arc::clone(&name), Lease::Fresh { deadline });
            self.deadlines.insert(due(deadline));
        }
        Ok(())
    }

    /// The names of `address` for `identity`, each with its lease, in order of the names.
    pub fn leases(&self, place: Place) -> impl Iterator<Item = (&DnsName, Lease)> {
        self.books
            .get(&place.0)
            .and_then(|book| book.addresses.get(&place.1))
            .into_iter()
            .flatten()
            .map(|(name, lease)| (name.as_ref(), *lease))
    }

    /// The addresses that `identity` holds, fresh or lingering, in order.
    pub fn addresses(&self, identity: Identity) -> impl Iterator<Item = IpAddr> {
        self.books.get(&identity).into_iter().flat_map(|book| book.addresses.keys().copied())
    }

    /// The identities that hold anything, in order.
    pub fn identities(&self) -> impl Iterator<Item = Identity> {
        self.books.keys().copied()
    }

    /// How many addresses all identities hold together.
    pub fn address_count(&self) -> usize {
        self.addresses
    }

    /// When the next lease stops being fresh.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.first().map(|due| due.at)
    }

    /// Turns every lease whose deadline is at or before `now` into a lingering one. Returns the
    /// addresses concerned, whose kernel entries are out of date.
    pub fn expire(&mut self, now: Timestamp) -> BTreeSet<Place> {
        let mut changed = BTreeSet::new();
        while self.deadlines.first().is_some_and(|due| due.at <= now) {
            let Some(due) = self.deadlines.pop_first() else {
                break;
            };
            if let Some(lease) = self.lease_mut(&due) {
                *lease = Lease::Lingering { since: due.at };
            }
            changed.insert((due.identity, due.address));
            self.lingering.insert(due);
        }
        changed
    }

    /// Forgets the leases that began to linger before `swept_since` and whose address is not in
    /// `in_use`: the places that a look at all live flows, begun at `swept_since`, found. Returns the
    /// addresses concerned; those without any lease left are gone.
    pub fn release(&mut self, swept_since: Timestamp, in_use: &BTreeSet<Place>) -> BTreeSet<Place> {
        let idle: Vec<Due> = self
            .lingering
            .iter()
            .take_while(|due| due.at < swept_since)
            .filter(|due| !in_use.contains(&(due.identity, due.address)))
            .cloned()
            .collect();
        let mut changed = BTreeSet::new();
        for due in idle {
            self.lingering.remove(&due);
            self.remove_lease(&due);
            changed.insert((due.identity, due.address));
        }
        changed
    }

    /// Forgets all that `identity` learned and returns the addresses.
    pub fn forget(&mut self, identity: Identity) -> BTreeSet<Place> {
        let Some(book) = self.books.remove(&identity) else {
            return BTreeSet::new();
        };
        self.addresses -= book.addresses.len();
        for (&address, leases) in &book.addresses {
            for (name, lease) in leases {
                let due = |at| Due { at, identity, address, name: Arc::clone(name) };
                match *lease {
                    Lease::Fresh { deadline } => self.deadlines.remove(&due(deadline)),
                    Lease::Lingering { since } => self.lingering.remove(&due(since)),
                };
            }
        }
        book.addresses.into_keys().map(|address| (identity, address)).collect()
    }

    fn check_room(
        &self,
        identity: Identity,
        name: &DnsName,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<(), LearnError> {
        let nothing = Book::default();
        let book = self.books.get(&identity).unwrap_or(&nothing);
        let held = book.names.get(name);
        if held.is_none() && book.names.len() >= self.limits.names_per_identity {
            return Err(LearnError::NamesPerIdentity { limit: self.limits.names_per_identity });
        }
        let added = addresses.iter().filter(|a| held.is_none_or(|held| !held.contains(a)));
        if held.map_or(0, BTreeSet::len) + added.count() > self.limits.addresses_per_name {
            return Err(LearnError::AddressesPerName { limit: self.limits.addresses_per_name });
        }
        let mut unheld = 0;
        for &address in addresses {
            match book.addresses.get(&address) {
                None => unheld += 1,
                Some(leases) => {
                    let full = leases.len() >= self.limits.names_per_address;
                    if full && !leases.contains_key(name) {
                        let limit = self.limits.names_per_address;
                        return Err(LearnError::NamesPerAddress { address, limit });
                    }
                }
            }
        }
        if self.addresses + unheld > self.limits.addresses_total {
            return Err(LearnError::AddressesTotal { limit: self.limits.addresses_total });
        }
        Ok(())
    }

    fn lease_mut(&mut self, due: &Due) -> Option<&mut Lease> {
        self.books.get_mut(&due.identity)?.addresses.get_mut(&due.address)?.get_mut(&due.name)
    }

    fn remove_lease(&mut self, due: &Due) {
        let Some(book) = self.books.get_mut(&due.identity) else {
            return;
        };
        if let Some(leases) = book.addresses.get_mut(&due.address) {
            leases.remove(&due.name);
            if leases.is_empty() {
                book.addresses.remove(&due.address);
                self.addresses -= 1;
            }
        }
        if let Some(held) = book.names.get_mut(&due.name) {
            held.remove(&due.address);
            if held.is_empty() {
                book.names.remove(&due.name);
            }
        }
        if book.names.is_empty() {
            self.books.remove(&due.identity);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: Identity = Identity::FIRST_WORKLOAD;
    const OTHER: Identity = Identity::WORLD;

    fn mk_name(text: &str) -> DnsName {
        let mut wire = Vec::new();
        for label in text.split('.') {
            wire.push(u8::try_from(label.len()).unwrap());
            wire.extend(label.bytes());
        }
        wire.push(0);
        DnsName::from_wire(&wire).unwrap().0
    }

    fn mk_addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn mk_place(identity: Identity, address: &str) -> Place {
        (identity, address.parse().unwrap())
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_nanos(seconds * 1_000_000_000)
    }

    fn leases(learned: &Learned, place: Place) -> Vec<(String, Lease)> {
        learned.leases(place).map(|(name, lease)| (name.to_string(), lease)).collect()
    }

    /// Everything that must agree between the indexes.
    fn assert_consistent(learned: &Learned) {
        let pairs: usize =
            learned.books.values().flat_map(|b| b.addresses.values()).map(BTreeMap::len).sum();
        let by_name: usize =
            learned.books.values().flat_map(|b| b.names.values()).map(BTreeSet::len).sum();
        assert_eq!(pairs, by_name, "pairs by address and by name");
        assert_eq!(pairs, learned.deadlines.len() + learned.lingering.len(), "pairs and timers");
        let held: usize = learned.books.values().map(|b| b.addresses.len()).sum();
        assert_eq!(held, learned.addresses, "addresses held");
    }

    #[test]
    fn ep_10_what_one_identity_learned_is_nothing_to_another() {
        let mut learned = Learned::default();
        learned.learn(POD, &mk_name("a.test"), &mk_addresses(&["203.0.113.1"]), at(10)).unwrap();
        assert_eq!(leases(&learned, mk_place(OTHER, "203.0.113.1")), []);
        assert_consistent(&learned);
    }

    #[test]
    fn ep_10_asking_again_extends_and_never_shortens() {
        let mut learned = Learned::default();
        let place = mk_place(POD, "203.0.113.1");
        for deadline in [10, 30, 20] {
            learned
                .learn(POD, &mk_name("a.test"), &mk_addresses(&["203.0.113.1"]), at(deadline))
                .unwrap();
        }
        let fresh = Lease::Fresh { deadline: at(30) };
        assert_eq!(leases(&learned, place), [("a.test".to_owned(), fresh)]);
        assert_eq!(learned.next_deadline(), Some(at(30)));
        assert_consistent(&learned);
    }

    #[test]
    fn ep_11_each_name_of_an_address_expires_by_itself() {
        let mut learned = Learned::default();
        let place = mk_place(POD, "203.0.113.1");
        let addresses = mk_addresses(&["203.0.113.1"]);
        learned.learn(POD, &mk_name("a.test"), &addresses, at(10)).unwrap();
        learned.learn(POD, &mk_name("b.test"), &addresses, at(20)).unwrap();
        assert_eq!(learned.expire(at(10)), BTreeSet::from([place]));
        assert_eq!(
            leases(&learned, place),
            [
                ("a.test".to_owned(), Lease::Lingering { since: at(10) }),
                ("b.test".to_owned(), Lease::Fresh { deadline: at(20) }),
            ]
        );
        assert_eq!(learned.next_deadline(), Some(at(20)));
        assert_consistent(&learned);
    }

    #[test]
    fn ep_10_an_expired_address_lingers_until_no_flow_uses_it() {
        let mut learned = Learned::default();
        let place = mk_place(POD, "203.0.113.1");
        learned.learn(POD, &mk_name("a.test"), &mk_addresses(&["203.0.113.1"]), at(10)).unwrap();
        learned.expire(at(10));
        let nothing = BTreeSet::new();
        assert_eq!(learned.release(at(10), &nothing), nothing, "the look began too early");
        assert_eq!(learned.release(at(11), &BTreeSet::from([place])), nothing, "a flow lives");
        assert_eq!(learned.release(at(11), &nothing), BTreeSet::from([place]));
        assert_eq!(learned.address_count(), 0);
        assert_eq!(learned.identities().count(), 0, "an empty book is gone");
        assert_consistent(&learned);
    }

    #[test]
    fn a_lingering_name_that_answers_again_is_fresh_again() {
        let mut learned = Learned::default();
        let place = mk_place(POD, "203.0.113.1");
        let addresses = mk_addresses(&["203.0.113.1"]);
        learned.learn(POD, &mk_name("a.test"), &addresses, at(10)).unwrap();
        learned.expire(at(15));
        learned.learn(POD, &mk_name("a.test"), &addresses, at(40)).unwrap();
        let fresh = Lease::Fresh { deadline: at(40) };
        assert_eq!(leases(&learned, place), [("a.test".to_owned(), fresh)]);
        assert_eq!(learned.release(at(50), &BTreeSet::new()), BTreeSet::new());
        assert_consistent(&learned);
    }

    #[test]
    fn ep_14_what_does_not_fit_is_refused_and_changes_nothing() {
        let limits = LearnedLimits {
            names_per_identity: 2,
            addresses_per_name: 2,
            names_per_address: 2,
            addresses_total: 2,
        };
        let cases: [(&str, &[&str], LearnError); 4] = [
            ("c.test", &["203.0.113.9"], LearnError::NamesPerIdentity { limit: 2 }),
            ("a.test", &["203.0.113.8", "203.0.113.9"], LearnError::AddressesPerName { limit: 2 }),
            ("b.test", &["203.0.113.9"], LearnError::AddressesTotal { limit: 2 }),
            ("c.test", &["203.0.113.1"], LearnError::NamesPerIdentity { limit: 2 }),
        ];
        for (name, addresses, expected) in cases {
            let mut learned = Learned::new(limits);
            learned.learn(POD, &mk_name("a.test"), &mk_addresses(&["203.0.113.1"]), at(9)).unwrap();
            learned.learn(POD, &mk_name("b.test"), &mk_addresses(&["203.0.113.1"]), at(9)).unwrap();
            learned
                .learn(OTHER, &mk_name("z.test"), &mk_addresses(&["203.0.113.1"]), at(9))
                .unwrap();
            let refused = learned.learn(POD, &mk_name(name), &mk_addresses(addresses), at(99));
            assert_eq!(refused, Err(expected), "{name} {addresses:?}");
            assert_eq!(learned.address_count(), 2, "{name} {addresses:?}");
            assert_eq!(learned.next_deadline(), Some(at(9)), "{name} {addresses:?}");
            assert_consistent(&learned);
        }
    }

    #[test]
    fn ep_14_an_address_of_too_many_names_is_refused() {
        let mut learned =
            Learned::new(LearnedLimits { names_per_address: 1, ..Default::default() });
        let addresses = mk_addresses(&["2001:db8::1"]);
        learned.learn(POD, &mk_name("a.test"), &addresses, at(9)).unwrap();
        let address = "2001:db8::1".parse().unwrap();
        assert_eq!(
            learned.learn(POD, &mk_name("b.test"), &addresses, at(9)),
            Err(LearnError::NamesPerAddress { address, limit: 1 })
        );
        learned.learn(POD, &mk_name("a.test"), &addresses, at(10)).unwrap();
        assert_consistent(&learned);
    }

    #[test]
    fn forget_leaves_no_timer_behind() {
        let mut learned = Learned::default();
        learned.learn(POD, &mk_name("a.test"), &mk_addresses(&["203.0.113.1"]), at(10)).unwrap();
        learned.expire(at(10));
        learned.learn(POD, &mk_name("b.test"), &mk_addresses(&["203.0.113.2"]), at(20)).unwrap();
        assert_eq!(
            learned.forget(POD),
            BTreeSet::from([mk_place(POD, "203.0.113.1"), mk_place(POD, "203.0.113.2")])
        );
        assert_eq!(learned.next_deadline(), None);
        assert_consistent(&learned);
    }
}
