//! A directory of manifests → the objects in force.
//!
//! Each look reads the files whose content changed. A file that turns bad keeps what it last said:
//! a broken document takes nothing back, and the rest of its file and every other file count.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use namegate_policy::object::{self, Object, ObjectError, ObjectRef};

use super::yaml::{self, Document, FILE_MAX, YamlError};

/// How deep subdirectories are followed.
const DEPTH_MAX: usize = 16;

/// The most files that are read.
const FILES_MAX: usize = 100_000;

/// What differs between two looks; applied as one.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Objects that appeared or changed.
    pub upserts: Vec<Arc<Object>>,
    /// Objects that vanished.
    pub removals: Vec<ObjectRef>,
    /// Problems that were not there at the last look.
    pub problems: Vec<Problem>,
}

impl Changes {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removals.is_empty() && self.problems.is_empty()
    }
}

/// Something that is wrong with a file, a document or an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// The line of the document or of what is wrong, where known.
    pub line: Option<usize>,
    /// The object, as far as it can be told.
    pub object: Option<String>,
    /// The field.
    pub field: Option<String>,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub fix: Option<String>,
    /// Whether an earlier version of the object stays in force.
    pub keeps_last_good: bool,
    /// Whether the object is of a kind that is none of ours and is passed over.
    pub is_foreign: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(object) = &self.object {
            write!(f, ": {object}")?;
        }
        if let Some(field) = &self.field {
            write!(f, ": {field}")?;
        }
        write!(f, ": {}", self.reason)?;
        if let Some(fix) = &self.fix {
            write!(f, "; {fix}")?;
        }
        if self.keeps_last_good {
            f.write_str(" (its last good version stays in force)")?;
        }
        Ok(())
    }
}

/// The manifests of a directory, or single files.
#[derive(Debug)]
pub struct Directory {
    roots: Vec<PathBuf>,
    files: BTreeMap<PathBuf, File>,
    in_force: BTreeMap<ObjectRef, Arc<Object>>,
    problems: BTreeSet<Problem>,
}

#[derive(Debug, Default)]
struct File {
    signature: Option<Signature>,
    content: Vec<u8>,
    objects: BTreeMap<ObjectRef, (usize, Arc<Object>)>,
    problems: Vec<Problem>,
}

/// What `stat` says; a file whose signature is the same was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Signature {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Directory {
    /// The manifests under `roots`; nothing is read before the first look.
    pub fn new(roots: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            roots: roots.into_iter().collect(),
            files: BTreeMap::new(),
            in_force: BTreeMap::new(),
            problems: BTreeSet::new(),
        }
    }

    /// Reads what changed since the last look.
    pub fn look(&mut self) -> Changes {
        let mut problems = Vec::new();
        let found = self.list(&mut problems);
        self.files.retain(|path, _| found.contains(path));
        for path in found {
            self.files.entry(path.clone()).or_default().look(&path);
        }
        let mut objects: BTreeMap<ObjectRef, Arc<Object>> = BTreeMap::new();
        let mut holders: BTreeMap<&ObjectRef, &Path> = BTreeMap::new();
        for (path, file) in &self.files {
            problems.extend(file.problems.iter().cloned());
            for (reference, (line, object)) in &file.objects {
                if let Some(holder) = holders.get(reference) {
                    problems.push(Problem {
                        line: Some(*line),
                        object: Some(reference.to_string()),
                        fix: Some("remove one of the two".to_owned()),
                        ..mk_problem(path, format!("already defined in {}", holder.display()))
                    });
                } else {
                    holders.insert(reference, path);
                    objects.insert(reference.clone(), Arc::clone(object));
                }
            }
        }
        let upserts = objects
            .iter()
            .filter(|(reference, object)| {
                self.in_force.get(*reference).is_none_or(|held| held != *object)
            })
            .map(|(_, object)| Arc::clone(object))
            .collect();
        let removals =
            self.in_force.keys().filter(|held| !objects.contains_key(*held)).cloned().collect();
        let told: BTreeSet<Problem> = problems.iter().cloned().collect();
        problems.retain(|problem| !self.problems.contains(problem));
        self.problems = told;
        self.in_force = objects;
        Changes { upserts, removals, problems }
    }

    /// The objects in force.
    pub fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.in_force.values()
    }

    /// How many objects are in force.
    pub fn object_count(&self) -> usize {
        self.in_force.len()
    }

    /// How many files were read.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// All problems there are.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter()
    }

    /// The directories that manifests can appear in.
    pub fn directories(&self) -> BTreeSet<PathBuf> {
        let mut directories = BTreeSet::new();
        for root in &self.roots {
            visit(root, 0, &mut |path, is_directory| {
                if is_directory {
                    directories.insert(path.to_owned());
                }
                Ok(())
            })
            .ok();
        }
        directories
    }

    fn list(&self, problems: &mut Vec<Problem>) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        for root in &self.roots {
            let outcome = visit(root, 0, &mut |path, is_directory| {
                if !is_directory && (path == root || is_manifest(path)) {
                    if found.len() >= FILES_MAX {
                        return Err(io::Error::other(format!("more than {FILES_MAX} files")));
                    }
                    found.insert(path.to_owned());
                }
                Ok(())
            });
            if let Err(error) = outcome {
                problems.push(mk_problem(root, format!("cannot be listed: {error}")));
                // What cannot be seen has not vanished.
                found.extend(self.files.keys().filter(|path| path.starts_with(root)).cloned());
            }
        }
        found
    }
}

impl File {
    fn look(&mut self, path: &Path) {
        let read = fs::metadata(path).and_then(|metadata| {
            let signature = Signature {
                inode: metadata.ino(),
                size: metadata.size(),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            };
            if self.signature == Some(signature) {
                return Ok(None);
            }
            if signature.size > FILE_MAX as u64 {
                let error = YamlError::TooLarge {
                    size: usize::try_from(signature.size).unwrap_or(usize::MAX),
                    limit: FILE_MAX,
                };
                return Err(io::Error::other(error));
            }
            Ok(Some((signature, fs::read(path)?)))
        });
        match read {
            Ok(None) => {}
            Ok(Some((signature, content))) => {
                let is_first = self.signature.is_none();
                self.signature = Some(signature);
                if is_first || content != self.content {
                    self.parse(path, yaml::documents(&content));
                    self.content = content;
                }
            }
            Err(error) => {
                self.signature = None;
                self.problems = vec![Problem {
                    keeps_last_good: !self.objects.is_empty(),
                    ..mk_problem(path, format!("cannot be read: {error}"))
                }];
            }
        }
    }

    fn parse(&mut self, path: &Path, documents: Vec<Document>) {
        let mut objects = BTreeMap::new();
        let mut problems = Vec::new();
        let mut has_unknown = false;
        for Document { line, content } in documents {
            let values = match content {
                Ok(value) => object::expand(value),
                Err(error) => {
                    has_unknown = true;
                    problems.push(yaml_problem(path, line, &error));
                    continue;
                }
            };
            for value in values {
                match object::parse(value) {
                    Ok(object) => {
                        let reference = object.reference();
                        match objects.entry(reference) {
                            Entry::Vacant(place) => {
                                place.insert((line, Arc::new(object)));
                            }
                            Entry::Occupied(place) => problems.push(Problem {
                                line: Some(line),
                                object: Some(place.key().to_string()),
                                fix: Some("remove one of the two".to_owned()),
                                ..mk_problem(path, "defined twice in this file".to_owned())
                            }),
                        }
                    }
                    Err(error) => {
                        let kept = self.kept(&error);
                        let problem = object_problem(path, line, &error, kept.is_some());
                        has_unknown |= error.name.is_none() && !problem.is_foreign;
                        problems.push(problem);
                        objects.extend(kept);
                    }
                }
            }
        }
        if has_unknown {
            // A document that cannot be told apart may be any of those that are missing.
            let kept_any = self.objects.keys().any(|held| !objects.contains_key(held));
            for (reference, held) in std::mem::take(&mut self.objects) {
                objects.entry(reference).or_insert(held);
            }
            for problem in problems.iter_mut().filter(|problem| problem.object.is_none()) {
                problem.keeps_last_good = kept_any;
            }
        }
        self.objects = objects;
        self.problems = problems;
    }

    /// The last good version of an object that is refused.
    fn kept(&self, error: &ObjectError) -> Option<(ObjectRef, (usize, Arc<Object>))> {
        let name = error.name.as_deref()?;
        self.objects
            .iter()
            .find(|(held, _)| {
                held.kind.to_string() == error.kind
                    && held.namespace.as_deref() == error.namespace.as_deref()
                    && &*held.name == name
            })
            .map(|(held, kept)| (held.clone(), kept.clone()))
    }
}

/// Whether an object of an unknown kind is meant to be a policy: passing one over in silence would
/// leave its pods open.
fn is_policy_like(error: &ObjectError) -> bool {
    error.kind.contains("Polic")
}

fn visit(
    path: &Path,
    depth: usize,
    see: &mut dyn FnMut(&Path, bool) -> io::Result<()>,
) -> io::Result<()> {
    let is_directory = match fs::metadata(path) {
        Ok(metadata) => metadata.is_dir(),
        // A file that vanishes between listing and reading, or a link to nowhere.
        Err(error) if depth > 0 && error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    see(path, is_directory)?;
    if is_directory && depth < DEPTH_MAX {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                visit(&entry.path(), depth + 1, see)?;
            }
        }
    }
    Ok(())
}

fn is_manifest(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("yaml" | "yml" | "json"))
}

fn mk_problem(file: &Path, reason: String) -> Problem {
    Problem {
        file: file.to_owned(),
        line: None,
        object: None,
        field: None,
        reason,
        fix: None,
        keeps_last_good: false,
        is_foreign: false,
    }
}

fn yaml_problem(file: &Path, document_line: usize, error: &YamlError) -> Problem {
    let line = if let YamlError::Syntax { line, .. } = error { *line } else { document_line };
    Problem { line: Some(line), ..mk_problem(file, error.to_string()) }
}

fn object_problem(file: &Path, line: usize, error: &ObjectError, kept: bool) -> Problem {
    let object = error.name.as_deref().map(|name| match &error.namespace {
        Some(namespace) => format!("{} {namespace}/{name}", error.kind),
        None => format!("{} {name}", error.kind),
    });
    Problem {
        line: Some(line),
        object,
        field: error.field().map(str::to_owned),
        fix: error.fix(),
        keeps_last_good: kept,
        is_foreign: error.is_unsupported_kind() && !is_policy_like(error),
        ..mk_problem(file, error.error.problem.to_string())
    }
}
