use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use namegate_egress_bpf::datapath::AttachPoint;

use super::{AuditArgs, MapArgs, SizeArgs, duration, subject};
use crate::admin::{DEFAULT_SOCKET, Places};
use crate::cni::chain::{self, Chain, Place};
use crate::resolvers::ResolverGroup;

const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/namegate";

/// Options of `namegate agent`.
#[derive(Debug, Args)]
#[command(after_help = "\
Objects come from the API server: of the cluster that the agent's pod runs in, or of --kubeconfig.
The endpoints are the pods of this node; their interfaces are found by their addresses.

With --manifests there is no API server. A Pod says where it lives by the annotation
`namegate.dev/netns: PATH` (its interface is found through the namespace) or
`namegate.dev/interface: NAME`, and its addresses in `status.podIPs`.

Without --detach-on-exit, enforcement stays pinned when the agent ends, and the next agent with the
same --pin-dir takes it over; `namegate uninstall` ends it.")]
pub struct AgentArgs {
    /// Take objects from a directory, not from an API server: *.yaml, *.yml and *.json,
    /// subdirectories included
    #[arg(long, env = "NAMEGATE_MANIFESTS", value_name = "DIR", conflicts_with = "kubeconfig")]
    pub manifests: Option<PathBuf>,
    /// Follow the directory: what changes, appears or vanishes takes effect within a second
    #[arg(long, env = "NAMEGATE_WATCH", requires = "manifests")]
    pub watch: bool,
    /// File that says where the API server is, as kubectl reads it; in a pod its service account
    /// says it
    #[arg(long, env = "NAMEGATE_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Name of the Node that the agent runs on; the host's name unless given
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// How often to look whether policy kinds that the cluster did not have are there
    #[arg(long, env = "NAMEGATE_DISCOVERY_INTERVAL", value_name = "DURATION", default_value = "30s", value_parser = duration::parse)]
    pub discovery_interval: Duration,
    /// How long the agent that writes the policies' status may say nothing before another one takes
    /// its place
    #[arg(long, env = "NAMEGATE_STATUS_LEASE", value_name = "DURATION", default_value = "15s", value_parser = duration::parse)]
    pub status_lease: Duration,
    /// What is logged of decisions, and where
    #[command(flatten)]
    pub audit: AuditArgs,
    /// A further resolver whose lookups go through the proxy; may be repeated
    #[arg(
        long = "resolver",
        env = "NAMEGATE_RESOLVERS",
        value_name = "ADDRESS",
        value_delimiter = ',',
        value_parser = subject::address
    )]
    pub resolvers: Vec<IpAddr>,
    /// Resolvers that give the same answers, separated by commas: where one does not answer, fails or
    /// takes long, the proxy asks the next in its place; may be repeated
    #[arg(
        long = "resolver-group",
        env = "NAMEGATE_RESOLVER_GROUPS",
        value_name = "ADDRESS,ADDRESS",
        value_delimiter = ';'
    )]
    pub resolver_groups: Vec<ResolverGroup>,
    /// Ask resolvers in random letter case, which answers must repeat: harder to forge. Resolvers that
    /// do not repeat it are asked over TCP
    #[arg(long, env = "NAMEGATE_DNS_RANDOM_CASE")]
    pub dns_random_case: bool,
    /// Domain of the cluster, whose names always resolve
    #[arg(
        long,
        env = "NAMEGATE_CLUSTER_DOMAIN",
        value_name = "NAME",
        default_value = "cluster.local"
    )]
    pub cluster_domain: String,
    /// Range that pods get their addresses from; names never open it; may be repeated
    #[arg(
        long = "pod-cidr",
        env = "NAMEGATE_POD_CIDRS",
        value_name = "CIDR",
        value_delimiter = ',',
        value_parser = subject::cidr
    )]
    pub pod_cidrs: Vec<IpNet>,
    /// Range that services get their addresses from; names never open it; may be repeated
    #[arg(
        long = "service-cidr",
        env = "NAMEGATE_SERVICE_CIDRS",
        value_name = "CIDR",
        value_delimiter = ',',
        value_parser = subject::cidr
    )]
    pub service_cidrs: Vec<IpNet>,
    /// Addresses of the cluster's nodes; names never open them; may be repeated
    #[arg(
        long = "node-cidr",
        env = "NAMEGATE_NODE_CIDRS",
        value_name = "CIDR",
        value_delimiter = ',',
        value_parser = subject::cidr
    )]
    pub node_cidrs: Vec<IpNet>,
    /// Shortest time that an answer opens its addresses for
    #[arg(long, env = "NAMEGATE_MIN_TTL", value_name = "DURATION", default_value = "30s", value_parser = duration::parse)]
    pub min_ttl: Duration,
    /// Time after an answer's TTL during which flows may still start
    #[arg(long, env = "NAMEGATE_TTL_GRACE", value_name = "DURATION", default_value = "60s", value_parser = duration::parse)]
    pub ttl_grace: Duration,
    /// How long a lookup may take at the resolver
    #[arg(long, env = "NAMEGATE_DNS_TIMEOUT", value_name = "DURATION", default_value = "4s", value_parser = duration::parse)]
    pub dns_timeout: Duration,
    /// Lookups of one pod address per second, with a second's worth at once; more are dropped unread.
    /// 0 sets no bound
    #[arg(long, env = "NAMEGATE_DNS_CLIENT_RATE", value_name = "NUMBER", default_value_t = 5_000)]
    pub dns_client_rate: u32,
    /// Names that wildcards alone allow and that a pod did not ask lately: so many a minute and at once;
    /// more are refused, so that names carry little data out. 0 sets no bound
    #[arg(long, env = "NAMEGATE_DNS_NEW_NAMES", value_name = "NUMBER", default_value_t = 0)]
    pub dns_new_names: u32,
    /// Threads that serve lookups over UDP; 0 for one a processor
    #[arg(long, env = "NAMEGATE_DNS_WORKERS", value_name = "NUMBER", default_value_t = 0)]
    pub dns_workers: usize,
    /// Whether a name may open private addresses outside the cluster's ranges
    #[arg(long, env = "NAMEGATE_REBINDING_GUARD", value_enum, default_value = "standard")]
    pub rebinding_guard: Guard,
    /// What holds programs at the pods' interfaces: links of tcx where the kernel has it (Linux 6.6),
    /// filters of a clsact qdisc elsewhere, or one of both
    #[arg(long, env = "NAMEGATE_ATTACH", value_enum, default_value = "auto")]
    pub attach: Attach,
    /// Remove everything from the node at the end, as if the agent had never run
    #[arg(long, env = "NAMEGATE_DETACH_ON_EXIT")]
    pub detach_on_exit: bool,
    /// Do the same where the DaemonSet of this name, in the namespace of the agent's account, was seen to be
    /// deleted, as uninstalling the chart does. While the API server has not said so enforcement stays
    #[arg(
        long,
        env = "NAMEGATE_DETACH_WITH",
        value_name = "DAEMONSET",
        conflicts_with = "manifests"
    )]
    pub detach_with: Option<String>,
    /// Go on with the lookups of an agent that runs on this node, which ends its work then, in place of
    /// refusing to start beside it
    #[arg(long, env = "NAMEGATE_TAKE_OVER")]
    pub take_over: bool,
    /// Write the agent's process number here once everything of the first read is enforced
    #[arg(long, env = "NAMEGATE_READY_FILE", value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// Socket that the other commands ask the agent through, for root alone; /run/namegate/namegate.sock
    /// unless --pin-dir or --run-dir is another one, and then in the run directory
    #[arg(long, env = "NAMEGATE_SOCKET", value_name = "FILE")]
    pub socket: Option<PathBuf>,
    /// Serve /metrics, /healthz and /readyz over TCP as well; they are always on the socket
    #[arg(long, env = "NAMEGATE_METRICS_LISTEN", value_name = "ADDRESS:PORT")]
    pub metrics_listen: Option<SocketAddr>,
    /// The service map
    #[command(flatten)]
    pub map: MapArgs,
    /// IPv4 address of the DNS proxy
    #[arg(
        long,
        env = "NAMEGATE_PROXY_IPV4",
        value_name = "ADDRESS",
        default_value = "169.254.53.53"
    )]
    pub proxy_ipv4: Ipv4Addr,
    /// IPv6 address of the DNS proxy
    #[arg(
        long,
        env = "NAMEGATE_PROXY_IPV6",
        value_name = "ADDRESS",
        default_value = "fd6e:616d:6567:6174::53"
    )]
    pub proxy_ipv6: Ipv6Addr,
    /// First port of the DNS proxy; one port for each resolver, at most 16
    #[arg(long, env = "NAMEGATE_DNS_PORT", value_name = "PORT", default_value_t = 15300, value_parser = clap::value_parser!(u16).range(1024..=65408))]
    pub dns_port: u16,
    /// Where the kernel's settings are: a container without privileges sees its own /proc/sys
    /// read-only, and has the node's elsewhere
    #[arg(long, env = "NAMEGATE_SYSCTL_DIR", value_name = "DIR", default_value = "/proc/sys")]
    pub sysctl_dir: PathBuf,
    /// What becomes of a pod that starts while nobody can see its policy in force, with --cni-lists
    #[arg(
        long,
        env = "NAMEGATE_CNI_FAILURE_POLICY",
        value_enum,
        ignore_case = true,
        default_value = "fail"
    )]
    pub cni_failure_policy: CniFailure,
    /// How long a pod may take to come under policy before it fails to start, with --cni-lists
    #[arg(long, env = "NAMEGATE_CNI_WAIT", value_name = "DURATION", default_value = "10s", value_parser = duration::parse)]
    pub cni_wait: Duration,
    /// Where the node finds the agent's socket for the CNI plugin, if not where the agent does: beside
    /// --socket, with .cni.sock in the place of .sock
    #[arg(long, env = "NAMEGATE_CNI_SOCKET", value_name = "FILE")]
    pub cni_socket: Option<PathBuf>,
    /// How large the kernel's maps are
    #[command(flatten)]
    pub sizes: SizeArgs,
    /// Where on the node the agent keeps its things
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Where on a node an agent keeps its things.
#[derive(Clone, Debug, Args)]
pub struct NodeArgs {
    /// Directory on a BPF file system for programs and maps
    #[arg(
        long,
        env = "NAMEGATE_PIN_DIR",
        value_name = "DIR",
        default_value = DEFAULT_PIN_DIR
    )]
    pub pin_dir: PathBuf,
    /// Directory for the lock and what is remembered across restarts; one for each --pin-dir under
    /// /run/namegate unless given
    #[arg(long, env = "NAMEGATE_RUN_DIR", value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Folder of the node's CNI configurations: the plugin that has a pod wait for its policy is put
    /// into the first of them, kept there, and taken out by `namegate uninstall`
    #[arg(long, env = "NAMEGATE_CNI_LISTS", value_name = "DIR")]
    pub cni_lists: Option<PathBuf>,
    /// Folder of the node's CNI plugins
    #[arg(long, env = "NAMEGATE_CNI_PROGRAMS", value_name = "DIR", default_value = "/opt/cni/bin")]
    pub cni_programs: PathBuf,
    /// Name of the interface that lookups are handed to
    #[arg(long, env = "NAMEGATE_LINK_NAME", value_name = "NAME", default_value = "namegate0", value_parser = link_name)]
    pub link_name: String,
}

/// What becomes of a pod whose policy cannot be seen to be in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CniFailure {
    /// It does not start; the kubelet tries again.
    Fail,
    /// It starts, and the agent says so once it can.
    Allow,
}

/// What holds programs at interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Attach {
    /// The best that the kernel has.
    Auto,
    /// Links.
    Tcx,
    /// Filters.
    Clsact,
}

impl Attach {
    /// What the datapath is asked for.
    pub const fn point(self) -> Option<AttachPoint> {
        match self {
            Self::Auto => None,
            Self::Tcx => Some(AttachPoint::Tcx),
            Self::Clsact => Some(AttachPoint::Clsact),
        }
    }
}

/// Whether a name may open private addresses (EP-9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Guard {
    /// It may, outside the cluster's ranges.
    Standard,
    /// Only for a peer with `allowPrivate: true`.
    Strict,
}

impl AgentArgs {
    /// Where the agent can be asked.
    pub fn places(&self) -> Places {
        let socket = self.socket.clone().unwrap_or_else(|| self.node.socket());
        let cni = cni_socket(&socket);
        Places { socket, cni, metrics: self.metrics_listen, map: self.map.map_listen }
    }

    /// The CNI plugin among those of the node; `None` where it is not to be there.
    pub fn chain(&self) -> Option<Chain> {
        let place = self.node.cni_place()?;
        let socket = self.places().cni;
        let fails_closed = self.cni_failure_policy == CniFailure::Fail;
        let seen = self.cni_socket.as_ref().unwrap_or(&socket);
        let entry = chain::entry(seen, fails_closed, self.cni_wait);
        Some(Chain { place, socket, entry })
    }
}

impl NodeArgs {
    /// The agent's socket where no other is named.
    pub fn socket(&self) -> PathBuf {
        let is_usual = self.run_dir.is_none() && self.pin_dir == Path::new(DEFAULT_PIN_DIR);
        if is_usual { DEFAULT_SOCKET.into() } else { self.run_dir().join("namegate.sock") }
    }

    /// Where the node has its CNI plugins; `None` where that is nobody's affair here.
    pub fn cni_place(&self) -> Option<Place> {
        let (lists, programs) = (self.cni_lists.clone()?, self.cni_programs.clone());
        Some(Place { lists, programs })
    }

    /// The directory for the lock and the state file.
    pub fn run_dir(&self) -> PathBuf {
        self.run_dir.clone().unwrap_or_else(|| {
            let name: String = self
                .pin_dir
                .to_string_lossy()
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
                .collect();
            PathBuf::from("/run/namegate").join(name.trim_matches(['-', '.']))
        })
    }
}

/// The socket of the CNI plugin, beside the agent's.
pub fn cni_socket(socket: &Path) -> PathBuf {
    socket.with_extension("cni.sock")
}

/// An interface name that leaves room for the peer's suffix (IFNAMSIZ is 16 with the final zero).
fn link_name(text: &str) -> Result<String, String> {
    let fits = (1..=14).contains(&text.len());
    if fits && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 14 letters, digits, - or _".to_owned())
    }
}
