//! What others count, read when somebody scrapes.

use std::collections::BTreeMap;
use std::sync::Arc;

use namegate_egress_bpf::abi::Direction;
use namegate_egress_bpf::datapath::{Counters, Fill};

use super::lookups::HistogramReading;

/// The counts of one moment.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    /// Whether everything of the first read is enforced.
    pub is_enforcing: bool,
    /// What the kernel program counted.
    pub packets: Counters,
    /// How full the kernel's maps are.
    pub fill: Vec<Fill>,
    /// What the proxy counted, by what happened.
    pub proxy: Vec<(&'static str, u64)>,
    /// How long the stages of a lookup take.
    pub stages: Vec<(&'static str, HistogramReading)>,
    /// What happened to the hooks of the kernel program.
    pub hooks: BTreeMap<&'static str, u64>,
    /// Interfaces whose hooks are not where they belong.
    pub hooks_failing: u64,
    /// Pods that the CNI plugin let start without a word of the agent.
    pub unguarded: u64,
    /// Whether the CNI plugin is in the node's list; `None` where it is not to be there.
    pub cni_plugin: Option<bool>,
    /// Whether each kind of objects that is watched is followed.
    pub watches: BTreeMap<&'static str, bool>,
    /// Endpoints by what is known of them.
    pub endpoints: BTreeMap<&'static str, u64>,
    /// Identities with a policy table.
    pub identities: u64,
    /// Policies in force.
    pub policy_count: u64,
    /// Resolvers that the proxy stands in for.
    pub resolvers: u64,
    /// What cannot be enforced at present.
    pub failures: u64,
    /// Learned names, once for each identity.
    pub learned_names: u64,
    /// Learned pairs of a name and an address.
    pub learned_addresses: u64,
    /// Addresses that identities may reach by one name, and that answer for names that they may not.
    pub shared_addresses: u64,
    /// Learned pairs that made room for others.
    pub evictions: u64,
    /// Decisions of each policy.
    pub policies: Vec<PolicyReading>,
    /// Records that were lost, by where.
    pub lost: BTreeMap<&'static str, u64>,
    /// Records that rates and sampling kept out.
    pub suppressed: u64,
}

/// The decisions of one policy in one direction.
#[derive(Clone, Debug)]
pub struct PolicyReading {
    /// Kind of the object.
    pub kind: String,
    /// Namespace of the object; empty where it has none.
    pub namespace: Arc<str>,
    /// Name of the object.
    pub name: Arc<str>,
    /// In which direction the flows were opened.
    pub direction: Direction,
    /// How many.
    pub hits: u64,
}

#[cfg(test)]
pub(super) mod tests {
    use namegate_egress_bpf::abi::{DropReason, Pass};
    use namegate_egress_bpf::datapath::Reason;

    use super::*;

    /// Something of everything.
    pub(crate) fn mk_full() -> Readings {
        let (egress, ingress) = (Direction::Egress, Direction::Ingress);
        let packets = BTreeMap::from([
            ((egress, Reason::Drop(DropReason::NoRule)), 3),
            ((ingress, Reason::Pass(Pass::Judged)), 5),
        ]);
        Readings {
            is_enforcing: true,
            packets: Counters { packets, events_lost: BTreeMap::new() },
            fill: vec![Fill { map: "NAMES", used: 7, max: 131_072 }],
            proxy: vec![("cache-hits", 2)],
            watches: BTreeMap::from([("pods", true), ("nodes", false)]),
            endpoints: BTreeMap::from([("enforced", 3), ("waiting", 1)]),
            policies: vec![PolicyReading {
                kind: "EgressPolicy".to_owned(),
                namespace: "shop".into(),
                name: "apis".into(),
                direction: egress,
                hits: 11,
            }],
            lost: BTreeMap::from([("kernel", 1)]),
            hooks: BTreeMap::from([("displaced", 1)]),
            cni_plugin: Some(true),
            ..Readings::default()
        }
    }
}
