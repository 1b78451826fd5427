//! What identities learned: which addresses answered for which names, and until when.
//!
//! An address is *fresh* under a name until the deadline of the newest answer; only fresh names open
//! it to new flows. After that the pair is *lingering*: it opens nothing, but is kept so that a flow
//! that is alive can be judged again after a policy change (EP-10), until [`Learned::release`] is
//! told that no flow uses the address.
//!
//! Everything is bounded (see [`crate::limits`]). Where an identity would hold too much, it loses
//! pairs of its own; where all together would, the identity with the most addresses does. Of a
//! victim's pairs the fresh one that ends first goes, and lingering ones, which live flows may need,
//! go last.
//!
//! Names, addresses and pairs stand in slabs and know each other by number, a pair is a link in the
//! chain of its name and in that of its address, and each identity's pairs are ordered by their
//! instants: every step costs a logarithm, or the length of one address's or one name's chain.

mod changes;
mod slab;
mod spread;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;

use self::changes::Changes;
use self::slab::Index;
use self::store::{Instant, Pair, Since, Store};
use crate::identity::Identity;
use crate::limits;
use crate::name::DnsName;
use crate::time::Timestamp;

pub use self::changes::{Cursor, Kept};

/// One address, as one identity learned it.
pub type Place = (Identity, IpAddr);

/// Why an answer was not learned; nothing changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LearnError {
    /// The name would hold more addresses than it may.
    #[error("the name would hold more than {limit} addresses, which is the limit")]
    AddressesPerName {
        /// The limit.
        limit: usize,
    },
    /// The answer alone is more than all identities together may hold.
    #[error("the answer holds more than the node's {limit} learned addresses, which is the limit")]
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
    /// Octets of all identities, as [`Learned::octets`] counts them.
    pub octets_total: usize,
}

impl Default for LearnedLimits {
    fn default() -> Self {
        Self {
            names_per_identity: limits::NAMES_PER_IDENTITY,
            addresses_per_name: limits::ADDRESSES_PER_NAME,
            names_per_address: limits::NAMES_PER_ADDRESS,
            addresses_total: limits::ADDRESSES_TOTAL,
            octets_total: limits::LEARNED_OCTETS,
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

/// When an answer came, and until when its addresses are open to new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// When it came; `None` where nobody knows. Kept in whole seconds.
    pub since: Option<Timestamp>,
    /// First instant at which no new flow may start.
    pub deadline: Timestamp,
}

/// What a look at all live flows found, as far as [`Learned::release`] did not work it off.
#[derive(Debug)]
pub struct Look {
    since: Timestamp,
    in_use: BTreeSet<Place>,
    /// The last lease that was asked.
    past: Option<(Identity, (Timestamp, Index))>,
}

impl Look {
    /// One that began at `since`, and found live flows to the places `in_use`.
    pub const fn new(since: Timestamp, in_use: BTreeSet<Place>) -> Self {
        Self { since, in_use, past: None }
    }
}

/// Addresses by identity and name, with their deadlines.
#[derive(Debug, Default)]
pub struct Learned {
    limits: LearnedLimits,
    store: Store,
    books: BTreeMap<Identity, Book>,
    /// The earliest deadline of each identity that has one.
    due: BTreeSet<(Timestamp, Identity)>,
    /// Identities by how many addresses they hold.
    holders: BTreeSet<(usize, Identity)>,
    changes: Changes,
}

/// What one identity holds: its pairs by their instants.
#[derive(Debug, Default)]
struct Book {
    names: usize,
    addresses: usize,
    fresh: BTreeSet<(Timestamp, Index)>,
    lingering: BTreeSet<(Timestamp, Index)>,
    next: Option<Timestamp>,
    evicted: u64,
}

impl Learned {
    /// Nothing learned, bounded by `limits`.
    pub fn new(limits: LearnedLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Records that `name` answered with `addresses` for `identity`, open to new flows for `term`. A
    /// lease that is fresh for longer keeps its later deadline, and one that is known the instant at
    /// which it was learned first. Returns the addresses that lost a name to make room, whose kernel
    /// entries are out of date. On an error nothing changed.
    pub fn learn(
        &mut self,
        identity: Identity,
        name: &DnsName,
        addresses: &BTreeSet<IpAddr>,
        term: impl Into<Term>,
    ) -> Result<BTreeSet<Place>, LearnError> {
        let term = term.into();
        if addresses.is_empty() {
            return Ok(BTreeSet::new());
        }
        let held = self.store.find_name(identity, name);
        self.check(identity, held, addresses)?;
        let mut evicted = BTreeSet::new();
        if held.is_none() {
            while self.book(identity).is_some_and(|b| b.names >= self.limits.names_per_identity)
                && self.evict(identity, None, &mut evicted)
            {}
        }
        let name = held.unwrap_or_else(|| {
            self.books.entry(identity).or_default().names += 1;
            self.store.add_name(identity, name)
        });
        for &address in addresses {
            self.learn_one(identity, name, address, term, &mut evicted);
        }
        self.retime(identity);
        self.make_room((name, addresses), &mut evicted);
        Ok(evicted)
    }

    /// The names of `address` for `identity`, each with its lease, in order of the names.
    pub fn leases(&self, place: Place) -> impl Iterator<Item = (&DnsName, Lease)> {
        let pairs = self.store.find_address(place).into_iter();
        let pairs = pairs.flat_map(|address| self.store.pairs_of_address(address));
        let mut leases: Vec<(&DnsName, Lease)> = pairs
            .filter_map(|(_, pair)| Some((&self.store.name(pair.name)?.name, pair.instant.lease())))
            .collect();
        leases.sort_unstable_by_key(|(name, _)| *name);
        leases.into_iter()
    }

    /// Until when `name` opens its address to new flows; `None` where it does not.
    pub fn fresh_until(&self, (identity, address): Place, name: &DnsName) -> Option<Timestamp> {
        match self.pair((identity, address), name)?.instant.lease() {
            Lease::Fresh { deadline } => Some(deadline),
            Lease::Lingering { .. } => None,
        }
    }

    /// When `name` answered with the address first, to the second, for as long as it is held; `None`
    /// where it is not, and where nobody said.
    pub fn learned_at(&self, place: Place, name: &DnsName) -> Option<Timestamp> {
        self.pair(place, name)?.since.at()
    }

    /// The addresses that `identity` holds, fresh or lingering, in order.
    pub fn addresses(&self, identity: Identity) -> impl Iterator<Item = IpAddr> {
        let pairs = self.book(identity).into_iter().flat_map(Book::pairs);
        let addresses: BTreeSet<IpAddr> = pairs
            .filter_map(|pair| self.store.place_of(pair))
            .map(|(_, address)| address)
            .collect();
        addresses.into_iter()
    }

    /// The identities that hold anything, in order.
    pub fn identities(&self) -> impl Iterator<Item = Identity> {
        self.books.keys().copied()
    }

    /// How many addresses all identities hold together.
    pub fn address_count(&self) -> usize {
        self.store.address_count()
    }

    /// How many names all identities hold together.
    pub fn name_count(&self) -> usize {
        self.store.name_count()
    }

    /// Octets of what is held, indexes included.
    pub fn octets(&self) -> usize {
        self.store.octets()
    }

    /// How many pairs `identity` lost for want of room since it holds anything.
    pub fn evictions(&self, identity: Identity) -> u64 {
        self.book(identity).map_or(0, |book| book.evicted)
    }

    /// When the next lease stops being fresh.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Turns leases whose deadline is at or before `now` into lingering ones, of `most` addresses. Returns
    /// these, whose kernel entries are out of date. Identities share alike in `most`, so that none waits
    /// until another's many have ended.
    pub fn expire(&mut self, now: Timestamp, most: usize) -> BTreeSet<Place> {
        let mut changed = BTreeSet::new();
        while changed.len() < most {
            let left = most - changed.len();
            let due = self.due.iter().take_while(|(at, _)| *at <= now).take(left);
            let due: Vec<(Timestamp, Identity)> = due.copied().collect();
            let Some(share) = left.checked_div(due.len()) else {
                break;
            };
            for entry in due {
                self.expire_of(entry, now, share, &mut changed);
            }
        }
        changed
    }

    /// Turns at most `share` leases of an identity that has some due.
    fn expire_of(
        &mut self,
        (due, identity): (Timestamp, Identity),
        now: Timestamp,
        share: usize,
        changed: &mut BTreeSet<Place>,
    ) {
        let Some(book) = self.books.get_mut(&identity) else {
            self.due.remove(&(due, identity));
            return;
        };
        for _ in 0..share {
            let Some(&(at, pair)) = book.fresh.first().filter(|(at, _)| *at <= now) else {
                break;
            };
            book.fresh.pop_first();
            book.lingering.insert((at, pair));
            if let Some(pair) = self.store.pair_mut(pair) {
                pair.instant = Instant::lingering(at);
            }
            changed.extend(self.store.place_of(pair));
        }
        self.retime(identity);
    }

    /// Forgets leases that began to linger before `look` began and whose address it did not find in use.
    /// Returns the addresses concerned, of which those without any lease left are gone; and the look
    /// where more than `most` leases would have to be asked, to go on with.
    pub fn release(&mut self, mut look: Look, most: usize) -> (BTreeSet<Place>, Option<Look>) {
        let from = look.past.map_or(Identity::HOST, |(identity, _)| identity);
        let after = |identity| match look.past {
            Some((last, pair)) if last == identity => Bound::Excluded(pair),
            Some(_) | None => Bound::Unbounded,
        };
        let lingering = self.books.range(from..).flat_map(|(identity, book)| {
            let rest = book.lingering.range((after(*identity), Bound::Unbounded));
            rest.take_while(|(since, _)| *since < look.since).map(|pair| (*identity, *pair))
        });
        let asked: Vec<(Identity, (Timestamp, Index))> = lingering.take(most).collect();
        let is_idle = |pair: &Index| {
            self.store.place_of(*pair).is_some_and(|place| !look.in_use.contains(&place))
        };
        let idle: Vec<Index> = asked.iter().map(|(_, (_, pair))| *pair).filter(is_idle).collect();
        let places = idle.into_iter().filter_map(|pair| self.remove(pair)).collect();
        look.past = asked.last().copied();
        (places, (asked.len() == most).then_some(look))
    }

    /// Forgets all that `identity` learned and returns the addresses.
    pub fn forget(&mut self, identity: Identity) -> BTreeSet<Place> {
        let pairs: Vec<Index> = self.book(identity).into_iter().flat_map(Book::pairs).collect();
        let places = pairs.into_iter().filter_map(|pair| self.remove(pair)).collect();
        self.retime(identity);
        places
    }

    fn check(
        &self,
        identity: Identity,
        name: Option<Index>,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<(), LearnError> {
        let limit = self.limits.addresses_total;
        if addresses.len() > limit {
            return Err(LearnError::AddressesTotal { limit });
        }
        let limit = self.limits.addresses_per_name;
        let held =
            name.and_then(|name| self.store.name(name)).map_or(0, |held| held.count as usize);
        if held + addresses.len() <= limit {
            return Ok(());
        }
        let added = addresses.iter().filter(|address| {
            let address = self.store.find_address((identity, **address));
            name.zip(address)
                .and_then(|(name, address)| self.store.find_pair(name, address))
                .is_none()
        });
        if held + added.count() > limit {
            return Err(LearnError::AddressesPerName { limit });
        }
        Ok(())
    }

    fn learn_one(
        &mut self,
        identity: Identity,
        name: Index,
        address: IpAddr,
        term: Term,
        evicted: &mut BTreeSet<Place>,
    ) {
        let address = match self.store.find_address((identity, address)) {
            Some(known) => known,
            None => {
                self.recount(identity, |book| book.addresses += 1);
                self.store.add_address((identity, address))
            }
        };
        match self.store.find_pair(name, address) {
            Some(pair) => self.extend(identity, pair, term),
            None => {
                let instant = Instant::fresh(term.deadline);
                let pair = self.store.link(name, address, instant, Since::new(term.since));
                if let Some((pair, book)) = pair.zip(self.books.get_mut(&identity)) {
                    book.fresh.insert((instant.at(), pair));
                    self.changes.note(pair);
                }
                self.crowd_out(identity, address, name, evicted);
            }
        }
    }

    /// Gives a pair that is known a later deadline.
    fn extend(&mut self, identity: Identity, index: Index, Term { since, deadline }: Term) {
        let (Some(pair), Some(book)) = (self.store.pair_mut(index), self.books.get_mut(&identity))
        else {
            return;
        };
        pair.since = pair.since.or_earlier(Since::new(since));
        match pair.instant.lease() {
            Lease::Fresh { deadline: known } if known >= deadline => return,
            Lease::Fresh { deadline: known } => book.fresh.remove(&(known, index)),
            Lease::Lingering { since } => book.lingering.remove(&(since, index)),
        };
        pair.instant = Instant::fresh(deadline);
        book.fresh.insert((pair.instant.at(), index));
        self.changes.note(index);
    }

    /// Takes the name that ends first from an address that belongs to too many.
    fn crowd_out(
        &mut self,
        identity: Identity,
        address: Index,
        newest: Index,
        evicted: &mut BTreeSet<Place>,
    ) {
        let held = self.store.address(address).map_or(0, |held| held.count as usize);
        if held <= self.limits.names_per_address {
            return;
        }
        let others = self.store.pairs_of_address(address).filter(|(_, pair)| pair.name != newest);
        let victim = others.min_by_key(|(_, pair)| pair.instant.at()).map(|(index, _)| index);
        if let Some(victim) = victim {
            self.note_eviction(identity);
            evicted.extend(self.remove(victim));
        }
    }

    /// Takes pairs that are not of the newest answer from whoever holds the most, until all fits.
    fn make_room(&mut self, newest: (Index, &BTreeSet<IpAddr>), evicted: &mut BTreeSet<Place>) {
        while self.store.address_count() > self.limits.addresses_total
            || self.store.octets() > self.limits.octets_total
        {
            let holders = self.holders.iter().rev().map(|(_, identity)| *identity);
            let victims: Vec<Identity> = holders.take(2).collect();
            // The largest holder may hold nothing but the newest answer.
            if !victims.into_iter().any(|victim| self.evict(victim, Some(newest), evicted)) {
                return;
            }
        }
    }

    /// Takes one pair from `identity`, but none of the newest answer; says whether there was one.
    fn evict(
        &mut self,
        identity: Identity,
        newest: Option<(Index, &BTreeSet<IpAddr>)>,
        evicted: &mut BTreeSet<Place>,
    ) -> bool {
        let is_old = |pair: &Index| {
            let name = self.store.pair(*pair).map(|pair| pair.name);
            let address = self.store.place_of(*pair).map(|(_, address)| address);
            newest.zip(address).is_none_or(|((newest, answer), address)| {
                name != Some(newest) || !answer.contains(&address)
            })
        };
        let victim = self.book(identity).and_then(|book| book.pairs().find(is_old));
        let Some(victim) = victim else {
            return false;
        };
        self.note_eviction(identity);
        evicted.extend(self.remove(victim));
        self.retime(identity);
        true
    }

    fn note_eviction(&mut self, identity: Identity) {
        if let Some(book) = self.books.get_mut(&identity) {
            book.evicted += 1;
        }
    }

    /// Removes a pair, and what is left without one.
    fn remove(&mut self, index: Index) -> Option<Place> {
        let gone = self.store.unlink(index)?;
        let (identity, _) = gone.place;
        if gone.was_last_of_address {
            self.recount(identity, |book| book.addresses -= 1);
        }
        if let Some(book) = self.books.get_mut(&identity) {
            book.names -= usize::from(gone.was_last_of_name);
            match gone.lease {
                Lease::Fresh { deadline } => book.fresh.remove(&(deadline, index)),
                Lease::Lingering { since } => book.lingering.remove(&(since, index)),
            };
        }
        self.retime(identity);
        Some(gone.place)
    }

    /// Changes how much an identity holds.
    fn recount(&mut self, identity: Identity, change: impl FnOnce(&mut Book)) {
        if let Some(book) = self.books.get_mut(&identity) {
            self.holders.remove(&(book.addresses, identity));
            change(book);
            if book.addresses > 0 {
                self.holders.insert((book.addresses, identity));
            }
        }
    }

    /// Brings up to date when something of `identity` is due next; drops a book that holds nothing.
    fn retime(&mut self, identity: Identity) {
        let Some(book) = self.books.get_mut(&identity) else {
            return;
        };
        let next = book.fresh.first().map(|(at, _)| *at);
        if book.next != next {
            if let Some(known) = book.next {
                self.due.remove(&(known, identity));
            }
            if let Some(next) = next {
                self.due.insert((next, identity));
            }
            book.next = next;
        }
        if book.fresh.is_empty() && book.lingering.is_empty() {
            self.books.remove(&identity);
        }
    }

    fn pair(&self, place: Place, name: &DnsName) -> Option<&Pair> {
        let name = self.store.find_name(place.0, name)?;
        let address = self.store.find_address(place)?;
        self.store.pair(self.store.find_pair(name, address)?)
    }

    fn book(&self, identity: Identity) -> Option<&Book> {
        self.books.get(&identity)
    }
}

impl From<Timestamp> for Term {
    /// Until `deadline`, since nobody knows when.
    fn from(deadline: Timestamp) -> Self {
        Self { since: None, deadline }
    }
}

impl Book {
    /// All pairs, in the order in which they are given up.
    fn pairs(&self) -> impl Iterator<Item = Index> {
        self.fresh.iter().chain(&self.lingering).map(|(_, pair)| *pair)
    }
}

#[cfg(test)]
mod tests;
