use super::Address;

/// The blocks of addresses that `VACANT` has a bit for: 65,536 of IPv4, a /16 each, then as many of IPv6.
pub const BLOCKS: u32 = 2 * FAMILY;

/// Of one family.
const FAMILY: u32 = 1 << 16;

impl Address {
    /// The block that the address lies in, below [`BLOCKS`]. An IPv6 block is made up of many /48s: all
    /// whose three groups come to the same by exclusive or.
    #[inline(always)]
    pub const fn block(&self) -> u32 {
        let [first, second, _, last] = self.words();
        if self.is_v4() {
            return front(last) as u32;
        }
        FAMILY + (front(first) ^ back(first) ^ front(second)) as u32
    }
}

/// The two octets that come first in memory.
#[inline(always)]
const fn front(word: u32) -> u16 {
    let [a, b, _, _] = word.to_ne_bytes();
    u16::from_ne_bytes([a, b])
}

#[inline(always)]
const fn back(word: u32) -> u16 {
    let [_, _, a, b] = word.to_ne_bytes();
    u16::from_ne_bytes([a, b])
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    fn block(text: &str) -> u32 {
        Address::from(text.parse::<IpAddr>().expect("an address")).block()
    }

    #[test]
    fn addresses_of_a_network_share_a_block_and_families_do_not() {
        assert_eq!(block("10.244.0.1"), block("10.244.255.254"));
        assert_eq!(block("fd00:10:244::1"), block("fd00:10:244:ffff::2"));
        let apart =
            ["0.0.0.0", "10.244.0.1", "10.96.0.1", "255.255.255.255", "::1", "fd00:10:244::1"];
        let blocks: std::collections::BTreeSet<u32> = apart.map(block).into();
        assert_eq!(blocks.len(), apart.len(), "{blocks:?}");
        assert!(blocks.iter().all(|block| *block < BLOCKS), "{blocks:?}");
    }
}
