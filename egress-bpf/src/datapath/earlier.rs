//! Taking over from agents whose maps have another layout.
//!
//! Each version of the ABI has a directory of pins. An agent loads its programs beside those of
//! another version, over maps of its own, and fills these while the old programs go on judging. Then
//! each link gets the new program in place of the old one: one system call, before and after which
//! packets are judged whole by one of the two. What is left of the old version goes last.
//!
//! Carried over are the endpoints (so that a pod's flows stay its own) and the flows, from versions
//! whose rows of both are those of this one. Policies, addresses, services and resolvers are written
//! anew from the objects, learned names from what the agent keeps on disk. Counters begin at zero, and
//! later pieces of datagrams whose first piece came before are dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::MapData;

use super::attach::{detach_all, forget_all, is_judged};
use super::batch::Rows;
use super::error::DatapathError;
use super::spot::{LINKS, Spot, attached, interface, remove_tree};
use super::{Datapath, EndpointEntry, clsact, seam};
use crate::abi::{Endpoint, FLOWS_SINCE, Flow, FlowKey, QuotaKey};

/// What an agent of another version left.
#[derive(Debug)]
pub(super) struct Earlier {
    pins: PathBuf,
    /// Interfaces that its programs were found on.
    judged: BTreeSet<u32>,
    /// Its flows, and those of them that were copied, while they can be read.
    flows: Option<(Rows<FlowKey, Flow>, BTreeMap<FlowKey, Flow>)>,
}

/// The versions that left something below `root`, and their directories, the latest first.
pub(super) fn versions(root: &Path) -> Result<Vec<(u32, PathBuf)>, DatapathError> {
    let failed = |source| DatapathError::Pins { what: "list", path: root.to_path_buf(), source };
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let pins = entry.map_err(failed)?.path();
        let version =
            pins.file_name().and_then(|name| name.to_str()?.strip_prefix('v')?.parse::<u32>().ok());
        if let Some(version) = version
            && pins.join(LINKS).is_dir()
        {
            found.push((version, pins));
        }
    }
    found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    Ok(found)
}

impl Earlier {
    pub(super) fn pins(&self) -> &Path {
        &self.pins
    }

    fn map<K: aya::Pod, V: aya::Pod>(
        &self,
        name: &'static str,
    ) -> Result<Rows<K, V>, DatapathError> {
        let data = MapData::from_pin(self.pins.join("maps").join(name))
            .map_err(|source| DatapathError::MapType { map: name, source: Box::new(source) })?;
        Rows::new(name, data)
    }
}

impl Datapath {
    /// Finds what agents of other versions left, and copies what can be carried over. Their programs
    /// judge on until [`Datapath::attach`] replaces them.
    pub(super) fn find_earlier(&mut self, root: &Path) -> Result<(), DatapathError> {
        for (version, pins) in versions(root)? {
            if pins == self.pins {
                continue;
            }
            let mut earlier = Earlier { pins, judged: BTreeSet::new(), flows: None };
            let there = attached(&earlier.pins)?;
            tracing::info!(
                version,
                interfaces = there.len(),
                "an agent of another version was here"
            );
            for ifindex in there {
                if interface(ifindex).is_err() {
                    detach_all(&earlier.pins, ifindex)?;
                } else if is_judged(&earlier.pins, ifindex)? {
                    self.attached.insert(ifindex);
                    earlier.judged.insert(ifindex);
                } else {
                    forget_all(&earlier.pins, ifindex)?;
                    clsact::hand_over(&earlier.pins, &self.pins, ifindex)?;
                }
            }
            let is_first = self.inherited.is_empty();
            if is_first && (FLOWS_SINCE..=seam::abi_version()).contains(&version) {
                let copied = self.copy_flows(&mut earlier);
                match copied.or_else(|_| self.copy_flows(&mut earlier)) {
                    Ok(copied) => tracing::info!(version, copied, "flows are carried over"),
                    // What cannot be read or has no room begins anew.
                    Err(error) => tracing::warn!(version, %error, "flows are not carried over"),
                }
            }
            self.earlier.push(earlier);
        }
        Ok(())
    }

    /// The endpoints that an agent of another version enforced.
    pub fn inherited(&self) -> &BTreeMap<u32, EndpointEntry> {
        &self.inherited
    }

    /// Ends the take-over from agents of other versions, once what this one enforces is in force:
    /// brings over what their programs noted until they were replaced, and removes what is left of
    /// those that judge on no interface any more.
    pub fn retire_earlier(&mut self) -> Result<(), DatapathError> {
        for mut earlier in std::mem::take(&mut self.earlier) {
            self.copy_later_flows(&mut earlier)?;
            let left = attached(&earlier.pins)?;
            if left.is_empty() {
                remove_tree(&earlier.pins)?;
            } else {
                let pins = earlier.pins.display();
                tracing::warn!(%pins, interfaces = ?left, "programs of another version judge on");
                self.earlier.push(earlier);
            }
        }
        Ok(())
    }

    /// The same place as agents of other versions know it.
    pub(super) fn earlier_spots(&self, own: &Spot) -> Vec<Spot> {
        let known = |earlier: &Earlier| Spot { pins: earlier.pins.clone(), ..own.clone() };
        self.earlier.iter().map(known).collect()
    }

    fn copy_flows(&mut self, earlier: &mut Earlier) -> Result<usize, DatapathError> {
        let endpoints: Rows<u32, Endpoint> = earlier.map("ENDPOINTS")?;
        let old: Rows<FlowKey, Flow> = earlier.map("FLOWS")?;
        let flows: BTreeMap<FlowKey, Flow> = old.read_all()?.into_iter().collect();
        // An agent that was killed in the midst of this may have come further with some.
        let known: BTreeMap<FlowKey, Flow> = self.maps.flows.read_all()?.into_iter().collect();
        let (keys, values): (Vec<FlowKey>, Vec<Flow>) =
            flows.iter().filter(|(key, _)| !known.contains_key(*key)).unzip();
        let all: BTreeSet<&FlowKey> = flows.keys().chain(known.keys()).collect();
        self.count_flows(all.into_iter())?;
        self.maps.flows.put_all(&keys, &values)?;
        for (ifindex, row) in endpoints.read_all()? {
            if !self.endpoints.contains_key(&ifindex) && earlier.judged.contains(&ifindex) {
                let entry = EndpointEntry::from_row(ifindex, &row);
                self.inherited.extend(entry.map(|entry| (ifindex, entry)));
            }
        }
        earlier.flows = Some((old, flows));
        Ok(keys.len())
    }

    /// Copies what changed since the first copy, where this build's program did not see the flow yet.
    fn copy_later_flows(&self, earlier: &mut Earlier) -> Result<(), DatapathError> {
        let Some((old, copied)) = earlier.flows.take() else { return Ok(()) };
        for (key, flow) in old.read_all()? {
            let before = copied.get(&key);
            if before != Some(&flow) && self.maps.flows.get(&key)?.as_ref() == before {
                self.maps.flows.put(&key, &flow)?;
            }
        }
        Ok(())
    }

    /// Begins the counts of who holds how many flows; a sweep puts right what comes later.
    fn count_flows<'a>(
        &self,
        flows: impl Iterator<Item = &'a FlowKey>,
    ) -> Result<(), DatapathError> {
        let mut held: BTreeMap<QuotaKey, u64> = BTreeMap::new();
        for flow in flows {
            *held.entry(QuotaKey { ifindex: flow.ifindex, epoch: flow.epoch }).or_default() += 1;
        }
        self.maps.totals.begin(held.values().sum());
        for (key, count) in held {
            self.maps.released.put(&key, &0)?;
            self.maps.opened.put(&key, &count)?;
        }
        Ok(())
    }
}
