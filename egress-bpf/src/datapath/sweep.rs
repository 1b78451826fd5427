//! Removing dead flows, and finding out which learned addresses live ones use.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use namegate_policy::identity::Identity;
use namegate_policy::time::Timestamp;

use super::Datapath;
use super::error::DatapathError;
use crate::abi::{Direction, FLOW_REVOKED, Flow, FlowKey};
use crate::verdict::flow_is_expired;

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Who has live flows that it opened, to which address.
    pub in_use: BTreeSet<(Identity, IpAddr)>,
    /// How many flows live.
    pub live: usize,
    /// How many were removed.
    pub removed: usize,
}

impl Datapath {
    /// Removes the flows that have expired or whose endpoint is gone, and lists what the others
    /// use. Reads the whole flow table: a matter of milliseconds for 10,000 flows, so it belongs
    /// beside the work, not into it.
    pub fn sweep(&mut self, now: Timestamp) -> Result<Sweep, DatapathError> {
        let mut sweep = Sweep::default();
        let mut dead = Vec::new();
        for (key, flow) in self.maps.flows.read_all()? {
            match self.owner(&key, &flow, now) {
                Some(identity) => {
                    sweep.live += 1;
                    if flow.initiator == Direction::Egress as u8 && flow.state != FLOW_REVOKED {
                        sweep.in_use.insert((identity, key.remote.into()));
                    }
                }
                None => dead.push(key),
            }
        }
        sweep.removed = dead.len();
        self.maps.flows.remove_all(&dead)?;
        Ok(sweep)
    }

    /// Every flow that the kernel has an entry of, expired ones included.
    pub fn flows(&self) -> Result<BTreeMap<FlowKey, Flow>, DatapathError> {
        Ok(self.maps.flows.read_all()?.into_iter().collect())
    }

    /// The identity of the endpoint that a flow belongs to; `None` where it is dead.
    fn owner(&self, key: &FlowKey, flow: &Flow, now: Timestamp) -> Option<Identity> {
        let endpoint = self.endpoints.get(&key.ifindex)?;
        let is_alive =
            endpoint.epoch == key.epoch && !flow_is_expired(key.protocol, flow, now.as_nanos());
        is_alive.then_some(endpoint.identity)
    }
}
