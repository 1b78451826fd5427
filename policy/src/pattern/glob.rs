//! Patterns with stars inside labels (section 4 of the semantics).

use std::fmt;

use super::{PatternError, check_label, parse_name};
use crate::name::DnsName;

/// Labels with stars, right of them plain ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Glob {
    /// One or more whole labels come first.
    has_more: bool,
    /// Labels of which the rightmost holds a star, from left to right, in lower case; empty only
    /// where `has_more`.
    labels: Vec<Box<str>>,
    /// The plain labels that the name ends in.
    anchor: DnsName,
}

impl Glob {
    /// Reads text that holds a star.
    pub(super) fn parse(text: &str) -> Result<Self, PatternError> {
        let text = text.to_ascii_lowercase();
        let (has_more, rest) = match text.strip_prefix("**.") {
            Some(rest) => (true, rest),
            None => (false, text.as_str()),
        };
        let labels: Vec<&str> = rest.split('.').collect();
        let plain = labels.iter().rev().take_while(|label| !label.contains('*')).count();
        let (starred, plain) = labels.split_at(labels.len() - plain);
        for label in starred {
            // A label of stars alone is fine; its other characters must be plain.
            let others = label.replace('*', "");
            if label.is_empty() || !others.is_empty() {
                check_label(&others)?;
            }
        }
        Ok(Self {
            has_more,
            labels: starred.iter().map(|label| Box::from(*label)).collect(),
            anchor: if plain.is_empty() { DnsName::root() } else { parse_name(&plain.join("."))? },
        })
    }

    /// The plain labels that every match ends in.
    pub(super) fn anchor(&self) -> &DnsName {
        &self.anchor
    }

    /// Whether `name` matches.
    pub(super) fn matches(&self, name: &DnsName) -> bool {
        if !name.is_below(&self.anchor) {
            return false;
        }
        let mut rest = name.labels_from_right().skip(self.anchor.labels().count());
        for glob in self.labels.iter().rev() {
            if !rest.next().is_some_and(|label| is_match(glob.as_bytes(), label)) {
                return false;
            }
        }
        match (rest.next(), self.has_more) {
            (None, has_more) => !has_more,
            (Some(_), false) => false,
            (Some(first), true) => is_plain(first) && rest.all(is_plain),
        }
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.has_more {
            f.write_str("**.")?;
        }
        for label in &self.labels {
            write!(f, "{label}.")?;
        }
        if self.anchor.is_root() { Ok(()) } else { write!(f, "{}", self.anchor) }
    }
}

fn is_plain(label: &[u8]) -> bool {
    label.iter().all(|octet| octet.is_ascii_alphanumeric() || b"-_".contains(octet))
}

/// Whether a label matches text in which a star is any run of plain characters. Greedy from the
/// left: where a star took too little, it takes one character more.
fn is_match(glob: &[u8], label: &[u8]) -> bool {
    if !is_plain(label) {
        return false;
    }
    let (mut at, mut read) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while read < label.len() {
        if glob.get(at) == Some(&b'*') {
            at += 1;
            star = Some((at, read));
        } else if glob.get(at) == Some(&label[read]) {
            (at, read) = (at + 1, read + 1);
        } else if let Some((after, taken)) = star {
            (at, read) = (after, taken + 1);
            star = Some((after, taken + 1));
        } else {
            return false;
        }
    }
    glob[at..].iter().all(|&octet| octet == b'*')
}

#[cfg(test)]
mod tests {
    use crate::name::DnsName;
    use crate::pattern::{DomainPattern, PatternSet};

    #[test]
    fn section_4_patterns_match_as_the_table_says() {
        for (pattern, name, expected) in [
            ("cilium.io", "cilium.io", true),
            ("cilium.io", "www.cilium.io", false),
            ("*.cilium.io", "www.cilium.io", true),
            ("*.cilium.io", "cilium.io", false),
            ("*.cilium.io", "a.www.cilium.io", false),
            ("*cilium.io", "cilium.io", true),
            ("*cilium.io", "subcilium.io", true),
            ("*cilium.io", "sub-cilium.io", true),
            ("*cilium.io", "www.cilium.io", false),
            ("sub*.cilium.io", "sub.cilium.io", true),
            ("sub*.cilium.io", "subway.cilium.io", true),
            ("sub*.cilium.io", "way.cilium.io", false),
            ("*.ci*.io", "www.cilium.io", true),
            ("*.ci*.io", "www.ci.io", true),
            ("*.ci*.io", "www.x.ci.io", false),
            ("**.cilium.io", "www.cilium.io", true),
            ("**.cilium.io", "a.b.cilium.io", true),
            ("**.cilium.io", "cilium.io", false),
            ("**.*.cilium.io", "a.b.cilium.io", true),
            ("**.*.cilium.io", "a.b.c.cilium.io", true),
            ("**.*.cilium.io", "b.cilium.io", false),
            ("test.**.cilium.io", "test.a.cilium.io", true),
            ("test.**.cilium.io", "test.a.b.cilium.io", false),
            ("test.**.cilium.io", "test.cilium.io", false),
            ("*", "any.name.at.all", true),
            ("**", ".", true),
            ("*.", "www.cilium.io", true),
            ("*.CILIUM.io.", "WWW.cilium.IO", true),
            ("*.cilium.io", "w\\.w.cilium.io", false),
            ("a*b*c.io", "axbxbxc.io", true),
            ("a*b*c.io", "axbxbx.io", false),
        ] {
            let parsed = DomainPattern::parse_cilium(pattern).unwrap();
            let name = DnsName::parse(name).unwrap();
            assert_eq!(parsed.matches(&name), expected, "{pattern} and {name}");
            let mut set = PatternSet::default();
            set.insert(&parsed, &[], 0);
            let mut found = false;
            set.for_each_match(&name, |_| found = true);
            assert_eq!(found, expected, "{pattern} and {name} in a set");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in ["", ".", "*..io", "a b*.io", "*.exa$mple.io", "a..b"] {
            assert!(DomainPattern::parse_cilium(text).is_err(), "{text}");
        }
    }
}
