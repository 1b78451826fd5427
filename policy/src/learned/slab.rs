//! Values at small numbers: no allocation for each, low numbers first, and room given back.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

/// Values of one chunk. Room comes and goes by the chunk, so that growing copies nothing and wastes
/// no more than one.
const CHUNK: usize = 512;

/// Where a value stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Index(NonZeroU32);

/// Values at [`Index`]es.
#[derive(Debug)]
pub(super) struct Slab<T> {
    chunks: Vec<Chunk<T>>,
    /// Chunks with a free place; one that was given back has nothing but.
    roomy: BTreeSet<usize>,
    held: usize,
}

#[derive(Debug)]
struct Chunk<T> {
    places: Vec<Place<T>>,
    free: Option<u16>,
    used: usize,
}

#[derive(Debug)]
enum Place<T> {
    Used(T),
    Free(Option<u16>),
}

impl Index {
    fn new(chunk: usize, place: usize) -> Self {
        let number = u32::try_from(chunk * CHUNK + place + 1).unwrap_or(u32::MAX);
        Self(NonZeroU32::new(number).unwrap_or(NonZeroU32::MAX))
    }

    fn parts(self) -> (usize, usize) {
        let number = self.0.get() as usize - 1;
        (number / CHUNK, number % CHUNK)
    }
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), roomy: BTreeSet::new(), held: 0 }
    }
}

impl<T> Slab<T> {
    pub(super) fn len(&self) -> usize {
        self.held
    }

    /// How many places there are in all chunks.
    pub(super) fn places(&self) -> usize {
        self.chunks.len() * CHUNK
    }

    /// The number of a place that is in use.
    pub(super) fn index(&self, place: usize) -> Option<Index> {
        let index = Index::new(place / CHUNK, place % CHUNK);
        self.get(index).map(|_| index)
    }

    /// Octets that the places take, used or not.
    #[cfg(test)]
    pub(super) fn octets(&self) -> usize {
        let places: usize = self.chunks.iter().map(|chunk| chunk.places.capacity()).sum();
        places * size_of::<Place<T>>() + self.chunks.capacity() * size_of::<Chunk<T>>()
    }

    pub(super) fn insert(&mut self, value: T) -> Index {
        let number = match self.roomy.first() {
            Some(number) => *number,
            None => {
                self.chunks.push(Chunk::default());
                self.roomy.insert(self.chunks.len() - 1);
                self.chunks.len() - 1
            }
        };
        let chunk = &mut self.chunks[number];
        let place = chunk.insert(value);
        if chunk.used == CHUNK {
            self.roomy.remove(&number);
        }
        self.held += 1;
        Index::new(number, place)
    }

    pub(super) fn get(&self, index: Index) -> Option<&T> {
        let (chunk, place) = index.parts();
        match self.chunks.get(chunk)?.places.get(place)? {
            Place::Used(value) => Some(value),
            Place::Free(_) => None,
        }
    }

    pub(super) fn get_mut(&mut self, index: Index) -> Option<&mut T> {
        let (chunk, place) = index.parts();
        match self.chunks.get_mut(chunk)?.places.get_mut(place)? {
            Place::Used(value) => Some(value),
            Place::Free(_) => None,
        }
    }

    pub(super) fn remove(&mut self, index: Index) -> Option<T> {
        let (number, place) = index.parts();
        let chunk = self.chunks.get_mut(number)?;
        let value = chunk.remove(place)?;
        self.held -= 1;
        self.roomy.insert(number);
        if chunk.used == 0 {
            *chunk = Chunk::default();
        }
        while self.chunks.last().is_some_and(|chunk| chunk.used == 0) {
            self.chunks.pop();
            self.roomy.remove(&self.chunks.len());
        }
        if self.chunks.len() * 4 < self.chunks.capacity() {
            self.chunks.shrink_to(self.chunks.len() * 2);
        }
        Some(value)
    }
}

impl<T> Default for Chunk<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: None, used: 0 }
    }
}

impl<T> Chunk<T> {
    fn insert(&mut self, value: T) -> usize {
        self.used += 1;
        if let Some(place) = self.free.map(usize::from) {
            if let Place::Free(next) = self.places[place] {
                self.free = next;
            }
            self.places[place] = Place::Used(value);
            return place;
        }
        if self.places.capacity() == 0 {
            self.places.reserve_exact(CHUNK);
        }
        self.places.push(Place::Used(value));
        self.places.len() - 1
    }

    fn remove(&mut self, place: usize) -> Option<T> {
        let freed = self.places.get_mut(place)?;
        if matches!(freed, Place::Free(_)) {
            return None;
        }
        let old = std::mem::replace(freed, Place::Free(self.free));
        self.free = u16::try_from(place).ok();
        self.used -= 1;
        match old {
            Place::Used(value) => Some(value),
            Place::Free(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn room_is_given_back_and_low_numbers_come_first() {
        let mut slab = Slab::default();
        let low: Vec<Index> = (0..CHUNK).map(|number| slab.insert(number)).collect();
        let octets = slab.octets();
        let high: Vec<Index> = (0..CHUNK * 20).map(|number| slab.insert(number)).collect();
        for index in &high {
            slab.remove(*index);
        }
        assert_eq!(slab.len(), CHUNK);
        assert!(slab.octets() < octets + octets / 20, "{} of {octets}", slab.octets());
        slab.remove(low[7]);
        assert_eq!(slab.insert(99), low[7]);
        assert_eq!(slab.remove(high[0]), None, "gone is gone");
    }

    proptest! {
        #[test]
        fn values_stay_where_they_are(steps in proptest::collection::vec((any::<bool>(), 0usize..2000), 0..3000)) {
            let mut slab = Slab::default();
            let mut known: Vec<(Index, usize)> = Vec::new();
            for (number, (inserts, pick)) in steps.into_iter().enumerate() {
                if inserts || known.is_empty() {
                    known.push((slab.insert(number), number));
                } else {
                    let (index, value) = known.swap_remove(pick % known.len());
                    prop_assert_eq!(slab.remove(index), Some(value));
                }
            }
            prop_assert_eq!(slab.len(), known.len());
            for (index, value) in known {
                prop_assert_eq!(slab.get(index), Some(&value));
            }
        }
    }
}
