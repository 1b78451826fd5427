//! Which interface leads to the pod that has these addresses, from what the kernel knows alone.
//!
//! The kernel lists the interfaces and addresses of another namespace to whoever holds its number
//! (`IFLA_TARGET_NETNSID`, Linux 4.20), and every veth on the node carries the number of the
//! namespace of its other end. So no namespace has to be entered and none has to be found as a file:
//! bridges, routed and point-to-point CNIs look alike, and neither their names nor a container
//! runtime's paths matter.
//!
//! What a pod's own namespace says about addresses is the pod's word where it may change them. So an
//! interface that is known as another pod's is never taken, and where several namespaces carry the
//! address only the node's own routes decide.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::RouteAttribute;

use super::locate::{Interface, LocateError, pair};
use super::netlink::{self, Links, NetlinkError};

/// Looks into the namespaces behind the node's interfaces.
#[derive(Debug)]
pub struct Search {
    handle: rtnetlink::Handle,
    /// What was seen in namespaces that have addresses, by their numbers.
    seen: BTreeMap<i32, Seen>,
    /// Whether the connection broke off, so that a pod which is missed may be there.
    is_cut_off: bool,
}

/// One namespace.
#[derive(Debug)]
struct Seen {
    /// The node's interfaces that lead there: a number is given again, these are not.
    host_sides: BTreeSet<u32>,
    inside: Links,
}

/// How much of what was seen before counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Nothing: every namespace is looked into.
    Nothing,
    /// What was seen in namespaces that had addresses already: only those that were being made are
    /// looked into again.
    Finished,
}

impl Search {
    /// Connects to the kernel in the namespace that the calling thread is in.
    pub fn new() -> Result<Self, NetlinkError> {
        let (connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(NetlinkError::Socket)?;
        tokio::spawn(connection);
        Ok(Self { handle, seen: BTreeMap::new(), is_cut_off: false })
    }

    /// Whether what was looked for last may have been missed because the connection broke off.
    pub const fn is_cut_off(&self) -> bool {
        self.is_cut_off
    }

    /// Begins a look at the node with these interfaces, of which `taken` belong to pods already and
    /// `former` to pods that are gone.
    pub fn look<'a>(
        &'a mut self,
        host: &'a Links,
        taken: BTreeSet<u32>,
        former: &'a BTreeSet<u32>,
        trust: Trust,
    ) -> Look<'a> {
        Look { search: self, host, taken, former, trust, is_seen: false }
    }

    /// Looks into the namespaces behind the interfaces of `host` that are in nobody's hands.
    async fn see(&mut self, host: &Links, taken: &BTreeSet<u32>, trust: Trust) {
        let mut behind: BTreeMap<i32, BTreeSet<u32>> = BTreeMap::new();
        for link in host.values().filter(|link| !taken.contains(&link.index)) {
            if let (Some(_), Some(number)) = (link.peer, link.peer_namespace) {
                behind.entry(number).or_default().insert(link.index);
            }
        }
        self.seen.retain(|number, _| behind.contains_key(number));
        for (number, host_sides) in behind {
            let known = self.seen.get(&number).filter(|known| known.host_sides == host_sides);
            if trust == Trust::Finished && known.is_some_and(Seen::is_finished) {
                continue;
            }
            match netlink::list_of(&self.handle, number).await {
                Ok(inside) => {
                    self.seen.insert(number, Seen { host_sides, inside });
                }
                // It may have ended since; a pod that is missed by it is reported as such.
                Err(error) => {
                    tracing::debug!(number, %error, "cannot look into a namespace");
                    self.seen.remove(&number);
                    if error.is_cut_off() {
                        self.is_cut_off = true;
                        return;
                    }
                }
            }
        }
    }

    /// The interfaces that the node's routes send these addresses to.
    async fn routed(&mut self, addresses: &BTreeSet<IpAddr>) -> BTreeSet<u32> {
        let mut interfaces = BTreeSet::new();
        for address in addresses {
            let length = if address.is_ipv4() { 32 } else { 128 };
            let builder = RouteMessageBuilder::<IpAddr>::new();
            let Ok(builder) = builder.destination_prefix(*address, length) else { continue };
            let mut routes = Box::pin(self.handle.route().get(builder.build()).execute());
            loop {
                match netlink::next(&mut routes).await {
                    Ok(Some(route)) => {
                        interfaces.extend(route.attributes.iter().filter_map(|attribute| {
                            if let RouteAttribute::Oif(index) = attribute {
                                Some(*index)
                            } else {
                                None
                            }
                        }));
                    }
                    Ok(None) => break,
                    // An address without a route leads nowhere.
                    Err(error) => {
                        self.is_cut_off |= error.is_cut_off();
                        break;
                    }
                }
            }
        }
        interfaces
    }
}

impl Seen {
    /// Whether an interface has an address that was given to it, and not made up by itself.
    fn is_finished(&self) -> bool {
        let links = self.inside.values().filter(|link| !link.is_loopback);
        let mut addresses = links.flat_map(|link| &link.addresses);
        addresses.any(|address| match address {
            IpAddr::V4(address) => !address.is_link_local(),
            IpAddr::V6(address) => !address.is_unicast_link_local(),
        })
    }
}

/// One look, in which every interface is given to one pod at most.
#[derive(Debug)]
pub struct Look<'a> {
    search: &'a mut Search,
    host: &'a Links,
    taken: BTreeSet<u32>,
    former: &'a BTreeSet<u32>,
    trust: Trust,
    /// Whether namespaces were looked into: when the first pod is searched for.
    is_seen: bool,
}

impl Look<'_> {
    /// The interface that leads to the pod with these addresses.
    pub async fn find(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<Interface, LocateError> {
        if !self.is_seen {
            self.search.see(self.host, &self.taken, self.trust).await;
            self.is_seen = true;
        }
        let carries =
            |inside: &&Links| inside.values().any(|link| !link.addresses.is_disjoint(addresses));
        let behind = self.search.seen.values().map(|seen| &seen.inside);
        let mut candidates: Vec<Interface> = behind
            .filter(carries)
            .filter_map(|inside| pair(inside, addresses, self.host))
            .filter(|interface| !self.taken.contains(&interface.index))
            .collect();
        if candidates.len() > 1 {
            let routed = self.search.routed(addresses).await;
            if candidates.iter().any(|interface| routed.contains(&interface.index)) {
                candidates.retain(|interface| routed.contains(&interface.index));
            }
        }
        // What runs on behind the interface of a pod that is gone carries its address still.
        if candidates.iter().any(|interface| !self.former.contains(&interface.index)) {
            candidates.retain(|interface| !self.former.contains(&interface.index));
        }
        let addresses = || addresses.clone();
        match candidates.pop() {
            Some(interface) if candidates.is_empty() => {
                self.taken.insert(interface.index);
                Ok(interface)
            }
            Some(last) => Err(LocateError::Ambiguous {
                addresses: addresses(),
                interfaces: candidates.into_iter().chain([last]).map(|found| found.name).collect(),
            }),
            None => Err(LocateError::NoNamespace { addresses: addresses() }),
        }
    }
}
