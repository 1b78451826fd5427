//! Removing dead flows, and finding out which learned addresses live ones use.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use namegate_policy::identity::Identity;
use namegate_policy::time::Timestamp;

use super::Datapath;
use super::error::DatapathError;
use crate::abi::{
    Backend, FLOW_REVOKED, Flow, FlowKey, FragmentKey, QuotaKey, ROLE_HAIRPIN, ROLE_HAIRPIN_SERVER,
    ROLE_PLAIN, ROLE_REPLY, ROLE_TRANSLATED, ServiceKey,
};
use crate::packet::protocol;
use crate::verdict::flow_is_expired;

/// How old the entry of a flow's other half is when the flow itself must be there.
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
    opened: Vec<(QuotaKey, u64)>,
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

impl Datapath {
    /// Removes the flows that have expired or whose endpoint is gone, and lists what the others
    /// use. Reads the whole flow table: a matter of milliseconds for 10,000 flows, so it belongs
    /// beside the work, not into it.
    pub fn sweep(&mut self, now: Timestamp) -> Result<Sweep, DatapathError> {
        let survey = self.survey()?;
        let swept = self.clear(survey, now)?;
        self.sweep_fragments(now)?;
        Ok(swept)
    }

    /// Reads the flow table: the first half of [`Datapath::sweep`].
    pub fn survey(&self) -> Result<Survey, DatapathError> {
        let opened = self.opened()?;
        Ok(Survey { opened, flows: self.maps.flows.read_all()? })
    }

    /// Removes what a survey found dead: the second half of [`Datapath::sweep`]. A flow that a packet
    /// opened again since lives.
    pub fn clear(&mut self, survey: Survey, now: Timestamp) -> Result<Sweep, DatapathError> {
        let mut sweep = Sweep::default();
        let (mut over, mut expired, mut left) = (Vec::new(), Vec::new(), Vec::new());
        let mut halves = Vec::new();
        let mut translated = HashSet::new();
        for (key, flow) in survey.flows {
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
            let is_young = half.created_ns.saturating_add(SETTLED_NS) > now.as_nanos();
            let endpoint = self.endpoints.get(&key.ifindex);
            let is_owned = endpoint.is_some_and(|endpoint| endpoint.epoch == key.epoch);
            if is_owned && is_young || translated.contains(&whole(&key, &half)) {
                left.push(key);
            } else {
                expired.push((key, half));
            }
        }
        sweep.removed = over.len() + expired.len();
        self.maps.flows.remove_all(&over)?;
        let again = self.remove_unchanged(&expired)?;
        sweep.removed -= again.len();
        sweep.live += again.len();
        self.release(&survey.opened, left.iter().chain(&again))?;
        Ok(sweep)
    }

    /// Removes flows that nothing was seen of since they were read, and says of which there was. One of
    /// these is put back, unless a packet that found nothing in between wrote it anew.
    fn remove_unchanged(&self, expired: &[(FlowKey, Flow)]) -> Result<Vec<FlowKey>, DatapathError> {
        let mut again = Vec::new();
        for (key, read) in expired {
            let Some(found) = self.maps.flows.take(key)? else {
                continue;
            };
            if found != *read {
                self.maps.flows.put_new(key, &found)?;
                again.push(*key);
            }
        }
        Ok(again)
    }

    /// Gives back the places of datagrams whose pieces are no longer waited for.
    fn sweep_fragments(&self, now: Timestamp) -> Result<(), DatapathError> {
        let fragments = self.maps.fragments.read_all()?;
        let over: Vec<FragmentKey> = fragments
            .into_iter()
            .filter(|(_, fragment)| fragment.deadline_ns <= now.as_nanos())
            .map(|(key, _)| key)
            .collect();
        self.maps.fragments.remove_all(&over)
    }

    /// Every flow that the kernel has an entry of, expired ones included.
    pub fn flows(&self) -> Result<BTreeMap<FlowKey, Flow>, DatapathError> {
        Ok(self.maps.flows.read_all()?.into_iter().collect())
    }

    fn standing(&self, key: &FlowKey, flow: &Flow, now: Timestamp) -> Standing {
        let endpoint = self.endpoints.get(&key.ifindex);
        match endpoint.filter(|endpoint| endpoint.epoch == key.epoch) {
            Some(_) if self.is_abandoned(key, flow) => Standing::Over,
            Some(_) if flow_is_expired(key.protocol, flow, now.as_nanos()) => Standing::Expired,
            Some(endpoint) => Standing::Live(endpoint.identity),
            None => Standing::Over,
        }
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
            && self.lacks_backend(&service, &backend)
    }
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
