//! Names: which a pod may ask for, which patterns mean them, which addresses they open.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::peer::is_in;
use super::{Lesson, Oracle, Party, Step, View};
use crate::dns::RefuseWith;
use crate::name::DnsName;
use crate::opening::{NotOpened, RebindingGuard};
use crate::pattern::DomainPattern;
use crate::resource::{Pod, Service};
use crate::rule::{
    Direction, DnsFilter, DnsPolicy, FqdnPeer, Mode, Origin, Peer, Peers, Policy, PolicyKind,
    Protocol, Rule,
};

/// Services of the cluster's DNS, in `kube-system`.
const DNS_SERVICES: [&str; 3] = ["kube-dns", "coredns", "rke2-coredns-rke2-coredns"];
/// What the DNS of a cluster is labelled, whatever its name.
const DNS_APP: &str = "kube-dns";
/// Where node-local DNS caches listen.
const NODE_LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10));
const DNS: u16 = 53;

/// What becomes of a query (EP-2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookupRuling {
    /// No policy says anything about the pod's lookups: they are ordinary traffic.
    Ungoverned,
    /// The name is resolved.
    Allowed {
        /// The rule that allowed it, or the Audit policy that would have refused it.
        origin: Option<Origin>,
        /// Whether only Audit policies would have refused it (EP-12).
        audit: bool,
        /// Whether some rule opens the answer's addresses.
        opens: bool,
    },
    /// NXDOMAIN, so that the resolver library tries its next candidate (EP-7).
    SearchMiss,
    /// No rule allows the name.
    Refused {
        /// How it is answered.
        with: RefuseWith,
        /// The policies that filter the pod's lookups.
        filters: Vec<Origin>,
    },
}

impl<'a> Oracle<'a> {
    /// Decides whether `pod` may ask for `name`.
    pub fn ask(&self, pod: &Pod, name: &DnsName) -> LookupRuling {
        let speaking = self.speaking(pod);
        if speaking.is_empty() {
            return LookupRuling::Ungoverned;
        }
        let patterns = self.patterns(pod);
        let meaning = || patterns.iter().filter(|(policy, _, fqdn)| is_named(policy, fqdn, name));
        let opens = meaning().next().is_some();
        let by_peer = meaning().find(|(_, _, fqdn)| fqdn.resolves);
        let by_peer = by_peer.map(|(policy, rule, _)| origin(policy, Some(&rule.label)));
        let of_rules = speaking
            .iter()
            .flat_map(|(policy, dns)| dns.names.iter().map(move |rule| (*policy, rule)));
        let by_rule = of_rules
            .filter(|(policy, rule)| reads(policy, &rule.pattern, name))
            .map(|(policy, rule)| origin(policy, Some(&rule.label)))
            .next();
        let allowed = |origin, audit| LookupRuling::Allowed { origin, audit, opens };
        if let Some(origin) = by_peer.or(by_rule) {
            return allowed(Some(origin), false);
        }
        if self.is_of_cluster(name) {
            return allowed(None, false);
        }
        let filtering = |mode| {
            let all = speaking.iter().filter(move |(policy, _)| policy.mode == mode);
            all.filter(|(_, dns)| dns.filter == DnsFilter::Enforce)
        };
        let Some((_, strictest)) = filtering(Mode::Enforce).next() else {
            let audited = filtering(Mode::Audit).next().map(|(policy, _)| origin(policy, None));
            let is_audited = audited.is_some();
            return allowed(audited, is_audited);
        };
        let below = |suffix: &DnsName| ends_in(name, suffix) && name != suffix;
        if self.circumstances.search.iter().any(below) {
            return LookupRuling::SearchMiss;
        }
        let filters = filtering(Mode::Enforce).map(|(policy, _)| origin(policy, None)).collect();
        LookupRuling::Refused { with: strictest.refuse_with, filters }
    }

    /// Every pattern that opens addresses for `pod`, with its rule, in the order of precedence.
    pub fn patterns(&self, pod: &Pod) -> Vec<(&'a Policy, &'a Rule, &'a FqdnPeer)> {
        let mut patterns = Vec::new();
        for step in self.ladder(pod, Direction::Egress) {
            if let Step::Rule(policy, rule) = step
                && let Peers::Of(peers) = &rule.peers
            {
                let named = peers.iter().filter_map(|peer| match peer {
                    Peer::Fqdn(fqdn) => Some((policy, rule, fqdn)),
                    Peer::Workloads(_)
                    | Peer::Cidr(_)
                    | Peer::CidrGroups(_)
                    | Peer::Entity(_)
                    | Peer::Service(_)
                    | Peer::Services(_)
                    | Peer::Nodes(_) => None,
                });
                patterns.extend(named);
            }
        }
        patterns
    }

    /// The policies that say something about the lookups of `pod`, in the order of precedence.
    pub fn speaking(&self, pod: &Pod) -> Vec<(&'a Policy, &'a DnsPolicy)> {
        let selecting = self.policies().filter(|policy| self.selects(&policy.subject, pod));
        let mut speaking: Vec<_> =
            selecting.filter_map(|policy| Some((policy, policy.dns.as_ref()?))).collect();
        speaking.sort_by_key(|(policy, _)| (policy.tier, policy.reference.clone()));
        speaking
    }

    /// Whether the flow is a lookup that the node's proxy takes.
    pub(super) fn is_lookup(&self, view: &View<'_>) -> bool {
        view.direction == Direction::Egress
            && view.port == DNS
            && matches!(view.protocol, Protocol::Tcp | Protocol::Udp)
            && self.resolvers().contains(&view.remote)
            && !self.speaking(view.subject).is_empty()
    }

    /// The cluster's resolvers, as objects show them and as configured.
    pub fn resolvers(&self) -> BTreeSet<IpAddr> {
        let is_dns = |service: &Service| {
            let label = service.labels.get("k8s-app").is_some_and(|app| **app == *DNS_APP);
            let name = DNS_SERVICES.contains(&&*service.reference.name);
            &*service.reference.namespace == "kube-system" && (name || label)
        };
        let mut resolvers = self.circumstances.resolvers.clone();
        resolvers.insert(NODE_LOCAL);
        for service in self.services() {
            if is_dns(service) {
                resolvers.extend(&service.cluster_addresses);
                let slices = self.slices();
                let own = slices.filter(|one| one.service.as_ref() == Some(&service.reference));
                resolvers.extend(own.flat_map(|slice| &slice.addresses));
            }
        }
        resolvers
    }

    /// Whether the other end is an address that the subject, or a pod just like it, learned for a
    /// name that `fqdn` means, and that a name may open (EP-9, EP-10).
    pub(super) fn is_open_by_name(
        &self,
        view: &View<'_>,
        policy: &Policy,
        fqdn: &FqdnPeer,
    ) -> bool {
        self.lessons.iter().any(|lesson| {
            lesson.address == view.remote
                && is_named(policy, fqdn, &lesson.name)
                && self.is_fresh(lesson)
                && self.is_heard_by(lesson, view.subject)
                && self.withheld(lesson.address, fqdn.allow_private).is_none()
        })
    }

    fn is_fresh(&self, lesson: &Lesson) -> bool {
        let known_for = lesson.ttl.max(self.circumstances.min_ttl) + self.circumstances.grace;
        lesson.at <= self.now && self.now < lesson.at.saturating_add(known_for)
    }

    /// Pods that no policy can tell apart share what they learn.
    fn is_heard_by(&self, lesson: &Lesson, subject: &Pod) -> bool {
        let mut askers = self.pods().filter(|pod| pod.reference == lesson.pod);
        askers.any(|asker| {
            asker.reference.namespace == subject.reference.namespace
                && asker.labels == subject.labels
                && asker.service_account == subject.service_account
                && asker.named_ports == subject.named_ports
        })
    }

    /// Why no name opens an address; `None` where one may (EP-9).
    pub fn withheld(&self, address: IpAddr, allow_private: bool) -> Option<NotOpened> {
        let ranges = &self.circumstances.ranges;
        let within = |nets: &[IpNet]| nets.iter().any(|net| is_in(net, address));
        let mut services = self.services();
        let special = special(address);
        if special.is_some() {
            return special;
        }
        // A translator on the way makes another address of it.
        if let Some(carried) = carried(address)
            && let Some(reason) = self.withheld(carried, allow_private)
        {
            return Some(reason);
        }
        match self.party(address) {
            Party::Pod(_) => return Some(NotOpened::Pod),
            Party::Host | Party::RemoteNode => return Some(NotOpened::Node),
            Party::KubeApiserver | Party::Unmanaged | Party::World => {}
        }
        if within(&ranges.nodes) {
            return Some(NotOpened::Node);
        }
        if within(&ranges.pods) {
            return Some(NotOpened::Pod);
        }
        if within(&ranges.services)
            || services.any(|service| service.cluster_addresses.contains(&address))
        {
            return Some(NotOpened::Service);
        }
        let is_guarded = self.circumstances.guard == RebindingGuard::Strict && !allow_private;
        (is_guarded && is_private(address)).then_some(NotOpened::Private)
    }

    /// EP-6: names of the cluster domain, and reverse names inside its ranges.
    fn is_of_cluster(&self, name: &DnsName) -> bool {
        let ranges = &self.circumstances.ranges;
        let nets = || ranges.pods.iter().chain(&ranges.services).chain(&ranges.nodes);
        ends_in(name, &self.circumstances.domain)
            || reverse(name).is_some_and(|(address, length)| {
                nets().any(|net| net.prefix_len() <= length && is_in(net, address))
            })
    }
}

/// Whether a peer means a name: its pattern does, and no exception of that pattern (EP-5).
pub(crate) fn is_named(policy: &Policy, fqdn: &FqdnPeer, name: &DnsName) -> bool {
    reads(policy, &fqdn.pattern, name)
        && !fqdn.except.iter().any(|except| reads(policy, except, name))
}

/// Whether a pattern means a name, as the dialect of its policy reads it: label by label.
fn reads(policy: &Policy, pattern: &DomainPattern, name: &DnsName) -> bool {
    let text = pattern.to_string().to_ascii_lowercase();
    let labels: Vec<&[u8]> = name.labels().collect();
    let is_cilium = matches!(
        policy.reference.kind,
        PolicyKind::CiliumNetworkPolicy | PolicyKind::CiliumClusterwideNetworkPolicy
    );
    let text = text.strip_suffix('.').unwrap_or(&text);
    if text == "*" || (is_cilium && text == "**") {
        return true;
    }
    // `*.` of EP-4 and `**.` of the Cilium dialect: one or more whole labels.
    let many = if is_cilium { "**." } else { "*." };
    let (has_more, rest) = match text.strip_prefix(many) {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let wanted: Vec<&str> = rest.split('.').collect();
    let Some(more) = labels.len().checked_sub(wanted.len()) else { return false };
    let (front, back) = labels.split_at(more);
    let is_front = if is_cilium { front.iter().all(|label| is_plain(label)) } else { true };
    is_front
        && has_more == (more > 0)
        && back.iter().zip(&wanted).all(|(label, wanted)| is_label(wanted.as_bytes(), label))
}

/// Whether a label is as written, a star standing for any run of plain characters.
fn is_label(written: &[u8], label: &[u8]) -> bool {
    match written.split_first() {
        None => label.is_empty(),
        Some((b'*', rest)) => (0..=label.len())
            .any(|taken| is_plain(&label[..taken]) && is_label(rest, &label[taken..])),
        Some((first, rest)) => label.first() == Some(first) && is_label(rest, &label[1..]),
    }
}

fn is_plain(label: &[u8]) -> bool {
    label.iter().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_'))
}

fn ends_in(name: &DnsName, suffix: &DnsName) -> bool {
    let (name, suffix): (Vec<_>, Vec<_>) = (name.labels().collect(), suffix.labels().collect());
    name.ends_with(&suffix)
}

/// The prefix that a reverse name stands for (RFC 1035 section 3.5, RFC 3596 section 2.5).
fn reverse(name: &DnsName) -> Option<(IpAddr, u8)> {
    let labels = name.labels().map(|label| std::str::from_utf8(label).ok());
    let labels: Vec<&str> = labels.collect::<Option<_>>()?;
    let (digits, family) = labels.split_at_checked(labels.len().checked_sub(2)?)?;
    match family {
        ["in-addr", "arpa"] if digits.len() <= 4 => {
            let mut octets = [0; 4];
            for (octet, text) in octets.iter_mut().zip(digits.iter().rev()) {
                *octet = text.parse().ok()?;
                (octet.to_string() == **text).then_some(())?;
            }
            Some((IpAddr::from(octets), digits.len() as u8 * 8))
        }
        ["ip6", "arpa"] if digits.len() <= 32 => {
            let mut bits = String::new();
            for text in digits.iter().rev() {
                (text.len() == 1 && text.as_bytes()[0].is_ascii_hexdigit()).then_some(())?;
                bits += text;
            }
            let whole = u128::from_str_radix(&format!("{bits:0<32}"), 16).ok()?;
            Some((IpAddr::V6(Ipv6Addr::from_bits(whole)), digits.len() as u8 * 4))
        }
        _ => None,
    }
}

/// Addresses that stand for something else than a host somewhere.
fn special(address: IpAddr) -> Option<NotOpened> {
    let starts = |net: &str| net.parse().is_ok_and(|net| is_in(&net, address));
    let known = [
        (NotOpened::Unspecified, &["0.0.0.0/8", "::/128"][..]),
        (NotOpened::Loopback, &["127.0.0.0/8", "::1/128"]),
        (NotOpened::Multicast, &["224.0.0.0/4", "ff00::/8"]),
        (NotOpened::Reserved, &["240.0.0.0/4"]),
        (NotOpened::LinkLocal, &["169.254.0.0/16", "fe80::/10"]),
        (NotOpened::Metadata, &["fd00:ec2::/32", "fd20:ce::254/128", "fd00:c1::a9fe:a9fe/128"]),
        (NotOpened::Metadata, &["192.0.0.192/32", "100.100.100.200/32", "168.63.129.16/32"]),
        // ::ffff:0:0/96 (RFC 4291 section 2.5.5.2) and the deprecated ::/96 (2.5.5.1).
        (NotOpened::Ipv4Mapped, &["::ffff:0:0/96", "::/96"]),
    ];
    known.iter().find(|(_, nets)| nets.iter().any(|net| starts(net))).map(|(why, _)| *why)
}

/// The IPv4 address in one of NAT64 (RFC 6052, RFC 8215) or 6to4 (RFC 3056).
fn carried(address: IpAddr) -> Option<IpAddr> {
    let starts = |net: &str| net.parse().is_ok_and(|net| is_in(&net, address));
    let IpAddr::V6(v6) = address else { return None };
    let shift = if starts("64:ff9b::/96") || starts("64:ff9b:1::/48") {
        0
    } else if starts("2002::/16") {
        80
    } else {
        return None;
    };
    let bits = u32::try_from(v6.to_bits() >> shift & u128::from(u32::MAX)).ok()?;
    Some(IpAddr::V4(bits.into()))
}

/// RFC 1918, RFC 6598 and RFC 4193.
fn is_private(address: IpAddr) -> bool {
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"]
        .iter()
        .any(|net| net.parse().is_ok_and(|net| is_in(&net, address)))
}

fn origin(policy: &Policy, rule: Option<&std::sync::Arc<str>>) -> Origin {
    Origin { policy: policy.reference.clone(), rule: rule.cloned() }
}
