use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const MAPPED_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// An IPv6 address, or an IPv4 address in its v4-mapped form (RFC 4291 section 2.5.5.2), in network
/// order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Address(pub [u8; 16]);

impl Address {
    /// `::`.
    pub const UNSPECIFIED: Self = Self([0; 16]);

    /// The address with these IPv4 octets.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// The IPv4 octets; `None` for an IPv6 address.
    #[inline(always)]
    pub fn as_v4(&self) -> Option<[u8; 4]> {
        let [.., a, b, c, d] = self.0;
        self.is_v4().then_some([a, b, c, d])
    }

    /// Whether this stands for an IPv4 address.
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        self.halves().0 == 0 && self.0[8..12] == MAPPED_PREFIX[8..12]
    }

    /// Whether this is an IPv6 link-local unicast address (RFC 4291 section 2.5.6).
    #[inline(always)]
    pub const fn is_link_local_v6(&self) -> bool {
        self.0[0] == 0xfe && self.0[1] & 0xc0 == 0x80
    }

    /// Whether this is an IPv6 multicast address.
    #[inline(always)]
    pub const fn is_multicast_v6(&self) -> bool {
        self.0[0] == 0xff
    }

    /// Whether this is an IPv6 multicast address of link-local scope (RFC 4291 section 2.7).
    #[inline(always)]
    pub const fn is_link_multicast_v6(&self) -> bool {
        self.0[0] == 0xff && self.0[1] & 0xf == 2
    }

    /// Whether the two are one address; eight octets at a time.
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        self.halves() == other.halves()
    }

    /// The first and the last eight octets as numbers, for comparing only.
    #[inline(always)]
    pub const fn halves(&self) -> (u64, u64) {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.0;
        (u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([i, j, k, l, m, n, o, p]))
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::v4(v4.octets()),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        match address.as_v4() {
            Some(octets) => Self::V4(Ipv4Addr::from(octets)),
            None => Self::V6(Ipv6Addr::from(address.0)),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&IpAddr::from(*self), f)
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Whether `address` is the link-local address that RFC 4291 appendix A derives from this MAC.
    #[inline(always)]
    pub fn derives(&self, address: &Address) -> bool {
        let [a, b, c, d, e, f] = self.0;
        let derived = Address([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        derived.is(address)
    }
}
