//! Making messages: the proxy's own replies, the query that goes upstream, and the upstream's answer
//! as the pod gets it.

use crate::answer::Answer;
use crate::query::Query;
use crate::record::Rcode;
use crate::wire::{self, HEADER, Header};

/// What an extended DNS error (RFC 8914) says beside the response code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// A policy refused the name.
    Blocked,
    /// The pod asked too many new names.
    NewNames,
    /// The addresses could not be opened.
    NotLearned,
    /// The resolver did not give an answer.
    Upstream,
}

impl Note {
    fn code(self) -> u16 {
        match self {
            Self::Blocked | Self::NewNames => 15,
            Self::NotLearned => 0,
            Self::Upstream => 22,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Blocked => "no egress policy allows this name",
            Self::NewNames => "too many new names below a wildcard",
            Self::NotLearned => "the addresses could not be opened",
            Self::Upstream => "the resolver gave no usable answer",
        }
    }
}

/// A reply of a header alone, for messages whose question is not worth repeating.
pub(crate) fn header_only(header: Header, rcode: Rcode) -> Vec<u8> {
    let flags = wire::QR | (header.flags & (0x7800 | wire::RD)) | (rcode.0 & 0xf);
    let mut reply = Vec::with_capacity(HEADER);
    push_header(&mut reply, header.id, flags, [0; 4]);
    reply
}

/// The reply to an EDNS version that is not known here (RFC 6891 section 6.1.3).
pub(crate) fn bad_version(header: Header) -> Vec<u8> {
    let flags = wire::QR | (header.flags & wire::RD);
    let mut reply = Vec::with_capacity(HEADER + 11);
    push_header(&mut reply, header.id, flags, [0, 0, 0, 1]);
    let upper = u32::from(Rcode::BADVERS.0 >> 4) << 24;
    push_opt(&mut reply, 512, upper, None);
    reply
}

/// A reply of the proxy's own, without records.
pub(crate) fn own(query: &Query, rcode: Rcode, note: Option<Note>, payload: u16) -> Vec<u8> {
    let flags = wire::QR | wire::RA | (query.flags & (wire::RD | wire::CD)) | (rcode.0 & 0xf);
    let mut reply = Vec::with_capacity(HEADER + query.question.len() + 64);
    let additionals = u16::from(query.edns.is_some());
    push_header(&mut reply, query.id, flags, [1, 0, 0, additionals]);
    reply.extend_from_slice(&query.question);
    if let Some(edns) = query.edns {
        push_opt(&mut reply, payload, dnssec_bit(edns.dnssec_ok), note);
    }
    reply
}

/// The query as it goes upstream, its id left zero: built anew from the question alone.
pub(crate) fn upstream_query(query: &Query, payload: u16) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + query.question.len() + 11);
    let additionals = u16::from(query.edns.is_some());
    push_header(&mut message, 0, query.flags, [1, 0, 0, additionals]);
    message.extend_from_slice(&query.question);
    if let Some(edns) = query.edns {
        push_opt(&mut message, payload, dnssec_bit(edns.dnssec_ok), None);
    }
    message
}

/// Writes the id of a message.
pub(crate) fn set_id(message: &mut [u8], id: u16) {
    if let Some(place) = message.first_chunk_mut() {
        *place = id.to_be_bytes();
    }
}

/// The upstream's answer as the pod gets it: its own id, its own spelling of the question, no TTL
/// above `ttl_max`, and cut to a truncated reply where it is longer than `size_max`.
pub(crate) fn release(
    mut message: Vec<u8>,
    answer: &Answer,
    query: &Query,
    ttl_max: Option<u32>,
    size_max: usize,
    payload: u16,
) -> Vec<u8> {
    if answer.is_bare {
        return own(query, answer.rcode, None, payload);
    }
    if message.len() > size_max {
        let mut reply = own(query, answer.rcode, None, payload);
        if let Some(octet) = reply.get_mut(2) {
            *octet |= (wire::TC >> 8).to_be_bytes()[1];
        }
        return reply;
    }
    set_id(&mut message, query.id);
    if let Some(place) = message.get_mut(HEADER..HEADER + query.question.len()) {
        place.copy_from_slice(&query.question);
    }
    if let Some(ttl_max) = ttl_max {
        map_ttls(&mut message, &answer.ttls, |ttl| ttl.min(ttl_max));
    }
    message
}

/// Rewrites the TTLs that stand at the offsets `ttls`.
pub(crate) fn map_ttls(message: &mut [u8], ttls: &[u16], map: impl Fn(u32) -> u32) {
    for &at in ttls {
        if let Some(place) =
            message.get_mut(usize::from(at)..).and_then(|rest| rest.first_chunk_mut::<4>())
        {
            *place = map(u32::from_be_bytes(*place)).to_be_bytes();
        }
    }
}

fn dnssec_bit(dnssec_ok: bool) -> u32 {
    if dnssec_ok { u32::from(wire::DO) } else { 0 }
}

fn push_header(message: &mut Vec<u8>, id: u16, flags: u16, counts: [u16; 4]) {
    message.extend_from_slice(&id.to_be_bytes());
    message.extend_from_slice(&flags.to_be_bytes());
    for count in counts {
        message.extend_from_slice(&count.to_be_bytes());
    }
}

fn push_opt(message: &mut Vec<u8>, payload: u16, ttl: u32, note: Option<Note>) {
    message.push(0);
    message.extend_from_slice(&wire::TYPE_OPT.to_be_bytes());
    message.extend_from_slice(&payload.to_be_bytes());
    message.extend_from_slice(&ttl.to_be_bytes());
    let Some(note) = note else {
        message.extend_from_slice(&[0, 0]);
        return;
    };
    const EXTENDED_ERROR: u16 = 15;
    let text = note.text().as_bytes();
    let length = u16::try_from(text.len() + 2).unwrap_or(2);
    message.extend_from_slice(&(length + 4).to_be_bytes());
    message.extend_from_slice(&EXTENDED_ERROR.to_be_bytes());
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(&note.code().to_be_bytes());
    message.extend_from_slice(text);
}
