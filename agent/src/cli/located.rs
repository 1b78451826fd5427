//! What is said about policies, brought back to the lines of the files that they were read from.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use namegate_policy::object::{self, Object};
use namegate_policy::rule::Policy;
use serde_json::Value;

use crate::source::{Directory, Site, position, yaml};

/// Something that was said about a policy, and where it stands.
pub(super) struct Located<T> {
    pub(super) said: T,
    pub(super) file: PathBuf,
    pub(super) line: usize,
    pub(super) field: String,
}

/// Asks `say` about each policy of `directory`, whether it is in force (of an object that is defined
/// twice the first is), and its document; the answers come with the paths of fields. Each file is read
/// once more, one document at a time, so that no document has to be kept.
pub(super) fn each_policy<T>(
    directory: &Directory,
    mut say: impl FnMut(&Policy, bool, &Value) -> Vec<(T, String)>,
) -> Vec<Located<T>> {
    let mut files: BTreeMap<&Path, HashMap<(usize, &str), Site<'_>>> = BTreeMap::new();
    for site in directory.sites().filter(|site| matches!(**site.object, Object::Policy(_))) {
        files.entry(site.file).or_default().insert((site.line, site.path), site);
    }
    let mut located = Vec::new();
    for (file, sites) in files {
        // A file that vanished meanwhile has nothing to say any more.
        let Ok(text) = directory.text_of(file) else { continue };
        for document in yaml::documents(&text) {
            let yaml::Document { line, text, content: Ok(content) } = document else { continue };
            let mut found: Vec<(T, String, String)> = Vec::new();
            for (path, value) in object::expand(content) {
                let Some(site) = sites.get(&(line, path.as_str())) else { continue };
                let Object::Policy(policy) = &**site.object else { continue };
                found.extend(say(policy, is_in_force(directory, site), &value).into_iter().map(
                    |(said, field)| {
                        let dot = if path.is_empty() { "" } else { "." };
                        let whole = format!("{path}{dot}{field}");
                        (said, field, whole)
                    },
                ));
            }
            if found.is_empty() {
                continue;
            }
            let paths = found.iter().map(|(_, _, whole)| whole.as_str());
            let lines: BTreeMap<String, usize> = position::lines(text, line, paths)
                .into_iter()
                .map(|(path, line)| (path.to_owned(), line))
                .collect();
            located.extend(found.into_iter().map(|(said, field, whole)| {
                let line = lines.get(&whole).copied().unwrap_or(line);
                Located { said, file: file.to_owned(), line, field }
            }));
        }
    }
    located
}

fn is_in_force(directory: &Directory, site: &Site<'_>) -> bool {
    directory.object(&site.object.reference()).is_some_and(|held| Arc::ptr_eq(held, site.object))
}
