//! Removing dead flows, and finding out which learned addresses live ones use.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use namegate_policy::identity::Identity;
use namegate_policy::time::Timestamp;

use super::batch::Rows;
use super::error::DatapathError;
use super::quota::Totals;
use super::services::{Written, lacks_backend};
use super::{Datapath, EndpointEntry};
use crate::abi::{
    Backend, FLOW_REVOKED, Flow, FlowKey, Fragment, FragmentKey, QuotaKey, ROLE_HAIRPIN,
    ROLE_HAIRPIN_SERVER, ROLE_PLAIN, ROLE_REPLY, ROLE_TRANSLATED, ServiceKey,
};
use crate::packet::protocol;
use crate::verdict::flow_is_expired;

/// How old an entry is when all that belongs to it must be there: the other half of its flow, and in
/// what a broom noted, the backend it goes to. Longer than a tick, by which the kernel's clock is late.
const SETTLED_NS: u64 = 1_000_000_000;

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

/// The flow table as it was at one time.
pub struct Survey {
    flows: Vec<(FlowKey, Flow)>,
}

/// Whether a flow is kept.
enum Standing {
    /// It lives, and is this identity's.
    Live(Identity),
    /// Nothing was seen of it for too long; a packet may open it again at any time.
    Expired,
    /// It is nobody's, or goes where it should not: whatever is still seen of it.
    Over,
}

/// What sweeps the flow table, beside the work of whoever writes the maps.
pub struct Broom {
    flows: Arc<Rows<FlowKey, Flow>>,
    fragments: Arc<Rows<FragmentKey, Fragment>>,
    opened: Arc<Rows<QuotaKey, u64>>,
    released: Arc<Rows<QuotaKey, u64>>,
    totals: Arc<Totals>,
    /// What the kernel had counted of all.
    all_counted: u64,
    /// What the kernel had counted before the endpoints were noted down: of whom anything is counted, it
    /// is known whether they are there.
    counted: Vec<(QuotaKey, u64)>,
    endpoints: BTreeMap<u32, (u32, Identity)>,
    /// The highest epoch that was given by then. Who has a higher one came since.
    last_epoch: u32,
    services: Arc<BTreeMap<ServiceKey, Written>>,
}

impl Datapath {
    /// Sweeps at once: [`Broom::sweep`].
    pub fn sweep(&mut self, now: Timestamp) -> Result<Sweep, DatapathError> {
        self.broom()?.sweep(now)
    }

    /// Notes down what a sweep has to know; it may then run on another thread, one at a time.
    pub fn broom(&self) -> Result<Broom, DatapathError> {
        let all_counted = self.maps.totals.opened();
        let counted = self.maps.opened.read_all()?;
        let noted = |(ifindex, endpoint): (&u32, &EndpointEntry)| {
            (*ifindex, (endpoint.epoch, endpoint.identity))
        };
        // Those that an earlier agent enforced have flows and counts that were carried over, until they
        // are written anew.
        let known = self.inherited.iter().chain(&self.endpoints);
        let endpoints: BTreeMap<u32, (u32, Identity)> = known.map(noted).collect();
        let epochs = endpoints.values().map(|(epoch, _)| *epoch);
        let last_epoch = epochs.chain(counted.iter().map(|(key, _)| key.epoch)).max();
        let maps = &self.maps;
        Ok(Broom {
            flows: Arc::clone(&maps.flows),
            fragments: Arc::clone(&maps.fragments),
            opened: Arc::clone(&maps.opened),
            released: Arc::clone(&maps.released),
            totals: Arc::clone(&maps.totals),
            all_counted,
            counted,
            endpoints,
            last_epoch: last_epoch.unwrap_or(0),
            services: Arc::clone(&self.services),
        })
    }

    /// Every flow that the kernel has an entry of, expired ones included.
    pub fn flows(&self) -> Result<BTreeMap<FlowKey, Flow>, DatapathError> {
        Ok(self.maps.flows.read_all()?.into_iter().collect())
    }
}

impl Broom {
    /// Removes the flows that have expired or whose endpoint is gone, and lists what the others
    /// use. `now` is a time before the broom was made: a flow may go to a backend that came since. Reads
    /// the whole flow table: a matter of milliseconds for 10,000 flows.
    pub fn sweep(self, now: Timestamp) -> Result<Sweep, DatapathError> {
        let survey = self.survey()?;
        let swept = self.clear(survey, now)?;
        self.sweep_fragments(now)?;
        Ok(swept)
    }

    /// Reads the flow table: the first half of [`Broom::sweep`].
    pub fn survey(&self) -> Result<Survey, DatapathError> {
        Ok(Survey { flows: self.flows.read_all()? })
    }

    /// Removes what a survey found dead: the second half of [`Broom::sweep`]. A flow that a packet
    /// opened again since lives.
    pub fn clear(&self, survey: Survey, now: Timestamp) -> Result<Sweep, DatapathError> {
        let mut sweep = Sweep::default();
        let (mut over, mut expired, mut left) = (Vec::new(), Vec::new(), Vec::new());
        let mut halves = Vec::new();
        let mut translated = HashSet::new();
        for (key, flow) in survey.flows {
            if key.epoch > self.last_epoch {
                continue;
            }
            if matches!(flow.role, ROLE_REPLY | ROLE_HAIRPIN_SERVER) {
                halves.push((key, flow));
                continue;
            }
            let identity = match self.standing(&key, &flow, now) {
                Standing::Live(identity) => identity,
                Standing::Expired => {
                    expired.push((key, flow));
                    continue;
                }
                Standing::Over => {
                    over.push(key);
                    continue;
                }
            };
            sweep.live += 1;
            left.push(key);
            let remote = if flow.role == ROLE_PLAIN { key.remote } else { flow.peer };
            if flow.role != ROLE_PLAIN {
                translated.insert(key);
            }
            if flow.may_be_own() && flow.state != FLOW_REVOKED {
                sweep.in_use.insert((identity, remote.into()));
            }
        }
        // The other half of a flow goes with it.
        for (key, half) in halves {
            // The half is written first: its flow may follow at once.
            let is_young = !is_settled(&half, now);
            if self.owner(&key).is_some() && is_young || translated.contains(&whole(&key, &half)) {
                left.push(key);
            } else {
                expired.push((key, half));
            }
        }
        sweep.removed = over.len() + expired.len();
        self.flows.remove_all(&over)?;
        let (again, removed) = self.remove_unchanged(&expired);
        sweep.removed -= again.len();
        sweep.live += again.len();
        self.release(left.iter().chain(&again))?;
        removed.map(|()| sweep)
    }

    /// Removes flows that nothing was seen of since they were read, and says of which there was. One of
    /// these is put back, unless a packet that found nothing in between wrote it anew. What fails with one
    /// keeps none of the others.
    fn remove_unchanged(
        &self,
        expired: &[(FlowKey, Flow)],
    ) -> (Vec<FlowKey>, Result<(), DatapathError>) {
        let (mut again, mut outcome) = (Vec::new(), Ok(()));
        for (key, read) in expired {
            let is_left = self.flows.take(key).and_then(|found| match found {
                Some(found) if found != *read => {
                    let put_back = || self.flows.put_new(key, &found);
                    // There was room for it.
                    put_back().or_else(|_| put_back()).map(|_| true)
                }
                Some(_) | None => Ok(false),
            });
            match is_left {
                Ok(true) => again.push(*key),
                Ok(false) => {}
                Err(error) => {
                    // Counted as there: the next sweep knows.
                    again.push(*key);
                    outcome = outcome.and(Err(error));
                }
            }
        }
        (again, outcome)
    }

    /// Gives back the places of datagrams whose pieces are no longer waited for.
    fn sweep_fragments(&self, now: Timestamp) -> Result<(), DatapathError> {
        let fragments = self.fragments.read_all()?;
        let over: Vec<FragmentKey> = fragments
            .into_iter()
            .filter(|(_, fragment)| fragment.deadline_ns <= now.as_nanos())
            .map(|(key, _)| key)
            .collect();
        self.fragments.remove_all(&over)
    }

    /// Gives back the room of flows that are no longer there: of all that was counted, these are `left`.
    fn release<'a>(&self, left: impl Iterator<Item = &'a FlowKey>) -> Result<(), DatapathError> {
        let mut held: BTreeMap<QuotaKey, u64> = BTreeMap::new();
        for flow in left {
            let key = QuotaKey { ifindex: flow.ifindex, epoch: flow.epoch };
            *held.entry(key).or_default() += 1;
        }
        self.totals.release(self.all_counted.wrapping_sub(held.values().sum()));
        for (key, counted) in &self.counted {
            let held = held.get(key).copied().unwrap_or(0);
            let endpoint = self.endpoints.get(&key.ifindex);
            let is_gone = endpoint.is_none_or(|(epoch, _)| *epoch != key.epoch);
            if held == 0 && is_gone {
                self.opened.remove(key)?;
                self.released.remove(key)?;
            } else {
                self.released.put(key, &counted.wrapping_sub(held))?;
            }
        }
        Ok(())
    }

    fn standing(&self, key: &FlowKey, flow: &Flow, now: Timestamp) -> Standing {
        match self.owner(key) {
            Some(_) if is_settled(flow, now) && self.is_abandoned(key, flow) => Standing::Over,
            Some(_) if flow_is_expired(key.protocol, flow, now.as_nanos()) => Standing::Expired,
            Some(identity) => Standing::Live(identity),
            None => Standing::Over,
        }
    }

    /// The identity of the endpoint that has the flow, if it is there.
    fn owner(&self, key: &FlowKey) -> Option<Identity> {
        let endpoint = self.endpoints.get(&key.ifindex);
        endpoint.filter(|(epoch, _)| *epoch == key.epoch).map(|(_, identity)| *identity)
    }

    /// Whether a flow of datagrams goes to a backend that its service has lost: its next packet finds
    /// another. A TCP connection ends by itself.
    fn is_abandoned(&self, key: &FlowKey, flow: &Flow) -> bool {
        let service = ServiceKey {
            address: key.remote,
            port: key.remote_port,
            protocol: key.protocol,
            padding: 0,
        };
        let backend = Backend { address: flow.peer, port: flow.peer_port, padding: [0; 2] };
        matches!(flow.role, ROLE_TRANSLATED | ROLE_HAIRPIN)
            && key.protocol == protocol::UDP
            && lacks_backend(&self.services, &service, &backend)
    }
}

/// Whether a flow was there for a while before `now`. Both are times of the monotonic clock.
const fn is_settled(flow: &Flow, now: Timestamp) -> bool {
    flow.created_ns.saturating_add(SETTLED_NS) <= now.as_nanos()
}

/// The key of the flow that the entry of its other half belongs to.
const fn whole(key: &FlowKey, half: &Flow) -> FlowKey {
    if half.role == ROLE_REPLY {
        FlowKey { remote: half.peer, remote_port: half.peer_port, ..*key }
    } else {
        FlowKey {
            local: half.peer,
            local_port: key.remote_port,
            remote_port: half.peer_port,
            ..*key
        }
    }
}
