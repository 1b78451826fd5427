use core::cmp::Ordering;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The third word of a v4-mapped address.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// An IPv6 address, or an IPv4 address in its v4-mapped form (RFC 4291 section 2.5.5.2), in network
/// order.
///
/// Kept as words in memory order, so that the kernel program reads and compares four octets at once.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Address([u32; 4]);

impl Address {
    /// `::`.
    pub const UNSPECIFIED: Self = Self([0; 4]);

    /// The address with these octets.
    #[inline(always)]
    pub const fn new(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ])
    }

    /// The address whose octets these words hold in memory.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The address with these IPv4 octets.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(octets))
    }

    /// The IPv4 address whose octets this word holds in memory.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// The words that hold its octets in memory.
    #[inline(always)]
    pub(super) const fn words(&self) -> [u32; 4] {
        self.0
    }

    /// The octets.
    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        let [a, b, c, d] = self.0[0].to_ne_bytes();
        let [e, f, g, h] = self.0[1].to_ne_bytes();
        let [i, j, k, l] = self.0[2].to_ne_bytes();
        let [m, n, o, p] = self.0[3].to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// The IPv4 octets; `None` for an IPv6 address.
    #[inline(always)]
    pub fn as_v4(&self) -> Option<[u8; 4]> {
        self.is_v4().then_some(self.0[3].to_ne_bytes())
    }

    /// Whether this stands for an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] | self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// Whether this is an IPv6 link-local unicast address (RFC 4291 section 2.5.6).
    #[inline(always)]
    pub const fn is_link_local_v6(&self) -> bool {
        let [first, second, ..] = self.0[0].to_ne_bytes();
        first == 0xfe && second & 0xc0 == 0x80
    }

    /// Whether this is an IPv6 multicast address.
    #[inline(always)]
    pub const fn is_multicast_v6(&self) -> bool {
        self.0[0].to_ne_bytes()[0] == 0xff
    }

    /// Whether this is an IPv6 multicast address of link-local scope (RFC 4291 section 2.7).
    #[inline(always)]
    pub const fn is_link_multicast_v6(&self) -> bool {
        let [first, second, ..] = self.0[0].to_ne_bytes();
        first == 0xff && second & 0xf == 2
    }

    /// Whether the two are one address. The last word is looked at first: it tells most apart.
    #[inline(always)]
    pub const fn is(&self, other: &Self) -> bool {
        let (one, other) = (&self.0, &other.0);
        one[3] == other[3] && one[2] == other[2] && one[1] == other[1] && one[0] == other[0]
    }

    /// The first and the last eight octets as numbers.
    #[inline(always)]
    pub const fn halves(&self) -> (u64, u64) {
        let [a, b, c, d] = self.0;
        (a as u64 | (b as u64) << 32, c as u64 | (d as u64) << 32)
    }
}

impl Ord for Address {
    fn cmp(&self, other: &Self) -> Ordering {
        self.octets().cmp(&other.octets())
    }
}

impl PartialOrd for Address {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::v4(v4.octets()),
            IpAddr::V6(v6) => Self::new(v6.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        match address.as_v4() {
            Some(octets) => Self::V4(Ipv4Addr::from(octets)),
            None => Self::V6(Ipv6Addr::from(address.octets())),
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
    /// The MAC whose octets these halves of words hold in memory.
    #[inline(always)]
    pub const fn from_halfwords([a, b, c]: [u16; 3]) -> Self {
        let ([a, b], [c, d], [e, f]) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes());
        Self([a, b, c, d, e, f])
    }

    /// Its octets as a number of 48 bits.
    #[inline(always)]
    pub const fn number(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        let [first, second] = [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])];
        first as u64 | (second as u64) << 16 | (u16::from_ne_bytes([e, f]) as u64) << 32
    }

    /// Whether `address` is the link-local address that RFC 4291 appendix A derives from this MAC.
    #[inline(always)]
    pub fn derives(&self, address: &Address) -> bool {
        let [a, b, c, d, e, f] = self.0;
        let derived =
            Address::new([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        derived.is(address)
    }
}
