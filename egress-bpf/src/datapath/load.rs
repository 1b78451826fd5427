//! Loading, pinning and taking over.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::{Map, MapData, PerCpuArray, PerCpuHashMap, RingBuf};
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader, Pod};

use super::attach::{AttachPoint, make_directories};
use super::batch::Rows;
use super::error::DatapathError;
use super::events::Events;
use super::passages::Passages;
use super::prefixes::PrefixSets;
use super::quota::Totals;
use super::spot::{BOTH, make_directory};
use super::vacancy::Vacancy;
use super::{Datapath, Maps, Options, query, seam};
use crate::abi::{ABI_VERSION, Direction};

pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/namegate-egress"));

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Where nothing can be pinned.
const NO_PINS: &str = "/proc/namegate-pins-nothing";

/// Every map that outlives the agent.
const PINNED: [&str; 23] = [
    "CONFIG",
    "ENDPOINTS",
    "PASSAGES",
    "VACANT",
    "IPCACHE",
    "RANGES",
    "TABLES",
    "PEERS",
    "CIDRS",
    "PORTS",
    "NAMES",
    "SERVICES",
    "BACKENDS",
    "FLOWS",
    "OPENED",
    "RELEASED",
    "TOTALS",
    "FRAGMENTS",
    "RESOLVERS",
    "RESOLVER_SLOTS",
    "HITS",
    "COUNTERS",
    "EVENTS",
];

impl Datapath {
    /// Loads the program, over the maps that a previous agent pinned where there are any, and puts
    /// it in the place of the previous program on every interface that is attached.
    pub fn open(options: &Options) -> Result<(Self, Events), DatapathError> {
        let has_tcx = query::has_tcx();
        let attach_point = AttachPoint::choose(options.attach_point, has_tcx)?;
        let pins = prepare(&options.pin_root)?;
        let is_taken_over = pins.join("maps/CONFIG").exists();
        let mut loader = EbpfLoader::new();
        for name in PINNED {
            loader.map_pin_path(name, pins.join("maps").join(name));
        }
        let (mut datapath, events) = Self::load(loader, pins, is_taken_over, options)?;
        (datapath.has_tcx, datapath.attach_point) = (has_tcx, attach_point);
        datapath.adopt()?;
        datapath.find_earlier(&options.pin_root)?;
        Ok((datapath, events))
    }

    /// Loads the program over maps of its own that nothing pins, for [`Datapath::run`] beside an
    /// agent that must not notice; `pin_root` is not used. Interfaces cannot be attached.
    pub fn unpinned(options: &Options) -> Result<(Self, Events), DatapathError> {
        Self::load(EbpfLoader::new(), PathBuf::from(NO_PINS), false, options)
    }

    fn load(
        mut loader: EbpfLoader<'_>,
        pins: PathBuf,
        is_taken_over: bool,
        options: &Options,
    ) -> Result<(Self, Events), DatapathError> {
        let object = seam::object();
        if object.is_empty() {
            return Err(DatapathError::NoProgram);
        }
        loader
            .map_max_entries("NAMES", options.names_max)
            .map_max_entries("FLOWS", options.flows_max)
            .map_max_entries("IPCACHE", options.addresses_max)
            .map_max_entries("PEERS", options.peers_max);
        let mut ebpf = loader
            .load(object)
            .map_err(|source| DatapathError::Load { source: Box::new(source) })?;
        let (mut program_numbers, mut program_tags) = ([0; 2], [0; 2]);
        for (place, direction) in BOTH.into_iter().enumerate() {
            let name = program_name(direction);
            verify(&mut ebpf, name)?;
            let info = program(&mut ebpf, name)?
                .info()
                .map_err(|source| DatapathError::Verifier { name, source: Box::new(source) })?;
            (program_numbers[place], program_tags[place]) = (info.id(), info.tag());
        }
        let events = Events::new(ring(&mut ebpf)?);
        let maps = Maps::take(&mut ebpf)?;
        let datapath = Self {
            pins,
            is_taken_over,
            ebpf,
            program_numbers,
            program_tags,
            has_tcx: true,
            attach_point: AttachPoint::Tcx,
            is_shut_loaded: false,
            attached: BTreeSet::new(),
            earlier: Vec::new(),
            inherited: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            tables: BTreeMap::new(),
            prefixes: PrefixSets::default(),
            services: Arc::default(),
            stale_lists: Vec::new(),
            next_list: 0,
            // Pinned maps have the size that they were made with.
            flows_max: maps.flows.capacity()?,
            maps,
        };
        Ok((datapath, events))
    }

    /// Reads back what a previous agent wrote, and replaces its programs.
    fn adopt(&mut self) -> Result<(), DatapathError> {
        let found = self.maps.config.get(&0)?.map_or(0, |config| config.abi_version);
        if found != 0 && found != ABI_VERSION {
            return Err(DatapathError::Abi { path: self.pins.clone(), found });
        }
        // Whoever wrote addresses before may have known of a block that is said to be empty.
        self.maps.vacancy.forget();
        (self.tables, self.prefixes) = self.maps.read_tables()?;
        self.endpoints = self.maps.read_endpoints()?;
        self.restore_passages()?;
        let (services, next_list) = self.maps.read_services()?;
        (self.services, self.next_list) = (Arc::new(services), next_list);
        self.adopt_attached()?;
        self.forget_unjudged()?;
        self.finish_repairs()
    }
}

impl Maps {
    fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        Ok(Self {
            config: rows(ebpf, "CONFIG")?,
            endpoints: rows(ebpf, "ENDPOINTS")?,
            passages: Passages::new(&words(ebpf, "PASSAGES")?)?,
            vacancy: Vacancy::new(&words(ebpf, "VACANT")?)?,
            ipcache: rows(ebpf, "IPCACHE")?,
            ranges: rows(ebpf, "RANGES")?,
            tables: rows(ebpf, "TABLES")?,
            peers: rows(ebpf, "PEERS")?,
            cidrs: rows(ebpf, "CIDRS")?,
            ports: rows(ebpf, "PORTS")?,
            names: rows(ebpf, "NAMES")?,
            services: rows(ebpf, "SERVICES")?,
            backends: rows(ebpf, "BACKENDS")?,
            flows: Arc::new(rows(ebpf, "FLOWS")?),
            fragments: Arc::new(rows(ebpf, "FRAGMENTS")?),
            opened: Arc::new(rows(ebpf, "OPENED")?),
            released: Arc::new(rows(ebpf, "RELEASED")?),
            totals: Arc::new(Totals::new(&words(ebpf, "TOTALS")?)?),
            resolvers: rows(ebpf, "RESOLVERS")?,
            resolver_slots: rows(ebpf, "RESOLVER_SLOTS")?,
            hits: PerCpuHashMap::try_from(take(ebpf, "HITS")?)
                .map_err(|source| mistyped("HITS", source))?,
            counters: PerCpuArray::try_from(take(ebpf, "COUNTERS")?)
                .map_err(|source| mistyped("COUNTERS", source))?,
        })
    }
}

/// The name of the classifier that judges packets of a direction.
pub(super) const fn program_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "pod_egress",
        Direction::Ingress => "pod_ingress",
    }
}

pub(super) fn program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, DatapathError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(DatapathError::Missing { name })
}

/// The descriptor of a program that is loaded.
pub(super) fn descriptor<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<BorrowedFd<'a>, DatapathError> {
    let fd = program(ebpf, name)?
        .fd()
        .map_err(|source| DatapathError::Verifier { name, source: Box::new(source) })?;
    Ok(fd.as_fd())
}

/// Has the kernel check a program and keep it.
pub(super) fn verify(ebpf: &mut Ebpf, name: &'static str) -> Result<(), DatapathError> {
    program(ebpf, name)?
        .load()
        .map_err(|source| DatapathError::Verifier { name, source: Box::new(source) })
}

/// Makes the directories that pins lie in.
fn prepare(root: &Path) -> Result<PathBuf, DatapathError> {
    let pins = root.join(format!("v{}", seam::abi_version()));
    let exists = root.ancestors().find(|path| path.exists());
    let is_bpf = exists.is_some_and(|path| {
        rustix::fs::statfs(path)
            .is_ok_and(|stat| u64::try_from(stat.f_type).is_ok_and(|kind| kind == BPF_FS_MAGIC))
    });
    if !is_bpf {
        return Err(DatapathError::NoBpfFileSystem { path: root.to_path_buf() });
    }
    make_directory(&pins.join("maps"))?;
    make_directories(&pins)?;
    Ok(pins)
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, DatapathError> {
    ebpf.take_map(name).ok_or(DatapathError::Missing { name })
}

fn ring(ebpf: &mut Ebpf) -> Result<RingBuf<MapData>, DatapathError> {
    RingBuf::try_from(take(ebpf, "EVENTS")?).map_err(|source| mistyped("EVENTS", source))
}

fn rows<K: Pod, V: Pod>(ebpf: &mut Ebpf, name: &'static str) -> Result<Rows<K, V>, DatapathError> {
    let map = take(ebpf, name)?;
    #[expect(clippy::wildcard_enum_match_arm, reason = "every other kind of map is the wrong one")]
    let data = match map {
        Map::HashMap(data) | Map::LpmTrie(data) | Map::Array(data) | Map::LruHashMap(data) => data,
        _ => return Err(DatapathError::Missing { name }),
    };
    Rows::new(name, data)
}

/// An array that is shared as memory.
fn words(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData, DatapathError> {
    let Map::Array(data) = take(ebpf, name)? else {
        return Err(DatapathError::Missing { name });
    };
    Ok(data)
}

pub(super) fn mistyped(map: &'static str, source: aya::maps::MapError) -> DatapathError {
    DatapathError::MapType { map, source: Box::new(source) }
}
