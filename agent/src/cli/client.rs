//! Asking a running agent over its socket, for commands.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::admin::{DEFAULT_SOCKET, ErrorBody};

/// The largest answer that a command reads.
const ANSWER_MAX: usize = 256 << 20;

/// How long a command waits for a whole answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the agent is, and how its answer is shown.
#[derive(Clone, Debug, Args)]
pub struct AskArgs {
    /// The agent's socket
    #[arg(long, env = "NAMEGATE_SOCKET", value_name = "FILE", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// How to print the answer
    #[arg(short, long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub output: Format,
}

/// How an answer is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody made the socket.
    #[error(
        "no agent answers on {socket}: none runs on this node, or it has another --socket; in a cluster: kubectl -n kube-system exec daemonset/namegate -- namegate COMMAND",
        socket = socket.display()
    )]
    NoAgent {
        /// The socket.
        socket: PathBuf,
    },
    /// The agent that made the socket has crashed.
    #[error("the agent behind {socket} has ended without order; enforcement goes on, start it again", socket = socket.display())]
    Gone {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket is for root.
    #[error("no permission to open {socket}: it is for the agent's user alone; run this as root", socket = socket.display())]
    Permission {
        /// The socket.
        socket: PathBuf,
    },
    /// The connection cannot be used.
    #[error("cannot talk to the agent on {socket}", socket = socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The agent answered with an error.
    #[error("{message}")]
    Refused {
        /// The code of the answer.
        status: StatusCode,
        /// What the agent said.
        message: String,
    },
    /// The agent's answer cannot be read.
    #[error("the agent's answer to {path} cannot be read: is it of another version?")]
    Unreadable {
        /// What was asked for.
        path: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// Asks one agent.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Of the agent with this socket.
    pub fn new(args: &AskArgs) -> Self {
        Self { socket: args.socket.clone() }
    }

    /// Asks for `path` and waits for the whole answer, without a runtime around.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| self.broken(source))?;
        let answer = runtime.block_on(async {
            tokio::time::timeout(PATIENCE, self.fetch(path))
                .await
                .unwrap_or_else(|_| Err(self.broken(io::ErrorKind::TimedOut.into())))
        })?;
        serde_json::from_slice(&answer)
            .map_err(|source| ClientError::Unreadable { path: path.to_owned(), source })
    }

    async fn fetch(&self, path: &str) -> Result<Bytes, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| unreachable(&self.socket, error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(io::Error::other(error)))?;
        let driver = tokio::spawn(connection);
        let request = Request::get(path)
            .header("host", "namegate")
            .body(Empty::<Bytes>::new())
            .map_err(|error| self.broken(io::Error::other(error)))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| self.broken(io::Error::other(error)))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|error| self.broken(io::Error::other(error)))?.to_bytes();
        driver.abort();
        if status.is_success() {
            return Ok(body);
        }
        let message = serde_json::from_slice::<ErrorBody>(&body)
            .map_or_else(|_| format!("the agent answers {status}"), |body| body.error);
        Err(ClientError::Refused { status, message })
    }

    fn broken(&self, source: io::Error) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), source }
    }
}

fn unreachable(socket: &Path, source: io::Error) -> ClientError {
    let (kind, socket) = (source.kind(), socket.to_owned());
    if kind == io::ErrorKind::NotFound {
        ClientError::NoAgent { socket }
    } else if kind == io::ErrorKind::ConnectionRefused {
        ClientError::Gone { socket }
    } else if kind == io::ErrorKind::PermissionDenied {
        ClientError::Permission { socket }
    } else {
        ClientError::Broken { socket, source }
    }
}
