//! `namegate convert`: EgressPolicies from Cilium policies with `toFQDNs`.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use namegate_policy::convert::{Conversion, Difference, Effect, Manifest, convert};
use namegate_policy::name::DnsName;
use namegate_policy::rule::PolicyRef;

use super::check;
use super::located::{Located, each_policy};
use crate::source::{Directory, ProblemKind, plain};

/// Options of `namegate convert`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  namegate convert cilium/ > egress-policies.yaml
      One EgressPolicy for each Cilium policy with toFQDNs; warnings go to standard error, and above
      each policy as comments.
  kubectl get cnp -A -o yaml | namegate convert --directory converted/ -
      From a cluster, into a file each.
  namegate convert cilium/ | namegate check -
      What a reviewer would say about the result.

`wider` marks what the result allows and the Cilium policy does not, `narrower` the opposite. A policy
that cannot be said is left out and counts as an error; one without toFQDNs is left alone.

Exit codes: 0 converted, 1 something could not be read or converted, 2 wrong usage.")]
pub struct ConvertArgs {
    /// Files or directories; `-` is standard input
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Write a file for each policy into this directory, which must be there
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// The cluster's domain
    #[arg(long, value_name = "NAME", default_value = "cluster.local", value_parser = check::domain)]
    pub cluster_domain: DnsName,
}

enum Said {
    Manifest(Box<Manifest>),
    Difference(Difference),
    Impossible(Difference),
}

pub(super) fn run(args: &ConvertArgs) -> ExitCode {
    let usage = |message: String| {
        eprintln!("namegate: {message}");
        ExitCode::from(2)
    };
    if let Some(missing) = args.directory.as_deref().filter(|path| !path.is_dir()) {
        return usage(format!("--directory {}: not a directory; make it first", missing.display()));
    }
    let directory = match check::read(&args.paths) {
        Ok(directory) => directory,
        Err(message) => return usage(message),
    };
    let is_whole = report_problems(&directory) & report_nothing(&args.paths, &directory);
    let said = say(&directory, &args.cluster_domain);
    let is_converted = !said.iter().any(|one| matches!(one.said.1, Said::Impossible(_)));
    let documents = documents(said);
    match write(args.directory.as_deref(), &documents) {
        Ok(()) if is_whole && is_converted => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("namegate: cannot write: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything could be read.
fn report_problems(directory: &Directory) -> bool {
    let is_error = |kind| !matches!(kind, ProblemKind::Foreign | ProblemKind::Duplicate);
    let mut errors = directory.problems().filter(|problem| is_error(problem.kind)).peekable();
    let is_whole = errors.peek().is_none();
    for problem in errors {
        eprintln!("error: {problem}");
    }
    is_whole
}

/// Whether there was any object at all: none is what a command before a pipe leaves when it fails.
fn report_nothing(paths: &[PathBuf], directory: &Directory) -> bool {
    let is_empty = directory.object_count() == 0 && directory.problems().next().is_none();
    if is_empty {
        let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        eprintln!(
            "error: {}: there is no object in it; look at what writes it",
            plain(&paths.join(", "))
        );
    }
    !is_empty
}

fn say(directory: &Directory, domain: &DnsName) -> Vec<Located<(PolicyRef, Said)>> {
    each_policy(directory, |policy, is_in_force, value| {
        let mut said = Vec::new();
        let several = policy.parts().count() > 1;
        for (index, part) in policy.parts().enumerate().filter(|_| is_in_force) {
            let mut tell = |one: Said, field| said.push(((part.reference.clone(), one), field));
            match convert(part, domain) {
                Conversion::Untouched => {}
                Conversion::Impossible(obstacles) => {
                    for one in obstacles {
                        let field = one.place.path_in(value);
                        tell(Said::Impossible(one), field);
                    }
                }
                Conversion::Converted(mut manifest, differences) => {
                    if several {
                        manifest.metadata.name = format!("{}-{index}", manifest.metadata.name);
                    }
                    tell(Said::Manifest(manifest), "kind".to_owned());
                    for one in differences {
                        let field = one.place.path_in(value);
                        tell(Said::Difference(one), field);
                    }
                }
            }
        }
        said
    })
}

/// One converted policy: the name of its file, and its text with comments above.
struct Text {
    name: String,
    comments: String,
    manifest: Box<Manifest>,
}

/// Tells the differences, and gathers each manifest with its own.
fn documents(said: Vec<Located<(PolicyRef, Said)>>) -> Vec<Text> {
    let mut documents: Vec<Text> = Vec::new();
    for Located { said: (policy, said), file, line, field } in said {
        let place = plain(&format!("{}:{line}", file.display()));
        let policy = plain(&policy.to_string());
        let told = |word: &str, message: &str| plain(&format!("{word}: {field}: {message}"));
        match said {
            Said::Manifest(manifest) => {
                let namespace = manifest.metadata.namespace.as_deref().unwrap_or("cluster");
                let name = format!("{namespace}-{}.yaml", manifest.metadata.name);
                let comments = format!("# from {policy}, {place}\n");
                documents.push(Text { name, comments, manifest });
            }
            Said::Difference(Difference { effect, message, .. }) => {
                let word = match effect {
                    Effect::Wider => "wider",
                    Effect::Narrower => "narrower",
                };
                let told = told(word, &message);
                eprintln!("warning: {place}: {policy}: {told}");
                if let Some(document) = documents.last_mut() {
                    // Writing to a String does not fail.
                    let _ = writeln!(document.comments, "# {told}");
                }
            }
            Said::Impossible(Difference { message, .. }) => {
                eprintln!("error: {place}: {policy}: {}", told("not converted", &message));
            }
        }
    }
    documents
}

fn write(output: Option<&Path>, documents: &[Text]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for (index, Text { name, comments, manifest }) in documents.iter().enumerate() {
        let yaml = serde_saphyr::to_string(manifest).map_err(io::Error::other)?;
        match output {
            Some(directory) => {
                let path = directory.join(name);
                let in_place = |error| io::Error::other(format!("{}: {error}", path.display()));
                let mut file = fs::File::create_new(&path).map_err(in_place)?;
                write!(file, "{comments}{yaml}").map_err(in_place)?;
            }
            None => {
                let marker = if index == 0 { "" } else { "---\n" };
                write!(out, "{marker}{comments}{yaml}")?;
            }
        }
    }
    out.flush()?;
    match documents.len() {
        0 => eprintln!("nothing converted: no policy with toFQDNs that could be"),
        count => eprintln!("{count} converted"),
    }
    Ok(())
}
