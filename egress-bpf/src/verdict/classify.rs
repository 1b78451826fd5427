//! The rules of a table, as bit vectors: (rules whose peers hold the remote) ∧ (rules whose ports
//! hold the port), and the lowest set bit decides.

use super::question::{Port, Question};
use super::{
    Case, IDENTITY_HOST, IDENTITY_KUBE_APISERVER, IDENTITY_UNKNOWN, IDENTITY_WORLD, Maps,
    is_incomplete,
};
use crate::abi::{
    Address, CONFIG_RANGES, CidrKey, Direction, DropReason, LEVEL_SHIFTS, LEVELS, NO_CLAUSE,
    NameKey, PORT_CLASSES_MAX, PeerKey, PeerKind, PortKey, RuleSet, TABLE_ANY_PEER, TABLE_CIDRS,
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

/// Answers a question about the flow of `case` from the rules, and leaves in it which of them
/// decided.
#[inline(always)]
pub fn answer<M: Maps>(
    maps: &M,
    question: Question,
    now_ns: u64,
    is_from_node: bool,
    case: &mut Case,
) -> Result<(), DropReason> {
    case.remote_identity = identity(maps, &case.remote);
    case.clause = NO_CLAUSE;
    case.audit = NO_CLAUSE;
    if case.remote_identity == IDENTITY_UNKNOWN {
        return Err(DropReason::Incomplete);
    }
    // The node reaches its own endpoints whatever the policy: probes depend on it. What others send
    // through the node under its address, translated or forged, is judged.
    if case.remote_identity == IDENTITY_HOST
        && matches!(question.opener(), Direction::Ingress)
        && is_open_to_node(question, is_from_node)
    {
        return Ok(());
    }
    let key = TableKey { table: case.table, direction: question.opener() as u32 };
    let table = maps.table(&key).ok_or(DropReason::NoTable)?;
    let ports = ports(maps, table, &key, question.port())?;
    case.matching = RuleSet::EMPTY;
    if table.flags & TABLE_IDENTITIES != 0 {
        let row = PeerKey::new(&key, PeerKind::Identity, case.remote_identity);
        join(&mut case.matching, maps.peers(&row));
    }
    if table.flags & TABLE_ANY_PEER != 0 {
        let row = maps.peers(&PeerKey::new(&key, PeerKind::Any, 0));
        join(&mut case.matching, Some(row.ok_or(DropReason::MissingRow)?));
    }
    if table.flags & TABLE_CIDRS != 0 {
        let row = maps.cidr(&CidrKey::new(table.prefixes, key.direction, case.remote));
        join(&mut case.matching, row);
    }
    if table.flags & TABLE_NAMES != 0 && is_open_to_names(case.remote_identity) {
        let row = names(maps, question.standing(), now_ns, case, &key);
        join(&mut case.matching, row);
    }
    let mut word = 0;
    while word < WORDS {
        case.matching.words[word] &= ports.words[word];
        word += 1;
    }
    lowest(table, case)
}

/// Whether the node itself is behind its own address.
#[inline(always)]
const fn is_open_to_node(question: Question, is_from_node: bool) -> bool {
    match question.standing() {
        // Where it is asked about the other side, the node may well have opened the flow.
        Standing::Opened => is_from_node || question.is_of_other_side(),
        Standing::Live => question.is_of_other_side(),
        Standing::LiveFromNode => true,
    }
}

/// Whether names may open the addresses of an identity (EP-9). User space asks when it learns one;
/// since then it may have become a pod's or a node's.
#[inline(always)]
const fn is_open_to_names(identity: u32) -> bool {
    matches!(identity, IDENTITY_WORLD | IDENTITY_KUBE_APISERVER)
}

/// Adds the rules of a row, where there is one, to a set.
#[inline(always)]
fn join(matching: &mut RuleSet, row: Option<&RuleSet>) {
    let Some(row) = row else {
        return;
    };
    let mut word = 0;
    while word < WORDS {
        matching.words[word] |= row.words[word];
        word += 1;
    }
}

/// Who an address is; [`IDENTITY_UNKNOWN`] where that cannot be told.
#[inline(always)]
pub(super) fn identity<M: Maps>(maps: &M, remote: &Address) -> u32 {
    if let Some(identity) = maps.identity(remote) {
        return identity;
    }
    let config = maps.config();
    if is_incomplete(config) {
        return IDENTITY_UNKNOWN;
    }
    if config.is_some_and(|config| config.flags & CONFIG_RANGES != 0)
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
    port: Port,
) -> Result<&'a RuleSet, DropReason> {
    let levels = table.levels[port.class as usize & (PORT_CLASSES_MAX - 1)];
    let mut level = 0;
    while level < LEVELS {
        if levels >> level & 1 != 0 {
            let row = PortKey {
                table: key.table,
                direction: key.direction as u8,
                class: port.class,
                level: level as u8,
                padding: 0,
                block: (port.number as u32) >> LEVEL_SHIFTS[level],
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
    standing: Standing,
    now_ns: u64,
    case: &Case,
    key: &TableKey,
) -> Option<&'a RuleSet> {
    let learned = NameKey { identity: case.identity, address: case.remote };
    let entry = maps.name(&learned)?;
    let class = match standing {
        Standing::Live | Standing::LiveFromNode => entry.live_class,
        Standing::Opened if now_ns < entry.deadline_ns => entry.class,
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
    let mut round = 0;
    while round < ROUNDS {
        match scan(table, case) {
            Found::Nothing => return Err(DropReason::NoRule),
            Found::Forward => return Ok(()),
            Found::Drop => return Err(DropReason::Denied),
            Found::Pass => {}
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
    /// Its tier is left out from here on.
    Pass,
}

/// Finds the lowest matching rule, and leaves its number in the case.
#[inline(always)]
fn scan(table: &Table, case: &mut Case) -> Found {
    let mut word = 0;
    while word < WORDS {
        let matching = case.matching.words[word];
        let audit = table.audit.words[word];
        let deciding = matching & !audit;
        let lowest = deciding & deciding.wrapping_neg();
        let audits = matching & audit & lowest.wrapping_sub(1);
        if audits != 0 && case.audit == NO_CLAUSE {
            case.audit = number(word, audits);
        }
        if lowest != 0 {
            if table.pass.words[word] & lowest != 0 {
                skip_tier(table, case, word, lowest);
                return Found::Pass;
            }
            case.clause = number(word, lowest);
            return if table.drop.words[word] & lowest != 0 { Found::Drop } else { Found::Forward };
        }
        word += 1;
    }
    Found::Nothing
}

/// Takes the tier of a rule out of the rules that match.
#[inline(always)]
fn skip_tier(table: &Table, case: &mut Case, word: usize, rule: u64) {
    let [admin, namespaced, baseline] = &table.tiers;
    let tier = if admin.words[word] & rule != 0 {
        admin
    } else if namespaced.words[word] & rule != 0 {
        namespaced
    } else {
        baseline
    };
    let mut word = 0;
    while word < WORDS {
        case.matching.words[word] &= !tier.words[word];
        word += 1;
    }
}

#[inline(always)]
const fn number(word: usize, bits: u64) -> u16 {
    word as u16 * 64 + bits.trailing_zeros() as u16
}
