//! Reading DNS messages by offset (RFC 1035 section 4.1): every read is checked, every walk bounded.

/// Octets of the header.
pub(crate) const HEADER: usize = 12;
/// The largest message that TCP can frame.
pub(crate) const MESSAGE_MAX: usize = 65_535;
/// Class IN.
pub(crate) const CLASS_IN: u16 = 1;
/// EDNS(0) pseudo record (RFC 6891).
pub(crate) const TYPE_OPT: u16 = 41;

/// Response.
pub(crate) const QR: u16 = 0x8000;
/// Truncated.
pub(crate) const TC: u16 = 0x0200;
/// Recursion desired.
pub(crate) const RD: u16 = 0x0100;
/// Recursion available.
pub(crate) const RA: u16 = 0x0080;
/// Authentic data (RFC 4035).
pub(crate) const AD: u16 = 0x0020;
/// Checking disabled (RFC 4035).
pub(crate) const CD: u16 = 0x0010;
/// DNSSEC OK, in the flags of the OPT record (RFC 3225).
pub(crate) const DO: u16 = 0x8000;

/// The fixed part of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) id: u16,
    pub(crate) flags: u16,
    pub(crate) questions: u16,
    pub(crate) answers: u16,
    pub(crate) authorities: u16,
    pub(crate) additionals: u16,
}

impl Header {
    /// Reads the header; `None` where the message is too short for one.
    pub(crate) fn read(message: &[u8]) -> Option<Self> {
        Some(Self {
            id: u16_at(message, 0)?,
            flags: u16_at(message, 2)?,
            questions: u16_at(message, 4)?,
            answers: u16_at(message, 6)?,
            authorities: u16_at(message, 8)?,
            additionals: u16_at(message, 10)?,
        })
    }

    pub(crate) fn opcode(self) -> u16 {
        (self.flags >> 11) & 0xf
    }

    pub(crate) fn rcode(self) -> u16 {
        self.flags & 0xf
    }
}

/// A resource record by the offsets of its parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordAt {
    pub(crate) owner: usize,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    pub(crate) ttl_at: usize,
    pub(crate) ttl: u32,
    pub(crate) data: usize,
    pub(crate) end: usize,
}

impl RecordAt {
    /// Reads the record that starts at `owner`.
    pub(crate) fn read(message: &[u8], owner: usize) -> Option<Self> {
        let fixed = skip_name(message, owner)?;
        let length = usize::from(u16_at(message, fixed + 8)?);
        let data = fixed + 10;
        let end = data + length;
        if end > message.len() {
            return None;
        }
        Some(Self {
            owner,
            kind: u16_at(message, fixed)?,
            class: u16_at(message, fixed + 2)?,
            ttl_at: fixed + 4,
            ttl: u32_at(message, fixed + 4)?,
            data,
            end,
        })
    }
}

pub(crate) fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    message.get(at..)?.first_chunk().map(|octets| u16::from_be_bytes(*octets))
}

pub(crate) fn u32_at(message: &[u8], at: usize) -> Option<u32> {
    message.get(at..)?.first_chunk().map(|octets| u32::from_be_bytes(*octets))
}

/// The offset behind the name that starts at `at`, without following compression pointers.
pub(crate) fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    let start = at;
    loop {
        let length = *message.get(at)?;
        match length {
            0 => return Some(at + 1),
            1..=63 => at += 1 + usize::from(length),
            192.. => return message.get(at + 1).map(|_| at + 2),
            64..=191 => return None,
        }
        if at - start > 254 {
            return None;
        }
    }
}

/// Whether the names at offsets `left` and `right` are well-formed and equal but for ASCII case.
pub(crate) fn same_name(message: &[u8], left: usize, right: usize) -> bool {
    let mut left = Labels::new(message, left);
    let mut right = Labels::new(message, right);
    loop {
        if left.at == right.at && left.at < left.bound && right.at < right.bound {
            // The rest is the same octets; they only have to be a name.
            return left.by_ref().all(|label| label.is_some());
        }
        match (left.next(), right.next()) {
            (None, None) => return true,
            (Some(Some(a)), Some(Some(b))) if a.eq_ignore_ascii_case(b) => {}
            _ => return false,
        }
    }
}

/// Whether a well-formed name stands at `at`.
pub(crate) fn is_name(message: &[u8], at: usize) -> bool {
    Labels::new(message, at).all(|label| label.is_some())
}

/// The labels of a possibly compressed name; an item of `None` says that it is malformed.
///
/// A pointer must lead in front of all that was read of the name before it, so the walk ends.
struct Labels<'a> {
    message: &'a [u8],
    at: usize,
    bound: usize,
    octets: usize,
    done: bool,
}

impl<'a> Labels<'a> {
    fn new(message: &'a [u8], at: usize) -> Self {
        Self { message, at, bound: message.len(), octets: 0, done: false }
    }

    fn step(&mut self) -> Option<Option<&'a [u8]>> {
        let mut run = self.at;
        loop {
            if self.at >= self.bound {
                return None;
            }
            let length = *self.message.get(self.at)?;
            match length {
                0 => return Some(None),
                1..=63 => {
                    let label = self.message.get(self.at + 1..=self.at + usize::from(length))?;
                    self.at += 1 + label.len();
                    self.octets += 1 + label.len();
                    return (self.octets <= 254).then_some(Some(label));
                }
                192.. => {
                    let target = usize::from(u16_at(self.message, self.at)? & 0x3fff);
                    if target >= run || target < HEADER {
                        return None;
                    }
                    self.bound = self.bound.min(self.at);
                    self.at = target;
                    run = target;
                }
                64..=191 => return None,
            }
        }
    }
}

impl<'a> Iterator for Labels<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        match self.step() {
            Some(Some(label)) => Some(Some(label)),
            Some(None) => {
                self.done = true;
                None
            }
            None => {
                self.done = true;
                Some(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_message(body: &[u8]) -> Vec<u8> {
        let mut message = vec![0; HEADER];
        message.extend_from_slice(body);
        message
    }

    #[test]
    fn names_compare_by_labels_through_pointers() {
        // 12: a.b. | 17: A. -> 14 | 21: "a.b" as one label | 26: b. -> itself
        let message = mk_message(b"\x01a\x01b\x00\x01A\xc0\x0e\x03a.b\x00\x01b\xc0\x1a");
        let cases: [(usize, usize, bool, &str); 6] = [
            (12, 12, true, "a name equals itself"),
            (12, 17, true, "case and compression do not matter"),
            (12, 14, false, "a suffix is another name"),
            (12, 21, false, "a dot inside a label separates nothing"),
            (26, 26, false, "a loop is no name"),
            (500, 500, false, "outside the message is no name"),
        ];
        for (left, right, expected, why) in cases {
            assert_eq!(same_name(&message, left, right), expected, "{why}");
            assert_eq!(same_name(&message, right, left), expected, "{why}");
        }
    }

    #[test]
    fn pointers_only_lead_backwards() {
        let forward = mk_message(b"\xc0\x0e\x01a\x00");
        assert!(!is_name(&forward, 12));
        let into_header = mk_message(b"\xc0\x00");
        assert!(!is_name(&into_header, 12));
    }
}
