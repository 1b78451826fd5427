//! A directory of manifests → the objects in force.
//!
//! Each look reads the files whose content changed. A file that turns bad keeps what it last said:
//! a broken document takes nothing back, and the rest of its file and every other file count.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use namegate_policy::limits::{DIRECTORY_DEPTH, FILES};
use namegate_policy::object::{Object, ObjectRef};
use namegate_policy::rule::PolicyRef;

use super::file::{self, File, Held};
use super::problem::{Problem, ProblemKind};

/// What differs between two looks; applied as one.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Objects that appeared or changed.
    pub upserts: Vec<Arc<Object>>,
    /// Objects that vanished.
    pub removals: Vec<ObjectRef>,
    /// Problems that were not there at the last look.
    pub problems: Vec<Problem>,
    /// Which versions of policies are in force with this, where somebody counts them.
    pub versions: Vec<(PolicyRef, Version)>,
    /// Whether everything that exists is known with this, after a beginning with what an earlier agent
    /// knew.
    pub is_current: bool,
}

/// Which version of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Tells it from another object of the same name.
    pub uid: Arc<str>,
    /// Counts its changes; 0 where none was ever good and something stricter stands in.
    pub generation: i64,
}

impl Changes {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty()
            && self.removals.is_empty()
            && self.problems.is_empty()
            && self.versions.is_empty()
            && !self.is_current
    }
}

/// The manifests of a directory, or single files.
#[derive(Debug)]
pub struct Directory {
    roots: Vec<PathBuf>,
    files: BTreeMap<PathBuf, File>,
    /// Files that no look reads: their text came from elsewhere.
    given: BTreeMap<PathBuf, Vec<u8>>,
    in_force: BTreeMap<ObjectRef, Arc<Object>>,
    /// Those in force that only stand in for an object that is refused.
    stand_ins: BTreeSet<ObjectRef>,
    problems: BTreeSet<Problem>,
}

/// Where an object in force stands.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// Its file.
    pub file: &'a Path,
    /// The line that its document begins on.
    pub line: usize,
    /// Its path in the document: empty, or the entry of a List.
    pub path: &'a str,
    /// The object.
    pub object: &'a Arc<Object>,
}

impl Directory {
    /// The manifests under `roots`; nothing is read before the first look.
    pub fn new(roots: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            roots: roots.into_iter().collect(),
            files: BTreeMap::new(),
            given: BTreeMap::new(),
            in_force: BTreeMap::new(),
            stand_ins: BTreeSet::new(),
            problems: BTreeSet::new(),
        }
    }

    /// Adds a text that was read from elsewhere, under the name `path`.
    pub fn add_text(&mut self, path: &Path, text: Vec<u8>) {
        self.files.insert(path.to_owned(), File::of_text(path, &text));
        self.given.insert(path.to_owned(), text);
    }

    /// What a file says.
    pub fn text_of(&self, path: &Path) -> io::Result<Cow<'_, [u8]>> {
        match self.given.get(path) {
            Some(text) => Ok(Cow::Borrowed(text)),
            None => file::read(path).map(Cow::Owned),
        }
    }

    /// Reads what changed since the last look.
    pub fn look(&mut self) -> Changes {
        let Listing { files: found, mut problems, .. } = self.list();
        self.files.retain(|path, _| found.contains(path) || self.given.contains_key(path));
        for path in found {
            self.files.entry(path.clone()).or_default().look(&path);
        }
        let mut objects: BTreeMap<ObjectRef, Arc<Object>> = BTreeMap::new();
        let mut stand_ins = BTreeSet::new();
        let mut holders: BTreeMap<&ObjectRef, (&Path, usize)> = BTreeMap::new();
        for (path, file) in &self.files {
            problems.extend(file.problems.iter().cloned());
            for (reference, held) in &file.objects {
                if let Some((holder, line)) = holders.get(reference) {
                    let reason = format!("already defined in {}:{line}", holder.display());
                    problems.push(Problem {
                        line: Some(held.line),
                        object: Some(reference.to_string()),
                        fix: Some("remove one of the two".to_owned()),
                        ..Problem::new(path, ProblemKind::Duplicate, &reason)
                    });
                } else {
                    holders.insert(reference, (path, held.line));
                    if held.is_stand_in {
                        stand_ins.insert(reference.clone());
                    }
                    objects.insert(reference.clone(), Arc::clone(&held.object));
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
            self.in_force.keys().filter(|held| !objects.contains_key(held)).cloned().collect();
        let told: BTreeSet<Problem> = problems.iter().cloned().collect();
        problems.retain(|problem| !self.problems.contains(problem));
        self.problems = told;
        self.in_force = objects;
        self.stand_ins = stand_ins;
        Changes { upserts, removals, problems, versions: Vec::new(), is_current: false }
    }

    /// Every object that was read, with where it stands; of those that are defined twice, each.
    pub fn sites(&self) -> impl Iterator<Item = Site<'_>> {
        self.files.iter().flat_map(|(file, content)| {
            let held = content.objects.values().filter(|held| !held.is_stand_in);
            held.map(move |Held { object, line, path, .. }| Site {
                file,
                line: *line,
                path,
                object,
            })
        })
    }

    /// The objects in force that are valid.
    pub fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        let valid = self.in_force.iter().filter(|(held, _)| !self.stand_ins.contains(held));
        valid.map(|(_, object)| object)
    }

    /// The object in force that is called `reference`.
    pub fn object(&self, reference: &ObjectRef) -> Option<&Arc<Object>> {
        self.in_force.get(reference)
    }

    /// How many objects in force are valid.
    pub fn object_count(&self) -> usize {
        self.in_force.len() - self.stand_ins.len()
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
        self.list().directories
    }

    fn list(&self) -> Listing<'_> {
        let mut listing = Listing {
            known: &self.files,
            files: BTreeSet::new(),
            directories: BTreeSet::new(),
            visited: BTreeSet::new(),
            problems: Vec::new(),
        };
        for root in &self.roots {
            listing.visit(root, 0);
        }
        listing
    }
}

/// What stands under the roots. What cannot be listed is told of and takes nothing else with it.
struct Listing<'a> {
    known: &'a BTreeMap<PathBuf, File>,
    files: BTreeSet<PathBuf>,
    directories: BTreeSet<PathBuf>,
    /// Directories by device and inode: links can lead to one that was seen.
    visited: BTreeSet<(u64, u64)>,
    problems: Vec<Problem>,
}

impl Listing<'_> {
    fn visit(&mut self, path: &Path, depth: usize) {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            // A file that vanishes between listing and reading.
            Err(_) if depth > 0 && fs::symlink_metadata(path).is_err() => return,
            Err(error) => return self.fail(path, &format!("cannot be read: {error}")),
        };
        if !metadata.is_dir() {
            if depth == 0 || is_manifest(path) {
                self.add(path);
            }
            return;
        }
        if !self.visited.insert((metadata.dev(), metadata.ino())) {
            return;
        }
        self.directories.insert(path.to_owned());
        if depth >= DIRECTORY_DEPTH {
            return self
                .fail(path, &format!("more than {DIRECTORY_DEPTH} directories deep: not read"));
        }
        let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        match entries {
            Ok(entries) => {
                let mut names: Vec<_> =
                    entries.into_iter().map(|entry| entry.file_name()).collect();
                names.sort();
                for name in names.iter().filter(|name| !name.as_encoded_bytes().starts_with(b".")) {
                    self.visit(&path.join(name), depth + 1);
                }
            }
            Err(error) => self.fail(path, &format!("cannot be listed: {error}")),
        }
    }

    fn add(&mut self, path: &Path) {
        if self.files.len() < FILES {
            self.files.insert(path.to_owned());
        } else if !self.files.contains(path) {
            let reason = format!("more than {FILES} files: the rest is not read");
            let root = path.parent().unwrap_or(path);
            let problem = Problem::new(root, ProblemKind::Unreadable, &reason);
            if self.problems.last() != Some(&problem) {
                self.problems.push(problem);
            }
        }
    }

    /// What cannot be seen has not vanished.
    fn fail(&mut self, path: &Path, reason: &str) {
        self.problems.push(Problem::new(path, ProblemKind::Unreadable, reason));
        self.files.extend(self.known.keys().filter(|known| known.starts_with(path)).cloned());
    }
}

fn is_manifest(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("yaml" | "yml" | "json"))
}
