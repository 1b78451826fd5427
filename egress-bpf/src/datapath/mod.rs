//! The kernel's side, from user space.
//!
//! [`Datapath`] loads the program, pins its maps and links below a directory of the ABI's version,
//! takes over what a previous agent pinned, of this version or another, attaches to interfaces, and reads and writes the maps as
//! typed values. It is the only module that names aya. It decides nothing and remembers only what it
//! needs to keep writes in a safe order.
//!
//! Needs Linux 6.1, and attaches through tcx links where the kernel has them (6.6).

mod attach;
mod batch;
mod clsact;
mod counters;
mod earlier;
mod entries;
mod error;
mod events;
mod hooks;
mod load;
mod netlink;
mod numbers;
mod passages;
mod pods;
mod prefixes;
mod query;
mod quota;
mod reader;
mod run;
mod seam;
mod services;
mod shared;
mod spot;
mod sweep;
mod tables;
mod tcx;
mod unlink;
mod vacancy;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{MapData, PerCpuArray, PerCpuHashMap};
use namegate_policy::identity::Identity;
use namegate_policy::limits::ADDRESSES_TOTAL;

pub use attach::AttachPoint;
pub use counters::{Counters, Hits};
pub use error::DatapathError;
pub use events::{Events, FlowEvent, Reason};
pub use hooks::{DisplacedHook, HookFault, HookWatch};
pub use numbers::Numbers;
pub use reader::{Fill, Reader};
pub use run::{Ran, RanVerdict};
#[cfg(debug_assertions)]
pub use seam::{fail_each, fail_writes, pretend_abi_version};
pub use sweep::{Broom, Survey, Sweep};

use crate::abi::{
    Address, Backend, BackendKey, Config, Endpoint, Flow, FlowKey, Fragment, FragmentKey, HitKey,
    NameEntry, NameKey, PeerKey, PortKey, QuotaKey, RuleSet, Service, ServiceKey, Table, TableKey,
};
use batch::Rows;
use earlier::Earlier;
use passages::Passages;
use pods::{CidrTrieKey, RangeTrieKey};
use prefixes::PrefixSets;
use quota::Totals;
use services::Written;
use tables::RowKeys;
use vacancy::Vacancy;

/// Where and how large.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Directory on a BPF file system; what is pinned lies in a directory of the ABI's version
    /// below.
    pub pin_root: PathBuf,
    /// What holds programs at interfaces; the best that the kernel has unless given.
    pub attach_point: Option<AttachPoint>,
    /// Learned addresses, all identities together.
    pub names_max: u32,
    /// Flows, all endpoints together.
    pub flows_max: u32,
    /// Addresses of pods and nodes.
    pub addresses_max: u32,
    /// Rows of policy tables that name pods by their labels, all endpoints together.
    pub peers_max: u32,
}

/// Learned addresses that the kernel takes unless told otherwise: more than all identities hold, for what
/// comes before another goes.
const NAMES_MAX: u32 = 131_072;

const _: () = assert!(ADDRESSES_TOTAL + ADDRESSES_TOTAL / 8 < NAMES_MAX as usize);

impl Default for Options {
    fn default() -> Self {
        Self {
            pin_root: PathBuf::from("/sys/fs/bpf/namegate"),
            attach_point: None,
            names_max: NAMES_MAX,
            flows_max: 131_072,
            addresses_max: 524_288,
            peers_max: 1_048_576,
        }
    }
}

/// What does not belong to an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The DNS proxy; governed lookups are dropped without one.
    pub proxy: Option<ProxySettings>,
    /// Whether IP protocols other than TCP, UDP, SCTP and ICMP are judged by rules without ports.
    pub judges_other_protocols: bool,
}

/// Where lookups are handed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxySettings {
    /// Index of the interface whose ingress they come in at.
    pub ifindex: u32,
    /// Its MAC.
    pub mac: [u8; 6],
    /// The proxy's IPv4 address.
    pub v4: Ipv4Addr,
    /// The proxy's IPv6 address.
    pub v6: Ipv6Addr,
    /// The port that stands for resolver slot zero; the next ones for the next slots.
    pub port: u16,
}

/// One pod's attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointEntry {
    /// Host-side interface.
    pub ifindex: u32,
    /// The pod's identity.
    pub identity: Identity,
    /// The table that judges it; installed before.
    pub table: u32,
    /// Another number whenever what `table` means for live flows has changed.
    pub generation: u32,
    /// Another, higher number for each pod that ever had this interface, and whenever it loses an address.
    /// It is higher than those of all endpoints before, too.
    pub epoch: u32,
    /// Whether its lookups go to the proxy.
    pub is_dns_governed: bool,
    /// Whether its flows to services are translated, and judged by the backend.
    pub is_translated: bool,
    /// The pod's MAC where known.
    pub mac: Option<[u8; 6]>,
    /// The pod's addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// What an address and port stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Whether every flow of a client goes to the same backend.
    pub is_affine: bool,
    /// Where flows end, all of the family of the service's address; without any they are dropped.
    pub backends: Vec<Backend>,
}

/// The loaded program and its maps.
pub struct Datapath {
    pins: PathBuf,
    is_taken_over: bool,
    ebpf: Ebpf,
    /// The kernel's numbers of the programs, by direction.
    program_numbers: [u32; 2],
    /// What the kernel makes of their instructions, by direction.
    program_tags: [u64; 2],
    /// Whether the kernel has tcx, attached through it or not.
    has_tcx: bool,
    attach_point: AttachPoint,
    is_shut_loaded: bool,
    /// Interfaces that programs are to be on.
    attached: BTreeSet<u32>,
    earlier: Vec<Earlier>,
    /// Endpoints of agents of other versions.
    inherited: BTreeMap<u32, EndpointEntry>,
    endpoints: BTreeMap<u32, EndpointEntry>,
    tables: BTreeMap<u32, RowKeys>,
    prefixes: PrefixSets,
    services: Arc<BTreeMap<ServiceKey, Written>>,
    /// Lists of backends that no service names.
    stale_lists: Vec<Service>,
    /// The first number that no list of backends has.
    next_list: u32,
    flows_max: u32,
    maps: Maps,
}

struct Maps {
    config: Rows<u32, Config>,
    endpoints: Rows<u32, Endpoint>,
    passages: Passages,
    vacancy: Vacancy,
    ipcache: Rows<Address, u32>,
    ranges: Rows<RangeTrieKey, u32>,
    tables: Rows<TableKey, Table>,
    peers: Rows<PeerKey, RuleSet>,
    cidrs: Rows<CidrTrieKey, RuleSet>,
    ports: Rows<PortKey, RuleSet>,
    names: Rows<NameKey, NameEntry>,
    services: Rows<ServiceKey, Service>,
    backends: Rows<BackendKey, Backend>,
    flows: Arc<Rows<FlowKey, Flow>>,
    fragments: Arc<Rows<FragmentKey, Fragment>>,
    opened: Arc<Rows<QuotaKey, u64>>,
    released: Arc<Rows<QuotaKey, u64>>,
    totals: Arc<Totals>,
    resolvers: Rows<Address, u32>,
    resolver_slots: Rows<u32, Address>,
    hits: PerCpuHashMap<MapData, HitKey, u64>,
    counters: PerCpuArray<MapData, u64>,
}

impl Datapath {
    /// What the kernel makes of the instructions of the programs, out of pods and into them: builds that
    /// differ in it enforce by different code.
    pub fn program_tags(&self) -> [u64; 2] {
        self.program_tags
    }

    /// Whether a previous agent's maps were found and taken over.
    pub fn is_taken_over(&self) -> bool {
        self.is_taken_over
    }
}
