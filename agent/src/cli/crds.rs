//! `namegate crds`: the definitions of Namegate's kinds, for `kubectl apply`.

use std::process::ExitCode;

use serde_json::Value;

use crate::kubernetes::definitions;

/// Prints the definitions.
pub(super) fn run() -> ExitCode {
    match print(&definitions()) {
        Ok(text) => super::print(text.as_bytes()),
        Err(error) => {
            eprintln!("namegate: the definitions cannot be printed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The definitions as YAML documents.
pub(crate) fn print(definitions: &[Value]) -> Result<String, serde_saphyr::ser::Error> {
    let mut text =
        String::from("# Made by `namegate crds` from the types that read these kinds.\n");
    for definition in definitions {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(definition)?);
    }
    Ok(text)
}
