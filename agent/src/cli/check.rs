//! `namegate check`: what is wrong with manifests, for people and for programs.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::source::{Directory, Problem};

/// Options of `namegate check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  namegate check examples/ policies.yaml
  namegate check -o json examples/ | jq '.problems[].reason'

Exit codes: 0 all objects are valid, 1 there are errors, 2 a path does not exist.
Objects of kinds that namegate does not act on are passed over.")]
pub struct CheckArgs {
    /// Files or directories
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// How to answer
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

/// How to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A line for each problem, and a summary.
    Text,
    /// One JSON object.
    Json,
}

#[derive(Serialize)]
struct Report {
    files: usize,
    objects: usize,
    problems: Vec<Found>,
}

#[derive(Serialize)]
struct Found {
    severity: &'static str,
    file: PathBuf,
    line: Option<usize>,
    object: Option<String>,
    field: Option<String>,
    reason: String,
    fix: Option<String>,
}

pub(super) fn run(args: &CheckArgs) -> ExitCode {
    if let Some(missing) = args.paths.iter().find(|path| !path.exists()) {
        eprintln!("namegate: {}: no such file or directory", missing.display());
        return ExitCode::from(2);
    }
    let mut directory = Directory::new(args.paths.iter().cloned());
    directory.look();
    let problems: Vec<&Problem> = directory.problems().collect();
    let errors = problems.iter().filter(|problem| !problem.is_foreign).count();
    match args.output {
        Output::Text => {
            for problem in &problems {
                let severity = severity(problem);
                println!("{severity}: {problem}");
            }
            println!(
                "{} valid objects in {} files, {errors} errors",
                directory.object_count(),
                directory.file_count()
            );
        }
        Output::Json => {
            let report = Report {
                files: directory.file_count(),
                objects: directory.object_count(),
                problems: problems.into_iter().map(Found::from).collect(),
            };
            match serde_json::to_string_pretty(&report) {
                Ok(text) => println!("{text}"),
                Err(error) => {
                    eprintln!("namegate: cannot encode the report: {error}");
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

const fn severity(problem: &Problem) -> &'static str {
    if problem.is_foreign { "passed over" } else { "error" }
}

impl From<&Problem> for Found {
    fn from(problem: &Problem) -> Self {
        Self {
            severity: severity(problem),
            file: problem.file.clone(),
            line: problem.line,
            object: problem.object.clone(),
            field: problem.field.clone(),
            reason: problem.reason.clone(),
            fix: problem.fix.clone(),
        }
    }
}
