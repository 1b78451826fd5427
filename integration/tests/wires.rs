//! Two nodes and what may lie between pods: each end is judged on its own node, whatever is translated
//! on the way and however a CNI routes.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use namegate_integration::addresses::{
    DB, DB_PORT, ECHO, ECHO_PORT, EVIL, NODE, OUTPOST, OUTPOST_GATEWAY, ROUTER,
};
use namegate_integration::agent::Agent;
use namegate_integration::capture::{Capture, sent_by};
use namegate_integration::cluster::Cluster;
use namegate_integration::node::UPLINK;
use namegate_integration::objects::Objects;
use namegate_integration::patience::wait_until;
use namegate_integration::pod::Pod;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(15);
/// How long a probe waits before it says that nothing comes back.
const PROBE: Duration = Duration::from_millis(700);
/// What the far web serves, and where every node has it.
const FAR_PORT: u16 = 9_000;
const NODE_PORT: u16 = 30_900;

fn database() -> SocketAddr {
    (DB.v4, DB_PORT).into()
}

/// Lets only the echo server be reached from the web pods, and only the checkouts reach them.
fn policies() -> [Value; 2] {
    [
        json!({
            "apiVersion": "namegate.dev/v1alpha1", "kind": "EgressPolicy",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "web"}},
                "egress": [{"to": [{"cidr": format!("{}/32", ECHO.v4)}]}],
            },
        }),
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "to-web", "namespace": "shop"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "web"}},
                "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "checkout"}}}]}],
            },
        }),
    ]
}

/// Both nodes with their agents, the database's policy and those of [`policies`].
fn mk_nodes(test: &str) -> Result<Option<(Cluster, Agent, Agent)>> {
    let Some(mut cluster) = Cluster::for_test(test)? else { return Ok(None) };
    cluster.outpost.web.serve_echo(&cluster.town.lab, FAR_PORT)?;
    cluster.apply("database.yaml")?;
    for policy in policies() {
        cluster.api.put(policy)?;
    }
    let (town, outpost) = (cluster.start_town()?, cluster.start_outpost()?);
    Ok(Some((cluster, town, outpost)))
}

/// What holds on two nodes whatever lies between them.
fn expect_policies(cluster: &Cluster) -> Result<()> {
    let (town, outpost) = (&cluster.town, &cluster.outpost);
    let far_web = SocketAddr::from((outpost.web.addresses.v4, FAR_PORT));
    for attempt in [Pod::try_tcp, Pod::try_udp] {
        attempt(&outpost.twin, far_web)?.context("the same node: allowed at both ends")?;
        attempt(&outpost.web, (ECHO.v4, ECHO_PORT).into())?.context("the world")?;
        assert!(attempt(&outpost.web, (EVIL.v4, 443).into())?.is_err(), "denied at its own end");
        assert!(attempt(&outpost.web, database())?.is_err(), "denied at its own end");
        attempt(&town.checkout, far_web)?.context("across: allowed at both ends")?;
        assert!(attempt(&town.db, far_web)?.is_err(), "denied");
    }
    let from_node = outpost.node.within(|| TcpStream::connect_timeout(&far_web, PROBE))?;
    from_node.context("the node reaches its own pod")?;
    Ok(())
}

#[test]
fn each_end_judges_with_and_without_source_translation() -> Result<()> {
    let test = "each_end_judges_with_and_without_source_translation";
    let Some((cluster, town, outpost)) = mk_nodes(test)? else { return Ok(()) };
    let twin = &cluster.outpost.twin;
    expect_policies(&cluster)?;
    twin.try_tcp(database())?.context("allowed at both ends")?;
    expect_node_ports(&cluster, &town)?;

    // Denied where it starts, it does not leave its node.
    let capture = Capture::start(&cluster.town.lab, &cluster.town.internet, "outpost0")?;
    let mark = outpost.audit.mark()?;
    assert!(cluster.outpost.web.try_tcp(database())?.is_err());
    let source = cluster.outpost.web.addresses.v4.to_string();
    let dropped = ("verdict", "dropped");
    outpost.audit.expect(mark, &[("kind", "flow"), dropped, ("source.pod", "far-web")])?;
    let left = capture.finish(&cluster.outpost.node, ROUTER.v4.into())?;
    assert_eq!(sent_by(&left, &[&source]), Vec::<String>::new());

    // Under the node's address it is no checkout: its own end lets it out, the other does not let it in.
    let rules = format!(
        "add table ip lab; add chain ip lab post {{ type nat hook postrouting priority 100; }}; \
         add rule ip lab post oifname {UPLINK} masquerade"
    );
    cluster.outpost.node.run(&["nft", &rules], SOON)?.success()?;
    let (near, far) = (town.audit.mark()?, outpost.audit.mark()?);
    assert!(twin.try_tcp(database())?.is_err(), "the database takes no connection from a node");
    let node = OUTPOST.v4.to_string();
    outpost
        .audit
        .expect(far, &[("kind", "flow"), ("verdict", "forwarded"), ("source.pod", "twin")])?;
    town.audit.expect(near, &[("kind", "flow"), dropped, ("source.address", &node)])?;
    // Whatever does not leave the node, or does not begin on it, is as before.
    expect_policies(&cluster)
}

/// A node port is its backend at the pod's own node, which translates it there, and at another node that
/// node.
fn expect_node_ports(cluster: &Cluster, agent: &Agent) -> Result<()> {
    let (checkout, outpost) = (&cluster.town.checkout, &cluster.outpost);
    let backend = SocketAddr::from((outpost.web.addresses.v4, FAR_PORT));
    let [own, other] = [NODE, OUTPOST].map(|node| SocketAddr::from((node.v4, NODE_PORT)));
    let world = SocketAddr::from((ECHO.v4, ECHO_PORT));
    let ports = |number: u16, node_port: Option<u16>| -> Vec<Value> {
        let port = |protocol: &str| {
            let name = protocol.to_lowercase();
            json!({"name": name, "protocol": protocol, "port": number, "nodePort": node_port})
        };
        vec![port("TCP"), port("UDP")]
    };
    cluster.api.put(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "far-web", "namespace": "shop"},
        "spec": {"type": "NodePort", "clusterIPs": ["10.96.0.90"], "ports": ports(80, Some(NODE_PORT))},
    }))?;
    cluster.api.put(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": "far-web-1", "namespace": "shop",
            "labels": {"kubernetes.io/service-name": "far-web"},
        },
        "endpoints": [{"addresses": [backend.ip()], "conditions": {"ready": true}}],
        "ports": ports(FAR_PORT, None),
    }))?;
    let rules = format!(
        "add table ip ports; add chain ip ports pre {{ type nat hook prerouting priority -100; }}; \
         add rule ip ports pre ip daddr {} meta l4proto {{ tcp, udp }} th dport {NODE_PORT} dnat to {backend}",
        OUTPOST.v4
    );
    outpost.node.run(&["nft", &rules], SOON)?.success()?;
    checkout.try_tcp(other)?.context("the other node translates")?;

    let pods = json!({"podSelector": {"matchLabels": {"app": "web"}}});
    for (peer, open, closed) in [
        (pods, [backend, own], vec![other]),
        (json!({"entity": "RemoteNode"}), [other, other], vec![own, backend]),
    ] {
        cluster.api.put(json!({
            "apiVersion": "namegate.dev/v1alpha1", "kind": "EgressPolicy",
            "metadata": {"name": "ports", "namespace": "shop"},
            "spec": {"podSelector": {"matchLabels": {"app": "checkout"}}, "egress": [{"to": [peer]}]},
        }))?;
        wait_until("the policy", SOON, || {
            Ok(checkout.try_tcp(world)?.is_err() && checkout.try_tcp(open[0])?.is_ok())
        })?;
        let mark = agent.audit.mark()?;
        for attempt in [Pod::try_tcp, Pod::try_udp] {
            for to in open {
                attempt(checkout, to)?.with_context(|| format!("{to} under {peer}"))?;
            }
            for to in &closed {
                ensure!(attempt(checkout, *to)?.is_err(), "{to} is open under {peer}");
            }
        }
        // Judged by who is reached: another node is reached itself, the own one's backend is.
        let reached = if closed.contains(&other) { other } else { backend };
        agent.audit.expect(
            mark,
            &[
                ("kind", "flow"),
                ("verdict", "dropped"),
                ("source.pod", "checkout"),
                ("destination.address", &reached.ip().to_string()),
                ("destination.port", &reached.port().to_string()),
            ],
        )?;
    }
    cluster.api.delete("EgressPolicy", "shop", "ports")?;
    wait_until("the policy to be gone", SOON, || Ok(checkout.try_tcp(world)?.is_ok()))
}

/// Pods as routed CNIs wire them: an address for itself, a gateway that is no address of the node's,
/// and one host route for each pod.
#[test]
fn pods_behind_a_link_local_gateway_are_judged_alike() -> Result<()> {
    let test = "pods_behind_a_link_local_gateway_are_judged_alike";
    let Some((cluster, mut town, mut outpost)) = mk_nodes(test)? else { return Ok(()) };
    // Calico: the node answers for the gateway.
    rewire(&cluster, &cluster.outpost.twin, Answer::Proxy)?;
    // AWS: the pod knows the node's MAC from the start.
    rewire(&cluster, &cluster.outpost.web, Answer::Fixed)?;
    let twin = &cluster.outpost.twin;
    wait_until("the way to the database", SOON, || Ok(twin.try_tcp(database())?.is_ok()))?;
    expect_policies(&cluster)?;

    // Nobody speaks for another pod.
    let mark = outpost.audit.mark()?;
    let stolen = format!("{}/32", cluster.outpost.web.addresses.v4);
    twin.namespace.ip(&[&format!("addr add {stolen} dev eth0")])?;
    let own = IpAddr::from(cluster.outpost.web.addresses.v4);
    let forged = twin.namespace.within(|| -> std::io::Result<()> {
        let socket = std::net::UdpSocket::bind((own, 0))?;
        socket.send_to(b"forged", database())?;
        Ok(())
    })?;
    forged.context("a datagram under the other pod's address")?;
    outpost.audit.expect(mark, &[("kind", "flow"), ("reason", "spoofed")])?;
    town.check()?;
    outpost.check()
}

/// How a pod learns the gateway's MAC.
enum Answer {
    /// The node answers for every address that it has a route to.
    Proxy,
    /// It is written down.
    Fixed,
}

fn rewire(cluster: &Cluster, pod: &Pod, answer: Answer) -> Result<()> {
    const GATEWAY: &str = "169.254.1.1";
    let (node, interface) = (&cluster.outpost.node, &pod.interface);
    let old = OUTPOST_GATEWAY.v4;
    // Its routes go with an interface's last address.
    node.ip(&[
        &format!("addr del {old}/32 dev {interface}"),
        &format!("route replace {}/32 dev {interface}", pod.addresses.v4),
    ])?;
    pod.namespace.ip(&[
        "route del default",
        &format!("route del {old} dev eth0"),
        &format!("route add {GATEWAY} dev eth0 scope link"),
        &format!("route add default via {GATEWAY} dev eth0"),
    ])?;
    match answer {
        Answer::Proxy => {
            node.sysctl(&format!("net/ipv4/conf/{interface}/proxy_arp"), "1")?;
            node.sysctl(&format!("net/ipv4/neigh/{interface}/proxy_delay"), "0")
        }
        Answer::Fixed => {
            let mac = node.run(&["ip", "-o", "link", "show", "dev", interface], SOON)?.success()?;
            let mac = mac.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
            let mac = mac.with_context(|| format!("no MAC of {interface}"))?;
            pod.namespace
                .ip(&[&format!("neigh replace {GATEWAY} lladdr {mac} dev eth0 nud permanent")])
        }
    }
}
