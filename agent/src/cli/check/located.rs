//! Findings of the review, brought back to the lines of the files that the objects were read from.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use namegate_policy::name::DnsName;
use namegate_policy::object::{self, Object};
use namegate_policy::review::{self, Finding, Review};
use namegate_policy::rule::{Policy, PolicyRef};

use crate::source::{Directory, Site, position, yaml};

/// A finding and where it stands.
pub(super) struct Located {
    pub(super) finding: Finding,
    pub(super) file: PathBuf,
    pub(super) line: usize,
    pub(super) field: String,
}

/// Reviews what `directory` holds. Each file is read once more, one document at a time, so that no
/// document has to be kept.
pub(super) fn review(
    directory: &Directory,
    pod_ranges: &[IpNet],
    domain: &DnsName,
) -> Vec<Located> {
    let objects = directory.objects().map(AsRef::as_ref);
    let mut waiting: HashMap<PolicyRef, Vec<Finding>> = HashMap::new();
    for finding in Review::new(objects, pod_ranges, domain.clone()).findings() {
        waiting.entry(finding.policy.clone()).or_default().push(finding);
    }
    let mut files: BTreeMap<&Path, HashMap<(usize, &str), Site<'_>>> = BTreeMap::new();
    for site in directory.sites().filter(|site| matches!(**site.object, Object::Policy(_))) {
        files.entry(site.file).or_default().insert((site.line, site.path), site);
    }
    let mut located = Vec::new();
    for (file, sites) in files {
        let Ok(text) = directory.text_of(file) else { continue };
        for document in yaml::documents(&text) {
            locate(directory, file, &sites, document, &mut waiting, &mut located);
        }
    }
    located
}

fn locate(
    directory: &Directory,
    file: &Path,
    sites: &HashMap<(usize, &str), Site<'_>>,
    document: yaml::Document<'_>,
    waiting: &mut HashMap<PolicyRef, Vec<Finding>>,
    located: &mut Vec<Located>,
) {
    let yaml::Document { line, text, content } = document;
    let Ok(content) = content else { return };
    let mut found: Vec<(Finding, String, String)> = Vec::new();
    for (path, value) in object::expand(content) {
        let Some(site) = sites.get(&(line, path.as_str())) else { continue };
        let Object::Policy(policy) = &**site.object else { continue };
        let mut findings = review::written(policy, &value);
        if is_in_force(directory, policy, site) {
            findings.extend(waiting.remove(&policy.reference).unwrap_or_default());
        }
        found.extend(findings.into_iter().map(|finding| {
            let field = finding.place.path_in(&value);
            let whole = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
            (finding, field, whole)
        }));
    }
    if found.is_empty() {
        return;
    }
    let lines = position::lines(text, line, found.iter().map(|(_, _, whole)| whole.as_str()));
    let line_of: Vec<usize> = found
        .iter()
        .map(|(_, _, whole)| lines.get(whole.as_str()).copied().unwrap_or(line))
        .collect();
    for ((finding, field, _), line) in found.into_iter().zip(line_of) {
        located.push(Located { finding, file: file.to_owned(), line, field });
    }
}

/// Of an object that is defined twice the first counts.
fn is_in_force(directory: &Directory, policy: &Policy, site: &Site<'_>) -> bool {
    let reference = site.object.reference();
    debug_assert_eq!(reference.name, policy.reference.name);
    directory.object(&reference).is_some_and(|held| Arc::ptr_eq(held, site.object))
}
