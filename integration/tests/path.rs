//! Packets that a path cannot carry whole: pods learn how much it takes, and pieces of what is allowed
//! arrive together.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use namegate_integration::addresses::{ECHO, ECHO_PORT, EVIL};
use namegate_integration::fronts::Fronts;
use namegate_integration::namespace::Namespace;
use namegate_integration::patience::wait_until;
use namegate_integration::pod::Pod;
use namegate_integration::proxy::Proxy;
use namegate_integration::scene::Scene;

const SOON: Duration = Duration::from_secs(30);
/// What the link to the far host takes; all others take 1,500.
const NARROW: u32 = 1_400;
const FAR: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x198, 0, 0, 0, 0, 2)),
];
const PORT: u16 = 7_000;
/// A service of the open peer and one of a closed one.
const OPEN: Fronts = Fronts::new("open", 0x70, 30_070);
const CLOSED: Fronts = Fronts::new("closed", 0x60, 30_060);
/// Octets that a transfer carries.
const TRANSFER: usize = 1 << 20;

/// The checkout reaches these, the web everybody, and nobody reaches either of them.
fn policies(peers: &[IpAddr]) -> String {
    let peer =
        |peer: &IpAddr| format!("{{cidr: {peer}/{}}}", if peer.is_ipv4() { 32 } else { 128 });
    let peers: Vec<String> = peers.iter().map(peer).collect();
    format!(
        "apiVersion: namegate.dev/v1alpha1\nkind: EgressPolicy\n\
         metadata: {{name: path, namespace: shop}}\n\
         spec: {{podSelector: {{matchLabels: {{app: checkout}}}}, egress: [{{to: [{}]}}]}}\n\
         ---\n\
         apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: replies-only, namespace: shop}}\n\
         spec: {{podSelector: {{}}, policyTypes: [Ingress]}}\n",
        peers.join(", ")
    )
}

/// The town with these peers open to the checkout, of itself and by way of a service; others are closed.
/// Services of the checkout are translated by the agent's program, those of the web by the node.
fn mk_scene(test: &str, peers: [SocketAddr; 2]) -> Result<Option<Scene>> {
    let Some(scene) = Scene::without_policies(test, &[])? else { return Ok(None) };
    serve(&scene, OPEN, peers)?;
    scene.manifests.write("path.yaml", &policies(&peers.map(|peer| peer.ip())))?;
    wait_until("the policies to be in force", SOON, || {
        Ok(scene.town.checkout.try_tcp((EVIL.v4, 443).into())?.is_err())
    })?;
    Ok(Some(scene))
}

/// Makes the service known to the agent and to the node.
fn serve(scene: &Scene, fronts: Fronts, backends: [SocketAddr; 2]) -> Result<()> {
    let slices = ["v4", "v6"].into_iter().zip(backends);
    let slices: String = slices.map(|(part, backend)| fronts.slice(part, backend)).collect();
    Proxy::Nftables.translate(&scene.town, fronts, &backends)?;
    let [at, _] = fronts.cluster();
    scene.manifests.write(&format!("service-{}.yaml", at.ip()), &(fronts.manifest() + &slices))
}

/// A host behind the internet, at the end of a link that is narrower towards it.
fn mk_far(scene: &Scene) -> Result<Namespace> {
    let (lab, internet) = (&scene.town.lab, &scene.town.internet);
    let far = Namespace::create(&lab.namespace("far"))?;
    internet.sysctl("net/ipv4/ip_forward", "1")?;
    internet.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    internet.ip(&[
        &format!(
            "link add far0 mtu {NARROW} type veth peer name eth0 mtu 1500 netns {}",
            far.name()
        ),
        "addr add 198.51.100.1/24 dev far0",
        "addr add 2001:db8:198::1/64 dev far0 nodad",
        "link set far0 up",
    ])?;
    far.ip(&[
        "addr add 198.51.100.2/24 dev eth0",
        "addr add 2001:db8:198::2/64 dev eth0 nodad",
        "link set eth0 up",
        "route add default via 198.51.100.1",
        "route add default via 2001:db8:198::1",
    ])?;
    Ok(far)
}

/// Without the errors that say so, whatever is larger than the narrow link takes would be lost for good.
#[test]
fn pod_learns_how_much_a_path_takes() -> Result<()> {
    let peers = FAR.map(|host| SocketAddr::from((host, PORT)));
    let Some(scene) = mk_scene("pod_learns_how_much_a_path_takes", peers)? else { return Ok(()) };
    let far = mk_far(&scene)?;
    let (checkout, web) = (&scene.town.checkout, &scene.town.web);
    for (peer, service) in peers.into_iter().zip(OPEN.cluster()) {
        for (pod, to) in [(checkout, peer), (checkout, service), (web, service)] {
            let known = || known_mtu(pod, to.ip());
            assert_eq!(known()?, None, "{to}: learned from nobody yet");
            transfer(pod, &far, (to, peer))
                .with_context(|| format!("from {} to {to}", pod.interface))?;
            assert_eq!(known()?, Some(NARROW), "{to}, from {}", pod.interface);
        }
    }
    Ok(())
}

/// Sends from the pod to `to` by TCP what the far host counts at `peer`.
fn transfer(pod: &Pod, far: &Namespace, (to, peer): (SocketAddr, SocketAddr)) -> Result<()> {
    let listener = far.within(|| TcpListener::bind(peer))??;
    let mut sender = pod.connect(to)??;
    let (mut receiver, _) = listener.accept()?;
    for end in [&sender, &receiver] {
        end.set_read_timeout(Some(SOON))?;
        end.set_write_timeout(Some(SOON))?;
    }
    let received = thread::spawn(move || -> Result<usize> {
        let mut all = Vec::new();
        receiver.read_to_end(&mut all)?;
        Ok(all.len())
    });
    sender.write_all(&vec![7; TRANSFER])?;
    sender.shutdown(Shutdown::Write)?;
    let received = received.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
    ensure!(received == TRANSFER, "{received} of {TRANSFER} octets");
    Ok(())
}

/// What the pod's kernel learned about the path to `host`.
fn known_mtu(pod: &Pod, host: IpAddr) -> Result<Option<u32>> {
    let told = pod.namespace.run(&["ip", "route", "get", &host.to_string()], SOON)?.success()?;
    let mut words = told.split_whitespace();
    match words.find(|word| *word == "mtu").and_then(|_| words.next()) {
        Some(mtu) => Ok(Some(mtu.parse().with_context(|| told.clone())?)),
        None => Ok(None),
    }
}

/// Only the first piece of a datagram has the ports that policy is about.
#[test]
fn datagram_in_pieces_passes_both_ways_and_a_denied_one_neither() -> Result<()> {
    let test = "datagram_in_pieces_passes_both_ways_and_a_denied_one_neither";
    let peers =
        [IpAddr::V4(ECHO.v4), IpAddr::V6(ECHO.v6)].map(|ip| SocketAddr::from((ip, ECHO_PORT)));
    let Some(scene) = mk_scene(test, peers)? else { return Ok(()) };
    let denied = [IpAddr::V4(EVIL.v4), IpAddr::V6(EVIL.v6)].map(|ip| SocketAddr::from((ip, PORT)));
    serve(&scene, CLOSED, denied)?;
    let town = &scene.town;
    for (family, peer) in peers.into_iter().enumerate() {
        let (service, closed) = (OPEN.cluster()[family], CLOSED.cluster()[family]);
        let sink = town.internet.within(|| UdpSocket::bind(denied[family]))??;
        sink.set_nonblocking(true)?;
        for (pod, open) in [(&town.checkout, peer), (&town.checkout, service), (&town.web, service)]
        {
            send_pieces(pod, open).with_context(|| format!("{} to {open}", pod.interface))?;
        }
        for closed in [denied[family], closed] {
            let socket = mk_socket(&town.checkout, closed)?;
            socket.send_to(&content(), closed)?;
        }
        // They are on their way no more when an answer to what came later is there.
        send_pieces(&town.checkout, peer)?;
        assert!(sink.recv(&mut [0; 10]).is_err(), "{} got one", denied[family]);
    }
    Ok(())
}

/// More than any link here takes at once.
fn content() -> Vec<u8> {
    (0..4_000u32).map(|at| (at % 251) as u8).collect()
}

fn mk_socket(pod: &Pod, to: SocketAddr) -> Result<UdpSocket> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = pod.namespace.within(|| UdpSocket::bind(any))??;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    Ok(socket)
}

/// Has the peer send back a datagram that takes more than one packet.
fn send_pieces(pod: &Pod, to: SocketAddr) -> Result<()> {
    let (socket, content) = (mk_socket(pod, to)?, content());
    wait_until(&format!("{to} to send it back"), SOON, || {
        socket.send_to(&content, to)?;
        let mut back = vec![0; 65_535];
        let Ok((length, from)) = socket.recv_from(&mut back) else { return Ok(false) };
        ensure!(from == to && back.get(..length) == Some(&content[..]), "{length} from {from}");
        Ok(true)
    })
}
