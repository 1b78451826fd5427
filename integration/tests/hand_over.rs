//! One agent goes on in the place of another that runs: lookups that are sent meanwhile are answered.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use namegate_integration::addresses::{EVIL, KUBE_DNS_SERVICE, STRIPE};
use namegate_integration::agent::Agent;
use namegate_integration::cluster::Cluster;
use namegate_integration::flood::{Flood, Sink};
use namegate_integration::namespace::Namespace;
use namegate_integration::patience::wait_until;
use namegate_integration::scene::Scene;
use namegate_integration::town::Town;
use rustix::process::{Pid, Signal, kill_process};

const LIMIT: Duration = Duration::from_secs(60);
/// How long an answer may take; whoever asks, asks once.
const PATIENCE: Duration = Duration::from_secs(30);
/// Sockets that ask over UDP, and lookups of each that wait at once at most: their answers come together,
/// and a socket has room for some two hundred.
const SOCKETS: usize = 4;
const WAITING_MAX: usize = 100;
/// A lookup of each socket so often at most: all of them stay below what a pod may ask in a second.
const PACE: Duration = Duration::from_millis(2);

/// What an heir read so long ago is not in force any more.
const OLD: Duration = Duration::from_secs(12);

/// What an agent says that handed over.
const GOES_ON: &str = "another agent goes on; waiting to be ended";
/// What an heir says first.
const GREETING: &[u8; 16] = b"namegate-heir-1\n";

/// What became of lookups.
#[derive(Debug, Default)]
struct Answers {
    asked: usize,
    /// How many answers there were of each response code.
    codes: BTreeMap<u8, usize>,
    longest: Duration,
    /// Why those that were not answered were not, and when.
    lost: Vec<String>,
}

impl Answers {
    fn add(&mut self, other: Self) {
        self.asked += other.asked;
        for (code, count) in other.codes {
            *self.codes.entry(code).or_default() += count;
        }
        self.longest = self.longest.max(other.longest);
        self.lost.extend(other.lost);
    }

    fn note(&mut self, code: u8, took: Duration) {
        *self.codes.entry(code).or_default() += 1;
        self.longest = self.longest.max(took);
    }
}

fn resolver() -> SocketAddr {
    (KUBE_DNS_SERVICE.v4, 53).into()
}

/// A query for the address of api.stripe.com, which the policy allows.
fn query(id: u16) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend(b"\x03api\x06stripe\x03com\x00\x00\x01\x00\x01");
    message
}

/// Id and response code of an answer.
fn answer(message: &[u8]) -> Result<(u16, u8)> {
    let [high, low, _, flags, ..] = message else { return Err(anyhow!("{message:?}")) };
    Ok((u16::from_be_bytes([*high, *low]), flags & 15))
}

/// Asks over UDP, each query once, until it is over.
fn ask_udp(pod: &Namespace, is_over: &AtomicBool) -> Result<Answers> {
    let socket = pod.within(|| UdpSocket::bind("0.0.0.0:0"))??;
    socket.connect(resolver())?;
    let mut answers = Answers::default();
    let mut waiting: BTreeMap<u16, Instant> = BTreeMap::new();
    let mut message = [0; 512];
    socket.set_read_timeout(Some(PACE))?;
    let (mut next, mut turn) = (0u16, Instant::now());
    loop {
        let is_asking = !is_over.load(Ordering::Relaxed);
        let has_turn = Instant::now() >= turn && waiting.len() < WAITING_MAX;
        if is_asking && has_turn && !waiting.contains_key(&next) {
            socket.send(&query(next))?;
            turn = Instant::now() + PACE;
            waiting.insert(next, Instant::now());
            answers.asked += 1;
            next = next.wrapping_add(1);
        }
        if let Ok(length) = socket.recv(&mut message) {
            let (id, code) = answer(&message[..length])?;
            let since = waiting.remove(&id).context("an answer to no query")?;
            answers.note(code, since.elapsed());
        }
        let oldest = waiting.values().min();
        if oldest.is_none_or(|since| since.elapsed() > PATIENCE) && !is_asking {
            return Ok(answers);
        }
    }
}

/// Asks over TCP without a pause, each query over a connection of its own, until it is over.
fn ask_tcp(is_over: &AtomicBool) -> Result<Answers> {
    let (mut answers, began) = (Answers::default(), Instant::now());
    while !is_over.load(Ordering::Relaxed) {
        let asked = Instant::now();
        answers.asked += 1;
        match ask_once() {
            Ok(code) => answers.note(code, asked.elapsed()),
            Err(error) => {
                let (at, took) = (began.elapsed(), asked.elapsed());
                answers.lost.push(format!("after {at:.2?}, within {took:.2?}: {error:#}"));
            }
        }
    }
    Ok(answers)
}

/// The response code to one query over TCP.
fn ask_once() -> Result<u8> {
    let mut stream = TcpStream::connect_timeout(&resolver(), PATIENCE).context("connecting")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let query = query(1);
    let length = u16::try_from(query.len())?.to_be_bytes();
    stream.write_all(&[&length, &query[..]].concat()).context("asking")?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).context("reading")?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).context("reading on")?;
    Ok(answer(&message)?.1)
}

/// Asks over UDP and TCP while `act` goes on, and until every answer is there: all must be answered well.
/// A pod floods a destination that no policy allows meanwhile, of which nothing may arrive.
fn lose_nothing<T>(scene: &Scene, act: impl FnOnce(&Flood) -> Result<T>) -> Result<T> {
    let pod = &scene.town.checkout.namespace;
    let evil = SocketAddr::from((EVIL.v4, 9_999));
    let mut sink = Sink::open(&scene.town.internet, evil)?;
    let flood = Flood::start(pod, evil, 1_000)?;
    let is_over = AtomicBool::new(false);
    let (done, udp, tcp) = thread::scope(|scope| {
        let udp: Vec<_> = (0..SOCKETS).map(|_| scope.spawn(|| ask_udp(pod, &is_over))).collect();
        let tcp = scope.spawn(|| pod.within(|| ask_tcp(&is_over))?);
        let done = act(&flood);
        is_over.store(true, Ordering::Relaxed);
        // What is done is kept until all have been answered: agents end with it.
        let udp: Vec<_> = udp.into_iter().map(ScopedJoinHandle::join).collect();
        let tcp = tcp.join();
        let panicked = |_| anyhow!("whoever asked panicked");
        let mut all = Answers::default();
        for answers in udp {
            all.add(answers.map_err(panicked)??);
        }
        anyhow::Ok((done?, all, tcp.map_err(panicked)??))
    })?;
    println!("over UDP {udp:?}; over TCP {tcp:?}");
    for (transport, answers) in [("UDP", udp), ("TCP", tcp)] {
        ensure!(answers.asked > 100, "{transport}: {answers:?}");
        let all = BTreeMap::from([(0, answers.asked)]);
        assert_eq!(answers.codes, all, "{transport}: {answers:?}");
    }
    assert_eq!(sink.received()?, 0, "of {} datagrams", flood.sent());
    Ok(done)
}

fn expect_said(agent: &Agent, text: &str) -> Result<()> {
    wait_until(&format!("{text:?} in the agent's log"), LIMIT, || Ok(agent.log().contains(text)))
        .with_context(|| agent.log())
}

/// Checks that names open what they did, by lookups and packets, while the flood goes on.
fn expect_enforced(town: &Town, flood: &Flood) -> Result<()> {
    town.checkout.try_tcp((STRIPE.v4, 443).into())?.context("a name that was learned")?;
    let sent = flood.sent();
    wait_until("the flood to go on", LIMIT, || Ok(flood.sent() > sent + 500))?;
    assert_eq!(town.checkout.resolve("api.stripe.com")?.status, "NOERROR");
    assert_eq!(town.checkout.resolve("evil.example")?.status, "REFUSED");
    assert!(town.checkout.try_tcp((EVIL.v4, 443).into())?.is_err());
    Ok(())
}

/// Has agents go on in the place of the first, one after the other, and gives back the last.
fn hand_over(scene: &Scene, flood: &Flood) -> Result<Option<Agent>> {
    let Scene { agent, manifests, town, .. } = scene;
    let mut former: Option<Agent> = None;
    for name in ["second", "third", "fourth"] {
        let heir = Agent::spawn_heir(town, manifests, name)?.expect_ready()?;
        expect_said(former.as_ref().unwrap_or(agent), GOES_ON)?;
        assert!(!heir.log().contains("WARN"), "{}", heir.log());
        expect_enforced(town, flood)?;
        // The one that handed over ends as it would otherwise, and takes nothing with it.
        if let Some(former) = former.replace(heir) {
            assert!(former.stop(Signal::TERM)?.success());
        }
        expect_enforced(town, flood)?;
    }
    Ok(former)
}

#[test]
fn a_hand_over_loses_no_lookup_and_lets_nothing_through() -> Result<()> {
    let test = "a_hand_over_loses_no_lookup_and_lets_nothing_through";
    let Some(scene) = Scene::for_test(test, &[])? else { return Ok(()) };
    scene.town.checkout.resolve("api.stripe.com")?;
    lose_nothing(&scene, |flood| hand_over(&scene, flood)).map(drop)
}

/// Takes the sockets of the node's agent as an heir would, and ends.
fn take_and_end(run_dir: &Path) -> Result<()> {
    let mut stream = UnixStream::connect(run_dir.join("heir.sock"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(GREETING)?;
    let mut said = [0; GREETING.len()];
    stream.read_exact(&mut said)?;
    ensure!(said == *GREETING, "{said:?}");
    loop {
        let mut word = [0; 256];
        let length = stream.read(&mut word).context("taking the sockets")?;
        ensure!(length > 0, "the agent ended");
        stream.write_all(&[0])?;
        if word.starts_with(b"\"Done\"") {
            return Ok(());
        }
    }
}

#[test]
fn an_heir_that_ends_half_way_leaves_the_node_to_the_agent_before() -> Result<()> {
    let test = "an_heir_that_ends_half_way_leaves_the_node_to_the_agent_before";
    let Some(scene) = Scene::for_test(test, &[])? else { return Ok(()) };
    let Scene { agent, manifests, town, .. } = &scene;
    town.checkout.resolve("api.stripe.com")?;
    let heir = lose_nothing(&scene, |flood| {
        for round in 1..=2 {
            take_and_end(&town.lab.file("run"))?;
            wait_until("the agent to enforce again", LIMIT, || {
                Ok(agent.log().matches("enforcing").count() == round + 1)
            })
            .with_context(|| agent.log())?;
            expect_enforced(town, flood)?;
        }
        // And it hands over to one that does not.
        let heir = Agent::spawn_heir(town, manifests, "heir")?.expect_ready()?;
        expect_said(agent, GOES_ON)?;
        expect_enforced(town, flood)?;
        Ok(heir)
    })?;
    assert_eq!(agent.log().matches("the next agent does not go on").count(), 2);
    assert!(scene.agent.stop(Signal::TERM)?.success());
    assert!(heir.stop(Signal::TERM)?.success());
    Ok(())
}

#[test]
fn an_agent_that_dies_half_way_leaves_the_node_to_its_heir() -> Result<()> {
    let test = "an_agent_that_dies_half_way_leaves_the_node_to_its_heir";
    let Some(scene) = Scene::for_test(test, &[])? else { return Ok(()) };
    let Scene { agent, manifests, town, .. } = scene;
    // It takes the heir's word in and never answers.
    let process = Pid::from_raw(agent.process_id().try_into()?).context("no process")?;
    kill_process(process, Signal::STOP)?;
    let heir = Agent::spawn_heir(&town, &manifests, "heir")?;
    agent.kill()?;
    let heir = heir.expect_ready()?;
    assert_eq!(town.checkout.resolve("api.stripe.com")?.status, "NOERROR");
    town.checkout.try_tcp((STRIPE.v4, 443).into())?.context("a name that was learned")?;
    assert!(town.checkout.try_tcp((EVIL.v4, 443).into())?.is_err());
    assert!(heir.stop(Signal::TERM)?.success());
    Ok(())
}

#[test]
fn an_heir_reads_the_cluster_before_it_asks_for_the_node() -> Result<()> {
    let test = "an_heir_reads_the_cluster_before_it_asks_for_the_node";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    cluster.apply("web-apis.yaml")?;
    let evil = SocketAddr::from((EVIL.v4, 443));
    let first = cluster.start_outpost()?;
    cluster.api.faults(|faults| faults.is_down = true);
    let heir = cluster.spawn_heir_of_outpost()?;
    expect_said(&heir, "no answer from the API server")?;
    assert!(first.ask(&["status"])?.status.success(), "the first agent has the node");
    assert!(!first.log().contains("handing over"), "{}", first.log());
    cluster.api.faults(|faults| faults.is_down = false);
    expect_said(&first, GOES_ON)?;
    assert!(heir.ask(&["status"])?.status.success());
    assert!(cluster.outpost.web.try_tcp(evil)?.is_err());
    // What the heir keeps is what the next agent without an API server begins with.
    assert!(first.stop(Signal::TERM)?.success());
    assert!(heir.stop(Signal::TERM)?.success());
    cluster.api.faults(|faults| faults.is_down = true);
    let third = cluster.start_outpost()?;
    expect_said(&third, "what an earlier agent had in force goes on")?;
    assert!(cluster.outpost.web.try_tcp(evil)?.is_err());
    Ok(())
}

#[test]
fn an_heir_that_had_to_wait_reads_the_cluster_again() -> Result<()> {
    let test = "an_heir_that_had_to_wait_reads_the_cluster_again";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    let evil = SocketAddr::from((EVIL.v4, 443));
    let first = cluster.start_outpost()?;
    // It has the node and hands nothing over.
    let process = Pid::from_raw(first.process_id().try_into()?).context("no process")?;
    kill_process(process, Signal::STOP)?;
    let heir = cluster.spawn_heir_of_outpost()?;
    expect_said(&heir, "does not hand over")?;
    let said = Instant::now();
    // What the heir has read knows no policy.
    cluster.let_web_reach_echo()?;
    wait_until("what was read to be old", LIMIT, || Ok(said.elapsed() > OLD))?;
    first.kill()?;
    let heir = heir.expect_ready()?;
    assert_eq!(heir.log().matches("reading the cluster").count(), 2, "{}", heir.log());
    assert!(cluster.outpost.web.try_tcp(evil)?.is_err());
    assert!(heir.stop(Signal::TERM)?.success());
    Ok(())
}
