//! Names, addresses and the pairs between them, found by hash and chained to each other. Knows no
//! time and no limit.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;

use super::slab::{Index, Slab};
use super::spread::Spread;
use super::{Lease, Place};
use crate::identity::Identity;
use crate::name::DnsName;
use crate::time::Timestamp;

/// What entries are charged: their places, their share of the indexes, and a name's octets beside.
const NAME_OCTETS: usize = 80;
const ADDRESS_OCTETS: usize = 48;
const PAIR_OCTETS: usize = 60;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

#[derive(Debug, Default)]
pub(super) struct Store {
    names: Slab<HeldName>,
    addresses: Slab<HeldAddress>,
    pairs: Slab<Pair>,
    by_name: Spread,
    by_address: Spread,
    hasher: RandomState,
    octets: usize,
}

#[derive(Debug)]
pub(super) struct HeldName {
    pub(super) name: DnsName,
    pub(super) count: u32,
    identity: Identity,
    first: Option<Index>,
}

#[derive(Debug)]
pub(super) struct HeldAddress {
    pub(super) count: u32,
    identity: Identity,
    first: Option<Index>,
    address: IpAddr,
}

/// A name's address: a link in the chain of each.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) instant: Instant,
    pub(super) since: Since,
    pub(super) name: Index,
    address: Index,
    next_of_name: Option<Index>,
    previous_of_name: Option<Index>,
    next_of_address: Option<Index>,
}

/// A [`Lease`] in eight octets: the top bit says that it lingers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instant {
    high: u32,
    low: u32,
}

/// When a pair was learned first, in seconds since boot and so in four octets; nothing where nobody
/// said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Since(Option<NonZeroU32>);

/// What went with a pair.
#[derive(Debug)]
pub(super) struct Unlinked {
    pub(super) lease: Lease,
    pub(super) place: Place,
    pub(super) was_last_of_name: bool,
    pub(super) was_last_of_address: bool,
}

impl Store {
    pub(super) fn address_count(&self) -> usize {
        self.addresses.len()
    }

    pub(super) fn name_count(&self) -> usize {
        self.names.len()
    }

    pub(super) fn octets(&self) -> usize {
        self.octets
    }

    /// Octets that the slabs and indexes take, used or not; names' own and trees aside.
    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        self.names.octets()
            + self.addresses.octets()
            + self.pairs.octets()
            + self.by_name.octets()
            + self.by_address.octets()
    }

    pub(super) fn name(&self, index: Index) -> Option<&HeldName> {
        self.names.get(index)
    }

    pub(super) fn address(&self, index: Index) -> Option<&HeldAddress> {
        self.addresses.get(index)
    }

    pub(super) fn pair(&self, index: Index) -> Option<&Pair> {
        self.pairs.get(index)
    }

    /// How many places pairs take, free ones among them.
    pub(super) fn pair_places(&self) -> usize {
        self.pairs.places()
    }

    /// The pair at a place, if there is one.
    pub(super) fn pair_index(&self, place: usize) -> Option<Index> {
        self.pairs.index(place)
    }

    pub(super) fn pair_mut(&mut self, index: Index) -> Option<&mut Pair> {
        self.pairs.get_mut(index)
    }

    /// Where a pair belongs.
    pub(super) fn place_of(&self, pair: Index) -> Option<Place> {
        let held = self.addresses.get(self.pairs.get(pair)?.address)?;
        Some((held.identity, held.address))
    }

    pub(super) fn find_name(&self, identity: Identity, name: &DnsName) -> Option<Index> {
        let is_it = |index: &Index| {
            let held = self.names.get(*index);
            held.is_some_and(|held| held.identity == identity && held.name == *name)
        };
        self.by_name.find(self.hasher.hash_one((identity, name)), is_it)
    }

    pub(super) fn find_address(&self, place: Place) -> Option<Index> {
        let is_it = |index: &Index| {
            self.addresses.get(*index).is_some_and(|held| (held.identity, held.address) == place)
        };
        self.by_address.find(self.hasher.hash_one(place), is_it)
    }

    /// The pair of a name and an address, by way of the shorter chain.
    pub(super) fn find_pair(&self, name: Index, address: Index) -> Option<Index> {
        let (of_name, of_address) = (self.names.get(name)?, self.addresses.get(address)?);
        if of_address.count <= of_name.count {
            return self.pairs_of_address(address).find(|(_, pair)| pair.name == name).map(|p| p.0);
        }
        let mut next = of_name.first;
        while let Some((index, pair)) = next.and_then(|at| Some((at, self.pairs.get(at)?))) {
            if pair.address == address {
                return Some(index);
            }
            next = pair.next_of_name;
        }
        None
    }

    /// The pairs of an address.
    pub(super) fn pairs_of_address(&self, address: Index) -> impl Iterator<Item = (Index, &Pair)> {
        let first = self.addresses.get(address).and_then(|held| held.first);
        let pair = |index: Index| Some((index, self.pairs.get(index)?));
        std::iter::successors(first.and_then(pair), move |(_, known)| {
            known.next_of_address.and_then(pair)
        })
    }

    pub(super) fn add_name(&mut self, identity: Identity, name: &DnsName) -> Index {
        self.octets += NAME_OCTETS + name.as_wire().len();
        let held = HeldName { name: name.clone(), identity, first: None, count: 0 };
        let index = self.names.insert(held);
        let hash = self.hasher.hash_one((identity, name));
        self.by_name.insert(hash, index, |at| hash_name(&self.hasher, &self.names, *at));
        index
    }

    pub(super) fn add_address(&mut self, place: Place) -> Index {
        self.octets += ADDRESS_OCTETS;
        let (identity, address) = place;
        let held = HeldAddress { address, identity, first: None, count: 0 };
        let index = self.addresses.insert(held);
        self.by_address.insert(self.hasher.hash_one(place), index, |at| {
            hash_address(&self.hasher, &self.addresses, *at)
        });
        index
    }

    /// Makes `address` one of `name`'s; it was none.
    pub(super) fn link(
        &mut self,
        name: Index,
        address: Index,
        instant: Instant,
        since: Since,
    ) -> Option<Index> {
        let (of_name, of_address) = (self.names.get_mut(name)?, self.addresses.get_mut(address)?);
        self.octets += PAIR_OCTETS;
        let next_of_name = of_name.first;
        let index = self.pairs.insert(Pair {
            instant,
            since,
            name,
            address,
            next_of_name,
            previous_of_name: None,
            next_of_address: of_address.first,
        });
        (of_name.first, of_address.first) = (Some(index), Some(index));
        of_name.count += 1;
        of_address.count += 1;
        if let Some(next) = next_of_name.and_then(|next| self.pairs.get_mut(next)) {
            next.previous_of_name = Some(index);
        }
        Some(index)
    }

    /// Removes a pair, and its name and address where it was their last.
    pub(super) fn unlink(&mut self, index: Index) -> Option<Unlinked> {
        let pair = self.pairs.remove(index)?;
        self.octets -= PAIR_OCTETS;
        let was_last_of_name = self.unlink_name(&pair);
        let (place, was_last_of_address) = self.unlink_address(index, &pair)?;
        let lease = pair.instant.lease();
        Some(Unlinked { lease, place, was_last_of_name, was_last_of_address })
    }

    fn unlink_name(&mut self, pair: &Pair) -> bool {
        if let Some(next) = pair.next_of_name.and_then(|next| self.pairs.get_mut(next)) {
            next.previous_of_name = pair.previous_of_name;
        }
        let Some(held) = self.names.get_mut(pair.name) else {
            return false;
        };
        held.count -= 1;
        let is_last = held.count == 0;
        match pair.previous_of_name.and_then(|previous| self.pairs.get_mut(previous)) {
            Some(previous) => previous.next_of_name = pair.next_of_name,
            None => held.first = pair.next_of_name,
        }
        if is_last {
            let hash = hash_name(&self.hasher, &self.names, pair.name);
            if let Some(held) = self.names.remove(pair.name) {
                self.octets -= NAME_OCTETS + held.name.as_wire().len();
            }
            let rehash = |at: &Index| hash_name(&self.hasher, &self.names, *at);
            self.by_name.remove(hash, pair.name, rehash);
        }
        is_last
    }

    fn unlink_address(&mut self, index: Index, pair: &Pair) -> Option<(Place, bool)> {
        let before = self
            .pairs_of_address(pair.address)
            .find(|(_, before)| before.next_of_address == Some(index))
            .map(|(before, _)| before);
        let held = self.addresses.get_mut(pair.address)?;
        let place = (held.identity, held.address);
        held.count -= 1;
        let is_last = held.count == 0;
        match before.and_then(|before| self.pairs.get_mut(before)) {
            Some(before) => before.next_of_address = pair.next_of_address,
            None => held.first = pair.next_of_address,
        }
        if is_last {
            self.addresses.remove(pair.address);
            self.octets -= ADDRESS_OCTETS;
            let rehash = |at: &Index| hash_address(&self.hasher, &self.addresses, *at);
            self.by_address.remove(self.hasher.hash_one(place), pair.address, rehash);
        }
        Some((place, is_last))
    }
}

fn hash_name(hasher: &RandomState, names: &Slab<HeldName>, index: Index) -> u64 {
    names.get(index).map_or(0, |held| hasher.hash_one((held.identity, &held.name)))
}

fn hash_address(hasher: &RandomState, addresses: &Slab<HeldAddress>, index: Index) -> u64 {
    addresses.get(index).map_or(0, |held| hasher.hash_one((held.identity, held.address)))
}

impl Instant {
    const LINGERS: u64 = 1 << 63;

    /// The top bit is 292 years away.
    pub(super) fn fresh(deadline: Timestamp) -> Self {
        Self::pack(deadline.as_nanos().min(Self::LINGERS - 1))
    }

    pub(super) fn lingering(since: Timestamp) -> Self {
        Self::pack(since.as_nanos() | Self::LINGERS)
    }

    pub(super) fn at(self) -> Timestamp {
        Timestamp::from_nanos(self.unpack() & !Self::LINGERS)
    }

    pub(super) fn lease(self) -> Lease {
        if self.unpack() & Self::LINGERS == 0 {
            Lease::Fresh { deadline: self.at() }
        } else {
            Lease::Lingering { since: self.at() }
        }
    }

    fn pack(word: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = word.to_be_bytes();
        Self { high: u32::from_be_bytes([a, b, c, d]), low: u32::from_be_bytes([e, f, g, h]) }
    }

    fn unpack(self) -> u64 {
        u64::from(self.high) << 32 | u64::from(self.low)
    }
}

impl Since {
    /// Rounded up, so that nothing is learned before it was.
    pub(super) fn new(at: Option<Timestamp>) -> Self {
        let seconds = at.map(|at| at.as_nanos().div_ceil(NANOS_PER_SECOND));
        let seconds = seconds.map(|seconds| u32::try_from(seconds).unwrap_or(u32::MAX));
        Self(seconds.and_then(NonZeroU32::new))
    }

    /// The earlier of both, as far as they are known.
    pub(super) fn or_earlier(self, other: Self) -> Self {
        Self(self.0.into_iter().chain(other.0).min())
    }

    pub(super) fn at(self) -> Option<Timestamp> {
        self.0.map(|seconds| Timestamp::from_nanos(u64::from(seconds.get()) * NANOS_PER_SECOND))
    }
}
