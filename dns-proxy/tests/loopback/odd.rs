//! Odd queries get what the protocol has for them, and odd answers teach no more than they may.

use std::path::Path;

use namegate_dns_proxy::learner::{Learned, TaughtAddress};

use crate::scripted::*;

const HTTPS: u16 = 65;

/// Messages of the committed corpus and what is said to each; nothing to the last ones.
const QUERIES: [(&str, Option<u8>); 21] = [
    ("any", Some(REFUSED)),
    ("axfr", Some(REFUSED)),
    ("chaos", Some(REFUSED)),
    ("compressed-question", Some(FORMERR)),
    ("dot-in-label", Some(REFUSED)),
    ("edns", Some(REFUSED)),
    // BADVERS: the rest of the code is in the OPT record.
    ("edns-version-1", Some(NOERROR)),
    ("name-255", Some(REFUSED)),
    ("name-256", Some(FORMERR)),
    ("no-question", Some(FORMERR)),
    ("notify", Some(4)),
    ("option-too-long", Some(FORMERR)),
    ("plain", Some(REFUSED)),
    ("root", Some(REFUSED)),
    ("trailing", Some(FORMERR)),
    ("tsig", Some(9)),
    ("two-opt", Some(FORMERR)),
    ("update", Some(4)),
    ("empty", None),
    ("response", None),
    ("short", None),
];

fn corpus(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/gate").join(name))
        .unwrap()
}

#[tokio::test]
async fn every_odd_query_has_its_code_over_both_transports_and_none_is_forwarded() {
    let mut stage = Script::default().start().await;
    let pod = stage.pod().await;
    let probe = mk_query(0xabcd, "probe.refused", A);
    for (name, code) in QUERIES {
        let query = corpus(name);
        pod.ask(&query).await;
        let Some(code) = code else {
            // What comes next is the answer to what was asked next.
            pod.ask(&probe).await;
            assert_eq!(id_of(&pod.reply().await), 0xabcd, "{name}: dropped");
            continue;
        };
        let reply = pod.reply().await;
        assert_eq!((id_of(&reply), rcode_of(&reply)), (id_of(&query), code), "{name} over UDP");
        let mut connection = stage.tcp().await;
        connection.ask(&query).await;
        let reply = connection.reply().await;
        assert_eq!((id_of(&reply), rcode_of(&reply)), (id_of(&query), code), "{name} over TCP");
    }
    assert!(stage.resolver.asked.try_recv().is_err(), "none of it left the node");
    // What has a reply came over both transports.
    let rejected = [
        ("dropped-short", 2),
        ("dropped-response", 1),
        ("rejected-malformed", 12),
        ("rejected-opcode", 4),
        ("rejected-class", 2),
        ("rejected-type", 4),
        ("rejected-signed", 2),
        ("rejected-version", 2),
    ];
    let counts = stage.counts();
    let is_rejection =
        |(label, _): &&(&str, u64)| label.starts_with("rejected") || label.starts_with("dropped");
    assert_eq!(counts.iter().filter(is_rejection).copied().collect::<Vec<_>>(), rejected);
    assert_eq!((stage.count("messages-udp"), stage.count("messages-tcp")), (24, 18));
}

#[tokio::test]
async fn only_addresses_that_the_question_leads_to_are_taught() {
    let hint = |last| {
        // Priority 1, target ".", key 4 (ipv4hint), one address.
        vec![0, 1, 0, 0, 4, 0, 4, 192, 0, 2, last]
    };
    let cases = [
        (
            "a chain, and records that are not on it",
            A,
            vec![
                a("stranger.example", 60, 9),
                ("shop.allowed", CNAME, 60, mk_name("cdn.example")),
                ("cdn.example", CNAME, 60, mk_name("edge.example")),
                a("edge.example", 60, 1),
                a("other.example", 60, 8),
            ],
            vec![1],
        ),
        (
            "a chain that goes in circles",
            A,
            vec![
                ("shop.allowed", CNAME, 60, mk_name("cdn.example")),
                ("cdn.example", CNAME, 60, mk_name("shop.allowed")),
                a("edge.example", 60, 1),
            ],
            vec![],
        ),
        (
            "hints",
            HTTPS,
            vec![("shop.allowed", HTTPS, 60, hint(3)), ("x.example", HTTPS, 60, hint(7))],
            vec![3],
        ),
    ];
    for (why, kind, records, taught) in cases {
        let mut stage = Script::held().start().await;
        let pod = stage.pod().await;
        pod.ask(&mk_query(7, "shop.allowed", kind)).await;
        let asked = stage.resolver.next().await;
        asked.answer(mk_answer(&asked.message, &records)).await;
        if !taught.is_empty() {
            let held = stage.lesson().await;
            let expected: Vec<TaughtAddress> = taught
                .iter()
                .map(|last| TaughtAddress { address: [192, 0, 2, *last].into(), ttl: 60 })
                .collect();
            assert_eq!(held.lesson.addresses, expected, "{why}");
            held.end(Ok(Learned::default()));
        }
        let reply = pod.reply().await;
        assert_eq!(id_of(&reply), 7, "{why}");
        let record = stage.record().await;
        let opened = record.addresses.iter().filter(|address| address.withheld.is_none()).count();
        assert_eq!(opened, taught.len(), "{why}");
    }
}
