//! The interfaces of the node, kept up to date from what the kernel tells of each change: a node with
//! hundreds of pods is not listed anew for every interface that comes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::sys::AsyncSocket;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use tokio::sync::mpsc;

use super::netlink::{self, Link, Links, NetlinkError};

/// Changes that wait to be taken at most; where there are more everything is listed again.
const NEWS_MAX: usize = 4_096;

/// Octets of events that the kernel keeps until they are read: a thousand, which are those of a hundred pods
/// that start at once.
const EVENT_ROOM: usize = 4 << 20;

/// What the kernel told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum News {
    /// An interface came, or is another; its addresses are told apart from it.
    Link(Box<Link>, Instant),
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
    /// Those that the kernel said are gone. It may have said so before the list, so that they count as
    /// there until it is asked.
    leaving: BTreeSet<u32>,
    /// When the kernel told of those that came since the first list.
    told_at: BTreeMap<u32, Instant>,
    is_listed: bool,
    news: mpsc::Receiver<News>,
    /// Whether something was missed, so that only a list tells what there is.
    is_doubtful: Arc<AtomicBool>,
}

impl Picture {
    /// Subscribes to the events of the namespace that the calling thread is in. Nothing is known
    /// before the first [`Picture::list`].
    pub(super) fn new() -> Result<Self, NetlinkError> {
        Self::with_room(EVENT_ROOM)
    }

    fn with_room(octets: usize) -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Socket)?;
        tokio::spawn(connection);
        // Nothing is asked here: where a socket has no room for an event, the kernel drops answers to it as
        // well until all of it is read (netlink_attachskb), and whoever asked would wait for ever.
        let (mut events, _, mut messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ])
        .map_err(NetlinkError::Socket)?;
        if let Err(error) =
            set_socket_recv_buffer_size_force(events.socket_mut().socket_ref(), octets)
        {
            tracing::debug!(%error, "interface events have the room that every socket has");
        }
        tokio::spawn(events);
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
        Ok(Self {
            handle,
            links: Links::new(),
            leaving: BTreeSet::new(),
            told_at: BTreeMap::new(),
            is_listed: false,
            news,
            is_doubtful,
        })
    }

    /// Connects and subscribes anew; what was known stays so until the next list.
    pub(super) fn reconnect(&mut self) -> Result<(), NetlinkError> {
        let Self { handle, news, is_doubtful, .. } = Self::new()?;
        (self.handle, self.news, self.is_doubtful) = (handle, news, is_doubtful);
        Ok(())
    }

    /// The handle to the namespace.
    pub(super) const fn handle(&self) -> &rtnetlink::Handle {
        &self.handle
    }

    /// What is known.
    pub(super) const fn links(&self) -> &Links {
        &self.links
    }

    /// When the kernel told of each interface, of those that were not there at the first list. Of one
    /// whose event was lost it is when it was asked for.
    pub(super) const fn told_at(&self) -> &BTreeMap<u32, Instant> {
        &self.told_at
    }

    /// Lists everything.
    pub(super) async fn list(&mut self) -> Result<(), NetlinkError> {
        let began = Instant::now();
        self.is_doubtful.store(false, Ordering::Release);
        // What waits is older than the list. What comes from here on is newer, or in it: then the last
        // word on each interface is the same.
        while self.news.try_recv().is_ok() {}
        self.leaving.clear();
        let listed = self.list_all().await;
        if listed.is_err() {
            self.is_doubtful.store(true, Ordering::Release);
        }
        let listed = listed?;
        if self.is_listed {
            for index in listed.keys().filter(|index| !self.links.contains_key(index)) {
                self.told_at.entry(*index).or_insert(began);
            }
        }
        self.told_at.retain(|index, _| listed.contains_key(index));
        (self.links, self.is_listed) = (listed, true);
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
        self.confirm().await?;
        let is_doubtful = self.is_doubtful.load(Ordering::Acquire);
        if is_doubtful {
            self.list().await?;
        }
        Ok(is_doubtful)
    }

    /// Lets go of whoever is gone indeed.
    async fn confirm(&mut self) -> Result<(), NetlinkError> {
        while let Some(&index) = self.leaving.first() {
            match netlink::get(&self.handle, index).await? {
                None => self.forget(index),
                // It came again, or never went: its addresses are told by a list alone.
                Some(_) => self.is_doubtful.store(true, Ordering::Release),
            }
            self.leaving.remove(&index);
        }
        Ok(())
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
            News::Link(link, told_at) => {
                if self.leaving.remove(&link.index) {
                    self.forget(link.index);
                }
                let addresses = self.links.remove(&link.index).map(|known| known.addresses);
                if addresses.is_none() {
                    self.told_at.insert(link.index, told_at);
                }
                let link = Link { addresses: addresses.unwrap_or_default(), ..*link };
                self.links.insert(link.index, link);
            }
            News::LinkGone(index) => {
                self.leaving.insert(index);
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

    fn forget(&mut self, index: u32) {
        let gone = self.links.remove(&index);
        self.told_at.remove(&index);
        let peer = gone.filter(|gone| gone.peer_namespace.is_none());
        let peer = peer.and_then(|gone| gone.peer);
        // One end of a pair was moved elsewhere: nobody tells what the other leads to.
        if peer.is_some_and(|peer| self.links.contains_key(&peer)) {
            self.is_doubtful.store(true, Ordering::Release);
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
        is_interface(link).then(|| News::Link(Box::new(netlink::read_link(link)), Instant::now()))
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

    use super::*;

    /// How many interfaces change at once: whoever asks waits for them, and is told of each.
    const CHANGING: usize = 4;

    /// Two interfaces: one that is always there, and one that never is.
    const LOOPBACK: u32 = 1;
    const GONE: u32 = 0x7fff_0000;

    /// A namespace that the test's thread is in, in which interfaces change all the time.
    struct Storm {
        namespace: String,
        changing: Vec<Child>,
    }

    impl Storm {
        /// `None` where the test cannot run; in CI that is a failure.
        fn new() -> Option<Self> {
            if !rustix::process::geteuid().is_root() {
                assert!(std::env::var_os("CI").is_none(), "this test needs root, in CI too");
                eprintln!("SKIPPED: needs root to make network namespaces");
                return None;
            }
            let namespace = format!("ngag-storm-{}", std::process::id());
            ip(&["netns", "add", &namespace]);
            let changing = (0..CHANGING).map(|number| change(&namespace, number)).collect();
            let file = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            Some(Self { namespace, changing })
        }
    }

    /// Makes an interface, and changes it until the program that does so is killed.
    fn change(namespace: &str, number: usize) -> Child {
        let (link, peer) = (format!("storm{number}"), format!("peer{number}"));
        ip(&["-n", namespace, "link", "add", &link, "up", "type", "veth", "peer", &peer]);
        let mut changing = Command::new("ip")
            .args(["-n", namespace, "-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut words = changing.stdin.take().unwrap();
        let line = format!("link set {link} alias a\n");
        std::thread::spawn(move || while words.write_all(line.as_bytes()).is_ok() {});
        changing
    }

    impl Drop for Storm {
        fn drop(&mut self) {
            for changing in &mut self.changing {
                changing.kill().unwrap();
                changing.wait().unwrap();
            }
            ip(&["netns", "del", &self.namespace]);
        }
    }

    fn ip(words: &[&str]) {
        assert!(Command::new("ip").args(words).status().unwrap().success(), "ip {words:?}");
    }

    /// Where the kernel had no room for events, those that it had room for come after a newer list.
    #[tokio::test]
    async fn a_word_that_is_older_than_the_list_takes_nobody_away() {
        let mut picture = Picture::new().unwrap();
        picture.list().await.unwrap();
        let (told, news) = mpsc::channel(NEWS_MAX);
        picture.news = news;
        let before = picture.links()[&LOOPBACK].clone();
        let gone = Link { index: GONE, name: "gone".to_owned(), ..before.clone() };
        picture.links.insert(GONE, gone);
        for index in [LOOPBACK, GONE] {
            told.send(News::LinkGone(index)).await.unwrap();
        }
        assert!(picture.changes().await);
        picture.catch_up().await.unwrap();
        assert_eq!(picture.links().get(&LOOPBACK), Some(&before));
        assert_eq!(picture.links().get(&GONE), None);
        told.send(News::LinkGone(LOOPBACK)).await.unwrap();
        told.send(News::Link(Box::new(before.clone()), Instant::now())).await.unwrap();
        picture.catch_up().await.unwrap();
        assert!(picture.links().contains_key(&LOOPBACK));
    }

    #[test]
    fn every_list_comes_to_an_end_however_much_is_told_meanwhile() {
        let Some(_storm) = Storm::new() else { return };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut picture = Picture::with_room(1).unwrap();
            for round in 0..200 {
                let listed = tokio::time::timeout(Duration::from_secs(5), picture.list()).await;
                listed.unwrap_or_else(|_| panic!("list {round} never ended")).unwrap();
            }
        });
    }
}
