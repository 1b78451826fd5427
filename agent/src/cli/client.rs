//! Asking a running agent over its socket, for commands.

use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use http_body_util::{BodyExt, Collected, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::admin::{DEFAULT_SOCKET, ErrorBody};

/// The largest answer that a command reads.
const ANSWER_MAX: usize = 256 << 20;

/// The largest error, and the largest line of a stream, that a command reads.
const ERROR_MAX: usize = 64 << 10;
const LINE_MAX: usize = 4 << 20;

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
    /// Something else has the socket's name.
    #[error("{socket} is no socket: name the one of the agent, {DEFAULT_SOCKET} unless it was started with another --socket", socket = socket.display())]
    NoSocket {
        /// What is there.
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
    /// Of the agent that `args` mean.
    pub fn new(args: &AskArgs) -> Self {
        Self::at(&args.socket)
    }

    /// Of the agent with this socket.
    pub fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Asks for `path` and waits for the whole answer, without a runtime around.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let answer = self.run(async {
            let whole = async {
                let body = Limited::new(self.ask(path).await?, ANSWER_MAX).collect().await;
                body.map(Collected::to_bytes).map_err(|error| self.broken(io::Error::other(error)))
            };
            tokio::time::timeout(PATIENCE, whole)
                .await
                .unwrap_or_else(|_| Err(self.broken(io::ErrorKind::TimedOut.into())))
        })?;
        serde_json::from_slice(&answer)
            .map_err(|source| ClientError::Unreadable { path: path.to_owned(), source })
    }

    /// Whether `path` is answered well within `time`.
    pub fn answers(&self, path: &str, time: Duration) -> Result<(), ClientError> {
        self.run(async {
            let asked = tokio::time::timeout(time, self.ask(path)).await;
            asked.unwrap_or_else(|_| Err(self.broken(io::ErrorKind::TimedOut.into()))).map(drop)
        })
    }

    /// Asks for `path` and hands on each line of the answer as it comes, until `take` has enough, the
    /// answer ends, or the agent does.
    pub fn lines(
        &self,
        path: &str,
        take: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        self.run(self.each_line(path, take))
    }

    /// The same, for `time` at most.
    pub fn lines_for(
        &self,
        time: Duration,
        path: &str,
        take: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        self.run(async {
            tokio::time::timeout(time, self.each_line(path, take)).await.unwrap_or(Ok(()))
        })
    }

    async fn each_line(
        &self,
        path: &str,
        mut take: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        let mut body = self.ask(path).await?;
        let mut waiting = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.broken(io::Error::other(error)))?;
            let Ok(octets) = frame.into_data() else { continue };
            waiting.extend_from_slice(&octets);
            while let Some(end) = waiting.iter().position(|octet| *octet == b'\n') {
                let rest = waiting.split_off(end + 1);
                let line = std::mem::replace(&mut waiting, rest);
                if take(String::from_utf8_lossy(&line).trim_end()).is_break() {
                    return Ok(());
                }
            }
            if waiting.len() > LINE_MAX {
                return Err(self.broken(io::Error::other("a line is too long")));
            }
        }
        Ok(())
    }

    fn run<T>(
        &self,
        asking: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| self.broken(source))?
            .block_on(asking)
    }

    /// The body of the answer, once the agent has said that it is one.
    async fn ask(&self, path: &str) -> Result<Incoming, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| unreachable(&self.socket, error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(io::Error::other(error)))?;
        // Ends with the runtime.
        tokio::spawn(connection);
        let request = Request::get(path)
            .header("host", "namegate")
            .body(Empty::<Bytes>::new())
            .map_err(|error| self.broken(io::Error::other(error)))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| self.broken(io::Error::other(error)))?;
        let status = response.status();
        let body = response.into_body();
        if status.is_success() {
            return Ok(body);
        }
        let body = Limited::new(body, ERROR_MAX).collect().await.map(Collected::to_bytes);
        let told = body.ok().and_then(|body| serde_json::from_slice::<ErrorBody>(&body).ok());
        let message = told.map_or_else(|| format!("the agent answers {status}"), |told| told.error);
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
    } else if socket.metadata().is_ok_and(|found| !found.file_type().is_socket()) {
        ClientError::NoSocket { socket }
    } else if kind == io::ErrorKind::ConnectionRefused {
        ClientError::Gone { socket }
    } else if kind == io::ErrorKind::PermissionDenied {
        ClientError::Permission { socket }
    } else {
        ClientError::Broken { socket, source }
    }
}
