//! What the kernel says about interfaces and addresses of a network namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use futures_util::{TryStream, TryStreamExt};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address, where it has one of six octets.
    pub mac: Option<[u8; 6]>,
    /// Index of the interface that it is bound to: the other end of a veth, in whichever namespace.
    pub peer: Option<u32>,
    /// The number that this namespace has for the one in which the other end lives; `None` where that
    /// is this one.
    pub peer_namespace: Option<i32>,
    /// Whether it is the loopback interface.
    pub is_loopback: bool,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// The index of the loopback interface, which every namespace has first.
const LOOPBACK: u32 = 1;

/// How long the kernel may take for a part of an answer: it waits until nobody changes interfaces.
const PATIENCE: Duration = Duration::from_secs(10);

/// All interfaces of a namespace, by index.
pub type Links = BTreeMap<u32, Link>;

/// Why a namespace could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetlinkError {
    /// The namespace's file cannot be opened.
    #[error("cannot open the namespace")]
    Open(#[source] io::Error),
    /// The file is no network namespace, or it cannot be entered.
    #[error("not a network namespace, or it cannot be entered")]
    Enter(#[source] io::Error),
    /// No netlink socket, or it broke.
    #[error("cannot talk to the kernel's routing interface")]
    Socket(#[source] io::Error),
    /// The kernel refused a request.
    #[error("the kernel refused to list interfaces")]
    Request(#[from] rtnetlink::Error),
    /// The kernel says nothing, not even that it refuses.
    #[error("the kernel's routing interface gave no answer within {} s", PATIENCE.as_secs())]
    Silent,
    /// The thread that entered the namespace died, or the connection to the kernel ended.
    #[error("the look into the namespace was cut off")]
    Aborted,
}

impl NetlinkError {
    /// Whether it is the connection to the kernel that is of no use, rather than the answer.
    pub(super) fn is_cut_off(&self) -> bool {
        match self {
            Self::Request(error) => !matches!(error, rtnetlink::Error::NetlinkError(_)),
            Self::Socket(_) | Self::Silent | Self::Aborted => true,
            Self::Open(_) | Self::Enter(_) => false,
        }
    }
}

/// The next part of an answer; `None` at its end.
pub(super) async fn next<T>(
    answer: &mut (impl TryStream<Ok = T, Error = rtnetlink::Error> + Unpin),
) -> Result<Option<T>, NetlinkError> {
    let part = tokio::time::timeout(PATIENCE, answer.try_next());
    part.await.map_err(|_| NetlinkError::Silent)?.map_err(NetlinkError::from)
}

/// Lists the interfaces of the namespace that `handle` was opened in.
pub async fn list(handle: &rtnetlink::Handle) -> Result<Links, NetlinkError> {
    list_where(handle, None).await
}

/// Lists the interfaces of the namespace with this number (Linux 4.20). `handle` must belong to a
/// connection with strict checks: the kernel overlooks the number in what others ask.
pub async fn list_of(handle: &rtnetlink::Handle, namespace: i32) -> Result<Links, NetlinkError> {
    list_where(handle, Some(namespace)).await
}

/// The interface with this index, without its addresses; `None` where there is none.
pub(super) async fn get(
    handle: &rtnetlink::Handle,
    index: u32,
) -> Result<Option<Link>, NetlinkError> {
    let mut messages = Box::pin(handle.link().get().match_index(index).execute());
    match next(&mut messages).await {
        Ok(message) => Ok(Some(read_link(&message.ok_or(NetlinkError::Aborted)?))),
        Err(NetlinkError::Request(rtnetlink::Error::NetlinkError(refused)))
            if refused.raw_code() == -Errno::NODEV.raw_os_error() =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn list_where(
    handle: &rtnetlink::Handle,
    namespace: Option<i32>,
) -> Result<Links, NetlinkError> {
    let mut links = Links::new();
    // Counters are most of what the kernel says otherwise.
    let mut request =
        handle.link().get().set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats]);
    let number = namespace.map(LinkAttribute::IfNetnsId);
    request.message_mut().attributes.extend(number);
    let mut messages = Box::pin(request.execute());
    while let Some(message) = next(&mut messages).await? {
        let link = read_link(&message);
        links.insert(link.index, link);
    }
    let mut request = handle.address().get();
    let number = namespace.map(AddressAttribute::TargetNetNsId);
    request.message_mut().attributes.extend(number);
    let mut messages = Box::pin(request.execute());
    while let Some(message) = next(&mut messages).await? {
        let Some(link) = links.get_mut(&message.header.index) else {
            continue;
        };
        link.addresses.extend(own_address(&message));
    }
    // A connection that ends cuts a list short and says nothing. Whoever is left out of a list would
    // count as gone, and be let go: so a list counts where the connection outlived it.
    get(handle, LOOPBACK).await?.ok_or(NetlinkError::Aborted)?;
    Ok(links)
}

/// Lists the interfaces of the namespace at `path`, on a thread that enters it and ends there.
pub async fn list_at(path: &Path) -> Result<Links, NetlinkError> {
    let namespace = std::fs::File::open(path).map_err(NetlinkError::Open)?;
    let (answer, answered) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        // The receiver is gone where nobody asks any more.
        let _ = answer.send(list_inside(&namespace));
    });
    answered.await.map_err(|_| NetlinkError::Aborted)?
}

fn list_inside(namespace: &impl AsFd) -> Result<Links, NetlinkError> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|errno| NetlinkError::Enter(errno.into()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(NetlinkError::Socket)?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Socket)?;
        let driver = tokio::spawn(connection);
        let links = list(&handle).await;
        driver.abort();
        links
    })
}

/// The interface's own address in a message about it: on a point-to-point link `IFA_ADDRESS` is that
/// of the other end (rtnetlink(7)).
pub(super) fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let mut address = None;
    for attribute in &message.attributes {
        if let AddressAttribute::Local(local) = attribute {
            return Some(*local);
        } else if let AddressAttribute::Address(one) = attribute {
            address = Some(*one);
        }
    }
    address
}

/// What a message says of an interface, but for its addresses.
pub(super) fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        peer: None,
        peer_namespace: None,
        is_loopback: message.header.flags.contains(LinkFlags::Loopback),
        addresses: BTreeSet::new(),
    };
    for attribute in &message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            link.name.clone_from(name);
        } else if let LinkAttribute::Address(octets) = attribute {
            link.mac = <[u8; 6]>::try_from(octets.as_slice()).ok();
        } else if let LinkAttribute::Link(index) = attribute {
            link.peer = Some(*index);
        } else if let LinkAttribute::LinkNetNsId(number) = attribute {
            link.peer_namespace = Some(*number);
        }
    }
    link
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_interface_is_there_or_not() {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let loopback = get(&handle, LOOPBACK).await.unwrap().unwrap();
        assert!(loopback.is_loopback && loopback.index == LOOPBACK);
        assert_eq!(get(&handle, 0x7fff_0000).await.unwrap(), None);
        assert!(list(&handle).await.unwrap().contains_key(&LOOPBACK));
    }

    #[tokio::test]
    async fn a_list_from_a_connection_that_ended_does_not_count() {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        drop(connection);
        assert!(list(&handle).await.is_err());
    }

    #[test]
    fn the_far_end_of_a_tunnel_is_no_address_of_the_node() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let local = |text| AddressAttribute::Local(ip(text));
        let address = |text| AddressAttribute::Address(ip(text));
        let cases = [
            (vec![address("192.0.2.1"), local("192.0.2.1")], Some("192.0.2.1")),
            (vec![address("198.51.100.9"), local("192.0.2.1")], Some("192.0.2.1")),
            (vec![address("2001:db8::1")], Some("2001:db8::1")),
            (vec![], None),
        ];
        for (attributes, expected) in cases {
            let mut message = AddressMessage::default();
            message.attributes = attributes;
            assert_eq!(own_address(&message), expected.map(ip), "{message:?}");
        }
    }
}
