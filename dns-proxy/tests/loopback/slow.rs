//! Pods that are slow on purpose over TCP: what they hold is bounded, and nobody else waits.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use namegate_dns_proxy::{Limits, Timeouts};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;

use crate::scripted::*;

const QUIET: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));

fn counted(stage: &Stage, label: &str) -> u64 {
    stage.counts().iter().find(|(known, _)| *known == label).map_or(0, |(_, count)| *count)
}

/// A connection of `source` with little room for what comes back.
async fn narrow(stage: &Stage, source: IpAddr) -> TcpPod {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    socket.bind((source, 0).into()).unwrap();
    TcpPod(soon(socket.connect(stage.listen)).await.unwrap())
}

/// An answer of nearly the size that a message can have.
fn mk_large(query: &[u8], name: &str) -> Vec<u8> {
    let records: Vec<Record<'_>> =
        (0..60).map(|_| (name, 16, 600, [&[255][..], &[b'x'; 255]].concat().repeat(4))).collect();
    mk_answer(query, &records)
}

#[tokio::test]
async fn pod_that_takes_no_answers_is_cut_off_and_nobody_waits_for_it() {
    let mut stage = Script {
        limits: Limits { pipelined: 8, client_in_flight: 8, ..Limits::default() },
        timeouts: Timeouts { tcp_write: Duration::from_millis(300), ..Timeouts::default() },
        ..Script::default()
    }
    .start()
    .await;
    stage.endpoints.set(QUIET, "web", Arc::new(Rules));
    // Asked twice, it is in the cache.
    let mut first = stage.tcp().await;
    for id in 0..2 {
        first.ask(&mk_query(id, "large.allowed", 16)).await;
        let asked = stage.resolver.next().await;
        asked.answer(mk_large(&asked.message, "large.allowed")).await;
        assert!(first.reply().await.len() > 60_000);
    }
    let mut deaf = narrow(&stage, POD).await;
    let flood: Vec<u8> =
        (0..400).flat_map(|id| framed(&mk_query(id, "large.allowed", 16))).collect();
    deaf.0.write_all(&flood).await.unwrap();
    let mut quiet = narrow(&stage, QUIET).await;
    quiet.ask(&mk_query(7, "quiet.allowed", A)).await;
    let asked = stage.resolver.next().await;
    asked.answer(mk_answer(&asked.message, &[a("quiet.allowed", 60, 1)])).await;
    assert_eq!(id_of(&quiet.reply().await), 7);
    soon(async {
        while counted(&stage, "connections-closed") == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(counted(&stage, "cache-hits") < 400, "what it does not take is not worked on");
    // What the deaf pod had under way is over, and it may ask again.
    let pod = stage.pod().await;
    pod.ask(&mk_query(9, "again.allowed", A)).await;
    let asked = stage.resolver.next().await;
    asked.answer(mk_answer(&asked.message, &[a("again.allowed", 60, 1)])).await;
    assert_eq!(id_of(&pod.reply().await), 9);
}

#[tokio::test]
async fn pod_that_sends_octet_by_octet_is_cut_off() {
    let stage = Script {
        timeouts: Timeouts { tcp_idle: Duration::from_millis(200), ..Timeouts::default() },
        ..Script::default()
    }
    .start()
    .await;
    let mut pod = stage.tcp().await;
    pod.0.write_all(&u16::MAX.to_be_bytes()).await.unwrap();
    let mut pace = tokio::time::interval(Duration::from_millis(5));
    let sent = soon(async {
        let mut sent = 0;
        while pod.0.write_all(b"x").await.is_ok() {
            sent += 1;
            pace.tick().await;
        }
        sent
    })
    .await;
    assert!(sent < usize::from(u16::MAX), "cut off in the middle of the message");
    assert_eq!(counted(&stage, "connections-closed"), 1);
}

#[tokio::test]
async fn connections_that_say_nothing_are_bounded_for_each_pod() {
    let stage = Script {
        limits: Limits { client_connections: 4, ..Limits::default() },
        ..Script::default()
    }
    .start()
    .await;
    stage.endpoints.set(QUIET, "web", Arc::new(Rules));
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(narrow(&stage, POD).await);
    }
    let mut quiet = narrow(&stage, QUIET).await;
    quiet.ask(&mk_query(7, "some.name", A)).await;
    assert_eq!(id_of(&quiet.reply().await), 7);
    assert_eq!(counted(&stage, "connections-refused"), 36);
    for surplus in silent.split_off(4) {
        surplus.closed().await;
    }
    let mut kept = silent.pop().unwrap();
    kept.ask(&mk_query(8, "some.name", A)).await;
    assert_eq!(id_of(&kept.reply().await), 8, "those within the bound are served");
}
