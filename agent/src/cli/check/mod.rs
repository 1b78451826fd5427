//! `namegate check`: what is wrong with manifests, and what a reviewer would say about the rest.

mod report;
mod text;

use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use namegate_policy::limits::FILE_OCTETS;
use namegate_policy::name::DnsName;

use super::subject;
use crate::source::Directory;
use report::{Report, Severity};

/// Options of `namegate check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  namegate check policies/ shop.yaml
      Say what is wrong and what looks wrong, with file, line, object, field and advice.
  kustomize build overlays/prod | namegate check --strict -
      From standard input; warnings count as errors.
  kubectl get -o yaml netpol,egresspolicies,pods,namespaces -A | namegate check -
      With the cluster's pods and namespaces, selectors that select nothing are found too.
  namegate check -o json policies/ | jq -r '.problems[] | \"\\(.file):\\(.line) \\(.code)\"'
      For programs. `-o github` writes annotations of a workflow.

Exit codes: 0 no errors, 1 errors found, or no object at all in what was given, 2 wrong usage or a path
that does not exist.
Warnings and hints do not change the exit code; with --strict, warnings are errors.
Objects of kinds that namegate does not act on are passed over.
docs/check.md lists the codes.")]
pub struct CheckArgs {
    /// Files or directories; `-` is standard input
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// How to answer
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
    /// Count warnings as errors
    #[arg(long)]
    pub strict: bool,
    /// Where pods have their addresses, besides those that given pods report
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = subject::cidr)]
    pub pod_cidr: Vec<IpNet>,
    /// The cluster's domain
    #[arg(long, value_name = "NAME", default_value = "cluster.local", value_parser = domain)]
    pub cluster_domain: DnsName,
}

/// How to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// One JSON object.
    Json,
    /// Workflow commands of GitHub Actions, which show beside the lines of a change.
    Github,
}

pub(super) fn domain(text: &str) -> Result<DnsName, String> {
    DnsName::parse(text).map_err(|error| error.to_string())
}

pub(super) fn run(args: &CheckArgs) -> ExitCode {
    let directory = match read(&args.paths) {
        Ok(directory) => directory,
        Err(message) => {
            eprintln!("namegate: {message}");
            return ExitCode::from(2);
        }
    };
    let mut report = Report::of(&directory, args);
    if args.strict {
        report.harden();
    }
    let mut out = io::stdout().lock();
    let written = match args.output {
        Output::Text => text::write(&report, &text::Style::of_stdout(), &mut out),
        Output::Json => report.write_json(&mut out),
        Output::Github => report.write_github(&mut out),
    };
    match written {
        // Whoever read it has read enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("namegate: cannot write the report: {error}");
            ExitCode::FAILURE
        }
        Ok(()) | Err(_) if report.count(Severity::Error) == 0 => ExitCode::SUCCESS,
        Ok(()) | Err(_) => ExitCode::FAILURE,
    }
}

/// Reads everything under `paths`; the error is one of usage.
pub(super) fn read(paths: &[PathBuf]) -> Result<Directory, String> {
    let mut roots = Vec::new();
    let mut streams = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            if io::stdin().is_terminal() {
                return Err("-: standard input is a terminal; pipe manifests into it".to_owned());
            }
            streams.push((PathBuf::from("<stdin>"), stream(io::stdin().lock())?));
        } else if is_stream(path) {
            let file = std::fs::File::open(path);
            let file = file.map_err(|error| format!("{}: {error}", path.display()))?;
            streams.push((path.clone(), stream(file)?));
        } else {
            path.metadata().map_err(|error| format!("{}: {error}", path.display()))?;
            roots.push(path.clone());
        }
    }
    let mut directory = Directory::new(roots);
    for (name, text) in streams {
        directory.add_text(&name, text);
    }
    directory.look();
    Ok(directory)
}

/// A pipe that was named on purpose, as `<(...)` of a shell does.
fn is_stream(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| {
        metadata.file_type().is_fifo() || metadata.file_type().is_char_device()
    })
}

/// As much of a stream as a file may hold; one octet more where there is more.
fn stream(stream: impl Read) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    let most = FILE_OCTETS as u64 + 1;
    stream.take(most).read_to_end(&mut text).map_err(|error| format!("cannot read: {error}"))?;
    Ok(text)
}
