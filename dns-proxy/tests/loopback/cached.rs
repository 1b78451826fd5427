//! Answers from the cache: the same order of things, without the resolver.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use namegate_dns_proxy::learner::{LearnError, Learned};
use namegate_dns_proxy::record::{DnsFailure, DnsVerdict};
use namegate_dns_proxy::{CacheLimits, Timeouts};

use crate::scripted::*;

async fn ask_and_answer(stage: &mut Stage, pod: &Pod, records: &[Record<'_>], name: &str) {
    pod.ask(&mk_query(1, name, A)).await;
    let asked = stage.resolver.next().await;
    asked.answer(mk_answer(&asked.message, records)).await;
}

#[tokio::test]
async fn cached_answer_opens_its_addresses_for_each_identity_first() {
    let mut stage = Script::held().start().await;
    let other: IpAddr = Ipv4Addr::new(127, 0, 0, 3).into();
    stage.endpoints.set(other, "web", Arc::new(Rules));
    let (first, second) = (stage.pod().await, stage.pod_at(other).await);
    ask_and_answer(&mut stage, &first, &[a("shop.allowed", 60, 1)], "shop.allowed").await;
    stage.lesson().await.end(Ok(Learned::default()));
    first.reply().await;
    assert!(!stage.record().await.cached);
    // The second answer is the one that is kept: a name asked once is not worth it.
    ask_and_answer(&mut stage, &first, &[a("shop.allowed", 60, 1)], "shop.allowed").await;
    stage.lesson().await.end(Ok(Learned::default()));
    first.reply().await;
    assert!(!stage.record().await.cached);

    second.ask(&mk_query(2, "SHOP.allowed", A)).await;
    let held = stage.lesson().await;
    assert_eq!(held.lesson.client.endpoint.pod.as_ref(), "web");
    second.assert_nothing_came().await;
    assert_eq!(stage.record().await.verdict, DnsVerdict::Denied);
    held.end(Ok(Learned::default()));
    let reply = second.reply().await;
    assert_eq!((id_of(&reply), rcode_of(&reply)), (2, NOERROR));
    assert_eq!(question_of(&reply), mk_question("SHOP.allowed", A));
    assert!(stage.record().await.cached);
    assert!(stage.resolver.asked.try_recv().is_err(), "the resolver was asked no more");
}

#[tokio::test]
async fn cache_serves_tcp_and_keeps_names_apart() {
    let mut stage = Script::default().start().await;
    let pod = stage.pod().await;
    for _ in 0..2 {
        ask_and_answer(&mut stage, &pod, &[a("shop.allowed", 60, 1)], "shop.allowed").await;
        pod.reply().await;
    }
    let mut tcp = stage.tcp().await;
    tcp.ask(&mk_query(2, "shop.allowed", A)).await;
    assert_eq!(id_of(&tcp.reply().await), 2);
    tcp.ask(&mk_query(3, "shop.allowed", AAAA)).await;
    assert_eq!(stage.resolver.next().await.transport, "tcp", "another type is another question");
}

/// Answers are past their time at once and may serve for a minute more, and a silent resolver is given
/// up after `attempt`.
fn stale_after(attempt: Duration, script: Script) -> Script {
    Script {
        cache: CacheLimits {
            serve_stale: Some(Duration::from_secs(60)),
            max: Duration::from_nanos(1),
            ..CacheLimits::default()
        },
        timeouts: Timeouts { attempt, attempts: 1, ..Timeouts::default() },
        ..script
    }
}

#[tokio::test]
async fn stale_answer_serves_while_the_resolver_is_away() {
    let mut stage = stale_after(Duration::from_millis(30), Script::default()).start().await;
    let pod = stage.pod().await;
    for _ in 0..2 {
        ask_and_answer(&mut stage, &pod, &[a("shop.allowed", 600, 1)], "shop.allowed").await;
        pod.reply().await;
        stage.record().await;
    }

    pod.ask(&mk_query(2, "shop.allowed", A)).await;
    let reply = pod.reply().await;
    assert_eq!((id_of(&reply), rcode_of(&reply)), (2, NOERROR));
    assert_eq!(ttls_of(&reply), [30]);
    let record = stage.record().await;
    assert_eq!(record.verdict, DnsVerdict::Allowed);
    assert_eq!(record.failure, Some(DnsFailure::UpstreamTimeout));
    assert!(record.cached);
    assert_eq!((stage.count("cache-stale"), stage.count("upstream-timeouts")), (1, 1));
}

#[tokio::test]
async fn stale_answer_opens_its_addresses_for_each_identity_first() {
    let mut stage = stale_after(Duration::from_millis(30), Script::held()).start().await;
    let other: IpAddr = Ipv4Addr::new(127, 0, 0, 3).into();
    stage.endpoints.set(other, "web", Arc::new(Rules));
    let (first, second) = (stage.pod().await, stage.pod_at(other).await);
    for _ in 0..2 {
        ask_and_answer(&mut stage, &first, &[a("shop.allowed", 600, 1)], "shop.allowed").await;
        stage.lesson().await.end(Ok(Learned::default()));
        first.reply().await;
        stage.record().await;
    }
    for (outcome, rcode) in
        [(Ok(Learned::default()), NOERROR), (Err(LearnError::Stopped), SERVFAIL)]
    {
        second.ask(&mk_query(2, "shop.allowed", A)).await;
        let held = stage.lesson().await;
        assert_eq!(held.lesson.client.endpoint.pod.as_ref(), "web");
        assert_eq!(held.lesson.addresses[0].address, IpAddr::from([192, 0, 2, 1]));
        second.assert_nothing_came().await;
        assert_eq!(stage.record().await.verdict, DnsVerdict::Denied, "of the probe");
        held.end(outcome);
        let reply = second.reply().await;
        assert_eq!((id_of(&reply), rcode_of(&reply)), (2, rcode));
        stage.record().await;
    }
    assert_eq!(stage.count("cache-stale"), 2);
}

/// RFC 2308 section 5.
#[tokio::test]
async fn answer_that_there_is_nothing_is_kept_for_what_its_soa_says_and_without_one_not_at_all() {
    let mut stage = Script::default().start().await;
    let pod = stage.pod().await;
    for (name, has_soa) in [("gone.allowed", true), ("unknown.allowed", false)] {
        for _ in 0..2 {
            pod.ask(&mk_query(1, name, A)).await;
            let asked = stage.resolver.next().await;
            asked.answer(mk_nothing(&asked.message, has_soa.then_some(300))).await;
            assert_eq!(rcode_of(&pod.reply().await), NXDOMAIN);
        }
        pod.ask(&mk_query(2, name, A)).await;
        if !has_soa {
            let asked = stage.resolver.next().await;
            asked.answer(mk_nothing(&asked.message, None)).await;
        }
        let reply = pod.reply().await;
        assert_eq!((id_of(&reply), rcode_of(&reply)), (2, NXDOMAIN), "{name}");
    }
    assert!(stage.resolver.asked.try_recv().is_err(), "the kept one came from the cache");
    assert!(stage.counts().contains(&("cache-hits", 1)));
}

#[tokio::test]
async fn no_answer_says_a_ttl_that_the_kernel_does_not_keep() {
    let mut stage = Script {
        learned: Some(Learned {
            kept_for: Some(Duration::from_millis(7_900)),
            ..Learned::default()
        }),
        ..Script::default()
    }
    .start()
    .await;
    let pod = stage.pod().await;
    for _ in 0..2 {
        let records = [a("shop.allowed", 60, 1), a("shop.allowed", 5, 2)];
        ask_and_answer(&mut stage, &pod, &records, "shop.allowed").await;
        assert_eq!(ttls_of(&pod.reply().await), [7, 5], "from the resolver");
    }
    pod.ask(&mk_query(2, "shop.allowed", A)).await;
    let ttls = ttls_of(&pod.reply().await);
    assert!(ttls[0] == 7 && ttls[1] <= 5, "from the cache: {ttls:?}");
    assert!(stage.counts().contains(&("cache-hits", 1)));
}

#[tokio::test]
async fn name_that_is_allowed_no_more_is_not_served_from_the_cache() {
    let mut stage = Script::default().start().await;
    let pod = stage.pod().await;
    for _ in 0..2 {
        ask_and_answer(&mut stage, &pod, &[a("shop.allowed", 600, 1)], "shop.allowed").await;
        pod.reply().await;
    }
    stage.endpoints.set(POD, "checkout", Arc::new(Nothing));
    pod.ask(&mk_query(3, "shop.allowed", A)).await;
    let reply = pod.reply().await;
    assert_eq!((id_of(&reply), rcode_of(&reply)), (3, REFUSED));
    assert_eq!(stage.count("cache-hits"), 0);
}

#[tokio::test]
async fn name_that_is_allowed_no_more_is_not_served_stale() {
    // Long enough for the policy to change between the query and its end.
    let mut stage = stale_after(Duration::from_secs(2), Script::default()).start().await;
    let pod = stage.pod().await;
    for _ in 0..2 {
        ask_and_answer(&mut stage, &pod, &[a("shop.allowed", 600, 1)], "shop.allowed").await;
        pod.reply().await;
    }
    pod.ask(&mk_query(3, "shop.allowed", A)).await;
    let _unanswered = stage.resolver.next().await;
    stage.endpoints.set(POD, "checkout", Arc::new(Nothing));
    let reply = pod.reply().await;
    assert_eq!((id_of(&reply), rcode_of(&reply)), (3, REFUSED));
    assert_eq!((stage.count("upstream-timeouts"), stage.count("cache-stale")), (1, 0));
}
