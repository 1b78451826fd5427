//! Flows between pods, to ranges, and under policies that change: real sockets under a running
//! agent.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use namegate_integration::addresses::{
    AUTHORITY, DB, DB_PORT, ECHO, ECHO_PORT, EVIL, METADATA, NODE, ROUTER, STRIPE, WEB,
};
use namegate_integration::capture::{Capture, sent_by};
use namegate_integration::dns::{Query, Transport};
use namegate_integration::node::UPLINK;
use namegate_integration::patience::wait_until;
use namegate_integration::pod::{Pod, echo};
use namegate_integration::scene::Scene;

/// How long a change of a file may take to be in force.
const ONE_SECOND: Duration = Duration::from_secs(1);

#[test]
fn database_takes_only_what_its_policy_allows() -> Result<()> {
    let Some(scene) = Scene::for_test("database_takes_only_what_its_policy_allows", &[])? else {
        return Ok(());
    };
    let town = &scene.town;
    for host in [IpAddr::V4(DB.v4), IpAddr::V6(DB.v6)] {
        let database = SocketAddr::from((host, DB_PORT));
        let mut stream = town.checkout.connect(database)??;
        echo(&mut stream)?;
        assert!(town.checkout.try_udp(database)?.is_err(), "UDP to {database}");
        assert!(!town.checkout.ping(host)?, "ping {host}");
        let mark = scene.agent.audit.mark()?;
        assert!(town.web.try_tcp(database)?.is_err(), "web to {database}");
        scene.agent.audit.expect(
            mark,
            &[
                ("kind", "flow"),
                ("verdict", "dropped"),
                ("direction", "ingress"),
                ("source.namespace", "shop"),
                ("source.pod", "web"),
                ("destination.namespace", "data"),
                ("destination.pod", "db"),
                ("destination.port", "5432"),
            ],
        )?;
    }
    assert!(town.db.try_tcp((WEB.v4, 80).into())?.is_err(), "the database opens nothing");
    assert!(town.db.try_tcp((EVIL.v6, 443).into())?.is_err(), "the database opens nothing");
    Ok(())
}

#[test]
fn node_always_reaches_its_pods() -> Result<()> {
    let Some(scene) = Scene::for_test("node_always_reaches_its_pods", &[])? else {
        return Ok(());
    };
    let node = &scene.town.node.namespace;
    for host in [IpAddr::V4(DB.v4), IpAddr::V6(DB.v6)] {
        let database = SocketAddr::from((host, DB_PORT));
        let mut stream =
            node.within(|| std::net::TcpStream::connect_timeout(&database, ONE_SECOND))??;
        echo(&mut stream)?;
        let ping = ["ping", "-n", "-c", "1", "-W", "1", &host.to_string()];
        assert!(node.run(&ping, Duration::from_secs(5))?.status.success(), "ping {host}");
    }
    let gateway = scene.town.checkout.ping(NODE.v4.into())?;
    assert!(!gateway, "a pod's way to its node is governed by its egress rules");
    Ok(())
}

/// NP-23: what a pod sends to itself never comes to its interface.
#[test]
fn a_pod_always_reaches_itself() -> Result<()> {
    let Some(scene) = Scene::for_test("a_pod_always_reaches_itself", &[])? else {
        return Ok(());
    };
    // It takes connections of the checkout alone, and opens none.
    let db = &scene.town.db;
    for host in [IpAddr::V4(DB.v4), IpAddr::V6(DB.v6)] {
        let database = SocketAddr::from((host, DB_PORT));
        echo(&mut db.connect(database)??)?;
        db.try_udp(database)??;
        assert!(db.ping(host)?, "ping {host}");
    }
    for host in [IpAddr::from([127, 0, 0, 1]), "::1".parse()?] {
        let listener = db.namespace.within(|| std::net::TcpListener::bind((host, 0)))??;
        db.try_tcp(listener.local_addr()?)??;
        assert!(db.ping(host)?, "ping {host}");
    }
    assert!(db.try_tcp((WEB.v4, 80).into())?.is_err(), "nobody else");
    Ok(())
}

/// NP-21: a pod in the node's network is the node, whatever labels it has.
#[test]
fn a_pod_in_the_nodes_network_is_the_node() -> Result<()> {
    const PORT: u16 = 8_090;
    let Some(mut scene) = Scene::for_test("a_pod_in_the_nodes_network_is_the_node", &[])? else {
        return Ok(());
    };
    let hosted = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: hosted, namespace: shop, labels: {{app: hosted}}}}\n\
         spec: {{hostNetwork: true, containers: [{{name: hosted, image: hosted}}]}}\n\
         status: {{phase: Running, podIP: {0}, podIPs: [{{ip: {0}}}, {{ip: \"{1}\"}}]}}\n\
         ---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: hosted, namespace: shop}}\n\
         spec: {{podSelector: {{matchLabels: {{app: hosted}}}}, policyTypes: [Ingress, Egress]}}\n\
         ---\napiVersion: namegate.dev/v1alpha1\nkind: EgressPolicy\n\
         metadata: {{name: to-hosted, namespace: shop}}\n\
         spec: {{podSelector: {{matchLabels: {{app: checkout}}}}, \
         egress: [{{to: [{{podSelector: {{matchLabels: {{app: hosted}}}}}}, {{cidr: {2}/32}}]}}]}}\n",
        NODE.v4, NODE.v6, EVIL.v4
    );
    scene.manifests.write("hosted.yaml", &hosted)?;
    let (town, evil) = (&scene.town, SocketAddr::from((EVIL.v4, 443)));
    wait_until("the manifest to be read", ONE_SECOND * 10, || {
        Ok(town.checkout.try_tcp(evil)?.is_ok())
    })?;
    // No policy is about what it sends and gets: it reaches pods, and the world, and is reached.
    let node = &town.node.namespace;
    for host in [IpAddr::V4(DB.v4), IpAddr::V6(DB.v6)] {
        let to = SocketAddr::from((host, DB_PORT));
        echo(&mut node.within(|| std::net::TcpStream::connect_timeout(&to, ONE_SECOND))??)?;
    }
    for host in [IpAddr::V4(EVIL.v4), IpAddr::V6(EVIL.v6)] {
        let to = SocketAddr::from((host, 443));
        node.within(|| std::net::TcpStream::connect_timeout(&to, ONE_SECOND))??;
    }
    let hosts = [IpAddr::V4(NODE.v4), IpAddr::V6(NODE.v6)];
    let listeners = hosts.map(|host| node.within(|| std::net::TcpListener::bind((host, PORT))));
    for host in hosts {
        let to = SocketAddr::from((host, PORT));
        assert!(town.checkout.try_tcp(to)?.is_err(), "its labels are no peer: {host}");
    }
    let (from, to) =
        ("{podSelector: {matchLabels: {app: hosted}}}, {cidr", "{entity: Host}, {cidr");
    scene.manifests.edit("hosted.yaml", from, to)?;
    for host in hosts {
        let to = SocketAddr::from((host, PORT));
        wait_until("the node to be reached", ONE_SECOND * 10, || {
            Ok(town.checkout.try_tcp(to)?.is_ok())
        })?;
    }
    for listener in listeners {
        drop(listener??);
    }
    scene.agent.check()
}

#[test]
fn denial_of_the_metadata_address_wins_over_the_range() -> Result<()> {
    let test = "denial_of_the_metadata_address_wins_over_the_range";
    let Some(scene) = Scene::for_test(test, &[])? else {
        return Ok(());
    };
    let mark = scene.agent.audit.mark()?;
    assert!(scene.town.web.try_tcp((METADATA, 80).into())?.is_err());
    scene.agent.audit.expect(
        mark,
        &[
            ("kind", "flow"),
            ("verdict", "dropped"),
            ("destination.address", "169.254.169.254"),
            ("policy.kind", "EgressPolicy"),
            ("policy.name", "web-apis"),
        ],
    )?;
    scene.manifests.edit("web-apis.yaml", "169.254.169.254/32", "169.254.170.1/32")?;
    wait_until("the metadata address to open without the denial", ONE_SECOND * 3, || {
        Ok(scene.town.web.try_tcp((METADATA, 80).into())?.is_ok())
    })
}

/// NP-26, CH-5: live connections are judged again after a change.
#[test]
fn removed_rule_cuts_its_live_connections_and_no_other() -> Result<()> {
    let test = "removed_rule_cuts_its_live_connections_and_no_other";
    let Some(scene) = Scene::for_test(test, &[])? else {
        return Ok(());
    };
    let checkout = &scene.town.checkout;
    let mut kept = Vec::new();
    let mut cut = Vec::new();
    for host in [IpAddr::V4(DB.v4), IpAddr::V6(DB.v6)] {
        kept.push(checkout.connect((host, DB_PORT).into())??);
    }
    checkout.resolve("echo.acme.example")?;
    checkout.ask(&Query::aaaa("echo.acme.example"))?;
    for host in [IpAddr::V4(ECHO.v4), IpAddr::V6(ECHO.v6)] {
        cut.push(checkout.connect((host, ECHO_PORT).into())??);
    }
    for stream in kept.iter_mut().chain(&mut cut) {
        echo(stream)?;
    }
    let from = "- fqdn: echo.acme.example";
    scene.manifests.edit("checkout-apis.yaml", from, "- fqdn: other.acme.example")?;
    let edited = Instant::now();
    wait_until("the cut", ONE_SECOND * 3, || {
        Ok(cut.iter_mut().all(|stream| echo(stream).is_err()))
    })?;
    let took = edited.elapsed();
    assert!(took < ONE_SECOND * 3, "{took:?}, each probe's own patience included");
    for stream in &mut kept {
        echo(stream)?;
    }
    Ok(())
}

#[test]
fn policies_appear_change_and_vanish_within_a_second() -> Result<()> {
    let test = "policies_appear_change_and_vanish_within_a_second";
    let Some(mut scene) = Scene::without_policies(test, &[])? else {
        return Ok(());
    };
    let target = SocketAddr::from((EVIL.v4, 443));
    scene.town.checkout.try_tcp(target)??;
    let text = std::fs::read_to_string(
        namegate_integration::manifests::examples().join("deny-all-egress.yaml"),
    )?;
    scene.manifests.write("deny.yaml", &text)?;
    within_a_second("the policy to close", &scene, target, false)?;
    scene.manifests.edit("deny.yaml", "egress: []", "egress: [{to: [{cidr: 203.0.113.66/32}]}]")?;
    within_a_second("the change to open", &scene, target, true)?;
    assert!(scene.town.checkout.try_tcp((STRIPE.v4, 443).into())?.is_err());
    scene.manifests.edit("deny.yaml", "[{to: [{cidr: 203.0.113.66/32}]}]", "[]")?;
    within_a_second("the change to close", &scene, target, false)?;
    scene.manifests.remove("deny.yaml")?;
    within_a_second("the removal to open", &scene, target, true)?;
    scene.agent.check()
}

/// Connections are opened one after the other, each with a patience of its own: the first that
/// shows the wanted state must have begun within the second.
fn within_a_second(what: &str, scene: &Scene, target: SocketAddr, open: bool) -> Result<()> {
    let changed = Instant::now();
    wait_until(what, Duration::from_secs(5), || {
        let begun = changed.elapsed();
        let is_open = scene.town.checkout.try_tcp(target)?.is_ok();
        ensure!(begun < ONE_SECOND || is_open == open, "{what}: not within a second");
        Ok(is_open == open)
    })
}

#[test]
fn nothing_of_a_denied_pod_leaves_the_node() -> Result<()> {
    let Some(scene) = Scene::for_test("nothing_of_a_denied_pod_leaves_the_node", &[])? else {
        return Ok(());
    };
    let town = &scene.town;
    let capture = Capture::start(&town.lab, &town.node.namespace, UPLINK)?;
    thread::scope(|scope| {
        let pods = [&town.checkout, &town.web, &town.db];
        let attempts = pods.map(|pod| scope.spawn(|| try_everything(pod)));
        attempts.into_iter().try_for_each(|attempt| {
            attempt.join().map_err(|_| anyhow!("an attempt to get out panicked"))?
        })
    })?;
    let seen = capture.finish(&town.node.namespace, ROUTER.v4.into())?;
    let leaked = sent_by(&seen, &["10.244.1.", "fd00:10:244:1:"]);
    assert!(leaked.is_empty(), "left the node: {leaked:#?}");
    Ok(())
}

/// Every way out that no policy of the town opens.
fn try_everything(pod: &Pod) -> Result<()> {
    for server in [IpAddr::V4(AUTHORITY.v4), IpAddr::V6(AUTHORITY.v6)] {
        for transport in [Transport::Udp, Transport::Tcp] {
            let query = Query::a("api.stripe.com").at(server).over(transport);
            let reply = pod.ask(&query.within_seconds(1))?;
            ensure!(reply.status == "TIMEOUT", "{server} over {transport:?}: {reply:?}");
        }
    }
    for host in [IpAddr::V4(EVIL.v4), IpAddr::V6(EVIL.v6), IpAddr::V4(METADATA)] {
        for port in [53, 80, 443] {
            let target = SocketAddr::from((host, port));
            ensure!(pod.try_tcp(target)?.is_err(), "TCP {target}");
            ensure!(pod.try_udp(target)?.is_err(), "UDP {target}");
        }
        ensure!(!pod.ping(host)?, "ping {host}");
    }
    Ok(())
}
