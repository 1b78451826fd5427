//! Text of a manifest file → documents.
//!
//! A stream is cut at its document markers before anything is parsed, so that a broken document
//! takes no other with it. Each document is parsed within fixed bounds.

use serde_json::Value;
use serde_saphyr::options::DuplicateKeyPolicy;

/// The largest file that is read.
pub const FILE_MAX: usize = 16 << 20;

/// The largest single document.
pub const DOCUMENT_MAX: usize = 4 << 20;

/// The most documents of one file that are read.
pub const DOCUMENTS_MAX: usize = 100_000;

/// One document of a file.
#[derive(Debug, PartialEq)]
pub struct Document {
    /// Line of the file that its first content is on, counted from one.
    pub line: usize,
    /// What it holds, or why it could not be read.
    pub content: Result<Value, YamlError>,
}

/// Why a document could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum YamlError {
    /// The file is no UTF-8.
    #[error("not UTF-8 text at byte {offset}")]
    Encoding {
        /// Where.
        offset: usize,
    },
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
        /// What the parser said, on one line.
        message: String,
    },
}

/// Reads all documents of a file; empty ones are left out.
pub fn documents(bytes: &[u8]) -> Vec<Document> {
    let failed = |error| vec![Document { line: 1, content: Err(error) }];
    if bytes.len() > FILE_MAX {
        return failed(YamlError::TooLarge { size: bytes.len(), limit: FILE_MAX });
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => return failed(YamlError::Encoding { offset: error.valid_up_to() }),
    };
    let mut documents = Vec::new();
    for piece in pieces(text) {
        if documents.len() >= DOCUMENTS_MAX {
            let error = YamlError::TooMany { limit: DOCUMENTS_MAX };
            documents.push(Document { line: piece.line, content: Err(error) });
            break;
        }
        match parse(&piece) {
            Ok(Value::Null) => {}
            content => documents.push(Document { line: piece.first_content(), content }),
        }
    }
    documents
}

/// Text between two document markers.
struct Piece<'a> {
    text: &'a str,
    /// Line of the file that `text` begins on, counted from one.
    line: usize,
}

impl Piece<'_> {
    fn first_content(&self) -> usize {
        let skipped = self.text.lines().take_while(|line| is_blank(line)).count();
        self.line + skipped
    }
}

fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}

/// Cuts `text` at lines that begin with a document marker: in YAML no scalar can hold one at the
/// start of a line (YAML 1.2.2 section 9.1.2).
fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let (mut start, mut start_line) = (0, 1);
    let mut at = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let next = at + line.len();
        let bare = line.trim_end_matches(['\n', '\r']);
        let marker = ["---", "..."].into_iter().find(|marker| {
            bare.strip_prefix(marker)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']))
        });
        if marker.is_some() {
            pieces.push(Piece { text: &text[start..at], line: start_line });
            (start, start_line) = (at + 3, index + 1);
        }
        at = next;
    }
    pieces.push(Piece { text: &text[start..], line: start_line });
    pieces.retain(|piece| piece.text.lines().any(|line| !is_blank(line) && !line.starts_with('%')));
    pieces
}

fn parse(piece: &Piece<'_>) -> Result<Value, YamlError> {
    if piece.text.len() > DOCUMENT_MAX {
        return Err(YamlError::TooLarge { size: piece.text.len(), limit: DOCUMENT_MAX });
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 64,
            flow_nesting_limit: 64,
            max_events: 500_000,
            max_nodes: 200_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_documents: 1,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(piece.text, options).map_err(|error| {
        let inside = error.location().map_or(1, |l| usize::try_from(l.line()).unwrap_or(1));
        let message = error.without_snippet().to_string();
        YamlError::Syntax {
            line: piece.line + inside.max(1) - 1,
            message: message.split_whitespace().collect::<Vec<_>>().join(" "),
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Vec<(usize, Result<Value, YamlError>)> {
        documents(text.as_bytes()).into_iter().map(|d| (d.line, d.content)).collect()
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
        let read = documents(&[b'a', 0xff, 0xfe]);
        assert_eq!(read[0].content, Err(YamlError::Encoding { offset: 1 }));
    }

    #[test]
    fn nothing_is_no_document() {
        assert_eq!(read(""), []);
        assert_eq!(read("# only a comment\n---\n"), []);
    }
}
