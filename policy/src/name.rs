//! Domain names as label vectors, parsed once.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

/// A domain name in wire form (RFC 1035 section 3.1): length-prefixed labels ending in the root
/// label, ASCII letters folded to lower case, at most 255 octets, any octet inside a label.
///
/// Equality and order compare labels, never text, so a dot inside a label is no separator.
#[derive(Clone)]
pub struct DnsName(Octets);

/// Octets of a short name in place: most names are, and reading or keeping one takes no allocation.
#[derive(Clone)]
enum Octets {
    Short { length: u8, octets: [u8; SHORT_MAX] },
    Long(Box<[u8]>),
}

/// The longest name that is kept in place.
const SHORT_MAX: usize = 30;

/// Why octets or text are no domain name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// A label ends after the input does, or the root label is missing.
    #[error("the name is cut short")]
    Truncated,
    /// A compression pointer or a reserved label type (RFC 1035 section 4.1.4, RFC 6891).
    #[error("the name holds a compression pointer or an unknown label type")]
    LabelType,
    /// More than 255 octets.
    #[error("the name is longer than 255 octets")]
    TooLong,
    /// A label of more than 63 octets.
    #[error("a label is longer than 63 octets")]
    LabelTooLong,
    /// Two dots in a row, or a leading dot.
    #[error("a label is empty")]
    EmptyLabel,
    /// A backslash escape that RFC 1035 section 5.1 does not define.
    #[error("an escape is malformed")]
    Escape,
}

impl DnsName {
    /// Reads an uncompressed name at the start of `wire` and says how many octets it took.
    pub fn from_wire(wire: &[u8]) -> Result<(Self, usize), NameError> {
        let mut folded = [0; 255];
        let mut at = 0;
        loop {
            let length = usize::from(*wire.get(at).ok_or(NameError::Truncated)?);
            if length > 63 {
                return Err(NameError::LabelType);
            }
            let label = wire.get(at..=at + length).ok_or(NameError::Truncated)?;
            let place = folded.get_mut(at..=at + length).ok_or(NameError::TooLong)?;
            place.copy_from_slice(label);
            place.make_ascii_lowercase();
            at += label.len();
            if length == 0 {
                return Ok((Self(Octets::of(&folded[..at])), at));
            }
        }
    }

    /// Reads presentation form (RFC 1035 section 5.1, `\.` and `\DDD` escapes); the final dot is
    /// optional, `.` alone is the root.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text == "." {
            return Ok(Self::root());
        }
        let mut wire = Vec::with_capacity(text.len() + 2);
        let mut label = Vec::with_capacity(63);
        let mut octets = text.bytes();
        let mut is_after_dot = true;
        while let Some(octet) = octets.next() {
            is_after_dot = octet == b'.';
            match octet {
                b'.' => push_label(&mut wire, &mut label)?,
                b'\\' => label.push(unescape(&mut octets)?),
                other => label.push(other),
            }
        }
        if !is_after_dot || wire.is_empty() {
            push_label(&mut wire, &mut label)?;
        }
        wire.push(0);
        Self::from_wire(&wire).map(|(name, _)| name)
    }

    /// The root: no label at all.
    pub fn root() -> Self {
        Self(Octets::of(&[0]))
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.as_wire().len() == 1
    }

    /// Where each label starts in the wire form, from left to right, without the root label.
    pub(crate) fn label_starts(&self) -> LabelStarts {
        LabelStarts::of(self.as_wire())
    }

    /// The labels from right to left, the top-level label first, without the root label.
    pub fn labels_from_right(&self) -> impl Iterator<Item = &[u8]> {
        let (wire, starts) = (self.as_wire(), self.label_starts());
        (0..starts.len()).rev().map(move |index| {
            let at = starts.at(index);
            let length = usize::from(wire[at]);
            &wire[at + 1..=at + length]
        })
    }

    /// Whether the name lies below `suffix`, at least one label more.
    pub fn is_below(&self, suffix: &Self) -> bool {
        self.as_wire().len() > suffix.as_wire().len() && self.is_at_or_below(suffix)
    }

    /// Whether the name is `suffix` or lies below it.
    pub fn is_at_or_below(&self, suffix: &Self) -> bool {
        let (wire, suffix) = (self.as_wire(), suffix.as_wire());
        let Some(cut) = wire.len().checked_sub(suffix.len()) else {
            return false;
        };
        wire[cut..] == *suffix && (cut == wire.len() - 1 || self.label_starts().contains(cut))
    }

    /// The name made of the labels of this one followed by those of `suffix`.
    pub fn append(&self, suffix: &Self) -> Result<Self, NameError> {
        let own = self.as_wire();
        let wire = [&own[..own.len() - 1], suffix.as_wire()].concat();
        Self::from_wire(&wire).map(|(name, _)| name)
    }

    /// The name in lower-case wire form, root label included.
    pub fn as_wire(&self) -> &[u8] {
        match &self.0 {
            // No length is beyond the room.
            Octets::Short { length, octets } => {
                octets.get(..usize::from(*length)).unwrap_or(octets)
            }
            Octets::Long(octets) => octets,
        }
    }

    /// The labels from left to right, without the root label.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.as_wire();
        std::iter::from_fn(move || {
            let (&length, tail) = rest.split_first()?;
            let (label, after) = tail.split_at_checked(usize::from(length))?;
            rest = after;
            (!label.is_empty()).then_some(label)
        })
    }
}

impl Octets {
    fn of(wire: &[u8]) -> Self {
        let mut octets = [0; SHORT_MAX];
        let room = octets.get_mut(..wire.len());
        match (room, u8::try_from(wire.len())) {
            (Some(room), Ok(length)) => {
                room.copy_from_slice(wire);
                Self::Short { length, octets }
            }
            _ => Self::Long(wire.into()),
        }
    }
}

impl PartialEq for DnsName {
    fn eq(&self, other: &Self) -> bool {
        self.as_wire() == other.as_wire()
    }
}

impl Eq for DnsName {}

impl PartialOrd for DnsName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for DnsName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_wire().cmp(other.as_wire())
    }
}

impl Hash for DnsName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_wire().hash(state);
    }
}

/// The offsets of a name's labels; a name of 255 octets has at most 127 labels.
#[derive(Clone, Copy)]
pub(crate) struct LabelStarts {
    offsets: [u8; 127],
    count: u8,
}

impl Default for LabelStarts {
    fn default() -> Self {
        Self { offsets: [0; 127], count: 0 }
    }
}

impl LabelStarts {
    /// Those of a name in wire form.
    pub(crate) fn of(wire: &[u8]) -> Self {
        let mut starts = Self::default();
        let mut at = 0;
        while let Some(&length) = wire.get(at)
            && length > 0
        {
            starts.push(at);
            at += usize::from(length) + 1;
        }
        starts
    }

    fn push(&mut self, offset: usize) {
        if let (Some(slot), Ok(offset)) =
            (self.offsets.get_mut(usize::from(self.count)), u8::try_from(offset))
        {
            *slot = offset;
            self.count += 1;
        }
    }

    /// The number of labels.
    pub(crate) fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// Where label `index` from the left starts.
    pub(crate) fn at(&self, index: usize) -> usize {
        usize::from(self.offsets[index])
    }

    fn contains(&self, offset: usize) -> bool {
        self.offsets[..self.len()].iter().any(|&start| usize::from(start) == offset)
    }
}

fn push_label(wire: &mut Vec<u8>, label: &mut Vec<u8>) -> Result<(), NameError> {
    if label.is_empty() {
        return Err(NameError::EmptyLabel);
    }
    if label.len() > 63 {
        return Err(NameError::LabelTooLong);
    }
    // At most 63, checked above.
    wire.push(label.len() as u8);
    wire.append(label);
    Ok(())
}

fn unescape(octets: &mut std::str::Bytes<'_>) -> Result<u8, NameError> {
    let first = octets.next().ok_or(NameError::Escape)?;
    if !first.is_ascii_digit() {
        return Ok(first);
    }
    let mut value = u16::from(first - b'0');
    for _ in 0..2 {
        let digit = octets.next().filter(u8::is_ascii_digit);
        value = value * 10 + u16::from(digit.ok_or(NameError::Escape)? - b'0');
    }
    u8::try_from(value).map_err(|_| NameError::Escape)
}

impl fmt::Display for DnsName {
    /// Presentation form without the final dot (the root is `.`), every octet outside letters,
    /// digits, `-` and `_` escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for label in self.labels() {
            if !first {
                f.write_str(".")?;
            }
            first = false;
            for &octet in label {
                match octet {
                    b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => write!(f, "{}", char::from(octet))?,
                    other => write!(f, "\\{other:03}")?,
                }
            }
        }
        if first { f.write_str(".") } else { Ok(()) }
    }
}

impl fmt::Debug for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DnsName({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DnsName {
        DnsName::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn presentation_form_round_trips_through_display() {
        for (text, shown, why) in [
            ("api.Stripe.COM", "api.stripe.com", "EP-3: case is folded"),
            ("api.stripe.com.", "api.stripe.com", "EP-3: the final dot is optional"),
            ("_dmarc.example.com", "_dmarc.example.com", "EP-3: an underscore is allowed"),
            ("a\\.b.com", "a\\046b.com", "a dot inside a label is no separator"),
            ("\\000\\255.com", "\\000\\255.com", "EP-3: any octet the wire carries"),
            ("xn--mnchen-3ya.de", "xn--mnchen-3ya.de", "EP-3: punycode as written"),
            (".", ".", "the root"),
        ] {
            assert_eq!(name(text).to_string(), shown, "{why}");
            assert_eq!(name(shown), name(text), "{why}");
        }
    }

    #[test]
    fn malformed_text_is_refused_with_its_reason() {
        let long_label = "a".repeat(64);
        let long_name = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(62)].join(".");
        for (text, error) in [
            ("", NameError::EmptyLabel),
            ("..", NameError::EmptyLabel),
            (".com", NameError::EmptyLabel),
            ("a..com", NameError::EmptyLabel),
            ("a.com..", NameError::EmptyLabel),
            ("a\\", NameError::Escape),
            ("a\\25", NameError::Escape),
            ("a\\256", NameError::Escape),
            (long_label.as_str(), NameError::LabelTooLong),
            (long_name.as_str(), NameError::TooLong),
        ] {
            assert_eq!(DnsName::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn wire_form_is_read_up_to_the_root_label() {
        let (read, taken) = DnsName::from_wire(b"\x03WWW\x02De\x00tail").unwrap();
        assert_eq!((read, taken), (name("www.de"), 8));
        assert_eq!(DnsName::from_wire(b"\x03WW"), Err(NameError::Truncated));
        assert_eq!(DnsName::from_wire(b"\xc0\x0c"), Err(NameError::LabelType));
    }

    #[test]
    fn suffixes_are_compared_by_label() {
        let domain = name("example.com");
        for (text, below, at_or_below) in [
            ("example.com", false, true),
            ("www.example.com", true, true),
            ("badexample.com", false, false),
            ("www\\.example.com", false, false),
            ("com", false, false),
        ] {
            assert_eq!(name(text).is_below(&domain), below, "{text}");
            assert_eq!(name(text).is_at_or_below(&domain), at_or_below, "{text}");
        }
        assert!(domain.is_below(&DnsName::root()));
        assert!(DnsName::root().is_at_or_below(&DnsName::root()));
        // The octet 7 of a label looks like the length octet of `example`.
        assert!(!name("a\\007example.com").is_at_or_below(&domain));
    }

    #[test]
    fn names_kept_in_place_and_others_are_compared_alike() {
        let names: Vec<DnsName> = (1..=40).map(|length| name(&"n".repeat(length))).collect();
        for one in &names {
            assert_eq!(DnsName::from_wire(one.as_wire()), Ok((one.clone(), one.as_wire().len())));
            for other in &names {
                assert_eq!(one.cmp(other), one.as_wire().cmp(other.as_wire()), "{one} {other}");
                assert_eq!(one == other, one.as_wire() == other.as_wire(), "{one} {other}");
            }
        }
        assert!(names.iter().any(|name| matches!(name.0, Octets::Long(_))));
        assert_eq!(size_of::<DnsName>(), SHORT_MAX + 2);
    }

    #[test]
    fn labels_are_walked_from_both_ends() {
        let walked = name("a.bc.def");
        assert_eq!(walked.labels().collect::<Vec<_>>(), [&b"a"[..], b"bc", b"def"]);
        assert_eq!(walked.labels_from_right().collect::<Vec<_>>(), [&b"def"[..], b"bc", b"a"]);
    }
}
