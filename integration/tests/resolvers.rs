//! Whatever resolver a pod asks, the proxy stands in for it, and the pod hears whom it asked.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use namegate_integration::addresses::{AUTHORITY, EVIL, KUBE_DNS, KUBE_DNS_SERVICE, STRIPE};
use namegate_integration::authority::wait_listening;
use namegate_integration::dns::{Query, Transport};
use namegate_integration::process::Daemon;
use namegate_integration::scene::Scene;
use namegate_integration::town::Town;

const NODE_LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 20, 10));

#[test]
fn every_kind_of_resolver_is_stood_in_for() -> Result<()> {
    let external = format!("{},{}", AUTHORITY.v4, AUTHORITY.v6);
    let test = "every_kind_of_resolver_is_stood_in_for";
    let Some(scene) = Scene::for_test(test, &["--resolver", &external])? else {
        return Ok(());
    };
    let _node_local = node_local(&scene.town)?;
    let resolvers: [(&str, IpAddr); 7] = [
        ("kube-dns behind its translated ClusterIP", KUBE_DNS_SERVICE.v4.into()),
        ("kube-dns behind its translated ClusterIP, IPv6", KUBE_DNS_SERVICE.v6.into()),
        ("a resolver pod on the same bridge", KUBE_DNS.v4.into()),
        ("a resolver pod on the same bridge, IPv6", KUBE_DNS.v6.into()),
        ("the node's cache", NODE_LOCAL),
        ("a resolver outside", AUTHORITY.v4.into()),
        ("a resolver outside, IPv6", AUTHORITY.v6.into()),
    ];
    let checkout = &scene.town.checkout;
    for (what, resolver) in resolvers {
        for (transport, word) in [(Transport::Udp, "udp"), (Transport::Tcp, "tcp")] {
            let mark = scene.agent.audit.mark()?;
            let query = Query::a("api.stripe.com").at(resolver).over(transport);
            let reply = checkout.ask(&query)?;
            assert_eq!(reply.addresses(), [IpAddr::V4(STRIPE.v4)], "{what}: {query:?}");
            let address = resolver.to_string();
            let fields = [("verdict", "allowed"), ("resolver", &address), ("transport", word)];
            scene.agent.audit.expect(mark, &fields)?;
            let query = Query::a("evil.example").at(resolver).over(transport);
            assert_eq!(checkout.ask(&query)?.status, "REFUSED", "{what}: {query:?}");
        }
        let to = SocketAddr::from((resolver, 53));
        let from = checkout.namespace.within(|| source_of_answer(to))??;
        assert_eq!(from, to, "{what}: the answer's source");
    }
    for resolver in [AUTHORITY.v4.into(), AUTHORITY.v6.into(), NODE_LOCAL] {
        let reply = checkout.ask(&Query::a("evil.example").at(resolver))?;
        assert!(!reply.addresses().contains(&EVIL.v4.into()), "{resolver}");
    }
    Ok(())
}

#[test]
fn ep_2_other_resolver_is_ordinary_traffic_and_needs_a_rule() -> Result<()> {
    let test = "ep_2_other_resolver_is_ordinary_traffic_and_needs_a_rule";
    let Some(scene) = Scene::for_test(test, &[])? else {
        return Ok(());
    };
    for resolver in [IpAddr::V4(AUTHORITY.v4), IpAddr::V6(AUTHORITY.v6)] {
        for transport in [Transport::Udp, Transport::Tcp] {
            let mark = scene.agent.audit.mark()?;
            let query = Query::a("api.stripe.com").at(resolver).over(transport).within_seconds(1);
            assert_eq!(scene.town.checkout.ask(&query)?.status, "TIMEOUT", "{query:?}");
            let address = resolver.to_string();
            let fields = [
                ("verdict", "dropped"),
                ("destination.address", &address),
                ("destination.port", "53"),
            ];
            scene.agent.audit.expect(mark, &fields)?;
        }
    }
    Ok(())
}

#[test]
fn pod_is_answered_by_the_resolver_it_asked_while_another_stands_in() -> Result<()> {
    let group = format!("{},{}", KUBE_DNS.v4, AUTHORITY.v4);
    let test = "pod_is_answered_by_the_resolver_it_asked_while_another_stands_in";
    let Some(mut scene) = Scene::for_test(test, &["--resolver-group", &group])? else {
        return Ok(());
    };
    drop(scene.town.resolver.take());
    let checkout = &scene.town.checkout;
    for transport in [Transport::Udp, Transport::Tcp] {
        let mark = scene.agent.audit.mark()?;
        let query = Query::a("api.stripe.com").at(KUBE_DNS.v4).over(transport);
        let reply = checkout.ask(&query)?;
        assert_eq!(reply.addresses(), [IpAddr::V4(STRIPE.v4)], "{query:?}");
        let asked = KUBE_DNS.v4.to_string();
        scene.agent.audit.expect(mark, &[("verdict", "allowed"), ("resolver", &asked)])?;
    }
    checkout.try_tcp((STRIPE.v4, 443).into())??;
    Ok(())
}

/// A cache on the node's link-local address, as node-local DNS set-ups have: here it passes queries on
/// to kube-dns.
fn node_local(town: &Town) -> Result<[Daemon; 2]> {
    let node = &town.node.namespace;
    node.ip(&["link set lo up", &format!("addr add {NODE_LOCAL}/32 dev lo")])?;
    let start = |listen: String, to: String| {
        let log = town.lab.file(&format!("{}.log", listen.split(':').next().unwrap_or_default()));
        Daemon::start(node.command("socat").args([listen, to]), &log).context("the node's cache")
    };
    let (listen, to) =
        (format!("53,bind={NODE_LOCAL},fork,reuseaddr"), format!("{}:53", KUBE_DNS.v4));
    let udp = start(format!("UDP4-RECVFROM:{listen}"), format!("UDP4:{to}"))?;
    let mut tcp = start(format!("TCP4-LISTEN:{listen}"), format!("TCP4:{to}"))?;
    wait_listening(&mut tcp, node, "the node's cache", 53, NODE_LOCAL)?;
    Ok([udp, tcp])
}

/// Who answers a query sent to `to` from a socket that takes answers from anybody.
fn source_of_answer(to: SocketAddr) -> Result<SocketAddr> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut query = b"\x77\x77\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    query.extend_from_slice(b"\x03aPi\x06StripE\x03com\x00\x00\x01\x00\x01");
    socket.send_to(&query, to)?;
    let mut answer = [0; 1500];
    let (length, from) = socket.recv_from(&mut answer)?;
    let answer = answer.get(..length).unwrap_or_default();
    ensure!(answer.get(..2) == query.get(..2), "the id comes back");
    ensure!(
        answer.get(12..query.len()) == query.get(12..),
        "the question comes back as it was written"
    );
    Ok(from)
}
