//! The command line: what can be asked for, and the exit code that answers.

mod agent_args;
mod audit_args;
mod check;
mod client;
mod convert;
pub(crate) mod crds;
mod duration;
mod explain;
mod generate;
mod lists;
mod located;
mod map_args;
mod observe;
mod schema;
mod shared;
mod size_args;
mod status;
mod subject;
mod suggest;
mod table;
mod told;
mod why;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

pub use agent_args::{AgentArgs, Attach, CniFailure, Guard, NodeArgs, cni_socket};
pub use audit_args::AuditArgs;
pub use check::{CheckArgs, Output};
pub use client::{AskArgs, Client, ClientError, Format};
pub use convert::ConvertArgs;
pub use explain::ExplainArgs;
pub use generate::{CompletionArgs, ManArgs};
pub use lists::{ListArgs, NamesArgs, PodArgs};
pub use map_args::MapArgs;
pub use observe::{DropsArgs, ObserveArgs, SieveArgs};
pub use schema::Subject;
pub use shared::SharedArgs;
pub use size_args::SizeArgs;
pub use suggest::SuggestArgs;
pub use why::{Transport, WhyArgs};

use crate::admin::DEFAULT_SOCKET;
use crate::ready_file::{self, Readiness};

const ABOUT: &str = "A DNS-aware egress firewall for Kubernetes pods, beside any CNI";

const EXAMPLES: &str = "\
Examples:
  namegate check examples/
      Say what is wrong with manifests and what looks wrong; nothing is enforced.
  namegate convert cilium-policies/ > egress-policies.yaml
      Turn Cilium policies with toFQDNs into EgressPolicies.
  namegate explain --manifests examples/town --from shop/checkout --to data/db --port 5432
      Say what becomes of a flow and why, at both of its ends.
  namegate suggest --from /var/log/namegate.jsonl > policies.yaml
      Write the least policies that would allow what the audit log tells.
  namegate agent
      In a pod of the cluster: enforce what its API server says about the pods of this node.
  namegate agent --manifests /etc/namegate --watch --audit-log /var/log/namegate.jsonl
      Enforce the policies of a directory, follow its changes, log every decision.
  namegate agent --manifests examples/one-machine --audit-log - --detach-on-exit
      Try it out: log to standard output, leave the interfaces as found on Ctrl-C.
  namegate status
      Ask the running agent whether all is well.
  namegate why shop/checkout api.stripe.com 443
      Say what becomes of a flow now, by which rule, and what would let it through.
  namegate observe --follow --verdict denied,dropped
      Show what is refused, as it happens.
  namegate uninstall
      Stop enforcing on this node: detach the programs, remove maps and interface.

Exit codes:
  0  done; `agent`: ended by SIGINT or SIGTERM
  1  `agent`: nothing can be enforced (privileges, kernel, ports)
     `check`, `convert`: errors found
     `explain`: invalid manifests, or a flow that could not be judged
     `suggest`: nothing was seen; `ready`: not ready
     `status`: something is wrong; `uninstall`: something is left behind
     commands that ask an agent: none answers
  2  wrong usage: an unknown option, a path that does not exist
  3  `why`: the flow does not go through";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "namegate", version, about = ABOUT, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    /// The agent's own log: error, warn, info, debug, trace, or a filter such as
    /// `info,namegate_dns_proxy=debug`
    #[arg(long, global = true, env = "RUST_LOG", default_value = "info", value_name = "LEVEL")]
    pub log_level: String,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be asked for.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Enforce policies on this node
    Agent(Box<AgentArgs>),
    /// Say what is wrong with manifests, and what a reviewer would ask about
    Check(CheckArgs),
    /// Say what becomes of a flow, which rule decides, and why the others do not
    Explain(Box<ExplainArgs>),
    /// Say whether the running agent is well, and otherwise what is wrong and what to do
    Status(AskArgs),
    /// List the pods that the running agent enforces on
    Endpoints(ListArgs),
    /// List who the running agent tells apart, by which labels, under which policies
    Identities(ListArgs),
    /// List policies and rules with what they decided, and those that never did
    Policies(ListArgs),
    /// List the names that pods learned, with addresses, times, live flows and rules
    Names(NamesArgs),
    /// Show decisions about lookups and flows, the latest or as they are made
    Observe(ObserveArgs),
    /// Say what becomes of a flow of a running pod, why, and what would let it through
    Why(WhyArgs),
    /// List what was refused most
    Drops(DropsArgs),
    /// List the flows that the kernel knows
    Flows(PodArgs),
    /// Turn Cilium policies with toFQDNs into EgressPolicies
    Convert(ConvertArgs),
    /// List addresses that pods may reach by one name and that answer for others as well
    Shared(SharedArgs),
    /// Write the least policies that would allow what the audit log or the running agent tells
    Suggest(SuggestArgs),
    /// Print the CustomResourceDefinitions of EgressPolicy, ClusterEgressPolicy and NamegateNode
    Crds,
    /// Print the JSON Schema of what the agent writes
    Schema {
        /// Of what.
        subject: Subject,
    },
    /// Say by the exit code whether an agent enforces everything that it read
    Ready {
        /// The agent's --ready-file
        #[arg(long, env = "NAMEGATE_READY_FILE", value_name = "FILE")]
        ready_file: PathBuf,
    },
    /// Say by the exit code whether the running agent goes on, be it that it waits for its API server
    Alive {
        /// The agent's socket
        #[arg(long, env = "NAMEGATE_SOCKET", value_name = "FILE", default_value = DEFAULT_SOCKET)]
        socket: PathBuf,
    },
    /// Remove everything that an agent left on this node
    Uninstall(NodeArgs),
    /// Print a completion script for a shell
    Completion(CompletionArgs),
    /// Print the manual page, or write one for each command
    Man(ManArgs),
    /// Print the version
    Version,
}

/// Does what was asked and says how it went.
pub fn run(cli: Cli) -> ExitCode {
    let filter = match EnvFilter::try_new(&cli.log_level) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("namegate: --log-level {:?}: {error}", cli.log_level);
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(quiet(filter, &cli.log_level))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .init();
    match cli.command {
        Command::Agent(args) => {
            if let Some(manifests) = args.manifests.as_deref().filter(|path| !path.is_dir()) {
                eprintln!(
                    "namegate: --manifests {}: not a directory; name one that holds the manifests",
                    manifests.display()
                );
                return ExitCode::from(2);
            }
            report(crate::agent::run(*args))
        }
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Endpoints(args) => report(lists::endpoints(&args)),
        Command::Identities(args) => report(lists::identities(&args)),
        Command::Policies(args) => report(lists::policies(&args)),
        Command::Names(args) => report(lists::names(&args)),
        Command::Observe(args) => report(observe::observe(&args)),
        Command::Why(args) => why::run(&args),
        Command::Drops(args) => report(observe::drops(&args)),
        Command::Completion(args) => generate::completion(&args),
        Command::Man(args) => match generate::man(&args) {
            Ok(code) => code,
            Err(error) => report(Err(error)),
        },
        Command::Flows(args) => report(lists::flows(&args)),
        Command::Convert(args) => convert::run(&args),
        Command::Shared(args) => report(shared::run(&args)),
        Command::Suggest(args) => suggest::run(&args),
        Command::Crds => crds::run(),
        Command::Schema { subject } => schema::run(subject),
        Command::Ready { ready_file } => is_ready(&ready_file),
        Command::Alive { socket } => report(is_alive(&socket)),
        Command::Uninstall(args) => report(crate::uninstall::run(&args)),
        Command::Version => print(concat!("namegate ", env!("CARGO_PKG_VERSION"), "\n").as_bytes()),
    }
}

/// Prints what a command is asked for; a reader that has seen enough is no failure.
fn print(text: &[u8]) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("namegate: standard output cannot be written: {error}");
            ExitCode::FAILURE
        }
        Ok(()) | Err(_) => ExitCode::SUCCESS,
    }
}

/// Silences the API server's client, which shouts where a connection ends, unless it is asked for:
/// what matters of it is said by the agent, once.
fn quiet(filter: EnvFilter, asked: &str) -> EnvFilter {
    if asked.contains("kube") {
        return filter;
    }
    ["kube_client=off", "kube_runtime=off"]
        .into_iter()
        .filter_map(|directive| directive.parse().ok())
        .fold(filter, EnvFilter::add_directive)
}

fn is_ready(file: &Path) -> ExitCode {
    match ready_file::read(file) {
        Readiness::Ready => return ExitCode::SUCCESS,
        Readiness::NoAgent => {
            eprintln!("namegate: not ready: no running agent wrote {}", file.display());
        }
        Readiness::Lacking(lacking) => {
            for what in lacking {
                eprintln!("namegate: not ready: {what}");
            }
        }
    }
    ExitCode::FAILURE
}

/// Fails where nobody answers soon, or says that the work stands still.
fn is_alive(socket: &Path) -> anyhow::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(5);
    Client::at(socket).answers("/healthz", PATIENCE).context("not alive")
}

fn report(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("namegate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn objects_come_from_one_place() {
        let parse =
            |words: &[&str]| Cli::try_parse_from(["namegate", "agent"].iter().chain(words)).is_ok();
        assert!(parse(&[]), "the cluster that the pod runs in");
        assert!(parse(&["--kubeconfig", "x", "--node-name", "a"]));
        assert!(parse(&["--manifests", "x", "--watch"]));
        assert!(!parse(&["--manifests", "x", "--kubeconfig", "x"]));
        assert!(!parse(&["--watch"]), "an API server is always followed");
    }
}
