//! A proxy between scripted neighbours on loopback: pods, a policy, a learner, and a resolver that
//! does what the test says.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use namegate_dns_proxy::clients::{Client, Clients, EndpointLabel, NameRules};
use namegate_dns_proxy::learner::{LearnError, Learned, Learner, Learning, Lesson};
use namegate_dns_proxy::record::{DecisionLog, DecisionRecord};
use namegate_dns_proxy::{CacheLimits, Config, Limits, Proxy, ResolverSlot, Services, Timeouts};
use namegate_policy::dns::{NameDecision, RefuseWith};
use namegate_policy::identity::Identity;
use namegate_policy::name::DnsName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot};

pub(crate) use crate::messages::*;

/// The pod's address.
pub(crate) const POD: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for `future`, or fails the test.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

/// Names under `allowed.` are allowed, under `audit.` audited, under `search.` a search miss, under
/// `panics.` a panic; of the rest the first label says how they are refused.
#[derive(Debug)]
pub(crate) struct Rules;

impl NameRules for Rules {
    fn decide(&self, name: &DnsName) -> NameDecision {
        let labels: Vec<&[u8]> = name.labels().collect();
        let allowed =
            |clauses: Vec<u16>, audit| NameDecision::Allowed { clauses, origin: None, audit };
        match labels.last().copied() {
            Some(b"allowed") => allowed(vec![3], false),
            Some(b"audit") => allowed(vec![], true),
            Some(b"search") => NameDecision::SearchMiss,
            Some(b"panics") => panic!("the rules of a test"),
            Some(_) | None => NameDecision::Refused {
                with: match labels.first().copied() {
                    Some(b"nx") => RefuseWith::NxDomain,
                    Some(b"empty") => RefuseWith::Empty,
                    Some(_) | None => RefuseWith::Refused,
                },
                filters: Vec::new(),
            },
        }
    }

    /// Names under `wild.allowed.` are.
    fn is_wildcard_alone(&self, name: &DnsName) -> bool {
        name.labels_from_right().nth(1) == Some(b"wild")
    }
}

/// Refuses every name.
#[derive(Debug)]
pub(crate) struct Nothing;

impl NameRules for Nothing {
    fn decide(&self, _name: &DnsName) -> NameDecision {
        NameDecision::Refused { with: RefuseWith::Refused, filters: Vec::new() }
    }

    fn is_wildcard_alone(&self, _name: &DnsName) -> bool {
        false
    }
}

/// The endpoints, which a test can change.
pub(crate) struct Endpoints(Mutex<HashMap<IpAddr, Arc<Client>>>);

impl Endpoints {
    pub(crate) fn set(&self, address: IpAddr, pod: &str, names: Arc<dyn NameRules>) {
        let client = Client {
            endpoint: EndpointLabel { namespace: "shop".into(), pod: pod.into() },
            identity: Identity::new(300).unwrap(),
            names,
        };
        self.0.lock().unwrap().insert(address, Arc::new(client));
    }

    pub(crate) fn remove(&self, address: IpAddr) {
        self.0.lock().unwrap().remove(&address);
    }
}

impl Clients for Endpoints {
    fn client(&self, source: IpAddr) -> Option<Arc<Client>> {
        self.0.lock().unwrap().get(&source).cloned()
    }
}

/// A lesson that waits for the test to say what becomes of it.
pub(crate) struct Held {
    pub(crate) lesson: Lesson,
    outcome: oneshot::Sender<Result<Learned, LearnError>>,
}

impl Held {
    pub(crate) fn end(self, outcome: Result<Learned, LearnError>) {
        self.outcome.send(outcome).expect("still awaited");
    }
}

/// Learns at once, or hands each lesson to the test.
enum Teacher {
    AtOnce(Learned),
    Held(mpsc::UnboundedSender<Held>),
}

impl Learner for Teacher {
    fn learn(&self, lessons: Vec<Lesson>) -> Learning {
        let mut names = lessons.iter().map(|lesson| lesson.name.labels().next());
        assert!(!names.any(|first| first == Some(b"unteachable")), "the learner of a test");
        match self {
            Self::AtOnce(learned) => {
                let outcomes = lessons.iter().map(|_| Ok(learned.clone())).collect();
                Box::pin(std::future::ready(outcomes))
            }
            Self::Held(test) => {
                let hold = |lesson| {
                    let (outcome, ended) = oneshot::channel();
                    test.send(Held { lesson, outcome }).ok().unwrap();
                    ended
                };
                let held: Vec<_> = lessons.into_iter().map(hold).collect();
                Box::pin(async move {
                    let mut outcomes = Vec::new();
                    for ended in held {
                        outcomes.push(ended.await.unwrap_or(Err(LearnError::Stopped)));
                    }
                    outcomes
                })
            }
        }
    }
}

struct Records(mpsc::UnboundedSender<DecisionRecord>);

impl DecisionLog for Records {
    fn record(&self, record: DecisionRecord) {
        // A test that is over listens no more.
        let _ = self.0.send(record);
    }
}

/// A query as the resolver saw it.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) message: Vec<u8>,
    pub(crate) transport: &'static str,
    pub(crate) from: SocketAddr,
    reply: Reply,
}

#[derive(Debug)]
enum Reply {
    Udp(Arc<UdpSocket>),
    Tcp(mpsc::UnboundedSender<Vec<u8>>),
}

impl Asked {
    /// Sends `message` to the proxy from the resolver's address.
    pub(crate) async fn answer(&self, message: Vec<u8>) {
        match &self.reply {
            Reply::Udp(socket) => {
                socket.send_to(&message, self.from).await.unwrap();
            }
            Reply::Tcp(connection) => connection.send(message).ok().unwrap(),
        }
    }
}

/// A resolver on UDP and TCP that hands each query to the test.
pub(crate) struct Resolver {
    pub(crate) address: SocketAddr,
    pub(crate) asked: mpsc::UnboundedReceiver<Asked>,
}

impl Resolver {
    pub(crate) async fn start(ip: IpAddr) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind((ip, 0)).await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (Arc::new(udp), tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let (sender, asked) = mpsc::unbounded_channel();
        let tcp_sender = sender.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                let reply = Reply::Udp(Arc::clone(&udp));
                let message = buffer[..length].to_vec();
                let transport = "udp";
                if sender.send(Asked { message, transport, from, reply }).is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            while let Ok((stream, from)) = tcp.accept().await {
                tokio::spawn(serve(stream, from, tcp_sender.clone()));
            }
        });
        Self { address, asked }
    }

    pub(crate) async fn next(&mut self) -> Asked {
        soon(self.asked.recv()).await.unwrap()
    }
}

async fn serve(stream: TcpStream, from: SocketAddr, asked: mpsc::UnboundedSender<Asked>) {
    let (mut reader, mut writer) = stream.into_split();
    let (answers, mut answered) = mpsc::unbounded_channel::<Vec<u8>>();
    tokio::spawn(async move {
        while let Some(message) = answered.recv().await {
            if writer.write_all(&framed(&message)).await.is_err() {
                return;
            }
        }
    });
    while let Ok(length) = reader.read_u16().await {
        let mut message = vec![0; usize::from(length)];
        reader.read_exact(&mut message).await.unwrap();
        let reply = Reply::Tcp(answers.clone());
        if asked.send(Asked { message, transport: "tcp", from, reply }).is_err() {
            return;
        }
    }
}

/// The proxy and everyone around it.
pub(crate) struct Stage {
    pub(crate) proxy: Proxy,
    pub(crate) listen: SocketAddr,
    pub(crate) resolver: Resolver,
    pub(crate) endpoints: Arc<Endpoints>,
    pub(crate) lessons: mpsc::UnboundedReceiver<Held>,
    pub(crate) records: mpsc::UnboundedReceiver<DecisionRecord>,
}

/// What a test changes about its stage.
pub(crate) struct Script {
    pub(crate) ip: IpAddr,
    pub(crate) learned: Option<Learned>,
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
    pub(crate) cache: CacheLimits,
    pub(crate) alternatives: Vec<SocketAddr>,
    pub(crate) shuffles_case: bool,
    /// Threads for UDP; one, because which of several a pod's socket falls to is chance.
    pub(crate) workers: NonZeroUsize,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            ip: POD,
            learned: Some(Learned::default()),
            limits: Limits::default(),
            cache: CacheLimits::default(),
            alternatives: Vec::new(),
            shuffles_case: false,
            workers: NonZeroUsize::MIN,
            timeouts: Timeouts {
                attempt: Duration::from_secs(5),
                attempts: 2,
                ..Timeouts::default()
            },
        }
    }
}

impl Script {
    /// Every lesson waits for the test.
    pub(crate) fn held() -> Self {
        Self { learned: None, ..Self::default() }
    }

    pub(crate) async fn start(self) -> Stage {
        let resolver = Resolver::start(self.ip).await;
        let endpoints = Arc::new(Endpoints(Mutex::new(HashMap::new())));
        endpoints.set(self.ip, "checkout", Arc::new(Rules));
        let (held, lessons) = mpsc::unbounded_channel();
        let (log, records) = mpsc::unbounded_channel();
        let teacher = match self.learned {
            Some(learned) => Teacher::AtOnce(learned),
            None => Teacher::Held(held),
        };
        let config = Config {
            resolvers: vec![ResolverSlot {
                slot: 0,
                resolver: resolver.address,
                alternatives: self.alternatives,
                listen: vec![SocketAddr::new(self.ip, 0)],
            }],
            limits: self.limits,
            timeouts: self.timeouts,
            cache: self.cache,
            shuffles_case: self.shuffles_case,
            workers: Some(self.workers),
        };
        let services = Services {
            clients: Arc::clone(&endpoints) as Arc<dyn Clients>,
            learner: Arc::new(teacher),
            log: Arc::new(Records(log)),
        };
        let proxy = Proxy::start(config, services).await.unwrap();
        let listen = proxy.listening(0).await[0];
        Stage { proxy, listen, resolver, endpoints, lessons, records }
    }
}

impl Stage {
    /// The stage's resolver and address, as a slot.
    pub(crate) fn slot(&self, slot: u8) -> ResolverSlot {
        ResolverSlot {
            slot,
            resolver: self.resolver.address,
            alternatives: Vec::new(),
            listen: vec![self.listen],
        }
    }

    /// A pod's UDP socket, connected to the proxy.
    pub(crate) async fn pod(&self) -> Pod {
        self.pod_at(self.listen.ip()).await
    }

    pub(crate) async fn pod_at(&self, address: IpAddr) -> Pod {
        let socket = UdpSocket::bind((address, 0)).await.unwrap();
        socket.connect(self.listen).await.unwrap();
        Pod(socket)
    }

    pub(crate) async fn tcp(&self) -> TcpPod {
        TcpPod(TcpStream::connect(self.listen).await.unwrap())
    }

    pub(crate) async fn record(&mut self) -> DecisionRecord {
        soon(self.records.recv()).await.unwrap()
    }

    pub(crate) async fn lesson(&mut self) -> Held {
        soon(self.lessons.recv()).await.unwrap()
    }

    /// What was counted, without the zeros.
    pub(crate) fn counts(&self) -> Vec<(&'static str, u64)> {
        let mut counts = self.proxy.counters().snapshot();
        counts.retain(|(_, count)| *count > 0);
        counts
    }

    /// What was counted under `label`.
    pub(crate) fn count(&self, label: &str) -> u64 {
        self.counts().iter().find(|(known, _)| *known == label).map_or(0, |(_, count)| *count)
    }
}

/// A pod on UDP.
pub(crate) struct Pod(pub(crate) UdpSocket);

impl Pod {
    pub(crate) async fn ask(&self, query: &[u8]) {
        self.0.send(query).await.unwrap();
    }

    pub(crate) async fn reply(&self) -> Vec<u8> {
        let mut buffer = vec![0; 65_535];
        let length = soon(self.0.recv(&mut buffer)).await.unwrap();
        buffer.truncate(length);
        buffer
    }

    /// Asserts that nothing is waiting for the pod, by a round trip through the proxy that
    /// everything sent before it would have come ahead of.
    pub(crate) async fn assert_nothing_came(&self) {
        let probe = mk_query(0xffff, "probe.refused", A);
        self.ask(&probe).await;
        assert_eq!(id_of(&self.reply().await), 0xffff, "only the probe is answered");
    }
}

/// A pod on TCP.
pub(crate) struct TcpPod(pub(crate) TcpStream);

impl TcpPod {
    pub(crate) async fn ask(&mut self, query: &[u8]) {
        self.0.write_all(&framed(query)).await.unwrap();
    }

    pub(crate) async fn reply(&mut self) -> Vec<u8> {
        let length = soon(self.0.read_u16()).await.unwrap();
        let mut message = vec![0; usize::from(length)];
        soon(self.0.read_exact(&mut message)).await.unwrap();
        message
    }

    /// Waits until the proxy closes the connection.
    pub(crate) async fn closed(mut self) {
        let mut rest = Vec::new();
        // A reset is an end too.
        let _ = soon(self.0.read_to_end(&mut rest)).await;
        assert_eq!(rest, Vec::<u8>::new());
    }
}
