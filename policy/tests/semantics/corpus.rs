//! Policies that other projects publish: each is accepted, or refused with the field that is why.

use std::fs;
use std::path::{Path, PathBuf};

use namegate_policy::object;
use serde_json::Value;

/// The directory of manifests, which is not part of the source.
const DIRECTORY: &str = "NAMEGATE_CORPUS";

#[test]
fn published_policies_are_accepted_or_refused_with_a_field() {
    let Some(directory) = directory() else {
        eprintln!("SKIPPED: {DIRECTORY} names no directory of manifests");
        return;
    };
    let (mut accepted, mut refused) = (0, 0);
    for file in manifests(&directory) {
        let text = fs::read_to_string(&file).unwrap();
        let file = file.display();
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
        for document in documents.into_iter().filter(|document| !document.is_null()) {
            match object::parse(document) {
                Ok(_) => accepted += 1,
                Err(error) => {
                    refused += 1;
                    eprintln!("{file}: {error}");
                    let is_explained = error.is_unsupported_kind() || error.field().is_some();
                    assert!(is_explained, "{file}: {error}");
                }
            }
        }
    }
    eprintln!("{accepted} documents accepted, {refused} refused");
}

/// The directory of published policies, where one is given.
pub(crate) fn directory() -> Option<PathBuf> {
    std::env::var_os(DIRECTORY).map(PathBuf::from)
}

/// The YAML files at or below a directory.
pub(crate) fn manifests(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(manifests(&path));
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
    found.sort();
    found
}
