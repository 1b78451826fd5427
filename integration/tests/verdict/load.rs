//! Packets of real sockets over a real interface: all are counted, whatever becomes of the records of
//! them, and those that are rewritten with the others; tables change places under them; and they are
//! larger than a page.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use namegate_egress_bpf::abi::{
    Direction, DropReason, EventVerdict, Pass, ROLE_HAIRPIN, ROLE_TRANSLATED,
};
use namegate_egress_bpf::datapath::Reason;
use namegate_egress_bpf::sim::frame;
use namegate_integration::lab::{self, Lab};
use namegate_integration::namespace::Namespace;
use namegate_integration::patience::{wait_for, wait_until};
use namegate_policy::rule::{PortRange, Protocol};
use namegate_policy::table::{Clause, ClauseAction, ClausePeers, ClausePorts, ClauseTier};

use crate::random::{MAC, World};
use crate::twin::Twin;

pub(crate) const SOON: Duration = Duration::from_secs(30);
const NODE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
/// Another address of the node's end, which is nobody's that the program knows of.
pub(crate) const PEER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 77);
pub(crate) const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 10);
pub(crate) const OPEN: u16 = 7_000;
const CLOSED: u16 = 7_999;
const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 53);
/// The proxy as the program knows it, with the port of the first resolver.
const PROXY: (Ipv4Addr, u16) = (Ipv4Addr::new(169, 254, 53, 53), 15_300);
/// A service: a port of it leads to `PEER`, another back to the pod.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 80);
const TO_PEER: u16 = 80;
const TO_ITSELF: u16 = 81;
/// More than a frame of the usual size holds, and than a page.
const LARGE: usize = 5_000;

/// A pod at a real interface of a node, with the program at its hooks.
pub(crate) struct Wire {
    pub(crate) pod: Namespace,
    pub(crate) node: Namespace,
    _lab: Lab,
}

impl Wire {
    pub(crate) fn lay() -> Result<Self> {
        let lab = Lab::for_test()?;
        let node = Namespace::create(&lab.namespace("node"))?;
        let pod = Namespace::create(&lab.namespace("pod"))?;
        for namespace in [&pod, &node] {
            namespace.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        }
        let mac = mac();
        node.ip(&[
            &format!("link add pod0 mtu 9000 type veth peer name eth0 netns {}", pod.name()),
            &format!("addr add {NODE}/24 dev pod0"),
            &format!("addr add {PEER}/24 dev pod0"),
            "link set pod0 up",
        ])?;
        pod.ip(&[
            &format!("link set eth0 mtu 9000 address {mac} up"),
            &format!("addr add {POD}/24 dev eth0"),
        ])?;
        Ok(Self { pod, node, _lab: lab })
    }

    /// Does `work` in the node's namespace with the program attached under `world`.
    pub(crate) fn judged<T: Send>(
        &self,
        name: &str,
        world: &World,
        work: impl FnOnce(&mut Twin) -> Result<T> + Send,
    ) -> Result<T> {
        let ifindex = self.node.interface_index("pod0")?;
        self.node.within(|| {
            let mut twin = Twin::open(name)?.at(ifindex);
            twin.enter(world)?;
            twin.datapath().attach(ifindex)?;
            let done = work(&mut twin)?;
            twin.close()?;
            Ok(done)
        })?
    }

    /// Tells the node the pod's address on the link: what waits for it to be found is lost where it
    /// becomes too much.
    pub(crate) fn introduce(&self) -> Result<()> {
        self.node.ip(&[&format!("neigh replace {POD} lladdr {} dev pod0 nud permanent", mac())])
    }

    /// Gives the node the addresses of the resolver, of the service and of the proxy, so that the pod
    /// finds them on the link and the node can send from them.
    fn give_addresses(&self) -> Result<()> {
        self.node.ip(&[
            &format!("addr add {RESOLVER}/24 dev pod0"),
            &format!("addr add {SERVICE}/24 dev pod0"),
            &format!("addr add {}/32 dev lo", PROXY.0),
        ])
    }

    /// How many packets the node's end of the pod's interface took.
    fn taken(&self) -> Result<u64> {
        self.counted("rx", "packets")
    }

    /// How many packets the node's end handed on to the pod, whether it had room for them or not.
    fn given(&self) -> Result<u64> {
        Ok(self.counted("tx", "packets")? + self.counted("tx", "dropped")?)
    }

    fn counted(&self, way: &str, what: &str) -> Result<u64> {
        let finished = self.node.run(&["ip", "-j", "-s", "link", "show", "dev", "pod0"], SOON)?;
        let links: serde_json::Value = serde_json::from_str(&finished.success()?)?;
        links[0]["stats64"][way][what].as_u64().context("a count of packets")
    }

    fn listen(&self, port: u16) -> Result<UdpSocket> {
        let socket = self.node.within(|| UdpSocket::bind((NODE, port)))??;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    fn client(&self, port: u16) -> Result<UdpSocket> {
        self.client_of((NODE, port))
    }

    fn client_of(&self, far: (Ipv4Addr, u16)) -> Result<UdpSocket> {
        let socket = self.pod.within(|| UdpSocket::bind((POD, 0)))??;
        socket.connect(far)?;
        Ok(socket)
    }
}

/// The pod's address on the link.
fn mac() -> String {
    let [a, b, c, d, e, f] = MAC.0;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

pub(crate) fn clause(action: ClauseAction, peers: ClausePeers, ports: ClausePorts) -> Clause {
    Clause { action, tier: ClauseTier::Namespaced, peers, ports, origins: [].into() }
}

pub(crate) fn ports(open: &[u16]) -> ClausePorts {
    let open = open.iter().flat_map(|port| {
        [Protocol::Tcp, Protocol::Udp].map(|protocol| (protocol, PortRange::single(*port)))
    });
    ClausePorts::Of(open.collect())
}

/// A pod that may reach these ports of anybody.
pub(crate) fn opening(open: &[u16]) -> Vec<Clause> {
    let anybody = || ClausePeers { any: true, ..ClausePeers::default() };
    vec![
        clause(ClauseAction::Forward, anybody(), ports(open)),
        clause(ClauseAction::Drop, anybody(), ClausePorts::Any),
    ]
}

/// The world of these rules with a service.
fn serving(egress: Vec<Clause>, ingress: Vec<Clause>) -> World {
    let mut world = World::ruled(egress, ingress);
    world.serve(17, (SERVICE.into(), TO_PEER), &[(PEER.into(), OPEN)]);
    world.serve(17, (SERVICE.into(), TO_ITSELF), &[(POD.into(), OPEN)]);
    world
}

/// Packets for which there was no table, or one that lacked a row.
pub(crate) fn gaps(twin: &mut Twin, way: Direction) -> Result<u64> {
    let gaps = [DropReason::NoTable, DropReason::MissingRow, DropReason::NoEndpoint];
    sum(twin, way, |reason| gaps.map(Reason::Drop).contains(&reason))
}

fn sum(twin: &mut Twin, way: Direction, is_meant: impl Fn(Reason) -> bool) -> Result<u64> {
    let packets = twin.datapath().counters()?.packets;
    let counted = packets.into_iter().filter(|((direction, _), _)| *direction == way);
    Ok(counted.filter(|((_, reason), _)| is_meant(*reason)).map(|(_, count)| count).sum())
}

const fn is_drop(reason: Reason) -> bool {
    matches!(reason, Reason::Drop(_))
}

/// Nobody reads records meanwhile, so that most are lost.
#[test]
fn every_packet_is_counted_under_load_and_lost_records_are() -> Result<()> {
    const EACH: u32 = 40_000;
    if !lab::can_run("every_packet_is_counted_under_load_and_lost_records_are")? {
        return Ok(());
    }
    let wire = Wire::lay()?;
    wire.give_addresses()?;
    let world = serving(opening(&[OPEN]), opening(&[OPEN]));
    let before = wire.taken()?;
    let _sinks = [
        wire.listen(OPEN)?,
        wire.listen(CLOSED)?,
        wire.node.within(|| UdpSocket::bind((PEER, OPEN)))??,
        wire.pod.within(|| UdpSocket::bind((POD, OPEN)))??,
    ];
    let open = [(NODE, OPEN), (RESOLVER, 53), (SERVICE, TO_PEER), (SERVICE, TO_ITSELF)];
    let closed = [(NODE, CLOSED), (NODE, CLOSED)];
    wire.judged("counted", &world, |twin| {
        thread::scope(|scope| {
            let senders = open.into_iter().chain(closed).map(|far| {
                let socket = wire.client_of(far);
                scope.spawn(move || -> Result<()> {
                    let socket = socket?;
                    for _ in 0..EACH {
                        // What a full queue refuses reaches nobody.
                        let _refused = socket.send(b"load");
                    }
                    Ok(())
                })
            });
            let senders: Vec<_> = senders.collect();
            senders.into_iter().try_for_each(|sender| sender.join().expect("no panic"))
        })?;
        wait_until("all packets to be counted", SOON, || {
            Ok(sum(twin, Direction::Egress, |_| true)? == wire.taken()? - before)
        })?;
        let dropped = sum(twin, Direction::Egress, is_drop)?;
        ensure!(dropped > 0, "nothing was dropped");
        let handed = sum(twin, Direction::Egress, |reason| reason == Reason::Pass(Pass::ToProxy))?;
        ensure!(handed > 0, "nothing was handed to the proxy");
        let roles: BTreeSet<u8> = twin.datapath().flows()?.values().map(|flow| flow.role).collect();
        ensure!(roles.contains(&ROLE_TRANSLATED), "nothing went to the service's backend");
        ensure!(roles.contains(&ROLE_HAIRPIN), "nothing was turned round");
        let is_first = |reason| reason == Reason::Pass(Pass::Judged);
        let first = sum(twin, Direction::Egress, is_first)?;
        let lost = twin.datapath().counters()?.events_lost;
        let lost = lost.get(&Direction::Egress).copied().unwrap_or(0);
        let told = twin.told().len() as u64;
        ensure!(lost > 0, "the buffer held all {told}");
        ensure!(told + lost == dropped + first, "{told} told, {lost} lost of {dropped} + {first}");
        Ok(())
    })
}

/// What is dropped on its way to a pod reaches no counter but the program's: it is what was sent.
#[test]
fn every_packet_to_a_pod_is_counted_under_load() -> Result<()> {
    const EACH: u32 = 20_000;
    if !lab::can_run("every_packet_to_a_pod_is_counted_under_load")? {
        return Ok(());
    }
    let wire = Wire::lay()?;
    wire.introduce()?;
    wire.give_addresses()?;
    let world = serving(opening(&[OPEN]), opening(&[OPEN]));
    let before = wire.given()?;
    let _sink = wire.pod.within(|| UdpSocket::bind((POD, OPEN)))??;
    let client = wire.client_of((SERVICE, TO_PEER))?;
    let asked = client.local_addr()?.port();
    wire.judged("given", &world, |twin| {
        client.send(b"first")?;
        wait_until("the flow to the service", SOON, || Ok(twin.datapath().flows()?.len() == 2))?;
        let denied = Reason::Drop(DropReason::Denied);
        let mut expected: BTreeMap<Reason, u64> = BTreeMap::new();
        for (reason, sent) in thread::scope(|scope| {
            let senders = [
                ((PEER, 0), OPEN, Reason::Pass(Pass::Known)),
                ((PEER, OPEN), asked, Reason::Pass(Pass::Known)),
                ((PEER, 0), CLOSED, denied),
                ((PEER, 0), CLOSED, denied),
                (PROXY, OPEN, Reason::Pass(Pass::FromProxy)),
                ((PROXY.0, PROXY.1 + 1), OPEN, Reason::Drop(DropReason::ProxyAddress)),
            ]
            .map(|(own, port, reason)| {
                let socket = wire.node.within(|| UdpSocket::bind(own));
                let sent = scope.spawn(move || -> Result<u64> {
                    let socket = socket??;
                    socket.connect((POD, port))?;
                    Ok((0..EACH).map(|_| u64::from(socket.send(b"load").is_ok())).sum())
                });
                (reason, sent)
            });
            senders.map(|(reason, sent)| (reason, sent.join().expect("no panic")))
        }) {
            *expected.entry(reason).or_default() += sent?;
        }
        wait_until("what passed to be counted", SOON, || {
            let passed = sum(twin, Direction::Ingress, |reason| !is_drop(reason))?;
            Ok(passed == wire.given()? - before)
        })?;
        for (reason, sent) in expected {
            // The first of the flow that the node opens was judged.
            let first = u64::from(reason == Reason::Pass(Pass::Known));
            let counted = sum(twin, Direction::Ingress, |counted| counted == reason)?;
            ensure!(sent > 0, "nothing was sent to become {reason:?}");
            ensure!(counted + first == sent, "{counted} of {sent} became {reason:?}");
        }
        Ok(())
    })
}

/// Two tables take turns: what both open is never closed, what neither opens never passes.
#[test]
fn tables_change_places_under_packets_that_never_see_half_of_two() -> Result<()> {
    const TURNS: u32 = 200;
    const ONE: u16 = 7_001;
    const OTHER: u16 = 7_002;
    if !lab::can_run("tables_change_places_under_packets_that_never_see_half_of_two")? {
        return Ok(());
    }
    let wire = Wire::lay()?;
    let mut world = World::ruled(opening(&[OPEN, ONE]), opening(&[]));
    let (never, always) = (wire.listen(CLOSED)?, wire.listen(OPEN)?);
    let (is_over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    wire.judged("swaps", &world.clone(), |twin| {
        thread::scope(|scope| {
            let sender = scope.spawn(|| -> Result<()> {
                let live = [OPEN, CLOSED, ONE, OTHER].map(|port| wire.client(port));
                let live = live.into_iter().collect::<Result<Vec<_>>>()?;
                while !is_over.load(Ordering::Relaxed) {
                    // A flow that lives through all turns, and one that is opened in this.
                    for socket in &live {
                        let _refused = socket.send(b"live");
                    }
                    for port in [OPEN, CLOSED] {
                        let _refused = wire.client(port)?.send(b"first");
                    }
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
            let turned = (0..TURNS).try_for_each(|turn| {
                world.rule(opening(&[OPEN, if turn % 2 == 0 { OTHER } else { ONE }]));
                twin.change_policy(&world)?;
                let before = sent.load(Ordering::Relaxed);
                wait_until("packets in this turn", SOON, || {
                    Ok(sent.load(Ordering::Relaxed) > before || sender.is_finished())
                })?;
                let closed = twin.told().into_iter().find(|event| {
                    event.remote_port == OPEN && event.verdict == EventVerdict::Dropped
                });
                ensure!(closed.is_none(), "turn {turn}: {closed:?}");
                Ok(())
            });
            is_over.store(true, Ordering::Relaxed);
            sender.join().expect("no panic")?;
            turned
        })?;
        let gaps = gaps(twin, Direction::Egress)?;
        ensure!(gaps == 0, "{gaps} packets saw a table without rows");
        Ok(())
    })?;
    let mut octets = [0; 16];
    ensure!(never.recv(&mut octets).is_err(), "what neither opens came through");
    ensure!(always.recv(&mut octets).is_ok(), "nothing came through at all");
    Ok(())
}

/// A large frame of a raw socket has its Ethernet header alone in the linear part (`packet_alloc_skb` of
/// net/packet/af_packet.c); one of a stream is cut into packets behind the hooks.
#[test]
fn large_packets_are_judged_as_small_ones() -> Result<()> {
    if !lab::can_run("large_packets_are_judged_as_small_ones")? {
        return Ok(());
    }
    let wire = Wire::lay()?;
    let world = World::ruled(opening(&[OPEN]), opening(&[]));
    let server = wire.node.within(|| TcpListener::bind((NODE, OPEN)))??;
    let writer = Writer(
        wire.pod
            .command("socat")
            .args(["-u", "UDP4-RECV:5555,bind=127.0.0.1", "INTERFACE:eth0"])
            .stdin(Stdio::null())
            .spawn()?,
    );
    wire.judged("large", &world, |twin| {
        let pen = wire.pod.within(|| UdpSocket::bind("127.0.0.1:0"))??;
        pen.connect("127.0.0.1:5555")?;
        let ends = (POD.into(), NODE.into());
        let frame = |port| frame::ip(MAC, ends, 17, &frame::udp(4_000, port, &[7; LARGE]));
        for (port, becomes) in [
            (OPEN, Reason::Pass(Pass::Judged)),
            (OPEN, Reason::Pass(Pass::Known)),
            (CLOSED, Reason::Drop(DropReason::Denied)),
        ] {
            let before = twin.counted(Direction::Egress, becomes)?;
            wait_for(becomes.as_str(), SOON, || {
                // A socket refuses to send while nobody listens.
                let is_sent = pen.send(&frame(port)).is_ok();
                let grown = twin.counted(Direction::Egress, becomes)? > before;
                Ok((is_sent && grown).then_some(()))
            })?;
        }
        drop(writer);

        let mut stream =
            wire.pod.within(|| TcpStream::connect(SocketAddr::from((NODE, OPEN))))??;
        let (mut far, _) = server.accept()?;
        thread::scope(|scope| {
            let reader = scope.spawn(move || std::io::copy(&mut far, &mut std::io::sink()));
            stream.write_all(&vec![7; 8 << 20])?;
            drop(stream);
            ensure!(reader.join().expect("no panic")? == 8 << 20, "it came through whole");
            Ok(())
        })?;
        let flows = twin.datapath().flows()?;
        let flow = flows.iter().find(|(key, _)| key.protocol == 6).context("the stream's flow")?.1;
        let (packets, octets) = (flow.packets[0], flow.octets[0]);
        ensure!(octets > 8 << 20, "{octets} octets were counted");
        ensure!(octets / packets > 9_014, "{octets} octets in {packets} packets: none was large");
        Ok(())
    })
}

/// Ends with this value.
struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _gone = self.0.kill();
        let _status = self.0.wait();
    }
}
