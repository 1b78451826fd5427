//! Messages, written octet by octet.

pub(crate) const A: u16 = 1;
pub(crate) const CNAME: u16 = 5;
pub(crate) const AAAA: u16 = 28;

pub(crate) const NOERROR: u8 = 0;
pub(crate) const FORMERR: u8 = 1;
pub(crate) const SERVFAIL: u8 = 2;
pub(crate) const NXDOMAIN: u8 = 3;
pub(crate) const REFUSED: u8 = 5;

/// A record: owner, type, TTL, data.
pub(crate) type Record<'a> = (&'a str, u16, u32, Vec<u8>);

pub(crate) fn mk_name(text: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in text.split('.').filter(|label| !label.is_empty()) {
        wire.push(u8::try_from(label.len()).unwrap());
        wire.extend_from_slice(label.as_bytes());
    }
    wire.push(0);
    wire
}

pub(crate) fn mk_question(name: &str, query_type: u16) -> Vec<u8> {
    let mut question = mk_name(name);
    question.extend_from_slice(&query_type.to_be_bytes());
    question.extend_from_slice(&1u16.to_be_bytes());
    question
}

pub(crate) fn mk_query(id: u16, name: &str, query_type: u16) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend_from_slice(&mk_question(name, query_type));
    message
}

pub(crate) fn mk_query_with_edns(id: u16, name: &str, query_type: u16, payload: u16) -> Vec<u8> {
    let mut message = mk_query(id, name, query_type);
    message[11] = 1;
    message.extend_from_slice(&[0, 0, 41]);
    message.extend_from_slice(&payload.to_be_bytes());
    message.extend_from_slice(&[0; 6]);
    message
}

/// The answer to `query` with `records`; repeats its id and question.
pub(crate) fn mk_answer(query: &[u8], records: &[Record<'_>]) -> Vec<u8> {
    let mut message = query[..12 + question_of(query).len()].to_vec();
    message[2..4].copy_from_slice(&[0x81, 0x80]);
    message[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    message[6..8].copy_from_slice(&u16::try_from(records.len()).unwrap().to_be_bytes());
    for (owner, kind, ttl, data) in records {
        message.extend_from_slice(&mk_name(owner));
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&[0, 1]);
        message.extend_from_slice(&ttl.to_be_bytes());
        message.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
        message.extend_from_slice(data);
    }
    message
}

/// The answer to `query` that there is no such name, with an SOA of this TTL and minimum, or none.
pub(crate) fn mk_nothing(query: &[u8], soa: Option<u32>) -> Vec<u8> {
    let Some(ttl) = soa else {
        let mut message = mk_answer(query, &[]);
        message[3] |= NXDOMAIN;
        return message;
    };
    let data = [&[0, 0][..], &[0; 16], &ttl.to_be_bytes()].concat();
    let mut message = mk_answer(query, &[("allowed", 6, ttl, data)]);
    message[3] |= NXDOMAIN;
    // The record belongs to the authority section.
    message[6..10].copy_from_slice(&[0, 0, 0, 1]);
    message
}

/// One address, 192.0.2.`last`.
pub(crate) fn a(owner: &str, ttl: u32, last: u8) -> Record<'_> {
    (owner, A, ttl, vec![192, 0, 2, last])
}

pub(crate) fn id_of(message: &[u8]) -> u16 {
    u16::from_be_bytes([message[0], message[1]])
}

pub(crate) fn rcode_of(message: &[u8]) -> u8 {
    message[3] & 0xf
}

pub(crate) fn is_truncated(message: &[u8]) -> bool {
    message[2] & 2 != 0
}

pub(crate) fn question_of(message: &[u8]) -> &[u8] {
    let mut at = 12;
    while message[at] != 0 {
        at += 1 + usize::from(message[at]);
    }
    &message[12..at + 5]
}

/// The TTLs of a message whose records have uncompressed owners.
pub(crate) fn ttls_of(message: &[u8]) -> Vec<u32> {
    let count = u16::from_be_bytes([message[6], message[7]]);
    let mut at = 12 + question_of(message).len();
    let mut ttls = Vec::new();
    for _ in 0..count {
        while message[at] != 0 {
            at += 1 + usize::from(message[at]);
        }
        at += 5;
        ttls.push(u32::from_be_bytes(message[at..at + 4].try_into().unwrap()));
        at += 6 + usize::from(u16::from_be_bytes([message[at + 4], message[at + 5]]));
    }
    ttls
}

pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    framed
}
