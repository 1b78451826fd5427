//! What the fuzz targets do with an input. `cargo test` replays the corpora through the same
//! functions.

#![allow(dead_code, reason = "each fuzz target drives one reader")]

use namegate_policy::name::DnsName;
use namegate_policy::object;
use namegate_policy::pattern::{DomainPattern, PatternSet};

/// Patterns, an empty line, a name in wire form: the set of all patterns matches as they do one by
/// one, whatever the case and the spelling of the name.
pub(crate) fn matcher(input: &[u8]) {
    let Some(gap) = input.windows(2).position(|pair| pair == b"\n\n") else {
        return;
    };
    let (Ok(text), Ok((name, _))) =
        (std::str::from_utf8(&input[..gap]), DnsName::from_wire(&input[gap + 2..]))
    else {
        return;
    };
    assert_eq!(DnsName::parse(&name.to_string()).as_ref(), Ok(&name), "text and back");
    let mut patterns: Vec<(DomainPattern, Vec<DomainPattern>)> = Vec::new();
    for line in text.lines().take(32) {
        if let Some(except) = line.strip_prefix('!') {
            let excepted = DomainPattern::parse(except).ok();
            if let Some((excepted, (_, exceptions))) = excepted.zip(patterns.last_mut()) {
                exceptions.push(excepted);
            }
        } else if let Some(line) = line.strip_prefix('~') {
            patterns.extend(DomainPattern::parse_cilium(line).ok().map(|p| (p, Vec::new())));
        } else {
            patterns.extend(DomainPattern::parse(line).ok().map(|p| (p, Vec::new())));
        }
    }
    let mut set = PatternSet::default();
    for (number, (pattern, except)) in (0..).zip(&patterns) {
        set.insert(pattern, except, number);
    }
    let mut together = Vec::new();
    set.for_each_match(&name, |number| together.push(number));
    together.sort_unstable();
    together.dedup();
    let alone = (0..).zip(&patterns).filter(|(_, (pattern, except))| {
        pattern.matches(&name) && !except.iter().any(|except| except.matches(&name))
    });
    let alone: Vec<u32> = alone.map(|(number, _)| number).collect();
    assert_eq!(together, alone, "{name} and {text:?}");
}

/// A JSON document: an object, or errors that name what is wrong.
pub(crate) fn object(input: &[u8]) {
    let Ok(document) = serde_json::from_slice(input) else {
        return;
    };
    for (_, item) in object::expand(document) {
        if let Err(error) = object::parse(item) {
            assert!(!error.to_string().is_empty());
        }
    }
}
