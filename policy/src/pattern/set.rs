//! Every pattern of an identity in one trie over labels, the top-level label first.
//!
//! The edges of the trie live in one open-addressing table, each in half a cache line with its
//! label, so that a step costs one memory access whatever the number of patterns.

use super::glob::Glob;
use super::{DomainPattern, Form};
use crate::name::DnsName;

/// Patterns with a value each, matched together.
///
/// A name is matched in one walk over its labels from the right; the cost depends on the labels of
/// the name and on the patterns that match it, not on how many there are.
#[derive(Clone, Debug)]
pub struct PatternSet<T> {
    values: Vec<T>,
    links: Vec<Link>,
    edges: Edges,
    root: Heads,
    has_excepts: bool,
    /// Patterns with stars inside labels: they hang at their plain labels and are looked at whole.
    globs: Vec<Glob>,
}

/// The lists of patterns that end at a node: for the node's own name, and for all names below.
/// Positions in `links` plus one; zero is the empty list.
#[derive(Clone, Copy, Debug, Default)]
struct Heads {
    exact: u32,
    below: u32,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    value: u32,
    next: u32,
    is_except: bool,
    /// Position in `globs` plus one; zero where being on the list is enough.
    glob: u32,
}

impl<T> Default for PatternSet<T> {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            links: Vec::new(),
            edges: Edges::default(),
            root: Heads::default(),
            has_excepts: false,
            globs: Vec::new(),
        }
    }
}

impl<T> PatternSet<T> {
    /// Adds `pattern`, narrowed by `except` (EP-5), with what it stands for.
    pub fn insert(&mut self, pattern: &DomainPattern, except: &[DomainPattern], value: T) {
        let index = self.values.len() as u32;
        self.values.push(value);
        self.link(pattern, index, false);
        for narrowed in except {
            self.link(narrowed, index, true);
            self.has_excepts = true;
        }
    }

    /// The number of patterns, excepted ones not counted.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether no pattern is in the set.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Calls `found` with the value of each pattern that `name` matches, in no particular order.
    pub fn for_each_match<'a>(&'a self, name: &DnsName, mut found: impl FnMut(&'a T)) {
        if !self.has_excepts {
            self.walk(name, |link| found(&self.values[link.value as usize]));
            return;
        }
        let (mut matched, mut excepted) = (Vec::new(), Vec::new());
        self.walk(name, |link| {
            let list = if link.is_except { &mut excepted } else { &mut matched };
            list.push(link.value);
        });
        for value in matched {
            if !excepted.contains(&value) {
                found(&self.values[value as usize]);
            }
        }
    }

    fn walk(&self, name: &DnsName, mut visit: impl FnMut(Link)) {
        let starts = name.label_starts();
        let wire = name.as_wire();
        let mut heads = self.root;
        let mut node = 0;
        for index in (0..starts.len()).rev() {
            self.visit_list(heads.below, name, &mut visit);
            let at = starts.at(index);
            let label = &wire[at + 1..=at + usize::from(wire[at])];
            let Some(edge) = self.edges.find(node, label) else {
                return;
            };
            heads = edge.heads;
            node = edge.child;
        }
        self.visit_list(heads.exact, name, &mut visit);
    }

    fn visit_list(&self, head: u32, name: &DnsName, visit: &mut impl FnMut(Link)) {
        let mut next = head;
        while let Some(index) = next.checked_sub(1) {
            let link = self.links[index as usize];
            next = link.next;
            match link.glob.checked_sub(1) {
                Some(glob) if !self.globs[glob as usize].matches(name) => {}
                Some(_) | None => visit(link),
            }
        }
    }

    fn link(&mut self, pattern: &DomainPattern, value: u32, is_except: bool) {
        let mut link = Link { value, next: 0, is_except, glob: 0 };
        match &pattern.0 {
            Form::Any => {
                // `*` matches the root as well as all below it.
                let links = &mut self.links;
                push_link(links, &mut self.root.below, link);
                push_link(links, &mut self.root.exact, link);
            }
            Form::Exact(name) => {
                let heads = Self::node(&mut self.edges, &mut self.root, name);
                push_link(&mut self.links, &mut heads.exact, link);
            }
            Form::Below(name) => {
                let heads = Self::node(&mut self.edges, &mut self.root, name);
                push_link(&mut self.links, &mut heads.below, link);
            }
            Form::Glob(glob) => {
                self.globs.push(glob.clone());
                link.glob = self.globs.len() as u32;
                let heads = Self::node(&mut self.edges, &mut self.root, glob.anchor());
                push_link(&mut self.links, &mut heads.below, link);
            }
        }
    }

    fn node<'a>(edges: &'a mut Edges, root: &'a mut Heads, name: &DnsName) -> &'a mut Heads {
        let mut slot = None;
        let mut node = 0;
        for label in name.labels_from_right() {
            let index = edges.find_or_insert(node, label);
            node = edges.slots[index].child;
            slot = Some(index);
        }
        match slot {
            Some(index) => &mut edges.slots[index].heads,
            None => root,
        }
    }
}

fn push_link(links: &mut Vec<Link>, head: &mut u32, link: Link) {
    links.push(Link { next: *head, ..link });
    *head = links.len() as u32;
}

/// The number of label octets that an edge holds itself; the rest of a longer label is in the
/// arena, found by the last four of these.
const INLINE: usize = 15;
const PREFIX: usize = INLINE - 4;

/// One edge of the trie. `child` zero is a free slot: the root is nobody's child.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(32))]
struct Edge {
    parent: u32,
    child: u32,
    heads: Heads,
    length: u8,
    label: [u8; INLINE],
}

const _: () = assert!(size_of::<Edge>() == 32);

#[derive(Clone, Debug, Default)]
struct Edges {
    /// A power of two of slots, at most three quarters of them taken.
    slots: Vec<Edge>,
    taken: u32,
    arena: Vec<u8>,
}

impl Edges {
    fn find(&self, parent: u32, label: &[u8]) -> Option<&Edge> {
        if self.slots.is_empty() {
            return None;
        }
        let mask = self.slots.len() - 1;
        let mut index = hash(parent, label) & mask;
        loop {
            let edge = &self.slots[index];
            if edge.child == 0 {
                return None;
            }
            if edge.parent == parent && self.is_label(edge, label) {
                return Some(edge);
            }
            index = (index + 1) & mask;
        }
    }

    fn find_or_insert(&mut self, parent: u32, label: &[u8]) -> usize {
        if self.taken as usize * 4 >= self.slots.len() * 3 {
            self.grow();
        }
        let mask = self.slots.len() - 1;
        let mut index = hash(parent, label) & mask;
        while self.slots[index].child != 0 {
            if self.slots[index].parent == parent && self.is_label(&self.slots[index], label) {
                return index;
            }
            index = (index + 1) & mask;
        }
        self.taken += 1;
        self.slots[index] = Edge {
            parent,
            child: self.taken,
            heads: Heads::default(),
            length: label.len() as u8,
            label: self.store(label),
        };
        index
    }

    fn store(&mut self, label: &[u8]) -> [u8; INLINE] {
        let mut stored = [0; INLINE];
        if label.len() <= INLINE {
            stored[..label.len()].copy_from_slice(label);
        } else {
            stored[..PREFIX].copy_from_slice(&label[..PREFIX]);
            stored[PREFIX..].copy_from_slice(&(self.arena.len() as u32).to_ne_bytes());
            self.arena.extend_from_slice(&label[PREFIX..]);
        }
        stored
    }

    fn is_label(&self, edge: &Edge, label: &[u8]) -> bool {
        if usize::from(edge.length) != label.len() {
            return false;
        }
        if label.len() <= INLINE {
            return edge.label[..label.len()] == *label;
        }
        let [.., a, b, c, d] = edge.label;
        let start = u32::from_ne_bytes([a, b, c, d]) as usize;
        let rest = &label[PREFIX..];
        edge.label[..PREFIX] == label[..PREFIX] && self.arena[start..start + rest.len()] == *rest
    }

    fn grow(&mut self) {
        let size = (self.slots.len() * 2).max(16);
        let old = std::mem::replace(&mut self.slots, vec![Edge::default(); size]);
        for edge in old {
            if edge.child == 0 {
                continue;
            }
            let mut index = self.hash_of(&edge) & (size - 1);
            while self.slots[index].child != 0 {
                index = (index + 1) & (size - 1);
            }
            self.slots[index] = edge;
        }
    }

    fn hash_of(&self, edge: &Edge) -> usize {
        let length = usize::from(edge.length);
        if length <= INLINE {
            return hash(edge.parent, &edge.label[..length]);
        }
        let [.., a, b, c, d] = edge.label;
        let start = u32::from_ne_bytes([a, b, c, d]) as usize;
        let mut label = edge.label[..PREFIX].to_vec();
        label.extend_from_slice(&self.arena[start..start + length - PREFIX]);
        hash(edge.parent, &label)
    }
}

/// Mixes eight octets at a time. What is looked up cannot lengthen a probe, only what policies
/// put in, so no key is needed.
fn hash(parent: u32, label: &[u8]) -> usize {
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut state = (u64::from(parent) << 8 | label.len() as u64).wrapping_mul(MULTIPLIER);
    for chunk in label.chunks(8) {
        let mut octets = [0; 8];
        octets[..chunk.len()].copy_from_slice(chunk);
        let mixed = u128::from(state ^ u64::from_le_bytes(octets)) * u128::from(MULTIPLIER | 1);
        state = (mixed as u64) ^ (mixed >> 64) as u64;
    }
    (state ^ (state >> 32)) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn mk_set(patterns: &[(&'static str, &[&str])]) -> PatternSet<&'static str> {
        let mut set = PatternSet::default();
        for (pattern, except) in patterns {
            let except: Vec<DomainPattern> = except.iter().map(|p| p.parse().unwrap()).collect();
            set.insert(&pattern.parse().unwrap(), &except, *pattern);
        }
        set
    }

    fn matches(set: &PatternSet<&'static str>, name: &str) -> BTreeSet<&'static str> {
        let mut found = BTreeSet::new();
        set.for_each_match(&DnsName::parse(name).unwrap(), |value| {
            found.insert(*value);
        });
        found
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
        ]
        .prop_map(|text| text.parse().unwrap())
    }

    proptest! {
        #[test]
        fn set_agrees_with_each_pattern_alone(
            patterns in proptest::collection::vec(
                (pattern(), proptest::collection::vec(pattern(), 0..2)),
                0..40,
            ),
            names in proptest::collection::vec(dotted(), 1..20),
        ) {
            let mut set = PatternSet::default();
            for (index, (pattern, except)) in patterns.iter().enumerate() {
                set.insert(pattern, except, index);
            }
            for name in names {
                let name = DnsName::parse(&name).unwrap();
                let mut found = BTreeSet::new();
                set.for_each_match(&name, |&index| { found.insert(index); });
                let expected: BTreeSet<usize> = patterns
                    .iter()
                    .enumerate()
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
