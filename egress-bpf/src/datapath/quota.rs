//! How many entries of the flow table each endpoint holds: the kernel counts those that come, user
//! space those that go, so that neither writes over the other's count.

use std::collections::BTreeMap;

use super::Datapath;
use super::error::DatapathError;
use crate::abi::{FlowKey, QuotaKey};

impl Datapath {
    /// Begins to count; without that, an endpoint opens nothing.
    pub(super) fn begin_quota(&self, key: &QuotaKey) -> Result<(), DatapathError> {
        if self.maps.opened.get(key)?.is_none() {
            self.maps.released.put(key, &0)?;
            self.maps.opened.put(key, &0)?;
        }
        Ok(())
    }

    /// What the kernel counted so far. Read before the flows are: what comes in between is then
    /// counted as there, and the endpoint has too little room until the next look, never too much.
    pub(super) fn opened(&self) -> Result<Vec<(QuotaKey, u64)>, DatapathError> {
        self.maps.opened.read_all()
    }

    /// Gives back what is no longer there: of all that was `opened`, these flows are `left`.
    pub(super) fn release<'a>(
        &self,
        opened: &[(QuotaKey, u64)],
        left: impl Iterator<Item = &'a FlowKey>,
    ) -> Result<(), DatapathError> {
        let mut held: BTreeMap<QuotaKey, u64> = BTreeMap::new();
        for flow in left {
            let key = QuotaKey { ifindex: flow.ifindex, epoch: flow.epoch };
            *held.entry(key).or_default() += 1;
            *held.entry(QuotaKey::ALL).or_default() += 1;
        }
        for (key, opened) in opened {
            let held = held.get(key).copied().unwrap_or(0);
            let endpoint = self.endpoints.get(&key.ifindex);
            let is_gone = endpoint.is_none_or(|endpoint| endpoint.epoch != key.epoch);
            if held == 0 && is_gone && *key != QuotaKey::ALL {
                self.maps.opened.remove(key)?;
                self.maps.released.remove(key)?;
            } else {
                self.maps.released.put(key, &opened.wrapping_sub(held))?;
            }
        }
        Ok(())
    }
}
