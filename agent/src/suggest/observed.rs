use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use namegate_policy::name::DnsName;
use namegate_policy::pattern::DomainPattern;
use namegate_policy::selector::Labels;

use crate::audit::{
    DnsRecord, EndpointLabel, FlowDirection, FlowRecord, FlowVerdict, Line, LookupVerdict, Peer,
    Record,
};
use crate::source::plain;

/// Different things that are held at most, over all workloads.
const FACTS_MAX: usize = 500_000;

/// Addresses that the evidence of one fact shows.
const ADDRESSES_SHOWN: usize = 4;

/// Label sets of one workload that are held.
const LABEL_SETS_MAX: usize = 256;

/// Whose records count, and which.
#[derive(Clone, Debug)]
pub struct Filter {
    /// The namespace; every one where `None`.
    pub namespace: Option<String>,
    /// The pod or workload; every one where `None`.
    pub pod: Option<String>,
    /// Whether what was refused counts as well.
    pub refused: bool,
    /// The domain whose names need no rule.
    pub cluster_domain: DnsName,
}

/// What the log lacks or says in a way that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Records that were lost on their way into the log.
    pub lost: u64,
    /// Records that rates and sampling kept out.
    pub suppressed: u64,
    /// Records that were left out here: too many different ones, or without a pod.
    pub left_out: u64,
    /// Records of refusals, which do not count unless asked for.
    pub refused: u64,
}

/// What workloads did.
#[derive(Debug)]
pub struct Observed {
    filter: Filter,
    pub(super) workloads: BTreeMap<WorkloadRef, Workload>,
    facts: usize,
    missing: Missing,
}

/// A namespace and the name of a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WorkloadRef {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
}

/// What one workload did.
#[derive(Debug, Default)]
pub(super) struct Workload {
    pods: BTreeSet<Arc<str>>,
    pub(super) label_sets: BTreeSet<Arc<Labels>>,
    pub(super) egress: BTreeMap<(Remote, Port), Evidence>,
    pub(super) ingress: BTreeMap<(Remote, Port), Evidence>,
    pub(super) lookups: BTreeMap<String, Evidence>,
    pub(super) unsayable_egress: BTreeMap<String, Evidence>,
    pub(super) unsayable_ingress: BTreeMap<String, Evidence>,
}

/// The other end of flows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Remote {
    Name(String),
    Workload(WorkloadRef),
    Host,
    OtherNode,
    KubeApiserver,
    Address(IpAddr),
}

/// A protocol that rules name ports of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// A port that flows go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port {
    pub(super) protocol: Protocol,
    pub(super) number: u16,
}

/// How often something was seen, and when.
#[derive(Clone, Debug, Default)]
pub(super) struct Evidence {
    count: u64,
    /// How many of them were refused, or would have been without Audit mode.
    refused: u64,
    first: String,
    last: String,
    addresses: BTreeSet<IpAddr>,
}

impl Observed {
    /// Nothing yet.
    pub fn new(filter: Filter) -> Self {
        Self { filter, workloads: BTreeMap::new(), facts: 0, missing: Missing::default() }
    }

    /// Takes a line of the log.
    pub fn add(&mut self, line: &Line<'_>) {
        let time = plain(&line.time);
        match line.record.as_ref() {
            Record::Dns(record) => self.add_lookup(&time, record),
            Record::Flow(record) => self.add_flow(&time, record),
            Record::Lost(record) => self.missing.lost += record.count,
            Record::Suppressed(record) => {
                let counts = [record.rate, record.sample];
                self.missing.suppressed +=
                    counts.iter().map(|counts| counts.allowed + counts.refused).sum::<u64>();
            }
        }
    }

    /// What the log lacks.
    pub fn missing(&self) -> Missing {
        self.missing
    }

    fn add_lookup(&mut self, time: &str, record: &DnsRecord) {
        let is_refused = match record.verdict {
            LookupVerdict::Allowed | LookupVerdict::Audit => false,
            LookupVerdict::Denied => true,
            // Nobody refused the name, and nobody got an answer.
            LookupVerdict::Error => return,
        };
        let Some(query) = &record.query else { return };
        let Ok(name) = DnsName::parse(&query.name) else { return };
        let answered = is_refused || record.rcode.as_deref() == Some("NOERROR");
        let is_own = name.is_at_or_below(&self.filter.cluster_domain);
        if !answered || is_own || is_reverse(&name) {
            return;
        }
        let would_be_refused = record.verdict != LookupVerdict::Allowed;
        let Some(reference) = self.subject(&record.endpoint, is_refused) else { return };
        let Some(workload) = self.workload(reference, &record.endpoint) else { return };
        let addresses = record.addresses.iter().map(|answered| answered.address);
        let evidence = workload.lookups.entry(name.to_string());
        let is_new = matches!(evidence, std::collections::btree_map::Entry::Vacant(_));
        evidence.or_default().see(time, would_be_refused, addresses);
        self.facts += usize::from(is_new);
    }

    fn add_flow(&mut self, time: &str, record: &FlowRecord) {
        let is_refused = record.verdict == FlowVerdict::Dropped;
        // What no rule refused, no rule can allow.
        if is_refused && !matches!(&*record.reason, "denied" | "no-rule" | "revoked") {
            return;
        }
        let (is_egress, remote) = match record.direction {
            FlowDirection::Egress => (true, &record.destination),
            FlowDirection::Ingress => (false, &record.source),
        };
        let Some(reference) = self.subject(&record.endpoint, is_refused) else { return };
        let remotes = self.remotes(remote, is_egress);
        let port = Port::of(&record.protocol, record.destination.port);
        let would_be_refused = record.verdict != FlowVerdict::Forwarded;
        let Some(workload) = self.workload(reference, &record.endpoint) else { return };
        let mut new = 0;
        for remote_end in remotes {
            let known = workload.facts();
            let evidence = match port {
                Some(port) => {
                    let flows =
                        if is_egress { &mut workload.egress } else { &mut workload.ingress };
                    flows.entry((remote_end, port)).or_default()
                }
                None => {
                    let what = plain(&format!("{} {remote_end}", record.protocol));
                    let flows = if is_egress {
                        &mut workload.unsayable_egress
                    } else {
                        &mut workload.unsayable_ingress
                    };
                    flows.entry(what).or_default()
                }
            };
            evidence.see(time, would_be_refused, remote.address);
            new += workload.facts() - known;
        }
        self.facts += new;
    }

    /// The workload that a record is about, where it counts.
    fn subject(&mut self, endpoint: &EndpointLabel, is_refused: bool) -> Option<WorkloadRef> {
        let reference = WorkloadRef::of(
            endpoint.namespace.as_ref(),
            endpoint.pod.as_ref(),
            endpoint.workload.as_ref(),
        );
        let Some(reference) = reference else {
            self.missing.left_out += 1;
            return None;
        };
        let filter = &self.filter;
        let is_meant =
            filter.namespace.as_deref().is_none_or(|asked| *asked == *reference.namespace)
                && filter.pod.as_deref().is_none_or(|asked| {
                    *asked == *reference.name || endpoint.pod.as_deref() == Some(asked)
                });
        if !is_meant {
            return None;
        }
        if is_refused && !filter.refused {
            self.missing.refused += 1;
            return None;
        }
        Some(reference)
    }

    fn workload(
        &mut self,
        reference: WorkloadRef,
        endpoint: &EndpointLabel,
    ) -> Option<&mut Workload> {
        if self.facts >= FACTS_MAX {
            self.missing.left_out += 1;
            return None;
        }
        let workload = self.workloads.entry(reference).or_default();
        workload.note_labels(&endpoint.labels);
        if let Some(pod) = &endpoint.pod
            && workload.pods.len() < LABEL_SETS_MAX
        {
            workload.pods.insert(Arc::clone(pod));
        }
        Some(workload)
    }

    /// What rules can say of the other end: several names where an address was learned under several.
    fn remotes(&mut self, peer: &Peer, is_egress: bool) -> Vec<Remote> {
        let reference =
            WorkloadRef::of(peer.namespace.as_ref(), peer.pod.as_ref(), peer.workload.as_ref());
        if let Some(reference) = reference {
            if self.facts < FACTS_MAX {
                let known = self.workloads.entry(reference.clone()).or_default();
                known.note_labels(&peer.labels);
            }
            return vec![Remote::Workload(reference)];
        }
        match peer.entity.as_deref() {
            // A node always reaches its pods.
            Some("host") if !is_egress => return Vec::new(),
            Some("host") => return vec![Remote::Host],
            Some("remote-node") if is_egress => return vec![Remote::OtherNode],
            Some("kube-apiserver") if is_egress => return vec![Remote::KubeApiserver],
            _ => {}
        }
        let names: Vec<Remote> = peer
            .names
            .iter()
            .filter(|name| is_exact(name))
            .map(|name| Remote::Name(name.to_string()))
            .collect();
        if is_egress && !names.is_empty() {
            return names;
        }
        peer.address.map(Remote::Address).into_iter().collect()
    }
}

impl Workload {
    /// Whether it was only ever the other end of somebody's flows.
    pub(super) fn is_peer_alone(&self) -> bool {
        self.pods.is_empty()
    }

    /// Whether it asked for names or opened flows.
    pub(super) fn has_egress(&self) -> bool {
        !(self.egress.is_empty() && self.lookups.is_empty() && self.unsayable_egress.is_empty())
    }

    /// Whether flows were opened to it.
    pub(super) fn has_ingress(&self) -> bool {
        !(self.ingress.is_empty() && self.unsayable_ingress.is_empty())
    }

    /// How many pods did what follows.
    pub(super) fn describe(&self, reference: &WorkloadRef) -> String {
        let seen = self.egress.values().chain(self.ingress.values()).chain(self.lookups.values());
        let (mut first, mut last) = (None, None);
        for evidence in seen {
            first = first.min(Some(&evidence.first)).or(Some(&evidence.first));
            last = last.max(Some(&evidence.last));
        }
        let when = first.zip(last).map(|(first, last)| format!(", {first} to {last}"));
        let pods = match self.pods.len() {
            1 => "1 pod".to_owned(),
            LABEL_SETS_MAX => format!("{LABEL_SETS_MAX} pods and more"),
            count => format!("{count} pods"),
        };
        format!("{reference}: what {pods} did{}", when.unwrap_or_default())
    }

    fn note_labels(&mut self, labels: &Arc<Labels>) {
        if self.label_sets.len() < LABEL_SETS_MAX && !self.label_sets.contains(labels) {
            self.label_sets.insert(Arc::clone(labels));
        }
    }

    fn facts(&self) -> usize {
        self.egress.len()
            + self.ingress.len()
            + self.unsayable_egress.len()
            + self.unsayable_ingress.len()
    }
}

impl WorkloadRef {
    /// `None` where there is no pod, or where names are none that objects have.
    fn of(
        namespace: Option<&Arc<str>>,
        pod: Option<&Arc<str>>,
        workload: Option<&Arc<str>>,
    ) -> Option<Self> {
        let (namespace, name) = (namespace?, workload.or(pod)?);
        let is_name = |text: &str| {
            let inner = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit();
            text.len() <= 253
                && text.bytes().all(|octet| inner(octet) || matches!(octet, b'-' | b'.'))
                && text.bytes().next().is_some_and(inner)
                && text.bytes().last().is_some_and(inner)
        };
        (is_name(namespace) && is_name(name))
            .then(|| Self { namespace: Arc::clone(namespace), name: Arc::clone(name) })
    }
}

impl fmt::Display for WorkloadRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Remote {
    /// What such ends are called together, in the names of rules.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Name(_) => "names",
            Self::Workload(_) => "pods",
            Self::Host | Self::OtherNode | Self::KubeApiserver => "nodes",
            Self::Address(_) => "addresses",
        }
    }

    /// The name, where it is one.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            Self::Workload(_)
            | Self::Host
            | Self::OtherNode
            | Self::KubeApiserver
            | Self::Address(_) => None,
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Workload(reference) => reference.fmt(f),
            Self::Host => f.write_str("the node"),
            Self::OtherNode => f.write_str("another node"),
            Self::KubeApiserver => f.write_str("the API server"),
            Self::Address(address) => write!(f, "{address}, under no name"),
        }
    }
}

impl Port {
    /// `None` for a protocol that rules name no ports of.
    fn of(protocol: &str, number: u16) -> Option<Self> {
        let protocol = match &*protocol.to_ascii_lowercase() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return None,
        };
        Some(Self { protocol, number })
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        write!(f, "{protocol}-{}", self.number)
    }
}

impl Evidence {
    fn see(&mut self, time: &str, is_refused: bool, addresses: impl IntoIterator<Item = IpAddr>) {
        if self.count == 0 || *time < *self.first {
            time.clone_into(&mut self.first);
        }
        if *time > *self.last {
            time.clone_into(&mut self.last);
        }
        self.count += 1;
        self.refused += u64::from(is_refused);
        for address in addresses {
            if self.addresses.len() <= ADDRESSES_SHOWN {
                self.addresses.insert(address);
            }
        }
    }

    /// Adds what was seen besides.
    pub(super) fn absorb(&mut self, other: &Self) {
        if self.count == 0 || other.first < self.first {
            self.first.clone_from(&other.first);
        }
        if other.last > self.last {
            self.last.clone_from(&other.last);
        }
        self.count += other.count;
        self.refused += other.refused;
        self.addresses.extend(&other.addresses);
    }

    /// The evidence in a line.
    pub(super) fn tell(&self, of: impl fmt::Display, what: &str) -> String {
        let plural = if self.count == 1 { "" } else { "s" };
        let mut told = format!("{of}: {} {what}{plural}", self.count);
        if self.refused > 0 {
            told.push_str(&format!(", {} refused or only let through by Audit mode", self.refused));
        }
        told.push_str(&format!(", last {}", self.last));
        let shown: Vec<String> =
            self.addresses.iter().take(ADDRESSES_SHOWN).map(ToString::to_string).collect();
        if !shown.is_empty() {
            let more = if self.addresses.len() > ADDRESSES_SHOWN { ", ..." } else { "" };
            told.push_str(&format!("; {}{more}", shown.join(", ")));
        }
        plain(&told)
    }
}

/// Whether a rule can mean this name and no other: a star in it would be a wildcard.
fn is_exact(name: &str) -> bool {
    !name.contains(['*', '\\']) && DomainPattern::parse(name).is_ok()
}

/// Whether a name stands for an address (RFC 1035 section 3.5, RFC 3596 section 2.5).
fn is_reverse(name: &DnsName) -> bool {
    let mut labels = name.labels_from_right();
    labels.next() == Some(b"arpa") && matches!(labels.next(), Some(b"in-addr" | b"ip6"))
}
