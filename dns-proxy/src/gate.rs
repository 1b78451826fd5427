//! The gate: octets from a pod in, an accepted query or a reason out.
//!
//! Only a message with exactly one plain question in class IN gets through; whatever else it is gets
//! the response code that the RFCs give it, or silence where an answer could start a loop. Nothing
//! of the message but what [`Query`] holds is ever forwarded.
//!
//! The reader is its own rather than a general codec's: it must see what codecs tolerate (trailing
//! octets, compression in the question, records where none belong) and must not allocate for what it
//! rejects.

use namegate_policy::name::DnsName;

use crate::query::{Edns, Query};
use crate::record::{QueryType, Rcode};
use crate::reply;
use crate::wire::{self, HEADER, Header, RecordAt};

/// Why a message is no query that the proxy serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Shorter than a header: dropped.
    Short,
    /// A response: dropped, so that two servers never talk in circles.
    Response,
    /// Not one well-formed question: FORMERR.
    Malformed,
    /// An operation other than QUERY: NOTIMP.
    Opcode,
    /// A class other than IN: REFUSED.
    Class,
    /// A type that is never forwarded, such as ANY or a zone transfer.
    Type,
    /// A signature (RFC 8945, RFC 2931): NOTAUTH, as no key is known here.
    Signed,
    /// An EDNS version other than 0: BADVERS.
    Version,
}

/// A message that is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Why.
    pub reason: Reason,
    /// What to send back; `None` where nothing is.
    pub reply: Option<Vec<u8>>,
}

/// Reads a message from a pod.
pub fn read(message: &[u8]) -> Result<Query, Rejection> {
    let Some(header) = Header::read(message) else {
        return Err(silence(Reason::Short));
    };
    if header.flags & wire::QR != 0 {
        return Err(silence(Reason::Response));
    }
    if header.opcode() != 0 {
        return Err(refuse(header, Reason::Opcode, Rcode::NOTIMP));
    }
    let malformed = || refuse(header, Reason::Malformed, Rcode::FORMERR);
    if header.questions != 1 || header.answers != 0 || header.flags & wire::TC != 0 {
        return Err(malformed());
    }
    let (name, length) = message
        .get(HEADER..)
        .and_then(|rest| DnsName::from_wire(rest).ok())
        .ok_or_else(malformed)?;
    let end = HEADER + length + 4;
    let (Some(question), Some(query_type), Some(class)) =
        (message.get(HEADER..end), wire::u16_at(message, end - 4), wire::u16_at(message, end - 2))
    else {
        return Err(malformed());
    };
    if let Some(rcode) = unserved(query_type) {
        return Err(refuse(header, Reason::Type, rcode));
    }
    if class != wire::CLASS_IN {
        return Err(refuse(header, Reason::Class, Rcode::REFUSED));
    }
    if header.authorities != 0 {
        return Err(malformed());
    }
    let edns = read_additional(message, end, header)?;
    Ok(Query {
        id: header.id,
        flags: header.flags & (wire::RD | wire::AD | wire::CD),
        question: question.into(),
        name,
        query_type: QueryType(query_type),
        edns,
    })
}

/// The response code for a type that is never forwarded.
fn unserved(query_type: u16) -> Option<Rcode> {
    match query_type {
        // Reserved, OPT, NXNAME (RFC 9824 section 3.4) and TSIG are no types to ask for.
        0 | wire::TYPE_OPT | 128 | TYPE_TSIG => Some(Rcode::FORMERR),
        // IXFR, AXFR, ANY (RFC 8482 allows the refusal).
        251 | 252 | 255 => Some(Rcode::REFUSED),
        // The rest of what asks for an operation and not for records (RFC 6895 section 3.1): TKEY,
        // MAILB, MAILA and what is not assigned.
        129..=254 => Some(Rcode::NOTIMP),
        _ => None,
    }
}

const TYPE_SIG: u16 = 24;
const TYPE_TSIG: u16 = 250;

fn read_additional(
    message: &[u8],
    mut at: usize,
    header: Header,
) -> Result<Option<Edns>, Rejection> {
    let malformed = || refuse(header, Reason::Malformed, Rcode::FORMERR);
    let mut edns = None;
    for _ in 0..header.additionals {
        let record = RecordAt::read(message, at).ok_or_else(malformed)?;
        match record.kind {
            TYPE_TSIG | TYPE_SIG => return Err(refuse(header, Reason::Signed, Rcode::NOTAUTH)),
            wire::TYPE_OPT if edns.is_none() && message.get(at) == Some(&0) => {
                let data = message.get(record.data..record.end).ok_or_else(malformed)?;
                if !are_options(data) {
                    return Err(malformed());
                }
                if (record.ttl >> 16) & 0xff != 0 {
                    return Err(Rejection {
                        reason: Reason::Version,
                        reply: Some(reply::bad_version(header)),
                    });
                }
                edns = Some(Edns {
                    payload: record.class,
                    dnssec_ok: record.ttl & u32::from(wire::DO) != 0,
                });
            }
            _ => return Err(malformed()),
        }
        at = record.end;
    }
    if at != message.len() {
        return Err(malformed());
    }
    Ok(edns)
}

/// Whether the data of an OPT record are whole options (RFC 6891 section 6.1.2).
fn are_options(mut data: &[u8]) -> bool {
    while !data.is_empty() {
        let Some(length) = wire::u16_at(data, 2) else {
            return false;
        };
        match data.get(4 + usize::from(length)..) {
            Some(rest) => data = rest,
            None => return false,
        }
    }
    true
}

fn silence(reason: Reason) -> Rejection {
    Rejection { reason, reply: None }
}

fn refuse(header: Header, reason: Reason, rcode: Rcode) -> Rejection {
    Rejection { reason, reply: Some(reply::header_only(header, rcode)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUESTION: &[u8] = b"\x03wWw\x07example\x00\x00\x01\x00\x01";
    const OPT: &[u8] = b"\x00\x00\x29\x10\x00\x00\x00\x80\x00\x00\x00";

    fn mk_message(flags: u16, counts: [u16; 4], body: &[&[u8]]) -> Vec<u8> {
        let mut message = vec![0x12, 0x34];
        message.extend_from_slice(&flags.to_be_bytes());
        for count in counts {
            message.extend_from_slice(&count.to_be_bytes());
        }
        for part in body {
            message.extend_from_slice(part);
        }
        message
    }

    fn mk_question(query_type: u16, class: u16) -> Vec<u8> {
        let mut question = b"\x03www\x07example\x00".to_vec();
        question.extend_from_slice(&query_type.to_be_bytes());
        question.extend_from_slice(&class.to_be_bytes());
        question
    }

    /// A question about a name of `octets` octets and the final zero.
    fn mk_long(octets: u8) -> Vec<u8> {
        let mut name = [&[63u8; 1][..], &[b'a'; 63]].concat().repeat(3);
        let rest = octets - 192;
        name.push(rest - 1);
        name.resize(usize::from(octets), b'b');
        name.extend_from_slice(b"\x00\x00\x01\x00\x01");
        name
    }

    #[test]
    fn names_are_taken_to_the_last_octet_that_the_rfc_allows() {
        let query = read(&mk_message(0x0100, [1, 0, 0, 0], &[&mk_long(254)])).unwrap();
        assert_eq!(query.name().as_wire().len(), 255);
        let root = read(&mk_message(0x0100, [1, 0, 0, 0], &[b"\x00\x00\x02\x00\x01"])).unwrap();
        assert_eq!(root.name().to_string(), ".");
    }

    #[test]
    fn labels_are_octets_and_a_dot_inside_one_separates_nothing() {
        let cases: [(&[u8], &str); 5] = [
            (b"\x07api.foo\x04test\x00", "api\\046foo.test"),
            (b"\x05evil\x00\x04test\x00", "evil\\000.test"),
            (b"\x03A\\B\x04TEST\x00", "a\\092b.test"),
            (b"\x02\xc3\xa9\x04test\x00", "\\195\\169.test"),
            (b"\x01*\x04test\x00", "\\042.test"),
        ];
        for (wire, text) in cases {
            let question = [wire, b"\x00\x01\x00\x01"].concat();
            let query = read(&mk_message(0x0100, [1, 0, 0, 0], &[&question])).unwrap();
            assert_eq!(query.name().to_string(), text);
            assert_eq!(query.question(), question, "as the pod wrote it");
        }
    }

    #[test]
    fn plain_query_is_accepted() {
        let query = read(&mk_message(0x0130, [1, 0, 0, 0], &[QUESTION])).unwrap();
        assert_eq!(
            query,
            Query {
                id: 0x1234,
                flags: 0x0130,
                question: QUESTION.into(),
                name: DnsName::from_wire(b"\x03www\x07example\x00").unwrap().0,
                query_type: QueryType::A,
                edns: None,
            }
        );
        assert_eq!(query.payload(), 512);
    }

    #[test]
    fn edns_is_read_and_its_options_are_left_out() {
        let cookie = b"\x00\x00\x29\x00\x10\x00\x00\x00\x00\x00\x0c\x00\x0a\x00\x08abcdefgh";
        for (opt, payload, dnssec_ok) in [(OPT, 4096, true), (&cookie[..], 16, false)] {
            let query = read(&mk_message(0x0100, [1, 0, 0, 1], &[QUESTION, opt])).unwrap();
            assert_eq!(query.edns, Some(Edns { payload, dnssec_ok }));
            assert_eq!(query.payload(), usize::from(payload.max(512)));
        }
    }

    #[test]
    fn everything_else_is_rejected_with_its_code() {
        let long = {
            let mut name = [&[63u8; 1][..], &[b'a'; 63]].concat().repeat(4);
            name.extend_from_slice(b"\x00\x00\x01\x00\x01");
            name
        };
        let tsig = b"\x00\x00\xfa\x00\xff\x00\x00\x00\x00\x00\x00";
        let a_record = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x01\x00\x04\x01\x02\x03\x04";
        let version_1 = b"\x00\x00\x29\x10\x00\x00\x01\x00\x00\x00\x00";
        let half_option = b"\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x05\x00\x0a\x00\x08a";
        let sig_0 = b"\x00\x00\x18\x00\xff\x00\x00\x00\x00\x00\x00";
        let named_opt = b"\x01a\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x00";
        let one = [1, 0, 0, 0];
        let extra = [1, 0, 0, 1];
        let cases: Vec<(Vec<u8>, Reason, Option<u16>, &str)> = vec![
            (vec![0; 11], Reason::Short, None, "eleven octets"),
            (mk_message(0x8100, one, &[QUESTION]), Reason::Response, None, "a response"),
            (mk_message(0x2000, one, &[QUESTION]), Reason::Opcode, Some(4), "NOTIFY"),
            (mk_message(0x2800, one, &[QUESTION]), Reason::Opcode, Some(4), "UPDATE"),
            (mk_message(0x0800, [0; 4], &[]), Reason::Opcode, Some(4), "IQUERY"),
            (mk_message(0x0100, [0; 4], &[]), Reason::Malformed, Some(1), "no question"),
            (
                mk_message(0x0100, [2, 0, 0, 0], &[QUESTION, QUESTION]),
                Reason::Malformed,
                Some(1),
                "two questions",
            ),
            (mk_message(0x0300, one, &[QUESTION]), Reason::Malformed, Some(1), "truncated"),
            (
                mk_message(0x0100, one, &[QUESTION, b"\x00"]),
                Reason::Malformed,
                Some(1),
                "a trailing octet",
            ),
            (
                mk_message(0x0100, one, &[b"\x03www\xc0\x0c\x00\x01\x00\x01"]),
                Reason::Malformed,
                Some(1),
                "compression",
            ),
            (
                mk_message(0x0100, one, &[b"\x43www\x00\x00\x01\x00\x01"]),
                Reason::Malformed,
                Some(1),
                "a label type",
            ),
            (
                mk_message(0x0100, one, &[b"\x03www\x00\x00\x01\x00"]),
                Reason::Malformed,
                Some(1),
                "half a class",
            ),
            (mk_message(0x0100, one, &[&long]), Reason::Malformed, Some(1), "a name of 257 octets"),
            (
                mk_message(0x0100, [1, 1, 0, 0], &[QUESTION, a_record]),
                Reason::Malformed,
                Some(1),
                "an answer record",
            ),
            (
                mk_message(0x0100, [1, 0, 1, 0], &[QUESTION, a_record]),
                Reason::Malformed,
                Some(1),
                "an authority record",
            ),
            (
                mk_message(0x0100, extra, &[QUESTION, a_record]),
                Reason::Malformed,
                Some(1),
                "an additional record",
            ),
            (
                mk_message(0x0100, extra, &[QUESTION]),
                Reason::Malformed,
                Some(1),
                "a missing record",
            ),
            (
                mk_message(0x0100, [1, 0, 0, 2], &[QUESTION, OPT, OPT]),
                Reason::Malformed,
                Some(1),
                "two OPT records",
            ),
            (
                mk_message(0x0100, extra, &[QUESTION, half_option]),
                Reason::Malformed,
                Some(1),
                "half an option",
            ),
            (mk_message(0x0100, extra, &[QUESTION, tsig]), Reason::Signed, Some(9), "TSIG"),
            (
                mk_message(0x0100, extra, &[QUESTION, version_1]),
                Reason::Version,
                Some(16),
                "EDNS version 1",
            ),
            (mk_message(0x0100, one, &[&mk_question(255, 1)]), Reason::Type, Some(5), "ANY"),
            (mk_message(0x0100, one, &[&mk_question(252, 1)]), Reason::Type, Some(5), "AXFR"),
            (
                mk_message(0x0100, [1, 0, 1, 0], &[&mk_question(251, 1), a_record]),
                Reason::Type,
                Some(5),
                "IXFR",
            ),
            (mk_message(0x0100, one, &[&mk_question(249, 1)]), Reason::Type, Some(4), "TKEY"),
            (mk_message(0x0100, one, &[&mk_question(0, 1)]), Reason::Type, Some(1), "type 0"),
            (mk_message(0x0100, one, &[&mk_question(128, 1)]), Reason::Type, Some(1), "NXNAME"),
            (
                mk_message(0x0100, one, &[&mk_question(250, 1)]),
                Reason::Type,
                Some(1),
                "TSIG as type",
            ),
            (
                mk_message(0x0100, one, &[&mk_question(200, 1)]),
                Reason::Type,
                Some(4),
                "a meta type",
            ),
            (mk_message(0x0100, one, &[&mk_question(253, 1)]), Reason::Type, Some(4), "MAILB"),
            (mk_message(0x0100, one, &[&mk_question(254, 1)]), Reason::Type, Some(4), "MAILA"),
            (mk_message(0x1000, one, &[QUESTION]), Reason::Opcode, Some(4), "STATUS"),
            (mk_message(0x3000, one, &[QUESTION]), Reason::Opcode, Some(4), "stateful operations"),
            (mk_message(0x7800, one, &[QUESTION]), Reason::Opcode, Some(4), "opcode 15"),
            (mk_message(0x0100, one, &[&mk_question(1, 0)]), Reason::Class, Some(5), "class 0"),
            (mk_message(0x0100, one, &[&mk_question(1, 4)]), Reason::Class, Some(5), "HESIOD"),
            (
                mk_message(0x0100, one, &[&mk_question(1, 254)]),
                Reason::Class,
                Some(5),
                "class NONE",
            ),
            (mk_message(0x0100, extra, &[QUESTION, sig_0]), Reason::Signed, Some(9), "SIG(0)"),
            (
                mk_message(0x0100, extra, &[QUESTION, named_opt]),
                Reason::Malformed,
                Some(1),
                "an OPT record with a name",
            ),
            (
                mk_message(0x0100, one, &[QUESTION, OPT]),
                Reason::Malformed,
                Some(1),
                "an OPT record that is not counted",
            ),
            (
                mk_message(0x0100, [1, 0, 0, 2], &[QUESTION, version_1, tsig]),
                Reason::Version,
                Some(16),
                "EDNS version 1, signed",
            ),
            (mk_message(0x0100, one, &[&mk_long(255)]), Reason::Malformed, Some(1), "256 octets"),
            (mk_message(0x0100, one, &[&mk_question(41, 1)]), Reason::Type, Some(1), "OPT as type"),
            (mk_message(0x0100, one, &[&mk_question(16, 3)]), Reason::Class, Some(5), "CHAOS"),
            (mk_message(0x0100, one, &[&mk_question(1, 255)]), Reason::Class, Some(5), "class ANY"),
        ];
        for (message, reason, rcode, why) in cases {
            let rejection = read(&message).expect_err(why);
            assert_eq!(rejection.reason, reason, "{why}");
            let answered = rejection.reply.map(|reply| {
                assert_eq!(reply[..2], message[..2], "{why}: the id comes back");
                assert_ne!(reply[2] & 0x80, 0, "{why}: a response");
                // The upper bits of an extended code stand in the OPT record.
                let upper = if reply.len() > HEADER { reply[17] } else { 0 };
                u16::from(reply[3] & 0xf) | u16::from(upper) << 4
            });
            assert_eq!(answered, rcode, "{why}");
        }
    }

    proptest! {
        #[test]
        fn hostile_octets_never_panic(message in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = read(&message);
        }

        #[test]
        fn mutated_queries_never_panic_and_keep_their_question(
            at in 0usize..60, octet in any::<u8>(), cut in 0usize..60,
        ) {
            let mut message = mk_message(0x0100, [1, 0, 0, 1], &[QUESTION, OPT]);
            let at = at % message.len();
            message[at] = octet;
            message.truncate(message.len().saturating_sub(cut % 4));
            if let Ok(query) = read(&message) {
                prop_assert_eq!(query.question(), &message[HEADER..HEADER + query.question().len()]);
                prop_assert_eq!(query.question().len(), query.name().as_wire().len() + 4);
            }
        }
    }
}
