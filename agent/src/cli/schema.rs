//! `namegate schema`: the JSON Schemas of what the agent writes.

use std::process::ExitCode;

use clap::ValueEnum;

use crate::audit;

/// What has a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Subject {
    /// A line of the audit log.
    Audit,
}

/// Prints the schema.
pub(super) fn run(subject: Subject) -> ExitCode {
    let schema = match subject {
        Subject::Audit => audit::schema(),
    };
    match serde_json::to_string_pretty(&schema) {
        Ok(text) => super::print(format!("{text}\n").as_bytes()),
        Err(error) => {
            eprintln!("namegate: the schema cannot be printed: {error}");
            ExitCode::FAILURE
        }
    }
}
