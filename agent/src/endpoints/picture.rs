//! The interfaces of the node, kept up to date from what the kernel tells of each change: a node with
//! hundreds of pods is not listed anew for every interface that comes.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkMessage;
use tokio::sync::mpsc;

use super::netlink::{self, Link, Links, NetlinkError};

/// Changes that wait to be taken at most; where there are more everything is listed again.
const NEWS_MAX: usize = 4_096;

/// What the kernel told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum News {
    /// An interface came, or is another; its addresses are told apart from it.
    Link(Box<Link>),
    /// An interface is gone.
    LinkGone(u32),
    /// An interface has an address.
    Address(u32, IpAddr),
    /// An interface has it no more.
    AddressGone(u32, IpAddr),
}

/// The interfaces of one namespace.
#[derive(Debug)]
pub(super) struct Picture {
    handle: rtnetlink::Handle,
    links: Links,
    news: mpsc::Receiver<News>,
    /// Whether something was missed, so that only a list tells what there is.
    is_doubtful: Arc<AtomicBool>,
}

impl Picture {
    /// Subscribes to the events of the namespace that the calling thread is in. Nothing is known
    /// before the first [`Picture::list`].
    pub(super) fn new() -> Result<Self, NetlinkError> {
        let (connection, handle, mut messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ])
        .map_err(NetlinkError::Socket)?;
        tokio::spawn(connection);
        let (send, news) = mpsc::channel(NEWS_MAX);
        let is_doubtful = Arc::new(AtomicBool::new(true));
        let doubt = Arc::clone(&is_doubtful);
        tokio::spawn(async move {
            while let Some((message, _)) = messages.next().await {
                let is_lost = match read(message.payload) {
                    Ok(news) => news.is_some_and(|news| send.try_send(news).is_err()),
                    Err(Missed) => true,
                };
                if is_lost {
                    doubt.store(true, Ordering::Release);
                }
                if send.is_closed() {
                    return;
                }
            }
        });
        Ok(Self { handle, links: Links::new(), news, is_doubtful })
    }

    /// The handle to the namespace.
    pub(super) const fn handle(&self) -> &rtnetlink::Handle {
        &self.handle
    }

    /// What is known.
    pub(super) const fn links(&self) -> &Links {
        &self.links
    }

    /// Lists everything.
    pub(super) async fn list(&mut self) -> Result<(), NetlinkError> {
        self.is_doubtful.store(false, Ordering::Release);
        // What waits is older than the list. What comes from here on is newer, or in it: then the last
        // word on each interface is the same.
        while self.news.try_recv().is_ok() {}
        let listed = self.list_all().await;
        if listed.is_err() {
            self.is_doubtful.store(true, Ordering::Release);
        }
        self.links = listed?;
        Ok(())
    }

    async fn list_all(&self) -> Result<Links, NetlinkError> {
        let mut links = netlink::list(&self.handle).await?;
        // Before Linux 6.9 a list can miss the neighbour of an interface that goes meanwhile. Whoever
        // counts as gone is let go, so that is asked for one by one.
        let missing = self.links.iter().filter(|(index, _)| !links.contains_key(index));
        let mut found = Vec::new();
        for (index, known) in missing {
            if let Some(link) = netlink::get(&self.handle, *index).await? {
                found.push((*index, Link { addresses: known.addresses.clone(), ..link }));
            }
        }
        links.extend(found);
        Ok(links)
    }

    /// Takes what was told, and lists everything where that leaves doubts; says whether it did. What
    /// the kernel had no room for may still be followed by older words, so that the next look is to be
    /// at a whole list as well.
    pub(super) async fn catch_up(&mut self) -> Result<bool, NetlinkError> {
        while let Ok(news) = self.news.try_recv() {
            self.take(news);
        }
        let is_doubtful = self.is_doubtful.load(Ordering::Acquire);
        if is_doubtful {
            self.list().await?;
        }
        Ok(is_doubtful)
    }

    /// Waits until something is told; `false` where nothing will be any more.
    pub(super) async fn changes(&mut self) -> bool {
        match self.news.recv().await {
            Some(news) => {
                self.take(news);
                true
            }
            None => {
                self.is_doubtful.store(true, Ordering::Release);
                false
            }
        }
    }

    fn take(&mut self, news: News) {
        match news {
            News::Link(link) => {
                let addresses = self.links.remove(&link.index).map(|known| known.addresses);
                let link = Link { addresses: addresses.unwrap_or_default(), ..*link };
                self.links.insert(link.index, link);
            }
            News::LinkGone(index) => {
                let gone = self.links.remove(&index);
                let peer = gone.filter(|gone| gone.peer_namespace.is_none());
                let peer = peer.and_then(|gone| gone.peer);
                // One end of a pair was moved elsewhere: nobody tells what the other leads to.
                if peer.is_some_and(|peer| self.links.contains_key(&peer)) {
                    self.is_doubtful.store(true, Ordering::Release);
                }
            }
            News::Address(index, address) => match self.links.get_mut(&index) {
                Some(link) => {
                    link.addresses.insert(address);
                }
                None => self.is_doubtful.store(true, Ordering::Release),
            },
            News::AddressGone(index, address) => {
                if let Some(link) = self.links.get_mut(&index) {
                    link.addresses.remove(&address);
                }
            }
        }
    }
}

/// The kernel said that messages were lost.
#[derive(Debug)]
struct Missed;

fn read(payload: NetlinkPayload<RouteNetlinkMessage>) -> Result<Option<News>, Missed> {
    if let NetlinkPayload::Overrun(_) = &payload {
        return Err(Missed);
    }
    let NetlinkPayload::InnerMessage(message) = payload else { return Ok(None) };
    Ok(if let RouteNetlinkMessage::NewLink(link) = &message {
        is_interface(link).then(|| News::Link(Box::new(netlink::read_link(link))))
    } else if let RouteNetlinkMessage::DelLink(link) = &message {
        is_interface(link).then_some(News::LinkGone(link.header.index))
    } else if let RouteNetlinkMessage::NewAddress(address) = &message {
        netlink::own_address(address).map(|own| News::Address(address.header.index, own))
    } else if let RouteNetlinkMessage::DelAddress(address) = &message {
        netlink::own_address(address).map(|own| News::AddressGone(address.header.index, own))
    } else {
        None
    })
}

/// Bridges tell of their ports in the same words: one that leaves its bridge is not gone.
fn is_interface(link: &LinkMessage) -> bool {
    link.header.interface_family == AddressFamily::Unspec
}
