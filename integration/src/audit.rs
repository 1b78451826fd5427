//! Reading the audit log as a user would: a file of JSON objects, one a line.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::patience::wait_for;

const LIMIT: Duration = Duration::from_secs(3);

/// An audit log that grows.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
}

/// A place in an audit log: records after it are what happened since.
#[derive(Clone, Copy, Debug)]
pub struct Mark(usize);

impl AuditLog {
    /// The log in the file `path`, which need not exist yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Where the log is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The end of the last whole record: another may be half written.
    pub fn mark(&self) -> Result<Mark> {
        Ok(Mark(self.text()?.rfind('\n').map_or(0, |end| end + 1)))
    }

    /// Every whole record after `mark`; a line that is no JSON object is an error.
    pub fn since(&self, mark: Mark) -> Result<Vec<Value>> {
        let text = self.text()?;
        let text = text.get(mark.0..).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|line| {
                let record: Value = serde_json::from_str(line)
                    .with_context(|| format!("not JSON in the audit log: {line}"))?;
                record
                    .is_object()
                    .then_some(record)
                    .with_context(|| format!("not an object in the audit log: {line}"))
            })
            .collect()
    }

    /// The first record after `mark` that has all of `fields`, given as `("a.b", value)`.
    pub fn expect(&self, mark: Mark, fields: &[(&str, &str)]) -> Result<Value> {
        let what = format!("an audit record with {fields:?}");
        wait_for(&what, LIMIT, || {
            Ok(self
                .since(mark)?
                .into_iter()
                .find(|record| fields.iter().all(|(path, value)| has(record, path, value))))
        })
        .with_context(|| format!("in {}", self.path.display()))
    }

    fn text(&self) -> Result<String> {
        match fs::read_to_string(&self.path) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => {
                Err(error).with_context(|| format!("cannot read {}", self.path.display()))
            }
        }
    }
}

/// Whether `record` has `value` at the dotted `path`; names are compared without a final dot.
pub fn has(record: &Value, path: &str, value: &str) -> bool {
    let pointer = format!("/{}", path.replace('.', "/"));
    match record.pointer(&pointer) {
        Some(Value::String(text)) => text.trim_end_matches('.') == value,
        Some(Value::Number(number)) => number.to_string() == value,
        Some(Value::Array(items)) => items
            .iter()
            .any(|item| item.as_str().is_some_and(|text| text.trim_end_matches('.') == value)),
        Some(Value::Null | Value::Bool(_) | Value::Object(_)) | None => false,
    }
}
