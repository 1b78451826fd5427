//! Live flows after a change of the policy that let them: a rule that is removed stops all of them at
//! once, one that is widened stops none, whatever else another pod sends. `make nightly` tries 10,000.

use std::env;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use namegate_integration::flood::{Flood, Sink};
use namegate_integration::manifests::Manifests;
use namegate_integration::patience::wait_until;
use namegate_integration::scene::Scene;
use namegate_integration::town::Town;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const SOON: Duration = Duration::from_secs(30);
/// How long nothing comes before it counts as stopped.
const QUIET: Duration = Duration::from_secs(1);
/// After so long every flow has stopped, even where the machine is busy with other things.
const BOUND: Duration = Duration::from_secs(1);
/// After so long 99 of 100 have, where how many there are was asked for: on a machine of its own.
const MOST: Duration = Duration::from_millis(200);
const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 200);
/// Open under the wider policy alone.
const WIDER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 201);
const PORT: u16 = 7_777;

/// The pods of an app may reach these networks.
fn policy(app: &str, networks: &str) -> String {
    format!(
        "apiVersion: namegate.dev/v1alpha1\nkind: EgressPolicy\n\
         metadata: {{name: {app}, namespace: shop}}\n\
         spec: {{podSelector: {{matchLabels: {{app: {app}}}}}, egress: [{{to: [{networks}]}}]}}\n"
    )
}

/// When datagrams came last, by the port that they came from, in nanoseconds since `began`; zero: never.
struct Arrivals {
    began: Instant,
    by_port: Vec<AtomicU64>,
}

impl Arrivals {
    fn new() -> Self {
        let by_port = (0..=u16::MAX).map(|_| AtomicU64::new(0)).collect();
        Self { began: Instant::now(), by_port }
    }

    fn nanos(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn note(&self, from: SocketAddr) {
        if let Some(last) = self.by_port.get(usize::from(from.port())) {
            last.store(self.nanos().max(1), Ordering::Relaxed);
        }
    }

    /// When the last came from `port`; zero: never.
    fn last(&self, port: u16) -> u64 {
        self.by_port.get(usize::from(port)).map_or(0, |last| last.load(Ordering::Relaxed))
    }
}

/// Flows that send as long as the test runs.
struct Flows {
    sockets: Vec<UdpSocket>,
    ports: Vec<u16>,
    /// How often all of them sent.
    rounds: AtomicU64,
}

impl Flows {
    fn open(count: usize) -> std::io::Result<Self> {
        let one = || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect((SERVER, PORT))?;
            Ok(socket)
        };
        let sockets: Vec<UdpSocket> = (0..count).map(|_| one()).collect::<std::io::Result<_>>()?;
        let port = |socket: &UdpSocket| Ok(socket.local_addr()?.port());
        let ports = sockets.iter().map(port).collect::<std::io::Result<_>>()?;
        Ok(Self { sockets, ports, rounds: AtomicU64::new(0) })
    }

    fn send(&self) {
        for socket in &self.sockets {
            // What a full queue refuses is sent in the next round.
            let _refused = socket.send(b"live");
        }
        self.rounds.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until each has sent again.
    fn expect_to_send(&self) -> Result<()> {
        let before = self.rounds.load(Ordering::Relaxed);
        wait_until("all flows to send on", SOON, || {
            Ok(self.rounds.load(Ordering::Relaxed) > before + 1)
        })
    }
}

#[test]
fn a_removed_rule_stops_all_its_flows_and_a_widened_one_none() -> Result<()> {
    let test = "a_removed_rule_stops_all_its_flows_and_a_widened_one_none";
    let asked = match env::var("NAMEGATE_REVOKED_FLOWS") {
        Ok(text) => Some(text.parse().with_context(|| format!("NAMEGATE_REVOKED_FLOWS={text}"))?),
        Err(_) => None,
    };
    let Some(mut scene) = begin(test)? else { return Ok(()) };
    let most = revoke(&mut scene, asked.unwrap_or(1_000), |_| Ok(()))?;
    if asked.is_some() {
        ensure!(most < MOST, "99 of 100 flows stopped {most:?} after it, not within {MOST:?}");
    }
    Ok(())
}

/// The web pod sends 20,000 packets a second that are denied: the checkout's first packets are let through,
/// the agent answers, and the checkout's policy changes as without them.
#[test]
fn a_storm_of_one_pod_holds_up_neither_another_nor_a_change() -> Result<()> {
    const PER_SECOND: u32 = 20_000;
    const FIRST: usize = 50;
    let test = "a_storm_of_one_pod_holds_up_neither_another_nor_a_change";
    let Some(mut scene) = begin(test)? else { return Ok(()) };
    scene.manifests.write("web.yaml", &policy("web", "{cidr: 203.0.113.199/32}"))?;
    let denied = SocketAddr::from((WIDER, PORT));
    let mut sink = Sink::open(&scene.town.internet, denied)?;
    wait_until("the web pod to be closed", SOON, || {
        let before = sink.received()?;
        // Nothing answers, so that what is let through has come when this returns.
        let _unanswered = scene.town.web.try_udp(denied)?;
        Ok(sink.received()? == before)
    })?;
    let flood = Flood::start(&scene.town.web.namespace, denied, PER_SECOND)?;
    let came = sink.received()?;
    revoke(&mut scene, 200, |scene| {
        for number in 0..FIRST {
            let tried = scene.town.checkout.try_tcp(denied)?;
            ensure!(tried.is_ok(), "connection {number} under the storm: {tried:?}");
        }
        let status = scene.agent.ask(&["status"])?;
        status.success().context("its status under the storm")?;
        wait_until("a second's worth of the storm", SOON, || {
            Ok(flood.sent() >= u64::from(PER_SECOND))
        })
    })?;
    println!("{} packets were denied meanwhile", flood.sent());
    ensure!(sink.received()? == came, "some of the storm came through");
    Ok(())
}

/// The town, whose checkout may reach one server.
fn begin(test: &str) -> Result<Option<Scene>> {
    let Some(town) = Town::for_test(test)? else { return Ok(None) };
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    let addresses = [SERVER, WIDER].map(|address| format!("addr add {address}/32 dev lo"));
    town.internet.ip(&addresses.each_ref().map(String::as_str))?;
    let manifests = Manifests::cluster(&town.lab)?;
    manifests.write("live.yaml", &policy("checkout", "{cidr: 203.0.113.200/32}"))?;
    Scene::begin(town, manifests, &[]).map(Some)
}

/// Opens as many flows, widens the rule that lets them, does `meanwhile`, and removes the rule: how long
/// after that the last packet of 99 of 100 came.
fn revoke(
    scene: &mut Scene,
    count: usize,
    meanwhile: impl FnOnce(&Scene) -> Result<()>,
) -> Result<Duration> {
    let _listener = scene.town.internet.within(|| TcpListener::bind((WIDER, PORT)))??;
    let sink = scene.town.internet.within(|| UdpSocket::bind((SERVER, PORT)))??;
    sink.set_read_timeout(Some(Duration::from_millis(50)))?;
    let flows = scene.town.checkout.namespace.within(|| Flows::open(count))??;
    let (arrivals, is_over) = (Arrivals::new(), AtomicBool::new(false));
    let stopped = thread::scope(|scope| {
        scope.spawn(|| {
            let mut datagram = [0; 16];
            while !is_over.load(Ordering::Relaxed) {
                if let Ok((_, from)) = sink.recv_from(&mut datagram) {
                    arrivals.note(from);
                }
            }
        });
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                flows.send();
            }
        });
        let told = follow(scene, &arrivals, &flows, meanwhile);
        is_over.store(true, Ordering::Relaxed);
        told
    })?;
    scene.agent.check()?;
    let at = |part| stopped.get((count - 1) * part / 100).copied().context("a flow of each");
    let (half, most, all) = (at(50)?, at(99)?, at(100)?);
    println!(
        "{count} flows: the last packet came p50 {half:?}, p99 {most:?}, at most {all:?} after the change"
    );
    ensure!(all < BOUND, "a flow stopped {all:?} after the change, not within {BOUND:?}");
    Ok(most)
}

/// How long after the rule was removed the last packet of each flow came, the least first.
fn follow(
    scene: &Scene,
    arrivals: &Arrivals,
    flows: &Flows,
    meanwhile: impl FnOnce(&Scene) -> Result<()>,
) -> Result<Vec<Duration>> {
    let last = || flows.ports.iter().map(|port| arrivals.last(*port));
    wait_until("all flows to live", SOON, || Ok(last().all(|last| last > 0)))?;
    let wider = "{cidr: 203.0.113.200/32}, {cidr: 203.0.113.201/32}";
    scene.manifests.write("live.yaml", &policy("checkout", wider))?;
    let other = SocketAddr::from((WIDER, PORT));
    wait_until("the wider policy to be in force", SOON, || {
        Ok(scene.town.checkout.try_tcp(other)?.is_ok())
    })?;
    let widened = arrivals.nanos();
    wait_until("all flows to live on", SOON, || Ok(last().all(|last| last > widened)))?;
    meanwhile(scene)?;
    let removed = arrivals.nanos();
    scene.manifests.write("live.yaml", &policy("checkout", "{cidr: 203.0.113.201/32}"))?;
    wait_until("all flows to stop", SOON, || {
        let quiet = u64::try_from(QUIET.as_nanos())?;
        Ok(last().all(|last| arrivals.nanos().saturating_sub(last) > quiet))
    })?;
    // It is the rule that stopped them: they go on sending, and nothing of that comes.
    let stopped: Vec<u64> = last().collect();
    flows.expect_to_send()?;
    ensure!(stopped == last().collect::<Vec<_>>(), "a flow came back");
    let after = |last: u64| Duration::from_nanos(last.saturating_sub(removed));
    let mut stopped: Vec<Duration> = stopped.into_iter().map(after).collect();
    stopped.sort_unstable();
    Ok(stopped)
}
