//! Pods whose addresses the CNI plugin told before the API server does.
//!
//! A kubelet tells a pod's addresses once its sandbox stands; the plugin asks while that is made. Until
//! then the plugin's word counts, for pods that the API server says are this node's. It names addresses
//! only: which interface has them is looked up in the kernel as ever.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use namegate_policy::identity::Identity;
use namegate_policy::object::Object;
use namegate_policy::resource::{Pod, PodRef};
use namegate_policy::time::Timestamp;

use super::{Effects, State};
use crate::cni::protocol::Attachment;

/// Claims at most: as many as there can be endpoints.
const CLAIMS_MAX: usize = 4_096;

/// How long a claim counts whose pod has no interface: the plugin comes after the interface, and tells
/// of its end only where the agent has time to listen.
const MISSING_MAX: Duration = Duration::from_secs(60);

/// A claim that counts.
#[derive(Clone, Debug)]
pub(super) struct Held {
    claim: Claim,
    /// When its pod was first seen to have no interface.
    missing_since: Option<Timestamp>,
}

/// The plugin's word on a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The interface in the pod.
    pub attachment: Attachment,
    /// Tells the pod from another of its name.
    pub uid: Option<Arc<str>>,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
}

impl Claim {
    pub(super) fn is_about(&self, pod: &Pod) -> bool {
        self.uid.is_none() || self.uid == pod.uid
    }

    fn is_told_by(&self, pod: &Pod) -> bool {
        self.addresses.iter().all(|address| pod.addresses.contains(address))
    }
}

impl State {
    /// The interface and identity of a pod that is an endpoint with these addresses, or why it is
    /// none.
    pub fn claimed(&self, pod: &PodRef, claim: &Claim) -> Result<(u32, Identity), String> {
        let known = self.tables.inventory().pod(pod).filter(|known| claim.is_about(known));
        if known.is_none() {
            return Err("the API server has not told of it yet".to_owned());
        }
        if self.tables.inventory().namespace(&pod.namespace).is_none() {
            // Its labels say which policies select the pod.
            return Err("the API server has not told of its namespace yet".to_owned());
        }
        let key = (Arc::clone(&pod.namespace), Arc::clone(&pod.name));
        let interface = match self.town.pods.get(&key) {
            Some(Ok(interface)) => interface.index,
            Some(Err(why)) => return Err(why.to_string()),
            None => return Err("its interface was not looked for yet".to_owned()),
        };
        let spec = self.endpoints.get(&interface).filter(|spec| spec.pod == *pod);
        let spec = spec.ok_or(match self.confined {
            Some(_) => "it came after the last word of the API server, which has to answer first",
            None => "its interface is another pod's",
        })?;
        if spec.addresses.is_superset(&claim.addresses) {
            return Ok((interface, spec.identity));
        }
        let missing: Vec<String> =
            claim.addresses.difference(&spec.addresses).map(IpAddr::to_string).collect();
        Err(format!("{} is not its address, or belongs to another pod", missing.join(", ")))
    }

    /// Whether the plugin told of a pod, and what it told is not the API server's word yet.
    pub fn is_claimed(&self, pod: &PodRef) -> bool {
        self.claims.contains_key(pod)
    }

    /// Takes the plugin's word on pods.
    pub(super) fn take_claims(&mut self, claims: BTreeMap<PodRef, Claim>) -> Effects {
        let told: BTreeSet<PodRef> = claims.keys().cloned().collect();
        for (pod, claim) in claims {
            if self.claims.len() < CLAIMS_MAX || self.claims.contains_key(&pod) {
                self.claims.insert(pod, Held { claim, missing_since: None });
            }
        }
        for pod in &told {
            if let Some(known) = self.tables.inventory().pod(pod)
                && let Some(known) = self.with_claim(known)
            {
                self.tables.upsert(&Arc::new(Object::Pod(known)));
            }
        }
        let own = self.town.host_addresses.clone();
        self.bring_up_to_date(&own, told)
    }

    /// Drops the claims of interfaces that are gone.
    pub(super) fn drop_claims(&mut self, is_gone: impl Fn(&Attachment) -> bool) -> Effects {
        let gone: BTreeMap<PodRef, Held> =
            self.claims.extract_if(.., |_, held| is_gone(&held.claim.attachment)).collect();
        self.end_claims(gone)
    }

    /// Drops the claims of pods that have had no interface for long.
    pub(super) fn forget_claims(&mut self, now: Timestamp) -> Effects {
        let town = &self.town;
        let gone: BTreeMap<PodRef, Held> = self
            .claims
            .extract_if(.., |pod, held| {
                let key = (Arc::clone(&pod.namespace), Arc::clone(&pod.name));
                let found = town.pods.get(&key).and_then(|located| located.as_ref().ok());
                if found.is_some_and(|found| town.interfaces.contains(&found.index)) {
                    held.missing_since = None;
                    return false;
                }
                now.since(*held.missing_since.get_or_insert(now)) >= MISSING_MAX
            })
            .collect();
        if gone.is_empty() {
            return Effects::default();
        }
        for pod in gone.keys() {
            tracing::debug!(%pod, "nothing is left of what the CNI plugin told of a pod");
        }
        self.end_claims(gone)
    }

    fn end_claims(&mut self, gone: BTreeMap<PodRef, Held>) -> Effects {
        for (pod, Held { claim, .. }) in &gone {
            let known = self.tables.inventory().pod(pod);
            if let Some(known) = known.filter(|known| claim.is_about(known)) {
                // What it had was the plugin's word.
                let known = Pod { addresses: Vec::new(), ..known.clone() };
                self.tables.upsert(&Arc::new(Object::Pod(known)));
            }
        }
        let own = self.town.host_addresses.clone();
        self.bring_up_to_date(&own, gone.into_keys().collect())
    }

    /// A pod of this node with the addresses that the plugin told, where its object has them not yet: it
    /// has none, or those of a sandbox that was there before.
    pub(super) fn with_claim(&self, pod: &Pod) -> Option<Pod> {
        let claim = self.claim(&pod.reference)?;
        let is_here = pod.node_name.is_some() && pod.node_name == self.settings.node_name;
        let is_wanting = !claim.is_told_by(pod) && !pod.is_finished && !pod.is_host_network;
        (is_here && is_wanting && claim.is_about(pod))
            .then(|| Pod { addresses: claim.addresses.iter().copied().collect(), ..pod.clone() })
    }

    /// Forgets a claim that the pod's object makes needless, or whose pod is gone.
    pub(super) fn outdate_claim(&mut self, pod: &PodRef, object: Option<&Pod>) {
        let Some(claim) = self.claim(pod) else { return };
        let is_needless = match object {
            // Another pod of that name: the claim's own comes, or came and went.
            Some(object) => claim.is_about(object) && claim.is_told_by(object),
            None => {
                let known = self.tables.inventory().pod(pod);
                known.is_some_and(|known| claim.is_about(known))
            }
        };
        if is_needless {
            self.claims.remove(pod);
        }
    }

    /// What the plugin told of a pod, where that counts.
    pub(super) fn claim(&self, pod: &PodRef) -> Option<&Claim> {
        self.claims.get(pod).map(|held| &held.claim)
    }

    /// Interfaces of pods that the plugin told of and the API server did not yet; all that were found
    /// where it has told nothing.
    pub(super) fn interfaces_of_unknown_pods(&self) -> Vec<u32> {
        if self.confined.is_some() {
            return self.town.pods.values().flatten().map(|interface| interface.index).collect();
        }
        let unknown = self.claims.keys().filter(|pod| self.tables.inventory().pod(pod).is_none());
        let found = unknown.filter_map(|pod| {
            let key = (Arc::clone(&pod.namespace), Arc::clone(&pod.name));
            Some(self.town.pods.get(&key)?.as_ref().ok()?.index)
        });
        found.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use namegate_policy::time::Timestamp;

    use super::*;
    use crate::endpoints::{Interface, Town};
    use crate::source::Changes;
    use crate::state::{Behind, EndpointEffect, Event, Settings};
    use crate::testing::{mk_objects, mk_settings};

    const LINK: u32 = 7;

    fn mk_state() -> State {
        State::new(Settings { node_name: Some("node".into()), ..mk_settings() })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn mk_ref() -> PodRef {
        PodRef { namespace: "shop".into(), name: "web".into() }
    }

    fn mk_claim(uid: &str) -> Claim {
        Claim {
            attachment: Attachment { container_id: "c".to_owned(), interface: "eth0".to_owned() },
            uid: Some(uid.into()),
            addresses: BTreeSet::from([ip("10.244.1.5")]),
        }
    }

    /// The pod's object on a node, with these addresses.
    fn pod(uid: &str, node: &str, addresses: &str) -> Event {
        let text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: shop, uid: {uid}}}\n\
             spec: {{nodeName: {node}}}\nstatus: {{podIPs: {addresses}}}\n"
        );
        Event::Objects(Changes { upserts: mk_objects(&text), ..Changes::default() })
    }

    fn town() -> Event {
        let interface = Interface { index: LINK, name: "veth-web".to_owned(), pod_mac: None };
        Event::Town(Town {
            host_addresses: BTreeSet::new(),
            pods: [(("shop".into(), "web".into()), Ok(interface))].into(),
            interfaces: BTreeSet::from([LINK]),
            ..Town::default()
        })
    }

    fn attached(claim: &Claim) -> Event {
        Event::Attached(BTreeMap::from([(mk_ref(), claim.clone())]))
    }

    fn handle(state: &mut State, event: Event) -> Effects {
        state.handle(event, Timestamp::from_nanos(1))
    }

    /// The addresses that are enforced on the interface; `None` where it is closed.
    fn enforced(effects: &Effects) -> Option<Vec<IpAddr>> {
        match effects.endpoints.get(&LINK) {
            Some(EndpointEffect::Enforce(spec)) => Some(spec.addresses.iter().copied().collect()),
            Some(EndpointEffect::Close) => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_pod_is_an_endpoint_before_the_api_server_has_its_address() {
        let mut state = mk_state();
        handle(&mut state, pod("u1", "node", "[]"));
        let claim = mk_claim("u1");
        let effects = handle(&mut state, attached(&claim));
        assert_eq!(effects.wanted.map(|wanted| wanted.len()), Some(1), "it is looked for");
        assert!(state.claimed(&mk_ref(), &claim).is_err());
        assert_eq!(enforced(&handle(&mut state, town())), Some(vec![ip("10.244.1.5")]));
        assert_eq!(state.claimed(&mk_ref(), &claim).map(|(ifindex, _)| ifindex), Ok(LINK));

        // Its status changes otherwise first, then tells the address; both change nothing.
        assert!(handle(&mut state, pod("u1", "node", "[]")).endpoints.is_empty());
        let told = handle(&mut state, pod("u1", "node", "[{ip: 10.244.1.5}]"));
        assert!(told.endpoints.is_empty(), "{:?}", told.endpoints);
        assert!(state.claims.is_empty(), "the API server's word stands alone");
    }

    #[test]
    fn the_interface_of_a_pod_that_nobody_told_of_is_closed() {
        let mut state = mk_state();
        let claim = mk_claim("u1");
        handle(&mut state, attached(&claim));
        assert_eq!(enforced(&handle(&mut state, town())), None);
        let why = state.claimed(&mk_ref(), &claim).unwrap_err();
        assert!(why.contains("has not told of it"), "{why}");
        let effects = handle(&mut state, pod("u1", "node", "[]"));
        assert_eq!(enforced(&effects), Some(vec![ip("10.244.1.5")]));
    }

    #[test]
    fn a_claim_is_about_one_pod_of_this_node() {
        for (what, object) in [
            ("another pod of its name", pod("u2", "node", "[]")),
            ("a pod of another node", pod("u1", "elsewhere", "[]")),
        ] {
            let mut state = mk_state();
            handle(&mut state, object);
            let claim = mk_claim("u1");
            handle(&mut state, attached(&claim));
            handle(&mut state, town());
            assert!(state.claimed(&mk_ref(), &claim).is_err(), "{what}");
            assert!(state.endpoints().is_empty(), "{what}");
        }
    }

    #[test]
    fn a_claim_ends_with_its_interface() {
        let mut state = mk_state();
        handle(&mut state, pod("u1", "node", "[]"));
        handle(&mut state, attached(&mk_claim("u1")));
        handle(&mut state, town());
        let other = Attachment { container_id: "d".to_owned(), interface: "eth0".to_owned() };
        assert!(handle(&mut state, Event::Detached(BTreeSet::from([other]))).endpoints.is_empty());
        let gone = handle(&mut state, Event::Detached(BTreeSet::from([mk_claim("u1").attachment])));
        assert_eq!(enforced(&gone), None, "closed until the interface goes");
        assert!(state.claims.is_empty());
    }

    #[test]
    fn what_carries_a_remembered_pods_address_is_closed_unless_it_was_its_own() {
        let behind = |address, mac| {
            BTreeMap::from([(LINK, Behind { addresses: BTreeSet::from([ip(address)]), mac })])
        };
        for (what, former, is_own) in [
            ("its own", behind("10.244.1.5", None), true),
            ("another's", behind("10.244.1.6", None), false),
            ("another's with its address", behind("10.244.1.5", Some([2, 0, 0, 0, 0, 99])), false),
            ("one that came since", BTreeMap::new(), false),
        ] {
            let mut state = mk_state().confined_to(former);
            handle(&mut state, pod("u1", "node", "[{ip: 10.244.1.5}]"));
            let effects = handle(&mut state, town());
            assert_eq!(enforced(&effects).is_some(), is_own, "{what}");
            let current = Changes { is_current: true, ..Changes::default() };
            let effects = handle(&mut state, Event::Objects(current));
            if !is_own {
                assert_eq!(enforced(&effects), Some(vec![ip("10.244.1.5")]), "{what}");
            }
        }
    }

    #[test]
    fn a_claim_whose_end_nobody_told_is_forgotten_once_its_interface_is_gone() {
        let mut state = mk_state();
        handle(&mut state, pod("u1", "node", "[]"));
        handle(&mut state, attached(&mk_claim("u1")));
        handle(&mut state, town());
        let swept = |state: &mut State, seconds: u64| {
            let since = Timestamp::from_nanos(seconds * 1_000_000_000);
            state.handle(Event::Swept { since, in_use: BTreeSet::new() }, since)
        };
        swept(&mut state, 1_000);
        swept(&mut state, 2_000);
        assert_eq!(state.claims.len(), 1, "its interface is there");

        handle(&mut state, Event::Town(Town::default()));
        swept(&mut state, 3_000);
        swept(&mut state, 3_059);
        assert_eq!(state.claims.len(), 1, "it may be looked for still");
        swept(&mut state, 3_060);
        assert!(state.claims.is_empty());
        let known = state.pod(&mk_ref()).expect("its object is there");
        assert!(known.addresses.is_empty(), "what it had was the plugin's word");
    }
}
