//! What a seasoned reviewer would say about policies that are valid.
//!
//! The rules are pure functions over parsed objects, one file per family. Each [`Finding`] has a
//! stable [`Code`], names the object and the [`Place`] in it, and says what to do. Only what the
//! given objects show is judged: where pods or namespaces are not among them, nothing is said about
//! whom a selector selects.

mod code;
mod cover;
mod dns;
mod isolation;
mod names;
mod notes;
mod place;
mod ranges;
mod reach;
mod selection;
mod written;

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

pub use code::{Code, Severity};
pub use place::{Part, Place};
pub use written::written;

use crate::identity::WorkloadLabels;
use crate::inventory::Inventory;
use crate::name::DnsName;
use crate::object::Object;
use crate::resource::Namespace;
use crate::rule::{
    FqdnPeer, Namespaces, Peer, Peers, Policy, PolicyKind, PolicyRef, Rule, Workloads,
};
use crate::selector::Labels;

/// How many other policies one policy is held against: beyond that nothing is said about both.
const OTHERS_MAX: usize = 1_000;

/// How many different sets of labels of one namespace selectors are held against.
const WORKLOADS_MAX: usize = 5_000;

/// Something about a valid policy that its author may not have meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub code: Code,
    /// How bad it is: [`Code::severity`], or less where the case is milder.
    pub severity: Severity,
    /// The object.
    pub policy: PolicyRef,
    /// Where in the object.
    pub place: Place,
    /// What is the case.
    pub message: String,
    /// What to do.
    pub advice: String,
}

/// The objects under review.
#[derive(Debug)]
pub struct Review<'a> {
    policies: Vec<&'a Policy>,
    by_namespace: BTreeMap<&'a str, Vec<&'a Policy>>,
    cluster_wide: Vec<&'a Policy>,
    namespaces: BTreeMap<Arc<str>, Arc<Labels>>,
    has_namespaces: bool,
    workloads: BTreeMap<Arc<str>, Vec<Arc<WorkloadLabels>>>,
    pod_ranges: Vec<IpNet>,
    domain: DnsName,
}

impl<'a> Review<'a> {
    /// A review of `objects`. Pods are taken to have addresses in `pod_ranges` besides those that
    /// they report; `domain` is the cluster's (EP-6).
    pub fn new(
        objects: impl IntoIterator<Item = &'a Object>,
        pod_ranges: &[IpNet],
        domain: DnsName,
    ) -> Self {
        let mut review = Self {
            policies: Vec::new(),
            by_namespace: BTreeMap::new(),
            cluster_wide: Vec::new(),
            namespaces: BTreeMap::new(),
            has_namespaces: false,
            workloads: BTreeMap::new(),
            pod_ranges: pod_ranges.to_vec(),
            domain,
        };
        let mut inventory = Inventory::default();
        for object in objects {
            match object {
                Object::Policy(policy) => policy.parts().for_each(|part| review.add(part)),
                Object::Pod(pod) => {
                    if !pod.is_host_network && !pod.is_finished {
                        let addresses = pod.addresses.iter().copied();
                        review.pod_ranges.extend(addresses.map(IpNet::from));
                    }
                    inventory.upsert_pod(pod.clone());
                }
                Object::Namespace(namespace) => {
                    review.has_namespaces = true;
                    let labels = Arc::clone(&namespace.labels);
                    review.namespaces.insert(Arc::clone(&namespace.name), labels);
                    inventory.upsert_namespace(namespace.clone());
                }
                Object::Service(_)
                | Object::EndpointSlice(_)
                | Object::Node(_)
                | Object::CidrGroup(_) => {}
            }
        }
        for (_, labels) in inventory.identities().iter() {
            let name = &labels.namespace;
            let known = review.namespaces.entry(Arc::clone(name));
            known.or_insert_with(|| Namespace::new(Arc::clone(name), Labels::new()).labels);
            let workloads = review.workloads.entry(Arc::clone(name)).or_default();
            if workloads.len() < WORKLOADS_MAX {
                workloads.push(Arc::new(labels.clone()));
            }
        }
        review
    }

    fn add(&mut self, policy: &'a Policy) {
        self.policies.push(policy);
        match (&policy.reference.namespace, &policy.subject.namespaces) {
            (Some(namespace), _) => self.by_namespace.entry(namespace).or_default().push(policy),
            (None, Namespaces::Named(_) | Namespaces::Selected(_)) => {
                self.cluster_wide.push(policy)
            }
        }
    }

    /// Everything that there is to say, object by object.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for policy in &self.policies {
            for family in [
                dns::review,
                names::review,
                ranges::review,
                selection::review,
                reach::review,
                isolation::review,
                notes::review,
            ] {
                family(self, policy, &mut findings);
            }
        }
        findings
    }

    /// The policies that can select a pod that `policy` selects, itself among them; `None` where they
    /// are too many to judge.
    fn beside(&self, policy: &Policy) -> Option<Vec<&'a Policy>> {
        let own = policy.reference.namespace.as_deref();
        let namespaced: Vec<&Policy> = match own {
            Some(own) => self.by_namespace.get(own).cloned().unwrap_or_default(),
            None => Vec::new(),
        };
        let all = namespaced.len() + self.cluster_wide.len();
        (all <= OTHERS_MAX).then(|| namespaced.iter().chain(&self.cluster_wide).copied().collect())
    }

    /// The labels of a namespace, as far as they are known.
    fn labels_of(&self, namespace: &str) -> Arc<Labels> {
        self.namespaces
            .get(namespace)
            .map_or_else(|| Namespace::new(namespace.into(), Labels::new()).labels, Arc::clone)
    }
}

/// Whether a policy is of the Cilium dialect.
fn is_cilium(policy: &Policy) -> bool {
    matches!(
        policy.reference.kind,
        PolicyKind::CiliumNetworkPolicy | PolicyKind::CiliumClusterwideNetworkPolicy
    )
}

/// Collects findings about one policy.
struct Report<'a> {
    policy: &'a Policy,
    findings: &'a mut Vec<Finding>,
}

impl Report<'_> {
    fn say(&mut self, code: Code, place: Place, message: String, advice: &str) {
        self.say_as(code.severity(), code, place, message, advice);
    }

    fn say_as(
        &mut self,
        severity: Severity,
        code: Code,
        place: Place,
        message: String,
        advice: &str,
    ) {
        self.findings.push(Finding {
            code,
            severity,
            policy: self.policy.reference.clone(),
            place,
            message,
            advice: advice.to_owned(),
        });
    }
}

/// The peers of a rule that select by labels.
fn by_labels(rule: &Rule) -> impl Iterator<Item = &Workloads> {
    listed(rule).iter().filter_map(|peer| {
        let Peer::Workloads(workloads) = peer else { return None };
        Some(workloads)
    })
}

/// The names of a rule.
fn by_name(rule: &Rule) -> impl Iterator<Item = &FqdnPeer> {
    listed(rule).iter().filter_map(|peer| {
        let Peer::Fqdn(fqdn) = peer else { return None };
        Some(fqdn)
    })
}

/// The peers of a rule that are listed.
fn listed(rule: &Rule) -> &[Peer] {
    match &rule.peers {
        Peers::Any => &[],
        Peers::Of(peers) => peers,
    }
}
