//! Where a pod lives → the host-side interface of its attachment.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::netlink::{self, Link, Links, NetlinkError};
use super::search::Look;

/// How a pod says where it lives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attachment {
    /// `namegate.dev/netns`: its network namespace.
    Namespace(PathBuf),
    /// `namegate.dev/interface`: the name of its host-side interface.
    Interface(String),
    /// It does not: the interface is searched for by the pod's addresses, and anew for another pod of
    /// the same name.
    Addresses {
        /// What tells it from those.
        uid: Option<Arc<str>>,
    },
}

/// The host-side interface of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index on the node.
    pub index: u32,
    /// Its name on the node.
    pub name: String,
    /// MAC of the pod's side, where known.
    pub pod_mac: Option<[u8; 6]>,
}

/// Why a pod's interface is unknown; it is looked for again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocateError {
    /// The namespace cannot be read.
    #[error("network namespace {path}: {source}; check the annotation namegate.dev/netns", path = path.display())]
    Namespace {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: NetlinkError,
    },
    /// The namespace is the agent's own.
    #[error("network namespace {path} is the node's own; a pod on the host network is no endpoint", path = path.display())]
    OwnNamespace {
        /// Its path.
        path: PathBuf,
    },
    /// The namespace has no interface whose other end is on this node.
    #[error("network namespace {path} has no interface that leads to this node", path = path.display())]
    NoInterface {
        /// Its path.
        path: PathBuf,
    },
    /// There is no interface of that name.
    #[error("no interface named {name}; check the annotation namegate.dev/interface")]
    NoSuchName {
        /// The name.
        name: String,
    },
    /// No namespace behind the node's interfaces carries the pod's addresses.
    #[error(
        "no interface of this node leads to a namespace with {}; nothing is enforced on the pod until one does",
        list(addresses)
    )]
    NoNamespace {
        /// The pod's addresses.
        addresses: BTreeSet<IpAddr>,
    },
    /// Several do, and no route tells them apart.
    #[error("{} is carried behind several interfaces: {}; a pod with CAP_NET_ADMIN may have taken it", list(addresses), interfaces.join(", "))]
    Ambiguous {
        /// The pod's addresses.
        addresses: BTreeSet<IpAddr>,
        /// The names of the interfaces.
        interfaces: Vec<String>,
    },
}

fn list(addresses: &BTreeSet<IpAddr>) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
}

/// Finds the host-side interface of a pod with these addresses among `host`, the interfaces of the
/// node; where it says nothing, `look` searches for it.
pub async fn locate(
    attachment: &Attachment,
    addresses: &BTreeSet<IpAddr>,
    host: &Links,
    look: &mut Look<'_>,
) -> Result<Interface, LocateError> {
    match attachment {
        Attachment::Addresses { .. } => look.find(addresses).await,
        Attachment::Interface(name) => host
            .values()
            .find(|link| link.name == *name)
            .map(|link| interface(link, None))
            .ok_or_else(|| LocateError::NoSuchName { name: name.clone() }),
        Attachment::Namespace(path) => {
            if is_own_namespace(path) {
                return Err(LocateError::OwnNamespace { path: path.clone() });
            }
            let inside = netlink::list_at(path)
                .await
                .map_err(|source| LocateError::Namespace { path: path.clone(), source })?;
            pair(&inside, addresses, host)
                .ok_or_else(|| LocateError::NoInterface { path: path.clone() })
        }
    }
}

/// The pair of interfaces that name each other, one in the pod and one on the node. Where there are
/// several, the one that carries the pod's addresses.
pub(super) fn pair(
    inside: &Links,
    addresses: &BTreeSet<IpAddr>,
    host: &Links,
) -> Option<Interface> {
    inside
        .values()
        .filter(|link| !link.is_loopback)
        .filter_map(|link| {
            let outside = host.get(&link.peer?)?;
            let mutual = outside.peer == Some(link.index)
                && link.peer_namespace.is_some()
                && outside.peer_namespace.is_some();
            mutual.then_some((link, outside))
        })
        .max_by_key(|(link, _)| {
            let carried = link.addresses.intersection(addresses).count();
            (carried, std::cmp::Reverse(link.index))
        })
        .map(|(link, outside)| interface(outside, link.mac))
}

fn interface(link: &Link, pod_mac: Option<[u8; 6]>) -> Interface {
    Interface { index: link.index, name: link.name.clone(), pod_mac }
}

fn is_own_namespace(path: &std::path::Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |path: &std::path::Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    place(path).is_some_and(|there| place("/proc/thread-self/ns/net".as_ref()) == Some(there))
}

#[cfg(test)]
mod tests {
    use super::super::search::{Search, Trust};
    use super::*;

    fn mk_link(index: u32, name: &str, peer: Option<u32>, addresses: &[&str]) -> Link {
        Link {
            index,
            name: name.to_owned(),
            mac: Some([2, 0, 0, 0, 0, u8::try_from(index).unwrap()]),
            peer,
            peer_namespace: peer.map(|_| 0),
            is_loopback: name == "lo",
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        }
    }

    fn mk_links(links: impl IntoIterator<Item = Link>) -> Links {
        links.into_iter().map(|link| (link.index, link)).collect()
    }

    #[test]
    fn only_interfaces_that_name_each_other_pair() {
        let host = mk_links([
            mk_link(1, "lo", None, &["127.0.0.1"]),
            mk_link(7, "veth-a", Some(2), &[]),
            mk_link(9, "veth-b", Some(5), &[]),
        ]);
        let cases = [
            ("the pair", mk_link(2, "eth0", Some(7), &[]), Some(7)),
            ("the other end belongs to another pod", mk_link(2, "eth0", Some(9), &[]), None),
            ("the other end is nowhere here", mk_link(2, "eth0", Some(8), &[]), None),
            ("no other end", mk_link(2, "dummy0", None, &[]), None),
        ];
        for (what, link, expected) in cases {
            let inside = mk_links([mk_link(1, "lo", None, &["127.0.0.1"]), link]);
            let found = pair(&inside, &BTreeSet::new(), &host);
            assert_eq!(found.map(|interface| interface.index), expected, "{what}");
        }
    }

    #[test]
    fn among_several_the_one_with_the_pods_addresses_counts() {
        let host =
            mk_links([mk_link(7, "veth-a", Some(2), &[]), mk_link(8, "veth-b", Some(3), &[])]);
        let inside = mk_links([
            mk_link(2, "net1", Some(7), &["192.0.2.9"]),
            mk_link(3, "eth0", Some(8), &["10.244.1.5"]),
        ]);
        let addresses = BTreeSet::from(["10.244.1.5".parse().unwrap()]);
        let found = pair(&inside, &addresses, &host).unwrap();
        assert_eq!(
            found,
            Interface { index: 8, name: "veth-b".to_owned(), pod_mac: Some([2, 0, 0, 0, 0, 3]) }
        );
    }

    async fn locate_at(path: &str) -> LocateError {
        let attachment = Attachment::Namespace(path.into());
        let (host, former) = (Links::new(), BTreeSet::new());
        let mut search = Search::new().unwrap();
        let mut look = search.look(&host, BTreeSet::new(), &former, Trust::Nothing);
        locate(&attachment, &BTreeSet::new(), &host, &mut look).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_namespace_that_does_not_exist_is_named() {
        let error = locate_at("/run/netns/no-such-namespace").await;
        let text = error.to_string();
        assert!(text.contains("/run/netns/no-such-namespace"), "{text}");
        assert!(text.contains("namegate.dev/netns"), "{text}");
    }

    #[tokio::test]
    async fn the_nodes_own_namespace_is_no_pod() {
        let error = locate_at("/proc/self/ns/net").await;
        assert!(matches!(error, LocateError::OwnNamespace { .. }), "{error}");
    }
}
