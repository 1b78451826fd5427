//! Wildcards for names that have a parent in common.

use std::collections::BTreeMap;

/// Names below one that make a wildcard.
const ENOUGH: usize = 3;

/// A name or a wildcard, and the names that it stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) pattern: String,
    names: usize,
}

impl Found {
    /// What the reader has to know of a wildcard.
    pub(super) fn remark(&self) -> Option<String> {
        let wider =
            || format!("{}: wider than what was seen, {} names below it", self.pattern, self.names);
        (self.names > 1).then(wider)
    }
}

/// Replaces three names or more that differ in their first label alone by a wildcard; never one for a
/// whole top-level domain, or for what looks like one.
pub(super) fn widen(names: &[&str]) -> Vec<Found> {
    let mut below: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut found = Vec::new();
    for name in names {
        match name.split_once('.') {
            Some((_, parent)) if !is_public(parent) => below.entry(parent).or_default().push(name),
            _ => found.push(Found { pattern: (*name).to_owned(), names: 1 }),
        }
    }
    for (parent, names) in below {
        if names.len() >= ENOUGH {
            found.push(Found { pattern: format!("*.{parent}"), names: names.len() });
        } else {
            let each = names.into_iter();
            found.extend(each.map(|name| Found { pattern: name.to_owned(), names: 1 }));
        }
    }
    found.sort_by(|a, b| a.pattern.cmp(&b.pattern));
    found
}

/// Whether anybody can have a name below `parent`, as below `com` and `co.uk`.
fn is_public(parent: &str) -> bool {
    let mut labels = parent.rsplit('.');
    let (last, second) = (labels.next(), labels.next());
    let is_short = |label: &str| label.len() <= 3;
    match (last, second, labels.next()) {
        (Some(_), None, _) => true,
        (Some(last), Some(second), None) => last.len() == 2 && is_short(second),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names, what becomes of them, and why.
    type Case = (&'static [&'static str], &'static [&'static str], &'static str);

    #[test]
    fn only_several_names_of_one_owner_make_a_wildcard() {
        let widened = |names: &[&str]| -> Vec<String> {
            widen(names).into_iter().map(|found| found.pattern).collect()
        };
        let cases: [Case; 6] = [
            (&["a.x.example", "b.x.example"], &["a.x.example", "b.x.example"], "two are too few"),
            (&["a.x.example", "b.x.example", "c.x.example"], &["*.x.example"], "three"),
            (&["a.com", "b.com", "c.com"], &["a.com", "b.com", "c.com"], "a top-level domain"),
            (
                &["a.co.uk", "b.co.uk", "c.co.uk"],
                &["a.co.uk", "b.co.uk", "c.co.uk"],
                "much the same",
            ),
            (&["a.acme.uk", "b.acme.uk", "c.acme.uk"], &["*.acme.uk"], "an owner's"),
            (
                &["a.x.example", "b.x.example", "c.x.example", "x.example"],
                &["*.x.example", "x.example"],
                "a wildcard is not for the name itself",
            ),
        ];
        for (names, expected, why) in cases {
            assert_eq!(widened(names), expected, "{why}");
        }
        assert!(widen(&["a.x.example"])[0].remark().is_none());
    }
}
