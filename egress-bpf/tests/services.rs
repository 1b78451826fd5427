//! Flows to services: judged by the backend that was chosen, both ways, over simulated maps.

#![expect(clippy::unwrap_used, reason = "tests")]

mod pod;

use namegate_egress_bpf::abi::{
    Address, Backend, BackendKey, CONFIG_INCOMPLETE, DropReason, ENDPOINT_DNS_GOVERNED,
    ENDPOINT_TRANSLATED, Pass, SERVICE_AFFINE, Service, ServiceKey,
};
use namegate_egress_bpf::packet::{TCP_ACK, TCP_SYN};
use namegate_egress_bpf::sim::frame;
use namegate_egress_bpf::verdict::{Verdict, Way};
use namegate_policy::table::Clause;

use pod::{IFINDEX, MAC, OTHER_MAC, POD, Pod, RESOLVER, allows, drop, ip, isolated, open};

const SERVICE: &str = "10.96.0.80";
const ALLOWED: &str = "10.244.2.1";
const DENIED: &str = "10.244.2.2";
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A pod whose flows to services are translated, with one service on port 80.
fn mk_client(egress: Vec<Clause>, protocol: u8, flags: u16, backends: &[(&str, u16)]) -> Pod {
    let mut client = Pod::new(egress, vec![open()]);
    client.endpoint().flags |= ENDPOINT_TRANSLATED;
    serve(&mut client, protocol, flags, backends);
    client
}

fn serve(client: &mut Pod, protocol: u8, flags: u16, backends: &[(&str, u16)]) {
    let list = client.sim.backends.keys().map(|key| key.list + 1).max().unwrap_or(0);
    for (place, (address, port)) in (0..).zip(backends) {
        let backend = Backend { address: ip(address).into(), port: *port, padding: [0; 2] };
        client.sim.backends.insert(BackendKey { list, place }, backend);
    }
    let key = ServiceKey { address: ip(SERVICE).into(), port: 80, protocol, padding: 0 };
    let count = backends.len().try_into().unwrap();
    client.sim.services.insert(key, Service { list, backends: count, flags });
}

fn allows_one() -> Vec<Clause> {
    vec![allows("10.244.2.1/32", 8_080), isolated()]
}

fn tcp(from: (&str, u16), to: (&str, u16), flags: u8) -> Vec<u8> {
    let mac = if from.0 == POD { MAC } else { OTHER_MAC };
    frame::ip(mac, (ip(from.0), ip(to.0)), TCP, &frame::tcp(from.1, to.1, flags))
}

fn udp(from: (&str, u16), to: (&str, u16)) -> Vec<u8> {
    let mac = if from.0 == POD { MAC } else { OTHER_MAC };
    frame::ip(mac, (ip(from.0), ip(to.0)), UDP, &frame::udp(from.1, to.1, b"payload"))
}

fn translated(pass: Pass, way: Way) -> Verdict {
    Verdict::Translate { pass, way }
}

#[test]
fn backend_and_its_port_are_judged_and_not_the_service() {
    let rows = [
        (allows("10.244.2.1/32", 8_080), true, "the backend on its own port"),
        (allows("10.244.2.1/32", 80), false, "the backend on the service's port"),
        (allows("10.96.0.80/32", 80), false, "the service's address"),
        (allows("0.0.0.0/0", 8_080), true, "every address on the backend's port"),
    ];
    for (rule, is_open, why) in rows {
        let mut client = mk_client(vec![rule, isolated()], TCP, 0, &[(ALLOWED, 8_080)]);
        let verdict = client.sends(&tcp((POD, 5_000), (SERVICE, 80), TCP_SYN));
        let expected = if is_open {
            translated(Pass::Judged, Way::ToBackend)
        } else {
            drop(DropReason::Denied)
        };
        assert_eq!(verdict, expected, "{why}");
        let event = client.events.pop().unwrap();
        assert_eq!((event.remote, event.remote_port), (ip(ALLOWED).into(), 8_080), "{why}");
    }
}

#[test]
fn node_port_is_its_backend_at_every_address_of_the_node() {
    const NODE: [&str; 3] = ["192.0.2.10", "169.254.20.10", "10.244.1.1"];
    let mut client = mk_client(allows_one(), TCP, 0, &[(ALLOWED, 8_080)]);
    let (key, row) = client.sim.services.pop_first().unwrap();
    client.sim.services.insert(key.at_node(), row);
    for (address, identity) in NODE.map(|node| (node, 1)).into_iter().chain([("192.0.2.11", 2)]) {
        client.sim.ipcache.insert(ip(address).into(), identity);
    }
    client.change_policy(
        vec![allows("10.244.2.1/32", 8_080), allows("192.0.2.11/32", 80), isolated()],
        vec![open()],
    );
    for (port, node) in (5_000..).zip(NODE) {
        let verdict = client.sends(&tcp((POD, port), (node, 80), TCP_SYN));
        assert_eq!(verdict, translated(Pass::Judged, Way::ToBackend), "{node}");
        let answer = client.gets(&tcp((ALLOWED, 8_080), (POD, port), TCP_SYN | TCP_ACK));
        assert_eq!(answer, translated(Pass::Known, Way::FromBackend), "{node}");
    }
    let other = client.sends(&tcp((POD, 5_100), ("192.0.2.11", 80), TCP_SYN));
    assert_eq!(other, Verdict::Forward(Pass::Judged), "another node translates its own");
    client.change_policy(vec![allows("192.0.2.0/24", 80), isolated()], vec![open()]);
    let denied = client.sends(&tcp((POD, 5_200), (NODE[0], 80), TCP_SYN));
    assert_eq!(denied, drop(DropReason::Denied), "the node is not the backend");
}

#[test]
fn each_flow_keeps_its_backend_and_replies_come_from_the_service() {
    let mut client = mk_client(allows_one(), TCP, 0, &[(ALLOWED, 8_080)]);
    let out = |flags| tcp((POD, 5_000), (SERVICE, 80), flags);
    let back = |flags| tcp((ALLOWED, 8_080), (POD, 5_000), flags);
    assert_eq!(client.sends(&out(TCP_SYN)), translated(Pass::Judged, Way::ToBackend));
    assert_eq!(client.sends(&out(TCP_SYN)), translated(Pass::Known, Way::ToBackend));
    assert_eq!(client.gets(&back(TCP_SYN | TCP_ACK)), translated(Pass::Known, Way::FromBackend));
    // What the service is later does not move what lives.
    serve(&mut client, TCP, 0, &[(DENIED, 8_080)]);
    assert_eq!(client.sends(&out(TCP_ACK)), translated(Pass::Known, Way::ToBackend));
    assert_eq!(client.gets(&back(TCP_ACK)), translated(Pass::Known, Way::FromBackend));
    assert_eq!(client.sends(&tcp((POD, 5_001), (SERVICE, 80), TCP_SYN)), drop(DropReason::Denied));
    let (sent, got) = (client.sim.flows.values(), 2);
    let flow = sent.into_iter().find(|flow| flow.packets[1] != 0).unwrap();
    assert_eq!(flow.packets, [3, got], "both sides are counted in one entry");
}

#[test]
fn only_the_chosen_backend_may_answer() {
    let mut client = mk_client(allows_one(), TCP, 0, &[(ALLOWED, 8_080)]);
    assert_eq!(
        client.sends(&tcp((POD, 5_000), (SERVICE, 80), TCP_SYN)),
        translated(Pass::Judged, Way::ToBackend)
    );
    let answer = TCP_SYN | TCP_ACK;
    for (from, why) in [
        ((DENIED, 8_080), "another backend"),
        ((SERVICE, 80), "the service's own address"),
        ((ALLOWED, 8_081), "another port"),
    ] {
        let verdict = client.gets(&tcp(from, (POD, 5_000), answer));
        assert_eq!(verdict, drop(DropReason::NoFlow), "{why}");
    }
}

#[test]
fn two_policies_for_two_backends_of_one_service_are_both_right() {
    let backends = [(ALLOWED, 8_080), (DENIED, 8_080)];
    let other = vec![allows("10.244.2.2/32", 8_080), isolated()];
    let mut one = mk_client(allows_one(), TCP, 0, &backends);
    let mut two = mk_client(other, TCP, 0, &backends);
    let mut counts = [0; 2];
    for port in 10_000..10_200 {
        let syn = tcp((POD, port), (SERVICE, 80), TCP_SYN);
        let verdicts = [one.sends(&syn), two.sends(&syn)];
        let open = translated(Pass::Judged, Way::ToBackend);
        let side = usize::from(verdicts[0] != open);
        assert_eq!(verdicts[side], open, "port {port}");
        assert_eq!(verdicts[1 - side], drop(DropReason::Denied), "port {port}");
        counts[side] += 1;
    }
    assert!(counts.iter().all(|count| *count > 50), "both are chosen: {counts:?}");
}

#[test]
fn affine_service_gives_a_client_one_backend() {
    let backends = [(ALLOWED, 8_080), (DENIED, 8_080)];
    let mut client = mk_client(vec![open()], TCP, SERVICE_AFFINE, &backends);
    let chosen: std::collections::BTreeSet<Address> = (10_000..10_100)
        .map(|port| {
            client.sends(&tcp((POD, port), (SERVICE, 80), TCP_SYN));
            client.events.pop().unwrap().remote
        })
        .collect();
    assert_eq!(chosen.len(), 1);
}

#[test]
fn removed_rule_cuts_flows_to_its_backend_alone() {
    let both = vec![allows("10.244.2.0/24", 8_080), isolated()];
    let backends = [(ALLOWED, 8_080), (DENIED, 8_080)];
    let mut client = mk_client(both, TCP, 0, &backends);
    let mut flows = std::collections::BTreeMap::new();
    for port in 10_000..10_020 {
        client.sends(&tcp((POD, port), (SERVICE, 80), TCP_SYN));
        flows.insert(port, client.events.pop().unwrap().remote);
    }
    client.change_policy(allows_one(), vec![open()]);
    for (port, backend) in flows {
        let is_open = backend == ip(ALLOWED).into();
        let from = if is_open { ALLOWED } else { DENIED };
        // The backend's packet comes first: it is judged in the direction of the flow's opener.
        let reply = client.gets(&tcp((from, 8_080), (POD, port), TCP_ACK));
        let sent = client.sends(&tcp((POD, port), (SERVICE, 80), TCP_ACK));
        let expected = if is_open {
            [translated(Pass::Judged, Way::FromBackend), translated(Pass::Known, Way::ToBackend)]
        } else {
            [drop(DropReason::Revoked), drop(DropReason::Denied)]
        };
        assert_eq!([reply, sent], expected, "port {port}");
    }
}

#[test]
fn flow_of_before_the_endpoint_was_governed_is_cut() {
    let mut client = mk_client(vec![open()], TCP, 0, &[(ALLOWED, 8_080)]);
    client.endpoint().flags &= !ENDPOINT_TRANSLATED;
    let packet = |flags| tcp((POD, 5_000), (SERVICE, 80), flags);
    assert_eq!(client.sends(&packet(TCP_SYN)), Verdict::Forward(Pass::Judged));
    client.endpoint().flags |= ENDPOINT_TRANSLATED;
    // Its backend was somebody else's choice, and may be any.
    client.change_policy(vec![allows("0.0.0.0/0", 80), isolated()], vec![open()]);
    assert_eq!(client.sends(&packet(TCP_ACK)), drop(DropReason::Revoked));
    let again = client.sends(&packet(TCP_SYN));
    assert_eq!(again, drop(DropReason::Denied), "judged by the backend's port");
}

#[test]
fn nobody_joins_a_service_in_the_middle() {
    let mut client = mk_client(allows_one(), TCP, 0, &[(ALLOWED, 8_080)]);
    let verdict = client.sends(&tcp((POD, 5_000), (SERVICE, 80), TCP_ACK));
    assert_eq!(verdict, drop(DropReason::NoFlow));
}

#[test]
fn same_ports_towards_backend_and_service_clash() {
    let mut client = mk_client(allows_one(), UDP, 0, &[(ALLOWED, 8_080)]);
    client.change_policy(vec![open()], vec![open()]);
    let direct = udp((POD, 5_000), (ALLOWED, 8_080));
    let served = udp((POD, 5_000), (SERVICE, 80));
    assert_eq!(client.sends(&direct), Verdict::Forward(Pass::Judged));
    assert_eq!(client.sends(&served), drop(DropReason::ServiceClash));
    client.pass(3_600);
    assert_eq!(client.sends(&served), translated(Pass::Judged, Way::ToBackend), "it is over");
    assert_eq!(client.sends(&direct), drop(DropReason::ServiceClash), "the other way round");
}

#[test]
fn endpoint_reaches_itself_through_a_service() {
    let mut client =
        mk_client(vec![allows("10.244.1.10/32", 8_080), isolated()], TCP, 0, &[(POD, 8_080)]);
    let syn = tcp((POD, 5_000), (SERVICE, 80), TCP_SYN);
    assert_eq!(client.sends(&syn), translated(Pass::Judged, Way::HairpinOut));
    let turned = tcp((SERVICE, 5_000), (POD, 8_080), TCP_SYN);
    assert_eq!(client.gets(&turned), drop(DropReason::NoFlow), "forged from outside");
    client.is_returned = true;
    assert_eq!(client.gets(&turned), Verdict::Forward(Pass::Known));
    let answer = tcp((POD, 8_080), (SERVICE, 5_000), TCP_SYN | TCP_ACK);
    assert_eq!(client.sends(&answer), translated(Pass::Known, Way::HairpinBack));
    let turned = tcp((SERVICE, 80), (POD, 5_000), TCP_SYN | TCP_ACK);
    assert_eq!(client.gets(&turned), Verdict::Forward(Pass::Known));
    client.is_returned = false;
    assert_eq!(client.gets(&turned), drop(DropReason::NoFlow), "forged from outside");
}

#[test]
fn server_s_rules_count_where_an_endpoint_reaches_itself() {
    let mut client = mk_client(vec![open()], TCP, 0, &[(POD, 8_080)]);
    client.change_policy(vec![open()], vec![allows("203.0.113.0/24", 8_080), isolated()]);
    let syn = tcp((POD, 5_000), (SERVICE, 80), TCP_SYN);
    assert_eq!(client.sends(&syn), drop(DropReason::Denied));
}

#[test]
fn services_that_cannot_be_translated_drop() {
    let sctp = frame::ip(MAC, (ip(POD), ip(SERVICE)), 132, &frame::sctp(5_000, 80));
    let syn = tcp((POD, 5_000), (SERVICE, 80), TCP_SYN);
    let mut client = mk_client(vec![open()], TCP, 0, &[]);
    assert_eq!(client.sends(&syn), drop(DropReason::NoBackend));
    let mut client = mk_client(vec![open()], 132, 0, &[(ALLOWED, 8_080)]);
    assert_eq!(client.sends(&sctp), drop(DropReason::ServiceProtocol));
    let mut client = mk_client(vec![open()], 132, 0, &[(ALLOWED, 80)]);
    assert_eq!(client.sends(&sctp), translated(Pass::Judged, Way::ToBackend));
}

#[test]
fn pieces_of_a_datagram_follow_the_first_to_the_backend_and_back() {
    let mut client = mk_client(vec![open()], UDP, 0, &[(ALLOWED, 8_080)]);
    let piece = |mut frame: Vec<u8>, field: u16| {
        frame[20..22].copy_from_slice(&field.to_be_bytes());
        frame
    };
    let out = udp((POD, 5_000), (SERVICE, 80));
    let out = [out, vec![0; 1]].concat();
    let mut first = piece(out.clone(), 0x2000);
    first[16..18].copy_from_slice(&36_u16.to_be_bytes());
    let later = piece(out, 2);
    assert_eq!(client.sends(&later), drop(DropReason::UnknownFragment));
    assert_eq!(client.sends(&first), translated(Pass::Judged, Way::ToBackend));
    assert_eq!(client.sends(&later), translated(Pass::Fragment, Way::ToBackend));
    let back = [udp((ALLOWED, 8_080), (POD, 5_000)), vec![0; 1]].concat();
    let mut first = piece(back.clone(), 0x2000);
    first[16..18].copy_from_slice(&36_u16.to_be_bytes());
    assert_eq!(client.gets(&first), translated(Pass::Known, Way::FromBackend));
    assert_eq!(client.gets(&piece(back, 2)), translated(Pass::Fragment, Way::FromBackend));
}

#[test]
fn errors_about_translated_packets_are_told_in_the_endpoint_s_words() {
    let mut client = mk_client(vec![open()], UDP, 0, &[(ALLOWED, 8_080)]);
    client.sends(&udp((POD, 5_000), (SERVICE, 80)));
    let error = |quoted: Vec<u8>| {
        let message = frame::icmp(3, [0, 0, 5, 0xdc], &quoted[14..]);
        frame::ip(OTHER_MAC, (ip("10.244.1.1"), ip(POD)), 1, &message)
    };
    let about = error(udp((POD, 5_000), (ALLOWED, 8_080)));
    assert_eq!(client.gets(&about), translated(Pass::Related, Way::Quoted));
    let about = error(udp((POD, 5_000), (DENIED, 8_080)));
    assert_eq!(client.gets(&about), drop(DropReason::Unrelated));
}

#[test]
fn endpoint_that_is_not_translated_is_left_to_others() {
    let mut client = mk_client(vec![open()], TCP, 0, &[(ALLOWED, 8_080)]);
    client.sim.endpoints.get_mut(&IFINDEX).unwrap().flags &= !ENDPOINT_TRANSLATED;
    let verdict = client.sends(&tcp((POD, 5_000), (SERVICE, 80), TCP_SYN));
    assert_eq!(verdict, Verdict::Forward(Pass::Judged));
}

#[test]
fn ep_2_no_service_leads_past_the_proxy_to_a_resolver() {
    let cases = [
        ("a resolver's port 53", RESOLVER, 53, true, drop(DropReason::HiddenResolver)),
        ("another port of it", RESOLVER, 5_353, true, translated(Pass::Judged, Way::ToBackend)),
        ("another backend", ALLOWED, 53, true, translated(Pass::Judged, Way::ToBackend)),
        ("ungoverned", RESOLVER, 53, false, translated(Pass::Judged, Way::ToBackend)),
    ];
    for (name, backend, port, is_governed, expected) in cases {
        let mut client = mk_client(vec![open()], UDP, 0, &[(backend, port)]);
        if is_governed {
            client.endpoint().flags |= ENDPOINT_DNS_GOVERNED;
        }
        let lookup = udp((POD, 40_000), (SERVICE, 80));
        assert_eq!(client.sends(&lookup), expected, "{name}");
        if is_governed {
            continue;
        }
        client.endpoint().flags |= ENDPOINT_DNS_GOVERNED;
        client.endpoint().generation += 1;
        assert_eq!(client.sends(&lookup), drop(DropReason::Revoked), "{name}, governed since");
    }
}

/// Any backend may be a resolver while one may not be written: then nothing starts, and nothing ends.
#[test]
fn a_live_flow_to_port_53_of_a_service_waits_while_resolvers_may_be_missing() {
    let mut client = mk_client(vec![open()], UDP, 0, &[(ALLOWED, 53)]);
    client.sim.ipcache.insert(ip(ALLOWED).into(), 400);
    let lookup = udp((POD, 40_000), (SERVICE, 80));
    assert_eq!(client.sends(&lookup), translated(Pass::Judged, Way::ToBackend));
    client.endpoint().flags |= ENDPOINT_DNS_GOVERNED;
    client.endpoint().generation += 1;
    client.sim.config.as_mut().unwrap().flags |= CONFIG_INCOMPLETE;
    assert_eq!(client.sends(&lookup), drop(DropReason::Incomplete));
    let another = udp((POD, 40_001), (SERVICE, 80));
    assert_eq!(client.sends(&another), drop(DropReason::Incomplete));
    client.sim.config.as_mut().unwrap().flags &= !CONFIG_INCOMPLETE;
    assert_eq!(client.sends(&lookup), translated(Pass::Judged, Way::ToBackend));
    assert_eq!(client.sends(&another), translated(Pass::Judged, Way::ToBackend));
}
