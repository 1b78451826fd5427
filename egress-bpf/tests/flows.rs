//! Flows over time: what opens them, what keeps them, what ends them.

mod pod;

use namegate_egress_bpf::abi::{
    DropReason, EventVerdict, FLOW_CLOSING, FLOW_ESTABLISHED, FLOW_REVOKED, Pass,
};
use namegate_egress_bpf::packet::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};
use namegate_egress_bpf::sim::frame;
use namegate_egress_bpf::verdict::Verdict;
use namegate_policy::table::{ClauseAction, ClauseTier};
use pod::{
    ELSEWHERE, MAC, NODE, OTHER_MAC, POD, Pod, SITE, allows, allows_names, any_peer, clause, drop,
    ip, isolated, open,
};

const KNOWN: Verdict = Verdict::Forward(Pass::Known);
const JUDGED: Verdict = Verdict::Forward(Pass::Judged);

/// A TCP segment from the pod to port 443 of a site.
fn out(site: &str, flags: u8) -> Vec<u8> {
    frame::ip(MAC, (ip(POD), ip(site)), 6, &frame::tcp(40_000, 443, flags))
}

/// A TCP segment back.
fn back(site: &str, flags: u8) -> Vec<u8> {
    frame::ip(OTHER_MAC, (ip(site), ip(POD)), 6, &frame::tcp(443, 40_000, flags))
}

fn mk_connected(mut pod: Pod, site: &str) -> Pod {
    assert_eq!(pod.sends(&out(site, TCP_SYN)), JUDGED);
    assert_eq!(pod.gets(&back(site, TCP_SYN | TCP_ACK)), KNOWN);
    assert_eq!(pod.sends(&out(site, TCP_ACK)), KNOWN);
    pod
}

fn mk_isolated() -> Pod {
    Pod::new(vec![allows("203.0.113.10/32", 443), isolated()], vec![isolated()])
}

#[test]
fn a_reply_passes_because_its_request_did() {
    let mut pod = mk_connected(mk_isolated(), SITE);
    assert_eq!(pod.gets(&back(SITE, TCP_ACK)), KNOWN);
    assert_eq!(pod.gets(&back(ELSEWHERE, TCP_ACK)), drop(DropReason::NoFlow));
    assert_eq!(pod.sends(&out(ELSEWHERE, TCP_SYN)), drop(DropReason::Denied));
}

/// Nor does an association of SCTP begin from the side that answers, before it has ended.
#[test]
fn sctp_starts_from_its_opener_alone() {
    const INIT: u8 = 1;
    const INIT_ACK: u8 = 2;
    const ABORT: u8 = 6;
    let chunk = |from, to, kind| [frame::sctp(from, to), vec![kind, 0, 0, 4]].concat();
    let out = |kind| frame::ip(MAC, (ip(POD), ip(SITE)), 132, &chunk(5_000, 443, kind));
    let back = |kind| frame::ip(OTHER_MAC, (ip(SITE), ip(POD)), 132, &chunk(443, 5_000, kind));
    let mut pod = Pod::new(vec![open()], vec![isolated()]);
    assert_eq!(pod.sends(&out(INIT)), JUDGED);
    assert_eq!(pod.gets(&back(INIT)), drop(DropReason::NoFlow), "before an answer");
    assert_eq!(pod.gets(&back(INIT_ACK)), KNOWN);
    assert_eq!(pod.gets(&back(INIT)), drop(DropReason::NoFlow), "from the side that answers");
    assert_eq!(pod.sends(&out(INIT)), JUDGED, "anew");
    assert_eq!(pod.gets(&back(ABORT)), KNOWN);
    assert_eq!(pod.gets(&back(INIT)), drop(DropReason::Denied), "judged, as the first of another");
}

#[test]
fn first_packets_and_drops_are_told_and_later_packets_are_not() {
    let mut pod = mk_connected(mk_isolated(), SITE);
    pod.sends(&out(ELSEWHERE, TCP_SYN));
    let told: Vec<_> = pod.events.iter().map(|event| (event.verdict, event.clause)).collect();
    assert_eq!(
        told,
        [(EventVerdict::Forwarded as u8, 0), (EventVerdict::Dropped as u8, 1)],
        "one record a flow"
    );
    let packets: u64 = pod.sim.counters.values().sum();
    assert_eq!(packets, 4, "every packet is counted");
    let hits: Vec<u64> = pod.sim.hits.values().copied().collect();
    assert_eq!(hits, [1, 1, 0], "rules count flows");
}

#[test]
fn a_flow_cannot_start_with_an_answer() {
    for flags in [TCP_SYN | TCP_ACK, TCP_RST, TCP_RST | TCP_ACK] {
        let mut pod = Pod::open();
        assert_eq!(pod.sends(&out(SITE, flags)), drop(DropReason::NoFlow), "{flags:#x} out");
        assert_eq!(pod.gets(&back(SITE, flags)), drop(DropReason::NoFlow), "{flags:#x} in");
        assert!(pod.sim.flows.is_empty());
    }
}

#[test]
fn a_connection_that_nobody_saw_open_needs_both_directions() {
    let cases = [
        ("open pod", Pod::open(), JUDGED),
        ("egress isolated", Pod::new(vec![isolated()], vec![open()]), drop(DropReason::NoFlow)),
        ("ingress isolated", Pod::new(vec![open()], vec![isolated()]), drop(DropReason::Denied)),
    ];
    for (name, mut pod, expected) in cases {
        assert_eq!(pod.gets(&back(SITE, TCP_ACK)), expected, "{name}");
    }
}

#[test]
fn ch_5_a_connection_that_nobody_saw_open_goes_on_needing_both_directions() {
    let rules = || vec![allows("203.0.113.10/32", 443), isolated()];
    for is_first_from_pod in [true, false] {
        for (name, egress, ingress, lives) in [
            ("both", rules(), vec![open()], true),
            ("egress alone", rules(), vec![isolated()], false),
            ("ingress alone", vec![isolated()], vec![open()], false),
        ] {
            let mut pod = Pod::new(rules(), vec![open()]);
            let first = if is_first_from_pod {
                pod.sends(&out(SITE, TCP_ACK))
            } else {
                pod.gets(&back(SITE, TCP_ACK))
            };
            assert_eq!(first, JUDGED);
            assert_eq!(pod.gets(&back(SITE, TCP_ACK)), KNOWN);
            pod.change_policy(rules(), vec![open()]);
            assert_eq!(pod.gets(&back(SITE, TCP_ACK)), JUDGED, "nothing changed");
            pod.change_policy(egress, ingress);
            let expected = if lives { JUDGED } else { drop(DropReason::Revoked) };
            let found = pod.gets(&back(SITE, TCP_ACK));
            assert_eq!(found, expected, "{name} allowed, pod first {is_first_from_pod}");
        }
    }
}

#[test]
fn a_connection_that_is_seen_to_open_needs_its_own_direction_alone() {
    let mut pod = Pod::new(vec![open()], vec![open()]);
    assert_eq!(pod.gets(&back(SITE, TCP_ACK)), JUDGED, "nobody saw it open");
    assert_eq!(pod.sends(&out(SITE, TCP_FIN | TCP_ACK)), KNOWN);
    let mut pod = mk_connected(pod, SITE);
    pod.change_policy(vec![allows("203.0.113.10/32", 443), isolated()], vec![isolated()]);
    assert_eq!(pod.gets(&back(SITE, TCP_ACK)), JUDGED, "its successor between the same ports");
}

#[test]
fn a_flow_to_a_group_lets_nobody_send_as_that_group() {
    const GROUP: &str = "239.1.1.1";
    let mut pod = Pod::open();
    let to = frame::udp(5_000, 5_001, b"");
    let there = frame::ip(OTHER_MAC, (ip(SITE), ip(GROUP)), 17, &to);
    assert_eq!(pod.gets(&there), JUDGED);
    assert_eq!(pod.gets(&there), KNOWN);
    let back = frame::ip(MAC, (ip(GROUP), ip(SITE)), 17, &frame::udp(5_001, 5_000, b""));
    assert_eq!(pod.sends(&back), drop(DropReason::Spoofed));
}

#[test]
fn a_syn_against_a_live_flow_is_no_reply() {
    let mut pod = mk_connected(mk_isolated(), SITE);
    assert_eq!(pod.gets(&back(SITE, TCP_SYN)), drop(DropReason::NoFlow));
}

#[test]
fn ch_5_a_revoked_flow_is_cut_from_both_sides_and_stays_cut() {
    let mut pod = mk_connected(
        Pod::new(vec![allows("203.0.113.10/32", 443), isolated()], vec![open()]),
        SITE,
    );
    pod.change_policy(vec![isolated()], vec![open()]);
    assert_eq!(pod.gets(&back(SITE, TCP_ACK)), drop(DropReason::Revoked), "the remote's packet");
    assert_eq!(pod.gets(&back(SITE, TCP_ACK)), drop(DropReason::Revoked), "its next one");
    assert_eq!(pod.sends(&out(SITE, TCP_ACK)), drop(DropReason::Denied), "the pod's");
    pod.pass(119);
    assert_eq!(pod.gets(&back(SITE, TCP_ACK)), drop(DropReason::Revoked), "after a while");
    assert!(pod.sim.flows.values().all(|flow| flow.state == FLOW_REVOKED));
}

#[test]
fn a_revoked_flow_is_cut_again_where_another_processor_wrote_its_state_meanwhile() {
    let rules = || vec![allows("203.0.113.10/32", 443), isolated()];
    for state in [FLOW_ESTABLISHED, FLOW_CLOSING] {
        let mut pod = mk_connected(Pod::new(rules(), vec![isolated()]), SITE);
        pod.change_policy(vec![isolated()], vec![isolated()]);
        assert_eq!(pod.gets(&back(SITE, TCP_ACK)), drop(DropReason::Revoked));
        // Of a packet that was let through by the policy before, and noted after the cut.
        pod.sim.flows.values_mut().for_each(|flow| flow.state = state);
        assert_eq!(pod.gets(&back(SITE, TCP_ACK)), drop(DropReason::Revoked), "{state}");
        assert_eq!(pod.sends(&out(SITE, TCP_ACK)), drop(DropReason::Denied), "{state}");
    }
}

#[test]
fn a_revoked_flow_lives_again_when_it_is_allowed_again() {
    let rules = || vec![allows("203.0.113.10/32", 443), isolated()];
    let mut pod = mk_connected(Pod::new(rules(), vec![isolated()]), SITE);
    pod.change_policy(vec![isolated()], vec![isolated()]);
    assert_eq!(pod.sends(&out(SITE, TCP_ACK)), drop(DropReason::Revoked));
    pod.change_policy(rules(), vec![isolated()]);
    assert_eq!(pod.sends(&out(SITE, TCP_ACK)), JUDGED);
    assert_eq!(pod.gets(&back(SITE, TCP_ACK)), KNOWN);
}

#[test]
fn a_changed_policy_that_still_allows_cuts_nothing() {
    let mut pod = mk_connected(mk_isolated(), SITE);
    pod.change_policy(vec![allows("203.0.113.0/24", 443), isolated()], vec![isolated()]);
    assert_eq!(pod.gets(&back(SITE, TCP_ACK)), JUDGED, "judged again");
    assert_eq!(pod.gets(&back(SITE, TCP_ACK)), KNOWN);
}

#[test]
fn ep_10_an_expired_name_opens_no_flow_and_keeps_live_ones() {
    let mut pod = Pod::new(vec![allows_names(), isolated()], vec![isolated()]);
    let deadline_ns = pod.now_ns + 10;
    pod.learn(SITE, deadline_ns);
    let mut pod = mk_connected(pod, SITE);
    pod.pass(1);
    let other = frame::ip(MAC, (ip(POD), ip(SITE)), 6, &frame::tcp(40_001, 443, TCP_SYN));
    assert_eq!(pod.sends(&other), drop(DropReason::Denied), "another connection");
    assert_eq!(pod.sends(&out(SITE, TCP_SYN)), drop(DropReason::Denied), "the same ports again");
    assert_eq!(pod.sends(&out(SITE, TCP_ACK)), KNOWN, "the live one");
    pod.change_policy(vec![allows_names(), isolated()], vec![isolated()]);
    pod.learn(SITE, deadline_ns);
    assert_eq!(pod.sends(&out(SITE, TCP_ACK)), JUDGED, "the live one, judged again");
}

#[test]
fn ep_9_a_name_opens_no_address_that_has_become_somebodys() {
    let cases = [
        ("the node itself", 1, DropReason::Denied),
        ("another node", 2, DropReason::Denied),
        ("a pod", 256, DropReason::Denied),
        ("an address of the cluster that nobody has", 5, DropReason::Denied),
    ];
    for (whose, identity, reason) in cases {
        let mut pod = Pod::new(vec![allows_names(), isolated()], vec![isolated()]);
        let deadline_ns = pod.now_ns + 1_000_000_000;
        pod.learn(SITE, deadline_ns);
        pod = mk_connected(pod, SITE);
        pod.sim.ipcache.insert(ip(SITE).into(), identity);
        let other = frame::ip(MAC, (ip(POD), ip(SITE)), 6, &frame::tcp(40_001, 443, TCP_SYN));
        assert_eq!(pod.sends(&other), drop(reason), "to {whose}");
        pod.endpoint().generation += 1;
        assert_eq!(pod.gets(&back(SITE, TCP_ACK)), drop(DropReason::Revoked), "live, to {whose}");
    }
}

#[test]
fn ep_9_a_name_opens_the_api_server_outside_the_cluster() {
    let mut pod = Pod::new(vec![allows_names(), isolated()], vec![isolated()]);
    let deadline_ns = pod.now_ns + 1_000_000_000;
    pod.learn(SITE, deadline_ns);
    pod.sim.ipcache.insert(ip(SITE).into(), 3);
    mk_connected(pod, SITE);
}

#[test]
fn flows_time_out_by_their_state() {
    let mut opening = mk_isolated();
    opening.sends(&out(SITE, TCP_SYN));
    let mut closing = mk_connected(mk_isolated(), SITE);
    closing.sends(&out(SITE, TCP_FIN | TCP_ACK));
    let established = mk_connected(mk_isolated(), SITE);
    for (name, mut pod, limit) in
        [("opening", opening, 60), ("closing", closing, 120), ("established", established, 7_500)]
    {
        let mut late = pod.clone();
        pod.pass(limit - 1);
        assert_eq!(pod.gets(&back(SITE, TCP_ACK)), KNOWN, "{name} before its time");
        late.pass(limit);
        assert_eq!(late.gets(&back(SITE, TCP_ACK)), drop(DropReason::Denied), "{name} after it");
    }
}

#[test]
fn flows_without_connections_time_out_by_whether_they_were_answered() {
    let udp = |mac, ends, ports: (u16, u16)| {
        frame::ip(mac, ends, 17, &frame::udp(ports.0, ports.1, b"payload"))
    };
    let (pod, site) = (ip(POD), ip(SITE));
    let kinds = [
        ("UDP", udp(MAC, (pod, site), (40_000, 443)), udp(OTHER_MAC, (site, pod), (443, 40_000))),
        (
            "an echo",
            frame::ip(MAC, (pod, site), 1, &frame::echo(8, 7)),
            frame::ip(OTHER_MAC, (site, pod), 1, &frame::echo(0, 7)),
        ),
    ];
    for (name, out, back) in kinds {
        let mut waiting = Pod::new(vec![open()], vec![isolated()]);
        assert_eq!(waiting.sends(&out), JUDGED, "{name}");
        let mut answered = waiting.clone();
        assert_eq!(answered.gets(&back), KNOWN, "{name}");
        for (state, mut pod, limit) in [("waiting", waiting, 30), ("answered", answered, 300)] {
            let mut late = pod.clone();
            pod.pass(limit - 1);
            assert_eq!(pod.gets(&back), KNOWN, "{name}, {state}, before its time");
            late.pass(limit);
            assert_ne!(late.gets(&back), KNOWN, "{name}, {state}, after it");
        }
    }
}

#[test]
fn a_revoked_flow_is_remembered_for_as_long_as_somebody_sends() {
    let mut pod = mk_connected(mk_isolated(), SITE);
    pod.change_policy(vec![isolated()], vec![open()]);
    let late = back(SITE, TCP_ACK);
    for _ in 0..3 {
        assert_eq!(pod.gets(&late), drop(DropReason::Revoked));
        pod.pass(119);
    }
    pod.pass(1);
    // Nothing is known of it: the other end may open a flow of its own.
    assert_ne!(pod.gets(&late), drop(DropReason::Revoked));
}

#[test]
fn repeated_syns_do_not_outlive_the_opening_time() {
    let mut pod = mk_isolated();
    pod.sends(&out(SITE, TCP_SYN));
    pod.pass(50);
    assert_eq!(pod.sends(&out(SITE, TCP_SYN)), KNOWN);
    pod.pass(11);
    assert_eq!(pod.sends(&out(SITE, TCP_SYN)), JUDGED, "judged like the first");
}

#[test]
fn another_pod_on_the_interface_inherits_no_flow() {
    let mut pod = mk_connected(mk_isolated(), SITE);
    pod.endpoint().epoch += 1;
    assert_eq!(pod.gets(&back(SITE, TCP_ACK)), drop(DropReason::Denied));
}

#[test]
fn np_22_the_node_reaches_its_pod_whatever_the_policy() {
    let probe = frame::ip(OTHER_MAC, (ip(NODE), ip(POD)), 6, &frame::tcp(50_000, 8_080, TCP_SYN));
    let answer =
        frame::ip(MAC, (ip(POD), ip(NODE)), 6, &frame::tcp(8_080, 50_000, TCP_SYN | TCP_ACK));
    let mut pod = mk_isolated();
    pod.is_from_node = true;
    assert_eq!(pod.gets(&probe), JUDGED);
    assert_eq!(pod.sends(&answer), KNOWN);
    pod.change_policy(vec![isolated()], vec![isolated()]);
    assert_eq!(pod.sends(&answer), JUDGED, "after a change of policy too");

    let midway = frame::ip(OTHER_MAC, (ip(NODE), ip(POD)), 6, &frame::tcp(50_000, 8_080, TCP_ACK));
    let mut forged = Pod::new(vec![open()], vec![isolated()]);
    assert_eq!(forged.gets(&midway), drop(DropReason::Denied), "in the middle of nothing");
    let mut forged = mk_isolated();
    assert_eq!(forged.gets(&probe), drop(DropReason::Denied), "received, not made by the node");
    assert_eq!(
        mk_isolated().sends(&frame::ip(MAC, (ip(POD), ip(NODE)), 6, &frame::tcp(1, 22, TCP_SYN))),
        drop(DropReason::Denied),
        "CH-4: the other way is governed"
    );
}

#[test]
fn every_gap_denies() {
    let frame = out(SITE, TCP_SYN);
    let mut pod = Pod::open();
    pod.sim.endpoints.clear();
    assert_eq!(pod.sends(&frame), drop(DropReason::NoEndpoint));

    let mut pod = Pod::open();
    pod.sim.rows.tables.clear();
    assert_eq!(pod.sends(&frame), drop(DropReason::NoTable));

    let mut pod = Pod::open();
    pod.sim.rows.peers.clear();
    assert_eq!(pod.sends(&frame), drop(DropReason::MissingRow));

    let mut pod = Pod::open();
    pod.sim.rows.ports.clear();
    assert_eq!(pod.sends(&frame), drop(DropReason::MissingRow));

    let mut pod = Pod::new(vec![], vec![]);
    assert_eq!(pod.sends(&frame), drop(DropReason::NoRule), "a table without rules");

    let mut pod = Pod::open();
    pod.sim.flows_max = 1;
    assert_eq!(pod.sends(&frame), JUDGED);
    assert_eq!(pod.sends(&out(ELSEWHERE, TCP_SYN)), drop(DropReason::FlowsFull));
    assert_eq!(pod.sends(&frame), KNOWN, "those that are known go on");
}

#[test]
fn ep_12_an_audit_rule_is_told_and_drops_nothing() {
    let audit = clause(ClauseAction::Audit, ClauseTier::Namespaced, any_peer());
    let mut pod = Pod::new(vec![audit, open()], vec![open()]);
    assert_eq!(pod.sends(&out(SITE, TCP_SYN)), JUDGED);
    let event = pod.events[0];
    assert_eq!((event.verdict, event.clause, event.audit), (EventVerdict::Audit as u8, 1, 0));
}

/// NP-20, CH-2, CNP-5: path-MTU and other errors belong to the flow that they answer.
#[test]
fn an_icmp_error_follows_its_flow_alone() {
    let quote = |frame: Vec<u8>| frame::icmp(3, [0, 0, 5, 0xdc], &frame[14..]);
    let router = "198.51.100.1";
    let error = |quoted: Vec<u8>| frame::ip(OTHER_MAC, (ip(router), ip(POD)), 1, &quote(quoted));
    let mut pod = mk_connected(mk_isolated(), SITE);
    let related = Verdict::Forward(Pass::Related);
    assert_eq!(pod.gets(&error(out(SITE, TCP_ACK))), related);
    assert_eq!(pod.gets(&error(out(ELSEWHERE, TCP_ACK))), drop(DropReason::Unrelated));
    let from_pod = |to: &str| frame::ip(MAC, (ip(POD), ip(to)), 1, &quote(back(SITE, TCP_ACK)));
    assert_eq!(pod.sends(&from_pod(SITE)), related, "to who sent the packet");
    assert_eq!(pod.sends(&from_pod(ELSEWHERE)), drop(DropReason::Unrelated), "to nobody else");
    pod.change_policy(vec![isolated()], vec![isolated()]);
    pod.sends(&out(SITE, TCP_ACK));
    assert_eq!(pod.gets(&error(out(SITE, TCP_ACK))), drop(DropReason::Unrelated), "of a cut flow");
}
