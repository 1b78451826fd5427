//! Looking at what the kernel counts and remembers, from any thread and without the owner's.

use std::collections::BTreeMap;
use std::path::Path;

use aya::maps::{Map, MapData, PerCpuArray, PerCpuHashMap};

use super::Datapath;
use super::batch::Rows;
use super::counters::{Counters, Hits, read_counters, read_hits};
use super::error::DatapathError;
use super::load::mistyped;
use super::quota::Totals;
use super::services::Written;
use super::tables::{RowKeys, hits_failed};
use crate::abi::{Flow, FlowKey, HitKey};

/// How much of a map is in use, as far as user space wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Name of the map.
    pub map: &'static str,
    /// Entries in it.
    pub used: u64,
    /// Entries that it can hold.
    pub max: u64,
}

/// The maps that the kernel writes, through descriptors of their own.
pub struct Reader {
    flows: Rows<FlowKey, Flow>,
    totals: Totals,
    hits: PerCpuHashMap<MapData, HitKey, u64>,
    counters: PerCpuArray<MapData, u64>,
}

impl Datapath {
    /// Opens the pinned maps once more, to be read beside the work.
    pub fn reader(&self) -> Result<Reader, DatapathError> {
        let maps = self.pins.join("maps");
        Ok(Reader {
            flows: Rows::new("FLOWS", pinned(&maps, "FLOWS")?)?,
            totals: Totals::new(&pinned(&maps, "TOTALS")?)?,
            hits: PerCpuHashMap::try_from(map(&maps, "HITS")?)
                .map_err(|source| mistyped("HITS", source))?,
            counters: PerCpuArray::try_from(map(&maps, "COUNTERS")?)
                .map_err(|source| mistyped("COUNTERS", source))?,
        })
    }

    /// How full the maps are that policies and pods fill: what was written is counted, the kernel is
    /// not asked. `addresses` of pods and nodes and `names`, learned addresses, are what the caller
    /// wrote.
    pub fn fill(&self, addresses: usize, names: usize) -> Result<Vec<Fill>, DatapathError> {
        let rows =
            |count: fn(&RowKeys) -> usize| -> usize { self.tables.values().map(count).sum() };
        let backends: usize = self.services.values().map(Written::backend_count).sum();
        let maps = &self.maps;
        let counted = [
            ("ENDPOINTS", self.endpoints.len(), maps.endpoints.capacity()?),
            ("IPCACHE", addresses, maps.ipcache.capacity()?),
            ("TABLES", rows(|keys| keys.tables.len()), maps.tables.capacity()?),
            ("PEERS", rows(|keys| keys.peers.len()), maps.peers.capacity()?),
            ("CIDRS", self.prefixes.row_count(), maps.cidrs.capacity()?),
            ("PORTS", rows(|keys| keys.ports.len()), maps.ports.capacity()?),
            ("NAMES", names, maps.names.capacity()?),
            ("SERVICES", self.services.len(), maps.services.capacity()?),
            ("BACKENDS", backends, maps.backends.capacity()?),
        ];
        let fill = |(map, used, max)| Fill { map, used: used as u64, max: u64::from(max) };
        Ok(counted.into_iter().map(fill).collect())
    }
}

impl Datapath {
    /// How many rows each map has that policies, pods and services fill, as the kernel has them. Reads
    /// all of them.
    pub fn rows(&self) -> Result<BTreeMap<&'static str, usize>, DatapathError> {
        let maps = &self.maps;
        let hits = maps.hits.keys().collect::<Result<Vec<_>, _>>();
        let hits = hits.map_err(|source| hits_failed("list", source))?;
        Ok(BTreeMap::from([
            ("ENDPOINTS", maps.endpoints.read_all()?.len()),
            ("IPCACHE", maps.ipcache.read_all()?.len()),
            ("TABLES", maps.tables.read_all()?.len()),
            ("PEERS", maps.peers.read_all()?.len()),
            ("CIDRS", maps.cidrs.read_all()?.len()),
            ("PORTS", maps.ports.read_all()?.len()),
            ("NAMES", maps.names.read_all()?.len()),
            ("SERVICES", maps.services.read_all()?.len()),
            ("BACKENDS", maps.backends.read_all()?.len()),
            ("RESOLVERS", maps.resolvers.read_all()?.len()),
            ("HITS", hits.len()),
        ]))
    }
}

impl Reader {
    /// Every flow that the kernel has an entry of, expired ones included. Reads the whole table: a
    /// matter of milliseconds for 10,000 flows.
    pub fn flows(&self) -> Result<Vec<(FlowKey, Flow)>, DatapathError> {
        self.flows.read_all()
    }

    /// How full the flow table is: what the kernel counted in, less what was given back.
    pub fn flow_fill(&self) -> Result<Fill, DatapathError> {
        let max = u64::from(self.flows.capacity()?);
        Ok(Fill { map: "FLOWS", used: self.totals.held().min(max), max })
    }

    /// Reads the packet counters.
    pub fn counters(&self) -> Result<Counters, DatapathError> {
        read_counters(&self.counters)
    }

    /// Reads how often rules decided about flows.
    pub fn hits(&self) -> Result<Hits, DatapathError> {
        read_hits(&self.hits)
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reader")
    }
}

fn pinned(maps: &Path, name: &'static str) -> Result<MapData, DatapathError> {
    MapData::from_pin(maps.join(name)).map_err(|source| mistyped(name, source))
}

fn map(maps: &Path, name: &'static str) -> Result<Map, DatapathError> {
    Map::from_map_data(pinned(maps, name)?).map_err(|source| mistyped(name, source))
}
