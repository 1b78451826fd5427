//! The agent, asked over its socket: one request of HTTP/1.1 a connection.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::config::Config;
use super::reply::{Code, Refusal};
use crate::cni::alarms;
use crate::cni::protocol::{AttachedPod, PATH};

/// How much longer than the agent the plugin waits: for the agent's own word that it took too long.
const PATIENCE: Duration = Duration::from_secs(2);

/// The longest answer that is read.
const ANSWER_MAX: u64 = 64 << 10;

/// How many alarms are left at most where no agent takes them.
const ALARMS_MAX: usize = 4_096;

pub(super) struct Agent {
    socket: PathBuf,
}

impl Agent {
    pub(super) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Sends a command with its body, and waits until the agent did what it asks for.
    pub(super) fn ask(
        &self,
        command: &str,
        body: &impl Serialize,
        wait: Duration,
    ) -> Result<(), Refusal> {
        let body = serde_json::to_vec(body).map_err(|error| {
            Refusal::new(Code::Io, "the request cannot be written").because(error)
        })?;
        self.request("POST", &format!("{PATH}/{command}"), &body, wait)
    }

    /// Whether the agent enforces.
    pub(super) fn is_ready(&self, wait: Duration) -> Result<(), Refusal> {
        self.request("GET", "/readyz", b"", wait)
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        body: &[u8],
        wait: Duration,
    ) -> Result<(), Refusal> {
        let answer = self.exchange(method, path, body, wait).map_err(|error| {
            let socket = self.socket.display();
            let is_slow = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
            let message = if is_slow {
                format!("the agent at {socket} does not answer")
            } else {
                format!(
                    "no agent at {socket}: nobody can say that the pod is under policy; check the Namegate pod of this node"
                )
            };
            Refusal::new(Code::TryAgain, message).because(error)
        })?;
        let (status, said) = read(&answer).ok_or_else(|| {
            let message = format!("what answers at {} is no agent", self.socket.display());
            Refusal::new(Code::Refused, message)
        })?;
        match status {
            200..=299 => Ok(()),
            503 | 504 => Err(Refusal::new(Code::TryAgain, said)),
            _ => {
                Err(Refusal::new(Code::Refused, said).because(format!("{method} {path}: {status}")))
            }
        }
    }

    fn exchange(
        &self,
        method: &str,
        path: &str,
        body: &[u8],
        wait: Duration,
    ) -> io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(wait + PATIENCE))?;
        stream.set_write_timeout(Some(wait + PATIENCE))?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: namegate\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat())?;
        let mut answer = Vec::new();
        stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
        // An agent that ends cuts off whoever waits.
        if answer.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(answer) }
    }
}

/// Status and message of an answer. The agent says how long an answer's body is, and ends with it.
fn read(answer: &[u8]) -> Option<(u16, String)> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let said: Option<Value> = serde_json::from_str(body).ok();
    let message = said.as_ref().and_then(|said| said.pointer("/error").or(said.get("message")));
    let message = message.and_then(Value::as_str).unwrap_or(body.trim());
    Some((status, message.to_owned()))
}

/// Leaves word of a pod that starts without a policy that anybody saw in force; an agent that comes
/// says it, counts it, and takes the word away.
pub(super) fn alarm(config: &Config, pod: &AttachedPod, refusal: &Refusal) {
    let name = format!("{}/{}", pod.namespace, pod.pod);
    eprintln!("{}: Pod {name} starts without a policy: {refusal}", crate::cni::PLUGIN);
    let Some(folder) = alarms::folder(&config.socket) else { return };
    let left = || -> io::Result<()> {
        fs::create_dir_all(&folder)?;
        if fs::read_dir(&folder)?.count() >= ALARMS_MAX {
            return Err(io::Error::other("too many are left already"));
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let id: String =
            pod.attachment.container_id.chars().filter(|c| is_plain(*c)).take(64).collect();
        let alarm = json!({"pod": name, "why": refusal.to_string()});
        // Half of one would be told as one that cannot be read.
        let draft = folder.join(format!("{id}.{}", alarms::DRAFT));
        fs::write(&draft, alarm.to_string())?;
        fs::rename(&draft, folder.join(format!("{id}.json")))
    };
    if let Err(error) = left() {
        eprintln!("{}: no word of it can be left: {error}", crate::cni::PLUGIN);
    }
}
