//! One line of the log: when, by which schema, and the record.

use std::borrow::Cow;
use std::time::SystemTime;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Record, json};
use crate::clock;

/// The number of the schema. Within one number fields and values are added and none changes its
/// meaning or goes.
pub const SCHEMA: u32 = 1;

/// A line of Namegate's audit log: one decision, or how many are missing. Within one number of the
/// schema fields and values are added, and none changes its meaning or goes; so readers pass over
/// what they do not know.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct Line<'a> {
    /// When, in UTC as RFC 3339 writes it.
    pub time: Cow<'a, str>,
    /// The number of the schema.
    #[schemars(extend("const" = SCHEMA))]
    pub schema: u32,
    /// What.
    #[serde(flatten)]
    pub record: Cow<'a, Record>,
}

/// A record, and when what it tells happened.
#[derive(Clone, Debug)]
pub struct Entry {
    /// When.
    pub time: SystemTime,
    /// What.
    pub record: Record,
}

impl Entry {
    /// The entry as the log writes it.
    pub fn line(&self) -> Line<'_> {
        Line {
            time: clock::rfc3339(self.time).into(),
            schema: SCHEMA,
            record: Cow::Borrowed(&self.record),
        }
    }

    /// Appends the line and a line feed: ASCII alone, whatever the record holds.
    pub fn write_line(&self, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        json::write_line(out, &self.line())
    }
}
