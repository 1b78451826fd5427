//! Two nodes and what may lie between pods: each end is judged on its own node, whatever is translated
//! on the way and however a CNI routes.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use namegate_integration::addresses::{
    DB, DB_PORT, ECHO, ECHO_PORT, EVIL, OUTPOST, OUTPOST_GATEWAY, ROUTER,
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
/// What the far web serves.
const FAR_PORT: u16 = 9_000;

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
