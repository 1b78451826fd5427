//! Text of a manifest file → documents.
//!
//! A stream is cut at its document markers before anything is parsed, so that a broken document
//! takes no other with it. Each document is parsed within fixed bounds.

use namegate_policy::limits::{DOCUMENT_OCTETS, DOCUMENTS_PER_FILE, FILE_OCTETS};
use serde_json::Value;
use serde_saphyr::options::DuplicateKeyPolicy;

/// The deepest nesting.
const LEVELS_MAX: usize = 64;

/// The most values of a document, those that aliases stand for among them.
const VALUES_MAX: usize = 200_000;

/// The most anchors, and the most aliases, of a document.
const ALIASES_MAX: usize = 1_000;

/// One document of a file.
#[derive(Debug, PartialEq)]
pub struct Document<'a> {
    /// Line of the file that its text begins on, counted from one.
    pub line: usize,
    /// Its text, as far as it is text.
    pub text: &'a str,
    /// What it holds, or why it could not be read.
    pub content: Result<Value, YamlError>,
}

/// Why a document could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum YamlError {
    /// The document is no UTF-8.
    #[error("not UTF-8 text: the octet {octet:#04x} in column {column}")]
    Encoding {
        /// Line of the file, counted from one.
        line: usize,
        /// Octets before it on its line, and one.
        column: usize,
        /// The first octet that is none.
        octet: u8,
    },
    /// The file is UTF-16.
    #[error("UTF-16 text")]
    Utf16,
    /// Too large to be read.
    #[error("{size} bytes, at most {limit} are read")]
    TooLarge {
        /// Bytes found.
        size: usize,
        /// Bytes read at most.
        limit: usize,
    },
    /// More documents than are read.
    #[error("more than {limit} documents in one file")]
    TooMany {
        /// Documents read at most.
        limit: usize,
    },
    /// The text is no YAML, or breaks a bound that keeps parsing cheap.
    #[error("{message}")]
    Syntax {
        /// Line of the file, counted from one.
        line: usize,
        /// Column, counted from one.
        column: usize,
        /// What the parser said, on one line.
        message: String,
    },
}

impl YamlError {
    /// Line and column that reading ended at, both counted from one.
    pub(super) fn place(&self) -> Option<(usize, usize)> {
        match self {
            Self::Encoding { line, column, .. } | Self::Syntax { line, column, .. } => {
                Some((*line, *column))
            }
            Self::Utf16 | Self::TooLarge { .. } | Self::TooMany { .. } => None,
        }
    }

    /// What to do.
    pub(super) fn fix(&self) -> Option<String> {
        match self {
            Self::Encoding { .. } | Self::Utf16 => Some("save the file as UTF-8".to_owned()),
            Self::TooLarge { .. } | Self::TooMany { .. } => Some("split it".to_owned()),
            Self::Syntax { .. } => None,
        }
    }
}

/// Reads the documents of a file one by one; empty ones are left out.
pub fn documents(bytes: &[u8]) -> impl Iterator<Item = Document<'_>> {
    let failed = |error| Some(Document { line: 1, text: "", content: Err(error) });
    let whole = if bytes.len() > FILE_OCTETS {
        failed(YamlError::TooLarge { size: bytes.len(), limit: FILE_OCTETS })
    } else if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        failed(YamlError::Utf16)
    } else {
        None
    };
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let pieces = if whole.is_some() { Vec::new() } else { pieces(bytes) };
    let documents = pieces.into_iter().enumerate().take(DOCUMENTS_PER_FILE + 1);
    whole.into_iter().chain(documents.filter_map(|(index, piece)| piece.read(index)))
}

/// Text between two document markers.
struct Piece<'a> {
    bytes: &'a [u8],
    /// Line of the file that `bytes` begins on, counted from one.
    line: usize,
}

impl<'a> Piece<'a> {
    /// The document; `None` for one that says nothing.
    fn read(&self, index: usize) -> Option<Document<'a>> {
        let (text, encoding) = match std::str::from_utf8(self.bytes) {
            Ok(text) => (text, Ok(())),
            Err(error) => {
                let (good, bad) = self.bytes.split_at(error.valid_up_to());
                let before = good.split(|octet| *octet == b'\n').next_back().unwrap_or_default();
                let error = YamlError::Encoding {
                    line: self.line + good.iter().filter(|octet| **octet == b'\n').count(),
                    column: before.len() + 1,
                    octet: bad.first().copied().unwrap_or_default(),
                };
                (std::str::from_utf8(good).unwrap_or_default(), Err(error))
            }
        };
        // Lines before the first content say nothing about where it is.
        let skipped: usize =
            text.split_inclusive('\n').take_while(|line| is_blank(line)).map(str::len).sum();
        let line = self.line + text[..skipped].matches('\n').count();
        let text = &text[skipped..];
        let content = if index >= DOCUMENTS_PER_FILE {
            Err(YamlError::TooMany { limit: DOCUMENTS_PER_FILE })
        } else {
            encoding.and_then(|()| parse(text, line))
        };
        (content != Ok(Value::Null)).then_some(Document { line, text, content })
    }
}

fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}

fn says_nothing(line: &[u8]) -> bool {
    let line = line.trim_ascii();
    line.is_empty() || line.starts_with(b"#") || line.starts_with(b"%")
}

/// Cuts the text at lines that begin with a document marker: in YAML no scalar can hold one at the
/// start of a line (YAML 1.2.2 section 9.1.2).
fn pieces(bytes: &[u8]) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let (mut start, mut start_line) = (0, 1);
    let mut at = 0;
    for (index, line) in bytes.split_inclusive(|octet| *octet == b'\n').enumerate() {
        let is_marker = [&b"---"[..], b"..."].into_iter().any(|marker| {
            line.strip_prefix(marker)
                .is_some_and(|rest| rest.first().is_none_or(|octet| b" \t\r\n".contains(octet)))
        });
        if is_marker {
            pieces.push(Piece { bytes: &bytes[start..at], line: start_line });
            (start, start_line) = (at + 3, index + 1);
        }
        at += line.len();
    }
    pieces.push(Piece { bytes: &bytes[start..], line: start_line });
    pieces.retain(|piece| !piece.bytes.split(|octet| *octet == b'\n').all(says_nothing));
    pieces
}

fn parse(text: &str, first_line: usize) -> Result<Value, YamlError> {
    if text.len() > DOCUMENT_OCTETS {
        return Err(YamlError::TooLarge { size: text.len(), limit: DOCUMENT_OCTETS });
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: LEVELS_MAX,
            flow_nesting_limit: LEVELS_MAX,
            max_events: 500_000,
            max_nodes: VALUES_MAX,
            max_aliases: ALIASES_MAX,
            max_anchors: ALIASES_MAX,
            max_documents: 1,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let counted = |number: u64| usize::try_from(number).unwrap_or(1).max(1);
        let (line, column) =
            error.location().map_or((1, 1), |at| (counted(at.line()), counted(at.column())));
        let message = error.without_snippet().to_string();
        let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
        YamlError::Syntax { line: first_line + line - 1, column, message: in_words(&message) }
    })
}

/// What the parser said, without the place, which is told in lines of the file, and in terms of the
/// text where it speaks of its own bounds.
fn in_words(message: &str) -> String {
    let message = message.split(" at line ").next().unwrap_or(message);
    let message = message.split(", set DuplicateKeyPolicy").next().unwrap_or(message);
    if message.contains("Depth {") || message.contains("recursion limit") {
        format!("more than {LEVELS_MAX} levels of nesting")
    } else if message.contains("Nodes {") || message.contains("Events {") {
        format!("more than {VALUES_MAX} values, those that aliases stand for among them")
    } else if message.contains("Aliases {") || message.contains("Anchors {") {
        format!("more than {ALIASES_MAX} anchors or aliases")
    } else {
        message.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Vec<(usize, Result<Value, YamlError>)> {
        documents(text.as_bytes()).map(|d| (d.line, d.content)).collect()
    }

    #[test]
    fn documents_know_their_lines() {
        let text = "# intro\n---\na: 1\n---\n\n# note\nb: 2\n...\n---\n---\nc: 3\n";
        assert_eq!(
            read(text),
            [(3, Ok(json!({"a": 1}))), (7, Ok(json!({"b": 2}))), (11, Ok(json!({"c": 3})))]
        );
    }

    #[test]
    fn crlf_bom_comments_and_directives_are_read() {
        let text = "\u{feff}%YAML 1.2\r\n---\r\na: x\r\n--- # second\r\nb: [1, 2]\r\n";
        assert_eq!(read(text), [(3, Ok(json!({"a": "x"}))), (5, Ok(json!({"b": [1, 2]})))]);
    }

    #[test]
    fn a_marker_inside_a_line_cuts_nothing() {
        assert_eq!(
            read("a: x --- y\nb: \"---\"\n"),
            [(1, Ok(json!({"a": "x --- y", "b": "---"})))]
        );
    }

    #[test]
    fn json_is_read() {
        assert_eq!(
            read("{\"a\": {\"b\": [true, null]}}"),
            [(1, Ok(json!({"a": {"b": [true, null]}})))]
        );
    }

    #[test]
    fn a_broken_document_takes_no_other_with_it() {
        let read = read("a: 1\n---\nb: [1,\n---\nc: 3\n");
        assert_eq!(read.len(), 3);
        assert_eq!(read[0].1, Ok(json!({"a": 1})));
        let Err(YamlError::Syntax { line, .. }) = &read[1].1 else {
            panic!("{:?} is no syntax error", read[1]);
        };
        assert!((3..=4).contains(line), "line {line}");
        assert_eq!(read[2], (5, Ok(json!({"c": 3}))));
    }

    #[test]
    fn what_would_cost_too_much_is_refused() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let below = format!("*a{}, ", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
        }
        let cases = [
            ("anchors upon anchors", bomb),
            ("deep flow nesting", "[".repeat(100_000)),
            ("deep block nesting", (0..2_000).map(|d| format!("{}a:\n", " ".repeat(d))).collect()),
            ("10 MB in one document", format!("a: {}\n", "x".repeat(10 << 20))),
            ("duplicate keys", "a: 1\na: 2\n".to_owned()),
            ("tabs as indentation", "a:\n\tb: 1\n".to_owned()),
        ];
        for (what, text) in cases {
            let read = read(&text);
            assert_eq!(read.len(), 1, "{what}");
            let error = read[0].1.as_ref().expect_err(what).to_string();
            assert!(!error.contains('\n') && error.len() < 500, "{what}: {error}");
        }
    }

    #[test]
    fn a_file_that_is_no_text_is_refused() {
        let read: Vec<_> =
            documents(b"a: 1\n---\nb: x\xff\n---\nc: 3\n").map(|d| d.content).collect();
        let error = YamlError::Encoding { line: 3, column: 5, octet: 0xff };
        assert_eq!(read, [Ok(json!({"a": 1})), Err(error), Ok(json!({"c": 3}))]);
        let read: Vec<_> = documents(&[0xff, 0xfe, b'a', 0]).map(|d| d.content).collect();
        assert_eq!(read, [Err(YamlError::Utf16)]);
    }

    #[test]
    fn nothing_is_no_document() {
        assert_eq!(read(""), []);
        assert_eq!(read("# only a comment\n---\n"), []);
    }
}
