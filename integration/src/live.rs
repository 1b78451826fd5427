//! Many connections that live, each asked again and again whether it does.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::namespace::Namespace;

/// How long a connection may take to be opened.
const OPENING: Duration = Duration::from_secs(10);
/// After how long without an answer a connection counts as broken.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often each connection is used.
const BEAT: Duration = Duration::from_millis(200);

/// Connections to one server, in use until this value ends.
#[derive(Debug)]
pub struct LiveFlows {
    is_over: Arc<AtomicBool>,
    exchanges: Arc<AtomicU64>,
    clients: JoinHandle<Result<Vec<io::Result<Duration>>>>,
}

/// How the connections fared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How many there were.
    pub flows: usize,
    /// Why some broke.
    pub broken: Vec<String>,
    /// The longest that one of them waited for an answer.
    pub longest_gap: Duration,
}

impl LiveFlows {
    /// Opens `count` connections from `from` to a server that listens at `at` in `far`.
    pub fn open(from: &Namespace, far: &Namespace, at: SocketAddr, count: usize) -> Result<Self> {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
            .context("two files for each connection")?;
        let listener = far.within(|| TcpListener::bind(at))?.context("cannot listen")?;
        listener.set_nonblocking(true)?;
        // It ends with the test's process: nobody waits for it.
        let _server = thread::spawn(move || serve(listener));
        let open = || (0..count).map(|_| TcpStream::connect_timeout(&at, OPENING)).collect();
        let streams: io::Result<Vec<TcpStream>> = from.within(open)?;
        let streams = streams.context("cannot open the connections")?;
        let is_over = Arc::new(AtomicBool::new(false));
        let exchanges = Arc::new(AtomicU64::new(0));
        let (end, count) = (Arc::clone(&is_over), Arc::clone(&exchanges));
        let clients = thread::spawn(move || use_all(streams, &end, &count));
        Ok(Self { is_over, exchanges, clients })
    }

    /// How many answers came so far.
    pub fn exchanges(&self) -> u64 {
        self.exchanges.load(Ordering::Relaxed)
    }

    /// Ends them all and says how they fared.
    pub fn end(self) -> Result<Report> {
        self.is_over.store(true, Ordering::Relaxed);
        let outcomes =
            self.clients.join().map_err(|_| anyhow!("the connections' thread panicked"))??;
        let longest_gap = outcomes.iter().flatten().max().copied().unwrap_or_default();
        let broken =
            outcomes.iter().filter_map(|outcome| Some(outcome.as_ref().err()?.to_string()));
        Ok(Report { flows: outcomes.len(), broken: broken.collect(), longest_gap })
    }
}

fn serve(listener: TcpListener) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            tokio::spawn(async move {
                let mut octets = [0; 8];
                // A client that goes ends its connection.
                while stream.read_exact(&mut octets).await.is_ok()
                    && stream.write_all(&octets).await.is_ok()
                {}
            });
        }
    })
}

fn use_all(
    streams: Vec<TcpStream>,
    is_over: &Arc<AtomicBool>,
    exchanges: &Arc<AtomicU64>,
) -> Result<Vec<io::Result<Duration>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut clients = JoinSet::new();
        for stream in streams {
            stream.set_nonblocking(true)?;
            let stream = tokio::net::TcpStream::from_std(stream)?;
            clients.spawn(use_one(stream, Arc::clone(is_over), Arc::clone(exchanges)));
        }
        Ok(clients.join_all().await)
    })
}

/// Uses a connection until the end, and says how long it waited for an answer at most.
async fn use_one(
    mut stream: tokio::net::TcpStream,
    is_over: Arc<AtomicBool>,
    exchanges: Arc<AtomicU64>,
) -> io::Result<Duration> {
    let mut longest = Duration::ZERO;
    let mut number = 0_u64;
    while !is_over.load(Ordering::Relaxed) {
        let began = Instant::now();
        number += 1;
        let mut answer = [0; 8];
        let exchange = async {
            stream.write_all(&number.to_be_bytes()).await?;
            stream.read_exact(&mut answer).await
        };
        timeout(PATIENCE, exchange).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if answer != number.to_be_bytes() {
            return Err(io::Error::other("something else came back"));
        }
        longest = longest.max(began.elapsed());
        exchanges.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(BEAT).await;
    }
    Ok(longest)
}
