//! The cluster's resolvers: whose lookups go through the proxy (EP-2), each in a slot of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// The number of slots.
pub const SLOTS: u8 = 16;

/// Where node-local DNS caches listen.
pub const NODE_LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10));

/// The labels of cluster DNS Services.
pub const DNS_SERVICES: [(&str, &str); 3] = [
    ("kube-system", "kube-dns"),
    ("kube-system", "coredns"),
    ("kube-system", "rke2-coredns-rke2-coredns"),
];

/// Resolvers by slot. A resolver keeps its slot while it is known, so that answers under way find
/// back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    by_slot: BTreeMap<u8, IpAddr>,
}

/// What to do to get from one set of slots to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotChanges {
    /// Slots to clear.
    pub remove: BTreeMap<u8, IpAddr>,
    /// Slots to fill, after those to clear.
    pub add: BTreeMap<u8, IpAddr>,
    /// Resolvers for which there is no slot.
    pub left_out: Vec<IpAddr>,
}

impl Slots {
    /// The resolvers by slot.
    pub fn iter(&self) -> impl Iterator<Item = (u8, IpAddr)> {
        self.by_slot.iter().map(|(slot, resolver)| (*slot, *resolver))
    }

    /// Makes `wanted` the known resolvers, those first in order getting the slots that are free.
    pub fn update(&mut self, wanted: &[IpAddr]) -> SlotChanges {
        let mut changes = SlotChanges::default();
        let all: BTreeSet<IpAddr> = wanted.iter().copied().collect();
        self.by_slot.retain(|slot, resolver| {
            let stays = all.contains(resolver);
            if !stays {
                changes.remove.insert(*slot, *resolver);
            }
            stays
        });
        for &resolver in wanted {
            if self.by_slot.values().any(|known| *known == resolver)
                || changes.left_out.contains(&resolver)
            {
                continue;
            }
            match (0..SLOTS).find(|slot| !self.by_slot.contains_key(slot)) {
                Some(slot) => {
                    self.by_slot.insert(slot, resolver);
                    changes.add.insert(slot, resolver);
                }
                None => changes.left_out.push(resolver),
            }
        }
        changes
    }
}

impl SlotChanges {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }
}

/// The name servers of a resolver configuration (resolv.conf(5)). Loopback addresses are left out: a
/// pod that asks one asks itself.
pub fn name_servers(resolv_conf: &str) -> Vec<IpAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let server = (words.next() == Some("nameserver")).then(|| words.next()).flatten()?;
            // A zone, as in fe80::1%eth0, means something on this node alone.
            server.parse::<IpAddr>().ok()
        })
        .filter(|address| !address.is_loopback() && !address.is_unspecified())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn ep_2_name_servers_of_the_node() {
        let text = "# generated\nsearch a.test\nnameserver 192.0.2.53\n nameserver 2001:db8::53 # x\n\
                    nameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver\nnameserver x\n\
                    options ndots:5\nnameservers 192.0.2.54\n";
        assert_eq!(name_servers(text), [ip("192.0.2.53"), ip("2001:db8::53")]);
    }

    #[test]
    fn a_resolver_keeps_its_slot() {
        let mut slots = Slots::default();
        let (a, b, c) = (ip("10.96.0.10"), ip("10.244.1.53"), ip("192.0.2.53"));
        let changes = slots.update(&[a, b, a]);
        assert_eq!(changes.add, BTreeMap::from([(0, a), (1, b)]));
        let changes = slots.update(&[c, b]);
        assert_eq!(changes.remove, BTreeMap::from([(0, a)]));
        assert_eq!(changes.add, BTreeMap::from([(0, c)]));
        assert_eq!(slots.iter().collect::<Vec<_>>(), [(0, c), (1, b)]);
        assert!(slots.update(&[b, c]).is_empty(), "the order alone changes nothing");
    }

    #[test]
    fn resolvers_without_a_slot_are_named() {
        let mut slots = Slots::default();
        let many: Vec<IpAddr> = (1..=20u8).map(|n| IpAddr::from([192, 0, 2, n])).collect();
        let changes = slots.update(&many);
        assert_eq!(changes.add.len(), usize::from(SLOTS));
        assert_eq!(changes.left_out, many[16..]);
    }
}
