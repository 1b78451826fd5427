use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::pin::PinError;
use aya::programs::ProgramError;
use aya::programs::links::LinkError;

/// What failed between user space and the kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatapathError {
    /// The build had no BPF toolchain.
    #[error("this build has no kernel program: build it without AYA_BUILD_SKIP")]
    NoProgram,
    /// The pin directory is not on a BPF file system.
    #[error("{} is not on a BPF file system: mount -t bpf bpf /sys/fs/bpf", .path.display())]
    NoBpfFileSystem {
        /// The directory.
        path: PathBuf,
    },
    /// A file operation below the pin directory.
    #[error("cannot {what} {}", .path.display())]
    Pins {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel refused the object.
    #[error("cannot load the kernel program: root and a kernel of 6.1 or later are needed")]
    Load {
        /// Why.
        source: Box<EbpfError>,
    },
    /// The kernel refused a program.
    #[error("cannot load the kernel program `{name}`")]
    Verifier {
        /// Which.
        name: &'static str,
        /// Why.
        source: Box<ProgramError>,
    },
    /// A test run was refused.
    #[error("cannot run the kernel program `{name}` on a frame")]
    Run {
        /// Which.
        name: &'static str,
        /// Why.
        source: Box<ProgramError>,
    },
    /// The object has no such map or program.
    #[error("the kernel program has no `{name}`")]
    Missing {
        /// Which.
        name: &'static str,
    },
    /// The pinned maps are of another layout.
    #[error("the maps below {} were written by ABI {found}, this build knows {}", .path.display(),
        crate::abi::ABI_VERSION)]
    Abi {
        /// Where they are pinned.
        path: PathBuf,
        /// What they say.
        found: u32,
    },
    /// An endpoint loses an address and keeps the flows that it had under it.
    #[error("interface {ifindex}: an endpoint that loses an address needs another epoch")]
    SameEpoch {
        /// The interface.
        ifindex: u32,
    },
    /// No interface has this index in the agent's namespace.
    #[error("no interface has the index {ifindex}")]
    NoInterface {
        /// The index.
        ifindex: u32,
    },
    /// A program could not be attached.
    #[error("cannot attach to interface {interface}")]
    Attach {
        /// The interface.
        interface: String,
        /// Why.
        source: Box<ProgramError>,
    },
    /// tcx is asked for, and the kernel has none.
    #[error("this kernel has no tcx (Linux 6.6 with CONFIG_NET_XGRESS): attach with clsact")]
    NoTcx,
    /// The kernel lacks what filters need.
    #[error("this kernel has neither tcx (Linux 6.6) nor {what}: programs cannot be attached")]
    NoClsact {
        /// What is missing.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another qdisc is where a clsact qdisc would be.
    #[error(
        "interface {interface} has a qdisc {kind} in the place of clsact: move its filters to a \
         clsact qdisc, or remove it: tc qdisc del dev {interface} {kind}"
    )]
    OtherQdisc {
        /// The interface.
        interface: String,
        /// What kind of qdisc.
        kind: String,
    },
    /// A call about the filters of an interface failed.
    #[error(
        "cannot {what} the agent's filter on interface {ifindex}: tc filter show tells who else is there"
    )]
    Filter {
        /// What was tried.
        what: &'static str,
        /// The interface.
        ifindex: u32,
        /// Why not.
        source: io::Error,
    },
    /// Programs that tcx runs come before every filter.
    #[error("a tcx link comes before every filter on interface {interface}: attach with tcx")]
    BehindTcx {
        /// The interface.
        interface: String,
    },
    /// What is pinned where a link should be is none that can be read.
    #[error("cannot take over {}: remove it, and what it attaches", .path.display())]
    Link {
        /// Where it is pinned.
        path: PathBuf,
        /// Why.
        source: Box<LinkError>,
    },
    /// The program of a link could not be replaced; the one that is there stays.
    #[error("cannot replace the program of {}", .path.display())]
    Replace {
        /// Where the link is pinned.
        path: PathBuf,
        /// Why.
        source: Box<ProgramError>,
    },
    /// The programs at a hook could not be listed.
    #[error("cannot list the programs on interface {ifindex}")]
    Query {
        /// The interface.
        ifindex: u32,
        /// Why.
        source: io::Error,
    },
    /// A link could not be pinned.
    #[error("cannot pin {}", .path.display())]
    Pin {
        /// Where.
        path: PathBuf,
        /// Why.
        source: Box<PinError>,
    },
    /// A map takes no further entry. What was written before stays.
    #[error("the map {map} is full after {written} of {wanted} entries")]
    Full {
        /// The map.
        map: &'static str,
        /// How many entries of the call were written.
        written: usize,
        /// How many there were to write.
        wanted: usize,
    },
    /// A call on a map failed.
    #[error("cannot {what} {map}")]
    Map {
        /// The map.
        map: &'static str,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A map has another type or layout than expected.
    #[error("the map {map} is not what this build expects")]
    MapType {
        /// The map.
        map: &'static str,
        /// What is different.
        source: Box<MapError>,
    },
    /// The endpoint has more addresses than an entry holds.
    #[error(
        "endpoint on interface {ifindex} has {count} addresses, {} is the most",
        crate::abi::ADDRESSES_MAX
    )]
    TooManyAddresses {
        /// Its interface.
        ifindex: u32,
        /// How many.
        count: usize,
    },
    /// The table has rows already.
    #[error("table {} is installed already", .table)]
    TableExists {
        /// The table.
        table: u32,
    },
    /// An endpoint is judged by the table.
    #[error("table {} is in force on interface {ifindex}", .table)]
    TableInUse {
        /// The table.
        table: u32,
        /// The endpoint's interface.
        ifindex: u32,
    },
    /// The endpoint names a table that has no rows.
    #[error("table {} is not installed", .table)]
    NoTable {
        /// The table.
        table: u32,
    },
    /// A resolver's slot is out of range.
    #[error("resolver slot {slot} is out of range, there are {}", crate::abi::RESOLVERS_MAX)]
    Slot {
        /// The slot.
        slot: u8,
    },
}
