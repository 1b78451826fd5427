//! Several threads that serve UDP on one port, each with sockets of its own.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use namegate_dns_proxy::clients::NameRules;
use namegate_dns_proxy::{Limits, Timeouts};
use namegate_policy::dns::NameDecision;
use namegate_policy::name::DnsName;

use crate::scripted::*;

const WORKERS: usize = 4;
/// So many that hardly ever a worker has none: once in a hundred million times.
const SOCKETS: usize = 80;
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));

/// The rules, and which threads asked them.
#[derive(Debug, Default)]
struct Asking(Mutex<BTreeSet<String>>);

impl NameRules for Asking {
    fn decide(&self, name: &DnsName) -> NameDecision {
        let thread = std::thread::current().name().unwrap().to_owned();
        self.0.lock().unwrap().insert(thread);
        Rules.decide(name)
    }

    fn is_wildcard_alone(&self, name: &DnsName) -> bool {
        Rules.is_wildcard_alone(name)
    }
}

fn script() -> Script {
    Script { workers: NonZeroUsize::new(WORKERS).unwrap(), ..Script::default() }
}

/// Sockets of one pod, each with a query of its own on its way.
async fn ask_all(stage: &Stage, address: IpAddr, label: &str) -> Vec<Pod> {
    let mut pods = Vec::new();
    for number in 0..SOCKETS {
        let pod = stage.pod_at(address).await;
        let id = u16::try_from(number).unwrap();
        pod.ask(&mk_query(id, &format!("n{number}.{label}.allowed"), A)).await;
        pods.push(pod);
    }
    pods
}

/// Every socket has the answer to what it asked, and nothing else.
async fn assert_answered(pods: &[Pod]) {
    for (number, pod) in pods.iter().enumerate() {
        let reply = pod.reply().await;
        assert_eq!((usize::from(id_of(&reply)), rcode_of(&reply)), (number, NOERROR));
        assert!(pod.0.try_recv(&mut [0; 10]).is_err(), "one answer");
    }
}

#[tokio::test]
async fn every_worker_serves_and_every_socket_gets_its_own_answer() {
    let mut stage = script().start().await;
    let asking = Arc::new(Asking::default());
    stage.endpoints.set(POD, "checkout", Arc::clone(&asking) as Arc<dyn NameRules>);
    stage.endpoints.set(OTHER, "web", Arc::clone(&asking) as Arc<dyn NameRules>);
    let one = ask_all(&stage, POD, "one").await;
    let other = ask_all(&stage, OTHER, "other").await;
    for _ in 0..2 * SOCKETS {
        let asked = stage.resolver.next().await;
        asked.answer(mk_answer(&asked.message, &[])).await;
    }
    assert_answered(&one).await;
    assert_answered(&other).await;
    let served: Vec<String> = asking.0.lock().unwrap().iter().cloned().collect();
    let all: Vec<String> = (0..WORKERS).map(|number| format!("dns-udp-{number}")).collect();
    assert_eq!(served, all);
}

#[tokio::test]
async fn what_a_pod_may_have_under_way_is_one_bound_for_all_workers() {
    const BOUND: u32 = 8;
    let limits = Limits { client_in_flight: BOUND, ..Limits::default() };
    let mut stage = Script { limits, ..script() }.start().await;
    let _pods = ask_all(&stage, POD, "one").await;
    let over = SOCKETS as u64 - u64::from(BOUND);
    soon(async {
        while stage.count("messages-udp") < SOCKETS as u64
            || stage.count("dropped-client-in-flight") < over
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..BOUND {
        stage.resolver.next().await;
    }
    assert_eq!(stage.count("dropped-client-in-flight"), over);
    assert_eq!(stage.count("cache-misses"), u64::from(BOUND));
    assert!(stage.resolver.asked.try_recv().is_err(), "no more than that left");
}

#[tokio::test]
async fn removed_resolver_frees_its_port_on_every_worker() {
    let mut stage = script().start().await;
    for round in 0..3 {
        let pods = ask_all(&stage, POD, &format!("r{round}")).await;
        for _ in 0..SOCKETS {
            let asked = stage.resolver.next().await;
            asked.answer(mk_answer(&asked.message, &[])).await;
        }
        assert_answered(&pods).await;
        assert!(stage.proxy.remove_resolver(0).await);
        // Alone on it: a worker that held on to the port would have it still.
        drop(std::net::UdpSocket::bind(stage.listen).unwrap());
        stage.proxy.add_resolver(stage.slot(0)).await.unwrap();
    }
}

#[tokio::test]
async fn shutdown_lets_the_queries_of_every_worker_end() {
    let timeouts = Timeouts { drain: PATIENCE, ..Timeouts::default() };
    let mut stage = Script { timeouts, ..script() }.start().await;
    let pods = ask_all(&stage, POD, "last").await;
    let mut asked = Vec::new();
    for _ in 0..SOCKETS {
        asked.push(stage.resolver.next().await);
    }
    let shutdown = tokio::spawn(stage.proxy.shutdown());
    for asked in asked {
        asked.answer(mk_answer(&asked.message, &[])).await;
    }
    assert_answered(&pods).await;
    soon(shutdown).await.unwrap();
}
