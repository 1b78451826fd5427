//! Services: real sockets through service addresses, on a node whose own translation would choose
//! otherwise.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use namegate_integration::addresses::{CHECKOUT, NODE, ROUTER, WEB};
use namegate_integration::capture::{Capture, sent_by};
use namegate_integration::lab::say_skipped;
use namegate_integration::manifests::Manifests;
use namegate_integration::node::UPLINK;
use namegate_integration::patience::wait_until;
use namegate_integration::pod::{Pod, echo, echo_servers};
use namegate_integration::process::Daemon;
use namegate_integration::scene::Scene;
use namegate_integration::town::Town;

/// A backend on another node: the internet's side of the uplink stands in for it.
const FAR: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(10, 244, 2, 10), Ipv6Addr::new(0xfd00, 0x10, 0x244, 2, 0, 0, 0, 10));
const FAR_PORT: u16 = 7_777;
const MIXED: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, 80)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x80)),
];
const SELF: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, 90)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x90)),
];
const OWN_PORT: u16 = 9_000;
const NODE_PORT: u16 = 30_080;
const LIMIT: Duration = Duration::from_secs(5);

/// How the node itself translates services, as kube-proxy does in a mode of its own.
#[derive(Clone, Copy, Debug)]
enum Proxy {
    Nftables,
    Iptables,
    Ipvs,
}

impl Proxy {
    /// Translates both families of the mixed service and its node port to the far backend, always.
    fn translate(self, town: &Town) -> Result<()> {
        let node = &town.node.namespace;
        let [v4, v6] = MIXED;
        match self {
            Self::Nftables => {
                let rules = format!(
                    "table inet elsewhere {{
  chain translate {{
    type nat hook prerouting priority -100;
    ip daddr {v4} meta l4proto {{ tcp, udp }} th dport 8080 dnat ip to {}:{FAR_PORT}
    ip daddr {} meta l4proto {{ tcp, udp }} th dport {NODE_PORT} dnat ip to {}:{FAR_PORT}
    ip6 daddr {v6} meta l4proto {{ tcp, udp }} th dport 8080 dnat ip6 to [{}]:{FAR_PORT}
  }}
}}\n",
                    FAR.0, NODE.v4, FAR.0, FAR.1
                );
                let file = town.lab.file("elsewhere.nft");
                std::fs::write(&file, rules)?;
                let path = file.to_str().context("a path")?;
                node.run(&["nft", "-f", path], LIMIT)?.success()?;
            }
            Self::Iptables => {
                for protocol in ["tcp", "udp"] {
                    let far = [format!("{}:{FAR_PORT}", FAR.0), format!("[{}]:{FAR_PORT}", FAR.1)];
                    Self::chain(town, "iptables-legacy", protocol, &v4.to_string(), &far[0])?;
                    Self::chain(town, "ip6tables-legacy", protocol, &v6.to_string(), &far[1])?;
                }
            }
            Self::Ipvs => {
                for protocol in ["-t", "-u"] {
                    for (service, far) in [
                        (format!("{v4}:8080"), format!("{}:{FAR_PORT}", FAR.0)),
                        (format!("{}:{NODE_PORT}", NODE.v4), format!("{}:{FAR_PORT}", FAR.0)),
                        (format!("[{v6}]:8080"), format!("[{}]:{FAR_PORT}", FAR.1)),
                    ] {
                        let add = ["ipvsadm", "-A", protocol, &service, "-s", "rr"];
                        node.run(&add, LIMIT)?.success()?;
                        let to = ["ipvsadm", "-a", protocol, &service, "-r", &far, "-m"];
                        node.run(&to, LIMIT)?.success()?;
                    }
                }
                // The addresses that a node takes packets for are its own.
                node.ip(&[
                    "link add kube-ipvs0 type dummy",
                    &format!("addr add {v4}/32 dev kube-ipvs0"),
                    &format!("addr add {v6}/128 dev kube-ipvs0 nodad"),
                ])?;
            }
        }
        Ok(())
    }

    /// The chains of a service as kube-proxy names and orders them.
    fn chain(town: &Town, program: &str, protocol: &str, service: &str, far: &str) -> Result<()> {
        let (chosen, backend) = (format!("KUBE-SVC-{protocol}"), format!("KUBE-SEP-{protocol}"));
        let jump = |to: &'static str, from: &'static str| vec!["-A", from, "-j", to];
        let mut rules: Vec<Vec<&str>> = vec![vec!["-N", &chosen], vec!["-N", &backend]];
        if protocol == "tcp" {
            rules.push(vec!["-N", "KUBE-SERVICES"]);
            rules.push(jump("KUBE-SERVICES", "PREROUTING"));
            rules.push(jump("KUBE-SERVICES", "OUTPUT"));
        }
        let node_port = NODE_PORT.to_string();
        let port = |number| ["-p", protocol, "--dport", number, "-j", &chosen];
        let to_service = ["-A", "KUBE-SERVICES", "-d", service];
        rules.push([to_service.as_slice(), &port("8080")].concat());
        let local = ["-A", "KUBE-SERVICES", "-m", "addrtype", "--dst-type", "LOCAL"];
        rules.push([local.as_slice(), &port(&node_port)].concat());
        rules.push(vec!["-A", &chosen, "-j", &backend]);
        rules.push(vec!["-A", &backend, "-p", protocol, "-j", "DNAT", "--to-destination", far]);
        for rule in rules {
            let words =
                [["/usr/sbin/".to_owned() + program].as_slice(), &["-w".to_owned()]].concat();
            let table = ["-t".to_owned(), "nat".to_owned()];
            let rule = rule.into_iter().map(str::to_owned).collect::<Vec<_>>();
            let words = [words.as_slice(), &table, &rule].concat();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            town.node.namespace.run(&words, LIMIT)?.success()?;
        }
        Ok(())
    }

    /// What this machine lacks for the mode.
    fn lacks(self, town: &Town) -> Result<Option<&'static str>> {
        let runs = |words: &[&str]| -> Result<bool> {
            let words = [["sh", "-c"].as_slice(), words].concat();
            Ok(town.node.namespace.run(&words, LIMIT)?.success().is_ok())
        };
        Ok(match self {
            Self::Nftables => None,
            Self::Iptables => (!runs(&["/usr/sbin/iptables-legacy -t nat -S"])?)
                .then_some("no iptables-legacy, or a kernel without it"),
            // It loads the module where that is one.
            Self::Ipvs => {
                (!runs(&["ipvsadm -Ln"])?).then_some("a kernel without IP_VS, or no ipvsadm")
            }
        })
    }
}

/// A town with a service whose backends are a pod of the node and one elsewhere, and a service whose
/// only backend is its client. What the node itself translates goes elsewhere alone.
fn mk_scene(test: &str, proxy: Proxy) -> Result<Option<(Scene, Vec<Daemon>)>> {
    let Some(mut town) = Town::for_test(test)? else {
        return Ok(None);
    };
    if let Some(reason) = proxy.lacks(&town)? {
        say_skipped(&format!("{test} with {proxy:?}"), reason)?;
        return Ok(None);
    }
    town.checkout.serve_echo(&town.lab, OWN_PORT)?;
    let hosts = [IpAddr::V4(FAR.0), IpAddr::V6(FAR.1)];
    town.internet.ip(&[
        &format!("addr add {}/32 dev lo", FAR.0),
        &format!("addr add {}/128 dev lo nodad", FAR.1),
    ])?;
    let servers = echo_servers(&town.internet, &town.lab, &hosts, FAR_PORT)?;
    proxy.translate(&town)?;
    let manifests = Manifests::cluster(&town.lab)?;
    manifests.write("services.yaml", &objects())?;
    let scene = Scene::begin(town, manifests, &[])?;
    for host in hosts {
        let server = SocketAddr::from((host, FAR_PORT));
        wait_until("the far backend", LIMIT, || Ok(scene.town.web.try_tcp(server)?.is_ok()))?;
    }
    Ok(Some((scene, servers)))
}

fn objects() -> String {
    let slice = |service: &str, name: &str, address: IpAddr, port: u16| {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {service}-{name}, \
             namespace: shop, labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: {family}\n\
             endpoints: [{{addresses: [\"{address}\"], conditions: {{ready: true}}}}]\n\
             ports: [{{name: stream, port: {port}, protocol: TCP}}, {{name: datagram, port: {port}, protocol: UDP}}]\n"
        )
    };
    let service = |name: &str, addresses: &[IpAddr; 2], node_port: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
             clusterIPs: [\"{}\", \"{}\"]\n  ports:\n  \
             - {{name: stream, port: 8080, protocol: TCP{node_port}}}\n  \
             - {{name: datagram, port: 8080, protocol: UDP{node_port}}}\n",
            addresses[0], addresses[1]
        )
    };
    let far = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: far, namespace: shop, labels: {{app: far}}}}\n\
         spec: {{nodeName: other, containers: [{{name: far, image: far}}]}}\n\
         status: {{phase: Running, podIPs: [{{ip: {}}}, {{ip: \"{}\"}}]}}\n",
        FAR.0, FAR.1
    );
    [
        far,
        service("mixed", &MIXED, &format!(", nodePort: {NODE_PORT}")),
        slice("mixed", "near-v4", WEB.v4.into(), 80),
        slice("mixed", "near-v6", WEB.v6.into(), 80),
        slice("mixed", "far-v4", FAR.0.into(), FAR_PORT),
        slice("mixed", "far-v6", FAR.1.into(), FAR_PORT),
        service("self", &SELF, ""),
        slice("self", "v4", CHECKOUT.v4.into(), OWN_PORT),
        slice("self", "v6", CHECKOUT.v6.into(), OWN_PORT),
    ]
    .concat()
}

/// Lets the pods of `namespace` with the label `app: {app}` reach those labelled `app: {to}` in
/// `shop`.
fn policy(name: &str, namespace: &str, app: &str, to: &str) -> String {
    format!(
        "apiVersion: namegate.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  podSelector: {{matchLabels: {{app: {app}}}}}\n  egress:\n  - to:\n    \
         - namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: shop}}}}\n      \
           podSelector: {{matchLabels: {{app: {to}}}}}\n"
    )
}

/// Connects and sends datagrams until some got through and some did not.
fn try_until_both(pod: &Pod, to: SocketAddr) -> Result<()> {
    for attempt in [Pod::try_tcp, Pod::try_udp] {
        let mut outcomes = [0; 2];
        for _ in 0..60 {
            outcomes[usize::from(attempt(pod, to)?.is_ok())] += 1;
            if outcomes.iter().all(|count| *count > 1) {
                break;
            }
        }
        ensure!(outcomes.iter().all(|count| *count > 1), "{to}: denied and open: {outcomes:?}");
    }
    Ok(())
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
    for address in MIXED {
        // Nothing governs the pod: the node translates, and always to the same backend.
        town.checkout.try_tcp((address, 8_080).into())??;
    }
    scene.manifests.write("near.yaml", &policy("near", "shop", "checkout", "web"))?;
    scene.manifests.write("far.yaml", &policy("far", "data", "db", "far"))?;
    let far = SocketAddr::from((FAR.0, FAR_PORT));
    wait_until("the policies", LIMIT, || {
        let is_closed = town.checkout.try_tcp(far)?.is_err();
        Ok(is_closed && town.db.try_tcp((WEB.v4, 80).into())?.is_err())
    })?;
    let capture = Capture::start(&town.lab, &town.node.namespace, UPLINK)?;
    let mark = scene.agent.audit.mark()?;
    for address in MIXED {
        try_until_both(&town.checkout, (address, 8_080).into())?;
        try_until_both(&town.db, (address, 8_080).into())?;
    }
    try_until_both(&town.checkout, (NODE.v4, NODE_PORT).into())?;
    for (near, far) in
        [(IpAddr::V4(WEB.v4), IpAddr::V4(FAR.0)), (IpAddr::V6(WEB.v6), IpAddr::V6(FAR.1))]
    {
        for (pod, verdict, backend) in [
            ("checkout", "forwarded", near),
            ("checkout", "dropped", far),
            ("db", "forwarded", far),
            ("db", "dropped", near),
        ] {
            let service = MIXED[usize::from(near.is_ipv6())].to_string();
            let backend = backend.to_string();
            scene.agent.audit.expect(
                mark,
                &[
                    ("kind", "flow"),
                    ("verdict", verdict),
                    ("source.pod", pod),
                    ("destination.address", &backend),
                    ("service.address", &service),
                    ("service.port", "8080"),
                    ("service.namespace", "shop"),
                    ("service.name", "mixed"),
                ],
            )?;
        }
    }
    let left = capture.finish(&town.node.namespace, ROUTER.v4.into())?;
    let checkouts = [CHECKOUT.v4.to_string(), CHECKOUT.v6.to_string()];
    let leaked = sent_by(&left, &checkouts.each_ref().map(String::as_str));
    ensure!(leaked.is_empty(), "sent to the far backend: {leaked:#?}");
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
        for address in MIXED {
            streams.push(town.checkout.connect((address, 8_080).into())??);
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
    for address in SELF {
        let service = SocketAddr::from((address, 8_080));
        let mut stream = town.checkout.connect(service)?.context("hairpin")?;
        for _ in 0..3 {
            echo(&mut stream)?;
        }
        town.checkout.try_udp(service)?.context("hairpin by UDP")?;
    }
    Ok(())
}
