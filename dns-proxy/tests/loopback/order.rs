//! The map first, the answer second.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use namegate_dns_proxy::learner::{LearnError, Learned, TaughtAddress, Withheld};
use namegate_dns_proxy::record::{
    AnsweredAddress, DnsFailure, DnsVerdict, QueryType, Rcode, Transport,
};
use namegate_policy::opening::NotOpened;

use crate::scripted::*;

fn ip(last: u8) -> IpAddr {
    [192, 0, 2, last].into()
}

#[tokio::test]
async fn answer_waits_for_the_learner_over_udp() {
    let mut stage = Script::held().start().await;
    let pod = stage.pod().await;
    pod.ask(&mk_query(7, "shop.allowed", A)).await;
    let asked = stage.resolver.next().await;
    asked.answer(mk_answer(&asked.message, &[a("shop.allowed", 60, 1)])).await;

    let held = stage.lesson().await;
    assert_eq!(held.lesson.name.to_string(), "shop.allowed");
    assert_eq!(held.lesson.clauses, [3]);
    assert_eq!(held.lesson.client.endpoint.pod.as_ref(), "checkout");
    let taught = TaughtAddress { address: ip(1), ttl: 60 };
    assert_eq!(held.lesson.addresses, [taught]);
    pod.assert_nothing_came().await;

    held.end(Ok(Learned::default()));
    let reply = pod.reply().await;
    assert_eq!((id_of(&reply), rcode_of(&reply)), (7, NOERROR));
}

#[tokio::test]
async fn answer_waits_for_the_learner_over_tcp() {
    let mut stage = Script::held().start().await;
    let mut pod = stage.tcp().await;
    pod.ask(&mk_query(7, "shop.allowed", A)).await;
    let asked = stage.resolver.next().await;
    assert_eq!(asked.transport, "tcp");
    asked.answer(mk_answer(&asked.message, &[a("shop.allowed", 60, 1)])).await;

    let held = stage.lesson().await;
    pod.ask(&mk_query(8, "probe.refused", A)).await;
    assert_eq!(id_of(&pod.reply().await), 8, "only the probe is answered");
    held.end(Ok(Learned::default()));
    assert_eq!(id_of(&pod.reply().await), 7);
}

#[tokio::test]
async fn failing_learner_means_servfail_and_a_record_that_says_why() {
    let cases = [
        (LearnError::Full, DnsFailure::LearnerFull),
        (LearnError::Stale, DnsFailure::Stale),
        (LearnError::Stopped, DnsFailure::LearnerFailed),
        (LearnError::Write("no such map".into()), DnsFailure::LearnerFailed),
    ];
    for (error, failure) in cases {
        let mut stage = Script::held().start().await;
        let pod = stage.pod().await;
        pod.ask(&mk_query(7, "shop.allowed", A)).await;
        let asked = stage.resolver.next().await;
        asked.answer(mk_answer(&asked.message, &[a("shop.allowed", 60, 1)])).await;
        stage.lesson().await.end(Err(error));

        let reply = pod.reply().await;
        assert_eq!((id_of(&reply), rcode_of(&reply)), (7, SERVFAIL));
        assert_eq!(reply[6..12], [0; 6], "no records");
        let record = stage.record().await;
        assert_eq!(record.verdict, DnsVerdict::Error);
        assert_eq!(record.failure, Some(failure));
        assert_eq!(record.rcode, Rcode::SERVFAIL);
        assert_eq!(record.addresses, []);
    }
}

#[tokio::test]
async fn ttls_are_cut_to_what_the_kernel_keeps() {
    let stage = &mut Script {
        learned: Some(Learned {
            kept_for: Some(Duration::from_millis(90_500)),
            withheld: vec![(ip(2), Withheld::Address(NotOpened::Pod))],
        }),
        ..Script::default()
    }
    .start()
    .await;
    let pod = stage.pod().await;
    pod.ask(&mk_query(7, "shop.allowed", A)).await;
    let asked = stage.resolver.next().await;
    let records = [
        ("shop.allowed", CNAME, 900, mk_name("cdn.test")),
        a("cdn.test", 800, 1),
        a("cdn.test", 70, 2),
    ];
    asked.answer(mk_answer(&asked.message, &records)).await;

    assert_eq!(ttls_of(&pod.reply().await), [90, 90, 70]);
    let record = stage.record().await;
    assert_eq!(record.verdict, DnsVerdict::Allowed);
    assert_eq!(record.query_type, QueryType::A);
    assert_eq!(record.transport, Transport::Udp);
    assert_eq!(record.resolver, stage.resolver.address.ip());
    assert!(record.latency > Duration::ZERO);
    let opened = AnsweredAddress { address: ip(1), ttl: 90, withheld: None };
    let withheld = AnsweredAddress {
        address: ip(2),
        ttl: 70,
        withheld: Some(Withheld::Address(NotOpened::Pod)),
    };
    assert_eq!(record.addresses, [opened, withheld]);
}

#[tokio::test]
async fn name_revoked_while_its_answer_is_under_way_is_refused() {
    let mut stage = Script::held().start().await;
    let pod = stage.pod().await;
    pod.ask(&mk_query(7, "shop.allowed", A)).await;
    let asked = stage.resolver.next().await;
    stage.endpoints.set(POD, "checkout", Arc::new(Nothing));
    asked.answer(mk_answer(&asked.message, &[a("shop.allowed", 60, 1)])).await;
    let reply = pod.reply().await;
    assert_eq!((id_of(&reply), rcode_of(&reply)), (7, REFUSED));
    assert_eq!(stage.record().await.verdict, DnsVerdict::Denied);
    assert!(stage.lessons.try_recv().is_err(), "nothing was learned");
}

#[tokio::test]
async fn answer_for_an_address_that_changed_hands_is_dropped() {
    let mut stage = Script::held().start().await;
    let pod = stage.pod().await;
    pod.ask(&mk_query(7, "shop.allowed", A)).await;
    let asked = stage.resolver.next().await;
    stage.endpoints.set(POD, "another", Arc::new(Rules));
    asked.answer(mk_answer(&asked.message, &[a("shop.allowed", 60, 1)])).await;
    // A second query tells that the first answer was dealt with.
    pod.ask(&mk_query(8, "other.allowed", A)).await;
    let asked = stage.resolver.next().await;
    asked.answer(mk_answer(&asked.message, &[a("other.allowed", 60, 2)])).await;
    stage.lesson().await.end(Ok(Learned::default()));
    assert_eq!(id_of(&pod.reply().await), 8);
    assert!(stage.counts().contains(&("dropped-client-gone", 1)));
}

#[tokio::test]
async fn surplus_addresses_are_not_taught_and_said_to_be_withheld() {
    let mut stage = Script {
        limits: namegate_dns_proxy::Limits { answer_addresses: 1, ..Default::default() },
        ..Script::held()
    }
    .start()
    .await;
    let pod = stage.pod().await;
    pod.ask(&mk_query(7, "shop.allowed", A)).await;
    let asked = stage.resolver.next().await;
    let records = [a("shop.allowed", 60, 1), a("shop.allowed", 60, 2)];
    asked.answer(mk_answer(&asked.message, &records)).await;
    let held = stage.lesson().await;
    assert_eq!(held.lesson.addresses.len(), 1);
    held.end(Ok(Learned::default()));
    assert_eq!(ttls_of(&pod.reply().await).len(), 2, "the answer is whole");
    let record = stage.record().await;
    assert_eq!(record.addresses[0].withheld, None);
    assert_eq!(record.addresses[1].withheld, Some(Withheld::Limit));
}

#[tokio::test]
async fn each_stage_of_a_query_is_timed() {
    let mut stage = Script::held().start().await;
    let pod = stage.pod().await;
    pod.ask(&mk_query(7, "shop.allowed", A)).await;
    let asked = stage.resolver.next().await;
    asked.answer(mk_answer(&asked.message, &[a("shop.allowed", 60, 1)])).await;
    stage.lesson().await.end(Ok(Learned::default()));
    pod.reply().await;
    let counted = stage.proxy.stages().each().map(|(label, histogram)| {
        let reading = histogram.reading();
        (label, reading.buckets.iter().map(|(_, count)| count).sum::<u64>() + reading.longer)
    });
    assert_eq!(counted, [("gate", 1), ("policy", 1), ("upstream", 1), ("learn", 1)]);
}
