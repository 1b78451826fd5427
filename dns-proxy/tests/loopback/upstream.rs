//! How the resolver is asked: what counts as its answer, what a forger has to guess, and what happens
//! while there is none.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use namegate_dns_proxy::learner::Learned;
use namegate_dns_proxy::record::{DnsFailure, DnsVerdict};
use namegate_dns_proxy::{ResolverSlot, Timeouts};
use tokio::net::UdpSocket;

use crate::scripted::*;

const RIGHT: [u8; 4] = [192, 0, 2, 1];

/// Asks for `shop.allowed` and returns the query that reached the resolver.
async fn ask_shop(stage: &mut Stage, pod: &Pod) -> Asked {
    pod.ask(&mk_query(1, "shop.allowed", A)).await;
    stage.resolver.next().await
}

fn right_answer(asked: &Asked) -> Vec<u8> {
    mk_answer(&asked.message, &[a("shop.allowed", 60, 1)])
}

/// The pod has the right address and no other.
async fn assert_right(stage: &mut Stage, pod: &Pod, why: &str) {
    let reply = pod.reply().await;
    assert_eq!((id_of(&reply), rcode_of(&reply)), (1, NOERROR), "{why}");
    let record = stage.record().await;
    let addresses: Vec<IpAddr> = record.addresses.iter().map(|answered| answered.address).collect();
    assert_eq!(addresses, [IpAddr::from(RIGHT)], "{why}");
}

#[tokio::test]
async fn what_answers_nothing_is_ignored_while_the_right_one_is_waited_for() {
    let mut stage = Script::default().start().await;
    let pod = stage.pod().await;
    let asked = ask_shop(&mut stage, &pod).await;
    let right = right_answer(&asked);

    let other_id = id_of(&asked.message) ^ 1;
    let other = mk_answer(&mk_query(other_id, "evil.allowed", A), &[a("evil.allowed", 60, 66)]);
    let mut no_response = right.clone();
    no_response[2] &= 0x7f;
    for wrong in [other, no_response, vec![0; 3], Vec::new()] {
        asked.answer(wrong).await;
    }
    let stranger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let other_host = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).await.unwrap();
    let theirs = mk_answer(&asked.message, &[a("shop.allowed", 60, 66)]);
    for stranger in [stranger, other_host] {
        // The socket is connected: the kernel drops these, or says so to the stranger.
        let _ = stranger.send_to(&theirs, asked.from).await;
    }
    asked.answer(right).await;

    assert_right(&mut stage, &pod, "over UDP").await;
    assert_eq!(stage.count("upstream-unmatched"), 4);
    assert_eq!(stage.count("upstream-tcp"), 0);
}

#[tokio::test]
async fn first_sign_of_a_forger_moves_the_query_to_tcp() {
    type Forge = fn(&mut Vec<u8>);
    let cases: [(&str, Forge); 3] = [
        ("a guessed id", |message| message[0] ^= 1),
        ("another name under the right id", |message| message[13] = b'x'),
        ("another type under the right id", |message| message[12 + 15] = 28),
    ];
    for (why, forge) in cases {
        let mut stage = Script::default().start().await;
        let pod = stage.pod().await;
        let asked = ask_shop(&mut stage, &pod).await;
        let mut forged = mk_answer(&asked.message, &[a("shop.allowed", 60, 66)]);
        let guessed_at_last = forged.clone();
        forge(&mut forged);
        asked.answer(forged).await;
        let again = stage.resolver.next().await;
        assert_eq!(again.transport, "tcp", "{why}");
        assert_eq!(question_of(&again.message), question_of(&asked.message), "{why}");
        asked.answer(guessed_at_last).await;
        again.answer(right_answer(&again)).await;
        assert_right(&mut stage, &pod, why).await;
        assert_eq!(stage.count("upstream-suspected"), 1, "{why}");
    }
}

#[tokio::test]
async fn late_answer_is_no_sign_of_a_forger() {
    let mut stage = Script::default().start().await;
    let pod = stage.pod().await;
    // Several queries share a port sooner or later: late answers to some must not disturb others.
    for number in 0..40 {
        let name = format!("n{number}.allowed");
        pod.ask(&mk_query(number, &name, A)).await;
        let asked = stage.resolver.next().await;
        assert_eq!(asked.transport, "udp");
        for _ in 0..3 {
            asked.answer(mk_answer(&asked.message, &[a(&name, 60, 1)])).await;
        }
        assert_eq!(id_of(&pod.reply().await), number);
    }
    assert_eq!(stage.count("upstream-suspected"), 0);
}

#[tokio::test]
async fn port_under_fire_is_given_up() {
    let mut stage = Script::default().start().await;
    let pod = stage.pod().await;
    let asked = ask_shop(&mut stage, &pod).await;
    for number in 0..8 {
        let noise = mk_query(id_of(&asked.message) ^ (1 << number), "noise.allowed", A);
        asked.answer(mk_answer(&noise, &[])).await;
    }
    let again = stage.resolver.next().await;
    assert_eq!(again.transport, "tcp");
    again.answer(right_answer(&again)).await;
    assert_right(&mut stage, &pod, "over TCP").await;
}

#[tokio::test]
async fn case_of_the_question_is_random_and_has_to_come_back() {
    let mut stage = Script { shuffles_case: true, ..Script::default() }.start().await;
    let pod = stage.pod().await;
    let name = "abcdefghijklmnopqrstuvwxyz.abcdefghijklmnopqrstuvwxyz.allowed";
    let mut spellings = BTreeSet::new();
    for id in 0..4 {
        pod.ask(&mk_query(id, name, A)).await;
        let asked = stage.resolver.next().await;
        spellings.insert(question_of(&asked.message).to_vec());
        asked.answer(mk_answer(&asked.message, &[a(name, 0, 1)])).await;
        assert_eq!(question_of(&pod.reply().await), mk_question(name, A), "the pod's own spelling");
    }
    assert_eq!(spellings.len(), 4, "59 letters");

    pod.ask(&mk_query(9, name, A)).await;
    let asked = stage.resolver.next().await;
    let lower = mk_query(id_of(&asked.message), name, A);
    asked.answer(mk_answer(&lower, &[a(name, 0, 66)])).await;
    let again = stage.resolver.next().await;
    assert_eq!(again.transport, "tcp", "a forger, or a resolver that writes names its own way");
    let lower = mk_query(id_of(&again.message), name, A);
    again.answer(mk_answer(&lower, &[a(name, 0, 1)])).await;
    let reply = pod.reply().await;
    assert_eq!((id_of(&reply), rcode_of(&reply)), (9, NOERROR));
}

#[tokio::test]
async fn equal_questions_share_one_query_and_each_identity_learns_for_itself() {
    let mut stage = Script::held().start().await;
    let other: IpAddr = Ipv4Addr::new(127, 0, 0, 3).into();
    stage.endpoints.set(other, "web", Arc::new(Rules));
    let (one, two) = (stage.pod().await, stage.pod_at(other).await);
    let asked = ask_shop(&mut stage, &one).await;
    two.ask(&mk_query(2, "SHOP.allowed", A)).await;
    // Refused on the same socket: the query before it has been taken in.
    two.assert_nothing_came().await;
    asked.answer(right_answer(&asked)).await;

    let (first, second) = (stage.lesson().await, stage.lesson().await);
    let mut held = HashMap::new();
    for lesson in [first, second] {
        held.insert(lesson.lesson.client.endpoint.pod.to_string(), lesson);
    }
    two.assert_nothing_came().await;
    // Lessons of one turn are one batch of writes: both answers leave when both are learned.
    held.remove("web").unwrap().end(Ok(Learned::default()));
    one.assert_nothing_came().await;
    held.remove("checkout").unwrap().end(Ok(Learned::default()));
    let reply = two.reply().await;
    assert_eq!(id_of(&reply), 2);
    assert_eq!(question_of(&reply), mk_question("SHOP.allowed", A));
    assert_eq!(id_of(&one.reply().await), 1);
    assert!(stage.resolver.asked.try_recv().is_err(), "one query only");
    assert_eq!(stage.count("upstream-merged"), 1);
}

#[tokio::test]
async fn questions_whose_answers_may_differ_share_nothing() {
    let mut stage = Script::default().start().await;
    let pod = stage.pod().await;
    let plain = mk_query(1, "shop.allowed", A);
    let mut unchecked = plain.clone();
    unchecked[3] |= 0x10;
    let mut authentic = plain.clone();
    authentic[3] |= 0x20;
    let mut iterative = plain.clone();
    iterative[2] &= !1;
    let edns = mk_query_with_edns(1, "shop.allowed", A, 1232);
    let mut signed = edns.clone();
    let flags = signed.len() - 4;
    signed[flags] |= 0x80;
    let all =
        [plain, unchecked, authentic, iterative, edns, signed, mk_query(1, "shop.allowed", AAAA)];
    for query in &all {
        pod.ask(query).await;
    }
    let mut reached = BTreeSet::new();
    for _ in &all {
        let asked = stage.resolver.next().await;
        reached.insert(asked.message[2..].to_vec());
    }
    assert_eq!(reached.len(), all.len());
}

/// A proxy with one more resolver that answers the same.
async fn start_pair(timeouts: Timeouts) -> (Stage, Resolver) {
    let other = Resolver::start(POD).await;
    let alternatives = vec![other.address];
    (Script { alternatives, timeouts, ..Script::default() }.start().await, other)
}

fn patient() -> Timeouts {
    Timeouts { attempt: Duration::from_secs(60), attempts: 2, ..Timeouts::default() }
}

#[tokio::test]
async fn alternative_is_asked_beside_one_that_takes_long_and_the_first_answer_counts() {
    let (mut stage, mut other) = start_pair(patient()).await;
    let pod = stage.pod().await;
    let slow = ask_shop(&mut stage, &pod).await;
    let hedge = other.next().await;
    assert_eq!(question_of(&hedge.message), question_of(&slow.message));
    assert_ne!((hedge.from, id_of(&hedge.message)), (slow.from, id_of(&slow.message)));
    hedge.answer(right_answer(&hedge)).await;
    assert_right(&mut stage, &pod, "of the alternative").await;
    slow.answer(mk_answer(&slow.message, &[a("shop.allowed", 60, 66)])).await;
    pod.assert_nothing_came().await;
    assert_eq!(stage.count("upstream-hedged"), 1);
    assert_eq!(stage.count("upstream-suspected"), 0);
}

#[tokio::test]
async fn failure_of_one_resolver_is_not_the_pods() {
    let (mut stage, mut other) = start_pair(patient()).await;
    let pod = stage.pod().await;
    let mut asked = ask_shop(&mut stage, &pod).await;
    let mut failed = mk_answer(&asked.message, &[]);
    failed[3] |= SERVFAIL;
    asked.answer(failed).await;
    asked = other.next().await;
    asked.answer(right_answer(&asked)).await;
    assert_right(&mut stage, &pod, "of the alternative").await;
    assert_eq!(stage.count("upstream-failovers"), 1);
}

#[tokio::test]
async fn failure_of_all_resolvers_is_passed_on() {
    let (mut stage, mut other) = start_pair(patient()).await;
    let pod = stage.pod().await;
    for asked in [ask_shop(&mut stage, &pod).await, other.next().await] {
        let mut failed = mk_answer(&asked.message, &[]);
        failed[3] |= SERVFAIL;
        asked.answer(failed).await;
    }
    assert_eq!(rcode_of(&pod.reply().await), SERVFAIL);
    assert_eq!(stage.record().await.verdict, DnsVerdict::Allowed, "an answer like any other");
}

#[tokio::test]
async fn resolver_that_is_away_is_passed_over_until_it_is_back() {
    let timeouts =
        Timeouts { attempt: Duration::from_millis(40), attempts: 3, ..Timeouts::default() };
    let (mut stage, mut other) = start_pair(timeouts).await;
    let pod = stage.pod().await;
    for id in 0..8 {
        let name = format!("n{id}.allowed");
        pod.ask(&mk_query(id, &name, A)).await;
        let asked = other.next().await;
        asked.answer(mk_answer(&asked.message, &[a(&name, 60, 1)])).await;
        assert_eq!(id_of(&pod.reply().await), id);
    }
    let mut silent = 0;
    while stage.resolver.asked.try_recv().is_ok() {
        silent += 1;
    }
    assert!(silent < 8, "{silent} of 8 queries went to the one that is away first");
    // It is probed again and again, and one answer brings it back.
    for id in 100.. {
        let name = format!("n{id}.allowed");
        pod.ask(&mk_query(id, &name, A)).await;
        tokio::select! {
            asked = stage.resolver.next() => {
                asked.answer(mk_answer(&asked.message, &[a(&name, 60, 1)])).await;
                pod.reply().await;
                break;
            }
            asked = other.next() => {
                asked.answer(mk_answer(&asked.message, &[a(&name, 60, 1)])).await;
                pod.reply().await;
            }
        }
    }
}

#[tokio::test]
async fn tcp_goes_to_the_alternative_where_nobody_listens() {
    let mut other = Resolver::start(POD).await;
    let mut stage = Script::default().start().await;
    let nobody = {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.local_addr().unwrap()
    };
    let slot = ResolverSlot {
        slot: 1,
        resolver: nobody,
        alternatives: vec![other.address],
        listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
    };
    stage.proxy.add_resolver(slot).await.unwrap();
    stage.listen = stage.proxy.listening(1).await[0];
    let mut tcp = stage.tcp().await;
    tcp.ask(&mk_query(1, "shop.allowed", A)).await;
    let asked = other.next().await;
    assert_eq!(asked.transport, "tcp");
    asked.answer(right_answer(&asked)).await;
    assert_eq!(rcode_of(&tcp.reply().await), NOERROR);
    let pod = stage.pod().await;
    pod.ask(&mk_query(1, "next.allowed", A)).await;
    let asked = other.next().await;
    assert_eq!(asked.transport, "udp");
    asked.answer(mk_answer(&asked.message, &[])).await;
    assert_eq!(rcode_of(&pod.reply().await), NOERROR);
}

#[tokio::test]
async fn connections_to_the_resolver_are_reused_and_pipelined() {
    let mut stage = Script::default().start().await;
    let mut pod = stage.tcp().await;
    for id in 0..3 {
        pod.ask(&mk_query(id, &format!("n{id}.allowed"), A)).await;
    }
    let mut asked = Vec::new();
    for _ in 0..3 {
        asked.push(stage.resolver.next().await);
    }
    let froms: BTreeSet<SocketAddr> = asked.iter().map(|asked| asked.from).collect();
    assert_eq!(froms.len(), 1, "one connection");
    for asked in asked.iter().rev() {
        asked.answer(mk_answer(&asked.message, &[])).await;
    }
    for _ in 0..3 {
        pod.reply().await;
    }
    pod.ask(&mk_query(9, "later.allowed", A)).await;
    let later = stage.resolver.next().await;
    assert!(froms.contains(&later.from), "and the same one later");
}

#[tokio::test]
async fn truncated_answer_is_asked_for_again_over_tcp() {
    let mut stage = Script::default().start().await;
    let pod = stage.pod().await;
    pod.ask(&mk_query_with_edns(1, "big.allowed", A, 1232)).await;
    let asked = stage.resolver.next().await;
    let mut cut = mk_answer(&asked.message, &[a("big.allowed", 60, 66)]);
    cut[2] |= 2;
    asked.answer(cut).await;
    let again = stage.resolver.next().await;
    assert_eq!(again.transport, "tcp");
    assert_eq!(question_of(&again.message), question_of(&asked.message));
    let records: Vec<_> = (0..20).map(|last| a("big.allowed", 60, last)).collect();
    again.answer(mk_answer(&again.message, &records)).await;

    let reply = pod.reply().await;
    assert!(!is_truncated(&reply));
    assert_eq!(ttls_of(&reply).len(), 20);
    assert_eq!(stage.record().await.addresses.len(), 20);
}

#[tokio::test]
async fn silent_resolver_means_a_second_attempt_and_then_servfail() {
    let mut stage = Script {
        timeouts: Timeouts {
            attempt: Duration::from_millis(40),
            attempts: 2,
            ..Timeouts::default()
        },
        ..Script::default()
    }
    .start()
    .await;
    let pod = stage.pod().await;
    pod.ask(&mk_query(1, "slow.allowed", A)).await;
    let first = stage.resolver.next().await;
    let second = stage.resolver.next().await;
    assert_ne!(id_of(&first.message), id_of(&second.message));
    let reply = pod.reply().await;
    assert_eq!((id_of(&reply), rcode_of(&reply)), (1, SERVFAIL));
    let record = stage.record().await;
    assert_eq!(record.verdict, DnsVerdict::Error);
    assert_eq!(record.failure, Some(DnsFailure::UpstreamTimeout));
}

#[tokio::test]
async fn answer_to_an_earlier_attempt_still_counts() {
    let mut stage = Script {
        timeouts: Timeouts {
            attempt: Duration::from_millis(300),
            attempts: 20,
            ..Timeouts::default()
        },
        ..Script::default()
    }
    .start()
    .await;
    let pod = stage.pod().await;
    pod.ask(&mk_query(1, "slow.allowed", A)).await;
    let first = stage.resolver.next().await;
    let _second = stage.resolver.next().await;
    first.answer(mk_answer(&first.message, &[a("slow.allowed", 60, 1)])).await;
    assert_eq!(rcode_of(&pod.reply().await), NOERROR);
}

#[tokio::test]
async fn unreachable_resolver_means_servfail_over_both_transports() {
    let mut stage = Script::default().start().await;
    let nobody = {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.local_addr().unwrap()
    };
    let slot = ResolverSlot {
        slot: 1,
        resolver: nobody,
        alternatives: Vec::new(),
        listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
    };
    stage.proxy.add_resolver(slot).await.unwrap();
    stage.listen = stage.proxy.listening(1).await[0];
    let pod = stage.pod().await;
    pod.ask(&mk_query(1, "shop.allowed", A)).await;
    assert_eq!(rcode_of(&pod.reply().await), SERVFAIL);
    let failure = stage.record().await.failure;
    assert_eq!(failure, Some(DnsFailure::UpstreamUnreachable));

    let mut pod = stage.tcp().await;
    pod.ask(&mk_query(2, "shop.allowed", A)).await;
    assert_eq!(rcode_of(&pod.reply().await), SERVFAIL);
    let failure = stage.record().await.failure;
    assert_eq!(failure, Some(DnsFailure::UpstreamUnreachable));
}

/// Bits of entropy that as many draws with so many equal pairs among them speak for (Rényi's, which
/// no more than doubles the least), less what chance can account for.
fn bits(draws: usize, equal_pairs: usize) -> f64 {
    let pairs = (draws * (draws - 1) / 2) as f64;
    let most = equal_pairs as f64 + 3.0 * (equal_pairs as f64).sqrt() + 3.0;
    (pairs / most).log2()
}

fn equal_pairs<T: Ord>(values: impl IntoIterator<Item = T>) -> usize {
    let mut counts = std::collections::BTreeMap::<T, usize>::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    counts.values().map(|count| count * (count - 1) / 2).sum()
}

#[tokio::test]
async fn port_and_id_have_28_bits_that_a_forger_must_guess() {
    let mut stage = Script::default().start().await;
    let pod = stage.pod().await;
    let mut ids = Vec::new();
    for batch in 0..250u16 {
        let names: Vec<String> = (0..64).map(|n| format!("n{n}.b{batch}.allowed")).collect();
        for name in &names {
            pod.ask(&mk_query(batch, name, A)).await;
        }
        for _ in &names {
            let asked = stage.resolver.next().await;
            asked.answer(mk_answer(&asked.message, &[])).await;
            ids.push((asked.from.port(), id_of(&asked.message)));
        }
        for _ in &names {
            pod.reply().await;
        }
    }
    // A port serves a few queries close to each other: what counts is how often it is drawn anew.
    let mut last_seen = HashMap::<u16, usize>::new();
    let (mut draws, mut drawn_again) = (0, 0);
    for (place, (port, _)) in ids.iter().enumerate() {
        match last_seen.insert(*port, place) {
            None => draws += 1,
            Some(last) if place - last > 512 => {
                draws += 1;
                drawn_again += 1;
            }
            Some(_) => {}
        }
    }
    let port_bits = bits(draws, drawn_again);
    let id_bits = bits(ids.len(), equal_pairs(ids.iter().map(|(_, id)| *id)));
    let both_bits = bits(ids.len(), equal_pairs(ids.iter().copied()));
    println!(
        "{} queries, {draws} ports: {port_bits:.1} bits of port, {id_bits:.1} of id, {both_bits:.1} of the pair at least",
        ids.len()
    );
    assert!(id_bits > 15.0, "{id_bits} bits of id");
    assert!(port_bits + id_bits >= 28.0, "{port_bits} bits of port and {id_bits} of id");
    assert!(draws >= ids.len() / 32, "{draws} ports for {} queries", ids.len());
    // What leaves at once leaves sorted by port; the draw shows in how many ports share it.
    for turn in ids.chunks(64) {
        let ports: BTreeSet<u16> = turn.iter().map(|(port, _)| *port).collect();
        assert!(ports.len() >= 4, "64 queries left from {} ports", ports.len());
    }
    let steps = ids.windows(2).filter(|pair| pair[1].1.wrapping_sub(pair[0].1) <= 16).count();
    assert!(steps < 40, "ids do not count up");
}
