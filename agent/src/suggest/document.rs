//! One policy as text: YAML, with the evidence beside what it led to.

use std::fmt::Write as _;

use serde::Serialize;

use super::observed::WorkloadRef;
use crate::source::plain;

/// The longest name of an object.
const NAME_MAX: usize = 253;

/// A manifest, or a comment in the place of one.
#[derive(Clone, Debug)]
pub struct Document {
    notes: String,
    head: String,
    spec: String,
    is_manifest: bool,
}

/// An entry of a list, with what it is written for; nothing but that where `rule` is `None`.
#[derive(Debug)]
pub(super) struct Entry<T> {
    pub(super) comments: Vec<String>,
    pub(super) rule: Option<T>,
}

impl Document {
    /// A manifest for a workload; `suffix` tells apart those for one.
    pub(super) fn new(api: &str, kind: &str, of: &WorkloadRef, suffix: &str) -> Self {
        let room = NAME_MAX - suffix.len() - 1;
        let name = of.name.get(..room).unwrap_or(&of.name).trim_end_matches(['-', '.']);
        let head = format!(
            "apiVersion: {api}\nkind: {kind}\nmetadata:\n  name: {}\n  namespace: {}\n",
            quoted(&format!("{name}-{suffix}")),
            quoted(&of.namespace),
        );
        Self { notes: String::new(), head, spec: String::new(), is_manifest: true }
    }

    /// No manifest, and why.
    pub(super) fn of_comment(comment: String) -> Self {
        let mut document = Self {
            notes: String::new(),
            head: String::new(),
            spec: String::new(),
            is_manifest: false,
        };
        document.note(comment);
        document
    }

    /// Whether there is an object in it.
    pub fn is_manifest(&self) -> bool {
        self.is_manifest
    }

    /// Adds a comment above everything.
    pub(super) fn note(&mut self, text: String) {
        comment(&mut self.notes, "", &text);
    }

    /// Adds comments above everything.
    pub(super) fn note_all(&mut self, texts: impl IntoIterator<Item = String>) {
        texts.into_iter().for_each(|text| self.note(text));
    }

    /// Adds a field of the spec.
    pub(super) fn field(&mut self, name: &str, value: &impl Serialize) {
        let text = yaml(value);
        match text.lines().count() {
            1 if text.starts_with(['{', '[']) => {
                let _ = writeln!(self.spec, "  {name}: {}", text.trim_end());
            }
            _ => {
                let _ = writeln!(self.spec, "  {name}:");
                for line in text.lines() {
                    let _ = writeln!(self.spec, "    {line}");
                }
            }
        }
    }

    /// Adds a list to the spec, each entry below its comments.
    pub(super) fn list<T: Serialize>(&mut self, name: &str, entries: &[Entry<T>]) {
        let is_empty = entries.iter().all(|entry| entry.rule.is_none());
        let _ = writeln!(self.spec, "  {name}:{}", if is_empty { " []" } else { "" });
        for entry in entries {
            for text in &entry.comments {
                comment(&mut self.spec, "  ", text);
            }
            let Some(rule) = &entry.rule else { continue };
            for (index, line) in yaml(rule).lines().enumerate() {
                let mark = if index == 0 { "- " } else { "  " };
                let _ = writeln!(self.spec, "  {mark}{line}");
            }
        }
    }

    /// Adds comments below everything, under a heading; nothing where there are none.
    pub(super) fn remarks(&mut self, heading: &str, texts: impl Iterator<Item = String>) {
        let mut texts = texts.peekable();
        if texts.peek().is_some() {
            comment(&mut self.spec, "  ", heading);
            for text in texts {
                comment(&mut self.spec, "  ", &format!("  {text}"));
            }
        }
    }

    /// The text, which ends in a line feed.
    pub fn text(&self) -> String {
        let Self { notes, head, spec, is_manifest } = self;
        let opening = if *is_manifest { "spec:\n" } else { "" };
        format!("{notes}{head}{opening}{spec}")
    }
}

fn comment(out: &mut String, indent: &str, text: &str) {
    let _ = writeln!(out, "{indent}# {}", plain(text));
}

fn quoted(text: &str) -> String {
    yaml(&text).trim_end().to_owned()
}

/// A value as YAML. The values here are text, numbers, lists and maps with text as keys, which all can
/// be written.
fn yaml(value: &impl Serialize) -> String {
    serde_saphyr::to_string(value).unwrap_or_default()
}
