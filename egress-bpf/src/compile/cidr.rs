//! Prefixes to rows of a longest-prefix-match trie.
//!
//! The trie answers with the longest prefix that contains an address and with nothing else, so each
//! row carries all rules that hold there: what its ancestors bring, plus its own, minus what an
//! exception cuts out. An exception is a row too. Rows are made in one pass over the prefixes in
//! order, with the ancestors of the current one on a stack.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use namegate_policy::table::Clause;

use super::prefixes::Prefixes;
use super::rows::numbered;
use crate::abi::{Address, RULES_MAX, RuleSet};

/// Where IPv4 addresses live among IPv6 ones: `::ffff:0:0/96`.
const IPV4: Prefix = Prefix { bits: 0xffff_0000_0000, length: 96 };

/// A prefix of the v4-mapped address space. The order puts a prefix right before what it contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Prefix {
    bits: u128,
    length: u8,
}

/// What a prefix says about one peer, by the peer's number.
#[derive(Clone, Copy, Debug)]
enum Mark {
    Net(usize),
    Except(usize),
}

/// What the CIDR peers of `clauses` mean.
pub(super) fn prefixes(clauses: &[Clause]) -> Prefixes {
    let mut owners = Vec::new();
    let mut marks: BTreeMap<Prefix, Vec<Mark>> = BTreeMap::new();
    for (bit, clause) in numbered(clauses) {
        for peer in clause.peers.cidrs.iter() {
            let number = owners.len();
            owners.push(usize::from(bit));
            let Some(net) = Prefix::of(peer.net) else { continue };
            marks.entry(net).or_default().push(Mark::Net(number));
            // Without this row an IPv4 address would fall through to an IPv6 prefix around it.
            if net.contains(&IPV4) && net != IPV4 {
                marks.entry(IPV4).or_default().push(Mark::Except(number));
            }
            let family = |except: &&IpNet| except.addr().is_ipv4() == peer.net.addr().is_ipv4();
            let excepts = peer.except.iter().filter(family);
            for except in excepts.filter_map(|except| Prefix::of(*except)) {
                marks.entry(except).or_default().push(Mark::Except(number));
            }
        }
    }

    let mut here = Here::new(owners);
    let mut ancestors: Vec<(Prefix, &[Mark])> = Vec::new();
    let mut rows = Vec::with_capacity(marks.len());
    for (prefix, own) in &marks {
        while let Some((_, left)) = ancestors.pop_if(|(around, _)| !around.contains(prefix)) {
            here.leave(left);
        }
        here.enter(own);
        ancestors.push((*prefix, own));
        rows.push((prefix.address(), prefix.length, here.rules));
    }
    Prefixes::new(rows)
}

/// The rules that hold at the current prefix.
struct Here {
    owners: Vec<usize>,
    inside: Vec<bool>,
    excepted: Vec<u32>,
    peers_of_rule: [u32; RULES_MAX],
    rules: RuleSet,
}

impl Here {
    fn new(owners: Vec<usize>) -> Self {
        let peers = owners.len();
        Self {
            owners,
            inside: vec![false; peers],
            excepted: vec![0; peers],
            peers_of_rule: [0; RULES_MAX],
            rules: RuleSet::EMPTY,
        }
    }

    fn enter(&mut self, marks: &[Mark]) {
        for mark in marks {
            self.change(*mark, |inside, excepted, mark| match mark {
                Mark::Net(_) => *inside = true,
                Mark::Except(_) => *excepted += 1,
            });
        }
    }

    fn leave(&mut self, marks: &[Mark]) {
        for mark in marks {
            self.change(*mark, |inside, excepted, mark| match mark {
                Mark::Net(_) => *inside = false,
                Mark::Except(_) => *excepted -= 1,
            });
        }
    }

    fn change(&mut self, mark: Mark, apply: impl Fn(&mut bool, &mut u32, Mark)) {
        let (Mark::Net(peer) | Mark::Except(peer)) = mark;
        let held = self.inside[peer] && self.excepted[peer] == 0;
        apply(&mut self.inside[peer], &mut self.excepted[peer], mark);
        let holds = self.inside[peer] && self.excepted[peer] == 0;
        let rule = self.owners[peer];
        let word = &mut self.rules.words[rule / 64];
        match (held, holds) {
            (false, true) => {
                self.peers_of_rule[rule] += 1;
                *word |= 1 << (rule % 64);
            }
            (true, false) => {
                self.peers_of_rule[rule] -= 1;
                if self.peers_of_rule[rule] == 0 {
                    *word &= !(1 << (rule % 64));
                }
            }
            (true, true) | (false, false) => {}
        }
    }
}

impl Prefix {
    /// `None` for an IPv6 prefix inside the range that stands for IPv4, which no packet comes from.
    fn of(net: IpNet) -> Option<Self> {
        let net = net.trunc();
        match net {
            IpNet::V4(v4) => Some(Self {
                bits: IPV4.bits | u128::from(v4.addr().to_bits()),
                length: IPV4.length + v4.prefix_len(),
            }),
            IpNet::V6(v6) => {
                let prefix = Self { bits: v6.addr().to_bits(), length: v6.prefix_len() };
                (!IPV4.contains(&prefix)).then_some(prefix)
            }
        }
    }

    fn contains(&self, other: &Self) -> bool {
        let mask = u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0);
        self.length <= other.length && other.bits & mask == self.bits
    }

    fn address(&self) -> Address {
        Address::from(IpAddr::V6(self.bits.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use namegate_policy::rule::CidrReach;
    use namegate_policy::table::{CidrPeer, ClauseAction, ClausePeers, ClausePorts, ClauseTier};
    use proptest::prelude::*;

    use super::*;

    fn mk_clause(cidrs: Vec<CidrPeer>) -> Clause {
        Clause {
            action: ClauseAction::Forward,
            tier: ClauseTier::Namespaced,
            peers: ClausePeers { cidrs: Arc::new(cidrs), ..ClausePeers::default() },
            ports: ClausePorts::Any,
            origins: Arc::new([]),
        }
    }

    fn mk_peer(net: &str, except: &[&str]) -> CidrPeer {
        CidrPeer {
            net: net.parse().unwrap(),
            except: except.iter().map(|text| text.parse().unwrap()).collect(),
            reach: CidrReach::All,
        }
    }

    /// What the kernel's trie answers.
    fn look_up(prefixes: &Prefixes, address: IpAddr) -> RuleSet {
        let bits = u128::from_be_bytes(Address::from(address).octets());
        let around = prefixes.iter().filter(|(prefix, length, _)| {
            let length = u8::try_from(*length).unwrap();
            let around = Prefix { bits: u128::from_be_bytes(prefix.octets()), length };
            around.contains(&Prefix { bits, length: 128 })
        });
        around.max_by_key(|(_, length, _)| *length).map_or(RuleSet::EMPTY, |(_, _, rules)| *rules)
    }

    fn expected(clauses: &[Clause], address: IpAddr) -> RuleSet {
        let matches = |peer: &CidrPeer| {
            peer.net.contains(&address) && !peer.except.iter().any(|net| net.contains(&address))
        };
        RuleSet::of(
            numbered(clauses)
                .filter(|(_, clause)| clause.peers.cidrs.iter().any(matches))
                .map(|(bit, _)| bit),
        )
    }

    #[test]
    fn np_12_an_exception_is_a_row_without_the_rule() {
        let clauses = [
            mk_clause(vec![mk_peer("10.0.0.0/8", &["10.1.0.0/16"])]),
            mk_clause(vec![mk_peer("10.1.2.0/24", &[])]),
        ];
        let rows = prefixes(&clauses);
        let cases: [(&str, &[u16]); 4] =
            [("10.9.9.9", &[0]), ("10.1.9.9", &[]), ("10.1.2.3", &[1]), ("11.0.0.1", &[])];
        for (address, rules) in cases {
            let found = look_up(&rows, address.parse().unwrap());
            assert_eq!(found, RuleSet::of(rules.iter().copied()), "{address}");
        }
        assert_eq!(rows.len(), 3, "one row a prefix");
    }

    #[test]
    fn np_14_address_families_never_match_each_other() {
        let clauses = [
            mk_clause(vec![mk_peer("::/0", &[])]),
            mk_clause(vec![mk_peer("0.0.0.0/0", &[])]),
            mk_clause(vec![mk_peer("::ffff:0:0/96", &[])]),
        ];
        let rows = prefixes(&clauses);
        assert_eq!(look_up(&rows, "2001:db8::1".parse().unwrap()), RuleSet::of([0]));
        assert_eq!(look_up(&rows, "203.0.113.1".parse().unwrap()), RuleSet::of([1]));
    }

    #[test]
    fn an_exception_around_its_own_prefix_leaves_nothing() {
        let clauses = [mk_clause(vec![mk_peer("10.1.0.0/16", &["10.0.0.0/8"])])];
        assert_eq!(look_up(&prefixes(&clauses), "10.1.0.1".parse().unwrap()), RuleSet::EMPTY);
    }

    fn any_net() -> impl Strategy<Value = IpNet> {
        let v4 = (0_u32..16, 0_u8..=32).prop_map(|(low, length)| {
            let address = IpAddr::from((0x0a00_0000 | low << 20 | low).to_be_bytes());
            IpNet::new(address, length).unwrap().trunc()
        });
        let v6 = (0_u128..16, 0_u8..=128).prop_map(|(low, length)| {
            let address = IpAddr::from((0x2001_0db8_u128 << 96 | low << 64 | low).to_be_bytes());
            IpNet::new(address, length).unwrap().trunc()
        });
        prop_oneof![v4, v6]
    }

    fn any_clause() -> impl Strategy<Value = Clause> {
        let peer = (any_net(), proptest::collection::vec(any_net(), 0..3))
            .prop_map(|(net, except)| CidrPeer { net, except, reach: CidrReach::All });
        proptest::collection::vec(peer, 0..4).prop_map(mk_clause)
    }

    proptest! {
        #[test]
        fn longest_prefix_answers_as_the_peers_say(
            clauses in proptest::collection::vec(any_clause(), 0..8),
            probes in proptest::collection::vec(any_net(), 1..16),
        ) {
            let rows = prefixes(&clauses);
            for address in probes.iter().flat_map(|net| [net.network(), net.broadcast()]) {
                if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
                    continue;
                }
                prop_assert_eq!(look_up(&rows, address), expected(&clauses, address), "{}", address);
            }
        }
    }
}
