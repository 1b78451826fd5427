//! The cluster's resolvers: whose lookups go through the proxy (EP-2), each in a slot of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use namegate_policy::name::DnsName;
use namegate_policy::resource::Service;
use namegate_policy::rule::ServiceRef;

/// The number of slots.
pub const SLOTS: u8 = 128;

/// Where node-local DNS caches listen.
pub const NODE_LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10));

/// The namespace of the cluster's DNS Service. A Service elsewhere is nobody's resolver, whatever its
/// name and labels: who may create one could answer lookups.
const DNS_NAMESPACE: &str = "kube-system";

/// The names of the cluster's DNS Service.
const DNS_SERVICES: [&str; 3] = ["kube-dns", "coredns", "rke2-coredns-rke2-coredns"];

/// The label of the cluster's DNS Service, under whichever name.
const DNS_LABEL: (&str, &str) = ("k8s-app", "kube-dns");

/// Whether a Service is the cluster's DNS (EP-2).
pub fn is_cluster_dns(service: &Service) -> bool {
    let ServiceRef { namespace, name } = &service.reference;
    let (label, value) = DNS_LABEL;
    let is_labelled = service.labels.get(label).is_some_and(|found| &**found == value);
    &**namespace == DNS_NAMESPACE && (DNS_SERVICES.contains(&&**name) || is_labelled)
}

/// Resolvers that give the same answers: where one does not answer, fails or takes long, another may
/// be asked in its place. The pod is answered by the one that it asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolverGroup(Vec<IpAddr>);

/// What is wrong with a group of resolvers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// No address.
    #[error("{text:?} is no IP address")]
    Address {
        /// What stands there.
        text: String,
    },
    /// Fewer than two, or more than the proxy asks.
    #[error("a group has 2 to {SLOTS} resolvers, separated by commas, not {count}")]
    Size {
        /// How many there are.
        count: usize,
    },
}

impl ResolverGroup {
    /// Its members, in order.
    pub fn members(&self) -> &[IpAddr] {
        &self.0
    }

    /// Those that may be asked in place of `resolver`, the next in order first; none where it is no
    /// member.
    pub fn alternatives(&self, resolver: IpAddr) -> impl Iterator<Item = IpAddr> {
        let place = self.0.iter().position(|member| *member == resolver);
        let (before, after) = place.map_or((&[][..], &[][..]), |place| {
            (self.0.get(..place).unwrap_or_default(), self.0.get(place + 1..).unwrap_or_default())
        });
        after.iter().chain(before).copied()
    }
}

impl FromStr for ResolverGroup {
    type Err = GroupError;

    fn from_str(text: &str) -> Result<Self, GroupError> {
        let mut members = Vec::new();
        for text in text.split(',').map(str::trim) {
            let address =
                text.parse().map_err(|_| GroupError::Address { text: text.to_owned() })?;
            if !members.contains(&address) {
                members.push(address);
            }
        }
        if (2..=usize::from(SLOTS)).contains(&members.len()) {
            Ok(Self(members))
        } else {
            Err(GroupError::Size { count: members.len() })
        }
    }
}

/// Resolvers by slot. A resolver keeps its slot while it is known, so that answers under way find
/// back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    by_slot: BTreeMap<u8, IpAddr>,
}

/// What to do to get from one set of slots to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotChanges {
    /// Slots to clear.
    pub remove: BTreeMap<u8, IpAddr>,
    /// Slots to fill, after those to clear.
    pub add: BTreeMap<u8, IpAddr>,
    /// Resolvers for which there is no slot.
    pub left_out: Vec<IpAddr>,
}

impl Slots {
    /// The resolvers by slot.
    pub fn iter(&self) -> impl Iterator<Item = (u8, IpAddr)> {
        self.by_slot.iter().map(|(slot, resolver)| (*slot, *resolver))
    }

    /// Makes `wanted` the known resolvers, those first in order getting the slots that are free.
    pub fn update(&mut self, wanted: &[IpAddr]) -> SlotChanges {
        let mut changes = SlotChanges::default();
        let all: BTreeSet<IpAddr> = wanted.iter().copied().collect();
        self.by_slot.retain(|slot, resolver| {
            let stays = all.contains(resolver);
            if !stays {
                changes.remove.insert(*slot, *resolver);
            }
            stays
        });
        for &resolver in wanted {
            if self.by_slot.values().any(|known| *known == resolver)
                || changes.left_out.contains(&resolver)
            {
                continue;
            }
            match (0..SLOTS).find(|slot| !self.by_slot.contains_key(slot)) {
                Some(slot) => {
                    self.by_slot.insert(slot, resolver);
                    changes.add.insert(slot, resolver);
                }
                None => changes.left_out.push(resolver),
            }
        }
        changes
    }
}

impl SlotChanges {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }
}

/// The name servers of a resolver configuration (resolv.conf(5)). Loopback addresses are left out: a
/// pod that asks one asks itself.
pub fn name_servers(resolv_conf: &str) -> Vec<IpAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let server = (words.next() == Some("nameserver")).then(|| words.next()).flatten()?;
            // A zone, as in fe80::1%eth0, means something on this node alone.
            server.parse::<IpAddr>().ok()
        })
        .filter(|address| !address.is_loopback() && !address.is_unspecified())
        .collect()
}

/// The search list of a resolver configuration, which pods inherit behind the cluster's suffixes: that
/// of its last `search` or `domain` line (resolv.conf(5)).
pub fn search_domains(resolv_conf: &str) -> Vec<DnsName> {
    let mut lists = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        matches!(words.next(), Some("search" | "domain")).then_some(words)
    });
    let names =
        lists.next_back().into_iter().flatten().filter_map(|text| DnsName::parse(text).ok());
    // Every name is below the root: a list with it would make each refusal a miss.
    names.filter(|name| name.labels().next().is_some()).collect()
}

/// Where the kernel says which ports it draws for sockets that ask for none.
pub const PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Whether so few ports can be drawn that a query's port and id have less than 28 bits.
pub fn are_ports_few(range: &str) -> bool {
    let mut bounds = range.split_ascii_whitespace().map(str::parse::<u32>);
    match (bounds.next(), bounds.next()) {
        (Some(Ok(first)), Some(Ok(last))) => last.saturating_sub(first) + 1 < 1 << 12,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn ep_2_name_servers_of_the_node() {
        let text = "# generated\nsearch a.test\nnameserver 192.0.2.53\n nameserver 2001:db8::53 # x\n\
                    nameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver\nnameserver x\n\
                    options ndots:5\nnameservers 192.0.2.54\n";
        assert_eq!(name_servers(text), [ip("192.0.2.53"), ip("2001:db8::53")]);
    }

    #[test]
    fn each_member_of_a_group_is_followed_by_the_others() {
        let group: ResolverGroup = "192.0.2.1, 192.0.2.2,2001:db8::3".parse().unwrap();
        let alternatives = |text| group.alternatives(ip(text)).collect::<Vec<_>>();
        assert_eq!(alternatives("192.0.2.1"), [ip("192.0.2.2"), ip("2001:db8::3")]);
        assert_eq!(alternatives("2001:db8::3"), [ip("192.0.2.1"), ip("192.0.2.2")]);
        assert_eq!(alternatives("192.0.2.9"), [] as [IpAddr; 0]);
        for (text, error) in [
            ("192.0.2.1", "a group has 2 to 128 resolvers, separated by commas, not 1"),
            ("192.0.2.1,192.0.2.1", "a group has 2 to 128 resolvers, separated by commas, not 1"),
            ("192.0.2.1,dns", "\"dns\" is no IP address"),
        ] {
            assert_eq!(text.parse::<ResolverGroup>().unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn ep_7_search_list_is_the_last_one_written() {
        let cases: [(&str, &[&str]); 4] = [
            (
                "nameserver 192.0.2.53\nsearch corp.test eu.corp.test.\n",
                &["corp.test", "eu.corp.test"],
            ),
            ("search a.test\n domain b.test\n", &["b.test"]),
            ("search . a..test corp.test\n", &["corp.test"]),
            ("options ndots:5\n", &[]),
        ];
        for (text, expected) in cases {
            let found: Vec<String> = search_domains(text).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{text:?}");
        }
    }

    #[test]
    fn a_narrow_range_of_ports_is_noticed() {
        let cases = [("32768\t60999\n", false), ("40000 44095", false), ("40000 44094", true)];
        for (range, expected) in cases.into_iter().chain([("", true)]) {
            assert_eq!(are_ports_few(range), expected, "{range:?}");
        }
    }

    #[test]
    fn ep_2_the_dns_service_is_known_by_name_or_label_in_its_own_namespace() {
        let mk_service = |namespace: &str, name: &str, app: &str| Service {
            reference: ServiceRef { namespace: namespace.into(), name: name.into() },
            labels: [("k8s-app".into(), app.into())].into(),
            cluster_addresses: vec![ip("10.96.0.10")],
            external_addresses: Vec::new(),
            ports: Vec::new(),
            is_affine: false,
            is_internal_local: false,
            left_alone: BTreeSet::new(),
            restricted: BTreeSet::new(),
            sources: Vec::new(),
        };
        for (namespace, name, app, expected) in [
            ("kube-system", "kube-dns", "", true),
            ("kube-system", "my-dns", "kube-dns", true),
            ("kube-system", "metrics", "metrics", false),
            ("shop", "kube-dns", "kube-dns", false),
        ] {
            let found = is_cluster_dns(&mk_service(namespace, name, app));
            assert_eq!(found, expected, "{namespace}/{name} {app}");
        }
    }

    #[test]
    fn a_resolver_keeps_its_slot() {
        let mut slots = Slots::default();
        let (a, b, c) = (ip("10.96.0.10"), ip("10.244.1.53"), ip("192.0.2.53"));
        let changes = slots.update(&[a, b, a]);
        assert_eq!(changes.add, BTreeMap::from([(0, a), (1, b)]));
        let changes = slots.update(&[c, b]);
        assert_eq!(changes.remove, BTreeMap::from([(0, a)]));
        assert_eq!(changes.add, BTreeMap::from([(0, c)]));
        assert_eq!(slots.iter().collect::<Vec<_>>(), [(0, c), (1, b)]);
        assert!(slots.update(&[b, c]).is_empty(), "the order alone changes nothing");
    }

    #[test]
    fn resolvers_without_a_slot_are_named() {
        let mut slots = Slots::default();
        let many: Vec<IpAddr> = (1..=140u8).map(|n| IpAddr::from([192, 0, 2, n])).collect();
        let changes = slots.update(&many);
        assert_eq!(changes.add.len(), usize::from(SLOTS));
        assert_eq!(changes.left_out, many[128..]);
    }
}
