use super::{Case, Question, Scene, admit, answer, track};
use crate::abi::{
    Address, Backend, BackendKey, CidrKey, Config, DropReason, Endpoint, Flow, FlowKey, Fragment,
    FragmentKey, HitKey, NameEntry, NameKey, Pass, Passage, PeerKey, PortKey, QuotaKey, RuleSet,
    Service, ServiceKey, Table, TableKey,
};
use crate::packet::Packet;

/// A map that takes no further entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The first step of a verdict, where packet and maps meet.
pub trait Gate<P: Packet>: Maps + Sized {
    /// Reads headers and checks the source: [`admit`]. The kernel program makes this a function of its
    /// own, as it does [`Maps::ask`].
    fn admit(&self, packet: &P, scene: &Scene, case: &mut Case) -> Result<(), DropReason> {
        admit(packet, self, scene, case)
    }
}

/// The maps that a verdict asks. Absence is an answer: it never opens anything.
pub trait Maps {
    /// Asks the rules about the flow of `case`: [`answer`]. The kernel program makes this a function
    /// of its own, so that the verifier walks the rules once, and not once for every way that leads
    /// to them.
    fn ask(
        &mut self,
        question: Question,
        now_ns: u64,
        is_from_node: bool,
        case: &mut Case,
    ) -> Result<(), DropReason>
    where
        Self: Sized,
    {
        answer(self, question, now_ns, is_from_node, case)
    }

    /// Judges a packet with ports or an echo by its flow: [`track`]. The kernel program makes this a
    /// function of its own, too.
    fn track(&mut self, scene: &Scene, case: &mut Case) -> Result<Pass, DropReason>
    where
        Self: Sized,
    {
        track(self, scene, case)
    }

    /// The one row of `CONFIG`.
    fn config(&self) -> Option<&Config>;

    /// The endpoint behind an interface.
    fn endpoint(&self, ifindex: u32) -> Option<&Endpoint>;

    /// What the short way has to know of the endpoint behind an interface.
    fn passage(&self, ifindex: u32) -> Option<Passage> {
        Some(Passage::of(ifindex, self.endpoint(ifindex)?))
    }

    /// The slot of a resolver.
    fn resolver_slot(&self, address: &Address) -> Option<u32>;

    /// Whether a slot has a resolver of the family.
    fn has_resolver(&self, slot: u32, is_v4: bool) -> bool;

    /// The identity of an address in the ipcache.
    fn identity(&self, address: &Address) -> Option<u32>;

    /// The identity of the longest cluster range that holds an address.
    fn range_identity(&self, address: &Address) -> Option<u32>;

    /// What one direction of a table promises.
    fn table(&self, key: &TableKey) -> Option<&Table>;

    /// The rules that match remotes of a kind and class.
    fn peers(&self, key: &PeerKey) -> Option<&RuleSet>;

    /// The rules that match remotes under the longest prefix that holds an address.
    fn cidr(&self, key: &CidrKey) -> Option<&RuleSet>;

    /// The rules that match the ports of a block.
    fn ports(&self, key: &PortKey) -> Option<&RuleSet>;

    /// What an identity learned of an address.
    fn name(&self, key: &NameKey) -> Option<&NameEntry>;

    /// What an address and port stand for, where they are a service's.
    fn service(&self, key: &ServiceKey) -> Option<&Service>;

    /// A backend of a service.
    fn backend(&self, key: &BackendKey) -> Option<&Backend>;

    /// A flow, expired or not.
    fn flow(&mut self, key: &FlowKey) -> Option<&mut Flow>;

    /// Counts an entry that is about to be made, for the endpoint and for all, where `may` says that there
    /// is room, given how many the endpoint has and how many there are; says whether it did. `None` where
    /// they are not counted.
    fn claim_flow(&mut self, key: &QuotaKey, may: impl FnOnce(u64, u64) -> bool) -> Option<bool>;

    /// Writes a flow over what was there.
    fn put_flow(&mut self, key: &FlowKey, flow: &Flow) -> Result<(), Full>;

    /// What is remembered of a fragmented datagram.
    fn fragment(&self, key: &FragmentKey) -> Option<&Fragment>;

    /// Remembers a fragmented datagram.
    fn put_fragment(&mut self, key: &FragmentKey, fragment: &Fragment) -> Result<(), Full>;

    /// Counts a decision of a rule.
    fn hit(&mut self, key: &HitKey);
}
