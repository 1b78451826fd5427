//! The resolver over TCP: what counts as its answer there, and what happens while there is none.

use std::time::Duration;

use namegate_dns_proxy::Timeouts;
use namegate_dns_proxy::record::{DnsFailure, DnsVerdict};

use crate::scripted::*;

/// A resolver that is given up soon over TCP, and never before the test is over by UDP.
fn hasty() -> Script {
    let timeouts = Timeouts {
        attempt: Duration::from_secs(60),
        upstream_tcp: Duration::from_millis(200),
        ..Timeouts::default()
    };
    Script { timeouts, ..Script::default() }
}

/// The query that reaches the resolver over TCP.
async fn next_over_tcp(stage: &mut Stage) -> Asked {
    let asked = stage.resolver.next().await;
    assert_eq!(asked.transport, "tcp");
    asked
}

/// The pod is told that there is no answer, and the record that none came in time.
async fn assert_timed_out(stage: &mut Stage, reply: &[u8]) {
    assert_eq!((id_of(reply), rcode_of(reply)), (1, SERVFAIL));
    let record = stage.record().await;
    assert_eq!(record.verdict, DnsVerdict::Error);
    assert_eq!(record.failure, Some(DnsFailure::UpstreamTimeout));
    assert_eq!(stage.count("upstream-timeouts"), 1);
}

#[tokio::test]
async fn what_answers_nothing_is_ignored_over_tcp_too() {
    let mut stage = Script::default().start().await;
    let mut pod = stage.tcp().await;
    pod.ask(&mk_query(1, "shop.allowed", A)).await;
    let asked = next_over_tcp(&mut stage).await;
    let wrong = mk_answer(&asked.message, &[a("shop.allowed", 60, 66)]);
    let mut other_id = wrong.clone();
    other_id[1] ^= 1;
    let mut other_name = wrong.clone();
    other_name[13] = b'x';
    let mut other_type = wrong.clone();
    other_type[12 + 15] = 28;
    let mut no_response = wrong.clone();
    no_response[2] &= 0x7f;
    for message in [other_id, other_name, other_type, no_response, vec![0; 3]] {
        asked.answer(message).await;
    }
    asked.answer(mk_answer(&asked.message, &[a("shop.allowed", 60, 1)])).await;

    let reply = pod.reply().await;
    assert_eq!((id_of(&reply), rcode_of(&reply)), (1, NOERROR));
    let record = stage.record().await;
    let addresses: Vec<_> = record.addresses.iter().map(|answered| answered.address).collect();
    assert_eq!(addresses, [std::net::IpAddr::from([192, 0, 2, 1])]);
    assert_eq!(stage.count("upstream-unmatched"), 5);
    assert_eq!(stage.count("upstream-tcp"), 1, "asked once");
}

#[tokio::test]
async fn resolver_that_is_silent_over_tcp_is_given_up_in_time() {
    let mut stage = hasty().start().await;
    let mut pod = stage.tcp().await;
    pod.ask(&mk_query(1, "shop.allowed", A)).await;
    let _unanswered = next_over_tcp(&mut stage).await;
    let reply = pod.reply().await;
    assert_timed_out(&mut stage, &reply).await;
}

#[tokio::test]
async fn resolver_that_cuts_its_answer_and_is_silent_over_tcp_is_given_up_in_time() {
    let mut stage = hasty().start().await;
    let pod = stage.pod().await;
    pod.ask(&mk_query(1, "shop.allowed", A)).await;
    let asked = stage.resolver.next().await;
    let mut cut = mk_answer(&asked.message, &[a("shop.allowed", 60, 66)]);
    cut[2] |= 2;
    asked.answer(cut).await;
    let _unanswered = next_over_tcp(&mut stage).await;
    let reply = pod.reply().await;
    assert_timed_out(&mut stage, &reply).await;
    assert_eq!(stage.count("upstream-truncated"), 1);
}
