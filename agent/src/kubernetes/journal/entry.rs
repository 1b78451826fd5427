//! The lines of a journal: how they are written, and how they are read.

use std::fmt;

use serde::Deserialize;
use serde_json::{Value, json};

use super::super::kinds::Watched;

/// Another number whenever lines mean something else, and when `trim` keeps more of an object than it
/// did: what it cut off is missing in journals that are there.
const VERSION: u32 = 2;

/// Whose objects a journal holds, who wrote it, and what tells it from all others: the first line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct About(String);

impl About {
    pub(super) fn new(server: &str, node: &str, id: &str) -> Self {
        let build = env!("CARGO_PKG_VERSION");
        let about = json!({
            "journal": VERSION, "build": build, "server": server, "node": node, "id": id,
        });
        Self(about.to_string())
    }

    pub(super) fn text(&self) -> &str {
        &self.0
    }
}

/// A line as it is written; [`Line`] is how it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Entry(Box<str>);

impl Entry {
    /// An object came or is another, cut down to what is read.
    pub(in super::super) fn put(watched: &Watched, object: &Value) -> Self {
        Self(format!(r#"{{"put":["{}",{object}]}}"#, watched.resource()).into())
    }

    /// An object is gone.
    pub(in super::super) fn gone(watched: &Watched, namespace: &str, name: &str) -> Self {
        Self(json!({"gone": [watched.resource(), namespace, name]}).to_string().into())
    }

    /// A list of a kind begins: what was not settled of it never was.
    pub(in super::super) fn list(watched: &Watched) -> Self {
        Self(json!({"list": watched.resource()}).to_string().into())
    }

    /// What was said of a kind counts.
    pub(in super::super) fn settled(watched: &Watched) -> Self {
        Self(json!({"settled": watched.resource()}).to_string().into())
    }

    /// Every kind was read whole: what is settled says all that there was.
    pub(in super::super) fn whole() -> Self {
        Self(r#""whole""#.into())
    }

    pub(super) fn text(&self) -> &str {
        &self.0
    }
}

/// A line as it is read; resources come with their group.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    Put(String, Value),
    Gone(String, String, String),
    List(String),
    Settled(String),
    Whole,
}

/// FNV-1a of 64 bits, over lines: a change at one place always makes another number of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Checksum(u64);

impl Checksum {
    pub(super) fn take(&mut self, line: &[u8]) {
        for byte in line.iter().chain(b"\n") {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

impl Default for Checksum {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}
