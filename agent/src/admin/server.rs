//! The thread that answers: connections are bounded in number and in what they may hold open.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};

use super::listen::{self, Socket, SocketPath};
use super::stall::Unstalled;

/// Connections of the socket at once, and of scrapers; more wait to be accepted.
const CONNECTIONS_MAX: usize = 64;

/// Connections of the CNI plugin at once, each of which waits for a pod's policy: more than a kubelet
/// starts pods, and few enough for the files that a process may open.
const PLUGINS_MAX: usize = 512;

/// How long a client may take to say what it wants.
const HEADER_PATIENCE: Duration = Duration::from_secs(5);

/// How long a client may leave what it asked for unread before it is cut off.
const READ_PATIENCE: Duration = Duration::from_secs(30);

/// How long to wait before accepting again where that failed, as with too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the agent can be asked.
#[derive(Clone, Debug)]
pub struct Places {
    /// The socket.
    pub socket: PathBuf,
    /// The socket of the CNI plugin: pods that wait take nobody's place, and nobody takes theirs.
    pub cni: PathBuf,
    /// Where scrapers come in, if they may.
    pub metrics: Option<SocketAddr>,
    /// Where the service map is, if there is one.
    pub map: Option<SocketAddr>,
}

/// What is answered where.
#[derive(Clone, Debug)]
pub struct Routers {
    /// On the socket: everything.
    pub socket: Router,
    /// On that of the CNI plugin: what it asks.
    pub cni: Router,
    /// Over TCP: what a scraper may see.
    pub scrape: Router,
    /// The service map, over TCP too.
    pub map: Router,
}

/// Answers until it is dropped.
#[derive(Debug)]
pub struct Server {
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _sockets: [SocketPath; 2],
}

impl Server {
    /// Listens, and answers on a thread of its own, where `beside` runs too.
    pub fn start(
        places: &Places,
        routers: Routers,
        beside: impl Future<Output = ()> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let Socket { listener, path } = Socket::bind(&places.socket)?;
        let Socket { listener: plugins, path: cni_path } = Socket::bind(&places.cni)?;
        let remote = [
            ("--metrics-listen", places.metrics, routers.scrape),
            ("--map-listen", places.map, routers.map),
        ];
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime of the socket")?;
        let mut listeners = Vec::new();
        let (local, plugins) = {
            let _guard = runtime.enter();
            for (option, address, router) in remote {
                let Some(address) = address else { continue };
                let listener = TcpListener::from_std(listen::tcp(option, address)?)
                    .with_context(|| format!("cannot watch {option}"))?;
                listeners.push((listener, router));
            }
            let local = UnixListener::from_std(listener).context("cannot watch the socket")?;
            let plugins = UnixListener::from_std(plugins)
                .context("cannot watch the socket of the CNI plugin")?;
            (local, plugins)
        };
        let (end, ended) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("namegate-admin".into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::spawn(beside);
                    tokio::spawn(answer(local, routers.socket, CONNECTIONS_MAX));
                    tokio::spawn(answer(plugins, routers.cni, PLUGINS_MAX));
                    for (listener, router) in listeners {
                        tokio::spawn(answer(listener, router, CONNECTIONS_MAX));
                    }
                    // Ended by a word or by the other side's end.
                    let _ = ended.await;
                });
            })
            .context("cannot start the thread of the socket")?;
        Ok(Self { end: Some(end), thread: Some(thread), _sockets: [path, cni_path] })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the socket broke off");
        }
    }
}

/// Where connections come in.
trait Door: Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn open(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Door for UnixListener {
    type Stream = UnixStream;

    async fn open(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Door for TcpListener {
    type Stream = TcpStream;

    async fn open(&self) -> io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

async fn answer(door: impl Door, router: Router, connections_max: usize) {
    let slots = Arc::new(Semaphore::new(connections_max));
    while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
        match door.open().await {
            Ok(stream) => {
                let serving = serve(stream, router.clone());
                tokio::spawn(async move {
                    serving.await;
                    drop(slot);
                });
            }
            Err(error) => pause(&error).await,
        }
    }
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "a request cannot be accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .serve_connection(
            TokioIo::new(Unstalled::new(stream, READ_PATIENCE)),
            TowerToHyperService::new(router),
        )
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the socket broke off");
    }
}
