//! Port ranges to rows of aligned blocks.
//!
//! A range is cut into the widest aligned blocks that fit. Each block's row also holds the rules of
//! every wider block around it, so that the narrowest hit is the whole answer.

use std::collections::BTreeMap;

use namegate_policy::rule::{PortRange, Protocol};
use namegate_policy::table::{Clause, ClausePorts};

use super::rows::numbered;
use crate::abi::{
    ECHO_PORT_V4, ECHO_PORT_V6, LEVEL_SHIFTS, LEVELS, PORT_CLASSES_MAX, PortClass, PortKey,
    RuleSet, TableKey,
};

const CLASSES: [PortClass; 5] =
    [PortClass::Tcp, PortClass::Udp, PortClass::Sctp, PortClass::Echo, PortClass::Other];

const ALL_PORTS: (usize, u32) = (LEVELS - 1, 0);

/// A block: its level and its number there.
type Block = (usize, u32);

/// The rows of the ports of `clauses`, and which levels have rows, by class.
pub(super) fn rows(
    key: &TableKey,
    clauses: &[Clause],
) -> (BTreeMap<PortKey, RuleSet>, [u8; PORT_CLASSES_MAX]) {
    let mut rows = BTreeMap::new();
    let mut levels = [0; PORT_CLASSES_MAX];
    for (class, mask) in CLASSES.into_iter().zip(&mut levels) {
        let own = own_rules(class, clauses);
        for &(level, block) in own.keys() {
            *mask |= 1 << level;
            let rules = around((level, block))
                .filter_map(|wider| own.get(&wider))
                .fold(RuleSet::EMPTY, RuleSet::union);
            rows.insert(port_key(key, class, (level, block)), rules);
        }
    }
    (rows, levels)
}

/// The rules of each block by itself.
fn own_rules(class: PortClass, clauses: &[Clause]) -> BTreeMap<Block, RuleSet> {
    let mut own: BTreeMap<Block, RuleSet> = BTreeMap::new();
    let mut add = |block, bit| own.entry(block).or_insert(RuleSet::EMPTY).insert(bit);
    for (bit, clause) in numbered(clauses) {
        match &clause.ports {
            ClausePorts::Any => {
                add(ALL_PORTS, bit);
            }
            ClausePorts::Of(ports) => {
                let of_class = ports
                    .iter()
                    .filter_map(|(protocol, range)| meant(*protocol, *range))
                    .filter(|(meant, _)| *meant == class);
                for block in of_class.flat_map(|(_, range)| blocks(range)) {
                    add(block, bit);
                }
            }
        }
    }
    own
}

/// The widest aligned blocks that make up `range`, from its start to its end.
fn blocks(range: PortRange) -> impl Iterator<Item = Block> {
    let end = u32::from(range.end()) + 1;
    let mut at = u32::from(range.start());
    std::iter::from_fn(move || {
        let fits = |level: &usize| {
            let size = 1 << LEVEL_SHIFTS[*level];
            at.is_multiple_of(size) && at + size <= end
        };
        let level = (0..LEVELS).rev().find(fits)?;
        let block = (level, at >> LEVEL_SHIFTS[level]);
        at += 1 << LEVEL_SHIFTS[level];
        Some(block)
    })
    .fuse()
}

/// A block and all wider ones that contain it.
fn around((level, block): Block) -> impl Iterator<Item = Block> {
    let first = block << LEVEL_SHIFTS[level];
    (level..LEVELS).map(move |wider| (wider, first >> LEVEL_SHIFTS[wider]))
}

/// What a protocol and its range are looked up by. Of ICMP only echo requests open flows: they are
/// the port [`ECHO_PORT_V4`] or [`ECHO_PORT_V6`] of their class.
const fn meant(protocol: Protocol, range: PortRange) -> Option<(PortClass, PortRange)> {
    match protocol {
        Protocol::Tcp => Some((PortClass::Tcp, range)),
        Protocol::Udp => Some((PortClass::Udp, range)),
        Protocol::Sctp => Some((PortClass::Sctp, range)),
        Protocol::Icmp => echo(range, ECHO_PORT_V4),
        Protocol::Icmpv6 => echo(range, ECHO_PORT_V6),
    }
}

const fn echo(range: PortRange, request: u16) -> Option<(PortClass, PortRange)> {
    if range.contains(request) { Some((PortClass::Echo, PortRange::single(request))) } else { None }
}

fn port_key(key: &TableKey, class: PortClass, (level, block): Block) -> PortKey {
    PortKey {
        table: key.table,
        // Two directions and five levels fit.
        direction: key.direction as u8,
        class: class as u8,
        level: level as u8,
        padding: 0,
        block,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use namegate_policy::table::{ClauseAction, ClausePeers, ClauseTier};
    use proptest::prelude::*;

    use super::*;

    const KEY: TableKey = TableKey { table: 7, direction: 1 };

    fn mk_clause(ports: ClausePorts) -> Clause {
        Clause {
            action: ClauseAction::Forward,
            tier: ClauseTier::Namespaced,
            peers: ClausePeers { any: true, ..ClausePeers::default() },
            ports,
            origins: Arc::new([]),
        }
    }

    /// What the kernel looks up: the narrowest level first.
    fn look_up(
        (rows, levels): &(BTreeMap<PortKey, RuleSet>, [u8; PORT_CLASSES_MAX]),
        class: PortClass,
        port: u16,
    ) -> RuleSet {
        (0..LEVELS)
            .filter(|level| levels[class as usize] >> level & 1 == 1)
            .find_map(|level| {
                let block = u32::from(port) >> LEVEL_SHIFTS[level];
                rows.get(&port_key(&KEY, class, (level, block)))
            })
            .copied()
            .unwrap_or(RuleSet::EMPTY)
    }

    #[test]
    fn np_15_no_ports_is_every_port_of_every_protocol() {
        let rows = rows(&KEY, &[mk_clause(ClausePorts::Any)]);
        for class in CLASSES {
            assert_eq!(look_up(&rows, class, 0), RuleSet::of([0]), "{class:?}");
            assert_eq!(look_up(&rows, class, 65535), RuleSet::of([0]), "{class:?}");
        }
    }

    #[test]
    fn an_empty_list_of_ports_matches_nothing() {
        let rows = rows(&KEY, &[mk_clause(ClausePorts::Of(Vec::new()))]);
        assert_eq!(rows, (BTreeMap::new(), [0; PORT_CLASSES_MAX]));
    }

    #[test]
    fn np_18_np_19_a_protocol_opens_no_other() {
        let ports = vec![(Protocol::Sctp, PortRange::ALL), (Protocol::Udp, PortRange::single(53))];
        let rows = rows(&KEY, &[mk_clause(ClausePorts::Of(ports))]);
        let cases = [
            (PortClass::Tcp, 53, RuleSet::EMPTY),
            (PortClass::Udp, 53, RuleSet::of([0])),
            (PortClass::Udp, 54, RuleSet::EMPTY),
            (PortClass::Sctp, 54, RuleSet::of([0])),
            (PortClass::Echo, 53, RuleSet::EMPTY),
            (PortClass::Other, 0, RuleSet::EMPTY),
        ];
        for (class, port, rules) in cases {
            assert_eq!(look_up(&rows, class, port), rules, "{class:?} {port}");
        }
    }

    #[test]
    fn np_16_ranges_are_cut_into_few_blocks() {
        let count = |start, end| blocks(PortRange::new(start, end).unwrap()).count();
        assert_eq!(count(0, 65535), 1);
        assert_eq!(count(8000, 8000), 1);
        assert_eq!(
            count(1, 65534),
            15 * 3 * 2 + 14,
            "fifteen a level and side, fourteen at the top"
        );
    }

    fn any_ports() -> impl Strategy<Value = ClausePorts> {
        let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
        let range = (any::<u16>(), any::<u16>())
            .prop_filter_map("start after end", |(start, end)| PortRange::new(start, end));
        let range = prop_oneof![range, any::<u16>().prop_map(PortRange::single)];
        let some = proptest::collection::vec((protocol, range), 0..4).prop_map(ClausePorts::Of);
        prop_oneof![1 => Just(ClausePorts::Any), 4 => some]
    }

    fn matches(ports: &ClausePorts, class: PortClass, port: u16) -> bool {
        match ports {
            ClausePorts::Any => true,
            ClausePorts::Of(list) => list
                .iter()
                .filter_map(|(protocol, range)| meant(*protocol, *range))
                .any(|(meant, range)| meant == class && range.contains(port)),
        }
    }

    proptest! {
        #[test]
        fn narrowest_block_answers_as_the_ranges_say(
            ports in proptest::collection::vec(any_ports(), 0..12),
            probes in proptest::collection::vec(any::<u16>(), 1..32),
        ) {
            let clauses: Vec<_> = ports.iter().cloned().map(mk_clause).collect();
            let rows = rows(&KEY, &clauses);
            let edges = ports.iter().flat_map(|ports| match ports {
                ClausePorts::Any => Vec::new(),
                ClausePorts::Of(list) => list.iter().flat_map(|(_, range)| {
                    [range.start(), range.end(), range.start().wrapping_sub(1), range.end().wrapping_add(1)]
                }).collect(),
            });
            for port in edges.chain(probes) {
                for class in CLASSES {
                    let expected = RuleSet::of(
                        (0..).zip(&ports).filter(|(_, p)| matches(p, class, port)).map(|(bit, _)| bit),
                    );
                    prop_assert_eq!(look_up(&rows, class, port), expected, "{:?} {}", class, port);
                }
            }
        }
    }
}
