//! Addresses: the ipcache, cluster ranges, learned names, resolvers, and the configuration.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use namegate_policy::identity::Identity;

use super::error::DatapathError;
use super::pods::{RangeTrieKey, TrieKey};
use super::{Datapath, Settings};
use crate::abi::{
    ABI_VERSION, Address, CONFIG_INCOMPLETE, CONFIG_OTHER_PROTOCOLS, CONFIG_RANGES, Config, Mac,
    NameEntry, NameKey, PeerKey, RESOLVERS_MAX, RuleSet,
};
use crate::compile::NameWrites;
use crate::verdict::IDENTITY_UNKNOWN;

impl Datapath {
    /// Writes what does not belong to an endpoint.
    pub fn configure(&mut self, settings: &Settings) -> Result<(), DatapathError> {
        let mut flags = self.config_flags()? & (CONFIG_RANGES | CONFIG_INCOMPLETE);
        if settings.judges_other_protocols {
            flags |= CONFIG_OTHER_PROTOCOLS;
        }
        let mut config = Config {
            abi_version: ABI_VERSION,
            flags,
            proxy_ifindex: 0,
            proxy_port: 0,
            proxy_mac: Mac::default(),
            flows_max: self.flows_max,
            proxy_v4: Address::UNSPECIFIED,
            proxy_v6: Address::UNSPECIFIED,
        };
        if let Some(proxy) = &settings.proxy {
            config.proxy_ifindex = proxy.ifindex;
            config.proxy_port = proxy.port;
            config.proxy_mac = Mac(proxy.mac);
            config.proxy_v4 = IpAddr::V4(proxy.v4).into();
            config.proxy_v6 = IpAddr::V6(proxy.v6).into();
        }
        self.maps.config.put(&0, &config)
    }

    /// Writes the resolvers whose lookups are taken, by slot. A slot keeps its resolver for as
    /// long as answers for it may be under way.
    pub fn set_resolvers(&mut self, resolvers: &BTreeMap<u8, IpAddr>) -> Result<(), DatapathError> {
        if let Some(&slot) = resolvers.keys().find(|slot| usize::from(**slot) >= RESOLVERS_MAX) {
            return Err(DatapathError::Slot { slot });
        }
        for (slot, resolver) in resolvers {
            let (address, place) = (Address::from(*resolver), place(*slot, *resolver));
            self.maps.resolver_slots.put(&place, &address)?;
            self.maps.resolvers.put(&address, &u32::from(*slot))?;
        }
        for (address, slot) in self.maps.resolvers.read_all()? {
            let kept = u8::try_from(slot).ok().and_then(|slot| resolvers.get(&slot));
            if kept.is_none_or(|kept| Address::from(*kept) != address) {
                self.maps.resolvers.remove(&address)?;
            }
        }
        for (place, address) in self.maps.resolver_slots.read_all()? {
            let slot = u8::try_from(place % RESOLVERS_MAX as u32).unwrap_or(u8::MAX);
            let kept = resolvers.get(&slot).map(|kept| Address::from(*kept));
            if address != Address::UNSPECIFIED && kept != Some(address) {
                self.maps.resolver_slots.put(&place, &Address::UNSPECIFIED)?;
            }
        }
        Ok(())
    }

    /// Writes who addresses are. Where an identity is a new one to a table in force, its rows come
    /// before this. Where one cannot be written, no address stays somebody else's.
    pub fn put_identities(
        &mut self,
        entries: &BTreeMap<IpAddr, Identity>,
    ) -> Result<(), DatapathError> {
        let (addresses, identities): (Vec<Address>, Vec<u32>) = entries
            .iter()
            .map(|(address, identity)| (Address::from(*address), identity.number()))
            .unzip();
        self.write_identities(&addresses, &identities)
    }

    /// Writes that nobody knows who these addresses are: new flows with them are dropped, whatever a
    /// table says of an address that is not found.
    pub fn close_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), DatapathError> {
        let addresses: Vec<Address> = addresses.iter().copied().map(Address::from).collect();
        self.write_identities(&addresses, &vec![IDENTITY_UNKNOWN; addresses.len()])
    }

    fn write_identities(
        &mut self,
        addresses: &[Address],
        identities: &[u32],
    ) -> Result<(), DatapathError> {
        self.maps.vacancy.take(addresses);
        let Err(mut failure) = self.maps.ipcache.put_all(addresses, identities) else {
            return Ok(());
        };
        let written = if let DatapathError::Full { written, .. } = failure { written } else { 0 };
        for address in addresses.iter().skip(written) {
            // A row that is there takes no room to write over.
            if self.maps.ipcache.put(address, &IDENTITY_UNKNOWN).is_err()
                && let Err(error) = self.maps.ipcache.remove(address)
            {
                failure = error;
            }
        }
        Err(failure)
    }

    /// Forgets who addresses are.
    pub fn remove_identities(&mut self, addresses: &[IpAddr]) -> Result<(), DatapathError> {
        let addresses: Vec<Address> = addresses.iter().copied().map(Address::from).collect();
        self.maps.ipcache.remove_all(&addresses)
    }

    /// Says whether every address, service and resolver is written. While they are not, a new flow
    /// with an address that is not found is dropped, for it may be anybody's, and so is what goes to
    /// the node from endpoints whose services are translated, and a lookup of governed endpoints that
    /// goes to no resolver that is known.
    pub fn set_complete(&mut self, is_complete: bool) -> Result<(), DatapathError> {
        let Some(mut config) = self.maps.config.get(&0)? else {
            return Ok(());
        };
        config.flags &= !CONFIG_INCOMPLETE;
        if !is_complete {
            config.flags |= CONFIG_INCOMPLETE;
        }
        self.maps.config.put(&0, &config)?;
        if is_complete { self.find_vacancy() } else { Ok(()) }
    }

    /// Who addresses are, as the kernel has it; `None` for those that are closed.
    pub fn addresses(&self) -> Result<BTreeMap<IpAddr, Option<Identity>>, DatapathError> {
        let rows = self.maps.ipcache.read_all()?;
        Ok(rows
            .into_iter()
            .map(|(address, number)| (address.into(), Identity::new(number)))
            .collect())
    }

    /// Writes the identities of prefixes, for addresses that the ipcache has not.
    pub fn set_ranges(&mut self, ranges: &BTreeMap<IpNet, Identity>) -> Result<(), DatapathError> {
        let wanted: BTreeMap<RangeTrieKey, u32> =
            ranges.iter().map(|(net, identity)| (range_key(net), identity.number())).collect();
        for (key, identity) in &wanted {
            self.maps.ranges.put(key, identity)?;
        }
        for (key, _) in self.maps.ranges.read_all()? {
            if !wanted.contains_key(&key) {
                self.maps.ranges.remove(&key)?;
            }
        }
        let Some(mut config) = self.maps.config.get(&0)? else {
            return Ok(());
        };
        config.abi_version = ABI_VERSION;
        config.flags &= !CONFIG_RANGES;
        if !wanted.is_empty() {
            config.flags |= CONFIG_RANGES;
        }
        self.maps.config.put(&0, &config)
    }

    /// Writes what an identity learned: addresses that go make room for those that come, and classes
    /// are there before the addresses that carry them. When it returns without an error, the
    /// kernel has it all. [`DatapathError::Full`] says which map took
    /// how many; what was written then stays, and opens nothing that the writes do not.
    pub fn write_names(&mut self, writes: &NameWrites) -> Result<(), DatapathError> {
        self.maps.names.remove_all(&writes.delete_entries)?;
        let (classes, rules): (Vec<PeerKey>, Vec<RuleSet>) =
            writes.classes.iter().map(|(key, rules)| (*key, *rules)).unzip();
        self.note_classes(&classes)?;
        self.maps.peers.put_all(&classes, &rules)?;
        let (names, entries): (Vec<NameKey>, Vec<NameEntry>) =
            writes.entries.iter().map(|(key, entry)| (*key, *entry)).unzip();
        self.maps.names.put_all(&names, &entries)?;
        self.remove_classes(&writes.delete_classes)
    }

    /// Removes rows of classes that no address carries; those that are not there are no error.
    pub fn remove_classes(&mut self, classes: &[PeerKey]) -> Result<(), DatapathError> {
        self.maps.peers.remove_all(classes)?;
        self.forget_peers(classes);
        Ok(())
    }

    /// The learned addresses, as the kernel has them.
    pub fn names(&self) -> Result<BTreeMap<NameKey, NameEntry>, DatapathError> {
        Ok(self.maps.names.read_all()?.into_iter().collect())
    }

    fn config_flags(&self) -> Result<u32, DatapathError> {
        Ok(self.maps.config.get(&0)?.map_or(0, |config| config.flags))
    }
}

/// IPv4 resolvers come first in the array, then IPv6.
fn place(slot: u8, resolver: IpAddr) -> u32 {
    let slot = u32::from(slot);
    match resolver {
        IpAddr::V4(_) => slot,
        IpAddr::V6(_) => slot + RESOLVERS_MAX as u32,
    }
}

fn range_key(net: &IpNet) -> RangeTrieKey {
    let length = match net {
        IpNet::V4(net) => 96 + u32::from(net.prefix_len()),
        IpNet::V6(net) => u32::from(net.prefix_len()),
    };
    TrieKey { length, key: net.network().into() }
}
