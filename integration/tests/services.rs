//! Services: real sockets through service addresses, on a node whose own translation would choose
//! otherwise.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use namegate_integration::addresses::{CHECKOUT, DB, Pair, ROUTER, WEB};
use namegate_integration::audit::Mark;
use namegate_integration::capture::{Capture, sent_by};
use namegate_integration::fronts::Fronts;
use namegate_integration::lab::{say_skipped, skip};
use namegate_integration::manifests::Manifests;
use namegate_integration::node::UPLINK;
use namegate_integration::patience::wait_until;
use namegate_integration::pod::{Pod, echo, echo_servers};
use namegate_integration::process::Daemon;
use namegate_integration::proxy::Proxy;
use namegate_integration::scene::Scene;
use namegate_integration::town::Town;

/// A backend on another node: the internet's side of the uplink stands in for it.
const FAR: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 244, 2, 10)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, 2, 0, 0, 0, 10)),
];
const FAR_PORT: u16 = 7_777;
/// The service of a pod of the node and of the far backend.
const MIXED: Fronts = Fronts::new("mixed", 0x80, 30_080);
/// An address of the node that is none of its uplink's, as where the node has a cache of names.
const NODE_LOCAL: Ipv4Addr = Ipv4Addr::new(169, 254, 20, 10);
/// The service of its only client.
const SELF: Fronts = Fronts::new("self", 0x90, 30_090);
const OWN_PORT: u16 = 9_000;
const LIMIT: Duration = Duration::from_secs(5);
/// Flows of a protocol that a pod begins at once: few enough for servers on a slow machine, which start
/// a process for each.
const AT_ONCE: usize = 6;
/// Times that it does so before it is taken for open or closed.
const ROUNDS: usize = 20;

/// A town with a service whose backends are a pod of the node and one elsewhere, and a service whose
/// only backend is its client. What the node itself translates goes elsewhere alone.
fn mk_scene(test: &str, proxy: Proxy) -> Result<Option<(Scene, Vec<Daemon>)>> {
    let Some(mut town) = Town::for_test(test)? else {
        return Ok(None);
    };
    if let Some(reason) = proxy.lacks(&town)? {
        let test = format!("{test} with {proxy:?}");
        match proxy {
            Proxy::Nftables | Proxy::Iptables => skip(&test, reason)?,
            // Not every kernel has it, whatever is installed.
            Proxy::Ipvs => say_skipped(&test, reason)?,
        }
        return Ok(None);
    }
    town.checkout.serve_echo(&town.lab, OWN_PORT)?;
    let [v4, v6] = FAR;
    town.internet
        .ip(&[&format!("addr add {v4}/32 dev lo"), &format!("addr add {v6}/128 dev lo nodad")])?;
    town.node.namespace.ip(&[&format!("addr add {NODE_LOCAL}/32 dev lo")])?;
    let servers = echo_servers(&town.internet, &town.lab, &FAR, FAR_PORT)?;
    let far = FAR.map(|address| SocketAddr::from((address, FAR_PORT)));
    proxy.translate(&town, MIXED, &far)?;
    let manifests = Manifests::cluster(&town.lab)?;
    manifests.write("services.yaml", &objects())?;
    let scene = Scene::begin(town, manifests, &[])?;
    for server in far {
        wait_until("the far backend", LIMIT, || Ok(scene.town.web.try_tcp(server)?.is_ok()))?;
    }
    Ok(Some((scene, servers)))
}

fn objects() -> String {
    let [v4, v6] = FAR;
    let far = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: far, namespace: shop, labels: {{app: far}}}}\n\
         spec: {{nodeName: other, containers: [{{name: far, image: far}}]}}\n\
         status: {{phase: Running, podIPs: [{{ip: {v4}}}, {{ip: \"{v6}\"}}]}}\n"
    );
    [
        far,
        MIXED.manifest(),
        MIXED.slice("near-v4", (WEB.v4, 80).into()),
        MIXED.slice("near-v6", (WEB.v6, 80).into()),
        MIXED.slice("far-v4", (v4, FAR_PORT).into()),
        MIXED.slice("far-v6", (v6, FAR_PORT).into()),
        SELF.manifest(),
        SELF.slice("v4", (CHECKOUT.v4, OWN_PORT).into()),
        SELF.slice("v6", (CHECKOUT.v6, OWN_PORT).into()),
    ]
    .concat()
}

/// Everywhere that the mixed service is reached.
fn mixed() -> Vec<SocketAddr> {
    let mut all = MIXED.all();
    all.push((NODE_LOCAL, MIXED.node_port).into());
    all
}

/// Lets the pods of `namespace` with the label `app: {app}` reach those labelled `app: {to}` in
/// `shop`, and the node itself.
fn policy(name: &str, namespace: &str, app: &str, to: &str) -> String {
    format!(
        "apiVersion: namegate.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  podSelector: {{matchLabels: {{app: {app}}}}}\n  egress:\n  - to:\n    \
         - namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: shop}}}}\n      \
           podSelector: {{matchLabels: {{app: {to}}}}}\n    - entity: Host\n"
    )
}

/// Connects and sends datagrams, [`AT_ONCE`] of each at a time, until some got through and some did not.
fn try_until_both(pod: &Pod, to: SocketAddr) -> Result<()> {
    thread::scope(|scope| {
        let protocols = [Pod::try_tcp, Pod::try_udp];
        let both =
            protocols.map(|attempt| scope.spawn(move || try_one_until_both(pod, to, attempt)));
        both.into_iter().try_for_each(join)
    })
}

fn try_one_until_both(
    pod: &Pod,
    to: SocketAddr,
    attempt: fn(&Pod, SocketAddr) -> Result<io::Result<()>>,
) -> Result<()> {
    let (mut open, mut denied) = (0, 0);
    for _ in 0..ROUNDS {
        let outcomes = thread::scope(|scope| {
            let all: Vec<_> = (0..AT_ONCE)
                .map(|_| scope.spawn(|| attempt(pod, to).map(|outcome| outcome.is_ok())))
                .collect();
            all.into_iter().map(join).collect::<Result<Vec<bool>>>()
        })?;
        open += outcomes.iter().filter(|is_open| **is_open).count();
        denied += outcomes.iter().filter(|is_open| !**is_open).count();
        if open > 1 && denied > 1 {
            return Ok(());
        }
    }
    bail!("{to}: {open} open, {denied} denied")
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread panicked"))?
}

#[test]
fn service_is_judged_by_the_backend_that_is_reached() -> Result<()> {
    judge_by_backend("service_is_judged_by_the_backend_that_is_reached", Proxy::Nftables)
}

#[test]
fn service_is_judged_by_its_backend_beside_iptables() -> Result<()> {
    judge_by_backend("service_is_judged_by_its_backend_beside_iptables", Proxy::Iptables)
}

#[test]
fn service_is_judged_by_its_backend_beside_ipvs() -> Result<()> {
    judge_by_backend("service_is_judged_by_its_backend_beside_ipvs", Proxy::Ipvs)
}

fn judge_by_backend(test: &str, proxy: Proxy) -> Result<()> {
    let Some((scene, _servers)) = mk_scene(test, proxy)? else {
        return Ok(());
    };
    let town = &scene.town;
    for front in MIXED.all() {
        // Nothing governs the pod: the node translates, and always to the same backend.
        town.checkout.try_tcp(front)?.with_context(|| front.to_string())?;
    }
    scene.manifests.write("near.yaml", &policy("near", "shop", "checkout", "web"))?;
    scene.manifests.write("far.yaml", &policy("far", "data", "db", "far"))?;
    let far = SocketAddr::from((FAR[0], FAR_PORT));
    wait_until("the policies", LIMIT, || {
        let is_closed = town.checkout.try_tcp(far)?.is_err();
        Ok(is_closed && town.db.try_tcp((WEB.v4, 80).into())?.is_err())
    })?;
    let node = &town.node.namespace;
    let away = Capture::start(&town.lab, node, UPLINK)?;
    let to_web = Capture::start(&town.lab, node, &town.web.interface)?;
    let mark = scene.agent.audit.mark()?;
    thread::scope(|scope| {
        let both = [&town.checkout, &town.db].map(|pod| {
            scope
                .spawn(move || mixed().into_iter().try_for_each(|front| try_until_both(pod, front)))
        });
        both.into_iter().try_for_each(join)
    })?;
    for front in mixed() {
        expect_records(&scene, mark, front).with_context(|| front.to_string())?;
    }
    let away = away.finish(node, ROUTER.v4.into())?;
    expect_only(&away, FAR, DB, CHECKOUT)?;
    let to_web = to_web.finish(node, WEB.v4.into())?;
    expect_only(&to_web, [WEB.v4.into(), WEB.v6.into()], CHECKOUT, DB)
}

/// The agent tells of the service and of the backend, to either pod and of either verdict.
fn expect_records(scene: &Scene, mark: Mark, front: SocketAddr) -> Result<()> {
    let (near, far) = match front {
        SocketAddr::V4(_) => (IpAddr::from(WEB.v4), FAR[0]),
        SocketAddr::V6(_) => (IpAddr::from(WEB.v6), FAR[1]),
    };
    for (pod, verdict, backend) in [
        ("checkout", "forwarded", near),
        ("checkout", "dropped", far),
        ("db", "forwarded", far),
        ("db", "dropped", near),
    ] {
        scene.agent.audit.expect(
            mark,
            &[
                ("kind", "flow"),
                ("verdict", verdict),
                ("source.pod", pod),
                ("destination.address", &backend.to_string()),
                ("service.address", &front.ip().to_string()),
                ("service.port", &front.port().to_string()),
                ("service.namespace", "shop"),
                ("service.name", "mixed"),
            ],
        )?;
    }
    Ok(())
}

/// What came to the backend is of the pod that may reach it and not of the other.
fn expect_only(seen: &[String], backend: [IpAddr; 2], may: Pair, may_not: Pair) -> Result<()> {
    let sent = |pod: Pair| {
        let pod = [format!("{}.", pod.v4), format!("{}.", pod.v6)];
        let mut lines = sent_by(seen, &pod.each_ref().map(String::as_str));
        lines.retain(|line| backend.iter().any(|to| line.contains(&format!(" > {to}."))));
        lines
    };
    ensure!(!sent(may).is_empty(), "nothing of {} to {backend:?} was seen", may.v4);
    let leaked = sent(may_not);
    ensure!(leaked.is_empty(), "sent to {backend:?}: {leaked:#?}");
    Ok(())
}

#[test]
fn live_flows_to_services_follow_the_policy() -> Result<()> {
    let Some((scene, _servers)) =
        mk_scene("live_flows_to_services_follow_the_policy", Proxy::Nftables)?
    else {
        return Ok(());
    };
    let town = &scene.town;
    let text = policy("both", "shop", "checkout", "web").replace(
        "matchLabels: {app: web}",
        "matchExpressions: [{key: app, operator: In, values: [web, far]}]",
    );
    scene.manifests.write("both.yaml", &text)?;
    let target = SocketAddr::from((town.db.addresses.v4, 5_432));
    wait_until("the policy", LIMIT, || Ok(town.checkout.try_tcp(target)?.is_err()))?;
    let mut streams = Vec::new();
    for _ in 0..10 {
        for front in MIXED.cluster() {
            streams.push(town.checkout.connect(front)??);
        }
    }
    for stream in &mut streams {
        echo(stream)?;
    }
    scene.manifests.edit("both.yaml", "values: [web, far]", "values: [web]")?;
    let all = streams.len();
    let mut keep_live = || {
        streams.retain_mut(|stream| echo(stream).is_ok());
        streams.len()
    };
    wait_until("a flow to the far backend to be cut", LIMIT, || Ok(keep_live() < all))?;
    // Those that were looked at before the policy changed are looked at again.
    let live = keep_live();
    ensure!(live > 2 && all - live > 2, "{live} of {all} live");
    for stream in &mut streams {
        echo(stream).context("a flow to the backend that stays allowed")?;
    }
    Ok(())
}

#[test]
fn pod_reaches_itself_through_its_service() -> Result<()> {
    for proxy in [Proxy::Nftables, Proxy::Iptables] {
        reach_itself("pod_reaches_itself_through_its_service", proxy)?;
    }
    Ok(())
}

#[test]
fn pod_reaches_itself_through_its_service_beside_ipvs() -> Result<()> {
    reach_itself("pod_reaches_itself_through_its_service_beside_ipvs", Proxy::Ipvs)
}

fn reach_itself(test: &str, proxy: Proxy) -> Result<()> {
    let Some((scene, _servers)) = mk_scene(test, proxy)? else {
        return Ok(());
    };
    let town = &scene.town;
    scene.manifests.write("self.yaml", &policy("self", "shop", "checkout", "checkout"))?;
    let web = SocketAddr::from((WEB.v4, 80));
    wait_until("the policy", LIMIT, || Ok(town.checkout.try_tcp(web)?.is_err()))?;
    for front in SELF.all() {
        let mut stream =
            town.checkout.connect(front)?.with_context(|| format!("TCP to {front}"))?;
        for _ in 0..3 {
            echo(&mut stream)?;
        }
        town.checkout.try_udp(front)?.with_context(|| format!("UDP to {front}"))?;
    }
    Ok(())
}
