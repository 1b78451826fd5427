//! Every pattern of an identity in one hash of name suffixes.
//!
//! A name is hashed label by label from the right; the hash after each label is that of a suffix,
//! and is looked for where patterns of so many labels exist at all. An octet of each hash stands in
//! an array of its own, so that an absent suffix costs little memory traffic and a present one an
//! access more. What is found is compared octet by octet: a collision never matches.

use super::glob::Glob;
use super::hash::PatternSeed;
use super::{DomainPattern, Form};
use crate::name::{DnsName, LabelStarts};

/// At most three of four slots are taken, and two of three where room was made for a number of
/// patterns.
const LOAD: (usize, usize) = (3, 4);
const RESERVED: (usize, usize) = (2, 3);

/// How many octets of a suffix a slot holds; of a longer one, so many that eight more say where the
/// rest is.
const INLINE: usize = 23;
const BEGIN: usize = INLINE - 8;

/// Set in a list's head that is a position in `items`; a head without it is one value plus one.
const IS_LIST: u32 = 1 << 31;

/// Patterns with a number each, matched together.
///
/// The cost of a match depends on the labels of the name and on the patterns that match it, not on
/// how many there are; patterns with stars inside labels are looked at one by one, those with the
/// same plain labels right of their stars. Numbers are below 2^31.
#[derive(Clone, Debug, Default)]
pub struct PatternSet {
    seed: PatternSeed,
    /// For each slot an octet of the hash; zero where it is free.
    tags: Vec<u8>,
    slots: Vec<Slot>,
    suffixes: usize,
    /// The ends of suffixes that are longer than a slot holds.
    ends: Vec<u8>,
    root: Heads,
    items: Vec<Item>,
    guards: Vec<Guard>,
    /// Of how many labels there are suffixes that names end in, and whole names, by bit.
    below: u128,
    exact: u128,
    patterns: usize,
}

/// The lists of patterns for one suffix: for that name alone, and for all names below.
#[derive(Clone, Copy, Debug, Default)]
struct Heads {
    exact: u32,
    below: u32,
}

/// A suffix and the patterns for it: half a cache line.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(32))]
struct Slot {
    heads: Heads,
    length: u8,
    suffix: [u8; INLINE],
}

const _: () = assert!(size_of::<Slot>() == 32);

/// One of the lists of a suffix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    Exact,
    Below,
}

/// A pattern that shares its list with others, or that takes a closer look.
#[derive(Clone, Copy, Debug)]
struct Item {
    value: u32,
    /// The head of the rest of the list.
    next: u32,
    /// Position in `guards` plus one.
    guard: u32,
}

/// What a name must meet besides its suffix.
#[derive(Clone, Debug)]
struct Guard {
    glob: Option<Glob>,
    except: Option<Box<PatternSet>>,
}

impl PatternSet {
    /// An empty set whose hash is keyed by `seed`.
    pub fn new(seed: PatternSeed) -> Self {
        Self { seed, ..Self::default() }
    }

    /// Makes room for `more` patterns.
    pub fn reserve(&mut self, more: usize) {
        let needed = (self.suffixes + more) * RESERVED.1 / RESERVED.0 + 1;
        if needed > self.slots.len() && more * 4 > self.suffixes {
            self.resize(needed);
        }
    }

    /// Adds `pattern`, narrowed by `except` (EP-5), as `value`.
    pub fn insert(&mut self, pattern: &DomainPattern, except: &[DomainPattern], value: u32) {
        let except = (!except.is_empty()).then(|| {
            let mut narrowed = Self::new(self.seed);
            for pattern in except {
                narrowed.insert(pattern, &[], 0);
            }
            Box::new(narrowed)
        });
        let glob = match &pattern.0 {
            Form::Glob(glob) => Some(glob.clone()),
            Form::Any | Form::Exact(_) | Form::Below(_) => None,
        };
        let guard = if glob.is_some() || except.is_some() {
            self.guards.push(Guard { glob, except });
            self.guards.len() as u32
        } else {
            0
        };
        self.patterns += 1;
        match &pattern.0 {
            Form::Any => {
                // `*` matches the root as well as all below it.
                self.root.exact = self.pushed(self.root.exact, value, guard);
                self.root.below = self.pushed(self.root.below, value, guard);
            }
            Form::Exact(name) => self.attach(name, List::Exact, value, guard),
            Form::Below(name) => self.attach(name, List::Below, value, guard),
            Form::Glob(glob) => self.attach(glob.anchor(), List::Below, value, guard),
        }
    }

    /// The number of patterns, excepted ones not counted.
    pub fn len(&self) -> usize {
        self.patterns
    }

    /// Whether no pattern is in the set.
    pub fn is_empty(&self) -> bool {
        self.patterns == 0
    }

    /// The octets of memory that the set takes.
    pub fn footprint(&self) -> usize {
        let excepts = self.guards.iter().filter_map(|guard| guard.except.as_deref());
        size_of::<Self>()
            + self.tags.capacity()
            + self.slots.capacity() * size_of::<Slot>()
            + self.ends.capacity()
            + self.items.capacity() * size_of::<Item>()
            + self.guards.capacity() * size_of::<Guard>()
            + excepts.map(Self::footprint).sum::<usize>()
    }

    /// Calls `found` with the number of each pattern that `name` matches, in no particular order.
    pub fn for_each_match(&self, name: &DnsName, mut found: impl FnMut(u32)) {
        let starts = name.label_starts();
        let count = starts.len();
        if count == 0 {
            self.visit(self.root.exact, name, &mut found);
            return;
        }
        self.visit(self.root.below, name, &mut found);
        let is_exact = self.exact >> count & 1 == 1;
        let below = self.below & ((1 << count) - 1);
        // Labels further left are of no interest.
        let deepest = if is_exact { count } else { below.checked_ilog2().unwrap_or(0) as usize };
        let wire = name.as_wire();
        let mut hash = self.seed.start();
        for depth in 1..=deepest {
            let at = starts.at(count - depth);
            hash = self.seed.extend(hash, label_at(wire, at));
            if depth == count {
                if let Some(slot) = self.find(hash, &wire[at..]) {
                    self.visit(self.slots[slot].heads.exact, name, &mut found);
                }
            } else if below >> depth & 1 == 1
                && let Some(slot) = self.find(hash, &wire[at..])
            {
                self.visit(self.slots[slot].heads.below, name, &mut found);
            }
        }
    }

    fn visit(&self, head: u32, name: &DnsName, found: &mut impl FnMut(u32)) {
        let mut rest = head;
        while rest != 0 {
            if rest & IS_LIST == 0 {
                found(rest - 1);
                return;
            }
            let item = self.items[(rest & !IS_LIST) as usize];
            rest = item.next;
            let guard = item.guard.checked_sub(1).map(|index| &self.guards[index as usize]);
            if guard.is_none_or(|guard| guard.lets(name)) {
                found(item.value);
            }
        }
    }

    /// The head of a list that is `head` with one pattern more.
    fn pushed(&mut self, head: u32, value: u32, guard: u32) -> u32 {
        if head == 0 && guard == 0 {
            return value + 1;
        }
        self.items.push(Item { value, next: head, guard });
        (self.items.len() - 1) as u32 | IS_LIST
    }

    /// Adds a pattern to a list of the suffix `name`, the root's where it has no label.
    fn attach(&mut self, name: &DnsName, list: List, value: u32, guard: u32) {
        let starts = name.label_starts();
        if starts.len() == 0 {
            let pushed = self.pushed(self.root.head(list), value, guard);
            *self.root.head_mut(list) = pushed;
            return;
        }
        let depths = match list {
            List::Exact => &mut self.exact,
            List::Below => &mut self.below,
        };
        *depths |= 1 << starts.len();
        let wire = name.as_wire();
        let hash = self.hash(wire, &starts);
        let slot = self.find(hash, wire).unwrap_or_else(|| self.add(hash, wire));
        let pushed = self.pushed(self.slots[slot].heads.head(list), value, guard);
        *self.slots[slot].heads.head_mut(list) = pushed;
    }

    /// The slot of a suffix.
    fn find(&self, hash: u64, suffix: &[u8]) -> Option<usize> {
        let wanted = tag(hash);
        let mut index = self.index(hash);
        loop {
            let found = *self.tags.get(index)?;
            if found == 0 {
                return None;
            }
            if found == wanted && self.is_suffix(&self.slots[index], suffix) {
                return Some(index);
            }
            index = self.after(index);
        }
    }

    fn is_suffix(&self, slot: &Slot, suffix: &[u8]) -> bool {
        if usize::from(slot.length) != suffix.len() {
            return false;
        }
        if suffix.len() <= INLINE {
            return slot.suffix[..suffix.len()] == *suffix;
        }
        let (begin, end) = suffix.split_at(BEGIN);
        let at = slot.end();
        slot.suffix[..BEGIN] == *begin && self.ends[at..at + end.len()] == *end
    }

    fn add(&mut self, hash: u64, suffix: &[u8]) -> usize {
        if (self.suffixes + 1) * LOAD.1 > self.slots.len() * LOAD.0 {
            self.resize((self.slots.len() * 2).max(16));
        }
        // A name has at most 255 octets.
        let mut slot = Slot { length: suffix.len() as u8, ..Slot::default() };
        if suffix.len() <= INLINE {
            slot.suffix[..suffix.len()].copy_from_slice(suffix);
        } else {
            let (begin, end) = suffix.split_at(BEGIN);
            slot.suffix[..BEGIN].copy_from_slice(begin);
            slot.suffix[BEGIN..].copy_from_slice(&(self.ends.len() as u64).to_le_bytes());
            self.ends.extend_from_slice(end);
        }
        self.suffixes += 1;
        self.put(hash, slot)
    }

    fn put(&mut self, hash: u64, slot: Slot) -> usize {
        let mut index = self.index(hash);
        while self.tags[index] != 0 {
            index = self.after(index);
        }
        self.tags[index] = tag(hash);
        self.slots[index] = slot;
        index
    }

    fn resize(&mut self, size: usize) {
        let tags = std::mem::replace(&mut self.tags, vec![0; size]);
        let slots = std::mem::replace(&mut self.slots, vec![Slot::default(); size]);
        for (_, slot) in tags.into_iter().zip(slots).filter(|(tag, _)| *tag != 0) {
            let length = usize::from(slot.length);
            let mut suffix = slot.suffix[..length.min(INLINE)].to_vec();
            if length > INLINE {
                suffix.truncate(BEGIN);
                let at = slot.end();
                suffix.extend_from_slice(&self.ends[at..at + length - BEGIN]);
            }
            let hash = self.hash(&suffix, &LabelStarts::of(&suffix));
            self.put(hash, slot);
        }
    }

    fn after(&self, index: usize) -> usize {
        if index + 1 == self.tags.len() { 0 } else { index + 1 }
    }

    fn hash(&self, wire: &[u8], starts: &LabelStarts) -> u64 {
        (0..starts.len())
            .rev()
            .map(|index| label_at(wire, starts.at(index)))
            .fold(self.seed.start(), |hash, label| self.seed.extend(hash, label))
    }

    /// The upper bits of a hash say where to begin, the lower ones are its tag.
    fn index(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.slots.len() as u128) >> 64) as usize
    }
}

impl Heads {
    fn head(&self, list: List) -> u32 {
        match list {
            List::Exact => self.exact,
            List::Below => self.below,
        }
    }

    fn head_mut(&mut self, list: List) -> &mut u32 {
        match list {
            List::Exact => &mut self.exact,
            List::Below => &mut self.below,
        }
    }
}

impl Slot {
    /// Where the end of a long suffix is.
    fn end(&self) -> usize {
        let mut octets = [0; 8];
        octets.copy_from_slice(&self.suffix[BEGIN..]);
        u64::from_le_bytes(octets) as usize
    }
}

impl Guard {
    fn lets(&self, name: &DnsName) -> bool {
        if self.glob.as_ref().is_some_and(|glob| !glob.matches(name)) {
            return false;
        }
        let mut is_excepted = false;
        if let Some(except) = &self.except {
            except.for_each_match(name, |_| is_excepted = true);
        }
        !is_excepted
    }
}

/// Never zero, which is a free slot.
const fn tag(hash: u64) -> u8 {
    (hash as u8) | ((hash as u8 == 0) as u8)
}

/// The octets of the label at `at`, without its length.
fn label_at(wire: &[u8], at: usize) -> &[u8] {
    &wire[at + 1..=at + usize::from(wire[at])]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    struct Named(PatternSet, Vec<&'static str>);

    fn mk_set(patterns: &[(&'static str, &[&str])]) -> Named {
        let mut set = PatternSet::new(PatternSeed::new(7));
        for (number, (pattern, except)) in (0..).zip(patterns) {
            let except: Vec<DomainPattern> = except.iter().map(|p| p.parse().unwrap()).collect();
            set.insert(&pattern.parse().unwrap(), &except, number);
        }
        Named(set, patterns.iter().map(|(pattern, _)| *pattern).collect())
    }

    fn matches(Named(set, patterns): &Named, name: &str) -> BTreeSet<&'static str> {
        let mut found = BTreeSet::new();
        set.for_each_match(&DnsName::parse(name).unwrap(), |value| {
            found.insert(patterns[value as usize]);
        });
        found
    }

    #[test]
    fn a_suffix_of_the_same_hash_is_no_match() {
        let mut set = PatternSet::new(PatternSeed::new(7));
        set.insert(&"www.example.com".parse().unwrap(), &[], 0);
        let stored = DnsName::parse("www.example.com").unwrap();
        let hash = set.hash(stored.as_wire(), &stored.label_starts());
        assert!(set.find(hash, stored.as_wire()).is_some());
        let other = DnsName::parse("www.example.org").unwrap();
        assert_eq!(set.find(hash, other.as_wire()), None);
    }

    #[test]
    fn hostile_names_of_127_labels_are_looked_up() {
        let deep = ["a"; 127].join(".");
        let mut set = PatternSet::new(PatternSeed::new(7));
        for depth in 1..127 {
            let pattern = format!("*.{}", ["a"; 126][..depth].join("."));
            set.insert(&pattern.parse().unwrap(), &[], 0);
        }
        set.insert(&deep.parse().unwrap(), &[], 1);
        let mut found = [0, 0];
        set.for_each_match(&DnsName::parse(&deep).unwrap(), |value| found[value as usize] += 1);
        assert_eq!(found, [126, 1]);
    }

    #[test]
    fn every_matching_pattern_is_found_in_one_walk() {
        let set = mk_set(&[
            ("*", &[]),
            ("*.com", &[]),
            ("example.com", &[]),
            ("*.example.com", &[]),
            ("www.example.com", &[]),
            ("a-label-that-is-longer-than-a-slot.example.com", &[]),
        ]);
        for (name, expected) in [
            ("org", &["*"][..]),
            (".", &["*"]),
            ("example.com", &["*", "*.com", "example.com"]),
            ("www.example.com", &["*", "*.com", "*.example.com", "www.example.com"]),
            ("x.www.example.com", &["*", "*.com", "*.example.com"]),
            (
                "a-label-that-is-longer-than-a-slot.example.com",
                &["*", "*.com", "*.example.com", "a-label-that-is-longer-than-a-slot.example.com"],
            ),
            ("a-label-that-is-longer-than-a-slit.example.com", &["*", "*.com", "*.example.com"]),
        ] {
            assert_eq!(matches(&set, name), expected.iter().copied().collect(), "{name}");
        }
    }

    #[test]
    fn except_narrows_only_its_own_pattern() {
        let set = mk_set(&[
            ("*.s3.aws", &["private.s3.aws", "*.secret.s3.aws"]),
            ("private.s3.aws", &[]),
            ("*.aws", &[]),
        ]);
        for (name, expected) in [
            ("public.s3.aws", &["*.aws", "*.s3.aws"][..]),
            ("private.s3.aws", &["*.aws", "private.s3.aws"]),
            ("x.secret.s3.aws", &["*.aws"]),
            ("secret.s3.aws", &["*.aws", "*.s3.aws"]),
        ] {
            assert_eq!(matches(&set, name), expected.iter().copied().collect(), "EP-5: {name}");
        }
    }

    fn label() -> impl Strategy<Value = String> {
        "[ab]{1,2}|[ab]{15}|[ab]{16}"
    }

    fn dotted() -> impl Strategy<Value = String> {
        proptest::collection::vec(label(), 1..4).prop_map(|labels| labels.join("."))
    }

    fn pattern() -> impl Strategy<Value = DomainPattern> {
        prop_oneof![
            1 => Just("*".to_owned()),
            5 => dotted(),
            5 => dotted().prop_map(|name| format!("*.{name}")),
            2 => dotted().prop_map(|name| format!("a*.{name}")),
        ]
        .prop_map(|text| {
            DomainPattern::parse(&text).or_else(|_| DomainPattern::parse_cilium(&text)).unwrap()
        })
    }

    proptest! {
        #[test]
        fn set_agrees_with_each_pattern_alone(
            patterns in proptest::collection::vec(
                (pattern(), proptest::collection::vec(pattern(), 0..2)),
                0..40,
            ),
            names in proptest::collection::vec(dotted(), 1..20),
            seed in any::<u64>(),
        ) {
            let mut set = PatternSet::new(PatternSeed::new(seed));
            for (index, (pattern, except)) in (0..).zip(&patterns) {
                set.insert(pattern, except, index);
            }
            for name in names {
                let name = DnsName::parse(&name).unwrap();
                let mut found = BTreeSet::new();
                set.for_each_match(&name, |index| { found.insert(index); });
                let expected: BTreeSet<u32> = (0..)
                    .zip(&patterns)
                    .filter(|(_, (pattern, except))| {
                        pattern.matches(&name) && !except.iter().any(|e| e.matches(&name))
                    })
                    .map(|(index, _)| index)
                    .collect();
                prop_assert_eq!(found, expected, "{}", name);
            }
        }
    }
}
