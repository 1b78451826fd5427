//! What pods, resolvers and strangers see of the proxy, over real sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use namegate_dns_proxy::record::{DnsFailure, DnsVerdict, Transport};
use namegate_dns_proxy::{Limits, ResolverSlot, StartError, Timeouts};

use crate::scripted::*;

/// Lets the resolver answer the next query with one address.
async fn answer_next(stage: &mut Stage, name: &str) -> Asked {
    let asked = stage.resolver.next().await;
    asked.answer(mk_answer(&asked.message, &[a(name, 60, 1)])).await;
    asked
}

#[tokio::test]
async fn query_is_rebuilt_and_the_answer_is_the_pods_own() {
    let mut stage = Script::default().start().await;
    let pod = stage.pod().await;
    let mut query = mk_query_with_edns(0x1234, "ShOp.AllOwed", A, 4096);
    // An EDNS option that names the pod must not leave the node.
    let options_at = query.len() - 2;
    query[options_at..].copy_from_slice(&[0, 12]);
    query.extend_from_slice(&[0, 8, 0, 8, 0, 1, 32, 0, 10, 1, 0, 5]);
    pod.ask(&query).await;

    let asked = stage.resolver.next().await;
    let mut expected = mk_query_with_edns(id_of(&asked.message), "ShOp.AllOwed", A, 1232);
    expected[2..4].copy_from_slice(&query[2..4]);
    assert_eq!(asked.message, expected);

    // The resolver answers in a case of its own.
    let lower = mk_query(id_of(&asked.message), "shop.allowed", A);
    let answer = mk_answer(&lower, &[a("shop.allowed", 60, 1)]);
    asked.answer(answer.clone()).await;
    let mut released = answer;
    released[..2].copy_from_slice(&[0x12, 0x34]);
    released[12..12 + 18].copy_from_slice(question_of(&query));
    assert_eq!(pod.reply().await, released);
}

#[tokio::test]
async fn refused_names_never_leave_and_are_recorded() {
    let mut stage = Script::default().start().await;
    let pod = stage.pod().await;
    let cases = [
        ("some.name", REFUSED),
        ("nx.name", NXDOMAIN),
        ("empty.name", NOERROR),
        ("some.name.search", NXDOMAIN),
    ];
    for (name, rcode) in cases {
        pod.ask(&mk_query(9, name, A)).await;
        let reply = pod.reply().await;
        assert_eq!((id_of(&reply), rcode_of(&reply)), (9, rcode), "{name}");
        assert_eq!(question_of(&reply), mk_question(name, A), "{name}");
        assert_eq!(reply[6..12], [0; 6], "{name}: no records");
        let record = stage.record().await;
        assert_eq!(record.verdict, DnsVerdict::Denied, "{name}");
        assert_eq!(record.name.to_string(), name);
        assert_eq!(record.rcode.0, u16::from(rcode));
    }
    assert!(stage.resolver.asked.try_recv().is_err(), "nothing was asked");
    assert_eq!(stage.counts(), [("messages-udp", 4), ("verdict-denied", 4)]);
}

#[tokio::test]
async fn audited_name_resolves_and_is_recorded_as_audit() {
    let mut stage = Script::default().start().await;
    let pod = stage.pod().await;
    pod.ask(&mk_query(9, "some.audit", A)).await;
    answer_next(&mut stage, "some.audit").await;
    assert_eq!(rcode_of(&pod.reply().await), NOERROR);
    assert_eq!(stage.record().await.verdict, DnsVerdict::Audit);
}

#[tokio::test]
async fn ipv6_is_served_over_both_transports() {
    let mut stage = Script { ip: Ipv6Addr::LOCALHOST.into(), ..Script::default() }.start().await;
    let pod = stage.pod().await;
    pod.ask(&mk_query(1, "six.allowed", AAAA)).await;
    let asked = stage.resolver.next().await;
    let record = ("six.allowed", AAAA, 60, vec![0x20; 16]);
    asked.answer(mk_answer(&asked.message, &[record])).await;
    assert_eq!(id_of(&pod.reply().await), 1);
    assert_eq!(stage.record().await.addresses.len(), 1);

    let mut pod = stage.tcp().await;
    pod.ask(&mk_query(2, "six.allowed", A)).await;
    answer_next(&mut stage, "six.allowed").await;
    assert_eq!(id_of(&pod.reply().await), 2);
    assert_eq!(stage.record().await.transport, Transport::Tcp);
}

#[tokio::test]
async fn reply_too_long_for_the_pod_is_truncated() {
    let mut stage = Script::default().start().await;
    let pod = stage.pod().await;
    for (query, room) in [
        (mk_query(1, "one.allowed", A), 512),
        (mk_query_with_edns(2, "two.allowed", A, 900), 900),
        (mk_query_with_edns(3, "six.allowed", A, 9000), 1232),
    ] {
        pod.ask(&query).await;
        let asked = stage.resolver.next().await;
        let records: Vec<_> = (0..100).map(|last| a("one.allowed", 60, last)).collect();
        asked.answer(mk_answer(&asked.message, &records)).await;
        let reply = pod.reply().await;
        assert!(is_truncated(&reply) && reply.len() <= room, "{room}");
        assert_eq!(question_of(&reply), question_of(&query));
        assert_eq!(reply[6..10], [0; 4], "no records but EDNS");
    }
}

#[tokio::test]
async fn malformed_answer_means_servfail() {
    let mut stage = Script::held().start().await;
    let pod = stage.pod().await;
    pod.ask(&mk_query(1, "shop.allowed", A)).await;
    let asked = stage.resolver.next().await;
    let mut cut = mk_answer(&asked.message, &[a("shop.allowed", 60, 1)]);
    cut.pop();
    asked.answer(cut).await;
    assert_eq!(rcode_of(&pod.reply().await), SERVFAIL);
    let failure = stage.record().await.failure;
    assert_eq!(failure, Some(DnsFailure::MalformedAnswer));
    assert!(stage.lessons.try_recv().is_err(), "nothing was learned");
}

#[tokio::test]
async fn negative_answer_reaches_the_pod_unchanged() {
    let mut stage = Script::held().start().await;
    let pod = stage.pod().await;
    pod.ask(&mk_query(1, "none.allowed", A)).await;
    let asked = stage.resolver.next().await;
    let mut answer = mk_answer(&asked.message, &[]);
    answer[3] |= NXDOMAIN;
    asked.answer(answer.clone()).await;
    answer[..2].copy_from_slice(&[0, 1]);
    assert_eq!(pod.reply().await, answer);
    assert_eq!(stage.record().await.verdict, DnsVerdict::Allowed);
}

#[tokio::test]
async fn strangers_and_garbage_get_nothing_through() {
    let mut stage = Script::default().start().await;
    let stranger = stage.pod_at(Ipv4Addr::new(127, 0, 0, 2).into()).await;
    stranger.ask(&mk_query(1, "shop.allowed", A)).await;
    let pod = stage.pod().await;
    pod.ask(b"\x00\x01garbage").await;
    pod.ask(&[0xff; 400]).await;
    let mut two = mk_query(5, "shop.allowed", A);
    two[5] = 2;
    pod.ask(&two).await;
    let reply = pod.reply().await;
    assert_eq!((id_of(&reply), rcode_of(&reply)), (5, FORMERR));
    pod.assert_nothing_came().await;
    assert!(stage.resolver.asked.try_recv().is_err(), "nothing was asked");
    assert!(stranger.0.try_recv(&mut [0; 10]).is_err());
    assert_eq!(
        stage.counts(),
        [
            ("messages-udp", 5),
            ("verdict-denied", 1),
            ("dropped-short", 1),
            ("dropped-response", 1),
            ("dropped-unknown-client", 1),
            ("rejected-malformed", 1),
        ]
    );
}

#[tokio::test]
async fn pipelined_queries_are_answered_as_they_end() {
    let mut stage = Script::default().start().await;
    let mut pod = stage.tcp().await;
    let mut burst = Vec::new();
    for id in 0..20 {
        burst.extend_from_slice(&framed(&mk_query(id, &format!("n{id}.allowed"), A)));
    }
    tokio::io::AsyncWriteExt::write_all(&mut pod.0, &burst).await.unwrap();
    let mut asked = Vec::new();
    for _ in 0..20 {
        asked.push(stage.resolver.next().await);
    }
    for asked in asked.iter().rev() {
        asked.answer(mk_answer(&asked.message, &[])).await;
    }
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(id_of(&pod.reply().await));
    }
    assert_ne!(ids[0], 0, "the first asked is the last answered");
    ids.sort_unstable();
    assert_eq!(ids, (0..20).collect::<Vec<u16>>());
}

#[tokio::test]
async fn no_more_is_read_of_a_connection_than_its_pipeline_holds() {
    let mut stage =
        Script { limits: Limits { pipelined: 2, ..Limits::default() }, ..Script::default() }
            .start()
            .await;
    let mut pod = stage.tcp().await;
    for id in 0..3 {
        pod.ask(&mk_query(id, &format!("n{id}.allowed"), A)).await;
    }
    let first = stage.resolver.next().await;
    let _second = stage.resolver.next().await;
    assert!(stage.resolver.asked.try_recv().is_err());
    first.answer(mk_answer(&first.message, &[])).await;
    pod.reply().await;
    stage.resolver.next().await;
}

#[tokio::test]
async fn idle_and_surplus_connections_are_closed() {
    let stage = Script {
        limits: Limits { client_connections: 1, ..Limits::default() },
        timeouts: Timeouts { tcp_idle: Duration::from_millis(300), ..Timeouts::default() },
        ..Script::default()
    }
    .start()
    .await;
    let mut first = stage.tcp().await;
    first.ask(&mk_query(1, "some.name", A)).await;
    first.reply().await;
    stage.tcp().await.closed().await;
    assert!(stage.counts().contains(&("connections-refused", 1)));
    // Half a message keeps no connection open.
    tokio::io::AsyncWriteExt::write_all(&mut first.0, &[0]).await.unwrap();
    first.closed().await;
}

#[tokio::test]
async fn client_over_its_bound_is_dropped_and_another_is_served() {
    let mut stage =
        Script { limits: Limits { client_in_flight: 1, ..Limits::default() }, ..Script::default() }
            .start()
            .await;
    let other: IpAddr = Ipv4Addr::new(127, 0, 0, 3).into();
    stage.endpoints.set(other, "quiet", std::sync::Arc::new(Rules));
    let (greedy, quiet) = (stage.pod().await, stage.pod_at(other).await);
    greedy.ask(&mk_query(1, "one.allowed", A)).await;
    let first = stage.resolver.next().await;
    greedy.ask(&mk_query(2, "two.allowed", A)).await;
    quiet.ask(&mk_query(3, "three.allowed", A)).await;
    answer_next(&mut stage, "three.allowed").await;
    assert_eq!(id_of(&quiet.reply().await), 3);
    assert!(stage.counts().contains(&("dropped-client-in-flight", 1)));
    first.answer(mk_answer(&first.message, &[])).await;
    assert_eq!(id_of(&greedy.reply().await), 1);
}

#[tokio::test]
async fn vanished_endpoint_is_a_stranger() {
    let stage = Script::default().start().await;
    stage.endpoints.remove(POD);
    stage.tcp().await.closed().await;
    assert_eq!(stage.counts(), [("dropped-unknown-client", 1)]);
}

#[tokio::test]
async fn port_in_use_is_an_error_that_names_it() {
    let stage = Script::default().start().await;
    let error = stage.proxy.add_resolver(stage.slot(1)).await.unwrap_err();
    assert!(matches!(error, StartError::AddressInUse { address, .. } if address == stage.listen));
    assert!(error.to_string().contains(&stage.listen.to_string()));
    let error = stage.proxy.add_resolver(stage.slot(0)).await.unwrap_err();
    assert!(matches!(error, StartError::SlotTaken { slot: 0 }));
    let missing = ResolverSlot { listen: vec!["192.0.2.1:53".parse().unwrap()], ..stage.slot(1) };
    let error = stage.proxy.add_resolver(missing).await.unwrap_err();
    assert!(matches!(error, StartError::AddressMissing { .. }));
}

#[tokio::test]
async fn removed_resolver_frees_its_port() {
    let stage = Script::default().start().await;
    assert!(stage.proxy.remove_resolver(0).await);
    assert!(!stage.proxy.remove_resolver(0).await);
    stage.proxy.add_resolver(stage.slot(0)).await.unwrap();
}

#[tokio::test]
async fn shutdown_lets_queries_under_way_end() {
    let mut stage = Script::default().start().await;
    let pod = stage.pod().await;
    pod.ask(&mk_query(1, "shop.allowed", A)).await;
    let asked = stage.resolver.next().await;
    let shutdown = tokio::spawn(stage.proxy.shutdown());
    asked.answer(mk_answer(&asked.message, &[a("shop.allowed", 60, 1)])).await;
    assert_eq!(id_of(&pod.reply().await), 1);
    soon(shutdown).await.unwrap();
}

/// Queries that need no resolver have nothing under way to be waited for.
#[tokio::test]
async fn shutdown_answers_queries_that_wait_for_their_turn() {
    const QUERIES: u16 = 150;
    let stage = Script::default().start().await;
    let pod = stage.pod().await;
    for number in 0..QUERIES {
        pod.ask(&mk_query(number, &format!("n{number}.refused"), A)).await;
    }
    let shutdown = tokio::spawn(stage.proxy.shutdown());
    for number in 0..QUERIES {
        assert_eq!(id_of(&pod.reply().await), number);
    }
    soon(shutdown).await.unwrap();
}
