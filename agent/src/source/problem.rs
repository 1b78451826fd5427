//! What is wrong with a file, a document or an object, told so that it can be found and mended.

use std::fmt;
use std::path::{Path, PathBuf};

use namegate_policy::object::ObjectError;

use super::plain::plain;
use super::position::Broken;

/// Something that is wrong with a file, a document or an object. Its text is fit for a terminal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// The line of the field, or of the document where the field is not known.
    pub line: Option<usize>,
    /// What sort of problem it is.
    pub kind: ProblemKind,
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
    /// Whether its pods are closed by what can be read of it, as no earlier version is known.
    pub has_stand_in: bool,
}

/// What sort of problem it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProblemKind {
    /// A file or directory that cannot be read.
    Unreadable,
    /// Text that is no YAML, or breaks a bound that keeps reading cheap.
    Syntax,
    /// An object that is refused.
    Invalid,
    /// An object that is defined twice.
    Duplicate,
    /// An object of a kind that is none of ours and is passed over.
    Foreign,
}

impl ProblemKind {
    /// The word that stands for it wherever programs read it.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Syntax => "syntax",
            Self::Invalid => "invalid",
            Self::Duplicate => "duplicate-object",
            Self::Foreign => "foreign-kind",
        }
    }
}

impl Problem {
    /// A problem of `file` as a whole.
    pub fn new(file: &Path, kind: ProblemKind, reason: &str) -> Self {
        Self {
            file: file.to_owned(),
            line: None,
            kind,
            object: None,
            field: None,
            reason: plain(reason),
            fix: None,
            keeps_last_good: false,
            has_stand_in: false,
        }
    }

    /// A document that is given up at `line`.
    pub(super) fn of_broken(file: &Path, line: usize, reason: &str, broken: &Broken) -> Self {
        let Broken { kind, namespace, name, field } = broken;
        let named = name.as_deref().map(|name| {
            let kind = kind.as_deref().unwrap_or("object");
            object_name(kind, namespace.as_deref(), name)
        });
        Self {
            line: Some(line),
            object: named,
            field: field.as_deref().map(plain),
            ..Self::new(file, ProblemKind::Syntax, reason)
        }
    }

    /// An object that is refused, or of a kind that nothing here reads.
    pub(super) fn of_object(file: &Path, line: usize, error: &ObjectError) -> Self {
        let kind = if error.is_foreign() { ProblemKind::Foreign } else { ProblemKind::Invalid };
        let name = error.name.as_deref();
        Self {
            line: Some(line),
            object: name.map(|name| object_name(&error.kind, error.namespace.as_deref(), name)),
            field: error.field().map(plain),
            fix: error.fix().filter(|_| !error.is_foreign()).as_deref().map(plain),
            ..Self::new(file, kind, &error.error.problem.to_string())
        }
    }

    /// Whether the object is of a kind that is none of ours and is passed over.
    pub fn is_foreign(&self) -> bool {
        self.kind == ProblemKind::Foreign
    }
}

fn object_name(kind: &str, namespace: Option<&str>, name: &str) -> String {
    plain(&match namespace {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    })
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&plain(&self.file.display().to_string()))?;
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
        if self.has_stand_in {
            f.write_str(
                " (until it is mended, its pods are closed in the directions that it is about)",
            )?;
        }
        Ok(())
    }
}
