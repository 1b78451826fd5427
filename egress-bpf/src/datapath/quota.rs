//! How many entries of the flow table each endpoint holds: the kernel counts those that come, user
//! space those that go, so that neither writes over the other's count.

use super::Datapath;
use super::error::DatapathError;
use crate::abi::QuotaKey;

impl Datapath {
    /// Begins to count; without that, an endpoint opens nothing.
    pub(super) fn begin_quota(&self, key: &QuotaKey) -> Result<(), DatapathError> {
        if self.maps.opened.get(key)?.is_none() {
            self.maps.released.put(key, &0)?;
            self.maps.opened.put(key, &0)?;
        }
        Ok(())
    }
}
