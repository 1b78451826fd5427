//! `namegate suggest`: the least policies that would allow what was observed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Args};
use namegate_policy::name::DnsName;

use super::client::{Client, ClientError};
use super::lists::path;
use super::{check, duration};
use crate::admin::{DEFAULT_SOCKET, RECORDS_KEPT, StatusReport};
use crate::audit::{Line, SCHEMA};
use crate::suggest::{Document, Filter, Observed, Wording, suggest};

/// The longest line of a log that is read.
const LINE_MAX: u64 = 1 << 20;

/// Longer than any agent remembers.
const EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

/// Options of `namegate suggest`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("observed").args(["from", "live"]).required(true))]
#[command(after_help = "\
Examples:
  namegate suggest --from /var/log/namegate.jsonl --namespace shop > shop.yaml
      An EgressPolicy and a NetworkPolicy for each workload of a namespace, with the evidence.
  kubectl -n kube-system logs daemonset/namegate | namegate suggest --from -
      From the agents' standard output.
  namegate suggest --from audit.log --from audit.log.1 --pod checkout --refused
      One workload; what was refused is allowed too.
  namegate suggest --live --pod checkout --since 10m
      From what the running agent remembers: its latest 4,096 decisions.
  namegate suggest --live --namespace shop --for 1h > shop.yaml
      The same, and what comes within the hour.
  namegate suggest --from audit.log | namegate check -
      What a reviewer would say about the result.

What the pods asked for and opened is allowed, and nothing else. Names are known where lookups go
through the proxy: select the pods with a policy of `mode: Audit` first, watch, suggest, read, enforce.

Exit codes: 0 suggested, 1 something could not be read or nothing was seen, 2 wrong usage.")]
pub struct SuggestArgs {
    /// An audit log; `-` is standard input; may be repeated
    #[arg(long, value_name = "FILE|-")]
    pub from: Vec<PathBuf>,
    /// Ask the running agent for the decisions that it remembers
    #[arg(long)]
    pub live: bool,
    /// With --live: only the last so long
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, requires = "live", conflicts_with = "from")]
    pub since: Option<Duration>,
    /// With --live: go on with what comes for so long
    #[arg(long = "for", value_name = "DURATION", value_parser = duration::parse, requires = "live", conflicts_with = "from")]
    pub time: Option<Duration>,
    /// With --live: the agent's socket
    #[arg(long, env = "NAMEGATE_SOCKET", value_name = "FILE", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Only workloads of this namespace
    #[arg(long, short = 'n', value_name = "NAME")]
    pub namespace: Option<String>,
    /// Only this pod or workload
    #[arg(long, value_name = "NAME")]
    pub pod: Option<String>,
    /// Allow what was refused too
    #[arg(long)]
    pub refused: bool,
    /// Write one wildcard in the place of three names or more below one
    #[arg(long)]
    pub wildcards: bool,
    /// The cluster's domain, whose names need no rule
    #[arg(long, value_name = "NAME", default_value = "cluster.local", value_parser = check::domain)]
    pub cluster_domain: DnsName,
}

pub(super) fn run(args: &SuggestArgs) -> ExitCode {
    let mut observed = Observed::new(Filter {
        namespace: args.namespace.clone(),
        pod: args.pod.clone(),
        refused: args.refused,
        cluster_domain: args.cluster_domain.clone(),
    });
    if args.live
        && let Err(error) = listen(args, &mut observed)
    {
        eprintln!("namegate: {error}");
        return ExitCode::FAILURE;
    }
    let mut is_whole = true;
    for path in &args.from {
        match read(path, &mut observed) {
            Ok(0) => {}
            Ok(strange) => {
                eprintln!("warning: {}: lines that are no records: {strange}", path.display());
                is_whole = false;
            }
            Err(error) => {
                eprintln!("namegate: --from {}: {error}", path.display());
                return ExitCode::from(2);
            }
        }
    }
    let documents = suggest(&observed, Wording { wildcards: args.wildcards });
    tell_missing(&observed, args);
    let written = write(&documents, &mut io::stdout().lock());
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("namegate: cannot write: {error}");
            ExitCode::FAILURE
        }
        Ok(()) | Err(_) if is_whole && documents.iter().any(Document::is_manifest) => {
            ExitCode::SUCCESS
        }
        Ok(()) | Err(_) => ExitCode::FAILURE,
    }
}

/// Takes what the running agent remembers, and what comes within `--for`.
fn listen(args: &SuggestArgs, observed: &mut Observed) -> Result<(), ClientError> {
    let since = args.since.unwrap_or(EVER).as_secs().to_string();
    let asked = path(
        "/v1/records",
        [("since_s", &Some(since)), ("follow", &args.time.map(|_| "true".to_owned()))],
    );
    let (mut count, mut strange) = (0_usize, 0_usize);
    let take = |line: &str| {
        count += 1;
        match serde_json::from_str::<Line<'_>>(line) {
            Ok(line) if line.schema == SCHEMA => observed.add(&line),
            Ok(_) | Err(_) => strange += 1,
        }
        ControlFlow::Continue(())
    };
    let client = Client::at(&args.socket);
    match args.time {
        Some(time) => client.lines_for(time, &asked, take)?,
        None => client.lines(&asked, take)?,
    }
    if strange > 0 {
        eprintln!("warning: records of an agent of another version were left out: {strange}");
    }
    tell_forgotten(count, client.get("/v1/status")?);
    Ok(())
}

/// Says what the agent does not remember. Only who asks for what comes hears all of that.
fn tell_forgotten(count: usize, status: StatusReport) {
    if count >= RECORDS_KEPT {
        eprintln!(
            "warning: the agent remembers its latest {RECORDS_KEPT} decisions, and earlier ones are not in this: use --for, or an audit log"
        );
    }
    if status.suppressed > 0 {
        eprintln!(
            "warning: of what was decided since the agent began, --audit-rate and --audit-sample kept {} records from its memory and its log: watch with --for, or raise --audit-rate",
            status.suppressed
        );
    }
}

/// Reads a log, and says how many of its lines are no records.
fn read(path: &Path, observed: &mut Observed) -> io::Result<u64> {
    let source: Box<dyn Read> =
        if path.as_os_str() == "-" { Box::new(io::stdin()) } else { Box::new(File::open(path)?) };
    let mut lines = BufReader::new(source);
    let (mut line, mut strange) = (Vec::new(), 0);
    loop {
        line.clear();
        if lines.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(strange);
        }
        match serde_json::from_slice::<Line<'_>>(&line) {
            Ok(line) if line.schema == SCHEMA => observed.add(&line),
            _ if line.iter().all(u8::is_ascii_whitespace) => {}
            Ok(_) | Err(_) => strange += 1,
        }
    }
}

fn tell_missing(observed: &Observed, args: &SuggestArgs) {
    let missing = observed.missing();
    let refused = if args.refused { 0 } else { missing.refused };
    let cases = [
        (missing.lost, "lost before they were logged"),
        (missing.suppressed, "kept out by --audit-rate or --audit-sample"),
        (missing.left_out, "of no known pod, or more than can be held"),
        (refused, "of refusals; --refused allows these too"),
    ];
    for (count, what) in cases {
        if count > 0 {
            eprintln!("warning: nothing is suggested for records {what}: {count}");
        }
    }
}

fn write(documents: &[Document], out: &mut impl Write) -> io::Result<()> {
    for (index, document) in documents.iter().enumerate() {
        let marker = if index == 0 { "" } else { "---\n" };
        write!(out, "{marker}{}", document.text())?;
    }
    out.flush()?;
    let count = documents.iter().filter(|document| document.is_manifest()).count();
    match count {
        0 => eprintln!("nothing suggested: no lookup and no flow of such a pod was seen"),
        count => eprintln!("policies: {count}; read them before they are applied"),
    }
    Ok(())
}
