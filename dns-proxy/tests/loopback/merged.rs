//! Equal questions of many pods, whichever workers their sockets fall to.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use namegate_dns_proxy::Timeouts;
use namegate_dns_proxy::clients::NameRules;
use namegate_dns_proxy::learner::Learned;
use namegate_dns_proxy::record::{DnsFailure, DnsVerdict};
use namegate_policy::dns::NameDecision;
use namegate_policy::name::DnsName;

use crate::scripted::*;

/// Among four workers: that all of their sockets fall to one of them never happens.
const PODS: u8 = 32;

fn mk_script() -> Script {
    let timeouts = Timeouts { attempt: Duration::from_secs(60), ..Timeouts::default() };
    Script { workers: NonZeroUsize::new(4).unwrap(), timeouts, ..Script::default() }
}

/// Pods with an address and a name each.
async fn mk_pods(stage: &Stage) -> Vec<Pod> {
    let mut pods = Vec::new();
    for number in 0..PODS {
        let address = IpAddr::from(Ipv4Addr::new(127, 0, 1, number));
        stage.endpoints.set(address, &format!("pod-{number}"), Arc::new(Rules));
        pods.push(stage.pod_at(address).await);
    }
    pods
}

/// Every pod asks `query`, each under an id of its own.
async fn ask_all(pods: &[Pod], query: &[u8]) {
    for (id, pod) in (0u16..).zip(pods) {
        let mut query = query.to_vec();
        query[..2].copy_from_slice(&id.to_be_bytes());
        pod.ask(&query).await;
    }
}

/// Waits until all but `queries` of what was asked has joined another's.
async fn all_merged(stage: &Stage, asked: usize, queries: usize) {
    let expected = (asked - queries) as u64;
    let merged = || stage.counts().into_iter().find(|(label, _)| *label == "upstream-merged");
    soon(async {
        while merged().is_none_or(|(_, count)| count < expected) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(merged().map(|(_, count)| count), Some(expected));
}

#[tokio::test]
async fn one_question_of_pods_on_all_workers_is_asked_once_and_learned_for_each_of_them() {
    let mut stage = Script { learned: None, ..mk_script() }.start().await;
    let pods = mk_pods(&stage).await;
    ask_all(&pods, &mk_query(0, "shop.allowed", A)).await;
    let asked = stage.resolver.next().await;
    all_merged(&stage, pods.len(), 1).await;
    asked.answer(mk_answer(&asked.message, &[a("shop.allowed", 0, 1)])).await;

    let mut held = Vec::new();
    for _ in &pods {
        held.push(stage.lesson().await);
    }
    let learners: BTreeSet<String> =
        held.iter().map(|held| held.lesson.client.endpoint.pod.to_string()).collect();
    assert_eq!(learners.len(), pods.len(), "each identity by itself");
    for pod in &pods {
        pod.assert_nothing_came().await;
    }
    for held in held {
        held.end(Ok(Learned::default()));
    }
    for (id, pod) in (0..).zip(&pods) {
        let reply = pod.reply().await;
        assert_eq!((id_of(&reply), rcode_of(&reply)), (id, NOERROR));
    }
    assert!(stage.resolver.asked.try_recv().is_err(), "one query only");

    // What ended leads nobody.
    pods[0].ask(&mk_query(99, "shop.allowed", A)).await;
    stage.resolver.next().await;
}

#[tokio::test]
async fn answer_cut_short_is_asked_for_once_over_tcp() {
    let mut stage = mk_script().start().await;
    let pods = mk_pods(&stage).await;
    ask_all(&pods, &mk_query(0, "shop.allowed", A)).await;
    let asked = stage.resolver.next().await;
    all_merged(&stage, pods.len(), 1).await;
    let mut cut = mk_answer(&asked.message, &[]);
    cut[2] |= 2;
    asked.answer(cut).await;
    let whole = stage.resolver.next().await;
    assert_eq!(whole.transport, "tcp");
    whole.answer(mk_answer(&whole.message, &[a("shop.allowed", 60, 1)])).await;
    for (id, pod) in (0..).zip(&pods) {
        let reply = pod.reply().await;
        assert_eq!((id_of(&reply), rcode_of(&reply)), (id, NOERROR));
    }
    assert!(stage.resolver.asked.try_recv().is_err(), "one query only");
}

#[tokio::test]
async fn query_without_an_answer_fails_for_all_who_joined_it() {
    let timeouts =
        Timeouts { attempt: Duration::from_millis(200), attempts: 1, ..Timeouts::default() };
    let mut stage = Script { timeouts, ..mk_script() }.start().await;
    let pods = mk_pods(&stage).await;
    ask_all(&pods, &mk_query(0, "shop.allowed", A)).await;
    for (id, pod) in (0..).zip(&pods) {
        let reply = pod.reply().await;
        assert_eq!((id_of(&reply), rcode_of(&reply)), (id, SERVFAIL));
        let record = stage.record().await;
        assert_eq!(record.verdict, DnsVerdict::Error);
        assert_eq!(record.failure, Some(DnsFailure::UpstreamTimeout));
    }
}

#[tokio::test]
async fn questions_whose_answers_may_differ_are_shared_by_no_workers() {
    let mut stage = mk_script().start().await;
    let pods = mk_pods(&stage).await;
    let plain = mk_query(0, "shop.allowed", A);
    let mut unchecked = plain.clone();
    unchecked[3] |= 0x10;
    let edns = mk_query_with_edns(0, "shop.allowed", A, 1232);
    let mut signed = edns.clone();
    let flags = signed.len() - 4;
    signed[flags] |= 0x80;
    let all = [plain, unchecked, edns, signed, mk_query(0, "shop.allowed", AAAA)];
    for query in &all {
        ask_all(&pods, query).await;
    }
    all_merged(&stage, pods.len() * all.len(), all.len()).await;
    let mut reached = BTreeSet::new();
    for _ in &all {
        reached.insert(stage.resolver.next().await.message[2..].to_vec());
    }
    assert_eq!(reached.len(), all.len(), "each once");
    assert!(stage.resolver.asked.try_recv().is_err());
}

#[tokio::test]
async fn pod_that_lost_its_right_meanwhile_is_refused_what_others_get() {
    let mut stage = mk_script().start().await;
    let pods = mk_pods(&stage).await;
    ask_all(&pods, &mk_query(0, "shop.allowed", A)).await;
    let asked = stage.resolver.next().await;
    all_merged(&stage, pods.len(), 1).await;
    let refused = IpAddr::from(Ipv4Addr::new(127, 0, 1, 5));
    stage.endpoints.set(refused, "pod-5", Arc::new(Nothing));
    asked.answer(mk_answer(&asked.message, &[a("shop.allowed", 60, 1)])).await;
    for (id, pod) in (0..).zip(&pods) {
        let reply = pod.reply().await;
        let expected = if id == 5 { REFUSED } else { NOERROR };
        assert_eq!((id_of(&reply), rcode_of(&reply)), (id, expected));
    }
}

/// Rules that end the worker that lets go of them last.
#[derive(Debug)]
struct Explosive;

impl NameRules for Explosive {
    fn decide(&self, name: &DnsName) -> NameDecision {
        Rules.decide(name)
    }

    fn is_wildcard_alone(&self, name: &DnsName) -> bool {
        Rules.is_wildcard_alone(name)
    }
}

impl Drop for Explosive {
    fn drop(&mut self) {
        let thread = std::thread::current();
        let is_worker = thread.name().is_some_and(|name| name.starts_with("dns-udp"));
        assert!(!is_worker || std::thread::panicking(), "the rules of a test");
    }
}

#[tokio::test]
async fn worker_that_dies_leaves_nobody_without_an_answer() {
    let mut stage = Script { workers: NonZeroUsize::new(2).unwrap(), ..mk_script() }.start().await;
    let pods = mk_pods(&stage).await;
    ask_all(&pods, &mk_query(0, "shop.allowed", A)).await;
    stage.resolver.next().await;
    all_merged(&stage, pods.len(), 1).await;
    // Some of these are on either worker.
    let mut explosive = Vec::new();
    for number in 0..PODS {
        let address = IpAddr::from(Ipv4Addr::new(127, 0, 2, number));
        stage.endpoints.set(address, "explosive", Arc::new(Explosive));
        let pod = stage.pod_at(address).await;
        pod.ask(&mk_query(0, &format!("n{number}.allowed"), A)).await;
        explosive.push(stage.resolver.next().await);
        stage.endpoints.remove(address);
    }
    for (number, asked) in (0..PODS).zip(explosive) {
        asked.answer(mk_answer(&asked.message, &[a(&format!("n{number}.allowed"), 60, 1)])).await;
    }
    for (id, pod) in (0..).zip(&pods) {
        let reply = pod.reply().await;
        assert_eq!((id_of(&reply), rcode_of(&reply)), (id, SERVFAIL));
    }
}
