//! What records of decisions cost: the processor time of an agent that makes all of them, one that makes
//! as many as its bounds let through, and one that makes next to none, under the same lookups and flows;
//! and in each the share of the threads that do nothing else than read events and make and write records.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
#![expect(clippy::disallowed_methods, reason = "what is measured is a length of time")]

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use namegate_integration::addresses::{EVIL, KUBE_DNS_SERVICE};
use namegate_integration::agent::Agent;
use namegate_integration::manifests::Manifests;
use namegate_integration::pod::Pod;
use namegate_integration::town::Town;
use rustix::process::Signal;

const LOOKUPS: u32 = 5_000;
const FLOWS: u32 = 20_000;
const ROUNDS: usize = 3;
const WARM_UP: Duration = Duration::from_secs(2);
const MEASURED: Duration = Duration::from_secs(10);

/// What is recorded, and the options that make an agent do so.
const MODES: [(&str, &[&str]); 3] = [
    ("next to none", &["--audit-rate", "1"]),
    ("as by default", &[]),
    ("all", &["--audit-rate", "0"]),
];

/// Threads that there would be no work for without records of decisions.
const RECORDERS: [&str; 3] = ["namegate-events", "namegate-audit", "namegate-sink"];

/// The agent's share of one processor, that of its recorders, and what really came to it in a second.
struct Reading {
    busy: f64,
    recording: f64,
    lookups: f64,
    flows: f64,
    lost: u64,
}

fn main() -> Result<()> {
    let Some(town) = Town::for_test("bench-audit")? else { return Ok(()) };
    let manifests = Manifests::town(&town.lab)?;
    println!("records         busy  recording  lookups/s  flows/s  lost");
    let mut best = [(f64::MAX, 0.0); MODES.len()];
    for _ in 0..ROUNDS {
        for ((mode, arguments), best) in MODES.iter().zip(&mut best) {
            let reading = measure(&town, &manifests, arguments)?;
            let Reading { busy, recording, lookups, flows, lost } = reading;
            let (all, of_it) = (busy * 100.0, recording * 100.0);
            println!(
                "{mode:<14} {all:>4.1}%  {of_it:>8.1}%  {lookups:>9.0}  {flows:>7.0}  {lost:>4}"
            );
            if busy < best.0 {
                *best = (busy, recording);
            }
        }
    }
    let over = |busy: f64, base: f64| (busy / base - 1.0) * 100.0;
    for ((mode, _), (busy, recording)) in MODES.iter().zip(best) {
        println!(
            "{mode}: {:+.1} % over {}, {:+.1} % over the same agent without the recorders' share",
            over(busy, best[0].0),
            MODES[0].0,
            over(busy, busy - recording),
        );
    }
    Ok(())
}

fn measure(town: &Town, manifests: &Manifests, arguments: &[&str]) -> Result<Reading> {
    let agent = Agent::start(town, manifests, arguments)?;
    ensure!(town.checkout.resolve("api.stripe.com")?.status == "NOERROR", "lookups do not work");
    let query = query("api.stripe.com");
    let lookups = Pace::start(&town.checkout, LOOKUPS, move |socket, _| {
        drain(socket);
        socket.send_to(&query, (KUBE_DNS_SERVICE.v4, 53)).is_ok()
    })?;
    // Each another port, and so another flow; none is allowed.
    let flows = Pace::start(&town.web, FLOWS, |socket, number| {
        let port = 1 + (number % 60_000) as u16;
        socket.send_to(b"x", SocketAddr::from((EVIL.v4, port))).is_ok()
    })?;
    thread::sleep(WARM_UP);
    let (began, [before, recorded]) = (Instant::now(), processor_time(&agent)?);
    let sent = [lookups.count(), flows.count()];
    thread::sleep(MEASURED);
    let (took, [after, recording]) = (began.elapsed().as_secs_f64(), processor_time(&agent)?);
    let rate = |pace: &Pace, before: u64| (pace.count() - before) as f64 / took;
    let (asked, opened) = (rate(&lookups, sent[0]), rate(&flows, sent[1]));
    drop((lookups, flows));
    let lost = lost(&agent)?;
    ensure!(agent.stop(Signal::TERM)?.success(), "the agent did not end well");
    let share = |before: f64, after: f64| (after - before) / took;
    let (busy, recording) = (share(before, after), share(recorded, recording));
    Ok(Reading { busy, recording, lookups: asked, flows: opened, lost })
}

/// Seconds of processor time that the agent's threads have used: all of them, and the recorders.
fn processor_time(agent: &Agent) -> Result<[f64; 2]> {
    let mut nanoseconds = [0; 2];
    for thread in std::fs::read_dir(format!("/proc/{}/task", agent.process_id()))? {
        let thread = thread?.path();
        let text = std::fs::read_to_string(thread.join("schedstat"))?;
        let ran = text.split(' ').next().context("what a thread ran for")?.parse::<u64>()?;
        // The kernel keeps fifteen octets of a name.
        let name = std::fs::read_to_string(thread.join("comm"))?;
        nanoseconds[0] += ran;
        nanoseconds[1] += if RECORDERS.contains(&name.trim_end()) { ran } else { 0 };
    }
    Ok(nanoseconds.map(|nanoseconds| nanoseconds as f64 / 1e9))
}

/// Records that the agent says were lost.
fn lost(agent: &Agent) -> Result<u64> {
    let status: serde_json::Value =
        serde_json::from_str(&agent.ask(&["status", "-o", "json"])?.stdout)?;
    let lost = status["lost"].as_object().context("what was lost")?;
    Ok(lost.values().filter_map(serde_json::Value::as_u64).sum())
}

fn query(name: &str) -> Vec<u8> {
    let mut message = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

fn drain(socket: &UdpSocket) {
    let mut answer = [0; 512];
    while socket.recv(&mut answer).is_ok() {}
}

/// Sends so many datagrams a second from a pod until it is dropped.
struct Pace {
    is_over: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    sender: Option<JoinHandle<()>>,
}

impl Pace {
    fn start(
        pod: &Pod,
        per_second: u32,
        send: impl Fn(&UdpSocket, u64) -> bool + Send + 'static,
    ) -> Result<Self> {
        let socket = pod.namespace.within(|| UdpSocket::bind("0.0.0.0:0"))??;
        socket.set_nonblocking(true)?;
        let (is_over, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stop, sent) = (Arc::clone(&is_over), Arc::clone(&count));
        let sender = thread::spawn(move || {
            let began = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                let due = (began.elapsed().as_secs_f64() * f64::from(per_second)) as u64;
                while sent.load(Ordering::Relaxed) < due {
                    if !send(&socket, sent.load(Ordering::Relaxed)) {
                        break;
                    }
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                thread::park_timeout(Duration::from_millis(1));
            }
        });
        Ok(Self { is_over, count, sender: Some(sender) })
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(sender) = self.sender.take() {
            // It can only end.
            let _ended = sender.join();
        }
    }
}
