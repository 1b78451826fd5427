//! The town's address plan: every number that the manifests in `examples/town`, the zone and the
//! tests share.

use std::net::{Ipv4Addr, Ipv6Addr};

/// One host's addresses in both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Pair {
    const fn new(v4: [u8; 4], v6: [u16; 8]) -> Self {
        Self {
            v4: Ipv4Addr::new(v4[0], v4[1], v4[2], v4[3]),
            v6: Ipv6Addr::new(v6[0], v6[1], v6[2], v6[3], v6[4], v6[5], v6[6], v6[7]),
        }
    }

    const fn pod(last: u8) -> Self {
        Self::new([10, 244, 1, last], [0xfd00, 0x10, 0x244, 1, 0, 0, 0, last as u16])
    }

    const fn outpost(last: u8) -> Self {
        Self::new([10, 244, 2, last], [0xfd00, 0x10, 0x244, 2, 0, 0, 0, last as u16])
    }

    const fn site(last: u8) -> Self {
        Self::new([203, 0, 113, last], [0x2001, 0xdb8, 0x113, 0, 0, 0, 0, last as u16])
    }
}

/// The bridge of the node, which is the pods' gateway.
pub const GATEWAY: Pair = Pair::pod(1);
/// The node's side of the uplink: the outside interface.
pub const NODE: Pair = Pair::new([192, 0, 2, 10], [0x2001, 0xdb8, 0x192, 0, 0, 0, 0, 10]);
/// The internet's side of the uplink.
pub const ROUTER: Pair = Pair::new([192, 0, 2, 1], [0x2001, 0xdb8, 0x192, 0, 0, 0, 0, 1]);

/// The second node's uplink.
pub const OUTPOST: Pair = Pair::new([192, 0, 3, 10], [0x2001, 0xdb8, 0x193, 0, 0, 0, 0, 10]);
/// The internet's side of the second node's uplink.
pub const OUTPOST_ROUTER: Pair = Pair::new([192, 0, 3, 1], [0x2001, 0xdb8, 0x193, 0, 0, 0, 0, 1]);
/// The gateway of the second node's pods.
pub const OUTPOST_GATEWAY: Pair = Pair::outpost(1);
/// Pod `shop/twin` of the second node.
pub const OUTPOST_TWIN: Pair = Pair::outpost(10);
/// Pod `shop/far-web` of the second node.
pub const OUTPOST_WEB: Pair = Pair::outpost(20);

/// Pod `shop/checkout`.
pub const CHECKOUT: Pair = Pair::pod(10);
/// Pod `shop/web`.
pub const WEB: Pair = Pair::pod(20);
/// Pod `data/db`.
pub const DB: Pair = Pair::pod(30);
/// Pod `kube-system/kube-dns`, the cluster's resolver.
pub const KUBE_DNS: Pair = Pair::pod(53);
/// The ClusterIP of the service `kube-system/kube-dns`.
pub const KUBE_DNS_SERVICE: Pair = Pair::new([10, 96, 0, 10], [0xfd00, 0x10, 0x96, 0, 0, 0, 0, 10]);

/// The authoritative server, which answers anybody: a resolver that is not the cluster's.
pub const AUTHORITY: Pair = Pair::new([198, 51, 100, 53], [0x2001, 0xdb8, 0x53, 0, 0, 0, 0, 0x53]);
/// `api.stripe.com`.
pub const STRIPE: Pair = Pair::site(10);
/// `releases.acme.example`, a site with a big slow file and a name that lives one second.
pub const RELEASES: Pair = Pair::site(20);
/// `assets.acme.example`, reached through a CNAME into another zone.
pub const ASSETS: Pair = Pair::site(30);
/// `eu.storage.acme.example` and every other name below `storage.acme.example`.
pub const STORAGE: Pair = Pair::site(40);
/// `echo.acme.example`, which sends back what it gets on TCP and UDP port 7.
pub const ECHO: Pair = Pair::site(7);
/// `example.com`.
pub const EXAMPLE: Pair = Pair::site(50);
/// `evil.example`, where nobody has any business.
pub const EVIL: Pair = Pair::site(66);
/// The cloud's metadata service, beyond the node.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The port on which [`ECHO`] and the pods' echo servers listen, TCP and UDP.
pub const ECHO_PORT: u16 = 7;
/// The port of the database in [`DB`], TCP and UDP.
pub const DB_PORT: u16 = 5432;
