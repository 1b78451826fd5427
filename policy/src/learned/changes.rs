//! What changed since somebody asked last, for who keeps it elsewhere, and all of it piece by piece.
//!
//! Neither copies anything while it is learned: a change is a number, and a keeper reads what stands at
//! the number when it comes to it.

use std::net::IpAddr;

use super::slab::Index;
use super::{Learned, Lease};
use crate::identity::Identity;
use crate::name::DnsName;
use crate::time::Timestamp;

/// Changes that are told one by one; beyond them all is to be read.
const CHANGES_MAX: usize = 32_768;

/// A name's address, as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept<'a> {
    /// Who learned it.
    pub identity: Identity,
    /// The name.
    pub name: &'a DnsName,
    /// The address.
    pub address: IpAddr,
    /// Until when it counts.
    pub lease: Lease,
    /// When it was learned first, where that is known.
    pub since: Option<Timestamp>,
}

/// Which pairs are still to be read.
#[derive(Debug)]
pub struct Cursor(Remaining);

#[derive(Debug)]
enum Remaining {
    All { next: usize },
    Some(std::vec::IntoIter<Index>),
}

/// The pairs that were learned or extended, or that there were too many.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pairs: Vec<Index>,
    overflowed: bool,
}

impl Changes {
    pub(super) fn note(&mut self, pair: Index) {
        if self.pairs.len() < CHANGES_MAX {
            self.pairs.push(pair);
        } else {
            self.overflowed = true;
        }
    }
}

impl Cursor {
    /// All that is held.
    pub const fn all() -> Self {
        Self(Remaining::All { next: 0 })
    }

    /// Whether it is to read all that is held.
    pub const fn is_all(&self) -> bool {
        matches!(self.0, Remaining::All { .. })
    }

    /// Whether nothing is left to read, as far as is known.
    pub fn is_empty(&self) -> bool {
        match &self.0 {
            Remaining::All { .. } => false,
            Remaining::Some(pairs) => pairs.len() == 0,
        }
    }
}

impl Learned {
    /// What was learned or extended since this was called last; all, where that is too much to be told
    /// one by one.
    pub fn take_changes(&mut self) -> Cursor {
        let Changes { mut pairs, overflowed } = std::mem::take(&mut self.changes);
        if overflowed {
            return Cursor::all();
        }
        pairs.sort_unstable();
        pairs.dedup();
        Cursor(Remaining::Some(pairs.into_iter()))
    }

    /// Shows at most `count` of the pairs at the cursor, and says whether there may be more. What
    /// is learned between two calls may be shown or not: it is among the next changes.
    pub fn read_on(
        &self,
        cursor: &mut Cursor,
        count: usize,
        mut show: impl FnMut(Kept<'_>),
    ) -> bool {
        match &mut cursor.0 {
            Remaining::All { next } => {
                let end = (*next + count).min(self.store.pair_places());
                for pair in (*next..end).filter_map(|place| self.store.pair_index(place)) {
                    self.kept(pair).into_iter().for_each(&mut show);
                }
                *next = end;
                end < self.store.pair_places()
            }
            Remaining::Some(pairs) => {
                for pair in pairs.by_ref().take(count) {
                    self.kept(pair).into_iter().for_each(&mut show);
                }
                pairs.len() > 0
            }
        }
    }

    /// What stands at a number: another pair than the one that changed where that one is gone, which
    /// is a change too.
    fn kept(&self, index: Index) -> Option<Kept<'_>> {
        let pair = self.store.pair(index)?;
        let (identity, address) = self.store.place_of(index)?;
        let name = &self.store.name(pair.name)?.name;
        let (lease, since) = (pair.instant.lease(), pair.since.at());
        Some(Kept { identity, name, address, lease, since })
    }
}
