//! Numbers that are in use, so that none means two things.

use super::Datapath;
use super::error::DatapathError;

/// The highest number of each kind that something in the maps carries, in force or left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Of a policy table.
    pub table: u32,
    /// [`crate::abi::Endpoint::generation`].
    pub generation: u32,
    /// [`crate::abi::Endpoint::epoch`].
    pub epoch: u32,
}

impl Numbers {
    fn raise(&mut self, table: u32, generation: u32, epoch: u32) {
        self.table = self.table.max(table);
        self.generation = self.generation.max(generation);
        self.epoch = self.epoch.max(epoch);
    }
}

impl Datapath {
    /// What flows, datagrams in pieces and endpoints carry. Reads the whole flow table: an agent that was
    /// killed may have let an endpoint go and left its flows, and whoever came next by the same numbers
    /// would have them.
    pub fn numbers(&self) -> Result<Numbers, DatapathError> {
        let mut numbers = Numbers::default();
        for table in self.tables() {
            numbers.raise(table, 0, 0);
        }
        for endpoint in self.endpoints.values().chain(self.inherited.values()) {
            numbers.raise(endpoint.table, endpoint.generation, endpoint.epoch);
        }
        self.maps.flows.walk(|key, flow| numbers.raise(flow.table, flow.generation, key.epoch))?;
        self.maps.fragments.walk(|_, first| numbers.raise(0, first.generation, first.epoch))?;
        for (key, _) in self.maps.opened.read_all()? {
            numbers.raise(0, 0, key.epoch);
        }
        Ok(numbers)
    }
}
