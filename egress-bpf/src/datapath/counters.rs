//! Counters: packets by direction and reason, decisions by rule.

use std::collections::BTreeMap;

use aya::maps::{MapData, PerCpuArray, PerCpuHashMap};

use super::Datapath;
use super::error::DatapathError;
use super::events::Reason;
use super::tables::hits_failed;
use crate::abi::{COUNTER_SLOTS, Direction, HitKey};

/// Packets since the maps were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// By direction and reason; what is missing is zero. Their sum is every packet that a program
    /// saw.
    pub packets: BTreeMap<(Direction, Reason), u64>,
    /// Events that found no room, by direction of the packet.
    pub events_lost: BTreeMap<Direction, u64>,
}

/// Decisions by table, direction in which flows are opened, and position of the clause.
pub type Hits = BTreeMap<(u32, Direction, u16), u64>;

impl Datapath {
    /// Reads the packet counters.
    pub fn counters(&self) -> Result<Counters, DatapathError> {
        read_counters(&self.maps.counters)
    }

    /// Reads how often rules decided about flows.
    pub fn hits(&self) -> Result<Hits, DatapathError> {
        read_hits(&self.maps.hits)
    }
}

pub(super) fn read_counters(map: &PerCpuArray<MapData, u64>) -> Result<Counters, DatapathError> {
    let mut counters = Counters::default();
    for direction in [Direction::Egress, Direction::Ingress] {
        for number in 0..COUNTER_SLOTS {
            let place = direction as u32 * COUNTER_SLOTS + number;
            let values = map.get(&place, 0).map_err(|source| DatapathError::Map {
                map: "COUNTERS",
                what: "read",
                source: std::io::Error::other(source),
            })?;
            let sum: u64 = values.iter().sum();
            if sum == 0 {
                continue;
            }
            if number == COUNTER_SLOTS - 1 {
                counters.events_lost.insert(direction, sum);
            } else if let Some(reason) = u8::try_from(number).ok().and_then(Reason::from_number) {
                counters.packets.insert((direction, reason), sum);
            }
        }
    }
    Ok(counters)
}

pub(super) fn read_hits(map: &PerCpuHashMap<MapData, HitKey, u64>) -> Result<Hits, DatapathError> {
    let mut hits = Hits::new();
    for entry in map.iter() {
        let (key, values) = entry.map_err(|source| hits_failed("list", source))?;
        let direction = u8::try_from(key.direction).ok().and_then(Direction::from_number);
        if let Some(direction) = direction {
            hits.insert((key.table, direction, key.clause), values.iter().sum());
        }
    }
    Ok(hits)
}
