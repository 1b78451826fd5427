//! Live flows after a change of the policy that let them: a rule that is removed stops all of them at
//! once, one that is widened stops none. `make nightly` tries 10,000.

use std::env;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use namegate_integration::manifests::Manifests;
use namegate_integration::patience::wait_until;
use namegate_integration::scene::Scene;
use namegate_integration::town::Town;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const SOON: Duration = Duration::from_secs(30);
/// How long nothing comes before it counts as stopped.
const QUIET: Duration = Duration::from_secs(1);
const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 200);
/// Open under the wider policy alone.
const WIDER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 201);
const PORT: u16 = 7_777;

/// The checkout may reach these networks.
fn policy(networks: &str) -> String {
    format!(
        "apiVersion: namegate.dev/v1alpha1\nkind: EgressPolicy\n\
         metadata: {{name: live, namespace: shop}}\n\
         spec: {{podSelector: {{matchLabels: {{app: checkout}}}}, egress: [{{to: [{networks}]}}]}}\n"
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

    /// When the last of each flow came.
    fn last(&self) -> impl Iterator<Item = u64> {
        self.by_port.iter().map(|last| last.load(Ordering::Relaxed)).filter(|last| *last != 0)
    }
}

#[test]
fn a_removed_rule_stops_all_its_flows_and_a_widened_one_none() -> Result<()> {
    let test = "a_removed_rule_stops_all_its_flows_and_a_widened_one_none";
    let Some(town) = Town::for_test(test)? else { return Ok(()) };
    let count: usize = match env::var("NAMEGATE_REVOKED_FLOWS") {
        Ok(text) => text.parse().with_context(|| format!("NAMEGATE_REVOKED_FLOWS={text}"))?,
        Err(_) => 1_000,
    };
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    let addresses = [SERVER, WIDER].map(|address| format!("addr add {address}/32 dev lo"));
    town.internet.ip(&addresses.each_ref().map(String::as_str))?;
    let manifests = Manifests::cluster(&town.lab)?;
    manifests.write("live.yaml", &policy("{cidr: 203.0.113.200/32}"))?;
    let mut scene = Scene::begin(town, manifests, &[])?;

    let _listener = scene.town.internet.within(|| TcpListener::bind((WIDER, PORT)))??;
    let sink = scene.town.internet.within(|| UdpSocket::bind((SERVER, PORT)))??;
    sink.set_read_timeout(Some(Duration::from_millis(50)))?;
    let open = || -> std::io::Result<Vec<UdpSocket>> {
        let one = || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect((SERVER, PORT))?;
            Ok(socket)
        };
        (0..count).map(|_| one()).collect()
    };
    let flows = scene.town.checkout.namespace.within(open)??;
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
                for flow in &flows {
                    // What a full queue refuses is sent in the next round.
                    let _refused = flow.send(b"live");
                }
            }
        });
        let told = follow(&scene, &arrivals, count);
        is_over.store(true, Ordering::Relaxed);
        told
    })?;
    scene.agent.check()?;
    let at = |part: usize| stopped.get((stopped.len() - 1) * part / 100).copied().unwrap_or(0);
    let after = |part| Duration::from_nanos(at(part));
    println!(
        "{count} flows: the last packet came p50 {:?}, p99 {:?}, at most {:?} after the change",
        after(50),
        after(99),
        after(100)
    );
    Ok(())
}

/// How long after the rule was removed the last packet of each flow came, the least first.
fn follow(scene: &Scene, arrivals: &Arrivals, count: usize) -> Result<Vec<u64>> {
    wait_until("all flows to live", SOON, || Ok(arrivals.last().count() == count))?;
    let wider = "{cidr: 203.0.113.200/32}, {cidr: 203.0.113.201/32}";
    scene.manifests.write("live.yaml", &policy(wider))?;
    let other = SocketAddr::from((WIDER, PORT));
    wait_until("the wider policy to be in force", SOON, || {
        Ok(scene.town.checkout.try_tcp(other)?.is_ok())
    })?;
    let widened = arrivals.nanos();
    wait_until("all flows to live on", SOON, || Ok(arrivals.last().all(|last| last > widened)))?;
    let removed = arrivals.nanos();
    scene.manifests.write("live.yaml", &policy("{cidr: 203.0.113.201/32}"))?;
    wait_until("all flows to stop", SOON, || {
        let quiet = u64::try_from(QUIET.as_nanos())?;
        Ok(arrivals.last().all(|last| arrivals.nanos().saturating_sub(last) > quiet))
    })?;
    let mut stopped: Vec<u64> = arrivals.last().map(|last| last.saturating_sub(removed)).collect();
    stopped.sort_unstable();
    ensure!(stopped.len() == count, "{} flows came", stopped.len());
    Ok(stopped)
}
