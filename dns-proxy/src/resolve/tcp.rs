//! Queries to the servers of one slot over TCP: a few connections to each, reused and pipelined (RFC
//! 7766).

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use crate::answer;
use crate::counters::Counters;
use crate::exchange::Core;
use crate::frame::Framer;
use crate::record::DnsFailure;
use crate::reply;
use crate::resolve::entropy::Entropy;
use crate::resolve::servers::Servers;
use crate::wire::Header;

/// Queries that one connection has under way.
const PIPELINED: usize = 64;

/// The connections to the servers of one slot.
pub(crate) struct TcpUpstream {
    core: Arc<Core>,
    servers: Vec<Connections>,
}

/// The connections to one server.
struct Connections {
    server: SocketAddr,
    open: Mutex<Vec<mpsc::Sender<Request>>>,
}

struct Request {
    message: Vec<u8>,
    question: Box<[u8]>,
    answer: oneshot::Sender<Vec<u8>>,
}

impl TcpUpstream {
    pub(crate) fn new(core: Arc<Core>, servers: &Servers) -> Self {
        let servers = servers.addresses().map(Connections::new).collect();
        Self { core, servers }
    }

    /// Asks `message`, whose question is `question`, and waits for its answer: of the first server,
    /// and where that one has none, of the next.
    pub(crate) async fn ask(
        &self,
        message: Vec<u8>,
        question: Box<[u8]>,
    ) -> Result<Vec<u8>, DnsFailure> {
        let began = Instant::now();
        let end = began + self.core.timeouts.upstream_tcp;
        let mut is_reachable = false;
        for (place, server) in self.servers.iter().enumerate() {
            // Half of what is left, so that whoever comes next has a chance.
            let left = end.saturating_duration_since(Instant::now());
            let is_last = place + 1 == self.servers.len();
            let limit = if is_last { left } else { left / 2 };
            match timeout(limit, server.attempt(&self.core, &message, &question)).await {
                Ok(Some(answer)) => {
                    self.core.stages.upstream.note(began.elapsed());
                    return Ok(answer);
                }
                Ok(None) => is_reachable = false,
                Err(_elapsed) => is_reachable = true,
            }
        }
        let counters = &self.core.counters;
        if is_reachable {
            counters.upstream_timeouts.increment();
            Err(DnsFailure::UpstreamTimeout)
        } else {
            counters.upstream_unreachable.increment();
            Err(DnsFailure::UpstreamUnreachable)
        }
    }
}

impl Connections {
    fn new(server: SocketAddr) -> Self {
        Self { server, open: Mutex::new(Vec::new()) }
    }

    /// A connection that was idle may be closed by the server as the query is sent: one more
    /// attempt then.
    async fn attempt(&self, core: &Arc<Core>, message: &[u8], question: &[u8]) -> Option<Vec<u8>> {
        for _ in 0..2 {
            let (answer, answered) = oneshot::channel();
            let request = Request { message: message.into(), question: question.into(), answer };
            if self.connection(core).send(request).await.is_err() {
                continue;
            }
            if let Ok(answer) = answered.await {
                return Some(answer);
            }
        }
        None
    }

    /// The connection with the most room, or another one where all are half full.
    fn connection(&self, core: &Arc<Core>) -> mpsc::Sender<Request> {
        let mut connections = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|connection| !connection.is_closed());
        let roomiest = connections.iter().max_by_key(|connection| connection.capacity());
        let may_open = connections.len() < core.limits.upstream_connections.max(1) as usize;
        match roomiest {
            Some(connection) if !may_open || connection.capacity() > PIPELINED / 2 => {
                connection.clone()
            }
            Some(_) | None => {
                let (sender, requests) = mpsc::channel(PIPELINED);
                connections.push(sender.clone());
                tokio::spawn(run(Arc::clone(core), self.server, requests));
                sender
            }
        }
    }
}

/// Carries queries over one connection until it breaks or nobody needs it.
async fn run(core: Arc<Core>, resolver: SocketAddr, requests: mpsc::Receiver<Request>) {
    let limit = core.timeouts.upstream_tcp;
    let ended = match timeout(limit, TcpStream::connect(resolver)).await {
        Ok(Ok(stream)) => Connection::new(stream, &core).carry(requests).await,
        Ok(Err(error)) => Err(error),
        Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
    };
    if let Err(error) = ended {
        tracing::debug!(%resolver, %error, "connection to the resolver ended");
    }
}

struct Connection<'a> {
    stream: TcpStream,
    framer: Framer,
    entropy: Entropy,
    pending: HashMap<u16, Request>,
    counters: &'a Counters,
    idle: Duration,
    limit: Duration,
}

impl<'a> Connection<'a> {
    fn new(stream: TcpStream, core: &'a Core) -> Self {
        Self {
            stream,
            framer: Framer::new(),
            entropy: Entropy::new(),
            pending: HashMap::new(),
            counters: &core.counters,
            idle: core.timeouts.upstream_idle,
            limit: core.timeouts.upstream_tcp,
        }
    }

    async fn carry(mut self, mut requests: mpsc::Receiver<Request>) -> io::Result<()> {
        self.stream.set_nodelay(true)?;
        let mut heard = Instant::now();
        loop {
            let patience = if self.pending.is_empty() { self.idle } else { self.limit };
            tokio::select! {
                request = requests.recv(), if self.pending.len() < PIPELINED => match request {
                    Some(request) => {
                        if self.pending.is_empty() {
                            heard = Instant::now();
                        }
                        timeout(self.limit, self.send(request)).await??;
                    }
                    None => return Ok(()),
                },
                read = self.stream.read_buf(self.framer.buffer()) => {
                    if read? == 0 {
                        return Ok(());
                    }
                    heard = Instant::now();
                    self.receive();
                }
                () = tokio::time::sleep_until(heard + patience) => return Ok(()),
            }
        }
    }

    async fn send(&mut self, mut request: Request) -> io::Result<()> {
        self.pending.retain(|_, request| !request.answer.is_closed());
        let id = loop {
            let id = self.entropy.id().map_err(io::Error::other)?;
            if !self.pending.contains_key(&id) {
                break id;
            }
        };
        reply::set_id(&mut request.message, id);
        let frame = crate::frame::frame(&request.message);
        self.pending.insert(id, request);
        self.counters.upstream_tcp.increment();
        self.stream.write_all(&frame).await
    }

    fn receive(&mut self) {
        while let Some(message) = self.framer.next() {
            let id = Header::read(&message).map(|header| header.id);
            let matched = id.filter(|id| {
                self.pending.get(id).is_some_and(|request| {
                    answer::is_response_to_question(&message, &request.question)
                })
            });
            match matched.and_then(|id| self.pending.remove(&id)) {
                Some(request) => {
                    if request.answer.send(message).is_err() {
                        tracing::trace!("an answer came after its time");
                    }
                }
                None => self.counters.upstream_unmatched.increment(),
            }
        }
    }
}
