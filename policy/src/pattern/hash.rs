//! A keyed hash of names that grows label by label.

/// The key of a [`super::PatternSet`]'s hash. Where it is random and unknown, neither who writes
/// policies nor who asks names can make lookups slow; what matches never depends on it.
#[derive(Clone, Copy, Debug)]
pub struct PatternSeed {
    state: u64,
    multiplier: u64,
}

impl PatternSeed {
    /// The key that follows from `seed`.
    pub const fn new(seed: u64) -> Self {
        let state = folded(seed ^ 0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93);
        let multiplier = folded(state ^ seed, 0xa076_1d64_78bd_642f) | 1;
        Self { state, multiplier }
    }

    /// The hash of no label.
    pub(super) const fn start(self) -> u64 {
        self.state
    }

    /// The hash of the labels behind `hash` and one more on their left.
    pub(super) fn extend(self, hash: u64, label: &[u8]) -> u64 {
        let mut state = hash ^ label.len() as u64;
        let mut rest = label;
        while let Some((block, more)) = rest.split_first_chunk::<16>()
            && !more.is_empty()
        {
            let [one, two] = halves(block);
            state = folded(one ^ state, two ^ self.multiplier);
            rest = more;
        }
        let (one, two) = ends(rest);
        folded(one ^ state, two ^ self.multiplier.rotate_left(29))
    }
}

impl Default for PatternSeed {
    fn default() -> Self {
        Self::new(0)
    }
}

/// All bits of a product, each of which depends on all of both.
const fn folded(one: u64, two: u64) -> u64 {
    let product = one as u128 * two as u128;
    product as u64 ^ (product >> 64) as u64
}

fn halves(block: &[u8; 16]) -> [u64; 2] {
    let whole = u128::from_le_bytes(*block);
    [whole as u64, (whole >> 64) as u64]
}

/// At most 16 octets as two numbers; that they overlap does no harm, as the length is hashed too.
fn ends(octets: &[u8]) -> (u64, u64) {
    if let (Some(first), Some(last)) = (octets.first_chunk::<8>(), octets.last_chunk::<8>()) {
        return (u64::from_le_bytes(*first), u64::from_le_bytes(*last));
    }
    if let (Some(first), Some(last)) = (octets.first_chunk::<4>(), octets.last_chunk::<4>()) {
        return (u32::from_le_bytes(*first).into(), u32::from_le_bytes(*last).into());
    }
    let at = |index: usize| octets.get(index).copied().map_or(0, u64::from);
    (at(0) | at(1) << 8 | at(2) << 16, 0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn labels_and_their_borders_and_the_seed_count() {
        let hash = |seed, labels: &[&str]| {
            let seed = PatternSeed::new(seed);
            labels.iter().fold(seed.start(), |hash, label| seed.extend(hash, label.as_bytes()))
        };
        let long = "a-label-of-more-than-sixteen-octets-and-of-two-blocks";
        let names: [&[&str]; 11] = [
            &[],
            &["a"],
            &["a", "a"],
            &["aa"],
            &["ab"],
            &["ba"],
            &["abc", "d"],
            &["ab", "cd"],
            &["abcdefgh"],
            &[long],
            &[&long[1..]],
        ];
        let hashes: BTreeSet<u64> =
            (0..100).flat_map(|seed| names.map(|labels| hash(seed, labels))).collect();
        assert_eq!(hashes.len(), 1100);
    }
}
