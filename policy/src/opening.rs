//! Which addresses of an answer a name may open (EP-9), and for how long (EP-10).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::time::Timestamp;

/// Why an address in an answer is not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NotOpened {
    /// 127.0.0.0/8 or ::1.
    Loopback,
    /// 0.0.0.0/8 or ::.
    Unspecified,
    /// 224.0.0.0/4 or ff00::/8.
    Multicast,
    /// 240.0.0.0/4, the broadcast address among it.
    Reserved,
    /// 169.254.0.0/16, the metadata address among it, or fe80::/10.
    LinkLocal,
    /// Where a cloud hands credentials to its machines, apart from the link-local addresses.
    Metadata,
    /// An IPv6 address that stands for an IPv4 one: the kernel keys would be the same.
    Ipv4Mapped,
    /// An address of a node.
    Node,
    /// An address that pods get.
    Pod,
    /// An address that services get.
    Service,
    /// RFC 1918, RFC 6598 or RFC 4193, under the strict rebinding guard.
    Private,
}

impl NotOpened {
    /// The reason in one word, as audit records carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Unspecified => "unspecified",
            Self::Multicast => "multicast",
            Self::Reserved => "reserved",
            Self::LinkLocal => "link-local",
            Self::Metadata => "metadata",
            Self::Ipv4Mapped => "ipv4-mapped",
            Self::Node => "node-range",
            Self::Pod => "pod-range",
            Self::Service => "service-range",
            Self::Private => "private",
        }
    }
}

/// Whether a name may open private addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RebindingGuard {
    /// Private addresses outside the cluster's ranges are opened: private zones are common.
    #[default]
    Relaxed,
    /// Private addresses are opened only for a peer with `allowPrivate: true`.
    Strict,
}

/// The ranges that only `cidr`, selector, service and entity peers open.
#[derive(Clone, Debug, Default)]
pub struct ClusterRanges {
    /// Addresses of nodes.
    pub nodes: Vec<IpNet>,
    /// Ranges that pods get their addresses from.
    pub pods: Vec<IpNet>,
    /// Ranges that services get their addresses from.
    pub services: Vec<IpNet>,
}

/// Link-local addresses aside, where clouds hand credentials to their machines: AWS (its range of
/// services on the link), Google, Oracle, Oracle Classic, Alibaba and Azure.
const METADATA: [IpNet; 6] = [
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0), 32)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254), 128)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe), 128)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 0, 192), 32)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(100, 100, 100, 200), 32)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(168, 63, 129, 16), 32)),
];

/// The IPv4 address that a router makes of an IPv6 one: NAT64 (RFC 6052 section 2.1, and RFC 8215 with
/// prefixes of 96 bits) and 6to4 (RFC 3056).
pub fn carried_v4(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(v6) = address else { return None };
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] => {
            let [.., a, b, c, d] = v6.octets();
            Some(Ipv4Addr::new(a, b, c, d))
        }
        [0x2002, ..] => {
            let [_, _, a, b, c, d, ..] = v6.octets();
            Some(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}

/// Says why `address` must not be opened by a name; `None` where it may. An IPv6 address that routers
/// turn into an IPv4 one ([`carried_v4`]) is both.
///
/// `allow_private` is whether a peer that matched the name carries `allowPrivate: true`.
pub fn refusal(
    address: IpAddr,
    ranges: &ClusterRanges,
    guard: RebindingGuard,
    allow_private: bool,
) -> Option<NotOpened> {
    if let Some(v4) = carried_v4(address)
        && let Some(reason) = refusal(v4.into(), ranges, guard, allow_private)
    {
        return Some(reason);
    }
    if METADATA.iter().any(|net| net.contains(&address)) {
        return Some(NotOpened::Metadata);
    }
    let special = match address {
        IpAddr::V4(v4) => special_v4(v4),
        IpAddr::V6(v6) => special_v6(v6),
    };
    if special.is_some() {
        return special;
    }
    let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
    if within(&ranges.nodes) {
        return Some(NotOpened::Node);
    }
    if within(&ranges.pods) {
        return Some(NotOpened::Pod);
    }
    if within(&ranges.services) {
        return Some(NotOpened::Service);
    }
    match guard {
        RebindingGuard::Strict if !allow_private && is_private(address) => Some(NotOpened::Private),
        RebindingGuard::Strict | RebindingGuard::Relaxed => None,
    }
}

/// How long an answer opens its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The shortest time that any answer counts for.
    pub min_ttl: Duration,
    /// The time after the TTL during which new flows still start.
    pub grace: Duration,
}

impl Default for Window {
    fn default() -> Self {
        Self { min_ttl: Duration::from_secs(30), grace: Duration::from_secs(60) }
    }
}

impl Window {
    /// When an answer with `ttl` that arrived at `now` stops opening its addresses.
    pub fn deadline(self, ttl: Duration, now: Timestamp) -> Timestamp {
        now.saturating_add(ttl.max(self.min_ttl).saturating_add(self.grace))
    }
}

fn special_v4(address: Ipv4Addr) -> Option<NotOpened> {
    let first = address.octets()[0];
    if first == 0 {
        Some(NotOpened::Unspecified)
    } else if address.is_loopback() {
        Some(NotOpened::Loopback)
    } else if address.is_multicast() {
        Some(NotOpened::Multicast)
    } else if first >= 240 {
        Some(NotOpened::Reserved)
    } else if address.is_link_local() {
        Some(NotOpened::LinkLocal)
    } else {
        None
    }
}

fn special_v6(address: Ipv6Addr) -> Option<NotOpened> {
    if address.is_unspecified() {
        Some(NotOpened::Unspecified)
    } else if address.is_loopback() {
        Some(NotOpened::Loopback)
    } else if address.is_multicast() {
        Some(NotOpened::Multicast)
    } else if address.is_unicast_link_local() {
        Some(NotOpened::LinkLocal)
    } else if address.to_ipv4().is_some() {
        // ::ffff:0:0/96 (RFC 4291 section 2.5.5.2) and the deprecated ::/96 (2.5.5.1).
        Some(NotOpened::Ipv4Mapped)
    } else {
        None
    }
}

fn is_private(address: IpAddr) -> bool {
    const ULA: IpNet =
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7));
    const PRIVATE: [IpNet; 4] = [
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8)),
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12)),
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16)),
        // Between a provider and its customers (RFC 6598): pods and nodes in several clouds.
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10)),
    ];
    ULA.contains(&address) || PRIVATE.iter().any(|net| net.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_ranges() -> ClusterRanges {
        let net = |text: &str| text.parse().unwrap();
        ClusterRanges {
            nodes: vec![net("192.0.2.11/32"), net("2001:db8:1::11/128")],
            pods: vec![net("10.244.0.0/16"), net("fd00:10:244::/48")],
            services: vec![net("10.96.0.0/16"), net("fd00:10:96::/112")],
        }
    }

    #[test]
    fn ep_9_special_addresses_are_not_opened() {
        let cases = [
            ("127.0.0.1", Some(NotOpened::Loopback)),
            ("::1", Some(NotOpened::Loopback)),
            ("0.0.0.0", Some(NotOpened::Unspecified)),
            ("0.1.2.3", Some(NotOpened::Unspecified)),
            ("::", Some(NotOpened::Unspecified)),
            ("224.0.0.1", Some(NotOpened::Multicast)),
            ("239.255.255.255", Some(NotOpened::Multicast)),
            ("ff02::1", Some(NotOpened::Multicast)),
            ("240.0.0.1", Some(NotOpened::Reserved)),
            ("255.255.255.255", Some(NotOpened::Reserved)),
            ("169.254.169.254", Some(NotOpened::LinkLocal)),
            ("fe80::1", Some(NotOpened::LinkLocal)),
            ("febf::1", Some(NotOpened::LinkLocal)),
            ("::ffff:203.0.113.1", Some(NotOpened::Ipv4Mapped)),
            ("::ffff:127.0.0.1", Some(NotOpened::Ipv4Mapped)),
            ("::203.0.113.1", Some(NotOpened::Ipv4Mapped)),
            ("192.0.2.11", Some(NotOpened::Node)),
            ("2001:db8:1::11", Some(NotOpened::Node)),
            ("10.244.3.4", Some(NotOpened::Pod)),
            ("fd00:10:244:7::9", Some(NotOpened::Pod)),
            ("10.96.0.10", Some(NotOpened::Service)),
            ("fd00:10:96::a", Some(NotOpened::Service)),
            ("192.0.2.12", None),
            ("10.20.0.1", None),
            ("fd99::1", None),
            ("203.0.113.1", None),
            ("2001:db8::1", None),
        ];
        for (address, expected) in cases {
            let decided =
                refusal(address.parse().unwrap(), &mk_ranges(), RebindingGuard::Relaxed, false);
            assert_eq!(decided, expected, "{address}");
        }
    }

    #[test]
    fn ep_9_metadata_services_are_not_opened_wherever_clouds_put_them() {
        let refused = [
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "fd00:c1::a9fe:a9fe",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
        ];
        for address in refused {
            let found =
                refusal(address.parse().unwrap(), &mk_ranges(), RebindingGuard::Relaxed, true);
            assert_eq!(found, Some(NotOpened::Metadata), "{address}");
        }
        for address in ["fd00:ec3::254", "fd20:ce::255", "100.100.100.201", "168.63.129.17"] {
            let found =
                refusal(address.parse().unwrap(), &mk_ranges(), RebindingGuard::Relaxed, false);
            assert_eq!(found, None, "{address}");
        }
    }

    #[test]
    fn ep_9_an_address_that_carries_another_one_is_that_one_too() {
        let cases = [
            ("64:ff9b::169.254.169.254", Some(NotOpened::LinkLocal)),
            ("64:ff9b::127.0.0.1", Some(NotOpened::Loopback)),
            ("64:ff9b::10.244.3.4", Some(NotOpened::Pod)),
            ("64:ff9b:1::10.96.0.10", Some(NotOpened::Service)),
            ("64:ff9b:1:fffe::192.0.2.11", Some(NotOpened::Node)),
            ("2002:a9fe:a9fe::1", Some(NotOpened::LinkLocal)),
            ("2002:af4:304::", Some(NotOpened::Pod)),
            ("64:ff9b::10.20.0.1", Some(NotOpened::Private)),
            ("64:ff9b::203.0.113.1", None),
            ("64:ff9b:2::127.0.0.1", None),
            ("2002:cb00:7101::1", None),
        ];
        for (address, expected) in cases {
            let found =
                refusal(address.parse().unwrap(), &mk_ranges(), RebindingGuard::Strict, false);
            assert_eq!(found, expected, "{address}");
        }
    }

    #[test]
    fn ep_9_strict_guard_opens_private_addresses_only_where_allowed() {
        let cases = [
            ("10.20.0.1", false, Some(NotOpened::Private)),
            ("172.31.255.255", false, Some(NotOpened::Private)),
            ("172.32.0.0", false, None),
            ("192.168.1.1", false, Some(NotOpened::Private)),
            ("fd99::1", false, Some(NotOpened::Private)),
            ("100.64.0.1", false, Some(NotOpened::Private)),
            ("100.127.255.255", false, Some(NotOpened::Private)),
            ("100.128.0.0", false, None),
            ("10.20.0.1", true, None),
            ("fd99::1", true, None),
            ("10.244.3.4", true, Some(NotOpened::Pod)),
            ("127.0.0.1", true, Some(NotOpened::Loopback)),
            ("203.0.113.1", false, None),
        ];
        for (address, allow_private, expected) in cases {
            let decided = refusal(
                address.parse().unwrap(),
                &mk_ranges(),
                RebindingGuard::Strict,
                allow_private,
            );
            assert_eq!(decided, expected, "{address}, allowPrivate {allow_private}");
        }
    }

    #[test]
    fn ep_10_deadline_is_the_longer_of_ttl_and_minimum_plus_grace() {
        let now = Timestamp::from_nanos(1_000_000_000);
        let window = Window::default();
        let seconds = |ttl| window.deadline(Duration::from_secs(ttl), now).since(now).as_secs();
        assert_eq!(seconds(0), 90, "shorter than the minimum");
        assert_eq!(seconds(30), 90, "the minimum");
        assert_eq!(seconds(300), 360, "longer than the minimum");
        assert_eq!(window.deadline(Duration::MAX, now), Timestamp::NEVER, "never wraps around");
    }
}
