//! The interface that lookups are handed to: a veth pair of the agent's own, in the node's namespace.
//!
//! The program redirects a pod's lookup into the ingress of the first end, which carries the proxy's
//! addresses; so the packet is delivered locally whatever bridge, translation or chain lies beside.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::address::AddressFlags;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::{LinkUnspec, LinkVeth};

use crate::endpoints::netlink;

/// The interface, ready for lookups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyLink {
    /// Its index.
    pub index: u32,
    /// Its MAC.
    pub mac: [u8; 6],
    /// The IPv6 address, where the node has IPv6 at all.
    pub ipv6: Option<Ipv6Addr>,
}

/// Why the interface could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The kernel refused.
    #[error("cannot {action} the interface {name}")]
    Netlink {
        /// What was tried.
        action: &'static str,
        /// The interface.
        name: String,
        /// What the kernel said.
        #[source]
        source: rtnetlink::Error,
    },
    /// An interface of that name exists and is no veth of ours.
    #[error(
        "an interface {name} exists that is not the agent's; remove it, or choose another --link-name"
    )]
    Foreign {
        /// The interface.
        name: String,
    },
    /// The interface vanished while it was set up.
    #[error("the interface {name} vanished while it was set up")]
    Vanished {
        /// The interface.
        name: String,
    },
    /// A setting could not be written.
    #[error("cannot write {value} to {path}", path = path.display())]
    Setting {
        /// The setting.
        path: PathBuf,
        /// The value.
        value: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Interfaces cannot be listed.
    #[error(transparent)]
    List(#[from] netlink::NetlinkError),
}

/// Makes the interface, or takes over the one that an earlier agent left. Its settings are below
/// `sysctls`, which is `/proc/sys` or the same files elsewhere.
pub async fn ensure(
    handle: &rtnetlink::Handle,
    name: &str,
    (ipv4, ipv6): (Ipv4Addr, Ipv6Addr),
    sysctls: &Path,
) -> Result<ProxyLink, LinkError> {
    let failed =
        |action| move |source| LinkError::Netlink { action, name: name.to_owned(), source };
    let peer = peer_name(name);
    if let Some((_, found_peer)) = find(handle, name).await? {
        if found_peer.as_deref() != Some(&peer) {
            return Err(LinkError::Foreign { name: name.to_owned() });
        }
    } else {
        let message = LinkVeth::new(name, &peer).build();
        handle.link().add(message).execute().await.map_err(failed("make"))?;
    }
    let has_ipv6 = configure(sysctls, name, &peer)?;
    for end in [peer.as_str(), name] {
        let message = LinkUnspec::new_with_name(end).arp(false).multicast(false).up().build();
        handle.link().set(message).execute().await.map_err(failed("raise"))?;
    }
    let vanished = || LinkError::Vanished { name: name.to_owned() };
    let (index, _) = find(handle, name).await?.ok_or_else(vanished)?;
    let ipv6 = has_ipv6.then_some(ipv6);
    let addresses = [Some((IpAddr::V4(ipv4), 32)), ipv6.map(|ipv6| (IpAddr::V6(ipv6), 128))];
    for (address, length) in addresses.into_iter().flatten() {
        let mut request = handle.address().add(index, address, length).replace();
        // No duplicate address detection: the address must answer at once (RFC 4862 section 5.4).
        let flags = AddressAttribute::Flags(AddressFlags::Nodad);
        request.message_mut().attributes.push(flags);
        request.execute().await.map_err(failed("give an address to"))?;
    }
    let links = netlink::list(handle).await?;
    let mac = links.get(&index).and_then(|link| link.mac).ok_or_else(vanished)?;
    Ok(ProxyLink { index, mac, ipv6 })
}

/// Removes the interface; says whether there was one.
pub async fn remove(handle: &rtnetlink::Handle, name: &str) -> Result<bool, LinkError> {
    match find(handle, name).await? {
        Some((index, peer)) if peer.as_deref() == Some(&peer_name(name)) => {
            let failed =
                |source| LinkError::Netlink { action: "remove", name: name.to_owned(), source };
            handle.link().del(index).execute().await.map_err(failed)?;
            Ok(true)
        }
        Some(_) => Err(LinkError::Foreign { name: name.to_owned() }),
        None => Ok(false),
    }
}

fn peer_name(name: &str) -> String {
    format!("{name}p")
}

/// Index of the interface and name of its other end, where both are in this namespace.
async fn find(
    handle: &rtnetlink::Handle,
    name: &str,
) -> Result<Option<(u32, Option<String>)>, LinkError> {
    let failed = |source| LinkError::Netlink { action: "find", name: name.to_owned(), source };
    let mut messages = Box::pin(handle.link().get().execute());
    let (mut found, mut names) = (None, std::collections::BTreeMap::new());
    while let Some(message) = messages.try_next().await.map_err(failed)? {
        let (mut own, mut peer) = (None, None);
        for attribute in &message.attributes {
            if let LinkAttribute::IfName(text) = attribute {
                own = Some(text.clone());
            } else if let LinkAttribute::Link(index) = attribute {
                peer = Some(*index);
            }
        }
        if own.as_deref() == Some(name) {
            found = Some((message.header.index, peer));
        }
        names.insert(message.header.index, own);
    }
    Ok(found.map(|(index, peer)| (index, peer.and_then(|peer| names.remove(&peer).flatten()))))
}

/// Writes the interface's settings; says whether the node has IPv6.
fn configure(sysctls: &Path, name: &str, peer: &str) -> Result<bool, LinkError> {
    let path = |family: &str, end: &str, key: &str| {
        sysctls.join("net").join(family).join("conf").join(end).join(key)
    };
    // Loose: a lookup's source lies behind another interface. The stricter of this and `all` would
    // count if `all` were higher, and loose is the highest (Documentation/networking/ip-sysctl.rst).
    write(path("ipv4", name, "rp_filter"), "2")?;
    let has_ipv6 = fs::exists(path("ipv6", name, "")).unwrap_or(false);
    if has_ipv6 {
        for end in [name, peer] {
            write(path("ipv6", end, "accept_ra"), "0")?;
            // No link-local address, and so no router solicitation.
            write(path("ipv6", end, "addr_gen_mode"), "1")?;
        }
        write(path("ipv6", name, "disable_ipv6"), "0")?;
    }
    Ok(has_ipv6)
}

fn write(path: PathBuf, value: &'static str) -> Result<(), LinkError> {
    fs::write(&path, value).map_err(|source| LinkError::Setting { path, value, source })
}
