//! JSON that is safe to look at: one line, ASCII only.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// Appends `record` and a line feed. Everything outside printable ASCII is escaped, so that no
/// terminal, line reader or viewer of right-to-left text can be fooled.
pub(super) fn write_line(
    out: &mut Vec<u8>,
    record: &impl Serialize,
) -> Result<(), serde_json::Error> {
    let start = out.len();
    let outcome = record.serialize(&mut Serializer::with_formatter(&mut *out, Ascii));
    match outcome {
        Ok(()) => out.push(b'\n'),
        Err(_) => out.truncate(start),
    }
    outcome
}

struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        // Nearly all that is written; looked at by octets, since that is quick.
        if fragment.bytes().all(|octet| matches!(octet, b' '..=b'~')) {
            return writer.write_all(fragment.as_bytes());
        }
        let mut plain = 0;
        for (at, character) in fragment.char_indices() {
            if matches!(character, ' '..='~') {
                continue;
            }
            writer.write_all(&fragment.as_bytes()[plain..at])?;
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            plain = at + character.len_utf8();
        }
        writer.write_all(&fragment.as_bytes()[plain..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_on_one_line_and_comes_back_whole() {
        let cases = [
            "plain",
            "quote\" brace} slash\\ tick`",
            "line\nfeed\r\n",
            "\u{1b}[2Jescape\u{7}",
            "\u{7f}delete\u{85}next\u{2028}line\u{2029}",
            "\u{202e}gnp.exe",
            "emoji \u{1f600} and \u{fffd}",
            "\0nul",
        ];
        for text in cases {
            let mut line = Vec::new();
            write_line(&mut line, &text).unwrap();
            let (last, body) = line.split_last().unwrap();
            assert_eq!(*last, b'\n');
            assert!(body.iter().all(|b| matches!(b, b' '..=b'~')), "{text:?}: {line:?}");
            let back: String = serde_json::from_slice(body).unwrap();
            assert_eq!(back, text);
        }
    }
}
