//! From one agent of a node to the next: the sockets that pods' lookups come to go from process to
//! process, so that what is sent meanwhile waits in them and is answered by the next agent.
//!
//! An agent that enforces listens for an heir in its run directory:
//!
//! | who | says |
//! | --- | --- |
//! | heir | the greeting of its version |
//! | former | its own; that of another version ends it here |
//! | former | the sockets of each address, once its work has ended and the lock is free |
//! | heir | that it enforces |
//! | former | that it is relieved, or that it goes on itself, since that took too long |
//!
//! Whoever has the lock acts, and nobody else: an heir that ends before it enforces, in whatever way,
//! leaves the lock to the former agent, which has the sockets still and serves again. A former agent
//! that ends half-way leaves it to the heir. What is enforced is in the kernel throughout, and maps are
//! taken over as after a restart.

mod passing;
#[cfg(test)]
mod tests;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use namegate_dns_proxy::Sockets;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use self::passing::Word;
use crate::admin::{Socket, SocketPath};
use crate::lock::AgentLock;
use crate::preflight::PreflightError;

/// What either side says first. Its last digit is the version of everything that follows.
const GREETING: [u8; 16] = *b"namegate-heir-1\n";

/// What comes before the version.
const PREFIX: &[u8] = b"namegate-heir-";

/// How long the other side may take for a word that it need not work for.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long an agent may take to end its work, and to say whether it is relieved.
const WORK_LIMIT: Duration = Duration::from_secs(30);

/// How long an heir may take to enforce, from the moment it has the sockets: lookups wait for it.
pub const START_LIMIT: Duration = Duration::from_secs(30);

/// How often it is looked whether the lock is free.
const LOOK: Duration = Duration::from_millis(200);

/// How long an heir waits before it asks again who did not hand over.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// An heir's word: everything is in force.
const ENFORCING: u8 = 1;
/// A former agent's word: it does nothing but wait for its end.
const RELIEVED: u8 = 2;
/// A former agent's word: it goes on itself.
const REVOKED: u8 = 3;

/// Where an agent listens for its heir.
pub fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("heir.sock")
}

/// Listens for heirs, until this goes.
#[derive(Debug)]
pub struct Heirs {
    came: mpsc::Receiver<Heir>,
    task: JoinHandle<()>,
    _path: SocketPath,
}

impl Heirs {
    /// Begins to listen; inside a tokio runtime.
    pub fn listen(run_dir: &Path) -> anyhow::Result<Self> {
        let Socket { listener, path } = Socket::bind(&path(run_dir))?;
        let listener =
            UnixListener::from_std(listener).context("cannot watch the heirs' socket")?;
        let (send, came) = mpsc::channel(1);
        Ok(Self { came, task: tokio::spawn(welcome(listener, send)), _path: path })
    }

    /// Waits for an heir.
    pub async fn next(&mut self) -> Heir {
        match self.came.recv().await {
            Some(heir) => heir,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Heirs {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn welcome(listener: UnixListener, heirs: mpsc::Sender<Heir>) {
    loop {
        let came = match listener.accept().await {
            Ok((stream, _)) => greeted(stream).await,
            Err(error) => Err(error.into()),
        };
        match came {
            Ok(stream) => {
                if heirs.send(Heir(stream)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(error = %format!("{error:#}"), "nothing is handed over to who asked for it");
                sleep(LOOK).await;
            }
        }
    }
}

/// The stream of an heir of the same version and user.
async fn greeted(mut stream: UnixStream) -> anyhow::Result<BlockingStream> {
    let peer = stream.peer_cred().context("cannot tell who asks")?;
    ensure_own(peer.uid())?;
    let mut said = [0; GREETING.len()];
    timeout(PATIENCE, stream.read_exact(&mut said)).await.context("nothing was said")??;
    ensure!(said.starts_with(PREFIX), "it is no agent");
    timeout(PATIENCE, stream.write_all(&GREETING)).await??;
    ensure!(said == GREETING, other_version(&said));
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// An agent gives its sockets to its own user alone, and takes them from no other.
fn ensure_own(uid: u32) -> anyhow::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    ensure!(uid == own, "it runs as user {uid}, and this agent as {own}");
    Ok(())
}

fn other_version(said: &[u8]) -> String {
    format!(
        "the other agent hands over by {:?} and this one by {:?}: end the one that runs (delete its pod) and the next goes on",
        String::from_utf8_lossy(said).trim_end(),
        String::from_utf8_lossy(&GREETING).trim_end()
    )
}

/// An agent that is to go on in this one's place.
#[derive(Debug)]
pub struct Heir(BlockingStream);

impl Heir {
    /// Passes the sockets on and waits for so long until the heir enforces. Where this fails, the heir has ended or
    /// was told to. Blocks; the lock has to be free.
    pub fn seat(mut self, sockets: &[Sockets], limit: Duration) -> anyhow::Result<()> {
        self.0.set_read_timeout(Some(PATIENCE))?;
        for one in sockets {
            let word = Word::Sockets(one.address, one.udp.len());
            passing::say(&mut self.0, &word, Some(one)).context("it did not take the sockets")?;
        }
        passing::say(&mut self.0, &Word::Done, None).context("it did not take the sockets")?;
        self.0.set_read_timeout(Some(limit))?;
        let mut said = [0];
        match self.0.read(&mut said) {
            Ok(1) if said == [ENFORCING] => {
                self.0.write_all(&[RELIEVED]).context("it ended as soon as it enforced")
            }
            Ok(0) => bail!("it ended before it enforced"),
            Ok(_) => bail!("it says what means nothing"),
            Err(error) => {
                self.0.write_all(&[REVOKED]).context("it neither ended nor enforced")?;
                Err(error).context("it did not enforce in time, and was told to end")
            }
        }
    }
}

/// Waits until the lock is free, and takes it.
pub async fn wait_for_lock(run_dir: &Path) -> Result<AgentLock, PreflightError> {
    loop {
        match AgentLock::take(run_dir) {
            Err(PreflightError::Locked { .. }) => sleep(LOOK).await,
            taken => return taken,
        }
    }
}

/// What an heir begins with.
#[derive(Debug)]
pub struct Place {
    /// The node's lock.
    pub lock: AgentLock,
    /// The sockets of the former agent.
    pub sockets: Vec<Sockets>,
    /// The former agent, where one handed over.
    pub former: Option<Former>,
}

/// An agent that handed over, and goes on where its heir does not come to enforce.
#[derive(Debug)]
pub struct Former(UnixStream);

impl Former {
    /// Waits until it wants the node back: for ever where it is gone.
    pub async fn wants_back(&mut self) {
        if self.0.read_u8().await.is_ok_and(|word| word == REVOKED) {
            return;
        }
        std::future::pending().await
    }

    /// Tells it that everything is in force; fails where it goes on itself.
    pub async fn relieve(mut self) -> anyhow::Result<()> {
        // What it said before it closed the stream is heard all the same.
        let told = self.0.write_u8(ENFORCING).await;
        let said = timeout(WORK_LIMIT, self.0.read_u8()).await;
        ensure!(!matches!(said, Ok(Ok(REVOKED))), GOES_ON);
        if !matches!(said, Ok(Ok(RELIEVED))) {
            tracing::info!(?told, "the agent that handed over has ended");
        }
        Ok(())
    }
}

/// Why an heir ends that was too slow.
pub const GOES_ON: &str =
    "the agent that handed over goes on itself, since this one took too long to enforce";

/// Waits until the agent that has the lock hands over or ends, and takes its place.
pub async fn succeed(run_dir: &Path) -> anyhow::Result<Place> {
    let mut told = String::new();
    loop {
        let error = match ask(run_dir).await {
            Ok((sockets, former)) => {
                // Free before the sockets came, unless somebody else was quicker.
                let lock = AgentLock::take(run_dir)?;
                return Ok(Place { lock, sockets, former: Some(former) });
            }
            Err(error) => format!("{error:#}"),
        };
        let again = Instant::now() + ASK_AGAIN;
        tokio::select! {
            lock = wait_for_lock(run_dir) => {
                return Ok(Place { lock: lock?, sockets: Vec::new(), former: None });
            }
            () = tokio::time::sleep_until(again) => {}
        }
        if told != error {
            tracing::warn!(
                error,
                "the agent that has the node does not hand over; it goes on, and is asked again"
            );
            told = error;
        }
    }
}

/// Asks the node's agent to hand over.
async fn ask(run_dir: &Path) -> anyhow::Result<(Vec<Sockets>, Former)> {
    let path = path(run_dir);
    let asked = tokio::task::spawn_blocking(move || {
        let stream = BlockingStream::connect(&path)
            .with_context(|| format!("cannot ask at {}", path.display()))?;
        take_sockets(stream)
    });
    let (sockets, stream) = asked.await.context("asking broke off")??;
    stream.set_nonblocking(true)?;
    Ok((sockets, Former(UnixStream::from_std(stream)?)))
}

fn take_sockets(mut stream: BlockingStream) -> anyhow::Result<(Vec<Sockets>, BlockingStream)> {
    ensure_own(rustix::net::sockopt::socket_peercred(&stream)?.uid.as_raw())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&GREETING)?;
    let mut said = [0; GREETING.len()];
    stream.read_exact(&mut said).context("it answers nothing")?;
    ensure!(said == GREETING, other_version(&said));
    stream.set_read_timeout(Some(WORK_LIMIT))?;
    let mut all = Vec::new();
    loop {
        match passing::hear(&mut stream).context("it did not hand over")? {
            Some(sockets) => all.push(sockets),
            None => return Ok((all, stream)),
        }
    }
}
