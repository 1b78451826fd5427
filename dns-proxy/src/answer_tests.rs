//! Tables and hostile octets for the answer reader, and a general codec as its second opinion.

use std::collections::BTreeSet;

use hickory_proto::op::Message;
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use proptest::prelude::*;

use super::*;
use crate::gate;

const A: u16 = 1;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const AAAA: u16 = 28;
const HTTPS: u16 = 65;

type Record = (&'static str, u16, u16, u32, Vec<u8>);

fn mk_name(text: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in text.split('.').filter(|label| !label.is_empty()) {
        wire.push(u8::try_from(label.len()).unwrap());
        wire.extend_from_slice(label.as_bytes());
    }
    wire.push(0);
    wire
}

fn mk_question(name: &str, query_type: u16) -> Vec<u8> {
    let mut question = mk_name(name);
    question.extend_from_slice(&query_type.to_be_bytes());
    question.extend_from_slice(&1u16.to_be_bytes());
    question
}

fn mk_query(name: &str, query_type: u16) -> Query {
    let mut message = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&mk_question(name, query_type));
    gate::read(&message).unwrap()
}

fn mk_record((owner, kind, class, ttl, data): &Record) -> Vec<u8> {
    let mut record = mk_name(owner);
    record.extend_from_slice(&kind.to_be_bytes());
    record.extend_from_slice(&class.to_be_bytes());
    record.extend_from_slice(&ttl.to_be_bytes());
    record.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
    record.extend_from_slice(data);
    record
}

fn mk_sections(name: &str, query_type: u16, flags: u16, sections: [&[Record]; 3]) -> Vec<u8> {
    let mut message = vec![0, 7];
    message.extend_from_slice(&flags.to_be_bytes());
    message.extend_from_slice(&1u16.to_be_bytes());
    for section in sections {
        message.extend_from_slice(&u16::try_from(section.len()).unwrap().to_be_bytes());
    }
    message.extend_from_slice(&mk_question(name, query_type));
    for record in sections.into_iter().flatten() {
        message.extend_from_slice(&mk_record(record));
    }
    message
}

fn mk_answer(query_type: u16, records: &[Record]) -> Vec<u8> {
    mk_sections("a.example", query_type, 0x8180, [records, &[], &[]])
}

fn a(owner: &'static str, ttl: u32, last: u8) -> Record {
    (owner, A, 1, ttl, vec![192, 0, 2, last])
}

fn cname(owner: &'static str, ttl: u32, target: &str) -> Record {
    (owner, CNAME, 1, ttl, mk_name(target))
}

fn v4(last: u8, ttl: u32) -> TaughtAddress {
    TaughtAddress { address: Ipv4Addr::new(192, 0, 2, last).into(), ttl }
}

/// EP-8, CNP-19: a chain in one answer counts for the asked name.
#[test]
fn only_addresses_on_the_chain_from_the_asked_name_count() {
    let cases: Vec<(&str, Vec<Record>, Vec<TaughtAddress>)> = vec![
        ("an address", vec![a("a.example", 60, 1)], vec![v4(1, 60)]),
        ("an owner in another case", vec![a("A.eXample", 60, 1)], vec![v4(1, 60)]),
        (
            "two addresses in order",
            vec![a("a.example", 60, 2), a("a.example", 60, 1)],
            vec![v4(2, 60), v4(1, 60)],
        ),
        (
            "an address twice has the least TTL",
            vec![a("a.example", 60, 1), a("a.example", 9, 1)],
            vec![v4(1, 9)],
        ),
        ("an address of another name", vec![a("b.example", 60, 1)], vec![]),
        (
            "a chain has the least TTL on it",
            vec![
                cname("a.example", 30, "b.example"),
                cname("b.example", 20, "c.test"),
                a("c.test", 60, 1),
            ],
            vec![v4(1, 20)],
        ),
        (
            "a chain in any order",
            vec![
                a("c.test", 60, 1),
                cname("b.example", 20, "c.test"),
                cname("a.example", 30, "b.example"),
            ],
            vec![v4(1, 20)],
        ),
        (
            "an address beside a CNAME",
            vec![cname("a.example", 30, "b.example"), a("a.example", 60, 1)],
            vec![],
        ),
        (
            "an address off the chain",
            vec![cname("a.example", 30, "b.example"), a("b.example", 60, 1), a("x.example", 60, 2)],
            vec![v4(1, 30)],
        ),
        (
            "a chain in circles",
            vec![
                cname("a.example", 30, "b.example"),
                cname("b.example", 30, "a.example"),
                a("a.example", 60, 1),
            ],
            vec![],
        ),
        (
            "a fork",
            vec![
                cname("a.example", 30, "b.example"),
                cname("a.example", 30, "c.example"),
                a("b.example", 60, 1),
                a("c.example", 60, 2),
            ],
            vec![],
        ),
        (
            "a CNAME twice",
            vec![
                cname("a.example", 30, "b.example"),
                cname("a.example", 10, "b.example"),
                a("b.example", 60, 1),
            ],
            vec![v4(1, 10)],
        ),
        ("class CHAOS", vec![("a.example", A, 3, 60, vec![192, 0, 2, 1])], vec![]),
        ("another type than asked", vec![("a.example", AAAA, 1, 60, vec![0; 16])], vec![]),
        (
            "a TTL with the top bit set is none",
            vec![a("a.example", 0x8000_0000, 1)],
            vec![v4(1, 0)],
        ),
        (
            "a TTL of the greatest value",
            vec![a("a.example", 0x7fff_ffff, 1)],
            vec![v4(1, 0x7fff_ffff)],
        ),
        ("nothing", vec![], vec![]),
    ];
    let query = mk_query("a.example", A);
    for (why, records, expected) in cases {
        let answer = read(&mk_answer(A, &records), &query).expect(why);
        assert_eq!(answer.addresses, expected, "{why}");
        assert_eq!(answer.rcode, Rcode::NOERROR, "{why}");
    }
}

#[test]
fn longest_chain_counts_and_one_more_does_not() {
    let names: Vec<&'static str> = (0..=CHAIN_MAX + 1)
        .map(|number| &*Box::leak(format!("n{number}.example").into_boxed_str()))
        .collect();
    for (links, expected) in [(CHAIN_MAX, 1), (CHAIN_MAX + 1, 0)] {
        let mut records: Vec<Record> =
            (0..links).map(|link| cname(names[link], 60, names[link + 1])).collect();
        records.push(a(names[links], 60, 1));
        let message = mk_sections("n0.example", A, 0x8180, [&records, &[], &[]]);
        let answer = read(&message, &mk_query("n0.example", A)).unwrap();
        assert_eq!(answer.addresses.len(), expected, "{links} links");
    }
}

#[test]
fn other_sections_and_other_codes_teach_nothing() {
    let records = [a("a.example", 60, 1)];
    let query = mk_query("a.example", A);
    for sections in [[&[][..], &records, &[]], [&[], &[], &records]] {
        let message = mk_sections("a.example", A, 0x8180, sections);
        assert_eq!(read(&message, &query).unwrap().addresses, []);
    }
    let lying = mk_sections("a.example", A, 0x8183, [&records, &[], &[]]);
    let answer = read(&lying, &query).unwrap();
    assert_eq!((answer.rcode, answer.addresses), (Rcode::NXDOMAIN, vec![]));
}

#[test]
fn truncated_and_broken_answers_are_refused_whole() {
    let query = mk_query("a.example", A);
    let whole = mk_answer(A, &[a("a.example", 60, 1), a("a.example", 60, 2)]);
    let cases: Vec<(&str, Vec<u8>, AnswerError)> = vec![
        (
            "truncated",
            mk_sections("a.example", A, 0x8380, [&[a("a.example", 60, 1)], &[], &[]]),
            AnswerError::Truncated,
        ),
        ("cut inside the last record", whole[..whole.len() - 1].to_vec(), AnswerError::Malformed),
        ("a record fewer than counted", whole[..whole.len() - 25].to_vec(), AnswerError::Malformed),
        ("octets behind the end", [&whole[..], &[0]].concat(), AnswerError::Malformed),
        (
            "an address of five octets",
            mk_answer(A, &[("a.example", A, 1, 60, vec![1; 5])]),
            AnswerError::Malformed,
        ),
        (
            "a CNAME with octets behind",
            mk_answer(A, &[("a.example", CNAME, 1, 60, b"\x01b\x00\x00".to_vec())]),
            AnswerError::Malformed,
        ),
        (
            "a CNAME that points at itself",
            mk_answer(A, &[("a.example", CNAME, 1, 60, b"\xc0\x31".to_vec())]),
            AnswerError::Malformed,
        ),
        (
            "the answer to another question",
            mk_sections("b.example", A, 0x8180, [&[], &[], &[]]),
            AnswerError::Malformed,
        ),
        ("a query", mk_sections("a.example", A, 0x0100, [&[], &[], &[]]), AnswerError::Malformed),
    ];
    for (why, message, expected) in cases {
        assert_eq!(read(&message, &query), Err(expected), "{why}");
    }
}

#[test]
fn address_hints_count_like_addresses() {
    let mut data = b"\x00\x01\x00".to_vec();
    data.extend_from_slice(b"\x00\x01\x00\x03\x02h2");
    data.extend_from_slice(b"\x00\x04\x00\x08\xc0\x00\x02\x01\xc0\x00\x02\x02");
    data.extend_from_slice(b"\x00\x06\x00\x10\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x07");
    let query = mk_query("a.example", HTTPS);
    let records = [cname("a.example", 30, "b.example"), ("b.example", HTTPS, 1, 300, data.clone())];
    let answer = read(&mk_answer(HTTPS, &records), &query).unwrap();
    let v6 = TaughtAddress { address: "2001:db8::7".parse().unwrap(), ttl: 30 };
    assert_eq!(answer.addresses, [v4(1, 30), v4(2, 30), v6]);

    data[1] = 0;
    let alias = read(&mk_answer(HTTPS, &[("a.example", HTTPS, 1, 300, data)]), &query).unwrap();
    assert_eq!(alias.addresses, [], "an alias has no hints");
    let broken = b"\x00\x01\x00\x00\x04\x00\x03\xc0\x00\x02".to_vec();
    let broken = read(&mk_answer(HTTPS, &[("a.example", HTTPS, 1, 300, broken)]), &query);
    assert_eq!(broken, Err(AnswerError::Malformed));
}

#[test]
fn no_more_addresses_are_looked_at_than_an_answer_may_have() {
    let hints = |count: u16, tail: &[u8]| {
        let octets: Vec<u8> =
            (0..count).flat_map(|n| [192, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]]).collect();
        let value = [&octets, tail].concat();
        let length = u16::try_from(value.len()).unwrap().to_be_bytes();
        [b"\x00\x01\x00\x00\x04", &length[..], &value].concat()
    };
    let query = mk_query("a.example", HTTPS);
    let read_one = |data| read(&mk_answer(HTTPS, &[("a.example", HTTPS, 1, 300, data)]), &query);
    let many = read_one(hints(16_000, &[])).unwrap().addresses;
    assert_eq!(many.len(), ADDRESSES_MAX);
    assert_eq!(many[1].address, IpAddr::from([192, 0, 0, 1]), "the first ones");
    assert_eq!(read_one(hints(16_000, &[1])), Err(AnswerError::Malformed), "all are read");

    let limit = u16::try_from(ADDRESSES_MAX).unwrap();
    let (one, two) = (hints(1, &[]), hints(limit, &[]));
    let records: Vec<Record> = std::iter::repeat_n(one, ADDRESSES_MAX - 1)
        .chain([two])
        .map(|data| ("a.example", HTTPS, 1, 300, data))
        .collect();
    let repeated = read(&mk_answer(HTTPS, &records), &query).unwrap();
    assert_eq!(repeated.addresses.len(), 1, "an address that is repeated is looked at again");
    let addresses =
        (0..ADDRESSES_MAX + 1).map(|n| a("a.example", 60, u8::try_from(n % 250).unwrap()));
    let read_all = read(&mk_answer(A, &addresses.collect::<Vec<_>>()), &mk_query("a.example", A));
    assert_eq!(read_all.unwrap().addresses.len(), 250);
}

#[test]
fn lifetime_is_the_least_ttl_or_the_negative_one() {
    let soa = |ttl, minimum: u32| -> Record {
        let mut data = b"\x00\x00".to_vec();
        data.extend_from_slice(&[0; 16]);
        data.extend_from_slice(&minimum.to_be_bytes());
        ("example", SOA, 1, ttl, data)
    };
    let positive = [a("a.example", 60, 1), a("a.example", 50, 2)];
    type Row = (&'static str, u16, [Vec<Record>; 3], Option<u32>);
    let cases: Vec<Row> = vec![
        ("positive", 0x8180, [positive.to_vec(), vec![], vec![]], Some(50)),
        ("NXDOMAIN, the SOA's minimum", 0x8183, [vec![], vec![soa(900, 300)], vec![]], Some(300)),
        ("NODATA, the SOA's own TTL", 0x8180, [vec![], vec![soa(100, 300)], vec![]], Some(100)),
        ("NXDOMAIN without SOA", 0x8183, [vec![], vec![], vec![]], None),
        ("SERVFAIL", 0x8182, [vec![], vec![soa(900, 300)], vec![]], None),
    ];
    for (why, flags, sections, expected) in cases {
        let message =
            mk_sections("a.example", A, flags, [&sections[0], &sections[1], &sections[2]]);
        let answer = read(&message, &mk_query("a.example", A)).expect(why);
        assert_eq!(answer.lifetime, expected, "{why}");
    }
}

/// The addresses as a general codec and a walk over its records see them.
fn second_opinion(message: &[u8], asked: &str) -> Option<BTreeSet<IpAddr>> {
    let message = Message::from_vec(message).ok()?;
    let mut at = Name::from_ascii(asked).ok()?;
    let in_class = |record: &&hickory_proto::rr::Record| record.dns_class == DNSClass::IN;
    for _ in 0..=CHAIN_MAX {
        let targets: BTreeSet<Name> = message
            .answers
            .iter()
            .filter(in_class)
            .filter(|record| record.name == at)
            .filter_map(|record| {
                let RData::CNAME(target) = &record.data else {
                    return None;
                };
                Some(target.0.to_lowercase())
            })
            .collect();
        match targets.len() {
            0 => {
                return Some(
                    message
                        .answers
                        .iter()
                        .filter(in_class)
                        .filter(|record| record.record_type() == RecordType::A && record.name == at)
                        .filter_map(|record| record.data.ip_addr())
                        .collect(),
                );
            }
            1 => at = targets.into_iter().next()?,
            _ => return Some(BTreeSet::new()),
        }
    }
    Some(BTreeSet::new())
}

fn any_record() -> impl Strategy<Value = Record> {
    let owner =
        prop::sample::select(vec!["a.example", "b.example", "B.example", "c.test", "d.test"]);
    (owner, 0u8..4, 1u16..3, 0u32..400, any::<u8>()).prop_map(|(owner, kind, class, ttl, last)| {
        let class = if class == 2 && last > 200 { 3 } else { 1 };
        match kind {
            0 | 1 => (owner, A, class, ttl, vec![192, 0, 2, last]),
            2 => {
                let target = ["a.example", "b.example", "c.test", "D.test"][usize::from(last % 4)];
                (owner, CNAME, class, ttl, mk_name(target))
            }
            _ => (owner, AAAA, class, ttl, vec![last; 16]),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn reader_agrees_with_a_general_codec(records in prop::collection::vec(any_record(), 0..7)) {
        let message = mk_answer(A, &records);
        let answer = read(&message, &mk_query("a.example", A)).unwrap();
        let read: BTreeSet<IpAddr> = answer.addresses.iter().map(|taught| taught.address).collect();
        prop_assert_eq!(Some(read), second_opinion(&message, "a.example."));
    }

    #[test]
    fn hostile_octets_never_panic(
        records in prop::collection::vec(any_record(), 0..5),
        spots in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        tail in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut message = mk_answer(A, &records);
        for (spot, octet) in spots {
            let at = spot.index(message.len());
            message[at] = octet;
        }
        message.extend_from_slice(&tail);
        for query_type in [A, HTTPS] {
            let _ = read(&message, &mk_query("a.example", query_type));
        }
    }
}
