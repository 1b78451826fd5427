//! One file of manifests: what it says, and what it last said where it turned bad.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use namegate_policy::limits::FILE_OCTETS;
use namegate_policy::object::{self, Object, ObjectError, ObjectRef};
use rustix::fs::{Mode, OFlags};

use super::position;
use super::problem::{Problem, ProblemKind};
use super::yaml::{self, Document, YamlError};

/// The most problems of one file that are listed.
const PROBLEMS_MAX: usize = 1_000;

/// The namespace of an object that names none.
const NAMESPACE_DEFAULT: &str = "default";

/// What to do about a chart's templates.
const TEMPLATE: &str = "this looks like a template: render it first, as with `helm template`";

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct File {
    signature: Option<Signature>,
    pub(super) objects: BTreeMap<ObjectRef, Held>,
    pub(super) problems: Vec<Problem>,
}

/// An object and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) object: Arc<Object>,
    /// The line that its document begins on.
    pub(super) line: usize,
    /// Its path in the document: empty, or the entry of a List.
    pub(super) path: Arc<str>,
    /// Whether it only stands in for an object that is refused and never was good.
    pub(super) is_stand_in: bool,
}

/// What `stat` says; a file whose signature is the same was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Signature {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Signature {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Reads a regular file of bearable size. Opening anything else could block for ever, and reading it
/// might never end.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let (file, metadata) = open(path)?;
    read_open(file, &metadata)
}

fn open(path: &Path) -> io::Result<(fs::File, fs::Metadata)> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok((file, metadata))
}

fn read_open(file: fs::File, metadata: &fs::Metadata) -> io::Result<Vec<u8>> {
    let too_large = |size| io::Error::other(YamlError::TooLarge { size, limit: FILE_OCTETS });
    let size = usize::try_from(metadata.size()).unwrap_or(usize::MAX);
    if size > FILE_OCTETS {
        return Err(too_large(size));
    }
    let mut content = Vec::with_capacity(size);
    // The file can grow while it is read.
    file.take(FILE_OCTETS as u64 + 1).read_to_end(&mut content)?;
    if content.len() > FILE_OCTETS { Err(too_large(content.len())) } else { Ok(content) }
}

impl File {
    /// What a text says that is in no file of the directory.
    pub(super) fn of_text(path: &Path, text: &[u8]) -> Self {
        let mut file = Self::default();
        file.parse(path, text);
        file
    }

    /// Reads the file if it changed.
    pub(super) fn look(&mut self, path: &Path) {
        let read = open(path).and_then(|(file, metadata)| {
            let signature = Signature::of(&metadata);
            if self.signature == Some(signature) {
                return Ok(None);
            }
            Ok(Some((signature, read_open(file, &metadata)?)))
        });
        match read {
            Ok(None) => {}
            Ok(Some((signature, content))) => {
                self.signature = Some(signature);
                self.parse(path, &content);
            }
            Err(error) => {
                self.signature = None;
                let reason = format!("cannot be read: {error}");
                self.problems = vec![Problem {
                    keeps_last_good: !self.objects.is_empty(),
                    ..Problem::new(path, ProblemKind::Unreadable, &reason)
                }];
            }
        }
    }

    fn parse(&mut self, path: &Path, content: &[u8]) {
        let mut reading = Reading {
            path,
            last_good: LastGood::of(&self.objects),
            objects: BTreeMap::new(),
            problems: Vec::new(),
            lost: 0,
            has_unknown: false,
        };
        for document in yaml::documents(content) {
            reading.document(document);
        }
        let Reading { mut objects, mut problems, lost, has_unknown, .. } = reading;
        if has_unknown {
            // A document that cannot be told apart may be any of those that are missing.
            let kept_any = self.objects.keys().any(|held| !objects.contains_key(held));
            for (reference, held) in std::mem::take(&mut self.objects) {
                objects.entry(reference).or_insert(held);
            }
            for problem in problems.iter_mut().filter(|problem| problem.object.is_none()) {
                problem.keeps_last_good = kept_any && !problem.is_foreign();
            }
        }
        if lost > 0 {
            let reason = format!("{lost} more problems of this file are not listed");
            problems.push(Problem::new(path, ProblemKind::Invalid, &reason));
        }
        self.objects = objects;
        self.problems = problems;
    }
}

/// A file while it is read.
struct Reading<'a> {
    path: &'a Path,
    last_good: LastGood<'a>,
    objects: BTreeMap<ObjectRef, Held>,
    problems: Vec<Problem>,
    /// Problems that are not listed.
    lost: usize,
    /// Whether there is a document of which nobody knows what object it was.
    has_unknown: bool,
}

impl Reading<'_> {
    fn document(&mut self, document: Document<'_>) {
        let Document { line, text, content } = document;
        let values = match content {
            Ok(value) => object::expand(value),
            Err(error) => return self.broken(line, text, &error),
        };
        let mut refused: Vec<(String, ObjectError)> = Vec::new();
        for (path, value) in values {
            match object::parse(value) {
                Ok(object) => {
                    self.add(Held {
                        object: Arc::new(object),
                        line,
                        path: path.into(),
                        is_stand_in: false,
                    });
                }
                Err(error) => refused.push((joined(&path, &error), error)),
            }
        }
        self.refuse(line, text, refused);
    }

    fn add(&mut self, held: Held) {
        match self.objects.entry(held.object.reference()) {
            Entry::Vacant(place) => {
                place.insert(held);
            }
            Entry::Occupied(mut place) if place.get().is_stand_in => {
                place.insert(held);
            }
            Entry::Occupied(place) => {
                let reason = format!("already defined in line {} of this file", place.get().line);
                let problem = Problem {
                    line: Some(held.line),
                    object: Some(place.key().to_string()),
                    fix: Some("remove one of the two".to_owned()),
                    ..Problem::new(self.path, ProblemKind::Duplicate, &reason)
                };
                self.tell(problem);
            }
        }
    }

    /// Objects of one document: one walk over it finds the lines of all their fields.
    fn refuse(&mut self, line: usize, text: &str, refused: Vec<(String, ObjectError)>) {
        let room = PROBLEMS_MAX - self.problems.len();
        let listed = refused.iter().take(room).map(|(field, _)| field.as_str());
        let lines = match refused.len().min(room) {
            0 => BTreeMap::new(),
            _ => position::lines(text, line, listed),
        };
        for (field, error) in &refused {
            let kept =
                self.last_good.find(&error.kind, error.namespace.as_deref(), error.name.as_deref());
            self.has_unknown |= error.name.is_none() && !error.is_foreign();
            let place = lines.get(field.as_str()).copied().unwrap_or(line);
            let stand_in = error.stand_in.as_deref().filter(|_| kept.is_none());
            let stand_in = stand_in.map(|policy| Held {
                object: Arc::new(Object::Policy(policy.clone())),
                line,
                path: "".into(),
                is_stand_in: true,
            });
            self.tell(Problem {
                keeps_last_good: kept.is_some(),
                has_stand_in: stand_in.is_some(),
                ..Problem::of_object(self.path, place, error)
            });
            self.objects.extend(kept);
            if let Some(held) = stand_in {
                self.objects.entry(held.object.reference()).or_insert(held);
            }
        }
    }

    fn broken(&mut self, document_line: usize, text: &str, error: &YamlError) {
        let (line, column) = match error {
            // What the reading would have ended in.
            YamlError::TooLarge { limit, .. } => end_of(text, *limit, document_line),
            YamlError::Encoding { .. }
            | YamlError::Utf16
            | YamlError::TooMany { .. }
            | YamlError::Syntax { .. } => error.place().unwrap_or((document_line, 1)),
        };
        let broken = position::broken(text, (line + 1).saturating_sub(document_line), column);
        let kept = self.last_good.find(
            broken.kind.as_deref().unwrap_or_default(),
            broken.namespace.as_deref(),
            broken.name.as_deref(),
        );
        self.has_unknown |= kept.is_none();
        self.tell(Problem {
            keeps_last_good: kept.is_some(),
            fix: error.fix().or_else(|| text.contains("{{").then(|| TEMPLATE.to_owned())),
            ..Problem::of_broken(self.path, line, &error.to_string(), &broken)
        });
        self.objects.extend(kept);
    }

    fn tell(&mut self, problem: Problem) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        } else {
            self.lost += 1;
        }
    }
}

/// Line and column, counted from one, of the octet at `limit`.
fn end_of(text: &str, limit: usize, first_line: usize) -> (usize, usize) {
    let before = text.as_bytes().get(..limit).unwrap_or_default();
    let lines = before.iter().filter(|octet| **octet == b'\n').count();
    let column = before.iter().rev().take_while(|octet| **octet != b'\n').count();
    (first_line + lines, column + 1)
}

/// The path of the field in the document.
fn joined(path: &str, error: &ObjectError) -> String {
    match error.field() {
        None => path.to_owned(),
        Some(field) if path.is_empty() => field.to_owned(),
        Some(field) => format!("{path}.{field}"),
    }
}

/// What a file last said, by what is written of an object.
struct LastGood<'a>(BTreeMap<(String, &'a str), Vec<(&'a ObjectRef, &'a Held)>>);

impl<'a> LastGood<'a> {
    fn of(objects: &'a BTreeMap<ObjectRef, Held>) -> Self {
        let mut by_name: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (reference, held) in objects.iter().filter(|(_, held)| !held.is_stand_in) {
            // Without the group that is shown beside some kinds.
            let kind = reference.kind.to_string();
            let kind = kind.split('.').next().unwrap_or_default().to_owned();
            by_name.entry((kind, &*reference.name)).or_default().push((reference, held));
        }
        Self(by_name)
    }

    /// The version in force of an object that is refused.
    fn find(
        &self,
        kind: &str,
        namespace: Option<&str>,
        name: Option<&str>,
    ) -> Option<(ObjectRef, Held)> {
        let is_meant = |held: &ObjectRef| match &held.namespace {
            None => true,
            Some(own) => **own == *namespace.unwrap_or(NAMESPACE_DEFAULT),
        };
        let candidates = self.0.get(&(kind.to_owned(), name?))?;
        let (reference, held) = candidates.iter().find(|(held, _)| is_meant(held))?;
        Some(((*reference).clone(), (*held).clone()))
    }
}
