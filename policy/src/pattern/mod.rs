//! Domain patterns: what a policy may write for a name, and the set of all of them.
//!
//! A pattern is parsed once and never compared as text. [`PatternSet`] holds every pattern that
//! concerns one identity and finds all that match a name in one walk over its labels.

mod glob;
mod hash;
mod set;

use std::fmt;
use std::str::FromStr;

use glob::Glob;
pub use hash::PatternSeed;
pub use set::PatternSet;

use crate::name::DnsName;

/// The longest pattern, as text without the final dot (EP-3).
pub const PATTERN_LENGTH_MAX: usize = 253;

/// A pattern over domain names: an exact name, `*.` before a name, or `*` (EP-3, EP-4).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainPattern(Form);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Form {
    /// Every name, the root too.
    Any,
    /// That name alone.
    Exact(DnsName),
    /// Every name with at least one label more.
    Below(DnsName),
    /// Stars inside labels, as the Cilium dialect has them.
    Glob(Glob),
}

/// Why text is no pattern, and what to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatternError {
    /// Nothing is written.
    #[error("the pattern is empty; write a name such as api.example.com, or * for every name")]
    Empty,
    /// `**.` at the start, as another dialect writes it.
    #[error("** is no pattern here; *.{rest} already matches one or more labels before {rest}")]
    DoubleStar {
        /// What follows the stars.
        rest: String,
    },
    /// A star that is not the whole first label.
    #[error(
        "a star can only be the whole first label, as in *.example.com; `{label}` is not allowed"
    )]
    Star {
        /// The label that holds the star, or the star itself.
        label: String,
    },
    /// A scheme, a port or a path around the name.
    #[error(
        "`{character}` cannot be in a name; write the name alone, without scheme, port or path"
    )]
    Url {
        /// The first character that gives it away.
        character: char,
    },
    /// A character outside ASCII.
    #[error("`{character}` is not ASCII; write the name in punycode (xn--...)")]
    NotAscii {
        /// The first such character.
        character: char,
    },
    /// Another character that a pattern cannot hold.
    #[error("`{character}` cannot be in a pattern; letters, digits, `-` and `_` can")]
    Character {
        /// The first such character.
        character: char,
    },
    /// Two dots in a row, or a leading dot.
    #[error("a label of the pattern is empty; look for a leading or a doubled dot")]
    EmptyLabel,
    /// A label of more than 63 characters.
    #[error("the label `{label}` is longer than 63 characters")]
    LabelTooLong {
        /// The label.
        label: String,
    },
    /// More than [`PATTERN_LENGTH_MAX`] characters.
    #[error("the pattern is longer than {PATTERN_LENGTH_MAX} characters")]
    TooLong,
}

impl DomainPattern {
    /// The pattern that every name matches.
    pub const ANY: Self = Self(Form::Any);

    /// Reads a pattern as an EgressPolicy writes it.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if text.len() > PATTERN_LENGTH_MAX {
            return Err(PatternError::TooLong);
        }
        if text == "*" {
            return Ok(Self::ANY);
        }
        if let Some(rest) = text.strip_prefix("**.") {
            return Err(PatternError::DoubleStar {
                rest: rest.trim_start_matches(['*', '.']).to_owned(),
            });
        }
        match text.strip_prefix("*.") {
            Some(rest) => parse_name(rest).map(Form::Below).map(Self),
            None => parse_name(text).map(Form::Exact).map(Self),
        }
    }

    /// Reads a `matchPattern` of the Cilium dialect: a star is zero or more letters, digits, `-` and
    /// `_` of one label; `**.` at the start is one or more whole labels.
    pub fn parse_cilium(text: &str) -> Result<Self, PatternError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if text.len() > PATTERN_LENGTH_MAX {
            return Err(PatternError::TooLong);
        }
        if text == "*" || text == "**" {
            return Ok(Self::ANY);
        }
        if !text.contains('*') {
            return parse_name(text).map(Form::Exact).map(Self);
        }
        Glob::parse(text).map(Form::Glob).map(Self)
    }

    /// The pattern that `name` alone matches.
    pub const fn exact(name: DnsName) -> Self {
        Self(Form::Exact(name))
    }

    /// Whether `name` matches. For one pattern; [`PatternSet`] asks for many at once.
    pub fn matches(&self, name: &DnsName) -> bool {
        match &self.0 {
            Form::Any => true,
            Form::Exact(own) => own == name,
            Form::Below(suffix) => name.is_below(suffix),
            Form::Glob(glob) => glob.matches(name),
        }
    }

    /// Whether every name matches.
    pub fn is_any(&self) -> bool {
        self.0 == Form::Any
    }

    /// Whether it is one name in full.
    pub fn is_exact(&self) -> bool {
        matches!(self.0, Form::Exact(_))
    }

    /// Whether every name that `other` matches matches this pattern; `false` where that cannot be told.
    pub fn covers(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Form::Any, _) => true,
            (_, Form::Exact(name)) => self.matches(name),
            (Form::Below(one), Form::Below(two)) => two.is_at_or_below(one),
            (Form::Glob(one), Form::Glob(two)) => one == two,
            _ => false,
        }
    }

    /// Whether some name could match both this pattern and `other`.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Form::Any, _) | (_, Form::Any) => true,
            (Form::Exact(name), _) => other.matches(name),
            (_, Form::Exact(name)) => self.matches(name),
            (Form::Below(one), Form::Below(two)) => {
                one.is_at_or_below(two) || two.is_at_or_below(one)
            }
            // Coarse: by what stands right of the stars.
            (Form::Glob(glob), Form::Below(suffix)) | (Form::Below(suffix), Form::Glob(glob)) => {
                glob.anchor().is_at_or_below(suffix) || suffix.is_at_or_below(glob.anchor())
            }
            (Form::Glob(one), Form::Glob(two)) => {
                let (one, two) = (one.anchor(), two.anchor());
                one.is_at_or_below(two) || two.is_at_or_below(one)
            }
        }
    }
}

impl FromStr for DomainPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        Self::parse(text)
    }
}

impl fmt::Display for DomainPattern {
    /// The pattern in lower case without the final dot.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Form::Any => f.write_str("*"),
            Form::Exact(name) => write!(f, "{name}"),
            Form::Below(suffix) => write!(f, "*.{suffix}"),
            Form::Glob(glob) => write!(f, "{glob}"),
        }
    }
}

fn parse_name(text: &str) -> Result<DnsName, PatternError> {
    for label in text.split('.') {
        check_label(label)?;
    }
    // Labels of 1 to 63 plain characters and at most 253 in all always make a name.
    DnsName::parse(text).map_err(|_| PatternError::TooLong)
}

fn check_label(label: &str) -> Result<(), PatternError> {
    if label.is_empty() {
        return Err(PatternError::EmptyLabel);
    }
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "-_".contains(character);
    if let Some(character) = label.chars().find(|&character| !is_plain(character)) {
        return Err(match character {
            '*' => PatternError::Star { label: label.to_owned() },
            ':' | '/' | '?' | '#' | '@' => PatternError::Url { character },
            other if !other.is_ascii() => PatternError::NotAscii { character },
            other => PatternError::Character { character: other },
        });
    }
    if label.len() > 63 {
        return Err(PatternError::LabelTooLong { label: label.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DnsName {
        DnsName::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn patterns_match_as_ep_3_and_ep_4_say() {
        for (pattern, candidate, expected, why) in [
            ("api.example.com", "API.Example.com.", true, "EP-3: case and final dot"),
            ("API.Example.COM.", "api.example.com", true, "EP-3: of the pattern too"),
            ("api.example.com", "x.api.example.com", false, "exact is exact"),
            ("_sip.example.com", "_sip.example.com", true, "EP-3: underscore"),
            ("*.example.com", "example.com", false, "EP-4: never the apex"),
            ("*.example.com", "a.example.com", true, "EP-4: one label"),
            ("*.example.com", "a.b.example.com", true, "EP-4: more labels"),
            ("*.example.com", "aexample.com", false, "EP-4: whole labels"),
            ("*.example.com", "a\\.example.com", false, "EP-3: labels, not text"),
            ("*", "anything.at.all", true, "EP-4: any name"),
            ("*", ".", true, "EP-4: the root is a name"),
            ("*.com", "example.com", true, "EP-4: below a top-level domain"),
        ] {
            let parsed = DomainPattern::parse(pattern).unwrap();
            assert_eq!(parsed.matches(&name(candidate)), expected, "{pattern}: {why}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_a_hint() {
        let label = "a".repeat(64);
        let long = format!("{}.com", ["a".repeat(62).as_str(); 4].join("."));
        for (text, hint) in [
            ("", "write a name"),
            (".", "write a name"),
            ("**.example.com", "*.example.com already matches one or more labels"),
            ("**", "only be the whole first label"),
            ("*example.com", "only be the whole first label"),
            ("a.*.example.com", "only be the whole first label"),
            ("api*.example.com", "`api*` is not allowed"),
            ("example.*", "only be the whole first label"),
            ("*.*.example.com", "only be the whole first label"),
            ("https://example.com", "without scheme, port or path"),
            ("example.com:443", "without scheme, port or path"),
            ("example.com/path", "without scheme, port or path"),
            ("münchen.de", "punycode"),
            ("exa mple.com", "` ` cannot be in a pattern"),
            ("a..com", "doubled dot"),
            (".example.com", "leading"),
            ("*.", "only be the whole first label"),
            (label.as_str(), "longer than 63"),
            (long.as_str(), "longer than 253"),
        ] {
            match DomainPattern::parse(text) {
                Ok(pattern) if text == "*." => assert_eq!(pattern, DomainPattern::ANY),
                Ok(pattern) => panic!("{text:?} was read as {pattern}"),
                Err(error) => {
                    let message = error.to_string();
                    assert!(message.contains(hint), "{text:?}: {message}");
                }
            }
        }
    }

    #[test]
    fn overlap_is_found_in_both_directions() {
        for (one, two, expected) in [
            ("*", "a.com", true),
            ("*.a.com", "b.a.com", true),
            ("*.a.com", "a.com", false),
            ("*.a.com", "*.b.a.com", true),
            ("*.a.com", "*.b.com", false),
            ("a.com", "a.com", true),
        ] {
            let (one, two) = (one.parse::<DomainPattern>(), two.parse::<DomainPattern>());
            let (one, two) = (one.unwrap(), two.unwrap());
            assert_eq!(one.overlaps(&two), expected, "{one} {two}");
            assert_eq!(two.overlaps(&one), expected, "{two} {one}");
        }
    }
}
