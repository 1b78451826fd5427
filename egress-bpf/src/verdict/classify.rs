//! The rules of a table, as bit vectors: (rules whose peers hold the remote) ∧ (rules whose ports
//! hold the port), and the lowest set bit decides.

use super::{Case, IDENTITY_HOST, IDENTITY_WORLD, Maps, Scene};
use crate::abi::{
    Address, CONFIG_RANGES, CidrKey, Direction, DropReason, LEVEL_SHIFTS, LEVELS, NO_CLAUSE,
    NameKey, PeerKey, PeerKind, PortClass, PortKey, RuleSet, TABLE_ANY_PEER, TABLE_CIDRS,
    TABLE_IDENTITIES, TABLE_NAMES, Table, TableKey, WORDS,
};

/// The number of tiers that a rule can be passed over in, and one.
const ROUNDS: usize = 4;

/// Whether a flow is about to be opened or was let through before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// About to be opened: names count until their deadline.
    Opened,
    /// Let through before: names count for as long as user space keeps them for live flows.
    Live,
    /// Let through before because the node itself opened it.
    LiveFromNode,
}

/// Asks the rules about the flow of `case`, and leaves in it which of them decided.
#[inline(always)]
pub(super) fn judge<M: Maps>(
    maps: &M,
    scene: &Scene,
    case: &mut Case,
    remote: &Address,
    (class, port): (PortClass, u16),
    standing: Standing,
) -> Result<(), DropReason> {
    case.remote_identity = identity(maps, remote);
    case.clause = NO_CLAUSE;
    case.audit = NO_CLAUSE;
    // The node reaches its own endpoints whatever the policy: probes depend on it. What others send
    // through the node under its address, translated or forged, is judged.
    let is_open_to_node = match standing {
        // Of a packet that leaves it is only asked whether the node may have opened the flow.
        Standing::Opened => scene.is_from_node || matches!(scene.direction, Direction::Egress),
        Standing::Live => false,
        Standing::LiveFromNode => true,
    };
    if case.remote_identity == IDENTITY_HOST
        && matches!(case.opener, Direction::Ingress)
        && is_open_to_node
    {
        return Ok(());
    }
    let key = TableKey { table: case.table, direction: case.opener as u32 };
    let table = maps.table(&key).ok_or(DropReason::NoTable)?;
    let ports = ports(maps, table, &key, class, port)?;
    let words = table.words as usize;
    case.matching = RuleSet::EMPTY;
    if table.flags & TABLE_IDENTITIES != 0 {
        let row = PeerKey::new(&key, PeerKind::Identity, case.remote_identity);
        join(&mut case.matching, maps.peers(&row), words);
    }
    if table.flags & TABLE_ANY_PEER != 0 {
        let row = maps.peers(&PeerKey::new(&key, PeerKind::Any, 0));
        join(&mut case.matching, Some(row.ok_or(DropReason::MissingRow)?), words);
    }
    if table.flags & TABLE_CIDRS != 0 {
        let row = maps.cidr(&CidrKey::new(&key, *remote));
        join(&mut case.matching, row, words);
    }
    if table.flags & TABLE_NAMES != 0 {
        let row = names(maps, scene, case, &key, remote, standing);
        join(&mut case.matching, row, words);
    }
    let mut word = 0;
    while word < WORDS {
        case.matching.words[word] &= ports.words[word];
        word += 1;
    }
    lowest(table, case)
}

/// Adds the rules of a row, where there is one, to the first words of a set.
#[inline(always)]
fn join(matching: &mut RuleSet, row: Option<&RuleSet>, words: usize) {
    let Some(row) = row else {
        return;
    };
    let mut word = 0;
    while word < WORDS {
        if word >= words {
            return;
        }
        matching.words[word] |= row.words[word];
        word += 1;
    }
}

/// Who an address is.
#[inline(always)]
pub(super) fn identity<M: Maps>(maps: &M, remote: &Address) -> u32 {
    if let Some(identity) = maps.identity(remote) {
        return identity;
    }
    if maps.config().is_some_and(|config| config.flags & CONFIG_RANGES != 0)
        && let Some(identity) = maps.range_identity(remote)
    {
        return identity;
    }
    IDENTITY_WORLD
}

/// The rules that match the port: the row of the narrowest block that has one.
#[inline(always)]
fn ports<'a, M: Maps>(
    maps: &'a M,
    table: &Table,
    key: &TableKey,
    class: PortClass,
    port: u16,
) -> Result<&'a RuleSet, DropReason> {
    let levels = table.levels[class as usize];
    let mut level = 0;
    while level < LEVELS {
        if levels >> level & 1 != 0 {
            let row = PortKey {
                table: key.table,
                direction: key.direction as u8,
                class: class as u8,
                level: level as u8,
                padding: 0,
                block: (port as u32) >> LEVEL_SHIFTS[level],
            };
            if let Some(rules) = maps.ports(&row) {
                return Ok(rules);
            }
            // The widest block is one row: promised, it must be there.
            if level == LEVELS - 1 {
                return Err(DropReason::MissingRow);
            }
        }
        level += 1;
    }
    Err(DropReason::NoRule)
}

/// The rules that match the names learned for the remote.
#[inline(always)]
fn names<'a, M: Maps>(
    maps: &'a M,
    scene: &Scene,
    case: &Case,
    key: &TableKey,
    remote: &Address,
    standing: Standing,
) -> Option<&'a RuleSet> {
    let learned = NameKey { identity: case.identity, address: *remote };
    let entry = maps.name(&learned)?;
    let class = match standing {
        Standing::Live | Standing::LiveFromNode => entry.live_class,
        Standing::Opened if scene.now_ns < entry.deadline_ns => entry.class,
        Standing::Opened => 0,
    };
    if class == 0 {
        return None;
    }
    maps.peers(&PeerKey::new(key, PeerKind::Names, class))
}

/// Finds the rule that decides: the lowest that is not Audit, tiers that a Pass skips left out.
#[inline(always)]
fn lowest(table: &Table, case: &mut Case) -> Result<(), DropReason> {
    let mut start = 0;
    let mut round = 0;
    while round < ROUNDS {
        match scan(table, case, start) {
            Found::Nothing => return Err(DropReason::NoRule),
            Found::Forward => return Ok(()),
            Found::Drop => return Err(DropReason::Denied),
            Found::Pass(next) => start = next,
        }
        round += 1;
    }
    Err(DropReason::NoRule)
}

/// What the lowest matching rule that is not Audit does.
enum Found {
    Nothing,
    Forward,
    Drop,
    /// Go on behind its tier.
    Pass(u16),
}

/// Finds the lowest matching rule from `start` on, and leaves its number in the case.
#[inline(always)]
fn scan(table: &Table, case: &mut Case, start: u16) -> Found {
    let mut word = 0;
    while word < WORDS {
        if word >= table.words as usize {
            return Found::Nothing;
        }
        let matching = case.matching.words[word] & from(start, word);
        let audit = table.audit.words[word];
        let deciding = matching & !audit;
        let lowest = deciding & deciding.wrapping_neg();
        let audits = matching & audit & lowest.wrapping_sub(1);
        if audits != 0 && case.audit == NO_CLAUSE {
            case.audit = number(word, audits);
        }
        if lowest != 0 {
            let decider = number(word, lowest);
            if table.pass.words[word] & lowest != 0 {
                return Found::Pass(tier_end(table, decider));
            }
            case.clause = decider;
            return if table.drop.words[word] & lowest != 0 { Found::Drop } else { Found::Forward };
        }
        word += 1;
    }
    Found::Nothing
}

/// The first rule behind the tier of `rule`.
#[inline(always)]
const fn tier_end(table: &Table, rule: u16) -> u16 {
    let [admin, namespaced, baseline] = table.tier_ends;
    if rule < admin {
        admin
    } else if rule < namespaced {
        namespaced
    } else {
        baseline
    }
}

/// The bits of a word that are not below rule `start`.
#[inline(always)]
const fn from(start: u16, word: usize) -> u64 {
    let first = word as u16 * 64;
    if start <= first {
        u64::MAX
    } else if start >= first + 64 {
        0
    } else {
        u64::MAX << (start - first)
    }
}

#[inline(always)]
const fn number(word: usize, bits: u64) -> u16 {
    word as u16 * 64 + bits.trailing_zeros() as u16
}
