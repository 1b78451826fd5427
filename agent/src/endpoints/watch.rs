//! Follows interfaces, addresses and the pods that are looked for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::locate::{Attachment, Interface, locate};
use super::netlink::{Links, NetlinkError};
use super::picture::Picture;
use super::search::{Search, Trust};

/// How long interface events are gathered before the node is looked at again.
const DEBOUNCE: Duration = Duration::from_millis(20);

/// How often pods are looked for whose interface is unknown: the appearance of a namespace's file
/// makes no interface event here.
const RETRY: Duration = Duration::from_millis(250);

/// How often the node is looked at although nothing was heard: events can get lost.
const RECHECK: Duration = Duration::from_secs(30);

/// The share of its time that the watcher lists everything for at most, however many interfaces and
/// missing pods there are: one in so many.
const LISTING_SHARE: u32 = 10;

/// The longest that a missing pod waits for the next list because of it.
const LISTING_PAUSE_MAX: Duration = Duration::from_secs(2);

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
    /// When each was told of, of those that came since the first look.
    pub told_at: BTreeMap<u32, std::time::Instant>,
}

/// Follows the node's interfaces.
#[derive(Debug)]
pub struct Watcher {
    picture: Picture,
    search: Search,
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
        Ok(Self {
            picture: Picture::new()?,
            search: Search::new()?,
            known: BTreeMap::new(),
            former: BTreeSet::new(),
        })
    }

    /// The handle to the node's namespace.
    pub fn handle(&self) -> &rtnetlink::Handle {
        self.picture.handle()
    }

    /// Begins anew where the kernel tells nothing any more; what was found stays known.
    fn reconnect(&mut self) {
        let reconnected = Search::new().and_then(|search| {
            self.search = search;
            self.picture.reconnect()
        });
        if let Err(error) = reconnected {
            tracing::error!(error = %describe(&error), "cannot ask for interface events");
        }
    }

    /// Looks at the node as it is.
    pub async fn look(&mut self, wanted: &Wanted) -> Result<Town, NetlinkError> {
        self.picture.list().await?;
        self.find(wanted, Trust::Nothing).await
    }

    /// Looks at what changed since the last look, and says whether nothing was missed meanwhile.
    async fn glance(&mut self, wanted: &Wanted) -> Result<(Town, bool), NetlinkError> {
        let is_sure = !self.picture.catch_up().await?;
        Ok((self.find(wanted, Trust::Finished).await?, is_sure))
    }

    /// Finds pods among the interfaces that are known.
    async fn find(&mut self, wanted: &Wanted, trust: Trust) -> Result<Town, NetlinkError> {
        let links = self.picture.links();
        for (_, gone) in self.known.extract_if(.., |pod, _| !wanted.contains_key(pod)) {
            self.former.insert(gone.interface.index);
        }
        let mut pods = BTreeMap::new();
        let mut missing = Vec::new();
        for (pod, (attachment, addresses)) in wanted {
            match remembered(&self.known, (pod, attachment, addresses), links) {
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
        let mut look = self.search.look(links, taken, &self.former, trust);
        for (pod, attachment, addresses) in missing {
            let before = place(attachment);
            let located = locate(attachment, addresses, links, &mut look).await;
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
        if self.search.is_cut_off() {
            return Err(NetlinkError::Aborted);
        }
        for interface in pods.values().flatten() {
            self.former.remove(&interface.index);
        }
        let host_addresses =
            links.values().flat_map(|link| link.addresses.iter().copied()).collect();
        let interfaces = links.keys().copied().collect();
        Ok(Town { host_addresses, pods, interfaces, told_at: self.picture.told_at().clone() })
    }

    /// Looks whenever something may have changed and hands on each different picture, until the
    /// receiver is gone.
    pub async fn follow(
        mut self,
        mut wanted: watch::Receiver<Arc<Wanted>>,
        towns: mpsc::Sender<Town>,
    ) {
        let mut last = None;
        let mut list_at = Instant::now();
        let (mut listed_at, mut may_list_from) = (list_at, list_at);
        loop {
            let pods = Arc::clone(&wanted.borrow_and_update());
            let began = Instant::now();
            let is_whole = began >= list_at;
            let looked = if is_whole {
                self.look(&pods).await.map(|town| (town, true))
            } else {
                self.glance(&pods).await
            };
            let mut patience = RETRY;
            match looked {
                Ok((town, is_sure)) => {
                    if is_sure && town.pods.values().all(Result::is_ok) {
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
                    tracing::warn!(error = %describe(&error), "cannot look at the interfaces");
                    if error.is_cut_off() {
                        self.reconnect();
                    }
                }
            }
            let now = Instant::now();
            if is_whole {
                listed_at = now;
                may_list_from = now + (began.elapsed() * LISTING_SHARE).min(LISTING_PAUSE_MAX);
            }
            list_at = if patience == RECHECK {
                listed_at + RECHECK
            } else if is_whole {
                now + patience
            } else {
                list_at.min(now + patience)
            };
            list_at = list_at.max(may_list_from);
            tokio::select! {
                is_told = self.picture.changes() => {
                    if !is_told {
                        tracing::error!("interface events ended; asking for them anew");
                        self.reconnect();
                    }
                    let pause = if is_told { DEBOUNCE } else { RETRY };
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        // A pod whose interface is there already is not kept waiting.
                        changed = wanted.changed() => if changed.is_err() { return },
                    }
                }
                changed = wanted.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(list_at) => {}
            }
        }
    }
}

/// What was found for a pod before, where everything that it was found from is as it was.
fn remembered(
    known: &BTreeMap<PodKey, Found>,
    (pod, attachment, addresses): (&PodKey, &Attachment, &BTreeSet<IpAddr>),
    links: &Links,
) -> Option<Interface> {
    let known = known.get(pod)?;
    let link = links.get(&known.interface.index)?;
    let same = known.attachment == *attachment
        && known.addresses == *addresses
        && known.place == place(attachment)
        && known.host_side == (link.index, link.peer)
        && known.interface.name == link.name;
    same.then(|| known.interface.clone())
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
