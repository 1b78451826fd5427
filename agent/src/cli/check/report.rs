//! Everything that is to be told, in one shape for people and for programs.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::path::Path;

use ipnet::IpNet;
use namegate_policy::name::DnsName;
use namegate_policy::review::{self, Finding, Review};
use namegate_policy::rule::PolicyRef;
use serde::Serialize;

use super::CheckArgs;
use crate::cli::located::{Located, each_policy};
use crate::source::{Directory, Problem, ProblemKind, plain};

/// How much something matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    Error,
    Warning,
    Hint,
    /// Of a kind that is none of ours.
    Foreign,
}

/// What there is to tell.
#[derive(Serialize)]
pub(super) struct Report {
    files: usize,
    objects: usize,
    errors: usize,
    warnings: usize,
    hints: usize,
    pub(super) problems: Vec<Told>,
}

/// One thing that there is to tell; its text is fit for a terminal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Told {
    pub(super) file: String,
    pub(super) line: Option<usize>,
    pub(super) severity: Severity,
    pub(super) code: &'static str,
    pub(super) object: Option<String>,
    pub(super) field: Option<String>,
    pub(super) message: String,
    pub(super) advice: Option<String>,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Hint => "hint",
            Self::Foreign => "passed over",
        })
    }
}

impl Report {
    pub(super) fn of(directory: &Directory, args: &CheckArgs) -> Self {
        let CheckArgs { paths, pod_cidr, cluster_domain, .. } = args;
        let mut problems: Vec<Told> = directory.problems().map(told).collect();
        problems.extend(review(directory, pod_cidr, cluster_domain).into_iter().map(said));
        if problems.iter().all(|told| told.severity == Severity::Foreign)
            && directory.object_count() == 0
        {
            let is_empty = problems.is_empty();
            problems.extend(paths.iter().map(|path| nothing_read(path, is_empty)));
        }
        problems.sort();
        let mut report = Self {
            files: directory.file_count(),
            objects: directory.object_count(),
            errors: 0,
            warnings: 0,
            hints: 0,
            problems,
        };
        report.sum();
        report
    }

    /// Makes warnings errors.
    pub(super) fn harden(&mut self) {
        for told in &mut self.problems {
            if told.severity == Severity::Warning {
                told.severity = Severity::Error;
            }
        }
        self.sum();
    }

    fn sum(&mut self) {
        self.errors = self.count(Severity::Error);
        self.warnings = self.count(Severity::Warning);
        self.hints = self.count(Severity::Hint);
    }

    pub(super) fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|told| told.severity == severity).count()
    }

    /// How many objects of which kind were passed over.
    pub(super) fn foreign(&self) -> BTreeMap<&str, usize> {
        let mut kinds = BTreeMap::new();
        for told in self.problems.iter().filter(|told| told.severity == Severity::Foreign) {
            let object = told.object.as_deref().unwrap_or("nameless object");
            *kinds.entry(object.split(' ').next().unwrap_or(object)).or_insert(0) += 1;
        }
        kinds
    }

    /// The last line.
    pub(super) fn summary(&self) -> String {
        let count = |number: usize, one: &str| {
            if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
        };
        format!(
            "{} in {}: {}, {}, {}",
            count(self.objects, "valid object"),
            count(self.files, "file"),
            count(self.errors, "error"),
            count(self.warnings, "warning"),
            count(self.hints, "hint"),
        )
    }

    pub(super) fn write_json(&self, out: &mut impl io::Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, self)?;
        writeln!(out)
    }

    /// Workflow commands: a property ends at a colon or a comma, a message at the line's end.
    pub(super) fn write_github(&self, out: &mut impl io::Write) -> io::Result<()> {
        for told in &self.problems {
            let command = match told.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
                Severity::Hint => "notice",
                Severity::Foreign => continue,
            };
            let data =
                |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
            let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
            write!(out, "::{command} file={}", property(&told.file))?;
            if let Some(line) = told.line {
                write!(out, ",line={line}")?;
            }
            let parts = [told.object.as_deref(), told.field.as_deref(), Some(&told.message)];
            let text: Vec<&str> = parts.into_iter().flatten().collect();
            let advice = told.advice.as_ref().map_or_else(String::new, |text| format!("\n{text}"));
            let text = data(&format!("{}{advice}", text.join(": ")));
            writeln!(out, ",title={}::{text}", property(told.code))?;
        }
        writeln!(out, "{}", self.summary())
    }
}

/// An empty pipe is what a command that failed leaves behind, and a directory without manifests a name
/// that is wrong: neither is a good set of policies. Objects of other kinds may be all there is.
fn nothing_read(path: &Path, is_empty: bool) -> Told {
    let (severity, message) = if is_empty {
        (Severity::Error, "there is no object in it")
    } else {
        (Severity::Warning, "there is no object in it that namegate acts on")
    };
    let advice = if path.as_os_str() == "-" {
        "look at what the command before the pipe says"
    } else {
        "name a file, or a directory that holds *.yaml, *.yml or *.json"
    };
    Told {
        file: plain(&path.display().to_string()),
        line: None,
        severity,
        code: "nothing-read",
        object: None,
        field: None,
        message: message.to_owned(),
        advice: Some(advice.to_owned()),
    }
}

fn told(problem: &Problem) -> Told {
    let severity = match problem.kind {
        ProblemKind::Unreadable | ProblemKind::Syntax | ProblemKind::Invalid => Severity::Error,
        ProblemKind::Duplicate => Severity::Warning,
        ProblemKind::Foreign => Severity::Foreign,
    };
    Told {
        file: plain(&problem.file.display().to_string()),
        line: problem.line,
        severity,
        code: problem.kind.code(),
        object: problem.object.clone(),
        field: problem.field.clone(),
        message: problem.reason.clone(),
        advice: problem.fix.clone(),
    }
}

fn review(directory: &Directory, pod_ranges: &[IpNet], domain: &DnsName) -> Vec<Located<Finding>> {
    let objects = directory.objects().map(AsRef::as_ref);
    let mut waiting: HashMap<PolicyRef, Vec<Finding>> = HashMap::new();
    for finding in Review::new(objects, pod_ranges, domain.clone()).findings() {
        waiting.entry(finding.policy.clone()).or_default().push(finding);
    }
    each_policy(directory, |policy, is_in_force, value| {
        let mut findings = review::written(policy, value);
        if is_in_force {
            findings.extend(waiting.remove(&policy.reference).unwrap_or_default());
        }
        let located = findings.into_iter().map(|finding| {
            let field = finding.place.path_in(value);
            (finding, field)
        });
        located.collect()
    })
}

fn said(located: Located<Finding>) -> Told {
    let Located { said: finding, file, line, field } = located;
    Told {
        file: plain(&file.display().to_string()),
        line: Some(line),
        severity: match finding.severity {
            review::Severity::Warning => Severity::Warning,
            review::Severity::Hint => Severity::Hint,
        },
        code: finding.code.name(),
        object: Some(plain(&finding.policy.to_string())),
        field: Some(plain(&field)),
        message: plain(&finding.message),
        advice: Some(plain(&finding.advice)),
    }
}
