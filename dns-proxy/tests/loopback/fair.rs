//! What one pod does to the others: nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use namegate_dns_proxy::Limits;
use namegate_dns_proxy::record::{DnsFailure, DnsVerdict, Rcode};

use crate::scripted::*;

const QUIET: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));

#[tokio::test]
async fn flood_whose_answers_never_come_costs_others_nothing() {
    let limits = Limits { client_in_flight: 64, ..Limits::default() };
    let mut stage = Script { limits, ..Script::default() }.start().await;
    stage.endpoints.set(QUIET, "web", Arc::new(Rules));
    let (loud, quiet) = (stage.pod().await, stage.pod_at(QUIET).await);
    for burst in 0..30u16 {
        for number in 0..100u16 {
            loud.ask(&mk_query(number, &format!("n{number}.b{burst}.allowed"), A)).await;
        }
        let name = format!("quiet{burst}.allowed");
        quiet.ask(&mk_query(burst, &name, A)).await;
        let asked = loop {
            let asked = stage.resolver.next().await;
            if question_of(&asked.message) == mk_question(&name, A) {
                break asked;
            }
        };
        asked.answer(mk_answer(&asked.message, &[a(&name, 60, 1)])).await;
        let reply = quiet.reply().await;
        assert_eq!((id_of(&reply), rcode_of(&reply)), (burst, NOERROR));
    }
    // The last of the flood may not have been looked at yet.
    loud.ask(&mk_query(1, "probe.refused", A)).await;
    let shed = || stage.count("dropped-client-in-flight") + stage.count("dropped-client-queue");
    soon(async {
        while shed() < 30 * 100 + 1 - 64 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(shed(), 30 * 100 + 1 - 64);
    assert_eq!(stage.count("verdict-allowed"), 30);
}

/// More than one pod may have under way ahead of its answers: the rest goes out a moment later, though
/// no answer comes.
#[tokio::test]
async fn resolver_that_answers_nothing_is_asked_everything_still() {
    let mut stage = Script::default().start().await;
    let loud = stage.pod().await;
    let mut left: BTreeSet<Vec<u8>> = BTreeSet::new();
    for number in 0..200u16 {
        let name = format!("n{number}.allowed");
        loud.ask(&mk_query(number, &name, A)).await;
        left.insert(mk_question(&name, A));
    }
    while !left.is_empty() {
        left.remove(question_of(&stage.resolver.next().await.message));
    }
}

#[tokio::test]
async fn rate_of_one_pod_is_its_own() {
    let limits = Limits { client_rate: Some(20), ..Limits::default() };
    let stage = Script { limits, ..Script::default() }.start().await;
    stage.endpoints.set(QUIET, "web", Arc::new(Rules));
    let (loud, quiet) = (stage.pod().await, stage.pod_at(QUIET).await);
    for number in 0..200u16 {
        loud.ask(&mk_query(number, "some.refused", A)).await;
    }
    for number in 0..10u16 {
        quiet.ask(&mk_query(number, "some.refused", A)).await;
        assert_eq!(id_of(&quiet.reply().await), number);
    }
    assert!(stage.count("dropped-client-rate") > 0, "the flood is over its rate");
    let answered = stage.count("verdict-denied") - 10;
    assert_eq!(answered + stage.count("dropped-client-rate"), 200);
}

#[tokio::test]
async fn what_is_shed_is_read_by_nobody() {
    let limits = Limits { client_in_flight: 0, ..Limits::default() };
    let stage = Script { limits, ..Script::default() }.start().await;
    let (pod, stranger) =
        (stage.pod().await, stage.pod_at(Ipv4Addr::new(127, 0, 0, 9).into()).await);
    let mut two_questions = mk_query(5, "shop.allowed", A);
    two_questions[5] = 2;
    let mut response = mk_query(6, "shop.allowed", A);
    response[2] |= 0x80;
    let messages: [&[u8]; 4] = [b"short", &[0xff; 100], &two_questions, &response];
    for message in messages {
        pod.ask(message).await;
        stranger.ask(message).await;
    }
    let all = [
        ("messages-udp", 8),
        ("dropped-unknown-client", 4),
        // No message has another fault that anyone knows of.
        ("dropped-client-in-flight", 4),
    ];
    soon(async {
        while stage.counts().iter().map(|(_, count)| count).sum::<u64>() < 16 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(stage.counts(), all);
}

#[tokio::test]
async fn names_made_up_below_a_wildcard_are_refused_beyond_the_budget() {
    let limits = Limits { client_new_names: Some(3), ..Limits::default() };
    let mut stage = Script { limits, ..Script::default() }.start().await;
    stage.endpoints.set(QUIET, "web", Arc::new(Rules));
    let (pod, quiet) = (stage.pod().await, stage.pod_at(QUIET).await);
    for number in 0..3u16 {
        let name = format!("n{number}.wild.allowed");
        for kind in [A, AAAA] {
            pod.ask(&mk_query(number, &name, kind)).await;
            let asked = stage.resolver.next().await;
            asked.answer(mk_answer(&asked.message, &[])).await;
            assert_eq!(rcode_of(&pod.reply().await), NOERROR);
            assert_eq!(stage.record().await.verdict, DnsVerdict::Allowed);
        }
    }
    let mut tcp = stage.tcp().await;
    for number in 3..10u16 {
        let query = mk_query(number, &format!("n{number}.wild.allowed"), A);
        pod.ask(&query).await;
        let reply = pod.reply().await;
        assert_eq!((id_of(&reply), rcode_of(&reply)), (number, REFUSED));
        tcp.ask(&query).await;
        assert_eq!(rcode_of(&tcp.reply().await), REFUSED, "over TCP too");
        for _ in 0..2 {
            let record = stage.record().await;
            assert_eq!(record.verdict, DnsVerdict::Denied);
            assert_eq!(record.failure, Some(DnsFailure::NewNames));
        }
    }
    assert_eq!(stage.count("denied-new-names"), 14);
    assert!(stage.resolver.asked.try_recv().is_err(), "nothing of it left the node");
    let free = [
        (&pod, "n0.wild.allowed", "a name that it knows"),
        (&pod, "named.allowed", "one that a rule names in full"),
        (&quiet, "n9.wild.allowed", "another pod"),
    ];
    for (who, name, why) in free {
        who.ask(&mk_query(20, name, A)).await;
        let asked = stage.resolver.next().await;
        asked.answer(mk_answer(&asked.message, &[])).await;
        assert_eq!(rcode_of(&who.reply().await), NOERROR, "{why}");
    }
}

#[tokio::test]
async fn panic_ends_one_query_over_udp_and_tcp() {
    let mut stage = Script::default().start().await;
    let pod = stage.pod().await;
    let mut tcp = stage.tcp().await;
    for id in 0..3 {
        pod.ask(&mk_query(id, "a.panics", A)).await;
        let reply = pod.reply().await;
        assert_eq!((id_of(&reply), rcode_of(&reply)), (id, SERVFAIL));
        tcp.ask(&mk_query(id, "a.panics", A)).await;
        let reply = tcp.reply().await;
        assert_eq!((id_of(&reply), rcode_of(&reply)), (id, SERVFAIL));
    }
    assert_eq!(stage.count("panics"), 6);
    pod.ask(&mk_query(9, "fine.allowed", A)).await;
    let asked = stage.resolver.next().await;
    asked.answer(mk_answer(&asked.message, &[a("fine.allowed", 60, 1)])).await;
    assert_eq!(rcode_of(&pod.reply().await), NOERROR);
}

#[tokio::test]
async fn learner_that_panics_has_learned_nothing() {
    let mut stage = Script::default().start().await;
    let pod = stage.pod().await;
    pod.ask(&mk_query(7, "unteachable.allowed", A)).await;
    let asked = stage.resolver.next().await;
    asked.answer(mk_answer(&asked.message, &[a("unteachable.allowed", 60, 1)])).await;
    let reply = pod.reply().await;
    assert_eq!((id_of(&reply), rcode_of(&reply)), (7, SERVFAIL));
    assert_eq!(stage.record().await.rcode, Rcode::SERVFAIL);
    assert_eq!(stage.count("panics"), 1);
    assert_eq!(stage.count("lessons-failed"), 1);
}
