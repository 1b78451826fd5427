//! What an upstream's answer teaches: pure, bounded, and sceptical.
//!
//! Only addresses of the asked type at the end of the CNAME chain that starts at the asked name
//! count, class IN, in the answer section (EP-8). The address hints of HTTPS and SVCB records count
//! like addresses (RFC 9460 section 7.3). Whatever else the answer says reaches the pod and opens
//! nothing. A message that cannot be read to its end is malformed as a whole.
//!
//! The reader works on offsets of the message instead of a codec's owned records, so that an answer
//! costs one allocation for its addresses and one for the places of its TTLs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::learner::TaughtAddress;
use crate::query::Query;
use crate::record::{QueryType, Rcode};
use crate::wire::{self, HEADER, Header, RecordAt};

/// CNAME records followed from the asked name.
pub const CHAIN_MAX: usize = 16;
/// Records of the answer section that are looked at.
pub const RECORDS_MAX: usize = 1024;
/// Addresses that are looked at, hints of HTTPS and SVCB records among them: one record has room for
/// sixteen thousand.
pub const ADDRESSES_MAX: usize = 512;

const TYPE_SOA: u16 = 6;

/// An answer, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The response code, extended bits included.
    pub rcode: Rcode,
    /// The addresses that count for the asked name, each once, with the least TTL on the way to it.
    pub addresses: Vec<TaughtAddress>,
    /// For how many seconds the answer may be kept as a whole: the least TTL of its records, or the
    /// negative TTL (RFC 2308 section 5). `None` where it must not be kept.
    pub lifetime: Option<u32>,
    /// Whether the answer says that there is nothing.
    pub(crate) is_negative: bool,
    /// Where the TTLs stand in the message.
    pub(crate) ttls: Vec<u16>,
    /// Whether the message is a header alone, as servers send that could not read the question.
    pub(crate) is_bare: bool,
}

/// Why an answer teaches nothing at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// The message is cut short, holds trailing octets, or a record does not parse.
    #[error("the answer is malformed")]
    Malformed,
    /// The message is marked as truncated.
    #[error("the answer is truncated")]
    Truncated,
}

/// Whether `message` is a response to `query`, its id aside: question and operation match.
pub fn is_response_to(message: &[u8], query: &Query) -> bool {
    is_response_to_question(message, query.question())
}

pub(crate) fn is_response_to_question(message: &[u8], question: &[u8]) -> bool {
    let Some(header) = Header::read(message) else {
        return false;
    };
    if header.flags & wire::QR == 0 || header.opcode() != 0 {
        return false;
    }
    if is_bare(message, header) {
        return true;
    }
    let end = HEADER + question.len();
    let Some(echoed) = message.get(HEADER..end) else {
        return false;
    };
    let (Some((name, fixed)), Some((echoed_name, echoed_fixed))) =
        (question.split_last_chunk::<4>(), echoed.split_last_chunk::<4>())
    else {
        return false;
    };
    header.questions == 1 && fixed == echoed_fixed && name.eq_ignore_ascii_case(echoed_name)
}

/// Reads the answer to `query`.
pub fn read(message: &[u8], query: &Query) -> Result<Answer, AnswerError> {
    let header = Header::read(message).ok_or(AnswerError::Malformed)?;
    if !is_response_to(message, query) {
        return Err(AnswerError::Malformed);
    }
    if header.flags & wire::TC != 0 {
        return Err(AnswerError::Truncated);
    }
    let mut answer = Answer {
        rcode: Rcode(header.rcode()),
        addresses: Vec::new(),
        lifetime: None,
        is_negative: false,
        ttls: Vec::new(),
        is_bare: is_bare(message, header),
    };
    if answer.is_bare {
        return Ok(answer);
    }
    let records = read_sections(message, header, query, &mut answer)?;
    if answer.rcode == Rcode::NOERROR {
        answer.addresses = chain_addresses(message, &records, query.query_type)?;
    }
    Ok(answer)
}

fn is_bare(message: &[u8], header: Header) -> bool {
    message.len() == HEADER
        && header.questions == 0
        && matches!(
            Rcode(header.rcode()),
            Rcode::FORMERR | Rcode::SERVFAIL | Rcode::NOTIMP | Rcode::REFUSED
        )
}

/// A TTL as RFC 2181 section 8 reads it.
fn seconds(ttl: u32) -> u32 {
    if ttl > i32::MAX.unsigned_abs() { 0 } else { ttl }
}

/// Walks all sections to the last octet and returns the records of the answer section.
fn read_sections(
    message: &[u8],
    header: Header,
    query: &Query,
    answer: &mut Answer,
) -> Result<Vec<RecordAt>, AnswerError> {
    let mut at = HEADER + query.question.len();
    let mut records = Vec::with_capacity(usize::from(header.answers).min(64));
    let mut least = None::<u32>;
    let mut negative = None::<u32>;
    let sections = [header.answers, header.authorities, header.additionals];
    for (section, count) in sections.into_iter().enumerate() {
        for _ in 0..count {
            let record = RecordAt::read(message, at).ok_or(AnswerError::Malformed)?;
            at = record.end;
            if record.kind == wire::TYPE_OPT && section == 2 {
                let upper = u16::try_from(record.ttl >> 24).unwrap_or(0);
                answer.rcode = Rcode(upper << 4 | header.rcode());
                continue;
            }
            let ttl_at = u16::try_from(record.ttl_at).map_err(|_| AnswerError::Malformed)?;
            answer.ttls.push(ttl_at);
            let ttl = seconds(record.ttl);
            least = Some(least.map_or(ttl, |least| least.min(ttl)));
            if section == 1 && record.kind == TYPE_SOA {
                let minimum = record.end.checked_sub(4).filter(|&at| at >= record.data);
                let minimum = minimum
                    .and_then(|at| wire::u32_at(message, at))
                    .ok_or(AnswerError::Malformed)?;
                negative = Some(ttl.min(seconds(minimum)));
            }
            if section == 0 && record.class == wire::CLASS_IN && records.len() < RECORDS_MAX {
                records.push(record);
            }
        }
    }
    if at != message.len() {
        return Err(AnswerError::Malformed);
    }
    let is_positive = records.iter().any(|record| record.kind == query.query_type.0);
    answer.is_negative = !is_positive;
    answer.lifetime = match answer.rcode {
        Rcode::NOERROR if is_positive => least,
        Rcode::NOERROR | Rcode::NXDOMAIN => {
            negative.map(|negative| least.map_or(negative, |least| least.min(negative)))
        }
        _ => None,
    };
    Ok(records)
}

/// The addresses at the end of the chain, or the hints there.
fn chain_addresses(
    message: &[u8],
    records: &[RecordAt],
    query_type: QueryType,
) -> Result<Vec<TaughtAddress>, AnswerError> {
    let teaches =
        matches!(query_type, QueryType::A | QueryType::AAAA | QueryType::HTTPS | QueryType::SVCB);
    let mut found = Found::default();
    if !teaches {
        return Ok(found.addresses);
    }
    let Some((end, chain_ttl)) = follow_chain(message, records)? else {
        return Ok(found.addresses);
    };
    for record in records
        .iter()
        .filter(|record| record.kind == query_type.0)
        .filter(|record| wire::same_name(message, record.owner, end))
    {
        let ttl = chain_ttl.min(seconds(record.ttl));
        let data = message.get(record.data..record.end).ok_or(AnswerError::Malformed)?;
        match query_type {
            QueryType::A => found.add(ipv4(data)?, ttl),
            QueryType::AAAA => found.add(ipv6(data)?, ttl),
            _ => add_hints(&mut found, data, ttl)?,
        }
    }
    Ok(found.addresses)
}

/// Follows CNAME records from the asked name: the offset of the name they lead to and the least TTL
/// on the way. `None` where they contradict each other or go in circles.
fn follow_chain(message: &[u8], records: &[RecordAt]) -> Result<Option<(usize, u32)>, AnswerError> {
    let mut at = HEADER;
    let mut ttl = u32::MAX;
    for _ in 0..=CHAIN_MAX {
        let mut next = None;
        for record in records
            .iter()
            .filter(|record| record.kind == QueryType::CNAME.0)
            .filter(|record| wire::same_name(message, record.owner, at))
        {
            let is_whole = wire::skip_name(message, record.data) == Some(record.end)
                && wire::is_name(message, record.data);
            if !is_whole {
                return Err(AnswerError::Malformed);
            }
            match next {
                Some(target) if !wire::same_name(message, target, record.data) => return Ok(None),
                _ => next = Some(record.data),
            }
            ttl = ttl.min(seconds(record.ttl));
        }
        match next {
            Some(target) => at = target,
            None => return Ok(Some((at, ttl))),
        }
    }
    Ok(None)
}

/// The addresses of an answer, each once.
#[derive(Default)]
struct Found {
    addresses: Vec<TaughtAddress>,
    /// How many were looked at, those that are there already among them.
    looked_at: usize,
}

impl Found {
    /// Adds one; those past [`ADDRESSES_MAX`] teach nothing.
    fn add(&mut self, address: IpAddr, ttl: u32) {
        if self.looked_at == ADDRESSES_MAX {
            return;
        }
        self.looked_at += 1;
        match self.addresses.iter_mut().find(|taught| taught.address == address) {
            Some(taught) => taught.ttl = taught.ttl.min(ttl),
            None => self.addresses.push(TaughtAddress { address, ttl }),
        }
    }
}

fn ipv4(data: &[u8]) -> Result<IpAddr, AnswerError> {
    let octets: [u8; 4] = data.try_into().map_err(|_| AnswerError::Malformed)?;
    Ok(Ipv4Addr::from(octets).into())
}

fn ipv6(data: &[u8]) -> Result<IpAddr, AnswerError> {
    let octets: [u8; 16] = data.try_into().map_err(|_| AnswerError::Malformed)?;
    Ok(Ipv6Addr::from(octets).into())
}

const IPV4_HINT: u16 = 4;
const IPV6_HINT: u16 = 6;

/// Adds the address hints of an HTTPS or SVCB record (RFC 9460 section 2.2).
fn add_hints(found: &mut Found, data: &[u8], ttl: u32) -> Result<(), AnswerError> {
    let priority = wire::u16_at(data, 0).ok_or(AnswerError::Malformed)?;
    let mut at = wire::skip_name(data, 2).ok_or(AnswerError::Malformed)?;
    if priority == 0 {
        return Ok(());
    }
    while at < data.len() {
        let (key, length) =
            wire::u16_at(data, at).zip(wire::u16_at(data, at + 2)).ok_or(AnswerError::Malformed)?;
        let end = at + 4 + usize::from(length);
        let value = data.get(at + 4..end).ok_or(AnswerError::Malformed)?;
        match key {
            IPV4_HINT => {
                for octets in value.chunks(4) {
                    found.add(ipv4(octets)?, ttl);
                }
            }
            IPV6_HINT => {
                for octets in value.chunks(16) {
                    found.add(ipv6(octets)?, ttl);
                }
            }
            _ => {}
        }
        at = end;
    }
    Ok(())
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
