//! Follows interfaces, addresses and the pods that are looked for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::locate::{Attachment, Interface, locate};
use super::netlink::{self, Links, NetlinkError};
use super::search::Search;

/// How long interface events are gathered before the node is looked at again.
const DEBOUNCE: Duration = Duration::from_millis(20);

/// How often pods are looked for whose interface is unknown: the appearance of a namespace's file
/// makes no interface event here.
const RETRY: Duration = Duration::from_millis(250);

/// How often the node is looked at although nothing was heard: events can get lost.
const RECHECK: Duration = Duration::from_secs(30);

/// Namespace and name of a pod.
pub type PodKey = (Arc<str>, Arc<str>);

/// The pods to find: where each says that it lives, and its addresses.
pub type Wanted = BTreeMap<PodKey, (Attachment, BTreeSet<IpAddr>)>;

/// What is known of a pod's interface: it, or why it is unknown, for people.
pub type Located = Result<Interface, Arc<str>>;

/// A whole picture of the node's interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Town {
    /// All addresses of the node.
    pub host_addresses: BTreeSet<IpAddr>,
    /// The pods that were looked for.
    pub pods: BTreeMap<PodKey, Located>,
    /// Indexes of all interfaces.
    pub interfaces: BTreeSet<u32>,
}

/// Follows the node's interfaces.
#[derive(Debug)]
pub struct Watcher {
    handle: rtnetlink::Handle,
    search: Search,
    events: mpsc::Receiver<()>,
    known: BTreeMap<PodKey, Found>,
    /// Interfaces of pods that are gone or were replaced, while they are there.
    former: BTreeSet<u32>,
}

/// What was found, and what it was found from: while neither changes the namespace is not entered.
#[derive(Debug)]
struct Found {
    attachment: Attachment,
    addresses: BTreeSet<IpAddr>,
    place: Option<(u64, u64)>,
    host_side: (u32, Option<u32>),
    interface: Interface,
}

impl Watcher {
    /// Subscribes to interface and address events of the namespace that the calling thread is in.
    pub fn new() -> Result<Self, NetlinkError> {
        let (connection, handle, mut messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ])
        .map_err(NetlinkError::Socket)?;
        tokio::spawn(connection);
        let (notify, events) = mpsc::channel(1);
        tokio::spawn(async move {
            while messages.next().await.is_some() {
                // A full channel holds an event that is not taken yet: that one stands for both.
                if let Err(mpsc::error::TrySendError::Closed(())) = notify.try_send(()) {
                    return;
                }
            }
        });
        Ok(Self {
            handle,
            search: Search::new()?,
            events,
            known: BTreeMap::new(),
            former: BTreeSet::new(),
        })
    }

    /// The handle to the node's namespace.
    pub fn handle(&self) -> &rtnetlink::Handle {
        &self.handle
    }

    /// Looks at the node as it is.
    pub async fn look(&mut self, wanted: &Wanted) -> Result<Town, NetlinkError> {
        let links = netlink::list(&self.handle).await?;
        for (_, gone) in self.known.extract_if(.., |pod, _| !wanted.contains_key(pod)) {
            self.former.insert(gone.interface.index);
        }
        let mut pods = BTreeMap::new();
        let mut missing = Vec::new();
        for (pod, (attachment, addresses)) in wanted {
            match self.remembered(pod, attachment, addresses, &links) {
                Some(interface) => {
                    pods.insert(pod.clone(), Ok(interface));
                }
                None => {
                    let before = self.known.remove(pod);
                    self.former.extend(before.map(|before| before.interface.index));
                    missing.push((pod, attachment, addresses));
                }
            }
        }
        self.former.retain(|index| links.contains_key(index));
        let taken = pods.values().flatten().map(|interface: &Interface| interface.index).collect();
        let mut look = self.search.look(&links, taken, &self.former);
        for (pod, attachment, addresses) in missing {
            let before = place(attachment);
            let located = locate(attachment, addresses, &links, &mut look).await;
            let found = located.as_ref().ok().and_then(|interface| {
                let link = links.get(&interface.index)?;
                Some(Found {
                    attachment: attachment.clone(),
                    addresses: addresses.clone(),
                    place: before,
                    host_side: (link.index, link.peer),
                    interface: interface.clone(),
                })
            });
            self.known.extend(found.map(|found| (pod.clone(), found)));
            pods.insert(pod.clone(), located.map_err(|error| describe(&error).into()));
        }
        for interface in pods.values().flatten() {
            self.former.remove(&interface.index);
        }
        let host_addresses =
            links.values().flat_map(|link| link.addresses.iter().copied()).collect();
        Ok(Town { host_addresses, pods, interfaces: links.into_keys().collect() })
    }

    /// Looks whenever something may have changed and hands on each different picture, until the
    /// receiver is gone.
    pub async fn follow(
        mut self,
        mut wanted: watch::Receiver<Arc<Wanted>>,
        towns: mpsc::Sender<Town>,
    ) {
        let mut last = None;
        loop {
            let pods = Arc::clone(&wanted.borrow_and_update());
            let mut patience = RETRY;
            match self.look(&pods).await {
                Ok(town) => {
                    if town.pods.values().all(Result::is_ok) {
                        patience = RECHECK;
                    }
                    if last.as_ref() != Some(&town) {
                        last = Some(town.clone());
                        if towns.send(town).await.is_err() {
                            return;
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(error = %describe(&error), "cannot look at the interfaces")
                }
            }
            tokio::select! {
                event = self.events.recv() => {
                    if event.is_none() {
                        tracing::error!("interface events ended; looking at intervals");
                        tokio::time::sleep(RETRY).await;
                    } else {
                        tokio::time::sleep_until(Instant::now() + DEBOUNCE).await;
                        let _ = self.events.try_recv();
                    }
                }
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep(patience) => {}
            }
        }
    }

    fn remembered(
        &self,
        pod: &PodKey,
        attachment: &Attachment,
        addresses: &BTreeSet<IpAddr>,
        links: &Links,
    ) -> Option<Interface> {
        let known = self.known.get(pod)?;
        let link = links.get(&known.interface.index)?;
        let same = known.attachment == *attachment
            && known.addresses == *addresses
            && known.place == place(attachment)
            && known.host_side == (link.index, link.peer)
            && known.interface.name == link.name;
        same.then(|| known.interface.clone())
    }
}

/// What tells one namespace from another that is put at the same path.
fn place(attachment: &Attachment) -> Option<(u64, u64)> {
    match attachment {
        Attachment::Namespace(path) => {
            std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok()
        }
        Attachment::Interface(_) | Attachment::Addresses { .. } => None,
    }
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
