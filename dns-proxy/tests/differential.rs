//! The answer reader against another project's codec and a plain walk over what that read: random
//! messages with compressed names, and the same with octets changed.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![expect(clippy::wildcard_enum_match_arm, reason = "most record types hold no address")]

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::svcb::SvcParamValue;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use namegate_dns_proxy::answer::{self, CHAIN_MAX};
use namegate_dns_proxy::gate;
use proptest::prelude::*;

const A: u16 = 1;
const CNAME: u16 = 5;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const HTTPS: u16 = 65;
const ASKED: &str = "a.example";

/// A message under construction that compresses every name it can.
struct Writer {
    octets: Vec<u8>,
    known: Vec<(String, u16)>,
}

impl Writer {
    fn answer_to(query_type: u16, counts: [usize; 3]) -> Self {
        let mut octets = vec![0, 7, 0x81, 0x80, 0, 1];
        for count in counts {
            octets.extend_from_slice(&u16::try_from(count).unwrap().to_be_bytes());
        }
        let mut writer = Self { octets, known: Vec::new() };
        writer.name(ASKED, true);
        writer.octets.extend_from_slice(&query_type.to_be_bytes());
        writer.octets.extend_from_slice(&[0, 1]);
        writer
    }

    fn name(&mut self, name: &str, compresses: bool) {
        let mut rest = name;
        while !rest.is_empty() {
            let known = self.known.iter().find(|(text, _)| text == rest).map(|(_, at)| *at);
            if let Some(at) = known.filter(|_| compresses) {
                return self.octets.extend_from_slice(&(0xc000 | at).to_be_bytes());
            }
            self.known.push((rest.to_owned(), u16::try_from(self.octets.len()).unwrap()));
            let (label, tail) = rest.split_once('.').unwrap_or((rest, ""));
            self.octets.push(u8::try_from(label.len()).unwrap());
            self.octets.extend_from_slice(label.as_bytes());
            rest = tail;
        }
        self.octets.push(0);
    }

    fn record(&mut self, record: &Written) {
        self.name(record.owner, record.compresses);
        self.octets.extend_from_slice(&record.kind.to_be_bytes());
        self.octets.extend_from_slice(&record.class.to_be_bytes());
        self.octets.extend_from_slice(&record.ttl.to_be_bytes());
        let length_at = self.octets.len();
        self.octets.extend_from_slice(&[0, 0]);
        match record.kind {
            CNAME => self.name(record.target, record.compresses),
            _ => self.octets.extend_from_slice(&record.data()),
        }
        let length = u16::try_from(self.octets.len() - length_at - 2).unwrap();
        self.octets[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
    }
}

#[derive(Clone, Debug)]
struct Written {
    owner: &'static str,
    kind: u16,
    class: u16,
    ttl: u32,
    target: &'static str,
    last: u8,
    compresses: bool,
}

impl Written {
    fn data(&self) -> Vec<u8> {
        let v4 = [192, 0, 2, self.last];
        let mut v6 = [0x20; 16];
        v6[15] = self.last;
        match self.kind {
            A => v4.to_vec(),
            AAAA => v6.to_vec(),
            HTTPS => [b"\0\x01\0\0\x04\0\x04".as_slice(), &v4, b"\0\x06\0\x10", &v6].concat(),
            _ => vec![3, b'a', b'b', b'c'],
        }
    }
}

fn written() -> impl Strategy<Value = Written> {
    let names = vec!["a.example", "A.example", "b.example", "c.b.example", "d.test", "a"];
    let kinds = vec![A, A, AAAA, CNAME, CNAME, HTTPS, TXT];
    let name = prop::sample::select(names);
    (name.clone(), prop::sample::select(kinds), 0u8..8, 0u32..400, name, 0u8..4, any::<bool>())
        .prop_map(|(owner, kind, class, ttl, target, last, compresses)| Written {
            owner,
            kind,
            class: if class == 0 { 3 } else { 1 },
            ttl,
            target,
            last,
            compresses,
        })
}

fn written_message() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let section = |most| prop::collection::vec(written(), 0..=most);
    let query_type = prop::sample::select(vec![A, AAAA, HTTPS]);
    (query_type, section(8), section(2), section(2)).prop_map(
        |(query_type, answers, authorities, additionals)| {
            let counts = [answers.len(), authorities.len(), additionals.len()];
            let mut writer = Writer::answer_to(query_type, counts);
            answers.iter().chain(&authorities).chain(&additionals).for_each(|r| writer.record(r));
            (query_type, writer.octets)
        },
    )
}

fn first_opinion(query_type: u16, message: &[u8]) -> Option<BTreeSet<IpAddr>> {
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 7];
    query.extend_from_slice(b"example\0");
    query.extend_from_slice(&query_type.to_be_bytes());
    query.extend_from_slice(&[0, 1]);
    let query = gate::read(&query).unwrap();
    let answer = answer::read(message, &query).ok()?;
    Some(answer.addresses.iter().map(|taught| taught.address).collect())
}

/// What the other codec's records teach, walked in the plainest way; `None` where it reads none.
fn second_opinion(query_type: u16, message: &[u8]) -> Option<BTreeSet<IpAddr>> {
    let message = Message::from_vec(message).ok()?;
    let asked = Name::from_ascii(format!("{ASKED}.")).unwrap();
    let question = message.queries.first()?;
    let is_answer = message.metadata.message_type == MessageType::Response
        && message.metadata.op_code == OpCode::Query
        && message.metadata.response_code == ResponseCode::NoError
        && !message.metadata.truncation
        && message.queries.len() == 1
        && question.name == asked
        && u16::from(question.query_type) == query_type
        && question.query_class == DNSClass::IN;
    if !is_answer {
        return Some(BTreeSet::new());
    }
    let in_class: Vec<&Record> =
        message.answers.iter().filter(|record| record.dns_class == DNSClass::IN).collect();
    let mut at = asked;
    for _ in 0..=CHAIN_MAX {
        let here = || in_class.iter().filter(|record| record.name == at);
        let targets: BTreeSet<Name> = here()
            .filter_map(|record| match &record.data {
                RData::CNAME(target) => Some(target.0.to_lowercase()),
                _ => None,
            })
            .collect();
        match targets.len() {
            0 => {
                let wanted = here().filter(|r| r.record_type() == RecordType::from(query_type));
                return Some(wanted.flat_map(|record| addresses(&record.data)).collect());
            }
            1 => at = targets.into_iter().next()?,
            _ => return Some(BTreeSet::new()),
        }
    }
    Some(BTreeSet::new())
}

fn addresses(data: &RData) -> Vec<IpAddr> {
    let RData::HTTPS(https) = data else {
        return data.ip_addr().into_iter().collect();
    };
    if https.0.svc_priority == 0 {
        return Vec::new();
    }
    let hints = https.0.svc_params.iter().flat_map(|(_, value)| match value {
        SvcParamValue::Ipv4Hint(hint) => hint.0.iter().map(|a| IpAddr::V4(a.0)).collect(),
        SvcParamValue::Ipv6Hint(hint) => hint.0.iter().map(|a| IpAddr::V6(a.0)).collect(),
        _ => Vec::new(),
    });
    hints.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn both_read_the_same_from_whole_messages((query_type, message) in written_message()) {
        let first = first_opinion(query_type, &message);
        prop_assert!(first.is_some());
        prop_assert_eq!(first, second_opinion(query_type, &message));
    }

    /// Either may refuse what the other takes, since the other reads parts of a message too that
    /// nobody learns from; where both take it, neither finds an address that the other does not.
    #[test]
    fn no_change_of_octets_makes_the_readers_differ(
        (query_type, mut message) in written_message(),
        spots in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        for (spot, octet) in spots {
            let at = spot.index(message.len());
            message[at] = octet;
        }
        if let Some(cut) = cut {
            message.truncate(cut.index(message.len()));
        }
        let first = first_opinion(query_type, &message);
        if let (Some(first), Some(second)) = (first, second_opinion(query_type, &message)) {
            prop_assert_eq!(first, second);
        }
    }
}
