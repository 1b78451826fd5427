//! How the story is told: plain text, coloured on a terminal.

use std::env;
use std::io::{IsTerminal, stdout};

use anyhow::Result;
use serde_json::{Map, Value};

/// The fields of an audit record that the story shows.
const SHOWN: [&str; 10] = [
    "kind",
    "verdict",
    "reason",
    "direction",
    "query",
    "rcode",
    "addresses",
    "not_opened",
    "destination",
    "policy",
];

/// The terminal, or the file, that the story is written to.
#[derive(Debug)]
pub(super) struct Stage {
    is_coloured: bool,
}

impl Stage {
    pub(super) fn new() -> Self {
        let no_colour = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { is_coloured: stdout().is_terminal() && !no_colour }
    }

    pub(super) fn line(&self, text: &str) {
        println!("{text}");
    }

    pub(super) fn progress(&self, text: &str) {
        println!("{} {text}", self.dim("··"));
    }

    pub(super) fn step(&self, title: &str, why: &str) {
        println!("\n{}\n{why}", self.bold(title));
    }

    /// A command that somebody in the town runs.
    pub(super) fn asks(&self, who: &str, command: &str) {
        println!("  {} {command}", self.bold(&format!("{who} $")));
    }

    pub(super) fn happens(&self, text: &str) {
        println!("    {text}");
    }

    /// The audit line, without what the story does not need.
    pub(super) fn audit(&self, record: &Value) {
        let mut shown = Map::new();
        for field in SHOWN {
            if let Some(value) = record.get(field).filter(|value| !value.is_null()) {
                shown.insert(field.to_owned(), value.clone());
            }
        }
        println!("    {}", self.dim(&format!("audit: {}", Value::Object(shown))));
    }

    pub(super) fn result(&self, result: &Result<String>) {
        match result {
            Ok(_) => println!("  {}", self.green("✔ as it should be")),
            Err(error) => println!("  {} {error:#}", self.red("✘")),
        }
    }

    pub(super) fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(super) fn green(&self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(super) fn red(&self, text: &str) -> String {
        self.paint("1;31", text)
    }

    fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.is_coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
